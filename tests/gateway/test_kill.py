"""kill -9 of `meterctl run` under load, again and again, with a broker that comes and goes and is killed as well.

What counted as collected is read from the queue's own file after each kill, on a copy, so that the next gateway finds
what the last one left. No mark that is there may ever be missing later, no batch may be gone that the cloud has not
got, and in the end the cloud has every collected mark in exactly one batch.
"""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiomqtt
import pytest

from gateway.marks import Marks
from gateway.uplink import end
from protocols.clock import Anchor, write_anchor
from protocols.quantities import Kind
from protocols.uplink import Topic, from_us, topic
from simulators.ports import free_port
from simulators.services import Broker
from tests.conftest import BROKER_USERS
from tests.edge.endpoint import registers_wh
from tests.gateway.cloud import Cloud, until
from tests.gateway.test_agent import Box, box
from tests.mosquitto import Mosquitto, new_mosquitto
from tests.proxy import Proxy

KILLS = int(os.environ.get("GRIDLOOM_KILLS", "12"))
METERS = 15  # on each of the two lines
RATE = 1_800.0  # a mark each half second


async def listen_always(side: Cloud, port: int) -> None:
    """The cloud, back after each of the broker's deaths. What came while it was away, the gateway has to send again."""
    while True:
        with suppress(aiomqtt.MqttError):
            async with aiomqtt.Client(
                "127.0.0.1", port, username="cloud", password=BROKER_USERS["cloud"], identifier="cloud",
                protocol=aiomqtt.ProtocolVersion.V5, timeout=5,
            ) as client:  # fmt: skip
                side.client = client
                for last in (Topic.ENERGY, Topic.POWER, Topic.EVENTS):
                    await client.subscribe(topic("gw-1", last), qos=1)
                await side.listen()
        await asyncio.sleep(0.1)


async def trouble(
    broker: Mosquitto, proxy: Proxy, chance: random.Random, told: Counter[str], enough: asyncio.Event
) -> None:
    """The broker dies and comes back, the line is cut, until it is ``enough``."""
    while not enough.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0.2, 1.5)):
                await enough.wait()
        kind = chance.choice(("broker killed", "broker killed", "line cut", "line cut", "nobody let in"))
        told[kind] += 1
        if kind == "broker killed":
            await asyncio.to_thread(broker.stop, signal.SIGKILL)
            await asyncio.sleep(chance.uniform(0, 0.8))
            await asyncio.to_thread(broker.start)
        else:
            proxy.refuses = kind == "nobody let in"
            proxy.cut()
            await asyncio.sleep(chance.uniform(0, 1) if proxy.refuses else 0)
            proxy.refuses = False


@dataclass
class Witness:
    """What a queue file says, by a copy of it."""

    epoch: str
    seq: int
    queued: set[int]
    collected: dict[str, Marks]

    @property
    def marks(self) -> int:
        return sum(map(len, self.collected.values()))

    def lacks(self, other: "Witness") -> list[tuple[str, int, int]]:
        """Runs that ``other`` has and this has not."""
        return [
            (meter, *gap)
            for meter, marks in other.collected.items()
            for run in marks
            for gap in self.collected.get(meter, Marks()).gaps(*run)
        ]


