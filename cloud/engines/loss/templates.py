"""What each kind of fault would take away, seen from the record that is left: one column for each customer and kind."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]

NIGHT, PEAK = (22, 6), (17, 21)  # hours, local
STILL_WH: Final = 5.0  # a register that did not move
REGISTER_WH: Final = 10.0  # its last digit
STILL_HOURS: Final = 2  # at least, for a standstill
STANDING_LOG_ODDS, STANDING_SHARE = 10.0, 0.2  # for standing through this share of what the past used
FEW_DIGITS: Final = 4
REGULAR_MISFIT: Final = 0.6  # of a standstill in the same hours of each day
CEILING_SHARE: Final = 0.012  # of quarter hours at their highest level, where nothing is cut off


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of fault: its amplitude is normal around `mean` with `sd`, on the side of `sign` (+1, -1) only.

    misfit: relative standard deviation of what is lost in one interval around amplitude × column: the record of a
    standing register does not tell what was used. temper: evidence counts for this much less.
    """

    kind: str
    share: float
    mean: float
    sd: float
    sign: int
    misfit: float = 0.0
    temper: float = 1.0


# Amplitudes are shares lost per recorded Wh, s / (1 - s); of a standstill, lost per expected Wh.
TEMPLATES: Final = (
    Template("scaled", 0.35, 0.0, 0.5, 1),
    Template("night", 0.10, 0.0, 1.0, 1),
    Template("peak", 0.10, 0.0, 1.0, 1),
    Template("cap", 0.10, 0.8, 0.5, 1, 1.0),
    Template("subtract", 0.10, 0.0, 0.5, 1, 0.4),
    Template("stopped", 0.10, 1.0, 0.4, 1, 2.5),
    Template("intermittent", 0.10, 0.0, 1.0, 1),
    Template("ct_ratio", 0.05, 0.0, 0.2, -1),
    Template("wrong_area", 0.05, -1.0, 0.03, -1),
)
FITTED_KINDS: Final = tuple(t.kind for t in TEMPLATES)
NUMBER: Final = {kind: i for i, kind in enumerate(FITTED_KINDS)}


def inside(step: Index, hours: tuple[int, int], steps_of_day: int) -> NDArray[np.bool_]:
    hour = (step % steps_of_day) * 24 // steps_of_day
    first, last = hours
    return (hour >= first) & (hour < last) if first < last else (hour >= first) | (hour < last)


@dataclass(frozen=True, slots=True)
class Candidates:
    """K candidates: each customer with each kind, then F customers of other areas. T steps.

    u: (T, C) columns; column, kind, customer: (K,) of each candidate; a customer of another area counts on from M.
    mean, sd, sign, prior (log), misfit, temper: (K,).
    """

    u: Array
    column: Index
    kind: Index
    customer: Index
    mean: Array
    sd: Array
    sign: Array
    prior: Array
    misfit: Array
    temper: Array
    still: NDArray[np.bool_]  # (T, M)

    def misfit_of(self, candidate: int, per_day: int) -> Array:
        """(T,) relative sd of what it takes in each step around amplitude × column."""
        whole = np.full(len(self.u), self.misfit[candidate])
        if self.kind[candidate] == NUMBER["stopped"]:
            # The same hours of all days are known on average; a spell of some days may be anything.
            daily = (self.u[:, self.column[candidate]] > 0).reshape(-1, per_day).sum(1)
            standing = daily[daily > 0]
            if len(standing) and standing.mean() < 0.5 * per_day and standing.std() < 0.35 * standing.mean():
                whole *= REGULAR_MISFIT / self.misfit[candidate]
        if self.kind[candidate] == NUMBER["subtract"]:
            # What is taken off is the same whenever something is left.
            whole *= np.where(self.still[:, self.customer[candidate]], 1.0, 0.1)
        return whole


