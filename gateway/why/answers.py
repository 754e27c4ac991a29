"""Frames that are right: whether they are of the right protocol and meter, and answer what was asked."""

from collections.abc import Sequence
from typing import Final

from gateway import decode
from gateway.sniff import AnyFrame
from gateway.why.case import NAMES, Case, Cause
from gateway.why.reading import FRAMES_SHOWN, Piece, Reading, hexadecimal, is_reply, is_text, outside, plain, says
from gateway.why.values import judge_value, order_note
from protocols import dlt645, modbus
from protocols.framing import MeterError

_TODO_REFUSED: Final = {
    "no_requested_data": ("The meter does not have this item: read another one, or choose its template",),
    "password_or_unauthorised": ("Set GRIDLOOM_645_PASSWORD; prepaid meters want an ESAM instead of a password",),
    "illegal_function": ("Use function 4 instead of 3, or the reverse",),
    "illegal_data_address": ("Check the address: manuals count from 1 or from 40001, the wire from 0",),
    "illegal_data_value": ("Ask for fewer registers at once",),
    "gateway_target_failed_to_respond": (
        "The serial server works, the meter behind it is silent: meterctl why --silent",
    ),
    "gateway_path_unavailable": ("The serial server does not know this unit: check its mapping",),
}


def judge_frames(case: Case, reading: Reading) -> None:
    pieces = list(reading.pieces)
    name = NAMES[reading.kind]
    shown = []
    for i, piece in enumerate(pieces[:FRAMES_SHOWN]):
        told = says(reading.kind, piece.frame, _question(case, pieces, i))
        shown.append(f"{hexadecimal(case.raw[piece.start : piece.end])} = {told}")
    if len(pieces) > FRAMES_SHOWN:
        shown.append(f"and {len(pieces) - FRAMES_SHOWN} more frames")
    sure = 1 - 2.0**-reading.bits
    before = len(case.found)
    _wrong_language(case, reading, shown, sure)
    replies = _after_echo(case, reading, pieces, shown, sure)
    if len(case.found) == before and replies:
        _judge_answers(case, reading, replies, shown, sure)
    _around(case, reading, pieces, shown)
    if len(case.found) == before:
        count = f"{len(pieces)} valid {name} frames" if len(pieces) > 1 else f"a valid {name} frame"
        notes = [*reading.strays(case.raw), *(order_note(reading) if case.expected.value is None else ())]
        case.add(Cause.HEALTHY, f"Nothing wrong: {count}", [*shown, *notes], sure)


def _question(case: Case, pieces: Sequence[Piece], i: int) -> AnyFrame | None:
    return pieces[i - 1].frame if i and not is_reply(pieces[i - 1].frame) else case.asked


def _wrong_language(case: Case, reading: Reading, shown: list[str], sure: float) -> None:
    want = case.expected.kind
    if want is None or want == reading.kind:
        _wrong_edition(case, reading, shown, sure)
        return
    heard, meant = NAMES[reading.kind], NAMES[want]
    todo: tuple[str, ...]
    speaks: str
    if "dlt645" in (want, reading.kind):
        speaks = "dlt645-2007" if reading.kind == "dlt645" else reading.kind
        what = f"A {heard} device speaks on a line that is set to {meant}"
        todo = (f'Set protocol = "{speaks}" for this line', "Or the wrong meter is on this port: check the label")
    elif reading.kind == "modbus-tcp":
        what = f"Modbus TCP (with an MBAP header) arrives where {meant} was expected"
        todo = (
            'The serial server converts to Modbus TCP: set protocol = "modbus-tcp"',
            "Or set the serial server to transparent (raw TCP) mode",
        )
    elif want == "modbus-tcp":
        speaks = "modbus-rtu-over-tcp" if reading.kind == "modbus-rtu" else reading.kind
        what = f"{heard} arrives where Modbus TCP was expected: the serial server passes bytes through"
        todo = (f'Set protocol = "{speaks}"', "Or switch the serial server to Modbus TCP conversion")
    else:
        what = f"The device speaks {heard}, the line is set to {meant}"
        todo = (f'Set protocol = "{reading.kind}", or the meter\'s communication mode to {meant}',)
    cause = Cause.PROTOCOL if "dlt645" in (want, reading.kind) else Cause.FRAMING
    case.add(cause, what, shown, 0.95 * sure, *todo)


