"""``meterctl bench`` runs and has every figure. How large they are is no matter of a test on a shared machine."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from gateway.bench import Figure, bench_command

KEYS = {
    "modbus_blocks",
    "modbus_sdm630",
    "modbus_single",
    "pymodbus_blocks",
    "pymodbus_single",
    "modbus_blocks_to_pymodbus_blocks",
    "modbus_blocks_to_pymodbus_single",
    "modbus_single_to_pymodbus_single",
    "dlt645_frames",
    "dlt645_values",
    "dlt645_steps",
    "pypi_dlt645_frames",
    "pypi_dlt645_values",
    "pypi_dlt645_frames_unlogged",
    "pypi_dlt645_values_unlogged",
    "dlt645_frames_ratio",
    "dlt645_values_ratio",
    "dlt645_steps_ratio",
    "dlt645_frames_ratio_unlogged",
    "dlt645_values_ratio_unlogged",
    "dlt645_steps_ratio_unlogged",
    "rs485_modbus_rtu",
    "rs485_dlt645",
    "agent_rss",
}


def test_every_figure_is_measured_against_processes_of_its_own() -> None:
    meterctl = [sys.executable, "-c", "from gateway.meterctl import main; main()"]
    ran = subprocess.run([*meterctl, "bench", "--quick", "--json"], capture_output=True, timeout=240)
    assert ran.returncode == 0, ran.stderr.decode()
    told = json.loads(ran.stdout)
    assert told["figures"].keys() == KEYS
    missing = {key: figure["note"] for key, figure in told["figures"].items() if not (figure["value"] or 0) > 0}
    assert not missing
    # Nothing can be faster than its line.
    assert all(told["figures"][key]["value"] <= 1 for key in ("rs485_modbus_rtu", "rs485_dlt645"))
    assert told["machine"]["quick"] is True


def test_a_library_that_is_not_there_leaves_its_row_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlt645", None)
    ran = CliRunner().invoke(bench_command, ["--quick", "--part", "dlt645"])
    assert ran.exit_code == 0, ran.output
    (row,) = [line for line in ran.output.splitlines() if line.startswith("the same with PyPI dlt645 ")]
    assert row.endswith("dlt645 is not installed: pip install dlt645")
    assert "MISSED" not in ran.output


@pytest.mark.parametrize(
    ("figure", "is_met"),
    [
        (Figure("", 5.0, "", target=5.0), True),
        (Figure("", 4.99, "", target=5.0), False),
        (Figure("", 80.1, "", target=80.0, at_least=False), False),
        (Figure("", None, "", target=5.0), None),
        (Figure("", 5.0, ""), None),
    ],
)
def test_a_target_is_a_least_or_a_most(figure: Figure, is_met: bool | None) -> None:
    assert figure.is_met is is_met
