"""How well each (customer, kind, start) explains what an area loses, beside those already suspected.

Bayesian linear regression with marginal likelihoods in closed form (Bishop, Pattern Recognition and Machine Learning,
3.5): cross products of columns and nuisances by day, summed from the end, give every start at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.special import log_ndtr, logsumexp

from cloud.engines.loss.own import OwnRecord
from cloud.engines.loss.templates import NUMBER, candidates

Array = NDArray[np.float64]
Index = NDArray[np.int64]

CLOCK_S: Final = 60.0
REGISTER_VARIANCE: Final = 100 / 6  # Wh², of a difference of registers with digits of 10 Wh
MODEL_GAIN_SD: Final = 0.008  # of a customer's share in the technical loss: phases and lengths known badly
SMALLEST: Final = 0.03  # less than this share is a meter's gain, not a fault
PRODUCTS_MAX: Final = 20_000_000  # cross products held at once: 160 MB
EDGE_DAYS: Final = 7  # a start nearer to the end, or to the beginning, cannot be told from noise
DAYS_MIN: Final = 14
INTERMITTENT_DAYS: Final = 0.4
INTERMITTENT_AMPLITUDES: Final = np.array([0.14, 0.3, 0.6, 1.0, 2.0])
CHOICE: Final = 2.0  # days chosen freely fit what is wrong with the model, too: their evidence counts for less
PERSISTENT_SD: Final = 0.05  # of a template, wrong from the first day on without a fault


@dataclass(frozen=True, slots=True)
class AreaBalance:
    """An area over T steps of whole local days and its M customers.

    supplied_wh: (T,) net Wh, NaN where not computable. customer_wh: (T, M) net Wh, gaps filled; customer_sd_wh: (T, M)
    sd of what was filled, 0 where measured, or None. technical_wh: (T,) Wh, or None: then fitted. Gains: relative sd of
    the meters' constant errors. first_step_of_day: local steps past midnight at T = 0. three_phase: (M,) by the
    registry, or None; ct_ratio: (M,), or None where no meter has current transformers.
    """

    supplied_wh: Array
    customer_wh: Array
    technical_wh: Array | None = None
    customer_sd_wh: Array | None = None
    step_s: int = 900
    first_step_of_day: int = 0
    supply_gain_sd: float = 0.001
    customer_gain_sd: float = 0.005
    three_phase: NDArray[np.bool_] | None = None
    ct_ratio: Array | None = None


class Problem:
    """One area: the balance with what weakens it (nuisances Z, their spread in them), and the candidates."""

    def __init__(self, area: AreaBalance, foreign_wh: Array) -> None:
        self.area = area
        per_day = 86_400 // area.step_s
        skip = -area.first_step_of_day % per_day
        self.first = skip
        days = (len(area.supplied_wh) - skip) // per_day
        if days < DAYS_MIN:
            raise ValueError(f"localisation needs {DAYS_MIN} whole local days, got {days}")
        self.per_day, self.days = per_day, days
        span = slice(skip, skip + days * per_day)
        x = area.customer_wh[span]
        self.x, self.count = x, x.shape[1]
        self.foreign = foreign_wh.shape[1]
        self._nuisances(span)
        self.candidates = candidates(x, foreign_wh[span], per_day, self.filled)
        # Starts: every day, or every n-th where an area is so large that all days would not fit.
        block = max(1, -(-days * self.candidates.u.shape[1] * self.z.shape[1] // PRODUCTS_MAX))
        edge = max(EDGE_DAYS, block)
        self.starts = np.array([0, *range(edge, days - EDGE_DAYS + 1, block)])
        self.by_day = self.candidates.u.reshape(days, per_day, -1).transpose(0, 2, 1)  # (D, C, steps of day)
        self.daily = self.by_day.sum(2)
        self.energy = self.suffix(self.daily)
        self.own = OwnRecord(x, self.starts, per_day, self.candidates)
        self.usual = self.weight
        self.reweigh(np.zeros(len(x)))

    def _nuisances(self, span: slice) -> None:
        """residual (T,), z (T, P) whose unknowns are N(0, 1), weight (T,) 1 / variance."""
        area, x = self.area, self.x
        supplied = area.supplied_wh[span]
        steps, count = x.shape
        filled = np.zeros_like(x) if area.customer_sd_wh is None else area.customer_sd_wh[span]
        self.filled = filled > 0
        total = x.sum(1)
        technical = area.technical_wh[span] if area.technical_wh is not None else np.zeros(steps)
        residual = supplied - total - technical
        usable = np.isfinite(residual) & np.isfinite(total)
        head = np.where(np.isfinite(supplied), supplied, total + technical)
        clock = CLOCK_S / area.step_s
        slope, head_slope = np.gradient(x, axis=0), np.gradient(head)
        mean_head = float(np.abs(head).mean())
        if area.technical_wh is not None:
            flow, loss_sd, offset_sd = technical, 0.1, 0.003 * mean_head
        else:
            flow = head**2 / max(float(np.mean(head**2)), 1e-9)
            loss_sd, offset_sd = 0.1 * float(head.mean()), 0.05 * mean_head
        z = np.concatenate([x, slope, head[:, None], head_slope[:, None], np.ones((steps, 1)), flow[:, None]], axis=1)
        gain = float(np.hypot(area.customer_gain_sd, MODEL_GAIN_SD))
        z *= np.concatenate(
            [np.full(count, gain), np.full(count, clock), [area.supply_gain_sd, clock, offset_sd, loss_sd]]
        )
        residual = np.where(usable, residual, 0.0)
        variance = (filled**2).sum(1) + REGISTER_VARIANCE * (count + 1)
        weight = np.where(usable, 1 / variance, 0.0)
        for _ in range(3):
            root = np.sqrt(weight)[:, None]
            gram = (z * root).T @ (z * root) + np.eye(z.shape[1])
            left = residual - z @ np.linalg.solve(gram, z.T @ (weight * residual))
            # Hours that are noisier than meters explain (fills, a network known badly) count for less.
            excess = np.median(left[usable] ** 2 / variance[usable]) / 0.455 if usable.any() else 1.0
            weight = np.where(usable, 1 / (variance * max(excess, 1.0)), 0.0)
        self.weight, self.residual, self.z, self.head = weight, residual, z, head
        self.usable = usable

    def reweigh(self, misfit_variance: Array) -> None:
        """Cross products again, with more variance (T,) Wh² where a suspect's column tells energy only roughly."""
        self.weight = self.usual / (1 + self.usual * misfit_variance)
        weight, z = self.weight.reshape(self.days, self.per_day), self.z
        self.square = self.suffix(np.matmul(self.by_day**2, weight[:, :, None])[:, :, 0])
        lower = cholesky((z * self.weight[:, None]).T @ z + np.eye(z.shape[1]), lower=True)
        self.inverse = solve_triangular(lower, np.eye(len(lower)), lower=True)
        self.explained = self.by_start(z @ self.inverse.T)
        # A template from its start on and the same from the first day share what comes after the start.
        self.shared = self.square - np.einsum("scp,cp->sc", self.explained, self.explained[0])
        self.square = self.square - np.einsum("scp,scp->sc", self.explained, self.explained)

    def balance_by_day(self) -> Array:
        """(D,) Wh of the residual, days with few usable steps scaled up."""
        usable = self.usable.reshape(self.days, -1)
        return np.asarray(self.residual.reshape(self.days, -1).sum(1) / np.maximum(usable.mean(1), 0.1))

    def suffix(self, daily: Array) -> Array:
        """(S, ...) sums of values (D, ...) from each start to the end."""
        return np.asarray(np.add.reduceat(daily, self.starts, axis=0)[::-1].cumsum(0)[::-1])

    def products(self, z: Array) -> Array:
        """(D, C, P) weighted cross products of columns with z (T, P) by day."""
        weighted = (z * self.weight[:, None]).reshape(self.days, self.per_day, -1)
        return np.asarray(np.matmul(self.by_day, weighted), np.float64)

    def by_start(self, z: Array) -> Array:
        """(S, C, P) weighted cross products of columns with z (T, P) from each start on."""
        weighted = z * self.weight[:, None]
        product = np.empty((len(self.starts), self.candidates.u.shape[1], z.shape[1]))
        edges = [*self.starts * self.per_day, len(z)]
        for i, (first, last) in enumerate(pairwise(edges)):
            np.matmul(self.candidates.u[first:last].T, weighted[first:last], out=product[i])
        for i in range(len(product) - 2, -1, -1):
            product[i] += product[i + 1]
        return product


