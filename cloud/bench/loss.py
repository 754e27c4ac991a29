"""The loss engine beside what a specialist would install: power flow against power-grid-model."""

import csv
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from cloud.bench import balance, localise
from cloud.engines.loss.flow import place, solve
from cloud.engines.loss.network import Line, Transformer, compile_network

Array = NDArray[np.float64]
Document = dict[str, Any]
Branches = TypeVar("Branches", Line, Transformer)

BLOCK: Final = 7_008  # scenarios whose voltages are held at once: 73 days of 15 min
ROUNDS: Final = 3
ROUND_S: Final = 10.0  # a peer slower than this is timed once
JUDGED: Final = 400  # scenarios compared, the one with the highest load among them
_TEXT: Final = ("from_node", "to_node", "hv_node", "lv_node", "phases", "vector_group")


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """A network and the loads of L nodes in T scenarios, W and var."""

    name: str
    source: str
    lines: list[Line]
    transformers: list[Transformer]
    nodes: list[str]
    phases: list[str]
    active_w: Array
    reactive_var: Array


def cases(folder: Path, names: Sequence[str]) -> Iterator[Case]:
    """Those of ``names`` (all if none) in a folder that tools/export_networks.py wrote."""
    for path in sorted(folder.glob("*/loads.npz")):
        if names and path.parent.name not in names:
            continue
        with (path.parent / "nodes.csv").open() as file:
            source = next(row["node_id"] for row in csv.DictReader(file) if row["kind"] == "source")
        with np.load(path) as loads:
            yield Case(
                path.parent.name,
                source,
                _read(path.with_name("lines.csv"), Line),
                _read(path.with_name("transformers.csv"), Transformer),
                loads["node_id"].tolist(),
                loads["phases"].tolist(),
                loads["active_w"].astype(float),
                loads["reactive_var"].astype(float),
            )


def _read(path: Path, kind: type[Branches]) -> list[Branches]:
    columns = {field.name for field in dataclasses.fields(kind)}
    with path.open() as file:
        return [
            kind(**{k: v if k in _TEXT else float(v) for k, v in row.items() if k in columns and v})  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        ]


def flow(
    folder: Path, names: Sequence[str], scenarios: int, tell: Callable[[str], None] = lambda _: None
) -> list[Document]:
    """Figures of each network, balanced and by phase, both engines with one thread, CPU time."""
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is first imported, so by a fresh process
    try:
        figures = []
        for path in sorted(folder.glob("*/loads.npz")):
            name = path.parent.name
            for by_phase in (False, True) if not names or name in names else ():
                tell(f"power flow: {name}, {'by phase' if by_phase else 'balanced'}")
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    figures.append(pool.submit(measure, folder, name, scenarios, by_phase).result())
        return figures
    finally:
        if threads is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = threads


def measure(folder: Path, name: str, scenarios: int, by_phase: bool) -> Document:
    """All voltages and the losses of a network's first scenarios, beside power-grid-model's voltages alone."""
    from cloud.bench.oracle import Oracle

    case = next(cases(folder, [name]))
    phases = case.phases if by_phase else ["abc"] * len(case.nodes)
    active_w, reactive_var = case.active_w[:, :scenarios], case.reactive_var[:, :scenarios]
    total = active_w.shape[1]
    blocks = [
        [np.ascontiguousarray(values[:, start : start + BLOCK]) for values in (active_w, reactive_var)]
        for start in range(0, total, BLOCK)
    ]
    start_s = time.process_time()
    network = compile_network(case.source, case.lines, case.transformers, three_phase=by_phase)
    placed = place(network, case.nodes, phases)
    compile_s = time.process_time() - start_s
    oracle = Oracle(network, case.lines, case.transformers, case.nodes, phases)
    batches = [oracle.scenarios(active, reactive) for active, reactive in blocks]

    ours_s: list[float] = []
    theirs_s: list[float] = []
    for _ in range(ROUNDS):  # in turns
        ours_s.append(sum(_cpu_s(solve, placed, *block) for block in blocks))
        if not theirs_s or max(theirs_s) < ROUND_S:
            theirs_s.append(sum(_cpu_s(oracle.voltages, batch) for batch in batches))

    peak = int(np.abs(active_w.sum(axis=0)).argmax())
    judged = np.unique(np.r_[peak, np.linspace(0, total - 1, min(JUDGED, total)).astype(int)])
    truth_pu, line_w, transformer_w = oracle.solve(oracle.scenarios(active_w[:, judged], reactive_var[:, judged]))
    result = solve(placed, active_w[:, judged], reactive_var[:, judged])
    assert result.voltage_pu is not None
    ours_pu = np.moveaxis(result.voltage_pu, 2, 0) if by_phase else result.voltage_pu[:, 0].T
    truth_w = float((line_w + transformer_w).sum())
    return {
        "network": case.name,
        "nodes": len(network.nodes),
        "loads": len(case.nodes),
        "asymmetric": by_phase,
        "scenarios": total,
        "compile_ms": round(compile_s * 1e3, 1),
        "us_per_scenario": round(min(ours_s) / total * 1e6, 2),
        "pgm_us_per_scenario": round(min(theirs_s) / total * 1e6, 2),
        "ratio": round(min(theirs_s) / min(ours_s), 1),
        "max_du_pu": float(np.abs(ours_pu - truth_pu).max()),
        "min_u_pu": round(float(truth_pu.min()), 4),
        "loss_error_percent": 100 * abs(float(result.loss_w.sum()) / truth_w - 1),
    }


