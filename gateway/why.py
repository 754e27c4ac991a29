"""``meterctl why``: from bytes received on a line to the likely cause of the trouble, with the evidence.

The bytes are first taken as they are: frames of each protocol, and what nearly is one. Where that explains nothing,
``gateway.uart`` asks what could have been sent that a UART with this setting heard so. A cause is named only with a
reading that chance would hardly give; a healthy frame has none.
"""

import json
import math
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal, TypeAlias, cast, get_args

import click

from edge.model import Parity, Protocol, SerialSetting
from gateway import decode, sniff
from gateway.sniff import AnyFrame, Dlt645Language, ModbusLanguage
from gateway.uart import COMMON_BAUD, Grammar, Suspect, suspects
from protocols import dlt645, modbus
from protocols.dlt645.frame import HEADER_BYTES
from protocols.framing import MeterError, StreamDecoder
from protocols.modbus.length import NOT_YET, reply_bytes, request_bytes

BYTES_MAX: Final = 65_536  # of a capture; what comes after is not looked at
FRAMES_SHOWN: Final = 4
TOLERANCE: Final = 0.02  # of an expected value: a reading on the display is a little older or newer
CONFIDENCE_MAX: Final = 0.97  # bytes alone prove nothing
# Speeds to try where the port's is not known: only their ratio to the first counts then.
_RATIOS: Final = (9600, 1200, 2400, 4800, 19200, 38400)
SURE_BITS: Final = 16.0  # what checks must say beyond chance before frames count as found
CHANCE_BITS: Final = 8.0  # some hundred readings are tried, and one of them fits best by luck
FORMAT_CHANCE_BITS: Final = 4.0  # but only a few at the port's own speed, and parity is what is mostly wrong


class Cause(StrEnum):
    HEALTHY = "healthy"
    NOTHING = "nothing"  # no bytes at all
    SPEED = "speed"
    FORMAT = "format"  # parity, data bits, stop bits
    SWAPPED = "a_b_swapped"
    STUCK = "stuck"  # the line does not move
    FRAMING = "framing"  # one Modbus framing where another was expected
    PROTOCOL = "protocol"
    ECHO = "echo"
    REQUEST_ONLY = "request_only"
    PREFIX = "prefix"  # a TCP gateway's registration or heartbeat
    TEXT = "text"
    TRUNCATED = "truncated"
    HEADLESS = "headless"  # the first bytes are missing
    OTHER_METER = "other_meter"
    OTHER_ANSWER = "other_answer"
    REFUSED = "refused"
    WORD_ORDER = "word_order"
    BYTE_ORDER = "byte_order"
    SCALE = "scale"
    OTHER_VALUE = "other_value"
    CRC_ORDER = "crc_order"
    WITHOUT_33H = "without_33h"
    COLLISION = "collision"
    DAMAGED = "damaged"
    UNKNOWN = "unknown"


