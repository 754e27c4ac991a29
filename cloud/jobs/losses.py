"""Loss of each area and business day: measured at the head, explained by the wires, and what is left."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from cloud.engines.intervals import MISSING
from cloud.engines.loss.flow import NoSolutionError, technical_loss
from cloud.engines.loss.network import Line, Network, NetworkError, Transformer, compile_network
from cloud.jobs.calendar import Calendar
from cloud.jobs.columns import INTERVAL_H, from_mark, read_columns, to_float, to_mark
from protocols.uplink import to_us

Connection = psycopg.Connection[tuple[Any, ...]]
Array = NDArray[np.float64]

HEAD_V_SPAN: Final = timedelta(days=7)
_NAMED_MAX: Final = 3  # missing meters a reason names


@dataclass(frozen=True, slots=True)
class Point:
    """A metering point while it belongs to the area in one role, [start, end)."""

    point_id: int
    name: str
    role: str
    node_id: str
    start: datetime
    end: datetime


@dataclass(frozen=True, slots=True)
class Area:
    """``network`` is a sentence instead where it cannot be computed.

    ``head_v``: volts the head meter showed of late, for days on which nobody read them; None where it never did.
    """

    area_id: str
    low_percent: float
    high_percent: float
    points: tuple[Point, ...]
    network: Network | str
    head_v: float | None = None


@dataclass(frozen=True, slots=True)
class Energy:
    """Net energy of an area's P points in T intervals, import less export: wh, varh (T, P), NaN where missing.

    While a point does not belong to the area it draws nothing there: 0.
    """

    wh: Array
    varh: Array


@dataclass(frozen=True, slots=True)
class DayLoss:
    supplied_wh: float | None
    delivered_wh: float | None
    technical_wh: float | None
    aligned: int
    state: str
    reason: str

    @property
    def unexplained_wh(self) -> float | None:
        if self.supplied_wh is None or self.delivered_wh is None or self.technical_wh is None:
            return None
        return self.supplied_wh - self.delivered_wh - self.technical_wh


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
            for day in wanted[area.area_id]:
                start, end = calendar.bounds(day)
                area = replace(area, points=_load_points(cursor, area.area_id, start, end))
                head_v = _load_head_v(cursor, area.area_id, start, end) or area.head_v
                loss = day_loss(area, _load_energy(cursor, area, start, end), source_pu(area.network, head_v))
                cursor.execute(
                    _UPSERT,
                    (
                        area.area_id, day, loss.supplied_wh, loss.delivered_wh, loss.technical_wh, loss.unexplained_wh,
                        loss.aligned, calendar.over(day, first_mark, now), loss.state, loss.reason, now,
                    ),
                )  # fmt: skip


def source_pu(network: Network | str, head_v: float | None) -> float:
    """Voltage at the head over its rating; 1 where it was not measured, or the head meter is not at the source.

    A head meter shows volts to neutral, or between the lines where it has two elements.
    """
    if head_v is None or isinstance(network, str):
        return 1.0
    plausible = [pu for pu in (head_v * 3**0.5 / network.source_v, head_v / network.source_v) if 0.8 < pu < 1.2]
    return plausible[0] if plausible else 1.0


def day_loss(area: Area, energy: Energy, source_pu: float = 1.0) -> DayLoss:
    """Loss over the aligned intervals: those in which every meter of the area was there. A gap is not a loss."""
    supply = np.array([point.role == "supply" for point in area.points], bool)
    customer = np.array([point.role in ("customer", "generation") for point in area.points], bool)
    if not supply.any() or not customer.any():
        what = "head meter" if not supply.any() else "customer meter"
        return DayLoss(None, None, None, 0, "not_computable", f"no {what} on record; add it to the registry")
    loss_wh = energy.wh[:, supply].sum(axis=1) - energy.wh[:, customer].sum(axis=1)
    aligned = np.isfinite(loss_wh)
    if not aligned.any():
        return DayLoss(None, None, None, 0, "not_computable", _who_is_missing(area.points, energy.wh))
    supplied_wh = float(energy.wh[aligned][:, supply].sum())
    delivered_wh = float(energy.wh[aligned][:, customer].sum())
    if supplied_wh <= 0:
        reason = "the area fed back more than it drew; a share of the supply says nothing"
        return DayLoss(supplied_wh, delivered_wh, None, int(aligned.sum()), "not_computable", reason)
    technical_wh, reason = _technical(
        area, Energy(energy.wh[aligned][:, customer], energy.varh[aligned][:, customer]), customer, source_pu
    )
    percent = 100 * (supplied_wh - delivered_wh) / supplied_wh
    state = "high" if percent > area.high_percent else "negative" if percent < area.low_percent else "normal"
    return DayLoss(supplied_wh, delivered_wh, technical_wh, int(aligned.sum()), state, reason)


def _technical(area: Area, drawn: Energy, customer: NDArray[np.bool_], source_pu: float) -> tuple[float | None, str]:
    """Technical loss in Wh, or why there is none."""
    if isinstance(area.network, str):
        return None, area.network
    nodes = [point.node_id for point, there in zip(area.points, customer, strict=True) if there]
    lost = [node for node in nodes if node not in area.network.node]
    if lost:
        return None, f"node {lost[0]} of a meter is not in the network model; correct the registry"
    column = np.array([area.network.node[node] for node in nodes])
    try:
        loss_wh = technical_loss(area.network, column, drawn.wh, drawn.varh, INTERVAL_H, source_pu)
    except NoSolutionError as error:
        return None, f"power flow: {error}"
    return float(loss_wh.sum()), ""


def _who_is_missing(points: Sequence[Point], wh: Array) -> str:
    silent = np.asarray(np.isnan(wh).all(axis=0))
    gone = [p.name for p, never in zip(points, silent, strict=True) if never and p.role != "check"]
    if not gone:
        return "no interval in which every meter was there; see the completeness of its points"
    more = f" and {len(gone) - _NAMED_MAX} more" if len(gone) > _NAMED_MAX else ""
    return f"no reading all day from {', '.join(gone[:_NAMED_MAX])}{more}; visit or replace"


def _load_points(cursor: psycopg.Cursor[Any], area_id: str, start: datetime, end: datetime) -> tuple[Point, ...]:
    """The area's points during [start, end); one that had two roles is there twice."""
    cursor.execute(_POINTS, {"area": area_id, "from": start, "to": end})
    return tuple(Point(*row) for row in cursor)


