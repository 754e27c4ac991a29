"""Which customers' records explain what an area loses beyond its technical loss, since when, and how.

The balance of an area at time t, with customers i:

    supplied - sum x_i - technical = sum g_i x_i + clocks + offset + noise + sum of faults a_i u_ik(t) [t >= start_i]

Gains g_i and clock offsets are small Gaussian unknowns with the spread that meters have; a fault of kind k is a
template u_ik made of the customer's own record (its energy, its nights, the hours in which it stands still ...). Each
(customer, kind, start) is weighed by its Bayes factor against "no fault", in closed form, all at once from cross
products of days summed from the end. An honest change of load changes x_i and leaves the balance alone, so that it
explains nothing here; only then the customer's own drop at the same start adds to its odds. Suspects are added one at
a time, and each is weighed again beside the others in the end.

Method: Bayesian linear regression with marginal likelihoods (Bishop, Pattern Recognition and Machine Learning, 3.5);
greedy inclusion as in orthogonal matching pursuit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import log_ndtr, logsumexp

Array = NDArray[np.float64]
Index = NDArray[np.int64]

Z80: Final = 1.2815515655446004  # half-width of an 80 % interval
FAULTY_SHARE: Final = 0.05  # before anything is seen
CHANGED_SHARE: Final = 0.15  # honest customers whose load changes for good
NIGHT, PEAK = (22, 6), (17, 21)  # hours, local
CLOCK_S: Final = 60.0
NAMED_LOG_ODDS: Final = 10.0  # 1 of 21 honest areas of the simulator (90 days, seeds 1003-1009) reached it
SMALLEST: Final = 0.03  # less than this share is a meter's gain, not a fault
MODEL_GAIN_SD: Final = 0.008  # of a customer's share in the technical loss: phases and lengths known badly
ADDED_LOG_ODDS: Final = 0.0  # from even odds on, a customer stands beside the others while they are weighed
STRANGERS_MAX: Final = 4  # of an area, tried as fed from each other area
SUSPECTS_MAX: Final = 8  # of an area in one run
PRODUCTS_MAX: Final = 20_000_000  # cross products held at once: 160 MB
EDGE_DAYS: Final = 7  # a start nearer to the end, or to the beginning, cannot be told from noise
INTERMITTENT_DAYS: Final = 0.4
CHOICE: Final = 2.0  # days chosen freely fit what is wrong with the model, too: their evidence counts for less
PERSISTENT_SD: Final = 0.05  # of a template, wrong from the first day on without a fault
NO_PAST_LOG_ODDS: Final = -5.0  # a fault from before the record cannot be told from a network known badly
INTERMITTENT_AMPLITUDES: Final = np.array([0.14, 0.3, 0.6, 1.0, 2.0])


@dataclass(frozen=True, slots=True)
class Template:
    """A kind of fault: its amplitude is normal around `mean` with `sd`, on the side of `sign` (+1, -1) only."""

    kind: str
    share: float
    mean: float
    sd: float
    sign: int


# Amplitudes are shares lost per recorded Wh, s / (1 - s); of a standstill, lost per expected Wh.
TEMPLATES: Final = (
    Template("scaled", 0.35, 0.0, 0.5, 1),
    Template("night", 0.10, 0.0, 1.0, 1),
    Template("peak", 0.10, 0.0, 1.0, 1),
    Template("cap", 0.10, 0.8, 0.5, 1),
    Template("subtract", 0.10, 0.0, 0.5, 1),
    Template("stopped", 0.10, 1.0, 0.4, 1),
    Template("intermittent", 0.10, 0.0, 1.0, 1),
    Template("ct_ratio", 0.05, 0.0, 0.2, -1),
    Template("wrong_area", 0.05, -1.0, 0.03, -1),
)
KINDS: Final = tuple(t.kind for t in TEMPLATES)


@dataclass(frozen=True, slots=True)
class AreaBalance:
    """An area over T steps of whole local days and its M customers.

    supplied_wh: (T,) net Wh, NaN where not computable. customer_wh: (T, M) net Wh, gaps filled; customer_sd_wh: (T, M)
    sd of what was filled, 0 where measured, or None. technical_wh: (T,) Wh, or None: then fitted. Gains: relative sd of
    the meters' constant errors. first_step_of_day: local steps past midnight at T = 0.
    """

    supplied_wh: Array
    customer_wh: Array
    technical_wh: Array | None = None
    customer_sd_wh: Array | None = None
    step_s: int = 900
    first_step_of_day: int = 0
    supply_gain_sd: float = 0.001
    customer_gain_sd: float = 0.005


@dataclass(frozen=True, slots=True)
class Suspects:
    """Of an area's M customers. score: (M,) log odds of a fault; named: worth a visit; since_step: step of its start;
    stolen_wh: energy its book misses since then, negative where more is recorded than used, with its 80 % interval.
    """

    score: Array
    kind: tuple[str, ...]
    since_step: Index
    stolen_wh: Array
    lo_wh: Array
    hi_wh: Array
    named: NDArray[np.bool_]
    evidence: tuple[str, ...]


def _inside(step: Index, hours: tuple[int, int], steps_of_day: int) -> NDArray[np.bool_]:
    hour = (step % steps_of_day) * 24 // steps_of_day
    first, last = hours
    return (hour >= first) & (hour < last) if first < last else (hour >= first) | (hour < last)


class _Problem:
    """One area: the whitened balance, its nuisances Z and templates U, and their cross products by day."""

    def __init__(self, area: AreaBalance, foreign_wh: Array) -> None:
        self.area = area
        per_day = 86_400 // area.step_s
        skip = -area.first_step_of_day % per_day
        self.first = skip
        days = (len(area.supplied_wh) - skip) // per_day
        if days < 14:
            raise ValueError(f"localisation needs 14 whole local days, got {days}")
        self.per_day, self.days = per_day, days
        span = slice(skip, skip + days * per_day)
        supplied, x = area.supplied_wh[span], area.customer_wh[span]
        steps, count = x.shape
        self.x, self.count = x, count
        self.foreign = foreign_wh[span]
        filled = np.zeros_like(x) if area.customer_sd_wh is None else area.customer_sd_wh[span]
        total = x.sum(1)
        technical = area.technical_wh[span] if area.technical_wh is not None else np.zeros(steps)
        residual = supplied - total - technical
        usable = np.isfinite(residual) & np.isfinite(total)
        head = np.where(np.isfinite(supplied), supplied, total + technical)

        # Nuisances with the spread that is known of them.
        clock = CLOCK_S / area.step_s
        slope, head_slope = np.gradient(x, axis=0), np.gradient(head)
        flow = technical if area.technical_wh is not None else head**2 / max(float(np.mean(head**2)), 1e-9)
        loss_sd = 0.1 if area.technical_wh is not None else 0.1 * float(head.mean())
        offset_sd = (
            0.003 * float(np.abs(head).mean()) if area.technical_wh is not None else 0.05 * float(np.abs(head).mean())
        )
        z = np.concatenate([x, slope, head[:, None], head_slope[:, None], np.ones((steps, 1)), flow[:, None]], axis=1)
        z_sd = np.concatenate(
            [
                np.full(count, float(np.hypot(area.customer_gain_sd, MODEL_GAIN_SD))),
                np.full(count, clock),
                [area.supply_gain_sd, clock, offset_sd, loss_sd],
            ]
        )
        z *= z_sd
        residual = np.where(usable, residual, 0.0)
        variance = (filled**2).sum(1) + 100 * (count + 1) / 6
        weight = np.where(usable, 1 / variance, 0.0)
        for _ in range(3):
            root = np.sqrt(weight)[:, None]
            gram = (z * root).T @ (z * root) + np.eye(z.shape[1])
            fitted = z @ np.linalg.solve(gram, z.T @ (weight * residual))
            left = residual - fitted
            # Hours that are noisier than meters explain (fills, a network known badly) count for less.
            excess = np.median(left[usable] ** 2 / variance[usable]) / 0.455
            weight = np.where(usable, 1 / (variance * max(excess, 1.0)), 0.0)
        self.weight, self.residual, self.z = weight, residual, z
        self._candidates()
        # Starts: every day, or every n-th where an area is so large that all days would not fit.
        self.block = max(1, -(-self.days * self.customer.size * z.shape[1] // PRODUCTS_MAX))
        edge = max(EDGE_DAYS, self.block)
        self.starts = np.array([0, *range(edge, self.days - EDGE_DAYS + 1, self.block)])
        self.energy = self.suffix(self.u)
        self.square = self.suffix(self.u**2 * weight[:, None])
        self._own_past()
        weighted = z * weight[:, None]
        lower = cholesky(weighted.T @ z + np.eye(z.shape[1]), lower=True)
        self.inverse = solve_triangular(lower, np.eye(len(lower)), lower=True)
        self.explained = self._by_start(z) @ self.inverse.T
        # A template from its start on and the same from the first day share what comes after the start.
        self.shared = self.square - np.einsum("scp,cp->sc", self.explained, self.explained[0])
        self.square -= np.einsum("scp,scp->sc", self.explained, self.explained)

    def _candidates(self) -> None:
        """u: (T, C) templates; kind, customer: (C,) of each; a customer of another area counts on from M."""
        x, per_day = self.x, self.per_day
        count = self.count
        step = np.arange(len(x))
        past = max(self.days // 3, 7)
        used = np.maximum(x, 0)
        slot = used[: past * per_day].reshape(past, per_day, count).mean(0)
        kernel = np.array([1, 2, 3, 2, 1]) / 9
        slot = np.tensordot(kernel, np.stack([np.roll(slot, i - 2, axis=0) for i in range(5)]), axes=1)
        # Standing still: nothing at all for two hours or longer.
        still = np.abs(x) < 5
        length = max(2 * per_day // 24, 1)
        view = np.lib.stride_tricks.sliding_window_view
        runs = view(np.pad(still, ((length - 1, length - 1), (0, 0))), length, axis=0).all(-1)
        standing = view(runs, length, axis=0).any(-1)
        late = used[2 * self.days // 3 * per_day :]
        mean = np.maximum(slot.mean(0), 1.0)
        # Weekdays of the past, drawn to their mean: four of each are few.
        by_day = used[: past * per_day].reshape(past, per_day, count).sum(1)
        weekday = np.stack([by_day[d::7].mean(0) for d in range(7)])
        weekday = (weekday + 0.1 * per_day * mean) / (1.1 * per_day * mean)
        self.expected = (weekday[np.arange(self.days) % 7][:, None, :] * slot).reshape(len(x), count)
        # What is cut off at the ceiling: the past's excess over it at that time of day.
        ceiling = np.quantile(late, 0.997, axis=0)
        over = np.maximum(used[: past * per_day] - ceiling, 0).reshape(past, per_day, count)
        times, excess = (over > 0).sum(0).astype(float), over.sum(0)
        overall = excess.sum(0) / np.maximum(times.sum(0), 1)
        near = per_day // 12
        window = sum(
            (np.roll(np.stack([times, excess]), i, axis=1) for i in range(-near, near + 1)),
            np.zeros((2, per_day, count)),
        )
        # A ceiling that cuts is reached often; peaks of life thin out towards their highest.
        ceiling_reached = (late >= 0.97 * ceiling - 5).mean(0)
        cut = (window[1] + 3 * overall) / (window[0] + 3)
        by_kind = {
            "scaled": used,
            "night": used * _inside(step, NIGHT, per_day)[:, None],
            "peak": used * _inside(step, PEAK, per_day)[:, None],
            "cap": (used >= 0.97 * ceiling - 5) * np.tile(np.maximum(cut, 0.05 * mean), (self.days, 1)),
            "subtract": np.where(used >= 5, 1.0, 0.6) * mean,
            "stopped": self.expected * standing,
            "intermittent": used,
            "ct_ratio": used,
            "wrong_area": x,
        }
        self.u = np.concatenate([*(by_kind[t.kind] for t in TEMPLATES), self.foreign], axis=1)
        foreign = self.foreign.shape[1]
        self.kind = np.concatenate(
            [np.repeat(np.arange(len(TEMPLATES)), count), np.full(foreign, KINDS.index("wrong_area"))]
        )
        self.customer = np.concatenate([np.tile(np.arange(count), len(TEMPLATES)), count + np.arange(foreign)])
        inward = self.customer >= count
        self.mean = np.where(inward, 1.0, np.array([t.mean for t in TEMPLATES])[self.kind])
        self.sd = np.array([t.sd for t in TEMPLATES])[self.kind]
        self.sign = np.where(inward, 1, np.array([t.sign for t in TEMPLATES])[self.kind])
        share = np.array([t.share for t in TEMPLATES])[self.kind]
        self.prior = np.log(np.where(inward, share / max(foreign, 1), share))
        flat = np.clip(6 * np.log(np.maximum(ceiling_reached, 1e-3) / 0.012), -12.0, 4.0)
        self.prior[self.kind == KINDS.index("cap")] += flat
        alive = (self.u != 0).any(0)
        self.prior[~alive] = -np.inf

    def balance_by_day(self) -> Array:
        """(D,) Wh of the residual, days with few usable steps scaled up."""
        usable = (self.weight > 0).reshape(self.days, -1)
        return np.asarray(self.residual.reshape(self.days, -1).sum(1) / np.maximum(usable.mean(1), 0.1))

    def suffix(self, values: Array) -> Array:
        """(S, C) sums of values (T, C) from each start to the end."""
        return np.asarray(np.add.reduceat(values, self.starts * self.per_day, axis=0)[::-1].cumsum(0)[::-1])

    def _by_start(self, z: Array) -> Array:
        """(S, C, P) weighted cross products, from each start on, of templates with columns z (T, P)."""
        product = np.empty((len(self.starts), self.u.shape[1], z.shape[1]))
        for i, first in enumerate(self.starts):
            span = slice(
                first * self.per_day, (self.starts[i + 1] if i + 1 < len(self.starts) else self.days) * self.per_day
            )
            product[i] = (self.u[span] * self.weight[span, None]).T @ z[span]
        return np.asarray(product[::-1].cumsum(0)[::-1])

    def _own_past(self) -> None:
        """How each candidate's record changes at each start, in the kind's hours, and the variance of that."""
        per_day, days = self.per_day, self.days
        hours = np.stack(
            [
                np.ones(len(self.x)),
                _inside(np.arange(len(self.x)), NIGHT, per_day),
                _inside(np.arange(len(self.x)), PEAK, per_day),
            ]
        )
        daily = np.stack([(self.x * h[:, None]).reshape(days, per_day, -1).sum(1) for h in hours])  # (3, D, M)
        # A constant that is taken off shows in the base load, which moves less from day to day than the mean.
        base = np.quantile(self.x.reshape(days, per_day, -1), 0.2, axis=1) * per_day
        daily = np.concatenate([daily, base[None]])
        sums = np.concatenate([np.zeros((4, 1, self.count)), daily.cumsum(1)], axis=1)
        n_before = self.starts[None, :, None]
        n_after = days - n_before
        before = sums[:, self.starts] / np.maximum(n_before, 1)
        after = (sums[:, -1:] - sums[:, self.starts]) / n_after
        weeks = days // 7
        weekly = daily[:, : weeks * 7].reshape(4, weeks, 7, -1).mean(2)
        sd = np.median(np.abs(np.diff(weekly, axis=1)), axis=1) / 0.6745 / np.sqrt(2)
        level = np.abs(daily.mean(1))
        sd = np.maximum(sd, 0.03 * level)[:, None]
        variance = sd**2 * (7 / np.maximum(n_before, 1) + 7 / n_after) + (0.07 * level[:, None]) ** 2
        group = np.array([{"night": 1, "peak": 2, "subtract": 3}.get(k, 0) for k in KINDS])[self.kind]
        column = np.minimum(self.customer, self.count - 1)
        pick = (group[None, :], np.arange(len(self.starts))[:, None], column[None, :])
        self.change, self.variance = (after - before)[pick], variance[pick] + 25.0
        # A base load that is gone cannot have lost more than there was.
        self.most = np.where(group[None, :] == 3, np.maximum(before - after, 0)[pick] + np.sqrt(self.variance), np.inf)
        self.gone = (after < 0.02 * before)[pick]
        self.spread = (0.35 * level)[group, column] ** 2
        # The area's own record tells nothing of who is fed elsewhere; and without a past there is no drop.
        self.tells = (self.kind != KINDS.index("wrong_area"))[None, :] & (self.starts[:, None] >= 7) & (n_after[0] >= 4)

    def own(self, lost: Array) -> Array:
        """(S, C) log odds that the customer's own record brings when `lost` (S, C) Wh are put back after the start."""
        daily = lost / (self.days - self.starts)[:, None]
        daily = np.where(self.gone, np.minimum(daily, self.most), daily)

        def density(change: Array) -> Array:
            wide = self.variance + self.spread
            return np.asarray(
                np.logaddexp(
                    np.log(1 - CHANGED_SHARE) - 0.5 * change**2 / self.variance - 0.5 * np.log(self.variance),
                    np.log(CHANGED_SHARE) - 0.5 * change**2 / wide - 0.5 * np.log(wide),
                )
            )

        no_past = np.where(self.starts < 14, NO_PAST_LOG_ODDS, 0.0)[:, None]
        return no_past + np.where(self.tells, density(self.change + daily) - density(self.change), 0.0)

    def own_days(self, amplitude: Array, on: Array) -> Array:
        """(M,) log odds from the own record of an intermittent fault on days (D, M): it must be lower on those days."""
        daily = np.maximum(self.x, 0).reshape(self.days, self.per_day, -1).sum(1)
        variance = (np.median(np.abs(np.diff(daily, axis=0)), axis=0) / 0.6745) ** 2 / 2 + (0.1 * daily.mean(0)) ** 2
        n_on, n_off = on.sum(0) + 1e-9, (1 - on).sum(0) + 1e-9
        mean_on, mean_off = (on * daily).sum(0) / n_on, ((1 - on) * daily).sum(0) / n_off
        variance = variance * (1 / np.maximum(n_on, 0.5) + 1 / np.maximum(n_off, 0.5)) + (0.07 * daily.mean(0)) ** 2
        change = mean_on - mean_off
        return np.asarray(0.5 * (change**2 - (change + amplitude * mean_on) ** 2) / variance)


