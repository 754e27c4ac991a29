"""The power flow behind a made area, by power-grid-model: what the wires lose, what passes a node, what it sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from cloud.loss.profiles import Array
from cloud.loss.radial import AreaNetwork


@dataclass(frozen=True, slots=True)
class Solved:
    """loss_w: (T,) of the area; through_w: (T, K) into each node asked for; voltage_v: (T, n, 3) to neutral of
    each node, None where nobody asked.
    """

    loss_w: Array
    through_w: Array
    voltage_v: Array | None


def solve(
    network: AreaNetwork,
    node: npt.NDArray[np.int64],
    power_w: Array,
    power_var: Array,
    *,
    source_pu: Array | None = None,
    into: Sequence[int] = (),
    voltages: bool = False,
) -> Solved:
    """Unbalanced flow with loads (T, L, 3) W and var at `node` (L,). source_pu: (T,) voltage above, 1 if not given.

    into: nodes at the far end of a line each.
    """
    try:
        import power_grid_model as pgm
        from power_grid_model.errors import PowerGridBatchError  # type: ignore[attr-defined]
    except ImportError as error:
        raise click.ClickException('the truth needs power-grid-model: pip install "gridloom[bench]"') from error

    lines, loads = len(network.from_node), len(node)
    table = pgm.initialize_array("input", "node", len(network.node_id))
    table["id"] = np.arange(len(network.node_id))
    table["u_rated"] = np.where(np.arange(len(network.node_id)) == 0, network.hv_v, network.lv_v)
    line = pgm.initialize_array("input", "line", lines)
    km = network.length_m / 1000
    line["id"] = 100_000 + np.arange(lines)
    line["from_node"], line["to_node"] = network.from_node, network.to_node
    line["from_status"] = line["to_status"] = 1
    line["r1"], line["x1"] = network.r_ohm_per_km * km, network.x_ohm_per_km * km
    line["r0"], line["x0"] = network.r0_ohm_per_km * km, network.x0_ohm_per_km * km
    for name in ("c1", "c0", "tan1", "tan0"):
        line[name] = 0.0
    transformer = pgm.initialize_array("input", "transformer", 1)
    values = {
        "id": 300_000, "from_node": 0, "to_node": 1, "from_status": 1, "to_status": 1, "u1": network.hv_v,
        "u2": network.lv_v,
        "sn": network.rated_kva * 1e3, "uk": network.impedance_percent / 100, "pk": network.load_loss_w,
        # The folder has no column for a magnetising current.
        "i0": network.no_load_loss_w / network.rated_kva / 1e3, "p0": network.no_load_loss_w,
        "winding_from": pgm.WindingType.delta, "winding_to": pgm.WindingType.wye_n, "clock": 11,
        "tap_side": pgm.BranchSide.from_side, "tap_pos": 0, "tap_min": -1, "tap_max": 1, "tap_nom": 0,
        "tap_size": network.hv_v / 40,
    }  # fmt: skip
    for name, value in values.items():
        transformer[name] = value
    source = pgm.initialize_array("input", "source", 1)
    for name, value in {"id": 400_000, "node": 0, "status": 1, "u_ref": 1.0, "sk": 1e12}.items():
        source[name] = value
    load = pgm.initialize_array("input", "asym_load", loads)
    load["id"], load["node"], load["status"] = 500_000 + np.arange(loads), node, 1
    load["type"] = pgm.LoadGenType.const_power
    load["p_specified"] = load["q_specified"] = 0.0
    model = pgm.PowerGridModel(
        {"node": table, "line": line, "transformer": transformer, "source": source, "asym_load": load}
    )
    update = pgm.initialize_array("update", "asym_load", (len(power_w), loads))
    update["id"] = load["id"]
    update["p_specified"], update["q_specified"] = power_w, power_var
    updates: dict[Any, Any] = {"asym_load": update}
    if source_pu is not None:
        above = pgm.initialize_array("update", "source", (len(power_w), 1))
        above["id"], above["u_ref"] = 400_000, source_pu[:, None]
        updates["source"] = above
    wanted: dict[Any, Any] = {pgm.ComponentType.source: ["p"]}
    if len(into):
        wanted[pgm.ComponentType.line] = ["p_to"]
    if voltages:
        wanted[pgm.ComponentType.node] = ["u"]
    try:
        result: Any = model.calculate_power_flow(
            symmetric=False,
            update_data=updates,
            calculation_method=pgm.CalculationMethod.iterative_current,
            output_component_types=wanted,
            threading=-1,
        )
    except PowerGridBatchError as error:
        raise click.ClickException(
            f"{network.transformer_id}: no power flow in {len(error.failed_scenarios)} steps: loads too large"
        ) from error
    loss_w = np.asarray(result["source"]["p"].sum((1, 2)) - power_w.sum((1, 2)))
    through_w = np.zeros((len(power_w), len(into)))
    if len(into):
        feeding = [int(np.flatnonzero(network.to_node == at)[0]) for at in into]
        through_w = -np.asarray(result["line"]["p_to"][:, feeding].sum(2))
    return Solved(loss_w, through_w, np.array(result["node"]["u"]) if voltages else None)
