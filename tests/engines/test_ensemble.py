"""Shares go to who misses least, by part of the day, are not decided by one bad day, and sum to one."""

import numpy as np

from cloud.engines.forecast.ensemble import PARTS, mix, weigh

DAYS, SERIES, STEPS = 40, 3, 24


def errors(sizes: tuple[float, ...], seed: int = 2) -> np.ndarray:
    """(E, M, S, N) of members that miss independently by so much."""
    rng = np.random.default_rng(seed)
    found: np.ndarray = rng.standard_normal((DAYS, len(sizes), SERIES, STEPS)) * np.array(sizes)[:, None, None]
    return found


def test_shares_sum_to_one_and_begin_equal() -> None:
    shares = weigh(errors((1.0, 2.0, 3.0)))
    assert shares.shape == (DAYS, 3, SERIES, PARTS)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares[0], 1 / 3)


def test_independent_members_count_by_their_precision() -> None:
    shares = weigh(errors((1.0, 2.0)))[-1].mean(axis=(1, 2))
    np.testing.assert_allclose(shares, [0.8, 0.2], atol=0.08)


def test_who_is_good_in_the_evening_counts_then() -> None:
    missed = errors((1.0, 1.0))
    missed[:, 0, :, : STEPS // 2] *= 4
    missed[:, 1, :, STEPS // 2 :] *= 4
    shares = weigh(missed)[-1]
    assert (shares[1, :, : PARTS // 2] > 0.7).all()
    assert (shares[0, :, PARTS // 2 :] > 0.7).all()


def test_one_hour_far_off_does_not_decide() -> None:
    missed = errors((1.0, 1.6))
    before = weigh(missed)[-1, 0].mean()
    missed[-3, 0, :, 5] = 20.0
    after = weigh(missed)[-1, 0]
    assert after.mean() > before - 0.1
    assert after[:, PARTS // 2 :].min() > 0.5


def test_a_member_that_was_silent_is_not_trusted_at_once() -> None:
    missed = errors((1.0, 1.0, 1.0))
    missed[:30, 2] = np.nan
    shares = weigh(missed)
    assert shares[31, 2].max() < shares[31, :2].min()
    assert shares[-1, 2].mean() > shares[31, 2].mean()


def test_a_silent_member_leaves_its_share_to_the_others() -> None:
    guesses = np.stack([np.full((2, 1, SERIES, STEPS), value) for value in (1.0, 3.0, np.nan)])
    shares = np.broadcast_to(np.array([0.3, 0.1, 0.6])[None, :, None, None], (2, 3, SERIES, PARTS))
    point, apart = mix(guesses, shares)
    np.testing.assert_allclose(point, 1.5)
    np.testing.assert_allclose(apart, np.sqrt(0.75 * 0.25 + 0.25 * 2.25))
    assert np.isnan(mix(np.full_like(guesses, np.nan), shares)[0]).all()
