"""Areas of the fault generator, balanced: how far the stolen energy is off, and whether 80 % intervals hold 80 %."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.loss.balance import Z80
from cloud.loss import faults, folder, radial, records, run, simulate

Array = NDArray[np.float64]
Document = dict[str, Any]

SIZES: Final = faults.SIZES
DAYS: Final = 90
AREAS, CUSTOMERS = 3, 60  # of the builtin network
WORTH: Final = 0.002  # of the energy fed in: a smaller sum of thefts has no relative error to speak of


@dataclass(frozen=True, slots=True)
class Found:
    """One area. Wh: ``stolen`` (truth) and ``found`` over the whole record; ``fed_in`` by the head.

    ``strangers``: who is booked in another area is fed from here; no registry tells from which node.
    ``technical_off``: relative error of the technical loss.  ``period``, ``months``: whether the truth over the same
    intervals is in the 80 % interval, of the time since the first fault and of each month.  ``whole``: of the record.
    """

    stolen: float
    found: float
    fed_in: float
    strangers: bool
    technical_off: float
    whole: bool
    period: bool
    months: tuple[bool, ...]
    since_stolen: float
    since_found: float


def measure(
    made: Sequence[records.Area], seed: int, *, gains: bool, options: run.Options, path: Path
) -> Iterator[Found]:
    """What a run finds of areas that are written to ``path`` and read again, without who did it."""
    records.write(made, path, seed=seed, start=simulate.START, gains=gains)
    read = folder.read(path)
    days = run.calendar(read.measurements.time, read.measurements.step_s, options.zone)
    for number, (truth, area) in enumerate(zip(made, run.run(read, options), strict=True)):
        assert area.technical_wh is not None
        missing = truth.supplied_wh - truth.technical_wh - truth.recorded_wh.sum(axis=1)
        since = min((fault.first_step for fault in truth.faults), default=0)
        period = (np.arange(len(missing)) >= since).astype(np.intp)
        if since == 0:
            period[:] = 0
        total = float(missing.sum())
        wide = Z80 * area.rest_sd_wh
        late, month = area.over(period), area.months
        inside = [
            bool(one.lo_wh[w] <= missing[area.use & (window == w)].sum() <= one.hi_wh[w])
            for one, window, w in (
                (late, period, int(period.max())),
                *((month, days.month, w) for w in range(len(month.lo_wh)) if np.isfinite(month.lo_wh[w])),
            )
        ]
        yield Found(
            total,
            area.rest_wh,
            float(truth.supplied_wh.sum()),
            any(fault.supplied_from == number for other in made if other is not truth for fault in other.faults),
            float(area.technical_wh[area.use].sum() / truth.technical_wh[area.use].sum() - 1),
            bool(abs(area.rest_wh - total) <= wide),
            inside[0],
            tuple(inside[1:]),
            float(missing[area.use & (period == period.max())].sum()),
            float(late.unexplained_wh[-1]),
        )


def networks_of(path: Path) -> list[radial.AreaNetwork]:
    """A network that tools/export_networks.py wrote, its customers on the phases of its loads."""
    found = radial.read_networks(path)
    if not (path / "loads.npz").exists():
        return found
    with np.load(path / "loads.npz") as loads:
        phases = dict(zip(loads["node_id"].tolist(), loads["phases"].tolist(), strict=True))
    return [
        replace(one, phases=tuple(phases.get(n, p) for n, p in zip(one.node_id, one.phases, strict=True)))
        for one in found
    ]


def balance(
    folders: Sequence[Path],
    seeds: Sequence[int],
    *,
    sizes: Sequence[float | None] = SIZES,
    difficulties: Sequence[str] = ("easy", "hard"),
    phase_imbalance: bool = False,
    builtin: bool = True,
    options: run.Options | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Document]:
    """Figures of each network (the builtin one first, unless left out), difficulty, size, without and with gain errors.

    sizes: None draws one for each fault, as FORMAT.md does.
    folders: networks as tools/export_networks.py writes them, one area each, with the builtin load profiles.
    """
    figures = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, networks in [
            *([("builtin", None)] if builtin else []),
            *((path.name, networks_of(path)) for path in folders),
        ]:
            for difficulty in difficulties:
                for size in sizes:
                    found: dict[bool, list[Found]] = {False: [], True: []}
                    for seed in seeds:
                        tell(f"balance: {name}, {difficulty}, {_percent(size)}, seed {seed}")
                        made = simulate.generate(
                            seed=seed, areas=AREAS, customers=CUSTOMERS, days=DAYS, difficulty=difficulty, size=size,
                            networks=networks, phase_imbalance=phase_imbalance,
                        )  # fmt: skip
                        for gains, into in found.items():
                            into += measure(
                                made, seed, gains=gains, options=options or run.Options(), path=Path(scratch)
                            )
                    figures += [
                        {
                            "network": name,
                            "difficulty": difficulty,
                            "size": size,
                            "gains": gains,
                            **summary(areas),
                        }
                        for gains, areas in found.items()
                    ]
    return figures


def summary(areas: Sequence[Found]) -> Document:
    """Of areas that lose enough to thieves for a relative error; coverage of all of them. Percent, but the counts."""
    stolen, found, since, since_found = (
        np.array([getattr(area, name) for area in areas]) for name in ("stolen", "found", "since_stolen", "since_found")
    )
    fed_in = np.array([area.fed_in for area in areas])
    worth = np.abs(stolen) > WORTH * fed_in
    off = 100 * np.abs(found - stolen)[worth] / np.abs(stolen)[worth]
    months = [inside for area in areas for inside in area.months]
    home = np.array([not area.strangers for area in areas])
    return {
        "areas": len(areas),
        "worth": int(worth.sum()),
        "stolen_percent": round(100 * float(np.abs(stolen).sum() / fed_in.sum()), 2),
        "technical_off_percent": round(100 * float(np.median([area.technical_off for area in areas])), 2),
        "off_percent": {
            "pooled": _pooled(found, stolen),
            "signed": round(100 * float((found - stolen).sum() / np.abs(stolen).sum()), 2),
            "median": round(float(np.median(off)), 2) if worth.any() else None,
            "p90": round(float(np.quantile(off, 0.9)), 2) if worth.any() else None,
            "max": round(float(off.max()), 2) if worth.any() else None,
            "aligned_pooled": _pooled(since_found, since),
            "aligned_home": _pooled(since_found[home], since[home]) if home.any() else None,
        },
        "cover_whole": round(100 * float(np.mean([area.whole for area in areas])), 1),
        "cover_period": round(100 * float(np.mean([area.period for area in areas])), 1),
        "cover_months": round(100 * float(np.mean(months)), 1),
        "months": len(months),
    }


def _pooled(found: Array, truth: Array) -> float:
    return round(100 * float(np.abs(found - truth).sum() / np.abs(truth).sum()), 2)


def _percent(size: float | None) -> str:
    return "drawn" if size is None else f"{size:.0%}"


def table(figures: Sequence[Document]) -> Iterator[str]:
    yield (
        f"{'network':<10}{'':>5}{'size':>6}{'gains':>6}{'areas':>6}{'worth':>6}{'tech %':>8}"
        f"{'off % pooled':>13}{'signed':>8}{'median':>8}{'p90':>8}{'max':>8}{'aligned':>8}{'home':>7}"
        f"{'whole':>7}{'period':>7}{'months':>7}"
    )
    for one in figures:
        off = one["off_percent"]
        text = "".join(
            f"{'-' if off[k] is None else format(off[k], '.2f'):>{w}}"
            for k, w in (
                ("pooled", 13),
                ("signed", 8),
                ("median", 8),
                ("p90", 8),
                ("max", 8),
                ("aligned_pooled", 8),
                ("aligned_home", 7),
            )
        )
        yield (
            f"{one['network']:<10}{one['difficulty']:>5}{_percent(one['size']):>6}{'yes' if one['gains'] else 'no':>6}"
            f"{one['areas']:>6}{one['worth']:>6}{one['technical_off_percent']:>8.2f}{text}"
            f"{one['cover_whole']:>7.1f}{one['cover_period']:>7.1f}{one['cover_months']:>7.1f}"
        )
