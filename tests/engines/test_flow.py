"""The power flow against power-grid-model, which is somebody else's and exact, and against numbers worked by hand."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from cloud.bench.oracle import Oracle
from cloud.engines.loss.flow import NoSolutionError, place, solve
from cloud.engines.loss.network import Line, Network, NetworkError, Transformer, compile_network

TRANSFORMER = Transformer("hv", "lv", 400, 10_500, 400, 600, 4_000, 4)
LINES = [
    Line("lv", "a", 120, 0.32, 0.08),
    Line("a", "b", 80, 0.64, 0.085),
    Line("a", "c", 200, 0.64, 0.085),
    Line("lv", "d", 300, 0.32, 0.08),
]
NODES = ["lv", "a", "b", "c", "d"]


@pytest.fixture(scope="module")
def network() -> Network:
    return compile_network("hv", LINES, [TRANSFORMER])


@pytest.mark.parametrize("group", ["Dyn11", "Dyn5", "Dyn1", "Dyn7", "YNyn0", "YNyn6"])
@pytest.mark.parametrize("three_phase", [False, True])
def test_voltages_and_losses_agree_with_power_grid_model(three_phase: bool, group: str) -> None:
    """Tapped, with generation, on one and three phases, the voltage of the source varying."""
    transformer = replace(TRANSFORMER, vector_group=group, tap=1.025)
    network = compile_network("hv", LINES, [transformer], three_phase=three_phase)
    phases = ["abc", "a", "b", "abc", "c", "abc", "c"] if three_phase else ["abc"] * 7
    nodes = [*NODES, "b", "b"]
    rng = np.random.default_rng(7)
    active_w, reactive_var = rng.uniform(-5e3, 15e3, (7, 200)), rng.uniform(-2e3, 5e3, (7, 200))
    source_pu = rng.uniform(0.97, 1.03, 200)
    oracle = Oracle(network, LINES, [transformer], nodes, phases)
    voltage_pu, line_w, transformer_w = oracle.solve(oracle.scenarios(active_w, reactive_var, source_pu))
    flow = solve(place(network, nodes, phases), active_w, reactive_var, source_pu)
    assert flow.voltage_pu is not None
    ours = np.moveaxis(flow.voltage_pu, 2, 0) if three_phase else flow.voltage_pu[:, 0].T
    np.testing.assert_allclose(ours, voltage_pu, rtol=0, atol=1e-6)
    np.testing.assert_allclose(flow.line_w, line_w, rtol=1e-5)
    np.testing.assert_allclose(flow.load_loss_w + flow.no_load_w, transformer_w, rtol=1e-5)
    np.testing.assert_allclose(flow.head_w, flow.loss_w + active_w.sum(axis=0), rtol=1e-9)


def test_an_idle_transformer_loses_its_no_load_loss(network: Network) -> None:
    flow = solve(place(network, []), np.zeros((0, 3)), np.zeros((0, 3)))
    np.testing.assert_allclose(flow.no_load_w, 600, rtol=1e-4)
    np.testing.assert_allclose(flow.loss_w, 600, rtol=1e-4)


def test_one_line_worked_by_hand() -> None:
    """400 V, 0.1 ohm, 10 kW at power factor 1: U = (1 + sqrt(1 - 4·P·R/U0²))/2 = 0.993710 pu, loss = P²·R/U²."""
    network = compile_network("source", [Line("source", "end", 1000, 0.1, 0)], [])
    flow = solve(place(network, ["end"]), np.array([[10_000.0]]), np.zeros((1, 1)))
    voltage_pu = (1 + np.sqrt(1 - 4 * 10_000 * 0.1 / 400**2)) / 2
    assert flow.voltage_pu is not None
    assert flow.voltage_pu[1, 0, 0] == pytest.approx(voltage_pu, abs=1e-9)
    assert flow.loss_w[0] == pytest.approx(10_000**2 * 0.1 / (400 * voltage_pu) ** 2, rel=1e-7)


def test_scenarios_without_a_solution_are_named(network: Network) -> None:
    active_w = np.full((5, 1500), 1e3)
    active_w[:, [3, 1200]] = 5e6
    with pytest.raises(NoSolutionError, match=r"2 of 1500 scenarios \(3, 1200\)") as caught:
        solve(place(network, NODES), active_w, np.zeros_like(active_w))
    np.testing.assert_array_equal(caught.value.scenarios, [3, 1200])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*LINES, Line("x", "y", 10, 1, 1)], "1 of 6 branches are not reached from hv, line x - y among them"),
        ([*LINES, Line("c", "e", 0, 1, 1)], "line c - e: it has no impedance"),
        ([*LINES, Line("c", "e", 10, 0, 0)], "line c - e: it has no impedance"),
        ([*LINES, Line("c", "e", 10, 1, np.nan)], "line c - e: length and impedances are numbers"),
        ([*LINES, Line("c", "e", 10, 1, 1, r0_ohm_per_km=1)], "give both r0 and x0"),
        ([*LINES, Line("c", "e", 10, 1, 1, phases="ad")], "phases abc, a, b, c"),
        ([*LINES, Line("c", "e", 9, 1, 1, phases="a"), Line("e", "f", 9, 1, 1)], "phase b does not come as far as e"),
        ([*LINES, Line("c", "e", 9, 1, 1, None, None, 1, 1)], "line a - c: the lines after it have a neutral"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_words(lines: list[Line], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        compile_network("hv", lines, [TRANSFORMER], three_phase=True)


def test_a_load_where_the_network_is_not_is_refused() -> None:
    network = compile_network("lv", [Line("lv", "a", 100, 0.3, 0.1, phases="b")], [], three_phase=True)
    with pytest.raises(NetworkError, match="node x of a load is not in the network"):
        place(network, ["x"], ["a"])
    with pytest.raises(NetworkError, match="node a: a load on phase c"):
        place(network, ["a"], ["c"])


@pytest.mark.parametrize("total", [0, 1, 2, 1023, 1537, 2600])
def test_each_scenario_stands_for_itself(network: Network, total: int) -> None:
    """However many there are and whatever chunk they fall into; times before loads in memory, too."""
    rng = np.random.default_rng(3)
    active_w = rng.uniform(0, 30e3, (total, 5)).T
    together = solve(place(network, NODES), active_w, 0.2 * active_w)
    assert together.voltage_pu is not None
    assert together.voltage_pu.shape == (6, 1, total)
    for at in {0, total // 2, total - 1} if total else ():
        alone = solve(place(network, NODES), active_w[:, [at]], 0.2 * active_w[:, [at]])
        assert alone.voltage_pu is not None
        np.testing.assert_allclose(together.voltage_pu[:, :, at], alone.voltage_pu[:, :, 0], rtol=0, atol=1e-8)
        np.testing.assert_allclose(together.loss_w[at], alone.loss_w[0], rtol=1e-6)
        np.testing.assert_allclose(together.head_w[at], alone.head_w[0], rtol=1e-7)


def test_no_solution_crosses_processes() -> None:
    error = copy.copy(NoSolutionError(np.array([3, 5]), 9))  # by what pickle asks
    assert error.scenarios.tolist() == [3, 5]
    assert "2 of 9 scenarios" in str(error)


@pytest.mark.parametrize("light", [0.0, 1e-3])
def test_what_is_learnt_on_a_light_first_chunk_does_for_heavy_ones(network: Network, light: float) -> None:
    """And for loads that lie elsewhere: idle for 1,100 scenarios, then loads near the station, then at the far end."""
    rng = np.random.default_rng(11)
    active_w = rng.uniform(0, 40e3, (5, 4400))
    active_w[:, :1100] *= light
    active_w[2:, 1100:2200] *= 0.01
    active_w[:2, 2200:] *= 0.01
    placed = place(network, NODES)
    together = solve(placed, active_w, 0.3 * active_w)
    assert together.voltage_pu is not None
    for at in range(0, 4400, 97):
        alone = solve(placed, active_w[:, [at]], 0.3 * active_w[:, [at]])
        assert alone.voltage_pu is not None
        np.testing.assert_allclose(together.voltage_pu[:, :, at], alone.voltage_pu[:, :, 0], rtol=0, atol=3e-8)
