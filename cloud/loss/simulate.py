"""`gridloom loss simulate`: a network with measurements, faults in it, and the truth beside them.

The technical loss of the truth comes from power-grid-model (unbalanced, neutral as zero sequence), so that what is
tested here is not tested against itself.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.signal import lfilter

from cloud.loss import faults, profiles, radial, records, truth
from cloud.loss.profiles import STEPS_OF_DAY, Array
from cloud.loss.records import Area, Fault

FAULTY_SHARE, CHANGED_SHARE, PV_SHARE = 0.05, 0.15, 0.10
CHANGE: Final = (-0.6, 0.6)
START: Final = np.datetime64("2026-03-02", "D")
TAN_PHI: Final = float(np.tan(np.arccos(0.95)))  # lagging
ABOVE_SD, ABOVE_DAILY, ABOVE_KEPT = 0.006, 0.01, 0.97  # of rated; what of a step's wandering is left in the next
THREE_PHASE_SHARE: Final = (0.06, 0.5, 1.0)  # of households, shops, workshops


def draw_faults(
    rng: np.random.Generator,
    three_phase: Sequence[npt.NDArray[np.bool_]],
    share: float,
    size: float | None,
    kinds: Sequence[str],
    days: int,
) -> list[list[Fault]]:
    """Faults of each area: 5 % of its customers (at least one unless the share is 0), kinds and starts uniform."""
    areas = len(three_phase)
    drawn: list[list[Fault]] = []
    first, last = faults.FIRST_DAYS
    if share and days <= last:
        raise click.ClickException(f"faults start on days {first} to {last}: --days above {last} expected, got {days}")
    for area, three in enumerate(three_phase):
        count = max(1, round(share * len(three))) if share else 0
        free = np.ones(len(three), dtype=bool)
        mine: list[Fault] = []
        possible = [k for k in kinds if (k != "wrong_area" or areas > 1) and (k != "phase_missing" or three.any())]
        if count and not possible:
            raise click.ClickException(
                "wrong_area needs two areas, phase_missing a three-phase meter: add areas or kinds"
            )
        for _ in range(count):
            kind = possible[int(rng.integers(len(possible)))]
            fitting = np.flatnonzero(free & three) if kind == "phase_missing" else np.flatnonzero(free)
            if not len(fitting):
                kind, fitting = "scaled", np.flatnonzero(free)
            customer = int(rng.choice(fitting))
            free[customer] = False
            fed = (area + int(rng.integers(1, areas))) % areas if kind == "wrong_area" else area
            drawn_size = float(size if size is not None else rng.choice(faults.SIZES))
            mine.append(Fault(customer, kind, drawn_size, int(rng.integers(first, last + 1)) * STEPS_OF_DAY, fed))
        drawn.append(mine)
    return drawn


def change_habits(
    rng: np.random.Generator, drawn: profiles.Profiles, honest: npt.NDArray[np.int64], start: np.datetime64
) -> profiles.Profiles:
    """*hard*: 15 % of the honest change their load for good on a random day, 10 % have PV."""
    load, roof = drawn.load_wh.copy(), drawn.pv_wh.copy()
    steps = len(load)
    changed = rng.choice(honest, size=round(CHANGED_SHARE * len(honest)), replace=False)
    day = rng.integers(1, steps // STEPS_OF_DAY, len(changed))
    factor = 1 + rng.uniform(*CHANGE, len(changed))
    load[:, changed] *= np.where(np.arange(steps)[:, None] >= day * STEPS_OF_DAY, factor, 1.0)
    owners = rng.choice(honest, size=round(PV_SHARE * len(honest)), replace=False)
    roof[:, owners] = profiles.pv(rng, load[:, owners].mean(0) * STEPS_OF_DAY, start, steps // STEPS_OF_DAY)
    return replace(drawn, load_wh=load, pv_wh=roof)


def generate(
    *,
    seed: int,
    areas: int = 3,
    customers: int = 60,
    days: int = 90,
    difficulty: str = "hard",
    size: float | None = None,
    kinds: Sequence[str] = faults.KINDS,
    faulty_share: float = FAULTY_SHARE,
    start: np.datetime64 = START,
    networks: Sequence[radial.AreaNetwork] | None = None,
    given: Array | None = None,
    phase_imbalance: bool = False,
    check_meters: bool = False,
    voltages: bool = False,
) -> list[Area]:
    """Areas with loads, faults and losses, before the meters' noise.

    networks: used in turn instead of drawn ones. given: (T, K) Wh at 15 minutes, perturbed instead of drawn profiles.
    phase_imbalance: three-phase customers load their phases unequally, which no record shows; FORMAT.md has none.
    check_meters: one on each first branch below the head. voltages: of all meters; the network above moves then, and
    losses with it. Everything else of a seed stays the same with or without.
    """
    rng = np.random.default_rng(seed)
    if networks:
        phases = [np.array([radial.PHASES.index(n.phases[i]) for i in n.customer_node]) for n in networks]
        kind_of = [profiles.customer_kinds(rng, len(phase)) for phase in phases]
    else:
        kind_of = [profiles.customer_kinds(rng, customers) for _ in range(areas)]
        phases = [
            np.where(rng.random(len(k)) < np.asarray(THREE_PHASE_SHARE)[k], 3, rng.integers(3, size=len(k)))
            for k in kind_of
        ]
    three = [phase == 3 for phase in phases]
    planned = draw_faults(rng, three, faulty_share, size, kinds, days)
    made: list[Area] = []
    for index, (phase, kind, mine) in enumerate(zip(phases, kind_of, planned, strict=True)):
        drawn = profiles.draw(rng, kind, phase == 3, phase % 3, start, days)
        if not phase_imbalance:
            drawn.phase_share[:, phase == 3] = 1 / 3
        if given is not None:
            load = profiles.perturb(rng, given, len(phase), days)
            # The largest loads have three phases: one phase of a small conductor could not carry them.
            by_size, places = np.argsort(-load.mean(0)), np.argsort(phase != 3, kind="stable")
            ordered = np.empty_like(load)
            ordered[:, places] = load[:, by_size]
            drawn = replace(drawn, load_wh=ordered)
        if difficulty == "hard":
            honest = np.setdiff1d(np.arange(len(phase)), [fault.customer for fault in mine])
            drawn = change_habits(rng, drawn, honest, start)
        area_id = networks[index].node_id[1] if networks else f"area{index + 1}"
        average_w = float(drawn.load_wh.sum() / days / 24)
        network = networks[index] if networks else radial.draw(rng, area_id, phase, average_w)
        made.append(Area(area_id, network, drawn, phase, mine, drawn.load_wh - drawn.pv_wh))
    _spoil(rng, made)
    source_pu = above(np.random.default_rng((seed, 3)), days * STEPS_OF_DAY) if voltages else None
    for area in made:
        area.check_node = area.network.first_branches() if check_meters else ()
    guests: list[tuple[Area, Fault, Array]] = []
    for index in range(len(made)):
        guests += _supply(rng, made, index, source_pu)
    for area, fault, seen in guests:
        area.voltage_v[fault.first_step :, 1 + fault.customer] = seen[fault.first_step :]
    return made


def above(rng: np.random.Generator, steps: int) -> Array:
    """(T,) per unit: the voltage of the network above, that falls with the load of the day and wanders."""
    hour = np.arange(steps) % STEPS_OF_DAY * 24 / STEPS_OF_DAY
    wander = lfilter([1.0], [1.0, -ABOVE_KEPT], rng.normal(0, ABOVE_SD * (1 - ABOVE_KEPT**2) ** 0.5, steps))
    return np.asarray(1.0 - ABOVE_DAILY * np.cos((hour - 15.5) / 12 * np.pi) + wander)


def _spoil(rng: np.random.Generator, made: Sequence[Area]) -> None:
    for area in made:
        for fault in area.faults:
            c, shares = fault.customer, area.drawn.phase_share
            phase = int(rng.integers(3))
            if fault.kind == "phase_missing":
                shares[:, c] = faults.resplit(shares[:, c], phase, fault.size)
            load = area.drawn.load_wh[:, c]
            kept = faults.record(rng, fault.kind, load, shares[:, c, phase], fault.size, fault.first_step)
            area.recorded_wh[:, c] = kept - area.drawn.pv_wh[:, c]


def _supply(
    rng: np.random.Generator, made: Sequence[Area], index: int, source_pu: Array | None
) -> list[tuple[Area, Fault, Array]]:
    """What an area with all that it really feeds is supplied with, loses, and shows its check meters and voltages.

    Returns whoever another area has in its book and this one feeds, with the voltage (T, 3) there.
    """
    area = made[index]
    steps = len(area.drawn.load_wh)
    here = np.ones((steps, len(area.phase)))
    for fault in area.faults:
        if fault.supplied_from != index:
            here[fault.first_step :, fault.customer] = 0
    drawn = area.drawn
    nodes, guests = [area.network.customer_node], []
    loads = [drawn.load_wh[:, :, None] * drawn.phase_share * here[:, :, None]]
    roofs = [drawn.pv_wh[:, :, None] * drawn.phase_share * here[:, :, None]]
    for other, neighbour in enumerate(made):
        for fault in neighbour.faults:
            if other != index and fault.supplied_from == index:
                after = (np.arange(steps) >= fault.first_step)[:, None]
                share = neighbour.drawn.phase_share[:, fault.customer] * after
                nodes.append(rng.choice(area.network.customer_node, size=1))
                guests.append((neighbour, fault, int(nodes[-1][0])))
                loads.append((neighbour.drawn.load_wh[:, fault.customer, None] * share)[:, None])
                roofs.append((neighbour.drawn.pv_wh[:, fault.customer, None] * share)[:, None])
    load, roof = np.concatenate(loads, axis=1), np.concatenate(roofs, axis=1)
    per_hour = 4.0
    flow = truth.solve(
        area.network, np.concatenate(nodes), (load - roof) * per_hour, load * (TAN_PHI * per_hour),
        source_pu=source_pu, into=area.check_node, voltages=source_pu is not None,
    )  # fmt: skip
    area.technical_wh = flow.loss_w / per_hour
    area.supplied_wh = area.technical_wh + (load - roof).sum((1, 2))
    area.check_wh = flow.through_w / per_hour
    if flow.voltage_v is None:
        return []
    area.voltage_v = flow.voltage_v[:, [0, *area.network.customer_node, *area.check_node]]
    return [(neighbour, fault, flow.voltage_v[:, node]) for neighbour, fault, node in guests]


def read_profiles(path: Path) -> Array:
    """(T, K) Wh at 15 minutes from a parquet file with `time, meter_id, imported_wh`; gaps get the series' mean."""
    table = pq.read_table(path, columns=["time", "meter_id", "imported_wh"])
    time = pc.cast(table["time"], pa.timestamp("s", tz="UTC")).to_numpy().astype("datetime64[s]")
    step = (time - time.min()) // np.timedelta64(900, "s")
    meter = table["meter_id"].combine_chunks().dictionary_encode()
    wide = np.full((int(step.max()) + 1, len(meter.dictionary)), np.nan)
    wide[step, meter.indices.to_numpy()] = table["imported_wh"].to_numpy()
    return np.where(np.isnan(wide), np.nanmean(wide, axis=0), wide)


