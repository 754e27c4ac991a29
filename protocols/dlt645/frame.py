"""Frames of DL/T 645-1997 and -2007: the two editions share them and differ in control codes and data identifiers."""

import re
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Literal, TypeAlias
from zlib import adler32

import msgspec

from protocols.framing import INCOMPLETE, Attempt, Garbage, StreamDecoder

START: Final = 0x68
END: Final = 0x16
FILLER: Final = b"\xfe"
PREAMBLE_BYTES: Final = 4
DATA_BYTES_MAX: Final = 200  # while reading
WRITE_BYTES_MAX: Final = 50
WILDCARD: Final = "A" * 12
BROADCAST: Final = "9" * 12
HEADER_BYTES: Final = 10  # 68H, address, 68H, C, L

_ADDRESS = re.compile(r"[0-9A-F]{12}")  # also FF, with which some masters fill
_SHIFT = bytes((byte + 0x33) & 0xFF for byte in range(256))
_UNSHIFT = bytes((byte - 0x33) & 0xFF for byte in range(256))

Edition: TypeAlias = Literal["1997", "2007"]


class Function(IntEnum):
    """Low five bits of the control byte, 2007."""

    SECURITY = 0x03
    BROADCAST_TIME = 0x08
    READ = 0x11
    READ_FOLLOW_UP = 0x12
    READ_ADDRESS = 0x13
    WRITE = 0x14
    WRITE_ADDRESS = 0x15
    FREEZE = 0x16
    CHANGE_SPEED = 0x17
    CHANGE_PASSWORD = 0x18
    DEMAND_RESET = 0x19
    METER_CLEAR = 0x1A
    EVENT_CLEAR = 0x1B
    RELAY = 0x1C
    MULTIFUNCTION_OUTPUT = 0x1D


_READ_REPLY = int(Function.READ) | 0x80


class Function1997(IntEnum):
    """Low five bits of the control byte, 1997."""

    READ = 0x01
    READ_FOLLOW_UP = 0x02
    READ_AGAIN = 0x03
    WRITE = 0x04
    BROADCAST_TIME = 0x08
    WRITE_ADDRESS = 0x0A
    CHANGE_SPEED = 0x0C
    CHANGE_PASSWORD = 0x0F
    DEMAND_RESET = 0x10


class Fault(IntFlag):
    """The ERR byte of an abnormal reply, 2007; bits may combine."""

    OTHER = 0x01
    NO_REQUESTED_DATA = 0x02
    NO_SUCH_DATA = 0x02  # another name of the same bit
    PASSWORD_OR_UNAUTHORISED = 0x04
    BAUD_RATE_UNCHANGEABLE = 0x08
    SEASON_COUNT_EXCEEDED = 0x10
    DAY_SLOT_COUNT_EXCEEDED = 0x20
    TARIFF_COUNT_EXCEEDED = 0x40


class Fault1997(IntFlag):
    """The ERR byte of an abnormal reply, 1997."""

    ILLEGAL_DATA = 0x01
    BAD_DATA_IDENTIFIER = 0x02
    PASSWORD = 0x04


# Vendors use 05 and 07 in frames of the 1997 kind.
_ONLY_1997 = frozenset(Function1997) - {Function1997.BROADCAST_TIME, Function1997.READ_AGAIN} | {0x05, 0x07}


class Frame(msgspec.Struct, frozen=True, gc=False):
    """``address``: 12 digits as people write them (``A`` in wildcards). ``data``: in wire order, 33H taken off."""

    address: str
    control: int
    data: bytes = b""

    @property
    def function(self) -> int:
        return self.control & 0x1F

    @property
    def is_reply(self) -> bool:
        return bool(self.control & 0x80)

    @property
    def is_abnormal(self) -> bool:
        return bool(self.control & 0x40)

    @property
    def has_more(self) -> bool:
        return bool(self.control & 0x20)

    @property
    def edition(self) -> Edition:
        """By the control code. 08H is the same in both; 03H is 1997's "again" when it names two bytes at most."""
        if self.function in _ONLY_1997:
            return "1997"
        if self.function == Function1997.READ_AGAIN and not self.is_reply and len(self.data) <= 2:
            return "1997"
        return "2007"

    @property
    def di_bytes(self) -> int:
        """How many bytes of the data are the data identifier, if it is complete; 0 where none is expected."""
        if self.control == _READ_REPLY:  # by far the most; the rules below say the same of it
            return 4 if len(self.data) >= 4 else 0
        if self.is_abnormal:
            return 0
        if self.edition == "1997":
            reading = (Function1997.READ, Function1997.READ_FOLLOW_UP, Function1997.READ_AGAIN)
            named = self.function in reading or (self.function == Function1997.WRITE and not self.is_reply)
            size = 2
        else:
            security = self.function == Function.SECURITY and self.data[3:4] == b"\x07"
            named = self.function in (Function.READ, Function.READ_FOLLOW_UP) or security
            named = named or (self.function == Function.WRITE and not self.is_reply)
            size = 4
        return size if named and len(self.data) >= size else 0

    @property
    def di(self) -> int | None:
        size = self.di_bytes
        return int.from_bytes(self.data[:size], "little") if size else None


