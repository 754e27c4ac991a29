"""Ridges solved every 16 days forecast what a fit anew each day forecasts; columns less their usual day, as defined."""

import numpy as np
import pytest

from cloud.engines.forecast.features import take_usual, usual
from cloud.engines.forecast.recursive import Penalty, rolling_ridge

SERIES, STEPS, BLOCKS, OWN, SHARED = 3, 4, 90, 2, 3
FIRST, LAST = 40, 79  # more than two solutions apart


def fitted_daily(told: np.ndarray, shared: np.ndarray, lead: int, penalty: Penalty) -> np.ndarray:
    """The definition: one fit for each origin, series and step, and one for each origin and step over all series."""
    own, y = told[:, :, :-1], told[:, :, -1]
    x = np.concatenate([np.broadcast_to(shared, (SERIES, *shared.shape)), own], axis=2)  # (S, N, C + L, B)
    sizes = (x[..., :FIRST] ** 2).mean(axis=(0, 1, 3)) + 1e-4
    found = np.empty((LAST + 1 - FIRST, SERIES, STEPS))
    for origin in range(FIRST, LAST + 1):
        past = x[..., :origin]
        gram = past @ past.swapaxes(2, 3)
        moment = np.einsum("snwb,snb->snw", past, y[..., :origin])
        pull_to = np.zeros((STEPS, len(sizes)))
        if penalty.common is not None:
            around = [np.roll(np.arange(STEPS), shift) for shift in (-1, 0, 1)]
            grams = sum(gram.sum(axis=0)[at] for at in around) + np.diag(penalty.common * sizes)
            pull_to = np.linalg.solve(grams, sum(moment.sum(axis=0)[at] for at in around)[..., None])[..., 0]
        own_gram = gram + np.diag(penalty.own * sizes)
        fit = np.linalg.solve(own_gram, (moment + penalty.own * sizes * pull_to)[..., None])[..., 0]
        found[origin - FIRST] = np.einsum("snw,snw->sn", fit, x[..., origin + lead])
    return found


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("penalty", [Penalty(3.0), Penalty(5.0, 2.0)])
def test_it_is_a_fit_anew_each_day(penalty: Penalty, lead: int) -> None:
    rng = np.random.default_rng(7)
    shared = rng.standard_normal((STEPS, SHARED, BLOCKS))
    told = rng.standard_normal((SERIES, STEPS, OWN + 1, BLOCKS))
    told[:, :, -1] = 1 + (told[:, :, :-1].sum(axis=2) + shared.sum(axis=1)) * rng.uniform(0.5, 1.5, (SERIES, 1, 1))
    told[:, :, -1] += 0.3 * rng.standard_normal((SERIES, STEPS, BLOCKS))
    wanted = fitted_daily(told, shared, lead, penalty)
    (found,) = rolling_ridge(told.copy(), shared, FIRST, LAST, lead, [penalty])
    assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("lead", [0, 1, 7])
def test_columns_less_their_usual_day(lead: int) -> None:
    x = np.random.default_rng(3).standard_normal((60, 4, 5))
    wanted = x - usual(x, lead)
    take_usual(x, lead)
    assert x == pytest.approx(wanted, abs=1e-12)
