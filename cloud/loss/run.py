"""Where the energy of a folder's areas went: balance, technical loss, suspects and voltages."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloud.engines.loss import balance
from cloud.engines.loss.balance import Balance, Errors, Filled, Limits, Meters
from cloud.engines.loss.fitted import PastError, fit_technical
from cloud.engines.loss.gaps import Settled, settle
from cloud.engines.loss.localise import AreaBalance, Suspects
from cloud.loss import checks, technical
from cloud.loss.folder import Folder, Meter
from cloud.loss.technical import AreaFlow

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Progress = Callable[[str], None]

_LOCALISE_DAYS: Final = 14  # fewer tell no habit from a change
_DAY_S: Final = 23 * 3600  # the shortest
_SECONDARY: Final = (0.85, 1.1)  # of the ratio, that what was delivered is of what the head shows
_NAMED_MAX: Final = 3  # meters a reason names
_PHASES: Final = "abc"


@dataclass(frozen=True, slots=True)
class Options:
    """``zone``: whose days and months.  ``past_days``: what a technical loss is fitted on, from the first interval on.

    ``fit``: fit it even where the network is known.  ``voltage_low``, ``voltage_high``: limits in percent of rated.
    """

    zone: ZoneInfo = field(default_factory=lambda: ZoneInfo("UTC"))
    limits: Limits = field(default_factory=Limits)
    errors: Errors = field(default_factory=Errors)
    past_days: int = 30
    fit: bool = False
    voltage_low: float = -10.0
    voltage_high: float = 7.0


@dataclass(frozen=True, slots=True)
class AreaRun:
    """One area's answer. T intervals, M customers (generation among them) named ``customers``.

    ``how``: flow | fitted | none.  ``use``: (T,) aligned intervals.  ``supplied_wh``: (T,) net at the head, NaN where
    it was not measured.  ``drawn``: (T, M) net.  ``technical_wh``: (T,) or None.  ``over``: balance of any
    windows (T,).  ``rest_wh``, ``rest_sd_wh``: unexplained of the whole record, with the intervals that are not
    aligned.  ``doubts``: where a meter hangs otherwise than booked, in words.
    """

    area_id: str
    customers: tuple[str, ...]
    how: str
    why: str
    use: NDArray[np.bool_]
    supplied_wh: Array
    drawn: Filled
    technical_wh: Array | None
    intervals: Balance
    days: Balance
    months: Balance
    whole: Balance
    over: Callable[[Index], Balance]
    rest_wh: float
    rest_sd_wh: float
    voltages: pa.Table | None
    tree: pa.Table | None
    suspects: Suspects | None = None
    doubts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Calendar:
    """``day``, ``month``: (T,) numbers from 0, ascending; ``day_start``, ``month_start`` in UTC.

    ``first_step_of_day``: steps past local midnight at the first interval.
    """

    day: Index
    month: Index
    day_start: NDArray[np.datetime64]
    month_start: NDArray[np.datetime64]
    first_step_of_day: int


def calendar(starts: NDArray[np.datetime64], step_s: int, zone: ZoneInfo) -> Calendar:
    """Local days and months of (T,) UTC interval starts; a day may have 23 or 25 hours."""
    first = starts[0].astype("datetime64[D]") - 1
    dates = np.arange(first, starts[-1].astype("datetime64[D]") + 2)
    midnights = np.array([_utc(day, zone) for day in dates.tolist()], "datetime64[us]")
    at = np.searchsorted(midnights, starts, side="right") - 1
    months = dates.astype("datetime64[M]")[at]
    day, month = (np.unique(values, return_index=True, return_inverse=True) for values in (at, months))
    return Calendar(
        np.asarray(day[2], np.intp),
        np.asarray(month[2], np.intp),
        starts[day[1]],
        starts[month[1]],
        int((starts[0] - midnights[at[0]]) // np.timedelta64(step_s, "s")),
    )


def _utc(day: date, zone: ZoneInfo) -> str:
    return datetime.combine(day, time(), zone).astimezone(UTC).replace(tzinfo=None).isoformat()


def run(folder: Folder, options: Options, progress: Progress = lambda line: None) -> list[AreaRun]:
    """The answer for each area of a folder, in the order of its meters.csv."""
    days = calendar(folder.measurements.time, folder.measurements.step_s, options.zone)
    areas = []
    for number, area_id in enumerate(folder.areas, 1):
        progress(f"area {number} of {len(folder.areas)}: {area_id}")
        areas.append(_prepare(folder, area_id, options, days))
    whole_days = int((np.bincount(days.day) * folder.measurements.step_s >= _DAY_S).sum())
    known = [area for area in areas if area.use.any() and whole_days >= _LOCALISE_DAYS]
    progress(f"customers of {len(known)} areas")
    booked = [checks.Booked(area.area_id, area.customers, _for_localise(area, folder, days)) for area in known]
    found, doubts = checks.suspects(folder, booked, options.errors.clock_s) if booked else ([], {})
    by_area = {area.area_id: one for area, one in zip(known, found, strict=True)}
    of_area = {meter.meter_id: meter.area_id for meter in folder.meters.rows}
    progress(f"balance of {len(areas)} areas")
    return [
        _answer(
            _again(area, by_area.get(area.area_id), folder, options),
            folder,
            options,
            days,
            by_area.get(area.area_id),
            {name: words for name, words in doubts.items() if of_area[name] == area.area_id},
        )
        for area in areas
    ]


def limits_of(folder: Folder, name: str, options: Options) -> Limits:
    """Of areas.csv where it has some for an area or what it is summed up in, else those of the options."""
    row = next((row for row in folder.registry if row.area_id == name), None)
    low, high = (row.low_percent, row.high_percent) if row else (None, None)
    given = options.limits
    return replace(
        given,
        low_percent=given.low_percent if low is None else low,
        high_percent=given.high_percent if high is None else high,
    )


@dataclass(frozen=True, slots=True)
class _Technical:
    """``sd_wh``: of its sum over windows, None when it is a share of it.  ``flow`` only where it came from one."""

    how: str
    why: str
    wh: Array | None = None
    sd_wh: Callable[[Index], Array] | None = None
    flow: AreaFlow | None = None
    voltage_pu: Array | None = None


@dataclass(frozen=True, slots=True)
class _Area:
    """What is known of an area before anybody is suspected. ``drawing``: rows of the folder's meters, M.

    ``settled``: gaps as the head knows them, None without a technical loss.  ``never``: why there is no balance.
    """

    area_id: str
    drawing: tuple[int, ...]
    customers: tuple[str, ...]
    head: Meters
    drawn: Meters
    fed_in: Array
    supplied_wh: Array
    use: NDArray[np.bool_]
    never: str
    found: _Technical
    settled: Settled | None


def _prepare(folder: Folder, area_id: str, options: Options, days: Calendar) -> _Area:
    rows = folder.meters.rows
    heads = [i for i, m in enumerate(rows) if m.area_id == area_id and m.role == "supply"]
    drawing = [i for i, m in enumerate(rows) if m.area_id == area_id and m.role in ("customer", "generation")]
    steps_per_day = _steps_per_day(folder)
    head, _ = _meters(folder, heads, steps_per_day)
    drawn, fed_in = _meters(folder, drawing, steps_per_day)
    use = balance.aligned_steps(head, drawn, options.limits.filled_share_max)
    use &= bool(heads) and bool(drawing)
    supplied_wh = np.where(head.filled.filled.any(axis=1), np.nan, head.filled.wh.sum(axis=1))
    never = _never(rows, heads, drawing, head, drawn, area_id)
    if use.any() and (ratio := _secondary(rows, heads, head, drawn, fed_in, use)):
        never = (
            f"{drawn.net(use).sum() / head.net(use).sum():.1f} times of what the head shows was delivered: multiply "
            f"its energies by its ct_ratio x pt_ratio of {ratio:g}, or correct the ratio"
        )
        use &= False
    found = _Technical("none", "")
    if use.any():
        found = _technical(folder, area_id, (heads, drawing), (head, drawn), supplied_wh, use, options, days)
    settled = None
    if found.wh is not None:
        settled = settle(supplied_wh, drawn.filled, found.wh, use, steps_per_day)
    names = tuple(rows[i].meter_id for i in drawing)
    return _Area(area_id, tuple(drawing), names, head, drawn, fed_in, supplied_wh, use, never, found, settled)


def _again(area: _Area, suspects: Suspects | None, folder: Folder, options: Options) -> _Area:
    """The technical loss with what suspects take drawn where they are; the voltages of the same flow.

    A theft at the end of a feeder costs more in the wires than the same spread over the area.
    """
    if area.found.flow is None:
        return area
    steps_per_day = _steps_per_day(folder)
    drawn = area.drawn.filled
    beside_wh = np.zeros_like(drawn.wh)
    if suspects and suspects.unrecorded_wh:
        who = np.array(list(suspects.unrecorded_wh))
        told = np.column_stack(list(suspects.unrecorded_wh.values()))
        # A record's gap does not tell what was taken in it.
        measured = area.use[:, None] & ~drawn.filled[:, who]
        beside_wh[:, who] = balance.fill(np.where(measured, told, np.nan), steps_per_day).wh
    solved = area.found.flow.solve(
        drawn, area.supplied_wh, area.use, steps_per_day=steps_per_day, clock_s=options.errors.clock_s,
        beside_wh=beside_wh, voltages=True,
    )  # fmt: skip
    if isinstance(solved, str):  # a suspect who would take more than the wires carry is none
        return area
    whole = Filled(drawn.wh + beside_wh, drawn.sd_wh, drawn.filled, drawn.spread)
    settled = settle(area.supplied_wh, whole, solved.wh, area.use, steps_per_day)
    settled = replace(
        settled,
        rest_wh=settled.rest_wh + beside_wh.sum(axis=1),
        drawn=replace(settled.drawn, wh=settled.drawn.wh - beside_wh),
    )
    found = replace(area.found, wh=solved.wh, voltage_pu=solved.voltage_pu)
    return replace(area, found=found, settled=settled)


def _answer(
    area: _Area,
    folder: Folder,
    options: Options,
    days: Calendar,
    suspects: Suspects | None,
    doubts: Mapping[str, str],
) -> AreaRun:
    found, settled = area.found, area.settled
    drawn = area.drawn if settled is None else Meters(settled.drawn, area.drawn.gain)
    # A fitted loss has the meters' usual gain error in it, so what is left has it no more.
    sides = (_no_gain(area.head), _no_gain(drawn)) if found.how == "fitted" else (area.head, drawn)

    def over(window: Index) -> Balance:
        return balance.balance(
            *sides, area.fed_in, found.wh, window, use=area.use, step_s=folder.measurements.step_s,
            errors=options.errors, limits=limits_of(folder, area.area_id, options),
            technical_sd_wh=found.sd_wh(window) if found.sd_wh else None, why=found.why, why_never=area.never,
        )  # fmt: skip

    steps = len(area.use)
    whole = over(np.zeros(steps, np.intp))
    rest_wh = rest_sd_wh = np.nan
    if settled is not None:
        rest_wh = float(settled.rest_wh.sum())
        rest_sd_wh = float(np.hypot((whole.hi_wh[0] - whole.lo_wh[0]) / 2 / balance.Z80, settled.gap_sd_wh))
    volts = tree = None
    if found.flow is not None:
        tree = technical.tree(found.flow, folder, area.area_id)
        if found.voltage_pu is not None:
            limits = options.voltage_low, options.voltage_high
            volts = technical.voltages(
                found.flow, found.voltage_pu, folder, area.area_id, days.day, days.day_start, *limits
            )
    return AreaRun(
        area.area_id, area.customers, found.how, found.why, area.use, area.supplied_wh, drawn.filled, found.wh,
        over(np.arange(steps)), over(days.day), over(days.month), whole, over, rest_wh, rest_sd_wh, volts, tree,
        suspects, doubts,
    )  # fmt: skip


def _for_localise(area: _Area, folder: Folder, days: Calendar) -> AreaBalance:
    mine = [folder.meters.rows[i] for i in area.drawing]
    three_phase = np.array([len(meter.phases) == 3 for meter in mine])
    drawn = area.drawn.filled if area.settled is None else area.settled.drawn
    return AreaBalance(
        supplied_wh=np.where(area.use, area.supplied_wh, np.nan),
        customer_wh=drawn.wh,
        technical_wh=area.found.wh,
        customer_sd_wh=drawn.sd_wh,
        step_s=folder.measurements.step_s,
        first_step_of_day=days.first_step_of_day,
        supply_gain_sd=float(area.head.gain.mean()),
        customer_gain_sd=float(np.mean([balance.gain_sd(meter.accuracy_class, supply=False) for meter in mine])),
        three_phase=None if three_phase.all() else three_phase,  # all: what an unknown one says
        ct_ratio=np.array([meter.ct_ratio for meter in mine]),
    )


def _technical(
    folder: Folder,
    area_id: str,
    columns: tuple[Sequence[int], Sequence[int]],
    sides: tuple[Meters, Meters],
    supplied_wh: Array,
    use: NDArray[np.bool_],
    options: Options,
    days: Calendar,
) -> _Technical:
    """By flow where the network is known, else fitted on the area's own past, else none; with the reason."""
    why = ""
    measured = folder.measurements
    steps_per_day = _steps_per_day(folder)
    drawn_wh = sides[1].filled.wh
    if not options.fit:
        flow = technical.area_flow(folder, area_id, *columns)
        if isinstance(flow, str):
            why = f"{flow}; "
        else:
            solved = flow.solve(
                sides[1].filled, supplied_wh, use, steps_per_day=steps_per_day, clock_s=options.errors.clock_s
            )
            if not isinstance(solved, str):
                return _Technical("flow", "", solved.wh, None, flow)
            why = f"{solved}; "
    each = np.arange(len(measured.time))
    variances = [_no_gain(side).variance(use, each, options.errors, measured.step_s) for side in sides]
    total_wh = drawn_wh[use].sum(axis=0)
    drawn_gain = np.sqrt(((sides[1].gain * total_wh) ** 2).sum()) / max(abs(float(total_wh.sum())), 1.0)
    try:
        fitted = fit_technical(
            np.where(use, supplied_wh, 0.0),
            drawn_wh,
            use & (days.day < options.past_days),
            np.sqrt(sum(variances)),
            float(np.hypot(sides[0].gain.mean(), drawn_gain)),
            steps_per_day=steps_per_day,
            phase_share=_phase_share([folder.meters.rows[i].phases for i in columns[1]]),
        )
    except PastError as error:
        return _Technical("none", f"{why}{error}")

    def sd_wh(window: Index) -> Array:
        return fitted.sd(balance.sums(np.where(use[:, None], fitted.features, 0.0), window))

    return _Technical(
        "fitted",
        f"{why}technical loss fitted on the first {options.past_days} days, of which it explains "
        f"{100 * fitted.explained:.0f} %",
        fitted.technical_wh,
        sd_wh,
    )