def fault_names(frame: Frame) -> tuple[str, ...]:
    """The bits of an abnormal reply's ERR byte by name; bits the edition does not define are left out."""
    code = frame.data[0] if frame.data else 0
    bits = Fault1997 if frame.edition == "1997" else Fault
    return tuple((bit.name or "").lower() for bit in bits if code & bit)


def encode(frame: Frame, *, preamble: int = PREAMBLE_BYTES) -> bytes:
    """The frame on the wire, after ``preamble`` bytes FEH that wake the receiver."""
    if not _ADDRESS.fullmatch(frame.address):
        raise ValueError(f'address: 12 digits expected, got "{frame.address}"')
    if len(frame.data) > DATA_BYTES_MAX:
        raise ValueError(f"data: {len(frame.data)} bytes, at most {DATA_BYTES_MAX} allowed")
    body = (
        bytes((START, *bytes.fromhex(frame.address)[::-1], START, frame.control, len(frame.data)))
        + frame.data.translate(_SHIFT)
    )  # fmt: skip
    return FILLER * preamble + body + bytes((checksum(body), END))


class Decoder(StreamDecoder[Frame]):
    """Frames of a byte stream. The length field alone says where a frame ends: 68H, 16H and FEH occur inside."""

    START = bytes((START,))
    FILLER = FILLER

    def feed(self, chunk: bytes, *, final: bool = False) -> list[Frame | Garbage]:
        if not (self._rest or self._skipped):
            # Almost always a chunk is one frame behind its filler, which then leaves no trace: no need to search.
            body = chunk.lstrip(FILLER)
            if body and body[0] == START:
                attempt = self._attempt(body, 0)
                if isinstance(attempt, tuple) and attempt[1] == len(body):
                    return [attempt[0]]
        return super().feed(chunk, final=final)

    def _attempt(self, buffer: bytes, start: int) -> Attempt[Frame]:
        have = len(buffer) - start
        if have > 7 and buffer[start + 7] != START:
            return None
        if have < HEADER_BYTES:
            return INCOMPLETE
        length = buffer[start + 9]
        if length > DATA_BYTES_MAX:
            return None
        if have < HEADER_BYTES + length + 2:
            return INCOMPLETE
        end = start + HEADER_BYTES + length
        body = buffer[start:end]
        if buffer[end + 1] != END or (adler32(body) - 1) & 0xFF != buffer[end]:  # see checksum
            return None
        return Frame(body[6:0:-1].hex().upper(), body[8], body[HEADER_BYTES:].translate(_UNSHIFT)), end + 2


def checksum(body: bytes) -> int:
    """The bytes from 68H to the end of the data, summed mod 256; no longer than a frame.

    The low half of Adler-32 is that sum plus one, mod 65,521, which 210 bytes cannot reach: one call, not a loop.
    """
    return (adler32(body) - 1) & 0xFF


def address_matches(pattern: str, address: str) -> bool:
    """Whether a request to ``pattern`` is meant for ``address``: AA pads an abbreviated address from the high end."""
    return pattern == address or (
        "A" in pattern and all(want in ("A", got) for want, got in zip(pattern, address, strict=True))
    )


# ---- one frame that is expected, and what is wrong with it -----------------------------------------------------------

Flaw: TypeAlias = Literal["no_start", "second_start", "truncated", "trailing_or_bad_length", "checksum", "end"]


@dataclass(frozen=True, slots=True)
class Broken:
    """Why bytes that should be one frame are not: ``at`` is the offset of the byte, ``detail`` says it in words.

    ``edition`` is a guess from the byte where the control code should be.
    """

    error: Flaw
    at: int
    detail: str
    edition: Edition


def decode_one(raw: bytes) -> Frame | Broken:
    """The bytes as exactly one frame, after any FEH. Checked from the front, so the first fault is the one named."""
    start = 0
    while raw[start : start + 1] == FILLER:
        start += 1
    body = raw[start:]
    edition = Frame("", body[8]).edition if len(body) > 8 else "2007"

    def broken(error: Flaw, at: int, detail: str) -> Broken:
        return Broken(error, start + at, detail, edition)

    if not body or body[0] != START:
        return broken("no_start", 0, f"68H expected, got {body[:1].hex().upper()}H" if body else "no bytes")
    if len(body) > 7 and body[7] != START:
        return broken("second_start", 7, f"68H expected after the address, got {body[7]:02X}H")
    if len(body) < HEADER_BYTES:
        return broken("truncated", len(body), f"the bytes end inside the header, after {len(body)} of {HEADER_BYTES}")
    length = body[9]
    size = HEADER_BYTES + length + 2
    if len(body) < size:
        return broken("truncated", len(body), f"length {length:02X}H promises {size} bytes from 68H, got {len(body)}")
    if len(body) > size or length > DATA_BYTES_MAX:
        return broken(
            "trailing_or_bad_length", 9, f"length {length:02X}H promises {size} bytes from 68H, got {len(body)}"
        )
    want = checksum(body[:-2])
    if body[-2] != want:
        return broken("checksum", size - 2, f"the bytes before sum to {want:02X}H, got {body[-2]:02X}H")
    if body[-1] != END:
        return broken("end", size - 1, f"16H expected, got {body[-1]:02X}H")
    return Frame(body[1:7][::-1].hex().upper(), body[8], body[HEADER_BYTES:-2].translate(_UNSHIFT))
