"""What can happen to a reply on a serial line, to order: functions from the reply as meant to the reply as sent."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from msgspec import structs

from protocols import dlt645, modbus
from protocols.framing import Garbage


@dataclass(frozen=True, slots=True)
class Reply:
    """``delay_s`` comes on top of the meter's turnaround. ``baud``: sent at this speed instead of the meter's own."""

    raw: bytes
    delay_s: float = 0.0
    baud: int | None = None


Fault: TypeAlias = Callable[[Reply], Reply]


def late(delay_s: float) -> Fault:
    return lambda reply: replace(reply, delay_s=reply.delay_s + delay_s)


def silent(reply: Reply) -> Reply:
    return replace(reply, raw=b"")


def truncated(keep: int) -> Fault:
    return lambda reply: replace(reply, raw=reply.raw[:keep])


def garbage(*, before: bytes = b"", after: bytes = b"") -> Fault:
    return lambda reply: replace(reply, raw=before + reply.raw + after)


def at_speed(baud: int) -> Fault:
    """The meter has lost its setting: a client at another speed samples other bytes."""
    return lambda reply: replace(reply, baud=baud)


def wrong_checksum(reply: Reply) -> Reply:
    """One bit of the checksum is flipped: RTU's last byte, ASCII's last digit, DL/T 645's last byte but one."""
    at = -3 if reply.raw.endswith(b"\r\n") else -1
    if _frames_645(reply.raw):
        at = -2
    raw = bytearray(reply.raw)
    raw[at] ^= 1
    return replace(reply, raw=bytes(raw))


def from_another_meter(address: int | str) -> Fault:
    """The same reply with another sender, rightly framed: a unit for Modbus, 12 digits for DL/T 645."""

    def fault(reply: Reply) -> Reply:
        if isinstance(address, str):
            raw = b"".join(dlt645.encode(structs.replace(frame, address=address)) for frame in _frames_645(reply.raw))
        elif reply.raw.startswith(b":"):
            (frame,) = _only_frames(modbus.AsciiDecoder(), reply.raw)
            raw = modbus.encode_ascii(structs.replace(frame, unit=address))
        else:
            (frame,) = _only_frames(modbus.RtuDecoder(replies_only=True), reply.raw)
            raw = modbus.encode_rtu(structs.replace(frame, unit=address))
        return replace(reply, raw=raw)

    return fault


def wrong_word_order(reply: Reply) -> Reply:
    """The two registers of each 32-bit value in a Modbus RTU read reply change places; other replies stay."""
    (frame,) = _only_frames(modbus.RtuDecoder(replies_only=True), reply.raw)
    data = frame.pdu[2:]
    if frame.pdu[0] not in (modbus.Function.READ_HOLDING, modbus.Function.READ_INPUT) or len(data) % 4:
        return reply
    swapped = b"".join(data[i + 2 : i + 4] + data[i : i + 2] for i in range(0, len(data), 4))
    return replace(reply, raw=modbus.encode_rtu(structs.replace(frame, pdu=frame.pdu[:2] + swapped)))


def _only_frames(decoder: modbus.SerialDecoder, raw: bytes) -> list[modbus.Frame]:
    return [event for event in decoder.feed(raw) + decoder.flush() if not isinstance(event, Garbage)]


def _frames_645(raw: bytes) -> list[dlt645.Frame]:
    decoder = dlt645.Decoder()
    return [event for event in decoder.feed(raw) + decoder.flush() if isinstance(event, dlt645.Frame)]
