"""The simulated site over time: registers at every mark, relays, and the truth behind them.

A pure function of (seed, meters, start) and the relay actions. Times are seconds since 1970 UTC. Days are local days
of the site (UTC+8); day 0 begins 62 days before the local day of ``start``, mark k is 900 k seconds later.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from functools import cached_property
from math import inf

import numpy as np
import numpy.typing as npt

from simulators import layout, meters
from simulators.layout import Habit
from simulators.loads import Loads
from simulators.meters import DAY_S, MeterClock, drifting
from simulators.powerflow import HV_V, AreaFlow
from simulators.profiles import QUARTERS, Array

Integers = npt.NDArray[np.integer]

ZONE = timezone(timedelta(hours=8))
INTERVAL_S = 900
DAYS_BEFORE = 62
WH_PER_STEP = 10  # resolution of every register
STEP_SLACK = 1e-6  # so that a sum that should be whole is not rounded down
HEAD_V = layout.SOURCE_PU * HV_V / 3**0.5
REGISTERS = 4  # import, export, reactive import, reactive export


@dataclass(slots=True)
class Day:
    """One local day. C customers, M meters (heads included), A areas, 96 intervals.

    Powers in W and var, mean over the interval: ``demand_*`` (C, 96) as the customer wants it, ``active_w`` and
    ``reactive_var`` (M, 96) as its meter registers it on the primary side; ``on`` (C, 96) the part of the interval the
    relay is closed; ``volts`` (M, 96) phase to neutral; ``energy`` (M, 96, 4) Wh and varh by the meter's register,
    before ratios; ``before`` (M, 4) the sum until this day; ``supplied_wh``, ``technical_wh`` and ``registered_wh``
    (A, 96).
    """

    number: int
    demand_w: Array
    demand_var: Array
    on: Array
    active_w: Array
    reactive_var: Array
    volts: Array
    energy: Array
    before: Array
    supplied_wh: Array
    technical_wh: Array
    registered_wh: Array


@dataclass(slots=True)
class Window:
    """A span of time; in it a relay is open."""

    opened_s: float
    closes_s: float


ALWAYS = Window(-inf, inf)


@dataclass(frozen=True, slots=True)
class Balance:
    """Wh of one area over one local day."""

    supplied_wh: float
    technical_wh: float
    registered_wh: float

    @property
    def unexplained_wh(self) -> float:
        return self.supplied_wh - self.technical_wh - self.registered_wh


@dataclass(frozen=True, slots=True)
class Power:
    """What a meter shows at one instant, on the primary side; volts phase to neutral."""

    active_w: float
    reactive_var: float
    volts: float
    frequency_hz: float


@dataclass
class World:
    seed: int
    meter_count: int
    start: datetime
    horizon_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.areas = layout.design(self.seed, self.meter_count)
        self.meters = meters.place(self.areas, self.seed)
        local = self.start.astimezone(ZONE)
        first = datetime(local.year, local.month, local.day, tzinfo=ZONE) - timedelta(days=DAYS_BEFORE)
        self.first_day = first.date()
        self.zero_s = self.horizon_s = round(first.timestamp())
        self.start_s = self.start.timestamp()
        self._loads = Loads(self.areas, self.seed, first.weekday())
        self._flows = [AreaFlow(area) for area in self.areas]
        # Meter rows: area by area, head first. Customer c is row ``_rows[c]``; area a has customers ``_spans[a]``.
        is_head = np.array([meter.role == "supply" for meter in self.meters])
        self._rows, self._heads = np.flatnonzero(~is_head), np.flatnonzero(is_head)
        self._customer = {int(row): c for c, row in enumerate(self._rows)}
        ends = np.cumsum([len(area.customers) for area in self.areas])
        self._spans = [
            slice(int(end) - len(area.customers), int(end)) for area, end in zip(self.areas, ends, strict=True)
        ]
        self._registered_share: Array = np.stack(
            [layout.registered_share(self.meters[row].habit) for row in self._rows]
        )
        self._ratio: Array = np.array([float(meter.ratio) for meter in self.meters])
        self.clocks = [
            drifting(self.start_s) if meter.habit is Habit.DRIFTING else MeterClock() for meter in self.meters
        ]
        rng = np.random.default_rng([self.seed, 4])
        kwh = rng.uniform(500, 60_000, (len(self.meters), REGISTERS)) * [1, 0.01, 0.3, 0.05]
        self._total: Array = np.floor(kwh * 100) * WH_PER_STEP / np.where(is_head, 10, 1)[:, None]
        self.registers: Integers = self._steps(self._total)[:, None, :]
        self._days: dict[int, Day] = {}  # from the local day of start on; older ones are only sums
        self._sums: list[tuple[Array, Array, Array]] = []
        self._windows: dict[int, list[Window]] = {}  # by customer
        # (row, mark) → (time, registers): where a relay acted inside the interval after the mark.
        self._anchors: dict[tuple[int, int], tuple[float, Integers]] = {}

    # ---- computing days ------------------------------------------------------------------------------------------

    def extend(self, until_s: float) -> None:
        """Compute whole days until ``until_s`` is covered."""
        fresh: list[Integers] = []
        while self.horizon_s < until_s:
            number = round(self.horizon_s - self.zero_s) // DAY_S
            day = self._new_day(number)
            shown = fresh[-1][:, -1:] if fresh else self.registers[:, -1:]
            sums = self._accumulate(day, slice(None))
            fresh.append(np.maximum(self._steps(sums), shown))
            self._total = sums[:, -1]
            self._sums.append((day.supplied_wh, day.technical_wh, day.registered_wh))
            if number >= DAYS_BEFORE:
                self._days[number] = day
            self.horizon_s += DAY_S
        if fresh:
            self.registers = np.concatenate([self.registers, *fresh], axis=1)

    def _new_day(self, number: int) -> Day:
        demand_w, demand_var = self._loads.day(number)
        count, areas = len(self.meters), len(self.areas)
        day = Day(
            number, demand_w, demand_var, np.ones_like(demand_w),
            active_w=np.zeros((count, QUARTERS)), reactive_var=np.zeros((count, QUARTERS)),
            volts=np.zeros((count, QUARTERS)), energy=np.zeros((count, QUARTERS, REGISTERS)), before=self._total.copy(),
            supplied_wh=np.zeros((areas, QUARTERS)), technical_wh=np.zeros((areas, QUARTERS)),
            registered_wh=np.zeros((areas, QUARTERS)),
        )  # fmt: skip
        for c in self._windows:
            day.on[c] = self._on(c, number)
        for area in range(areas):
            self._solve(day, area, np.arange(QUARTERS))
        return day

    def _solve(self, day: Day, area: int, quarters: Integers) -> None:
        """Fill in ``quarters`` of the day for one area: flows, voltages, energies."""
        span, head = self._spans[area], self._heads[area]
        rows = self._rows[span]
        on = day.on[span, quarters]
        drawn_w, drawn_var = day.demand_w[span, quarters] * on, day.demand_var[span, quarters] * on
        flow = self._flows[area].solve(drawn_w, drawn_var)
        here = np.ix_(rows, quarters)
        share = self._registered_share[span, quarters]
        day.active_w[here], day.reactive_var[here] = drawn_w * share, drawn_var * share
        day.active_w[head, quarters], day.reactive_var[head, quarters] = flow.head_w, flow.head_var
        day.volts[here], day.volts[head, quarters] = flow.customer_v, HEAD_V
        hours = INTERVAL_S / 3600
        day.supplied_wh[area, quarters] = flow.head_w * hours
        day.technical_wh[area, quarters] = flow.technical_w * hours
        day.registered_wh[area, quarters] = day.active_w[here].sum(axis=0) * hours
        every, when = np.ix_(np.append(rows, head), quarters)
        scale = hours / self._ratio[every]
        for first, power in ((0, day.active_w[every, when]), (2, day.reactive_var[every, when])):
            day.energy[every, when, first] = power.clip(min=0) * scale
            day.energy[every, when, first + 1] = (-power).clip(min=0) * scale

    @staticmethod
    def _accumulate(day: Day, rows: Integers | slice) -> Array:
        """(rows, 96, 4) Wh and varh by the meters' registers at the end of each interval."""
        sums: Array = day.before[rows, None] + day.energy[rows].cumsum(axis=1)
        return sums

    @staticmethod
    def _steps(energy: Array) -> Integers:
        steps: Integers = np.floor(energy / WH_PER_STEP + STEP_SLACK).astype(np.int32)
        return steps

    # ---- relays --------------------------------------------------------------------------------------------------

    def set_relay(self, row: int, at_s: float, *, closed: bool, expires_s: float = inf) -> None:
        """Open until ``expires_s`` or a close, or close. What meters have shown before ``at_s`` stays shown."""
        self.extend(at_s + 1)
        customer = self._customer[row]
        (area,) = (a for a, span in enumerate(self._spans) if span.start <= customer < span.stop)
        touched = np.array([self._heads[area], row])
        mark = self._mark(at_s)
        # Before the relay moves: an open relay changes how the energy of this interval is spread over it.
        head_shows, row_shows = (self.reading(int(one), at_s) for one in touched)
        counted = self._steps(self._counted(row, mark, at_s))  # what an open relay will hold it at
        anchors = {
            (int(self._heads[area]), mark): (at_s, head_shows),
            (row, mark): (at_s, np.maximum(row_shows, counted)),
        }
        windows = self._windows.setdefault(customer, [])
        current = next((w for w in windows if w.opened_s <= at_s < w.closes_s), None)
        if current:
            current.closes_s = at_s if closed else expires_s
        elif not closed:
            windows.append(Window(at_s, expires_s))
        self._anchors |= anchors
        number = mark // QUARTERS
        last = max(self._days)
        for later in range(number, last + 1):
            day = self._days[later]
            on = self._on(customer, later)
            changed = np.flatnonzero(on != day.on[customer])
            if len(changed):
                day.on[customer] = on
                self._solve(day, area, changed)
        sums: list[Array] = []
        for later in range(number, last + 1):
            day = self._days[later]
            if sums:
                day.before[touched] = sums[-1][:, -1]
            sums.append(self._accumulate(day, touched))
        self._total[touched] = sums[-1][:, -1]
        # Rounding, and losses that are not quite linear, must not turn a register back: shown stays shown.
        floor = np.stack([self._anchors[int(one), mark][1] for one in touched])
        fresh = self._steps(np.concatenate(sums, axis=1))[:, mark - number * QUARTERS :]
        self.registers[touched, mark + 1 :] = np.maximum(fresh, floor[:, None])

    def forget(self, before_s: float) -> None:
        """Let go of what live values and relays need no more; registers and sums stay."""
        for number in [n for n in self._days if self.zero_s + (n + 1) * DAY_S <= before_s]:
            del self._days[number]

    def is_closed(self, row: int, at_s: float) -> bool:
        windows = self._windows.get(self._customer.get(row, -1), ())
        return not any(window.opened_s <= at_s < window.closes_s for window in windows)

    def _on(self, customer: int, number: int) -> Array:
        """(96,) part of each interval of the day in which the relay is closed."""
        on: Array = 1 - self._open_s(customer, number) / INTERVAL_S
        return on

    def _open_s(self, customer: int, number: int, within: Window = ALWAYS) -> Array:
        """(96,) seconds of each interval of the day, and of ``within``, in which the relay is open."""
        total: Array = np.zeros(QUARTERS)
        for window in self._windows.get(customer, ()):
            both = Window(max(window.opened_s, within.opened_s), min(window.closes_s, within.closes_s))
            total += self._inside_s(both, number)
        return total

    def _inside_s(self, window: Window, number: int) -> Array:
        """(96,) seconds of each interval of the day that lie in ``window``."""
        from_s = self.zero_s + number * DAY_S + np.arange(QUARTERS) * INTERVAL_S
        inside: Array = np.minimum(from_s + INTERVAL_S, window.closes_s) - np.maximum(from_s, window.opened_s)
        return inside.clip(0)

    # ---- what meters show ----------------------------------------------------------------------------------------

    def _mark(self, at_s: float) -> int:
        return int((at_s - self.zero_s) // INTERVAL_S)

    def reading(self, row: int, at_s: float) -> Integers:
        """(4,) registers in steps of 10 Wh at any moment since day 0, between marks in proportion to closed time."""
        self.extend(at_s + 1)
        mark = self._mark(at_s)
        from_s, until_s = float(self.zero_s + mark * INTERVAL_S), self.zero_s + (mark + 1) * INTERVAL_S
        before, after = self.registers[row, mark], self.registers[row, mark + 1]
        anchor = self._anchors.get((row, mark))
        if anchor and at_s >= anchor[0]:
            from_s, before = anchor
        passed_s, whole_s = self._on_s(row, from_s, at_s), self._on_s(row, from_s, until_s)
        passed = passed_s / whole_s if whole_s else 0.0
        shown: Integers = before + np.floor((after - before) * passed + STEP_SLACK).astype(np.int32)
        return shown

    def _counted(self, row: int, mark: int, at_s: float) -> Array:
        """(4,) Wh and varh by the meter's register at a moment of the interval after ``mark``, not rounded."""
        day, quarter = self._days[mark // QUARTERS], mark % QUARTERS
        from_s = float(self.zero_s + mark * INTERVAL_S)
        whole_s = self._on_s(row, from_s, from_s + INTERVAL_S)
        passed = self._on_s(row, from_s, at_s) / whole_s if whole_s else 0.0
        counted: Array = day.before[row] + day.energy[row, :quarter].sum(axis=0) + day.energy[row, quarter] * passed
        return counted

    def _on_s(self, row: int, from_s: float, to_s: float) -> float:
        """Seconds of [from_s, to_s) in which the meter's relay is closed."""
        windows = self._windows.get(self._customer.get(row, -1), ())
        return to_s - from_s - sum(max(0.0, min(to_s, w.closes_s) - max(from_s, w.opened_s)) for w in windows)

    def record(self, row: int, meter_mark_s: int, now_s: float) -> list[int] | None:
        """The registers in the load profile at a mark of the meter's own clock; None where its memory has none."""
        clock = self.clocks[row]
        true_s = clock.true(meter_mark_s, by_s=now_s)
        if true_s is None or meter_mark_s % INTERVAL_S or true_s < self.zero_s:
            return None
        self.extend(true_s + 1)
        if clock.is_right:
            shown = self.registers[row, (meter_mark_s - self.zero_s) // INTERVAL_S]
        else:
            shown = self.reading(row, true_s)
        steps: list[int] = shown.tolist()
        return steps

    def power(self, row: int, at_s: float) -> Power:
        """Live values; days before the local day of ``start`` have none."""
        self.extend(at_s + 1)
        mark = self._mark(at_s)
        day, quarter = self._days[mark // QUARTERS], mark % QUARTERS
        active_w, reactive_var = day.active_w[row, quarter], day.reactive_var[row, quarter]
        customer = self._customer.get(row)
        if customer in self._windows:
            share = self._registered_share[customer, quarter] * self.is_closed(row, at_s)
            active_w, reactive_var = day.demand_w[customer, quarter] * share, day.demand_var[customer, quarter] * share
        return Power(float(active_w), float(reactive_var), float(day.volts[row, quarter]), self._frequency_hz(at_s))

    def _frequency_hz(self, at_s: float) -> float:
        return 50 + 0.02 * float(np.sin(at_s / 97) + np.sin(at_s / 613))

    # ---- truth ---------------------------------------------------------------------------------------------------

    def balances(self) -> Iterator[tuple[str, date, Balance]]:
        """(area, local day, balance) of every day computed."""
        for number, sums in enumerate(self._sums):
            for a, area in enumerate(self.areas):
                yield (
                    area.plan.area,
                    self.first_day + timedelta(days=number),
                    Balance(*(float(s[a].sum()) for s in sums)),
                )

    def supplied_w(self) -> Array:
        """(areas, days, 96) W at the heads."""
        return np.stack([sums[0] for sums in self._sums], axis=1) * (3600 / INTERVAL_S)

    def drawn_wh(self, row: int, from_s: float, to_s: float) -> tuple[float, float]:
        """(what the customer would have drawn, what it drew) in Wh, from the local day of ``start`` on."""
        self.extend(to_s)
        customer = self._customer[row]
        wanted = drew = 0.0
        for number, day in self._days.items():
            inside_s = self._inside_s(Window(from_s, to_s), number)
            on_s = inside_s - self._open_s(customer, number, Window(from_s, to_s))
            wanted += float(day.demand_w[customer] @ inside_s) / 3600
            drew += float(day.demand_w[customer] @ on_s) / 3600
        return wanted, drew

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {meter.point: row for row, meter in enumerate(self.meters)}


def default_start(now: datetime) -> datetime:
    """17:00 of yesterday, local time: the evening peak is near, and the clock has a day to catch up with the wall."""
    local = now.astimezone(ZONE) - timedelta(days=1)
    return local.replace(hour=17, minute=0, second=0, microsecond=0).astimezone(UTC)
