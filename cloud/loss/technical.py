"""The technical loss and the voltages of one area of a folder, by power flow from its head meter downwards."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cloud.engines.loss import network as model
from cloud.engines.loss.balance import Filled, sums
from cloud.engines.loss.flow import NoSolutionError
from cloud.engines.loss.pieces import Placed, place
from cloud.engines.loss.technical import Technical, technical_loss
from cloud.loss.folder import Folder, Line, Transformer

Array = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

_PLAUSIBLE: Final = (0.8, 1.2)
PHASES: Final = "abc"


@dataclass(frozen=True, slots=True)
class AreaFlow:
    """An area's network with its M customers on it.  ``varh``: (T, M) or None.  ``source_pu``: at the head."""

    network: model.Network
    placed: Placed
    varh: Array | None
    source_pu: Array | float

    def solve(
        self,
        drawn: Filled,
        supplied_wh: Array,
        use: Mask,
        *,
        steps_per_day: int,
        clock_s: float,
        beside_wh: Array | None = None,
        voltages: bool = False,
    ) -> Technical | str:
        """The engine's ``technical_loss`` of this area, or why there is none."""
        try:
            return technical_loss(
                self.placed, drawn, supplied_wh, use, steps_per_day=steps_per_day, varh=self.varh, beside_wh=beside_wh,
                source_pu=self.source_pu, clock_s=clock_s, voltages=voltages,
            )  # fmt: skip
        except NoSolutionError as error:
            return f"power flow: {error}"


def area_flow(folder: Folder, area_id: str, heads: Sequence[int], drawing: Sequence[int]) -> AreaFlow | str:
    """The network below the area's head meter, or why it cannot be computed.

    heads, drawing: positions of the supply meters, and of customers and generation, in the folder's meters.
    """
    rows = folder.meters.rows
    if not folder.nodes or not (folder.lines or folder.transformers):
        gone = [name for name in ("nodes", "lines", "transformers") if not getattr(folder, name)]
        return f"the network is unknown (no {', '.join(f'{name}.csv' for name in gone)})"
    roots = sorted({rows[i].node_id for i in heads})
    if len(roots) != 1:
        return f"{len(roots)} nodes with a supply meter ({', '.join(roots[:3])}); a radial area has one"
    lines, transformers, source_v = _below(folder, roots[0], area_id)
    if not lines and not transformers:
        return f"no line or transformer below node {roots[0]} of the supply meter"
    three_phase = any(rows[i].phases != PHASES for i in drawing) or any(line.phases != PHASES for line in lines)
    try:
        network = model.compile_network(
            roots[0],
            [_line(line) for line in lines],
            [_transformer(unit) for unit in transformers],
            three_phase=three_phase,
            earthing_ohm={node.node_id: 0.0 for node in folder.nodes if node.neutral_earthed},
            source_v=source_v,
        )
    except model.NetworkError as error:
        return f"network model: {error}"
    lost = [rows[i] for i in drawing if rows[i].node_id not in network.node]
    if lost:
        return f"node {lost[0].node_id} of meter {lost[0].meter_id} is not below the supply meter; correct the registry"
    try:
        placed = place(network, [rows[i].node_id for i in drawing], [rows[i].phases for i in drawing])
    except ValueError as error:
        return f"network model: {error}"
    measured = folder.measurements
    varh = None
    if measured.imported_varh is not None:
        varh = measured.imported_varh[:, drawing]
        if measured.exported_varh is not None:
            varh = varh - np.nan_to_num(measured.exported_varh[:, drawing])
    return AreaFlow(network, placed, varh, _source_pu(folder, heads, network.rated_v[0]))


