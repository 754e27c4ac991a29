"""Intervals cover what they say whatever the errors are like, and know nothing of errors to come."""

import numpy as np
import pytest

from cloud.engines.forecast.quantiles import offsets

ORIGINS, FIRST, STEPS = 42 + 84, 42, 24
LEVELS = (0.1, 0.5, 0.9)


def noise(how: str, series: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors, point and how far members are apart, each (E, S, N)."""
    rng = np.random.default_rng(seed)
    shape = (ORIGINS, series, STEPS)
    errors = rng.standard_normal(shape)
    point = 100 + 20 * np.sin(np.arange(STEPS) / 4) * np.ones(shape)
    apart = np.ones(shape)
    if how == "heavy tails":
        errors = rng.standard_t(2.5, shape)
    elif how == "noise doubles":
        errors[FIRST + 28 :] *= 2
    elif how == "noise halves":
        errors[FIRST + 28 :] /= 2
    elif how == "skewed":
        errors = rng.exponential(1.0, shape) - 1
    elif how == "by the hour":
        errors *= 0.2 + np.arange(STEPS) / 6
    elif how == "by the forecast":
        point = 100 * np.exp(0.7 * rng.standard_normal(shape))
        errors *= point / 100
    elif how == "by what members say":
        apart = np.exp(0.7 * rng.standard_normal(shape))
        errors *= apart
    elif how == "days alike":
        errors += 1.5 * rng.standard_normal((ORIGINS, series, 1))
    elif how == "gaps":
        errors[rng.random(shape) < 0.3] = np.nan
    return errors * np.geomspace(0.1, 1000, series)[:, None], point, apart


def covered(errors: np.ndarray, point: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """(O, S, N) 1 inside, 0 outside, NaN unknown."""
    _, found = offsets(errors, point, apart, FIRST, 0, LEVELS)
    actual = errors[FIRST:]
    inside = (actual >= found[..., 0]) & (actual <= found[..., 2])
    return np.where(np.isfinite(actual), inside, np.nan)


KINDS = [
    "normal", "heavy tails", "noise doubles", "noise halves", "skewed", "by the hour", "by the forecast",
    "by what members say", "days alike", "gaps",
]  # fmt: skip


@pytest.mark.parametrize("series", [1, 20])
@pytest.mark.parametrize("how", KINDS)
def test_four_fifths_are_inside(how: str, series: int) -> None:
    inside = covered(*noise(how, series))
    assert np.nanmean(inside) == pytest.approx(0.8, abs=0.03)
    assert np.quantile(np.nanmean(inside, axis=(0, 2)), [0.05, 0.95]) == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("how", ["noise doubles", "noise halves"])
def test_a_change_of_noise_is_made_good_within_a_month(how: str) -> None:
    inside = covered(*noise(how, 20))
    after = np.nanmean(inside[28:35])
    assert abs(after - 0.8) > 0.04, "the case changes nothing"
    assert np.nanmean(inside[49:]) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("how", ["by the hour", "by the forecast", "by what members say"])
def test_intervals_are_wide_where_errors_are_large(how: str) -> None:
    errors, point, apart = noise(how, 20)
    size = {"by the hour": np.arange(STEPS) * np.ones(point.shape), "by the forecast": point}.get(how, apart)[FIRST:]
    inside = covered(errors, point, apart)
    low, high = np.quantile(size, [0.25, 0.75])
    # One width for all would cover nearly all of the small ones and little more than half of the large ones.
    assert np.nanmean(inside[size <= low]) < 0.91
    assert np.nanmean(inside[size >= high]) > 0.68


def test_the_middle_goes_to_the_median_where_that_is_not_the_mean() -> None:
    errors, point, apart = noise("skewed", 20)
    middle, found = offsets(errors, point, apart, FIRST, 0, LEVELS)
    actual = errors[FIRST:]
    missed = np.abs(actual - middle).mean(axis=(0, 2)) / np.abs(actual).mean(axis=(0, 2))
    assert missed.mean() < 0.97
    np.testing.assert_allclose(found[..., 1], middle)
    assert (actual < middle).mean() == pytest.approx(0.5, abs=0.03)


def test_the_middle_stays_where_errors_are_even() -> None:
    errors, point, apart = noise("normal", 20)
    middle, _ = offsets(errors, point, apart, FIRST, 0, LEVELS)
    actual = errors[FIRST:]
    assert np.abs(actual - middle).mean() < 1.003 * np.abs(actual).mean()


@pytest.mark.parametrize("lead", [0, 2])
def test_errors_that_are_not_known_yet_change_nothing(lead: int) -> None:
    errors, point, apart = noise("normal", 3)
    wanted = offsets(errors, point, apart, FIRST, lead, LEVELS)
    at = FIRST + 5
    errors[at - lead :] = 1e6
    got = offsets(errors, point, apart, FIRST, lead, LEVELS)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(one[:6], other[:6])
    assert not np.array_equal(got[1][6], wanted[1][6])