def candidates(x: Array, foreign: Array, per_day: int, filled: NDArray[np.bool_]) -> Candidates:
    """x: (T, M) net Wh of whole days, `filled` where it was not measured; foreign: (T, F) Wh of customers of other
    areas, who may be fed from here.
    """
    steps, count = x.shape
    days = steps // per_day
    step = np.arange(steps)
    past = max(days // 3, 7)
    used = np.maximum(x, 0)
    # What was filled says nothing of ceilings, and stands still where the interval before it did.
    still = np.abs(x) < STILL_WH
    known = np.maximum.accumulate(np.where(filled, 0, step[:, None]), axis=0)
    still = np.take_along_axis(still, known, axis=0)
    late = np.where(filled, np.nan, used)[2 * days // 3 * per_day :]
    expected, mean = _expected(used, still, past, per_day)
    standing = _standing(still, max(STILL_HOURS * per_day // 24, 1))
    at_ceiling, cut, reached = _ceiling(used, late, past, per_day)
    shapes = {
        "scaled": used,
        "night": _steady(used, inside(step, NIGHT, per_day)),
        "peak": _steady(used, inside(step, PEAK, per_day)),
        "cap": at_ceiling * np.tile(np.maximum(cut, 0.05 * mean), (days, 1)),
        "subtract": np.where(still, 0.6, 1.0) * mean,
        "stopped": expected * standing,
    }
    order = list(shapes)
    feeding = np.flatnonzero((x < 0).any(0))
    own = np.arange(count)
    # Some kinds have the same column and differ in sign, in size, or in the days on which they are there.
    wrong = own.copy()
    wrong[feeding] = len(order) * count + np.arange(len(feeding))
    place = [
        order.index(t.kind) * count + own if t.kind in shapes else (wrong if t.kind == "wrong_area" else own)
        for t in TEMPLATES
    ]
    abroad = foreign.shape[1]
    first_foreign = len(order) * count + len(feeding)
    kind = np.concatenate([np.repeat(np.arange(len(TEMPLATES)), count), np.full(abroad, NUMBER["wrong_area"])])
    customer = np.concatenate([np.tile(own, len(TEMPLATES)), count + np.arange(abroad)])
    column = np.concatenate([*place, first_foreign + np.arange(abroad)])
    u = np.concatenate([*shapes.values(), x[:, feeding], foreign], axis=1)
    inward = customer >= count
    share = np.array([t.share for t in TEMPLATES])[kind]
    prior = np.log(np.where(inward, share / max(abroad, 1), share))
    flat = np.clip(6 * np.log(np.maximum(reached, 1e-3) / CEILING_SHARE), -12.0, 4.0)
    prior[kind == NUMBER["cap"]] += flat
    # Few honest registers stand still in hours in which they used to run; whether it is missed, the balance says.
    idle = shapes["stopped"][2 * days // 3 * per_day :].sum(0) / expected[2 * days // 3 * per_day :].sum(0).clip(1.0)
    prior[kind == NUMBER["stopped"]] += np.clip(STANDING_LOG_ODDS * idle / STANDING_SHARE, 0, STANDING_LOG_ODDS)
    prior[~(u != 0).any(0)[column]] = -np.inf
    return Candidates(
        u, column, kind, customer,
        np.where(inward, 1.0, np.array([t.mean for t in TEMPLATES])[kind]),
        np.array([t.sd for t in TEMPLATES])[kind],
        np.where(inward, 1.0, np.array([float(t.sign) for t in TEMPLATES])[kind]),
        prior,
        np.array([t.misfit for t in TEMPLATES])[kind],
        np.array([t.temper for t in TEMPLATES])[kind],
        still,
    )  # fmt: skip


def _smooth(values: Array) -> Array:
    """(T, M) weighed means over five steps, around the end to the beginning."""
    kernel = np.array([1, 2, 3, 2, 1]) / 9
    return sum((k * np.roll(values, i - 2, axis=0) for i, k in enumerate(kernel)), np.zeros_like(values))


def _steady(used: Array, hours: NDArray[np.bool_]) -> Array:
    """(T, M) of what is used in the hours; a few digits of a register, where nearly all is taken, as their mean."""
    there = hours.astype(float)[:, None]
    mean = _smooth(used * there) / np.maximum(_smooth(there), 1e-9)
    return np.asarray(np.where(used < FEW_DIGITS * REGISTER_WH, mean, used) * there)


def _standing(still: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """(T, M): in a run of `length` still steps or more."""
    view = np.lib.stride_tricks.sliding_window_view
    runs = view(np.pad(still, ((length - 1, length - 1), (0, 0))), length, axis=0).all(-1)
    return np.asarray(view(runs, length, axis=0).any(-1))


def _expected(used: Array, still: NDArray[np.bool_], past: int, per_day: int) -> tuple[Array, Array]:
    """What each customer uses at a time of day and week by the past, (T, M), and the past's mean, (M,) at least 1."""
    steps, count = used.shape
    days = steps // per_day
    by_slot = used[: past * per_day].reshape(past, per_day, count)
    slot = by_slot.mean(0)
    slot = _smooth(slot)
    # Hours that stand still on all days may have done so before the record began: as the area goes there.
    always = still[: past * per_day].reshape(past, per_day, count).mean(0) > 0.9
    shape = slot.sum(1, keepdims=True) / count
    level = np.where(always, 0, slot).sum(0) / np.maximum(np.where(always, 0, shape).sum(0), 1e-9)
    slot = np.where(always & ~always.all(0), level * shape, slot)
    mean = np.maximum(slot.mean(0), 1.0)
    # Weekdays of the past, drawn to their mean: four of each are few.
    by_day = by_slot.sum(1)
    weekday = np.stack([by_day[d::7].mean(0) for d in range(7)]) / np.maximum(by_day.mean(0), 1e-9)
    weekday = (weekday + 0.1) / 1.1
    return (weekday[np.arange(days) % 7][:, None, :] * slot).reshape(steps, count), mean


def _ceiling(used: Array, late: Array, past: int, per_day: int) -> tuple[NDArray[np.bool_], Array, Array]:
    """At the record's highest level (T, M); what the past had above it (steps of day, M); share of time there (M,)."""
    count = used.shape[1]
    late = np.where(np.isnan(late).all(0), 0.0, late)
    highest = np.nanquantile(late, 0.997, axis=0)
    # A level between two digits of the register is recorded now as the one, now as the other.
    lowest = 0.97 * highest - 1.2 * REGISTER_WH
    there = late >= lowest
    level = np.where(there, late, 0).sum(0) / np.maximum(there.sum(0), 1)
    over = np.maximum(used[: past * per_day] - level, 0).reshape(past, per_day, count)
    times, excess = (over > 0).sum(0).astype(float), over.sum(0)
    overall = excess.sum(0) / np.maximum(times.sum(0), 1)
    near = per_day // 12
    window = sum(
        (np.roll(np.stack([times, excess]), i, axis=1) for i in range(-near, near + 1)),
        np.zeros((2, per_day, count)),
    )
    cut = (window[1] + 3 * overall) / (window[0] + 3)
    # A ceiling that cuts is reached often; peaks of life thin out towards their highest.
    return used >= lowest, cut, (late >= 0.97 * highest - STILL_WH).sum(0) / np.maximum((~np.isnan(late)).sum(0), 1)