def _load_energy(cursor: psycopg.Cursor[Any], area: Area, start: datetime, end: datetime) -> Energy:
    points, column_of = np.unique(np.array([point.point_id for point in area.points], np.int64), return_inverse=True)
    rows = read_columns(
        cursor,
        _ENERGY,
        {"points": points.tolist(), "from": start, "to": end, "missing": MISSING},
        {"point_id": "integer", "start": "timestamptz", "wh": "bigint", "varh": "bigint"},
    )
    span = to_mark(np.array([to_us(start), to_us(end)]))
    column = np.searchsorted(points, rows["point_id"])
    step = to_mark(rows["start"]) - span[0]
    shape = (int(span[1] - span[0]), len(points))
    wh, varh = np.full(shape, np.nan), np.full(shape, np.nan)
    wh[step, column], varh[step, column] = to_float(rows["wh"]), to_float(rows["varh"])
    at = from_mark(np.arange(span[0], span[1]))[:, None]
    first, last = (np.array([to_us(edge) for edge in edges], np.int64) for edges in _edges(area.points))
    elsewhere = (at < first) | (at >= last)
    return Energy(*(np.where(elsewhere, 0.0, values[:, column_of]) for values in (wh, varh)))


def _edges(points: Sequence[Point]) -> tuple[list[datetime], list[datetime]]:
    return [point.start for point in points], [point.end for point in points]


def _load_head_v(cursor: psycopg.Cursor[Any], area_id: str, start: datetime, end: datetime) -> float | None:
    """Mean volts of the head meter on its primary side during [start, end)."""
    row = cursor.execute(_HEAD_V, {"area": area_id, "from": start, "to": end}).fetchone()
    return row[0] if row else None


def areas_with_head_v(connection: Connection, now: datetime) -> set[str]:
    """Areas whose head meter showed its voltage of late."""
    return {area_id for (area_id,) in connection.execute(_WITH_HEAD_V, (now - HEAD_V_SPAN,))}


