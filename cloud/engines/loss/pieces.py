"""Loads on a network, cut into pieces small enough for a processor's caches.

The currents of a network with constant-power loads follow from the loads' voltages, and these, linearly, from the
currents: V = w V0 - Z I. For a tree, Z need not be multiplied as a whole. It is cut into pieces, each hanging from one
node of the piece before it; a piece is a small dense matrix, and to what comes before, it is one current at that node
(Norton's equivalent, so that shunts, earthing and transformers of any vector group are exact). A loop is within one
piece, but for the node where it leaves the tree's trunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.loss.network import PHASES, Branch, Network, NetworkError

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]
Index = NDArray[np.intp]

PORTS_MAX: Final = 16  # of a piece: measured, flat between 12 and 24
CONDUCTORS_MAX: Final = 300  # so that compiling a long feeder inverts no large matrix
LOOP_MAX: Final = 2000  # conductors of loops that touch: some seconds to invert


@dataclass(frozen=True, slots=True)
class Piece:
    """m ports where loads draw, s conductors where other pieces hang, e conductors of the node it hangs from itself.

    Real matrices on rows [re, im] of each group. Inputs: currents of the m ports and the s conductors, voltages of the
    e conductors.
    ``ports``: slice of all ports.  ``above``: the piece it hangs from, -1 the source;  ``rows``: where, among its
    groups' rows.  ``first``: whether it is the first to add its current there.
    ``forward``: (2(m + s), 2(m + s + e)) to the voltages of ports and conductors.
    ``backward``: (2e, 2(m + s)) to the current drawn at the node it hangs from;  ``norton``: (2e, 2e) admittance there.
    ``others``: (2k, …) to the voltages of ``other_rows`` of the output, where nothing is drawn.
    ``voltages``, ``series``, ``no_load``: (2t, …) to voltages at transformers and the currents of their two losses.
    """

    ports: slice
    above: int
    rows: slice
    first: bool
    forward: Array
    backward: Array
    norton: Array
    others: Array
    other_rows: Index
    voltages: Array
    series: Array
    no_load: Array


@dataclass(frozen=True, slots=True)
class Placed:
    """A network with its L loads in place: P ports, ordered by piece.

    ``load``: (K, 2) pairs (port, load), the first P with each port once and in order;  ``share``: (K,) of the load.
    ``at_source``: loads at the source itself.  ``unloaded``: (P, e) voltage of a port without loads, by the source's.
    ``port_rows``: (P,) row of each port in the output of N × phases rows.
    """

    network: Network
    pieces: tuple[Piece, ...]
    load: Index
    share: Array
    at_source: Index
    unloaded: Complex
    port_rows: Index
    loads: int


def place(network: Network, nodes: Sequence[str], phases: Sequence[str] | None = None) -> Placed:
    """Where each of L loads is: its node and, in the three-phase model, its phases (abc: a third each).

    Loads are between phase and neutral. Raises NetworkError for a node or a phase that is not there.
    """
    wanted = phases if phases is not None and network.three_phase else [PHASES] * len(nodes)
    ports: dict[tuple[int, str], list[tuple[int, float]]] = {}
    at_source = []
    for load, (name, on) in enumerate(zip(nodes, wanted, strict=True)):
        if name not in network.node:
            raise NetworkError(f"node {name} of a load is not in the network; correct the node, or add its lines")
        at = network.node[name]
        absent = set(on) - set(network.conductors[at]) if network.three_phase else set()
        if absent or not on:
            raise NetworkError(f"node {name}: a load on phase {min(absent, default='?')}, which its lines do not have")
        if at == 0:
            at_source.append(load)
            continue
        for phase in on if network.three_phase else "1":
            ports.setdefault((at, phase), []).append((load, 1 / len(on) if network.three_phase else 1.0))
    members = _cut(network, ports)
    builder = _Builder(network, ports)
    pieces, order = builder.build(members)
    first = [(port, *ports[key][0]) for port, key in enumerate(order)]
    more = [(port, *pair) for port, key in enumerate(order) for pair in ports[key][1:]]
    table = np.array(first + more, float).reshape(-1, 3)
    row = {key: i for i, key in enumerate(_outputs(network))}
    placed = Placed(
        network,
        pieces,
        table[:, :2].astype(np.intp),
        table[:, 2],
        np.array(at_source, np.intp),
        np.zeros((len(order), len(network.conductors[0])), complex),
        np.array([row[key] for key in order], np.intp),
        len(nodes),
    )
    return replace(placed, unloaded=_unloaded(placed))


def _outputs(network: Network) -> list[tuple[int, str]]:
    return [(at, phase) for at in range(len(network.nodes)) for phase in (PHASES if network.three_phase else "1")]


def _cut(network: Network, ports: dict[tuple[int, str], list[tuple[int, float]]]) -> list[tuple[int, list[int]]]:
    """Pieces, each before those that hang from it: (node it hangs from, its nodes)."""
    count = len(network.nodes)
    children: list[list[int]] = [[] for _ in range(count)]
    for branch in network.branches:
        children[branch.parent].append(branch.child)
    drawn = np.zeros(count, int)
    for at, _ in ports:
        drawn[at] += 1
    wires = np.array([len(wires) for wires in network.conductors])
    loop = _loops(network)
    heads = {}  # node that begins a piece, or goes with another that hangs from the same node: that one
    for at in reversed(range(count)):
        kept = [child for child in children[at] if child not in heads]
        units: dict[int, list[int]] = {}  # what may be cut off: a child, or the two ends of a loop
        for child in kept:
            if loop[child] < 0 or loop[child] != loop[at]:
                units.setdefault(child if loop[child] < 0 else count + loop[child], []).append(child)
        whole = sorted(units.values(), key=lambda unit: (drawn[unit].sum(), wires[unit].sum()))
        groups: list[list[int]] = []
        while whole and (
            at == 0 or drawn[at] + drawn[kept].sum() > PORTS_MAX or wires[at] + wires[kept].sum() > CONDUCTORS_MAX
        ):
            unit = whole.pop()
            kept = [child for child in kept if child not in unit]
            for group in groups:
                if drawn[[*group, *unit]].sum() <= PORTS_MAX and wires[[*group, *unit]].sum() <= CONDUCTORS_MAX:
                    group += unit
                    break
            else:
                groups.append([*unit])
        for group in groups:
            heads.update(dict.fromkeys(group, group[0]))
        drawn[at] += drawn[kept].sum() + (len(network.conductors[at]) if groups else 0)
        wires[at] += wires[kept].sum()
    number: dict[int, int] = {}
    piece_of = [-1] * count
    members: list[tuple[int, list[int]]] = []
    for branch in network.branches:
        head = heads.get(branch.child)
        if head is None:
            piece = piece_of[branch.parent]
        else:
            piece = number.setdefault(head, len(members))
            if piece == len(members):
                members.append((branch.parent, []))
        piece_of[branch.child] = piece
        members[piece][1].append(branch.child)
    return members


def _loops(network: Network) -> Index:
    """(N,) which loop a node is on, -1 none. Loops with a common branch are one; that they hang from is not on it."""
    parent = [-1, *(branch.parent for branch in network.branches)]
    loop = np.full(len(network.nodes), -1)
    for number, chord in enumerate(network.chords):
        nodes, ends = [], [chord.parent, chord.child]
        while ends[0] != ends[1]:
            later = ends.index(max(ends))  # a parent comes before its children
            nodes.append(ends[later])
            ends[later] = parent[ends[later]]
        met = np.unique(loop[nodes])
        loop[nodes] = number
        loop[np.isin(loop, met[met >= 0])] = number
        size = sum(len(network.conductors[at]) for at in np.flatnonzero(loop == number))
        if size > LOOP_MAX:
            first, last = network.nodes[chord.parent], network.nodes[chord.child]
            raise NetworkError(
                f"{first} - {last}: loops of {size} conductors that touch are more than can be computed ({LOOP_MAX}); "
                "leave out branches that are open"
            )
    return loop


class _Builder:
    def __init__(self, network: Network, ports: dict[tuple[int, str], list[tuple[int, float]]]) -> None:
        self._network = network
        self._ports = ports
        self._by_node: dict[int, list[tuple[int, str]]] = {}
        for key in ports:
            self._by_node.setdefault(key[0], []).append(key)

    def build(self, members: list[tuple[int, list[int]]]) -> tuple[tuple[Piece, ...], list[tuple[int, str]]]:
        """Pieces, and the ports in their order."""
        wires = self._network.conductors
        order: list[tuple[int, str]] = []
        slices, slots = [], []
        piece_of = {0: -1}
        for i, (_, nodes) in enumerate(members):
            keys = [key for at in nodes for key in sorted(self._by_node.get(at, ()))]
            slices.append(slice(len(order), len(order) + len(keys)))
            order += keys
            piece_of.update(dict.fromkeys(nodes, i))
            inside = set(nodes)
            hung = dict.fromkeys(at for at, _ in members if at in inside)
            slots.append(list(hung))
        norton = {at: np.zeros((len(wires[at]),) * 2, complex) for at, _ in members}
        pieces: list[Piece] = []
        chords: dict[int, list[Branch]] = {}
        for chord in self._network.chords:
            chords.setdefault(max(piece_of[chord.parent], piece_of[chord.child]), []).append(chord)
        reached: set[int] = set()
        for i in reversed(range(len(members))):
            entry, nodes = members[i]
            above = piece_of[entry]
            if above >= 0:
                before = sum(len(wires[at]) for at in slots[above][: slots[above].index(entry)])
                start = 2 * (slices[above].stop - slices[above].start + before)
                rows = slice(start, start + 2 * len(wires[entry]))
            else:
                rows = slice(0, 2 * len(wires[entry]))
            piece = self._piece(entry, nodes, order[slices[i]], slots[i], norton, chords.get(i, ()))
            pieces.append(replace(piece, ports=slices[i], above=above, rows=rows, first=entry not in reached))
            reached.add(entry)
        return tuple(reversed(pieces)), order

    def _piece(
        self,
        entry: int,
        nodes: list[int],
        ports: list[tuple[int, str]],
        slots: list[int],
        norton: dict[int, Complex],
        chords: Sequence[Branch],
    ) -> Piece:
        network = self._network
        wires = network.conductors
        # Unknown voltages first, those of the node it hangs from last.
        at = {(node, wire): i for i, (node, wire) in enumerate((n, w) for n in [*nodes, entry] for w in wires[n])}
        whole, e = len(at), len(wires[entry])
        inner = whole - e
        y = np.zeros((whole, whole), complex)
        transformers = []
        for branch in (*(network.branches[node - 1] for node in nodes), *chords):
            ends = [at[n, w] for n in (branch.parent, branch.child) for w in wires[n]]
            y[np.ix_(ends, ends)] += branch.series + branch.no_load
            if branch.transformer:
                transformers.append((branch, ends))
        for node in nodes:
            if node in network.earthing:
                y[at[node, "n"], at[node, "n"]] += network.earthing[node]
        for node in slots:
            ends = [at[node, w] for w in wires[node]]
            y[np.ix_(ends, ends)] += norton[node]

        z = np.linalg.inv(y[:inner, :inner])
        from_entry = -z @ y[:inner, inner:]
        norton[entry] += y[inner:, inner:] + y[inner:, :inner] @ from_entry
        # Ports and hanging pieces draw between the conductors that these rows pick.
        draws = np.zeros((len(ports) + sum(len(wires[n]) for n in slots), inner))
        self._pick(draws[: len(ports)], ports, at)
        hung = [at[n, w] for n in slots for w in wires[n]]
        draws[np.arange(len(ports), len(draws)), hung] = 1
        everywhere = np.hstack([-z @ draws.T, from_entry])
        full = np.vstack([everywhere, np.hstack([np.zeros((e, len(draws))), np.eye(e)])])

        output = {key: i for i, key in enumerate(_outputs(network))}
        others = [(n, w) for n in nodes for w in wires[n] if w != "n" and (n, w) not in self._ports]
        picked = np.zeros((len(others), inner))
        self._pick(picked, others, at)
        t_voltage = [full[ends] for _, ends in transformers]
        t_series = [branch.series @ full[ends] for branch, ends in transformers]
        t_no_load = [branch.no_load @ full[ends] for branch, ends in transformers]
        none = np.zeros((0, full.shape[1]), complex)

        groups = [len(ports), *(len(wires[n]) for n in slots)]
        inputs = [*groups, e]
        return Piece(
            ports=slice(0, 0),
            above=-1,
            rows=slice(0, 0),
            first=True,
            forward=_real(draws @ everywhere, groups, inputs),
            backward=_real(-y[inner:, :inner] @ z @ draws.T, [e], groups),
            norton=_real(y[inner:, inner:] + y[inner:, :inner] @ from_entry, [e], [e]),
            others=_real(picked @ everywhere, [len(others)], inputs),
            other_rows=np.array([output[key] for key in others], np.intp),
            voltages=_real(np.vstack([none, *t_voltage]), None, inputs),
            series=_real(np.vstack([none, *t_series]), None, inputs),
            no_load=_real(np.vstack([none, *t_no_load]), None, inputs),
        )

    def _pick(self, rows: Array, keys: list[tuple[int, str]], at: dict[tuple[int, str], int]) -> None:
        """Phase to neutral, or to earth where the neutral is there."""
        for row, (node, wire) in zip(rows, keys, strict=True):
            row[at[node, wire]] = 1
            if "n" in self._network.conductors[node]:
                row[at[node, "n"]] = -1


def _real(matrix: NDArray[Any], row_groups: list[int] | None, column_groups: list[int]) -> Array:
    """The real matrix that does the same to rows [re, im] of each group. None: all rows are one group."""
    both = np.block([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]])
    rows = _interleave([len(matrix)] if row_groups is None else row_groups)
    return np.ascontiguousarray(both[np.ix_(rows, _interleave(column_groups))])


def _interleave(groups: list[int]) -> Index:
    total, start = sum(groups), 0
    order = []
    for size in groups:
        part = np.arange(start, start + size)
        order += [part, part + total]
        start += size
    return np.concatenate(order).astype(np.intp) if order else np.zeros(0, np.intp)


def _unloaded(placed: Placed) -> Complex:
    """Without currents, voltages pass from piece to piece: once for each conductor of the source."""
    e = len(placed.network.conductors[0])
    result = np.zeros((len(placed.port_rows), e), complex)
    out: list[Array] = []
    for piece in placed.pieces:
        above = np.eye(2 * e)[:, :e] if piece.above < 0 else out[piece.above][piece.rows]
        given = piece.forward.shape[0]
        voltage = piece.forward[:, given:] @ above
        out.append(voltage)
        m = piece.ports.stop - piece.ports.start
        result[piece.ports] = voltage[:m] + 1j * voltage[m : 2 * m]
    return result