@dataclass(slots=True)
class _Active:
    candidate: int
    start: int
    column: Array  # (T,)
    mean: float
    sd: float
    cross: Array  # (S, C)


@dataclass(slots=True)
class _Weighed:
    """(S, C): log odds (balance + own + prior), amplitude, its sd, the energy it applies to.

    days_on: (D, M) chance that an intermittent fault was on.
    """

    log_odds: Array
    amplitude: Array
    amplitude_sd: Array
    energy: Array
    days_on: Array


def _weigh(problem: _Problem, active: Sequence[_Active]) -> _Weighed:
    """Every candidate and start beside the active ones."""
    residual = problem.residual - sum((a.mean * a.column for a in active), np.zeros_like(problem.residual))
    weight, z = problem.weight, problem.z
    fitted = problem.inverse @ (z.T @ (weight * residual))
    n = problem.suffix(problem.u * (weight * residual)[:, None]) - problem.explained @ fitted
    q, shared_start = problem.square, problem.shared
    effect = problem.inverse.T @ fitted
    left = residual - z @ effect
    if active:
        # The active columns join the nuisances: one block more of the same Cholesky factor.
        v = np.column_stack([a.sd * a.column for a in active])
        weighted = v * weight[:, None]
        shared = problem.inverse @ (z.T @ weighted)
        lower = cholesky(weighted.T @ v + np.eye(len(active)) - shared.T @ shared, lower=True)
        inverse = solve_triangular(lower, np.eye(len(active)), lower=True)
        beside = (np.stack([a.sd * a.cross for a in active], axis=2) - problem.explained @ shared) @ inverse.T
        more = inverse @ (weighted.T @ residual - shared.T @ fitted)
        n, q = n - beside @ more, q - np.einsum("sca,sca->sc", beside, beside)
        shared_start = shared_start - np.einsum("sca,ca->sc", beside, beside[0])
        extra = inverse.T @ more
        left = left - v @ extra + z @ (problem.inverse.T @ (shared @ extra))
    # Days are further off than quarter hours explain where the model is wrong in slow ways: evidence counts for less.
    day = (problem.days, problem.per_day)
    daily = (weight * left).reshape(day).sum(1) / np.sqrt(np.maximum(weight.reshape(day).sum(1), 1e-12))
    slow = max(1.0, float(np.mean(np.sort(daily**2)[: int(0.9 * len(daily))])) / 0.66)
    n, q, shared_start = n / slow, np.maximum(q, 0) / slow + 1e-12, shared_start / slow
    # The same shape may have been off since before the record: a network known badly, not a fault that began.
    persistent = q[0] + PERSISTENT_SD**-2.0
    n, q = n - shared_start * (n[0] / persistent), np.maximum(q - shared_start**2 / persistent, 0) + 1e-12
    precision = q + problem.sd**-2.0
    amplitude = (n + problem.mean * problem.sd**-2.0) / precision
    balance = (
        0.5 * amplitude**2 * precision
        - 0.5 * (problem.mean / problem.sd) ** 2
        - 0.5 * np.log(precision * problem.sd**2)
        + log_ndtr((problem.sign * amplitude - SMALLEST) * np.sqrt(precision))
        - log_ndtr((problem.sign * problem.mean - SMALLEST) / problem.sd)
    )
    amplitude = np.where(amplitude * problem.sign > 0, amplitude, 0.0)
    sd = 1 / np.sqrt(precision)

    # Intermittent: each day from the start on has the fault or not; the sum over all choices is a product over days.
    one = np.flatnonzero(problem.kind == KINDS.index("intermittent"))
    by_day = (problem.days, problem.per_day, len(one))
    u = problem.u[:, one]
    n_day = (u * (weight * left)[:, None]).reshape(by_day).sum(1) / (CHOICE * slow)
    q_day = (u**2 * weight[:, None]).reshape(by_day).sum(1) / (CHOICE * slow)
    grid = INTERMITTENT_AMPLITUDES[:, None, None]
    on = np.log(INTERMITTENT_DAYS) + grid * n_day - 0.5 * grid**2 * q_day  # (G, D, M)
    gain = np.logaddexp(np.log(1 - INTERMITTENT_DAYS), on)
    gain = np.add.reduceat(gain, problem.starts, axis=1)[:, ::-1].cumsum(1)[:, ::-1]
    best = gain.argmax(0)
    balance[:, one] = logsumexp(gain, axis=0) - np.log(len(grid))
    amplitude[:, one] = INTERMITTENT_AMPLITUDES[best]
    overall = gain[:, 0].argmax(0) if len(gain) else best[0]
    days_on = np.exp(
        np.take_along_axis(on - np.logaddexp(np.log(1 - INTERMITTENT_DAYS), on), overall[None, None, :], axis=0)[0]
    )
    energy = problem.energy.copy()
    energy[:, one] = (u.reshape(by_day).sum(1) * days_on)[::-1].cumsum(0)[::-1][problem.starts]
    own = problem.own(amplitude * energy)
    own[:, one] = problem.own_days(amplitude[:, one].mean(0), days_on)
    total = balance + own + problem.prior - np.log(len(problem.starts))
    return _Weighed(total, amplitude, sd, energy, days_on)


