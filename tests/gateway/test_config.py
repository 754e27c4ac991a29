"""A site file is checked whole: every problem is told, with its place, and nothing starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.model import Line, SerialEndpoint, SerialSetting, TcpEndpoint
from gateway.config import Problem, Site, load
from protocols import templates

GOOD = """\
[gateway]
name = "gw-1"
[uplink]
url = "mqtt://127.0.0.1:1883"
[[line]]
name = "a1-645"
protocol = "dlt645-2007"
host = "127.0.0.1"
port = 40001
read_timeout_s = 1
[[line]]
name = "a1-modbus"
protocol = "modbus-tcp"
host = "127.0.0.1"
port = 40002
[[meter]]
name = "m001"
line = "a1-645"
address = "000000000012"
template = "dlt645-2007"
utc_offset_h = 8
[[meter]]
name = "m002"
line = "a1-modbus"
address = "12"
template = "gridloom-demo-modbus"
controllable = true
"""

BAD = """\
[gateway]
name = "gw 1"
[uplink]
url = "tcp://somewhere"
[poll]
interval_s = 60
[queue]
bytes_max = "2 GB"
[site]
[[line]]
name = "a"
protocol = "dlt645"
host = "127.0.0.1"
port = 400010
[[line]]
name = "b"
protocol = "modbus-tcp"
host = "127.0.0.1"
port = 40002
[[meter]]
name = "m001"
line = "b"
address = "248"
template = "gridloom-demo-modbus"
[[meter]]
name = "m001"
line = "b"
address = 12
template = "gridloom-demo-modbus"
[[meter]]
name = "m003"
line = "b"
address = "3"
template = "dlt645-2007"
colour = "red"
[[meter]]
line = "b"
address = "3"
template = "acme"
[[meter]]
name = "m005"
line = "b"
address = "3"
template = "acme"
[[meter]]
name = "m005"
line = "b"
address = "3"
template = "dlt645-2007"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text)
    return path


