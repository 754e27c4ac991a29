"""DL/T 645-2007, both sides: requests, replies, what counts as an answer, and what a request says.

Times take the meter's ``zone``, since meters keep local time; instants are aware. What ``PROTOCOL.md`` beside the facts
marks with † is likely, not verified: the data of 18H–1BH, 1DH and 03H, and relay actions other than trip and close.
"""

import re
from dataclasses import dataclass
from datetime import datetime, tzinfo
from enum import IntEnum
from typing import Final

from protocols.dlt645.bcd import decode_time, encode_time
from protocols.dlt645.frame import (
    BROADCAST,
    WILDCARD,
    WRITE_BYTES_MAX,
    Fault,
    Fault1997,
    Frame,
    Function,
    Function1997,
    address_matches,
    fault_names,
)
from protocols.framing import FrameError, MeterError

DATE: Final = 0x04000101
TIME: Final = 0x04000102
EVERY_EVENT: Final = 0xFFFFFFFF
SPEED_WORDS: Final = {600: 0x02, 1200: 0x04, 2400: 0x08, 4800: 0x10, 9600: 0x20, 19200: 0x40}
FREEZE_WILDCARD: Final = "99"
# Almost every frame is one of these. As plain integers they compare three times faster than the enumeration.
_READ = int(Function.READ)
_READ_REPLY = _READ | 0x80


def encode_di(di: int) -> bytes:
    return di.to_bytes(4, "little")


def encode_address(address: str) -> bytes:
    return bytes.fromhex(address)[::-1]


def decode_address(data: bytes) -> str:
    """The meter's own address in the reply to ``read_address``; the new one in ``write_address``. Raises FrameError."""
    if len(data) != 6:
        raise FrameError("address: 6 bytes expected", raw=data)
    return data[::-1].hex().upper()


# ---- who is asking ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Credentials:
    """``password``: 8 digits, the level first (02 for relay and clear, 04 for write and demand reset†).

    Levels 98 and 99 mean cipher or MAC by an ESAM: a plain password fails there.
    """

    password: str
    operator: str = "00000000"

    def __repr__(self) -> str:  # a password is a secret
        return f"Credentials(level={self.password[:2]!r}, operator={self.operator!r})"

    @property
    def level(self) -> str:
        return self.password[:2]


def encode_password(password: str) -> bytes:
    """PA P0 P1 P2: low byte first after the level."""
    _digits("password", password)
    secret = bytes.fromhex(password)
    return secret[:1] + secret[:0:-1]


def encode_credentials(who: Credentials) -> bytes:
    """PA P0 P1 P2 C0..C3."""
    _digits("operator", who.operator)
    return encode_password(who.password) + bytes.fromhex(who.operator)[::-1]


def decode_credentials(raw: bytes) -> Credentials:
    """Inverse of ``encode_credentials``. Raises FrameError, without the bytes: they hold the password."""
    if len(raw) != 8:
        raise FrameError(f"password and operator: 8 bytes expected, got {len(raw)}")
    return Credentials(raw[:1].hex() + raw[3:0:-1].hex(), raw[7:3:-1].hex())


def _digits(name: str, digits: str) -> None:
    if not re.fullmatch(r"[0-9]{8}", digits):
        raise ValueError(f"{name}: 8 digits expected")  # never the digits: a password is a secret


# ---- requests --------------------------------------------------------------------------------------------------------


def read(address: str, di: int, extra: bytes = b"") -> Frame:
    return Frame(address, _READ, encode_di(di) + extra)


def decode_read(request: Frame) -> tuple[int, bytes]:
    """(data identifier, what follows it) of a read request. Raises FrameError."""
    if len(request.data) < 4:
        raise FrameError("read: data identifier expected", raw=request.data)
    return int.from_bytes(request.data[:4], "little"), request.data[4:]


def read_address() -> Frame:
    return Frame(WILDCARD, Function.READ_ADDRESS)


def write_address(new: str, address: str = WILDCARD) -> Frame:
    """Only with one meter on the line: to the wildcard every meter takes the address."""
    if not re.fullmatch(r"[0-9]{12}", new):
        raise ValueError(f'address: 12 digits expected, got "{new}"')
    return Frame(address, Function.WRITE_ADDRESS, encode_address(new))


def broadcast_time(moment: datetime, zone: tzinfo) -> Frame:
    """Every meter on the line sets its clock, at most 5 minutes and once a day†; none answers."""
    return Frame(BROADCAST, Function.BROADCAST_TIME, encode_time(moment, "SMHdmy", zone))


def decode_broadcast_time(request: Frame, zone: tzinfo) -> datetime:
    if len(request.data) != 6:
        raise FrameError("broadcast time: 6 bytes expected", raw=request.data)
    return decode_time(request.data, "SMHdmy", zone)


