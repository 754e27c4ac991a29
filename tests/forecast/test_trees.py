"""The member of LightGBM: asked for by name only, blind to the future, and missed in one line."""

import dataclasses

import numpy as np
import pytest

from cloud.engines.forecast import forecast
from cloud.forecast import trees
from cloud.forecast.backtest import MethodError, members
from tests.engines.test_forecast import DAY, made, origins


def test_without_lightgbm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "installed", lambda: False)
    with pytest.raises(MethodError, match=r'pip install "gridloom\[trees\]"'):
        members("ensemble+trees")
    assert "trees" not in members("ensemble")


def test_with_it_the_ensemble_has_one_more_member(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "installed", lambda: True)
    assert members("ensemble+trees") == (*members("ensemble"), "trees")


def test_trees_know_nothing_of_the_future_and_beat_the_weekday_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightgbm", reason='pip install "gridloom[trees]"')
    monkeypatch.setattr(trees, "_TREES", 60)
    inputs, at = made(60), origins(59, 3, late=6)
    extra = {"trees": trees.trees}
    wanted = forecast(inputs, at, 42, members=("trees",), extra=extra)
    for nth, origin in enumerate(at):
        load = inputs.load.copy()
        load[:, origin:] = np.random.default_rng(1).standard_normal(load[:, origin:].shape) * 1e4
        got = forecast(dataclasses.replace(inputs, load=load), at, 42, members=("trees",), extra=extra)
        np.testing.assert_allclose(got.point[: nth + 1], wanted.point[: nth + 1], rtol=1e-9)
    actual = np.stack([inputs.load[:, origin : origin + DAY] for origin in at])
    mean = forecast(inputs, at, DAY, members=("mean4",)).point
    assert np.abs(wanted.point[:, :, :DAY] - actual).mean() < np.abs(mean - actual).mean()
