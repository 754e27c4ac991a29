"""What could not be stored: whole messages, or single rows of a batch. Kept, counted, listed, dropped; see ``replay``.

Where a gateway's part, or the whole, has reached its bound, ingest sets nothing more aside for it. A batch is then not
entered at all and gets no receipt, so its gateway keeps it; a message that names no batch is only counted, by gateway,
reason and day. So what a receipt promised is never missing, whatever the bound.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, LiteralString, cast

from cloud.store.migrations import Connection
from cloud.store.rows import SetAside
from protocols.uplink import JSON, Topic, topic

_EntryRow = tuple[int, str | None, str, str, str, int, int, int, datetime, datetime | None, str | None, str | None]
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
    size_bytes: int
    recorded_at: datetime
    settled_at: datetime | None
    dropped_because: str | None
    dropped_by: str | None

    @property
    def state(self) -> str:
        return "waiting" if self.settled_at is None else "dropped" if self.dropped_because else "replayed"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes that may wait in quarantine: of one gateway, and of all; and meters nobody registered, of one gateway."""

    gateway_bytes: int = 1_000_000_000  # 300 meters nobody registered fill 10 MB a day
    total_bytes: int = 20_000_000_000
    gateway_unknown_meters: int = 5_000  # far more than a gateway can poll: what has so many invents them


class Everyone(Collection[str]):
    """All gateways, known or not."""

    def __contains__(self, _gateway: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1


def full_gateways(connection: Connection, bounds: Bounds) -> Collection[str]:
    """Gateways for which nothing more is to be set aside."""
    held = cast(
        list[tuple[str | None, int]],
        connection.execute(
            "SELECT gateway, sum(size_bytes)::bigint FROM quarantine WHERE replayed_at IS NULL GROUP BY gateway"
        ).fetchall(),
    )
    if sum(size for _, size in held) >= bounds.total_bytes:
        return Everyone()
    full = {gateway or "" for gateway, size in held if size >= bounds.gateway_bytes}
    inventors = connection.execute(
        "SELECT gateway FROM unknown_meter GROUP BY gateway HAVING count(*) >= %s", [bounds.gateway_unknown_meters]
    )
    return frozenset(full | {cast(str, gateway) for (gateway,) in inventors})


def forget_known_meters(connection: Connection) -> None:
    """Of the meters nobody registered, keep those of which rows still wait."""
    connection.execute(
        """
        DELETE FROM unknown_meter u
        WHERE EXISTS (SELECT FROM installation i WHERE (i.gateway, i.wire_name) = (u.gateway, u.wire_name))
           OR NOT EXISTS (SELECT FROM quarantine q
                          WHERE q.gateway = u.gateway AND q.reason = 'unknown_meter' AND q.replayed_at IS NULL)
        """
    )


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
    full: bool = False,
) -> None:
    """Set a whole message aside. The same message again is counted, not kept again; where the quarantine is ``full``,
    all messages of a gateway, reason and day are counted as one."""
    digest = hashlib.sha256(message.topic.encode() + b"\0" + message.payload).digest()
    payload: bytes | None = message.payload
    if full:
        payload, rows = None, 0
        digest = hashlib.sha256(f"{message.topic}\0{reason}\0{datetime.now(UTC):%F}".encode()).digest()
        detail = f"quarantine is full: counted, not kept; the first was: {detail}"
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
            payload,
            digest,
        ],
    )


def _printable(text: str) -> str:
    """PostgreSQL's text holds no NUL, and what a peer sent may hold anything."""
    return text[:TEXT_MAX].replace("\0", "�").encode("utf-8", "replace").decode()


