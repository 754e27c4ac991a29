"""The durable queue on a real disk: what is committed stays, what is counted is queued, the bound holds."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.queue import RESERVE_BYTES, Queue, QueueError
from protocols.quantities import Kind
from protocols.uplink import Batch, Event, Row, decode_batch, to_us
from tests.conftest import missing_service

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


def test_the_disk_holds_no_more_than_the_bound_journal_and_reserve_included(tmp_path: Path) -> None:
    queue = open_queue(tmp_path, bytes_max=2_000_000)
    most = 0
    for mark in range(700):
        queue.append_rows(Kind.POWER, [power(f"m{i:03}", mark) for i in range(100)], NOW)
        most = max(most, sum(part.stat().st_blocks * 512 for part in tmp_path.iterdir()))
        assert queue.bytes <= 2_000_000
    assert queue.path.stat().st_size < 2_500_000
    assert most < 2_500_000 + 5_000_000 + RESERVE_BYTES  # the journal is emptied at 4 MB


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


def on_a_full_disk(folder: Path) -> None:
    """In a process that has a small disk of its own, see below."""
    queue = open_queue(folder)
    for first in range(0, 4_000, 40):
        queue.append_rows(Kind.ENERGY, [energy(f"m{i}", first + j) for i in range(10) for j in range(40)], NOW)
    with (folder / "a log of somebody else").open("wb", buffering=0) as other, suppress(OSError):
        while True:
            other.write(bytes(4_096))
    collected = 4_000
    with pytest.raises(sqlite3.OperationalError, match="full"):
        for collected in range(4_000, 400_000, 40):
            rows = [energy(f"m{i}", collected + j) for i in range(10) for j in range(40)]
            queue.append_rows(Kind.ENERGY, rows, NOW)
    assert queue.gaps("m1", 0, 400_000) == [(collected, 400_000)], "what was refused is not collected"
    waiting = queue.batches
    counted: Counter[tuple[str, int]] = Counter()
    for _ in range(30):
        with pytest.raises(sqlite3.OperationalError, match="full"):
            queue.append_events([Event(at=1, kind="meter_silent")], NOW)
        sent = queue.take(3, NOW)
        counted += marks_in([decode_batch(batch.payload) for batch in sent])
        assert queue.settle(queue.epoch, [(batch.seq, batch.seq) for batch in sent]) == 3
    assert queue.batches == waiting - 90
    queue.close()
    queue = open_queue(folder)  # a restart, and the disk is still full
    assert queue.batches == waiting - 90
    (folder / "a log of somebody else").unlink()
    queue.append_rows(Kind.ENERGY, [energy("m1", collected)], NOW)
    counted += marks_in(batches(queue))
    assert set(counted.values()) == {1}
    assert len(counted) == 10 * collected + 1
    queue.settle(queue.epoch, [(1, 10_000)])
    queue.append_rows(Kind.ENERGY, [energy("m1", collected + 1)], NOW)
    print(f"full disk: {collected // 40} batches collected, 90 sent and deleted while it was full")


def test_a_full_disk_refuses_what_is_new_and_sends_what_waits(tmp_path: Path) -> None:
    """24 MB of tmpfs in a mount namespace, so that the disk is really full for somebody else's doing."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        missing_service("unshare (util-linux, and user namespaces that are permitted)")
    run = (
        "import sys; from pathlib import Path; from tests.gateway.test_queue import on_a_full_disk;"
        "on_a_full_disk(Path(sys.argv[1]))"
    )
    script = 'mount -t tmpfs -o size=24m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*alone, "sh", "-c", script, "sh", str(tmp_path), sys.executable, run],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr


def test_a_queue_that_gives_back_its_room_when_it_is_empty(tmp_path: Path) -> None:
    """Only after a full disk: else the pages are used again."""
    queue = open_queue(tmp_path)
    many = [energy(f"m{i}", mark) for i in range(20) for mark in range(2_000)]
    queue.append_rows(Kind.ENERGY, many, NOW)
    pages = queue._db.execute("PRAGMA page_count").fetchone()[0]
    queue._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        queue.append_rows(Kind.ENERGY, [energy(f"n{i}", mark) for i in range(20) for mark in range(2_000)], NOW)
    queue.settle(queue.epoch, [(1, 10_000)])
    queue._db.execute("PRAGMA max_page_count=1000000")
    for mark in range(4):
        queue.append_rows(Kind.ENERGY, [energy("x", mark)], NOW)
    assert queue._db.execute("PRAGMA page_count").fetchone()[0] < pages / 2


def test_a_queue_that_lost_what_was_sent_begins_a_new_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A torn journal ends earlier, and SQLite finds nothing wrong. Its next seqs would name batches the cloud has."""
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [energy("m1", mark) for mark in range(9)], NOW)
    queue._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for mark in range(9, 12):
        queue.append_rows(Kind.ENERGY, [energy("m1", mark)], NOW)
    for name, torn_at in (("unsent", 3), ("sent", 3), ("whole", 1)):
        if name == "sent":
            queue.take(2, NOW)  # the first two; but the others were numbered by then, and might have been
        folder = tmp_path / name
        folder.mkdir()
        for part in ("queue.sqlite", "queue.sqlite-wal", "queue.lock"):
            raw = (tmp_path / part).read_bytes()
            (folder / part).write_bytes(raw[: len(raw) // torn_at] if part.endswith("-wal") else raw)
        again = open_queue(folder)
        if name == "sent":
            assert again.epoch != queue.epoch
            assert again.gaps("m1", 0, 12) == [(0, 12)]
            assert "it ends with batch" in caplog.text
        else:
            assert again.epoch == queue.epoch
            assert again.gaps("m1", 0, 12) == ([] if name == "whole" else [(again._seq + 8, 12)])
        again.close()


def test_a_clock_set_back_changes_neither_the_order_nor_what_is_collected(tmp_path: Path) -> None:
    queue = open_queue(tmp_path)
    queue.append_rows(Kind.ENERGY, [energy("m1", 1)], NOW)
    queue.append_events([Event(at=to_us(NOW), kind="meter_silent")], NOW)
    queue.take(1, NOW)
    before = NOW - timedelta(days=400)
    assert queue.append_rows(Kind.ENERGY, [energy("m1", 1)], before) == 0
    assert queue.append_rows(Kind.ENERGY, [energy("m1", 2)], before) == 1
    queue.close()
    queue = open_queue(tmp_path)
    assert [batch.seq for batch in queue.take(9, before)] == [1, 2, 3]
    assert queue.settle(queue.epoch, [(1, 3)]) == 3
    assert queue.gaps("m1", 0, 4) == [(0, 1), (3, 4)]


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
