"""Hand-worked registers, and properties: whatever happens to a meter, no energy is lost, doubled or made up."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloud.engines.intervals import ADVANCE_MAX_WH, MISSING, Intervals, Readings, derive
from protocols.quantities import Quality

MODULUS_WH = 1_000_000_000
STEP = 100  # of the instants here: mark 10 is at 1000
BACKFILLED, CLOCK_SUSPECT = int(Quality.BACKFILLED), int(Quality.CLOCK_SUSPECT)
OFF_MARK, IMPLAUSIBLE = int(Quality.OFF_MARK), int(Quality.IMPLAUSIBLE)


@dataclass(frozen=True)
class Row:
    at: int
    register: int
    quality: int = 0
    batch: int = 1
    point: int = 1
    stretch: int = 1
    ratio: int = 1
    noted: bool = False


def mark(number: int, register: int, quality: int = 0, batch: int = 1, **more: int) -> Row:
    return Row(number * STEP, register, quality, batch, **more)  # type: ignore[arg-type]


def noted(at: int, register: int, stretch: int, ratio: int = 1) -> Row:
    return Row(at, register, batch=0, stretch=stretch, ratio=ratio, noted=True)


def readings(*rows: Row, modulus: int = MODULUS_WH) -> Readings:
    columns = {name: [getattr(row, name) for row in rows] for name in Row.__dataclass_fields__}
    one = {name: np.array(values, bool if name == "noted" else np.int64) for name, values in columns.items()}
    one["register"] = one["register"].reshape(-1, 1)
    return Readings(**one, modulus=np.full(len(rows), modulus))


def derive_rows(*rows: Row, modulus: int = MODULUS_WH) -> list[tuple[int, ...]]:
    """Rows → (mark, energy, quality), where it is more than one interval with how many, where more points with it."""
    found = derive(readings(*rows, modulus=modulus), STEP)
    return [
        (*([point] if len({row.point for row in rows}) > 1 else []), first, energy, bits, *([n] if n > 1 else []))
        for point, first, n, energy, bits in as_rows(found)
    ]


def as_rows(found: Intervals) -> list[tuple[int, int, int, int, int]]:
    columns = (found.point, found.mark, found.marks, found.energy[:, 0], found.quality)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_neighbouring_marks_make_intervals_of_many_meters_in_any_order() -> None:
    rows = (mark(11, 70, point=2), mark(10, 100), mark(10, 50, point=2), mark(11, 130))
    assert derive_rows(*rows) == [(1, 10, 30, 0), (2, 10, 20, 0)]


def test_a_gap_has_one_energy_and_is_not_spread() -> None:
    assert derive_rows(mark(10, 0), mark(12, 40), mark(13, 50)) == [(10, 40, 0, 2), (12, 10, 0)]


def test_a_null_register_is_null_energy_and_not_implausible() -> None:
    assert derive_rows(mark(10, 100), mark(11, MISSING)) == [(10, MISSING, 0)]


def test_ratios_are_applied_to_the_difference() -> None:
    assert derive_rows(mark(10, 100, ratio=40), mark(11, 130, ratio=40)) == [(10, 1200, 0)]


def test_an_interval_carries_what_is_known_against_either_reading() -> None:
    assert derive_rows(mark(10, 0, BACKFILLED), mark(11, 5, CLOCK_SUSPECT)) == [(10, 5, BACKFILLED | CLOCK_SUSPECT)]


def test_a_row_without_a_complaint_counts_before_one_with() -> None:
    rows = mark(10, 0), mark(11, 9, CLOCK_SUSPECT, 5), mark(11, 8, 0, 3), mark(11, MISSING, 0, 9)
    assert derive_rows(*rows) == [(10, 8, 0)]


def test_an_exact_row_wins_over_one_read_off_the_mark_and_that_over_a_suspect_one() -> None:
    assert derive_rows(mark(10, 0), mark(11, 9, OFF_MARK), mark(11, 8, BACKFILLED, 2)) == [(10, 8, BACKFILLED)]
    assert derive_rows(mark(10, 0), mark(11, 8, CLOCK_SUSPECT, 2), mark(11, 9, OFF_MARK)) == [(10, 9, OFF_MARK)]


def test_an_off_mark_reading_shifts_energy_to_its_neighbour_and_none_is_lost() -> None:
    """Read 40 Wh late: what the first interval has too much the next one lacks; both say so."""
    assert derive_rows(mark(10, 0), mark(11, 140, OFF_MARK), mark(12, 200)) == [(10, 140, OFF_MARK), (11, 60, OFF_MARK)]


def test_copies_of_one_row_are_one_and_change_nothing() -> None:
    """A rebuilt queue reads again from the meters' memory what was stored long ago."""
    rows = mark(10, 0, 0, 3), mark(10, 0, BACKFILLED, 7), mark(11, 5, 0, 3), mark(11, 5, BACKFILLED, 7)
    assert derive_rows(*rows) == [(10, 5, 0)]


