"""What a Modbus request and its reply say: the PDUs of functions 1 to 6, 15, 16, 20 and 43/14, for client and server.

Addresses are zero-based PDU addresses. Section numbers are those of MODBUS Application Protocol V1.1b3. A wrong PDU
raises FrameError, which a server answers with ILLEGAL_DATA_VALUE; an exception raises MeterError with its name.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from protocols.framing import FrameError, MeterError

PDU_BYTES_MAX: Final = 253
READ_WORDS_MAX: Final = 125
WRITE_WORDS_MAX: Final = 123
READ_BITS_MAX: Final = 2000
WRITE_BITS_MAX: Final = 1968
FILE_DATA_BYTES_MAX: Final = 0xF5  # of a whole FC 20 reply: per range 2 bytes and the records
FILE_RECORD_MAX: Final = 0x270F
EXCEPTION: Final = 0x80  # added to the function in the reply that refuses


class Function(IntEnum):
    READ_COILS = 0x01
    READ_DISCRETE = 0x02
    READ_HOLDING = 0x03
    READ_INPUT = 0x04
    WRITE_COIL = 0x05
    WRITE_ONE = 0x06
    WRITE_COILS = 0x0F
    WRITE_MANY = 0x10
    READ_FILE = 0x14
    ENCAPSULATED = 0x2B  # with MEI type 0EH: device identification


class Fault(IntEnum):
    """Exception codes, section 7."""

    ILLEGAL_FUNCTION = 0x01
    ILLEGAL_DATA_ADDRESS = 0x02
    ILLEGAL_DATA_VALUE = 0x03
    SERVER_DEVICE_FAILURE = 0x04
    ACKNOWLEDGE = 0x05
    SERVER_DEVICE_BUSY = 0x06
    MEMORY_PARITY_ERROR = 0x08
    GATEWAY_PATH_UNAVAILABLE = 0x0A
    GATEWAY_TARGET_FAILED_TO_RESPOND = 0x0B


_FAULT_NAMES = {fault.value: fault.name.lower() for fault in Fault}
_BIT_READS = (Function.READ_COILS, Function.READ_DISCRETE)


def check_accepted(pdu: bytes) -> None:
    """Raises MeterError when ``pdu`` is an exception, FrameError when it is empty."""
    if not pdu:
        raise FrameError("PDU: empty")
    if pdu[0] & EXCEPTION:
        code = pdu[1] if len(pdu) > 1 else 0
        raise MeterError(code, (_FAULT_NAMES.get(code, "unknown exception"),))


def encode_exception(function: int, fault: Fault) -> bytes:
    return bytes((function | EXCEPTION, fault))


# ---- FC 1 to 4 (6.1 to 6.4) ------------------------------------------------------------------------------------------


def encode_read(function: int, address: int, count: int) -> bytes:
    """``count`` bits with FC 1 and 2, registers with FC 3 and 4."""
    most = READ_BITS_MAX if function in _BIT_READS else READ_WORDS_MAX
    if not 0 <= address <= 0xFFFF or not 1 <= count <= most:
        raise ValueError(f"read: address 0 to 65535 and count 1 to {most} expected, got {address} and {count}")
    return struct.pack(">BHH", function, address, count)


def decode_read(pdu: bytes) -> tuple[int, int]:
    """(address, count) of a request with FC 1 to 4. Raises FrameError."""
    if len(pdu) != 5:
        raise FrameError("read: 5 bytes expected", raw=pdu)
    function, address, count = struct.unpack(">BHH", pdu)
    most = READ_BITS_MAX if function in _BIT_READS else READ_WORDS_MAX
    if not 1 <= count <= most:
        raise FrameError(f"read: count 1 to {most} allowed", raw=pdu)
    return address, count


def encode_bits_reply(function: int, bits: Sequence[bool]) -> bytes:
    """The answer to FC 1 or 2."""
    data = _pack_bits(bits)
    return bytes((function, len(data))) + data


def decode_bits_reply(pdu: bytes, count: int) -> tuple[bool, ...]:
    """``count`` bits, the first one from ``address``. What pads the last byte is not looked at.

    Raises MeterError for an exception, FrameError for another length.
    """
    check_accepted(pdu)
    size = -(-count // 8)
    if len(pdu) != 2 + size or pdu[1] != size:
        raise FrameError(f"read reply: {count} bits expected", raw=pdu)
    return _unpack_bits(pdu[2:], count)


def encode_read_reply(function: int, data: bytes) -> bytes:
    return bytes((function, len(data))) + data


def decode_read_reply(pdu: bytes, count: int) -> bytes:
    """(2 × count,) bytes of registers. Raises MeterError for an exception, FrameError for another length."""
    check_accepted(pdu)
    if len(pdu) != 2 + 2 * count or pdu[1] != 2 * count:
        raise FrameError(f"read reply: {count} registers expected", raw=pdu)
    return pdu[2:]


# ---- FC 5, 6, 15, 16 (6.5, 6.6, 6.11, 6.12) --------------------------------------------------------------------------


def encode_write_one(address: int, value: int) -> bytes:
    if not (0 <= address <= 0xFFFF and 0 <= value <= 0xFFFF):
        raise ValueError(f"write: address and value 0 to 65535 expected, got {address} and {value}")
    return struct.pack(">BHH", Function.WRITE_ONE, address, value)


def encode_write_many(address: int, data: bytes) -> bytes:
    if len(data) % 2 or not 2 <= len(data) <= 2 * WRITE_WORDS_MAX:
        raise ValueError(f"write: 1 to {WRITE_WORDS_MAX} whole registers expected, got {len(data)} bytes")
    return struct.pack(">BHHB", Function.WRITE_MANY, address, len(data) // 2, len(data)) + data


def decode_write(pdu: bytes) -> tuple[int, bytes]:
    """(address, register bytes) of a request with FC 6 or 16. Raises FrameError."""
    if pdu[:1] == b"\x06" and len(pdu) == 5:
        return int.from_bytes(pdu[1:3], "big"), pdu[3:]
    if pdu[:1] == b"\x10" and len(pdu) >= 8:
        _, address, count, size = struct.unpack_from(">BHHB", pdu)
        if size == 2 * count == len(pdu) - 6 and count <= WRITE_WORDS_MAX:
            return address, pdu[6:]
    raise FrameError("write: length", raw=pdu)


def encode_write_reply(pdu: bytes) -> bytes:
    """The answer to the request ``pdu``: its first five bytes, with FC 5 and 6 that is all of it."""
    return pdu[:5]


def check_write_reply(request: bytes, pdu: bytes) -> None:
    """Raises MeterError for an exception, FrameError when the meter did not repeat what was asked."""
    check_accepted(pdu)
    if pdu != request[:5]:
        raise FrameError(f"write reply: {request[:5].hex(' ')} expected", raw=pdu)


def encode_write_coil(address: int, on: bool) -> bytes:
    return struct.pack(">BHH", Function.WRITE_COIL, address, _COIL_ON if on else 0)


def encode_write_coils(address: int, bits: Sequence[bool]) -> bytes:
    if not 1 <= len(bits) <= WRITE_BITS_MAX:
        raise ValueError(f"write: 1 to {WRITE_BITS_MAX} coils expected, got {len(bits)}")
    data = _pack_bits(bits)
    return struct.pack(">BHHB", Function.WRITE_COILS, address, len(bits), len(data)) + data


def decode_write_coils(pdu: bytes) -> tuple[int, tuple[bool, ...]]:
    """(address, states) of a request with FC 5 or 15. Raises FrameError."""
    if pdu[:1] == b"\x05" and len(pdu) == 5:
        _, address, state = struct.unpack(">BHH", pdu)
        if state in (0, _COIL_ON):
            return address, (state == _COIL_ON,)
        raise FrameError("write coil: 0000H or FF00H expected", raw=pdu)
    if pdu[:1] == b"\x0f" and len(pdu) >= 7:
        _, address, count, size = struct.unpack_from(">BHHB", pdu)
        if 1 <= count <= WRITE_BITS_MAX and size == -(-count // 8) == len(pdu) - 6:
            return address, _unpack_bits(pdu[6:], count)
    raise FrameError("write coils: length", raw=pdu)


_COIL_ON = 0xFF00


def _pack_bits(bits: Sequence[bool]) -> bytes:
    """The first bit is the lowest of the first byte; zeros fill the last byte."""
    return sum(1 << i for i, bit in enumerate(bits) if bit).to_bytes(-(-len(bits) // 8), "little")


def _unpack_bits(data: bytes, count: int) -> tuple[bool, ...]:
    return tuple(bool(data[i >> 3] >> (i & 7) & 1) for i in range(count))


# ---- FC 20 -----------------------------------------------------------------------------------------------------------

_FILE_REFERENCE = 6
_RANGE = struct.Struct(">BHHH")


@dataclass(frozen=True, slots=True)
class FileRange:
    """``count`` registers of ``file`` from ``record`` on; a record is one 16-bit register."""

    file: int
    record: int
    count: int


def encode_read_file(ranges: Sequence[FileRange]) -> bytes:
    body = b"".join(_RANGE.pack(_FILE_REFERENCE, part.file, part.record, part.count) for part in ranges)
    if not body or len(body) > FILE_DATA_BYTES_MAX or _reply_bytes(ranges) > FILE_DATA_BYTES_MAX:
        raise ValueError(f"read file: the reply would have {_reply_bytes(ranges)} bytes, {FILE_DATA_BYTES_MAX} fit")
    return bytes((Function.READ_FILE, len(body))) + body


def decode_read_file(pdu: bytes) -> list[FileRange]:
    """The ranges of a request. Raises FrameError."""
    body = pdu[2:]
    if len(pdu) < 2 or pdu[1] != len(body) or not body or len(body) % _RANGE.size:
        raise FrameError("read file: length", raw=pdu)
    ranges: list[FileRange] = []
    for reference, file, record, count in _RANGE.iter_unpack(body):
        if reference != _FILE_REFERENCE or record > FILE_RECORD_MAX:
            raise FrameError("read file: reference type 6 and record 0 to 9999 expected", raw=pdu)
        ranges.append(FileRange(file, record, count))
    if _reply_bytes(ranges) > FILE_DATA_BYTES_MAX:
        raise FrameError("read file: the reply would not fit", raw=pdu)
    return ranges


def encode_read_file_reply(parts: Sequence[bytes]) -> bytes:
    """``parts``: the registers of each range asked for."""
    body = b"".join(bytes((len(part) + 1, _FILE_REFERENCE)) + part for part in parts)
    return bytes((Function.READ_FILE, len(body))) + body


def decode_read_file_reply(pdu: bytes, ranges: Sequence[FileRange]) -> list[bytes]:
    """The registers of each range. Raises MeterError for an exception, FrameError where a range is not whole."""
    check_accepted(pdu)
    if len(pdu) != 2 + _reply_bytes(ranges) or pdu[1] != len(pdu) - 2:
        raise FrameError("read file reply: length", raw=pdu)
    parts: list[bytes] = []
    start = 2
    for part in ranges:
        end = start + 2 + 2 * part.count
        if pdu[start] != 1 + 2 * part.count or pdu[start + 1] != _FILE_REFERENCE:
            raise FrameError("read file reply: another range than asked for", raw=pdu)
        parts.append(pdu[start + 2 : end])
        start = end
    return parts


def _reply_bytes(ranges: Sequence[FileRange]) -> int:
    return sum(2 + 2 * part.count for part in ranges)
