"""What goes wrong in a chaos run, and when: a deck of troubles dealt at random, and set pieces that must come."""

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import aiomqtt
import psycopg
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cloud.store.ledger import compact
from gateway.uplink import end
from protocols.uplink import MSGPACK, Receipt, Topic, decode, from_us, topic
from tests.chaos.content import kind_of, payload_of
from tests.chaos.stage import ON_A_SMALL_DISK, Program, SmallDisk, Stage
from tests.chaos.witness import Account, Collected
from tests.proxy import Proxy

# Set pieces, as parts of the whole time. A worker that stays away for half of ten minutes does so for five.
DATABASE_DISK_FULL: Final = (0.10, 0.20)
WORKER_AWAY: Final = (0.25, 0.75)
BROKER_FORGETS: Final = (0.45, 0.85)  # once without the second worker, once with both
QUEUE_DISK_FULL: Final = (0.58, 0.68)
# Every one of these comes in every run; disks are filled only where somebody may mount a small one.
TROUBLES: Final = (
    "ingestor killed", "ingestors killed without a database", "gateways killed", "broker killed",
    "broker killed, its memory lost", "database killed", "database backend killed", "line cut", "line stalled",
    "nobody let in", "one of two ingestors away",
)  # fmt: skip
AGAIN: Final = 10  # batches a second time, a second


@dataclass
class Timeline:
    """What happened, by seconds since the beginning, and how often."""

    started_s: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    echo: Callable[[str], None] = lambda line: None

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.started_s

    def note(self, what: str, detail: str = "") -> None:
        self.told[what] += 1
        self.lines.append(f"{self.now_s:7.1f} s  {what}{' ' if detail else ''}{detail}")
        self.echo(self.lines[-1])