@click.command(
    epilog="""\b
Copy and run:
  gridloom loss simulate --out sim0 --seed 0
  gridloom loss simulate --out sim1 --seed 1 --difficulty easy --size 0.2 --areas 4 --customers 80
  gridloom loss simulate --out honest --seed 7 --faulty-share 0
  gridloom loss simulate --out checked --check-meters --voltages
  gridloom loss simulate --out mine --network my-network --profiles my-profiles.parquet
"""
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write.")
@click.option(
    "--network", default="builtin", show_default=True, help="Folder with nodes, lines and transformers, or builtin."
)
@click.option(
    "--profiles",
    "profiles_path",
    type=click.Path(path_type=Path, exists=True),
    help="Parquet: time, meter_id, imported_wh at 15 minutes.",
)
@click.option("--areas", type=click.IntRange(1), default=3, show_default=True, help="Areas of the builtin network.")
@click.option(
    "--customers", type=click.IntRange(2), default=60, show_default=True, help="Customers of each builtin area."
)
@click.option("--days", type=click.IntRange(1, 731), default=90, show_default=True)
@click.option(
    "--difficulty",
    type=click.Choice(["easy", "hard"]),
    default="hard",
    show_default=True,
    help="hard: honest changes of load, and PV.",
)
@click.option(
    "--size",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share not recorded; drawn from 0.05, 0.2, 0.5 if not given.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(faults.KINDS),
    multiple=True,
    help="Only these faults (repeat); all if not given.",
)
@click.option(
    "--faulty-share", type=click.FloatRange(0, 1), default=FAULTY_SHARE, show_default=True, help="0: honest areas."
)
@click.option("--gains/--no-gains", default=True, show_default=True, help="Gain errors of meters.")
@click.option(
    "--phase-imbalance/--balanced",
    default=False,
    show_default=True,
    help="Three-phase customers load their phases unequally, which no record shows.",
)
@click.option("--check-meters", is_flag=True, help="A check meter on each first branch below the head.")
@click.option("--voltages", is_flag=True, help="Voltages of all meters, under a network above that moves.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--start",
    type=click.DateTime(["%Y-%m-%d"]),
    default="2026-03-02",
    show_default=True,
    help="First day, UTC; hours of faults are UTC, too.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def simulate(
    out: Path, network: str, profiles_path: Path | None, areas: int, customers: int, days: int, difficulty: str,
    size: float | None, kinds: tuple[str, ...], faulty_share: float, gains: bool, phase_imbalance: bool,
    check_meters: bool, voltages: bool, seed: int, start: Any, as_json: bool,
) -> None:  # fmt: skip
    """Make a network with measurements, faults and their truth.

    OUT gets the files of a network folder, truth.csv (faulty meters) and truth_areas.csv (losses). The losses come
    from power-grid-model.
    """
    first = np.datetime64(start.date(), "D")
    made = generate(
        seed=seed, areas=areas, customers=customers, days=days, difficulty=difficulty, size=size,
        kinds=kinds or faults.KINDS,
        faulty_share=faulty_share, start=first,
        networks=None if network == "builtin" else radial.read_networks(Path(network)),
        given=read_profiles(profiles_path) if profiles_path else None,
        phase_imbalance=phase_imbalance, check_meters=check_meters, voltages=voltages,
    )  # fmt: skip
    records.write(made, out, seed=seed, start=first, gains=gains)
    summary = {
        "out": str(out),
        "areas": len(made),
        "customers": sum(len(a.phase) for a in made),
        "faulty": sum(len(a.faults) for a in made),
        "technical_percent": round(
            100 * sum(float(a.technical_wh.sum()) for a in made) / sum(float(a.supplied_wh.sum()) for a in made), 2
        ),
        "technical_by": "power-grid-model",
    }
    click.echo(json.dumps(summary) if as_json else "\n".join(f"{k:18} {v}" for k, v in summary.items()))
