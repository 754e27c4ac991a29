"""What long holidays do to load: taken out of the history for the members, and put back into their forecasts.

A holiday looks like a Sunday until it has been seen; a weekend day that is worked (调休) like a working day.  What an
occurrence differed from that, in shares of the usual day's level, is kept by holiday and day, with the days before and
after a long one, as far as it stands out from ordinary days; series are pulled to what they have in common, and the
next occurrence is expected to be as the earlier ones were, whatever its date.  Within a festival the days
before it tell how this one differs.  A day's effect needs no load of that day, so that lags are clean and honest.
Whatever does not stand out from how ordinary days scatter is taken for chance.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.forecast.blocks import HOLIDAY, MADE_UP, Blocks, fill
from cloud.engines.forecast.inputs import Array

WEEK: Final = 7
_LONG: Final = 5  # days off from which a holiday is felt before and after
_BEFORE, _AFTER = 12, 16  # days, of a long one
_WEEKS: Final = 3  # whose same weekdays make a usual day
_SETTLED: Final = 21  # days after an occurrence by which it is measured
_FADE: Final = 0.7  # of what an occurrence counts, per later one
_POSITIVE: Final = 0.1  # of the mean, above which a load is never near zero
_FLOOR: Final = 0.05
_DOUBT: Final = 2.0  # times the ordinary variance that an effect must exceed to be believed
_ANY: Final = (-1, 0)  # day off of whatever long holiday
_CLASS: Final = 2.0  # days off that stand for "like a Sunday" against what holidays of that length were like
_FOLLOW_KNOWN: Final = 0.5  # share of a festival day's surprise that the next one is expected to have
_FOLLOW_NEW: Final = 0.85  # the same where none was seen before


@dataclass(frozen=True, slots=True)
class Festivals:
    """Each of D days: which occurrence it belongs to (-1 none), of which holiday, how far from its first day."""

    occurrence: NDArray[np.int64]
    holiday: NDArray[np.int64]
    day: NDArray[np.int64]
    off: NDArray[np.bool_]
    worked: NDArray[np.bool_]  # a weekend day that is worked

    def until(self, day: int) -> "Festivals":
        return Festivals(self.occurrence[:day], self.holiday[:day], self.day[:day], self.off[:day], self.worked[:day])


def festivals(kind: NDArray[np.int64], holiday: NDArray[np.int64], holiday_day: NDArray[np.int64]) -> Festivals:
    """From what the calendar says of D days, each (D,)."""
    count = len(kind)
    nothing = [np.full(count, -1) for _ in range(3)]
    found = Festivals(nothing[0], nothing[1], nothing[2], kind == HOLIDAY, kind == MADE_UP)
    off = np.flatnonzero(found.off)
    begins = np.r_[True, (np.diff(off) > 1) | (np.diff(holiday[off]) != 0)] if len(off) else np.zeros(0, bool)
    starts = np.flatnonzero(begins)
    runs = [off[a:b] for a, b in zip(starts, [*starts[1:], len(off)], strict=True)] if len(off) else []
    runs = [run for run in runs if len(run) >= _LONG]
    near = np.full(count, _BEFORE + _AFTER)
    for number, run in enumerate(runs):
        first, last = run[0], run[-1]
        days = np.arange(max(0, first - _BEFORE), min(count, last + _AFTER + 1))
        gap = np.maximum(first - days, 0) + np.maximum(days - last, 0)
        mine = days[(gap < near[days]) & (~found.off[days] | (gap == 0))]
        near[mine] = np.maximum(first - mine, 0) + np.maximum(mine - last, 0)
        found.occurrence[mine] = number
        found.holiday[mine] = holiday[first]
        # The day the holiday is named for is its first, whatever is off before it: what is off before is not like it.
        named = run[holiday_day[run] == 1]
        proper = int(named[-1]) if len(named) else int(first - holiday_day[first] + 1)
        found.day[mine] = mine - proper
    return found


@dataclass(frozen=True, slots=True)
class Plain:
    """``blocks`` as if there were no festivals, and what forecasts of them are to be multiplied by and then added,
    each (K, B, S, N) or broadcast to it.  ``felt``: (B, N) where a festival is felt; elsewhere nothing is to be done.
    """

    blocks: Blocks
    times: Array
    plus: Array
    felt: NDArray[np.bool_]


def without(blocks: Blocks, first: int, last: int) -> Plain | None:
    """None where no block that origins `first` … `last` forecast is near a festival."""
    count = len(blocks.load)
    kind = blocks.dates[0, :count]
    told = festivals(*blocks.dates).until(count)
    near = np.repeat((told.occurrence >= 0).astype(float)[:, None, None], blocks.steps_per_day, axis=2)
    felt: NDArray[np.bool_] = np.asarray(_blocks(near, blocks.late, edge=True)[:, 0] > 0)
    if not felt[first : last + blocks.ahead].any():
        return None
    load = _days(blocks.load, blocks.late)
    # Shares of what is never near zero; of net load, differences in shares of the level.
    mean = np.abs(blocks.filled[:first]).mean(axis=(0, 2))
    shares: NDArray[np.bool_] = (
        np.asarray(np.quantile(blocks.filled[:first], 0.02, axis=(0, 2)) > _POSITIVE * mean)[:, None]
        & (mean > 0)[:, None]
    )
    floor = _FLOOR * np.where(mean > 0, mean, 1)[:, None]
    load = np.where(shares, np.log(np.maximum(load, floor)), load)
    plain = np.array([_most(kind[phase::WEEK]) for phase in range(min(WEEK, len(kind)))])[np.arange(len(kind)) % WEEK]
    effects = _Effects(load, told, plain, blocks.ahead + (blocks.late > 0), shares[:, 0])
    effects.run()
    took = _blocks(effects.took, blocks.late)
    clean = np.where(shares, blocks.load * np.exp(np.where(shares, -took, 0.0)), blocks.load - took)
    ordinary = np.repeat(np.where(told.occurrence < 0, kind, plain)[:, None, None], blocks.steps_per_day, axis=2)
    plainly = replace(
        blocks, load=clean, filled=fill(clean), kind=_blocks(ordinary, blocks.late, edge=True)[:, 0].astype(np.int64)
    )
    beyond = int(blocks.late > 0)
    puts = np.stack([_blocks(effects.ahead(lead + beyond), blocks.late) for lead in range(blocks.ahead)])
    return Plain(plainly, np.exp(np.where(shares, puts, 0.0)), np.where(shares, 0.0, puts), felt)


def _days(values: NDArray[np.generic], late: int) -> Array:
    """(B, R, N) blocks that begin `late` steps after midnight -> (B, R, N) calendar days; what is beyond is NaN."""
    count, rows, steps = values.shape
    if not late:
        return values.astype(float)
    flat = values.swapaxes(0, 1).reshape(rows, -1)[:, steps - late :]
    flat = np.concatenate([flat, np.full((rows, steps - late), np.nan)], axis=1)
    return np.ascontiguousarray(flat.reshape(rows, count, steps).swapaxes(0, 1))


def _blocks(values: Array, late: int, *, edge: bool = False) -> Array:
    """The way back; before the first day is NaN, or what that has."""
    if not late:
        return values
    count, rows, steps = values.shape
    flat = values.swapaxes(0, 1).reshape(rows, -1)
    before = np.repeat(flat[:, :1], steps - late, axis=1) if edge else np.full((rows, steps - late), np.nan)
    flat = np.concatenate([before, flat], axis=1)[:, : count * steps]
    return np.ascontiguousarray(flat.reshape(rows, count, steps).swapaxes(0, 1))


def _most(kinds: NDArray[np.int64]) -> int:
    """The kind most of the same weekdays are."""
    return int(np.bincount(kinds[kinds < HOLIDAY], minlength=1).argmax()) if (kinds < HOLIDAY).any() else 0


class _Effects:
    """Day by day from the first: what each day's holiday does to it by what was known before, and the load without."""

    def __init__(
        self, load: Array, told: Festivals, plain: NDArray[np.int64], reach: int, shares: NDArray[np.bool_]
    ) -> None:
        self._load, self._told, self._plain = load, told, plain
        self._known = np.isfinite(load)
        self._back = WEEK * -(-reach // WEEK)  # days to the latest same weekday that any lead knows
        self.took = np.zeros(load.shape)
        self._shares = shares
        self._filled = fill(load)
        shape = load.shape
        self._expected = np.zeros(shape)
        self._surprise = np.zeros(shape)
        self._follow = np.zeros(len(load))
        self._seen = np.zeros(len(load), bool)
        self._level = np.ones(shape[:2])
        self._memory: dict[tuple[int, int], list[tuple[Array, Array]]] = {}
        self._measured: set[int] = set()
        self._reach = reach

    def run(self) -> None:
        whole: NDArray[np.bool_] = np.asarray(self._known.all(axis=(1, 2)))
        entered = -1
        for day in range(len(self._load)):
            occurrence = self._told.occurrence[day]
            if occurrence >= 0 and day >= self._back:
                if occurrence != entered:
                    entered = occurrence
                    self._measure(day)
                    self._noise(day)
                self._expect(day)
            if (occurrence >= 0 or not whole[day]) and day:
                self._filled[day] = np.where(self._known[day], self._load[day] - self.took[day], self._filled[day - 1])

    def ahead(self, lead: int) -> Array:
        """(D, S, N) expected of each day `lead` + 1 days before it ends."""
        behind = np.maximum(np.arange(len(self._load)) - lead - 1, 0)
        follow = np.where(self._follows(behind, np.arange(len(behind))), self._follow ** (lead + 1), 0.0)[:, None, None]
        found: Array = self._expected + follow * self._surprise[behind] * self._level[..., None]
        return found

    def _key(self, day: int) -> tuple[int, int]:
        return int(self._told.holiday[day]), int(self._told.day[day])

    def _size(self, usual: Array) -> Array:
        """(S,) of what effects are shares."""
        found: Array = np.where(self._shares, 1.0, np.abs(usual).mean(axis=1))
        return found

    def _expect(self, day: int) -> None:
        usual = np.mean([self._filled[max(day - self._back - WEEK * i, 0)] for i in range(_WEEKS)], axis=0)
        level = self._size(usual)
        rest = np.zeros_like(usual)
        if self._told.off[day] or self._told.worked[day]:
            lately = np.arange(day)[max(0, day - self._back - 28) : day - self._reach + 1]
            rest = (self._alike(day, lately) - usual) / np.where(level > 0, level, 1)[:, None]
            rest = self._shrunk(rest, 2 / _WEEKS) * level[:, None]
        believed, follow = self._believed(day)
        seen = follow is not None
        self._level[day] = level
        self._seen[day] = seen
        self._expected[day] = rest + believed * level[:, None]
        self._follow[day] = _FOLLOW_NEW if follow is None else follow
        follows = bool(self._follows(np.array(max(day - 1, 0)), np.array(day)))
        effect = self._expected[day]
        if follows:
            effect = effect + self._follow[day] * self._surprise[day - 1] * level[:, None]
        self.took[day] = effect
        missed = (self._load[day] - usual - self._expected[day]) / np.where(level > 0, level, 1)[:, None]
        carried = self._surprise[day - 1] if follows else np.zeros_like(missed)
        now = np.clip(np.where(self._known[day], missed, carried), -2, 2)
        self._surprise[day] = np.where(self._known[day], self._shrunk(now, _DOUBT), now)

    def _shrunk(self, effect: Array, doubt: float) -> Array:
        """(S, N) as far as it exceeds what ordinary days are away from the usual: of all series, and of each."""
        common = effect.mean(axis=0)
        own = effect - common
        trust = _trust(doubt * self._pooled, np.mean(common**2))
        trust_own = _trust(doubt * self._own, (own**2).mean(axis=1))
        return np.asarray(trust * common + trust_own[:, None] * own)

    def _alike(self, day: int, among: NDArray[np.int64]) -> Array:
        """(S, N) the ordinary days that a day is like, the latest of `among`."""
        if self._told.off[day]:
            like = among[self._plain[among] == 6] if (self._plain == 6).any() else among[self._plain[among] >= 5]
        elif self._told.worked[day]:
            like = among[self._plain[among] < 5]
        else:
            like = among[among % WEEK == day % WEEK]
        found: Array = self._filled[like[-_WEEKS:] if len(like) else among[-1:]].mean(axis=0)
        return found

    def _follows(self, before: NDArray[np.int64], day: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a day goes on as an earlier one did: within a festival, or as before it where it was never seen."""
        told = self._told
        same = told.occurrence[before] == told.occurrence[day]
        found: NDArray[np.bool_] = same & ((told.off[before] == told.off[day]) | ~self._seen[day])
        return found

    def _measure(self, today: int) -> None:
        """Keep what the occurrences were that are over and settled."""
        for occurrence in np.unique(self._told.occurrence[:today]):
            days = np.flatnonzero(self._told.occurrence == occurrence)
            first, last = int(days[0]), int(days[-1])
            if occurrence < 0 or occurrence in self._measured or first < 28:
                continue
            if last + _SETTLED > today - self._reach:
                continue
            self._measured.add(int(occurrence))
            before, after = np.arange(first - 28, first), np.arange(last + 1, last + 1 + _SETTLED)
            for day in map(int, days):
                share = (day - first + 1) / (last - first + 2)
                usual = [self._filled[side[side % WEEK == day % WEEK][s]].mean(axis=0)
                         for side, s in ((before, slice(-_WEEKS, None)), (after, slice(_WEEKS)))]  # fmt: skip
                alike = self._alike(day, before), self._alike(day, after)
                level = self._size((1 - share) * usual[0] + share * usual[1])
                was = self._load[day] - (1 - share) * alike[0] - share * alike[1]
                known = self._known[day] & (level > 0)[:, None]
                effect = np.where(known, np.clip(was / np.where(level > 0, level, 1)[:, None], -2, 2), 0.0)
                key = self._key(day)
                self._memory.setdefault(key, []).append((effect, known.astype(float)))
                if self._told.off[day]:
                    self._memory.setdefault(_ANY, []).append((effect, known.astype(float)))

    def _noise(self, today: int) -> None:
        """How far ordinary days are from the usual, in squared shares of the level: of each series, and of all."""
        days = np.flatnonzero(self._told.occurrence[:today] < 0)
        days = days[days >= self._back + WEEK * _WEEKS][-120::3]
        if not len(days):
            self._own, self._pooled = np.full(self._load.shape[1], np.inf), np.inf
            return
        usual = np.mean([self._filled[days - WEEK * (i + 1)] for i in range(_WEEKS)], axis=0)
        level = np.where(self._shares[:, None], 1.0, np.abs(usual).mean(axis=2, keepdims=True))
        away = np.clip((self._filled[days] - usual) / np.where(level > 0, level, 1), -2, 2)
        self._own = (away**2).mean(axis=(0, 2))
        self._pooled = float((away.mean(axis=1) ** 2).mean())

    def _believed(self, day: int) -> tuple[Array, float | None]:
        """(S, N) the difference expected from what the day is like, and how far it follows the day before.

        None where the holiday was not seen before.
        """
        told = self._told
        prior = np.zeros(self._load.shape[1:])
        if told.off[day] and (others := self._memory.get(_ANY)):
            mean, count = _mean(others[-60:], 1.0)
            prior = mean * (count / (count + _CLASS))[:, None]
        seen = self._memory.get(self._key(day))
        if not seen:
            return prior, None
        mean, count = _mean(seen, _FADE)
        differs = np.where(count[:, None] > 0, mean - prior, 0.0)
        common = differs.mean(axis=0)
        own = differs - common
        doubt = 1.0 if told.off[day] or told.worked[day] else _DOUBT
        often = np.maximum(count, 1e-9)
        trust = _trust(doubt * self._pooled / often.mean(), np.mean(common**2))
        trust_own = _trust(doubt * self._own / often, (own**2).mean(axis=1))
        return prior + trust * common + trust_own[:, None] * own, _FOLLOW_KNOWN * (
            1.0 if told.off[day] else float(trust)
        )


def _mean(kept: list[tuple[Array, Array]], fade: float) -> tuple[Array, Array]:
    """Mean (S, N) of effects with their weights, later ones counting more, and how many (S,) that stands for."""
    weights = [fade ** (len(kept) - 1 - at) * known for at, (_, known) in enumerate(kept)]
    total = np.sum(weights, axis=0)
    mean = np.sum([weight * effect for weight, (effect, _) in zip(weights, kept, strict=True)], axis=0)
    return mean / np.maximum(total, 1e-12), total.mean(axis=1)


def _trust(noise: Array | float, energy: Array | float) -> Array:
    """How much of an effect to believe, by how far its energy exceeds that of ordinary days."""
    return np.asarray(np.maximum(0.0, 1 - np.asarray(noise) / np.maximum(energy, 1e-12)))
