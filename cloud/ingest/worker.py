"""The ingestor: messages in, one transaction for several of them, then acknowledgement, then receipts.

Only a commit lets go of a message. Until then the broker holds it, and behind the broker the gateway does.
"""

import logging
import queue
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import psycopg

from cloud.ingest.broker import Broker, Delivery
from cloud.ingest.metrics import Metrics
from cloud.store.installations import Installations, load_installations
from cloud.store.migrations import Connection
from cloud.store.quarantine import Message, keep_message
from cloud.store.replay import replay
from cloud.store.samples import Stored, key_of, store, write_status
from protocols.clock import Clock
from protocols.uplink import (
    Batch,
    PayloadError,
    Receipt,
    Status,
    Topic,
    decode,
    decode_batch,
    encode,
    split_topic,
    topic,
)

logger = logging.getLogger(__name__)

ROWS_PER_TRANSACTION: Final = 20_000  # more gains nothing, and is done again when the database goes away
COLLECT_S: Final = 0.05
IDLE_S: Final = 0.25
RETRY_S: Final = (0.2, 5.0)
UNKNOWN_RELOAD_S: Final = 2.0  # how often an unknown meter may make us read the registry again
RELOAD_S: Final = 60.0
WARN_AGAIN_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Rejected:
    """A message that is not the contract. It gets no receipt: there is no batch to name."""

    reason: str
    detail: str
    gateway: str | None = None


@dataclass(frozen=True, slots=True)
class Item:
    message: Message
    content: Batch | Status | Rejected

    @property
    def rows(self) -> int:
        return self.content.rows if isinstance(self.content, Batch) else 1


def open_message(message: Message) -> Item:
    """What ``message`` says, judged against its topic: nobody speaks for another gateway."""
    gateway = None
    try:
        gateway, last = split_topic(message.topic)
        if last is Topic.STATUS:
            return Item(message, decode(message.payload, Status))
        batch = decode_batch(message.payload, message.content_type)
    except PayloadError as error:
        return Item(message, Rejected("undecodable", str(error), gateway))
    if batch.gateway != gateway:
        detail = f'topic says gateway "{gateway}", payload says "{batch.gateway}"; both must be the authenticated name'
        return Item(message, Rejected("wrong_gateway", detail, gateway))
    if batch.kind.value != last.value:
        detail = f'a batch of {batch.kind.value} came under topic "{last.value}"'
        return Item(message, Rejected("wrong_topic", detail, gateway))
    return Item(message, batch)


def receipts(batches: Sequence[Batch]) -> dict[tuple[str, str], Receipt]:
    """One receipt for each gateway and epoch, with neighbouring seqs as ranges."""
    seqs: dict[tuple[str, str], set[int]] = {}
    for batch in batches:
        seqs.setdefault((batch.gateway, batch.epoch), set()).add(batch.seq)
    found = {}
    for (gateway, epoch), each in seqs.items():
        ranges: list[tuple[int, int]] = []
        for seq in sorted(each):
            if ranges and ranges[-1][1] == seq - 1:
                ranges[-1] = ranges[-1][0], seq
            else:
                ranges.append((seq, seq))
        found[gateway, epoch] = Receipt(epoch=epoch, stored=ranges)
    return found


