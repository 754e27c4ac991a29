"""Batches into the store: the ledger, the samples and all that hangs on them, in one transaction.

Nothing here commits: whoever calls says what one transaction holds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, LiteralString, cast

import msgspec
import numpy as np
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from cloud.store.installations import Installations
from cloud.store.migrations import Connection
from cloud.store.quarantine import write_set_aside
from cloud.store.rows import Columns, SetAside, Verdict, columns_of, copy_stream, judge, possible, set_aside
from protocols.quantities import Kind, Quality
from protocols.uplink import VERSION, Batch, Event, Status, from_us

Key = tuple[str, str, int]  # gateway, epoch, seq

_COPY: Final[Mapping[Kind, LiteralString]] = {
    Kind.ENERGY: "COPY energy_sample (meter_id, at, gateway_at, meter_at, quality, energy_import_wh, energy_export_wh,"
    " reactive_import_varh, reactive_export_varh, batch_id) FROM STDIN (FORMAT BINARY)",
    Kind.POWER: "COPY power_sample (meter_id, at, gateway_at, meter_at, quality, active_power_w, reactive_power_var,"
    " voltage_l1_v, voltage_l2_v, voltage_l3_v, current_l1_a, current_l2_a, current_l3_a, power_factor, frequency_hz,"
    " batch_id) FROM STDIN (FORMAT BINARY)",
}


@dataclass(frozen=True, slots=True)
class Stored:
    """What one call of ``store`` did. Batches that were in the ledger already are ``duplicates``."""

    batches: int = 0
    duplicates: int = 0
    rows: Counter[str] = field(default_factory=Counter)  # by kind
    quarantined: Counter[str] = field(default_factory=Counter)  # rows, by reason


def key_of(batch: Batch) -> Key:
    return batch.gateway, batch.epoch, batch.seq


def store(connection: Connection, batches: Sequence[Batch], installations: Installations, now: datetime) -> Stored:
    """Store each batch that the ledger does not hold yet; set aside what cannot be stored.

    ``batches``: each key at most once. Rows of a batch are stored once, however often it comes.
    """
    kinds = {
        kind: [batch for batch in batches if batch.kind is kind] for kind in (Kind.ENERGY, Kind.POWER, Kind.EVENTS)
    }
    judged: dict[Kind, tuple[Columns, NDArray[np.uint8]]] = {}
    quarantined: dict[Key, int] = {}
    for kind in (Kind.ENERGY, Kind.POWER):
        columns = columns_of(kind, kinds[kind], installations)
        verdicts = judge(columns, now)
        judged[kind] = columns, verdicts
        bad = np.bincount(columns.batch, verdicts != Verdict.STORED, minlength=len(kinds[kind])).astype(int)
        quarantined.update(zip(map(key_of, kinds[kind]), bad.tolist(), strict=True))
    events = {key_of(batch): judge_events(batch, now) for batch in kinds[Kind.EVENTS]}
    quarantined.update({key: len(bad) for key, (_, bad) in events.items()})

    batch_ids = _enter(connection, batches, quarantined)
    rows: Counter[str] = Counter()
    aside: list[SetAside] = []
    written: list[Columns] = []
    for kind, (columns, verdicts) in judged.items():
        numbers = np.array([batch_ids.get(key_of(batch), 0) for batch in kinds[kind]], np.int64)
        new = numbers[columns.batch] > 0
        for i in np.unique(columns.batch[new & (verdicts != Verdict.STORED)]):
            own = columns.batch == i
            aside += set_aside(kinds[kind][i], columns[own], verdicts[own], now)
        written.append(columns[new & (verdicts == Verdict.STORED)])
        rows[kind.value] += write_rows(connection, written[-1], numbers)
    for batch in kinds[Kind.EVENTS]:
        if key_of(batch) in batch_ids:
            good, bad_events = events[key_of(batch)]
            write_events(connection, batch.gateway, good, installations, batch_ids[key_of(batch)])
            rows[Kind.EVENTS.value] += len(good)
            aside += set_events_aside(batch, bad_events)
    keep_state(connection, written)
    write_set_aside(connection, aside)
    reasons: Counter[str] = Counter()
    for one in aside:
        reasons[one.reason.reason] += one.rows
    return Stored(len(batch_ids), len(batches) - len(batch_ids), rows, reasons)


def _enter(connection: Connection, batches: Sequence[Batch], quarantined: Mapping[Key, int]) -> dict[Key, int]:
    """Write batches into the ledger; the numbers of those it did not hold."""
    if not batches:
        return {}
    # Sorted, so that two ingestors with the same batches wait for each other instead of deadlocking.
    ordered = sorted(batches, key=key_of)
    aside = [quarantined[key_of(batch)] for batch in ordered]
    entered = connection.execute(
        """
        INSERT INTO batch (gateway, epoch, seq, kind, rows, quarantined, sent_at)
        SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::text[], %s::int[], %s::int[], %s::timestamptz[])
        ON CONFLICT DO NOTHING RETURNING gateway, epoch, seq, batch_id
        """,
        [
            [batch.gateway for batch in ordered],
            [batch.epoch for batch in ordered],
            [batch.seq for batch in ordered],
            [batch.kind.value for batch in ordered],
            [batch.rows - bad for batch, bad in zip(ordered, aside, strict=True)],
            aside,
            [from_us(batch.sent_at) for batch in ordered],
        ],
    )
    return {
        (cast(str, gateway), cast(str, epoch), cast(int, seq)): cast(int, batch_id)
        for gateway, epoch, seq, batch_id in entered
    }


# ---- samples and what ingest keeps up to date from them --------------------------------------------------------------


def write_rows(connection: Connection, columns: Columns, batch_id: NDArray[np.int64]) -> int:
    """Append rows that may be stored; returns how many. batch_id: (B,) the ledger's number of each batch."""
    if not len(columns):
        return 0
    with connection.cursor().copy(_COPY[columns.kind]) as copy:
        copy.write(copy_stream(columns, batch_id))
    if columns.kind is Kind.ENERGY:
        _mark_dirty(connection, columns)
    return len(columns)


