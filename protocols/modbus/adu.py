"""How PDUs travel: MBAP on TCP, RTU and ASCII on serial lines, RTU through TCP gateways; for client and server.

Sources: MODBUS Messaging on TCP/IP V1.0b §3.1.3; MODBUS over Serial Line V1.02 §2.2 (addresses), §2.5.1 (RTU), §2.5.2
(ASCII). An RTU gateway on TCP carries the same bytes as its line, so ``RtuDecoder`` reads both.
"""

import re
import struct
from typing import Final

import msgspec

from protocols.framing import INCOMPLETE, Attempt, Garbage, StreamDecoder
from protocols.modbus.length import NOT_YET, reply_bytes, request_bytes
from protocols.modbus.pdu import EXCEPTION, PDU_BYTES_MAX, Function

BROADCAST: Final = 0
UNIT_MAX: Final = 247  # 248 to 255 are reserved on serial lines
RTU_BYTES_MAX: Final = 256
ASCII_CHARS_MAX: Final = 513


class Frame(msgspec.Struct, frozen=True, gc=False):
    """``unit``: the meter, 1 to 247 (0 is broadcast).

    ``transaction``: 16 bits that the answer repeats; 0 on serial lines, which have none.
    """

    transaction: int
    unit: int
    pdu: bytes


class Echo(Garbage, frozen=True):
    """One's own request, which the adapter heard while it sent."""


def _check_pdu(frame: Frame) -> None:
    if not 1 <= len(frame.pdu) <= PDU_BYTES_MAX:
        raise ValueError(f"pdu: {len(frame.pdu)} bytes, 1 to {PDU_BYTES_MAX} allowed")


def is_answer(request: Frame, frame: Frame) -> bool:
    """Whether ``frame`` answers ``request``: transaction, unit and function agree."""
    return (
        frame.transaction == request.transaction
        and frame.unit == request.unit
        and frame.pdu[0] & 0x7F == request.pdu[0]
    )