def meterctl(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRIDLOOM_")}
    return subprocess.run(
        [sys.executable, "-c", "from gateway.meterctl import main; main()", *arguments],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def problems(folder: Path, text: str, **environment: str) -> list[str]:
    found = load(write(folder, text), environment, offline=True)
    assert isinstance(found, list)
    return [str(problem) for problem in found]


def test_a_good_site_is_what_the_file_says(tmp_path: Path) -> None:
    site = load(write(tmp_path, GOOD), {"GRIDLOOM_MQTT_PASSWORD": "s3cret"})
    assert isinstance(site, Site)
    assert (site.gateway, site.data_dir, site.interval_s, site.backfill_days) == ("gw-1", tmp_path, 900, 35)
    assert [(line.name, [meter.name for meter in meters]) for line, meters in site.lines] == [
        ("a1-645", ["m001"]),
        ("a1-modbus", ["m002"]),
    ]
    assert (site.broker.host, site.broker.port, site.broker.username) == ("127.0.0.1", 1883, "gw-1")
    assert "s3cret" not in repr(site)


SERIAL = """\
[gateway]
name = "gw-1"
[uplink]
url = "mqtt://127.0.0.1:1883"
[[line]]
name = "rs485-1"
protocol = "dlt645-2007"
device = "/dev/ttyUSB0"
baud = 2400
parity = "E"
[[line]]
name = "rs485-2"
protocol = "modbus-rtu-over-tcp"
host = "127.0.0.1"
port = 4001
baud = 9600
parity = "N"
stop_bits = 2
quarantine_s = 2
"""


def meters(line: str, count: int, template: str, address: str = "{}") -> str:
    return "".join(
        f'[[meter]]\nname = "{line}-{i}"\nline = "{line}"\naddress = "{address.format(i)}"\ntemplate = "{template}"\n'
        for i in range(1, count + 1)
    )


TCP = 'host = "127.0.0.1"\nport = 4001'
TWO_LINES = SERIAL + meters("rs485-1", 60, "dlt645-2007", "{:012d}") + meters("rs485-2", 3, "eastron-sdm630")


def test_serial_lines_state_their_speed(tmp_path: Path) -> None:
    text = TWO_LINES.replace('name = "rs485-2-2"', 'name = "rs485-2-2"\nrole = "boundary"')
    site = load(write(tmp_path, text), {}, offline=True)
    assert isinstance(site, Site)
    (first, _), (second, _) = site.lines
    assert first == Line("rs485-1", "dlt645-2007", SerialEndpoint("/dev/ttyUSB0", SerialSetting(2400, "E")), 0.5, 0.5)
    assert first.setting == SerialSetting(2400, "E")
    behind = SerialSetting(9600, "N", 2)
    assert second == Line("rs485-2", "modbus-rtu-over-tcp", TcpEndpoint("127.0.0.1", 4001), 1.0, 2.0, behind)
    assert [meter.role for meter in site.meters[-3:]] == ["customer", "boundary", "customer"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('device = "/dev/ttyUSB0"\n', "", "line[0]: host and port, or device expected"),
        ("port = 4001", "", "line[1].port: is missing"),
        ("baud = 2400", "baud = 2400\nport = 1", "line[0]: host and port, or device expected, got both"),
        ("baud = 2400\n", "", "line[0].baud: is missing; a serial line states its baud and parity"),
        ('parity = "N"\n', "", "line[1].parity: is missing; a serial line states its baud and parity"),
        ('parity = "E"', 'parity = "even"', "line[0].parity: 'N', 'E' or 'O' expected, got \"even\""),
        ("baud = 2400", "baud = 2400\ndata_bits = 7", "line[0].data_bits: dlt645-2007 needs 8"),
        ('"modbus-rtu-over-tcp"', '"modbus-rtu"', 'line[1].protocol: through a TCP server it is "modbus-rtu-over-tcp"'),
        (TCP, 'device = "/dev/ttyUSB0"', 'line[1].device: "/dev/ttyUSB0" is line[0] already'),
        (TCP, 'device = "/dev/ttyUSB1"', "line[1].device: modbus-rtu-over-tcp needs host and port; on a device speak"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_serial_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert old in TWO_LINES
    assert any(it.startswith(f"site.toml: {problem}") for it in problems(tmp_path, TWO_LINES.replace(old, new)))


def test_a_plan_that_cannot_fit_is_refused_with_the_arithmetic(tmp_path: Path) -> None:
    text = SERIAL.partition('[[line]]\nname = "rs485-2"')[0] + meters("rs485-1", 150, "dlt645-2007", "{:012d}")
    done = meterctl("check", str(write(tmp_path, text)))
    assert done.returncode == 1
    (told,) = done.stderr.splitlines()
    assert told.startswith("site.toml: line[0]: line rs485-1: 150 meters × 6.6 s = 993 s of 900 s (110 %) at 2400 8E1")
    assert "Fewer meters a line or a higher baud" in told
    quicker = text.replace("baud = 2400", "baud = 2400\nread_timeout_s = 0.2")
    assert isinstance(load(write(tmp_path, quicker), {}, offline=True), Site)


def test_check_says_how_busy_a_line_will_be(tmp_path: Path) -> None:
    done = meterctl("check", str(write(tmp_path, TWO_LINES)), "--json")
    assert done.returncode == 0
    notes = json.loads(done.stdout)["notes"]
    assert any(it.startswith("line rs485-1: 60 meters × 6.6 s = 397 s of 900 s (44 %)") for it in notes)
    assert any(it.startswith("line rs485-2: 3 meters × ") for it in notes)


def test_the_environment_overrides_the_url(tmp_path: Path) -> None:
    site = load(write(tmp_path, GOOD), {"GRIDLOOM_MQTT_PASSWORD": "x", "GRIDLOOM_MQTT_URL": "mqtts://broker"})
    assert isinstance(site, Site)
    assert (site.broker.host, site.broker.port, site.broker.tls) == ("broker", 8883, True)


def test_every_problem_is_told_with_its_place(tmp_path: Path) -> None:
    assert problems(tmp_path, BAD) == [
        "site.toml: site: unknown section; "
        "known are gateway, uplink, poll, backfill, queue, clocks, templates, line, meter",
        'site.toml: gateway.name: letters, digits, ".", "_", "-" expected, at most 63, got "gw 1"',
        "site.toml: poll.interval_s: 900 expected, got 60",
        'site.toml: queue.bytes_max: a whole number expected, got "2 GB"',
        "site.toml: line[0].protocol: 'dlt645-2007', 'dlt645-1997', 'modbus-tcp', 'modbus-rtu', 'modbus-ascii' or "
        "'modbus-rtu-over-tcp' expected, got \"dlt645\"",
        "site.toml: line[0].port: at most 65535 expected, got 400010",
        "site.toml: meter[1].address: text in quotes expected, got 12",
        "site.toml: meter[2].colour: unknown setting; "
        "known are name, line, address, template, utc_offset_h, controllable, role",
        "site.toml: meter[3].name: is missing",
        'site.toml: meter[5].name: "m005" is meter[4] already',
        'site.toml: meter[5].address: "3 on b" is meter[4] already',
        'site.toml: meter[0].address: 1 to 247 expected, got "248"',
        f"site.toml: meter[4].template: one of {', '.join(templates.names())} expected",
        'site.toml: meter[5].template: "dlt645-2007" speaks dlt645-2007, line "b" modbus-tcp',
        'site.toml: uplink.url: mqtt://host:port or mqtts://host:port expected, got "tcp://somewhere"',
    ]


def test_the_address_problem_reads_as_the_style_says(tmp_path: Path) -> None:
    text = GOOD.replace('address = "000000000012"', 'address = "12"').replace('line = "a1-modbus"', 'line = "a2"')
    assert problems(tmp_path, text) == [
        'site.toml: meter[0].address: 12 digits expected, got "12"',
        'site.toml: meter[1].line: one of a1-645, a1-modbus expected, got "a2"',
    ]


@pytest.mark.parametrize(
    ("text", "environment", "problem"),
    [
        ("a = 1\nb = ", {}, "site.toml: is not TOML: Invalid value (at end of document)"),
        (GOOD.replace("[uplink]\nurl", "# url"), {}, "uplink.url: is missing, and GRIDLOOM_MQTT_URL is not set"),
        (GOOD, {"GRIDLOOM_MQTT_URL": "mqtt://a:b@c"}, "GRIDLOOM_MQTT_URL: no user or password here"),
        (GOOD, {"GRIDLOOM_645_PASSWORD": "hunter2"}, "GRIDLOOM_645_PASSWORD: 8 digits expected, the level (02) first"),
        (GOOD.split("[[line]]")[0], {}, "site.toml: line: at least one [[line]] expected"),
    ],
)  # fmt: skip
def test_one_problem(tmp_path: Path, text: str, environment: dict[str, str], problem: str) -> None:
    (found,) = problems(tmp_path, text, **environment)[:1]
    assert problem in found


def test_a_missing_password_is_a_problem_to_run_but_not_to_check(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    assert isinstance(load(path, {}, offline=True), Site)
    assert load(path, {}) == [
        Problem("", "GRIDLOOM_MQTT_PASSWORD", "is not set; the broker's password of user gw-1"),
    ]


def test_check_prints_all_problems_and_fails(tmp_path: Path) -> None:
    done = meterctl("check", str(write(tmp_path, BAD)))
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 15
    as_json = meterctl("check", str(tmp_path / "site.toml"), "--json")
    assert as_json.returncode == 1
    assert len(json.loads(as_json.stdout)["problems"]) == 15


def test_check_of_a_good_site_says_what_is_in_it(tmp_path: Path) -> None:
    done = meterctl("check", str(write(tmp_path, GOOD)))
    assert (done.returncode, done.stdout) == (0, "site.toml: fine: gateway gw-1, 2 meters on 2 lines\n")


def test_check_says_what_a_makers_template_cannot_give_yet(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("gridloom-demo-modbus", "eastron-sdm630"))
    done = meterctl("check", str(path))
    assert done.returncode == 0
    assert "note: meters with template eastron-sdm630 have no load profile: their energy is read" in done.stdout
    assert len(json.loads(meterctl("check", str(path), "--json").stdout)["notes"]) == 1


def test_a_mistyped_command_exits_2(tmp_path: Path) -> None:
    assert meterctl("check", str(tmp_path / "none.toml")).returncode == 2
    assert meterctl("chekc").returncode == 2


def test_run_refuses_a_bad_site_in_one_line_each(tmp_path: Path) -> None:
    done = meterctl("run", str(write(tmp_path, GOOD)))
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["GRIDLOOM_MQTT_PASSWORD: is not set; the broker's password of user gw-1"]
    assert not (tmp_path / "queue.sqlite").exists()
    done = meterctl("run", str(tmp_path / "site.toml"), GRIDLOOM_MQTT_PASSWORD="x", GRIDLOOM_CLOCK="/nowhere")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_help_ends_with_commands_to_copy() -> None:
    for arguments in ([], ["check"], ["run"]):
        done = meterctl(*arguments, "--help")
        assert done.returncode == 0
        assert done.stdout.rstrip().splitlines()[-1].strip().startswith("meterctl ")