def _activate(problem: _Problem, weighed: _Weighed, start: int, candidate: int) -> _Active:
    after = np.arange(len(problem.u)) >= problem.starts[start] * problem.per_day
    column = problem.u[:, candidate] * after
    if KINDS[problem.kind[candidate]] == "intermittent":
        on = weighed.days_on[:, problem.customer[candidate]] > 0.5
        column = column * on.repeat(problem.per_day)
    cross = problem._by_start(column[:, None])[:, :, 0]
    return _Active(candidate, start, column, float(problem.mean[candidate]), float(problem.sd[candidate]), cross)


def _customer_odds(problem: _Problem, log_odds: Array) -> Array:
    """(M + F,) log odds of each customer over its kinds and starts."""
    people = problem.count + problem.foreign.shape[1]
    best = logsumexp(log_odds, axis=0)
    odds = np.full(people, -np.inf)
    np.logaddexp.at(odds, problem.customer, best)
    return np.asarray(odds + np.log(FAULTY_SHARE / (1 - FAULTY_SHARE)))


@dataclass(slots=True)
class _Found:
    odds: Array  # (M + F,)
    log_odds: Array  # (S, C) of each candidate beside the others' best
    amplitude: Array
    amplitude_sd: Array
    energy: Array
    active: list[_Active]