def test_where_rows_of_one_mark_differ_the_meters_record_wins_and_the_quality_says_so() -> None:
    """Neither coming late nor a copy explains it: the register was smaller when read after the mark."""
    rows = mark(10, 0), mark(11, 7, BACKFILLED, 1), mark(11, 4, 0, 2), mark(12, 9)
    assert derive_rows(*rows) == [(10, 7, BACKFILLED | CLOCK_SUSPECT), (11, 2, BACKFILLED | CLOCK_SUSPECT)]


def test_a_counter_read_a_moment_after_the_mark_does_not_contradict_the_record() -> None:
    late = ADVANCE_MAX_WH // 100
    rows = mark(10, 0), mark(11, 7, BACKFILLED, 2), mark(11, 7 + late, 0, 1)
    assert derive_rows(*rows) == [(10, 7, BACKFILLED)]
    assert derive_rows(*rows[:2], mark(11, 8 + late, 0, 1)) == [(10, 7, BACKFILLED | CLOCK_SUSPECT)]


def test_of_two_records_that_differ_the_later_counts() -> None:
    rows = mark(10, 0), mark(11, 7, BACKFILLED, 1), mark(11, 8, BACKFILLED, 2)
    assert derive_rows(*rows) == [(10, 8, BACKFILLED | CLOCK_SUSPECT)]


def test_a_reset_is_null_and_implausible_and_what_follows_is_right() -> None:
    assert derive_rows(mark(10, 500), mark(11, 0), mark(12, 20)) == [(10, MISSING, IMPLAUSIBLE), (11, 20, 0)]


def test_a_reset_that_was_noted_is_exact() -> None:
    rows = mark(10, 500), noted(1030, 506, 1), noted(1030, 0, 2), mark(11, 14, stretch=2)
    assert derive_rows(*rows) == [(10, 20, 0)]


def test_a_register_that_rolls_over_goes_on_counting() -> None:
    assert derive_rows(mark(10, MODULUS_WH - 30), mark(11, 20)) == [(10, 50, 0)]
    assert derive_rows(mark(10, MODULUS_WH - 30), mark(13, 20)) == [(10, 50, 0, 3)]
    assert derive_rows(mark(10, 99_970), mark(11, 20), modulus=100_000) == [(10, 50, 0)]


def test_without_a_modulus_no_rollover_is_believed() -> None:
    assert derive_rows(mark(10, MODULUS_WH - 30), mark(11, 20), modulus=0) == [(10, MISSING, IMPLAUSIBLE)]


def test_a_leap_is_null_and_implausible() -> None:
    assert derive_rows(mark(10, 0), mark(11, ADVANCE_MAX_WH + 10)) == [(10, MISSING, IMPLAUSIBLE)]
    assert derive_rows(mark(10, 0), mark(12, ADVANCE_MAX_WH + 10)) == [(10, ADVANCE_MAX_WH + 10, 0, 2)]