def is_serial_answer(request: Frame, frame: Frame) -> bool:
    """Like ``is_answer``, and all else that ``request`` fixes of its reply agrees too.

    A serial line numbers no requests, so a late reply looks like the awaited one: the count of a read and the echo of
    a write are all there is to tell them apart. Two reads of equal count on one meter remain alike; after a timeout
    only a pause on the line helps.
    """
    if not is_answer(request, frame):
        return False
    asked, got = request.pdu, frame.pdu
    if got[0] & EXCEPTION:
        return len(got) == 2
    if len(asked) < 5:
        return len(asked) < 3 or asked[0] != Function.ENCAPSULATED or got[1:3] == asked[1:3]
    if asked[0] <= Function.READ_INPUT:
        count = int.from_bytes(asked[3:5], "big")
        size = -(-count // 8) if asked[0] <= Function.READ_DISCRETE else 2 * count
        return len(got) == 2 + size and got[1] == size
    if asked[0] == Function.READ_FILE:
        size = sum(2 + 2 * int.from_bytes(asked[at : at + 2], "big") for at in range(7, len(asked), 7))
        return len(got) == 2 + size and got[1] == size
    if asked[0] in (Function.WRITE_COIL, Function.WRITE_ONE, Function.WRITE_COILS, Function.WRITE_MANY):
        return got == asked[:5]
    return True


# ---- TCP -------------------------------------------------------------------------------------------------------------

_MBAP = struct.Struct(">HHHB")


def encode(frame: Frame) -> bytes:
    """The frame with its MBAP header, for TCP."""
    _check_pdu(frame)
    return _MBAP.pack(frame.transaction, 0, len(frame.pdu) + 1, frame.unit) + frame.pdu


class TcpDecoder(StreamDecoder[Frame]):
    """Frames of a TCP stream, either direction. What is not MBAP (gateways send banners) is garbage."""

    def _attempt(self, buffer: bytes, start: int) -> Attempt[Frame]:
        if len(buffer) - start < _MBAP.size:
            return INCOMPLETE
        transaction, protocol, length, unit = _MBAP.unpack_from(buffer, start)
        if protocol or not 2 <= length <= PDU_BYTES_MAX + 1:
            return None
        end = start + 6 + length
        if len(buffer) < end:
            return INCOMPLETE
        return Frame(transaction, unit, buffer[start + _MBAP.size : end]), end


# ---- serial lines ----------------------------------------------------------------------------------------------------


class SerialDecoder(StreamDecoder[Frame]):
    """What RTU and ASCII share: telling the client's own request, heard back, from the meter's reply.

    A client says what it sent (``sent``). The same bytes coming first are an echo, if a reply cannot look like that.
    The reply to FC 5 and 6 does: there they are an echo unless an earlier request has shown that the line has none
    (``echoes`` False), since a write that is wrongly confirmed is worse than one that is asked again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.echoes: bool | None = None
        self._request: Frame | None = None
        self._sent = b""

    def sent(self, request: Frame) -> None:
        """``request`` goes out now."""
        self._request, self._sent = request, self._encode(request)

    def flush(self) -> list[Frame | Garbage]:
        self._sent = b""  # the start of an echo and then silence is none: it may be a reply that begins alike
        return super().flush()

    def _attempt(self, buffer: bytes, start: int) -> Attempt[Frame]:
        if not self._sent:
            return self._attempt_frame(buffer, start)
        assert self._request is not None
        is_mirrored = self._request.pdu[0] in _MIRRORED
        have = buffer[start : start + len(self._sent)]
        if have == self._sent and not (is_mirrored and self.echoes is False):
            if not is_mirrored:
                self.echoes = True
            self._sent = b""
            return Echo(have), start + len(have)
        if have != self._sent and self._sent.startswith(have):
            return INCOMPLETE
        attempt = self._attempt_frame(buffer, start)
        if isinstance(attempt, tuple) and isinstance(attempt[0], Frame):
            if not is_mirrored and is_answer(self._request, attempt[0]):
                self.echoes = False  # a late reply of another meter says nothing about it
            self._sent = b""
        return attempt

    def _encode(self, frame: Frame) -> bytes:
        raise NotImplementedError

    def _attempt_frame(self, buffer: bytes, start: int) -> Attempt[Frame]:
        raise NotImplementedError


_MIRRORED = (Function.WRITE_COIL, Function.WRITE_ONE)

# V1.02 §6.2.2: polynomial A001H (reflected 8005H), start value FFFFH, low byte first on the wire.
_CRC = [0] * 256
for _byte in range(256):
    _crc = _byte
    for _ in range(8):
        _crc = _crc >> 1 ^ (0xA001 if _crc & 1 else 0)
    _CRC[_byte] = _crc


def crc16(data: bytes | bytearray) -> int:
    crc, table = 0xFFFF, _CRC
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def encode_rtu(frame: Frame) -> bytes:
    _check_pdu(frame)
    body = bytes((frame.unit,)) + frame.pdu
    return body + crc16(body).to_bytes(2, "little")


class RtuDecoder(SerialDecoder):
    """RTU frames. USB adapters and gateways buffer, so silence cannot delimit them: the function code gives the length.

    A client sets ``replies_only``. Without it every candidate is tried as a request and as a reply, the shorter first:
    for meters, which also hear the replies of others, and for listening. By then one reply in 65,536 is taken for a
    request, when its first bytes happen to carry a right CRC; a client must not miss a value for that.

    Functions outside V1.1b3 have no known length, so their frames are garbage.
    """

    def __init__(self, *, replies_only: bool = False) -> None:
        super().__init__()
        self._lengths = (reply_bytes,) if replies_only else (request_bytes, reply_bytes)

    def _encode(self, frame: Frame) -> bytes:
        return encode_rtu(frame)

    def _attempt_frame(self, buffer: bytes, start: int) -> Attempt[Frame]:
        if buffer[start] > UNIT_MAX:
            return None
        have = len(buffer) - start
        if have < 2:
            return INCOMPLETE
        head = buffer[start + 1 : start + 1 + PDU_BYTES_MAX]
        if buffer[start] == BROADCAST and not _may_be_broadcast(head[0]):
            return None
        ends: list[int] = []
        verdict: Attempt[Frame] = None
        for length in self._lengths:
            size = length(head)
            if size == NOT_YET:
                verdict = INCOMPLETE
            elif 0 < size <= PDU_BYTES_MAX:
                ends.append(start + 1 + size + 2)
        for end in sorted(ends):
            if end > len(buffer):
                return INCOMPLETE
            if crc16(buffer[start : end - 2]) == buffer[end - 2] | buffer[end - 1] << 8:
                return Frame(0, buffer[start], buffer[start + 1 : end - 2]), end
        return verdict


def _may_be_broadcast(function: int) -> bool:
    """Reading all at once would make them talk at once, and nobody answers a broadcast (V1.02 §2.1)."""
    return not function & EXCEPTION and function not in (1, 2, 3, 4, 7, 0x0B, 0x0C, 0x11, 0x14, 0x17, 0x18, 0x2B)


_HEX = re.compile(rb"[0-9A-Fa-f]*")


def encode_ascii(frame: Frame) -> bytes:
    _check_pdu(frame)
    body = bytes((frame.unit,)) + frame.pdu
    return b":" + (body + bytes((-sum(body) & 0xFF,))).hex().upper().encode() + b"\r\n"


class AsciiDecoder(SerialDecoder):
    """ASCII frames, either direction: a colon, hexadecimal digits with the LRC at the end, CR LF."""

    START = b":"

    def _encode(self, frame: Frame) -> bytes:
        return encode_ascii(frame)

    def _attempt_frame(self, buffer: bytes, start: int) -> Attempt[Frame]:
        run = _HEX.match(buffer, start + 1, start + ASCII_CHARS_MAX - 1)
        assert run is not None
        end = run.end()
        if buffer[end : end + 2] != b"\r\n":
            return INCOMPLETE if b"\r\n".startswith(buffer[end : end + 2]) and end - start < 512 else None
        if (end - start - 1) % 2 or end - start - 1 < 6:
            return None
        body = bytes.fromhex(buffer[start + 1 : end].decode())
        if sum(body) & 0xFF:
            return None
        return Frame(0, body[0], body[1:-1]), end + 2