def _search(problem: _Problem) -> _Found:
    active: list[_Active] = []
    weighed = _weigh(problem, active)
    while len(active) < SUSPECTS_MAX:
        taken = (
            np.isin(problem.customer, problem.customer[[a.candidate for a in active]])
            if active
            else np.zeros(len(problem.kind), bool)
        )
        odds = np.where(taken, -np.inf, weighed.log_odds)
        start, candidate = np.unravel_index(int(np.argmax(odds)), odds.shape)
        people = _customer_odds(problem, odds)
        if people.max() < ADDED_LOG_ODDS:
            break
        del start
        who = int(people.argmax())
        mine = np.where(problem.customer == who, odds, -np.inf)
        start, candidate = np.unravel_index(int(np.argmax(mine)), mine.shape)
        active.append(_activate(problem, weighed, int(start), int(candidate)))
        weighed = _weigh(problem, active)
    # Each suspect again beside the others, as it would have been seen had it come last.
    log_odds, amplitude, sd, energy = weighed.log_odds, weighed.amplitude, weighed.amplitude_sd, weighed.energy
    for place, one in enumerate(active):
        without = _weigh(problem, [a for a in active if a is not one])
        mine_columns = np.flatnonzero(problem.customer == problem.customer[one.candidate])
        for target, source in (
            (log_odds, without.log_odds),
            (amplitude, without.amplitude),
            (sd, without.amplitude_sd),
            (energy, without.energy),
        ):  # fmt: skip
            target[:, mine_columns] = source[:, mine_columns]
        best = np.unravel_index(
            int(np.argmax(without.log_odds[:, mine_columns])), (len(problem.starts), len(mine_columns))
        )
        active[place] = _activate(problem, without, int(best[0]), int(mine_columns[best[1]]))
    return _Found(_customer_odds(problem, log_odds), log_odds, amplitude, sd, energy, active)


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
    problems = [_Problem(area, np.zeros((len(area.supplied_wh), 0))) for area in areas]
    found = [_search(problem) for problem in problems]
    strangers = (
        [_strangers(p, f) for p, f in zip(problems, found, strict=True)] if len(areas) > 1 else [np.zeros(0, int)]
    )
    for here, area in enumerate(areas):
        foreign = [(other, c) for other, some in enumerate(strangers) if other != here for c in some]
        if not foreign:
            continue
        columns = np.column_stack([areas[other].customer_wh[:, c] for other, c in foreign])
        problems[here] = _Problem(area, columns)
        found[here] = _search(problems[here])
    return [_tell(problem, one) for problem, one in zip(problems, found, strict=True)]


