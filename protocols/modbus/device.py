"""Function 43/14, read device identification: who made a meter and what it is.

Source: MODBUS Application Protocol V1.1b3 §6.21. An object is at most 244 bytes long, so that one fits a PDU; longer
lists come in several replies ("stream access"), a single object by "individual access".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from protocols.framing import FrameError
from protocols.modbus.pdu import PDU_BYTES_MAX, Fault, Function, check_accepted, encode_exception

_MEI = 0x0E
_HEAD_BYTES = 7


class Access(IntEnum):
    """How much is asked for; as a conformity level, 80H is added where single objects can be asked for."""

    BASIC = 1
    REGULAR = 2
    EXTENDED = 3
    ONE = 4


class Object(IntEnum):
    VENDOR_NAME = 0
    PRODUCT_CODE = 1
    REVISION = 2
    VENDOR_URL = 3
    PRODUCT_NAME = 4
    MODEL_NAME = 5
    APPLICATION_NAME = 6


_LAST_OBJECT = {Access.BASIC: Object.REVISION.value, Access.REGULAR: 0x7F, Access.EXTENDED: 0xFF}


@dataclass(frozen=True, slots=True)
class Identification:
    """One reply. ``next_object``: where to ask on, None when this was all."""

    conformity: int
    objects: Mapping[int, bytes]
    next_object: int | None = None


def encode_identify(access: Access = Access.BASIC, first: int = 0) -> bytes:
    if not 0 <= first <= 0xFF:
        raise ValueError(f"identify: object 0 to 255 expected, got {first}")
    return bytes((Function.ENCAPSULATED, _MEI, access, first))


def decode_identify(pdu: bytes) -> tuple[Access, int]:
    """(access, first object) of a request. Raises FrameError."""
    if len(pdu) != 4 or pdu[1] != _MEI or not 1 <= pdu[2] <= Access.ONE:
        raise FrameError("identify: 2B 0E, access 1 to 4 and an object expected", raw=pdu)
    return Access(pdu[2]), pdu[3]


def encode_identify_reply(access: Access, first: int, objects: Mapping[int, bytes]) -> bytes:
    """The reply of a meter that has ``objects``, among them the basic three; an exception for one it has not.

    In a stream an unknown ``first`` means from the beginning (§6.21). Raises ValueError for an object that is too long.
    """
    if access is Access.ONE:
        if first not in objects:
            return encode_exception(Function.ENCAPSULATED, Fault.ILLEGAL_DATA_ADDRESS)
        wanted = [first]
    else:
        start = first if first in objects else 0
        wanted = [number for number in sorted(objects) if start <= number <= _LAST_OBJECT[access]]
    level = Access.EXTENDED if max(objects) > 0x7F else Access.REGULAR if max(objects) > 2 else Access.BASIC
    body, count, more = b"", 0, None
    for number in wanted:
        part = bytes((number, len(objects[number]))) + objects[number]
        if len(part) > PDU_BYTES_MAX - _HEAD_BYTES:
            raise ValueError(f"object {number}: at most {PDU_BYTES_MAX - _HEAD_BYTES - 2} bytes fit")
        if _HEAD_BYTES + len(body) + len(part) > PDU_BYTES_MAX:
            more = number
            break
        body, count = body + part, count + 1
    follows = (0, 0) if more is None else (0xFF, more)
    return bytes((Function.ENCAPSULATED, _MEI, access, 0x80 | level, *follows, count)) + body


def decode_identify_reply(pdu: bytes) -> Identification:
    """Raises MeterError for an exception, FrameError where lengths disagree or the list cannot go on."""
    check_accepted(pdu)
    if len(pdu) < _HEAD_BYTES or pdu[0] != Function.ENCAPSULATED or pdu[1] != _MEI:
        raise FrameError("identify reply: 2B 0E expected", raw=pdu)
    objects: dict[int, bytes] = {}
    at = _HEAD_BYTES
    for _ in range(pdu[6]):
        if len(pdu) < at + 2 or len(pdu) < at + 2 + pdu[at + 1]:
            raise FrameError("identify reply: an object ends after the frame", raw=pdu)
        objects[pdu[at]] = pdu[at + 2 : at + 2 + pdu[at + 1]]
        at += 2 + pdu[at + 1]
    if at != len(pdu):
        raise FrameError("identify reply: bytes after the last object", raw=pdu)
    if pdu[4] == 0:
        return Identification(pdu[3], objects)
    if not objects or pdu[5] <= max(objects):
        raise FrameError("identify reply: it would begin again", raw=pdu)  # or a client would ask for ever
    return Identification(pdu[3], objects, pdu[5])
