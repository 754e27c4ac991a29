"""Suspects told: kind, start, energy with its interval, and the evidence in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp, ndtr

from cloud.engines.loss.templates import FITTED_KINDS, NIGHT, NUMBER, PEAK, STILL_WH, inside
from cloud.engines.loss.weighing import SMALLEST, Active, Problem, Weighed

Array = NDArray[np.float64]
Index = NDArray[np.int64]

KINDS: Final = (*FITTED_KINDS, "phase_missing")
NAMED_LOG_ODDS: Final = 12.0
NAMED_DAYS: Final = 14  # of a fault on record before anybody is visited for it
TENDED: Final = 4.0  # odds between kinds and starts are this often too sure of themselves
LEVELS: Final = np.array([0.1, 0.5, 0.9])
# What a kind's energy is off by when the balance is exact, relative: records do not tell what was used (see bench).
KIND_SD: Final = {
    "scaled": 0.04, "night": 0.10, "peak": 0.10, "cap": 0.16, "subtract": 0.25, "stopped": 0.20,
    "intermittent": 0.25, "ct_ratio": 0.06, "wrong_area": 0.02,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Suspects:
    """Of an area's M customers. score: (M,) log odds of a fault; named: worth a visit; since_step: step of its start;
    stolen_wh: energy its book misses since then, negative where more is recorded than used, with its 80 % interval;
    of a wrong area: what its book has and another area supplies. evidence: in English and in Chinese.
    unrecorded_wh: of those that stand out, (T,) what each likely draws here beside its record; less than 0: does not.
    """

    score: Array
    kind: tuple[str, ...]
    since_step: Index
    stolen_wh: Array
    lo_wh: Array
    hi_wh: Array
    named: NDArray[np.bool_]
    evidence: tuple[str, ...]
    evidence_zh: tuple[str, ...] = ()
    unrecorded_wh: Mapping[int, Array] = field(default_factory=dict)


def tell(problem: Problem, score: Array, weighed: Weighed, active: Sequence[Active]) -> Suspects:
    """score: (M,) log odds; weighed: each candidate beside the others; active: who stands out."""
    count, c = problem.count, problem.candidates
    beyond = _beyond_columns(problem, weighed, active)
    # Steps that nobody could compute miss as much as those around them.
    scale = len(problem.usable) / max(int(problem.usable.sum()), 1)
    kinds, words = [], []
    since, answers = np.zeros(count, np.int64), np.zeros((count, 3))
    for who in range(count):
        mine = np.flatnonzero(c.customer == who)
        odds = weighed.log_odds[:, mine]
        start, which = np.unravel_index(int(np.argmax(odds)), odds.shape)
        name = FITTED_KINDS[c.kind[mine[which]]]
        energy = weighed.energy[:, mine]
        amplitude = weighed.amplitude[:, mine]
        lost, sd = amplitude * energy, weighed.amplitude_sd[:, mine] * np.abs(energy)
        kind_sd = np.array([KIND_SD[FITTED_KINDS[k]] for k in c.kind[mine]])
        share = np.exp(odds / TENDED - max(float(logsumexp(odds / TENDED)), -1e300))
        more = scale * float(beyond[who].sum()) if who in beyond else 0.0
        lost = lost + np.where(c.kind[mine] == c.kind[mine[which]], more, 0.0)
        lost = np.where(c.kind[mine] == NUMBER["wrong_area"], -lost, lost)
        # Whoever is at fault misses more than a meter's gain, to the kind's side.
        side = np.where(c.kind[mine] == NUMBER["wrong_area"], -1.0, 1.0) * c.sign[mine]
        least = SMALLEST * np.abs(energy)
        answers[who] = _mixture(
            share.ravel(), lost.ravel(), np.hypot(sd, kind_sd * lost).ravel(),
            np.broadcast_to(side, lost.shape).ravel(), least.ravel(),
        )  # fmt: skip
        day = int(problem.starts[start])
        name = _named_kind(problem, who, name, day)
        kinds.append(name)
        since[who] = problem.first + day * problem.per_day
        words.append(_words(problem, who, name, day, float(score[who]), float(answers[who, 1])))
    # Without a fortnight of it, most of what looks like a fault passes by itself.
    named = (score >= NAMED_LOG_ODDS) & (since <= problem.first + (problem.days - NAMED_DAYS) * problem.per_day)
    english, chinese = zip(*words, strict=True) if words else ((), ())
    return Suspects(
        score, tuple(kinds), since, answers[:, 1], answers[:, 0], answers[:, 2], named,
        tuple(english), tuple(chinese), _unrecorded(problem, score, active, beyond),
    )  # fmt: skip


def _unrecorded(
    problem: Problem, score: Array, active: Sequence[Active], beyond: Mapping[int, Array]
) -> dict[int, Array]:
    """By customer, over all steps of the record, as likely as it is."""
    answer = {}
    for one in active:
        who = int(problem.candidates.customer[one.candidate])
        if who < problem.count:
            answer[who] = np.zeros(len(problem.area.supplied_wh))
            span = slice(problem.first, problem.first + len(one.column))
            taken = one.amplitude * one.column + beyond.get(who, 0.0)
            answer[who][span] = float(expit(score[who])) * taken
    return answer


def _mixture(share: Array, mean: Array, sd: Array, side: Array, least: Array) -> tuple[float, float, float]:
    """10 %, 50 % and 90 % of a mixture of normals, of each what is beyond `least` on its side, +1 or -1."""
    keep = share > 1e-4  # none where a meter never moved
    if not keep.any():
        return 0.0, 0.0, 0.0
    share, mean, sd, side, least = (values[keep] for values in (share, mean, np.maximum(sd, 1.0), side, least))
    share = share / share.sum()
    toward = side * mean
    beyond = np.maximum(ndtr((toward - least) / sd), 1e-300)
    low, high = (np.full(len(LEVELS), end) for end in (float((mean - 6 * sd).min()), float((mean + 6 * sd).max())))
    low, high = np.minimum(low, float((side * least).min())), np.maximum(high, float((side * least).max()))
    for _ in range(40):
        at = (low + high) / 2
        further = ndtr((toward - np.maximum(side * at[:, None], least)) / sd) / beyond
        below = (share * np.where(side > 0, 1 - further, further)).sum(axis=1)
        low, high = np.where(below < LEVELS, at, low), np.where(below < LEVELS, high, at)
    ends = (low + high) / 2
    return float(ends[0]), float(ends[1]), float(ends[2])


def _beyond_columns(problem: Problem, weighed: Weighed, active: Sequence[Active]) -> dict[int, Array]:
    """(T,) Wh that the balance misses in a suspect's hours beyond amplitude × column, by how badly columns fit."""
    variance = {int(problem.candidates.customer[a.candidate]): (a.misfit * a.amplitude * a.column) ** 2 for a in active}
    with np.errstate(divide="ignore"):
        whole = sum(variance.values(), np.zeros(len(problem.x))) + 1 / problem.usual
    return {who: weighed.left * one / whole for who, one in variance.items() if one.any()}