def _steps_per_day(folder: Folder) -> int:
    return max(1, 86_400 // folder.measurements.step_s)


def _never(
    rows: Sequence[Meter], heads: Sequence[int], drawing: Sequence[int], head: Meters, drawn: Meters, area_id: str
) -> str:
    """Why the area's balance can never be computed; "" when it can."""
    if not heads or not drawing:
        return f"no {'customer' if heads else 'head'} meter in {area_id}; add it to meters.csv"
    silent = [
        rows[i].meter_id
        for columns, side in ((heads, head), (drawing, drawn))
        for i, never in zip(columns, np.asarray(np.isnan(side.filled.wh).any(axis=0)).tolist(), strict=True)
        if never
    ]
    more = f" and {len(silent) - _NAMED_MAX} more" if len(silent) > _NAMED_MAX else ""
    return f"no reading ever from {', '.join(silent[:_NAMED_MAX])}{more}; visit or replace" if silent else ""


def _secondary(
    rows: Sequence[Meter], heads: Sequence[int], head: Meters, drawn: Meters, fed_in: Array, use: NDArray[np.bool_]
) -> float:
    """The ratio that seems to be missing in the records of an area's one head meter; 0 when none is."""
    ratio = rows[heads[0]].ct_ratio * rows[heads[0]].pt_ratio
    shown = float(head.net(use).sum())
    if len(heads) != 1 or ratio <= 2 or shown <= 0 or fed_in.any():
        return 0.0
    return ratio if _SECONDARY[0] < drawn.net(use).sum() / shown / ratio < _SECONDARY[1] else 0.0


def _meters(folder: Folder, columns: Sequence[int], steps_per_day: int) -> tuple[Meters, Array]:
    """Filled net energy of some meters, and (T,) what they fed in: import of the head is drawn from above."""
    measured = folder.measurements
    at = np.asarray(columns, np.intp)
    guess = measured.estimated[:, at]
    net = balance.fill(measured.imported_wh[:, at], steps_per_day, estimated=guess)
    exported = measured.exported_wh[:, at]
    feeding = np.flatnonzero(np.nansum(exported, axis=0) > 0)
    fed_in = np.zeros(len(measured.time))
    if len(feeding):
        out = balance.fill(exported[:, feeding], steps_per_day, estimated=guess[:, feeding])
        wh, sd, spread = net.wh.copy(), net.sd_wh.copy(), net.spread.copy()
        wh[:, feeding] -= out.wh
        sd[:, feeding] = np.hypot(sd[:, feeding], out.sd_wh)
        spread[feeding] = np.maximum(spread[feeding], out.spread)
        net = Filled(wh, sd, net.filled, spread)
        fed_in = np.nansum(out.wh, axis=1)
    rows = folder.meters.rows
    gain = np.array([balance.gain_sd(rows[i].accuracy_class, rows[i].role == "supply") for i in columns])
    return Meters(net, gain), fed_in


def _no_gain(meters: Meters) -> Meters:
    return Meters(meters.filled, np.zeros_like(meters.gain))


def _phase_share(phases: Sequence[str]) -> Array | None:
    """(M, 3) equal shares of each meter's phases; None when all are three-phase, which is what an unknown one says."""
    share = np.array([[letter in name for letter in _PHASES] for name in phases], np.float64)
    return None if share.all() else share / share.sum(axis=1, keepdims=True)