Kind: TypeAlias = Literal["dlt645", "modbus-rtu", "modbus-ascii", "modbus-tcp"]
_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_NAMES: Final = {
    "dlt645": "DL/T 645",
    "modbus-rtu": "Modbus RTU",
    "modbus-ascii": "Modbus ASCII",
    "modbus-tcp": "Modbus TCP",
}


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the user knows. ``setting``: of the port that heard the bytes; ``value``: what the meter's display shows."""

    protocol: Protocol | None = None
    setting: SerialSetting | None = None
    request: bytes = b""
    value: float | None = None
    tolerance: float = TOLERANCE

    @property
    def kind(self) -> Kind | None:
        if self.protocol is None:
            return None
        if self.protocol.startswith("dlt645"):
            return "dlt645"
        return {"modbus-tcp": "modbus-tcp", "modbus-ascii": "modbus-ascii"}.get(self.protocol, "modbus-rtu")  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``confidence``: 0 to CONFIDENCE_MAX. ``todo``: what to do next, one thing after the other."""

    cause: Cause
    what: str
    evidence: tuple[str, ...]
    confidence: float
    todo: tuple[str, ...] = ()


def explain(raw: bytes, expected: Expectation | None = None) -> list[Verdict]:
    """What the bytes say, the likeliest first; never empty."""
    return _Case(raw[:BYTES_MAX], expected or Expectation()).verdicts()


# ---- what is there as it stands --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Piece:
    """A frame and where it lies in the bytes."""

    start: int
    end: int
    frame: AnyFrame


@dataclass(frozen=True, slots=True)
class Reading:
    """The bytes as one protocol. ``bits``: how much its checks say beyond chance."""

    kind: Kind
    pieces: tuple[Piece, ...] = ()
    bits: float = 0.0

    def covered(self, raw: bytes) -> float:
        """The share of the bytes that is frames; what wakes a receiver counts as well."""
        inside = sum(piece.end - piece.start for piece in self.pieces)
        fillers = _outside(raw, self.pieces).count(b"\xfe") if self.kind == "dlt645" else 0
        return (inside + fillers) / len(raw)


def read_as(kind: Kind, raw: bytes) -> Reading:
    decoder, at = _decoder(kind), 0
    pieces: list[Piece] = []
    for event in [*decoder.feed(raw), *decoder.flush()]:
        if isinstance(event, dlt645.Frame | modbus.Frame):
            if kind == "modbus-tcp" and not _is_plausible(event):
                continue
            whole = _encode(kind, event)
            start = (raw.upper() if kind == "modbus-ascii" else raw).find(whole, at)
            if start >= 0:
                at = start + len(whole)
                pieces.append(Piece(start, at, event))
    return Reading(kind, tuple(pieces), _bits(kind, raw, pieces))


def _bits(kind: Kind, raw: bytes, pieces: Sequence[Piece]) -> float:
    """Of the checks of all frames, less what trying every place was worth."""
    if not pieces:
        return 0.0
    each = {"dlt645": 36.0, "modbus-rtu": 19.0, "modbus-ascii": 40.0, "modbus-tcp": 22.0}[kind]
    places = math.log2(len(raw) + 1) if pieces[0].start else 0.0
    gained = each * len(pieces) - places
    # A frame of 8 bytes in 4 kB of something else is luck; one that fills the bytes is not.
    return gained if sum(piece.end - piece.start for piece in pieces) * 8 > len(raw) or gained > 30 else gained / 2


def _decoder(kind: Kind) -> "StreamDecoder[dlt645.Frame] | StreamDecoder[modbus.Frame]":
    match kind:
        case "dlt645":
            return dlt645.Decoder()
        case "modbus-tcp":
            return modbus.TcpDecoder()
        case "modbus-ascii":
            return modbus.AsciiDecoder()
    return modbus.RtuDecoder()


def _encode(kind: Kind, frame: AnyFrame) -> bytes:
    if isinstance(frame, dlt645.Frame):
        return dlt645.encode(frame, preamble=0)
    encoders = {"modbus-tcp": modbus.encode, "modbus-ascii": modbus.encode_ascii}
    return encoders.get(kind, modbus.encode_rtu)(frame)


def _is_plausible(frame: AnyFrame) -> bool:
    """MBAP has no checksum: its PDU must at least have the length that its function gives it."""
    pdu = frame.pdu if isinstance(frame, modbus.Frame) else b""
    return len(pdu) in (request_bytes(pdu), reply_bytes(pdu))


def _outside(raw: bytes, pieces: Sequence[Piece]) -> bytes:
    at, rest = 0, b""
    for piece in pieces:
        rest += raw[at : piece.start]
        at = piece.end
    return rest + raw[at:]


def _hex(raw: bytes, most: int = 48) -> str:
    return raw[:most].hex(" ").upper() + (f" … ({len(raw)} bytes)" if len(raw) > most else "")


def _is_reply(frame: AnyFrame) -> bool:
    if isinstance(frame, dlt645.Frame):
        return frame.is_reply
    return request_bytes(frame.pdu) != len(frame.pdu)


def _says(kind: Kind, frame: AnyFrame, asked: AnyFrame | None) -> str:
    if isinstance(frame, dlt645.Frame):
        told = Dlt645Language().overhear(frame, asked, "").says
    else:
        told = (
            ModbusLanguage("modbus-tcp" if kind == "modbus-tcp" else "modbus-rtu", {}).overhear(frame, asked, "").says
        )
    return "; ".join(told)


# ---- one case --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Case:
    raw: bytes
    expected: Expectation
    asked: AnyFrame | None = None
    asked_kind: Kind | None = None
    found: list[Verdict] = field(default_factory=list)

    def verdicts(self) -> list[Verdict]:
        request = self.expected.request
        for kind in _KINDS if request else ():
            reading = read_as(kind, request)
            if reading.pieces and (self.asked is None or kind == self.expected.kind):
                self.asked, self.asked_kind = reading.pieces[0].frame, kind
        self._look()
        if not self.found:
            self._add(
                Cause.UNKNOWN,
                "No cause found: the bytes fit no protocol, speed, parity or wiring that was tried",
                [f"{len(self.raw)} bytes: {_hex(self.raw, 24)}"],
                0.0,
                "Capture more: meterctl sniff --raw, at least three polls",
                "Say what you know: --protocol, --baud, --parity, --request",
                "Look at the line with an oscilloscope if it goes on: levels, reflections, a loose screw",
            )
        return sorted(self.found, key=lambda verdict: -verdict.confidence)

    def _add(self, cause: Cause, what: str, evidence: Sequence[str], confidence: float, *todo: str) -> None:
        self.found.append(Verdict(cause, what, tuple(evidence), min(CONFIDENCE_MAX, round(confidence, 2)), todo))

    def _look(self) -> None:
        if not self.raw:
            self._nothing()
            return
        if self._stuck():
            return
        readings = [read_as(kind, self.raw) for kind in _KINDS]
        best = max(readings, key=lambda reading: (reading.bits, reading.kind == self.expected.kind))
        if best.bits >= SURE_BITS:
            self._frames(best)
            return
        self._nearly()
        if max((verdict.confidence for verdict in self.found), default=0.0) < 0.8:
            self._text()
            self._line()

    # ---- nothing, or nothing that moves ------------------------------------------------------------------------------

    def _nothing(self) -> None:
        setting = str(self.expected.setting) if self.expected.setting else "the meter's"
        todo = (
            "Is the meter powered? Does its display light up, and is it the port of this meter?",
            "A and B: measure between them with the line at rest: +0.2 to +5 V from A to B; swap them if negative",
            f"Speed and parity: is the port set to {setting}? Try: meterctl scan (it tries the common ones)",
            "Address: ask one meter alone with the wildcard (DL/T 645: AAAAAAAAAAAA; a Modbus meter shows its unit)",
            "Preamble: some DL/T 645 meters want four FEH before the request",
            "120 ohm at both ends of a long line, and at no other place; one pair of the cable, shield on one end",
        )
        asked = [f"sent: {_hex(self.expected.request)}"] if self.expected.request else []
        self._add(Cause.NOTHING, "Nothing was heard: no meter answers", [*asked, "0 bytes received"], 0.9, *todo)

    def _stuck(self) -> bool:
        values = {*self.raw}
        if len(self.raw) < 2 or len(values) > 1 or not values <= {0x00, 0xFF}:
            return False
        if values == {0x00}:
            self._add(
                Cause.STUCK,
                "The line is held low: the port hears a break, not characters",
                [f"{len(self.raw)} bytes, all 00"],
                0.7,
                "Swap A and B: a line that rests the wrong way round looks like this",
                "Measure A to B at rest: near 0 V means no bias or a short",
            )
        else:
            self._add(
                Cause.STUCK,
                "Only short pulses are heard: noise, or a sender that is very much faster than the port",
                [f"{len(self.raw)} bytes, all FF"],
                0.5,
                "Disconnect the meters one by one; bias and terminate the line",
                "Raise the port's speed: meterctl scan tries the common ones",
            )
        return True

    # ---- frames that are right ---------------------------------------------------------------------------------------

    def _frames(self, reading: Reading) -> None:
        pieces = list(reading.pieces)
        name = _NAMES[reading.kind]
        shown = [
            f"{_hex(self.raw[piece.start : piece.end])} = {_says(reading.kind, piece.frame, self._question(pieces, i))}"
            for i, piece in enumerate(pieces[:FRAMES_SHOWN])
        ]
        if len(pieces) > FRAMES_SHOWN:
            shown.append(f"and {len(pieces) - FRAMES_SHOWN} more frames")
        sure = 1 - 2.0**-reading.bits
        before = len(self.found)
        self._wrong_language(reading, shown, sure)
        replies = self._after_echo(reading, pieces, shown, sure)
        if len(self.found) == before and replies:
            self._answers(reading, replies, shown, sure)
        self._around(reading, pieces, shown)
        if len(self.found) == before:
            count = f"{len(pieces)} valid {name} frames" if len(pieces) > 1 else f"a valid {name} frame"
            self._add(Cause.HEALTHY, f"Nothing wrong: {count}", [*shown, *self._notes(reading)], sure)

    def _question(self, pieces: Sequence[Piece], i: int) -> AnyFrame | None:
        return pieces[i - 1].frame if i and not _is_reply(pieces[i - 1].frame) else self.asked

    def _wrong_language(self, reading: Reading, shown: list[str], sure: float) -> None:
        want = self.expected.kind
        if want is None or want == reading.kind:
            self._wrong_edition(reading, shown, sure)
            return
        heard, meant = _NAMES[reading.kind], _NAMES[want]
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
        self._add(cause, what, shown, 0.95 * sure, *todo)

    def _wrong_edition(self, reading: Reading, shown: list[str], sure: float) -> None:
        editions = {
            frame.edition
            for frame in (piece.frame for piece in reading.pieces)
            if isinstance(frame, dlt645.Frame) and frame.is_reply and frame.di is not None
        }
        want = (self.expected.protocol or "").removeprefix("dlt645-")
        if reading.kind == "dlt645" and self.expected.protocol and editions and want not in editions:
            other = editions.pop()
            self._add(
                Cause.PROTOCOL,
                f"The meter speaks DL/T 645-{other}, the line is set to {want}",
                shown,
                0.9 * sure,
                f'Set protocol = "dlt645-{other}" for this line',
            )

    def _after_echo(self, reading: Reading, pieces: list[Piece], shown: list[str], sure: float) -> list[Piece]:
        """The replies; where there are none, that is the trouble."""
        request = self.expected.request.lstrip(b"\xfe")
        mine = [piece for piece in pieces if request and self.raw[piece.start : piece.end] == request.lstrip(b"\xfe")]
        replies = [piece for piece in pieces if _is_reply(piece.frame) and piece not in mine]
        if replies or len(self.found) or (mine and len(mine) < len(pieces)):
            return replies or [piece for piece in pieces if piece not in mine]
        if mine:
            self._add(
                Cause.ECHO,
                "Only the echo of the request: the adapter hears itself, and no meter answers",
                [f"received = sent: {_hex(request)}"],
                0.95 * sure,
                "The echo is harmless, the silence after it is not: check A and B, speed, parity and address",
                "If the adapter has a switch for echo (two-wire), set it to off",
            )
        elif not self.asked and not any(
            isinstance(piece.frame, dlt645.Frame) and piece.frame.address == dlt645.BROADCAST for piece in pieces
        ):
            self._add(
                Cause.REQUEST_ONLY,
                "A request and no reply: an echo of one's own request, or another master asks a meter that is silent",
                shown,
                0.8 * sure,
                "If you sent this yourself, it is the echo; no meter answered: check A and B, speed, parity, address",
                "If not, two masters share this line: only one may ask",
            )
        return []

    def _answers(self, reading: Reading, replies: list[Piece], shown: list[str], sure: float) -> None:
        """Whether the replies answer what was asked."""
        asked = self.asked if self.asked_kind == reading.kind or reading.kind == "modbus-rtu" else None
        self._without_33h(replies, sure)
        addresses = sorted({_who(piece.frame) for piece in replies})
        if asked is not None and not self.found:
            wildcard = isinstance(asked, dlt645.Frame) and "A" in asked.address
            others = [piece for piece in replies if not _is_from(asked, piece.frame)]
            if len(addresses) > 1 and len(replies) > 1:
                self._add(
                    Cause.COLLISION,
                    f"{len(addresses)} meters answer one request: {', '.join(addresses)}",
                    shown,
                    0.9 * sure,
                    "Ask with the full address, not the wildcard"
                    if wildcard
                    else "Two meters: find the doubled address",
                    "Disconnect all but one and read their addresses one by one",
                )
            elif others:
                self._add(
                    Cause.OTHER_METER,
                    f"Another meter's reply: asked {_who(asked)}, heard {_who(others[0].frame)}; its checksum is right",
                    shown,
                    0.93 * sure,
                    "A late reply to an earlier request looks so: ask again after a second of silence",
                    f"If it stays, the address in the site file is wrong: the meter says {_who(others[0].frame)}",
                )
            elif not any(_answers(asked, piece.frame) for piece in replies):
                self._add(
                    Cause.OTHER_ANSWER,
                    "A reply of the right meter to another question: a late answer to the request before",
                    [f"asked: {_says(reading.kind, asked, None)}", *shown],
                    0.85 * sure,
                    "Lengthen read_timeout_s for this line, and rest after a timeout before asking again",
                )
        if not self.found:
            self._refused(replies, shown, sure)
        if not self.found and self.expected.value is not None:
            self._value(reading, replies, shown, sure)

    def _refused(self, replies: list[Piece], shown: list[str], sure: float) -> None:
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
            self._add(
                Cause.REFUSED,
                f"The line is fine; the meter understood and refused: {told}",
                shown,
                0.95 * sure,
                *_TODO_REFUSED.get(
                    names[0] if names else "", ("Check the item or register against the meter's manual",)
                ),
            )

    def _without_33h(self, replies: list[Piece], sure: float) -> None:
        for piece in replies:
            frame = piece.frame
            if not isinstance(frame, dlt645.Frame) or frame.is_abnormal or not frame.di_bytes:
                continue
            sent = bytes((byte + 0x33) & 0xFF for byte in frame.data)
            bare = replace_data(frame, sent)
            table = dlt645.items(frame.edition)
            if frame.di not in table and bare.di in table:
                self._add(
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

    def _around(self, reading: Reading, pieces: list[Piece], shown: list[str]) -> None:
        """What is not frames: in front, behind, between."""
        head = self.raw[: pieces[0].start]
        if reading.kind == "dlt645":
            head = head.rstrip(b"\xfe")
        share = reading.covered(self.raw)
        if len(head) >= 3 and (_is_text(head) or (len(head) >= 6 and share > 0.3)):
            told = f' "{_plain(head)}"' if _is_text(head) else ""
            self._add(
                Cause.PREFIX,
                f"{len(head)} bytes{told} come before the frame: a serial server's registration or heartbeat",
                [f"before: {_hex(head)}", *shown],
                0.9 if _is_text(head) else 0.6,
                "Harmless to Gridloom, which looks for the frame; other software may want it off",
                "Switch registration packet and heartbeat off in the serial server's settings",
            )
        elif share < 0.6:
            rest = _outside(self.raw, pieces)
            self._add(
                Cause.DAMAGED,
                f"Some frames are right, but {len(rest)} of {len(self.raw)} bytes belong to none",
                [*shown, f"not in a frame: {_hex(rest)}"],
                0.5,
                "Noise between frames: bias the line, and check for a second master",
            )

    def _notes(self, reading: Reading) -> Iterator[str]:
        first = reading.pieces[0]
        head, tail = self.raw[: first.start], self.raw[reading.pieces[-1].end :]
        fillers = len(head) - len(head.rstrip(b"\xfe"))
        if reading.kind == "dlt645":
            yield f"preamble: {fillers} bytes FE{'' if fillers else '; some receivers miss the start without'}"
            head = head.rstrip(b"\xfe")
        if head:
            yield f"{len(head)} stray bytes before it ({_hex(head, 12)}): the line's turn-around"
        if tail:
            yield f"{len(tail)} stray bytes after it ({_hex(tail, 12)})"
        if self.expected.value is None:
            yield from _order_note(reading)

    # ---- values ------------------------------------------------------------------------------------------------------

    def _value(self, reading: Reading, replies: list[Piece], shown: list[str], sure: float) -> None:
        value = self.expected.value
        assert value is not None
        frame = replies[-1].frame
        if isinstance(frame, dlt645.Frame):
            self._value_645(frame, value, shown, sure)
            return
        if frame.pdu[0] not in (3, 4) or len(frame.pdu) < 4:
            return
        data = frame.pdu[2:]
        matches = list(_matches(data, value, self.expected.tolerance))
        plain = [match for match in matches if match.order == "ABCD" and match.scale == 1]
        if plain:
            told = [f"register +{match.at}: {match}" for match in plain[:2]]
            notes = [*shown, *told, *self._notes(reading)]
            self._add(Cause.HEALTHY, f"Nothing wrong: the reply holds {value:g} as expected", notes, sure)
            return
        # Floats say most: only few bit patterns are a number near the expected one.
        matches.sort(key=lambda match: (not match.type.startswith("float"), match.scale != 1, match.order != "ABCD"))
        if not matches:
            self._add(
                Cause.OTHER_VALUE,
                f"The frame is right, but no register order or type in it gives {value:g}",
                [*shown, *(f"as {name}: {told}" for name, told in _guesses(data))],
                0.5 * sure,
                "Is it the right register? Check address (zero-based or one-based) and function 3 or 4 in the manual",
                "A ratio of the current or voltage transformer may be in the display and not in the register",
            )
            return
        match = matches[0]
        rivals = len(
            {(other.order, other.type.strip("u")) for other in matches if other.scale == 1 or match.scale != 1}
        )
        confidence = sure * (0.93 if match.type.startswith("float") else 0.85) / max(1.0, rivals / 2)
        ordinary = _Match("ABCD", match.type, match.at, 1.0, _take(data, match.at, match.type, "ABCD") or 0.0)
        evidence = [*shown, f"register +{match.at}: {match}", f"register +{match.at}: {ordinary}"]
        if match.order == "CDAB" or (match.order == "DCBA" and match.words > 1):
            self._add(
                Cause.WORD_ORDER,
                f"Word order: the meter sends the value as {match.order}, not ABCD",
                evidence,
                confidence,
                f'In the meter\'s template: word_order = "{modbus.ORDERS[match.order].words}", '
                f'byte_order = "{modbus.ORDERS[match.order].bytes}"',
            )
        elif match.order != "ABCD":
            self._add(
                Cause.BYTE_ORDER,
                f"Byte order: the two bytes of each register are swapped ({match.order if match.words > 1 else 'BA'})",
                evidence,
                confidence,
                'In the meter\'s template: byte_order = "little"',
            )
        else:
            self._add(
                Cause.SCALE,
                f"The register counts in other units: it holds {match.value / match.scale:g}, the display {value:g}",
                evidence,
                confidence,
                f"In the meter's template: scale = {match.scale:g} (check the unit against the manual)",
            )

    def _value_645(self, frame: dlt645.Frame, value: float, shown: list[str], sure: float) -> None:
        if frame.di is None:
            return
        found = dlt645.decode_data(frame.edition, frame.di, frame.data[frame.di_bytes :])
        numbers = [float(one) for one in found.values if isinstance(one, Decimal)]
        if any(abs(number - value) <= self.expected.tolerance * abs(value) for number in numbers) or not numbers:
            return
        for number in numbers:
            ratio = value / number if number else 0.0
            power = round(math.log10(abs(ratio))) if ratio else 0
            if power and abs(ratio / 10**power - 1) <= self.expected.tolerance:
                self._add(
                    Cause.SCALE,
                    f"The decimal point is elsewhere: the meter says {number:g}, the display {value:g}",
                    shown,
                    0.7 * sure,
                    "Unit (kWh or MWh, V or kV) or a transformer ratio: compare with the display's own unit",
                )
                return
        self._add(
            Cause.OTHER_VALUE,
            f"The frame is right, but says {', '.join(f'{number:g}' for number in numbers[:4])} instead of {value:g}",
            shown,
            0.5 * sure,
            "Is it the same item, tariff and phase? A display often shows the primary side, registers the secondary",
        )

    # ---- what nearly is a frame --------------------------------------------------------------------------------------

    def _nearly(self) -> None:
        self._nearly_645()
        self._nearly_rtu()
        self._nearly_rest()

    def _nearly_645(self) -> None:
        for start in _starts_645(self.raw):
            body = self.raw[start:]
            found = dlt645.decode_one(body)
            if isinstance(found, dlt645.Frame):
                continue
            control, length = body[8], body[9] if len(body) > 9 else 0
            size = HEADER_BYTES + length + 2
            address = body[1:7][::-1].hex().upper()
            is_known = control & 0x1F in {*map(int, dlt645.Function), *map(int, dlt645.Function1997)}
            is_digits = address.isdecimal() or set(address) <= set("0123456789A")
            sure = 0.5 + 0.2 * is_known + 0.2 * is_digits
            head = f"68 {_hex(body[1:7])} 68: meter {address}, control {control:02X}"
            if len(body) < size and length <= dlt645.DATA_BYTES_MAX:
                self._add(
                    Cause.TRUNCATED,
                    f"A DL/T 645 frame that ends too early: {len(body)} of {size} bytes",
                    [head, f"length {length:02X} promises {size} bytes from 68, {size - len(body)} are missing"],
                    sure,
                    "Lengthen the timeout (read_timeout_s), and the packing time of a serial server",
                    "If it always ends at the same place: the adapter's buffer is small, or it switches too early",
                )
                return
            if len(body) >= size and body[size - 1] == 0x16:
                self._damaged("DL/T 645", body[:size], head, sure - 0.1)
                return
        at = self.raw.find(b"\x68", 0, 8)
        if at >= 0 and isinstance(self.asked, dlt645.Frame):
            header = bytes((0x68, *bytes.fromhex(self.asked.address)[::-1]))
            mended = dlt645.decode_one(header + self.raw[at:])
            if isinstance(mended, dlt645.Frame):
                self._headless("DL/T 645", 7 - at, decode.headline(mended), 0.92)

    def _headless(self, name: str, missing: int, told: str, confidence: float) -> None:
        self._add(
            Cause.HEADLESS,
            f"The first {missing} bytes of a {name} reply are missing",
            [f"with them put back its checksum is right: {told}"],
            confidence,
            "The adapter still sends when the meter begins: use one with automatic direction control",
            "Some meters can answer later: raise their response delay (20 to 50 ms)",
        )

    def _damaged(self, name: str, whole: bytes, head: str, confidence: float) -> None:
        """The shape is right and the checksum is not: noise on the line, or two who talk at once."""
        wildcard = isinstance(self.asked, dlt645.Frame) and "A" in self.asked.address
        pulled = _pulled_down(self.asked, whole)
        if wildcard or pulled:
            why = "the wildcard was asked, so every meter on the line answers" if wildcard else pulled
            self._add(
                Cause.COLLISION,
                f"Two meters talk at once: the shape of a {name} reply, with a wrong checksum",
                [head, why, _hex(whole)],
                max(0.7, confidence - 0.05),
                "Ask one meter alone, with its full address"
                if wildcard
                else "Look for a doubled address or a second master",
                "Disconnect half of the meters and try again, until one is left",
            )
            return
        self._add(
            Cause.DAMAGED,
            f"A {name} frame with a wrong checksum: damaged on the way",
            [head, _hex(whole), *_one_bit(name, whole)],
            confidence,
            "Noise: shield on one end, 120 ohm at both ends, bias; keep away from inverters and contactors",
            "If it is always the same byte, two meters have one address, or the meter's firmware is at fault",
        )

    def _nearly_rtu(self) -> None:
        raw = self.raw
        if len(raw) >= 4 and raw[0] <= modbus.UNIT_MAX:
            for measure in (reply_bytes, request_bytes):
                size = measure(raw[1:]) + 3
                if 4 < size <= len(raw) and modbus.crc16(raw[: size - 2]) == int.from_bytes(
                    raw[size - 2 : size], "big"
                ):
                    frame = modbus.Frame(0, raw[0], raw[1 : size - 2])
                    self._add(
                        Cause.CRC_ORDER,
                        "The two bytes of the CRC are swapped: high byte first",
                        [f"{_hex(raw[:size])} = {_says('modbus-rtu', frame, self.asked)}"],
                        0.93,
                        "The device breaks the standard (low byte first): ask its maker for other firmware",
                    )
                    return
        asked = self.asked if isinstance(self.asked, modbus.Frame) else None
        is_likely = asked is not None and len(raw) > 1 and raw[0] == asked.unit and raw[1] & 0x7F == asked.pdu[0]
        wants_rtu = self.expected.kind == "modbus-rtu"
        if len(raw) >= 2 and 0 < raw[0] <= modbus.UNIT_MAX and (is_likely or raw[1] in (3, 4)):
            size = reply_bytes(raw[1:])
            want = 2 + 2 * int.from_bytes(asked.pdu[3:5], "big") if asked and asked.pdu[0] in (3, 4) else size
            head = f"{_hex(raw[:3])}: unit {raw[0]}, function {raw[1]}" + (f", {raw[2]} bytes" if len(raw) > 2 else "")
            sure = 0.85 if is_likely and size == want else 0.55 if wants_rtu and size == want else 0.3
            if size != NOT_YET and size > 0 and len(raw) < size + 3:
                self._add(
                    Cause.TRUNCATED,
                    f"A Modbus RTU reply that ends too early: {len(raw)} of {size + 3} bytes",
                    [head, f"{size + 3 - len(raw)} bytes are missing"],
                    sure,
                    "Lengthen the timeout (read_timeout_s), and the packing time of a serial server",
                    "Ask for fewer registers at once: some adapters hold 64 bytes",
                )
            elif size > 0 and len(raw) == size + 3:
                self._damaged("Modbus RTU", raw, head, sure)
        if asked is not None and asked.pdu[0] in (3, 4) and len(raw) >= 4:
            count = 2 * int.from_bytes(asked.pdu[3:5], "big")
            start = bytes((asked.unit, asked.pdu[0], count & 0xFF))
            for missing in (1, 2, 3):
                whole = start[:missing] + raw
                if len(whole) == count + 5 and modbus.crc16(whole[:-2]) == int.from_bytes(whole[-2:], "little"):
                    told = _says("modbus-rtu", modbus.Frame(0, whole[0], whole[1:-2]), asked)
                    self._headless("Modbus RTU", missing, told, 0.92)

    def _nearly_rest(self) -> None:
        raw = self.raw
        if raw[:1] == b":" and len(raw) > 4 and set(raw[1:].upper()) <= set(b"0123456789ABCDEF\r\n"):
            if not raw.endswith(b"\r\n"):
                self._add(
                    Cause.TRUNCATED,
                    "A Modbus ASCII frame that ends too early: no CR LF",
                    [f'"{_plain(raw)}"'],
                    0.85,
                    "Lengthen the timeout (read_timeout_s), and the packing time of a serial server",
                )
            else:
                self._damaged("Modbus ASCII", raw, f'"{_plain(raw)}"', 0.8)
        elif len(raw) >= 8 and raw[2:4] == b"\0\0" and 2 <= int.from_bytes(raw[4:6], "big") <= 254:
            missing = int.from_bytes(raw[4:6], "big") + 6 - len(raw)
            size = reply_bytes(raw[7:])
            if missing > 0 and size + 1 == int.from_bytes(raw[4:6], "big"):
                self._add(
                    Cause.TRUNCATED,
                    f"A Modbus TCP frame that ends too early: {missing} bytes are missing",
                    [f"MBAP header {_hex(raw[:7])}: {int.from_bytes(raw[4:6], 'big')} bytes follow"],
                    0.85 if self.expected.kind == "modbus-tcp" else 0.6,
                    "The connection broke, or the capture ends here: read until the length is reached",
                )
        stripped = bytes(byte & 0x7F for byte in raw)
        if stripped != raw and read_as("modbus-ascii", stripped).covered(raw) > 0.9:
            parities = {byte.bit_count() & 1 for byte in raw}
            parity = "even" if parities == {0} else "odd" if parities == {1} else "mark or no"
            frame = read_as("modbus-ascii", stripped).pieces[0].frame
            self._add(
                Cause.FORMAT,
                f"The device sends 7 data bits with {parity} parity, the port takes 8: the top bit is the parity",
                [f'without the top bit: "{_plain(stripped)}" = {_says("modbus-ascii", frame, self.asked)}'],
                0.96,
                "Set the port to 7E1 (the standard's default for ASCII), or the device to 8 data bits",
            )

    def _text(self) -> None:
        if len(self.raw) < 4 or not _is_text(self.raw):
            return
        plain = _plain(self.raw)
        known = next((told for pattern, told in _SPEAKERS if re.search(pattern, plain)), "")
        self._add(
            Cause.TEXT if known or not plain.isalnum() else Cause.PREFIX,
            f"Plain text, no meter's frame: {known or 'a registration or heartbeat of a serial server, or a console'}",
            [f'"{plain[:80]}"'],
            0.85 if known else 0.6,
            "Is this the right port of the right box? Frames should follow when a meter is asked",
        )

    # ---- as the line saw it ------------------------------------------------------------------------------------------

    def _line(self) -> None:
        """Other speeds, formats and wiring; without a known setting only their ratio."""
        own = self.expected.setting
        receivers = [own] if own else [SerialSetting(_RATIOS[0], "E"), SerialSetting(_RATIOS[0], "N")]
        bauds = COMMON_BAUD if own else _RATIOS
        kind = self.expected.kind
        grammars: list[Grammar] = ["dlt645", "modbus-rtu", "modbus-ascii"]
        if kind == "dlt645" or kind == "modbus-rtu" or kind == "modbus-ascii":
            grammars = [kind]
        found = [
            one
            for receiver in receivers
            for one in suspects(self.raw, receiver, grammars, self.expected.request, bauds)
        ]
        groups: dict[tuple[float, bool, bool, bool], list[Suspect]] = {}
        for one in sorted(found, key=_weight, reverse=True):
            ends = one.ends
            as_is = ends.sender == ends.receiver
            groups.setdefault((ends.ratio, ends.inverted, as_is, ends.sender.data_bits == 7), []).append(one)
        ranked = sorted(groups.values(), key=lambda group: -_weight(group[0]))
        for i, group in enumerate(ranked[:2]):
            if group[0].ends.sender == group[0].ends.receiver and not group[0].ends.inverted:
                return  # as it stands it is no worse
            rival = _weight(ranked[1 - i][0]) if len(ranked) > 1 else 0.0
            chance = FORMAT_CHANCE_BITS if group[0].ends.ratio == 1 and not group[0].ends.inverted else CHANCE_BITS
            odds = 2.0 ** -min(60.0, _weight(group[0]) - chance) + 2.0 ** min(60.0, rival - _weight(group[0]))
            confidence = 1 / (1 + odds)
            if confidence > 0.3:
                self._suspect(group, own, confidence)
        if not self.found:
            self._too_few()

    def _too_few(self) -> None:
        """A slow port makes few bytes of a fast sender's many: their number is all there is to tell it by."""
        wanted = _reply_size(self.asked)
        factor = wanted / len(self.raw)
        if factor < 1.6 or len(self.raw) < 2:
            return
        own = self.expected.setting
        speeds = [baud for baud in COMMON_BAUD if own and 0.7 * factor < baud / own.baud < 1.45 * factor]
        likely = " or ".join(map(str, speeds))
        self._add(
            Cause.SPEED,
            f"Wrong speed, it seems: the sender is about {factor:.1f} times faster than the port"
            + (f" ({likely} baud)" if likely else ""),
            [f"the reply has {wanted} bytes; {len(self.raw)} came, and none of them is where it should be"],
            0.5,
            f"Try {likely} baud" if likely else "Try higher speeds: meterctl scan",
            "Or only a piece of the reply came: send the request again and compare",
        )

    def _suspect(self, group: list[Suspect], own: SerialSetting | None, confidence: float) -> None:
        best = group[0]
        ends = best.ends
        alike = [str(one.ends.sender).split()[1] for one in group if _weight(one) > _weight(best) - 3]
        formats = " or ".join(dict.fromkeys(alike))
        framed = next((one for one in group if one.grammar != "any"), best)
        evidence = list(_recovered(framed, self.asked))
        evidence.append(f"this reading is 2^{best.found.bits:.0f} times likelier than chance")
        port = str(own) if own else "the port's setting"
        if ends.inverted:
            self._add(
                Cause.SWAPPED,
                "A and B are swapped: every level is inverted",
                [f"inverted, the line carries {formats}", *evidence],
                confidence,
                "Swap the two wires at the meter or at the adapter; nothing breaks by trying",
                "At rest A must be the more positive of the two (makers disagree about the letters: 485+, D+)",
            )
        elif ends.ratio == 1:
            self._add(
                Cause.FORMAT,
                f"Same speed, other character format: the sender uses {formats}, the port {port}",
                evidence,
                confidence,
                f'Set the port to {formats}: parity = "{ends.sender.parity}"',
                "DL/T 645 is 8E1 by default; Modbus RTU meters are often shipped with 8N1",
            )
        else:
            factor = ends.ratio if ends.ratio > 1 else 1 / ends.ratio
            side = "faster" if ends.ratio > 1 else "slower"
            setting = f" ({ends.sender.baud} baud, {formats})" if own else f" ({formats})"
            advice = (
                f"baud = {ends.sender.baud}"
                if own
                else f"a speed {factor:g} times {'higher' if ends.ratio > 1 else 'lower'}"
            )
            self._add(
                Cause.SPEED,
                f"Wrong speed: the sender is {factor:g} times {side} than the port{setting}",
                evidence,
                confidence,
                f"Set the line to {advice}" + (f', parity = "{ends.sender.parity}"' if len({*alike}) == 1 else ""),
                "Common: 1200, 2400 (DL/T 645-2007's default), 4800, 9600 (Modbus meters)",
            )