def write_set_aside(connection: Connection, aside: Sequence[SetAside]) -> None:
    """Set rows aside, under their batch's ledger entry."""
    if not aside:
        return
    connection.execute(
        """
        INSERT INTO quarantine (gateway, topic, content_type, epoch, seq, reason, detail, rows, row_values)
        SELECT gateway, topic, %s, epoch, seq, reason, detail, rows, document::jsonb
        FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::text[], %s::int[], %s::text[])
            AS told (gateway, topic, epoch, seq, reason, detail, rows, document)
        """,
        [
            JSON,
            [one.batch.gateway for one in aside],
            [topic(one.batch.gateway, Topic(one.batch.kind.value)) for one in aside],
            [one.batch.epoch for one in aside],
            [one.batch.seq for one in aside],
            [one.reason.reason for one in aside],
            [_printable(one.detail) for one in aside],
            [one.rows for one in aside],
            [one.document.decode() for one in aside],
        ],
    )
    unknown = sorted({(one.batch.gateway, name) for one in aside for name in one.unknown})
    if unknown:
        connection.execute(
            "INSERT INTO unknown_meter (gateway, wire_name) SELECT * FROM unnest(%s::text[], %s::text[])"
            " ON CONFLICT DO NOTHING",
            [[gateway for gateway, _ in unknown], [name for _, name in unknown]],
        )


def list_entries(connection: Connection, *, every: bool, limit: int) -> list[Entry]:
    """The newest entries; those settled already only where ``every`` is asked for."""
    found = connection.execute(
        """
        SELECT quarantine_id, gateway, topic, reason, detail, rows, times_seen, size_bytes, recorded_at, replayed_at,
               dropped_because, dropped_by
        FROM quarantine WHERE %s OR replayed_at IS NULL ORDER BY quarantine_id DESC LIMIT %s
        """,
        [every, limit],
    )
    return [Entry(*row) for row in cast(Iterable[_EntryRow], found)]


@dataclass(frozen=True, slots=True)
class Choice:
    """Waiting entries: all that fit everything that is given."""

    ids: Sequence[int] = ()
    reason: str | None = None
    gateway: str | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    entries: int
    rows: int
    size_bytes: int


_CHOSEN: Final[LiteralString] = """
    SELECT quarantine_id, rows, size_bytes FROM quarantine
    WHERE replayed_at IS NULL AND (%(ids)s::bigint[] = '{}' OR quarantine_id = ANY (%(ids)s::bigint[]))
      AND (%(reason)s::text IS NULL OR reason = %(reason)s) AND (%(gateway)s::text IS NULL OR gateway = %(gateway)s)
    FOR UPDATE
"""
_DROP: Final[LiteralString] = """
    UPDATE quarantine q SET replayed_at = now(), dropped_because = %(because)s, dropped_by = %(by)s,
                            payload = NULL, row_values = NULL
    FROM chosen WHERE q.quarantine_id = chosen.quarantine_id RETURNING chosen.rows, chosen.size_bytes
"""
_SUM: Final[LiteralString] = (
    "SELECT count(*), coalesce(sum(rows), 0)::bigint, coalesce(sum(size_bytes), 0)::bigint FROM "
)


def count_chosen(connection: Connection, choice: Choice) -> Chosen:
    asked = {"ids": list(choice.ids), "reason": choice.reason, "gateway": choice.gateway}
    row = connection.execute("WITH chosen AS (" + _CHOSEN + ")" + _SUM + "chosen", asked).fetchone()
    return Chosen(*cast(tuple[int, int, int], row))


def drop(connection: Connection, choice: Choice, *, because: str, by: str) -> Chosen:
    """Give entries up: what they held is gone, who did it and why stays on record for as long as ``retention`` says."""
    asked = {
        "ids": list(choice.ids), "reason": choice.reason, "gateway": choice.gateway, "because": because, "by": by,
    }  # fmt: skip
    row = connection.execute(
        "WITH chosen AS (" + _CHOSEN + "), gone AS (" + _DROP + ")" + _SUM + "gone", asked
    ).fetchone()
    forget_known_meters(connection)
    return Chosen(*cast(tuple[int, int, int], row))
