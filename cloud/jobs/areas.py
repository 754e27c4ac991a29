"""Areas as the registry has them, and the energy of their meters: what losses and suspects start from."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray

from cloud.engines.intervals import MISSING
from cloud.engines.loss import technical as engine
from cloud.engines.loss.balance import Errors, Filled, gain_sd
from cloud.engines.loss.network import Line, Network, NetworkError, Transformer, compile_network
from cloud.engines.loss.pieces import place
from cloud.jobs.columns import INTERVAL_H, from_mark, read_columns, to_float, to_mark
from protocols.uplink import to_us

Connection = psycopg.Connection[tuple[Any, ...]]
Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

HEAD_V_SPAN: Final = timedelta(days=7)
DRAWING: Final = ("customer", "generation")


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
    feeder_id: str
    low_percent: float
    high_percent: float
    network: Network | str
    head_v: float | None = None


@dataclass(frozen=True, slots=True)
class Energy:
    """Of P points in T intervals from the mark ``first`` on, (T, P), NaN where missing.

    ``wh``, ``varh``: net, import less export.  ``export_wh``: what flowed back.
    """

    first: int
    wh: Array
    varh: Array
    export_wh: Array


def load_areas(connection: Connection, area_ids: Sequence[str] | None, now: datetime) -> list[Area]:
    """The areas (None: all) with their compiled networks, as the registry has them now, in order of their ids."""
    areas = []
    for area_id, feeder_id, low, high in connection.execute(
        "SELECT area_id, feeder_id, loss_low_percent, loss_high_percent FROM area"
        " WHERE %(areas)s::text[] IS NULL OR area_id = ANY(%(areas)s) ORDER BY area_id",
        {"areas": None if area_ids is None else list(area_ids)},
    ).fetchall():
        network = _load_network(connection, area_id)
        with connection.cursor() as cursor:
            head_v = load_head_v(cursor, area_id, now - HEAD_V_SPAN, now)
        areas.append(Area(area_id, feeder_id, low, high, network, head_v))
    return areas


def load_points(cursor: psycopg.Cursor[Any], area_id: str, start: datetime, end: datetime) -> tuple[Point, ...]:
    """The area's points during [start, end); one that had two roles is there twice."""
    cursor.execute(_POINTS, {"area": area_id, "from": start, "to": end})
    return tuple(Point(*row) for row in cursor)


def load_energy(cursor: psycopg.Cursor[Any], point_ids: Sequence[int], start: datetime, end: datetime) -> Energy:
    """Energy of the points, a column for each of ``point_ids``, wherever they belonged during [start, end)."""
    points, column_of = np.unique(np.array(point_ids, np.int64), return_inverse=True)
    first, last = to_mark(np.array([to_us(start), to_us(end)]))
    rows = read_columns(
        cursor,
        _ENERGY,
        {"points": points.tolist(), "from": start, "to": end, "missing": MISSING},
        {"point_id": "integer", "start": "timestamptz", "wh": "bigint", "varh": "bigint", "export": "bigint"},
    )
    at = to_mark(rows["start"]) - first, np.searchsorted(points, rows["point_id"])
    found = []
    for name in ("wh", "varh", "export"):
        values = np.full((int(last - first), len(points)), np.nan)
        values[at] = to_float(rows[name])
        found.append(values[:, column_of])
    return Energy(int(first), *found)


def membership(points: Sequence[Point], first: int, steps: int) -> Mask:
    """(T, P): the point belonged to the area, in its role, when the interval began."""
    at = from_mark(np.arange(first, first + steps))[:, None]
    start, end = (np.array([to_us(edge) for edge in edges], np.int64) for edges in _edges(points))
    return np.asarray((at >= start) & (at < end))


def _edges(points: Sequence[Point]) -> tuple[list[datetime], list[datetime]]:
    return [point.start for point in points], [point.end for point in points]


def role_of(points: Sequence[Point]) -> tuple[Mask, Mask]:
    """(P,) head meters; (P,) customers and generation."""
    roles = [point.role for point in points]
    return np.array([r == "supply" for r in roles], bool), np.array([r in DRAWING for r in roles], bool)


def gain_of(points: Sequence[Point]) -> Array:
    """(P,) relative sd of each meter's gain. The registry keeps no accuracy class: those of the rules are taken."""
    return np.array([gain_sd(None, point.role == "supply") for point in points])


def load_head_v(cursor: psycopg.Cursor[Any], area_id: str, start: datetime, end: datetime) -> float | None:
    """Mean volts of the head meter on its primary side during [start, end)."""
    row = cursor.execute(_HEAD_V, {"area": area_id, "from": start, "to": end}).fetchone()
    return row[0] if row else None


def areas_with_head_v(connection: Connection, now: datetime) -> set[str]:
    """Areas whose head meter showed its voltage of late."""
    return {area_id for (area_id,) in connection.execute(_WITH_HEAD_V, (now - HEAD_V_SPAN,))}


def source_pu(network: Network | str, head_v: float | None) -> float:
    """Voltage at the head over its rating; 1 where it was not measured, or the head meter is not at the source.

    A head meter shows volts to neutral, or between the lines where it has two elements.
    """
    if head_v is None or isinstance(network, str):
        return 1.0
    plausible = [pu for pu in (head_v * 3**0.5 / network.source_v, head_v / network.source_v) if 0.8 < pu < 1.2]
    return plausible[0] if plausible else 1.0


def technical_loss(
    network: Network,
    nodes: Sequence[str],
    drawn: Filled,
    varh: Array,
    supplied_wh: Array,
    use: Mask,
    source_pu: Array | float,
) -> Array:
    """(T,) Wh by power flow; where not ``use``, of the network without load.

    nodes: (M,) of the customers.  drawn: (T, M) net.  varh: (T, M), NaN where not measured.  supplied_wh: (T,).
    Raises NoSolutionError, NetworkError for an unknown node.
    """
    here = use[:, None]
    known = Filled(np.where(here, np.nan_to_num(drawn.wh), 0.0), drawn.sd_wh, drawn.filled, drawn.spread)
    found = engine.technical_loss(
        place(network, nodes), known, supplied_wh, use, steps_per_day=round(24 / INTERVAL_H),
        varh=np.where(here, varh, 0.0), source_pu=source_pu, clock_s=Errors().clock_s,
    )  # fmt: skip
    return found.wh


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
           coalesce(reactive_import_varh - coalesce(reactive_export_varh, 0), (%(missing)s)::bigint),
           coalesce(energy_export_wh, 0)
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