def _weight(suspect: Suspect) -> float:
    """Whole frames whose checksums were not assumed, but turned out right, count on top."""
    if suspect.found.bits < CHANCE_BITS or suspect.assumes_sums:
        return suspect.found.bits
    return suspect.found.bits + 20 * sum(1 for _ in _verified(suspect))


def _verified(suspect: Suspect) -> Iterator[tuple[bytes, AnyFrame, Kind]]:
    if suspect.grammar == "any":
        return
    for frame in suspect.found.frames:
        raw = bytes(byte for byte in frame if byte is not None)
        if len(raw) == len(frame):
            for piece in read_as(suspect.grammar, raw).pieces:
                yield raw, piece.frame, suspect.grammar


def _recovered(suspect: Suspect, asked: AnyFrame | None) -> Iterator[str]:
    """The frames that appear when the bytes are read so."""
    shown = 0
    for raw, frame, kind in _verified(suspect):
        if shown < FRAMES_SHOWN:
            yield f"read so, there is {_hex(raw)} = {_says(kind, frame, asked)}"
        shown += 1
    if not shown and suspect.grammar != "any":
        for recovered in suspect.found.frames[:FRAMES_SHOWN]:
            told = " ".join("??" if byte is None else f"{byte:02X}" for byte in recovered[:40])
            yield f"read so, {_NAMES[suspect.grammar]} fits (?? could not be told): {told}"
    elif not shown:
        yield "every level lasts several of the port's bits, as a slower sender's do"


