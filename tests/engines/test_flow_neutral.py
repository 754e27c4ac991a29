"""A neutral with a wire and a voltage of its own, against OpenDSS and by hand."""

from typing import Any

import numpy as np
import pytest

from cloud.engines.loss.flow import Flow, place, solve
from cloud.engines.loss.network import Line, Transformer, compile_network

TRANSFORMER = Transformer("hv", "lv", 250, 10_000, 400, 0, 3_250, 4, vector_group="Dyn1")
LINES = [
    Line("lv", "a", 200, 0.32, 0.08, None, None, 0.6, 0.09),
    Line("a", "b", 300, 0.64, 0.085, None, None, 0.64, 0.085),
    Line("a", "c", 150, 0.64, 0.085, None, None, 0.64, 0.085, phases="b"),
    Line("b", "d", 100, 1.2, 0.09, None, None, 1.2, 0.09),
]
LOADS = [("a", "abc", 9e3, 3e3), ("b", "a", 6e3, 1e3), ("b", "b", -4e3, 0), ("c", "b", 5e3, 2e3), ("d", "c", 3e3, 1e3)]
EARTHING_OHM = {"b": 5.0, "d": 10.0}


def ours() -> tuple[Flow, dict[str, int]]:
    network = compile_network("hv", LINES, [TRANSFORMER], three_phase=True, earthing_ohm=EARTHING_OHM)
    placed = place(network, [load[0] for load in LOADS], [load[1] for load in LOADS])
    power = np.array([load[2:] for load in LOADS])
    return solve(placed, power[:, :1], power[:, 1:]), dict(network.node)


def opendss() -> tuple[dict[tuple[str, str], float], float, float]:
    """Volts between phase and neutral, W lost in lines and earthing, W in the transformer."""
    module = pytest.importorskip("opendssdirect", reason='pip install "gridloom[bench]"')
    dss: Any = module.dss
    x_percent = np.sqrt(4**2 - 1.3**2)
    commands = [
        "clear",
        "new circuit.area basekv=10 pu=1 bus1=hv phases=3 r1=1e-7 x1=1e-7 r0=1e-7 x0=1e-7",
        "new transformer.t phases=3 windings=2 buses=(hv lv.1.2.3.0) conns=(delta wye) kvs=(10 0.4) kvas=(250 250) "
        f"xhl={x_percent} %loadloss=1.3 %noloadloss=0 %imag=0 ppm_antifloat=0",
    ]
    for line in LINES:
        km = line.length_m / 1000
        wires = ".".join(str("abc".index(phase) + 1) for phase in line.phases)
        count = len(line.phases) + 1
        diagonal = [
            " | ".join(
                " ".join(str(((end or 0) if i == count - 1 else own) * km if i == j else 0) for j in range(i + 1))
                for i in range(count)
            )
            for own, end in (
                (line.r_ohm_per_km, line.r_neutral_ohm_per_km),
                (line.x_ohm_per_km, line.x_neutral_ohm_per_km),
            )
        ]
        no_charge = "|".join("0 " * (i + 1) for i in range(count))
        commands.append(
            f"new line.{line.from_node}{line.to_node} phases={count} length=1 "
            f"bus1={line.from_node}.{wires}.{0 if line.from_node == 'lv' else 4} bus2={line.to_node}.{wires}.4 "
            f"rmatrix=({diagonal[0]}) xmatrix=({diagonal[1]}) cmatrix=({no_charge})"
        )
    for i, (node, phases, active_w, reactive_var) in enumerate(LOADS):
        for phase in phases:
            share = 1000 * len(phases)
            commands.append(
                f"new load.l{i}{phase} phases=1 bus1={node}.{'abc'.index(phase) + 1}.4 kv={0.4 / np.sqrt(3)} "
                f"kw={active_w / share} kvar={reactive_var / share} model=1 vminpu=0.1 vmaxpu=3"
            )
    for node, ohm in EARTHING_OHM.items():
        commands.append(f"new reactor.{node} phases=1 bus1={node}.4 bus2={node}.0 r={ohm} x=0")
    for command in [*commands, "set tolerance=1e-12 maxiterations=200", "solve"]:
        dss.Text.Command(command)
    assert dss.Solution.Converged()
    volts: dict[tuple[str, str], float] = {}
    for bus in ("lv", "a", "b", "c", "d"):
        dss.Circuit.SetActiveBus(bus)
        pairs = np.array(dss.Bus.Voltages()).reshape(-1, 2) @ [1, 1j]
        by_wire = dict(zip(dss.Bus.Nodes(), pairs, strict=True))
        for wire, phase in ((1, "a"), (2, "b"), (3, "c")):
            if wire in by_wire:
                volts[bus, phase] = abs(by_wire[wire] - by_wire.get(4, 0))
    lost_w: dict[str, float] = {}
    for element in dss.Circuit.AllElementNames():
        dss.Circuit.SetActiveElement(element)
        kind = element.split(".")[0].lower()
        lost_w[kind] = lost_w.get(kind, 0.0) + dss.CktElement.Losses()[0]
    return volts, lost_w["line"] + lost_w["reactor"], lost_w["transformer"]


