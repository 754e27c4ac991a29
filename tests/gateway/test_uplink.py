"""The uplink against a real broker: only receipts delete, and nothing is lost with the broker's memory."""

import asyncio
import shutil
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from gateway import uplink
from gateway.commands.journal import Journal
from gateway.queue import Queue
from gateway.uplink import Uplink
from protocols.clock import SystemClock
from protocols.quantities import Kind
from protocols.uplink import Event, Receipt, Status, Topic, decode_batch, encode, topic
from simulators.ports import free_port
from simulators.services import Broker
from tests.conftest import BROKER_USERS, stop, wait_for_port
from tests.gateway.cloud import cloud, until
from tests.gateway.test_queue import NOW, energy, open_queue
from tests.mosquitto import Mosquitto, certify, new_tls_mosquitto


async def ignore(payload: bytes) -> None:
    del payload


@asynccontextmanager
async def running(
    broker: Broker, queue: Queue, receive: Callable[[bytes], Coroutine[Any, Any, None]] = ignore
) -> AsyncIterator[Uplink]:
    where = uplink.Broker("127.0.0.1", broker.port, queue.gateway, broker.users[queue.gateway])
    async with connecting(where, queue, receive) as line:
        yield line


@asynccontextmanager
async def connecting(
    where: uplink.Broker, queue: Queue, receive: Callable[[bytes], Coroutine[Any, Any, None]] = ignore
) -> AsyncIterator[Uplink]:
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


# ---- TLS with certificates -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    folder = tmp_path_factory.mktemp("tls")
    broker = new_tls_mosquitto(folder)
    certs = folder / "certs"
    for name in ("gw-1", "gw-2", "cloud"):
        certify(certs, "client", name)
    # OpenSSL 3 takes -days 0 and less: over before it began.
    certify(certs / "expired", "client", "gw-1")
    for name in ("ca.crt", "ca.key"):
        shutil.copy(certs / name, certs / "expired" / name)
    certify(certs / "expired", "client", "gw-1", days=-1)
    certify(certs / "stranger", "client", "gw-1")
    broker.start()
    yield broker
    broker.stop()


def by_certificate(broker: Mosquitto, name: str = "gw-1", *, ca: str = "", own: str | None = "") -> uplink.Broker:
    """``ca``, ``own``: the folder of the CA and of the own certificate, where they are not the right ones."""
    certs = broker.directory / "certs"
    mine = None if own is None else certs / own / name
    return uplink.Broker(
        "127.0.0.1", broker.port, name, "", tls=True, ca=str(certs / ca / "ca.crt"),
        certificate=f"{mine}.crt" if mine else None, key=f"{mine}.key" if mine else None,
    )  # fmt: skip


def test_a_certificate_says_who_we_are_and_no_password_is_needed(tls_mosquitto: Mosquitto, tmp_path: Path) -> None:
    async def scenario() -> None:
        queue = open_queue(tmp_path)
        fill(queue, 3)
        certs = tls_mosquitto.directory / "certs"
        context = ssl.create_default_context(cafile=str(certs / "ca.crt"))
        context.load_cert_chain(certs / "cloud.crt", certs / "cloud.key")
        async with aiomqtt.Client(
            "127.0.0.1",
            tls_mosquitto.port,
            identifier="cloud",
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=context,
        ) as client:
            await client.subscribe(topic("+", Topic.ENERGY), qos=1)
            async with connecting(by_certificate(tls_mosquitto), queue):
                seqs: list[int] = []
                async with asyncio.timeout(30):
                    async for message in client.messages:
                        assert isinstance(message.payload, bytes)
                        assert message.topic.value == topic("gw-1", Topic.ENERGY)
                        seqs.append(decode_batch(message.payload).seq)
                        if len(seqs) == 3:
                            break
                assert sorted(seqs) == [1, 2, 3]
                receipt = Receipt(epoch=queue.epoch, stored=[(1, 3)])
                await client.publish(topic("gw-1", Topic.RECEIPT), encode(receipt), qos=1)
                await until(lambda: queue.batches == 0)

    asyncio.run(scenario())


def test_whose_certificate_it_is_decides_and_not_what_it_calls_itself(tls_mosquitto: Mosquitto, tmp_path: Path) -> None:
    """gw-2's certificate under gw-1's name: what it says of gw-1 goes nowhere."""
    mine = by_certificate(tls_mosquitto, "gw-2")
    forged = replace(mine, username="gw-1")

    async def scenario() -> None:
        queue = open_queue(tmp_path)
        fill(queue, 1)
        async with connecting(forged, queue) as line:
            await until(lambda: "may not publish gridloom/v1/gw-1/" in line.state)
            assert not line.acknowledged.is_set()
            assert queue.batches == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("ca", "own", "says"),
    [
        ("stranger", "", "the broker's certificate is not trusted: "),
        ("", None, "the broker wants a client certificate; set GRIDLOOM_MQTT_CERT"),
        ("", "expired", "the broker says our certificate has expired; renew GRIDLOOM_MQTT_CERT"),
        ("", "stranger", "the broker does not know who signed our certificate"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told_once(
    tls_mosquitto: Mosquitto, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    ca: str, own: str | None, says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(uplink, "RECONNECT_S", 0.05)
    monkeypatch.setattr(uplink, "CONNECT_S", 0.5)

    async def scenario() -> None:
        async with connecting(by_certificate(tls_mosquitto, ca=ca, own=own), open_queue(tmp_path)) as line:
            await until(lambda: says in line.state)
            await asyncio.sleep(1)
            assert says in line.state

    asyncio.run(scenario())
    told = [record.getMessage() for record in caplog.records if "uplink down" in record.getMessage()]
    assert len(told) == 1, told
    assert says in told[0]


def test_tls_to_a_port_without_it_is_told(mosquitto: Mosquitto) -> None:
    assert "on this port" in (uplink.diagnose(uplink.Broker("127.0.0.1", mosquitto.port, "gw-1", "", tls=True)) or "")