def _mark_dirty(connection: Connection, columns: Columns) -> None:
    """One range per batch and meter: merged over a whole transaction, backfill and live data would make long ones."""
    order = np.lexsort((columns.values["at"], columns.meter_id, columns.batch))
    meter_id, batch, at = columns.meter_id[order], columns.batch[order], columns.values["at"][order]
    first = np.flatnonzero(np.r_[True, (meter_id[1:] != meter_id[:-1]) | (batch[1:] != batch[:-1])])
    last = np.r_[first[1:], len(order)] - 1
    connection.execute(
        "INSERT INTO dirty_range (meter_id, from_at, to_at)"
        " SELECT * FROM unnest(%s::int[], %s::timestamptz[], %s::timestamptz[])",
        [meter_id[first].tolist(), list(map(from_us, at[first].tolist())), list(map(from_us, at[last].tolist()))],
    )


def _last_of_each(meter_id: NDArray[np.int32], at_us: NDArray[np.int64]) -> NDArray[np.intp]:
    """Positions of the latest row of each meter, by meter."""
    order = np.lexsort((at_us, meter_id))
    ends = np.r_[meter_id[order][1:] != meter_id[order][:-1], np.ones(min(1, len(order)), bool)]
    return order[np.flatnonzero(ends)]


def keep_state(connection: Connection, written: Sequence[Columns]) -> None:
    """The last word of each meter, from rows just written; once per transaction and by meter, so that ingestors that
    share meters take the locks in the same order."""
    latest = [(columns, _last_of_each(columns.meter_id, columns.values["at"])) for columns in written]
    connection.execute(
        """
        INSERT INTO meter_state AS held (meter_id, last_energy_at, last_power_at)
        SELECT meter_id, max(at) FILTER (WHERE kind = 'energy'), max(at) FILTER (WHERE kind = 'power')
        FROM unnest(%s::int[], %s::timestamptz[], %s::text[]) AS told (meter_id, at, kind)
        GROUP BY meter_id ORDER BY meter_id
        ON CONFLICT (meter_id) DO UPDATE SET
            last_energy_at = greatest(held.last_energy_at, excluded.last_energy_at),
            last_power_at = greatest(held.last_power_at, excluded.last_power_at)
        """,
        [
            [meter_id for columns, last in latest for meter_id in columns.meter_id[last].tolist()],
            [from_us(us) for columns, last in latest for us in columns.values["at"][last].tolist()],
            [columns.kind.value for columns, last in latest for _ in last],
        ],
    )
    for columns in written:
        if columns.kind is Kind.ENERGY:
            continue  # the meter's time in an energy row is its record's, frozen at the mark
        # A backfilled row was read long after the meter's time was written down: it says nothing about the clock.
        told = columns[columns.valid["meter_at"] & (columns.values["quality"] & Quality.BACKFILLED == 0)]
        last = _last_of_each(told.meter_id, told.values["gateway_at"])
        offset_s = (told.values["meter_at"] - told.values["gateway_at"])[last] / 1e6
        connection.execute(
            """
            UPDATE meter_state held SET clock_offset_s = told.offset_s, clock_read_at = told.read_at
            FROM unnest(%s::int[], %s::float8[], %s::timestamptz[]) AS told (meter_id, offset_s, read_at)
            WHERE held.meter_id = told.meter_id AND told.read_at >= coalesce(held.clock_read_at, '-infinity')
            """,
            [
                told.meter_id[last].tolist(),
                offset_s.tolist(),
                list(map(from_us, told.values["gateway_at"][last].tolist())),
            ],
        )


