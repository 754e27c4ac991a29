"""`gridloom bench loss`: that it runs, what it prints, and that its power flow is right. Not how fast."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cloud.bench import loss
from cloud.bench.commands import bench

NETWORKS = Path(__file__).parents[1] / "cases" / "networks"


@pytest.mark.parametrize("by_phase", [False, True])
def test_the_flow_of_a_public_network_agrees_with_power_grid_model(by_phase: bool) -> None:
    """tests/cases/networks/dtu-35/README.md."""
    figures = loss.measure(NETWORKS, "dtu-35", 336, by_phase)
    assert figures["max_du_pu"] <= 1e-6
    assert figures["loss_error_percent"] <= 0.01
    assert figures["min_u_pu"] < 0.95, "the network is loaded"
    assert {"network", "nodes", "scenarios", "us_per_scenario", "pgm_us_per_scenario", "ratio"} <= set(figures)


def test_the_bench_prints_one_document() -> None:
    done = CliRunner().invoke(bench, ["loss", "--networks", str(NETWORKS), "--name", "dtu-35", "--quick", "--json"])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)["flow"]
    assert [(one["network"], one["asymmetric"], one["scenarios"]) for one in figures] == [
        ("dtu-35", False, 336),
        ("dtu-35", True, 336),
    ]


def test_a_folder_without_networks_says_how_to_make_them(tmp_path: Path) -> None:
    done = CliRunner().invoke(bench, ["loss", "--networks", str(tmp_path)])
    assert done.exit_code == 1
    assert "no networks; make them with: python tools/export_networks.py" in done.output
