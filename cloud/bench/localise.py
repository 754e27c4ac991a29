"""Who is found in areas of the fault generator, beside three baselines, and how often an honest area names somebody.

Everything runs as with files: a folder is written, read, balanced, localised. Results of a (seed, size) are kept as one
line of JSON each, so that seeds can be shared among runs and machines and are not run twice.
"""

import importlib.util
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, cast

import click
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from cloud.loss import folder, records, run, scores, simulate
from cloud.loss.faults import KINDS

Array = NDArray[np.float64]
Document = dict[str, Any]

BASELINES: Final = ("own_drop", "nnls_shortfall", "isolation_forest")
HONEST: Final = "honest"
HONEST_SEED: Final = 1000  # + seed: honest areas are others than those with thieves
DAYS: Final = 90
AREA_MONTH_DAYS: Final = 30


class Peers(Protocol):
    """peers.py: baselines on daily energy, supply (D,) and customers (D, M) -> (M,) scores; its own pooled AUC."""

    def daily(self, frame: Any, ids: list[str]) -> Array: ...
    def own_drop(self, supply: Array, x: Array) -> Array: ...
    def nnls_shortfall(self, supply: Array, x: Array) -> Array: ...
    def isolation_forest(self, supply: Array, x: Array) -> Array: ...


def load_peers(path: Path) -> Peers:
    """peers.py as a module. Raises ClickException where it or what it needs is not there."""
    spec = importlib.util.spec_from_file_location("peers", path)
    try:
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (ImportError, OSError, SyntaxError) as error:
        raise click.ClickException(f'{path}: {error}; peers need: pip install "gridloom[bench]"') from error
    return cast(Peers, module)


def seed_range(text: str) -> list[int]:
    """ "0-29" or "3,5,8" as numbers. Raises BadParameter."""
    try:
        numbers: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise click.BadParameter(f'"{text}": seeds as 0-29 or 3,5,8') from error
    return numbers


def measure(
    seed: int, size: str, peers: Peers | None, difficulty: str = "hard", *, areas: int = 3, customers: int = 60
) -> Document:
    """One network of the generator: each area's customers with score, kind, interval and the truth."""
    honest = size == HONEST
    made = simulate.generate(
        seed=seed + HONEST_SEED * honest, size=None if honest else float(size) / 100,
        faulty_share=0.0 if honest else simulate.FAULTY_SHARE, difficulty=difficulty, days=DAYS,
        areas=areas, customers=customers,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch)
        records.write(made, path, seed=seed, start=simulate.START)
        read = folder.read(path)
        truth = scores.read_truth(path / "truth.csv")
        began = time.process_time()
        runs = run.run(read, run.Options())
        cpu_s = time.process_time() - began
        base = _baselines(path, peers, runs) if peers and not honest else [{} for _ in runs]
    return {
        "seed": seed,
        "size": size,
        "difficulty": difficulty,
        "cpu_s_per_area": round(cpu_s / len(runs), 3),
        "areas": [_area(area, truth, other) for area, other in zip(runs, base, strict=True)],
    }


def _area(area: run.AreaRun, truth: dict[str, scores.Fault], baselines: dict[str, Array]) -> Document:
    found = area.suspects
    if found is None:
        raise click.ClickException(f"{area.area_id}: no balance, no suspects")
    faults = [truth.get(name) for name in area.customers]
    return {
        "score": np.round(found.score, 3).tolist(),
        "named": np.flatnonzero(found.named).tolist(),
        "faulty": {
            str(at): {
                "kind": fault.kind, "said": found.kind[at], "stolen_wh": fault.stolen_wh,
                "lo_wh": round(float(found.lo_wh[at])), "found_wh": round(float(found.stolen_wh[at])),
                "hi_wh": round(float(found.hi_wh[at])),
            }
            for at, fault in enumerate(faults)
            if fault
        },
        # As peers.py pools them: by rank in the area.
        "baselines": {name: np.round(values, 6).tolist() for name, values in baselines.items()},
    }  # fmt: skip


def _baselines(path: Path, peers: Peers, areas: Sequence[run.AreaRun]) -> list[dict[str, Array]]:
    import pandas as pd  # type: ignore[import-untyped]

    frame = pd.read_parquet(path / "measurements.parquet")
    meters = pd.read_csv(path / "meters.csv", dtype={"meter_id": str})
    answers = []
    for area in areas:
        head = list(meters.loc[(meters["area_id"] == area.area_id) & (meters["role"] == "supply"), "meter_id"])
        supply, x = peers.daily(frame, head).sum(1), peers.daily(frame, list(area.customers))
        answers.append({name: getattr(peers, name)(supply, x) for name in BASELINES})
    return answers


def localise(
    seeds: Sequence[int],
    sizes: Sequence[str],
    *,
    peers: Peers | None = None,
    keep: Path | None = None,
    difficulty: str = "hard",
    tell: Callable[[str], None] = lambda _: None,
) -> list[Document]:
    """Figures of each size and of honest areas over all seeds; lines in `keep` are taken as they are."""
    lines = [json.loads(line) for line in keep.read_text().splitlines()] if keep and keep.exists() else []
    there = {(one["seed"], one["size"], one["difficulty"]) for one in lines}
    for seed in seeds:
        for size in (*sizes, HONEST):
            if (seed, size, difficulty) in there:
                continue
            tell(f"localise: seed {seed}, {size if size == HONEST else size + ' %'}")
            lines.append(measure(seed, size, peers, difficulty))
            if keep:
                with keep.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
    wanted = [one for one in lines if one["seed"] in set(seeds) and one["difficulty"] == difficulty]
    return [
        _summary(size, [one for one in wanted if one["size"] == size])
        for size in (*sizes, HONEST)
        if any(one["size"] == size for one in wanted)
    ]


