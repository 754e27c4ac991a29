"""The gateway at work: its lines, clocks, commands, queue and uplink, and what it says of itself."""

import asyncio
import logging
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal

from edge.bus import Bus
from edge.model import Line, Meter
from gateway import health, read, scan, sniff, status
from gateway.clocks import Clocks, Synced
from gateway.commands import Commands
from gateway.commands.field import Field
from gateway.commands.journal import Journal
from gateway.keeper import Keeper
from gateway.local import Answers, Local, LocalError
from gateway.poller import Poller
from gateway.queue import Queue, QueueError
from gateway.sites import Active, Sites
from gateway.uplink import Uplink
from protocols.clock import Clock
from protocols.quantities import Kind
from protocols.uplink import Event, Row, Status, from_us, to_us

logger = logging.getLogger(__name__)

TRIAL_IDLE_S: Final = 1.0  # between two looks whether a line on trial answers


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
        self._keeper = Keeper(queue, clock, kept=lambda: self._uplink.wake())
        self._clocks = Clocks(
            ((self._buses[line.name], meters) for line, meters in site.lines),
            queue,
            clock,
            site.clocks,
            report=self._report,
            may_write=site.dlt645_password is not None,
        )
        self._pollers = {
            line.name: Poller(
                self._buses[line.name], meters, queue, clock, self._clocks, self._keeper,
                backfill_days=site.backfill_days, clock_set_back=self._clock_set_back,
            )
            for line, meters in site.lines
        }  # fmt: skip
        self._health = {name: known for poller in self._pollers.values() for name, known in poller.health.items()}
        self._told_set_back_at: datetime | None = None
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
                tasks.create_task(self._keeper.run())
                tasks.create_task(self._uplink.run())
                tasks.create_task(self._commands.run())
                tasks.create_task(self.local.run())
                tasks.create_task(self._clocks.run())
                for poller in self._pollers.values():
                    tasks.create_task(poller.run())
        finally:
            for bus in self._buses.values():
                await bus.close()

    # ---- the queue ---------------------------------------------------------------------------------------------------

    async def _keep_again(self, rows: list[Row]) -> bool:
        """Rows somebody asked for, also where their marks were collected before. False when the disk is full."""
        judged = [self._poller_of(row.meter).judged(row) for row in rows]
        return await self._keeper.rows(Kind.ENERGY, judged, again=True)

    def _poller_of(self, meter: str) -> Poller:
        return self._pollers[self._meters[meter][0].line.name]

    async def _report(self, event: Event) -> None:
        await self._keeper.events([event])

    async def _clock_set_back(self, awaited: datetime) -> None:
        """Every line notices; one of them tells."""
        now = self._clock.now()
        told_at, self._told_set_back_at = self._told_set_back_at, now
        if told_at is not None and abs((now - told_at).total_seconds()) < self._site.interval_s:
            return
        logger.warning("the clock was set back now=%s awaited=%s; sweeps go on from now", now, awaited)
        detail: dict[str, str | int | float | bool | None] = {"awaited": awaited.isoformat()}
        await self._report(Event(at=to_us(now), kind="clock_set_back", detail=detail))

    def _status(self) -> Status:
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
            backfill_left=sum(poller.backfill_left() for poller in self._pollers.values()),
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
            gap_marks=self._poller_of(meter.name).gap_marks(meter.name),
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
            await self._clock.sleep(TRIAL_IDLE_S)

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
