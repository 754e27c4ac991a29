"""Sets of marks, kept as runs: 35 days of one meter are 3,360 marks but mostly one run.

A mark is an instant of the poll grid, as an integer: seconds since 1970 UTC divided by the poll interval.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Run(NamedTuple):
    """Marks ``first`` up to, not including, ``end``."""

    first: int
    end: int


class Marks:
    """Sorted, disjoint runs that never touch: two sets with the same marks have the same runs."""

    __slots__ = ("_ends", "_firsts")

    def __init__(self, runs: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []
        for first, end in runs:
            self.add(first, end)

    def __iter__(self) -> Iterator[Run]:
        return map(Run, self._firsts, self._ends)

    def __contains__(self, mark: int) -> bool:
        i = bisect_right(self._firsts, mark) - 1
        return i >= 0 and mark < self._ends[i]

    def __len__(self) -> int:
        """Marks, not runs."""
        return sum(self._ends) - sum(self._firsts)

    def add(self, first: int, end: int) -> Run:
        """Put [first, end) in. Returns the run it is now part of, which replaces every run that starts inside it."""
        if first >= end:
            raise ValueError(f"run [{first}, {end}): first < end expected")
        low = bisect_left(self._ends, first)  # first run that reaches or touches us
        high = bisect_right(self._firsts, end)  # past the last such run
        if low < high:
            first = min(first, self._firsts[low])
            end = max(end, self._ends[high - 1])
        self._firsts[low:high] = [first]
        self._ends[low:high] = [end]
        return Run(first, end)

    def discard(self, first: int, end: int) -> None:
        """Take [first, end) out, as far as it is in."""
        kept: list[Run] = []
        low = bisect_right(self._ends, first)
        high = bisect_left(self._firsts, end)
        for i in range(low, high):
            if self._firsts[i] < first:
                kept.append(Run(self._firsts[i], first))
            if self._ends[i] > end:
                kept.append(Run(end, self._ends[i]))
        self._firsts[low:high] = [run.first for run in kept]
        self._ends[low:high] = [run.end for run in kept]

    def gaps(self, first: int, end: int) -> list[Run]:
        """Runs of [first, end) that are not in the set, oldest first."""
        found = []
        for i in range(bisect_right(self._ends, first), len(self._firsts)):
            if self._firsts[i] >= end:
                break
            if self._firsts[i] > first:
                found.append(Run(first, self._firsts[i]))
            first = self._ends[i]
        if first < end:
            found.append(Run(first, end))
        return found


def runs_of(marks: Iterable[int]) -> list[Run]:
    """The runs of some marks, in any order, repeated or not."""
    runs: list[Run] = []
    for mark in sorted(set(marks)):
        if runs and runs[-1].end == mark:
            runs[-1] = Run(runs[-1].first, mark + 1)
        else:
            runs.append(Run(mark, mark + 1))
    return runs