def _below(folder: Folder, root: str, area_id: str) -> tuple[list[Line], list[Transformer], float | None]:
    """Branches on the far side of ``root`` as seen from the network's source, down to another area's head meter."""
    edges: dict[str, list[tuple[str, Line | Transformer]]] = {}
    for line in folder.lines:
        edges.setdefault(line.from_node, []).append((line.to_node, line))
        edges.setdefault(line.to_node, []).append((line.from_node, line))
    for unit in folder.transformers:
        edges.setdefault(unit.hv_node, []).append((unit.lv_node, unit))
        edges.setdefault(unit.lv_node, []).append((unit.hv_node, unit))
    sources = [node.node_id for node in folder.nodes if node.kind == "source"]
    # Walk from the root to the nearest source: the first step of that way leads up, the others down.
    came: dict[str, str] = {root: root}
    waiting = deque([root])
    up: str | None = None
    while waiting and root not in sources:
        name = waiting.popleft()
        if name in sources:
            while came[name] != root:
                name = came[name]
            up = name
            break
        for other, _ in edges.get(name, ()):
            if other not in came:
                came[other] = name
                waiting.append(other)
    volts: float | None = None
    for name, branch in edges.get(root, ()):
        if name == up and isinstance(branch, Transformer):
            volts = branch.lv_v if branch.lv_node == root else branch.hv_v
    ends = {m.node_id for m in folder.meters.rows if m.role == "supply" and m.area_id != area_id} - {root}
    used: dict[int, Line | Transformer] = {}
    seen = {root} if up is None else {root, up}
    waiting = deque([root])
    while waiting:
        name = waiting.popleft()
        if name in ends:
            continue
        for other, branch in edges.get(name, ()):
            if name == root and other == up:
                continue
            used[id(branch)] = branch
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    lines = [branch for branch in used.values() if isinstance(branch, Line)]
    return lines, [branch for branch in used.values() if isinstance(branch, Transformer)], volts


def _line(line: Line) -> model.Line:
    names = [column.name for column in fields(model.Line)]
    return model.Line(**{name: getattr(line, name) for name in names})


def _transformer(unit: Transformer) -> model.Transformer:
    return model.Transformer(
        unit.hv_node, unit.lv_node, unit.rated_kva, unit.hv_v, unit.lv_v, unit.no_load_loss_w, unit.load_loss_w,
        unit.impedance_percent, unit.tap, unit.vector_group,
    )  # fmt: skip


def _source_pu(folder: Folder, heads: Sequence[int], rated_v: float) -> Array | float:
    """(T,) voltage at the head over its rating; 1 where it was not measured or is not of this node."""
    volts = folder.measurements.voltage_v
    if volts is None:
        return 1.0
    seen = volts[:, list(heads)].reshape(len(volts), -1)
    count = np.isfinite(seen).sum(axis=1)
    mean = np.where(count > 0, np.nansum(seen, axis=1) / np.maximum(count, 1), np.nan)
    for ratio in (1.0, folder.meters.rows[heads[0]].pt_ratio):
        for per_unit in (mean * ratio * 3**0.5 / rated_v, mean * ratio / rated_v):
            usual = float(np.nanmedian(per_unit)) if count.any() else np.nan
            if _PLAUSIBLE[0] < usual < _PLAUSIBLE[1]:
                good = (per_unit > _PLAUSIBLE[0]) & (per_unit < _PLAUSIBLE[1])
                return np.asarray(np.where(good, per_unit, usual), np.float64)
    return 1.0


