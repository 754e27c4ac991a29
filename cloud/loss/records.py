"""A made area, and its folder as FORMAT.md says: measured with the noise of meters, the truth beside it."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cloud.loss import faults, profiles, radial
from cloud.loss.profiles import Array


@dataclass(frozen=True, slots=True)
class Fault:
    """customer: index in its area; supplied_from: the area that feeds it (another one for wrong_area)."""

    customer: int
    kind: str
    size: float
    first_step: int
    supplied_from: int


@dataclass(slots=True)
class Area:
    """An area's truth and its records before noise. recorded_wh: (T, N) Wh; supplied_wh, technical_wh: (T,) Wh.

    check_node: (K,) nodes with a check meter, check_wh: (T, K) Wh through it; voltage_v: (T, 1 + N + K, 3) of head,
    customers and check meters, empty where nobody asked.
    """

    area_id: str
    network: radial.AreaNetwork
    drawn: profiles.Profiles
    phase: npt.NDArray[np.int64]
    faults: list[Fault]
    recorded_wh: Array
    supplied_wh: Array = field(default_factory=lambda: np.zeros(0))
    technical_wh: Array = field(default_factory=lambda: np.zeros(0))
    check_node: tuple[int, ...] = ()
    check_wh: Array = field(default_factory=lambda: np.zeros((0, 0)))
    voltage_v: Array = field(default_factory=lambda: np.zeros((0, 0, 3)))


def truth(made: Sequence[Area], start: np.datetime64) -> list[dict[str, Any]]:
    """A row for each faulty customer. stolen_wh: what its book misses since the start; over-billing is negative."""
    rows: list[dict[str, Any]] = []
    for area in made:
        for fault in area.faults:
            true = (area.drawn.load_wh - area.drawn.pv_wh)[fault.first_step :, fault.customer]
            recorded = 0.0 if fault.kind == "wrong_area" else area.recorded_wh[fault.first_step :, fault.customer]
            since = start.astype("datetime64[s]") + np.timedelta64(900, "s") * fault.first_step
            rows.append(
                {
                    "meter_id": meter_id(area, fault.customer),
                    "kind": fault.kind,
                    "stolen_wh": round(float((true - recorded).sum())),
                    "since": f"{since}Z",
                    "area_id": area.area_id,
                    "supplied_from": made[fault.supplied_from].area_id,
                    "size": fault.size,
                }
            )
    return rows


def meter_id(area: Area, customer: int) -> str:
    return f"{area.area_id}-m{customer + 1:04d}"


def write(made: Sequence[Area], out: Path, *, seed: int, start: np.datetime64, gains: bool = True) -> None:
    """The folder of FORMAT.md, measured with the meters' noise; `truth.csv` and `truth_areas.csv` beside it."""
    rng, more = np.random.default_rng((seed, 1)), np.random.default_rng((seed, 2))
    out.mkdir(parents=True, exist_ok=True)
    nodes, lines, transformers, meters, tables = [], [], [], [], []
    time = start.astype("datetime64[us]") + np.arange(len(made[0].supplied_wh)) * np.timedelta64(900_000_000, "us")
    for area in made:
        n = area.network
        for i, name in enumerate(n.node_id):
            nodes.append((name, n.kind[i], n.phases[i], area.area_id))
        passes_on = set(n.from_node.tolist())
        for i, name in enumerate(n.line_id):
            a, b = n.from_node[i], n.to_node[i]
            numbers = (n.length_m, n.r_ohm_per_km, n.x_ohm_per_km, n.r0_ohm_per_km, n.x0_ohm_per_km, n.rated_a)
            lines.append(
                (
                    name,
                    n.node_id[a],
                    n.node_id[b],
                    *(round(float(v[i]), 6) for v in numbers),
                    "abc" if b in passes_on else n.phases[b],
                )
            )
        transformers.append(
            (
                n.transformer_id,
                n.node_id[0],
                n.node_id[1],
                n.rated_kva,
                n.hv_v,
                n.lv_v,
                n.no_load_loss_w,
                n.load_loss_w,
                n.impedance_percent,
                1,
                "Dyn11",
            )
        )
        ids = [f"{area.area_id}-supply"] + [meter_id(area, c) for c in range(len(area.phase))]
        meters.append((ids[0], n.node_id[0], "supply", "abc", 1, 1, 0.2, area.area_id))
        for c, p in enumerate(area.phase):
            meters.append(
                (ids[c + 1], n.node_id[n.customer_node[c]], "customer", radial.PHASES[p], 1, 1, 1.0, area.area_id)
            )
        net = np.concatenate([area.supplied_wh[:, None], area.recorded_wh], axis=1)
        imported, exported, present = faults.measure(rng, net, np.arange(net.shape[1]) == 0, gains=gains)
        for number, at in enumerate(area.check_node):
            ids.append(f"{area.area_id}-check{number + 1}")
            meters.append((ids[-1], n.node_id[at], "check", "abc", 1, 1, 0.2, area.area_id))
        if area.check_node:
            every = np.ones(len(area.check_node), dtype=bool)
            others = faults.measure(more, area.check_wh, every, gains=gains)
            imported, exported = np.hstack([imported, others[0]]), np.hstack([exported, others[1]])
            present = np.hstack([present, others[2]])
        meter, step = np.nonzero(present.T)
        columns = {
            "time": pa.array(time[step], pa.timestamp("us", tz="UTC")),
            "meter_id": pa.array(ids).take(pa.array(meter)),
            "imported_wh": imported[step, meter],
            "exported_wh": exported[step, meter],
        }
        if area.voltage_v.size:
            columns |= _voltages(more, area, step, meter, gains=gains)
        tables.append(pa.table(columns))
    _csv(out / "nodes.csv", "node_id,kind,phases,area_id", nodes)
    columns_of_lines = (
        "line_id,from_node,to_node,length_m,r_ohm_per_km,x_ohm_per_km,"
        "r0_ohm_per_km,x0_ohm_per_km,rated_current_a,phases"
    )
    _csv(out / "lines.csv", columns_of_lines, lines)
    _csv(
        out / "transformers.csv",
        "transformer_id,hv_node,lv_node,rated_kva,hv_v,lv_v,no_load_loss_w,load_loss_w,impedance_percent,tap,vector_group",
        transformers,
    )
    _csv(out / "meters.csv", "meter_id,node_id,role,phases,ct_ratio,pt_ratio,accuracy_class,area_id", meters)
    pq.write_table(pa.concat_tables(tables), out / "measurements.parquet")
    rows = truth(made, start)
    _csv(
        out / "truth.csv",
        "meter_id,kind,stolen_wh,since,area_id,supplied_from,size",
        [tuple(row.values()) for row in rows],
    )
    missing = [float((a.supplied_wh - a.technical_wh - a.recorded_wh.sum(1)).sum()) for a in made]
    _csv(
        out / "truth_areas.csv",
        "area_id,technical_wh,stolen_wh",
        [(a.area_id, round(float(a.technical_wh.sum())), round(m)) for a, m in zip(made, missing, strict=True)],
    )


def _voltages(
    rng: np.random.Generator, area: Area, step: npt.NDArray[np.int64], meter: npt.NDArray[np.int64], *, gains: bool
) -> dict[str, Array]:
    """What meters show of the voltages at (R,) steps and meters; a single-phase meter has one only, its first."""
    shown = faults.measure_voltage(rng, area.voltage_v, gains=gains)
    phase = np.full(shown.shape[1], 3)
    phase[1 : 1 + len(area.phase)] = area.phase
    one = np.flatnonzero(phase < 3)
    shown[:, one, 0] = shown[:, one, phase[one]]
    shown[:, one, 1:] = np.nan
    return {f"voltage_l{i + 1}_v": pa.array(shown[step, meter, i], from_pandas=True) for i in range(3)}


def _csv(path: Path, header: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)
