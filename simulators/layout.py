"""Who lives where: a pure function of (seed, number of meters). One substation, two feeders, six transformer areas."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from simulators import profiles
from simulators.profiles import DATA, QUARTERS, Array

METERS_MIN, METERS_MAX = 30, 3_000
SOURCE_PU = 1.03  # what the substation holds on the 10 kV side
POWER_FACTOR = 0.95
# Mean over an area: with few meters the transformers run lighter, not the customers heavier.
CUSTOMER_PEAK_MAX_KW = 20.0
CT_FROM_KW = 40.0  # a customer this big is metered through 100/5 current transformers
STOLEN_SHARE = 0.03  # of the area's energy, at least
SCALED_SHARE = 0.4
BYPASS_FROM_H, BYPASS_TO_H = 22, 6
# A 0.4 kV cable has close to 0.08 Ω/km of reactance whatever its size: the source gives ohms only, this gives metres.
# A few lines have none; they are joints.
X_OHM_PER_KM, LENGTH_MIN_M = 0.08, 1.0


class Habit(StrEnum):
    """What sets a meter apart."""

    PLAIN = "plain"
    SCALED = "scaled"  # registers 0.4 of the energy
    BYPASS = "bypass"  # registers nothing from 22 to 06
    BROKEN = "broken"  # stops answering
    DRIFTING = "drifting"  # its clock loses time


@dataclass(frozen=True, slots=True)
class AreaPlan:
    area: str
    feeder: str
    name_en: str
    name_zh: str
    network: int
    busbar: int
    peak_share: float  # peak load over transformer rating; lower where the lines are long
    habit: Habit = Habit.PLAIN
    stressed: bool = False


FEEDERS = (("F1", "Westfield", "西郊线"), ("F2", "Harbour", "海港线"))
PLANS = (
    AreaPlan("A1", "F1", "Mill Lane", "磨坊里", 28, 104, 0.62, Habit.SCALED),
    AreaPlan("A2", "F1", "Orchard", "果园村", 28, 108, 0.72, Habit.DRIFTING),
    AreaPlan("A3", "F1", "Stone Bridge", "石桥", 28, 110, 0.62, Habit.BROKEN),
    AreaPlan("A4", "F2", "Market Street", "集市街", 27, 91, 0.72, Habit.BYPASS),
    AreaPlan("A5", "F2", "Riverside", "河滨苑", 28, 107, 0.70),
    AreaPlan("A6", "F2", "Lighthouse", "灯塔小区", 27, 93, 0.64, stressed=True),
)


@dataclass(frozen=True, slots=True)
class Line:
    from_node: str
    to_node: str
    r_ohm: float
    x_ohm: float

    @property
    def length_m(self) -> float:
        return max(self.x_ohm / X_OHM_PER_KM * 1000, LENGTH_MIN_M)


@dataclass(frozen=True, slots=True)
class Transformer:
    rated_kva: float
    no_load_loss_w: float
    load_loss_w: float
    impedance_percent: float
    no_load_current_percent: float


@dataclass(frozen=True, slots=True)
class Customer:
    """``nominal_kw`` multiplies the profile of ``category``; ``ev_kw`` is a charger alone on its meter."""

    point: str
    node: str
    category: str
    nominal_kw: float
    pv_kwp: float = 0.0
    ev_kw: float = 0.0
    ct_ratio: int = 1
    habit: Habit = Habit.PLAIN

    @property
    def controllable(self) -> bool:
        return self.ev_kw > 0


@dataclass(frozen=True, slots=True)
class Area:
    plan: AreaPlan
    source_node: str
    busbar_node: str
    nodes: tuple[str, ...]  # of the low-voltage side, busbar first
    lines: tuple[Line, ...]
    transformer: Transformer
    customers: tuple[Customer, ...]

    @property
    def head_point(self) -> str:
        return f"{self.plan.area}-HEAD"


@dataclass(frozen=True, slots=True)
class _Load:
    node: str
    kw: float
    category: str


def design(seed: int, meters: int) -> tuple[Area, ...]:
    """Raises ValueError for a number of meters the six networks cannot sensibly carry."""
    if not METERS_MIN <= meters <= METERS_MAX:
        raise ValueError(f"meters: {METERS_MIN} to {METERS_MAX} expected, got {meters}")
    rng = np.random.default_rng([seed, 1])
    loads = [list(_loads(plan)) for plan in PLANS]
    counts = _apportion(np.array([len(some) for some in loads], float), meters - len(PLANS), at_least=3)
    return tuple(_area(plan, some, int(n), rng) for plan, some, n in zip(PLANS, loads, counts, strict=True))


def _rows(name: str, plan: AreaPlan) -> Iterator[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["network"], row["busbar"]) == (str(plan.network), str(plan.busbar)):
                yield row


def _loads(plan: AreaPlan) -> Iterator[_Load]:
    names = _node_names(plan)
    for row in _rows("loads.csv", plan):
        yield _Load(names[row["bus"]], float(row["kw"]), row["category"])


def _node_names(plan: AreaPlan) -> dict[str, str]:
    """Bus of the source → our name; the busbar is ``A1-LV``, the others ``A1-N001`` onward, breadth first."""
    names = {str(plan.busbar): f"{plan.area}-LV"}
    for row in _rows("lines.csv", plan):
        names[row["to_bus"]] = f"{plan.area}-N{len(names):03d}"
    return names


def _apportion(weights: Array, total: int, at_least: int) -> Array:
    """Whole numbers that add up to ``total``, in proportion to ``weights`` (largest remainder)."""
    exact = weights / weights.sum() * (total - at_least * len(weights))
    whole = np.floor(exact)
    order = np.argsort(-(exact - whole), kind="stable")
    whole[order[: round(exact.sum() - whole.sum())]] += 1
    counts: Array = whole + at_least
    return counts


def _area(plan: AreaPlan, loads: list[_Load], count: int, rng: np.random.Generator) -> Area:
    names = _node_names(plan)
    (row,) = _rows("transformers.csv", plan)
    transformer = Transformer(
        float(row["rated_kva"]),
        float(row["no_load_loss_w"]),
        float(row["load_loss_w"]),
        float(row["impedance_percent"]),
        float(row["no_load_current_percent"]),
    )
    peak_kw = min(plan.peak_share * transformer.rated_kva * POWER_FACTOR, count * CUSTOMER_PEAK_MAX_KW)
    customers = _customers(plan, loads, count, peak_kw, rng)
    lines = tuple(
        Line(names[row["from_bus"]], names[row["to_bus"]], float(row["r_ohm"]), float(row["x_ohm"]))
        for row in _rows("lines.csv", plan)
    )
    return Area(plan, f"{plan.area}-HV", f"{plan.area}-LV", tuple(names.values()), lines, transformer, tuple(customers))


def _customers(
    plan: AreaPlan, loads: list[_Load], count: int, peak_kw: float, rng: np.random.Generator
) -> list[Customer]:
    chargers = max(2, min(count // 3, round(0.3 * peak_kw / 6))) if plan.stressed else 0
    shared = _share_loads(loads, count - chargers, rng)
    profile = profiles.load(plan.network)
    winter = slice(0, 10 * profiles.WEEK)
    shapes = {name: values[winter] for name, values in profile.active.items()}
    kw = np.array([load.kw for load in shared])
    total = sum(k * shapes[load.category] for k, load in zip(kw, shared, strict=True))
    ev_kw = rng.uniform(4, 8, chargers)
    kw *= (peak_kw - ev_kw.sum()) / np.percentile(total, 99.5)

    habits = [Habit.PLAIN] * len(shared)
    if plan.habit is not Habit.PLAIN:
        means_kw = np.array([k * shapes[load.category].mean() for k, load in zip(kw, shared, strict=True)])
        shares = np.array([stolen_share(plan.habit, shapes[load.category]) for load in shared])
        # A thief takes enough to be worth it, but not the whole street; a broken or drifting meter is anybody's.
        # Nobody steals from a constant load, which may stand still for days.
        stolen_kw = np.where([load.category[0] == "B" for load in shared], 0, means_kw * shares)
        wanted_kw = STOLEN_SHARE * means_kw.sum()
        if plan.habit in (Habit.SCALED, Habit.BYPASS):
            chosen = int(np.argmin(np.abs(np.log(stolen_kw.clip(1e-9) / wanted_kw))))
            kw[chosen] *= max(1.0, wanted_kw / stolen_kw[chosen])
        else:
            chosen = int(rng.integers(len(kw)))
        habits[chosen] = plan.habit
    customers = []
    for i, load in enumerate(shared):
        mean_kw = kw[i] * shapes[load.category].mean()
        # A roof that covers a winter day's use at noon: one customer in 16, honest ones only.
        pv_kwp = round(8 * mean_kw, 1) if rng.random() < 1 / 16 and habits[i] is Habit.PLAIN else 0.0
        peak = max(kw[i] * shapes[load.category].max() * 1.5, pv_kwp * profile.pv.max())
        customers.append(
            Customer("", load.node, load.category, float(kw[i]), pv_kwp, 0.0, 20 if peak > CT_FROM_KW else 1, habits[i])
        )
    homes = [load.node for load in shared if load.category[0] in "HL"] or [load.node for load in shared]
    customers += [Customer("", str(rng.choice(homes)), "EV", 0.0, ev_kw=float(power_kw)) for power_kw in ev_kw]
    width = max(2, len(str(count)))
    return [replace(c, point=f"{plan.area}-C{i:0{width}d}") for i, c in enumerate(customers, 1)]


def _share_loads(loads: list[_Load], count: int, rng: np.random.Generator) -> list[_Load]:
    """One load for each of ``count`` customers: some of the source's loads, or homes and farms split among several."""
    kw = np.array([load.kw for load in loads])
    if count <= len(loads):
        picked = rng.choice(len(loads), count, replace=False, p=kw / kw.sum())
        return [loads[i] for i in sorted(picked)]
    homes = np.array([load.category[0] in "HL" for load in loads])
    extra = _apportion(kw * homes, count - len(loads), at_least=0)
    shared = []
    for load, more in zip(loads, extra, strict=True):
        parts = rng.uniform(0.5, 1.5, int(more) + 1)
        shared += [replace(load, kw=load.kw * part) for part in parts / parts.sum()]
    return shared


def registered_share(habit: Habit) -> Array:
    """(96,) part of a customer's energy that its meter registers, by quarter of the local day."""
    share: Array = np.ones(QUARTERS)
    if habit is Habit.SCALED:
        share[:] = SCALED_SHARE
    elif habit is Habit.BYPASS:
        hour = np.arange(QUARTERS) / 4
        share[(hour >= BYPASS_FROM_H) | (hour < BYPASS_TO_H)] = 0
    return share


def stolen_share(habit: Habit, shape: Array) -> float:
    """Part of the energy of a whole number of days of ``shape`` that is not registered."""
    return 1 - float(np.average(registered_share(habit), weights=shape.reshape(-1, QUARTERS).sum(axis=0)))
