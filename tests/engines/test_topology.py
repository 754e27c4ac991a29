"""A meter booked at the wrong transformer or phase shows in its voltage; one behind a check meter in its sum."""

import numpy as np
from numpy.typing import NDArray

from cloud.engines.loss.topology import behind, followed, voltage_words

Array = NDArray[np.float64]
STEPS, AREAS, EACH = 960, 2, 8


def voltages(seed: int) -> tuple[Array, NDArray[np.int64]]:
    """(T, N) V of meters of two areas and three phases: one network above, load of each phase, own drop, 0.1 V."""
    rng = np.random.default_rng(seed)
    above = 230 + np.cumsum(rng.normal(0, 0.2, STEPS))
    group = np.repeat(np.arange(AREAS * 3), EACH)
    phase_drop = rng.normal(0, 0.5, (STEPS, AREAS * 3))
    distance = rng.uniform(0.3, 1.5, len(group))
    own = rng.exponential(0.3, (STEPS, len(group)))
    true = above[:, None] - distance * phase_drop[:, group] - own
    return np.round(true * (1 + rng.normal(0, 0.005, len(group))), 1), group


def test_wrong_area_and_wrong_phase_are_doubted_and_nobody_else() -> None:
    seen, group = voltages(1)
    registered = group.copy()
    registered[3] = 4  # of another area
    registered[20] = 1  # of another phase
    seen[np.random.default_rng(2).random(seen.shape) < 0.05] = np.nan
    found = followed(seen, registered)
    assert set(np.flatnonzero(found.doubted)) == {3, 20}
    assert found.group[3] == group[3] and found.group[20] == group[20]
    words = voltage_words(found, [f"area{a} phase {p}" for a in (1, 2) for p in "abc"], registered, 3)
    assert words.startswith("voltage follows area1 phase a (r 0.") and "not area2 phase b" in words
    assert voltage_words(found, [], registered, 0) == ""


def test_too_few_voltages_say_nothing() -> None:
    seen, group = voltages(3)
    seen[60:] = np.nan
    found = followed(seen, group)
    assert not found.doubted.any() and np.isnan(found.own).all()


def test_one_meter_alone_in_its_group_is_only_doubted_where_it_follows_another() -> None:
    seen, group = voltages(4)
    registered = group.copy()
    found = followed(seen, registered)
    assert not found.doubted.any()
    assert np.nanmin(found.own) > 0.3


def test_a_check_meter_sees_who_is_behind_it() -> None:
    rng = np.random.default_rng(5)
    x = rng.exponential(150, (STEPS, 12))
    behind_first = np.arange(12) < 5
    check = np.column_stack([x[:, behind_first].sum(1), x[:, ~behind_first].sum(1)]) * 1.01 + rng.normal(
        0, 10, (STEPS, 2)
    )
    truth = np.column_stack([behind_first, ~behind_first])
    assert not behind(check, np.round(x, -1), truth).doubted.any()
    registered = truth.copy()
    registered[2] = [False, True]
    found = behind(check, np.round(x, -1), registered)
    assert found.doubted[2].all() and found.doubted.sum() == 2
    assert abs(found.share[2, 0] - 1) < 0.1 and abs(found.share[2, 1]) < 0.1
