"""A network as the power flow needs it: nodes ordered from the source, and an admittance for each branch.

Branches are a tree, and chords that close its few loops.

Per unit on 1 VA: three-phase totals and line-to-line volts in the single-line model, values of one phase and
phase-to-neutral volts in the three-phase model.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

Complex = NDArray[np.complex128]

PHASES: Final = "abc"
# A cable whose neutral is as thick as a phase: Z0 = Z1 + 3 Zn.
ZERO_SEQUENCE_OF_LINES: Final = 4.0
# Zero-sequence over short-circuit impedance. With a star on the high side that cannot carry zero sequence (Yyn), its
# flux closes outside a three-limb core; about ten times, measured values differ.
ZERO_SEQUENCE_OF_YYN: Final = 10.0
_SAME_LEVEL: Final = 1.2  # rated voltages of 380 and 400 V are one level


class NetworkError(ValueError):
    """The network model cannot be computed; the text says which part, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """``r0``, ``x0``: zero sequence with the neutral (and earth) folded in, 4 times r and x where unknown.

    ``r_neutral``, ``x_neutral`` instead: a fourth wire with a voltage of its own.  ``phases``: abc, one or two of them.
    """

    from_node: str
    to_node: str
    length_m: float
    r_ohm_per_km: float
    x_ohm_per_km: float
    r0_ohm_per_km: float | None = None
    x0_ohm_per_km: float | None = None
    r_neutral_ohm_per_km: float | None = None
    x_neutral_ohm_per_km: float | None = None
    phases: str = PHASES


@dataclass(frozen=True, slots=True)
class Transformer:
    """``tap``: turns of the high side over nominal.  ``zero_sequence_ratio``: Z0 over the short-circuit impedance."""

    hv_node: str
    lv_node: str
    rated_kva: float
    hv_v: float
    lv_v: float
    no_load_loss_w: float
    load_loss_w: float
    impedance_percent: float
    tap: float = 1.0
    vector_group: str = "Dyn11"
    zero_sequence_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """Between a parent's and a child's conductors, in this order: ``series`` and ``no_load`` (k, k) pu admittances."""

    parent: int
    child: int
    transformer: bool
    series: Complex
    no_load: Complex


@dataclass(frozen=True, slots=True)
class Network:
    """N nodes, a parent always before its children, the source first; ``branches[i]`` feeds node i + 1.

    ``chords``: branches that close loops, from the node that comes first.
    ``conductors[i]``: of node i: "1" in the single-line model, else among a, b, c and n (a neutral not at earth).
    ``rated_v``: line to line.  ``earthing``: (node, pu admittance) between neutral and earth.
    """

    source: str
    nodes: tuple[str, ...]
    node: Mapping[str, int]
    rated_v: tuple[float, ...]
    conductors: tuple[str, ...]
    branches: tuple[Branch, ...]
    earthing: Mapping[int, float]
    three_phase: bool
    chords: tuple[Branch, ...] = ()

    @property
    def source_v(self) -> float:
        return self.rated_v[0]


@dataclass(slots=True)
class _Tree:
    nodes: list[str] = field(default_factory=list)
    node: dict[str, int] = field(default_factory=dict)
    rated_v: list[float] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    branches: list[Line | Transformer] = field(default_factory=list)
    chords: list[Line | Transformer] = field(default_factory=list)

    def add(self, name: str, rated_v: float) -> None:
        self.node[name] = len(self.nodes)
        self.nodes.append(name)
        self.rated_v.append(rated_v)

    def ends(self, branch: Line | Transformer) -> tuple[int, int]:
        """The node that comes first, and the other."""
        match branch:
            case Line():
                one, two = self.node[branch.from_node], self.node[branch.to_node]
            case Transformer():
                one, two = self.node[branch.hv_node], self.node[branch.lv_node]
        return min(one, two), max(one, two)


def compile_network(
    source: str,
    lines: Sequence[Line],
    transformers: Sequence[Transformer],
    *,
    three_phase: bool = False,
    earthing_ohm: Mapping[str, float] | None = None,
    source_v: float | None = None,
) -> Network:
    """What hangs from ``source``: a tree, and what closes its loops.

    earthing_ohm: of neutrals with a wire of their own; 0 is solid. The neutral of the source and the star points of
    transformers are earthed solidly unless given here.
    source_v: rated volts at the source, line to line, where no transformer tells.
    Raises NetworkError when a branch is not reached, or a part has no usable impedance, voltage or phase.
    """
    every: list[Line | Transformer] = [*lines, *transformers]
    for each in every:
        _check(each)
    tree = _grow(source, lines, transformers, source_v)
    every = [*tree.branches, *tree.chords]
    shunts: dict[int, float] = {}
    if three_phase:
        earthing = {name: ohm for name, ohm in (earthing_ohm or {}).items() if name in tree.node}
        conductors = _conductors(tree, earthing)
        blocks = [_three_phase(tree, conductors, branch) for branch in every]
        shunts = {
            tree.node[name]: tree.rated_v[tree.node[name]] ** 2 / 3 / ohm
            for name, ohm in earthing.items()
            if ohm > 0 and "n" in conductors[tree.node[name]]
        }
    else:
        conductors = ["1"] * len(tree.nodes)
        blocks = [_single_line(tree, branch) for branch in every]
    count = len(tree.branches)
    return Network(
        source,
        tuple(tree.nodes),
        tree.node,
        tuple(tree.rated_v),
        tuple(conductors),
        tuple(blocks[:count]),
        shunts,
        three_phase,
        tuple(blocks[count:]),
    )


