"""Requests of DL/T 645-1997. Replies, refusals and what counts as an answer are those of ``services``.

Two bytes of data identifier, no operator, no SEQ. The layouts of 04, 0A, 0F and 10 are likely, not verified: the facts
at hand name the functions and few frames. Its speed words are not at hand, so ``change_speed`` takes the word itself.
"""

from protocols.dlt645.frame import WILDCARD, WRITE_BYTES_MAX, Frame, Function1997
from protocols.dlt645.services import encode_address, encode_password
from protocols.framing import FrameError


def encode_di(di: int) -> bytes:
    return di.to_bytes(2, "little")


def read(address: str, di: int, extra: bytes = b"") -> Frame:
    return Frame(address, Function1997.READ, encode_di(di) + extra)


def read_follow_up(address: str, di: int) -> Frame:
    return Frame(address, Function1997.READ_FOLLOW_UP, encode_di(di))


def decode_read(request: Frame) -> tuple[int, bytes]:
    """(data identifier, what follows it) of a read or follow-up request. Raises FrameError."""
    if len(request.data) < 2:
        raise FrameError("read: data identifier expected", raw=request.data)
    return int.from_bytes(request.data[:2], "little"), request.data[2:]


def write(address: str, di: int, password: str, data: bytes) -> Frame:
    """``password``: 8 digits, the level first."""
    body = encode_di(di) + encode_password(password) + data
    if len(body) > WRITE_BYTES_MAX:
        raise ValueError(f"data: {len(body)} bytes, at most {WRITE_BYTES_MAX} may be written")
    return Frame(address, Function1997.WRITE, body)


def decode_write(request: Frame) -> tuple[int, str, bytes]:
    """(data identifier, password, data). Raises FrameError, without the bytes: they hold the password."""
    if len(request.data) < 6:
        raise FrameError(f"write: 6 bytes at least expected, got {len(request.data)}")
    return int.from_bytes(request.data[:2], "little"), decode_password(request.data[2:6]), request.data[6:]


def decode_password(raw: bytes) -> str:
    return raw[:1].hex() + raw[:0:-1].hex()


def write_address(new: str, address: str = WILDCARD) -> Frame:
    return Frame(address, Function1997.WRITE_ADDRESS, encode_address(new))


def change_speed(address: str, word: int) -> Frame:
    return Frame(address, Function1997.CHANGE_SPEED, bytes((word,)))


def change_password(address: str, old: str, new: str) -> Frame:
    return Frame(address, Function1997.CHANGE_PASSWORD, encode_password(old) + encode_password(new))


def decode_change_password(request: Frame) -> tuple[str, str]:
    if len(request.data) != 8:
        raise FrameError(f"change password: 8 bytes expected, got {len(request.data)}")
    return decode_password(request.data[:4]), decode_password(request.data[4:])


def demand_reset(address: str, password: str) -> Frame:
    return Frame(address, Function1997.DEMAND_RESET, encode_password(password))
