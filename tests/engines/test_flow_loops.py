"""Loops in the power flow: against a network that is the same without them, and against power-grid-model."""

from dataclasses import replace

import numpy as np
import pytest

from cloud.engines.loss.flow import place, solve
from cloud.engines.loss.network import Line, NetworkError, Transformer, compile_network

TRANSFORMER = Transformer("hv", "lv", 400, 10_500, 400, 600, 4_000, 4)


def _line(one: str, two: str, length_m: float, **more: float | str) -> Line:
    return Line(one, two, length_m, 0.32, 0.08, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("four_wire", [False, True])
@pytest.mark.parametrize("three_phase", [False, True])
def test_two_parallel_lines_are_one_of_half_the_impedance(three_phase: bool, four_wire: bool) -> None:
    neutral = {"r_neutral_ohm_per_km": 0.4, "x_neutral_ohm_per_km": 0.09} if four_wire and three_phase else {}
    one, twice = _line("lv", "a", 100, **neutral), _line("lv", "a", 200, **neutral)
    after = _line("a", "b", 50, **neutral)
    active_w = np.random.default_rng(1).uniform(0, 20e3, (3, 50))
    flows = []
    for lines in ([one, after], [twice, twice, after]):  # one object in two places is two lines
        network = compile_network("hv", lines, [TRANSFORMER], three_phase=three_phase)
        flows.append(solve(place(network, ["a", "b", "b"], ["abc", "a", "bc"]), active_w, 0.3 * active_w))
    for name, atol in (("voltage_pu", 1e-9), ("line_w", 1e-3), ("head_w", 1e-3)):
        np.testing.assert_allclose(getattr(flows[1], name), getattr(flows[0], name), rtol=1e-6, atol=atol)


@pytest.mark.parametrize("three_phase", [False, True])
def test_parallel_transformers_share_the_load(three_phase: bool) -> None:
    """Two alike are one of twice the rating and losses."""
    half = replace(TRANSFORMER, rated_kva=200, no_load_loss_w=300, load_loss_w=2_000)
    active_w = np.array([[0.0, 50e3, 200e3]])
    flows = []
    for units in ([TRANSFORMER], [half, half]):
        network = compile_network("hv", [_line("lv", "a", 20)], units, three_phase=three_phase)
        flows.append(solve(place(network, ["a"]), active_w, 0.2 * active_w))
    for name in ("voltage_pu", "line_w", "load_loss_w", "no_load_w", "head_w"):
        np.testing.assert_allclose(getattr(flows[1], name), getattr(flows[0], name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("three_phase", [False, True])
def test_an_even_ring_is_two_halves(three_phase: bool) -> None:
    """Of four equal lines with the same loads at both sides: no current to the far end but its own half from each."""
    ring = [_line("lv", "a", 80), _line("lv", "b", 80), _line("a", "c", 80), _line("b", "c", 80)]
    halves = [_line("lv", "a", 80), _line("a", "c", 80)]
    load_w = np.linspace(1e3, 40e3, 20)
    ringed = solve(
        place(compile_network("lv", ring, [], three_phase=three_phase), ["a", "b", "c"]),
        np.array([load_w, load_w, load_w]),
        np.zeros((3, 20)),
    )
    half = solve(
        place(compile_network("lv", halves, [], three_phase=three_phase), ["a", "c"]),
        np.array([load_w, load_w / 2]),
        np.zeros((2, 20)),
    )
    assert ringed.voltage_pu is not None
    assert half.voltage_pu is not None
    np.testing.assert_allclose(ringed.voltage_pu[[1, 3]], half.voltage_pu[[1, 2]], atol=1e-9)
    np.testing.assert_allclose(ringed.line_w, 2 * half.line_w, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("three_phase", [False, True])
def test_meshed_networks_agree_with_power_grid_model(three_phase: bool, seed: int) -> None:
    """Random trees of 90 nodes with up to nine chords: loops that touch, nest, cross a station, and stand alone."""
    pytest.importorskip("power_grid_model", reason="needs the bench extra")
    from cloud.bench.oracle import Oracle

    rng = np.random.default_rng(seed)
    count, nodes = 90, ["lv"]
    lines = []
    for i in range(1, count):
        lines.append(_line(nodes[max(0, i - int(rng.integers(1, 6)))], f"n{i}", rng.uniform(5, 30)))
        nodes.append(f"n{i}")
    for _ in range(3 * seed):
        at = int(rng.integers(0, count - 25))
        lines.append(_line(nodes[at], nodes[at + int(rng.integers(1, 25))], rng.uniform(10, 60)))
    units = [TRANSFORMER, replace(TRANSFORMER, tap=1.01)][: 1 + seed % 2]
    rng.shuffle(lines)
    loads = [str(name) for name in rng.choice(nodes[1:], 60)]
    phases = [str(on) for on in rng.choice(["abc", "a", "b", "c"], 60)] if three_phase else ["abc"] * 60
    active_w, reactive_var = rng.uniform(-1e3, 5e3, (60, 100)), rng.uniform(-500, 1500, (60, 100))
    network = compile_network("hv", lines, units, three_phase=three_phase)
    assert len(network.chords) == 3 * seed + seed % 2
    oracle = Oracle(network, lines, units, loads, phases)
    voltage_pu, line_w, transformer_w = oracle.solve(oracle.scenarios(active_w, reactive_var))
    placed = place(network, loads, phases)
    assert len(placed.pieces) > 1
    flow = solve(placed, active_w, reactive_var)
    assert flow.voltage_pu is not None
    ours = np.moveaxis(flow.voltage_pu, 2, 0) if three_phase else flow.voltage_pu[:, 0].T
    np.testing.assert_allclose(ours, voltage_pu, rtol=0, atol=1e-6)
    np.testing.assert_allclose(flow.line_w, line_w, rtol=1e-5)
    np.testing.assert_allclose(flow.load_loss_w + flow.no_load_w, transformer_w, rtol=1e-5)


@pytest.mark.parametrize(
    ("lines", "units", "message"),
    [
        ([_line("lv", "lv", 10)], [], "line lv - lv: it begins and ends at one node"),
        ([_line("hv", "lv", 10)], [], "closes a loop between 400 and 10500 V; correct its ends"),
        (
            [],
            [replace(TRANSFORMER, vector_group="Dyn5")],
            "transformer at lv closes a loop of transformers whose vector",
        ),
        ([_line("lv", "a", 9, phases="a"), _line("lv", "a", 9)], [], "phase b does not come to a"),
        (
            [_line("lv", "a", 9, r_neutral_ohm_per_km=1, x_neutral_ohm_per_km=1), _line("lv", "a", 9)],
            [],
            "line lv - a: a has a neutral, it has none",
        ),
    ],
)
def test_loops_that_cannot_be_computed_are_refused_in_words(
    lines: list[Line], units: list[Transformer], message: str
) -> None:
    with pytest.raises(NetworkError, match=message):
        compile_network("hv", lines, [TRANSFORMER, *units], three_phase=True)


def test_loops_too_large_are_refused_in_words() -> None:
    ring = [_line(f"n{i}", f"n{(i + 1) % 2_100}", 10) for i in range(2_100)]
    with pytest.raises(NetworkError, match=r"loops of 2099 conductors that touch are more than can be computed"):
        place(compile_network("n0", ring, []), ["n1000"])
