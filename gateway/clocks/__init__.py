"""Meters' clocks: measured each day, told when they are wrong, and set where the site says so.

``policy`` decides; here is who measures, orders and remembers. An order is on disk before it is sent, with what the
clock was before, and stays open until the clock was read again: a power cut in between neither repeats it that day nor
loses its event.
"""

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from edge.bus import Bus
from edge.model import ClockReading, Meter, PollFailure, Priority, Reason
from gateway.clocks.journal import Journal, Measured, Method, Order
from gateway.clocks.own_time import OwnTime
from gateway.clocks.policy import (
    FRESH,
    RESOLUTION_S,
    Broadcast,
    Known,
    Leave,
    Offset,
    Policy,
    Rules,
    Write,
    decide,
    overdue,
)
from gateway.queue import Queue
from protocols.clock import Clock
from protocols.templates import ModbusFamily
from protocols.uplink import Event, from_us, to_us

logger = logging.getLogger(__name__)

DAY: Final = timedelta(days=1)
LATE_S: Final = 5.0  # after its moment an order is void; well inside the guard around marks
AHEAD_S: Final = 2.0  # an order waits for its turn
TRIES_MAX: Final = 100  # orders and missed moments in one go: more meters than a line has, and an end
RETRY: Final = timedelta(hours=1)  # after a correction that could not be made
ASKED_WAIT: Final = timedelta(hours=1)  # for somebody who waits; the least harmful moment of the day otherwise
DRIFT_OVER: Final = timedelta(hours=12)  # two measurements closer than this say little about s per day
QUIET_S: Final = (120.0, 870.0)  # of a quarter of an hour: when clocks are measured, outside of sweeps
CALM: Final = DAY  # after the gateway's own clock was set
WATCH_S: Final = 10.0
SET_BACK: Final = timedelta(seconds=2)  # what lies so far in the future was written by another time
UNSTEADY: Final = "each time its moment came something else was measured, or the line was busy"

