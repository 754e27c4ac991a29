"""Gaps of customers, settled with what the head saw."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud.engines.loss.balance import Meters, aligned_steps, fill
from cloud.engines.loss.gaps import settle
from cloud.engines.loss.technical import TAN_PHI, _reactive

Array = NDArray[np.float64]
DAY = 96


@pytest.fixture(scope="module", params=range(4))
def theft(request: pytest.FixtureRequest) -> tuple[Array, Array, Array]:
    """Loads (T, 30) Wh with a rhythm, what their meters recorded, and what the fourth stole from the middle on."""
    rng = np.random.default_rng(request.param)
    steps = 40 * DAY
    hour = np.arange(steps) % DAY / 4
    load = 100 * (1.2 + np.sin((hour - 12) * np.pi / 12))[:, None] * rng.gamma(2, 0.5, (steps, 30))
    stolen = np.where(np.arange(steps) >= steps // 2, 0.2 * load[:, 3], 0.0)
    recorded = load.copy()
    recorded[:, 3] -= stolen
    return load, recorded, stolen


def test_the_head_says_what_a_silent_customer_drew(theft: tuple[Array, Array, Array]) -> None:
    """3 % of the intervals missing, and two mornings of the head."""
    load, recorded, stolen = theft
    missing = np.random.default_rng(9).random(load.shape) < 0.03
    drawn = fill(np.where(missing, np.nan, recorded), DAY)
    seen = load.sum(axis=1)
    for day in (10, 30):
        seen[day * DAY + 24 : day * DAY + 48] = np.nan
    sides = Meters(fill(seen[:, None], DAY), np.zeros(1)), Meters(drawn, np.zeros(30))
    use = aligned_steps(*sides)
    settled = settle(seen, drawn, np.zeros(len(seen)), use, DAY)
    there = missing & use[:, None]
    before, after = ((wh - recorded)[there] for wh in (drawn.wh, settled.drawn.wh))
    assert np.sqrt((after**2).mean()) < 0.85 * np.sqrt((before**2).mean())
    own = float(np.sqrt((settled.drawn.sd_wh**2 * settled.drawn.spread)[there].sum()))
    assert abs(settled.rest_wh.sum() - stolen.sum()) < 3 * np.hypot(own, settled.gap_sd_wh)
    assert np.array_equal(settled.drawn.wh[~missing], recorded[~missing])
    np.testing.assert_allclose((seen - settled.drawn.wh.sum(axis=1))[use], settled.rest_wh[use], atol=1e-6)


def test_the_reactive_power_behind_a_roof_stays() -> None:
    """Twelve houses with one rhythm and a factor each; one has a roof that covers it at noon."""
    steps = 10 * DAY
    hour = np.arange(steps) % DAY / 4
    load = (2 + np.sin(hour * np.pi / 12))[:, None] * np.linspace(50, 150, 12)
    sun = np.where((hour > 7) & (hour < 17), 300.0, 0.0)
    net = load.copy()
    net[:, 4] -= sun
    varh = _reactive(net, net < 0, DAY)
    np.testing.assert_allclose(varh, load * TAN_PHI, rtol=1e-6)
    np.testing.assert_allclose(_reactive(load, load < 0, DAY), load * TAN_PHI)
    # One wrong reading below zero is no roof.
    wrong = load.copy()
    wrong[500, 3] = -40.0
    np.testing.assert_allclose(_reactive(wrong, wrong < 0, DAY), np.maximum(wrong, 0) * TAN_PHI)
