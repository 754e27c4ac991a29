"""What a customer's own record says of a fault: it must have dropped by what the balance misses, when it began."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.loss.templates import FITTED_KINDS, NIGHT, NUMBER, PEAK, Candidates, inside

Array = NDArray[np.float64]
Index = NDArray[np.int64]

CHANGED_SHARE: Final = 0.15  # honest customers whose load changes for good
NO_PAST_LOG_ODDS: Final = -5.0  # a fault from before the record cannot be told from a network known badly
_GROUPS: Final = {"night": 1, "peak": 2, "subtract": 3}  # whose hours count, or the base load


class OwnRecord:
    """How each candidate's record changes at each start, in the kind's hours, and the variance of that.

    x: (T, M) net Wh of whole days; starts: (S,) days.
    """

    def __init__(self, x: Array, starts: Index, per_day: int, candidates: Candidates) -> None:
        count = x.shape[1]
        days = len(x) // per_day
        self.starts, self.days = starts, days
        step = np.arange(len(x))
        hours = np.stack([np.ones(len(x)), inside(step, NIGHT, per_day), inside(step, PEAK, per_day)])
        by_day = x.reshape(days, per_day, count)
        daily = np.einsum("hdt,dtm->hdm", hours.reshape(3, days, per_day), by_day)  # (3, D, M)
        # A constant that is taken off shows in the base load, which moves less from day to day than the mean.
        base = np.quantile(by_day, 0.2, axis=1) * per_day
        daily = np.concatenate([daily, base[None]])
        sums = np.concatenate([np.zeros((4, 1, count)), daily.cumsum(1)], axis=1)
        n_before = starts[None, :, None]
        n_after = days - n_before
        before = sums[:, starts] / np.maximum(n_before, 1)
        after = (sums[:, -1:] - sums[:, starts]) / n_after
        weeks = days // 7
        weekly = daily[:, : weeks * 7].reshape(4, weeks, 7, -1).mean(2)
        sd = np.median(np.abs(np.diff(weekly, axis=1)), axis=1) / 0.6745 / np.sqrt(2)
        level = np.abs(daily.mean(1))
        sd = np.maximum(sd, 0.03 * level)[:, None]
        variance = sd**2 * (7 / np.maximum(n_before, 1) + 7 / n_after) + (0.07 * level[:, None]) ** 2
        group = np.array([_GROUPS.get(k, 0) for k in FITTED_KINDS])[candidates.kind]
        column = np.minimum(candidates.customer, count - 1)
        pick = (group[None, :], np.arange(len(starts))[:, None], column[None, :])
        self.change, self.variance = (after - before)[pick], variance[pick] + 25.0
        # A base load that is gone cannot have lost more than there was.
        self.most = np.where(group[None, :] == 3, np.maximum(before - after, 0)[pick] + np.sqrt(self.variance), np.inf)
        self.gone = (after < 0.02 * before)[pick]
        self.spread = (0.35 * level)[group, column] ** 2
        # The area's own record tells nothing of who is fed elsewhere; and without a past there is no drop.
        self.tells = (candidates.kind != NUMBER["wrong_area"])[None, :] & (starts[:, None] >= 7) & (n_after[0] >= 4)
        self.without = self._density(self.change)
        used = np.maximum(by_day, 0).sum(1)
        self.used = used
        self.used_variance = (np.median(np.abs(np.diff(used, axis=0)), axis=0) / 0.6745) ** 2 / 2 + (
            0.1 * used.mean(0)
        ) ** 2

    def _density(self, change: Array) -> Array:
        wide = self.variance + self.spread
        return np.asarray(
            np.logaddexp(
                np.log(1 - CHANGED_SHARE) - 0.5 * change**2 / self.variance - 0.5 * np.log(self.variance),
                np.log(CHANGED_SHARE) - 0.5 * change**2 / wide - 0.5 * np.log(wide),
            )
        )

    def odds(self, lost: Array) -> Array:
        """(S, K) log odds that the record brings when `lost` (S, K) Wh are put back after the start."""
        daily = lost / (self.days - self.starts)[:, None]
        daily = np.where(self.gone, np.minimum(daily, self.most), daily)
        no_past = np.where(self.starts < 14, NO_PAST_LOG_ODDS, 0.0)[:, None]
        return no_past + np.where(self.tells, self._density(self.change + daily) - self.without, 0.0)

    def odds_of_days(self, amplitude: Array, on: Array) -> Array:
        """(M,) log odds for an intermittent fault on days (D, M): the record must be lower on those days."""
        n_on, n_off = on.sum(0) + 1e-9, (1 - on).sum(0) + 1e-9
        mean_on, mean_off = (on * self.used).sum(0) / n_on, ((1 - on) * self.used).sum(0) / n_off
        variance = self.used_variance * (1 / np.maximum(n_on, 0.5) + 1 / np.maximum(n_off, 0.5))
        variance += (0.07 * self.used.mean(0)) ** 2 + 25.0
        change = mean_on - mean_off
        return np.asarray(0.5 * (change**2 - (change + amplitude * mean_on) ** 2) / variance)