def _name(branch: Line | Transformer) -> str:
    match branch:
        case Line():
            return f"line {branch.from_node} - {branch.to_node}"
        case Transformer():
            return f"transformer at {branch.lv_node}"


def _check(branch: Line | Transformer) -> None:
    match branch:
        case Line():
            values = [branch.length_m, branch.r_ohm_per_km, branch.x_ohm_per_km]
            zero, neutral = (
                [branch.r0_ohm_per_km, branch.x0_ohm_per_km],
                [branch.r_neutral_ohm_per_km, branch.x_neutral_ohm_per_km],
            )
            for pair, what in ((zero, "r0 and x0"), (neutral, "r and x of the neutral")):
                if (pair[0] is None) != (pair[1] is None):
                    raise NetworkError(f"{_name(branch)}: give both {what}, or none")
                values += [value for value in pair if value is not None]
            if zero[0] is not None and neutral[0] is not None:
                raise NetworkError(f"{_name(branch)}: give r0 and x0, or r and x of the neutral, not both")
            if not all(map(isfinite, values)) or branch.length_m < 0 or branch.r_ohm_per_km < 0:
                raise NetworkError(f"{_name(branch)}: length and impedances are numbers from 0 up")
            if branch.length_m == 0 or complex(branch.r_ohm_per_km, branch.x_ohm_per_km) == 0:
                raise NetworkError(f"{_name(branch)}: it has no impedance; give its length, or make its ends one node")
            if neutral[0] is not None and complex(*map(float, (neutral[0] or 0, neutral[1] or 0))) == 0:
                raise NetworkError(f"{_name(branch)}: its neutral has no impedance; correct it, or leave it out")
            if not branch.phases or set(branch.phases) - set(PHASES) or len(set(branch.phases)) < len(branch.phases):
                raise NetworkError(f'{_name(branch)}: phases abc, a, b, c or two expected, got "{branch.phases}"')
        case Transformer():
            if not min(branch.rated_kva, branch.hv_v, branch.lv_v) > 0:
                raise NetworkError(f"{_name(branch)}: rating and voltages above 0 expected")
            if not branch.impedance_percent > 0 or not branch.tap > 0:
                raise NetworkError(f"{_name(branch)}: impedance and tap above 0 expected")
            if not min(branch.no_load_loss_w, branch.load_loss_w) >= 0:
                raise NetworkError(f"{_name(branch)}: losses are numbers from 0 up")
            if branch.load_loss_w > branch.impedance_percent * branch.rated_kva * 10:
                raise NetworkError(f"{_name(branch)}: load loss is more than its impedance allows")


def _grow(source: str, lines: Sequence[Line], transformers: Sequence[Transformer], source_v: float | None) -> _Tree:
    every: list[Line | Transformer] = [*lines, *transformers]
    edges: dict[str, list[tuple[str, int]]] = {}
    for number, each in enumerate(every):
        one, two = (each.from_node, each.to_node) if isinstance(each, Line) else (each.hv_node, each.lv_node)
        edges.setdefault(one, []).append((two, number))
        edges.setdefault(two, []).append((one, number))
    tree = _Tree()
    tree.add(source, source_v or _source_volts(source, transformers))
    hours = [0]  # by which a node's voltages lag behind the source's
    taken: set[int] = set()
    for at, name in enumerate(tree.nodes):  # breadth first: grows while it is walked
        for other, number in edges.get(name, ()):
            if number in taken:
                continue
            taken.add(number)
            branch = every[number]
            match branch:
                case Line():
                    rated_v, lag = tree.rated_v[at], 0
                case Transformer() if name == branch.hv_node:
                    rated_v, lag = branch.lv_v, _clock(branch)
                case Transformer():
                    rated_v, lag = branch.hv_v, -_clock(branch)
            if other not in tree.node:
                tree.add(other, rated_v)
                tree.parents.append(at)
                tree.branches.append(branch)
                hours.append((hours[at] + lag) % 12)
                continue
            there = tree.node[other]
            if there == at:
                raise NetworkError(f"{_name(branch)}: it begins and ends at one node; correct it, or leave it out")
            volts = (rated_v, tree.rated_v[there])
            if max(volts) > _SAME_LEVEL * min(volts):
                raise NetworkError(
                    f"{_name(branch)} closes a loop between {volts[0]:g} and {volts[1]:g} V; correct its ends"
                )
            if (hours[at] + lag) % 12 != hours[there]:
                raise NetworkError(
                    f"{_name(branch)} closes a loop of transformers whose vector groups do not agree; "
                    "correct a vector group, or leave out a branch that is open"
                )
            tree.chords.append(branch)
    islands = [branch for number, branch in enumerate(every) if number not in taken]
    if islands:
        raise NetworkError(
            f"{len(islands)} of {len(every)} branches are not reached from {source}, {_name(islands[0])} among them"
        )
    return tree


