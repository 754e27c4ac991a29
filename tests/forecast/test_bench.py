"""The bench says what it lacks, and its synthetic loads are what a forecast takes."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cloud.bench.forecast import HISTORY_DAYS, STEPS_PER_DAY, _ratios, _turn, forecast_command, synthetic
from tests.forecast.panels import panel


def test_synthetic_loads_are_positive_in_their_history_and_unknown_on_the_day() -> None:
    inputs = synthetic(20, 1)
    origin = HISTORY_DAYS * STEPS_PER_DAY
    inputs.check(np.array([origin]), STEPS_PER_DAY)
    assert np.isfinite(inputs.load[:, :origin]).all()
    assert np.isnan(inputs.load[:, origin:]).all()
    np.testing.assert_array_equal(synthetic(20, 1).load, inputs.load)


def test_a_turn_forecasts_every_series() -> None:
    turn = _turn(5, 1, ("mean4",))
    assert turn.finite
    assert turn.cpu_s > 0
    assert turn.peak_mb > 10


def test_the_fastest_ridge_is_one_that_is_nearly_the_best() -> None:
    def row(mase: float, rate: float) -> dict[str, float]:
        return {"mase": mase, "wql": 2.0, "cpu_s": 1.0, "series_origins_per_s_core": rate}

    rows = {"ridge": row(0.5, 9.0), "pooled": row(0.51, 20.0), "ensemble": row(0.45, 1.0), "lightgbm": row(0.5, 1.0)}
    told = _ratios(rows)
    assert (told["fastest_ridge"], told["mase_ratio"], told["wql_ratio"]) == ("pooled", 0.9, None)
    assert _ratios(rows | {"pooled": row(0.52, 20.0)})["fastest_ridge"] == "ridge"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--panels", "{room}/none"], "no folder with load.parquet"),
        (["--panels", "{room}", "--panel", "moon"], "no panel moon"),
        (["--panels", "{room}", "--peers", "{room}/peers.py"], "peers.py: missing; name peers.py with --peers"),
    ],
)
def test_what_it_lacks_is_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    panel(tmp_path / "town")
    command = ["--quick", "--part", "panels", *(each.format(room=tmp_path) for each in arguments)]
    shown = CliRunner().invoke(forecast_command, command)
    assert shown.exit_code == 1
    assert told in shown.output