Detail: TypeAlias = dict[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class Synced:
    """What became of one meter. ``reason``: why it was not set, or is not right now; empty where it is."""

    meter: str
    before: Offset | None = None
    after: Offset | None = None
    method: Method | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        if self.method is None or self.before is None or self.after is None:
            return "right already" + (f" ({self.before.offset_s:+.1f} s)" if self.before else "")
        return f"{self.before.offset_s:+.1f} s before, {self.after.offset_s:+.1f} s after, by {self.method}"


@dataclass(slots=True)
class ClockState:
    """What is known of one meter's clock. ``is_wrong`` is None until it was read in this process."""

    meter: Meter
    bus: Bus
    offset: Offset | None = None
    base: Offset | None = None
    drift_s_per_day: float | None = None
    right_at: datetime | None = None
    is_wrong: bool | None = None
    corrected_at: datetime | None = None
    open_order: Order | None = None
    suspect: list[tuple[int, int]] = field(default_factory=list)

    @property
    def takes_orders(self) -> bool:
        return self.bus.line.protocol.startswith("dlt645")


class Clocks:
    """The clocks of one gateway's meters. Makers' Modbus families have none and are left out.

    ``report`` queues an event. ``may_write``: the DL/T 645 password is known.
    """

    def __init__(
        self,
        lines: Iterable[tuple[Bus, Sequence[Meter]]],
        queue: Queue,
        clock: Clock,
        rules: Rules,
        *,
        report: Callable[[Event], Awaitable[None]],
        may_write: bool,
        own_time: OwnTime | None = None,
    ) -> None:
        self._clock, self._rules = clock, rules
        self._interval_s, self._journal = queue.interval_s, Journal(queue)
        self._report, self._may_write = report, may_write
        self._own_time = own_time or OwnTime(rules.trust)
        self._lines: list[list[ClockState]] = []
        self._states: dict[str, ClockState] = {}
        for bus, meters in lines:
            line = [ClockState(meter, bus) for meter in meters if not isinstance(meter.template, ModbusFamily)]
            self._lines.append(line)
            self._states |= {state.meter.name: state for state in line}
        self._ordering = {state.bus: asyncio.Lock() for state in self._states.values()}
        self._left: dict[str, str] = {}  # what was told already about meters that cannot be set
        self._stepped_at: datetime | None = None
        self._recall()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_own_time())
            for line in self._lines:
                if line:
                    tasks.create_task(self._watch(line))

    # ---- what others ask ---------------------------------------------------------------------------------------------

    @property
    def states(self) -> Mapping[str, ClockState]:
        return self._states

    def is_wrong(self, meter: str) -> bool | None:
        """Past the limit; None until it was read. What has no clock remembers nothing by it."""
        state = self._states.get(meter)
        return state.is_wrong if state else False

    def is_suspect(self, meter: str, at: datetime) -> bool:
        """Whether the meter's clock was wrong at ``at``, or lived it twice, as far as is known."""
        state = self._states.get(meter)
        if state is None:
            return False
        us = to_us(at)
        since_wrong = state.is_wrong and (state.right_at is None or at > state.right_at)
        return bool(since_wrong) or any(begin <= us <= end for begin, end in state.suspect)

    def hear(self, meter: str, meter_at: datetime | None, asked_at: datetime, answered_at: datetime) -> list[Event]:
        """Take what a sweep heard in passing: enough to see a clock that is far off, not to set it by."""
        state = self._states.get(meter)
        if state is None or meter_at is None or (state.corrected_at and asked_at <= state.corrected_at):
            return []
        return self._judge(state, Offset.of(meter_at, asked_at, answered_at))

    async def measure(self, meter: str, priority: Priority = Priority.BACKFILL) -> Offset | PollFailure:
        """Read one clock, remember it and report what it shows. ``meter`` must have a clock."""
        state = self._states[meter]
        reading = await state.bus.read_clock(state.meter, priority)
        if isinstance(reading, PollFailure):
            logger.debug("clock not read meter=%s reason=%s %s", meter, reading.reason, reading.detail)
            return reading
        return await self._take(state, reading)

    async def sync(self, meters: Iterable[str], *, asked_by: str, until: datetime | None = None) -> dict[str, Synced]:
        """Set these clocks now, by the rules of the policy; each meter's outcome. Ends by ``until``, or in an hour."""
        outcomes: dict[str, Synced] = {}
        wanted: dict[Bus, set[str]] = {}
        for name in dict.fromkeys(meters):
            state = self._states.get(name)
            if state is None:
                outcomes[name] = Synced(name, reason="this gateway has no such meter with a clock")
            elif self._rules.correct == "never":
                outcomes[name] = Synced(name, reason='the site file says clocks.correct = "never"')
            elif not state.takes_orders:
                outcomes[name] = Synced(name, reason="its Modbus table has no order that sets the clock")
            else:
                wanted.setdefault(state.bus, set()).add(name)
        until = min(until or datetime.max.replace(tzinfo=UTC), self._clock.now() + ASKED_WAIT)
        for done in await asyncio.gather(
            *(self._correct(bus, names, over_s=0.0, asked_by=asked_by, until=until) for bus, names in wanted.items())
        ):
            outcomes |= done
        return outcomes

    # ---- each day ----------------------------------------------------------------------------------------------------

    async def _watch(self, line: list[ClockState]) -> None:
        for state in line:
            if state.is_wrong is None:  # backfill may have looked already
                await self.measure(state.meter.name)
        retry_at = self._clock.now()
        while True:
            now = self._clock.now()
            off = {state.meter.name for state in line if state.is_wrong and self._is_ours(state)}
            if off and now >= retry_at:
                bus = line[0].bus
                done = await self._correct(bus, off, over_s=self._rules.limit_s, asked_by="policy", until=now + DAY)
                await self._tell_left(done.values())
                retry_at = self._clock.now() + RETRY
                continue
            at, index = min((_slot(i, len(line), now), i) for i in range(len(line)))
            if off and retry_at < at:
                await self._clock.sleep_until(retry_at)
            else:
                await self._clock.sleep_until(at)
                await self.measure(line[index].meter.name)

    def _is_ours(self, state: ClockState) -> bool:
        """Whether the daily policy sets it."""
        return self._rules.correct == "policy" and state.takes_orders

    async def _tell_left(self, outcomes: Iterable[Synced]) -> None:
        """Once per meter and reason: it stays so until somebody comes."""
        for outcome in outcomes:
            if outcome.reason and self._left.get(outcome.meter) != outcome.reason:
                logger.warning("meter clock left as it is meter=%s: %s", outcome.meter, outcome.reason)
                before_s = round(outcome.before.offset_s, 1) if outcome.before else None
                detail: Detail = {"reason": outcome.reason, "before_s": before_s}
                await self._tell("clock_not_corrected", outcome.meter, detail)
            self._left[outcome.meter] = outcome.reason

    async def _watch_own_time(self) -> None:
        while True:
            await self._clock.sleep(WATCH_S)
            await self._look_at_own_time()

    async def _look_at_own_time(self) -> str | None:
        """Why this box may set no clock now. A step of its own makes all it measured before worthless."""
        if step_s := self._own_time.step_s():
            await self._stepped(step_s)
        now = self._clock.now()
        if self._stepped_at is not None and abs(now - self._stepped_at) < CALM:
            return f"this gateway's own clock was set at {self._stepped_at:%Y-%m-%d %H:%M}Z; it sets others a day later"
        return self._own_time.doubt()

    async def _stepped(self, step_s: float) -> None:
        self._stepped_at = self._clock.now()
        logger.warning("the gateway's own clock was set by %+.1f s; meters' clocks are left alone for a day", step_s)
        for state in self._states.values():
            state.offset = state.base = state.right_at = None
        stepped_at = self._stepped_at
        await self._keep(lambda: self._journal.step(stepped_at))
        await self._tell("gateway_clock_stepped", None, {"step_s": round(step_s, 1)})

    # ---- a measurement -----------------------------------------------------------------------------------------------

    async def _take(self, state: ClockState, reading: ClockReading) -> Offset:
        offset = Offset.of(reading.meter_at, reading.asked_at, reading.answered_at)
        events = self._judge(state, offset)
        state.offset = offset
        order = state.open_order
        if order is not None and reading.asked_at > order.at:
            events.append(await self._settle(state, order, offset))
        events += self._drift(state, offset)
        found = Measured(offset, state.base, state.drift_s_per_day, state.right_at)
        await self._keep(lambda: self._journal.measure(state.meter.name, found))
        for event in events:
            await self._report(event)
        return offset

    def _judge(self, state: ClockState, offset: Offset) -> list[Event]:
        """``clock_drift`` when the clock is surely past the limit and was not before."""
        limit_s = self._rules.limit_s
        was_wrong = bool(state.is_wrong)
        if offset.most_s <= limit_s:
            state.is_wrong, state.right_at = False, offset.at
        else:  # what is too vague to tell changes nothing
            state.is_wrong = offset.least_s > limit_s or was_wrong
        if state.is_wrong == was_wrong:
            return []
        name = state.meter.name
        if not state.is_wrong:
            logger.info("meter clock is right again meter=%s", name)
            return []
        logger.warning("meter clock is wrong meter=%s offset_s=%.0f", name, offset.offset_s)
        detail: Detail = {
            "offset_s": round(offset.offset_s),
            "uncertainty_s": round(offset.uncertainty_s, 1),
            "drift_s_per_day": None if state.drift_s_per_day is None else round(state.drift_s_per_day, 2),
        }
        return [Event(at=to_us(offset.at), kind="clock_drift", meter=name, detail=detail)]

    def _drift(self, state: ClockState, offset: Offset) -> list[Event]:
        """Seconds a day from two measurements with no order between; ``clock_rate`` when it passes the limit."""
        base = state.base
        if base is None:
            state.base = offset
            return []
        days = (offset.at - base.at) / DAY
        if offset.at - base.at < DRIFT_OVER:
            return []
        state.base = offset
        limit, before = self._rules.drift_limit_s_per_day, state.drift_s_per_day
        drift = state.drift_s_per_day = (offset.offset_s - base.offset_s) / days
        unsure = (offset.uncertainty_s + base.uncertainty_s) / days
        logger.debug("clock drift meter=%s s_per_day=%.2f ± %.2f", state.meter.name, drift, unsure)
        if abs(drift) - unsure <= limit or (before is not None and abs(before) > limit):
            return []
        logger.warning("meter clock runs off meter=%s s_per_day=%.1f", state.meter.name, drift)
        detail: Detail = {
            "drift_s_per_day": round(drift, 2),
            "uncertainty_s_per_day": round(unsure, 2),
            "offset_s": round(offset.offset_s, 1),
        }
        return [Event(at=to_us(offset.at), kind="clock_rate", meter=state.meter.name, detail=detail)]

    # ---- an order ----------------------------------------------------------------------------------------------------

    async def _correct(
        self, bus: Bus, wanted: set[str], *, over_s: float, asked_by: str, until: datetime
    ) -> dict[str, Synced]:
        """Set what ``wanted`` meters of one line are surely off by more than ``over_s``, one order after the other."""
        line = next(line for line in self._lines if line and line[0].bus is bus)
        policy = Policy(over_s, self._may_write, self._interval_s)
        outcomes = {name: await self._look(name) for name in sorted(wanted)}
        if overdue(self._known(line, wanted), self._clock.now(), policy):
            for state in line:  # a broadcast needs to know them all
                await self._recent(state.meter.name)
        left = set(wanted)
        for _ in range(TRIES_MAX):
            outcomes |= {name: await self._look(name) for name in sorted(left)}
            left -= {name for name in left if outcomes[name].reason}
            if doubt := await self._look_at_own_time():
                return outcomes | {name: replace(outcomes[name], reason=doubt) for name in left}
            lead_s = AHEAD_S + sum(4 * state.offset.uncertainty_s for state in line if state.offset)
            lead = timedelta(seconds=min(lead_s, FRESH.total_seconds() / 2))
            decision = decide(self._known(line, left), self._clock.now() + lead, until, policy)
            if isinstance(decision, Leave):
                return outcomes | {name: replace(outcomes[name], reason=why) for name, why in decision.why.items()}
            # Others may use the line meanwhile, and ask for its clocks.
            await self._clock.sleep_until(decision.at - lead)
            moved = [decision.meter] if isinstance(decision, Write) else [state.meter.name for state in line]
            async with self._ordering[bus]:
                failure = await self._order(line, decision, moved, left, policy, asked_by)
            if failure is None:
                continue  # the moment was missed, or another decision is right by now
            method: Method = "write" if isinstance(decision, Write) else "broadcast"
            for name in left.intersection(moved):
                before, after = outcomes[name].before, self._states[name].offset
                outcomes[name] = Synced(name, before, after, method, failure or _shortfall(before, after))
            left -= set(moved)
        return outcomes | {name: replace(outcomes[name], reason=UNSTEADY) for name in left}

    def _known(self, line: Sequence[ClockState], wanted: set[str]) -> list[Known]:
        return [
            Known(name := state.meter.name, state.meter.zone, state.offset, state.corrected_at, name in wanted)
            for state in line
        ]

    async def _look(self, meter: str) -> Synced:
        offset = await self._recent(meter)
        if isinstance(offset, PollFailure):
            return Synced(meter, reason=f"{offset.reason.value}: {offset.detail}")
        return Synced(meter, offset)

    async def _recent(self, meter: str) -> Offset | PollFailure:
        offset = self._states[meter].offset
        if offset is not None and abs(self._clock.now() - offset.at) < FRESH / 2:
            return offset
        return await self.measure(meter, Priority.COMMAND)

    async def _order(
        self,
        line: Sequence[ClockState],
        decision: Broadcast | Write,
        moved: Sequence[str],
        wanted: set[str],
        policy: Policy,
        asked_by: str,
    ) -> str | None:
        """Measure, decide again, note it, send it, measure. Returns why it failed, or ""; None where it was not sent.

        Every clock an order moves was read just before and is read right after.
        """
        for name in moved:
            await self.measure(name, Priority.COMMAND)
        wanted = {decision.meter} if isinstance(decision, Write) else wanted
        if decide(self._known(line, wanted), decision.at, decision.at, policy) != decision:
            return None
        await self._clock.sleep_until(decision.at)
        before = decision.at + timedelta(seconds=LATE_S)
        states = [self._states[name] for name in moved]
        if self._clock.now() >= before or await self._look_at_own_time():
            return None
        way_s = max(state.offset.uncertainty_s for state in states if state.offset) - RESOLUTION_S / 2
        if not await self._note(decision, states, asked_by):
            return "the queue cannot be written: an order that cannot be noted is not given"
        # The frame has whole seconds and takes its way: on average it is right when it arrives.
        at = self._clock.now() + timedelta(seconds=RESOLUTION_S / 2 + way_s)
        bus = states[0].bus
        if isinstance(decision, Broadcast):
            failure = await bus.broadcast_clock(at, states[0].meter.zone, before=before)
        else:
            failure = await bus.write_clock(states[0].meter, at, before=before)
        if failure and failure.reason is Reason.EXPIRED:
            await self._withdraw(states)
            return None
        for state in states:
            state.offset = None  # what was measured before says nothing about it now
            await self.measure(state.meter.name, Priority.COMMAND)
        return f"{failure.reason.value}: {failure.detail}" if failure else ""

    async def _note(self, decision: Broadcast | Write, states: Sequence[ClockState], asked_by: str) -> bool:
        """The orders on disk, before anything is sent. False where the disk is full."""
        method: Method = "write" if isinstance(decision, Write) else "broadcast"
        at = self._clock.now()
        orders: list[Order] = []
        for state in states:
            assert state.offset is not None, "nobody decides on a clock that was not read"
            before_s = state.offset.offset_s
            logger.info(
                "clock to be set meter=%s before_s=%+.1f %s by=%s", state.meter.name, before_s, method, asked_by
            )
            orders.append(Order(state.meter.name, at, method, asked_by, before_s, None, self._suspected(state, at)))
        if not await self._keep(lambda: self._journal.order(orders)):
            return False
        for state, order in zip(states, orders, strict=True):
            state.open_order, state.corrected_at, state.base = order, at, None
            if order.suspect:
                state.suspect.append(order.suspect)
        return True

    async def _withdraw(self, states: Sequence[ClockState]) -> None:
        """Orders that were surely not sent: the meters may be told later today."""
        orders = [state.open_order for state in states if state.open_order]
        for state, order in zip(states, orders, strict=True):
            if order.suspect:
                state.suspect.remove(order.suspect)
            state.open_order = state.corrected_at = None
        await self._keep(lambda: self._journal.withdraw(orders))

    def _suspected(self, state: ClockState, at: datetime) -> tuple[int, int] | None:
        """The marks that were lived by a wrong clock, and those the step skips or lives twice, from mark to mark."""
        offset = state.offset
        assert offset is not None
        if offset.least_s <= self._rules.limit_s:
            return None
        old = at + timedelta(seconds=offset.offset_s)
        step_us = self._interval_s * 1_000_000
        right_us = to_us(state.right_at) if state.right_at else 0
        begin = min(-(-right_us // step_us), to_us(old) // step_us)
        end = -(-max(to_us(at), to_us(old)) // step_us)
        return begin * step_us, end * step_us

    async def _settle(self, state: ClockState, order: Order, after: Offset) -> Event:
        """The clock was read after an order: whether it was taken, and what it changed."""
        taken = abs(after.offset_s) < abs(order.before_s) / 2
        state.open_order, state.base = None, None
        if taken and state.is_wrong:  # nearer, and still past the limit
            logger.warning("meter clock still wrong meter=%s after_s=%+.1f", state.meter.name, after.offset_s)
        logger.info(
            "meter clock %s meter=%s method=%s before_s=%+.1f after_s=%+.1f asked_by=%s",
            "set" if taken else "not set",
            state.meter.name,
            order.method,
            order.before_s,
            after.offset_s,
            order.asked_by,
        )
        settled = replace(order, after_s=after.offset_s)
        await self._keep(lambda: self._journal.order([settled]))
        detail: Detail = {
            "method": order.method,
            "asked_by": order.asked_by,
            "ordered_at": order.at.isoformat(),
            "before_s": round(order.before_s, 1),
            "after_s": round(after.offset_s, 1),
            "uncertainty_s": round(after.uncertainty_s, 1),
        }
        if not taken:
            detail["reason"] = "the meter did not take it"
        elif order.suspect:
            detail["suspect_from"], detail["suspect_until"] = (from_us(us).isoformat() for us in order.suspect)
        kind = "clock_corrected" if taken else "clock_not_corrected"
        return Event(at=to_us(after.at), kind=kind, meter=state.meter.name, detail=detail)

    async def _tell(self, kind: str, meter: str | None, detail: Detail) -> None:
        await self._report(Event(at=to_us(self._clock.now()), kind=kind, meter=meter, detail=detail))

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """What a former process knew."""
        now = self._clock.now()
        self._stepped_at = self._journal.stepped_at()
        orders, measured = self._journal.orders(now), self._journal.measured()
        newest = max([*(order.at for order in orders), *(it.offset.at for it in measured.values()), now])
        if newest > now + SET_BACK:
            logger.warning("the gateway's own clock was set back; meters' clocks are left alone for a day")
            self._stepped_at = now
            self._journal.step(now)
            measured = {}
        for name, found in measured.items():
            if state := self._states.get(name):
                state.offset, state.base, state.right_at = found.offset, found.base, found.right_at
                state.drift_s_per_day = found.drift_s_per_day
        for order in orders:
            if state := self._states.get(order.meter):
                state.corrected_at, state.open_order = order.at, order if order.after_s is None else None
                state.suspect += [order.suspect] if order.suspect else []

    async def _keep(self, write: Callable[[], None]) -> bool:
        """False when the disk is full; what is lost then is only measured again."""
        try:
            await asyncio.to_thread(write)
        except sqlite3.OperationalError as error:
            logger.warning("clocks not kept: %s", error)
            return False
        return True


def _slot(index: int, count: int, now: datetime) -> datetime:
    """When meter ``index`` of ``count`` is measured next: spread over the day, outside of sweeps."""
    quarter, within = divmod((index + 0.5) * 86_400 / count, 900)
    seconds = quarter * 900 + min(max(within, QUIET_S[0]), QUIET_S[1])
    at = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(seconds=seconds)
    return at if at > now else at + DAY


def _shortfall(before: Offset | None, after: Offset | None) -> str:
    """Why an order that was sent has not made the clock right; empty where it has."""
    if after is None:
        return "it has not answered since; its clock is read again tomorrow"
    if before is not None and abs(after.offset_s) >= abs(before.offset_s) / 2:
        return "the meter did not take it"
    return ""