# ---- events and status -----------------------------------------------------------------------------------------------


def judge_events(batch: Batch, now: datetime) -> tuple[list[Event], list[Event]]:
    """Events that can be stored, and those at an impossible time."""
    inside = [-(2**63) <= event.at < 2**63 for event in batch.events]
    at = np.array([event.at if ok else 0 for event, ok in zip(batch.events, inside, strict=True)], np.int64)
    fine = possible(at, now).tolist()
    return (
        [event for event, ok in zip(batch.events, fine, strict=True) if ok],
        [event for event, ok in zip(batch.events, fine, strict=True) if not ok],
    )


def write_events(
    connection: Connection, gateway: str, events: Sequence[Event], installations: Installations, batch_id: int
) -> None:
    named = tuple(dict.fromkeys(event.meter for event in events if event.meter is not None))
    index = {name: i for i, name in enumerate(named)}
    told = [event for event in events if event.meter is not None]
    meter_ids = installations.meter_ids(
        gateway,
        named,
        np.array([index[event.meter or ""] for event in told], np.uint16),
        np.array([event.at for event in told], np.int64),
    )
    found = iter(meter_ids.tolist())
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO event (gateway, meter_id, meter, at, kind, detail, batch_id) VALUES (%s,%s,%s,%s,%s,%s,%s)",
            [
                (
                    gateway,
                    # An event of a meter that is not in the registry is an event all the same.
                    None if event.meter is None else next(found) or None,
                    event.meter,
                    from_us(event.at),
                    event.kind,
                    Jsonb(event.detail, dumps=lambda detail: msgspec.json.encode(detail).decode()),
                    batch_id,
                )
                for event in events
            ],
        )


def set_events_aside(batch: Batch, events: list[Event]) -> list[SetAside]:
    if not events:
        return []
    document = msgspec.json.encode(
        {
            "version": VERSION,
            "gateway": batch.gateway,
            "epoch": batch.epoch,
            "seq": batch.seq,
            "kind": batch.kind.value,
            "sent_at": batch.sent_at,
            "events": events,
        }
    )
    first = events[0]
    detail = f"{batch.gateway}: event {first.kind} at {first.at} µs since 1970; between 2000 and tomorrow expected"
    return [SetAside(batch, Verdict.IMPOSSIBLE_VALUE, detail, len(events), document)]


def write_status(connection: Connection, statuses: Mapping[str, Status]) -> None:
    """The last word of each gateway, in the order it came: a will was written when its gateway connected, so its own
    time is older than the words before it."""
    for gateway, status in sorted(statuses.items()):
        connection.execute(
            """
            INSERT INTO gateway_status AS held (gateway, online, at, status) VALUES (%s, %s, %s, %s)
            ON CONFLICT (gateway) DO UPDATE SET
                online = excluded.online, at = greatest(held.at, excluded.at), recorded_at = now(),
                status = CASE WHEN excluded.online THEN excluded.status ELSE held.status || excluded.status END
            """,
            [gateway, status.online, from_us(status.at), Jsonb(msgspec.to_builtins(status))],
        )
