"""A database that is away, for an hour or so, with nothing else wrong: what waits where, and how soon it is stored.

``python -m tests.chaos --outage 3600``; its report is kept in ``docs/outage.md``.
"""

import asyncio
import platform
import signal
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiomqtt

from gateway.uplink import end
from tests.chaos.content import METERS
from tests.chaos.run import Play, Result, play
from tests.chaos.stage import GATEWAYS, WATCHER, Program, Stage
from tests.conftest import open_folder, wait_for_port

BEFORE_S: Final = 30.0  # with everything well
CATCH_UP_S: Final = 1_800.0  # at most
SAMPLE_S: Final = 5  # also how often mosquitto tells of itself
TOLD: Final = {  # by mosquitto, under $SYS/broker/
    "store/messages/count": "messages",
    "store/messages/bytes": "bytes",
    "publish/messages/dropped": "dropped",
}
SHOWN: Final = (0, 1 / 60, 1 / 12, 1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)  # parts of the outage


@dataclass(frozen=True, slots=True)
class Sample:
    """What waits where. Memory is resident, of each process."""

    at_s: float  # monotonic
    broker: Mapping[str, int]  # what ``TOLD`` names
    batches: int  # in the gateways' queues
    batch_bytes: int
    memory_bytes: Mapping[str, int]


@dataclass
class Outage:
    """``result`` is of the whole run, ``caught_up_s`` from the database's return until all that waited was promised."""

    result: Result
    outage_s: float
    mosquitto_conf: Mapping[str, int]
    gone_s: float = float("nan")  # monotonic
    samples: list[Sample] = field(default_factory=list)
    caught_up_s: float = float("nan")

    @property
    def peak(self) -> Sample:
        return max(self.samples, key=lambda sample: sample.broker.get("bytes", 0))

    def most(self, what: str) -> int:
        return max(sample.broker.get(what, 0) for sample in self.samples)

    def memory_most(self, names: Iterable[str]) -> int:
        return max(sample.memory_bytes.get(name, 0) for sample in self.samples for name in names)


def run_outage(
    outage_s: float,
    seed: int,
    *,
    period_s: float,
    broker_bytes: int | None = None,
    before_s: float = BEFORE_S,
    sample_s: int = SAMPLE_S,
    held_min: int = 0,
    echo: Callable[[str], None] = lambda line: None,
    logs: Path | None = None,
) -> Outage:
    """``broker_bytes``: how much the broker may hold for an ingestor, in flight and as much again queued, if not what
    production lets it. ``before_s``: with everything well, a few times ``sample_s``. ``held_min``: the outage lasts
    until gateways hold so many batches, however busy the machine is."""
    other = {"sys_interval": sample_s}
    if broker_bytes is not None:
        other |= {"max_queued_bytes": broker_bytes, "max_inflight_bytes": broker_bytes}

    async def away(folder: Path) -> Outage:
        async with play(folder, outage_s, seed, period_s, echo, logs, small_disks=False, mosquitto_conf=other) as it:
            outage = Outage(it.result, outage_s, other)
            told: dict[str, int] = {}
            async with asyncio.TaskGroup() as tasks:
                watchers = (_listen(it.stage, told), _watch(it.stage, told, outage, sample_s))
                watching = [tasks.create_task(each) for each in watchers]
                await asyncio.sleep(before_s)
                await _play_out(it, outage, held_min)
                await asyncio.sleep(2 * sample_s)
                await end(*watching)
        return outage

    with open_folder() as folder:
        return asyncio.run(away(folder))


