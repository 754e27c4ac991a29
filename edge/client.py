"""One question at a time on one line: turns, deadlines, the quarantine after a timeout, and backoff of silent meters.

A late reply read as the answer to the next question books a wrong value. So an answer must agree with its request in
all the protocol lets it say, and after a timeout the line rests until the late answer has come or cannot come any more.
Where the line's speed is known, deadlines and the silence before a request follow from it.
"""

import asyncio
import heapq
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Generic, Literal, TypeVar

from edge.budget import Request, reply_bytes, request_bytes, silence_s
from edge.link import LinkError, link
from edge.model import Line, Priority, Protocol, SerialEndpoint, TapEvent
from protocols import dlt645, modbus
from protocols.framing import Garbage, StreamDecoder

logger = logging.getLogger(__name__)

# A meter that answered before may have lost one frame. One that did not, or falls silent twice, waits this many times
# what its timeout cost the line, doubling: a dead meter takes 2 % of the line, from the start and before it doubles.
BACKOFF_S = 1.0
BACKOFF_COSTS = 50
BACKOFF_MAX_S = 300.0
# This many timeouts in a row without one byte: the connection is half-open, or the endpoint hangs.
DEAF_TIMEOUTS_MAX = 3
LAST_TURNS = 400  # more than a sweep has
# An adapter hands on what it has every 16 ms, and the operating system is not always there at once.
ADAPTER_S: Final = 0.03
# After a broadcast the meters act on it (V1.02 §2.4.1: 100 to 200 ms).
BROADCAST_S: Final = 0.2

F = TypeVar("F", bound=Request)


class SilentError(Exception):
    """No answer in time."""


class BackingOffError(Exception):
    """The meter was silent, and it is too early to ask it again."""


@dataclass(frozen=True, slots=True)
class Codec(Generic[F]):
    """``names_request``: an answer says which request it belongs to, so a late one cannot be mistaken.

    ``gap_s``: while bytes come at least this often, an answer is under way, and so is a late one.
    """

    encode: Callable[[F], bytes]
    decoder: Callable[[], StreamDecoder[F]]
    is_answer: Callable[[F, F], bool]
    names_request: bool = False
    gap_s: float = 0.1  # RTU allows no pause; adapters and networks make some


DLT645 = Codec(dlt645.encode, dlt645.Decoder, dlt645.is_answer, gap_s=0.5)
MODBUS_TCP = Codec(modbus.encode, modbus.TcpDecoder, modbus.is_answer, names_request=True)
MODBUS_RTU = Codec(modbus.encode_rtu, lambda: modbus.RtuDecoder(replies_only=True), modbus.is_serial_answer)
MODBUS_ASCII = Codec(modbus.encode_ascii, modbus.AsciiDecoder, modbus.is_serial_answer, gap_s=1.0)  # V1.02 §2.5.2.1


def modbus_codec(protocol: Protocol) -> Codec[modbus.Frame]:
    """Serial lines number no requests: there ``transaction`` is 0."""
    match protocol:
        case "modbus-tcp":
            return MODBUS_TCP
        case "modbus-ascii":
            return MODBUS_ASCII
        case "modbus-rtu" | "modbus-rtu-over-tcp":
            return MODBUS_RTU
    raise ValueError(f"{protocol} is not Modbus")


class Place(IntEnum):
    """Among those of the same priority."""

    FIRST = 0
    IN_ORDER = 1
    LAST = 2  # after all others, but after LAST_TURNS of them at the latest


