"""Reconciled forecasts add up, move where errors were large, and need no more than what is there."""

import numpy as np
import pytest

from cloud.engines.forecast.coherence import ROOT, reconcile

# Substation 0 = feeders 1, 2; feeder 1 = areas 3, 4; feeder 2 = areas 5, 6, 7.
PARENTS = np.array([ROOT, 0, 0, 1, 1, 2, 2, 2])
CHILDREN = {0: [1, 2], 1: [3, 4], 2: [5, 6, 7]}


def forecasts(seed: int = 0, horizon: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    point = rng.normal(10, 3, (8, horizon))
    return point, point[:, :, None] + np.array([-2.0, 0.0, 2.0])


def past_errors(seed: int = 1, length: int = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    alone: np.ndarray = rng.normal(0, 1, (length, 8)) * np.array([4, 3, 3, 1, 1, 2, 1, 1])
    return alone + rng.normal(0, 0.5, (length, 1))


@pytest.mark.parametrize("length", [0, 1, 5, 30, 400])
def test_children_add_up_to_their_parent_however_short_the_past(length: int) -> None:
    point, quantiles = forecasts()
    moved, fan = reconcile(point, quantiles, PARENTS, past_errors(length=length))
    for parent, children in CHILDREN.items():
        np.testing.assert_allclose(moved[parent], moved[children].sum(axis=0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(fan - moved[:, :, None], quantiles - point[:, :, None], atol=1e-12)


def test_what_adds_up_already_stays() -> None:
    point, quantiles = forecasts()
    for parent in (1, 2, 0):
        point[parent] = point[CHILDREN[parent]].sum(axis=0)
    moved, _ = reconcile(point, quantiles, PARENTS, past_errors())
    np.testing.assert_allclose(moved, point, atol=1e-9)


def test_two_children_by_hand() -> None:
    """Independent errors: the gap is shared in proportion to the variances. 10 against 4 + 3 with 4 : 1 : 1 of 6."""
    signs = np.array([[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]] * 8)  # orthogonal columns
    errors = np.concatenate([signs, -signs]) * np.array([2.0, 1.0, 1.0])
    point = np.array([[10.0], [4.0], [3.0]])
    moved, _ = reconcile(point, point[:, :, None], np.array([ROOT, 0, 0]), errors)
    # Columns that are orthogonal have no correlation to shrink.
    np.testing.assert_allclose(moved[:, 0], [10 - 3 * 4 / 6, 4 + 3 / 6, 3 + 3 / 6])


def test_the_projection_is_mint_with_the_shrunk_covariance() -> None:
    """Against the textbook's S (Sᵀ W⁻¹ S)⁻¹ Sᵀ W⁻¹ ŷ with W built whole, and λ by its own double loop."""
    point, quantiles = forecasts()
    errors = past_errors(length=40) + 2 * np.random.default_rng(2).normal(0, 1, (40, 1))
    length, size = errors.shape
    deviation = np.sqrt((errors**2).mean(axis=0))
    unit = errors / deviation
    correlation = unit.T @ unit / length
    above = below = 0.0
    for i in range(size):
        for j in range(size):
            if i != j:
                product = unit[:, i] * unit[:, j]
                # Their var(r) = n / (n − 1)³ Σ (w − w̄)² for r = n / (n − 1) w̄.
                above += length / (length - 1) ** 3 * ((product - product.mean()) ** 2).sum()
                below += (length / (length - 1) * product.mean()) ** 2
    shrunk = min(1.0, above / below)
    assert 0.05 < shrunk < 0.95
    w = (shrunk * np.eye(size) + (1 - shrunk) * correlation) * np.outer(deviation, deviation)
    leaves = [3, 4, 5, 6, 7]
    s = np.zeros((size, len(leaves)))
    s[leaves, range(len(leaves))] = 1
    s[1], s[2] = s[3] + s[4], s[5] + s[6] + s[7]
    s[0] = s[1] + s[2]
    inverse = np.linalg.inv(w)
    expected = s @ np.linalg.solve(s.T @ inverse @ s, s.T @ inverse @ point)
    moved, _ = reconcile(point, quantiles, PARENTS, errors)
    np.testing.assert_allclose(moved, expected, atol=1e-9)


def test_it_pays_when_the_parents_are_noisy() -> None:
    """Truth adds up; forecasts err as their past did. No level gets worse, the noisy one better."""
    rng = np.random.default_rng(3)
    truth = rng.normal(10, 3, (8, 400))
    for parent in (1, 2, 0):
        truth[parent] = truth[CHILDREN[parent]].sum(axis=0)
    size = np.array([6, 3, 3, 1, 1, 1, 1, 1])
    point = truth + rng.normal(0, 1, truth.shape) * size[:, None]
    moved, _ = reconcile(point, point[:, :, None], PARENTS, rng.normal(0, 1, (300, 8)) * size)
    before, after = (np.abs(values - truth).mean(axis=1) for values in (point, moved))
    assert after[0] < 0.6 * before[0]
    assert (after < 1.02 * before).all()


def test_a_series_without_a_forecast_releases_its_parent_alone() -> None:
    point, quantiles = forecasts()
    point[4] = np.nan
    moved, _ = reconcile(point, quantiles, PARENTS, past_errors())
    np.testing.assert_allclose(moved[0], moved[[1, 2]].sum(axis=0))
    np.testing.assert_allclose(moved[2], moved[[5, 6, 7]].sum(axis=0))
    assert np.isfinite(np.delete(moved, 4, axis=0)).all()
    assert np.isnan(moved[4]).all()


def test_gaps_constant_series_and_new_meters_in_the_past() -> None:
    errors = past_errors()
    errors[::3, 5] = np.nan
    errors[:, 6] = np.nan  # a new one
    errors[:, 7] = 0.0  # never wrong
    point, quantiles = forecasts()
    moved, fan = reconcile(point, quantiles, PARENTS, errors)
    assert np.isfinite(moved).all()
    assert np.isfinite(fan).all()
    assert np.abs(moved[7] - point[7]).max() < 1e-3
    for parent, children in CHILDREN.items():
        np.testing.assert_allclose(moved[parent], moved[children].sum(axis=0), atol=1e-9)


def test_no_hierarchy_no_change() -> None:
    point, quantiles = forecasts()
    moved, fan = reconcile(point, quantiles, np.full(8, ROOT), past_errors())
    np.testing.assert_array_equal(moved, point)
    np.testing.assert_array_equal(fan, quantiles)


def test_what_does_not_fit_is_told() -> None:
    point, quantiles = forecasts()
    with pytest.raises(ValueError, match="errors 7"):
        reconcile(point, quantiles, PARENTS, past_errors()[:, :7])
    for circle in ([1, 0, 1, ROOT, ROOT, ROOT, ROOT, ROOT], [1, 0, ROOT, ROOT, ROOT, ROOT, ROOT, ROOT]):
        with pytest.raises(ValueError, match="own ancestor"):
            reconcile(point, quantiles, np.array(circle), past_errors())


def test_a_thousand_series_need_no_matrix_of_all_of_them() -> None:
    """10,000 areas of 100 feeders: a covariance of all would take 800 MB and minutes."""
    rng = np.random.default_rng(4)
    parents = np.concatenate([[ROOT], np.zeros(100, np.int64), 1 + np.arange(10_000) % 100])
    point = rng.normal(10, 1, (len(parents), 4))
    moved, _ = reconcile(point, point[:, :, None], parents, rng.normal(0, 1, (336, len(parents))))
    np.testing.assert_allclose(moved[0], moved[1:101].sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(moved[1], moved[101::100].sum(axis=0), atol=1e-6)
