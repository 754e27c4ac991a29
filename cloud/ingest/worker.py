"""The ingestor: messages in, one transaction for several of them, then acknowledgement, then receipts.

Only a commit lets go of a message. Until then the broker holds it, and behind the broker the gateway does. Two threads:
one collects, reads and encodes the next transaction while the other writes the last one, acknowledges and receipts it.
"""

import logging
import queue
import random
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import psycopg

from cloud.ingest.broker import Broker, Delivery
from cloud.ingest.metrics import Metrics
from cloud.store.installations import Installations, load_installations
from cloud.store.ledger import compact
from cloud.store.migrations import Connection
from cloud.store.quarantine import Bounds, Message, full_gateways, keep_message
from cloud.store.replay import replay
from cloud.store.rows import Keep, load_keep
from cloud.store.samples import Key, Prepared, Stored, entered, key_of, prepare, settle_state, write, write_status
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
    to_us,
    topic,
)

logger = logging.getLogger(__name__)

# Bounds of one transaction. More gains nothing, and is done again when the database goes away.
ROWS_PER_TRANSACTION: Final = 50_000
BYTES_PER_TRANSACTION: Final = 16_000_000
COLLECT_S: Final = 0.05
GAP_S: Final = 0.01  # nothing came for so long: what is there goes
IDLE_S: Final = 0.25
RETRY_S: Final = (0.2, 5.0)
UNKNOWN_RELOAD_S: Final = 2.0  # how often an unknown meter may make us read the registry again
RELOAD_S: Final = 60.0
QUARANTINE_LOOK_S: Final = 10.0  # how often it is weighed while something is set aside
WARN_AGAIN_S: Final = 60.0
COMPACT_S: Final = 60.0
SETTLE_S: Final = 5.0


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


@dataclass(frozen=True, slots=True)
class Known:
    """What was last read of the store, and what messages are judged by."""

    installations: Installations
    keep: Keep
    full: Collection[str]  # gateways whose part of the quarantine is full


@dataclass(frozen=True, slots=True)
class Load:
    """What one transaction is to hold. ``prepared`` is None where a message could not even be prepared."""

    deliveries: Sequence[Delivery]
    items: Sequence[Item]
    prepared: Prepared | None
    known: Known


