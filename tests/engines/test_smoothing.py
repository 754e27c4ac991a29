"""The smoothed day: true to what repeats, quick after a level shift, silent before it has seen anything."""

import numpy as np
import pytest

from cloud.engines.forecast import Inputs
from cloud.engines.forecast.blocks import Blocks
from cloud.engines.forecast.smoothing import smoothing

DAY, DAYS = 24, 70
SHAPE = 50 + 20 * np.sin(np.arange(DAY) / 24 * 2 * np.pi)
WEEKDAY = (np.arange(DAYS) + 3) % 7


def loads(weekend: float = 0.7) -> np.ndarray:
    """(S, T) of two series that repeat themselves."""
    day = np.where(WEEKDAY >= 5, weekend, 1.0)[:, None] * SHAPE
    return np.stack([day.ravel(), 3 * day.ravel()])


def smoothed(load: np.ndarray, first: int, last: int, horizon: int = DAY, late: int = 0) -> np.ndarray:
    kind = np.where(WEEKDAY == 5, 1, np.where(WEEKDAY == 6, 2, 0)).astype(np.int8)
    none = np.zeros(DAYS, np.int16)
    start = np.datetime64("1970-01-01T00:00", "m")
    no_weather = np.zeros((0, load.shape[1])), np.zeros(0, np.int64)
    inputs = Inputs(load, 60, start, kind, none, none, *no_weather)
    blocks = Blocks.cut(inputs, np.arange(first, last + 1) * DAY + late, horizon)
    origins = blocks.origins
    return smoothing(blocks, int(origins[0]), int(origins[-1]))


@pytest.mark.parametrize("late", [0, 7])
def test_what_repeats_itself_is_forecast_nearly_so(late: int) -> None:
    load = loads()
    made = smoothed(load, 56, 66, 2 * DAY, late)
    for lead in range(2):
        for nth in range(11):
            at = (56 + nth + lead) * DAY + late
            np.testing.assert_allclose(made[nth, lead], load[:, at : at + DAY], rtol=0.03)


def test_a_level_shift_is_followed_within_days() -> None:
    load = loads(1.0)
    load[:, 50 * DAY :] += 30
    made = smoothed(load, 50, 56)[:, 0]
    missed = np.abs(made - load[:, 50 * DAY : 57 * DAY].reshape(2, 7, DAY).swapaxes(0, 1)).mean(axis=(1, 2))
    assert missed[0] == pytest.approx(30, rel=0.01)
    assert missed[3] < 10
    assert missed[6] < 5


def test_three_days_are_enough_and_none_is_silence() -> None:
    load = loads(1.0)
    load[1, : 57 * DAY] = np.nan
    made = smoothed(load, 56, 60)[:, 0]
    assert np.isnan(made[:2, 1]).all()
    np.testing.assert_allclose(made[4, 1], 3 * SHAPE, rtol=0.01)


def test_gaps_teach_nothing() -> None:
    load = loads(1.0)
    load[:, 40 * DAY : 45 * DAY] = np.nan
    load[0, 50 * DAY + 3 : 50 * DAY + 9] = np.nan
    made = smoothed(load, 46, 60)[:, 0]
    np.testing.assert_allclose(made, np.broadcast_to(np.stack([SHAPE, 3 * SHAPE]), made.shape), rtol=0.01)
