"""One run from set-up to verdict: what happens in between is a chaos, or an outage."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psycopg

from gateway.uplink import end
from protocols.quantities import Kind
from tests.chaos.content import (
    KINDS,
    QUARTER,
    Digest,
    at,
    digest_of,
    hashes_of,
    kind_of,
    rows_in,
    stored_digests,
    stored_hashes,
)
from tests.chaos.stage import GATEWAYS, Stage, stage
from tests.chaos.trouble import Timeline, Trouble
from tests.chaos.witness import Account
from tests.conftest import open_folder

CHECK_S: Final = 5.0  # promises are checked this often, and after each kill
SETTLE_S: Final = 240.0  # with nothing wrong any more, until every queue is empty


@dataclass
class Checks:
    """What a receipt promised, held against the database while everything goes wrong."""

    made: int = 0
    after_kills: int = 0
    unreachable: int = 0
    batches: int = 0  # promised at the last check
    missing: list[str] = field(default_factory=list)


@dataclass
class Result:
    """``problems`` is empty when the run shows what it is to show."""

    seed: int
    duration_s: float
    period_s: float
    at: datetime
    timeline: Timeline
    checks: Checks
    collected: dict[tuple[str, Kind], Digest] = field(default_factory=dict)
    stored: dict[tuple[str, Kind], Digest] = field(default_factory=dict)
    lost: int = 0
    double: int = 0
    settled_s: float = 0.0
    batches: int = 0
    refused: int = 0
    sent_again: int = 0
    in_ranges: int = 0  # batches the ledger knows by ranges
    starts: dict[str, int] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(count for count, _ in self.collected.values())


@dataclass(frozen=True, slots=True)
class Play:
    """What is under way. ``result`` is whole when it is over."""

    stage: Stage
    accounts: Sequence[Account]
    trouble: Trouble
    result: Result


def run(
    duration_s: float,
    seed: int,
    *,
    period_s: float,
    echo: Callable[[str], None] = lambda line: None,
    logs: Path | None = None,
) -> Result:
    """``period_s``: between two marks of a gateway. ``logs``: a folder for what every program wrote."""

    async def chaos(folder: Path) -> Result:
        # It saves what it remembers each second, and not each half minute: it is killed that often.
        often = {"autosave_interval": 1}
        async with play(folder, duration_s, seed, period_s, echo, logs, small_disks=True, mosquitto_conf=often) as it:
            await it.trouble.run()
            it.trouble.timeline.note("no more trouble, nothing new is collected")
        return it.result

    with open_folder() as folder:
        return asyncio.run(chaos(folder))


@asynccontextmanager
async def play(
    folder: Path,
    duration_s: float,
    seed: int,
    period_s: float,
    echo: Callable[[str], None],
    logs: Path | None,
    *,
    small_disks: bool,
    mosquitto_conf: Mapping[str, int],
) -> AsyncIterator[Play]:
    """Gateways collect while the caller does what it likes to the stage. In the end all must have its receipt, and the
    rows are compared."""
    began_at = datetime.now(UTC)
    # Marks in the past: a second here is a quarter of an hour or so of the meters, and nobody reads the future.
    marks = int(duration_s / period_s * 2) + 1_000
    start = datetime.fromtimestamp(began_at.timestamp() // 900 * 900, UTC) - marks * QUARTER
    accounts = [Account(folder / "witness" / name) for name in GATEWAYS]
    async with stage(
        folder, start=start, period_s=period_s, small_disks=small_disks, mosquitto_conf=mosquitto_conf
    ) as it:
        trouble = Trouble(it, accounts, random.Random(seed), duration_s)
        trouble.timeline.echo = echo
        result = Result(seed, duration_s, period_s, began_at, trouble.timeline, Checks())
        checking = asyncio.create_task(_check_promises(it, accounts, trouble.killed, result.checks))
        yield Play(it, accounts, trouble, result)
        (folder / "enough").touch()
        quiet_s = time.monotonic()
        try:
            await _until_all_is_promised(it, accounts)
            trouble.timeline.note("every queue empty")
            await asyncio.to_thread(trouble.compact, timedelta(0))
            await trouble.send_again_to_the_end(batches_each=5)
            trouble.timeline.note("old batches sent again, and receipted again")
        except TimeoutError:
            result.problems.append(f"after {time.monotonic() - quiet_s:.0f} s not everything had its receipt")
        result.settled_s = time.monotonic() - quiet_s
        await end(checking)
        with suppress(asyncio.CancelledError):
            checking.result()
        result.sent_again = trouble.sent_again
        await asyncio.to_thread(_verdict, it, accounts, result)
        if logs:
            await asyncio.to_thread(_keep_logs, it, logs)


def _keep_logs(it: Stage, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for program in it.programs:
        (folder / f"{program.name}.log").write_text(it.said(program.name))


async def _until_all_is_promised(it: Stage, accounts: Sequence[Account]) -> None:
    async with asyncio.timeout(SETTLE_S):
        while True:
            for account in accounts:
                account.read()
            if all(account.is_promised for account in accounts):
                return
            await asyncio.sleep(0.2)


# ---- promises --------------------------------------------------------------------------------------------------------


async def _check_promises(it: Stage, accounts: Sequence[Account], killed: asyncio.Event, checks: Checks) -> None:
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_S):
                await killed.wait()
        was_kill = killed.is_set()
        killed.clear()
        # Asked the moment it is back: nobody could set an event for that.
        while not await asyncio.to_thread(_check, it, accounts, checks):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        checks.after_kills += was_kill


def _check(it: Stage, accounts: Sequence[Account], checks: Checks) -> bool:
    """False while the database does not answer. What was promised is read before what is there."""
    promised = []
    try:
        with psycopg.connect(it.postgres.dsn, autocommit=True, connect_timeout=2) as connection:
            for account in accounts:
                account.read()
                for epoch, seqs in list(account.promised.items()):
                    known = [seq for seq in list(seqs) if seq in account.collected]
                    promised += [(account, epoch, account.collected[seq]) for seq in known]
            ledger, marks = _ledger(connection), _marks(connection)
    except psycopg.Error:
        checks.unreachable += 1
        return False
    checks.made += 1
    checks.batches = len(promised)
    for account, epoch, batch in promised:
        name, kind = account.path.name, kind_of(batch.step)
        found = marks.get((name, kind, at(it.crew.start, batch.step)), 0)
        if (name, epoch, batch.seq) not in ledger or found < rows_in(batch.step):
            checks.missing.append(f"{name} batch {batch.seq} ({kind.value}): {found} of {rows_in(batch.step)} rows")
    return True


def _ledger(connection: psycopg.Connection[Any]) -> set[tuple[str, str, int]]:
    """Batches one by one, and those of long ago, which are kept as ranges."""
    return set(
        connection.execute(
            """
            SELECT gateway, epoch, seq FROM batch UNION ALL
            SELECT gateway, epoch, generate_series(lower(run), upper(run) - 1) FROM batch_range, unnest(seqs) run
            """
        ).fetchall()
    )


def _marks(connection: psycopg.Connection[Any]) -> dict[tuple[str, Kind, datetime], int]:
    """Rows by gateway, kind and mark."""
    rows = connection.execute(
        """
        SELECT gateway, 'energy', at, count(*) FROM energy_sample JOIN installation USING (meter_id) GROUP BY 1, 3
        UNION ALL
        SELECT gateway, 'power', at, count(*) FROM power_sample JOIN installation USING (meter_id) GROUP BY 1, 3
        UNION ALL
        SELECT gateway, 'events', date_trunc('second', at), count(*) FROM event WHERE detail ? 'step' GROUP BY 1, 3
        """
    ).fetchall()
    return {(gateway, Kind(kind), mark.astimezone(UTC)): count for gateway, kind, mark, count in rows}


# ---- verdict ---------------------------------------------------------------------------------------------------------


def _verdict(it: Stage, accounts: Sequence[Account], result: Result) -> None:
    expected: dict[tuple[str, Kind], list[str]] = {(name, kind): [] for name in GATEWAYS for kind in KINDS}
    for account in accounts:
        for batch in account.collected.values():
            expected[account.path.name, kind_of(batch.step)] += hashes_of(account.path.name, it.crew.start, batch.step)
        if len(account.epochs) != 1:
            result.problems.append(f"{account.path.name}: {len(account.epochs)} epochs; no kill may begin a new one")
        result.problems += account.forgotten
    result.collected = {key: digest_of(hashes) for key, hashes in expected.items()}
    result.batches = sum(len(account.collected) for account in accounts)
    result.refused = sum(account.refused for account in accounts)
    with psycopg.connect(it.postgres.dsn, autocommit=True) as connection:
        result.stored = stored_digests(connection)
        for kind in KINDS:
            there = Counter(stored_hashes(connection, kind))
            meant = Counter((name, hash_) for name in GATEWAYS for hash_ in expected[name, kind])
            result.lost += (meant - there).total()
            result.double += (there - meant).total()
        aside = connection.execute("SELECT reason, count(*), min(detail) FROM quarantine GROUP BY 1").fetchall()
        entered = len(_ledger(connection))
        one_by_one = connection.execute("SELECT count(*) FROM batch").fetchall()[0][0]
        result.in_ranges = entered - one_by_one
    if result.stored != result.collected:
        result.problems.append(f"{result.lost} rows lost, {result.double} rows double or not as collected")
    result.problems += [f"set aside for no reason: {count} × {reason}, {detail}" for reason, count, detail in aside]
    if entered != result.batches:
        result.problems.append(f"the ledger has {entered} batches, {result.batches} were collected")
    if result.checks.missing:
        missing = result.checks.missing
        result.problems.append(f"{len(missing)} times a receipt had promised what is missing: {missing[0]}")
    for program in it.programs:
        result.starts[program.name] = program.starts
        if not program.may_die:
            result.problems += program.died
    for worker in it.workers:
        if "Traceback" in (text := it.said(worker.name)):
            result.problems.append(f"{worker.name}: {text[text.index('Traceback') :][:2_000]}")
    # aiomqtt's: it watches a socket that its own thread has closed meanwhile; the next connection is a new one.
    result.said["gateways: tracebacks in the log"] = sum(it.said(crew.name).count("Traceback") for crew in it.gateways)
    result.said["the database: No space left on device"] = it.said("database").count("No space left on device")
    result.said["the database: recovered after a kill"] = it.said("database").count("database system is ready")
    result.said["ingestors: database does not take data"] = sum(
        it.said(worker.name).count("database does not take data") for worker in it.workers
    )
