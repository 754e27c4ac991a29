"""The durable queue of one gateway: batches until the cloud's receipt, and which marks each meter has given.

Both live in one SQLite file and change in one transaction (WAL, ``synchronous=FULL``): a batch that is queued has its
marks counted and the other way round, so that a kill at any instant loses no mark and counts none twice.

The methods block on the disk; callers on an event loop use ``asyncio.to_thread``. What they share between threads is
replaced whole after a commit, never changed in place, so that reading it needs no lock.
"""

import fcntl
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from gateway.marks import Marks, Run, runs_of
from protocols.quantities import Kind
from protocols.uplink import Event, PayloadError, Row, decode_batch, encode_events, encode_rows, from_us, to_us

logger = logging.getLogger(__name__)

QUEUE_FILE: Final = "queue.sqlite"  # in the data folder
SCHEMA_VERSION: Final = 1
# One commit and one message carry this many rows: 120 kB of energy, well inside BYTES_MAX of the contract.
BATCH_ROWS: Final = 2_000
# Power goes before energy, and what went is told by an event: events are the smallest and go last.
EVICTION_ORDER: Final = (Kind.POWER, Kind.ENERGY, Kind.EVENTS)
# The disk is what is bounded, so a payload counts as the pages it fills. An event fits in a quarter of one.
PAGE_BYTES: Final = 4_096
DROPPED_MAX: Final = 50
DROPPED_AS_ONE: Final = timedelta(hours=1)
EVENT_BYTES: Final = 1_024
RESERVE_BYTES: Final = 8 * 1024 * 1024
VACUUM_PAGES: Final = 500  # at a time, so that the journal of it fits the reserve
_SEQ_MAX: Final = 2**62

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE batch (
    seq       INTEGER PRIMARY KEY,
    kind      TEXT NOT NULL,
    rows      INTEGER NOT NULL,
    bytes     INTEGER NOT NULL,
    first_at  INTEGER NOT NULL,   -- µs since 1970 UTC of the oldest and newest row
    last_at   INTEGER NOT NULL,
    sent_at   INTEGER,            -- first handed to the broker; null: certainly nobody has it
    payload   BLOB NOT NULL
);
CREATE INDEX batch_kind ON batch (kind, seq);
CREATE TABLE collected (          -- energy marks, half-open runs
    meter  TEXT NOT NULL,
    first  INTEGER NOT NULL,
    "end"  INTEGER NOT NULL,
    PRIMARY KEY (meter, first)
) WITHOUT ROWID;
"""


class QueueError(RuntimeError):
    """The queue cannot be used here; the text says where and what to do."""


class TornError(Exception):
    """The file is not a whole SQLite database, or an older one than it was."""


@dataclass(frozen=True, slots=True)
class Queued:
    """A batch waiting for its receipt."""

    seq: int
    kind: Kind
    payload: bytes


class Queue:
    """One gateway's queue file.

    ``bytes_max`` bounds the pages of its batches; the journal (4 MB, 64 at worst) and the reserve (8 MB) come on top.
    On a full disk nothing more comes in, and what waits is still sent and deleted, in the room of the reserve.
    """

    def __init__(
        self, path: Path, *, gateway: str, interval_s: int, bytes_max: int, reserve_bytes: int = RESERVE_BYTES
    ) -> None:
        """Open or make the file; a torn one is set aside and a new epoch begins. Raises QueueError."""
        self.path = path
        self.gateway = gateway
        self.interval_s = interval_s
        self.bytes_max = bytes_max
        self._writing = threading.RLock()
        self._only_one = _lock_file(path.with_suffix(".lock"))
        self._reserve = _Reserve(path.with_suffix(".reserve"), reserve_bytes)
        try:
            self._db = self._open()
        except TornError as torn:
            aside = _set_aside(path)
            logger.error(
                "queue is damaged (%s): set aside as %s; a new epoch begins and the meters' memory is read again",
                torn,
                aside,
            )
            self._db = self._open()
        self._load()
        self._reserve.hold()

    # ---- opening -----------------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            # An explicit transaction each time: isolation_level None keeps the driver from opening its own.
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        except sqlite3.OperationalError as error:
            raise QueueError(f"{self.path}: {error}; can this user write to the folder?") from error
        try:
            db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file: a full disk gets back what was sent
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA foreign_keys=ON")
            db.execute("PRAGMA journal_size_limit=67108864")
            found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise TornError(found)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                meta = {"gateway": self.gateway, "interval_s": self.interval_s, "epoch": uuid4().hex, "seq": 0}
                db.execute("BEGIN IMMEDIATE")
                for statement in filter(str.strip, _SCHEMA.split(";\n")):
                    db.execute(statement)
                db.executemany("INSERT INTO meta VALUES (?, ?)", [(name, str(meta[name])) for name in meta])
                db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                db.execute("COMMIT")
            elif version != SCHEMA_VERSION:
                raise QueueError(f"{self.path}: made by another version of gridloom; run that one, or move the file")
            held: dict[str, str] = dict(db.execute("SELECT name, value FROM meta"))
            sent = self._sent_by(held["epoch"])
            if int(held["seq"]) < sent:
                # The cloud would take new batches under old numbers for those it has, and drop them.
                raise TornError(f"it ends with batch {held['seq']}, but {sent} was sent")
        except BaseException as error:
            db.close()
            if isinstance(error, sqlite3.DatabaseError):
                # Only damage is answered with a new epoch: a full disk or a missing permission is somebody's to mend.
                if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise TornError(str(error)) from error
                if _is_full(error) and self._reserve.give_up():
                    return self._open()
                raise QueueError(f"{self.path}: {error}") from error
            raise
        return db

    def _load(self) -> None:
        meta = dict(self._db.execute("SELECT name, value FROM meta"))
        for name, want in (("gateway", self.gateway), ("interval_s", str(self.interval_s))):
            if meta[name] != want:
                self.close()
                raise QueueError(f"{self.path}: made for {name} {meta[name]}, not {want}; move the file to begin anew")
        self.epoch = meta["epoch"]
        self._seq = int(meta["seq"])
        self.batches, self.bytes = self._db.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM batch").fetchone()
        self._collected: dict[str, Marks] = {}
        for meter, first, end in self._db.execute('SELECT meter, first, "end" FROM collected'):
            self._collected.setdefault(meter, Marks()).add(first, end)

    def _sent_by(self, epoch: str) -> int:
        """The last batch of ``epoch`` that was handed out, by a file of its own: a disk may lose what it had synced."""
        text = os.pread(self._only_one, 100, 0).decode("ascii", "replace").split()
        return int(text[1]) if len(text) == 3 and text[0] == epoch and text[1].isdecimal() and text[2] == "." else 0

    def close(self) -> None:
        with self._writing:
            self._db.close()
            os.close(self._only_one)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable change: what is in it survives a kill whole, or never was."""
        with self._writing:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.OperationalError):  # SQLite has rolled back by itself on a full disk
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError) and _is_full(error) and self._reserve.give_up():
                    self._checkpoint()
                raise

    def _checkpoint(self) -> None:
        """Empty the journal, as far as there is room; its file stays as long as it is, and is room for the next one."""
        with suppress(sqlite3.OperationalError):
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _check_room(self) -> None:
        """Nothing comes in while the reserve is given up. Raises sqlite3.OperationalError."""
        with self._writing:
            if self._reserve.is_held:
                return
            with suppress(sqlite3.OperationalError):
                # A script, because the driver steps a statement without columns only once, which frees one page.
                self._db.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
            self._checkpoint()
            if not self._reserve.hold():
                raise sqlite3.OperationalError("the disk is full; what waits is still sent")

    @contextmanager
    def _change(self) -> Iterator["_Change"]:
        """A transaction on batches and marks; what is kept in memory follows after its commit."""
        with self._writing:
            with self.transaction() as db:
                change = _Change(db, self._seq, self.batches, self.bytes, dict(self._collected))
                yield change
                if change.seq != self._seq:
                    db.execute("UPDATE meta SET value = ? WHERE name = 'seq'", (str(change.seq),))
            self._seq, self.batches, self.bytes = change.seq, change.batches, change.bytes
            self._collected = change.collected

    # ---- marks -------------------------------------------------------------------------------------------------------

    def mark_of(self, moment: datetime) -> int:
        """The newest mark at or before ``moment``."""
        return int(moment.timestamp()) // self.interval_s

    def at(self, mark: int) -> datetime:
        return datetime.fromtimestamp(mark * self.interval_s, UTC)

    def gaps(self, meter: str, first: int, end: int) -> list[Run]:
        """Runs of marks in [first, end) that ``meter`` has not given yet, oldest first."""
        marks = self._collected.get(meter)
        return marks.gaps(first, end) if marks else [Run(first, end)]

    def newest_mark(self, meter: str) -> int | None:
        """That ``meter`` has given."""
        return max((run.end - 1 for run in self._collected.get(meter, ())), default=None)

    # ---- in ----------------------------------------------------------------------------------------------------------

    def append_rows(self, kind: Kind, rows: Sequence[Row], now: datetime, *, again: bool = False) -> int:
        """Queue rows of one kind; energy marks that were collected before are left out, unless they are wanted
        ``again``. Returns rows queued."""
        self._check_room()
        with self._change() as change:
            if kind is Kind.ENERGY:
                new = self._collect(change, rows)
                rows = rows if again else new
            for i in range(0, len(rows), BATCH_ROWS):
                part = rows[i : i + BATCH_ROWS]
                payload = encode_rows(
                    gateway=self.gateway, epoch=self.epoch, seq=change.seq + 1, kind=kind, sent_at=now, rows=part
                )
                times = [row.at for row in part]
                evicted = self._make_room(change, _on_disk(len(payload)) + PAGE_BYTES, now)
                self._insert(change, kind, payload, len(part), to_us(min(times)), to_us(max(times)))
                self._insert_events(change, evicted, now)
        return len(rows)

    def append_events(self, events: Sequence[Event], now: datetime) -> None:
        self._check_room()
        with self._change() as change:
            # Room for these and for what their own eviction has to tell.
            evicted = self._make_room(change, _on_disk(EVENT_BYTES * (len(events) + len(EVICTION_ORDER))), now)
            self._insert_events(change, [*events, *evicted], now)

    def _collect(self, change: "_Change", rows: Sequence[Row]) -> list[Row]:
        """The rows whose marks are new; those marks count as collected from here on."""
        by_meter: dict[str, dict[int, Row]] = {}
        for row in rows:
            by_meter.setdefault(row.meter, {})[int(row.at.timestamp()) // self.interval_s] = row
        new: list[Row] = []
        for meter, by_mark in by_meter.items():
            marks = Marks(change.collected.get(meter, ()))
            for gap in [gap for run in runs_of(by_mark) for gap in marks.gaps(*run)]:
                new.extend(by_mark[mark] for mark in range(*gap))
                whole = marks.add(*gap)
                change.db.execute("DELETE FROM collected WHERE meter = ? AND first >= ? AND first < ?", (meter, *whole))
                change.db.execute("INSERT INTO collected VALUES (?, ?, ?)", (meter, *whole))
            change.collected[meter] = marks
        return new

    @staticmethod
    def _insert(change: "_Change", kind: Kind, payload: bytes, rows: int, first_us: int, last_us: int) -> None:
        change.seq += 1
        change.batches += 1
        change.bytes += _on_disk(len(payload))
        change.db.execute(
            "INSERT INTO batch (seq, kind, rows, bytes, first_at, last_at, payload) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (change.seq, kind.value, rows, _on_disk(len(payload)), first_us, last_us, payload),
        )

    def _insert_events(self, change: "_Change", events: Sequence[Event], now: datetime) -> None:
        if events:
            payload = encode_events(
                gateway=self.gateway, epoch=self.epoch, seq=change.seq + 1, sent_at=now, events=events
            )
            times = [event.at for event in events]
            self._insert(change, Kind.EVENTS, payload, len(events), min(times), max(times))

    # ---- the bound ---------------------------------------------------------------------------------------------------

    def _make_room(self, change: "_Change", size: int, now: datetime) -> list[Event]:
        """Evict the oldest batches of the least worth until ``size`` more bytes fit; one event per kind tells what."""
        events = []
        for kind in EVICTION_ORDER:
            gone: list[tuple[int, int, int]] = []
            rows_lost = rows_again = 0
            for seq, rows, length, first_us, last_us, sent_at in change.db.execute(
                "SELECT seq, rows, bytes, first_at, last_at, sent_at FROM batch WHERE kind = ? ORDER BY seq", (kind,)
            ):
                if change.bytes + size <= self.bytes_max:
                    break
                gone.append((seq, first_us, last_us))
                change.batches -= 1
                change.bytes -= length
                # Energy that nobody can have yet is a gap again: the meters' memory has it when there is room.
                if kind is Kind.ENERGY and sent_at is None and self._forget(change, seq):
                    rows_again += rows
                else:
                    rows_lost += rows
            if not gone:
                continue
            bounds = (kind, gone[0][0], gone[-1][0])
            change.db.execute("DELETE FROM batch WHERE kind = ? AND seq BETWEEN ? AND ?", bounds)
            detail: dict[str, str | int | float | bool | None] = {
                "kind": kind.value,
                "from": from_us(min(first_us for _, first_us, _ in gone)).isoformat(),
                "to": from_us(max(last_us for _, _, last_us in gone)).isoformat(),
                "batches": len(gone),
                "rows_lost": rows_lost,
                "rows_to_read_again": rows_again,
            }
            logger.warning("queue is full, evicted %s", " ".join(f"{name}={value}" for name, value in detail.items()))
            self._note_dropped(change, {"at": now.isoformat(), **detail})
            events.append(Event(at=to_us(now), kind="queue_evicted", detail=detail))
        return events

    @staticmethod
    def _note_dropped(change: "_Change", gone: dict[str, Any]) -> None:
        """For `meterctl queue`, also when the cloud has the event: the last DROPPED_MAX, those at once as one."""
        row = change.db.execute("SELECT value FROM meta WHERE name = 'dropped'").fetchone()
        dropped = json.loads(row[0]) if row else []
        last = next((it for it in reversed(dropped) if it["kind"] == gone["kind"]), None)
        at = datetime.fromisoformat(gone["at"])
        if last and at - datetime.fromisoformat(last["at"]) < DROPPED_AS_ONE:
            for name in ("batches", "rows_lost", "rows_to_read_again"):
                gone[name] += last[name]
            gone["from"], gone["to"] = min(gone["from"], last["from"]), max(gone["to"], last["to"])
            dropped.remove(last)
        kept = json.dumps([*dropped, gone][-DROPPED_MAX:])
        change.db.execute("INSERT OR REPLACE INTO meta VALUES ('dropped', ?)", (kept,))

    def _forget(self, change: "_Change", seq: int) -> bool:
        """Make the marks of an energy batch gaps again; False when its payload is unreadable."""
        payload = change.db.execute("SELECT payload FROM batch WHERE seq = ?", (seq,)).fetchone()[0]
        try:
            batch = decode_batch(payload)
        except PayloadError:
            return False
        by_meter: dict[str, list[int]] = {}
        meter_index = memoryview(batch.columns["meter_index"]).cast("H")
        for i, us in zip(meter_index, memoryview(batch.columns["at"]).cast("q"), strict=True):
            by_meter.setdefault(batch.meters[i], []).append(us // (self.interval_s * 1_000_000))
        for meter, gone in by_meter.items():
            marks = Marks(change.collected.get(meter, ()))
            for run in runs_of(gone):
                marks.discard(*run)
            change.collected[meter] = marks
            change.db.execute("DELETE FROM collected WHERE meter = ?", (meter,))
            change.db.executemany("INSERT INTO collected VALUES (?, ?, ?)", [(meter, *run) for run in marks])
        return True

    def oldest_at(self) -> int | None:
        """Of the rows that wait, µs since 1970 UTC."""
        with self._writing:
            return self._db.execute("SELECT min(first_at) FROM batch").fetchone()[0]  # type: ignore[no-any-return]

    # ---- out ---------------------------------------------------------------------------------------------------------

    def take(self, count: int, now: datetime, *, skip: Collection[int] = ()) -> list[Queued]:
        """The oldest ``count`` batches not in ``skip``, marked as sent: from here on somebody may have them."""
        places = ",".join("?" * len(skip))
        query = f"SELECT seq, kind, payload, sent_at FROM batch WHERE seq NOT IN ({places}) ORDER BY seq LIMIT ?"  # noqa: S608
        with self._writing:
            rows = self._db.execute(query, (*skip, count)).fetchall()
            fresh = [(to_us(now), seq) for seq, _, _, sent_at in rows if sent_at is None]
            if fresh:
                with self.transaction() as db:
                    db.executemany("UPDATE batch SET sent_at = ? WHERE seq = ?", fresh)
                # Not before the commit, and not synced: this must never be ahead of the queue on a disk that is honest.
                os.pwrite(self._only_one, f"{self.epoch} {self._seq} .\n".encode(), 0)
        return [Queued(seq, Kind(kind), payload) for seq, kind, payload, _ in rows]

    def settle(self, epoch: str, stored: Sequence[tuple[int, int]], now: datetime | None = None) -> int:
        """Delete what the cloud has committed, inclusive ranges. Returns batches deleted; 0 for another epoch.

        ``now``: when the receipt came, for `meterctl queue`.
        """
        if epoch != self.epoch:
            return 0
        deleted = 0
        with self._change() as change:
            for first, last in stored:
                bounds = (max(first, 0), min(last, _SEQ_MAX))
                # fetchall, because a DELETE … RETURNING is finished only when its rows are read.
                gone = change.db.execute("DELETE FROM batch WHERE seq BETWEEN ? AND ? RETURNING bytes", bounds)
                lengths = [length for (length,) in gone.fetchall()]
                deleted += len(lengths)
                change.bytes -= sum(lengths)
            change.batches -= deleted
            if now is not None:
                change.db.execute("INSERT OR REPLACE INTO meta VALUES ('receipt_at', ?)", (str(to_us(now)),))
        return deleted


@dataclass(slots=True)
class _Change:
    """What a transaction is about to make true. ``collected`` holds other objects than the queue's where it differs."""

    db: sqlite3.Connection
    seq: int
    batches: int
    bytes: int
    collected: dict[str, Marks]


class _Reserve:
    """Room on the disk for the day somebody else has filled it: twice what the journal holds before it is emptied.

    Without it a full disk could not even note that a batch was sent, or delete one.
    """

    def __init__(self, path: Path, octets: int) -> None:
        self._path = path
        self._octets = octets
        self.is_held = False

    def hold(self) -> bool:
        """Take it, where there is room."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._octets)
            finally:
                os.close(descriptor)
        except OSError:
            self.give_up()
            return False
        self.is_held = True
        return True

    def give_up(self) -> bool:
        """False where there was none."""
        self.is_held = False
        try:
            held = self._path.stat().st_size
            os.truncate(self._path, 0)
        except OSError:
            return False
        return held > 0


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL


def _on_disk(length: int) -> int:
    return -(-length // PAGE_BYTES) * PAGE_BYTES


def _make_folder(path: Path) -> None:
    """With its parents, each name synced: SQLite syncs what is in the folder, but a power cut could take the folder."""
    if path.is_dir():
        return
    _make_folder(path.parent)
    path.mkdir(exist_ok=True)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _lock_file(path: Path) -> int:
    """Held until the process ends, however it ends: two gateways on one queue would poll everything twice."""
    try:
        _make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise QueueError(f"{path}: {error.strerror}; can this user write to the folder?") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise QueueError(f"{path}: another `meterctl run` uses this queue; stop it first") from error
    return descriptor


def _set_aside(path: Path) -> Path:
    """Move the database and its journal out of the way, for whoever wants to look; an older one is replaced."""
    aside = path.with_name(f"{path.name}.damaged")
    for suffix in ("", "-wal", "-shm"):
        aside.with_name(aside.name + suffix).unlink(missing_ok=True)
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside
