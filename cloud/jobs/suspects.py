"""Whom to visit first: each day, the customers whose records explain what their area loses beyond its technical loss.

A search looks at up to 90 whole days of every area and takes seconds to minutes, so that it goes on beside the other
work, on a connection of its own. Areas of one feeder are taken together, as far as they fit: a customer booked in the
wrong one unsettles two balances.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from cloud.engines.loss import balance
from cloud.engines.loss.balance import Filled, Limits
from cloud.engines.loss.flow import NoSolutionError
from cloud.engines.loss.localise import AreaBalance, Suspects, localise
from cloud.jobs.areas import (
    Area,
    gain_of,
    load_areas,
    load_energy,
    load_points,
    membership,
    role_of,
    source_pu,
    technical_loss,
)
from cloud.jobs.calendar import INTERVAL, Calendar
from cloud.jobs.columns import INTERVAL_S

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

DAYS_MAX: Final = 90
DAYS_MIN: Final = 14
# After midnight, gateways bring the last marks of the day and some of its gaps.
SEARCHED_AFTER: Final = timedelta(hours=1)
# Customers searched at once: 90 days of 200 need about 400 MB.
TOGETHER_MAX: Final = 200
SHOWN_MAX: Final = 10  # of an area and day
SHOWN_LOG_ODDS: Final = 0.0  # as likely as not
# Late readings of past days are worth another search on the same day, but no sooner than after this; where too little
# was there for one, sooner, but not so that searching is most of the work.
AGAIN_S: Final = 3600.0
AGAIN_S_MIN: Final = 15.0
_AGAIN_TIMES: Final = 20.0  # as long as the search took
# Gateways that still fetch the past: what they bring is waited for, but no longer than this.
BACKFILL_S: Final = 3600.0
_STEPS: Final = 86_400 // INTERVAL_S
_MISSING_MAX: Final = 0.5  # of an area's customers; above, the area was not read
_NAMED_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Record:
    """One area's days as the engine takes them: D · 96 steps of local days, M customers. ``point_id``: (M,)."""

    area: Area
    point_id: NDArray[np.int64]
    balance: AreaBalance


@dataclass
class Search:
    """When to search; kept in memory only: a new process searches once at its start."""

    dsn: str
    calendar: Calendar
    _thread: threading.Thread | None = None
    _through: date | None = None
    _stale: bool = False
    _waits_since: float | None = None
    _ended_at: float = float("-inf")
    _again_s: float = AGAIN_S_MIN

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def past_changed(self) -> None:
        """The loss of a day that is over was computed again."""
        self._stale = True

    def step(self, connection: Connection, now: datetime) -> None:
        """Begin a search when one is due."""
        if self.busy:
            return
        if self._thread is not None:
            self._thread, self._ended_at = None, time.monotonic()
        through = self.calendar.day(now - SEARCHED_AFTER) - timedelta(days=1)
        again = self._stale and time.monotonic() - self._ended_at > self._again_s
        if (through == self._through and not again) or self._waits(connection):
            return
        self._through, self._stale, self._waits_since = through, False, None
        self._thread = threading.Thread(target=self._run, args=(through, now), name="suspects", daemon=True)
        self._thread.start()

    def _waits(self, connection: Connection) -> bool:
        """Gateways bring the past at this moment."""
        (left,) = connection.execute(_BACKFILLING).fetchone() or (False,)
        if not left:
            return False
        self._waits_since = self._waits_since or time.monotonic()
        return time.monotonic() - self._waits_since < BACKFILL_S

    def _run(self, through: date, now: datetime) -> None:
        began = time.monotonic()
        try:
            with closing(
                psycopg.connect(
                    self.dsn,
                    autocommit=True,
                    connect_timeout=5,
                    application_name="gridloom work: suspects",
                    options="-c timezone=UTC",
                )
            ) as connection:
                searched, left_out, named = search(connection, self.calendar, through, now)
            took_s = time.monotonic() - began
            self._again_s = max(AGAIN_S_MIN, _AGAIN_TIMES * took_s) if left_out else AGAIN_S
            said = "suspects through %s: %d named in %d areas, %d areas not searched, %.1f s"
            logger.info(said, through, named, searched, left_out, took_s)
        except psycopg.OperationalError as error:
            self._stale = True
            logger.warning("suspects not searched for: %s", str(error).strip().splitlines()[0])
        except (ArithmeticError, ValueError):
            logger.exception("suspects not searched for; the other work goes on")


def search(connection: Connection, calendar: Calendar, through: date, now: datetime) -> tuple[int, int, int]:
    """Search all areas over the days up to and with ``through``, and store what was found.

    Returns how many areas were searched, how many could not be, and how many customers are named.
    """
    first = _first_day(connection, calendar, through)
    searched = left_out = named = 0
    for areas in _together(connection, load_areas(connection, None, now)):
        records: list[Record] = []
        for area in areas:
            found = _load(connection, calendar, area, first, through)
            if isinstance(found, str):
                _store(connection, area.area_id, first, through, now, reason=found)
                left_out += 1
            else:
                records.append(found)
        suspects = localise([record.balance for record in records]) if records else []
        begins = _begins(calendar, first, through)
        for record, one in zip(records, suspects, strict=True):
            _store(connection, record.area.area_id, first, through, now, record=record, suspects=one, begins=begins)
            searched, named = searched + 1, named + int(one.named.sum())
    return searched, left_out, named