def test_an_exchange_between_two_marks_is_exact_with_its_registers_and_a_gap_without() -> None:
    old = mark(10, 100, ratio=2), mark(11, 110, ratio=2)
    new = mark(12, 5, stretch=2, ratio=3), mark(13, 9, stretch=2, ratio=3)
    assert derive_rows(*old, *new) == [(10, 20, 0), (12, 12, 0)]
    seam = noted(1130, 118, 1, 2), noted(1130, 1, 2, 3)
    assert derive_rows(*old, *seam, *new) == [(10, 20, 0), (11, 8 * 2 + 4 * 3, 0), (12, 12, 0)]
    assert derive_rows(*old, seam[0], *new) == [(10, 20, 0), (12, 12, 0)]


def test_an_exchange_on_a_mark() -> None:
    rows = mark(10, 100), noted(1100, 118, 1), noted(1100, 3, 2), mark(11, 3, stretch=2), mark(12, 9, stretch=2)
    assert derive_rows(*rows) == [(10, 18, 0), (11, 6, 0)]


def test_a_ratio_that_changes_on_a_mark_needs_no_exchange() -> None:
    """The reading at the mark belongs to both stretches."""
    rows = mark(10, 100, ratio=2), mark(11, 110, ratio=2), mark(11, 110, stretch=2, ratio=3), mark(12, 120, stretch=2,
                                                                                                   ratio=3)  # fmt: skip
    assert derive_rows(*rows) == [(10, 20, 0), (11, 30, 0)]


def test_two_exchanges_in_one_interval() -> None:
    rows = (
        mark(10, 100), noted(1020, 103, 1), noted(1020, 7, 2), noted(1060, 9, 2), noted(1060, 0, 3),
        mark(11, 4, stretch=3),
    )  # fmt: skip
    assert derive_rows(*rows) == [(10, 3 + 2 + 4, 0)]


def test_readings_off_every_mark_count_for_nothing() -> None:
    assert derive_rows(mark(10, 100), Row(1050, 120), mark(11, 130)) == [(10, 30, 0)]


def test_nothing_in_nothing_out() -> None:
    assert derive_rows() == []


def test_energy_adds_up_to_the_registers_for_many_meters() -> None:
    rng = np.random.default_rng(3)
    meters, marks = 200, 97
    registers = np.cumsum(rng.integers(0, 500, (meters, marks)), axis=1)
    order = rng.permutation(meters * marks)
    point, number = np.divmod(order, marks)
    same = np.ones_like(order)
    found = derive(
        Readings(
            point, same, number * STEP, registers.ravel()[order][:, None], 0 * same, order, same < 0, 3 * same,
            MODULUS_WH * same,
        ),
        STEP,
    )  # fmt: skip
    total = np.bincount(found.point, found.energy[:, 0])
    np.testing.assert_array_equal(total, 3 * (registers[:, -1] - registers[:, 0]))


