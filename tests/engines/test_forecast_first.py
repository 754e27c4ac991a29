"""The forecast knows nothing of the future, lives with gaps and short histories, and beats `as a week ago`."""

import numpy as np
import pytest

from cloud.engines.forecast.first import forecast, seasonal_naive

DAY = 96
HORIZON = 144


def minutes(steps: int, first_day: int = 0) -> np.ndarray:
    return (np.arange(steps) * 15 + first_day * 1440) % (7 * 1440)


def areas(days: int, seed: int = 5) -> np.ndarray:
    """(3, T) W: a daily shape, quieter weekends, a level that wanders from day to day, and noise."""
    rng = np.random.default_rng(seed)
    step = np.arange(days * DAY)
    hour, day = step % DAY / 4, step // DAY
    shape = 40 + 15 * np.sin((hour - 9) / 24 * 2 * np.pi) + 25 * np.exp(-(((hour - 19) / 2) ** 2))
    weekend = np.where(day % 7 >= 5, 0.85, 1.0)
    level = 1 + 0.1 * np.cumsum(rng.standard_normal((3, days)) * 0.5, axis=1)[:, day]
    load_w: np.ndarray = 1000 * shape * weekend * level * (1 + 0.03 * rng.standard_normal((3, len(step))))
    return load_w


def test_it_beats_seasonal_naive_on_35_days() -> None:
    load_w = areas(36 + 7)
    ours = naive = 0.0
    for day in range(35, 42):
        past, actual = load_w[:, (day - 35) * DAY : day * DAY], load_w[:, day * DAY : (day + 1) * DAY]
        calendar = minutes(36 * DAY, day - 35)
        ours += np.abs(forecast(past, calendar, DAY, DAY).p50_w - actual).sum()
        naive += np.abs(seasonal_naive(past, DAY, DAY) - actual).sum()
    assert ours < 0.7 * naive


def test_the_band_holds_most_of_what_happens() -> None:
    load_w = areas(50, seed=9)
    inside = []
    for day in range(40, 49):
        result = forecast(load_w[:, : day * DAY], minutes(day * DAY + HORIZON), HORIZON, DAY)
        actual = load_w[:, day * DAY : day * DAY + DAY]
        inside.append((result.p10_w[:, :DAY] <= actual) & (actual <= result.p90_w[:, :DAY]))
    assert 0.6 < np.mean(inside) < 0.97


@pytest.mark.parametrize("days", [3, 4, 8, 35])
def test_quantiles_are_finite_and_never_cross(days: int) -> None:
    load_w = areas(days)
    result = forecast(load_w, minutes(days * DAY + HORIZON), HORIZON, DAY)
    assert np.isfinite([result.p10_w, result.p50_w, result.p90_w]).all()
    assert (result.p10_w <= result.p50_w).all()
    assert (result.p50_w <= result.p90_w).all()


def test_nothing_after_an_origin_changes_its_forecast() -> None:
    """The same origin, once with what came later and once with garbage in its place."""
    load_w = areas(36)
    origin = 30 * DAY + 40
    garbage = load_w.copy()
    garbage[:, origin:] = 1e9
    first, second = (forecast(load[:, :origin], minutes(origin + HORIZON), HORIZON, DAY) for load in (load_w, garbage))
    for name in ("p10_w", "p50_w", "p90_w"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_a_day_nobody_foresaw_widens_the_band() -> None:
    load_w = areas(20)
    calm = forecast(load_w, minutes(20 * DAY + DAY), DAY, DAY)
    wild = load_w.copy()
    wild[:, -DAY:] *= 2
    surprised = forecast(wild, minutes(20 * DAY + DAY), DAY, DAY)
    assert (surprised.p90_w - surprised.p50_w).mean() > (calm.p90_w - calm.p50_w).mean()


def test_gaps_are_lived_with() -> None:
    load_w = areas(35)
    complete = forecast(load_w, minutes(35 * DAY + HORIZON), HORIZON, DAY).p50_w
    rng = np.random.default_rng(1)
    load_w[rng.random(load_w.shape) < 0.02] = np.nan
    load_w[:, 20 * DAY : 21 * DAY] = np.nan
    load_w[0, -6:] = np.nan
    gappy = forecast(load_w, minutes(35 * DAY + HORIZON), HORIZON, DAY).p50_w
    assert np.abs(gappy - complete).mean() < 0.03 * np.abs(complete).mean()


def test_a_series_without_any_load_is_unknown_and_harms_no_other() -> None:
    load_w = areas(10)
    alone = forecast(load_w[:2], minutes(10 * DAY + HORIZON), HORIZON, DAY).p50_w
    load_w[2] = np.nan
    result = forecast(load_w, minutes(10 * DAY + HORIZON), HORIZON, DAY)
    assert np.isnan(result.p50_w[2]).all()
    np.testing.assert_allclose(result.p50_w[:2], alone)


def test_zero_and_negative_load_are_load() -> None:
    load_w = areas(10) * np.array([[0.0], [-1.0], [1.0]])
    result = forecast(load_w, minutes(10 * DAY + HORIZON), HORIZON, DAY)
    np.testing.assert_array_equal(result.p50_w[0], 0)
    assert (result.p50_w[1] < 0).all()


def test_seasonal_naive_falls_back_to_the_day_before() -> None:
    load_w = np.arange(3 * 4, dtype=float)[None]  # 3 days of 4 steps
    np.testing.assert_array_equal(seasonal_naive(load_w, 6, 4), [[8, 9, 10, 11, 8, 9]])


def test_the_calendar_must_fit_the_history() -> None:
    with pytest.raises(ValueError, match="minute_of_week"):
        forecast(areas(3), minutes(10), HORIZON, DAY)
