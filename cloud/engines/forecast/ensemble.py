"""How much each member counts, per series and part of the day, by what it has missed before."""

from math import gcd
from typing import Final

import numpy as np

from cloud.engines.forecast.inputs import Array

PARTS: Final = 8  # of the day, that have their own shares and their own distribution of errors
_HALF_LIFE: Final = 21.0  # days
_SHRINK: Final = 5.0  # days of evidence that all series share
_SHRINK_PART: Final = 10.0  # … and the parts of a day
_SILENT: Final = 1.5  # as the ensemble's error, what a silent member is taken to have missed
_FLOOR: Final = 0.3  # of the day's mean error, below which a smaller one weighs no more
_STEPS: Final = 3  # of the gradient a day, from where it was the day before
_RATE: Final = 3.0
_EVEN: Final = 0.001  # of the shares is dealt out again each day, so that who was bad or silent can come back


def parts_of(steps: int) -> int:
    """Equal parts of a day of so many steps."""
    return gcd(steps, PARTS)


def weigh(errors: Array) -> Array:
    """Shares (E, M, S, P) of M members at E successive origins, by part of the day, from what each missed earlier.

    errors: (E, M, S, N) of the first block from each origin; NaN where either side is missing.  The shares minimise the
    ensemble's own past error on the simplex (Bates and Granger 1969) by exponentiated gradient, each day scaled by how
    hard it was.  Squares are divided by the root of what the ensemble missed there, which lies between the mean's and
    the median's loss: a rare big error does not decide.  Young evidence is filled up with that of the whole day and of
    all series; at first all are equal.
    """
    count, members, series, steps = errors.shape
    parts = parts_of(steps)
    shares = np.full((count, members, series, parts), 1 / members)
    if members == 1:
        return shares
    past = np.zeros((series, parts, members, members))
    weight = np.zeros(series)
    fade = 0.5 ** (1 / _HALF_LIFE)
    for origin in range(1, count):
        share = shares[origin - 1].transpose(1, 2, 0)  # (S, P, M)
        made = errors[origin - 1]
        missing = np.isnan(made)
        quiet = missing.all(axis=2)
        quiet &= ~quiet.all(axis=0)
        # A step that any of the others lacks says nothing about who is better.
        made = np.where((missing & ~quiet[..., None]).any(axis=0), 0.0, np.where(missing, 0.0, made))
        said = np.where(quiet, 0.0, share.mean(axis=1).T)
        missed = (made * (said / np.maximum(said.sum(axis=0), 1e-12))[..., None]).sum(axis=0)
        if quiet.any():
            made = np.where(quiet[..., None], _SILENT * missed, made)
        hard = np.abs(made).mean(axis=(0, 2))
        ease = 1 / np.sqrt(np.maximum(np.abs(missed), _FLOOR * hard[:, None] + 1e-12))
        ease /= ease.mean(axis=1, keepdims=True)
        eased = (made * np.sqrt(ease)).reshape(members, series, parts, -1).transpose(1, 2, 0, 3)
        day = eased @ eased.swapaxes(2, 3) / eased.shape[3]
        seen = hard > 0
        past = fade * past + day * np.where(seen, 1 / np.where(seen, hard, 1) ** 2, 0.0)[:, None, None, None]
        weight = fade * weight + seen
        if not weight.any():
            continue
        whole = past.mean(axis=1)
        mean = (whole + _SHRINK * whole.sum(axis=0) / weight.sum()) / (weight + _SHRINK)[:, None, None]
        mean = (past + _SHRINK_PART * mean[:, None]) / (weight + _SHRINK_PART)[:, None, None, None]
        mean *= members / np.einsum("spmm->sp", mean)[..., None, None]
        share = (1 - _EVEN) * share + _EVEN / members  # fixed share: Herbster and Warmuth 1998
        for _ in range(_STEPS):
            share = share * np.exp(-_RATE * (mean @ share[..., None])[..., 0])
            share /= share.sum(axis=2, keepdims=True)
        shares[origin] = share.transpose(2, 0, 1)
    return shares


def mix(guesses: Array, shares: Array) -> tuple[Array, Array]:
    """Weighted mean (E, K, S, N) of guesses (M, E, K, S, N) and how far they are apart, its standard deviation.

    shares: (E, M, S, P).  A member that is silent (NaN) leaves its share to the others.
    """
    members, count, ahead, series, steps = guesses.shape
    wide = guesses.reshape(members, count, ahead, series, shares.shape[3], -1)
    total = np.zeros(wide.shape[1:])
    first, second = np.zeros_like(total), np.zeros_like(total)
    for member, guess in enumerate(wide):
        share = np.where(np.isfinite(guess), shares[:, member, None, :, :, None], 0.0)
        total += share
        first += share * np.nan_to_num(guess)
    there = total > 0
    total = np.where(there, total, 1.0)
    mean = first / total
    for member, guess in enumerate(wide):
        share = np.where(np.isfinite(guess), shares[:, member, None, :, :, None], 0.0)
        second += share * (np.nan_to_num(guess) - mean) ** 2
    apart = np.sqrt(second / total)
    shape = (count, ahead, series, steps)
    return np.where(there, mean, np.nan).reshape(shape), apart.reshape(shape)
