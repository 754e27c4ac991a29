"""The uplink against a real broker: only receipts delete, and nothing is lost with the broker's memory."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway import uplink
from gateway.commands.journal import Journal
from gateway.queue import Queue
from gateway.uplink import Uplink
from protocols.clock import SystemClock
from protocols.quantities import Kind
from protocols.uplink import Event, Receipt, Status
from simulators.ports import free_port
from simulators.services import Broker
from tests.conftest import BROKER_USERS, stop, wait_for_port
from tests.gateway.cloud import cloud, until
from tests.gateway.test_queue import NOW, energy, open_queue


async def ignore(payload: bytes) -> None:
    del payload


@asynccontextmanager
async def running(
    broker: Broker, queue: Queue, receive: Callable[[bytes], Coroutine[Any, Any, None]] = ignore
) -> AsyncIterator[Uplink]:
    where = uplink.Broker("127.0.0.1", broker.port, queue.gateway, broker.users[queue.gateway])
    line = Uplink(
        where,
        queue,
        Journal(queue),
        SystemClock(),
        receive=receive,
        status=lambda: Status(online=True, at=0, epoch=queue.epoch, queued_batches=queue.batches),
    )
    task = asyncio.create_task(line.run())
    try:
        yield line
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        if task.done() and not task.cancelled() and task.exception():
            raise task.exception() or AssertionError


def fill(queue: Queue, count: int) -> None:
    start = queue._seq
    for mark in range(start, start + count):
        queue.append_rows(Kind.ENERGY, [energy("m1", mark)], NOW)


def test_a_receipt_deletes_a_batch_and_a_missing_one_keeps_it(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        queue = open_queue(tmp_path)
        fill(queue, 3)
        queue.append_events([Event(at=1, kind="meter_silent", meter="m1")], NOW)
        async with cloud(embedded_broker, "gw-1", gives_receipts=False) as there, running(embedded_broker, queue):
            await until(lambda: len(there.batches) == 4)
            assert queue.batches == 4, "PUBACK means sent, not stored"
            await there.send("gw-1", Receipt(epoch="0" * 32, stored=[(1, 4)]))
            await there.send("gw-1", Receipt(epoch=queue.epoch, stored=[(1, 2), (4, 4)]))
            await until(lambda: queue.batches == 1)
            assert [queued.seq for queued in queue.take(9, NOW)] == [3]
        assert [batch.kind for batch in there.batches] == [Kind.ENERGY] * 3 + [Kind.EVENTS]

    asyncio.run(scenario())


def test_what_is_queued_later_goes_out_when_woken(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        queue = open_queue(tmp_path)
        async with cloud(embedded_broker, "gw-1") as there, running(embedded_broker, queue) as line:
            await until(lambda: any(status.online for status in there.statuses))
            for round_ in range(3):
                fill(queue, 50)  # more than the window
                line.wake()
                await until(lambda round_=round_: len(there.payloads) == 50 * (round_ + 1) and queue.batches == 0)  # type: ignore[misc]
        assert [seq for _, seq in sorted(there.payloads)] == list(range(1, 151))

    asyncio.run(scenario())


def test_without_a_receipt_a_batch_is_sent_again_the_same(
    embedded_broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "RECEIPT_TIMEOUT_S", 0.3)

    async def scenario() -> None:
        queue = open_queue(tmp_path)
        fill(queue, 30)
        async with cloud(embedded_broker, "gw-1", gives_receipts=False) as there, running(embedded_broker, queue):
            await until(lambda: len(there.batches) >= 3 * uplink.WINDOW)
            assert len(there.payloads) == uplink.WINDOW, "no more than the window is on its way"
            there.gives_receipts = True
            await until(lambda: queue.batches == 0)
        assert len(there.payloads) == 30
        assert all(len(set(copies)) == 1 for copies in there.payloads.values())

    asyncio.run(scenario())


def test_a_broker_that_loses_its_memory_loses_no_batch(tmp_path: Path) -> None:
    """Killed after it acknowledged, with the cloud away: the batches are only in the gateway's queue."""
    broker = Broker(tmp_path / "broker", free_port(), BROKER_USERS)
    broker.initialize()

    def start() -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(broker.command(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(broker.port)
        return process

    async def scenario() -> None:
        queue = open_queue(tmp_path)
        fill(queue, 10)
        process = await asyncio.to_thread(start)
        try:
            async with running(broker, queue) as line:
                await until(lambda: bool(line._in_flight))
                await asyncio.sleep(0.3)
                await asyncio.to_thread(stop, process, signal.SIGKILL)
                fill(queue, 5)
                line.wake()
                process = await asyncio.to_thread(start)
                async with cloud(broker, "gw-1") as there:
                    await until(lambda: queue.batches == 0)
                    assert sorted(seq for _, seq in there.payloads) == list(range(1, 16))
        finally:
            await asyncio.to_thread(stop, process, signal.SIGKILL)

    asyncio.run(scenario())


def test_status_says_online_and_the_stop_says_offline(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        queue = open_queue(tmp_path, gateway="gw-2")
        async with cloud(embedded_broker, "gw-2") as there:
            async with running(embedded_broker, queue):
                await until(lambda: bool(there.statuses) and there.statuses[-1].online)
                assert there.statuses[-1].epoch == queue.epoch
            await until(lambda: not there.statuses[-1].online)
        async with cloud(embedded_broker, "gw-2") as later:
            await until(lambda: bool(later.statuses))
            assert not later.statuses[0].online, "status is retained"

    asyncio.run(scenario())


def test_nonsense_from_the_broker_stops_nothing(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        queue = open_queue(tmp_path)
        async with cloud(embedded_broker, "gw-1") as there, running(embedded_broker, queue) as line:
            await until(lambda: any(status.online for status in there.statuses))
            for payload in (b"", b"\xff\x00", b"{}"):
                await there.client.publish("gridloom/v1/gw-1/receipt", payload, qos=1)
            fill(queue, 1)
            line.wake()
            await until(lambda: queue.batches == 0)

    asyncio.run(scenario())


def test_a_wrong_password_is_told_once(
    embedded_broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink, "RECONNECT_S", 0.05)
    monkeypatch.setattr(uplink, "CONNECT_S", 0.3)
    wrong = Broker(embedded_broker.directory, embedded_broker.port, {"gw-1": "wrong"})

    async def scenario() -> None:
        async with running(wrong, open_queue(tmp_path)):
            await asyncio.sleep(1.5)

    asyncio.run(scenario())
    told = [record.getMessage() for record in caplog.records if "uplink down" in record.getMessage()]
    assert len(told) == 1, told
    assert f"broker=127.0.0.1:{embedded_broker.port}" in told[0]
    assert "is the password right?" in told[0]