def _named_kind(problem: Problem, who: int, kind: str, day: int) -> str:
    """The kind in the field's words: what the registry says of the meter decides where records look the same."""
    if kind == "stopped":
        return _standstill(problem, who, day)
    if kind == "scaled":
        area = problem.area
        # Where every meter has three phases, that says nothing of this one.
        if area.three_phase is not None and area.three_phase[who] and not area.three_phase.all():
            return "phase_missing"
        if area.ct_ratio is not None and area.ct_ratio[who] > 1:
            return "ct_ratio"
    return kind


def _standstill(problem: Problem, customer: int, day: int) -> str:
    """Nights, evenings, whole days, or spells at random: what a standing register's hours are."""
    still = (np.abs(problem.x[day * problem.per_day :, customer]) < STILL_WH).reshape(-1, problem.per_day)
    step = np.arange(problem.per_day)
    for kind, hours in (("night", NIGHT), ("peak", PEAK)):
        now = inside(step, hours, problem.per_day)
        if still[:, now].mean() > 0.75 and still[:, ~now].mean() < 0.35:
            return kind
    full = still.mean(1)
    whole, none = full > 0.97, full < 0.2
    edges = np.abs(np.diff(whole.astype(int))).sum()
    return "intermittent" if (whole | none).mean() > 0.9 and edges > 8 else "stopped"


_WHAT: Final = {
    "scaled": ("the balance misses a constant share of this record", "台区缺失电量与该户曲线成固定比例"),
    "night": ("the balance misses energy in this customer's nights", "台区在该户夜间时段缺失电量"),
    "peak": ("the balance misses energy in this customer's evenings", "台区在该户晚高峰时段缺失电量"),
    "cap": ("the balance misses energy when this record is at its ceiling", "该户曲线到达上限时台区缺失电量"),
    "subtract": ("the balance misses a constant power while this record runs", "该户用电时台区缺失固定功率"),
    "stopped": (
        "the balance misses this customer's usual load while the register stands still",
        "该户表计停走期间台区缺失其惯常电量",
    ),
    "intermittent": (
        "the balance misses this customer's load on some days only",
        "台区仅在部分日期缺失该户电量",
    ),
    "ct_ratio": (
        "the balance is off by a constant share of this record: a wrong ratio",
        "台区偏差与该户曲线成固定比例：互感器变比可能有误",
    ),
    "phase_missing": (
        "the balance misses a constant share of this three-phase record: one phase may not be measured",
        "台区缺失电量与该三相表曲线成固定比例：可能有一相失压或失流",
    ),
    "wrong_area": (
        "the area does not feed what this record bills: it belongs to another area",
        "该户电量不由本台区供给：户变关系可能有误",
    ),
}  # fmt: skip


def _words(problem: Problem, customer: int, kind: str, day: int, score: float, stolen_wh: float) -> tuple[str, str]:
    x = problem.x[:, customer].reshape(problem.days, -1).sum(1)
    before, after = x[:day].mean() if day else np.nan, x[day:].mean()
    gap = problem.balance_by_day()
    rise = (gap[day:].mean() - gap[:day].mean() if day else gap.mean()) / 1000
    drop, drop_zh = "", ""
    if day >= 7:
        drop = f"; own record {before / 1000:.1f} -> {after / 1000:.1f} kWh a day"
        drop_zh = f"；该户日电量 {before / 1000:.1f} -> {after / 1000:.1f} kWh"
    english, chinese = _WHAT[kind]
    return (
        f"{english}; area residual {rise:+.1f} kWh a day from then on, {stolen_wh / 1000:.0f} kWh of it explained"
        f"{drop}; log odds {score:.1f}",
        f"{chinese}；自该日起台区不明损失变化 {rise:+.1f} kWh/日，其中 {stolen_wh / 1000:.0f} kWh 可由该户解释"
        f"{drop_zh}；对数几率 {score:.1f}",
    )