def _wrong_edition(case: Case, reading: Reading, shown: list[str], sure: float) -> None:
    editions = {
        frame.edition
        for frame in (piece.frame for piece in reading.pieces)
        if isinstance(frame, dlt645.Frame) and frame.is_reply and frame.di is not None
    }
    want = (case.expected.protocol or "").removeprefix("dlt645-")
    if reading.kind == "dlt645" and case.expected.protocol and editions and want not in editions:
        other = editions.pop()
        case.add(
            Cause.PROTOCOL,
            f"The meter speaks DL/T 645-{other}, the line is set to {want}",
            shown,
            0.9 * sure,
            f'Set protocol = "dlt645-{other}" for this line',
        )


def _after_echo(case: Case, reading: Reading, pieces: list[Piece], shown: list[str], sure: float) -> list[Piece]:
    """The replies; where there are none, that is the trouble."""
    request = case.expected.request.lstrip(b"\xfe")
    mine = [piece for piece in pieces if request and case.raw[piece.start : piece.end] == request.lstrip(b"\xfe")]
    replies = [piece for piece in pieces if is_reply(piece.frame) and piece not in mine]
    if replies or len(case.found) or (mine and len(mine) < len(pieces)):
        return replies or [piece for piece in pieces if piece not in mine]
    if mine:
        case.add(
            Cause.ECHO,
            "Only the echo of the request: the adapter hears itself, and no meter answers",
            [f"received = sent: {hexadecimal(request)}"],
            0.95 * sure,
            "The echo is harmless, the silence after it is not: check A and B, speed, parity and address",
            "If the adapter has a switch for echo (two-wire), set it to off",
        )
    elif not case.asked and not any(
        isinstance(piece.frame, dlt645.Frame) and piece.frame.address == dlt645.BROADCAST for piece in pieces
    ):
        case.add(
            Cause.REQUEST_ONLY,
            "A request and no reply: an echo of one's own request, or another master asks a meter that is silent",
            shown,
            0.8 * sure,
            "If you sent this yourself, it is the echo; no meter answered: check A and B, speed, parity, address",
            "If not, two masters share this line: only one may ask",
        )
    return []


def _judge_answers(case: Case, reading: Reading, replies: list[Piece], shown: list[str], sure: float) -> None:
    """Whether the replies answer what was asked."""
    asked = case.asked if case.asked_kind == reading.kind or reading.kind == "modbus-rtu" else None
    _without_33h(case, replies, sure)
    addresses = sorted({_who(piece.frame) for piece in replies})
    if asked is not None and not case.found:
        wildcard = isinstance(asked, dlt645.Frame) and "A" in asked.address
        others = [piece for piece in replies if not _is_from(asked, piece.frame)]
        if len(addresses) > 1 and len(replies) > 1:
            case.add(
                Cause.COLLISION,
                f"{len(addresses)} meters answer one request: {', '.join(addresses)}",
                shown,
                0.9 * sure,
                "Ask with the full address, not the wildcard" if wildcard else "Two meters: find the doubled address",
                "Disconnect all but one and read their addresses one by one",
            )
        elif others:
            case.add(
                Cause.OTHER_METER,
                f"Another meter's reply: asked {_who(asked)}, heard {_who(others[0].frame)}; its checksum is right",
                shown,
                0.93 * sure,
                "A late reply to an earlier request looks so: ask again after a second of silence",
                f"If it stays, the address in the site file is wrong: the meter says {_who(others[0].frame)}",
            )
        elif not any(_is_answer(asked, piece.frame) for piece in replies):
            case.add(
                Cause.OTHER_ANSWER,
                "A reply of the right meter to another question: a late answer to the request before",
                [f"asked: {says(reading.kind, asked, None)}", *shown],
                0.85 * sure,
                "Lengthen read_timeout_s for this line, and rest after a timeout before asking again",
            )
    if not case.found:
        _refused(case, replies, shown, sure)
    if not case.found and case.expected.value is not None:
        judge_value(case, reading, replies, shown, sure)


