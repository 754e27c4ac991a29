"""The gateway at work: sweeps on marks, gaps from the meters' memory, clock checks, events, commands.

Energy first, because it is money; then power, of this moment. Registers that count on go at the mark itself, boundary
and check meters before customers; load records, exact however late they are read, when the meters have settled. A mark
that was not read is a gap. One task per line fills gaps from the meters' load profiles, newest first, and gives way to
sweeps (the bus sees to that).
"""

import asyncio
import logging
import platform
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

from edge.bus import OFF_MARK_MAX, Bus
from edge.model import Line, Meter, PollFailure, Reason
from gateway import health, read, scan, sniff, status
from gateway.clocks import Clocks, Synced
from gateway.commands import Commands
from gateway.commands.field import Field
from gateway.commands.journal import Journal
from gateway.local import Answers, Local, LocalError
from gateway.marks import Marks, Run
from gateway.queue import BATCH_ROWS, Queue, QueueError
from gateway.sites import Active, Sites
from gateway.uplink import Uplink
from protocols.clock import Clock
from protocols.quantities import Kind, Quality
from protocols.templates import has_profile, remembers
from protocols.uplink import Event, Row, Status, from_us, to_us

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


class Agent:
    """One gateway. ``run`` ends only by cancellation or by a damaged queue (sqlite3.DatabaseError).

    ``wish`` is done when somebody wants it stopped and started: with a site on trial, or (None) as it is.
    """

    def __init__(self, active: Active, sites: Sites, queue: Queue, clock: Clock, *, software: str) -> None:
        self._site = site = active.site
        self._queue = queue
        self._clock = clock
        self._software = software
        self._buses = {line.name: Bus(line, clock, site.dlt645_password) for line, _ in site.lines}
        self._meters = {meter.name: (self._buses[line.name], meter) for line, meters in site.lines for meter in meters}
        has_records = {name: has_profile(meter.template) for name, (_, meter) in self._meters.items()}
        self._counting = [found for name, found in self._meters.items() if not has_records[name]]
        self._recording = [found for name, found in self._meters.items() if has_records[name]]
        self._swept = queue.mark_of(clock.now())  # marks up to here are for backfill, later ones for sweeps
        self._health = {name: _Health(name) for name in self._meters}
        self._absent = {name: _Absent() for name in self._meters}
        self._disk_is_full = False
        self._clocks = Clocks(
            ((self._buses[line.name], meters) for line, meters in site.lines),
            queue,
            clock,
            site.clocks,
            report=self._report,
            may_write=site.dlt645_password is not None,
        )
        self._started_s = clock.monotonic()
        self.wish: asyncio.Future[Active | None] = asyncio.get_running_loop().create_future()
        self._field = Field(
            meters=self._meters, queue=queue, clock=clock, keep=self._keep_again, report=self._report,
            sync_clocks=self._sync_clocks, sites=sites, active=active, wish=self.wish,
        )  # fmt: skip
        journal = Journal(queue)
        self._uplink = Uplink(site.broker, queue, journal, clock, receive=self._receive, status=self._status)
        self.told = self._uplink.wake
        self._commands = Commands(journal, clock, self._field, report=self._report, told=self.told)
        self.local = Local(site.data_dir, gateway=site.gateway, software=software)
        self._offer()

    async def run(self) -> None:
        logger.info(
            "gateway %s: %d meters on %d lines, epoch %s, %d batches queued",
            self._site.gateway,
            len(self._meters),
            len(self._buses),
            self._queue.epoch,
            self._queue.batches,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._uplink.run())
                tasks.create_task(self._commands.run())
                tasks.create_task(self.local.run())
                tasks.create_task(self._clocks.run())
                tasks.create_task(self._sweep_on_marks())
                for line, meters in self._site.lines:
                    tasks.create_task(self._backfill(self._buses[line.name], meters))
        finally:
            for bus in self._buses.values():
                await bus.close()

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
            # Registers that count on are read as near the mark as the lines allow; records keep.
            await self._sweep(Kind.ENERGY, at, self._counting)
            if not await self._comes(at + SETTLE):
                await self._begin_again(at)
                continue
            await self._sweep(Kind.ENERGY, at, self._recording)
            self._swept = mark
            if self._clock.now() < self._queue.at(mark + 1):  # later it would be power of another mark
                await self._sweep(Kind.POWER, at, [*self._meters.values()])

    async def _comes(self, mark_at: datetime) -> bool:
        """Wait for the next mark; False when the clock was set back meanwhile, so that it is not the next any more."""
        sleeping = asyncio.ensure_future(self._clock.sleep_until(mark_at))
        try:
            while not sleeping.done():
                await asyncio.wait({sleeping}, timeout=CLOCK_LOOK_S)
                if (mark_at - self._clock.now()).total_seconds() > 2 * self._site.interval_s:
                    return False
        finally:
            sleeping.cancel()
        return True

    async def _begin_again(self, expected: datetime) -> None:
        """From the clock's new time. A box without a battery may have started in another year."""
        now = self._clock.now()
        logger.warning("the clock was set back now=%s awaited=%s; sweeps go on from now", now, expected)
        self._swept = self._queue.mark_of(now)
        for absent in self._absent.values():
            absent.release(expected + ABSENT_WAIT_MAX)  # what waited for a time that was wrong
        detail: dict[str, str | int | float | bool | None] = {"awaited": expected.isoformat()}
        await self._report(Event(at=to_us(now), kind="clock_set_back", detail=detail))

    async def _sweep(self, kind: Kind, at: datetime, meters: Sequence[tuple[Bus, Meter]]) -> None:
        """One batch from ``meters``; one that fails stops no other."""
        asked_at = self._clock.now()
        outcomes = await asyncio.gather(
            *(bus.read_energy(meter, at) if kind is Kind.ENERGY else bus.read_power(meter, at) for bus, meter in meters)
        )
        rows: list[Row] = []
        events: list[Event] = []
        for (_, meter), outcome in zip(meters, outcomes, strict=True):
            health = self._health[meter.name]
            events += health.heard(outcome, self._clock.now())
            if isinstance(outcome, Row):
                if kind is Kind.POWER:
                    events += self._clocks.hear(meter.name, outcome.meter_at, asked_at, outcome.gateway_at)
                rows.append(self._judged(outcome))
        logger.debug("sweep %s at=%s rows=%d of %d", kind, at, len(rows), len(outcomes))
        await self._keep(lambda: self._queue.append_rows(kind, rows, self._clock.now()) if rows else 0)
        if events:
            await self._keep(lambda: self._queue.append_events(events, self._clock.now()))

    def _judged(self, row: Row) -> Row:
        # A row without the meter's time is of the gateway's own.
        if row.meter_at is not None and self._clocks.is_suspect(row.meter, row.at):
            return replace(row, quality=row.quality | Quality.CLOCK_SUSPECT)
        return row

    # ---- gaps --------------------------------------------------------------------------------------------------------

    async def _backfill(self, bus: Bus, meters: Sequence[Meter]) -> None:
        """Fill gaps, newest first over all meters of a line; begin again after a sweep, which may leave new ones."""
        while True:
            rows: list[Row] = []
            swept, flushed_s = self._swept, self._clock.monotonic()
            unheard: set[str] = set()  # asked once a pass; the line is better used
            for meter, run in self._pieces(meters):
                if self._swept != swept or self._queue.bytes > BACKFILL_FILL * self._queue.bytes_max:
                    break
                if meter.name in unheard:
                    continue
                found = await self._read_piece(bus, meter, run)
                if found is None:
                    unheard.add(meter.name)
                    continue
                rows += found
                if len(rows) >= BATCH_ROWS or self._clock.monotonic() - flushed_s > FLUSH_S:
                    await self._keep_energy(rows)
                    rows, flushed_s = [], self._clock.monotonic()
            if rows:
                await self._keep_energy(rows)
            if self._swept == swept:
                await self._clock.sleep(IDLE_S)

    def _pieces(self, meters: Sequence[Meter]) -> list[tuple[Meter, Run]]:
        """What is worth asking for now."""
        now = self._clock.now()
        first, end = self._window()
        gaps: dict[int, list[tuple[Meter, Run]]] = {}
        for meter in meters:
            if not remembers(meter.template):
                continue
            absent = self._absent[meter.name]
            absent.release(now)
            for gap in self._queue.gaps(meter.name, first, end):
                for asked in absent.marks.gaps(*gap):
                    for piece in _cut(asked):
                        gaps.setdefault(piece.first // PIECE_MARKS, []).append((meter, piece))
        return [piece for block in sorted(gaps, reverse=True) for piece in gaps[block]]

    def _window(self) -> tuple[int, int]:
        """The marks that are to be collected: half-open, as a run."""
        end = self._swept + 1
        return end - self._site.backfill_days * DAY_S // self._site.interval_s, end

    async def _read_piece(self, bus: Bus, meter: Meter, run: Run) -> list[Row] | None:
        """The marks of ``run`` the meter has; None when it did not answer."""
        health = self._health[meter.name]
        if self._clocks.is_wrong(meter.name) is None:
            # What a meter with a wrong clock remembers is suspect: look at its clock before believing its memory.
            look = await self._clocks.measure(meter.name)
            if isinstance(look, PollFailure) and look.reason in _UNHEARD:
                await self._unheard(health, look)
                return None
        rows = await bus.read_profile(meter, self._queue.at(run.first), run.end - run.first)
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
        return [self._judged(row) for row in rows]

    async def _unheard(self, health: "_Health", failure: PollFailure) -> None:
        """Only a question that was really asked, on a line that is up, says something about the meter."""
        if failure.reason is Reason.SILENT:
            for event in health.heard(failure, self._clock.now()):
                await self._report(event)

    # ---- the queue ---------------------------------------------------------------------------------------------------

    async def _keep_again(self, rows: list[Row]) -> bool:
        """Rows somebody asked for, also where their marks were collected before. False when the disk is full."""
        judged = [self._judged(row) for row in rows]
        await self._keep(lambda: self._queue.append_rows(Kind.ENERGY, judged, self._clock.now(), again=True))
        return not self._disk_is_full

    async def _keep_energy(self, rows: list[Row]) -> None:
        await self._keep(lambda: self._queue.append_rows(Kind.ENERGY, rows, self._clock.now()))

    async def _keep(self, write: Callable[[], object]) -> None:
        """Write without holding the loop up. What a full disk refuses is not collected, so it is read again."""
        try:
            await asyncio.to_thread(write)
        except sqlite3.OperationalError as error:
            if not self._disk_is_full:
                logger.error("queue cannot be written path=%s: %s; make room", self._queue.path, error)
            self._disk_is_full = True
            await self._clock.sleep(IDLE_S)
            return
        if self._disk_is_full:
            logger.info("queue can be written again path=%s", self._queue.path)
            self._disk_is_full = False
        self._uplink.wake()

    async def _report(self, event: Event) -> None:
        await self._keep(lambda: self._queue.append_events([event], self._clock.now()))

    def _status(self) -> Status:
        # What a silent meter remembers is out of reach, and what a meter said it has not may never come.
        left = sum(
            asked.end - asked.first
            for name, health in self._health.items()
            if not health.is_silent and remembers(self._meters[name][1].template)
            for gap in self._queue.gaps(name, *self._window())
            for asked in self._absent[name].marks.gaps(*gap)
        )
        oldest_at = self._queue.oldest_at()
        return Status(
            online=True,
            at=to_us(self._clock.now()),
            epoch=self._queue.epoch,
            software=self._software,
            python=platform.python_version(),
            site=self._field.active.origin,
            site_sha256=self._field.active.sha256,
            uptime_s=int(self._clock.monotonic() - self._started_s),
            meters=len(self._meters),
            meters_silent=sum(health.is_silent for health in self._health.values()),
            lines=len(self._buses),
            lines_down=sorted(
                line.name
                for line, meters in self._site.lines
                if meters and all(self._health[meter.name].is_down for meter in meters)
            ),
            queued_batches=self._queue.batches,
            queued_bytes=self._queue.bytes,
            queue_fill=round(self._queue.bytes / self._queue.bytes_max, 4),
            oldest_at=oldest_at,
            receipt_at=self._uplink.receipt_at,
            backfill_left=left,
            clock_is_synchronised=health.clock_is_synchronised(),
            disk_free_bytes=health.disk_free_bytes(self._queue.path.parent),
            rss_bytes=health.rss_bytes(),
        )

    # ---- commands ----------------------------------------------------------------------------------------------------

    async def _receive(self, payload: bytes) -> None:
        await self._commands.receive(payload)

    async def _sync_clocks(self, meters: Sequence[str], asked_by: str, until: datetime) -> Mapping[str, Synced]:
        return await self._clocks.sync(meters, asked_by=asked_by, until=until)

    # ---- asked on this computer --------------------------------------------------------------------------------------

    def _offer(self) -> None:
        """What `meterctl` may ask through the local socket; it takes its turns on the lines as everybody does."""
        known = scan.known_templates(more=(meter.template for _, meter in self._meters.values()))
        self.local.offer(read.Read, lambda question: read.answer(self._meters, question))
        self.local.offer(scan.ScanLine, lambda question: scan.answer(self._buses, known, question))
        self.local.offer(sniff.Sniff, lambda question: sniff.answer(self._buses, self._clock, question))
        self.local.offer(status.AskStatus, lambda question: self._tell_status())
        self.local.offer(status.AskQueue, lambda question: self._tell_queue())

    async def _tell_queue(self) -> Answers:
        try:
            yield await asyncio.to_thread(status.read_queue, self._site)
        except QueueError as error:
            raise LocalError(str(error)) from error

    async def _tell_status(self) -> Answers:
        overview = self._status()
        yield status.GatewayStatus(
            gateway=self._site.gateway,
            at=self._clock.now(),
            software=overview.software,
            uptime_s=overview.uptime_s,
            site=overview.site,
            uplink=self._uplink.state,
            receipt_at=None if overview.receipt_at is None else from_us(overview.receipt_at),
            queued_batches=overview.queued_batches,
            queue_fill=overview.queue_fill,
            lines=tuple(self._line_status(line, meters) for line, meters in self._site.lines),
            meters=tuple(self._meter_status(bus.line, meter) for bus, meter in self._meters.values()),
        )

    def _line_status(self, line: Line, meters: Sequence[Meter]) -> status.LineStatus:
        known = [self._health[meter.name] for meter in meters]
        state: Literal["up", "down", "not asked yet"] = "not asked yet"
        if any(it.heard_at and not it.is_down for it in known):
            state = "up"
        elif any(it.is_down for it in known):
            state = "down"
        return status.LineStatus(line.name, str(line.endpoint), state)

    def _meter_status(self, line: Line, meter: Meter) -> status.MeterStatus:
        known = self._health[meter.name]
        clock = self._clocks.states.get(meter.name)
        newest = self._queue.newest_mark(meter.name)
        return status.MeterStatus(
            name=meter.name,
            line=line.name,
            address=meter.address,
            heard_at=known.heard_at,
            is_silent=known.is_silent,
            clock_offset_s=clock.offset.offset_s if clock and clock.offset else None,
            gap_marks=sum(gap.end - gap.first for gap in self._queue.gaps(meter.name, *self._window())),
            newest_mark=None if newest is None else self._queue.at(newest),
        )

    # ---- a site on trial ---------------------------------------------------------------------------------------------

    def settle(self, active: Active) -> None:
        """The site on trial counts now."""
        self._field.active = active
        self._uplink.tell_status()

    def heard(self) -> dict[str, datetime]:
        """When a meter was last heard, by line; without lines that were silent since the start."""
        times = (
            (line.name, self._health[meter.name].heard_at) for line, meters in self._site.lines for meter in meters
        )
        heard: dict[str, datetime] = {}
        for line, at in times:
            if at is not None:
                heard[line] = max(at, heard.get(line, at))
        return heard

    async def prove(self, alive: set[str]) -> None:
        """Return once the broker has acknowledged us, and meters answer on the lines that were ``alive`` before."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._uplink.acknowledged.wait())
            for line, meters in self._site.lines:
                if meters and (line.name in alive or (alive and not self._awaited(alive))):
                    tasks.create_task(self._try_until_heard(meters, anywhere=line.name not in alive))

    async def _try_until_heard(self, meters: Sequence[Meter], *, anywhere: bool) -> None:
        while True:
            for meter in meters:
                if any(self._health[one.name].heard_at for one in meters) or (anywhere and self.heard()):
                    return
                outcome = await self._meters[meter.name][0].read_power(meter, self._clock.now())
                self._health[meter.name].heard(outcome, self._clock.now())
            await self._clock.sleep(IDLE_S)

    def _awaited(self, alive: set[str]) -> set[str]:
        return alive & {line.name for line, meters in self._site.lines if meters}

    def missing(self, alive: set[str]) -> str:
        """What ``prove`` is still waiting for."""
        told = [] if self._uplink.acknowledged.is_set() else [f"the broker did not take us ({self._uplink.state})"]
        silent = self._awaited(alive) - self.heard().keys()
        if silent:
            told.append(f"no meter answered on {', '.join(sorted(silent))}, where meters answered before")
        elif alive and not self.heard():
            told.append("no meter answered on any line")
        return "; ".join(told) or "nothing is missing"


@dataclass(slots=True)
class _Health:
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