def _first_day(connection: Connection, calendar: Calendar, through: date) -> date:
    """At most ``DAYS_MAX`` days, from the first whole day with a load on."""
    earliest = through - timedelta(days=DAYS_MAX - 1)
    row = connection.execute(
        "SELECT min(start) FROM load WHERE start >= %s", (calendar.bounds(earliest)[0],)
    ).fetchone()
    start = row[0] if row else None
    if start is None:
        return through
    day = calendar.day(start)
    return day if calendar.bounds(day)[0] == start else day + timedelta(days=1)


def _together(connection: Connection, areas: Sequence[Area]) -> Iterator[list[Area]]:
    """Areas of one feeder, as many as may be searched at once; a large one alone."""
    rows = connection.execute(_CUSTOMERS).fetchall()
    count: dict[str, int] = dict(rows)
    group: list[Area] = []
    for area in sorted(areas, key=lambda area: (area.feeder_id, area.area_id)):
        size = sum(count.get(one.area_id, 0) for one in [*group, area])
        if group and (area.feeder_id != group[0].feeder_id or size > TOGETHER_MAX):
            yield group
            group = []
        group.append(area)
    if group:
        yield group


def _local_steps(calendar: Calendar, first: date, through: date) -> tuple[NDArray[np.int64], Mask]:
    """(D · 96,) marks from the first day's midnight on, and which of them there are: a day of 23 hours misses four at
    its end, one of 25 hours is cut, so that the others stand at their time of day."""
    origin = calendar.bounds(first)[0]
    steps, there = [], []
    for number in range((through - first).days + 1):
        start, end = calendar.bounds(first + timedelta(days=number))
        length = (end - start) // INTERVAL
        slot = np.arange(_STEPS)
        steps.append((start - origin) // INTERVAL + np.minimum(slot, length - 1))
        there.append(slot < length)
    return np.concatenate(steps), np.concatenate(there)


def _begins(calendar: Calendar, first: date, through: date) -> list[datetime]:
    """When each day of the record, and the one after it, begins."""
    return [calendar.bounds(first + timedelta(days=n))[0] for n in range((through - first).days + 2)]


def _load(connection: Connection, calendar: Calendar, area: Area, first: date, through: date) -> Record | str:
    """The area's record, or why it cannot be searched."""
    days = (through - first).days + 1
    if days < DAYS_MIN:
        return f"{days} whole days on record, {DAYS_MIN} needed"
    start, end = calendar.bounds(first)[0], calendar.bounds(through)[1]
    with connection.cursor() as cursor:
        points = load_points(cursor, area.area_id, start, end)
        supply, customer = role_of(points)
        if not supply.any() or not customer.any():
            return f"no {'head' if not supply.any() else 'customer'} meter on record; add it to the registry"
        energy = load_energy(cursor, [point.point_id for point in points], start, end)
    steps, there = _local_steps(calendar, first, through)
    member = membership(points, energy.first, len(energy.wh))[steps]
    wh = np.where(member, energy.wh[steps], np.nan)
    varh = np.where(member, energy.varh[steps], 0.0)
    missing = np.isnan(wh) & member
    unread = np.asarray(np.isnan(wh).all(axis=0)) & (supply | customer)
    silent = [point.name for point, never in zip(points, unread, strict=True) if never]
    if silent:
        more = f" and {len(silent) - _NAMED_MAX} more" if len(silent) > _NAMED_MAX else ""
        return f"no reading in {days} days from {', '.join(silent[:_NAMED_MAX])}{more}; visit or replace"
    absent = missing[:, customer].sum(axis=1) > _MISSING_MAX * member[:, customer].sum(axis=1)
    drawn = balance.fill(wh[:, customer], _STEPS)
    here = member[:, customer]
    drawn_wh, drawn_sd = np.where(here, drawn.wh, 0.0), np.where(here, drawn.sd_wh, 0.0)
    filled = np.where(missing[:, customer], np.abs(drawn_wh), 0.0).sum(axis=1)
    use = there & ~absent & ~missing[:, supply].any(axis=1) & member[:, supply].any(axis=1)
    use &= filled <= Limits().filled_share_max * np.abs(drawn_wh).sum(axis=1)
    if use.sum() < DAYS_MIN * _STEPS:
        return f"{int(use.sum()) // _STEPS} days of readings, {DAYS_MIN} needed; see the completeness of its points"
    supplied_wh = np.where(use, np.where(member, wh, 0.0)[:, supply].sum(axis=1), np.nan)
    columns = [point for point, draws in zip(points, customer, strict=True) if draws]
    point_id, column_of = np.unique([point.point_id for point in columns], return_inverse=True)
    gains = gain_of(points)
    three_phase, ct_ratio = _nameplates(connection, point_id, end)
    return Record(
        area,
        point_id,
        AreaBalance(
            supplied_wh=supplied_wh,
            customer_wh=_by_point(drawn_wh, column_of, len(point_id)),
            technical_wh=_technical(
                area,
                [point.node_id for point in columns],
                Filled(drawn_wh, drawn_sd, missing[:, customer], drawn.spread),
                varh[:, customer],
                supplied_wh,
                use,
            ),
            customer_sd_wh=_by_point(drawn_sd, column_of, len(point_id)),
            step_s=INTERVAL_S,
            first_step_of_day=0,
            supply_gain_sd=float(gains[supply].mean()),
            customer_gain_sd=float(gains[customer].mean()),
            three_phase=three_phase,
            ct_ratio=ct_ratio if (ct_ratio > 1).any() else None,
        ),
    )


def _nameplates(connection: Connection, point_id: NDArray[np.int64], at: datetime) -> tuple[Mask, Array]:
    """(M,) three-phase, and the ratio of current transformers, as the registry has them at ``at``."""
    rows = {one: (phases, ratio) for one, phases, ratio in connection.execute(_NAMEPLATES, (at, at, point_id.tolist()))}
    told = [rows.get(one, ("abc", 1)) for one in point_id.tolist()]
    return np.array([len(phases) == 3 for phases, _ in told], bool), np.array([float(ratio) for _, ratio in told])


def _by_point(values: Array, column_of: NDArray[np.intp], count: int) -> Array:
    """A point that left and came back, or changed its role, is one customer all the same."""
    if count == values.shape[1]:
        return np.ascontiguousarray(values[:, np.argsort(column_of)])
    summed = np.zeros((len(values), count))
    for column, at in enumerate(column_of):
        summed[:, at] += values[:, column]
    return summed


def _technical(
    area: Area, nodes: Sequence[str], drawn: Filled, varh: Array, supplied_wh: Array, use: Mask
) -> Array | None:
    """(T,) by power flow; None where the network does not tell: the engine then fits it."""
    if isinstance(area.network, str) or any(node not in area.network.node for node in nodes):
        return None
    pu = source_pu(area.network, area.head_v)
    try:
        return technical_loss(area.network, nodes, drawn, varh, supplied_wh, use, pu)
    except NoSolutionError:
        return None


def _store(
    connection: Connection,
    area_id: str,
    first: date,
    through: date,
    now: datetime,
    *,
    reason: str = "",
    record: Record | None = None,
    suspects: Suspects | None = None,
    begins: Sequence[datetime] = (),
) -> None:
    rows: list[tuple[object, ...]] = []
    if record is not None and suspects is not None:
        order = np.argsort(-suspects.score, kind="stable")
        shown = [i for i in order if suspects.named[i] or suspects.score[i] >= SHOWN_LOG_ODDS][:SHOWN_MAX]
        for rank, i in enumerate(shown, 1):
            step = int(suspects.since_step[i])
            day, slot = divmod(step, _STEPS)
            since = begins[day] + slot * INTERVAL if step > 0 else None
            rows.append(
                (
                    area_id, through, int(record.point_id[i]), rank, float(suspects.score[i]), suspects.kind[i],
                    bool(suspects.named[i]), float(suspects.stolen_wh[i]), float(suspects.lo_wh[i]),
                    float(suspects.hi_wh[i]), since, suspects.evidence[i], suspects.evidence_zh[i],
                )
            )  # fmt: skip
    customers = 0 if record is None else len(record.point_id)
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM loss_search WHERE area_id = %s AND day = %s", (area_id, through))
        cursor.execute(
            "INSERT INTO loss_search VALUES (%s, %s, %s, %s, %s, %s)", (area_id, through, first, customers, reason, now)
        )
        cursor.executemany(_INSERT, rows)


_BACKFILLING: Final = """
    SELECT coalesce(bool_or((status->>'backfill_left')::bigint > 0), false) FROM gateway_status WHERE online
"""
_CUSTOMERS: Final = """
    SELECT area_id, count(*) FROM metering_point WHERE role IN ('customer', 'generation') GROUP BY 1
"""
_NAMEPLATES: Final = """
    SELECT point_id, phases, coalesce(ct_ratio, 1) FROM metering_point p
    LEFT JOIN installation i USING (point_id)
    WHERE (i.valid_from IS NULL OR i.valid_from < %s AND i.valid_to >= %s) AND point_id = ANY(%s)
"""
_INSERT: Final = """
    INSERT INTO loss_suspect (area_id, day, point_id, rank, score, kind, named, stolen_wh, stolen_lo_wh, stolen_hi_wh,
                              since, evidence_en, evidence_zh)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
