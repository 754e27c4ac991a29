"""Suspects are found by the area's balance: faults put into areas of which everything is known."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud.engines.loss.localise import AreaBalance, Suspects, localise

Array = NDArray[np.float64]

DAYS, PER_DAY, COUNT = 70, 96, 16
START = 40


def loads(seed: int) -> Array:
    """(T, M) Wh: a daily shape each, days that differ, appliances at random."""
    rng = np.random.default_rng(seed)
    hour = np.arange(PER_DAY)[:, None] / 4
    shape = 0.4 + np.exp(-0.5 * ((hour - rng.normal(19, 2, COUNT)) / 2.5) ** 2)
    day = rng.lognormal(0, 0.15, (DAYS, 1, COUNT))
    appliances = rng.poisson(0.08, (DAYS, PER_DAY, COUNT)) * rng.uniform(150, 500, COUNT)
    return np.asarray((shape * day * rng.uniform(60, 200, COUNT) + appliances).reshape(-1, COUNT))


def area(true: Array, recorded: Array, seed: int, gains: bool = True) -> AreaBalance:
    rng = np.random.default_rng((seed, 1))
    technical = 50 + 2e-6 * true.sum(1) ** 2
    gain = 1 + rng.normal(0, 0.005, true.shape[1]) * gains
    noise = rng.normal(0, 8, len(true))
    supplied = (true.sum(1) + technical) * (1 + rng.normal(0, 0.001) * gains) + noise
    return AreaBalance(supplied, np.round(recorded * gain, -1), technical)


def after(start: int = START) -> Array:
    return (np.arange(DAYS * PER_DAY) >= start * PER_DAY).astype(float)


def faulty(kind: str, x: Array) -> Array:
    rng = np.random.default_rng(9)
    hour = np.arange(len(x)) % PER_DAY // 4
    on = after()
    match kind:
        case "scaled":
            return np.asarray(x * (1 - 0.3 * on))
        case "night":
            return np.asarray(x * (1 - 0.7 * on * ((hour >= 22) | (hour < 6))))
        case "peak":
            return np.asarray(x * (1 - 0.7 * on * ((hour >= 17) & (hour < 21))))
        case "cap":
            return np.where(on > 0, np.minimum(x, np.quantile(x, 0.8)), x)
        case "subtract":
            return np.maximum(x - on * np.quantile(x, 0.4), 0)
        case "stopped":
            spell = np.zeros(len(x))
            for first in (41, 47, 52, 58, 64):
                spell[first * PER_DAY + 30 : (first + 2) * PER_DAY] = 1
            return np.asarray(x * (1 - spell))
        case "intermittent":
            return np.asarray(x * (1 - 0.5 * on * (rng.random(DAYS) < 0.4).repeat(PER_DAY)))
        case _:
            return np.asarray(x * (1 + 0.3 * on))


def suspects(kind: str, seed: int = 1, who: int = 5) -> tuple[Suspects, float]:
    true = loads(seed)
    recorded = true.copy()
    recorded[:, who] = faulty(kind, true[:, who])
    (found,) = localise([area(true, recorded, seed)])
    return found, float((true - recorded).sum())


@pytest.mark.parametrize("kind", ["scaled", "night", "peak", "cap", "stopped", "intermittent", "ct_ratio"])
def test_the_faulty_customer_is_first_with_kind_start_and_energy(kind: str) -> None:
    found, stolen = suspects(kind)
    assert found.score.argmax() == 5 and found.named[5]
    assert found.kind[5] == kind
    assert abs(found.since_step[5] / PER_DAY - START) <= 4
    assert found.stolen_wh[5] == pytest.approx(stolen, rel=0.35)
    assert found.lo_wh[5] < found.stolen_wh[5] < found.hi_wh[5]
    assert "log odds" in found.evidence[5] and "kWh" in found.evidence[5]
    others = np.delete(found.score, 5)
    assert found.score[5] > others.max() + 5


def test_a_constant_taken_off_is_told_by_the_base_load_that_is_gone() -> None:
    found, stolen = suspects("subtract")
    assert found.score.argmax() == 5
    assert found.stolen_wh[5] == pytest.approx(stolen, rel=0.4)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_honest_areas_name_nobody(seed: int) -> None:
    true = loads(seed)
    (found,) = localise([area(true, true, seed)])
    assert not found.named.any()


def test_an_honest_change_of_load_is_no_theft() -> None:
    true = loads(5)
    true[:, 3] *= 1 - 0.6 * after()
    true[:, 7] *= 1 + 0.6 * after(50)
    (found,) = localise([area(true, true, 5)])
    assert not found.named.any()


def test_a_thief_is_told_from_an_honest_drop_of_the_same_day() -> None:
    true = loads(6)
    true[:, 3] *= 1 - 0.3 * after()
    recorded = true.copy()
    recorded[:, 8] = faulty("scaled", true[:, 8])
    (found,) = localise([area(true, recorded, 6)])
    assert found.score.argmax() == 8 and found.named[8] and not found.named[3]


def test_two_thieves_of_one_area_are_both_found() -> None:
    true = loads(7)
    recorded = true.copy()
    recorded[:, 2] = faulty("scaled", true[:, 2])
    recorded[:, 9] = faulty("night", true[:, 9])
    (found,) = localise([area(true, recorded, 7)])
    assert set(np.argsort(-found.score)[:2]) == {2, 9}
    assert {found.kind[2], found.kind[9]} == {"scaled", "night"}


def test_a_customer_fed_from_another_area_is_told_and_nobody_there_is_blamed() -> None:
    home, other = loads(8), loads(9)
    moved = home[:, 4] * after()
    fed_home = np.column_stack([np.delete(home, 4, axis=1), home[:, 4] - moved])
    booked_home = area(fed_home, np.column_stack([np.delete(home, 4, axis=1), home[:, 4]]), 8)
    fed_other = np.column_stack([other, moved])
    balance = area(fed_other, fed_other, 9)
    booked_other = AreaBalance(balance.supplied_wh, balance.customer_wh[:, :-1], balance.technical_wh)
    first, second = localise([booked_home, booked_other])
    assert first.score.argmax() == COUNT - 1 and first.kind[COUNT - 1] == "wrong_area"
    assert not second.named.any()
    (alone,) = localise([booked_other])
    assert alone.score.max() > second.score.max()  # what the neighbour's record explains would fall on someone


def test_nights_that_stood_still_before_the_record_began_are_nights() -> None:
    true = loads(1)
    recorded = true.copy()
    hour = np.arange(len(true)) % PER_DAY // 4
    recorded[(hour >= 22) | (hour < 6), 5] = 0
    (found,) = localise([area(true, recorded, 1)])
    assert found.score.argmax() == 5 and found.named[5] and found.kind[5] == "night"
    assert found.lo_wh[5] <= (true - recorded).sum() <= found.hi_wh[5]


def test_the_registry_decides_where_records_look_the_same() -> None:
    true = loads(1)
    recorded = true.copy()
    recorded[:, 5] = faulty("scaled", true[:, 5])
    known = area(true, recorded, 1)
    mine = np.arange(COUNT) == 5
    (by_phase,) = localise([replace(known, three_phase=mine)])
    (by_ratio,) = localise([replace(known, ct_ratio=np.where(mine, 40.0, 1.0))])
    assert (by_phase.kind[5], by_ratio.kind[5]) == ("phase_missing", "ct_ratio")
    assert len(by_phase.evidence_zh) == COUNT and "三相" in by_phase.evidence_zh[5]


def test_a_meter_that_never_moves_is_nobody() -> None:
    true = loads(2)
    true[:, 4] = 0
    (found,) = localise([area(true, true, 2)])
    assert not found.named.any() and -1_000 < found.lo_wh[4] <= found.hi_wh[4] < 1_000


@pytest.mark.parametrize("count", [5, 150])
def test_small_and_large_areas_of_hours_name_who_it_was(count: int) -> None:
    true = np.concatenate([loads(seed) for seed in range(20, 30)], axis=1)[:, :count]
    recorded = true.copy()
    recorded[:, 2] = faulty("scaled", true[:, 2])
    fine = area(true, recorded, 3)
    assert fine.technical_wh is not None
    hourly = [values.reshape(-1, 4, *values.shape[1:]).sum(1) for values in (fine.supplied_wh, fine.customer_wh)]
    by_hour = fine.technical_wh.reshape(-1, 4).sum(1)
    (found,) = localise([AreaBalance(hourly[0], hourly[1], by_hour, step_s=3600)])
    assert found.score.argmax() == 2


def test_gaps_and_a_fitted_technical_loss_keep_the_suspect() -> None:
    true = loads(1)
    recorded = true.copy()
    recorded[:, 5] = faulty("scaled", true[:, 5])
    known = area(true, recorded, 1)
    supplied = known.supplied_wh.copy()
    supplied[np.random.default_rng(0).random(len(supplied)) < 0.05] = np.nan
    sd = np.zeros_like(recorded)
    sd[::50] = 40.0
    (found,) = localise([AreaBalance(supplied, known.customer_wh, None, sd)])
    assert found.score.argmax() == 5


def test_bad_shapes_and_short_records_are_refused() -> None:
    true = loads(1)
    known = area(true, true, 1)
    with pytest.raises(ValueError, match="of one T expected"):
        localise([AreaBalance(known.supplied_wh[:-1], known.customer_wh)])
    with pytest.raises(ValueError, match="14 whole local days"):
        localise([AreaBalance(known.supplied_wh[:960], known.customer_wh[:960])])