@dataclass(slots=True)
class Active:
    """A suspect while others are weighed. column: (T,); misfit: (T,) relative sd of it; cross: (S, C)."""

    candidate: int
    start: int
    column: Array
    mean: float
    sd: float
    cross: Array
    amplitude: float
    misfit: Array


@dataclass(slots=True)
class Weighed:
    """(S, K): log odds (balance + own + prior), amplitude, its sd, the energy it applies to.

    days_on: (D, M) chance that an intermittent fault was on. left: (T,) what the suspects leave unexplained.
    """

    log_odds: Array
    amplitude: Array
    amplitude_sd: Array
    energy: Array
    days_on: Array
    left: Array


def weigh(problem: Problem, active: Sequence[Active]) -> Weighed:
    """Every candidate and start beside the active ones."""
    residual = problem.residual - sum((a.mean * a.column for a in active), np.zeros_like(problem.residual))
    weight, z = problem.weight, problem.z
    fitted = problem.inverse @ (z.T @ (weight * residual))
    n = problem.suffix(problem.products(residual[:, None])[:, :, 0]) - problem.explained @ fitted
    q, shared_start = problem.square, problem.shared
    left = residual - z @ (problem.inverse.T @ fitted)
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
    c = problem.candidates
    n, q = n[:, c.column] / c.temper, q[:, c.column] / c.temper
    precision = q + c.sd**-2.0
    amplitude = (n + c.mean * c.sd**-2.0) / precision
    sd = 1 / np.sqrt(precision)
    balance = (
        0.5 * amplitude**2 * precision
        - 0.5 * (c.mean / c.sd) ** 2
        - 0.5 * np.log(precision * c.sd**2)
        + log_ndtr((c.sign * amplitude - SMALLEST) / sd)
        - log_ndtr((c.sign * c.mean - SMALLEST) / c.sd)
    )
    amplitude = np.where(amplitude * c.sign > 0, amplitude, 0.0)
    energy = problem.energy[:, c.column]
    days_on = _intermittent(problem, left, slow, balance, amplitude, energy)
    own = problem.own.odds(amplitude * energy)
    one = np.flatnonzero(c.kind == NUMBER["intermittent"])
    own[:, one] = problem.own.odds_of_days(amplitude[:, one].mean(0), days_on)
    total = balance + own + c.prior - np.log(len(problem.starts))
    return Weighed(total, amplitude, sd, energy, days_on, left)


