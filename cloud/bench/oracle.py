"""The same networks in power-grid-model (Newton-Raphson for truth, iterative current for speed) and in OpenDSS.

Needs pip install "gridloom[bench]".
"""

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from power_grid_model import (
    CalculationMethod,
    ComponentType,
    DatasetType,
    LoadGenType,
    PowerGridModel,
    WindingType,
    initialize_array,
)

from cloud.engines.loss.network import ZERO_SEQUENCE_OF_LINES, Line, Network, Transformer

Array = NDArray[np.float64]

WINDINGS: Final = {"D": WindingType.delta, "Y": WindingType.wye, "YN": WindingType.wye_n}


class Oracle:
    """power-grid-model with L loads; symmetric, or by phase with Kron-reduced neutrals."""

    def __init__(
        self,
        network: Network,
        lines: Sequence[Line],
        transformers: Sequence[Transformer],
        nodes: Sequence[str],
        phases: Sequence[str],
    ) -> None:
        self._network = network
        ids = iter(range(len(network.nodes), 10**8))
        node = _array(ComponentType.node, len(network.nodes))
        node["id"], node["u_rated"] = np.arange(len(network.nodes)), network.rated_v
        line = _array(ComponentType.line, len(lines))
        for row, some in zip(line, lines, strict=True):
            km = some.length_m / 1000
            r0, x0 = some.r0_ohm_per_km, some.x0_ohm_per_km
            for name, value in {
                "id": next(ids), "from_node": network.node[some.from_node], "to_node": network.node[some.to_node],
                "from_status": 1, "to_status": 1, "r1": some.r_ohm_per_km * km, "x1": some.x_ohm_per_km * km,
                "r0": km * (ZERO_SEQUENCE_OF_LINES * some.r_ohm_per_km if r0 is None else r0),
                "x0": km * (ZERO_SEQUENCE_OF_LINES * some.x_ohm_per_km if x0 is None else x0),
                "c1": 0, "tan1": 0, "c0": 0, "tan0": 0, "i_n": 1000,
            }.items():  # fmt: skip
                row[name] = value
        transformer = _array(ComponentType.transformer, len(transformers))
        for row, unit in zip(transformer, transformers, strict=True):
            group = re.fullmatch(r"(D|YN|Y)yn(\d+)", unit.vector_group)
            assert group is not None
            va = unit.rated_kva * 1000
            for name, value in {
                "id": next(ids), "from_node": network.node[unit.hv_node], "to_node": network.node[unit.lv_node],
                "from_status": 1, "to_status": 1, "u1": unit.hv_v * unit.tap, "u2": unit.lv_v, "sn": va,
                "uk": unit.impedance_percent / 100, "pk": unit.load_loss_w, "p0": unit.no_load_loss_w,
                "i0": unit.no_load_loss_w / va, "winding_from": WINDINGS[group[1]], "winding_to": WindingType.wye_n,
                "clock": int(group[2]), "tap_side": 0, "tap_pos": 0, "tap_min": 0, "tap_max": 0, "tap_nom": 0,
                "tap_size": 0.0,
            }.items():  # fmt: skip
                row[name] = value
        self._kind = ComponentType.asym_load if network.three_phase else ComponentType.sym_load
        self._phases = np.array([[phase in some for phase in "abc"] for some in phases], float)
        self._phases /= self._phases.sum(axis=1, keepdims=True)
        load = _array(self._kind, len(nodes))
        load["id"] = [next(ids) for _ in nodes]
        load["node"] = [network.node[name] for name in nodes]
        load["status"], load["type"] = 1, LoadGenType.const_power
        load["p_specified"] = load["q_specified"] = 0.0
        self._load_id = load["id"].copy()
        source = _array(ComponentType.source, 1)
        source["id"], source["node"], source["status"], source["u_ref"], source["sk"] = next(ids), 0, 1, 1.0, 1e15
        self._source_id = int(source["id"][0])
        self._model = PowerGridModel(
            {
                ComponentType.node: node,
                ComponentType.line: line,
                ComponentType.transformer: transformer,
                ComponentType.source: source,
                self._kind: load,
            }
        )

    def scenarios(self, active_w: Array, reactive_var: Array, source_pu: Array | None = None) -> dict[Any, Any]:
        """(L, T) W and var as the library's batch."""
        update: Any = initialize_array(DatasetType.update, self._kind, active_w.shape[::-1])
        update["id"] = self._load_id
        for name, values in (("p_specified", active_w), ("q_specified", reactive_var)):
            update[name] = values.T[:, :, None] * self._phases if self._network.three_phase else values.T
        batch: dict[Any, Any] = {self._kind: update}
        if source_pu is not None:
            source: Any = initialize_array(DatasetType.update, ComponentType.source, (len(source_pu), 1))
            source["id"], source["u_ref"] = self._source_id, source_pu[:, None]
            batch[ComponentType.source] = source
        return batch

    def voltages(self, batch: dict[Any, Any], *, newton: bool = False, tolerance: float = 1e-8) -> Array:
        """(T, N) or (T, N, 3) pu."""
        result: Any = self._run(batch, {ComponentType.node: ["u_pu"]}, newton, tolerance)
        return np.asarray(result[ComponentType.node]["u_pu"])

    def solve(self, batch: dict[Any, Any]) -> tuple[Array, Array, Array]:
        """Voltages as above, (T,) W lost in lines, (T,) W in transformers, to 1e-10."""
        kinds = (ComponentType.line, ComponentType.transformer)
        wanted = {ComponentType.node: ["u_pu"], **{kind: ["p_from", "p_to"] for kind in kinds}}
        result: Any = self._run(batch, wanted, True, 1e-10)
        losses = [
            (result[kind]["p_from"] + result[kind]["p_to"]).reshape(len(result[kind]["p_to"]), -1).sum(axis=1)
            if kind in result
            else np.zeros(len(result[ComponentType.node]))
            for kind in kinds
        ]
        return np.asarray(result[ComponentType.node]["u_pu"]), losses[0], losses[1]

    def _run(self, batch: dict[Any, Any], wanted: dict[Any, Any], newton: bool, tolerance: float) -> Any:
        return self._model.calculate_power_flow(
            symmetric=not self._network.three_phase,
            update_data=batch,
            output_component_types=wanted,
            calculation_method=CalculationMethod.newton_raphson if newton else CalculationMethod.iterative_current,
            error_tolerance=tolerance,
            max_iterations=100,
            threading=-1,
        )


def _array(component: ComponentType, count: int) -> Any:
    return initialize_array(DatasetType.input, component, count)