def decode_clock(date: bytes, time: bytes, zone: tzinfo) -> datetime:
    """The meter's clock from the data of ``DATE`` (WW DD MM YY) and of ``TIME`` (ss mm hh). Raises FrameError."""
    if (len(date), len(time)) != (4, 3):
        raise FrameError("clock: 4 and 3 bytes expected", raw=date + time)
    return decode_time(time + date[1:], "SMHdmy", zone)


def write(address: str, di: int, who: Credentials, data: bytes) -> Frame:
    body = encode_di(di) + encode_credentials(who) + data
    if len(body) > WRITE_BYTES_MAX:
        raise ValueError(f"data: {len(body)} bytes, at most {WRITE_BYTES_MAX} may be written")
    return Frame(address, Function.WRITE, body)


def decode_write(request: Frame) -> tuple[int, Credentials, bytes]:
    if len(request.data) < 12:
        raise FrameError(f"write: 12 bytes at least expected, got {len(request.data)}")
    return int.from_bytes(request.data[:4], "little"), decode_credentials(request.data[4:12]), request.data[12:]


def freeze(
    address: str = BROADCAST,
    *,
    month: str = FREEZE_WILDCARD,
    day: str = FREEZE_WILDCARD,
    hour: str = FREEZE_WILDCARD,
    minute: str = FREEZE_WILDCARD,
) -> Frame:
    """Two digits each; 99 is "every", all four are "at once". To the broadcast address none answers."""
    return Frame(address, Function.FREEZE, bytes.fromhex(minute + hour + day + month))


def decode_freeze(request: Frame) -> tuple[str, str, str, str]:
    """(month, day, hour, minute), 99 for "every"."""
    if len(request.data) != 4 or not request.data.hex().isdecimal():
        raise FrameError("freeze: mm hh DD MM expected", raw=request.data)
    minute, hour, day, month = (f"{byte:02x}" for byte in request.data)
    return month, day, hour, minute


def change_speed(address: str, baud: int) -> Frame:
    """The meter echoes the word at the old speed, then switches."""
    if baud not in SPEED_WORDS:
        raise ValueError(f"baud: one of {', '.join(map(str, SPEED_WORDS))} expected, got {baud}")
    return Frame(address, Function.CHANGE_SPEED, bytes((SPEED_WORDS[baud],)))


def decode_speed(data: bytes) -> int | None:
    """Bits per second of a speed word; None for a word that names none or several."""
    return next((baud for baud, word in SPEED_WORDS.items() if data == bytes((word,))), None)


def change_password(address: str, di: int, old: str, new: str) -> Frame:
    """``di``: 04000C01 to 04000C0A, the level to change. Passwords are 8 digits, the level first."""
    return Frame(address, Function.CHANGE_PASSWORD, encode_di(di) + encode_password(old) + encode_password(new))


def decode_change_password(request: Frame) -> tuple[int, str, str]:
    if len(request.data) != 12:
        raise FrameError(f"change password: 12 bytes expected, got {len(request.data)}")
    old, new = (decode_credentials(request.data[at : at + 4] + bytes(4)).password for at in (4, 8))
    return int.from_bytes(request.data[:4], "little"), old, new


def demand_reset(address: str, who: Credentials) -> Frame:
    return Frame(address, Function.DEMAND_RESET, encode_credentials(who))


def meter_clear(address: str, who: Credentials) -> Frame:
    return Frame(address, Function.METER_CLEAR, encode_credentials(who))


def event_clear(address: str, who: Credentials, di: int = EVERY_EVENT) -> Frame:
    return Frame(address, Function.EVENT_CLEAR, encode_credentials(who) + encode_di(di))


def decode_clear(request: Frame) -> tuple[Credentials, int | None]:
    """Who asks for a demand reset, meter clear or event clear; of the last also the event. Raises FrameError."""
    want = 12 if request.function == Function.EVENT_CLEAR else 8
    if len(request.data) != want:
        raise FrameError(f"clear: {want} bytes expected, got {len(request.data)}")
    return decode_credentials(request.data[:8]), int.from_bytes(request.data[8:], "little") if want == 12 else None


class Output(IntEnum):
    """What the multifunction terminal puts out."""

    SECOND_PULSE = 0
    DEMAND_PERIOD = 1
    SLOT_SWITCH = 2


def set_output(address: str, output: Output) -> Frame:
    return Frame(address, Function.MULTIFUNCTION_OUTPUT, bytes((output,)))


def security(address: str, di: int, operator: str, data: bytes) -> Frame:
    """03H: ``di`` 07xxxxxx; what ``data`` holds is between the key system and the meter's ESAM."""
    if di >> 24 != 0x07:
        raise ValueError(f"{di:08X}: 07xxxxxx expected")
    _digits("operator", operator)
    return Frame(address, Function.SECURITY, encode_di(di) + bytes.fromhex(operator)[::-1] + data)


