"""What every framed byte stream shares: find frames between noise, and say what could not be decoded.

A decoder is fed whatever arrives. The events depend on the bytes alone, never on how they were cut into chunks.
"""

from collections.abc import Sequence
from enum import Enum
from typing import ClassVar, Final, Generic, Literal, TypeAlias, TypeVar

import msgspec

# Noise is handed out in pieces of at most this size, so that a babbling line cannot fill the memory.
GARBAGE_BYTES_MAX = 256

T = TypeVar("T")


class FrameError(Exception):
    """The peer sent bytes that are not what the protocol allows. ``raw`` holds them, undecoded."""

    def __init__(self, message: str, *, raw: bytes = b"") -> None:
        super().__init__(f"{message} in {raw.hex(' ')}" if raw else message)
        self.raw = raw


class MeterError(Exception):
    """The meter understood the request and refused it. ``code`` is its own byte, ``names`` its meaning."""

    def __init__(self, code: int, names: Sequence[str]) -> None:
        super().__init__(f"the meter refused: {', '.join(names)} ({code:#04x})")
        self.code = code
        self.names = tuple(names)


class Garbage(msgspec.Struct, frozen=True):
    """Bytes skipped while looking for a frame."""

    raw: bytes


class _Attempt(Enum):
    INCOMPLETE = "the bytes so far can begin a frame"


INCOMPLETE: Final = _Attempt.INCOMPLETE
# A frame, or what a decoder names instead, and where it ends. None: no frame starts here.
Attempt: TypeAlias = tuple[T | Garbage, int] | Literal[_Attempt.INCOMPLETE] | None


class StreamDecoder(Generic[T]):
    """Frames and garbage from a byte stream.

    A candidate that fails is given up one byte after its start, because the frame may begin inside it. What is kept
    never outgrows one frame plus what was fed.
    """

    START: ClassVar = b""  # the byte that begins every frame; empty where none does
    FILLER: ClassVar = b""  # bytes that may stand before a frame and are not garbage

    def __init__(self) -> None:
        self._rest = b""
        self._skipped = bytearray()

    def _attempt(self, buffer: bytes, start: int) -> Attempt[T]:
        """The frame that begins at ``start``, judged by its own length field."""
        raise NotImplementedError

    def flush(self) -> list[T | Garbage]:
        """The line fell silent, so an incomplete candidate is no frame: what is inside it, and the rest as garbage."""
        events = self.feed(b"", final=True)
        if self._skipped:
            events += self._take_garbage()
        return events

    def feed(self, chunk: bytes, *, final: bool = False) -> list[T | Garbage]:
        """``final``: no byte follows, so what is incomplete is given up."""
        buffer = self._rest + chunk
        events: list[T | Garbage] = []
        at, end = 0, len(buffer)
        while at < end:
            start = buffer.find(self.START, at)
            attempt = self._attempt(buffer, start) if start >= 0 else None
            if attempt.__class__ is tuple:
                # Filler right before a frame leaves no trace; behind garbage it may belong to that.
                if self._skipped or (at < start and buffer[at:start].strip(self.FILLER)):
                    self._skip(buffer[at:start], events)
                    events += self._take_garbage()
                event, at = attempt
                events.append(event)
            elif attempt is INCOMPLETE and not final:
                self._skip(buffer[at:start], events)
                self._rest = buffer[start:]
                return events
            else:
                upto = start + 1 if start >= 0 else end
                self._skip(buffer[at:upto], events)
                at = upto
        self._rest = b""
        return events

    def _skip(self, raw: bytes, events: list[T | Garbage]) -> None:
        # Cut at fixed counts, so that the pieces do not depend on the chunks.
        at = 0
        while at < len(raw):
            piece = raw[at : at + GARBAGE_BYTES_MAX - len(self._skipped)]
            self._skipped += piece
            at += len(piece)
            if len(self._skipped) == GARBAGE_BYTES_MAX:
                events += self._take_garbage()

    def _take_garbage(self) -> list[Garbage]:
        raw = bytes(self._skipped).rstrip(self.FILLER) if self.FILLER else bytes(self._skipped)
        self._skipped.clear()
        return [Garbage(raw)] if raw else []
