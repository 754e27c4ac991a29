"""Losses and voltages of an area by power-grid-model: our own line-loss engine must be judged by somebody else's."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from power_grid_model import (
    CalculationMethod,
    ComponentType,
    DatasetType,
    LoadGenType,
    PowerGridModel,
    WindingType,
    initialize_array,
)

from simulators.layout import SOURCE_PU, Area
from simulators.profiles import Array

HV_V, LV_V = 10_000.0, 400.0


@dataclass(frozen=True, slots=True)
class Flow:
    """(T,) W and var into the transformer's high side; (customers, T) phase-to-neutral volts; (T,) V at the head."""

    head_w: Array
    head_var: Array
    customer_v: Array
    technical_w: Array


class AreaFlow:
    """Batch power flow of one area: the transformer and the lines under it, one load per node with customers."""

    def __init__(self, area: Area) -> None:
        index = {name: i for i, name in enumerate((area.source_node, *area.nodes))}
        node = _array(ComponentType.node, len(index))
        node["id"] = np.arange(len(index))
        node["u_rated"] = [HV_V] + [LV_V] * len(area.nodes)
        ids = iter(range(len(index), 10**6))

        line = _array(ComponentType.line, len(area.lines))
        line["id"] = [next(ids) for _ in area.lines]
        line["from_node"] = [index[some.from_node] for some in area.lines]
        line["to_node"] = [index[some.to_node] for some in area.lines]
        line["r1"] = [some.r_ohm for some in area.lines]
        line["x1"] = [some.x_ohm for some in area.lines]
        for name, value in (("from_status", 1), ("to_status", 1), ("c1", 0.0), ("tan1", 0.0), ("i_n", 1e3)):
            line[name] = value

        unit, transformer = area.transformer, _array(ComponentType.transformer, 1)
        for name, number in {
            "id": next(ids), "from_node": index[area.source_node], "to_node": index[area.busbar_node],
            "from_status": 1, "to_status": 1, "u1": HV_V, "u2": LV_V, "sn": unit.rated_kva * 1e3,
            "uk": unit.impedance_percent / 100, "pk": unit.load_loss_w, "p0": unit.no_load_loss_w,
            "i0": max(unit.no_load_current_percent / 100, unit.no_load_loss_w / unit.rated_kva / 1e3),
            "winding_from": WindingType.delta, "winding_to": WindingType.wye_n, "clock": 11,
            "tap_side": 0, "tap_pos": 0, "tap_min": 0, "tap_max": 0, "tap_nom": 0, "tap_size": 0.0,
        }.items():  # fmt: skip
            transformer[name] = number

        source = _array(ComponentType.source, 1)
        # A stiff source: the 10 kV grid's own impedance is not the area's loss.
        source["id"], source["node"], source["status"], source["u_ref"], source["sk"] = next(ids), 0, 1, SOURCE_PU, 1e12
        self._customer_node = np.array([index[customer.node] for customer in area.customers])
        self._load_nodes, self._load_of = np.unique(self._customer_node, return_inverse=True)
        load = _array(ComponentType.sym_load, len(self._load_nodes))
        load["id"] = [next(ids) for _ in self._load_nodes]
        load["node"] = self._load_nodes
        load["status"], load["type"] = 1, LoadGenType.const_power
        load["p_specified"] = load["q_specified"] = 0.0
        self._load_ids = load["id"].copy()
        self._model = PowerGridModel(
            {
                ComponentType.node: node,
                ComponentType.line: line,
                ComponentType.transformer: transformer,
                ComponentType.source: source,
                ComponentType.sym_load: load,
            }
        )

    def solve(self, active_w: Array, reactive_var: Array) -> Flow:
        """(customers, T) W and var at the customers' nodes. Raises the library's error where nothing converges."""
        steps = active_w.shape[1]
        update: Any = initialize_array(DatasetType.update, ComponentType.sym_load, (steps, len(self._load_ids)))
        update["id"] = self._load_ids
        update["p_specified"] = self._per_node(active_w)
        update["q_specified"] = self._per_node(reactive_var)
        output: Any = self._model.calculate_power_flow(
            update_data={ComponentType.sym_load: update},
            output_component_types={ComponentType.node: ["u"], ComponentType.transformer: ["p_from", "q_from"]},
            calculation_method=CalculationMethod.newton_raphson,
            error_tolerance=1e-9,
        )
        head_w: Array = output[ComponentType.transformer]["p_from"][:, 0]
        return Flow(
            head_w=head_w,
            head_var=output[ComponentType.transformer]["q_from"][:, 0],
            customer_v=output[ComponentType.node]["u"][:, self._customer_node].T / np.sqrt(3),
            technical_w=head_w - active_w.sum(axis=0),
        )

    def _per_node(self, values: Array) -> Array:
        """(customers, T) → (T, load nodes)."""
        total: Array = np.zeros((len(self._load_nodes), values.shape[1]))
        np.add.at(total, self._load_of, values)
        return total.T


def _array(component: ComponentType, count: int) -> Any:
    return initialize_array(DatasetType.input, component, count)
