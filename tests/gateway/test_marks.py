"""Range bookkeeping against plain sets of integers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.marks import Marks, Run, runs_of

runs = st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
edits = st.lists(st.tuples(st.sampled_from(["add", "discard"]), runs), max_size=30)


def apply(edits: list[tuple[str, tuple[int, int]]]) -> tuple[Marks, set[int]]:
    marks, plain = Marks(), set[int]()
    for what, (first, end) in edits:
        if what == "add":
            run = marks.add(first, end)
            plain |= set(range(first, end))
            assert run.first <= first
            assert end <= run.end
        else:
            marks.discard(first, end)
            plain -= set(range(first, end))
    return marks, plain


@given(edits)
def test_any_edits_leave_what_a_plain_set_would_hold(edits: list[tuple[str, tuple[int, int]]]) -> None:
    marks, plain = apply(edits)
    assert {mark for run in marks for mark in range(*run)} == plain
    assert len(marks) == len(plain)
    assert all((mark in marks) == (mark in plain) for mark in range(-1, 80))


@given(edits)
def test_runs_are_sorted_and_never_touch(edits: list[tuple[str, tuple[int, int]]]) -> None:
    marks, plain = apply(edits)
    assert list(marks) == runs_of(plain)


@given(edits, runs)
def test_gaps_and_marks_fill_a_range_exactly(edits: list[tuple[str, tuple[int, int]]], window: tuple[int, int]) -> None:
    marks, plain = apply(edits)
    gaps = marks.gaps(*window)
    assert gaps == runs_of(set(range(*window)) - plain)


@given(edits, runs)
def test_the_returned_run_replaces_every_run_that_starts_inside_it(
    edits: list[tuple[str, tuple[int, int]]], fresh: tuple[int, int]
) -> None:
    """What the queue relies on: DELETE the runs starting in it, INSERT it."""
    marks, _ = apply(edits)
    before = list(marks)
    run = marks.add(*fresh)
    assert sorted([old for old in before if not run.first <= old.first < run.end] + [run]) == list(marks)


def test_an_empty_run_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match=r"run \[5, 5\)"):
        Marks().add(5, 5)
    assert list(Marks([(1, 2), (2, 3)])) == [Run(1, 3)]
