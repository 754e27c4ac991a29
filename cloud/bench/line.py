"""From broker to committed rows, beside COPY alone and `executemany`, in turns.

A turn empties the tables, so that all begin from the same state, and verifies what it did.
"""

import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, LiteralString, cast

import msgspec
import numpy as np
import psycopg
from numpy.typing import NDArray

from cloud.bench.feed import Feed, all_rows, column_names, copy_streams, tuples, wire_names
from cloud.bench.publisher import Order, Told
from cloud.bench.services import BenchError, Ingestors, Meter, Place, cpu_of_all
from cloud.store.migrations import Connection, Edition
from protocols.quantities import Kind
from protocols.uplink import to_us

# What gateways have on the line without a receipt, all together: enough for an ingestor to collect its next transaction
# while it commits one, and what a real gateway (gateway.uplink.WINDOW) may have at most.
ROWS_ON_THE_LINE: Final = 200_000
WINDOW_MAX: Final = 20
HEADLINE_ROWS: Final = 500
STEADY_COMMITS: Final = 8
COMMITS_ENOUGH: Final = 400  # to know the rate of small ones
COMMIT_FIRST: Final = 20_000  # rows, until it is known how many an ingestor commits at once

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. ``rows``: of a turn, by rows a message."""

    rounds: int = 3
    meters: int = 10_000
    gateways: int = 100
    warm: bool = True  # a turn that does not count before those that do
    sizes: dict[int, tuple[int, ...]] = field(
        default_factory=lambda: dict.fromkeys((1, 2), (50, 500, 5_000))
    )  # by workers
    days: tuple[int, ...] = (1, 10, 100)
    rows: int = 2_000_000
    rows_small: int = 500_000  # in messages of 50
    singles: int = 40_000
    executemany_rows: int = 200_000
    lag_s: float = 10.0
    disk_meters: int = 1_000
    disk_days: int = 7
    queries: int = 40


QUICK: Final = Effort(
    rounds=1, meters=200, gateways=4, warm=False, sizes={1: (50, 500, 5_000), 2: (500,)}, days=(1,), rows=20_000,
    rows_small=4_000, singles=400, executemany_rows=1_000, lag_s=0.5, disk_meters=20, disk_days=2, queries=3,
)  # fmt: skip


def register(connection: Connection, gateways: Sequence[str], meters: int) -> NDArray[np.int32]:
    """The registry of a bench: an area for each gateway. Returns meter_id, (gateways, meters of each)."""
    count = len(gateways) * meters
    names = [(gateway, name) for gateway in gateways for name in wire_names(meters)]
    with connection.transaction():
        connection.execute(
            "INSERT INTO feeder (feeder_id, name_en, name_zh, capacity_w) VALUES ('F1', 'F1', 'F1', 1e9)"
        )
        connection.execute(
            "INSERT INTO area (area_id, feeder_id, name_en, name_zh, gateway, capacity_w)"
            " SELECT 'A' || n, 'F1', 'A' || n, 'A' || n, gateway, 1e6"
            " FROM unnest(%s::text[]) WITH ORDINALITY AS g (gateway, n)",
            [list(gateways)],
        )
        connection.execute(
            "INSERT INTO metering_point (point_id, point, area_id, role, node_id) OVERRIDING SYSTEM VALUE"
            " SELECT n, 'P' || n, 'A' || (n - 1) / %s + 1, CASE (n - 1) %% %s WHEN 0 THEN 'supply' ELSE 'customer' END,"
            " 'N' || n FROM generate_series(1, %s) AS n",
            [meters, meters, count],
        )
        connection.execute(
            "INSERT INTO meter (meter_id, serial, protocol) OVERRIDING SYSTEM VALUE"
            " SELECT n, 'S' || n, 'dlt645-2007' FROM generate_series(1, %s) AS n",
            [count],
        )
        connection.execute(
            "INSERT INTO installation (meter_id, point_id, gateway, wire_name)"
            " SELECT n, n, gateway, name"
            " FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS i (gateway, name, n)",
            [[gateway for gateway, _ in names], [name for _, name in names]],
        )
    connection.execute("ANALYZE")
    return np.arange(1, count + 1, dtype=np.int32).reshape(len(gateways), meters)


def table_of(kind: Kind) -> LiteralString:
    return "energy_sample" if kind is Kind.ENERGY else "power_sample"


class Line:
    """The measured line on one place. ``meter_ids``: (gateways, meters of each)."""

    def __init__(self, here: Place, connection: Connection, meter_ids: NDArray[np.int32], effort: Effort) -> None:
        self.here = here
        self.connection = connection
        self.meter_ids = meter_ids
        self.effort = effort
        self.commit = COMMIT_FIRST  # rows the ingestor committed at once, in the turn before
        self._gateways = here.broker.gateways[: len(meter_ids)]

    def feed(self, kind: Kind, rows: int, total: int, *, start: datetime | None = None) -> Feed:
        """About ``total`` rows, in messages of ``rows``; its last mark lies in the past."""
        gateways, meters = self.meter_ids.shape
        messages = max(3, round(total / rows / gateways))
        marks = -(-messages * rows // meters)
        begin = start or _today() - timedelta(minutes=15 * (marks % 960))
        return Feed(
            kind=kind,
            gateways=self._gateways,
            meters=meters,
            rows=rows,
            messages=messages,
            start_us=to_us(begin),
            epoch=secrets.token_hex(16),
        )

    def empty(self) -> None:
        """The state every turn begins from."""
        self.connection.execute(
            "TRUNCATE energy_sample, power_sample, dirty_range, dirty_hour, batch, meter_state, meter_said, quarantine"
        )
        self._checkpoint()

    def _checkpoint(self) -> None:
        # So that no turn pays for the pages of the one before; not every login may.
        with suppress(psycopg.errors.InsufficientPrivilege):
            self.connection.execute("CHECKPOINT")

    # ---- the line ----------------------------------------------------------------------------------------------------

    def ingest(self, feed: Feed, running: Ingestors, rate: float | None = None) -> Document:
        """One feed through broker and ingestors into the store. Raises BenchError where a row is missing or double."""
        with self._publisher(feed, rate) as publisher:
            meter = Meter(self.connection, running.processes, self.here.broker.process)
            told = publisher.go()
            spent_s = meter.spent_s() | {"publisher": told.cpu_s}
        ledger = self._verify(feed)
        rows = [count for _, count in ledger]
        seconds = (ledger[-1][0] - ledger[0][0]).total_seconds()
        self.commit = round(feed.total_rows / len(ledger))
        # recorded_at is when a transaction began: what all but the last brought was there when the last began. Where
        # they were few, the steady part is too short to tell anything, and the whole way from first send must do.
        steady = len(rows) >= STEADY_COMMITS
        rate_seen = sum(rows[:-1]) / seconds if steady else feed.total_rows / told.seconds
        return {
            "rows": feed.total_rows,
            "messages": told.messages,
            "rows_per_s": rate_seen,
            "receipted_rows_per_s": told.rows_per_s,
            "rows_per_commit": self.commit,
            "lag_ms": {"p50": told.lag_p50_ms, "p99": told.lag_p99_ms},
            "bytes_per_row_wire": told.wire_bytes / told.rows,
            "cpu_us_per_row": {name: 1e6 * cpu_s / feed.total_rows for name, cpu_s in spent_s.items()},
        }

    def _verify(self, feed: Feed) -> list[tuple[datetime, int]]:
        """When each transaction began, and its rows."""
        found = self.connection.execute(
            "SELECT recorded_at, sum(rows)::bigint, sum(quarantined)::bigint FROM batch WHERE epoch = %s"
            " GROUP BY recorded_at ORDER BY recorded_at",
            [feed.epoch],
        ).fetchall()
        ledger = [(cast(datetime, at), cast(int, rows)) for at, rows, _ in found]
        entered, aside = sum(rows for _, rows in ledger), sum(cast(int, bad) for _, _, bad in found)
        query: LiteralString = (
            "SELECT coalesce(sum(n), 0)::bigint, count(*) FROM (SELECT count(*) AS n FROM "  # noqa: S608
            + table_of(feed.kind)
            + " WHERE batch_id IN (SELECT batch_id FROM batch WHERE epoch = %s) GROUP BY meter_id, at) m"
        )
        counted = self.connection.execute(query, [feed.epoch]).fetchone()
        assert counted is not None
        stored, distinct = cast(int, counted[0]), cast(int, counted[1])
        if not (feed.total_rows == entered == stored == distinct) or aside:
            raise BenchError(
                f"{feed.total_rows} rows were sent and receipted; the ledger has {entered}, {table_of(feed.kind)} "
                f"{stored}, of them {stored - distinct} double, quarantined {aside}; does another ingestor run there?"
            )
        return ledger

    @contextmanager
    def _publisher(self, feed: Feed, rate: float | None) -> Iterator["Publisher"]:
        window = max(1, min(WINDOW_MAX, ROWS_ON_THE_LINE // (feed.rows * len(feed.gateways))))
        broker = self.here.broker
        passwords = {name: broker.passwords[name] for name in feed.gateways}
        order = Order(
            feed=feed, host=broker.host, port=broker.port, passwords=passwords, rate=rate,
            window=window if rate is None else WINDOW_MAX,
        )  # fmt: skip
        publisher = Publisher(order, self.here.folder / "publisher.log")
        try:
            yield publisher
        finally:
            publisher.end()

    # ---- beside it ---------------------------------------------------------------------------------------------------

    def copy(self, feed: Feed, connections: int = 1) -> Document:
        """The feed's rows by binary COPY alone, made before, at the ingestor's commit size, into the same table.

        ``connections`` share them. Nothing else is in a transaction.
        """
        streams = copy_streams(all_rows(feed, self.meter_ids), self.commit)
        query: LiteralString = (
            f"COPY {table_of(feed.kind)} ({', '.join(column_names(feed.kind))}) FROM STDIN (FORMAT BINARY)"
        )
        opened = [psycopg.connect(self.here.dsn, autocommit=True) for _ in range(connections)]
        before = _cpu_of([connection.info.backend_pid for connection in opened])
        try:
            ready = threading.Barrier(connections + 1)

            filled = [0] * connections

            def fill(i: int) -> None:
                ready.wait()
                for stream in streams[i::connections]:
                    cursor = opened[i].cursor()
                    with cursor.copy(query) as copy:
                        copy.write(stream)
                    filled[i] += cursor.rowcount

            threads = [threading.Thread(target=fill, args=[i]) for i in range(connections)]
            for thread in threads:
                thread.start()
            ready.wait()
            begin_s = time.perf_counter()
            for thread in threads:
                thread.join()
            seconds = time.perf_counter() - begin_s
            cpu_s = _cpu_of([connection.info.backend_pid for connection in opened]) - before
        finally:
            for connection in opened:
                connection.close()
        self._expect(table_of(feed.kind), sum(filled), feed.total_rows)
        return {"rows_per_s": feed.total_rows / seconds, "cpu_us_per_row": 1e6 * cpu_s / feed.total_rows}

    def executemany(self, feed: Feed, count: int, commit: int) -> Document:
        """The first rows by INSERT … ON CONFLICT DO NOTHING, ``commit`` at once, into a table like it with the unique
        index it needs."""
        table = table_of(feed.kind)
        names = column_names(feed.kind)
        rows = tuples(all_rows(msgspec.structs.replace(feed, messages=_enough(feed, count)), self.meter_ids), count)
        self.connection.execute(f"DROP TABLE IF EXISTS bench_unique; CREATE TABLE bench_unique (LIKE {table})")
        if self.here.edition >= Edition.TIMESCALEDB:
            self.connection.execute(
                "SELECT create_hypertable('bench_unique', by_range('at', INTERVAL '7 days'),"
                " create_default_indexes => false)"
            )
        self.connection.execute("CREATE UNIQUE INDEX ON bench_unique (meter_id, at)")
        marks = ", ".join(["%s"] * len(names))
        query = f"INSERT INTO bench_unique ({', '.join(names)}) VALUES ({marks}) ON CONFLICT DO NOTHING"  # noqa: S608
        filled = 0
        begin_s = time.perf_counter()
        for first in range(0, len(rows), commit):
            with self.connection.transaction(), self.connection.cursor() as cursor:
                cursor.executemany(query, rows[first : first + commit])
                filled += cursor.rowcount
        seconds = time.perf_counter() - begin_s
        self._expect("bench_unique", filled, len(rows))
        self.connection.execute("DROP TABLE bench_unique")
        return {"rows_per_s": len(rows) / seconds}

    @staticmethod
    def _expect(table: str, filled: int, rows: int) -> None:
        if filled != rows:
            raise BenchError(f"{table}: {rows} rows expected, {filled} went in")

    # ---- in turns ----------------------------------------------------------------------------------------------------

    def compare(self, kind: Kind, rows: int, total: int, running: Ingestors) -> Document:
        """Line, COPY and `executemany` (at the same commit size, and a message at once, as who acknowledges after each
        commit would) take turns, ``rounds`` times: medians of the rates, and of
        the ratios of turns beside each other."""
        workers = running.workers
        turns = ["ingest", "copy", "executemany", "executemany_by_message"] + ["copy_parallel"] * (workers > 1)
        told: dict[str, list[Document]] = {turn: [] for turn in turns}
        filled = all_rows(self.feed(kind, rows, 20_000), self.meter_ids).filled
        if self.effort.warm:
            self.empty()
            self.ingest(self.feed(kind, rows, total // 5), running)  # and says how much a commit holds
        for i in range(self.effort.rounds):
            for turn in turns if i % 2 == 0 else turns[::-1]:
                self.empty()
                feed = self.feed(kind, rows, total)
                if turn == "ingest":
                    told[turn].append(self.ingest(feed, running))
                elif turn.startswith("executemany"):
                    commit = rows if turn == "executemany_by_message" else self.commit
                    count = min(self.effort.executemany_rows, feed.total_rows, commit * COMMITS_ENOUGH)
                    told[turn].append(self.executemany(feed, count, commit))
                else:
                    told[turn].append(self.copy(feed, workers if turn == "copy_parallel" else 1))
        ingest = told["ingest"]
        rate = _median(ingest, "rows_per_s")
        copy = _median(told["copy"], "rows_per_s")
        found: Document = {
            "kind": kind.value,
            "rows_per_message": rows,
            "workers": workers,
            "rounds": len(ingest),
            "rows": sum(one["rows"] for one in ingest),
            "rows_per_s": rate,
            "rows_per_s_spread": _spread(ingest),
            "values_per_s": rate * filled,
            "receipted_rows_per_s": _median(ingest, "receipted_rows_per_s"),
            "messages_per_s": rate / rows,
            "rows_per_commit": round(_median(ingest, "rows_per_commit")),
            "copy_rows_per_s": copy,
            "copy_rows_per_s_spread": _spread(told["copy"]),
            "ratio_to_copy": _ratio(ingest, told["copy"]),
            "bytes_per_row_wire": _median(ingest, "bytes_per_row_wire"),
            "cpu_us_per_row": {
                name: statistics.median(one["cpu_us_per_row"][name] for one in ingest)
                for name in ingest[0]["cpu_us_per_row"]
            }
            | {"copy_session": _median(told["copy"], "cpu_us_per_row")},
        }
        spent = found["cpu_us_per_row"]
        own = [spent[name] for name in ("ingest", "postgres_session") if name in spent]
        # What a core for each process would allow; for ``workers`` of each, a share of the rows is theirs.
        found["ratio_by_cpu"] = spent["copy_session"] / max(own) if max(own) and "postgres_session" in spent else None
        for turn in turns[2:]:
            found |= {
                f"{turn}_rows_per_s": _median(told[turn], "rows_per_s"),
                f"{turn}_rows_per_s_spread": _spread(told[turn]),
                f"ratio_to_{turn}": _ratio(ingest, told[turn]),
            }
        return found

    def rate(self, running: Ingestors) -> float:
        """Rows a second of one turn."""
        self.empty()
        told = self.ingest(self.feed(Kind.POWER, HEADLINE_ROWS, self.effort.rows), running)
        return cast(float, told["rows_per_s"])

    def singles(self, running: Ingestors) -> Document:
        """Messages of one sample each, as a meter with a radio of its own sends them."""
        if self.effort.warm:
            self.empty()
            self.ingest(self.feed(Kind.POWER, 1, self.effort.singles // 5), running)
        told = []
        for _ in range(self.effort.rounds):
            self.empty()
            told.append(self.ingest(self.feed(Kind.POWER, 1, self.effort.singles), running))
        rate = _median(told, "rows_per_s")
        return {
            "workers": running.workers,
            "rounds": len(told),
            "messages": sum(one["messages"] for one in told),
            "messages_per_s": rate,
            "messages_per_s_spread": _spread(told),
            "messages_per_s_per_worker": rate / running.workers,
            "messages_per_commit": round(_median(told, "rows_per_commit")),
            "bytes_per_message_wire": _median(told, "bytes_per_row_wire"),
            "cpu_us_per_message": {
                name: statistics.median(one["cpu_us_per_row"][name] for one in told)
                for name in told[0]["cpu_us_per_row"]
            },
        }

    def lag(self, rows: int, rows_per_s: float, running: Ingestors) -> Document:
        """From when a batch was due to when its receipt was back, at half of ``rows_per_s``."""
        half = rows_per_s / 2
        told = []
        for _ in range(self.effort.rounds):
            self.empty()
            feed = self.feed(Kind.POWER, rows, round(half * self.effort.lag_s))
            told.append(self.ingest(feed, running, rate=half / rows))
        return {
            "rows_per_message": rows,
            "workers": running.workers,
            "rows_per_s": half,
            "rounds": len(told),
            "messages": sum(one["messages"] for one in told),
            "lag_ms": {name: statistics.median(one["lag_ms"][name] for one in told) for name in ("p50", "p99")},
            "rows_per_commit": round(_median(told, "rows_per_commit")),
        }


class Publisher:
    """The gateways' process, ready to start."""

    def __init__(self, order: Order, log: Path) -> None:
        self._log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cloud.bench.publisher"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream,
            )  # fmt: skip
        self._say(msgspec.json.encode(order))
        self._hear()

    def go(self) -> Told:
        self._say(b"go")
        return msgspec.json.decode(self._hear(), type=Told)

    def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; what it said is read next

    def _hear(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            said = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise BenchError(said[0] if said else f"the publisher ended with {self._process.returncode}")
        return line

    def end(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(10)


def _today() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=10)


def _enough(feed: Feed, rows: int) -> int:
    """Messages of each gateway that hold ``rows`` rows together."""
    return min(feed.messages, -(-rows // (feed.rows * len(feed.gateways))))


def _cpu_of(processes: Sequence[int]) -> float:
    every = cpu_of_all()
    return sum(every[process][1] for process in processes if process in every)


def _median(told: Sequence[Document], name: str) -> float:
    return float(statistics.median(one[name] for one in told))


def _ratio(ours: Sequence[Document], theirs: Sequence[Document]) -> float:
    """Of turns beside each other: what else the machine does hits both."""
    return float(
        statistics.median(our["rows_per_s"] / their["rows_per_s"] for our, their in zip(ours, theirs, strict=True))
    )


def _spread(told: Sequence[Document]) -> list[float]:
    return [min(one["rows_per_s"] for one in told), max(one["rows_per_s"] for one in told)]
