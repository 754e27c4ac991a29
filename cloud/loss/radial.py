"""Radial low-voltage areas, read from a folder or drawn: a 10/0.4 kV transformer, feeders with poles, services.

Drawn ones have the numbers of ordinary urban overhead networks: 95 mm² aluminium bundles (0.32 Ω/km), services of
16 mm² (1.91 Ω/km), with three phases 35 mm² (0.868 Ω/km); S11 transformers (GB/T 6451: losses by rating).
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# kVA: no-load loss W, load loss W (S11, Dyn11)
TRANSFORMERS = {
    50: (130, 910),
    100: (200, 1580),
    160: (280, 2310),
    200: (340, 2730),
    315: (480, 3830),
    400: (570, 4520),
    630: (810, 6200),
}
IMPEDANCE_PERCENT = 4.0
MAIN, SERVICE, SERVICE_THREE = (0.32, 0.08, 215.0), (1.91, 0.09, 80.0), (0.868, 0.085, 135.0)  # Ω/km, Ω/km, A
PHASES = ("a", "b", "c", "abc")


@dataclass(frozen=True, slots=True)
class AreaNetwork:
    """An area's network: node 0 is the 10 kV source, node 1 the low-voltage bar; lines run away from it.

    kind: (n,) source|bus|customer; phases: (n,); customer_node: (N,) node of each customer;
    from_node, to_node: (L,) nodes; length_m, r, x, r0, x0 (Ω/km), rated_a: (L,).
    """

    node_id: tuple[str, ...]
    kind: tuple[str, ...]
    phases: tuple[str, ...]
    customer_node: npt.NDArray[np.int64]
    line_id: tuple[str, ...]
    from_node: npt.NDArray[np.int64]
    to_node: npt.NDArray[np.int64]
    length_m: Array
    r_ohm_per_km: Array
    x_ohm_per_km: Array
    r0_ohm_per_km: Array
    x0_ohm_per_km: Array
    rated_a: Array
    transformer_id: str
    rated_kva: float
    hv_v: float
    lv_v: float
    no_load_loss_w: float
    load_loss_w: float
    impedance_percent: float

    def first_branches(self) -> tuple[int, ...]:
        """Nodes that the first branching below the head leads to, where more than one customer is behind them."""
        children: dict[int, list[int]] = {}
        for near, far in zip(self.from_node.tolist(), self.to_node.tolist(), strict=True):
            children.setdefault(near, []).append(far)
        at = 1
        while len(children.get(at, ())) == 1:
            at = children[at][0]
        return tuple(far for far in children.get(at, ()) if far in children)


def draw(rng: np.random.Generator, area: str, phase: npt.NDArray[np.int64], average_w: float) -> AreaNetwork:
    """A network for customers with `phase` (N,) 0..2 or 3 for three-phase, its transformer 28 % loaded on average."""
    count = len(phase)
    wanted = average_w / 1000 / 0.95 / 0.28
    kva = next((k for k in TRANSFORMERS if k >= wanted), max(TRANSFORMERS))
    feeders = max(1, round(count / 24))
    feeder = rng.integers(feeders, size=count)
    node_id, kind, phases = [f"{area}-hv", f"{area}-lv"], ["source", "bus"], ["abc", "abc"]
    line_id: list[str] = []
    ends: list[tuple[int, int, float, tuple[float, float, float]]] = []
    customer_node = np.zeros(count, dtype=np.int64)
    for branch in range(feeders):
        members = np.flatnonzero(feeder == branch)
        poles: list[int] = []
        for pole in range(max(2, round(len(members) / 2.7))):
            # A pole mostly follows the one before it; now and then a side branch leaves an earlier one.
            parent = 1 if pole == 0 else poles[-1] if rng.random() < 0.8 else poles[int(rng.integers(len(poles)))]
            node_id.append(f"{area}-f{branch + 1}-p{pole + 1}")
            kind.append("bus")
            phases.append("abc")
            poles.append(len(node_id) - 1)
            line_id.append(f"{area}-m{len(ends) + 1}")
            ends.append((parent, poles[-1], float(rng.uniform(30, 55)), MAIN))
        for customer in members:
            node_id.append(f"{area}-c{customer + 1}")
            kind.append("customer")
            phases.append(PHASES[phase[customer]])
            customer_node[customer] = len(node_id) - 1
            line_id.append(f"{area}-s{customer + 1}")
            conductor = SERVICE_THREE if phase[customer] == 3 else SERVICE
            # Three-phase customers are the large ones: they are connected in the feeder's first half.
            near = poles[: max(1, len(poles) // 2)] if phase[customer] == 3 else poles
            ends.append((near[int(rng.integers(len(near)))], len(node_id) - 1, float(rng.uniform(8, 30)), conductor))
    r, x, rated = (np.array([end[3][i] for end in ends]) for i in range(3))
    return AreaNetwork(
        tuple(node_id), tuple(kind), tuple(phases), customer_node, tuple(line_id),
        np.array([end[0] for end in ends]), np.array([end[1] for end in ends]), np.array([end[2] for end in ends]),
        # The neutral is of the same section, so that zero sequence is one phase and three neutrals.
        r, x, 4 * r, 4 * x, rated,
        f"{area}-tr", float(kva), 10_000.0, 400.0, float(TRANSFORMERS[kva][0]), float(TRANSFORMERS[kva][1]),
        IMPEDANCE_PERCENT,
    )  # fmt: skip


def read_networks(folder: Path) -> list[AreaNetwork]:
    """One area for each transformer of a folder with nodes.csv, lines.csv and transformers.csv."""

    def rows(name: str) -> list[dict[str, str]]:
        try:
            with (folder / name).open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except OSError as error:
            raise click.ClickException(
                f"{folder / name}: {error.strerror}; a network needs nodes, lines and transformers"
            ) from error

    nodes = {row["node_id"]: row for row in rows("nodes.csv")}
    lines = rows("lines.csv")
    neighbours: dict[str, list[tuple[str, int]]] = {name: [] for name in nodes}
    for i, row in enumerate(lines):
        for near, far in ((row["from_node"], row["to_node"]), (row["to_node"], row["from_node"])):
            if near not in nodes:
                raise click.ClickException(
                    f"{folder / 'lines.csv'}: line {row['line_id']} ends at {near!r}, which nodes.csv does not have"
                )
            neighbours[near].append((far, i))
    found: list[AreaNetwork] = []
    for row in rows("transformers.csv"):
        order, used, ends = [row["hv_node"], row["lv_node"]], [], []
        seen = set(order)
        for near in order:  # grows while it is walked: nodes in order of depth
            for far, i in neighbours[near] if near != row["hv_node"] else []:
                if far not in seen:
                    seen.add(far)
                    order.append(far)
                    used.append(lines[i])
                    ends.append((order.index(near), len(order) - 1))

        def column(name: str, otherwise: Array | None = None, used: list[dict[str, str]] = used) -> Array:
            if otherwise is None:
                return np.array([float(line[name]) for line in used])
            return np.array([float(line.get(name) or o) for line, o in zip(used, otherwise, strict=True)])

        r, x = column("r_ohm_per_km"), column("x_ohm_per_km")
        customer = [i for i, name in enumerate(order) if nodes[name]["kind"] == "customer"]
        if customer:
            found.append(
                AreaNetwork(
                    tuple(order),
                    tuple(nodes[n]["kind"] for n in order),
                    tuple(nodes[n].get("phases") or "abc" for n in order),
                    np.array(customer),
                    tuple(line["line_id"] for line in used),
                    np.array([e[0] for e in ends]),
                    np.array([e[1] for e in ends]),
                    column("length_m"),
                    r,
                    x,
                    column("r0_ohm_per_km", r + 3 * column("r_neutral_ohm_per_km", r)),
                    column("x0_ohm_per_km", x + 3 * column("x_neutral_ohm_per_km", x)),
                    column("rated_current_a", np.full(len(used), 100.0)),
                    row["transformer_id"],
                    *(
                        float(row[name])
                        for name in ("rated_kva", "hv_v", "lv_v", "no_load_loss_w", "load_loss_w", "impedance_percent")
                    ),
                )
            )
    if not found:
        raise click.ClickException(f"{folder}: no transformer feeds a node of kind customer")
    return found
