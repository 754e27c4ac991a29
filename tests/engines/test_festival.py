"""A festival that moves is known again by its number, and teaches nothing wrong to the days around it."""

import dataclasses

import numpy as np
import pytest

from cloud.engines.forecast import Inputs, forecast
from cloud.engines.forecast.blocks import Blocks
from cloud.engines.forecast.festival import without

FIRST, SECOND = 120, 474  # eleven days earlier in the year


def made(*, told: bool = True, net: bool = False) -> Inputs:
    """Load halves over eight days and fades in and out of it; the second time 354 days after the first."""
    days, series = 510, 3
    rng = np.random.default_rng(3)
    hour, date = np.arange(days * 24) % 24, np.arange(days * 24) // 24
    weekday = (np.arange(days) + 3) % 7
    effect = np.zeros(days)
    for begin in (FIRST, SECOND):
        at = np.arange(days) - begin
        effect += np.where((at >= 0) & (at < 8), 1.0, 0) + np.where((at < 0) & (at >= -6), (at + 7) / 7, 0)
        effect += np.where((at >= 8) & (at < 16), (16 - at) / 9, 0)
    depth = np.array([0.6, 0.5, 0.2])[:, None]
    load = (50 + 20 * np.sin((hour - 9) / 24 * 2 * np.pi)) * np.where(weekday >= 5, 0.9, 1.0)[date]
    load = load * (1 - depth * effect[date]) * (1 + 0.005 * rng.standard_normal((series, days))[:, date])
    load = load + 0.3 * rng.standard_normal(load.shape) - (60 if net else 0)
    kind = np.where(weekday == 5, 1, np.where(weekday == 6, 2, 0)).astype(np.int8)
    holiday, nth = np.zeros(days, np.int16), np.zeros(days, np.int16)
    for begin in (FIRST, SECOND) if told else ():
        kind[begin : begin + 8], holiday[begin : begin + 8], nth[begin : begin + 8] = 3, 4, np.arange(1, 9)
    start = np.datetime64("1970-01-01T00:00", "m")
    return Inputs(load, 60, start, kind, holiday, nth, np.empty((0, days * 24)), np.empty(0, np.int64))


def missed(inputs: Inputs, days: np.ndarray) -> float:
    point = forecast(inputs, days * 24, 24, members=("naive1", "mean4", "pooled")).point
    actual = np.stack([inputs.load[:, day * 24 : day * 24 + 24] for day in days])
    return float(np.abs(point - actual).mean())


@pytest.mark.parametrize("net", [False, True])
def test_one_occurrence_teaches_the_next_whatever_its_date(net: bool) -> None:
    festival, after = np.arange(SECOND, SECOND + 8), np.arange(SECOND + 8, SECOND + 16)
    told, untold = made(net=net), made(told=False, net=net)
    # Untold, the quantiles' middle learns half of the fall within its eight days.
    assert missed(told, festival) < 0.7 * missed(untold, festival)
    assert missed(told, after) < 0.6 * missed(untold, after)
    assert missed(told, festival) < 1.7  # of 28


@pytest.mark.parametrize("late", [0, 6])
def test_nothing_after_an_origin_changes_its_forecast_in_a_festival(late: int) -> None:
    inputs, at = made(), np.arange(SECOND - 3, SECOND + 4) * 24 + late
    members = ("naive1", "pooled")
    wanted = forecast(inputs, at, 42, members=members)
    for nth in (1, 4, 6):
        load = inputs.load.copy()
        load[:, at[nth] :] = 1e4
        got = forecast(dataclasses.replace(inputs, load=load), at, 42, members=members)
        np.testing.assert_allclose(got.point[: nth + 1], wanted.point[: nth + 1], rtol=1e-9)
        np.testing.assert_allclose(got.quantiles[: nth + 1], wanted.quantiles[: nth + 1], rtol=1e-9)


def test_a_festival_is_known_before_it_ends() -> None:
    """As in operation: one origin, the morning before, and a calendar that goes on."""
    day = SECOND + 1
    told = made()
    cut = dataclasses.replace(told, load=told.load[:, : (day + 1) * 24], weather=told.weather[:, : (day + 1) * 24])
    members = ("naive1", "pooled")
    alone = forecast(cut, np.array([day * 24]), 24, members=members)
    among = forecast(told, np.array([day * 24]), 24, members=members)
    np.testing.assert_allclose(alone.point, among.point, rtol=1e-9)
    actual = told.load[:, day * 24 : (day + 1) * 24]
    assert np.abs(alone.point[0] - actual).mean() < 0.1 * actual.mean()


def test_far_from_a_festival_load_is_taken_as_it_is() -> None:
    untold, told = (Blocks.cut(made(told=told), np.array([(SECOND + 1) * 24]), 24) for told in (False, True))
    assert without(untold, SECOND - 3, SECOND) is None
    assert without(told, SECOND - 60, SECOND - 30) is None
    plain = without(told, SECOND - 60, SECOND)
    assert plain is not None
    assert not plain.felt[SECOND - 30].any()
    assert plain.felt[SECOND].all()


def test_gaps_in_a_festival_are_lived_with() -> None:
    inputs = made()
    load = inputs.load.copy()
    load[1, FIRST * 24 : (FIRST + 8) * 24] = np.nan
    load[2, : 300 * 24] = np.nan
    days = np.arange(SECOND - 2, SECOND + 12)
    result = forecast(dataclasses.replace(inputs, load=load), days * 24, 24, members=("naive1", "pooled"))
    assert np.isfinite(result.quantiles).all()
    actual = np.stack([inputs.load[1, day * 24 : day * 24 + 24] for day in days])
    # What the other series did there stands for what this one's gap hides.
    assert np.abs(result.point[:, 1] - actual).mean() < 8
