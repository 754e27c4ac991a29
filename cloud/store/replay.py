"""Quarantined rows and messages tried again, after the registry or the program has learned something."""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, cast

import numpy as np
import psycopg

from cloud.store.installations import Installations, load_installations
from cloud.store.migrations import Connection
from cloud.store.quarantine import forget_known_meters, write_set_aside
from cloud.store.rows import Keep, Verdict, columns_of, judge, load_keep, set_aside
from cloud.store.samples import (
    judge_events,
    make_ready,
    note,
    set_events_aside,
    settle_state,
    store,
    write_events,
    write_rows,
)
from protocols.quantities import Kind
from protocols.uplink import JSON, MSGPACK, Batch, PayloadError, decode_batch, split_topic

# Reasons in the order of what a person can do about them; a registry import helps the first.
REASONS: Final = (
    "unknown_meter", "impossible_value", "too_old", "undecodable", "wrong_gateway", "wrong_topic", "not_storable",
)  # fmt: skip


@dataclass(slots=True)
class Replayed:
    """Entries looked at, entries settled, and rows that went into the store."""

    entries: int = 0
    settled: int = 0
    rows: Counter[str] = field(default_factory=Counter)  # by kind


def replay(connection: Connection, now: datetime, *, reason: str | None = None) -> Replayed:
    """Try every waiting entry again (of one ``reason``, or all), each in a transaction of its own.

    An entry that another process holds is left to it. What still cannot be stored stays, with its reason of today.
    """
    done = Replayed()
    installations = load_installations(connection)
    keep = load_keep(connection)
    last = 0
    while True:
        with connection.transaction():
            row = connection.execute(
                """
                SELECT quarantine_id, reason, topic, content_type, payload, row_values::text FROM quarantine
                WHERE replayed_at IS NULL AND quarantine_id > %s AND (%s::text IS NULL OR reason = %s)
                  AND num_nonnulls(payload, row_values) > 0
                ORDER BY quarantine_id LIMIT 1 FOR UPDATE SKIP LOCKED
                """,
                [last, reason, reason],
            ).fetchone()
            if row is None:
                forget_known_meters(connection)
                return done
            last, why, topic, content_type, payload, document = cast(
                tuple[int, str, str, str | None, bytes | None, str | None], row
            )
            done.entries += 1
            try:
                with connection.transaction():
                    if document is not None:
                        batch = decode_batch(document.encode(), JSON)
                        rows = _replay_rows(connection, batch, why, installations, now, keep)
                    else:
                        batch = _open(topic, payload or b"", content_type or MSGPACK)
                        rows = store(connection, [batch], installations, now, keep).rows
            except (PayloadError, psycopg.DataError, psycopg.IntegrityError):
                rows = None  # as bad as it was
            if rows is not None:
                done.settled += 1
                done.rows += rows
                connection.execute(
                    "UPDATE quarantine SET replayed_at = now(), payload = NULL, row_values = NULL"
                    " WHERE quarantine_id = %s",
                    [last],
                )


def _replay_rows(
    connection: Connection, batch: Batch, why: str, installations: Installations, now: datetime, keep: Keep
) -> Counter[str] | None:
    """Rows stored by kind, None where all of them still wait for the same reason. Others are set aside anew."""
    entered = connection.execute(
        "SELECT batch_id FROM batch WHERE (gateway, epoch, seq) = (%s, %s, %s) FOR UPDATE",
        [batch.gateway, batch.epoch, batch.seq],
    ).fetchone()
    assert entered, "rows are set aside in the transaction that enters their batch"
    batch_id = cast(int, entered[0])
    if batch.kind is Kind.EVENTS:
        good, bad = judge_events(batch, now)
        if not good:
            return None
        stored = write_events(connection, [(batch, good, batch_id)], installations)
        write_set_aside(connection, set_events_aside(batch, bad))
    else:
        columns = columns_of(batch.kind, [batch], installations)
        verdicts = judge(columns, now, keep)
        good_rows = verdicts == Verdict.STORED
        if {Verdict(verdict).reason for verdict in np.unique(verdicts)} == {why}:
            return None
        ready = make_ready(columns[good_rows])
        stored = write_rows(connection, ready, np.array([batch_id], np.int64))
        note(connection, [ready])
        settle_state(connection)
        write_set_aside(connection, set_aside(batch, columns, verdicts, now, keep))
    connection.execute(
        "UPDATE batch SET rows = rows + %s, quarantined = quarantined - %s WHERE batch_id = %s",
        [stored, stored, batch_id],
    )
    return Counter({batch.kind.value: stored})


def _open(topic: str, payload: bytes, content_type: str) -> Batch:
    """The batch of a whole message: what an older program could not read, a newer one may."""
    gateway, last = split_topic(topic)
    batch = decode_batch(payload, content_type)
    if (batch.gateway, batch.kind.value) != (gateway, last.value):
        raise PayloadError("topic and payload differ")
    return batch