# ---- helpers of the kinds --------------------------------------------------------------------------------------------

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
_SPEAKERS: Final = (
    (r"^HTTP/|<html", "a web server answers; this is not the port for meters"),
    (r"^SSH-", "an SSH server answers; this is not the port for meters"),
    (r"^AT[+\r]|\+CME|^\+?CREG", "a modem is in command mode"),
    (r"[Ll]ogin:|[Pp]assword:", "a console asks for a login"),
    (r"^/[A-Z]{3}\d", "an IEC 62056-21 meter introduces itself (neither DL/T 645 nor Modbus)"),
)


def replace_data(frame: dlt645.Frame, data: bytes) -> dlt645.Frame:
    return dlt645.Frame(frame.address, frame.control, data)


def _who(frame: AnyFrame) -> str:
    return frame.address if isinstance(frame, dlt645.Frame) else f"unit {frame.unit}"


def _is_from(asked: AnyFrame, frame: AnyFrame) -> bool:
    if isinstance(asked, dlt645.Frame) and isinstance(frame, dlt645.Frame):
        return dlt645.address_matches(asked.address, frame.address) or frame.address == dlt645.WILDCARD
    return isinstance(asked, modbus.Frame) and isinstance(frame, modbus.Frame) and asked.unit == frame.unit


