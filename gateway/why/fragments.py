"""What nearly is a frame: one that ends too early, lacks its head, or was damaged; and plain text."""

import re
from collections.abc import Iterator
from typing import Final

from gateway import decode
from gateway.sniff import AnyFrame
from gateway.why.case import Case, Cause
from gateway.why.reading import hexadecimal, is_text, plain, read_as, says
from protocols import dlt645, modbus
from protocols.dlt645.frame import HEADER_BYTES
from protocols.modbus.length import NOT_YET, reply_bytes, request_bytes

_LENGTHEN: Final = "Lengthen the timeout (read_timeout_s), and the packing time of a serial server"
_SPEAKERS: Final = (
    (r"^HTTP/|<html", "a web server answers; this is not the port for meters"),
    (r"^SSH-", "an SSH server answers; this is not the port for meters"),
    (r"^AT[+\r]|\+CME|^\+?CREG", "a modem is in command mode"),
    (r"[Ll]ogin:|[Pp]assword:", "a console asks for a login"),
    (r"^/[A-Z]{3}\d", "an IEC 62056-21 meter introduces itself (neither DL/T 645 nor Modbus)"),
)


def judge_fragments(case: Case) -> None:
    _judge_645(case)
    _judge_rtu(case)
    _judge_rest(case)


def _judge_645(case: Case) -> None:
    for start in _starts_645(case.raw):
        body = case.raw[start:]
        found = dlt645.decode_one(body)
        if isinstance(found, dlt645.Frame):
            continue
        control, length = body[8], body[9] if len(body) > 9 else 0
        size = HEADER_BYTES + length + 2
        address = body[1:7][::-1].hex().upper()
        is_known = control & 0x1F in {*map(int, dlt645.Function), *map(int, dlt645.Function1997)}
        is_digits = address.isdecimal() or set(address) <= set("0123456789A")
        sure = 0.5 + 0.2 * is_known + 0.2 * is_digits
        head = f"68 {hexadecimal(body[1:7])} 68: meter {address}, control {control:02X}"
        if len(body) < size and length <= dlt645.DATA_BYTES_MAX:
            case.add(
                Cause.TRUNCATED,
                f"A DL/T 645 frame that ends too early: {len(body)} of {size} bytes",
                [head, f"length {length:02X} promises {size} bytes from 68, {size - len(body)} are missing"],
                sure,
                _LENGTHEN,
                "If it always ends at the same place: the adapter's buffer is small, or it switches too early",
            )
            return
        if len(body) >= size and body[size - 1] == 0x16:
            _damaged(case, "DL/T 645", body[:size], head, sure - 0.1)
            return
    at = case.raw.find(b"\x68", 0, 8)
    if at >= 0 and isinstance(case.asked, dlt645.Frame):
        header = bytes((0x68, *bytes.fromhex(case.asked.address)[::-1]))
        mended = dlt645.decode_one(header + case.raw[at:])
        if isinstance(mended, dlt645.Frame):
            _headless(case, "DL/T 645", 7 - at, decode.headline(mended), 0.92)


def _judge_rtu(case: Case) -> None:
    raw = case.raw
    if len(raw) >= 4 and raw[0] <= modbus.UNIT_MAX:
        for measure in (reply_bytes, request_bytes):
            size = measure(raw[1:]) + 3
            if 4 < size <= len(raw) and modbus.crc16(raw[: size - 2]) == int.from_bytes(raw[size - 2 : size], "big"):
                frame = modbus.Frame(0, raw[0], raw[1 : size - 2])
                case.add(
                    Cause.CRC_ORDER,
                    "The two bytes of the CRC are swapped: high byte first",
                    [f"{hexadecimal(raw[:size])} = {says('modbus-rtu', frame, case.asked)}"],
                    0.93,
                    "The device breaks the standard (low byte first): ask its maker for other firmware",
                )
                return
    asked = case.asked if isinstance(case.asked, modbus.Frame) else None
    is_likely = asked is not None and len(raw) > 1 and raw[0] == asked.unit and raw[1] & 0x7F == asked.pdu[0]
    wants_rtu = case.expected.kind == "modbus-rtu"
    if len(raw) >= 2 and 0 < raw[0] <= modbus.UNIT_MAX and (is_likely or raw[1] in (3, 4)):
        size = reply_bytes(raw[1:])
        want = 2 + 2 * int.from_bytes(asked.pdu[3:5], "big") if asked and asked.pdu[0] in (3, 4) else size
        head = f"{hexadecimal(raw[:3])}: unit {raw[0]}, function {raw[1]}" + (
            f", {raw[2]} bytes" if len(raw) > 2 else ""
        )
        sure = 0.85 if is_likely and size == want else 0.55 if wants_rtu and size == want else 0.3
        if size != NOT_YET and size > 0 and len(raw) < size + 3:
            case.add(
                Cause.TRUNCATED,
                f"A Modbus RTU reply that ends too early: {len(raw)} of {size + 3} bytes",
                [head, f"{size + 3 - len(raw)} bytes are missing"],
                sure,
                _LENGTHEN,
                "Ask for fewer registers at once: some adapters hold 64 bytes",
            )
        elif size > 0 and len(raw) == size + 3:
            _damaged(case, "Modbus RTU", raw, head, sure)
    if asked is not None and asked.pdu[0] in (3, 4) and len(raw) >= 4:
        count = 2 * int.from_bytes(asked.pdu[3:5], "big")
        start = bytes((asked.unit, asked.pdu[0], count & 0xFF))
        for missing in (1, 2, 3):
            whole = start[:missing] + raw
            if len(whole) == count + 5 and modbus.crc16(whole[:-2]) == int.from_bytes(whole[-2:], "little"):
                told = says("modbus-rtu", modbus.Frame(0, whole[0], whole[1:-2]), asked)
                _headless(case, "Modbus RTU", missing, told, 0.92)


