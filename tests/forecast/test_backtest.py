"""Windows, measures and the command, against hand-worked figures and the protocol's own program."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from cloud.engines.forecast import LEVELS
from cloud.forecast.backtest import MethodError, backtest, members, score, window, write
from cloud.forecast.commands import forecast
from cloud.forecast.panel import Panel, PanelError, read_panel
from cloud.forecast.scores import SCORED_LEVELS, scores
from tests.forecast.panels import panel

ROOT = Path(__file__).resolve().parents[2]
SCORE = next((path for path in (ROOT / "../shared/forecast/score.py",) if path.exists()), None)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    return read_panel(panel(tmp_path_factory.mktemp("panels") / "small"))


def test_the_measures_of_a_case_worked_by_hand() -> None:
    """Errors 1 and 3 on loads 10 and 20; last week's value missed by 2 in the past, so MASE is 1; half is covered."""
    past = np.array([[4.0, 6.0]])
    quantiles = np.stack([np.array([[8.0 + k / 2, 22.0 + k / 2]]) for k in range(9)], axis=-1)
    found = scores(np.array([[10.0, 20.0]]), np.array([[11.0, 23.0]]), quantiles, SCORED_LEVELS, past, 1)
    assert found.mase == pytest.approx(1.0)
    assert found.wape == pytest.approx(100 * 4 / 30)
    level = np.arange(1, 10) / 10
    gap = np.array([10 - quantiles[0, 0], 20 - quantiles[0, 1]])
    pinball = np.where(gap > 0, level * gap, (level - 1) * gap).sum() / 9
    assert found.wql == pytest.approx(200 * pinball / 30)
    assert found.cov80 == 0.5


def test_a_series_without_a_past_error_is_left_out_and_counted() -> None:
    actual = np.array([[1.0, 2.0], [5.0, 5.0], [np.nan, np.nan]])
    past = np.array([[1.0, 2.0, 4.0], [5.0, 5.0, 5.0], [1.0, 2.0, 3.0]])
    found = scores(actual, np.ones((3, 2)), np.ones((3, 2, 9)), SCORED_LEVELS, past, 1)
    assert found.left_out == 2
    assert found.mase == pytest.approx(0.5 / 1.5)


def test_both_windows_score_the_same_steps(small: Panel) -> None:
    ahead, early = window(small, 5), window(small, 5, origin_hour=6, horizon_h=42)
    np.testing.assert_array_equal(ahead.steps, np.arange(45 * 24, 50 * 24))
    np.testing.assert_array_equal(early.steps, ahead.steps)
    np.testing.assert_array_equal(ahead.origins, early.origins + 18)
    intraday = window(small, 2, origin_hour=6, horizon_h=4)
    assert intraday.steps.tolist() == [*range(48 * 24 + 6, 48 * 24 + 10), *range(49 * 24 + 6, 49 * 24 + 10)]


def test_too_little_history_is_told_with_what_would_do(small: Panel) -> None:
    with pytest.raises(PanelError, match=r"50 days of load, 53 needed \(8 before 45\); try --days 42"):
        window(small, 45)


def test_methods_may_be_joined() -> None:
    assert members("ridge") == ("ridge",)
    assert members("ridge+naive7") == ("ridge", "naive7")
    with pytest.raises(MethodError, match='"lstm"'):
        members("lstm")


def test_naive7_is_last_weeks_load(small: Panel) -> None:
    test = window(small, 3)
    made = backtest(small, test, "naive7")
    week = small.load[[0, 2]][:, test.steps - 7 * 24]
    np.testing.assert_allclose(made.point[[0, 2]], week)


