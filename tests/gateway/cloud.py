"""The cloud's end of the line, small: takes batches as an ingestor would, gives receipts, sends commands."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiomqtt

from gateway.uplink import end
from protocols.uplink import (
    Batch,
    Command,
    PayloadError,
    Receipt,
    Reply,
    Status,
    Topic,
    decode,
    decode_batch,
    encode,
    split_topic,
    topic,
)
from simulators.services import Broker


@dataclass
class Cloud:
    """What has arrived. ``payloads``: (epoch, seq) → every copy that came. ``loses``: a batch before it is stored."""

    client: aiomqtt.Client
    gives_receipts: bool = True
    loses: Callable[[], bool] = lambda: False
    payloads: dict[tuple[str, int], list[bytes]] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    statuses: list[Status] = field(default_factory=list)

    async def send(self, gateway: str, message: Command | Receipt) -> None:
        last = Topic.COMMAND if isinstance(message, Command) else Topic.RECEIPT
        await self.client.publish(topic(gateway, last), encode(message), qos=1)

    async def listen(self) -> None:
        async for message in self.client.messages:
            assert isinstance(message.payload, bytes)
            with suppress(PayloadError):
                gateway, last = split_topic(message.topic.value)
                if last is Topic.REPLY:
                    self.replies.append(decode(message.payload, Reply))
                elif last is Topic.STATUS:
                    self.statuses.append(decode(message.payload, Status))
                else:
                    content_type = getattr(message.properties, "ContentType", "")
                    batch = decode_batch(message.payload, content_type)
                    assert (batch.gateway, batch.kind.value) == (gateway, last.value)
                    if self.loses():
                        continue
                    self.payloads.setdefault((batch.epoch, batch.seq), []).append(message.payload)
                    self.batches.append(batch)
                    if self.gives_receipts:
                        receipt = Receipt(epoch=batch.epoch, stored=[(batch.seq, batch.seq)])
                        await self.send(gateway, receipt)


@asynccontextmanager
async def cloud(broker: Broker, gateway: str, *, gives_receipts: bool = True) -> AsyncIterator[Cloud]:
    async with aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        username="cloud",
        password=broker.users["cloud"],
        identifier=f"cloud-{gateway}",
        protocol=aiomqtt.ProtocolVersion.V5,
    ) as client:
        for last in (Topic.ENERGY, Topic.POWER, Topic.EVENTS, Topic.REPLY, Topic.STATUS):
            await client.subscribe(topic(gateway, last), qos=1)
        side = Cloud(client, gives_receipts)
        listening = asyncio.create_task(side.listen())
        try:
            yield side
        finally:
            await end(listening)
            with suppress(asyncio.CancelledError, aiomqtt.MqttError):
                listening.result()


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  the conditions are other people's, nobody could set an event
            await asyncio.sleep(0.02)