def _intermittent(problem: Problem, left: Array, slow: float, balance: Array, amplitude: Array, energy: Array) -> Array:
    """Each day from the start on has the fault or not; the sum over all choices is a product over days.

    Fills the kind's places of balance, amplitude and energy (S, K); returns the chance of each day, (D, M).
    """
    c = problem.candidates
    one = np.flatnonzero(c.kind == NUMBER["intermittent"])
    u = problem.by_day[:, : problem.count]  # the columns of used energy come first
    weight = problem.weight.reshape(problem.days, problem.per_day, 1)
    weighed_left = weight[:, :, 0] * left.reshape(problem.days, -1)
    n_day = np.matmul(u, weighed_left[:, :, None])[:, :, 0] / (CHOICE * slow)
    q_day = np.matmul(u**2, weight)[:, :, 0] / (CHOICE * slow)
    grid = INTERMITTENT_AMPLITUDES[:, None, None]
    on = np.log(INTERMITTENT_DAYS) + grid * n_day - 0.5 * grid**2 * q_day  # (G, D, M)
    either = np.logaddexp(np.log(1 - INTERMITTENT_DAYS), on)
    gain = np.add.reduceat(either, problem.starts, axis=1)[:, ::-1].cumsum(1)[:, ::-1]
    balance[:, one] = logsumexp(gain, axis=0) - np.log(len(grid))
    amplitude[:, one] = INTERMITTENT_AMPLITUDES[gain.argmax(0)]
    overall = gain[:, 0].argmax(0)
    days_on = np.exp(np.take_along_axis(on - either, overall[None, None, :], axis=0)[0])
    energy[:, one] = problem.suffix(problem.daily[:, : problem.count] * days_on)
    return np.asarray(days_on)


def activate(problem: Problem, weighed: Weighed, start: int, candidate: int) -> Active:
    c = problem.candidates
    after = np.arange(len(c.u)) >= problem.starts[start] * problem.per_day
    column = c.u[:, c.column[candidate]] * after
    if c.kind[candidate] == NUMBER["intermittent"]:
        on = weighed.days_on[:, c.customer[candidate]] > 0.5
        column = column * on.repeat(problem.per_day)
    cross = problem.suffix(problem.products(column[:, None])[:, :, 0])
    return Active(
        candidate, start, column, float(c.mean[candidate]), float(c.sd[candidate]), cross,
        float(weighed.amplitude[start, candidate]), c.misfit_of(candidate, problem.per_day),
    )  # fmt: skip


def log_likelihood(problem: Problem, active: Sequence[Active]) -> float:
    """Of the balance with these suspects, their columns' misfit in the variance; but for a constant."""
    residual, parts, spread = problem.residual.copy(), [problem.z], np.zeros(len(problem.z))
    for one in active:
        residual -= one.mean * one.column
        parts.append(one.sd * one.column[:, None])
        spread += (one.misfit * one.amplitude * one.column) ** 2
    weight = problem.usual / (1 + problem.usual * spread)
    v = np.concatenate(parts, axis=1)
    weighted = v * weight[:, None]
    lower = cholesky(weighted.T @ v + np.eye(v.shape[1]), lower=True)
    shared = solve_triangular(lower, weighted.T @ residual, lower=True)
    squares = float((weight * residual**2).sum() - shared @ shared)
    used = weight > 0
    return -0.5 * squares - float(np.log(np.diag(lower)).sum()) + 0.5 * float(np.log(weight[used]).sum())
