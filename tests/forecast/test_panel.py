"""What a folder must be, and what becomes of its columns."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cloud.forecast.panel import PanelError, read_panel
from tests.forecast.panels import loads, panel, times, write


def test_a_panel_that_begins_and_ends_within_a_day_is_padded_and_cut(tmp_path: Path) -> None:
    at = times(4)[5:-3]
    write(tmp_path, {"time": at, "a": np.arange(len(at), dtype=np.int32)})
    found = read_panel(tmp_path)
    assert found.start == np.datetime64("2023-01-02T00:00")
    assert found.load.shape == (1, 72)
    assert np.isnan(found.load[0, :5]).all()
    assert found.load[0, 5:].tolist() == list(range(67))
    assert found.inputs().day_kind.tolist()[:3] == [3, 0, 0]  # New Year's Day 2023 was a Sunday, observed on the Monday


def test_shifted_ends_earlier(tmp_path: Path) -> None:
    whole = read_panel(panel(tmp_path, days=20))
    earlier = whole.shifted(6)
    assert earlier.days == 14
    np.testing.assert_array_equal(earlier.load, whole.load[:, : 14 * 24])


def test_planned_weather_stands_for_what_came_and_for_nothing_more(tmp_path: Path) -> None:
    panel(tmp_path, days=10)
    at = times(10)
    temperature = np.arange(240.0)
    foretold = np.where(np.arange(240) < 100, np.nan, -temperature)
    write(
        tmp_path,
        {"time": at, "t": temperature, "t_forecast_d1": foretold, "wind": temperature + 1, "sun_forecast": foretold},
        "weather.parquet",
    )
    found = read_panel(tmp_path)
    assert found.planned == ("t_forecast_d1", "sun_forecast")
    assert found.ex_post == ("wind",)
    measured, planned, wind, sun = found.weather
    assert (found.lead > 10_000).tolist() == [False, True, True, True]
    assert found.lead[0] == 0  # the measured one is known for the past alone
    np.testing.assert_array_equal(measured, temperature)
    np.testing.assert_array_equal(planned, np.where(np.arange(240) < 100, temperature, -temperature))
    np.testing.assert_array_equal(wind, temperature + 1)
    np.testing.assert_array_equal(sun, foretold)


def test_weather_that_begins_later_and_ends_later_is_laid_beside_the_load(tmp_path: Path) -> None:
    panel(tmp_path, days=10)
    write(tmp_path, {"time": times(12)[30:], "t": np.arange(258.0)}, "weather.parquet")
    found = read_panel(tmp_path)
    assert np.isnan(found.weather[0, :30]).all()
    assert found.weather[0, 30:].tolist() == list(range(210))


def _without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _load(**change: Any) -> Any:
    def spoil(folder: Path) -> None:
        at = times(10)
        write(folder, {"time": at, **loads(at)} | change)

    return spoil


def _twice() -> Any:
    at = times(10).copy()
    at[7] = at[6]
    return at


def _hole() -> Any:
    at = times(11)
    return np.delete(at, slice(30, 54))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_without("load.parquet"), "load.parquet: missing"),
        (_without("meta.json"), "meta.json: missing"),
        (lambda folder: (folder / "meta.json").write_text("{"), "meta.json: no JSON"),
        (lambda folder: (folder / "load.parquet").write_text("time"), "load.parquet: no parquet file"),
        (lambda folder: (folder / "meta.json").write_text('{"country": "XX"}'), 'country "XX" is not known'),
        (lambda folder: (folder / "meta.json").write_text('{"step_minutes": 15}'), "step_minutes is 15"),
        (_load(time=_twice()), "2023-01-02T06:00:00 is there twice"),
        (
            _load(time=_hole()),
            "irregular step: 60 minutes .* 2023-01-04T06:00:00 follows 2023-01-03T05:00:00",
        ),
        (_load(s1=np.array(["x"] * 240)), "column s1: numbers expected, got string"),
        (_load(time=np.arange(240)), "naive timestamps .* expected, got int64"),
        (_load(time=pa.array(times(10), pa.timestamp("ns", "UTC"))), "naive timestamps .* tz=UTC"),
        (
            lambda folder: write(folder, {"time": times(10, 30), "t": np.zeros(480)}, "weather.parquet"),
            "a row every 30 minutes, load.parquet every 60",
        ),
    ],
)
def test_what_is_wrong_is_told_with_the_place(tmp_path: Path, spoil: Any, told: str) -> None:
    panel(tmp_path, days=10)
    spoil(tmp_path)
    with pytest.raises(PanelError, match=told):
        read_panel(tmp_path)