VOLTAGES: Final = pa.schema(
    [
        ("area_id", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("node_id", pa.string()),
        ("phase", pa.string()),
        ("predicted_min_v", pa.float64()),
        ("predicted_mean_v", pa.float64()),
        ("predicted_max_v", pa.float64()),
        ("measured_mean_v", pa.float64()),
        ("difference_v", pa.float64()),
        ("difference_sd_v", pa.float64()),
        ("below_limit", pa.int64()),
        ("above_limit", pa.int64()),
    ]
)


def voltages(
    flow: AreaFlow,
    voltage_pu: Array,
    folder: Folder,
    area_id: str,
    day: Index,
    day_start: NDArray[np.datetime64],
    low: float,
    high: float,
) -> pa.Table:
    """Volts to neutral of each node, phase and day: predicted, measured where a meter shows them, and violations.

    voltage_pu: (N, F, T) over rated, as the flow found it.  low, high: limits in percent of rated.
    ``difference_v``: measured − predicted over the intervals that have both.  ``below_limit``, ``above_limit``:
    intervals, of the measured voltage where there is one, else of the predicted.
    """
    _, phases, steps = voltage_pu.shape
    rated_v = np.asarray(flow.network.rated_v) / 3**0.5
    predicted = np.moveaxis(voltage_pu * rated_v[:, None, None], -1, 0).reshape(steps, -1)
    measured = _measured(folder, area_id, flow.network, phases).reshape(steps, -1)
    present = np.flatnonzero(np.isfinite(predicted).any(axis=0))
    predicted, measured = predicted[:, present], measured[:, present]
    node, phase = np.divmod(present, phases)
    rated = rated_v[node]
    starts = np.flatnonzero(np.diff(day, prepend=-1))
    count = sums(np.ones(steps), day)[:, None]
    both = np.isfinite(measured)
    paired = sums(both.astype(float), day)
    apart = np.where(both, measured - predicted, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        measured_mean = sums(np.where(both, measured, 0.0), day) / paired
        apart_mean = sums(apart, day) / paired
        apart_sd = np.sqrt(np.maximum(sums(apart**2, day) / paired - apart_mean**2, 0.0))
    shown = np.where(both, measured, predicted)
    below = sums((shown < rated * (1 + low / 100)).astype(float), day)
    above = sums((shown > rated * (1 + high / 100)).astype(float), day)
    days, columns = len(day_start), len(present)
    name = np.array(flow.network.nodes)[node]
    letters = np.array(list(PHASES) if phases == 3 else [PHASES])[phase]

    def flat(values: Array) -> pa.Array:
        return pa.array(np.broadcast_to(values, (days, columns)).ravel(), from_pandas=True)

    return pa.table(
        [
            pa.array([area_id] * (days * columns)),
            pa.array(np.repeat(day_start, columns), VOLTAGES.field("time").type),
            pa.array(np.tile(name, days)),
            pa.array(np.tile(letters, days)),
            flat(np.minimum.reduceat(predicted, starts, axis=0)),
            flat(sums(predicted, day) / count),
            flat(np.maximum.reduceat(predicted, starts, axis=0)),
            flat(measured_mean),
            flat(apart_mean),
            flat(apart_sd),
            pa.array(below.ravel().astype(np.int64)),
            pa.array(above.ravel().astype(np.int64)),
        ],
        schema=VOLTAGES,
    )


TREE: Final = pa.schema(
    [
        ("area_id", pa.string()),
        ("node_id", pa.string()),
        ("parent_id", pa.string()),
        ("x", pa.float64()),
        ("y", pa.float64()),
    ]
)


def tree(flow: AreaFlow, folder: Folder, area_id: str) -> pa.Table:
    """The area's nodes, parents first; coordinates where nodes.csv has them."""
    network = flow.network
    parent = {branch.child: network.nodes[branch.parent] for branch in network.branches}
    place_of = {node.node_id: (node.x, node.y) for node in folder.nodes}
    return pa.table(
        [
            pa.array([area_id] * len(network.nodes)),
            pa.array(network.nodes),
            pa.array([parent.get(at) for at in range(len(network.nodes))], pa.string()),
            pa.array([place_of[name][0] for name in network.nodes], pa.float64()),
            pa.array([place_of[name][1] for name in network.nodes], pa.float64()),
        ],
        schema=TREE,
    )


def _measured(folder: Folder, area_id: str, network: model.Network, phases: int) -> Array:
    """(T, N, F) volts to neutral that meters show at each node, NaN where none; the mean over phases when F is 1."""
    volts = folder.measurements.voltage_v
    shown = np.full((len(folder.measurements.time), len(network.nodes), phases), np.nan)
    if volts is None:
        return shown
    for i, meter in enumerate(folder.meters.rows):
        if meter.area_id != area_id or meter.node_id not in network.node:
            continue
        at = network.node[meter.node_id]
        if phases == 1:
            seen = np.isfinite(volts[:, i])
            count = seen.sum(axis=1)
            mean = np.where(seen, volts[:, i], 0.0).sum(axis=1) / np.maximum(count, 1)
            shown[:, at, 0] = np.where(count > 0, mean, np.nan)
        elif meter.phases == PHASES:
            shown[:, at] = volts[:, i]
        else:
            for position, letter in enumerate(meter.phases):
                shown[:, at, PHASES.index(letter)] = volts[:, i, position]
    return shown