# ---- properties ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """A point's truth, and the rows that reached us. ``truth``: Wh × ratio of each interval; ``told``: which intervals
    nobody can know, because an exchange in them left no registers or a reset hid what was counted."""

    rows: tuple[Row, ...]
    truth: tuple[int, ...]
    hidden: frozenset[int]


@st.composite
def lives(draw: st.DrawFn) -> Life:
    """Marks 0..N of one point: small steps; rollovers, noted and unnoted exchanges, new ratios; resets, lost and copied
    rows."""
    intervals = draw(st.integers(1, 30))
    modulus = MODULUS_WH
    register = draw(st.sampled_from([0, 5, modulus - 3000, modulus - 1, 123_456]))
    stretch, ratio = 1, draw(st.integers(1, 50))
    rows = [mark(0, register, ratio=ratio)]
    truth: list[int] = []
    hidden: set[int] = set()
    at_ratio: set[int] = set()
    for i in range(intervals):
        steps = draw(st.integers(0, 5000))
        event = draw(st.sampled_from(["", "", "", "", "exchange", "unnoted", "ratio", "reset"]))
        if event in ("exchange", "unnoted"):
            at, first = i * STEP + draw(st.integers(1, STEP - 1)), draw(st.integers(0, steps))
            closing, opening = (register + first) % modulus, draw(st.integers(0, modulus - 10_000))
            fresh = draw(st.integers(1, 50))
            if event == "exchange":
                rows += [noted(at, closing, stretch, ratio), noted(at, opening, stretch + 1, fresh)]
            else:
                hidden.add(i)
            truth.append(first * ratio + (steps - first) * fresh)
            register, stretch, ratio = opening + steps - first, stretch + 1, fresh
        elif event == "reset" and 10_000 < register < modulus // 2:
            hidden.add(i)
            truth.append(steps * ratio)
            register = steps % 10_000  # it began again from 0 at the mark
        else:
            truth.append(steps * ratio)
            register = (register + steps) % modulus
        rows.append(mark(i + 1, register, stretch=stretch, ratio=ratio))
        if event == "ratio":
            at_ratio.add(i + 1)
            stretch, ratio = stretch + 1, draw(st.integers(1, 50))
            rows.append(mark(i + 1, register, stretch=stretch, ratio=ratio))
    lost = draw(st.sets(st.integers(0, intervals), max_size=5))
    # Where the ratio changed at a mark whose reading is lost, nobody knows the register it changed at.
    hidden |= {i for number in lost & at_ratio for i in (number - 1, number)}
    rows = [row for row in rows if row.noted or row.at // STEP not in lost]
    copies = [
        Row(**{**{name: getattr(row, name) for name in Row.__dataclass_fields__}, "batch": 9, "quality": BACKFILLED})
        for row in rows
        if not row.noted and draw(st.booleans())
    ]
    return Life(tuple(draw(st.permutations(rows + copies))), tuple(truth), frozenset(hidden))


@given(lives())
def test_intervals_and_gaps_are_the_truth_wherever_they_say_anything(life: Life) -> None:
    found = as_rows(derive(readings(*life.rows), STEP))
    seen = [False] * len(life.truth)
    for _, first, count, energy, bits in found:
        covered = range(first, first + count)
        assert not any(seen[i] for i in covered)
        for i in covered:
            seen[i] = True
        if energy == MISSING:
            assert bits & IMPLAUSIBLE
            assert life.hidden & set(covered)
        elif not life.hidden & set(covered):
            assert energy == sum(life.truth[i] for i in covered)
            assert not bits & ~BACKFILLED
    marks = sorted({row.at // STEP for row in life.rows if row.at % STEP == 0})
    whole = [set(range(a, b)) for a, b in pairwise(marks)]
    # Whatever could be known is there: each span between two marks without a hidden interval.
    assert {i for span in whole if not span & life.hidden for i in span} <= {i for i, there in enumerate(seen) if there}


@given(lives(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_is_nothing(life: Life, random: object) -> None:
    rows = list(life.rows)
    random.shuffle(rows)  # type: ignore[attr-defined]
    assert as_rows(derive(readings(*rows), STEP)) == as_rows(derive(readings(*life.rows), STEP))


@given(lives(), st.integers(0, 30))
def test_derived_in_two_parts_it_is_the_same(life: Life, cut: int) -> None:
    """What is dirty is derived with the marks beside it; single intervals do not depend on what lies further away."""
    every = {row for row in as_rows(derive(readings(*life.rows), STEP)) if row[2] == 1}
    parts = [[r for r in life.rows if r.at <= cut * STEP], [r for r in life.rows if r.at >= cut * STEP]]
    assert {row for part in parts for row in as_rows(derive(readings(*part), STEP)) if row[2] == 1} == every