def load_areas(connection: Connection, area_ids: Sequence[str], now: datetime) -> list[Area]:
    """The areas with their compiled networks, as the registry has them now, and yet without their points."""
    areas = []
    for area_id, low, high in connection.execute(
        "SELECT area_id, loss_low_percent, loss_high_percent FROM area WHERE area_id = ANY(%s) ORDER BY area_id",
        (list(area_ids),),
    ).fetchall():
        network = _load_network(connection, area_id)
        with connection.cursor() as cursor:
            head_v = _load_head_v(cursor, area_id, now - HEAD_V_SPAN, now)
        areas.append(Area(area_id, low, high, (), network, head_v))
    return areas


def _load_network(connection: Connection, area_id: str) -> Network | str:
    sources = connection.execute(
        "SELECT node_id FROM network_node WHERE area_id = %s AND kind = 'source'", (area_id,)
    ).fetchall()
    if len(sources) != 1:
        return f"the network model has {len(sources)} sources, one expected; correct the registry"
    lines = connection.execute(_LINES, (area_id,)).fetchall()
    transformers = connection.execute(_TRANSFORMERS, (area_id,)).fetchall()
    try:
        return compile_network(
            sources[0][0], [Line(*row) for row in lines], [Transformer(*row) for row in transformers]
        )
    except NetworkError as error:
        return f"network model: {error}"


_POINTS: Final = """
    SELECT point_id, point, i.role, i.node_id, greatest(valid_from, %(from)s), least(valid_to, %(to)s)
    FROM point_in_area i JOIN metering_point USING (point_id)
    WHERE i.area_id = %(area)s AND valid_from < %(to)s AND valid_to > %(from)s ORDER BY point_id, valid_from
"""
_HEAD_V: Final = """
    SELECT avg((s.voltage_l1_v + coalesce(s.voltage_l2_v, s.voltage_l1_v) + coalesce(s.voltage_l3_v, s.voltage_l1_v))
               / 3 * i.pt_ratio)
    FROM point_in_area p JOIN installation i USING (point_id)
    JOIN power_sample s ON s.meter_id = i.meter_id AND s.at >= i.valid_from AND s.at < i.valid_to
     AND s.at >= p.valid_from AND s.at < p.valid_to
    WHERE p.area_id = %(area)s AND p.role = 'supply' AND s.voltage_l1_v > 0
      AND s.at >= %(from)s AND s.at < %(to)s
"""
_ENERGY: Final = """
    SELECT point_id, start, energy_import_wh - coalesce(energy_export_wh, 0),
           coalesce(reactive_import_varh - coalesce(reactive_export_varh, 0), (%(missing)s)::bigint)
    FROM interval_current
    WHERE point_id = ANY(%(points)s) AND start >= %(from)s AND start < %(to)s AND energy_import_wh IS NOT NULL
"""
_WITH_HEAD_V: Final = """
    SELECT p.area_id FROM metering_point p JOIN installation i USING (point_id)
    WHERE p.role = 'supply' AND EXISTS (
        SELECT FROM power_sample s WHERE s.meter_id = i.meter_id AND s.at >= %s AND s.voltage_l1_v > 0)
"""
_LINES: Final = """
    SELECT from_node, to_node, length_m, r_ohm_per_km, x_ohm_per_km
    FROM network_line JOIN network_node ON node_id = to_node WHERE area_id = %s
"""
_TRANSFORMERS: Final = """
    SELECT hv_node, lv_node, rated_kva, hv_v, lv_v, no_load_loss_w, load_loss_w, impedance_percent
    FROM network_transformer JOIN network_node ON node_id = lv_node WHERE area_id = %s
"""
_UPSERT: Final = """
    INSERT INTO loss_day (area_id, day, supplied_wh, delivered_wh, technical_wh, unexplained_wh, aligned, expected,
                          state, reason, computed_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (area_id, day) DO UPDATE SET
        supplied_wh = excluded.supplied_wh, delivered_wh = excluded.delivered_wh,
        technical_wh = excluded.technical_wh, unexplained_wh = excluded.unexplained_wh,
        aligned = excluded.aligned, expected = excluded.expected, state = excluded.state,
        reason = excluded.reason, computed_at = excluded.computed_at
"""
