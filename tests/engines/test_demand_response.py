"""A baseline worked by hand: see tests/cases/dr_baseline/README.md."""

import csv
from pathlib import Path

import numpy as np
import pytest

from cloud.engines.demand_response import COMPARABLE_DAYS, baseline, reduction

CASE = Path(__file__).parents[1] / "cases" / "dr_baseline"


def test_the_hand_worked_case() -> None:
    with (CASE / "days.csv").open(newline="") as file:
        rows = {row["day"]: [float(row[f"slot_{i}"] or "nan") for i in range(1, 5)] for row in csv.DictReader(file)}
    today = np.array(rows.pop("event"))
    expected = baseline(np.array(list(rows.values())), today[:2])
    np.testing.assert_allclose(expected, [1500, 1650])
    assert reduction(expected, today[2:]) == pytest.approx(2750)


def test_only_the_latest_comparable_days_count() -> None:
    past = np.vstack([np.full((COMPARABLE_DAYS, 2), 10.0), np.full((5, 2), 1e6)])
    np.testing.assert_allclose(baseline(past, np.array([10.0])), [10])


def test_without_a_usable_day_there_is_no_baseline() -> None:
    assert np.isnan(baseline(np.array([[1, np.nan, 3]]), np.array([1.0]))).all()
    assert np.isnan(baseline(np.empty((0, 3)), np.array([1.0]))).all()


def test_a_gap_before_the_event_means_no_adjustment() -> None:
    np.testing.assert_allclose(baseline(np.array([[5.0, 5, 7]]), np.array([100, np.nan])), [7])