def _clock(transformer: Transformer) -> int:
    """Hours of lag from the high to the low side."""
    found = re.search(r"\d{1,2}$", transformer.vector_group)
    return int(found[0]) if found else 0


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


def _transformer_pu(tree: _Tree, branch: Transformer) -> tuple[complex, float]:
    """Series admittance seen from the low side, and the ratio of turns over that of the voltages around it."""
    rated_va = branch.rated_kva * 1000
    z, r = branch.impedance_percent / 100, branch.load_loss_w / rated_va
    hv_base, lv_base = (tree.rated_v[tree.node[name]] for name in (branch.hv_node, branch.lv_node))
    ratio = branch.tap * (branch.hv_v / hv_base) / (branch.lv_v / lv_base)
    return rated_va / complex(r, sqrt(z * z - r * r)) * (lv_base / branch.lv_v) ** 2, ratio


def _oriented(tree: _Tree, branch: Line | Transformer, series: Complex, no_load: Complex, hv_first: int) -> Branch:
    """``series`` and ``no_load`` have the ``hv_first`` conductors of the high side first; put the parent's first."""
    parent, child = tree.ends(branch)
    if isinstance(branch, Transformer) and tree.nodes[parent] == branch.lv_node:
        turn = np.r_[hv_first : len(series), 0:hv_first]
        series, no_load = series[np.ix_(turn, turn)], no_load[np.ix_(turn, turn)]
    return Branch(parent, child, isinstance(branch, Transformer), series, no_load)


def _single_line(tree: _Tree, branch: Line | Transformer) -> Branch:
    match branch:
        case Line():
            z = complex(branch.r_ohm_per_km, branch.x_ohm_per_km) * branch.length_m / 1000
            y, ratio, half = tree.rated_v[tree.ends(branch)[0]] ** 2 / z, 1.0, 0.0
        case Transformer():
            y, ratio = _transformer_pu(tree, branch)
            half = branch.no_load_loss_w / 2  # on each side (π model)
    series = y * np.array([[1 / ratio**2, -1 / ratio], [-1 / ratio, 1]])
    return _oriented(tree, branch, series, np.diag([half / ratio**2, half]).astype(complex), 1)


def _conductors(tree: _Tree, earthing: Mapping[str, float]) -> list[str]:
    """Which wires each node has. A neutral at earth is no unknown and not among them."""
    fourth: set[str] = set()
    for each in (*tree.branches, *tree.chords):
        if isinstance(each, Line) and each.r_neutral_ohm_per_km is not None:
            fourth |= {each.from_node, each.to_node}
    conductors: list[str] = []
    for at, name in enumerate(tree.nodes):
        branch = tree.branches[at - 1] if at else None
        phases = branch.phases if isinstance(branch, Line) else PHASES
        if branch is not None:
            absent = set(phases) - set(conductors[tree.parents[at - 1]])
            if absent:
                before = tree.nodes[tree.parents[at - 1]]
                raise NetworkError(f"{_name(branch)}: phase {min(absent)} does not come as far as {before}")
        if name in fourth and isinstance(branch, Line) and branch.r_neutral_ohm_per_km is None and name not in earthing:
            raise NetworkError(f"{_name(branch)}: the lines after it have a neutral, it has none; give its r and x")
        solid = 0.0 if isinstance(branch, Transformer) else None
        # The neutral of the source is what voltages are measured against.
        floating = at > 0 and name in fourth and earthing.get(name, solid) != 0
        conductors.append("".join(sorted(phases)) + ("n" if floating else ""))
    for chord in tree.chords:
        for at in tree.ends(chord):
            absent = set(chord.phases if isinstance(chord, Line) else PHASES) - set(conductors[at])
            if absent:
                raise NetworkError(
                    f"{_name(chord)} closes a loop: phase {min(absent)} does not come to {tree.nodes[at]}"
                )
            if isinstance(chord, Line) and "n" in conductors[at] and chord.r_neutral_ohm_per_km is None:
                raise NetworkError(f"{_name(chord)}: {tree.nodes[at]} has a neutral, it has none; give its r and x")
    return conductors