async def _play_out(it: Play, outage: Outage, held_min: int) -> None:
    database, note = it.stage.database, it.trouble.timeline.note
    outage.gone_s = time.monotonic()
    await asyncio.to_thread(database.kill, signal.SIGINT)  # as an administrator stops it
    note("database stopped", f"for {outage.outage_s:.0f} s")
    await asyncio.sleep(outage.outage_s)
    while True:
        held = outage.samples[-1].batches
        for account in it.accounts:
            account.read()
        if held >= held_min:
            break
        await asyncio.sleep(0.2)
    waiting = [(account, set(account.collected)) for account in it.accounts]
    database.wanted = True
    returned_s = time.monotonic()
    note("database started again")
    try:
        async with asyncio.timeout(CATCH_UP_S):
            while not all(seqs <= account.promised.get(account.epochs[-1], set()) for account, seqs in waiting):
                await asyncio.sleep(0.5)
                for account in it.accounts:
                    account.read()
    except TimeoutError:
        it.result.problems.append(f"{CATCH_UP_S:.0f} s after the database's return not all that waited was stored")
        return
    outage.caught_up_s = time.monotonic() - returned_s
    note("all that waited has its receipt,", "while the gateways went on collecting")


# ---- what waits where ------------------------------------------------------------------------------------------------


async def _watch(stage: Stage, told: Mapping[str, int], outage: Outage, sample_s: int) -> None:
    while True:
        await asyncio.sleep(sample_s)
        batches, size = await asyncio.to_thread(_queued, stage.queue_files)
        memory = {program.name: _memory_bytes(program) for program in stage.programs}
        outage.samples.append(Sample(time.monotonic(), dict(told), batches, size, memory))


async def _listen(stage: Stage, told: dict[str, int]) -> None:
    await asyncio.to_thread(wait_for_port, stage.mosquitto.port)
    async with aiomqtt.Client(
        "127.0.0.1", stage.mosquitto.port, identifier=WATCHER, username=WATCHER, password=stage.users[WATCHER],
        protocol=aiomqtt.ProtocolVersion.V5,
    ) as client:  # fmt: skip
        for topic in TOLD:
            await client.subscribe(f"$SYS/broker/{topic}")
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            told[TOLD[message.topic.value.removeprefix("$SYS/broker/")]] = int(message.payload)


def _queued(paths: Sequence[Path]) -> tuple[int, int]:
    """Batches without a receipt, and their bytes."""
    batches = size = 0
    for path in paths:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as queue:
            if queue.execute("PRAGMA user_version").fetchone()[0]:  # else its gateway has just begun to make it
                count, held = queue.execute("SELECT count(*), coalesce(sum(bytes), 0) FROM batch").fetchone()
                batches, size = batches + count, size + held
    return batches, size


