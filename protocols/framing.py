"""What every framed byte stream shares: find frames between noise, and say what could not be decoded.

A decoder is fed whatever arrives. The events depend on the bytes alone, never on how they were cut into chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

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


@dataclass(frozen=True, slots=True)
class Garbage:
    """Bytes skipped while looking for a frame."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Match(Generic[T]):
    """A frame that ends before ``end``."""

    frame: T | Garbage  # a decoder may name what it skips
    end: int


class Incomplete:
    """The bytes so far can begin a frame."""


INCOMPLETE = Incomplete()
Attempt: TypeAlias = Match[T] | Incomplete | None  # None: no frame starts here


class StreamDecoder(Generic[T]):
    """Frames and garbage from a byte stream.

    A candidate that fails is given up one byte after its start, because the frame may begin inside it. The buffer
    never outgrows one frame plus what was fed.
    """

    FILLER = b""  # bytes that may stand before a frame and are not garbage

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipped = bytearray()

    def _attempt(self, buffer: bytearray, start: int) -> Attempt[T]:
        """The frame that begins at ``start``, judged by its own length field."""
        raise NotImplementedError

    def _next_start(self, buffer: bytearray, start: int) -> int:
        """The first place from ``start`` on where a frame may begin, or the end of the buffer."""
        return start

    def feed(self, chunk: bytes) -> list[T | Garbage]:
        self._buffer += chunk
        return self._scan(final=False)

    def flush(self) -> list[T | Garbage]:
        """The line fell silent, so an incomplete candidate is no frame: what is inside it, and the rest as garbage."""
        events = self._scan(final=True)
        if self._skipped:
            events += self._take_garbage()
        return events

    def _scan(self, *, final: bool) -> list[T | Garbage]:
        events: list[T | Garbage] = []
        buffer, at = self._buffer, 0
        while at < len(buffer):
            start = self._next_start(buffer, at)
            self._skip(buffer[at:start], events)
            at = start
            if at == len(buffer):
                break
            match self._attempt(buffer, at):
                case Match(frame, end):
                    if self._skipped:
                        events += self._take_garbage()
                    events.append(frame)
                    at = end
                case Incomplete() if not final:
                    break
                case _:
                    self._skip(buffer[at : at + 1], events)
                    at += 1
        del buffer[:at]
        return events

    def _skip(self, raw: bytearray, events: list[T | Garbage]) -> None:
        # Cut at fixed counts, so that the pieces do not depend on the chunks.
        while raw:
            room = GARBAGE_BYTES_MAX - len(self._skipped)
            self._skipped += raw[:room]
            raw = raw[room:]
            if len(self._skipped) == GARBAGE_BYTES_MAX:
                events += self._take_garbage()

    def _take_garbage(self) -> list[Garbage]:
        raw = bytes(self._skipped).rstrip(self.FILLER) if self.FILLER else bytes(self._skipped)
        self._skipped.clear()
        return [Garbage(raw)] if raw else []