def _judge_rest(case: Case) -> None:
    raw = case.raw
    if raw[:1] == b":" and len(raw) > 4 and set(raw[1:].upper()) <= set(b"0123456789ABCDEF\r\n"):
        if not raw.endswith(b"\r\n"):
            case.add(
                Cause.TRUNCATED,
                "A Modbus ASCII frame that ends too early: no CR LF",
                [f'"{plain(raw)}"'],
                0.85,
                _LENGTHEN,
            )
        else:
            _damaged(case, "Modbus ASCII", raw, f'"{plain(raw)}"', 0.8)
    elif len(raw) >= 8 and raw[2:4] == b"\0\0" and 2 <= int.from_bytes(raw[4:6], "big") <= 254:
        missing = int.from_bytes(raw[4:6], "big") + 6 - len(raw)
        size = reply_bytes(raw[7:])
        if missing > 0 and size + 1 == int.from_bytes(raw[4:6], "big"):
            case.add(
                Cause.TRUNCATED,
                f"A Modbus TCP frame that ends too early: {missing} bytes are missing",
                [f"MBAP header {hexadecimal(raw[:7])}: {int.from_bytes(raw[4:6], 'big')} bytes follow"],
                0.85 if case.expected.kind == "modbus-tcp" else 0.6,
                "The connection broke, or the capture ends here: read until the length is reached",
            )
    stripped = bytes(byte & 0x7F for byte in raw)
    if stripped != raw and read_as("modbus-ascii", stripped).covered(raw) > 0.9:
        parities = {byte.bit_count() & 1 for byte in raw}
        parity = "even" if parities == {0} else "odd" if parities == {1} else "mark or no"
        frame = read_as("modbus-ascii", stripped).pieces[0].frame
        case.add(
            Cause.FORMAT,
            f"The device sends 7 data bits with {parity} parity, the port takes 8: the top bit is the parity",
            [f'without the top bit: "{plain(stripped)}" = {says("modbus-ascii", frame, case.asked)}'],
            0.96,
            "Set the port to 7E1 (the standard's default for ASCII), or the device to 8 data bits",
        )


def _headless(case: Case, name: str, missing: int, told: str, confidence: float) -> None:
    case.add(
        Cause.HEADLESS,
        f"The first {missing} bytes of a {name} reply are missing",
        [f"with them put back its checksum is right: {told}"],
        confidence,
        "The adapter still sends when the meter begins: use one with automatic direction control",
        "Some meters can answer later: raise their response delay (20 to 50 ms)",
    )


def _damaged(case: Case, name: str, whole: bytes, head: str, confidence: float) -> None:
    """The shape is right and the checksum is not: noise on the line, or two who talk at once."""
    wildcard = isinstance(case.asked, dlt645.Frame) and "A" in case.asked.address
    pulled = _pulled_down(case.asked, whole)
    if wildcard or pulled:
        why = "the wildcard was asked, so every meter on the line answers" if wildcard else pulled
        case.add(
            Cause.COLLISION,
            f"Two meters talk at once: the shape of a {name} reply, with a wrong checksum",
            [head, why, hexadecimal(whole)],
            max(0.7, confidence - 0.05),
            "Ask one meter alone, with its full address"
            if wildcard
            else "Look for a doubled address or a second master",
            "Disconnect half of the meters and try again, until one is left",
        )
        return
    case.add(
        Cause.DAMAGED,
        f"A {name} frame with a wrong checksum: damaged on the way",
        [head, hexadecimal(whole), *_one_bit(name, whole)],
        confidence,
        "Noise: shield on one end, 120 ohm at both ends, bias; keep away from inverters and contactors",
        "If it is always the same byte, two meters have one address, or the meter's firmware is at fault",
    )


def judge_text(case: Case) -> None:
    if len(case.raw) < 4 or not is_text(case.raw):
        return
    text = plain(case.raw)
    known = next((told for pattern, told in _SPEAKERS if re.search(pattern, text)), "")
    case.add(
        Cause.TEXT if known or not text.isalnum() else Cause.PREFIX,
        f"Plain text, no meter's frame: {known or 'a registration or heartbeat of a serial server, or a console'}",
        [f'"{text[:80]}"'],
        0.85 if known else 0.6,
        "Is this the right port of the right box? Frames should follow when a meter is asked",
    )


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