def _refused(case: Case, replies: list[Piece], shown: list[str], sure: float) -> None:
    for piece in replies[-1:]:
        frame = piece.frame
        if isinstance(frame, dlt645.Frame):
            names = dlt645.fault_names(frame) if frame.is_abnormal else ()
            if not frame.is_abnormal:
                continue
        else:
            try:
                modbus.check_accepted(frame.pdu)
                continue
            except MeterError as error:
                names = error.names
        told = ", ".join(names).replace("_", " ") or "no reason given"
        case.add(
            Cause.REFUSED,
            f"The line is fine; the meter understood and refused: {told}",
            shown,
            0.95 * sure,
            *_TODO_REFUSED.get(names[0] if names else "", ("Check the item or register against the meter's manual",)),
        )


def _without_33h(case: Case, replies: list[Piece], sure: float) -> None:
    for piece in replies:
        frame = piece.frame
        if not isinstance(frame, dlt645.Frame) or frame.is_abnormal or not frame.di_bytes:
            continue
        sent = bytes((byte + 0x33) & 0xFF for byte in frame.data)
        bare = dlt645.Frame(frame.address, frame.control, sent)
        table = dlt645.items(frame.edition)
        if frame.di not in table and bare.di in table:
            case.add(
                Cause.WITHOUT_33H,
                "The meter does not add 33H to its data (or something on the way takes it off)",
                [
                    f"as it stands, the data identifier is {frame.di:0{2 * frame.di_bytes}X}, which nobody knows",
                    f"taken without 33H it is: {'; '.join(decode.says(bare)) or decode.headline(bare)}",
                ],
                0.9 * sure,
                "A home-made converter or simulator? Correct it there: 33H is added to every data byte",
            )
            return


def _around(case: Case, reading: Reading, pieces: list[Piece], shown: list[str]) -> None:
    """What is not frames: in front, behind, between."""
    head = case.raw[: pieces[0].start]
    if reading.kind == "dlt645":
        head = head.rstrip(b"\xfe")
    share = reading.covered(case.raw)
    if len(head) >= 3 and (is_text(head) or (len(head) >= 6 and share > 0.3)):
        told = f' "{plain(head)}"' if is_text(head) else ""
        case.add(
            Cause.PREFIX,
            f"{len(head)} bytes{told} come before the frame: a serial server's registration or heartbeat",
            [f"before: {hexadecimal(head)}", *shown],
            0.9 if is_text(head) else 0.6,
            "Harmless to Gridloom, which looks for the frame; other software may want it off",
            "Switch registration packet and heartbeat off in the serial server's settings",
        )
    elif share < 0.6:
        rest = outside(case.raw, pieces)
        case.add(
            Cause.DAMAGED,
            f"Some frames are right, but {len(rest)} of {len(case.raw)} bytes belong to none",
            [*shown, f"not in a frame: {hexadecimal(rest)}"],
            0.5,
            "Noise between frames: bias the line, and check for a second master",
        )


def _who(frame: AnyFrame) -> str:
    return frame.address if isinstance(frame, dlt645.Frame) else f"unit {frame.unit}"


def _is_from(asked: AnyFrame, frame: AnyFrame) -> bool:
    if isinstance(asked, dlt645.Frame) and isinstance(frame, dlt645.Frame):
        return dlt645.address_matches(asked.address, frame.address) or frame.address == dlt645.WILDCARD
    return isinstance(asked, modbus.Frame) and isinstance(frame, modbus.Frame) and asked.unit == frame.unit


def _is_answer(asked: AnyFrame, frame: AnyFrame) -> bool:
    if isinstance(asked, dlt645.Frame) and isinstance(frame, dlt645.Frame):
        return dlt645.is_answer(asked, frame)
    if isinstance(asked, modbus.Frame) and isinstance(frame, modbus.Frame):
        return modbus.is_serial_answer(modbus.Frame(frame.transaction, asked.unit, asked.pdu), frame)
    return False