class Turns:
    """A lock that goes to the most urgent waiter, and among equals to the first."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: list[tuple[Priority, bool, int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @asynccontextmanager
    async def turn(self, priority: Priority, place: Place = Place.IN_ORDER) -> AsyncIterator[None]:
        await self._take(priority, place)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, priority: Priority, place: Place) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        number = next(self._order)
        goes_at = number + LAST_TURNS if place is Place.LAST else number
        heapq.heappush(self._waiting, (priority, place is not Place.FIRST, goes_at, number, waiter))
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # the turn came together with the cancellation
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            *_, waiter = heapq.heappop(self._waiting)
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
        self._link = link(line, on_chunk=self._on_chunk, on_lost=self._on_lost)
        self._turns = Turns()
        self._heard: set[str] = set()  # meters that have answered
        self._backoffs: dict[str, _Backoff] = {}
        self._taps: dict[object, Callable[[TapEvent], None]] = {}
        self._request: F | None = None
        self._answer: asyncio.Future[F] | None = None
        self._deadline_s = self._deadline_max_s = 0.0
        self._strays = 0  # bytes since the request that are no answer
        self._rested = asyncio.Event()  # cleared during the quarantine after a timeout
        self._rested.set()
        self._rest_timer: asyncio.TimerHandle | None = None
        self._rest_max_s = 0.0
        self._spoken_s = 0.0  # when the last byte was on the line, ours or another's
        self._deaf_timeouts = 0

    async def exchange(
        self, request: F | Callable[[], F], *, meter: str, priority: Priority, goes_first: bool = False
    ) -> F:
        """The answer to ``request``. Raises SilentError, BackingOffError or LinkError; asks once, never again.

        A request that says the time, or expires, is a function that makes it when it goes out.
        ``goes_first``: before others of the same priority; a meter that was silent goes after them. Commands and scans
        are asked though the meter backs off: a person waits for them. A scan asks many that are not there, so what it
        asks says nothing about ``meter`` and the connection.
        """
        place = Place.LAST if meter in self._backoffs else Place.FIRST if goes_first else Place.IN_ORDER
        async with self._turns.turn(priority, place):
            loop = asyncio.get_running_loop()
            backoff = self._backoffs.get(meter)
            if backoff is not None and loop.time() < backoff.until_s and priority in (Priority.LIVE, Priority.BACKFILL):
                raise BackingOffError(f"asked again in {backoff.until_s - loop.time():.1f} s")
            await self._ready()
            made = request() if callable(request) else request
            timeout_s = self._timeout_s(made)
            try:
                answer = await self._ask(made, timeout_s)
            except SilentError:
                if priority is not Priority.SCAN:
                    self._back_off(meter, timeout_s)
                    self._count_deaf()
                self._rest()
                raise
            except (asyncio.CancelledError, LinkError):
                self._rest()  # the answer is still under way, and a serial server may bring it to the next connection
                raise
            if priority is not Priority.SCAN:
                self._note_answer(meter)
            return answer

    async def tell(self, request: F | Callable[[], F], *, priority: Priority = Priority.COMMAND) -> None:
        """Send what nobody answers; returns when all have had time to act on it. Raises LinkError."""
        async with self._turns.turn(priority):
            await self._ready()
            self._request = None
            self._write(request() if callable(request) else request)
            await asyncio.sleep(self._spoken_s - asyncio.get_running_loop().time() + BROADCAST_S)

    def tap(self, listener: Callable[[TapEvent], None]) -> Callable[[], None]:
        """Tell ``listener`` of all bytes, until the function it returns is called."""
        key = object()  # two listeners may be equal
        self._taps[key] = listener

        def untap() -> None:
            self._taps.pop(key, None)

        return untap

    def close(self) -> None:
        self._link.close()

    # ---- one question ------------------------------------------------------------------------------------------------

    async def _ready(self) -> None:
        """A connection, and the silence before a request: a meter takes frames without it for one."""
        await self._rested.wait()
        await self._link.connect()
        if self._line.setting is None or self._codec.names_request:
            return
        silence = silence_s(self._line.protocol, self._line.setting)
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self._line.quarantine_s + silence  # a line that babbles is never silent
        while True:
            wait_s = min(self._spoken_s + silence, give_up_s) - loop.time()
            if wait_s <= 0:
                return
            await asyncio.sleep(wait_s)

    def _timeout_s(self, request: F) -> float:
        """The request's time on the line, what the meter may take, and the time of the longest answer."""
        setting, protocol = self._line.setting, self._line.protocol
        if setting is None:
            return self._line.read_timeout_s
        size = request_bytes(protocol, request) + reply_bytes(protocol, request)
        return size * setting.char_s + self._line.read_timeout_s + ADAPTER_S

    async def _ask(self, request: F, timeout_s: float) -> F:
        loop = asyncio.get_running_loop()
        if not self._codec.names_request:
            # The line was silent: what began before is no frame any more, and would hold the answer back.
            for event in self._decoder.flush():
                self._on_event(event)
        self._request, self._answer, self._strays = request, loop.create_future(), 0
        self._deadline_s = loop.time() + timeout_s
        self._deadline_max_s = self._deadline_s + timeout_s
        timer = loop.call_at(self._deadline_s, self._on_deadline, self._answer)
        try:
            self._write(request)
            return await self._answer
        finally:
            timer.cancel()
            self._answer = None

    def _write(self, request: F) -> None:
        raw = self._codec.encode(request)
        if isinstance(self._decoder, modbus.SerialDecoder) and isinstance(request, modbus.Frame):
            self._decoder.sent(request)
        self._link.write(raw)
        now_s = asyncio.get_running_loop().time()
        char_s = self._line.setting.char_s if self._line.setting else 0.0
        self._spoken_s = now_s + len(raw) * char_s
        self._tell("out", now_s, raw)

    def _on_chunk(self, chunk: bytes) -> None:
        now_s = asyncio.get_running_loop().time()
        self._deaf_timeouts = 0
        self._strays += len(chunk)
        self._spoken_s = max(self._spoken_s, now_s)
        # What is under way is not cut off.
        self._deadline_s = min(max(self._deadline_s, now_s + self._codec.gap_s), self._deadline_max_s)
        self._tell("in", now_s, chunk)
        for event in self._decoder.feed(chunk):
            self._on_event(event)

    def _tell(self, direction: Literal["out", "in"], at_s: float, raw: bytes) -> None:
        for listener in tuple(self._taps.values()):
            listener(TapEvent(at_s, direction, raw))

    def _on_event(self, event: F | Garbage) -> None:
        if isinstance(event, Garbage):
            if isinstance(event, modbus.Echo):
                self._strays -= len(event.raw)
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

    def _on_deadline(self, answer: "asyncio.Future[F]") -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._deadline_s and not answer.done():
            loop.call_at(self._deadline_s, self._on_deadline, answer)
            return
        if answer.done():
            return
        # The start of a frame that never ends may hold the answer back.
        for event in self._decoder.flush():
            self._on_event(event)
        if answer.done():
            return
        what = f"no answer in {self._line.read_timeout_s:g} s"
        if self._strays > 0:
            what += f", but {self._strays} bytes that are none: another speed or parity, noise, or two who talk at once"
        answer.set_exception(SilentError(what))

    def _count_deaf(self) -> None:
        # A serial device that is there is connected; only a TCP connection can be half-open.
        self._deaf_timeouts += 1
        if self._deaf_timeouts >= DEAF_TIMEOUTS_MAX and not isinstance(self._line.endpoint, SerialEndpoint):
            self._deaf_timeouts = 0
            self._link.abort()

    # ---- after a timeout ---------------------------------------------------------------------------------------------

    def _rest(self) -> None:
        """Ask nothing until the late answer has come, or is too late to come at all."""
        if not self._codec.names_request:
            self._rested.clear()
            loop = asyncio.get_running_loop()
            end_s = loop.time() + self._line.quarantine_s
            self._rest_max_s = end_s + self._line.quarantine_s
            self._rest_timer = loop.call_at(end_s, self._on_rest_over)

    def _on_rest_over(self) -> None:
        loop = asyncio.get_running_loop()
        quiet_s = min(self._spoken_s + self._codec.gap_s, self._rest_max_s)
        if loop.time() < quiet_s:  # the late answer is under way
            self._rest_timer = loop.call_at(quiet_s, self._on_rest_over)
        else:
            self._end_rest()

    def _end_rest(self) -> None:
        self._request = None
        self._rested.set()
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _back_off(self, meter: str, timeout_s: float) -> None:
        before = self._backoffs.get(meter)
        if before is None and meter in self._heard:
            wait_s = BACKOFF_S
        else:
            cost_s = timeout_s + (0.0 if self._codec.names_request else self._line.quarantine_s)
            least_s = max(BACKOFF_S, BACKOFF_COSTS * cost_s)
            wait_s = max(least_s, min(2 * before.wait_s, BACKOFF_MAX_S)) if before else least_s
        self._backoffs[meter] = _Backoff(wait_s, asyncio.get_running_loop().time() + wait_s)

    def _note_answer(self, meter: str) -> None:
        if meter in self._backoffs:
            if self._heard <= self._backoffs.keys():  # the whole line was silent: others may be back as well
                self._backoffs.clear()
            else:
                del self._backoffs[meter]
        self._heard.add(meter)

    def _on_lost(self) -> None:
        self._decoder = self._codec.decoder()
        self._deaf_timeouts = 0
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(LinkError(f"{self._line.endpoint}: {self._link.reason}"))
