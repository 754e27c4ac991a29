"""`meterctl read`, beside a running agent and through it, on serial lines with true timing and on TCP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.read import describe, read_command
from protocols import templates
from simulators.lines import Meter, SerialLine, Setting
from tests.gateway.onbus import document, family_meter, meter_645, meterctl, running_agent, write_site

# A pty has no parity bit, and refuses to be set again to what differs in that alone; SerialLine puts it on the line.
SETTING_645 = 'protocol = "dlt645-2007"\nbaud = 9600\nparity = "N"'


@pytest.fixture(scope="module")
def line() -> Iterator[SerialLine]:
    setting = Setting(9600, "E")
    with SerialLine([Meter(meter_645("000000000007"), setting), Meter(meter_645("000000000008"), setting)]) as it:
        yield it


def test_a_data_identifier_is_read_without_a_site(line: SerialLine) -> None:
    done = meterctl(
        "read", "--device", line.path, "--baud", "9600", "--parity", "N", "--protocol", "dlt645-2007",
        "--address", "000000000007", "00010000", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = document(done)
    assert said["values"] == [{"name": "current forward active energy total", "value": "1234.56", "unit": "kWh"}]
    assert "正向有功总电能" in said["description"]
    assert said["request"] == "FE FE FE FE 68 07 00 00 00 00 00 68 11 04 33 33 34 33 B9 16"
    assert said["reply"].endswith("16") and "68 07 00 00 00 00 00 68 91" in said["reply"]
    assert said["how"] == f"over {line.path}, opened for this"


def test_registers_are_read_over_modbus_rtu_and_ascii() -> None:
    values = {"voltage_l1_v": 231.5, "frequency_hz": 50.0}
    for protocol, ascii in (("modbus-rtu", False), ("modbus-ascii", True)):
        setting = Setting(19200, "N")
        with SerialLine([Meter(family_meter(5, "eastron-sdm630", values, ascii=ascii), setting)]) as line:
            where = [
                "--device",
                line.path,
                "--baud",
                "19200",
                "--parity",
                "N",
                "--protocol",
                protocol,
                "--address",
                "5",
            ]
            raw = meterctl("read", *where, "4:0x0000:2:float32")
            named = meterctl("read", *where, "--template", "eastron-sdm630", "voltage_l1_v")
            refused = meterctl("read", *where, "4:0x0500:2")
        assert "231.5" in raw.stdout and "asked:" in raw.stdout, raw.stderr
        assert "voltage_l1_v: 231.5 V" in named.stdout and "4:0x0000:2:float32" in named.stdout
        assert refused.returncode == 1
        assert "illegal_data_address" in refused.stderr and "meterctl templates" in refused.stderr


def test_through_the_running_agent_and_without_it(line: SerialLine, tmp_path: Path) -> None:
    meters = {"flat-7": "000000000007", "flat-8": "000000000008", "flat-9": "000000000009"}
    site = write_site(tmp_path, line.path, meters, setting=SETTING_645, template="dlt645-2007")
    with running_agent(site) as pid:
        through = document(meterctl("read", str(site), "flat-8", "02010100", "--json"))
        beside = meterctl(
            "read", "--device", line.path, "--protocol", "dlt645-2007", "--baud", "9600", "--address", "000000000007",
            "00010000",
        )  # fmt: skip
        silent = meterctl("read", str(site), "flat-9", "00010000")
        unknown = meterctl("read", str(site), "flat-1", "00010000")
    assert not through["reason"], through["detail"]
    assert through["how"] == f"through the agent running as pid {pid}"
    assert through["values"][0]["value"] == "220.3"
    assert beside.returncode == 1 and "in use by another program" in beside.stderr
    assert silent.returncode == 1 and "silent" in silent.stderr and "meterctl scan" in silent.stderr
    assert unknown.returncode == 1 and "one of flat-7, flat-8, flat-9 expected" in unknown.stderr

    alone = document(meterctl("read", str(site), "flat-8", "02010100", "--json"))
    assert alone["how"] == f"no agent runs on {tmp_path}: over {line.path}, opened for this"
    assert alone["values"] == through["values"] and alone["reply"] == through["reply"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["00010000"], "SITE METER ITEM expected"),
        (["--device", "/dev/null", "00010000"], "--address and one ITEM expected"),
        (["--device", "x", "--address", "1", "00010000"], "--protocol: one of dlt645-2007"),
        (["--device", "x", "--protocol", "dlt645-2007", "--address", "12", "00010000"], "12 digits expected"),
        (["--device", "x", "--protocol", "modbus-tcp", "--address", "1", "3:0:1"], "needs --host and --port"),
        (["--host", "h", "--protocol", "modbus-tcp", "--address", "900", "3:0:1"], "a unit from 1 to 247 expected"),
        (["--port", "502", "--address", "1", "3:0:1"], "--port needs --host"),
    ],
)
def test_what_was_mistyped_is_told_and_ends_with_2(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(read_command, arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_a_device_that_is_not_there_says_what_to_do() -> None:
    done = meterctl(
        "read", "--device", "/dev/no-such", "--protocol", "dlt645-2007", "--address", "000000000001", "00010000"
    )
    assert done.returncode == 1
    assert "no such device" in done.stderr and "ls /dev/serial/by-id" in done.stderr


def test_items_are_described_from_the_tables() -> None:
    two_thousand_seven, family = templates.load("dlt645-2007"), templates.load("eastron-sdm630")
    assert describe(two_thousand_seven, "energy_import_wh").startswith("00010000 current forward active energy")
    assert describe(two_thousand_seven, "02010200") == "phase B voltage, B相电压"
    assert describe(family, "frequency_hz").startswith("4:0x0046:2:float32")
    assert describe(family, "4:0x0000:2") == ""