def _memory_bytes(program: Program) -> int:
    with suppress(OSError):
        if program.process:
            for line in Path(f"/proc/{program.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
    return 0


# ---- the report ------------------------------------------------------------------------------------------------------

ABOUT = """\
{gateways} gateways of {meters} meters (the product's queue and uplink, in three processes) collect rows that are known
beforehand, three batches every {period_s:g} s on average, before, during and after the outage. They publish to
mosquitto with production's configuration{other}. Two `gridloom ingest` processes store in embedded PostgreSQL, which is
stopped (SIGINT) and started again {outage_s:.0f} s later. Nothing else goes wrong; what goes wrong at once with
everything else is in [chaos.md](chaos.md), and so is how rows are told to be neither lost nor double.

A gateway has 20 batches on their way at most, and sends them again where no receipt comes: after 10 s, at last every
60 s. So the broker holds the first batches of each gateway, many times over, and a status of each every 10 s; the rest
waits in the gateways' queues. An ingestor takes what the broker lets it have unacknowledged, and holds it until a
commit.
"""
AT_THE_BOUND = """\
What is beyond the broker's bound, `max_queued_bytes` for an ingestor, it drops, though it has acknowledged it to the
gateway. Nothing is lost by it: without a receipt the gateway keeps the batch, and sends it again within a minute.
It can be seen with `--outage 120 --period 3 --broker-bytes 100000`.
"""


def markdown(outage: Outage, command: str) -> str:
    result, peak = outage.result, outage.peak
    other = {name: value for name, value in outage.mosquitto_conf.items() if name != "sys_interval"}
    verdict = "; ".join(result.problems) or "0 lost, 0 double, no promise broken"
    ingestors = [name for name in peak.memory_bytes if name.startswith("ingest")]
    before = [sample for sample in outage.samples if sample.at_s < outage.gone_s]
    lines = [
        f"# A database outage of {outage.outage_s:,.0f} s",
        "",
        f"    {command}",
        "",
        f"{result.at:%Y-%m-%d %H:%M} UTC, seed {result.seed}, Python {platform.python_version()}.",
        "",
        f"**{verdict}.**",
        "",
        ABOUT.format(
            gateways=len(GATEWAYS), meters=METERS, period_s=result.period_s, outage_s=outage.outage_s,
            other="".join(f", but `{name} {value}`" for name, value in other.items()),
        ),
        AT_THE_BOUND,
        "| | |",
        "|---|---|",
        f"| batches; rows collected | {result.batches:,}; {result.rows:,} |",
        f"| rows stored | {sum(count for count, _ in result.stored.values()):,} |",
        f"| lost; double | {result.lost}; {result.double} |",
        f"| the broker held at most | {outage.most('messages'):,} messages, {_mb(outage.most('bytes'))} |",
        f"| messages the broker dropped at its bound | {outage.most('dropped'):,} |",
        f"| the broker's memory, before and at most | {_mb(_memory(before, ['broker']))}, "
        f"{_mb(outage.memory_most(['broker']))} |",
        f"| the gateways held at most | {max(it.batches for it in outage.samples):,} batches, "
        f"{_mb(max(it.batch_bytes for it in outage.samples))} |",
        f"| an ingestor's memory, before and at most | {_mb(_memory(before, ingestors))}, "
        f"{_mb(outage.memory_most(ingestors))} |",
        f"| from the database's start until all that waited had its receipt | {outage.caught_up_s:.0f} s |",
        f"| checks of what receipts had promised; batches ever missing | {result.checks.made}; "
        f"{len(result.checks.missing)} |",
        *(f"| starts of {name} | {count} |" for name, count in result.starts.items()),
        "",
        "## What waited where",
        "",
        "| s | at the broker | | dropped so far | in the gateways' queues | | memory: broker | an ingestor |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {it.at_s - outage.gone_s:,.0f} | {it.broker.get('messages', 0):,} | {_mb(it.broker.get('bytes', 0))} "
            f"| {it.broker.get('dropped', 0):,} | {it.batches:,} | {_mb(it.batch_bytes)} "
            f"| {_mb(_memory([it], ['broker']))} | {_mb(_memory([it], ingestors))} |"
            for it in _shown(outage)
        ),
        "",
        "Seconds since the database went away; the broker tells of itself every few seconds. A queued batch counts as",
        "the pages of the disk that it fills.",
        "",
        "```",
        *result.timeline.lines,
        "```",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _shown(outage: Outage) -> list[Sample]:
    """Some during the outage, and all that tell how it is caught up with."""
    during = [
        min(outage.samples, key=lambda sample: abs(sample.at_s - outage.gone_s - part * outage.outage_s))
        for part in SHOWN
    ]
    after = [sample for sample in outage.samples if sample.at_s > outage.gone_s + outage.outage_s]
    return list({id(sample): sample for sample in (*during, *after[:: max(1, len(after) // 10)], *after[-1:])}.values())


def _memory(samples: Sequence[Sample], names: Sequence[str]) -> int:
    return max(sample.memory_bytes.get(name, 0) for sample in samples for name in names)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def document(outage: Outage) -> dict[str, Any]:
    result = outage.result
    return {
        "seed": result.seed,
        "outage_s": outage.outage_s,
        "batches": result.batches,
        "rows": result.rows,
        "lost": result.lost,
        "double": result.double,
        "broker_messages_max": outage.most("messages"),
        "broker_bytes_max": outage.most("bytes"),
        "broker_dropped": outage.most("dropped"),
        "gateway_batches_max": max(it.batches for it in outage.samples),
        "gateway_bytes_max": max(it.batch_bytes for it in outage.samples),
        "memory_bytes_max": {name: outage.memory_most([name]) for name in outage.peak.memory_bytes},
        "caught_up_s": round(outage.caught_up_s, 1),
        "promises_checked": result.checks.made,
        "promises_missing": len(result.checks.missing),
        "problems": result.problems,
    }
