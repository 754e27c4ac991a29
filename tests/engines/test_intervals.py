"""Hand-worked registers: gaps stay gaps, duplicates count once, impossible steps are null."""

import numpy as np

from cloud.engines.intervals import ADVANCE_MAX_WH, MISSING, Intervals, derive
from protocols.quantities import Quality

MODULUS_WH = 1_000_000_000


def derive_rows(*rows: tuple[int, int, int, int, int], ratio: int = 1) -> list[tuple[int, int, int, int]]:
    """(source, mark, register, quality, batch) each → (source, mark, energy, quality)."""
    source, mark, register, quality, batch = np.array(rows, np.int64).reshape(-1, 5).T
    found = derive(
        source, mark, register[:, None], quality, batch,
        ratio=np.full(len(rows), ratio), modulus=np.full(len(rows), MODULUS_WH),
    )  # fmt: skip
    return as_rows(found)


def as_rows(found: Intervals) -> list[tuple[int, int, int, int]]:
    columns = (found.source, found.mark, found.energy[:, 0], found.quality)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_neighbouring_marks_make_intervals_of_many_meters_in_any_order() -> None:
    assert derive_rows((2, 11, 70, 0, 1), (1, 10, 100, 0, 1), (2, 10, 50, 0, 1), (1, 11, 130, 0, 1)) == [
        (1, 10, 30, 0),
        (2, 10, 20, 0),
    ]


def test_a_missing_mark_leaves_two_intervals_out() -> None:
    assert derive_rows((1, 10, 0, 0, 1), (1, 12, 40, 0, 1), (1, 13, 50, 0, 1)) == [(1, 12, 10, 0)]


def test_a_null_register_is_null_energy_and_not_implausible() -> None:
    assert derive_rows((1, 10, 100, 0, 1), (1, 11, MISSING, 0, 1)) == [(1, 10, MISSING, 0)]


def test_ratios_are_applied_to_the_difference() -> None:
    assert derive_rows((1, 10, 100, 0, 1), (1, 11, 130, 0, 1), ratio=40) == [(1, 10, 1200, 0)]


def test_an_interval_carries_what_is_known_against_either_reading() -> None:
    bits = int(Quality.BACKFILLED | Quality.CLOCK_SUSPECT)
    rows = (1, 10, 0, int(Quality.BACKFILLED), 1), (1, 11, 5, int(Quality.CLOCK_SUSPECT), 1)
    assert derive_rows(*rows) == [(1, 10, 5, bits)]


def test_of_two_rows_for_one_mark_the_good_one_counts_then_the_later() -> None:
    suspect, backfilled = int(Quality.CLOCK_SUSPECT), int(Quality.BACKFILLED)
    assert derive_rows(
        (1, 10, 0, 0, 1), (1, 11, 7, backfilled, 1), (1, 11, 9, suspect, 5), (1, 11, 8, 0, 3), (1, 11, MISSING, 0, 9)
    ) == [(1, 10, 8, 0)]  # fmt: skip


def test_a_register_that_runs_backwards_is_null_and_implausible() -> None:
    assert derive_rows((1, 10, 500, 0, 1), (1, 11, 400, 0, 1), (1, 12, 420, 0, 1)) == [
        (1, 10, MISSING, int(Quality.IMPLAUSIBLE)),
        (1, 11, 20, 0),
    ]


def test_a_register_that_rolls_over_goes_on_counting() -> None:
    assert derive_rows((1, 10, MODULUS_WH - 30, 0, 1), (1, 11, 20, 0, 1)) == [(1, 10, 50, 0)]


def test_a_leap_is_null_and_implausible() -> None:
    rows = (1, 10, 0, 0, 1), (1, 11, ADVANCE_MAX_WH + 10, 0, 1)
    assert derive_rows(*rows) == [(1, 10, MISSING, int(Quality.IMPLAUSIBLE))]


def test_nothing_in_nothing_out() -> None:
    assert derive_rows() == []


def test_energy_adds_up_to_the_registers_for_many_meters() -> None:
    rng = np.random.default_rng(3)
    meters, marks = 200, 97
    registers = np.cumsum(rng.integers(0, 500, (meters, marks)), axis=1)
    order = rng.permutation(meters * marks)
    source, mark = np.divmod(order, marks)
    found = derive(
        source, mark, registers.ravel()[order][:, None], np.zeros_like(order), order,
        ratio=np.full(len(order), 3), modulus=np.full(len(order), MODULUS_WH),
    )  # fmt: skip
    total = np.bincount(found.source, found.energy[:, 0])
    np.testing.assert_array_equal(total, 3 * (registers[:, -1] - registers[:, 0]))
