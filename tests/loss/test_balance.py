"""The balance of an area: hand-worked cases, and errors that are as large as they say."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud.engines.loss import balance
from cloud.engines.loss.balance import STATES, Balance, Errors, Limits, Meters, fill
from cloud.engines.loss.fitted import PastError, fit_technical

Array = NDArray[np.float64]
DAY = 96


def area(
    head_wh: Array, drawn_wh: Array, technical_wh: Array | None, window: NDArray[np.intp], gain: float = 1.0
) -> Balance:
    """Of a class 0.2 head and class 1 customers, times ``gain``."""
    head = Meters(fill(head_wh, DAY), np.full(head_wh.shape[1], 0.001 * gain))
    drawn = Meters(fill(drawn_wh, DAY), np.full(drawn_wh.shape[1], 0.005 * gain))
    return balance.balance(
        head, drawn, np.zeros(len(head_wh)), technical_wh, window, use=balance.aligned_steps(head, drawn), step_s=900,
        errors=Errors(), limits=Limits(),
    )  # fmt: skip


def loads(steps: int, meters: int, seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    shape = 300 + 200 * np.sin(2 * np.pi * np.arange(steps) / DAY)[:, None]
    return np.asarray(shape * rng.uniform(0.3, 2, meters) * rng.lognormal(0, 0.2, (steps, meters)))


@pytest.mark.parametrize(("loss", "state"), [(0.04, "normal"), (0.12, "high"), (-0.05, "negative")])
def test_a_day_is_normal_high_or_negative_beyond_its_uncertainty(loss: float, state: str) -> None:
    drawn = loads(DAY, 20)
    head = drawn.sum(axis=1, keepdims=True) / (1 - loss)
    found = area(head, drawn, np.zeros(DAY), np.zeros(DAY, np.intp))
    assert STATES[found.state[0]] == state
    assert found.supplied_wh[0] - found.delivered_wh[0] == pytest.approx(loss * head.sum())
    assert ("limit" in found.reason[0] or "below" in found.reason[0]) == (state != "normal")


def test_just_above_the_limit_is_not_high_while_the_meters_may_be_wrong_by_more() -> None:
    drawn = loads(DAY, 1)
    found = area(drawn / (1 - 0.0801), drawn, None, np.zeros(DAY, np.intp))
    assert STATES[found.state[0]] == "normal"


def test_without_the_head_an_interval_is_not_computable_and_the_day_says_so() -> None:
    drawn = loads(2 * DAY, 5)
    head = drawn.sum(axis=1, keepdims=True) * 1.03
    head[DAY:] = np.nan
    found = area(head, drawn, None, np.arange(2 * DAY) // DAY)
    assert [STATES[state] for state in found.state] == ["normal", "not_computable"]
    assert found.reason[1] == "no reading from the head meter; visit or replace"
    assert np.isnan(found.supplied_wh[1])
    assert list(found.aligned) == [96, 0]


def test_a_missing_customer_interval_is_filled_and_its_error_is_carried_on() -> None:
    drawn = loads(14 * DAY, 30)
    head = drawn.sum(axis=1, keepdims=True)
    holes = drawn.copy()
    holes[np.random.default_rng(1).random(drawn.shape) < 0.02] = np.nan
    whole, filled = (area(head, x, None, np.zeros(len(head), np.intp), gain=0) for x in (drawn, holes))
    assert filled.aligned[0] > 0.95 * len(head)
    assert abs(filled.loss_wh[0]) < 3 * filled.loss_sd_wh[0]
    assert filled.loss_sd_wh[0] > whole.loss_sd_wh[0]


def test_filled_values_miss_by_what_they_say() -> None:
    truth = loads(28 * DAY, 40)
    holes = truth.copy()
    rng = np.random.default_rng(2)
    holes[rng.random(truth.shape) < 0.02] = np.nan
    holes[1000:1024, 5] = np.nan
    found = fill(holes, DAY)
    miss = ((found.wh - truth) / np.where(found.sd_wh > 0, found.sd_wh, 1))[found.filled]
    assert 0.9 < miss.std() < 1.15
    assert abs(miss.mean()) < 0.05
    np.testing.assert_array_equal(found.wh[~found.filled], truth[~found.filled])


def test_eighty_percent_intervals_hold_the_unexplained_energy_of_80_percent_of_areas() -> None:
    """Gains, clocks and registers drawn as the balance takes them to be: 400 areas of a week, coverage 75-85 %."""
    rng = np.random.default_rng(3)
    steps, meters, held = 7 * DAY, 12, []
    truth = loads(steps, meters)
    for _ in range(400):
        seen = np.column_stack([truth.sum(axis=1), truth])
        late = rng.normal(0, 60, meters + 1) / 900
        after, before = np.roll(seen, -1, axis=0), np.roll(seen, 1, axis=0)
        seen = seen + np.maximum(late, 0) * (after - seen) + np.maximum(-late, 0) * (before - seen)
        seen *= 1 + rng.normal(0, 1, meters + 1) * np.r_[0.001, np.full(meters, 0.005)]
        register = np.floor(
            (np.cumsum(np.vstack([np.zeros(meters + 1), seen]), axis=0) + rng.uniform(0, 10, meters + 1)) / 10
        )
        seen = np.diff(register, axis=0) * 10
        found = area(seen[:, :1], seen[:, 1:], np.zeros(steps), np.zeros(steps, np.intp))
        held.append(found.lo_wh[0] <= 0 <= found.hi_wh[0])
    assert 0.75 <= np.mean(held) <= 0.85


def test_a_meter_never_read_makes_the_balance_not_computable() -> None:
    drawn = loads(DAY, 3)
    head = drawn.sum(axis=1, keepdims=True)
    drawn[:, 1] = np.nan
    assert STATES[area(head, drawn, None, np.zeros(DAY, np.intp)).state[0]] == "not_computable"


@pytest.mark.parametrize(
    ("name", "supply", "sd"),
    [("0.2S", True, 0.001), ("1", False, 0.005), ("C", False, 0.0025), ("", True, 0.001), (None, False, 0.005)],
)
def test_gain_of_an_accuracy_class(name: str | None, supply: bool, sd: float) -> None:
    assert balance.gain_sd(name, supply) == pytest.approx(sd)


def test_the_fit_finds_no_load_and_load_loss_and_says_how_sure_it_is() -> None:
    drawn = loads(40 * DAY, 25)
    power = drawn.sum(axis=1)
    technical = 60 + 2e-6 * power**2
    rng = np.random.default_rng(4)
    supplied = power + technical + rng.normal(0, 20, len(power))
    supplied[30 * DAY :] += 500  # a theft that starts after the past
    past = np.arange(len(power)) < 30 * DAY
    found = fit_technical(supplied, drawn, past, np.full(len(power), 20.0), 0.0005, steps_per_day=DAY)
    late = ~past
    # The head itself is a little higher, so that the square of it is, too.
    assert found.technical_wh[late].sum() == pytest.approx(technical[late].sum(), rel=0.08)
    error = found.technical_wh[past].sum() - technical[past].sum()
    assert abs(error) < 4 * found.sd(found.features[past].sum(axis=0)[None])[0] + 0.01 * technical[past].sum()
    with pytest.raises(PastError, match="10 intervals"):
        fit_technical(
            supplied, drawn, past & (np.arange(len(power)) < 10), np.full(len(power), 20.0), 0.0005, steps_per_day=DAY
        )