def _cpu_s(work: Callable[..., object], *arguments: object) -> float:
    start_s = time.process_time()
    work(*arguments)
    return time.process_time() - start_s


def _seeds(context: click.Context, parameter: click.Parameter, value: str) -> list[int]:
    return localise.seed_range(value)


@click.command(
    epilog="""\b
Copy and run:
  python tools/export_networks.py /tmp/networks
  gridloom bench loss --networks /tmp/networks
  gridloom bench loss --networks /tmp/networks --name rural3 --name urban6 --json
  gridloom bench loss --networks tests/cases/networks --quick
  gridloom bench loss --part balance --seeds 0-9 --size 20 --size 50 --networks /tmp/networks --name rural1
  gridloom bench loss --part localise --seeds 0-9 --size 5 --size 20 --size 50 --peers peers.py --keep found.jsonl
"""
)
@click.option(
    "--part",
    type=click.Choice(["flow", "balance", "localise"]),
    default="flow",
    show_default=True,
    help="What is measured.",
)
@click.option(
    "--seeds", default="0-29", show_default=True, callback=_seeds, help="balance, localise: of the fault generator."
)
@click.option(
    "--size",
    "sizes",
    type=click.Choice(["5", "20", "50", "drawn"]),
    multiple=True,
    default=["20"],
    show_default=True,
    help="balance, localise: percent of a faulty customer's energy that is not recorded; may be repeated. drawn: one "
    "of the three for each (balance alone).",
)
@click.option(
    "--peers", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="localise: peers.py with baselines."
)
@click.option(
    "--keep",
    type=click.Path(dir_okay=False, path_type=Path),
    help="localise: lines of JSON, one for each seed and size; what is there is not run again.",
)
@click.option(
    "--networks",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Networks and their loads, as tools/export_networks.py writes them.",
)
@click.option("--name", "names", multiple=True, help="Only this network; may be repeated.")
@click.option(
    "--scenarios", default=35_040, show_default=True, type=click.IntRange(1), help="At most: a year of 15 min."
)
@click.option("--quick", is_flag=True, help="Some seconds: shows that it works, not how fast.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON document.")
def loss(
    part: str, seeds: list[int], sizes: tuple[str, ...], peers: Path | None, keep: Path | None, networks: Path | None,
    names: tuple[str, ...], scenarios: int, quick: bool, as_json: bool,
) -> None:  # fmt: skip
    """The loss engine beside its peers.

    flow: power-grid-model's iterative current; voltages, losses, CPU time of one thread, both to 1e-8 pu. The truth of
    voltages and losses is its Newton-Raphson. balance: stolen energy of an area, and its 80 % intervals, of the
    generator's own network and those named. localise: who is found in areas of the fault generator, with the
    baselines of --peers. Needs pip install "gridloom[bench]".
    """
    if importlib.util.find_spec("power_grid_model") is None:
        raise click.ClickException('power-grid-model is not there; run: pip install "gridloom[bench]"')
    if part == "balance":
        folders = [networks / name for name in names] if networks else []
        shares = [None if size == "drawn" else int(size) / 100 for size in sizes]
        balanced = balance.balance(folders, seeds, sizes=shares, tell=lambda text: click.echo(text, err=True))
        for line in [json.dumps({"balance": balanced})] if as_json else balance.table(balanced):
            click.echo(line)
        return
    if part == "localise":
        if "drawn" in sizes:
            raise click.UsageError("--size drawn is for --part balance; localise: 5, 20 or 50")
        found = localise.localise(
            seeds, sizes, peers=localise.load_peers(peers) if peers else None, keep=keep,
            tell=lambda text: click.echo(text, err=True),
        )  # fmt: skip
        for line in [json.dumps({"localise": found})] if as_json else localise.table(found):
            click.echo(line)
        return
    if networks is None:
        raise click.UsageError("--networks: which? make them with: python tools/export_networks.py /tmp/networks")
    there = {path.parent.name for path in networks.glob("*/loads.npz")}
    if not there or set(names) - there:
        what = f"no network {min(set(names) - there)}" if there else "no networks"
        raise click.ClickException(f"{networks}: {what}; make them with: python tools/export_networks.py {networks}")
    figures = flow(
        networks, names, min(scenarios, 500) if quick else scenarios, lambda text: click.echo(text, err=True)
    )
    if as_json:
        click.echo(json.dumps({"flow": figures}))
        return
    for line in _table(figures):
        click.echo(line)


def _table(figures: list[Document]) -> Iterator[str]:
    yield (
        f"{'network':<14}{'phases':>7}{'nodes':>7}{'scenarios':>11}{'µs each':>9}{'pgm µs':>9}{'ratio':>7}"
        f"{'max ΔU pu':>11}{'loss off %':>12}"
    )
    for one in figures:
        yield (
            f"{one['network']:<14}{'abc' if one['asymmetric'] else '1':>7}{one['nodes']:>7}{one['scenarios']:>11,}"
            f"{one['us_per_scenario']:>9.2f}{one['pgm_us_per_scenario']:>9.2f}{one['ratio']:>7.1f}"
            f"{one['max_du_pu']:>11.1e}{one['loss_error_percent']:>12.1e}"
        )
