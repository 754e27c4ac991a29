"""The answer for a folder's areas as parquet tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cloud.engines.loss import balance
from cloud.engines.loss.balance import STATES, Balance
from cloud.loss import technical
from cloud.loss.folder import Folder
from cloud.loss.run import AreaRun, Calendar, Options, calendar, limits_of

_UTC: Final = pa.timestamp("us", tz="UTC")
_WH: Final = ("supplied_wh", "delivered_wh", "technical_wh", "unexplained_wh")


def losses_table(runs: Sequence[AreaRun], starts: NDArray[np.datetime64], which: str) -> pa.Table:
    """losses.parquet and its like by day and month; which: intervals | days | months."""
    return pa.concat_tables([_losses(area.area_id, getattr(area, which), starts) for area in runs])


def _losses(name: str, found: Balance, starts: NDArray[np.datetime64]) -> pa.Table:
    columns = {key: pa.array(getattr(found, key), from_pandas=True) for key in _WH}
    return pa.table(
        {
            "area_id": pa.array([name] * len(starts), pa.string()),
            "time": pa.array(starts, _UTC),
            **columns,
            "unexplained_lo_wh": pa.array(found.lo_wh, from_pandas=True),
            "unexplained_hi_wh": pa.array(found.hi_wh, from_pandas=True),
            "state": pa.array(np.array(STATES)[found.state]),
            "reason": pa.array(found.reason, pa.string()),
            "aligned": pa.array(found.aligned),
        }
    )


def sums_table(runs: Sequence[AreaRun], folder: Folder, options: Options, days: Calendar) -> pa.Table | None:
    """sums.parquet: feeders and substations by day and month, each the sum of the areas below it in areas.csv."""
    parent = {row.area_id: row.parent_id for row in folder.registry if row.parent_id}
    below: dict[str, list[AreaRun]] = {}
    for area in runs:
        name, passed = parent.get(area.area_id), {area.area_id}
        while name and name not in passed:
            below.setdefault(name, []).append(area)
            passed.add(name)
            name = parent.get(name)
    tables = []
    for name, areas in below.items():
        limits, names = limits_of(folder, name, options), [area.area_id for area in areas]
        for period, starts in (("day", days.day_start), ("month", days.month_start)):
            found = balance.together([getattr(area, f"{period}s") for area in areas], names, limits)
            table = _losses(name, found, starts)
            tables.append(table.append_column("period", pa.array([period] * len(starts), pa.string())))
    return pa.concat_tables(tables) if tables else None


def suspects_table(runs: Sequence[AreaRun], time: NDArray[np.datetime64]) -> pa.Table:
    """suspects.parquet: every customer, the likeliest first; ``kind`` is empty unless the evidence names it."""
    tables = []
    for area in runs:
        found = area.suspects
        if found is None:
            continue
        order = np.argsort(-found.score, kind="stable")
        step = np.asarray(found.since_step)[order]
        named = np.asarray(found.named)[order]
        tables.append(
            pa.table(
                {
                    "area_id": pa.array([area.area_id] * len(order)),
                    "meter_id": pa.array(np.array(area.customers)[order]),
                    "rank": pa.array(np.arange(1, len(order) + 1)),
                    "score": pa.array(found.score[order]),
                    "kind": pa.array(np.where(named, np.array(found.kind)[order], "")),
                    "stolen_wh": pa.array(found.stolen_wh[order]),
                    "stolen_lo_wh": pa.array(found.lo_wh[order]),
                    "stolen_hi_wh": pa.array(found.hi_wh[order]),
                    "since": pa.array(time[np.clip(step, 0, len(time) - 1)], _UTC, mask=step < 0),
                    "evidence": pa.array([found.evidence[i] for i in order]),
                    "named": pa.array(named),
                }
            )
        )
    return pa.concat_tables(tables) if tables else _NO_SUSPECTS.empty_table()


_NO_SUSPECTS: Final = pa.schema(
    [
        ("area_id", pa.string()),
        ("meter_id", pa.string()),
        ("rank", pa.int64()),
        ("score", pa.float64()),
        ("kind", pa.string()),
        ("stolen_wh", pa.float64()),
        ("stolen_lo_wh", pa.float64()),
        ("stolen_hi_wh", pa.float64()),
        ("since", _UTC),
        ("evidence", pa.string()),
        ("named", pa.bool_()),
    ]
)


def customers_table(runs: Sequence[AreaRun], folder: Folder, days: Calendar) -> pa.Table:
    """Net Wh of each customer and day, missing intervals filled."""
    node = {meter.meter_id: meter.node_id for meter in folder.meters.rows}
    tables = []
    for area in runs:
        wh = balance.sums(area.drawn.wh, days.day)
        count = len(days.day_start), len(area.customers)
        tables.append(
            pa.table(
                {
                    "area_id": pa.array([area.area_id] * wh.size),
                    "time": pa.array(np.repeat(days.day_start, count[1]), _UTC),
                    "meter_id": pa.array(list(area.customers) * count[0]),
                    "node_id": pa.array([node[name] for name in area.customers] * count[0]),
                    "wh": pa.array(wh.ravel(), from_pandas=True),
                }
            )
        )
    return pa.concat_tables(tables)


def write(runs: Sequence[AreaRun], folder: Folder, options: Options, out: Path) -> None:
    """OUT/losses.parquet (also by day and month), suspects.parquet, voltages.parquet."""
    out.mkdir(parents=True, exist_ok=True)
    time = folder.measurements.time
    days = calendar(time, folder.measurements.step_s, options.zone)
    pq.write_table(losses_table(runs, time, "intervals"), out / "losses.parquet")
    pq.write_table(losses_table(runs, days.day_start, "days"), out / "losses_day.parquet")
    pq.write_table(losses_table(runs, days.month_start, "months"), out / "losses_month.parquet")
    if (sums := sums_table(runs, folder, options, days)) is not None:
        pq.write_table(sums, out / "sums.parquet")
    pq.write_table(suspects_table(runs, time), out / "suspects.parquet")
    made = [area.voltages for area in runs if area.voltages is not None]
    pq.write_table(pa.concat_tables(made) if made else technical.VOLTAGES.empty_table(), out / "voltages.parquet")
    # What a picture needs beside them.
    trees = [area.tree for area in runs if area.tree is not None]
    pq.write_table(pa.concat_tables(trees) if trees else technical.TREE.empty_table(), out / "nodes.parquet")
    pq.write_table(customers_table(runs, folder, days), out / "customers_day.parquet")
