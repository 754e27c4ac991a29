"""Line loss of a radial network: what was measured, and what the wires and the transformer must have lost.

The technical loss comes from a balanced power flow of many scenarios at once, in per unit on each side's rated voltage.
For a radial network with branch impedances z and the path matrix P (branch b feeds node n), V = V0 - Pᵀ z P I, and
I = conj(S / V) + y V: a fixed point that converges in a few steps at distribution voltages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]

TOLERANCE_PU: Final = 1e-9
ITERATIONS_MAX: Final = 60
# Where no reactive energy is measured: power factor 0.95 lagging.
TAN_PHI: Final = float(np.tan(np.arccos(0.95)))


class NetworkError(ValueError):
    """The network model cannot be computed; the text says which part and why."""


class NoSolutionError(ArithmeticError):
    """Some scenarios have no solution: more load than the network can carry, or a wrong model."""


@dataclass(frozen=True, slots=True)
class Line:
    from_node: str
    to_node: str
    length_m: float
    r_ohm_per_km: float
    x_ohm_per_km: float


@dataclass(frozen=True, slots=True)
class Transformer:
    hv_node: str
    lv_node: str
    rated_kva: float
    hv_v: float
    lv_v: float
    no_load_loss_w: float
    load_loss_w: float
    impedance_percent: float


@dataclass(frozen=True, slots=True)
class Network:
    """A compiled radial network of N nodes besides the source, on a base of 1 VA.

    ``source_v``: rated volts at the source, line to line.
    ``node``: name → column 0 … N-1; the source is absent.  ``path``: (N, N) branch × node, 1 where the branch feeds the
    node.  ``resistance``, ``impedance``: (N,) and (N, N) pu.  ``shunt``: (N,) pu admittance.  ``source_shunt``: pu.
    """

    source: str
    source_v: float
    node: Mapping[str, int]
    path: Array
    resistance: Array
    impedance: Complex
    shunt: Array
    source_shunt: float


@dataclass(frozen=True, slots=True)
class Flow:
    """``voltage_pu`` (T, N) complex;  ``loss_w`` (T,), lines and transformers together, no-load loss included."""

    voltage_pu: Complex
    loss_w: Array


def compile_network(source: str, lines: Sequence[Line], transformers: Sequence[Transformer]) -> Network:
    """Raises NetworkError when the branches are not one tree from ``source``, or a voltage or rating is missing."""
    edges: dict[str, list[tuple[str, Line | Transformer]]] = {}
    for line in lines:
        edges.setdefault(line.from_node, []).append((line.to_node, line))
        edges.setdefault(line.to_node, []).append((line.from_node, line))
    for transformer in transformers:
        if min(transformer.rated_kva, transformer.hv_v, transformer.lv_v) <= 0:
            raise NetworkError(f"transformer at {transformer.lv_node}: rating and voltages above 0 expected")
        edges.setdefault(transformer.hv_node, []).append((transformer.lv_node, transformer))
        edges.setdefault(transformer.lv_node, []).append((transformer.hv_node, transformer))
    volts = _source_volts(source, transformers)

    # Breadth first, so that a parent's column exists before its children's.
    node: dict[str, int] = {}
    parents: list[int] = []
    impedances: list[complex] = []
    shunts: list[float] = []
    source_shunt = 0.0
    level = {source: volts}
    waiting: list[tuple[str, Line | Transformer | None]] = [(source, None)]
    for name, came_by in waiting:  # grows while it is walked
        for other, branch in edges.get(name, ()):
            if branch is came_by:
                continue
            if other in level:
                raise NetworkError(f"{name} - {other} closes a loop; a radial network is expected")
            match branch:
                case Line():
                    per_km = complex(branch.r_ohm_per_km, branch.x_ohm_per_km)
                    impedance = per_km * (branch.length_m / 1000) / level[name] ** 2
                    level[other], half_shunt = level[name], 0.0
                case Transformer():
                    impedance, half_shunt = _transformer_pu(branch)
                    level[other] = branch.lv_v if name == branch.hv_node else branch.hv_v
            # Half of the no-load loss on each side (π model).
            if name == source:
                source_shunt += half_shunt
            else:
                shunts[node[name]] += half_shunt
            node[other] = len(parents)
            parents.append(node.get(name, -1))
            impedances.append(impedance)
            shunts.append(half_shunt)
            waiting.append((other, branch))
    count = len(lines) + len(transformers)
    if count != len(parents):
        raise NetworkError(f"{count - len(parents)} of {count} branches are not reached from {source}")
    path = np.zeros((count, count))
    for i, parent in enumerate(parents):
        path[i, i] = 1
        if parent >= 0:
            path[:, i] += path[:, parent]
    series = np.array(impedances, complex)
    return Network(
        source=source,
        source_v=volts,
        node=node,
        path=path,
        resistance=series.real.copy(),
        impedance=np.asarray(path.T @ (series[:, None] * path), complex),
        shunt=np.array(shunts),
        source_shunt=source_shunt,
    )


def _source_volts(source: str, transformers: Sequence[Transformer]) -> float:
    """Line-to-line volts at the source: the rated side of the transformer there, or of the only low voltage known."""
    for transformer in transformers:
        if transformer.hv_node == source:
            return transformer.hv_v
        if transformer.lv_node == source:
            return transformer.lv_v
    voltages = {transformer.hv_v for transformer in transformers}
    if len(voltages) > 1:
        raise NetworkError(f"{source}: its voltage is ambiguous, transformers have {sorted(voltages)} V")
    return voltages.pop() if voltages else 400.0


def _transformer_pu(transformer: Transformer) -> tuple[complex, float]:
    """Series impedance and half of the shunt conductance, pu on 1 VA."""
    rated_va = transformer.rated_kva * 1000
    z = transformer.impedance_percent / 100
    r = transformer.load_loss_w / rated_va
    if r > z:
        raise NetworkError(f"transformer at {transformer.lv_node}: load loss is more than its impedance allows")
    return complex(r, np.sqrt(z * z - r * r)) / rated_va, transformer.no_load_loss_w / 2


def power_flow(network: Network, load_va: Complex, source_pu: Array | float = 1.0) -> Flow:
    """Balanced power flow of T scenarios.

    load_va: (T, N) complex VA drawn at each node, constant power; negative for generation.
    source_pu: (T,) or one voltage magnitude at the source.
    Raises NoSolutionError.
    """
    source_v = np.broadcast_to(np.asarray(source_pu, complex), load_va.shape[:1])[:, None]
    # Only nodes that draw a current shape the voltages; the others follow at the end.
    busy = np.flatnonzero((load_va != 0).any(axis=0) | (network.shunt != 0))
    drawn_va, shunt = load_va[:, busy], network.shunt[busy]
    impedance = network.impedance[np.ix_(busy, busy)]
    voltage = np.repeat(source_v, len(busy), axis=1)
    for _ in range(ITERATIONS_MAX):
        current = np.conj(drawn_va / voltage) + shunt * voltage
        fresh = source_v - current @ impedance
        change = np.abs(fresh - voltage).max(initial=0.0)
        voltage = fresh
        if not np.isfinite(change):
            break
        if change < TOLERANCE_PU:
            current = np.conj(drawn_va / voltage) + shunt * voltage
            branch_current = current @ network.path[:, busy].T
            loss = np.abs(branch_current) ** 2 @ network.resistance + np.abs(voltage) ** 2 @ shunt
            return Flow(
                source_v - current @ network.impedance[busy], loss + np.abs(source_v[:, 0]) ** 2 * network.source_shunt
            )
    raise NoSolutionError(f"no solution within {ITERATIONS_MAX} steps; check loads, lengths and ratings")


def technical_loss(
    network: Network,
    column: NDArray[np.intp],
    drawn_wh: Array,
    drawn_varh: Array,
    interval_h: float,
    source_pu: Array | float = 1.0,
) -> Array:
    """Wh lost in wires and transformers per interval.

    column: (M,) node of each meter.  drawn_wh, drawn_varh: (T, M) import less export; varh NaN: power factor 0.95.
    source_pu: (T,) or one voltage magnitude at the source.
    Returns (T,) Wh. Load is taken as even within an interval, which is a little less than was really lost.
    """
    reactive = np.where(np.isnan(drawn_varh), np.abs(drawn_wh) * TAN_PHI, drawn_varh)
    at_node = np.zeros((len(column), len(network.node)))
    at_node[np.arange(len(column)), column] = 1
    load_va = (drawn_wh + 1j * reactive) / interval_h @ at_node
    return power_flow(network, load_va, source_pu).loss_w * interval_h


def statistical_loss(supplied_wh: Array, delivered_wh: Array) -> Array:
    """Energy lost between an area's head and its meters, per interval.

    supplied_wh: (T,) Wh at the head meter.  delivered_wh: (T, M) Wh, NaN where missing.
    Returns (T,) Wh; NaN where any meter is missing, since a gap is not a loss.
    Negative values are kept: they mean clock skew or a wrong ratio.
    """
    if supplied_wh.shape[0] != delivered_wh.shape[0]:
        raise ValueError(f"T differs: {supplied_wh.shape[0]} supplied, {delivered_wh.shape[0]} delivered")
    loss_wh: Array = supplied_wh - delivered_wh.sum(axis=1)
    return loss_wh