def _answers(asked: AnyFrame, frame: AnyFrame) -> bool:
    if isinstance(asked, dlt645.Frame) and isinstance(frame, dlt645.Frame):
        return dlt645.is_answer(asked, frame)
    if isinstance(asked, modbus.Frame) and isinstance(frame, modbus.Frame):
        return modbus.is_serial_answer(modbus.Frame(frame.transaction, asked.unit, asked.pdu), frame)
    return False


def _reply_size(asked: AnyFrame | None) -> int:
    """Bytes of the reply to a read, where the request fixes them; otherwise 0."""
    if isinstance(asked, modbus.Frame) and asked.pdu[0] in (3, 4) and len(asked.pdu) == 5:
        return 5 + 2 * int.from_bytes(asked.pdu[3:5], "big")
    item = dlt645.items(asked.edition).get(asked.di or 0) if isinstance(asked, dlt645.Frame) else None
    if item is None or not isinstance(asked, dlt645.Frame) or item.is_open:
        return 0
    return dlt645.PREAMBLE_BYTES + HEADER_BYTES + asked.di_bytes + item.group_bytes * item.count + 2


def _starts_645(raw: bytes) -> Iterator[int]:
    """Where a header of DL/T 645 stands whole."""
    for start in range(max(0, len(raw) - 9)):
        if raw[start] == 0x68 and raw[start + 7] == 0x68:
            yield start


