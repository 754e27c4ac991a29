"""The forecast knows nothing of the future, lives with gaps and short histories, and beats the weekday mean."""

import dataclasses

import numpy as np
import pytest

from cloud.engines.forecast import LEVELS, MEMBERS, Inputs, forecast

DAY = 24


def made(days: int, series: int = 3, *, seed: int = 5, day: int = DAY, after: int = 3) -> Inputs:
    """A daily shape, quieter weekends, a level that wanders, heating by a temperature that is known ahead."""
    rng = np.random.default_rng(seed)
    step = np.arange((days + after) * day)
    hour, date = step % day * 24 / day, step // day
    shape = 40 + 15 * np.sin((hour - 9) / 24 * 2 * np.pi) + 25 * np.exp(-(((hour - 19) / 2) ** 2))
    weekday = (np.arange(days + after) + 3) % 7
    weekend = np.where(weekday >= 5, 0.8, 1.0)
    level = 1 + 0.03 * np.cumsum(rng.standard_normal((series, days + after)), axis=1)[:, date]
    cold = 5 * np.sin(date / 5) - 5 + 3 * np.sin(hour / 24 * 2 * np.pi)
    load = shape * weekend[date] * level + 0.5 * np.maximum(0, -cold) + rng.standard_normal((series, len(step)))
    kind = np.where(weekday == 5, 1, np.where(weekday == 6, 2, 0)).astype(np.int8)
    none = np.zeros(days + after, np.int16)
    start = np.datetime64("1970-01-01T00:00", "m")
    return Inputs(load, 1440 // day, start, kind, none, none, cold[None], np.array([10**6]))


def origins(days: int, count: int = 7, *, day: int = DAY, late: int = 0) -> np.ndarray:
    return (np.arange(days - count, days) * day + late).astype(np.int64)


@pytest.mark.parametrize("late", [0, 6])
@pytest.mark.parametrize("member", [*MEMBERS, None])
def test_nothing_at_or_after_an_origin_changes_its_forecast(member: str | None, late: int) -> None:
    inputs = made(40)
    at = origins(39, 3, late=late)
    chosen = tuple(MEMBERS) if member is None else (member,)
    wanted = forecast(inputs, at, 42, members=chosen)
    for nth, origin in enumerate(at):
        load = inputs.load.copy()
        load[:, origin:] = np.random.default_rng(1).standard_normal(load[:, origin:].shape) * 1e4
        got = forecast(dataclasses.replace(inputs, load=load), at, 42, members=chosen)
        np.testing.assert_allclose(got.point[: nth + 1], wanted.point[: nth + 1], rtol=1e-9)
        np.testing.assert_allclose(got.quantiles[: nth + 1], wanted.quantiles[: nth + 1], rtol=1e-9)


def test_quantiles_are_ordered_and_points_are_finite() -> None:
    result = forecast(made(40), origins(40), 48)
    assert result.quantiles.shape == (*result.point.shape, len(LEVELS)) == (7, 3, 48, 11)
    assert np.isfinite(result.quantiles).all()
    assert (np.diff(result.quantiles, axis=-1) >= 0).all()
    np.testing.assert_allclose(sum(result.weights.values()), 1)


def test_it_beats_the_weekday_mean() -> None:
    inputs, at = made(100), origins(100, 14)
    actual = np.stack([inputs.load[:, origin : origin + DAY] for origin in at])
    error = {name: np.abs(forecast(inputs, at, DAY, members=names).point - actual).mean()
             for name, names in {"mean4": ("mean4",), "ensemble": tuple(MEMBERS)}.items()}  # fmt: skip
    assert error["ensemble"] < 0.8 * error["mean4"]


def test_a_wrong_call_says_what_is_wrong() -> None:
    inputs = made(10)
    with pytest.raises(ValueError, match=r"members: naive1, .* got oracle"):
        forecast(inputs, origins(10), 24, members=("oracle",))
    with pytest.raises(ValueError, match="same time of day"):
        forecast(inputs, np.array([24, 49]), 24)
    with pytest.raises(ValueError, match="each needs history before it"):
        forecast(inputs, np.array([24 * 12]), 48)


def changed(how: str) -> Inputs:
    inputs = made(60)
    load = inputs.load.copy()
    one = load[1]
    if how == "gaps":
        load[np.random.default_rng(0).random(load.shape) < 0.3] = np.nan
        one[20 * DAY : 27 * DAY] = np.nan
    elif how == "zeros":
        one[:] = 0
    elif how == "constant":
        one[:] = 7
    elif how == "solar":
        one -= 200
    elif how == "level shift":
        one[38 * DAY :] *= 10
    elif how == "outage":
        one[30 * DAY : 33 * DAY] = 0
    elif how == "new meter":
        one[: 50 * DAY] = np.nan
    weather = inputs.weather.copy()
    if how == "late weather":
        weather[:, : 30 * DAY] = np.nan
    elif how == "no weather":
        weather[:] = np.nan
    return dataclasses.replace(inputs, load=load, weather=weather)


@pytest.mark.parametrize(
    "how",
    [
        "gaps", "zeros", "constant", "solar", "level shift", "outage", "new meter", "late weather", "no weather",
    ],
)  # fmt: skip
def test_a_strange_history_still_gives_a_sane_forecast(how: str) -> None:
    """At most a little worse than as yesterday."""
    inputs, at = changed(how), origins(60)
    result = forecast(inputs, at, DAY)
    assert np.isfinite(result.quantiles).all()
    actual = np.stack([inputs.load[1, origin : origin + DAY] for origin in at])
    ago = np.stack([inputs.load[1, origin - DAY : origin] for origin in at])
    missed, naive = np.nanmean(np.abs(result.point[:, 1] - actual)), np.nanmean(np.abs(ago - actual))
    assert missed <= 1.2 * naive + 0.01 * np.nanmean(np.abs(actual)) + 1e-3


def test_a_new_meter_is_forecast_from_its_three_days() -> None:
    inputs = made(60)
    inputs.load[1, : 57 * DAY] = np.nan
    result = forecast(inputs, np.array([60 * DAY]), DAY)
    actual = inputs.load[1, 60 * DAY : 61 * DAY]
    assert np.abs(result.point[0, 1] - actual).mean() < 0.25 * actual.mean()


def test_a_series_without_history_has_no_forecast() -> None:
    inputs = made(60)
    inputs.load[1] = np.nan
    result = forecast(inputs, origins(60), DAY)
    assert np.isnan(result.point[:, 1]).all()
    assert np.isnan(result.quantiles[:, 1]).all()
    assert np.isfinite(result.point[:, [0, 2]]).all()


@pytest.mark.parametrize("days", [1, 2, 3, 4, 8])
def test_few_days_are_enough_to_begin(days: int) -> None:
    result = forecast(made(days), np.array([days * DAY]), 2 * DAY)
    assert np.isfinite(result.quantiles).all()
    assert (result.point > 0).all()


def test_one_series_three_days_ahead_in_quarter_hours_from_an_odd_hour() -> None:
    result = forecast(made(30, 1, day=96), origins(30, 2, day=96, late=37), 288)
    assert result.point.shape == (2, 1, 288)
    assert np.isfinite(result.quantiles).all()


def test_weather_beyond_its_lead_is_not_used() -> None:
    inputs = dataclasses.replace(made(60), weather_lead=np.array([30]))
    at = np.array([60 * DAY])
    wanted = forecast(inputs, at, 48)
    weather = inputs.weather.copy()
    weather[:, 60 * DAY + 30 :] = 99.0
    got = forecast(dataclasses.replace(inputs, weather=weather), at, 48)
    np.testing.assert_allclose(got.point, wanted.point)
    weather[:, 60 * DAY + 3 :] = 99.0
    assert not np.allclose(forecast(dataclasses.replace(inputs, weather=weather), at, 48).point, wanted.point)
