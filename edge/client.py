"""One question at a time on one line: turns, timeouts, the quarantine after them, and backoff of silent meters.

A late reply read as the answer to the next question books a wrong value. So an answer must agree with its request in
all the protocol lets it say, and after a timeout the line rests until the late answer has come or cannot come any more.
"""

import asyncio
import heapq
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from edge.link import LinkError, TcpLink
from edge.model import Line, Priority, TcpEndpoint
from protocols import dlt645, modbus
from protocols.framing import Garbage, StreamDecoder

logger = logging.getLogger(__name__)

BACKOFF_S = 1.0
BACKOFF_MAX_S = 60.0
# This many timeouts in a row without one byte: the connection is half-open, or the endpoint hangs.
DEAF_TIMEOUTS_MAX = 3

F = TypeVar("F")


class SilentError(Exception):
    """No answer in time."""


class BackingOffError(Exception):
    """The meter was silent, and it is too early to ask it again."""


@dataclass(frozen=True, slots=True)
class Codec(Generic[F]):
    """``names_request``: an answer says which request it belongs to, so a late one cannot be mistaken."""

    encode: Callable[[F], bytes]
    decoder: Callable[[], StreamDecoder[F]]
    is_answer: Callable[[F, F], bool]
    names_request: bool


DLT645 = Codec(dlt645.encode, dlt645.Decoder, dlt645.is_answer, names_request=False)
MODBUS_TCP = Codec(modbus.encode, modbus.TcpDecoder, modbus.is_answer, names_request=True)


class Turns:
    """A lock that goes to the most urgent waiter, and among equals to the first."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @asynccontextmanager
    async def turn(self, priority: Priority) -> AsyncIterator[None]:
        await self._take(priority)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, priority: Priority) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # the turn came together with the cancellation
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            _, _, waiter = heapq.heappop(self._waiting)
            if not waiter.done():
                waiter.set_result(None)
                return
        self._is_taken = False


@dataclass(slots=True)
class _Backoff:
    wait_s: float
    until_s: float


class Client(Generic[F]):
    """The only one that talks on ``line``. Deadlines are in the event loop's real seconds."""

    def __init__(self, line: Line, codec: Codec[F]) -> None:
        self._line = line
        self._codec = codec
        self._decoder = codec.decoder()
        assert isinstance(line.endpoint, TcpEndpoint)
        self._link = TcpLink(
            line.name, line.endpoint.host, line.endpoint.port, on_chunk=self._on_chunk, on_lost=self._on_lost
        )
        self._turns = Turns()
        self._backoffs: dict[str, _Backoff] = {}
        self._request: F | None = None
        self._answer: asyncio.Future[F] | None = None
        self._rested = asyncio.Event()  # cleared during the quarantine after a timeout
        self._rested.set()
        self._rest_timer: asyncio.TimerHandle | None = None
        self._deaf_timeouts = 0

    async def exchange(self, request: F, *, meter: str, priority: Priority) -> F:
        """The answer to ``request``. Raises SilentError, BackingOffError or LinkError; asks once, never again."""
        async with self._turns.turn(priority):
            loop = asyncio.get_running_loop()
            backoff = self._backoffs.get(meter)
            if backoff is not None and loop.time() < backoff.until_s:
                raise BackingOffError(f"asked again in {backoff.until_s - loop.time():.1f} s")
            await self._rested.wait()
            await self._link.connect()
            self._request, self._answer = request, loop.create_future()
            timer = loop.call_later(self._line.read_timeout_s, self._on_timeout, self._answer)
            try:
                self._link.write(self._codec.encode(request))
                answer = await self._answer
            except SilentError:
                wait_s = BACKOFF_S if backoff is None else min(2 * backoff.wait_s, BACKOFF_MAX_S)
                self._backoffs[meter] = _Backoff(wait_s, loop.time() + wait_s)
                self._rest()
                raise
            except (asyncio.CancelledError, LinkError):
                self._rest()  # the answer is still under way, and a serial server may bring it to the next connection
                raise
            finally:
                timer.cancel()
                self._answer = None
            if backoff is not None:
                del self._backoffs[meter]
            return answer

    def close(self) -> None:
        self._link.close()

    def _on_chunk(self, chunk: bytes) -> None:
        self._deaf_timeouts = 0
        for event in self._decoder.feed(chunk):
            self._on_event(event)

    def _on_event(self, event: F | Garbage) -> None:
        if isinstance(event, Garbage):
            logger.debug("garbage line=%s raw=%s", self._line.name, event.raw.hex(" "))
        elif self._request is None or not self._codec.is_answer(self._request, event):
            logger.debug("not an answer line=%s frame=%s", self._line.name, event)
        elif self._answer is not None:
            if not self._answer.done():
                self._answer.set_result(event)
            self._request = None
        else:
            logger.debug("late answer line=%s frame=%s", self._line.name, event)
            self._end_rest()

    def _on_timeout(self, answer: asyncio.Future[F]) -> None:
        # The start of a frame that never ends may hold the answer back.
        for event in self._decoder.flush():
            self._on_event(event)
        if answer.done():
            return
        answer.set_exception(SilentError(f"no answer in {self._line.read_timeout_s} s"))
        self._deaf_timeouts += 1
        if self._deaf_timeouts >= DEAF_TIMEOUTS_MAX:
            self._deaf_timeouts = 0
            self._link.abort()

    def _rest(self) -> None:
        """Ask nothing until the late answer has come, or is too late to come at all."""
        if not self._codec.names_request:
            self._rested.clear()
            self._rest_timer = asyncio.get_running_loop().call_later(self._line.quarantine_s, self._end_rest)

    def _end_rest(self) -> None:
        self._request = None
        self._rested.set()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _on_lost(self) -> None:
        self._decoder = self._codec.decoder()
        self._deaf_timeouts = 0
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LinkError(f"{self._line.endpoint}: connection lost"))
