"""The balance section of ``gridloom bench loss``, on one small area."""

import json

import pytest
from click.testing import CliRunner

from cloud.bench import balance
from cloud.gridloom import gridloom


def test_the_balance_section_says_how_far_the_stolen_energy_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("power_grid_model")
    monkeypatch.setattr(balance, "AREAS", 1)
    monkeypatch.setattr(balance, "CUSTOMERS", 15)
    monkeypatch.setattr(balance, "DAYS", 62)
    result = CliRunner().invoke(
        gridloom, ["bench", "loss", "--part", "balance", "--seeds", "1", "--size", "50", "--json"]
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["balance"]
    assert [(one["difficulty"], one["gains"]) for one in figures] == [
        ("easy", False), ("easy", True), ("hard", False), ("hard", True),
    ]  # fmt: skip
    for one in figures:
        assert one["areas"] == 1
        assert one["months"] >= 2
        assert abs(one["technical_off_percent"]) < 5
        assert one["off_percent"]["pooled"] >= abs(one["off_percent"]["signed"])
        # Without gain errors the theft is known well; with them only to within what they hide.
        assert one["gains"] or one["off_percent"]["aligned_pooled"] < 10
    assert len(list(balance.table(figures))) == 1 + len(figures)