# ---- relay -----------------------------------------------------------------------------------------------------------


class RelayAction(IntEnum):
    """N1 of a relay command."""

    TRIP = 0x1A
    CLOSE_PERMITTED = 0x1B
    CLOSE = 0x1C
    ALARM_ON = 0x2A
    ALARM_OFF = 0x2B
    POWER_KEEP_ON = 0x3A
    POWER_KEEP_OFF = 0x3B


@dataclass(frozen=True, slots=True)
class RelayOrder:
    """``password``: 8 digits, the level (02 for relays) first. The meter refuses an order past ``expires_at``."""

    action: RelayAction
    password: str
    operator: str
    expires_at: datetime


def relay(address: str, order: RelayOrder, zone: tzinfo) -> Frame:
    head = encode_credentials(Credentials(order.password, order.operator))
    expiry = encode_time(order.expires_at, "SMHdmy", zone)
    return Frame(address, Function.RELAY, head + bytes((order.action, 0)) + expiry)


def decode_relay(request: Frame, zone: tzinfo) -> RelayOrder:
    """Raises FrameError for another length, an unknown action or a time no calendar has (zero is none)."""
    data = request.data
    if len(data) != 16:
        raise FrameError(f"relay: 16 bytes expected, got {len(data)}")
    try:
        action = RelayAction(data[8])
    except ValueError as error:
        raise FrameError(f"relay: action {data[8]:02X} is not known") from error
    who = decode_credentials(data[:8])
    return RelayOrder(action, who.password, who.operator, expires_at=decode_time(data[10:], "SMHdmy", zone))


# ---- replies ---------------------------------------------------------------------------------------------------------

# These repeat the word they were sent.
_ECHOED = (Function.CHANGE_SPEED, Function.MULTIFUNCTION_OUTPUT)
_FOLLOW_UPS = (Function.READ_FOLLOW_UP, Function1997.READ_FOLLOW_UP)


def reply(request: Frame, address: str, data: bytes = b"") -> Frame:
    """The meter's normal answer, whole; after a read ``data`` follows the repeated data identifier."""
    reading = request.function in (Function.READ, Function1997.READ)
    return Frame(address, request.function | 0x80, (request.data[: request.di_bytes] if reading else b"") + data)


def refuse(request: Frame, address: str, fault: Fault | Fault1997) -> Frame:
    return Frame(address, request.function | 0xC0, bytes((fault,)))


def is_answer(request: Frame, frame: Frame) -> bool:
    """Whether ``frame`` answers ``request``: address, function and data identifier agree, and what else it repeats.

    The echo of one's own request, another meter's reply and a late reply about another item do not.
    """
    if request.control == _READ and frame.control == _READ_REPLY and frame.address == request.address:
        return frame.data[:4] == request.data[:4]  # by far the most; the rules below say the same of it
    if not frame.is_reply or frame.function != request.function:
        return False
    # Some meters answer a wildcard with the wildcard, which address_matches also takes.
    if not address_matches(request.address, frame.address):
        takes_new = request.function in (Function.WRITE_ADDRESS, Function1997.WRITE_ADDRESS)
        if not takes_new or request.data != encode_address(frame.address):
            return False
    if frame.is_abnormal:
        return True
    if request.function in _ECHOED:
        return frame.data == request.data
    if request.function == Function.CHANGE_PASSWORD:
        return frame.data == request.data[8:12]
    if request.function == Function.READ_FOLLOW_UP and frame.data[-1:] != request.data[4:5]:
        return False
    named = request.di_bytes if request.function in (*_FOLLOW_UPS, Function.READ, Function1997.READ) else 0
    return frame.data[:named] == request.data[:named]


def decode_reply(request: Frame, answer: Frame) -> bytes:
    """The data of an answer, after the repeated data identifier if there is one.

    Raises MeterError with the named error bits when the meter refused, and FrameError when more frames follow, since
    part of an item is not the item: ``LongRead`` asks for the rest.
    """
    if answer.control == _READ_REPLY and request.control == _READ:
        return answer.data[4:] if len(request.data) >= 4 else answer.data
    raise_refusal(answer)
    if answer.has_more:
        raise FrameError("reply: more frames follow, which nobody asks for yet", raw=answer.data)
    return answer.data[request.di_bytes if request.function in (Function.READ, Function1997.READ) else 0 :]


def raise_refusal(answer: Frame) -> None:
    """Raises MeterError when ``answer`` is abnormal."""
    if answer.is_abnormal:
        raise MeterError(answer.data[0] if answer.data else 0, fault_names(answer) or ("no reason given",))
