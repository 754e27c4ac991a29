"""The bench of localisation: it runs beside baselines, keeps its lines, and counts as it says."""

import json
from pathlib import Path

import click
import pytest

from cloud.bench import localise

PEERS = """
import numpy as np

def daily(frame, ids):
    wide = frame[frame["meter_id"].isin(ids)].pivot(index="time", columns="meter_id", values="imported_wh")
    return wide.reindex(columns=ids).resample("1D").sum().to_numpy(float)

def own_drop(supply, x):
    return 1 - x[-30:].mean(0) / np.maximum(x[:30].mean(0), 1e-9)

nnls_shortfall = isolation_forest = own_drop
"""


def test_a_network_is_measured_with_baselines(tmp_path: Path) -> None:
    pytest.importorskip("power_grid_model")
    pytest.importorskip("pandas")
    (tmp_path / "peers.py").write_text(PEERS)
    found = localise.measure(1, "50", localise.load_peers(tmp_path / "peers.py"), areas=1, customers=12)
    (area,) = found["areas"]
    assert len(area["score"]) == 12 and len(area["faulty"]) == 1
    (fault,) = area["faulty"].values()
    assert fault["lo_wh"] <= fault["found_wh"] <= fault["hi_wh"] and fault["stolen_wh"] > 0
    assert set(area["baselines"]) == set(localise.BASELINES)
    assert all(len(values) == 12 for values in area["baselines"].values())


def line(seed: int, size: str, score: list[float], named: list[int], faulty: dict[str, object]) -> str:
    area = {"score": score, "named": named, "faulty": faulty, "baselines": {}}
    return json.dumps(
        {"seed": seed, "size": size, "difficulty": "hard", "cpu_s_per_area": 1.0, "areas": [area]}
    )  # fmt: skip


def test_what_was_kept_is_summed_up_and_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept.jsonl"
    fault = {"kind": "cap", "said": "cap", "stolen_wh": 5.0, "lo_wh": 4, "found_wh": 6, "hi_wh": 7}
    other = {"kind": "night", "said": "peak", "stolen_wh": 5.0, "lo_wh": 6, "found_wh": 7, "hi_wh": 8}
    kept.write_text(
        "\n".join(
            [
                line(0, "20", [9.0, 1.0, 2.0], [0], {"0": fault}),
                line(1, "20", [9.0, 1.0, 2.0], [0], {"2": other}),
                line(0, "honest", [1.0, 2.0], [], {}),
                line(1, "honest", [1.0, 22.0], [1], {}),
            ]
        )
    )
    monkeypatch.setattr(localise, "measure", lambda *_: pytest.fail("run again"))
    with_thieves, honest = localise.localise([0, 1], ["20"], keep=kept)
    assert with_thieves["methods"] == {"gridloom": {"auc": 0.75, "precision_at_k": 0.5}}
    assert with_thieves["cover80_all"] == 0.5 and with_thieves["cover80_named"] == 1.0
    assert with_thieves["false_names"] == 1 and with_thieves["kind_right_named"] == 1.0
    assert with_thieves["kinds"]["night"]["said"] == {"peak": 1}
    assert honest["area_months"] == 6 and honest["areas_with_false_names"] == 1
    assert honest["area_months_without_false_names_percent"] == pytest.approx(83.33)
    text = "\n".join(localise.table([with_thieves, honest]))
    assert "AUC 0.750" in text and "83.3 % of area-months" in text


def test_seeds_and_peers_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    assert localise.seed_range("0-2,7") == [0, 1, 2, 7]
    with pytest.raises(click.BadParameter, match="0-29"):
        localise.seed_range("many")
    (tmp_path / "peers.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(click.ClickException, match="bench"):
        localise.load_peers(tmp_path / "peers.py")
