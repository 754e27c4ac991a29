"""The durable queue on a real disk: what is committed stays, what is counted is queued, the bound holds."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.queue import Queue, QueueError
from protocols.quantities import Kind
from protocols.uplink import Batch, Event, Row, decode_batch, to_us

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
STEP = timedelta(minutes=15)


def open_queue(folder: Path, *, bytes_max: int = 100_000_000, gateway: str = "gw-1", interval_s: int = 900) -> Queue:
    return Queue(folder / "queue.sqlite", gateway=gateway, interval_s=interval_s, bytes_max=bytes_max)


def energy(meter: str, mark: int) -> Row:
    at = datetime.fromtimestamp(mark * 900, UTC)
    return Row(meter, at, NOW, at, 0, {"energy_import_wh": mark * 10, "energy_export_wh": None})


def power(meter: str, mark: int) -> Row:
    return Row(meter, datetime.fromtimestamp(mark * 900, UTC), NOW, NOW, 0, {"active_power_w": 1.5})


def batches(queue: Queue) -> list[Batch]:
    return [decode_batch(queued.payload) for queued in queue.take(100_000, NOW)]


def marks_in(found: list[Batch]) -> Counter[tuple[str, int]]:
    """How often each (meter, mark) is queued."""
    counted: Counter[tuple[str, int]] = Counter()
    for batch in found:
        if batch.kind is Kind.ENERGY:
            index = memoryview(batch.columns["meter_index"]).cast("H")
            for i, us in zip(index, memoryview(batch.columns["at"]).cast("q"), strict=True):
                counted[batch.meters[i], us // 900_000_000] += 1
    return counted


def test_rows_become_batches_and_their_marks_are_no_gaps_any_more(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    assert queue.append_rows(Kind.ENERGY, [energy("m1", mark) for mark in (10, 11, 13)], NOW) == 3
    assert queue.gaps("m1", 9, 15) == [(9, 10), (12, 13), (14, 15)]
    assert queue.gaps("m2", 9, 15) == [(9, 15)]
    (batch,) = batches(queue)
    assert (batch.gateway, batch.epoch, batch.seq, batch.kind) == ("gw-1", queue.epoch, 1, Kind.ENERGY)
    assert marks_in([batch]) == {("m1", 10): 1, ("m1", 11): 1, ("m1", 13): 1}


def test_a_mark_counts_once_however_often_it_is_read(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [energy("m1", mark) for mark in range(5)], NOW)
    assert queue.append_rows(Kind.ENERGY, [energy("m1", mark) for mark in (3, 4, 5, 5, 6)], NOW) == 2
    assert queue.append_rows(Kind.ENERGY, [energy("m1", 6)], NOW) == 0
    assert queue.batches == 2
    assert set(marks_in(batches(queue)).values()) == {1}


def test_many_rows_are_split_into_batches_of_2000(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [energy(f"m{i}", mark) for i in range(3) for mark in range(1500)], NOW)
    assert [batch.rows for batch in batches(queue)] == [2000, 2000, 500]
    assert [batch.seq for batch in batches(queue)] == [1, 2, 3]


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [energy("m1", 7)], NOW)
    queue.append_rows(Kind.POWER, [power("m1", 7)], NOW)
    queue.append_events([Event(at=1, kind="meter_silent", meter="m1")], NOW)
    before = (queue.epoch, queue.batches, queue.bytes, queue.take(9, NOW))
    queue.close()
    again = open_queue(tmp_path)
    assert (again.epoch, again.batches, again.bytes, again.take(9, NOW)) == before
    assert again.gaps("m1", 6, 9) == [(6, 7), (8, 9)]


def test_seqs_go_on_after_everything_was_settled(tmp_path: Path) -> None:
    """A seq names a batch for ever: it is not given again because the table is empty."""
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [energy("m1", 1)], NOW)
    queue.settle(queue.epoch, [(1, 1)])
    queue.close()
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [energy("m1", 2)], NOW)
    assert [batch.seq for batch in batches(queue)] == [2]


def test_only_a_receipt_of_this_epoch_deletes(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    for mark in range(6):
        queue.append_rows(Kind.ENERGY, [energy("m1", mark)], NOW)
    assert queue.settle("0" * 32, [(1, 6)]) == 0
    assert queue.settle(queue.epoch, [(2, 3), (5, 2**63), (-(2**63), -1), (9, 8)]) == 4
    assert [batch.seq for batch in batches(queue)] == [1, 4]
    assert queue.batches == 2
    assert queue.settle(queue.epoch, [(1, 4)]) == 2
    assert (queue.batches, queue.bytes) == (0, 0)
    assert queue.gaps("m1", 0, 6) == []


def test_take_leaves_out_what_is_in_flight(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    for mark in range(5):
        queue.append_rows(Kind.ENERGY, [energy("m1", mark)], NOW)
    assert [queued.seq for queued in queue.take(2, NOW, skip=(1, 3))] == [2, 4]


def test_power_goes_before_energy_and_an_event_names_the_range(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, bytes_max=100_000)
    for mark in range(8):
        queue.append_rows(Kind.ENERGY, [energy("m1", mark)], NOW)
        queue.append_rows(Kind.POWER, [power("m1", mark)], NOW)
    for mark in range(8, 16):
        queue.append_rows(Kind.ENERGY, [energy("m1", mark)], NOW)
        assert queue.bytes <= 100_000
    found = batches(queue)
    assert len(marks_in(found)) == 16, "no energy went while there was power"
    evicted = [event for batch in found for event in batch.events]
    assert {event.kind for event in evicted} == {"queue_evicted"}
    assert {event.detail["kind"] for event in evicted} == {"power"}
    assert evicted[0].detail["from"] == datetime.fromtimestamp(0, UTC).isoformat()
    assert all(event.at == to_us(NOW) for event in evicted)


def test_energy_nobody_has_yet_becomes_a_gap_again_when_evicted(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, bytes_max=60_000)
    queue.append_rows(Kind.ENERGY, [energy("m1", 0)], NOW)
    queue.take(1, NOW)  # sent: the cloud may have it, so it must not be read again
    for mark in range(1, 60):
        queue.append_rows(Kind.ENERGY, [energy("m1", mark)], NOW)
        assert queue.bytes <= 60_000
    left = {mark for (_, mark) in marks_in(batches(queue))}
    gaps = {mark for run in queue.gaps("m1", 0, 60) for mark in range(*run)}
    assert gaps
    assert gaps == set(range(60)) - left - {0}
    queue.close()
    again = open_queue(tmp_path, bytes_max=60_000)
    assert {mark for run in again.gaps("m1", 0, 60) for mark in range(*run)} == gaps
    assert again.append_rows(Kind.ENERGY, [energy("m1", min(gaps))], NOW) == 1


def test_the_file_keeps_near_its_bound(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, bytes_max=2_000_000)
    for mark in range(700):
        queue.append_rows(Kind.POWER, [power(f"m{i:03}", mark) for i in range(100)], NOW)
    assert queue.bytes <= 2_000_000
    assert queue.path.stat().st_size < 2_500_000


@pytest.mark.parametrize("damage", ["text", "torn", "hole"])
def test_a_damaged_file_is_set_aside_and_everything_is_read_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [energy(f"m{i}", mark) for i in range(40) for mark in range(200)], NOW)
    epoch, path = queue.epoch, queue.path
    queue.close()
    whole = path.read_bytes()
    if damage == "text":
        path.write_bytes(b"not a database, and long enough to be looked at " * 100)
    elif damage == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(whole[:4096] + bytes(8192) + whole[12288:])
    again = open_queue(tmp_path)
    assert again.epoch != epoch
    assert (again.batches, again.bytes) == (0, 0)
    assert again.gaps("m1", 0, 200) == [(0, 200)]
    assert (tmp_path / "queue.sqlite.damaged").exists()
    assert "set aside" in caplog.text


def test_two_gateways_never_share_a_queue(tmp_path: Path) -> None:
    with_it = open_queue(tmp_path)
    with pytest.raises(QueueError, match="another `meterctl run`"):
        open_queue(tmp_path)
    with_it.close()
    with pytest.raises(QueueError, match="made for gateway gw-1, not gw-2; move the file"):
        open_queue(tmp_path, gateway="gw-2")
    with pytest.raises(QueueError, match="made for interval_s 900, not 300"):
        open_queue(tmp_path, interval_s=300)


def test_a_failed_transaction_changes_nothing(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [energy("m1", 1)], NOW)
    with queue.transaction() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
    queue._db.execute(f"PRAGMA max_page_count={pages}")  # a full disk
    many = [energy(f"m{i}", mark) for i in range(20) for mark in range(200)]
    with pytest.raises(sqlite3.OperationalError, match="full"):
        queue.append_rows(Kind.ENERGY, many, NOW)
    assert (queue.batches, queue.gaps("m2", 0, 200)) == (1, [(0, 200)])
    queue._db.execute("PRAGMA max_page_count=1000000")
    assert queue.append_rows(Kind.ENERGY, many, NOW) == len(many) - 1
    assert [batch.seq for batch in batches(queue)] == [1, 2, 3]


WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from protocols.quantities import Kind
from tests.gateway.test_queue import NOW, energy, open_queue
queue = open_queue(Path(sys.argv[1]))
while True:
    for meter in ("m1", "m2", "m3"):
        gap = queue.gaps(meter, 0, 1_000_000)[0]
        end = min(gap.end, gap.first + 40)
        queue.append_rows(Kind.ENERGY, [energy(meter, mark) for mark in range(gap.first, end)], NOW)
        sys.stdout.write(f"{meter} {end}\\n")  # in one piece, also unbuffered
        sys.stdout.flush()
"""


def test_a_kill_at_any_instant_loses_no_committed_mark_and_counts_none_twice(tmp_path: Path) -> None:
    """kill -9 at random instants; each writer goes on where the gaps say the last one ended."""
    chance = random.Random(2)
    committed: dict[str, int] = {}
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        assert writer.stdout
        for line in writer.stdout:  # until it writes, then some more
            meter, end = line.split()
            committed[meter] = int(end)
            break
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(writer.pid, signal.SIGKILL)
        for line in writer.stdout.read().splitlines():
            meter, end = line.split()
            committed[meter] = int(end)
        writer.stdout.close()
        writer.wait(10)
    queue = open_queue(tmp_path)
    found = batches(queue)
    counted = marks_in(found)
    assert set(counted.values()) == {1}
    assert [batch.seq for batch in found] == list(range(1, len(found) + 1))
    for meter, last in committed.items():
        assert all((meter, mark) in counted for mark in range(last))
        assert queue.gaps(meter, 0, 1_000_000)[0].first == sum(name == meter for name, _ in counted)