def _strangers(problem: _Problem, found: _Found) -> Index:
    """Customers whose area seems not to feed them, the likeliest first."""
    wrong = problem.kind == KINDS.index("wrong_area")
    odds = logsumexp(found.log_odds[:, wrong], axis=0)
    order = np.argsort(-odds)[:STRANGERS_MAX]
    return np.asarray(problem.customer[wrong][order[odds[order] > 0]])


def _tell(problem: _Problem, found: _Found) -> Suspects:
    count, per_day = problem.count, problem.per_day
    score = found.odds[:count]
    kinds, evidence = [], []
    since, stolen, spread = np.zeros(count, np.int64), np.zeros(count), np.zeros(count)
    for c in range(count):
        mine = np.flatnonzero(problem.customer == c)
        odds = found.log_odds[:, mine]
        start, which = np.unravel_index(int(np.argmax(odds)), odds.shape)
        share = np.exp(odds - logsumexp(odds))
        energy = found.energy[:, mine]
        lost = found.amplitude[:, mine] * energy
        sd = found.amplitude_sd[:, mine] * np.abs(energy)
        # What is lost averages over kinds and starts by their odds; their disagreement is part of the interval.
        stolen[c] = float((share * lost).sum())
        spread[c] = float(np.sqrt((share * (sd**2 + (lost - stolen[c]) ** 2)).sum()))
        name = KINDS[problem.kind[mine[which]]]
        day = int(problem.starts[start])
        if name == "stopped":
            name = _standstill(problem, c, day)
        kinds.append(name)
        since[c] = problem.first + day * per_day
        evidence.append(_words(problem, c, name, day, float(score[c]), float(stolen[c])))
    return Suspects(
        score, tuple(kinds), since, stolen, stolen - Z80 * spread, stolen + Z80 * spread,
        score >= NAMED_LOG_ODDS, tuple(evidence),
    )  # fmt: skip


