"""One line at work: sweeps on marks, and gaps from the meters' memory. No line waits for another.

Energy first, because it is money; then power, of this moment. Registers that count on go at the mark itself, boundary
and check meters before customers; load records, exact however late they are read, when the meters have settled. A mark
that was not read is a gap; gaps are filled from the meters' load profiles, newest first, and give way to sweeps (the
bus sees to that).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from edge.bus import OFF_MARK_MAX, Bus
from edge.model import Meter, PollFailure, Priority, Reason
from gateway.clocks import Clocks
from gateway.keeper import Keeper
from gateway.marks import Marks, Run
from gateway.queue import BATCH_ROWS, Queue
from protocols.clock import Clock
from protocols.quantities import Kind, Quality
from protocols.templates import has_profile, remembers
from protocols.uplink import Event, Row, to_us

logger = logging.getLogger(__name__)

SETTLE: Final = timedelta(seconds=5)  # a meter needs a moment to freeze its registers at a mark
PIECE_MARKS: Final = 24  # one read from memory: 6 h, 4 frames of DL/T 645; what a lost frame costs
IDLE_S: Final = 1.0  # between two looks for gaps
CLOCK_LOOK_S: Final = 1.0  # how soon a clock that was set back is noticed
FLUSH_S: Final = 5.0  # a slow line does not fill a batch; what it gave is safe after this
BACKFILL_FILL: Final = 0.5  # of the queue, then backfill pauses: memory of meters is a store too, live data has none
SILENT_POLLS: Final = 4  # in a row: two sweeps of energy and power, or questions for a gap, before an event says so
DAY_S: Final = 86_400
ABSENT_WAIT_MIN: Final = timedelta(minutes=1)
ABSENT_WAIT_MAX: Final = timedelta(hours=1)

_UNHEARD: Final = (Reason.SILENT, Reason.BACKING_OFF, Reason.LINK_DOWN)


class Poller:
    """``health``: of each meter of the line, by name."""

    def __init__(
        self,
        bus: Bus,
        meters: Sequence[Meter],
        queue: Queue,
        clock: Clock,
        clocks: Clocks,
        keeper: Keeper,
        *,
        backfill_days: int,
        clock_set_back: Callable[[datetime], Awaitable[None]],
    ) -> None:
        self.bus, self.meters = bus, meters
        self._queue, self._clock, self._clocks, self._keeper = queue, clock, clocks, keeper
        self._backfill_marks = backfill_days * DAY_S // queue.interval_s
        self._clock_set_back = clock_set_back
        self._counting = [meter for meter in meters if not has_profile(meter.template)]
        self._recording = [meter for meter in meters if has_profile(meter.template)]
        self._swept = queue.mark_of(clock.now())  # marks up to here are for backfill, later ones for sweeps
        self.health = {meter.name: Health(meter.name) for meter in meters}
        self._absent = {meter.name: _Absent() for meter in meters}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep_on_marks())
            tasks.create_task(self._backfill())

    # ---- what is known -----------------------------------------------------------------------------------------------

    def gap_marks(self, name: str) -> int:
        """Marks of a meter that are not collected."""
        return sum(gap.end - gap.first for gap in self._queue.gaps(name, *self._window()))

    def backfill_left(self) -> int:
        """Marks still to come. What a silent meter remembers is out of reach, and what one has not may never come."""
        return sum(
            asked.end - asked.first
            for meter in self.meters
            if not self.health[meter.name].is_silent and remembers(meter.template)
            for asked in self._missing(meter)
        )

    def judged(self, row: Row) -> Row:
        # A row without the meter's time is of the gateway's own.
        if row.meter_at is not None and self._clocks.is_suspect(row.meter, row.at):
            return replace(row, quality=row.quality | Quality.CLOCK_SUSPECT)
        return row

    # ---- sweeps ------------------------------------------------------------------------------------------------------

    async def _sweep_on_marks(self) -> None:
        while True:
            # A mark that long passed while the last sweep ran is a gap: its energy is in the meters' memory, if any.
            self._swept = max(self._swept, self._queue.mark_of(self._clock.now() - OFF_MARK_MAX))
            mark = self._swept + 1
            at = self._queue.at(mark)
            if not await self._comes(at):
                await self._begin_again(at)
                continue
            # Registers that count on are read as near the mark as the line allows; records keep.
            await self._sweep(Kind.ENERGY, at, self._counting)
            if not await self._comes(at + SETTLE):
                await self._begin_again(at)
                continue
            await self._sweep(Kind.ENERGY, at, self._recording)
            self._swept = mark
            if self._clock.now() < self._queue.at(mark + 1):  # later it would be power of another mark
                await self._sweep(Kind.POWER, at, self.meters)

    async def _comes(self, mark_at: datetime) -> bool:
        """Wait for the next mark; False when the clock was set back meanwhile, so that it is not the next any more."""
        sleeping = asyncio.ensure_future(self._clock.sleep_until(mark_at))
        try:
            while not sleeping.done():
                await asyncio.wait({sleeping}, timeout=CLOCK_LOOK_S)
                if (mark_at - self._clock.now()).total_seconds() > 2 * self._queue.interval_s:
                    return False
        finally:
            sleeping.cancel()
        return True

    async def _begin_again(self, expected: datetime) -> None:
        """From the clock's new time. A box without a battery may have started in another year."""
        self._swept = self._queue.mark_of(self._clock.now())
        for absent in self._absent.values():
            absent.release(expected + ABSENT_WAIT_MAX)  # what waited for a time that was wrong
        await self._clock_set_back(expected)

    async def _sweep(self, kind: Kind, at: datetime, meters: Sequence[Meter]) -> None:
        """All of ``meters``; one that fails stops no other. A slow line keeps what it has as it goes."""
        asked_at = self._clock.now()
        read = self._read_energy if kind is Kind.ENERGY else self.bus.read_power
        asked = {asyncio.ensure_future(read(meter, at)): meter for meter in meters}
        pending = set(asked)
        try:
            while pending:
                await asyncio.wait(pending, timeout=FLUSH_S)
                done = [poll for poll in asked if poll in pending and poll.done()]
                pending.difference_update(done)
                await self._take(kind, [(asked[poll], poll.result()) for poll in done], asked_at)
        finally:
            for poll in pending:
                poll.cancel()

    async def _read_energy(self, meter: Meter, at: datetime) -> Row | PollFailure:
        if has_profile(meter.template) and self._clocks.is_wrong(meter.name) is None:
            # A record is of the meter's own time: whether that is right is asked before it is believed.
            await self._clocks.measure(meter.name, Priority.LIVE)
        return await self.bus.read_energy(meter, at)

    async def _take(self, kind: Kind, outcomes: Sequence[tuple[Meter, Row | PollFailure]], asked_at: datetime) -> None:
        rows: list[Row] = []
        events: list[Event] = []
        for meter, outcome in outcomes:
            events += self.health[meter.name].heard(outcome, self._clock.now())
            if isinstance(outcome, Row):
                if kind is Kind.POWER:
                    events += self._clocks.hear(meter.name, outcome.meter_at, asked_at, outcome.gateway_at)
                rows.append(self.judged(outcome))
        logger.debug("sweep %s line=%s rows=%d of %d", kind, self.bus.line.name, len(rows), len(outcomes))
        await asyncio.gather(self._keeper.rows(kind, rows), self._keeper.events(events))

    # ---- gaps --------------------------------------------------------------------------------------------------------

    async def _backfill(self) -> None:
        """Fill gaps, newest first over all meters; begin again after a sweep, which may leave new ones."""
        while True:
            rows: list[Row] = []
            swept, flushed_s = self._swept, self._clock.monotonic()
            unheard: set[str] = set()  # asked once a pass; the line is better used
            for meter, run in self._pieces():
                if self._swept != swept or self._queue.bytes > BACKFILL_FILL * self._queue.bytes_max:
                    break
                if meter.name in unheard:
                    continue
                found = await self._read_piece(meter, run)
                if found is None:
                    unheard.add(meter.name)
                    continue
                rows += found
                if len(rows) >= BATCH_ROWS or self._clock.monotonic() - flushed_s > FLUSH_S:
                    await self._keeper.rows(Kind.ENERGY, rows)
                    rows, flushed_s = [], self._clock.monotonic()
            await self._keeper.rows(Kind.ENERGY, rows)
            if self._swept == swept:
                await self._clock.sleep(IDLE_S)

    def _pieces(self) -> list[tuple[Meter, Run]]:
        """What is worth asking for now."""
        now = self._clock.now()
        gaps: dict[int, list[tuple[Meter, Run]]] = {}
        for meter in self.meters:
            if not remembers(meter.template):
                continue
            self._absent[meter.name].release(now)
            for asked in self._missing(meter):
                for piece in _cut(asked):
                    gaps.setdefault(piece.first // PIECE_MARKS, []).append((meter, piece))
        return [piece for block in sorted(gaps, reverse=True) for piece in gaps[block]]

    def _missing(self, meter: Meter) -> Iterator[Run]:
        """What is not collected, without what the meter said it has not."""
        absent = self._absent[meter.name].marks
        for gap in self._queue.gaps(meter.name, *self._window()):
            yield from absent.gaps(*gap)

    def _window(self) -> tuple[int, int]:
        """The marks that are to be collected: half-open, as a run."""
        end = self._swept + 1
        return end - self._backfill_marks, end

    async def _read_piece(self, meter: Meter, run: Run) -> list[Row] | None:
        """The marks of ``run`` the meter has; None when it did not answer."""
        health = self.health[meter.name]
        if self._clocks.is_wrong(meter.name) is None:
            # What a meter with a wrong clock remembers is suspect: look at its clock before believing its memory.
            look = await self._clocks.measure(meter.name)
            if isinstance(look, PollFailure) and look.reason in _UNHEARD:
                await self._unheard(health, look)
                return None
        rows = await self.bus.read_profile(meter, self._queue.at(run.first), run.end - run.first)
        if isinstance(rows, PollFailure):
            logger.debug("gap not filled meter=%s reason=%s detail=%s", meter.name, rows.reason, rows.detail)
            if rows.reason in _UNHEARD:
                await self._unheard(health, rows)
                return None
            # It refuses, or talks nonsense: no use asking the same at once.
            self._absent[meter.name].add([run], self._clock.now() + ABSENT_WAIT_MIN)
            return []
        health.heard_at = self._clock.now()
        if len(rows) < run.end - run.first:
            missing = Marks([run])
            for row in rows:
                mark = self._queue.mark_of(row.at)
                missing.discard(mark, mark + 1)
            now = self._clock.now()
            # A slow clock has the newest mark a little later; what is long past will hardly appear.
            age = now - self._queue.at(run.end - 1)
            self._absent[meter.name].add(missing, now + min(max(age, ABSENT_WAIT_MIN), ABSENT_WAIT_MAX))
        return [self.judged(row) for row in rows]

    async def _unheard(self, health: "Health", failure: PollFailure) -> None:
        """Only a question that was really asked, on a line that is up, says something about the meter."""
        if failure.reason is Reason.SILENT:
            await self._keeper.events(health.heard(failure, self._clock.now()))


@dataclass(slots=True)
class Health:
    """Whether one meter answers, as far as is known since the start."""

    meter: str
    failures: int = 0
    heard_at: datetime | None = None
    line_is_down: bool = False

    @property
    def is_silent(self) -> bool:
        return self.failures >= SILENT_POLLS

    @property
    def is_down(self) -> bool:
        """Nothing came from this meter lately."""
        return self.is_silent or self.line_is_down

    def heard(self, outcome: Row | PollFailure, now: datetime) -> list[Event]:
        """``meter_silent`` after some polls in a row without an answer, ``meter_back`` after the first one."""
        self.line_is_down = isinstance(outcome, PollFailure) and outcome.reason is Reason.LINK_DOWN
        if isinstance(outcome, PollFailure) and outcome.reason not in (Reason.REFUSED, Reason.ABSENT):
            self.failures += 1
            if self.failures != SILENT_POLLS:
                return []
            logger.warning("meter silent meter=%s reason=%s %s", self.meter, outcome.reason, outcome.detail)
            reason = Reason.SILENT if outcome.reason is Reason.BACKING_OFF else outcome.reason
            detail: dict[str, str | int | float | bool | None] = {"reason": reason.value}
            return [Event(at=to_us(now), kind="meter_silent", meter=self.meter, detail=detail)]
        self.heard_at = now
        was_silent, failures = self.is_silent, self.failures
        self.failures = 0
        if not was_silent:
            return []
        logger.info("meter is back meter=%s", self.meter)
        return [Event(at=to_us(now), kind="meter_back", meter=self.meter, detail={"failed_polls": failures})]


@dataclass(slots=True)
class _Absent:
    """Marks the meter answered it does not have, until it is time to ask again.

    Kept in memory: asking once more after a restart costs little.
    """

    marks: Marks = field(default_factory=Marks)
    _waits: list[tuple[datetime, Run]] = field(default_factory=list)

    def add(self, runs: Iterable[Run], until: datetime) -> None:
        for run in runs:
            self.marks.add(*run)
            self._waits.append((until, run))

    def release(self, now: datetime) -> None:
        """Forget what may be asked for again."""
        due = [run for until, run in self._waits if until <= now]
        if due:
            self._waits = [(until, run) for until, run in self._waits if until > now]
            for run in due:
                self.marks.discard(*run)


def _cut(run: Run) -> Iterator[Run]:
    """Pieces of at most PIECE_MARKS that do not cross a multiple of it, so that none crosses a UTC day."""
    first = run.first
    while first < run.end:
        end = min(run.end, (first // PIECE_MARKS + 1) * PIECE_MARKS)
        yield Run(first, end)
        first = end
