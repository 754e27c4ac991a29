"""Bytes as they stand, read as frames of one protocol."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.sniff import AnyFrame, Dlt645Language, ModbusLanguage
from gateway.why.case import Kind
from protocols import dlt645, modbus
from protocols.framing import StreamDecoder
from protocols.modbus.length import reply_bytes, request_bytes

FRAMES_SHOWN: Final = 4


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
        fillers = outside(raw, self.pieces).count(b"\xfe") if self.kind == "dlt645" else 0
        return (inside + fillers) / len(raw)

    def strays(self, raw: bytes) -> Iterator[str]:
        """What stands before the first frame and after the last, in words."""
        head, tail = raw[: self.pieces[0].start], raw[self.pieces[-1].end :]
        fillers = len(head) - len(head.rstrip(b"\xfe"))
        if self.kind == "dlt645":
            yield f"preamble: {fillers} bytes FE{'' if fillers else '; some receivers miss the start without'}"
            head = head.rstrip(b"\xfe")
        if head:
            yield f"{len(head)} stray bytes before it ({hexadecimal(head, 12)}): the line's turn-around"
        if tail:
            yield f"{len(tail)} stray bytes after it ({hexadecimal(tail, 12)})"


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


def outside(raw: bytes, pieces: Sequence[Piece]) -> bytes:
    at, rest = 0, b""
    for piece in pieces:
        rest += raw[at : piece.start]
        at = piece.end
    return rest + raw[at:]


def is_reply(frame: AnyFrame) -> bool:
    if isinstance(frame, dlt645.Frame):
        return frame.is_reply
    return request_bytes(frame.pdu) != len(frame.pdu)


def says(kind: Kind, frame: AnyFrame, asked: AnyFrame | None) -> str:
    if isinstance(frame, dlt645.Frame):
        told = Dlt645Language().overhear(frame, asked, "").says
    else:
        told = (
            ModbusLanguage("modbus-tcp" if kind == "modbus-tcp" else "modbus-rtu", {}).overhear(frame, asked, "").says
        )
    return "; ".join(told)


def hexadecimal(raw: bytes, most: int = 48) -> str:
    return raw[:most].hex(" ").upper() + (f" … ({len(raw)} bytes)" if len(raw) > most else "")


def is_text(raw: bytes) -> bool:
    return all(0x20 <= byte < 0x7F or byte in b"\r\n\t\0" for byte in raw) and any(chr(byte).isalnum() for byte in raw)


def plain(raw: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in raw.rstrip(b"\r\n"))
