"""The members of the ensemble: each forecasts all origins from `first` to `last`, by what was known at each.

A member takes Blocks and returns (E, K, S, N): origins first … last, blocks ahead, series, steps; the load's unit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast.blocks import Blocks
from cloud.engines.forecast.features import WEEK, calendar, lags, usual, weather, weeks
from cloud.engines.forecast.inputs import Array
from cloud.engines.forecast.recursive import Penalty, rolling_ridge
from cloud.engines.forecast.smoothing import smoothing
from cloud.engines.forecast.structure import structure
from cloud.engines.forecast.weather import seen as look

Member = Callable[[Blocks, int, int], Array]
Base = Literal["usual", "kernel", "change"]
_PENALTIES: Final = {"ridge": Penalty(60.0), "pooled": Penalty(100.0, 50.0)}
_BOUND: Final = 8.0  # medians
MANY: Final = 2_000_000  # series x steps of the day


def naive7(blocks: Blocks, first: int, last: int) -> Array:
    """The latest known block of the same weekday."""
    return _each(blocks, first, last, lambda target, lead: lagged(blocks, target, weeks(lead)))


def naive1(blocks: Blocks, first: int, last: int) -> Array:
    """The latest known block: what is left after a level has shifted."""
    return _each(blocks, first, last, lambda target, lead: lagged(blocks, target, lead + 1))


def mean4(blocks: Blocks, first: int, last: int) -> Array:
    """Mean of the latest four known blocks of the same weekday."""

    def mean(target: int, lead: int) -> Array:
        found: Array = np.mean([lagged(blocks, target, weeks(lead) + WEEK * i) for i in range(4)], axis=0)
        return found

    return _each(blocks, first, last, mean)


def ridge(blocks: Blocks, first: int, last: int) -> Array:
    """One ridge per series and step of the day on lags, calendar and weather, refit daily."""
    return _alone(blocks, first, last, "usual", _PENALTIES["ridge"])


def pooled(blocks: Blocks, first: int, last: int) -> Array:
    """The same, but pulled to what all series have in common."""
    return _alone(blocks, first, last, "usual", _PENALTIES["pooled"])


def kernel(blocks: Blocks, first: int, last: int) -> Array:
    """Non-linear in weather and calendar; what that missed lately is corrected by a ridge as above."""
    return _alone(blocks, first, last, "kernel", _PENALTIES["pooled"])


def change(blocks: Blocks, first: int, last: int) -> Array:
    """As kernel, but how load differs from the usual day by how weather and calendar do."""
    return _alone(blocks, first, last, "change", _PENALTIES["pooled"])


def _alone(blocks: Blocks, first: int, last: int, on: Base, penalty: Penalty) -> Array:
    found: Array = _regress(blocks, first, last, on, [penalty])[0]
    return found


def _regress(blocks: Blocks, first: int, last: int, on: Base, penalties: Sequence[Penalty]) -> Array:
    """(penalties, E, K, S, N) of regressions that see the same: what a base that needs no learning misses."""
    scale = np.mean(np.abs(blocks.filled[:first]), axis=(0, 2))
    scale = np.where(scale > 0, scale, 1.0)
    load, measured = _by_step(blocks.filled / scale[:, None]), _by_step(blocks.load / scale[:, None])
    found = np.empty((len(penalties), last + 1 - first, blocks.ahead, *load.shape[1:]))
    for lead in range(blocks.ahead):
        seen = look(blocks, lead, first)
        base = ordinary = usual(load, lead)
        if on != "usual":
            base = _by_step(structure(blocks, lead, first, scale, change=on == "change"))
        # An outage teaches nothing, nor what follows it; a constant series stays what it is.
        missed = measured - base
        bound = _bound(missed[:first])
        y = np.clip(missed, -bound, bound)
        less = load - (base if on == "usual" else np.nan_to_num(base))
        own = lags(np.clip(less, -bound, bound, out=less), lead)
        shared = calendar(blocks, lead)
        if on == "usual":
            shared += weather(seen, lead)
        else:
            own.append(np.clip(ordinary - np.nan_to_num(base), -bound, bound))
        count, series, steps = load.shape
        told = np.empty((steps, series, len(own) + 1, count), np.float32).swapaxes(0, 1)
        for at, column in enumerate([*own, y]):
            told[:, :, at] = column.transpose(1, 2, 0)
        common = np.stack([np.ones_like(shared[0]), *shared])[:, :, 0].transpose(2, 0, 1).astype(np.float32)
        said = rolling_ridge(told, common, first, last, lead, penalties)
        said = np.clip(said, -bound, bound) + base[first + lead : last + lead + 1]
        found[:, :, lead] = said * scale[:, None]
    return found


def _by_step(values: Array) -> NDArray[Any]:
    """(B, S, N) with a step's days beside each other in memory: the fastest order for rows of regressions."""
    return np.ascontiguousarray(values.transpose(1, 2, 0), np.float32).transpose(2, 0, 1)


def _bound(missed: NDArray[Any]) -> NDArray[Any]:
    """(S, 1) beyond which a difference (B, S, N) from the base is no ordinary day."""
    size = np.sort(np.abs(missed).transpose(1, 2, 0).reshape(missed.shape[1], -1), axis=1)  # NaN last
    known = np.isfinite(size).sum(axis=1)
    middle = size[np.arange(len(size)), np.maximum(known - 1, 0) // 2]
    return np.where(known > 0, _BOUND * middle, np.float32(_BOUND))[:, None]  # of nothing known: times the mean load


def lagged(blocks: Blocks, target: int, days: int) -> Array:
    """The load (S, N) so many days before a block; where there is none, that of the first day."""
    found: Array = blocks.filled[max(target - days, 0)]
    return found


def _each(blocks: Blocks, first: int, last: int, guess: Callable[[int, int], Array]) -> Array:
    ahead = range(blocks.ahead)
    return np.stack([np.stack([guess(origin + lead, lead) for lead in ahead]) for origin in range(first, last + 1)])


MEMBERS: Final[Mapping[str, Member]] = {
    "naive1": naive1,
    "naive7": naive7,
    "mean4": mean4,
    "smoothing": smoothing,
    "ridge": ridge,
    "pooled": pooled,
    "kernel": kernel,
    "change": change,
}
THRIFTY: Final = ("naive1", "mean4", "smoothing", "pooled")
DEFAULT: Final = ("naive1", "mean4", "smoothing", "ridge", "pooled", "kernel", "change")


def usual_members(regressions: int, weather: int) -> tuple[str, ...]:
    """What the default is for so many series x steps of the day and columns of weather: THRIFTY where they are very
    many, and without weather `kernel` has said what `change` could say."""
    if regressions > MANY:
        return THRIFTY
    return DEFAULT if weather else tuple(name for name in DEFAULT if name != "change")


def guess(blocks: Blocks, first: int, last: int, members: Mapping[str, Member]) -> Array:
    """(M, E, K, S, N) of these members; those that see the same columns share them."""
    found = np.empty((len(members), last + 1 - first, blocks.ahead, *blocks.load.shape[1:]))
    at = {member: place for place, member in enumerate(members.values())}
    if ridge in at and pooled in at:
        found[[at.pop(ridge), at.pop(pooled)]] = _regress(blocks, first, last, "usual", list(_PENALTIES.values()))
    for member, place in at.items():
        found[place] = member(blocks, first, last)
    return found
