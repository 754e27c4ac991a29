"""What could not be stored: whole messages, or single rows of a batch. Kept, counted, listed; see ``replay``."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from cloud.store.migrations import Connection
from cloud.store.rows import SetAside
from protocols.uplink import JSON, Topic, topic

_EntryRow = tuple[int, str | None, str, str, str, int, int, datetime, datetime | None]
TEXT_MAX = 2_000  # of a detail; the payload itself is kept whole


@dataclass(frozen=True, slots=True)
class Message:
    """What came from the broker, before anything is known about it."""

    topic: str
    payload: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the quarantine."""

    quarantine_id: int
    gateway: str | None
    topic: str
    reason: str
    detail: str
    rows: int
    times_seen: int
    recorded_at: datetime
    replayed_at: datetime | None


def keep_message(
    connection: Connection,
    message: Message,
    *,
    reason: str,
    detail: str,
    gateway: str | None = None,
    epoch: str | None = None,
    seq: int | None = None,
    rows: int = 0,
) -> None:
    """Set a whole message aside. The same message again is counted, not kept again."""
    connection.execute(
        """
        INSERT INTO quarantine AS held
            (gateway, topic, content_type, epoch, seq, reason, detail, rows, payload, digest)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (digest) WHERE digest IS NOT NULL DO UPDATE SET times_seen = held.times_seen + 1
        """,
        [
            gateway,
            message.topic,
            _printable(message.content_type),
            epoch,
            seq,
            reason,
            _printable(detail),
            rows,
            message.payload,
            hashlib.sha256(message.topic.encode() + b"\0" + message.payload).digest(),
        ],
    )


def _printable(text: str) -> str:
    """PostgreSQL's text holds no NUL, and what a peer sent may hold anything."""
    return text[:TEXT_MAX].replace("\0", "�").encode("utf-8", "replace").decode()


def write_set_aside(connection: Connection, aside: Sequence[SetAside]) -> None:
    """Set rows aside, under their batch's ledger entry."""
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO quarantine (gateway, topic, content_type, epoch, seq, reason, detail, rows, row_values)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb)",
            [
                (
                    one.batch.gateway,
                    topic(one.batch.gateway, Topic(one.batch.kind.value)),
                    JSON,
                    one.batch.epoch,
                    one.batch.seq,
                    one.reason.reason,
                    _printable(one.detail),
                    one.rows,
                    one.document.decode(),
                )
                for one in aside
            ],
        )


def list_entries(connection: Connection, *, every: bool, limit: int) -> list[Entry]:
    """The newest entries; those replayed already only where ``every`` is asked for."""
    found = connection.execute(
        """
        SELECT quarantine_id, gateway, topic, reason, detail, rows, times_seen, recorded_at, replayed_at
        FROM quarantine WHERE %s OR replayed_at IS NULL ORDER BY quarantine_id DESC LIMIT %s
        """,
        [every, limit],
    )
    return [Entry(*row) for row in cast(Iterable[_EntryRow], found)]
