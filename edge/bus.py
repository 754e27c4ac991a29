"""The sole owner of a line: polls and orders by priority, as rows or as failures that stop nobody else."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, tzinfo
from typing import Any, Final, TypeVar

from edge.client import BackingOffError, SilentError
from edge.dialect import ExpiredError, Mark, UnsupportedError, dialect
from edge.dialect.answers import MARK_INTERVAL
from edge.link import LinkError
from edge.model import ClockReading, ItemReading, Line, Meter, PollFailure, Priority, Reason, TapEvent
from protocols.clock import Clock
from protocols.framing import FrameError, MeterError
from protocols.quantities import Quality
from protocols.templates import Dlt645Template, ModbusTemplate, has_profile, remembers
from protocols.uplink import Row

T = TypeVar("T")

# A counter read so soon after the mark is the mark's: 1 % of an interval moves 1 % of its energy to the one before.
ON_MARK_MAX: Final = MARK_INTERVAL / 100
# Past the middle it is nearer to the next mark, and books no longer as this one.
OFF_MARK_MAX: Final = MARK_INTERVAL / 2


class Bus:
    """``password``: of DL/T 645, 8 digits, the level first; without it no relay is moved and no clock written.

    Polls of many meters may be started at once: they take turns, boundary and check meters before customers.
    """

    def __init__(self, line: Line, clock: Clock, password: str | None = None) -> None:
        self.line = line
        self._clock = clock
        self._dialect = dialect(line, clock, password)

    async def read_energy(self, meter: Meter, mark: datetime) -> Row | PollFailure:
        """The registers of ``mark``: from the meter's load profile, then exact however late; else as they count now.

        The latter is OFF_MARK where it came later than ON_MARK_MAX, and ABSENT before the mark or past OFF_MARK_MAX.
        """
        if not has_profile(meter.template):
            return await self._read_counters(meter, mark)
        marks = await self._try(self._dialect.read_marks(meter, mark, 1, Priority.LIVE))
        if isinstance(marks, PollFailure):
            return marks
        for found in marks:
            if found.at == mark:
                return self._row(meter, found, Quality.GOOD)
        return PollFailure(Reason.ABSENT, f"no load record at {mark:%Y-%m-%d %H:%M}Z")

    async def _read_counters(self, meter: Meter, mark: datetime) -> Row | PollFailure:
        if not timedelta() <= self._clock.now() - mark <= OFF_MARK_MAX:
            return PollFailure(
                Reason.ABSENT, f"{meter.template.name} has no load profile: a mark is read when it comes"
            )
        values = await self._try(self._dialect.read_counters(meter, Priority.LIVE))
        if isinstance(values, PollFailure):
            return values
        now = self._clock.now()
        late = now - mark
        if late > OFF_MARK_MAX:
            return PollFailure(Reason.ABSENT, f"read {late.total_seconds():.0f} s after the mark: too late for it")
        quality = Quality.GOOD if late <= ON_MARK_MAX else Quality.OFF_MARK
        return Row(meter.name, mark, now, None, int(quality), values)

    async def read_profile(self, meter: Meter, first: datetime, count: int) -> list[Row] | PollFailure:
        """The marks the meter has of ``count`` from ``first`` on, in order; an empty list when it has none.

        From its load profile, or of local midnights from its frozen blocks.
        """
        if not remembers(meter.template):
            return []
        marks = await self._try(self._dialect.read_marks(meter, first, count, Priority.BACKFILL))
        if isinstance(marks, PollFailure):
            return marks
        step = _mark_interval(meter)
        # A meter may answer with the next records it has: only those asked for count, and each once.
        wanted = {first + i * step for i in range(count)}
        found = {mark.at: mark for mark in marks if mark.at in wanted}
        return [self._row(meter, found[at], Quality.BACKFILLED) for at in sorted(found)]

    async def read_power(self, meter: Meter, at: datetime) -> Row | PollFailure:
        """Instantaneous values and the meter's clock, as of ``gateway_at``; ``at`` is the mark they stand for."""
        snapshot = await self._try(self._dialect.read_power(meter, Priority.LIVE))
        if isinstance(snapshot, PollFailure):
            return snapshot
        return Row(meter.name, at, self._clock.now(), snapshot.meter_at, int(Quality.GOOD), snapshot.values)

    async def read_item(
        self, meter: Meter, item: str, priority: Priority = Priority.COMMAND
    ) -> ItemReading | PollFailure:
        """One thing, decoded and raw.

        ``item``: a data identifier (``00010000``, of 1997 ``9010``), a quantity or extra of the meter's table, or
        registers as ``3:0x0048:2[:float32]``, that is function, zero-based address, count and type.
        """
        return await self._try(self._dialect.read_item(meter, item, priority))

    async def read_clock(self, meter: Meter, priority: Priority = Priority.COMMAND) -> ClockReading | PollFailure:
        return await self._try(self._dialect.read_clock(meter, priority))

    async def broadcast_clock(
        self, at: datetime, zone: tzinfo, *, before: datetime | None = None
    ) -> PollFailure | None:
        """Tell every meter on the line the time, ``at`` being now; none answers. EXPIRED when ``before`` came first."""
        return await self._try(self._dialect.broadcast_clock(at, zone, before))

    async def write_clock(self, meter: Meter, at: datetime, *, before: datetime | None = None) -> PollFailure | None:
        """Set one meter's date and time, ``at`` being now, and look whether it took them; needs the password.

        EXPIRED when ``before`` came first; its date may be written then.
        """
        return await self._try(self._dialect.write_clock(meter, at, before))

    async def set_relay(self, meter: Meter, *, closed: bool, expires_at: datetime) -> PollFailure | None:
        """Open or close the relay; sent once, never past ``expires_at``. After SILENT the relay may have moved."""
        order = self._dialect.set_relay(meter, closed=closed, expires_at=expires_at, priority=Priority.COMMAND)
        return await self._try(order)

    async def ask(self, request: Any, *, meter_key: str, priority: Priority) -> Any:
        """One exchange of frames of the line's protocol, with any address: the answer, or a PollFailure."""
        return await self._try(self._dialect.ask(request, meter_key=meter_key, priority=priority))

    def tap(self, listener: Callable[[TapEvent], None]) -> Callable[[], None]:
        """Tell ``listener`` of all bytes on the line, until the function it returns is called."""
        return self._dialect.tap(listener)

    async def close(self) -> None:
        """Polls under way fail with LINK_DOWN."""
        self._dialect.close()

    def _row(self, meter: Meter, mark: Mark, quality: Quality) -> Row:
        if mark.is_bad:
            quality |= Quality.METER_ERROR
        if not mark.is_verified:
            quality |= Quality.CLOCK_SUSPECT
        return Row(meter.name, mark.at, self._clock.now(), mark.at, int(quality), mark.values)

    async def _try(self, poll: Awaitable[T]) -> T | PollFailure:
        try:
            return await poll
        except BackingOffError as error:
            return PollFailure(Reason.BACKING_OFF, str(error))
        except SilentError as error:
            return PollFailure(Reason.SILENT, str(error))
        except LinkError as error:
            return PollFailure(Reason.LINK_DOWN, str(error))
        except (MeterError, UnsupportedError) as error:
            return PollFailure(Reason.REFUSED, str(error))
        except ExpiredError as error:
            return PollFailure(Reason.EXPIRED, str(error))
        except FrameError as error:
            return PollFailure(Reason.GARBLED, str(error))


def _mark_interval(meter: Meter) -> timedelta:
    profile = meter.template.profile if isinstance(meter.template, Dlt645Template | ModbusTemplate) else None
    return timedelta(seconds=profile.interval_s) if profile else MARK_INTERVAL
