"""Quantiles of errors made when things were alike."""

import numpy as np
import pytest

from cloud.engines.forecast.alike import quantiles
from cloud.engines.forecast.quantiles import offsets

LEVELS = np.array([0.05, 0.1, 0.5, 0.9, 0.95])


@pytest.mark.parametrize("series", [1, 12])
def test_where_all_is_alike_they_are_those_of_all_errors(series: int) -> None:
    errors = np.random.default_rng(1).gamma(2.0, 1.0, (60, series, 24)).astype(np.float32)
    found = quantiles(errors, np.zeros((60, series, 24, 2), np.float32), np.zeros((series, 24, 2), np.float32), LEVELS)
    wanted = np.quantile(errors.transpose(1, 0, 2).reshape(series, -1), LEVELS, axis=1).T
    pooled = np.quantile(errors, LEVELS)
    np.testing.assert_allclose(found[:, 5], (2 * wanted + pooled) / 3, rtol=0.08, atol=0.05)


def test_each_forecast_gets_the_errors_of_its_like() -> None:
    rng = np.random.default_rng(2)
    like = rng.uniform(-2, 2, (80, 3, 24, 1)).astype(np.float32)
    errors = (3 * like[..., 0] + 0.1 * rng.standard_normal((80, 3, 24))).astype(np.float32)
    now = np.linspace(-1.5, 1.5, 24, dtype=np.float32)[None, :, None] * np.ones((3, 1, 1), np.float32)
    found = quantiles(errors, 4 * like, 4 * now, LEVELS)
    np.testing.assert_allclose(found[..., 2], 3 * now[..., 0], atol=0.25)


def test_a_series_that_is_new_gets_those_of_the_others() -> None:
    errors = np.random.default_rng(3).standard_normal((40, 6, 24)).astype(np.float32)
    errors[:, 0] = np.nan
    found = quantiles(errors, np.zeros((40, 6, 24, 1), np.float32), np.zeros((6, 24, 1), np.float32), LEVELS)
    np.testing.assert_allclose(found[0, 0], np.nanquantile(errors, LEVELS), atol=0.15)
    nothing = quantiles(np.full_like(errors, np.nan), np.zeros((40, 6, 24, 1), np.float32),
                        np.zeros((6, 24, 1), np.float32), LEVELS)  # fmt: skip
    assert (nothing == 0).all()


def test_a_load_that_is_on_or_off_errs_down_from_above_and_up_from_below() -> None:
    rng = np.random.default_rng(4)
    high = rng.random((126, 5, 24)) < 0.5
    point = np.where(high, 80.0, 30.0)
    errors = np.where(high, -1, 1) * rng.exponential(10.0, point.shape)
    _, found = offsets(errors, point, np.ones(point.shape), 42, 0, (0.1, 0.9))
    inside = (errors[42:] >= found[..., 0]) & (errors[42:] <= found[..., 1])
    for here in (high[42:], ~high[42:]):
        assert inside[here].mean() == pytest.approx(0.8, abs=0.03)
    width = found[..., 1] - found[..., 0]
    spread = np.quantile(errors[42:], 0.9) - np.quantile(errors[42:], 0.1)
    assert width.mean() < 0.85 * spread
    assert found[..., 1][high[42:]].mean() < 5 < found[..., 1][~high[42:]].mean()


@pytest.mark.parametrize("steps", [5, 48, 80, 96])
def test_any_step_of_the_day_will_do(steps: int) -> None:
    errors = np.random.default_rng(5).standard_normal((60, 4, steps))
    middle, found = offsets(errors, 10 + np.zeros_like(errors), np.ones_like(errors), 50, 0, (0.1, 0.9))
    assert middle.shape == (10, 4, steps)
    assert np.isfinite(found).all()
    inside = (errors[50:] >= found[..., 0]) & (errors[50:] <= found[..., 1])
    assert inside.mean() == pytest.approx(0.8, abs=0.08)