class Worker:
    """One ingestor. ``run`` returns after ``stop``, or, to ``drain``, when nothing has come for that long."""

    def __init__(
        self, dsn: str, broker: Broker, clock: Clock, metrics: Metrics, *, bounds: Bounds, drain_s: float | None = None
    ) -> None:
        self._dsn = dsn
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._bounds = bounds
        self._drain_s = drain_s
        self._stopping = threading.Event()
        self._loads: queue.Queue[Load | None] = queue.Queue(maxsize=1)
        self._failure: BaseException | None = None
        self._writer = threading.Thread(target=self._write_loads, name="writer")
        self._connection: Connection | None = None
        self._known = Known(Installations({}), {}, frozenset())
        self._loaded_at = float("-inf")  # never
        self._looked_at = float("-inf")
        self._compacted_at = float("-inf")
        self._settled_at = float("-inf")
        self._noted = True  # perhaps before a restart
        self._saw_unknown = True
        self._replay_due = False
        self._saw_aside = True
        self._trouble = ""
        self._warned: dict[tuple[str, str], float] = {}

    def stop(self) -> None:
        """What was received is still stored and acknowledged, if the database takes it at once."""
        self._stopping.set()

    def run(self) -> None:
        self._writer.start()
        quiet_since = self._clock.monotonic()
        try:
            while not self._stopping.is_set():
                deliveries, items = self._collect()
                self._metrics.broker_up.set(self._broker.connected)
                self._metrics.waiting.set(self._broker.waiting)
                self._metrics.waiting_bytes.set(self._broker.waiting_bytes)
                now_s = self._clock.monotonic()
                if items or self._broker.waiting or not self._broker.connected:
                    quiet_since = now_s
                elif self._drain_s is not None and now_s - quiet_since >= self._drain_s:
                    break
                self._hand_over(self._load(deliveries, items))
        finally:
            self._hand_over(None)
            self._writer.join()
        if self._failure is not None:
            raise self._failure

    def _hand_over(self, load: Load | None) -> None:
        while self._writer.is_alive():
            try:
                self._loads.put(load, timeout=IDLE_S)
                return
            except queue.Full:
                pass  # the writer holds on to what it has, however long the database is away

    def _collect(self) -> tuple[list[Delivery], list[Item]]:
        """What comes within a moment of the first message, up to a transaction's worth; nothing after an idle time."""
        deliveries: list[Delivery] = []
        items: list[Item] = []
        rows = size = 0
        deadline = None
        while rows < ROWS_PER_TRANSACTION and size < BYTES_PER_TRANSACTION:
            left = IDLE_S if deadline is None else min(GAP_S, max(0.0, deadline - self._clock.monotonic()))
            try:
                delivery = self._broker.inbox.get(timeout=left)
            except queue.Empty:
                break
            if deadline is None:
                deadline = self._clock.monotonic() + COLLECT_S
            deliveries.append(delivery)
            items.append(open_message(delivery.message))
            rows += items[-1].rows
            size += len(delivery.message.payload)
        return deliveries, items

    def _load(self, deliveries: Sequence[Delivery], items: Sequence[Item]) -> Load:
        known = self._known
        try:
            prepared = self._prepare(items, known) if items else None
        except Exception:  # the writer finds out which message it is
            logger.debug("a message cannot be prepared", exc_info=True)
            prepared = None
        return Load(deliveries, items, prepared, known)

    def _prepare(self, items: Sequence[Item], known: Known) -> Prepared:
        batches: dict[Key, Batch] = {}
        for item in items:
            if isinstance(item.content, Batch):
                batches.setdefault(key_of(item.content), item.content)
        return prepare(list(batches.values()), known.installations, self._clock.now(), known.keep, full=known.full)

    # ---- the writer's thread ---------------------------------------------------------------------------------------

    def _write_loads(self) -> None:
        try:
            while (load := self._loads.get()) is not None:
                held = self._commit(load)
                if held is None:
                    return
                for delivery in load.deliveries:
                    self._broker.acknowledge(delivery)
                batches = [item.content for item in load.items if isinstance(item.content, Batch)]
                settled = [batch for batch in batches if key_of(batch) not in held] if held else batches
                for (gateway, _), receipt in receipts(settled).items():
                    self._broker.publish(topic(gateway, Topic.RECEIPT), encode(receipt))
            if self._connection is not None:
                settle_state(self._connection)
        except psycopg.Error as error:
            logger.info("stopped without the database; what is noted of meters is left to the next reason=%s", error)
        except BaseException as error:
            self._failure = error
            self._stopping.set()
        finally:
            self._drop_connection()

    def _commit(self, load: Load) -> Collection[Key] | None:
        """Hold ``load`` until it is committed, however long the database is away; None when told to stop.

        Returns the batches that were neither stored nor set aside, and may not be receipted.
        """
        delay_s = RETRY_S[0]
        while True:
            try:
                connection = self._connect()
                self._refresh(connection, load.items)
                self._settle(connection, idle=not load.items)
                self._compact(connection, idle=not load.items)
                held = self._store(connection, load.items, load.prepared if load.known is self._known else None)
            except psycopg.Error as error:
                self._drop_connection()
                self._report(error)
                if self._stopping.wait(delay_s * random.uniform(0.5, 1.5)):
                    return None
                delay_s = min(2 * delay_s, RETRY_S[1])
            else:
                if self._trouble:
                    self._trouble = ""
                    logger.info("database takes data again")
                self._metrics.database_up.set(1)
                return held

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
        now_s = self._clock.monotonic()
        if self._saw_aside and now_s - self._looked_at >= QUARANTINE_LOOK_S:
            full = full_gateways(connection, self._bounds)
            if full != self._known.full:
                self._known = Known(self._known.installations, self._known.keep, full)
            self._saw_aside = bool(full)  # until somebody makes room
            self._looked_at = now_s
        installations = self._known.installations
        unknown = self._saw_unknown or any(
            isinstance(item.content, Batch) and not installations.knows_all(item.content.gateway, item.content.meters)
            for item in items
        )
        if now_s - self._loaded_at < (UNKNOWN_RELOAD_S if unknown else RELOAD_S):
            return
        fresh, keep = load_installations(connection), load_keep(connection)
        changed = fresh != installations
        if changed or keep != self._known.keep:
            self._known = Known(fresh, keep, self._known.full)
        self._replay_due |= changed
        if self._replay_due:  # whoever set it aside: another ingestor may be gone
            done = replay(connection, self._clock.now(), reason="unknown_meter")
            self._metrics.rows_stored(done.rows)
            if done.settled:
                logger.info("quarantine replayed entries=%d rows=%d", done.settled, done.rows.total())
            self._saw_unknown = done.settled < done.entries
            self._replay_due = False  # only now: a database that went away meanwhile is asked again
        self._loaded_at = self._clock.monotonic()

    def _settle(self, connection: Connection, *, idle: bool) -> None:
        """Now and then, and as soon as there is nothing else to do."""
        now_s = self._clock.monotonic()
        if self._noted and (idle or now_s - self._settled_at >= SETTLE_S):
            settle_state(connection)
            self._settled_at = now_s
            self._noted = not idle

    def _compact(self, connection: Connection, *, idle: bool) -> None:
        """One step now and then, and at once another while there is more and nothing else to do."""
        if self._clock.monotonic() - self._compacted_at >= COMPACT_S:
            more = compact(connection)
            if not (more and idle):
                self._compacted_at = self._clock.monotonic() + random.uniform(0, COMPACT_S)

    def _store(self, connection: Connection, items: Sequence[Item], prepared: Prepared | None) -> Collection[Key]:
        """All of ``items`` in one transaction; if one of them spoils it, each in its own, and that one in quarantine.

        ``prepared``: from all of them, None to do so here. Returns the batches that were held back. Raises
        psycopg.Error where the database, not a message, is in trouble.
        """
        if not items:
            return ()
        try:
            if prepared is None:
                prepared = self._prepare(items, self._known)
            with self._metrics.transaction_s.time(), connection.transaction():
                stored = self._write(connection, items, prepared)
        except Exception as error:
            poisoned = isinstance(error, psycopg.DataError | psycopg.IntegrityError)
            if isinstance(error, psycopg.Error) and not poisoned:
                raise
            if len(items) > 1:
                return {key for item in items for key in self._store(connection, [item], None)}
            return self._set_aside(connection, items[0], error)
        self._noted = True
        held = set(prepared.held) - entered(connection, prepared.held)
        self._count(stored, items, prepared, held)
        return held

    def _write(self, connection: Connection, items: Sequence[Item], prepared: Prepared) -> Stored:
        statuses: dict[str, Status] = {}
        for item in items:
            match item.content:
                case Status() as status:
                    statuses[split_topic(item.message.topic)[0]] = status
                case Rejected(reason, detail, gateway):
                    full = (gateway or "") in self._known.full
                    keep_message(connection, item.message, reason=reason, detail=detail, gateway=gateway, full=full)
        stored = write(connection, prepared)
        write_status(connection, statuses)
        return stored

    def _set_aside(self, connection: Connection, item: Item, error: Exception) -> Collection[Key]:
        """A message the database will never take: kept whole, outside the ledger, so that replay can enter it."""
        batch = item.content if isinstance(item.content, Batch) else None
        gateway = split_topic(item.message.topic)[0]
        full = gateway in self._known.full
        detail = f"{type(error).__name__}: {error}"
        with connection.transaction():
            keep_message(
                connection, item.message, reason="not_storable", detail=detail, gateway=gateway,
                epoch=batch.epoch if batch else None, seq=batch.seq if batch else None,
                rows=batch.rows if batch else 0, full=full,
            )  # fmt: skip
        self._saw_aside = True
        self._metrics.quarantined.labels("not_storable").inc()
        logger.error("quarantined topic=%s reason=not_storable detail=%s", item.message.topic, detail.splitlines()[0])
        return {key_of(batch)} if batch and full else ()

    def _count(self, stored: Stored, items: Sequence[Item], prepared: Prepared, held: Collection[Key]) -> None:
        now = self._clock.now()
        now_us = to_us(now)
        self._metrics.arrivals.observe(
            [(now_us - batch.sent_at) / 1e6 for batch in prepared.batches],
            {batch.gateway for batch in prepared.batches},
            now,
        )
        batches = sum(isinstance(item.content, Batch) for item in items)
        self._metrics.batches.labels("stored").inc(stored.batches)
        self._metrics.batches.labels("duplicate").inc(batches - stored.batches - len(held))
        self._metrics.batches.labels("held").inc(len(held))
        self._metrics.rows_stored(stored.rows)
        for gateway, epoch, seq in held:
            self._warn(f"gateway={gateway}", "full", f"epoch={epoch} seq={seq}: not receipted, its gateway keeps it")
        for reason, rows in stored.quarantined.items():
            self._metrics.quarantined.labels(reason).inc(rows)
            self._warn("rows", reason, f"rows={rows}")
        self._saw_unknown |= stored.quarantined["unknown_meter"] > 0
        self._saw_aside |= bool(stored.quarantined)
        for item in items:
            if isinstance(item.content, Rejected):
                self._saw_aside = True
                self._metrics.quarantined.labels(item.content.reason).inc()
                self._warn(item.message.topic, item.content.reason, item.content.detail)

    def _warn(self, where: str, reason: str, detail: str) -> None:
        """Once a minute for each place and reason: a gateway with a fault repeats it for as long as it lasts."""
        now_s = self._clock.monotonic()
        self._warned = {key: said_s for key, said_s in self._warned.items() if now_s - said_s < WARN_AGAIN_S}
        if (where, reason) not in self._warned:
            self._warned[where, reason] = now_s
            logger.warning("quarantined %s reason=%s %s; see `gridloom quarantine list`", where, reason, detail)