def _standstill(problem: _Problem, customer: int, day: int) -> str:
    """Nights, evenings, whole days, or spells at random: what a standing register's hours are."""
    still = (np.abs(problem.x[day * problem.per_day :, customer]) < 5).reshape(-1, problem.per_day)
    step = np.arange(problem.per_day)
    for kind, hours in (("night", NIGHT), ("peak", PEAK)):
        inside = _inside(step, hours, problem.per_day)
        if still[:, inside].mean() > 0.75 and still[:, ~inside].mean() < 0.35:
            return kind
    full = still.mean(1)
    whole, none = full > 0.97, full < 0.2
    edges = np.abs(np.diff(whole.astype(int))).sum()
    return "intermittent" if (whole | none).mean() > 0.9 and edges > 8 else "stopped"


def _words(problem: _Problem, customer: int, kind: str, day: int, score: float, stolen_wh: float) -> str:
    x = problem.x[:, customer].reshape(problem.days, -1).sum(1)
    before, after = x[:day].mean() if day else np.nan, x[day:].mean()
    gap = problem.balance_by_day()
    rise = gap[day:].mean() - gap[:day].mean() if day else gap.mean()
    drop = f"; own record {before / 1000:.1f} -> {after / 1000:.1f} kWh a day" if day >= 7 else ""
    what = {
        "scaled": "the balance misses a constant share of this record",
        "night": "the balance misses energy in this customer's nights",
        "peak": "the balance misses energy in this customer's evenings",
        "cap": "the balance misses energy when this record is at its ceiling",
        "subtract": "the balance misses a constant power while this record runs",
        "stopped": "the balance misses this customer's usual load while the register stands still",
        "intermittent": "the balance misses this customer's load on some days only",
        "ct_ratio": "more is recorded than was supplied, in this record's shape: too high a ratio",
        "wrong_area": "the area does not feed what this record bills: it belongs to another area",
    }[kind]
    return (
        f"{what}; area residual {rise / 1000:+.1f} kWh a day from then on, {stolen_wh / 1000:.0f} kWh of it explained"
        f"{drop}; log odds {score:.1f}"
    )