def test_an_explicit_neutral_agrees_with_opendss() -> None:
    """A Dyn transformer, four-wire lines, a single-phase branch, generation, a neutral earthed at two nodes."""
    volts, line_w, transformer_w = opendss()
    flow, node = ours()
    assert flow.voltage_pu is not None
    assert len(volts) == 13
    for (name, phase), expected in volts.items():
        here = flow.voltage_pu[node[name], "abc".index(phase), 0] * 400 / np.sqrt(3)
        assert here == pytest.approx(expected, abs=230e-6), (name, phase)
    assert flow.line_w[0] == pytest.approx(line_w, rel=1e-4)
    assert flow.load_loss_w[0] == pytest.approx(transformer_w, rel=1e-4)
    assert np.isnan(flow.voltage_pu[node["c"], [0, 2], 0]).all(), "phases that are not there"


def test_a_single_phase_load_returns_through_the_neutral() -> None:
    """230.94 V, 0.1 ohm out and 0.3 ohm back, 2 kW: U = (U0 + sqrt(U0² - 4 P R)) / 2 between phase and neutral."""
    network = compile_network("s", [Line("s", "e", 1000, 0.1, 0, None, None, 0.3, 0, phases="a")], [], three_phase=True)
    flow = solve(place(network, ["e"], ["a"]), np.array([[2000.0]]), np.zeros((1, 1)))
    source_v = 400 / np.sqrt(3)
    end_v = (source_v + np.sqrt(source_v**2 - 4 * 2000 * 0.4)) / 2
    assert flow.voltage_pu is not None
    assert flow.voltage_pu[1, 0, 0] * source_v == pytest.approx(end_v, rel=1e-8)
    assert flow.line_w[0] == pytest.approx((2000 / end_v) ** 2 * 0.4, rel=1e-6)


def test_a_balanced_load_leaves_the_neutral_alone() -> None:
    """Then the three-phase model is the single-line one, whatever the neutral and the vector group are."""
    lines = [Line("lv", "a", 200, 0.32, 0.08, None, None, 0.9, 0.1)]
    power = np.array([[60e3]]), np.array([[20e3]])
    one = solve(place(compile_network("hv", lines, [TRANSFORMER]), ["a"]), *power)
    for group in ("Dyn11", "Dyn5", "Yyn0", "Yyn6", "YNyn0"):
        unit = Transformer("hv", "lv", 250, 10_000, 400, 0, 3_250, 4, vector_group=group)
        three = solve(place(compile_network("hv", lines, [unit], three_phase=True), ["a"], ["abc"]), *power)
        assert three.voltage_pu is not None
        assert one.voltage_pu is not None
        np.testing.assert_allclose(three.voltage_pu[:, :, 0], one.voltage_pu[:, [0, 0, 0], 0], rtol=1e-8)
        np.testing.assert_allclose(three.loss_w, one.loss_w, rtol=1e-6)


def test_a_star_without_neutral_moves_the_neutral_point_under_one_phase() -> None:
    """Yyn0: zero sequence returns only through the transformer's own path, ten times its short-circuit impedance."""
    spread = {}
    for group in ("Dyn11", "Yyn0"):
        unit = Transformer("hv", "lv", 250, 10_000, 400, 0, 3_250, 4, vector_group=group)
        network = compile_network("hv", [], [unit], three_phase=True)
        flow = solve(place(network, ["lv"], ["a"]), np.array([[20e3]]), np.zeros((1, 1)))
        assert flow.voltage_pu is not None
        spread[group] = np.ptp(flow.voltage_pu[1, :, 0])
    assert spread["Yyn0"] > 3 * spread["Dyn11"] > 0
