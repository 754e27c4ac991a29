"""The power flow against power-grid-model, which is somebody else's and exact, and against numbers worked by hand."""

import numpy as np
import pytest
from power_grid_model import CalculationMethod, ComponentType, DatasetType, PowerGridModel, initialize_array

from cloud.engines.line_loss import (
    Line,
    Network,
    NetworkError,
    NoSolutionError,
    Transformer,
    compile_network,
    power_flow,
    statistical_loss,
    technical_loss,
)

TRANSFORMER = Transformer("hv", "lv", 400, 10_500, 400, 600, 4_000, 4)
LINES = [
    Line("lv", "a", 120, 0.32, 0.08),
    Line("a", "b", 80, 0.64, 0.085),
    Line("a", "c", 200, 0.64, 0.085),
    Line("lv", "d", 300, 0.32, 0.08),
]
NODES = ["lv", "a", "b", "c", "d"]


def oracle(load_va: np.ndarray, source_pu: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Voltages (T, 5) pu of NODES and loss (T,) W, by power-grid-model's Newton-Raphson."""
    ids = {"hv": 0, **{name: i + 1 for i, name in enumerate(NODES)}}
    node = initialize_array(DatasetType.input, ComponentType.node, 6)
    node["id"], node["u_rated"] = list(ids.values()), [10_500] + [400] * 5
    line = initialize_array(DatasetType.input, ComponentType.line, len(LINES))
    line["id"] = np.arange(10, 10 + len(LINES))
    line["from_node"], line["to_node"] = [ids[i.from_node] for i in LINES], [ids[i.to_node] for i in LINES]
    line["from_status"] = line["to_status"] = 1
    line["r1"] = [i.length_m / 1000 * i.r_ohm_per_km for i in LINES]
    line["x1"] = [i.length_m / 1000 * i.x_ohm_per_km for i in LINES]
    line["c1"], line["tan1"], line["i_n"] = 0, 0, 1000
    transformer = initialize_array(DatasetType.input, ComponentType.transformer, 1)
    for name, value in {
        "id": 30, "from_node": 0, "to_node": 1, "from_status": 1, "to_status": 1, "u1": 10_500, "u2": 400,
        "sn": 400e3, "uk": 0.04, "pk": 4_000, "i0": 600 / 400e3, "p0": 600, "winding_from": 2, "winding_to": 1,
        "clock": 11, "tap_side": 0, "tap_pos": 0, "tap_min": -2, "tap_max": 2, "tap_nom": 0, "tap_size": 250,
    }.items():  # fmt: skip
        transformer[name] = value
    load = initialize_array(DatasetType.input, ComponentType.sym_load, 5)
    load["id"], load["node"], load["status"], load["type"] = range(40, 45), [ids[n] for n in NODES], 1, 0
    load["p_specified"] = load["q_specified"] = 0
    source = initialize_array(DatasetType.input, ComponentType.source, 1)
    source["id"], source["node"], source["status"], source["u_ref"], source["sk"] = 50, 0, 1, source_pu, 1e20
    model = PowerGridModel(
        {
            ComponentType.node: node,
            ComponentType.line: line,
            ComponentType.transformer: transformer,
            ComponentType.sym_load: load,
            ComponentType.source: source,
        }
    )
    update = initialize_array(DatasetType.update, ComponentType.sym_load, load_va.shape)
    update["id"], update["p_specified"], update["q_specified"] = range(40, 45), load_va.real, load_va.imag
    result = model.calculate_power_flow(
        update_data={ComponentType.sym_load: update},
        calculation_method=CalculationMethod.newton_raphson,
        error_tolerance=1e-12,
    )
    loss = sum(
        (result[kind]["p_from"] + result[kind]["p_to"]).sum(axis=1)
        for kind in (ComponentType.line, ComponentType.transformer)
    )
    return result[ComponentType.node]["u_pu"][:, 1:], loss


@pytest.fixture(scope="module")
def network() -> Network:
    return compile_network("hv", LINES, [TRANSFORMER])


@pytest.mark.parametrize("source_pu", [1.0, 1.03])
def test_the_power_flow_agrees_with_power_grid_model(network: Network, source_pu: float) -> None:
    rng = np.random.default_rng(7)
    load_va = rng.uniform(-5e3, 40e3, (200, 5)) + 1j * rng.uniform(-2e3, 15e3, (200, 5))
    voltage_pu, loss_w = oracle(load_va, source_pu)
    assert list(network.node) == ["lv", "a", "d", "b", "c"]
    column = [network.node[name] for name in NODES]
    ours = np.empty_like(load_va)
    ours[:, column] = load_va
    flow = power_flow(network, ours, source_pu)
    np.testing.assert_allclose(np.abs(flow.voltage_pu[:, column]), voltage_pu, rtol=0, atol=1e-6)
    np.testing.assert_allclose(flow.loss_w, loss_w, rtol=1e-6)


def test_an_idle_transformer_loses_its_no_load_loss(network: Network) -> None:
    flow = power_flow(network, np.zeros((1, 5), complex))
    assert flow.loss_w[0] == pytest.approx(600, rel=1e-4)


def test_one_line_worked_by_hand() -> None:
    """400 V, 0.1 ohm, 10 kW at power factor 1: U = (1 + sqrt(1 - 4·P·R/U0²))/2 = 0.993710 pu, loss = P²·R/U²."""
    network = compile_network("source", [Line("source", "end", 1000, 0.1, 0)], [])
    flow = power_flow(network, np.array([[10_000 + 0j]]))
    voltage_pu = (1 + np.sqrt(1 - 4 * 10_000 * 0.1 / 400**2)) / 2
    assert abs(flow.voltage_pu[0, 0]) == pytest.approx(voltage_pu, abs=1e-9)
    assert flow.loss_w[0] == pytest.approx(10_000**2 * 0.1 / (400 * voltage_pu) ** 2, rel=1e-8)


def test_energy_without_reactive_readings_is_taken_at_power_factor_0_95(network: Network) -> None:
    column = np.array([network.node["b"], network.node["c"], network.node["c"]])
    drawn_wh = np.array([[2_000.0, 1_000, 500]])
    known = technical_loss(network, column, drawn_wh, drawn_wh * np.tan(np.arccos(0.95)), 0.25)
    unknown = technical_loss(network, column, drawn_wh, np.full((1, 3), np.nan), 0.25)
    np.testing.assert_allclose(unknown, known)
    assert 150 < unknown[0] < 400  # no-load alone is 150 Wh


def test_more_load_than_the_network_carries_is_an_error(network: Network) -> None:
    with pytest.raises(NoSolutionError):
        power_flow(network, np.full((1, 5), 5e6 + 0j))


@pytest.mark.parametrize(
    ("lines", "message"),
    [([*LINES, Line("b", "c", 10, 1, 1)], "closes a loop"), ([*LINES, Line("x", "y", 10, 1, 1)], "1 of 6 branches")],
)
def test_what_is_not_one_tree_is_refused(lines: list[Line], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        compile_network("hv", lines, [TRANSFORMER])


def test_a_gap_is_not_a_loss() -> None:
    loss_wh = statistical_loss(np.array([10.0, 10]), np.array([[4.0, 5], [4, np.nan]]))
    np.testing.assert_array_equal(loss_wh, [1, np.nan])