def witness(queue: Path, scratch: Path) -> Witness | None:
    """None while no gateway has lived long enough to make one."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for part in queue.parent.glob("queue.sqlite*"):
        if not part.name.endswith("-shm"):
            shutil.copy(part, scratch)
    if not (scratch / queue.name).exists():
        return None
    db = sqlite3.connect(scratch / queue.name)
    try:
        if not db.execute("PRAGMA user_version").fetchone()[0]:
            return None
        meta = dict(db.execute("SELECT name, value FROM meta"))
        found = Witness(meta["epoch"], int(meta["seq"]), {seq for (seq,) in db.execute("SELECT seq FROM batch")}, {})
        for meter, first, end in db.execute('SELECT meter, first, "end" FROM collected'):
            found.collected.setdefault(meter, Marks()).add(first, end)
        return found
    finally:
        db.close()


@pytest.mark.timeout(90 + 10 * KILLS)
def test_kill_9_under_load_loses_and_doubles_no_collected_mark(tmp_path: Path) -> None:
    broker = new_mosquitto(tmp_path)
    broker.start()
    try:
        asyncio.run(scenario(tmp_path, broker, random.Random(3)))
    finally:
        broker.stop(signal.SIGKILL)


async def scenario(folder: Path, broker: Mosquitto, chance: random.Random) -> None:
    told: Counter[str] = Counter()
    # Each connection is given to it. One delivery in ten is lost between broker and database, as by a crash there.
    side = Cloud(None, loses=lambda: chance.random() < 0.1)  # type: ignore[arg-type]
    proxy, enough = Proxy(free_port(), broker.port), asyncio.Event()
    async with box(folder, Broker(folder, proxy.port, BROKER_USERS), rate=RATE) as it:
        it.write_site(meters=METERS, days=min(366, 60 + 4 * KILLS))
        helpers = [asyncio.create_task(proxy.serve()), asyncio.create_task(listen_always(side, broker.port))]
        troubling = asyncio.create_task(trouble(broker, proxy, chance, told, enough))
        try:
            await killed_again_and_again(it, side, chance, told)
            enough.set()
            await troubling
            side.loses = lambda: False
            last = await sent_to_the_end(it)
        finally:
            await end(*helpers, troubling)
    strictly_once(side, last, told)
    print(f"kill -9: {', '.join(f'{count:,} {what}' for what, count in told.items())}; none lost, none doubled")
    assert told["kills while it collected"] >= KILLS / 3


async def killed_again_and_again(it: Box, side: Cloud, chance: random.Random, told: Counter[str]) -> None:
    queue = it.folder / "queue.sqlite"
    before: Witness | None = None
    for _ in range(KILLS):
        process = it.start()
        if chance.random() < 0.8:  # else perhaps before it has opened the queue
            await until(partial(has_batch_after, queue, before.seq if before else 0), 60)
        await asyncio.sleep(chance.uniform(0, 1.2))
        assert process.poll() is None, it.log[-2_000:]
        process.kill()
        await asyncio.to_thread(process.wait)
        told["kills"] += 1
        after = await asyncio.to_thread(witness, queue, it.folder / "copy")
        if after is None:
            continue
        if before is not None:
            assert after.epoch == before.epoch
            assert not after.lacks(before), "collected, and not any more"
        assert not neither_queued_nor_sent(after, side)
        told["kills while it collected"] += after.marks > (before.marks if before else 0)
        before = after


def has_batch_after(queue: Path, seq: int) -> bool:
    """Of a living gateway, so without a copy."""
    with suppress(sqlite3.OperationalError):  # it is not there yet
        db = sqlite3.connect(f"file:{queue}?mode=ro", uri=True, timeout=10)
        try:
            return int(db.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()[0]) > seq
        finally:
            db.close()
    return False


def neither_queued_nor_sent(found: Witness, side: Cloud) -> list[int]:
    return sorted(set(range(1, found.seq + 1)) - found.queued - {seq for _, seq in side.payloads})


async def sent_to_the_end(it: Box) -> Witness:
    """Nothing new comes in any more, and the last gateway has all the time it needs."""
    queue = it.folder / "queue.sqlite"
    it.modbus.delay_s = it.dlt645.delay_s = lambda number: None
    write_anchor(it.folder / "clock.json", Anchor(time.time(), it.clock.now().timestamp(), 0.01))
    process = it.start()

    def waits() -> bool:
        db = sqlite3.connect(f"file:{queue}?mode=ro", uri=True, timeout=10)
        try:
            return bool(db.execute("SELECT count(*) FROM batch WHERE kind = 'energy'").fetchone()[0])
        finally:
            db.close()

    await until(lambda: not waits(), 120)
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait, 30)
    last = witness(queue, it.folder / "copy")
    assert last is not None
    return last


def strictly_once(side: Cloud, last: Witness, told: Counter[str]) -> None:
    assert {epoch for epoch, _ in side.payloads} == {last.epoch}
    assert not neither_queued_nor_sent(last, side)
    assert all(len(set(copies)) == 1 for copies in side.payloads.values()), "a batch sent again is the same batch"
    counted: Counter[tuple[str, int]] = Counter()
    for batch in {batch.seq: batch for batch in side.batches}.values():
        assert not any(event.kind == "queue_evicted" for event in batch.events)
        if batch.kind is Kind.ENERGY:
            index = memoryview(batch.columns["meter_index"]).cast("H")
            at, imported = (memoryview(batch.columns[name]).cast("q") for name in ("at", "energy_import_wh"))
            for i, us, wh in zip(index, at, imported, strict=True):
                meter = batch.meters[i]
                counted[meter, us // 900_000_000] += 1
                assert wh == registers_wh(int(meter[1:]), from_us(us))[0]
    assert set(counted.values()) == {1}, "counted once"
    collected = {(meter, mark) for meter, marks in last.collected.items() for run in marks for mark in range(*run)}
    assert counted.keys() == collected
    told["marks"] = len(counted)
    told["batches"] = len(side.payloads)
    told["copies sent again"] = sum(map(len, side.payloads.values())) - len(side.payloads)
