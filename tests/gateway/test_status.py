"""`meterctl queue` and `meterctl status`: what the file knows, and what the running agent tells."""

import json
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from click.testing import CliRunner

from gateway.queue import QUEUE_FILE, Queue
from gateway.status import queue_command, status_command
from protocols.quantities import Kind
from protocols.uplink import Event, Row, to_us
from simulators.lines import Meter, SerialLine, Setting
from tests.gateway.onbus import document, meter_645, meterctl, running_agent, write_site

QUARTER = timedelta(minutes=15)
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SETTING = 'protocol = "dlt645-2007"\nbaud = 9600\nparity = "N"'


def site_of(folder: Path, device: str = "/dev/null") -> Path:
    return write_site(
        folder, device, {"flat-7": "000000000007", "flat-8": "000000000008"}, setting=SETTING, template="dlt645-2007"
    )


def open_queue(folder: Path, *, bytes_max: int = 2_000_000_000) -> Queue:
    return Queue(folder / QUEUE_FILE, gateway="gw-1", interval_s=900, bytes_max=bytes_max)


def row(at: datetime, meter: str = "flat-7") -> Row:
    return Row(meter, at, at, at, 0, {"energy_import_wh": 1000})


def test_a_queue_tells_what_waits_and_when_the_last_receipt_came(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [row(NOW), row(NOW, "flat-8")], NOW)
    queue.append_rows(Kind.ENERGY, [row(NOW + QUARTER)], NOW)
    queue.append_events([Event(at=to_us(NOW), kind="meter_silent", meter="flat-7")], NOW)
    queue.settle(queue.epoch, [(1, 1)], NOW + timedelta(minutes=1))
    done = CliRunner().invoke(queue_command, [str(site), "--json"])  # the queue is open for writing meanwhile
    queue.close()
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["epoch"], facts["seq"]) == (queue.epoch, 3)
    assert facts["receipt_at"] == "2026-11-22T10:01:00Z"
    assert [(it["kind"], it["batches"], it["rows"], it["oldest_at"]) for it in facts["waiting"]] == [
        ("energy", 1, 1, "2026-11-22T10:15:00Z"),
        ("events", 1, 1, "2026-11-22T10:00:00Z"),
    ]
    assert facts["dropped"] == []
    text = CliRunner().invoke(queue_command, [str(site)])
    assert text.exit_code == 0 and "no receipt" not in text.stdout and "energy " in text.stdout


def test_what_was_dropped_is_told_also_after_its_event_is_gone(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    queue = open_queue(tmp_path, bytes_max=200_000)
    for i in range(100):
        queue.append_rows(Kind.POWER, [row(NOW + i * QUARTER)], NOW + i * timedelta(minutes=2))
    queue.settle(queue.epoch, [(1, 1000)])
    queue.close()
    facts = json.loads(CliRunner().invoke(queue_command, [str(site), "--json"]).stdout)
    assert facts["waiting"] == []
    power = [it for it in facts["dropped"] if it["kind"] == "power"]
    assert len(power) == 1  # within an hour of each other, so told as one
    assert power[0]["from"] == NOW.isoformat()
    assert power[0]["batches"] == power[0]["rows_lost"] > 20
    assert "dropped" in CliRunner().invoke(queue_command, [str(site)]).stdout


def test_reading_a_queue_leaves_it_as_it_is(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    missing = CliRunner().invoke(queue_command, [str(site)])
    assert missing.exit_code == 1 and "no queue yet" in missing.output
    assert not (tmp_path / QUEUE_FILE).exists()
    (tmp_path / QUEUE_FILE).write_bytes(b"not a database, " * 100)
    torn = CliRunner().invoke(queue_command, [str(site)])
    assert torn.exit_code == 1 and "not a database" in torn.output
    assert (tmp_path / QUEUE_FILE).read_bytes() == b"not a database, " * 100


def test_without_an_agent_status_tells_what_the_file_knows_and_ends_with_1(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    queue = open_queue(tmp_path)
    mark = queue.at(queue.mark_of(datetime.now(UTC)) - 1)
    queue.append_rows(Kind.ENERGY, [row(mark)], NOW)
    queue.close()
    done = CliRunner().invoke(status_command, [str(site)])
    assert done.exit_code == 1
    assert "no agent runs" in done.output and f"meterctl run {site}" in done.output
    told = json.loads(CliRunner().invoke(status_command, [str(site), "--json"]).stdout)
    assert told["running"] is False
    seven, eight = told["meters"]
    assert datetime.fromisoformat(seven["newest_mark"]) == mark
    assert eight["newest_mark"] is None


def test_status_through_the_agent(tmp_path: Path) -> None:
    with SerialLine([Meter(meter_645("000000000007"), Setting(9600, "E"))]) as line:
        site = site_of(tmp_path, line.path)
        with running_agent(site) as pid:
            deadline = time.monotonic() + 30
            while not (told := document(meterctl("status", str(site), "--json")))["uplink"].startswith("[Errno"):
                assert time.monotonic() < deadline, told  # the broker is not there, and after a while it is known
            text = meterctl("status", str(site))
            waiting = meterctl("queue", str(site))
    assert told["running"] is True and told["pid"] == pid
    assert [it["name"] for it in told["lines"]] == ["east"] and told["lines"][0]["endpoint"] == line.path
    assert [it["address"] for it in told["meters"]] == ["000000000007", "000000000008"]
    assert f"the agent running as pid {pid}" in text.stdout and "uplink: [Errno" in text.stdout
    assert waiting.returncode == 0 and "epoch" in waiting.stdout
    with sqlite3.connect(tmp_path / QUEUE_FILE) as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("ok",)
