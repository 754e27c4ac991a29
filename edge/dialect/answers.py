"""What both protocols are asked for, and what a dialect answers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final, Protocol

from edge.model import ClockReading, ItemReading, Meter, Priority, TapEvent
from protocols.clock import Clock

MARK_INTERVAL: Final = timedelta(minutes=15)

Values = Mapping[str, float | int | None]


class UnsupportedError(Exception):
    """This meter, or this protocol, does not do that. Nothing was sent."""


class ExpiredError(Exception):
    """The order's turn came too late. Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Energy registers at ``at`` by the meter's clock. ``is_bad``: the meter itself marks them as wrong.

    ``is_verified``: it is known which instant the meter's time names, and what it noted then.
    """

    at: datetime
    values: Values
    is_bad: bool = False
    is_verified: bool = True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Instantaneous values; ``meter_at`` is the meter's clock, read last, so it dates the moment of the return.

    None where the table knows no clock.
    """

    values: Values
    meter_at: datetime | None


class Dialect(Protocol):
    """Failures rise as the exceptions of the layers below, and as UnsupportedError and ExpiredError."""

    async def read_marks(self, meter: Meter, first: datetime, count: int, priority: Priority) -> list[Mark]:
        """What the meter has of the ``count`` marks from ``first`` on, perhaps with others, in no certain order."""
        ...

    async def read_counters(self, meter: Meter, priority: Priority) -> Values:
        """The energy registers as they count now."""
        ...

    async def read_power(self, meter: Meter, priority: Priority) -> Snapshot: ...

    async def read_clock(self, meter: Meter, priority: Priority) -> ClockReading: ...

    async def broadcast_clock(self, at: datetime, zone: tzinfo, before: datetime | None) -> None: ...

    async def write_clock(self, meter: Meter, at: datetime, before: datetime | None) -> None: ...

    async def read_item(self, meter: Meter, item: str, priority: Priority) -> ItemReading: ...

    async def set_relay(self, meter: Meter, *, closed: bool, expires_at: datetime, priority: Priority) -> None: ...

    async def ask(self, request: Any, *, meter_key: str, priority: Priority) -> Any: ...

    def tap(self, listener: Callable[[TapEvent], None]) -> Callable[[], None]: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class Overheard:
    """Listens on a line: the last thing that was sent, when, and what came since.

    Right after an exchange that is its request and its answer, since a line has one question at a time.
    """

    clock: Clock
    sent_at: datetime | None = None
    request: bytes = b""
    reply: bytearray = field(default_factory=bytearray)

    def __call__(self, event: TapEvent) -> None:
        if event.direction == "out":
            self.sent_at, self.request, self.reply = self.clock.now(), event.raw, bytearray()
        else:
            self.reply += event.raw


def local_midnights(first: datetime, count: int, zone: tzinfo) -> list[datetime]:
    """Those among the ``count`` marks from ``first`` on, oldest first."""
    marks = (first + i * MARK_INTERVAL for i in range(count))
    return [mark for mark in marks if mark.astimezone(zone).time() == datetime.min.time()]


def days_after(mark: datetime, now: datetime, zone: tzinfo) -> int:
    """How many local midnights came after that of ``mark``, up to ``now``."""
    return (now.astimezone(zone).date() - mark.astimezone(zone).date()).days


async def find_frozen(
    mark: datetime, expected: int, count: int, time_of: Callable[[int], Awaitable[datetime | None]]
) -> int | None:
    """Which freeze, 1 being the last and ``count`` the oldest, has ``mark`` as its own time; None: no such.

    ``expected`` is tried first; a meter that was without power has fewer freezes than days, so the one looked for has
    a lower number, which bisection finds. ``time_of`` is None where nothing was frozen.
    """
    low, high = 1, min(expected + 1, count)  # one more: midnight may be passing
    number = min(expected, high)
    while low <= high:
        at = await time_of(number)
        if at == mark:
            return number
        if at is None or at < mark:
            high = number - 1
        else:
            low = number + 1
        number = (low + high) // 2
    return None