def _three_phase(tree: _Tree, conductors: list[str], branch: Line | Transformer) -> Branch:
    parent, child = tree.ends(branch)
    match branch:
        case Line():
            wires, z = _line_ohm(branch)
            # Rows: the drop along each wire, of the parent's conductors less the child's.
            drop = np.hstack([_pick(wires, conductors[parent]), -_pick(wires, conductors[child])])
            y = np.linalg.inv(z) * (tree.rated_v[parent] ** 2 / 3)
            return Branch(
                parent, child, False, np.asarray(drop.T @ y @ drop, complex), np.zeros((drop.shape[1],) * 2, complex)
            )
        case Transformer():
            hv, lv = (conductors[tree.node[name]] for name in (branch.hv_node, branch.lv_node))
            series, no_load = _three_phase_transformer(tree, branch, hv, lv)
            return _oriented(tree, branch, series, no_load, len(hv))


def _pick(wires: str, conductors: str) -> NDArray[np.float64]:
    return np.array([[float(wire == conductor) for conductor in conductors] for wire in wires])


def _line_ohm(line: Line) -> tuple[str, Complex]:
    """The wires of a line and their impedances: Kron-reduced from sequence values, or with a fourth wire."""
    km = line.length_m / 1000
    z1 = complex(line.r_ohm_per_km, line.x_ohm_per_km) * km
    count = len(line.phases)
    if line.r_neutral_ohm_per_km is not None and line.x_neutral_ohm_per_km is not None:
        neutral = complex(line.r_neutral_ohm_per_km, line.x_neutral_ohm_per_km) * km
        return "".join(sorted(line.phases)) + "n", np.diag([z1] * count + [neutral])
    if line.r0_ohm_per_km is not None and line.x0_ohm_per_km is not None:
        z0 = complex(line.r0_ohm_per_km, line.x0_ohm_per_km) * km
    else:
        z0 = ZERO_SEQUENCE_OF_LINES * z1
    own, mutual = (z0 + 2 * z1) / 3, (z0 - z1) / 3
    return "".join(sorted(line.phases)), np.full((count, count), mutual) + np.diag([own - mutual] * count)


def _three_phase_transformer(tree: _Tree, branch: Transformer, hv: str, lv: str) -> tuple[Complex, Complex]:
    """Three windings on each side; the vector group says how each side's are joined, the clock which phases face."""
    found = re.fullmatch(r"(D|YN|Y)yn(\d{1,2})", branch.vector_group)
    if not found or int(found[2]) > 11 or (found[1] == "D") != bool(int(found[2]) % 2):
        raise NetworkError(
            f'{_name(branch)}: vector group "{branch.vector_group}" is not known; '
            "Dyn1, Dyn5, Dyn11, Yyn0, Yyn6 or YNyn0 expected"
        )
    if set(PHASES) - set(hv):
        raise NetworkError(f"{_name(branch)}: it needs all three phases at {branch.hv_node}")
    joined, clock = found[1], int(found[2])
    # An hour is 30° of lag: 4 hours are the next phase, 6 the other end of the winding.
    turn, other_end = next((r, s) for r in range(3) for s in range(2) if (clock % 2 + 4 * r + 6 * s) % 12 == clock)
    windings = np.zeros((3, len(hv)))
    for phase in range(3):
        windings[phase, hv.index(PHASES[(phase + turn) % 3])] += 1
        if joined == "D":
            windings[phase, hv.index(PHASES[(phase + turn - 1) % 3])] -= 1
    windings *= (-1) ** other_end / (sqrt(3) if joined == "D" else 1)
    low = _pick(PHASES, lv)
    if "n" in lv:
        low[:, lv.index("n")] -= 1

    y, ratio = _transformer_pu(tree, branch)
    y /= 3  # per unit of one phase
    ratio_0 = branch.zero_sequence_ratio or (ZERO_SEQUENCE_OF_YYN if joined == "Y" else 1.0)
    zero = np.full((3, 3), 1 / 3)
    both = np.eye(3) - zero
    # A star without a neutral passes no zero sequence; the low side then sees an impedance of its own.
    through = both + zero / ratio_0 if joined != "Y" else both
    ends = np.block([[windings, np.zeros((3, len(lv)))], [np.zeros((3, len(hv))), low]])
    own = both + zero / ratio_0
    winding_y = y * np.block([[through / ratio**2, -through / ratio], [-through / ratio, own]])
    half = branch.no_load_loss_w / 6  # a phase, a side
    return ends.T @ winding_y @ ends, (ends.T @ np.diag([half / ratio**2] * 3 + [half] * 3) @ ends).astype(complex)