class Worker:
    """One ingestor. ``run`` returns after ``stop``."""

    def __init__(self, dsn: str, broker: Broker, clock: Clock, metrics: Metrics) -> None:
        self._dsn = dsn
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._stopping = threading.Event()
        self._connection: Connection | None = None
        self._installations = Installations({})
        self._loaded_at = float("-inf")  # never
        self._saw_unknown = True  # perhaps before a restart
        self._trouble = ""
        self._warned: dict[tuple[str, str], float] = {}

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                deliveries, items = self._collect()
                self._metrics.broker_up.set(self._broker.connected)
                self._metrics.waiting.set(self._broker.inbox.qsize() + len(items))
                if not self._commit(items):
                    return
                for delivery in deliveries:
                    self._broker.acknowledge(delivery)
                batches = [item.content for item in items if isinstance(item.content, Batch)]
                for (gateway, _), receipt in receipts(batches).items():
                    self._broker.publish(topic(gateway, Topic.RECEIPT), encode(receipt))
        finally:
            self._drop_connection()

    def _collect(self) -> tuple[list[Delivery], list[Item]]:
        """What comes within a moment of the first message, up to a transaction's worth; nothing after an idle time."""
        deliveries: list[Delivery] = []
        items: list[Item] = []
        rows = 0
        deadline = None
        while rows < ROWS_PER_TRANSACTION:
            left = IDLE_S if deadline is None else max(0.0, deadline - self._clock.monotonic())
            try:
                delivery = self._broker.inbox.get(timeout=left)
            except queue.Empty:
                break
            if deadline is None:
                deadline = self._clock.monotonic() + COLLECT_S
            deliveries.append(delivery)
            items.append(open_message(delivery.message))
            rows += items[-1].rows
        return deliveries, items

    def _commit(self, items: Sequence[Item]) -> bool:
        """Hold ``items`` until they are committed, however long the database is away; False when told to stop."""
        delay_s = RETRY_S[0]
        while True:
            try:
                connection = self._connect()
                self._refresh(connection, items)
                if items:
                    self._store(connection, items)
            except psycopg.Error as error:
                self._drop_connection()
                self._report(error)
                if self._stopping.wait(delay_s * random.uniform(0.5, 1.5)):
                    return False
                delay_s = min(2 * delay_s, RETRY_S[1])
            else:
                if self._trouble:
                    self._trouble = ""
                    logger.info("database takes data again")
                self._metrics.database_up.set(1)
                return True

    def _report(self, error: psycopg.Error) -> None:
        self._metrics.database_up.set(0)
        kind = type(error).__name__
        if kind != self._trouble:
            self._trouble = kind
            # An unreachable server comes back; a missing table or privilege waits for somebody.
            level = logging.WARNING if isinstance(error, psycopg.OperationalError) else logging.ERROR
            text = (str(error).splitlines() or [kind])[0]
            logger.log(level, "database does not take data; holding it and trying on reason=%s", text)

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = psycopg.connect(
                self._dsn, autocommit=True, connect_timeout=5, application_name="gridloom ingest",
                keepalives_idle=10, keepalives_interval=5, keepalives_count=3,
            )  # fmt: skip
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _refresh(self, connection: Connection, items: Sequence[Item]) -> None:
        """Read the registry when it is old, or when a name is not in it; then try what waits for a meter."""
        unknown = self._saw_unknown or any(
            isinstance(item.content, Batch)
            and not self._installations.knows_all(item.content.gateway, item.content.meters)
            for item in items
        )
        age_s = self._clock.monotonic() - self._loaded_at
        if age_s < (UNKNOWN_RELOAD_S if unknown else RELOAD_S):
            return
        fresh = load_installations(connection)
        changed = fresh != self._installations
        self._installations = fresh
        if changed and self._saw_unknown:
            done = replay(connection, self._clock.now(), reason="unknown_meter")
            for kind, rows in done.rows.items():
                self._metrics.rows.labels(kind).inc(rows)
            if done.settled:
                logger.info("quarantine replayed entries=%d rows=%d", done.settled, done.rows.total())
            self._saw_unknown = done.settled < done.entries
        self._loaded_at = self._clock.monotonic()

    def _store(self, connection: Connection, items: Sequence[Item]) -> None:
        """All of ``items`` in one transaction; if one of them spoils it, each in its own, and that one in quarantine.

        Raises psycopg.Error where the database, not a message, is in trouble.
        """
        try:
            with self._metrics.transaction_s.time(), connection.transaction():
                stored = self._write(connection, items)
        except Exception as error:
            poisoned = isinstance(error, psycopg.DataError | psycopg.IntegrityError)
            if isinstance(error, psycopg.Error) and not poisoned:
                raise
            if len(items) > 1:
                for item in items:
                    self._store(connection, [item])
                return
            self._set_aside(connection, items[0], error)
            return
        self._count(stored, items)

    def _write(self, connection: Connection, items: Sequence[Item]) -> Stored:
        batches: dict[tuple[str, str, int], Batch] = {}
        statuses: dict[str, Status] = {}
        for item in items:
            match item.content:
                case Batch() as batch:
                    batches.setdefault(key_of(batch), batch)
                case Status() as status:
                    statuses[split_topic(item.message.topic)[0]] = status
                case Rejected(reason, detail, gateway):
                    keep_message(connection, item.message, reason=reason, detail=detail, gateway=gateway)
        stored = store(connection, list(batches.values()), self._installations, self._clock.now())
        write_status(connection, statuses)
        return stored

    def _set_aside(self, connection: Connection, item: Item, error: Exception) -> None:
        """A message the database will never take: kept whole, outside the ledger, so that replay can enter it."""
        batch = item.content if isinstance(item.content, Batch) else None
        detail = f"{type(error).__name__}: {error}"
        with connection.transaction():
            keep_message(
                connection, item.message, reason="not_storable", detail=detail,
                gateway=split_topic(item.message.topic)[0], epoch=batch.epoch if batch else None,
                seq=batch.seq if batch else None, rows=batch.rows if batch else 0,
            )  # fmt: skip
        self._metrics.quarantined.labels("not_storable").inc()
        logger.error("quarantined topic=%s reason=not_storable detail=%s", item.message.topic, detail.splitlines()[0])

    def _count(self, stored: Stored, items: Sequence[Item]) -> None:
        self._metrics.batches.labels("stored").inc(stored.batches)
        self._metrics.batches.labels("duplicate").inc(stored.duplicates)
        for kind, rows in stored.rows.items():
            self._metrics.rows.labels(kind).inc(rows)
        for reason, rows in stored.quarantined.items():
            self._metrics.quarantined.labels(reason).inc(rows)
            self._warn("rows", reason, f"rows={rows}")
        self._saw_unknown |= stored.quarantined["unknown_meter"] > 0
        for item in items:
            if isinstance(item.content, Rejected):
                self._metrics.quarantined.labels(item.content.reason).inc()
                self._warn(item.message.topic, item.content.reason, item.content.detail)

    def _warn(self, where: str, reason: str, detail: str) -> None:
        """Once a minute for each place and reason: a gateway with a fault repeats it for as long as it lasts."""
        now_s = self._clock.monotonic()
        self._warned = {key: said_s for key, said_s in self._warned.items() if now_s - said_s < WARN_AGAIN_S}
        if (where, reason) not in self._warned:
            self._warned[where, reason] = now_s
            logger.warning("quarantined %s reason=%s %s; see `gridloom quarantine list`", where, reason, detail)
