"""Which customers' records explain what an area loses beyond its technical loss, since when, and how.

The balance of an area at time t, with customers i:

    supplied - sum x_i - technical = sum g_i x_i + clocks + offset + noise + sum of faults a_i u_ik(t) [t >= start_i]

Gains g_i and clock offsets are small Gaussian unknowns with the spread that meters have; a fault of kind k is a
template u_ik made of the customer's own record (its energy, its nights, the hours in which it stands still ...). Each
(customer, kind, start) is weighed by its Bayes factor against "no fault", in closed form. An honest change of load
changes x_i and leaves the balance alone, so that it explains nothing here; only then the customer's own drop at the
same start adds to its odds. Suspects are added one at a time (as in orthogonal matching pursuit), and each is weighed
again beside the others in the end, against everybody else who could explain the same energy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from cloud.engines.loss.telling import KINDS, Suspects, tell
from cloud.engines.loss.templates import NUMBER
from cloud.engines.loss.weighing import Active, AreaBalance, Problem, Weighed, activate, log_likelihood, weigh

__all__ = ["KINDS", "AreaBalance", "Suspects", "localise"]

Array = NDArray[np.float64]
Index = NDArray[np.int64]

RIVAL_SHARE: Final = 0.1  # of the best kind's log odds: the others are no rivals
RAISED: Final = 6.0  # log odds of a kind above the one it takes over from
SERIAL: Final = 4.0  # quarter hours that are as good as one, between kinds of a customer
FAULTY_SHARE: Final = 0.05  # before anything is seen
ADDED_LOG_ODDS: Final = 0.0  # from even odds on, a customer stands beside the others while they are weighed
CHOSEN_SHARE: Final = 0.03  # of a suspect's own log odds remain where another, left out, would do as well
STRANGERS_MAX: Final = 4  # of an area, tried as fed from each other area
SUSPECTS_MAX: Final = 12  # of an area in one run
SUSPECTS_SHARE: Final = 0.15  # of its customers


def localise(areas: Sequence[AreaBalance]) -> list[Suspects]:
    """Suspects of each area; all share the same T steps.

    Areas are taken together since a customer booked in the wrong one unsettles two balances: who looks fed from
    elsewhere in their own area is tried as fed from each of the others before anybody there is suspected.
    Raises ValueError on less than 14 whole days, or where shapes differ.
    """
    for number, area in enumerate(areas):
        if area.customer_wh.ndim != 2 or area.supplied_wh.shape != area.customer_wh.shape[:1]:
            raise ValueError(
                f"area {number}: supplied {area.supplied_wh.shape} and customers {area.customer_wh.shape}: "
                "(T,) and (T, M) of one T expected"
            )
    answers: list[Suspects] = []
    strangers: list[Index] = []
    for area in areas:
        problem = Problem(area, np.zeros((len(area.supplied_wh), 0)))
        found = _search(problem)
        strangers.append(_strangers(problem, found) if len(areas) > 1 else np.zeros(0, np.int64))
        answers.append(_told(problem, found))
    for here, area in enumerate(areas):
        foreign = [(other, c) for other, some in enumerate(strangers) if other != here for c in some]
        if foreign:
            problem = Problem(area, np.column_stack([areas[other].customer_wh[:, c] for other, c in foreign]))
            answers[here] = _told(problem, _search(problem))
    return answers


@dataclass(slots=True)
class _Found:
    odds: Array  # (M + F,)
    weighed: Weighed  # each candidate beside the others' best
    active: list[Active]


def _customer_odds(problem: Problem, log_odds: Array) -> Array:
    """(M + F,) log odds of each customer over its kinds and starts."""
    odds = np.full(problem.count + problem.foreign, -np.inf)
    np.logaddexp.at(odds, problem.candidates.customer, logsumexp(log_odds, axis=0))
    return np.asarray(odds + np.log(FAULTY_SHARE / (1 - FAULTY_SHARE)))


def _against_others(odds: Array, others: NDArray[np.bool_]) -> Array:
    """(N,) log odds that it is this one, when any of `others`, or nobody, may be behind the same energy."""
    each = np.exp(np.where(others, odds, -np.inf) - max(float(odds.max()), 0.0))
    rest = np.maximum(each.sum() - each, 0)
    with np.errstate(divide="ignore"):
        rest = np.log(rest) + max(float(odds.max()), 0.0)
    return np.asarray(odds - np.logaddexp(0, rest))


def _misfit(problem: Problem, active: Sequence[Active]) -> Array:
    """(T,) Wh²: by how much what suspects take may be off around their columns."""
    return sum(((a.misfit * a.amplitude * a.column) ** 2 for a in active), np.zeros(len(problem.x)))


def _best(problem: Problem, weighed: Weighed, who: int) -> Active:
    mine = np.flatnonzero(problem.candidates.customer == who)
    odds = weighed.log_odds[:, mine]
    start, which = np.unravel_index(int(np.argmax(odds)), odds.shape)
    return activate(problem, weighed, int(start), int(mine[which]))


def _search(problem: Problem) -> _Found:
    c = problem.candidates
    active: list[Active] = []
    weighed = weigh(problem, active)
    most = min(SUSPECTS_MAX, max(3, round(SUSPECTS_SHARE * problem.count)))
    while len(active) < most:
        odds = _customer_odds(problem, weighed.log_odds)
        odds[[c.customer[a.candidate] for a in active]] = -np.inf
        if odds.max() < ADDED_LOG_ODDS:
            break
        active.append(_best(problem, weighed, int(odds.argmax())))
        if active[-1].misfit.any():
            problem.reweigh(_misfit(problem, active))
            active = [_renewed(problem, a) for a in active]
        weighed = weigh(problem, active)
    people = problem.count + problem.foreign
    inactive = np.ones(people, bool)
    inactive[[c.customer[a.candidate] for a in active]] = False
    final = _against_others(_customer_odds(problem, weighed.log_odds), inactive)
    # Each suspect again beside the others, as it would have been seen had it come last.
    for place in range(len(active)):
        one = active[place]
        who = int(c.customer[one.candidate])
        rest = [a for a in active if a is not one]
        if one.misfit.any():
            # That its own column may be off is no reason to doubt it.
            problem.reweigh(_misfit(problem, rest))
            without = weigh(problem, [_renewed(problem, a) for a in rest])
        else:
            without = weigh(problem, rest)
        others = inactive.copy()
        others[who] = True
        odds = _customer_odds(problem, without.log_odds)
        final[who] = max(_against_others(odds, others)[who], min(odds[who], 0.0) + CHOSEN_SHARE * max(odds[who], 0.0))
        mine = np.flatnonzero(c.customer == who)
        for name in ("log_odds", "amplitude", "amplitude_sd", "energy"):
            getattr(weighed, name)[:, mine] = getattr(without, name)[:, mine]
        _reconsider(problem, weighed, rest, who)
        active[place] = _best(problem, weighed, who)
        if one.misfit.any():
            problem.reweigh(_misfit(problem, active))
            active = [_renewed(problem, a) for a in active]
    return _Found(final, weighed, active)


def _reconsider(problem: Problem, weighed: Weighed, rest: Sequence[Active], who: int) -> None:
    """Raise the kind of `who` that explains the balance best when its column need not be exact (a ceiling's is not)."""
    c = problem.candidates
    mine = np.flatnonzero(c.customer == who)
    odds = weighed.log_odds[:, mine]
    peak = odds.max(0)
    alike = np.isin(c.kind[mine], [NUMBER[kind] for kind in ("scaled", "cap", "subtract")])
    rivals = np.flatnonzero((peak > max(RIVAL_SHARE * float(peak.max()), ADDED_LOG_ODDS)) & alike)
    if len(rivals) < 2 or not alike[peak.argmax()]:
        return
    found = []
    for which in rivals:
        start = int(odds[:, which].argmax())
        one = activate(problem, weighed, start, int(mine[which]))
        own = problem.own.odds(weighed.amplitude * weighed.energy)[start, mine[which]]
        found.append(log_likelihood(problem, [*rest, one]) / SERIAL + own + c.prior[mine[which]])
    best = rivals[int(np.argmax(found))]
    weighed.log_odds[:, mine[best]] += peak.max() - peak[best] + RAISED * (peak.max() > peak[best])


def _renewed(problem: Problem, one: Active) -> Active:
    """The same suspect with the cross products of new weights."""
    cross = problem.suffix(problem.products(one.column[:, None])[:, :, 0])
    return Active(one.candidate, one.start, one.column, one.mean, one.sd, cross, one.amplitude, one.misfit)


def _strangers(problem: Problem, found: _Found) -> Index:
    """Customers whose area seems not to feed them, the likeliest first."""
    wrong = (problem.candidates.kind == NUMBER["wrong_area"]) & (problem.candidates.customer < problem.count)
    odds = logsumexp(found.weighed.log_odds[:, wrong], axis=0)
    order = np.argsort(-odds)[:STRANGERS_MAX]
    return np.asarray(problem.candidates.customer[wrong][order[odds[order] > 0]])


def _told(problem: Problem, found: _Found) -> Suspects:
    return tell(problem, found.odds[: problem.count], found.weighed, found.active)
