"""Answers too long for one frame: the client asks for the rest with 12H (1997: 02H), the meter cuts them."""

from protocols.dlt645.frame import BROADCAST, DATA_BYTES_MAX, Frame, Function, Function1997
from protocols.dlt645.services import is_answer, raise_refusal
from protocols.framing import FrameError

PARTS_MAX = 256  # SEQ is one byte, and the first part has none: at most 50 KB


class LongRead:
    """One read, whatever number of frames it takes.

    ``request`` is what to send next. After each answer ``take`` returns the whole data, or None when ``request`` has
    become the question for the next part. 2007 counts the parts (SEQ from 1); 1997 just repeats the identifier, so
    that there a repeated part cannot be told from the next.
    """

    def __init__(self, request: Frame) -> None:
        """``request``: a read, see ``read``. Raises ValueError for anything else."""
        if request.function not in (Function.READ, Function1997.READ) or not request.di_bytes:
            raise ValueError("a read of a data identifier expected")
        self.request = request
        self._di = request.data[: request.di_bytes]
        self._parts: list[bytes] = []

    def take(self, answer: Frame) -> bytes | None:
        """Raises ValueError when it does not answer ``request`` (see ``is_answer``), MeterError when the meter refuses,
        FrameError after too many parts."""
        if not is_answer(self.request, answer):
            raise ValueError("not the answer to the request")
        raise_refusal(answer)
        counted = self.request.function == Function.READ_FOLLOW_UP
        self._parts.append(answer.data[len(self._di) : -1 if counted else None])
        if not answer.has_more:
            return b"".join(self._parts)
        if len(self._parts) == PARTS_MAX:
            raise FrameError(f"reply: more than {PARTS_MAX} parts")
        # Whoever answered the wildcard is asked for the rest, and nobody else.
        address = self.request.address if set(answer.address) & set("A") else answer.address
        if self.request.edition == "1997":
            self.request = Frame(address, Function1997.READ_FOLLOW_UP, self._di)
        else:
            self.request = Frame(address, Function.READ_FOLLOW_UP, self._di + bytes((len(self._parts),)))
        return None


def split_reply(request: Frame, address: str, data: bytes, *, bytes_max: int = DATA_BYTES_MAX) -> list[Frame]:
    """The meter's side: its answers to ``request`` (a read) and to the follow-ups, in order. Raises ValueError.

    ``bytes_max`` bounds the data field of a frame. In 2007 part n answers SEQ n; a meter that keeps the list is asked
    for part n again when its answer was lost.
    """
    if request.address == BROADCAST or not request.di_bytes:
        raise ValueError("a read of a data identifier expected, not broadcast")
    di = request.data[: request.di_bytes]
    room = bytes_max - len(di) - 1
    if room < 1:
        raise ValueError(f"bytes_max: {len(di) + 2} at least expected, got {bytes_max}")
    # What fits without SEQ goes whole.
    pieces = [data] if len(data) <= room + 1 else [data[at : at + room] for at in range(0, len(data), room)]
    if len(pieces) > PARTS_MAX:
        raise ValueError(f"data: {len(data)} bytes, at most {PARTS_MAX} parts allowed")
    is_1997 = request.edition == "1997"
    follow_up = Function1997.READ_FOLLOW_UP if is_1997 else Function.READ_FOLLOW_UP
    frames = []
    for number, piece in enumerate(pieces):
        function = follow_up if number else request.function
        more = 0x20 if number < len(pieces) - 1 else 0
        seq = bytes((number,)) if number and not is_1997 else b""
        frames.append(Frame(address, function | 0x80 | more, di + piece + seq))
    return frames