def _pulled_down(asked: AnyFrame | None, whole: bytes) -> str:
    """Where the header has lost ones that the request says must be there, and gained none: another sender pulled."""
    if isinstance(asked, dlt645.Frame):
        want = (
            bytes((0x68, *bytes.fromhex(asked.address)[::-1], 0x68, asked.control | 0x80))
            if "A" not in asked.address
            else b""
        )
    elif isinstance(asked, modbus.Frame):
        want = bytes((asked.unit, asked.pdu[0]))
    else:
        return ""
    lost = sum((wanted & ~got).bit_count() for wanted, got in zip(want, whole, strict=False))
    won = sum((got & ~wanted).bit_count() for wanted, got in zip(want, whole, strict=False))
    return f"{lost} bits of the header are 0 that must be 1, and none the other way" if lost >= 2 and not won else ""


def _one_bit(name: str, whole: bytes) -> Iterator[str]:
    """Of a CRC the one bit that would make it right is nearly unique; a sum's is not."""
    if name != "Modbus RTU":
        return
    for at in range(8 * len(whole)):
        raw = bytearray(whole)
        raw[at // 8] ^= 1 << at % 8
        if modbus.crc16(raw[:-2]) == int.from_bytes(raw[-2:], "little"):
            yield f"one bit is wrong: byte {at // 8} should be {raw[at // 8]:02X}"
            return


def _is_text(raw: bytes) -> bool:
    return all(0x20 <= byte < 0x7F or byte in b"\r\n\t\0" for byte in raw) and any(chr(byte).isalnum() for byte in raw)


def _plain(raw: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in raw.rstrip(b"\r\n"))


# ---- the order of words and bytes ------------------------------------------------------------------------------------

_TYPES: Final = ("float32", "float64", "uint32", "int32", "uint64", "uint16", "int16")
_SCALES: Final = (1.0, 0.1, 0.01, 0.001, 10.0, 100.0, 1000.0)


@dataclass(frozen=True, slots=True)
class _Match:
    """A value in registers: ``at`` counts registers from the first one of the reply."""

    order: str
    type: str
    at: int
    scale: float
    value: float

    @property
    def words(self) -> int:
        return modbus.TYPES[self.type][1]

    def __str__(self) -> str:
        times = f" × {self.scale:g}" if self.scale != 1 else ""
        return f"{self.type} {self.order}{times} = {self.value:.7g}"


def _take(data: bytes, at: int, type: str, order: str) -> float | None:
    words = modbus.TYPES[type][1]
    raw = data[2 * at : 2 * (at + words)]
    if len(raw) < 2 * words:
        return None
    where = modbus.ORDERS[order]
    value = modbus.decode_value(raw, type, word_order=where.words, byte_order=where.bytes)
    return None if value is None else float(value)


def _matches(data: bytes, value: float, tolerance: float) -> Iterator[_Match]:
    for type in _TYPES:
        words = modbus.TYPES[type][1]
        scales = _SCALES if not type.startswith("float") else (1.0, 0.001, 1000.0)
        for order in modbus.ORDERS if words > 1 else ("ABCD", "BADC"):
            for at in range(len(data) // 2 - words + 1):
                number = _take(data, at, type, order)
                if not number or not math.isfinite(number):
                    continue
                for scale in scales:
                    if abs(number * scale - value) <= tolerance * abs(value):
                        yield _Match(order, type, at, scale, number * scale)


def _guesses(data: bytes) -> Iterator[tuple[str, str]]:
    for order in ("ABCD", "CDAB"):
        numbers = [_take(data, at, "float32", order) for at in range(0, min(8, len(data) // 2 - 1), 2)]
        yield f"float32 {order}", ", ".join("none" if number is None else f"{number:.5g}" for number in numbers)
    yield "uint16", ", ".join(str(word) for (word,) in struct.iter_unpack(">H", data[:16]))


def _order_note(reading: Reading) -> Iterator[str]:
    """Registers that are numbers only with the words the other way round: said, but no fault of the frame."""
    for piece in reading.pieces[-1:]:
        frame = piece.frame
        if (
            not isinstance(frame, modbus.Frame)
            or frame.pdu[0] not in (3, 4)
            or not _is_reply(frame)
            or len(frame.pdu) < 10
        ):
            continue
        data = frame.pdu[2:]
        likely = [order for order in modbus.ORDERS if _all_likely(data, order)]
        if likely and "ABCD" not in likely:
            numbers = ", ".join(
                f"{_take(data, at, 'float32', likely[0]):.5g}" for at in range(0, min(6, len(data) // 2), 2)
            )
            yield f"if these are float32, their order is {likely[0]}: {numbers}; check with --expect-value"


def _all_likely(data: bytes, order: str) -> bool:
    numbers = [_take(data, at, "float32", order) for at in range(0, len(data) // 2 - 1, 2)]
    return all(number == 0 or (number is not None and 1e-3 < abs(number) < 1e8) for number in numbers) and any(numbers)


# ---- the command -----------------------------------------------------------------------------------------------------

_WAYS: Final = ("in", "out", "rx", "tx")
_TIMES = re.compile(r"\d{4}-\d\d-\d\dT?[\d:.+Z-]*|\d+:\d\d(:\d\d)?(\.\d+)?Z?|\b\d+\.\d+\b")


@dataclass(frozen=True, slots=True)
class Capture:
    """What a file holds: the bytes that came, and what else it says."""

    raw: bytes
    request: bytes = b""
    protocol: Protocol | None = None
    setting: SerialSetting | None = None


def read_capture(raw: bytes) -> Capture:
    """Of ``meterctl sniff --raw``, of hexadecimal text with times and words between, or else the bytes themselves."""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        return Capture(raw)
    try:
        chunks = sniff.read_capture(text)
    except ValueError:
        return Capture(_from_hex(text) or raw)
    if not chunks:
        return Capture(b"" if not text.strip() or text.startswith("#") else raw)
    sent = {chunk.raw for chunk in chunks if chunk.direction == "out"}
    came = b"".join(chunk.raw for chunk in chunks if chunk.direction != "out")
    head = text.splitlines()[0]
    protocol, setting = (re.search(pattern, head) for pattern in (r"protocol=(\S+)", r"setting=(\d+) (\d)([NEO])(\d)"))
    known = protocol is not None and protocol[1] in get_args(Protocol)
    return Capture(
        # One question and what came of it; of several the whole conversation.
        came if len(sent) == 1 else b"".join(chunk.raw for chunk in chunks),
        sent.pop() if len(sent) == 1 else b"",
        cast(Protocol, protocol[1]) if known and protocol else None,
        SerialSetting(int(setting[1]), cast(Parity, setting[3]), int(setting[4]), int(setting[2])) if setting else None,
    )


def _from_hex(text: str) -> bytes:
    """Nothing where the text is no hexadecimal: then it is itself what came over the line."""
    out = ""
    for line in text.splitlines():
        bare = _TIMES.sub(" ", re.sub("0[xX]", " ", line.split("#")[0]))
        words = [
            word for word in re.split(r"[\s,;|<>\-]+", bare) if word and word.lower() not in ("in", "out", "rx", "tx")
        ]
        if not all(len(word) % 2 == 0 and re.fullmatch(r"[0-9A-Fa-f]+", word) for word in words):
            return b""
        out += "".join(words)
    return bytes.fromhex(out)


def as_document(verdict: Verdict) -> dict[str, object]:
    return {
        "cause": verdict.cause.value,
        "what": verdict.what,
        "confidence": verdict.confidence,
        "evidence": list(verdict.evidence),
        "todo": list(verdict.todo),
    }


def as_text(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for i, verdict in enumerate(verdicts, 1):
        yield f"{i}. {verdict.what}" + (f"  [{verdict.confidence:.0%}]" if verdict.cause is not Cause.UNKNOWN else "")
        yield from (f"     {line}" for line in verdict.evidence)
        yield from (f"   → {line}" for line in verdict.todo)


class _Bytes(click.ParamType[bytes]):
    name = "HEX"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        line = decode.read_line(str(value))
        if line.error == "not_hex":
            self.fail(f"hexadecimal expected: {line.detail}", param, ctx)
        return line.raw


@click.command(
    "why",
    epilog="""\b
Copy and run:
  meterctl why F8F8F8F8809E069E0000000000809E06F8781E601E60 --baud 4800 --parity N --protocol dlt645-2007
  meterctl why --file capture.txt --baud 2400 --parity E
  meterctl why 0103040A3D4366D93D --request 010300000002C40B --expect-value 230
  meterctl why --silent --baud 9600 --parity E
""",
)
@click.argument("heard", metavar="[HEX]...", nargs=-1)
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A capture: of sniff --raw, hex, or bytes.",
)
@click.option("--silent", is_flag=True, help="Nothing at all was heard.")
@click.option("--protocol", type=click.Choice(get_args(Protocol)), help="What the line is set to.")
@click.option("--baud", type=click.IntRange(300, 921_600), help="Speed of the port that heard the bytes.")
@click.option("--parity", type=click.Choice(["N", "E", "O"]), help="Of that port; E for DL/T 645, else N, if left out.")
@click.option("--stop-bits", type=click.IntRange(1, 2), default=1, show_default=True)
@click.option("--data-bits", type=click.IntRange(7, 8), default=8, show_default=True)
@click.option("--request", type=_Bytes(), help="What was sent before.")
@click.option("--expect-value", type=float, help="What the meter's display shows.")
@click.option("--tolerance", type=click.FloatRange(0, 1), default=TOLERANCE, show_default=True, help="Of that value.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def why_command(
    heard: tuple[str, ...],
    path: Path | None,
    silent: bool,
    protocol: Protocol | None,
    baud: int | None,
    parity: Literal["N", "E", "O"] | None,
    stop_bits: int,
    data_bits: int,
    request: bytes | None,
    expect_value: float | None,
    tolerance: float,
    as_json: bool,
) -> None:
    """Say why the bytes HEX that came over a line are not the reply you want. Talks to nobody.

    The bytes come as HEX, from --file, or on standard input. Say what you know; every option makes the verdict surer.
    Exit 0 when something was recognised, 1 when not.
    """
    if silent:
        capture = Capture(b"")
    elif heard:
        line = decode.read_line(" ".join(heard))
        if line.error == "not_hex":
            raise click.BadParameter(f"hexadecimal expected: {line.detail}", param_hint="HEX")
        capture = Capture(line.raw)
    elif path is not None:
        with path.open("rb") as file:
            capture = read_capture(file.read(4 * BYTES_MAX))
    elif sys.stdin.isatty():
        raise click.UsageError("no bytes: give them as HEX, with --file or on standard input; or --silent if none came")
    else:
        capture = read_capture(sys.stdin.buffer.read(4 * BYTES_MAX))
    protocol = protocol or capture.protocol
    setting = capture.setting
    if baud is not None:
        is_645 = protocol is not None and protocol.startswith("dlt645")
        setting = SerialSetting(baud, parity or ("E" if is_645 else "N"), stop_bits, data_bits)
    expected = Expectation(protocol, setting, request or capture.request, expect_value, tolerance)
    raw, verdicts = capture.raw, explain(capture.raw, expected)
    if as_json:
        document = {"bytes": len(raw), "verdicts": [as_document(verdict) for verdict in verdicts]}
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        click.echo("\n".join(as_text(verdicts)))
    sys.exit(1 if verdicts[0].cause is Cause.UNKNOWN else 0)