class Trouble:
    """Troubles of one run, which lasts ``duration_s``. What has one already is left alone until it is over."""

    def __init__(self, stage: Stage, accounts: Sequence[Account], chance: random.Random, duration_s: float) -> None:
        self.timeline = Timeline()
        self.killed = asyncio.Event()  # set after each kill, for whoever checks the promises
        self._stage = stage
        self._accounts = accounts
        self._chance = chance
        self._duration_s = duration_s
        self._longest_s = min(8.0, max(1.0, duration_s / 20))  # of a small trouble
        self._busy: set[str] = set()
        self.sent_again = 0
        self._is_over = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            always = [tasks.create_task(it) for it in (self._send_again_and_again(), self._compact_again_and_again())]
            disks = (
                (self._stage.database_disk, "database", DATABASE_DISK_FULL, self._database_complains),
                (self._stage.queue_disk, "queue", QUEUE_DISK_FULL, self._queues_refuse),
            )
            pieces = (
                *((parts[0], self._fill(disk, whose, parts, noticed)) for disk, whose, parts, noticed in disks),
                (WORKER_AWAY[0], self._worker_away()),
                *((part, self._broker_forgets()) for part in BROKER_FORGETS),
            )
            for part, piece in pieces:
                tasks.create_task(self._at(part, piece))
            await self._deal(tasks)
            self._is_over = True
            await end(*always)

    async def _at(self, part: float, piece: Awaitable[None]) -> None:
        await asyncio.sleep(part * self._duration_s)
        await piece

    async def _deal(self, tasks: asyncio.TaskGroup) -> None:
        """Every trouble once in a random order, then all again; they overlap."""
        end_s = time.monotonic() + self._duration_s
        pause_s = min(6.0, max(0.8, self._duration_s / 25))
        while True:
            deck = [
                *(("ingestor killed", self._kill_worker),) * 2,
                ("ingestors killed without a database", self._kill_workers_at_work),
                *(("gateways killed", self._kill_gateways),) * 2,
                *(("broker killed", self._kill_broker),) * 2,
                ("database killed", self._kill_database),
                ("database backend killed", self._kill_backend),
                *(("line cut", self._cut),) * 3,
                ("line stalled", self._stall),
                ("nobody let in", self._refuse),
            ]
            self._chance.shuffle(deck)
            for what, trouble in deck:
                await asyncio.sleep(self._chance.uniform(0.2, 1) * pause_s)
                if time.monotonic() > end_s:
                    return
                tasks.create_task(trouble(what))

    # ---- killed ------------------------------------------------------------------------------------------------------

    async def _kill_worker(self, what: str) -> None:
        await self._kill(what, *self._stage.workers)

    async def _kill_workers_at_work(self, what: str) -> None:
        """They hold what they cannot commit, and die with it: a receipt for that would be a lie."""
        line = self._stage.database_line
        workers = [it for it in self._stage.workers if it.name not in self._busy and it.is_running]
        self._busy |= {it.name for it in workers}
        try:
            away_s = self._chance.uniform(0.5, 1) * self._longest_s
            self.timeline.note(what, f"{' and '.join(it.name for it in workers)}, after {away_s:.1f} s")
            line.refuses = True
            line.cut()
            await asyncio.sleep(away_s)
            await asyncio.gather(*(asyncio.to_thread(it.kill) for it in workers))
            self.killed.set()
            line.refuses = False
            for it in workers:
                it.wanted = True
        finally:
            self._busy -= {it.name for it in workers}

    async def _kill_gateways(self, what: str) -> None:
        await self._kill(what, *self._stage.gateways)

    async def _kill_broker(self, what: str) -> None:
        await self._kill(what, self._stage.broker)

    async def _kill_database(self, what: str) -> None:
        """The postmaster alone, whose children end by themselves, or all of them at once."""
        children = self._stage.children_of_database() if self._chance.random() < 0.5 else []
        await self._kill(what, self._stage.database, others=children)

    async def _kill(self, what: str, *programs: Program, others: Sequence[int] = ()) -> None:
        left_alone = [program for program in programs if program.name not in self._busy]
        if not left_alone:
            return
        program = self._chance.choice(left_alone)
        down_s = self._chance.uniform(0, self._longest_s)
        self._busy.add(program.name)
        try:
            while not program.is_running:  # noqa: ASYNC110  it was killed a moment ago
                await asyncio.sleep(0.05)
            self.timeline.note(what, f"{program.name}, down {down_s:.1f} s{', with its children' if others else ''}")
            await asyncio.to_thread(program.kill)
            _kill_all(others)
            self.killed.set()
            await asyncio.sleep(down_s)
            program.wanted = True
        finally:
            self._busy.discard(program.name)

    async def _kill_backend(self, what: str) -> None:
        """PostgreSQL then restarts all of its processes."""
        while not (children := self._stage.children_of_database()):  # noqa: ASYNC110  it is being killed itself
            await asyncio.sleep(0.05)
        self.timeline.note(what)
        _kill_all([self._chance.choice(children)])
        self.killed.set()

    async def _broker_forgets(self) -> None:
        broker = self._stage.broker
        while broker.name in self._busy:  # noqa: ASYNC110  it is being killed, for a moment
            await asyncio.sleep(0.05)
        self._busy.add(broker.name)
        self.timeline.note("broker killed, its memory lost")
        await asyncio.to_thread(broker.kill)
        self._stage.forget_broker()
        self.killed.set()
        broker.wanted = True
        self._busy.discard(broker.name)

    async def _worker_away(self) -> None:
        worker = self._stage.workers[1]
        away_s = (WORKER_AWAY[1] - WORKER_AWAY[0]) * self._duration_s
        while worker.name in self._busy:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        self._busy.add(worker.name)
        self.timeline.note("one of two ingestors away", f"for {away_s:.0f} s")
        await asyncio.to_thread(worker.kill)
        await asyncio.sleep(away_s)
        worker.wanted = True
        self._busy.discard(worker.name)

    # ---- the network -------------------------------------------------------------------------------------------------

    def _line(self) -> tuple[str, Proxy]:
        stage = self._stage
        names = ("gateways to broker", "ingestors to broker", "ingestors to database")
        return self._chance.choice(list(zip(names, stage.lines, strict=True)))

    async def _cut(self, what: str) -> None:
        name, line = self._line()
        self.timeline.note(what, name)
        line.cut()

    async def _stall(self, what: str) -> None:
        # Longer than the keepalive, now and then.
        name, line = self._line()
        duration_s = self._chance.uniform(0.3, 4) * self._longest_s
        self.timeline.note(what, f"{name}, {duration_s:.1f} s")
        await line.stall(duration_s)

    async def _refuse(self, what: str) -> None:
        name, line = self._line()
        duration_s = self._chance.uniform(0.3, 2) * self._longest_s
        self.timeline.note(what, f"{name}, {duration_s:.1f} s")
        line.refuses = True
        line.cut()
        await asyncio.sleep(duration_s)
        line.refuses = False

    # ---- disks -------------------------------------------------------------------------------------------------------

    def _database_complains(self) -> bool:
        return "No space left on device" in self._stage.said(self._stage.database.name)

    def _queues_refuse(self) -> bool:
        return any(account.refused for account in self._accounts if account.path.name in ON_A_SMALL_DISK)

    async def _fill(
        self, disk: SmallDisk | None, whose: str, parts: tuple[float, float], is_noticed: Callable[[], bool]
    ) -> None:
        """Full for its time, and longer where nobody has noticed by then."""
        full_s = (parts[1] - parts[0]) * self._duration_s
        if disk is None:
            self.timeline.note(f"{whose} disk not filled", "nobody may mount a small one here")
            return
        self.timeline.note(f"{whose} disk full", f"for {full_s:.0f} s")
        end_s = time.monotonic() + full_s
        while time.monotonic() < end_s or not (is_noticed() or self._is_over):  # what is freed is taken, too
            await asyncio.to_thread(disk.fill)
            await asyncio.sleep(0.2)
        disk.free()
        self.timeline.note(f"{whose} disk free again")

    # ---- the ledger, as if it were old -------------------------------------------------------------------------------

    async def _compact_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._duration_s / 30)
            with suppress(psycopg.Error):
                await asyncio.to_thread(self.compact, timedelta(seconds=self._duration_s / 10))

    def compact(self, older_than: timedelta) -> None:
        with psycopg.connect(self._stage.postgres.dsn, autocommit=True, connect_timeout=2) as connection:
            compact(connection, older_than=older_than)

    # ---- sent again on purpose ---------------------------------------------------------------------------------------

    async def _send_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(1)
            account = self._chance.choice(self._accounts)
            old = sorted(account.collected.values(), key=lambda it: it.seq)
            if old:
                # Of the first there were, which are days old by their marks, and of all.
                some = [*self._chance.choices(old[:20], k=AGAIN // 2), *self._chance.choices(old, k=AGAIN // 2)]
                with suppress(aiomqtt.MqttError, TimeoutError):
                    await self._send_again(account, some)

    async def _send_again(self, account: Account, batches: Sequence[Collected]) -> None:
        async with await self._open(account) as client:
            await self._publish(client, account, batches)

    async def _open(self, account: Account) -> aiomqtt.Client:
        name = account.path.name
        return aiomqtt.Client(
            "127.0.0.1", self._stage.mosquitto.port, username=name, password=self._stage.users[name],
            identifier=f"again-{name}", protocol=aiomqtt.ProtocolVersion.V5, timeout=5,
        )  # fmt: skip

    async def _publish(self, client: aiomqtt.Client, account: Account, batches: Sequence[Collected]) -> None:
        name, start = account.path.name, self._stage.crew.start
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = MSGPACK
        for it in batches:
            payload = payload_of(name, account.epochs[0], it.seq, start, it.step, from_us(it.sent_us))
            last = Topic(kind_of(it.step).value)
            await client.publish(topic(name, last), payload, qos=1, properties=properties)
            self.sent_again += 1

    async def send_again_to_the_end(self, batches_each: int) -> None:
        """Old batches of every gateway, until each has a receipt once more: what the broker held before has then been
        delivered, to both ingestors, who get every other batch of a topic each."""

        async def one(account: Account) -> None:
            old = sorted(account.collected.values(), key=lambda it: it.seq)
            some = {it.seq: it for it in (*old[:batches_each], *self._chance.sample(old, min(batches_each, len(old))))}
            async with await self._open(account) as client:
                await client.subscribe(topic(account.path.name, Topic.RECEIPT), qos=1)
                await self._publish(client, account, list(some.values()))
                async for message in client.messages:
                    assert isinstance(message.payload, bytes)
                    for first, last in decode(message.payload, Receipt).stored:
                        for seq in [seq for seq in some if first <= seq <= last]:
                            del some[seq]
                    if not some:
                        return

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for account in self._accounts:
                tasks.create_task(one(account))


def _kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