@pytest.mark.parametrize(("origin_hour", "horizon_h"), [(0, 24), (6, 42)])
def test_no_forecast_changes_when_what_follows_its_origin_is_garbage(
    small: Panel, origin_hour: int, horizon_h: int
) -> None:
    test = window(small, 3, origin_hour, horizon_h)
    made = backtest(small, test, "ensemble")
    each = test.scored.stop - test.scored.start
    for at, origin in enumerate(test.origins):
        garbled = small.load.copy()
        garbled[:, origin:] = np.random.default_rng(int(origin)).normal(0, 1e6, garbled[:, origin:].shape)
        other = Panel(**{name: getattr(small, name) for name in Panel.__slots__} | {"load": garbled})
        again = backtest(other, test, "ensemble")
        days = slice(0, (at + 1) * each)
        np.testing.assert_array_equal(again.point[:, days], made.point[:, days])
        np.testing.assert_array_equal(again.quantiles[:, days], made.quantiles[:, days])


@pytest.mark.skipif(SCORE is None, reason="../shared/forecast/score.py is not here")
@pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="score.py needs pandas")
def test_our_measures_are_those_of_the_protocols_program(tmp_path: Path) -> None:
    assert SCORE is not None
    folder = panel(tmp_path / "quarter", days=40, step_minutes=30)
    found = read_panel(folder)
    test = window(found, 7, origin_hour=6, horizon_h=42)
    made = backtest(found, test, "ridge")
    write(tmp_path / "f.parquet", found, test, made)
    command = [sys.executable, str(SCORE), "--panel", str(folder), "--forecasts", str(tmp_path / "f.parquet"), "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    ours = score(found, test, made)
    for name in ("mase", "wape", "wql", "cov80"):
        assert getattr(ours, name) == pytest.approx(told[name], rel=1e-9), name
    assert list(ours.cov80_series) == pytest.approx(told["cov80_series"])
    assert told["crossings"] == 0


def test_the_command_prints_exactly_the_document_and_writes_the_forecasts(tmp_path: Path) -> None:
    folder, out = panel(tmp_path / "town"), tmp_path / "f.parquet"
    command = ["backtest", "--panel", str(folder), "--days", "4", "--methods", "naive7,ensemble", "--json"]
    shown = CliRunner().invoke(forecast, [*command, "--out", str(out)])
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert list(told) == ["panel", "methods"]
    assert told["panel"] == "town"
    assert list(told["methods"]) == ["naive7", "ensemble"]
    for figures in told["methods"].values():
        assert list(figures) == [
            "mase", "wape", "wql", "cov80", "wall_s", "cpu_s", "series_origins_per_s_core", "peak_mb",
        ]  # fmt: skip
        assert all(value > 0 for value in figures.values())
    table = pq.read_table(tmp_path / "f-ensemble.parquet")
    assert table.column_names == ["series", "origin", "time", "mean", *(f"q{round(100 * q)}" for q in LEVELS)]
    assert table.num_rows == 3 * 4 * 24
    assert (tmp_path / "f-naive7.parquet").exists()


def test_the_table_is_for_people_and_says_what_was_known_of_the_weather(tmp_path: Path) -> None:
    shown = CliRunner().invoke(
        forecast, ["backtest", "--panel", str(panel(tmp_path)), "--days", "2", "--methods", "mean4"]
    )
    assert shown.exit_code == 0, shown.output
    assert "no weather" in shown.output
    assert "MASE" in shown.output
    assert "2023-02-19 to 2023-02-20, 2 origins, 24 steps scored of 24" in shown.output


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--panel", "nowhere"], 1, "nowhere: a folder with load.parquet and meta.json expected"),
        (["--panel", "{panel}", "--methods", "lstm"], 2, '"lstm"'),
        (["--panel", "{panel}", "--methods", ","], 2, "one at least"),
        (["--panel", "{panel}", "--days", "60"], 1, "try --days 42"),
        (["--panel", "{panel}", "--shift-days", "50"], 1, "cannot be shifted"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], code: int, told: str) -> None:
    folder = panel(tmp_path / "town")
    shown = CliRunner().invoke(forecast, ["backtest", *(each.format(panel=folder) for each in arguments)])
    assert shown.exit_code == code
    assert told in shown.output
    assert "Traceback" not in shown.output
