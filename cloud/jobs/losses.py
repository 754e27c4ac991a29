"""Loss of each area and business day: measured at the head, explained by the wires, and what is left, with how sure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from cloud.engines.loss import balance
from cloud.engines.loss.balance import NOT_COMPUTABLE, PROFILE_DAYS, STATES, Errors, Filled, Limits, Meters
from cloud.engines.loss.flow import NoSolutionError
from cloud.jobs.areas import (
    Area,
    Point,
    gain_of,
    load_areas,
    load_energy,
    load_head_v,
    load_points,
    membership,
    role_of,
    source_pu,
    technical_loss,
)
from cloud.jobs.calendar import Calendar, floor_mark
from cloud.jobs.columns import INTERVAL_S, to_mark
from protocols.uplink import to_us

Connection = psycopg.Connection[tuple[Any, ...]]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

STEPS_PER_DAY: Final = 86_400 // INTERVAL_S
# Where more of an area's customers are missing it is the area that was not read: nothing is put in for them.
_MISSING_MAX: Final = 0.5
_NAMED_MAX: Final = 3  # missing meters a reason names
_AROUND: Final = timedelta(days=PROFILE_DAYS)


@dataclass(frozen=True, slots=True)
class DayLoss:
    """Wh. ``lo``, ``hi``: 80 % interval of the unexplained.  ``fed_in``: by the head and by generation.

    ``aligned``: intervals that count.  ``filled``: customers' intervals among them that were put in.
    """

    state: str
    reason: str
    supplied_wh: float | None = None
    delivered_wh: float | None = None
    technical_wh: float | None = None
    unexplained_wh: float | None = None
    lo_wh: float | None = None
    hi_wh: float | None = None
    fed_in_wh: float | None = None
    aligned: int = 0
    filled: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """An area's P points in T intervals, with what was missing put in where its habit is known.

    ``wh``: (T, P) net, 0 while a point does not belong to the area, NaN where nothing could be put in.  ``sd_wh``: its
    error, 0 where measured.  ``missing``: (T, P).  ``lost``: (T,) the head, or most customers, were not read.
    ``spread``: (P,) of ``Filled``.  ``varh``: NaN where not measured.
    """

    points: tuple[Point, ...]
    supply: Mask
    customer: Mask
    member: Mask
    wh: Array
    varh: Array
    export_wh: Array
    sd_wh: Array
    spread: Array
    missing: Mask
    lost: Mask

    def meters(self, steps: slice, which: Mask) -> Meters:
        filled = Filled(self.wh[steps, which], self.sd_wh[steps, which], self.missing[steps, which], self.spread[which])
        return Meters(filled, gain_of([p for p, there in zip(self.points, which, strict=True) if there]))

    def aligned(self, steps: slice, share_max: float) -> Mask:
        """(T,) intervals that count: the head and most of what was delivered were measured."""
        there = self.member[steps].any(axis=0)
        head, drawn = (self.meters(steps, which & there) for which in (self.supply, self.customer))
        return balance.aligned_steps(head, drawn, share_max) & ~self.lost[steps]


def update_losses(
    connection: Connection,
    calendar: Calendar,
    area_days: Iterable[tuple[str, date]],
    *,
    first_mark: datetime,
    now: datetime,
) -> None:
    """Compute and store the loss of each (area, business day)."""
    wanted: dict[str, list[date]] = {}
    for area_id, day in sorted(set(area_days)):
        wanted.setdefault(area_id, []).append(day)
    for area in load_areas(connection, list(wanted), now):
        with connection.transaction(), connection.cursor() as cursor:
            for days in _runs(wanted[area.area_id]):
                found = day_losses(cursor, calendar, area, days, first_mark, now)
                cursor.executemany(
                    _UPSERT,
                    [
                        (
                            area.area_id, day, loss.supplied_wh, loss.delivered_wh, loss.technical_wh,
                            loss.unexplained_wh, loss.lo_wh, loss.hi_wh, loss.fed_in_wh, loss.aligned, loss.filled,
                            calendar.over(day, first_mark, now), loss.state, loss.reason, now,
                        )
                        for day, loss in zip(days, found, strict=True)
                    ],
                )  # fmt: skip


def _runs(days: Sequence[date]) -> Iterator[list[date]]:
    """Days that follow each other, to be loaded at once; days ascend."""
    run: list[date] = []
    for day in days:
        if run and day - run[-1] > timedelta(days=1):
            yield run
            run = []
        run.append(day)
    if run:
        yield run


def day_losses(
    cursor: psycopg.Cursor[Any],
    calendar: Calendar,
    area: Area,
    days: Sequence[date],
    first_mark: datetime,
    now: datetime,
) -> list[DayLoss]:
    """Loss of one area on days that follow each other, over the intervals that are over by now."""
    start = max(calendar.bounds(days[0])[0], first_mark)
    end = min(calendar.bounds(days[-1])[1], floor_mark(now))
    if start >= end:
        return [_OPEN] * len(days)
    record = load_record(cursor, area.area_id, start, end)
    first, last = to_mark(np.array([to_us(start), to_us(end)]))
    spans = []
    pu = np.ones(last - first)
    for day in days:
        bounds = calendar.bounds(day)
        a, b = (int(np.clip(mark - first, 0, last - first)) for mark in to_mark(np.array([to_us(e) for e in bounds])))
        spans.append(slice(a, b))
        pu[a:b] = source_pu(area.network, load_head_v(cursor, area.area_id, *bounds) or area.head_v)
    limits = Limits(area.low_percent, area.high_percent)
    use = [record.aligned(span, limits.filled_share_max) for span in spans]
    technical_wh, why = _technical(area, record, spans, use, pu)
    return [
        _day_loss(record, span, aligned, technical_wh[span], why.get(number, ""), limits)
        for number, (span, aligned) in enumerate(zip(spans, use, strict=True))
    ]


def load_record(cursor: psycopg.Cursor[Any], area_id: str, start: datetime, end: datetime) -> Record:
    """The area's meters during [start, end). What a customer's meter misses comes from its days around, where it was
    read within a week of that day: a gap is not a loss."""
    points = load_points(cursor, area_id, start, end)
    ids = [point.point_id for point in points]
    energy = load_energy(cursor, ids, start, end)
    supply, customer = role_of(points)
    member = membership(points, energy.first, len(energy.wh))
    wh, varh, export_wh = (np.where(member, values, 0.0) for values in (energy.wh, energy.varh, energy.export_wh))
    missing = np.isnan(wh)
    absent = missing[:, customer].sum(axis=1)
    lost = missing[:, supply].any(axis=1) | (absent > _MISSING_MAX * member[:, customer].sum(axis=1))
    sd_wh, spread = np.zeros_like(wh), np.ones(len(points))
    gaps = missing & customer & ~lost[:, None]
    at = np.flatnonzero(gaps.any(axis=0))
    if len(at):
        guess, near = _guesses(cursor, [ids[i] for i in at], start, end)
        here = gaps[:, at] & near
        wh[:, at] = np.where(here, guess.wh, wh[:, at])
        sd_wh[:, at] = np.where(here, guess.sd_wh, 0.0)
        export_wh[:, at] = np.where(here, np.maximum(-guess.wh, 0.0), export_wh[:, at])
        spread[at] = guess.spread
    wh[lost[:, None] & missing] = 0.0
    return Record(
        points, supply, customer, member, wh, varh, np.nan_to_num(export_wh), sd_wh, spread, missing, lost
    )  # fmt: skip


def _guesses(
    cursor: psycopg.Cursor[Any], point_ids: Sequence[int], start: datetime, end: datetime
) -> tuple[Filled, Mask]:
    """Values for [start, end) from a week to each side, (T, G); (T, G) the meter was read within a week of then."""
    energy = load_energy(cursor, point_ids, start - _AROUND, end + _AROUND)
    guess = balance.fill(energy.wh, STEPS_PER_DAY)
    week = PROFILE_DAYS * STEPS_PER_DAY
    here = slice(week, len(energy.wh) - week)
    seen = np.concatenate([np.zeros((1, len(point_ids))), np.isfinite(energy.wh).cumsum(axis=0)])
    near = seen[2 * week + 1 :] > seen[: len(seen) - 2 * week - 1]
    return Filled(guess.wh[here], guess.sd_wh[here], guess.filled[here], guess.spread), near


def _technical(
    area: Area, record: Record, spans: Sequence[slice], aligned: Sequence[Mask], source_pu: Array
) -> tuple[Array, dict[int, str]]:
    """(T,) technical loss in Wh, NaN where there is none; and the reason, by number of the day."""
    technical_wh = np.full(len(record.wh), np.nan)
    if isinstance(area.network, str):
        return technical_wh, dict.fromkeys(range(len(spans)), area.network)
    node = area.network.node
    why: dict[int, str] = {}
    known = np.array([point.node_id in node for point in record.points], bool)
    for number, span in enumerate(spans):
        astray = np.flatnonzero(record.customer & ~known & record.member[span].any(axis=0))
        if len(astray):
            name = record.points[astray[0]].node_id
            why[number] = f"node {name} of a meter is not in the network model; correct the registry"
    which = record.customer & known
    nodes = [point.node_id for point, there in zip(record.points, which, strict=True) if there]
    supplied_wh = record.wh[:, record.supply].sum(axis=1)
    due = np.zeros(len(record.wh), bool)
    for number, span in enumerate(spans):
        due[span] = aligned[number] & (number not in why)
    drawn = record.meters(slice(None), which).filled
    while due.any() and nodes:
        try:
            found = technical_loss(area.network, nodes, drawn, record.varh[:, which], supplied_wh, due, source_pu)
            technical_wh = np.where(due, found, np.nan)
            break
        except NoSolutionError as error:
            failed = error.scenarios
            for number, span in enumerate(spans):
                if ((failed >= span.start) & (failed < span.stop)).any():
                    why[number], due[span] = f"power flow: {error}", False
    return technical_wh, why


def _day_loss(record: Record, span: slice, use: Mask, technical_wh: Array, why: str, limits: Limits) -> DayLoss:
    if span.start == span.stop:
        return _OPEN
    there = record.member[span].any(axis=0)
    supply, customer = record.supply & there, record.customer & there
    if not supply.any() or not customer.any():
        what = "head meter" if not supply.any() else "customer meter"
        return DayLoss("not_computable", f"no {what} on record; add it to the registry")
    silent = _silent(record, span, supply | customer)
    found = balance.balance(
        record.meters(span, supply),
        record.meters(span, customer),
        record.export_wh[span, customer].sum(axis=1),
        None if why else technical_wh,
        np.zeros(span.stop - span.start, np.intp),
        use=use,
        step_s=INTERVAL_S,
        errors=Errors(),
        limits=limits,
    )
    blank = bool(np.isnan(found.supplied_wh[0]))
    said = str(found.reason[0])
    if blank and silent:
        said = f"{silent}; visit or replace"
    elif silent:
        said = "; ".join(filter(None, (said, f"{silent}, taken from the days around; visit or replace")))
    reason = said if found.state[0] == NOT_COMPUTABLE else "; ".join(filter(None, (said, why)))

    def value(of: Array) -> float | None:
        return None if np.isnan(of[0]) else float(of[0])

    return DayLoss(
        STATES[found.state[0]], reason, value(found.supplied_wh), value(found.delivered_wh), value(found.technical_wh),
        value(found.unexplained_wh), value(found.lo_wh), value(found.hi_wh), value(found.input_wh),
        int(found.aligned[0]), 0 if blank else int(record.missing[span][use][:, customer].sum()),
    )  # fmt: skip


def _silent(record: Record, span: slice, which: Mask) -> str:
    """Who was not read at all while it belonged to the area; "" when nobody."""
    member = record.member[span]
    never = which & member.any(axis=0) & (record.missing[span] | ~member).all(axis=0)
    gone = [point.name for point, silent in zip(record.points, never, strict=True) if silent]
    more = f" and {len(gone) - _NAMED_MAX} more" if len(gone) > _NAMED_MAX else ""
    return f"no reading all day from {', '.join(gone[:_NAMED_MAX])}{more}" if gone else ""


_OPEN: Final = DayLoss("not_computable", "no interval of the day is over yet")
_UPSERT: Final = """
    INSERT INTO loss_day (area_id, day, supplied_wh, delivered_wh, technical_wh, unexplained_wh, unexplained_lo_wh,
                          unexplained_hi_wh, fed_in_wh, aligned, filled, expected, state, reason, computed_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (area_id, day) DO UPDATE SET
        supplied_wh = excluded.supplied_wh, delivered_wh = excluded.delivered_wh,
        technical_wh = excluded.technical_wh, unexplained_wh = excluded.unexplained_wh,
        unexplained_lo_wh = excluded.unexplained_lo_wh, unexplained_hi_wh = excluded.unexplained_hi_wh,
        fed_in_wh = excluded.fed_in_wh, aligned = excluded.aligned, filled = excluded.filled,
        expected = excluded.expected, state = excluded.state, reason = excluded.reason,
        computed_at = excluded.computed_at
"""