def _summary(size: str, lines: Sequence[Document]) -> Document:
    areas = [area for one in lines for area in one["areas"]]
    months = len(areas) * DAYS / AREA_MONTH_DAYS
    false = [len([at for at in area["named"] if str(at) not in area["faulty"]]) for area in areas]
    figures: Document = {
        "size": size,
        "networks": len(lines),
        "areas": len(areas),
        "customers": sum(len(area["score"]) for area in areas),
        "area_months": months,
        "false_names": sum(false),
        "areas_with_false_names": sum(one > 0 for one in false),
        "area_months_without_false_names_percent": round(100 * (1 - sum(one > 0 for one in false) / months), 2),
        "cpu_s_per_area": round(float(np.mean([one["cpu_s_per_area"] for one in lines])), 3),
    }
    if size == HONEST:
        return figures
    faults = [
        {**fault, "score": area["score"][int(at)], "named": int(at) in area["named"], "first": int(at) in _first(area)}
        for area in areas
        for at, fault in area["faulty"].items()
    ]
    honest = np.array(
        [value for area in areas for at, value in enumerate(area["score"]) if str(at) not in area["faulty"]]
    )
    figures["methods"] = {"gridloom": _method(areas, None)} | {
        name: _method(areas, name) for name in BASELINES if all(name in area["baselines"] for area in areas)
    }
    named = [one for one in faults if one["named"]]
    figures |= {
        "faulty": len(faults),
        "named": len(named),
        "cover80_named": _share(_covered(one) for one in named),
        "cover80_all": _share(_covered(one) for one in faults),
        "kind_right_named": _share(one["kind"] == one["said"] for one in named),
        "kinds": {
            kind: {
                "faulty": len(mine),
                "auc": scores.auc(
                    np.concatenate([honest, [one["score"] for one in mine]]),
                    np.r_[np.zeros(len(honest), bool), np.ones(len(mine), bool)],
                ),
                "among_first_k": _share(one["first"] for one in mine),
                "named": _share(one["named"] for one in mine),
                "cover80_named": _share(_covered(one) for one in mine if one["named"]),
                "said": dict(Counter(one["said"] for one in mine).most_common()),
            }
            for kind in KINDS
            if (mine := [one for one in faults if one["kind"] == kind])
        },
    }
    return figures


def _first(area: Document) -> set[int]:
    return set(np.argsort(-np.array(area["score"]), kind="stable")[: len(area["faulty"])].tolist())


def _covered(fault: Document) -> bool:
    return bool(fault["lo_wh"] <= fault["stolen_wh"] <= fault["hi_wh"])


def _share(values: Iterable[bool]) -> float | None:
    all_values = list(values)
    return round(float(np.mean(all_values)), 3) if all_values else None


def _method(areas: Sequence[Document], name: str | None) -> Document:
    """AUC over customers of all areas, and the mean of areas' precision at k; baselines by rank in their area."""
    pooled, faulty, precision = [], [], []
    for area in areas:
        values = np.array(area["score"] if name is None else area["baselines"][name], np.float64)
        is_faulty = np.isin(np.arange(len(values)), [int(at) for at in area["faulty"]])
        pooled.append(values if name is None else rankdata(values) / len(values))
        faulty.append(is_faulty)
        if is_faulty.any():
            precision.append(is_faulty[np.argsort(-values, kind="stable")[: is_faulty.sum()]].mean())
    found = scores.auc(np.concatenate(pooled), np.concatenate(faulty))
    return {
        "auc": None if found is None else round(found, 4),
        "precision_at_k": round(float(np.mean(precision)), 4) if precision else None,
    }


def table(figures: Sequence[Document]) -> Iterator[str]:
    for one in figures:
        size = one["size"] if one["size"] == HONEST else f"{one['size']} %"
        yield (
            f"{size}: {one['areas']} areas, {one['customers']:,} customers; {one['false_names']} honest customers "
            f"named in {one['areas_with_false_names']} areas, "
            f"{one['area_months_without_false_names_percent']:.1f} % of area-months without; "
            f"{one['cpu_s_per_area']:.2f} s CPU an area"
        )
        for name, found in one.get("methods", {}).items():
            yield f"  {name:18} AUC {found['auc']:.3f}  precision at k {found['precision_at_k']:.2f}"
        if "kinds" not in one:
            continue
        yield (
            f"  80 % interval holds the truth: named {_percent(one['cover80_named'])} of {one['named']}, all "
            f"{_percent(one['cover80_all'])} of {one['faulty']}; kind right {_percent(one['kind_right_named'])}"
        )
        yield f"  {'kind':14}{'n':>5}{'AUC':>7}{'first k':>9}{'named':>8}{'cover':>8}  said"
        for kind, found in one["kinds"].items():
            said = ", ".join(f"{name} {count}" for name, count in found["said"].items())
            yield (
                f"  {kind:14}{found['faulty']:>5}{found['auc']:>7.3f}{_percent(found['among_first_k']):>9}"
                f"{_percent(found['named']):>8}{_percent(found['cover80_named']):>8}  {said}"
            )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"
