"""Batches into the store: the ledger, the samples and all that hangs on them, in one transaction.

Nothing here commits: whoever calls says what one transaction holds. ``prepare`` does all that needs no database, so
that it can be done for the next transaction while the last one is being written.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, LiteralString, cast

import msgspec
import numpy as np
from numpy.typing import NDArray
from psycopg.types.json import Jsonb

from cloud.store.binary_copy import NEVER_US, Field, Instants, Int4s, Int8s, Stream, instant, stream
from cloud.store.installations import Installations
from cloud.store.migrations import Connection
from cloud.store.quarantine import write_set_aside
from cloud.store.rows import Columns, Keep, SetAside, Verdict, columns_of, judge, possible, sample_stream, set_aside
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


_HOUR_US: Final = 3_600_000_000
_NOT_READ: Final = -(2**63)
NOTES_AT_ONCE: Final = 200  # transactions whose notes are carried over together
_NOTHING_KEPT: Final[Keep] = {}


@dataclass(frozen=True, slots=True)
class Stored:
    """What one call of ``store`` did. Batches that were in the ledger already are ``duplicates``."""

    batches: int = 0
    duplicates: int = 0
    rows: Counter[str] = field(default_factory=Counter)  # by kind
    quarantined: Counter[str] = field(default_factory=Counter)  # rows, by reason


def key_of(batch: Batch) -> Key:
    return batch.gateway, batch.epoch, batch.seq


@dataclass(frozen=True, slots=True)
class Ready:
    """Samples of one kind as the statements take them; only their batches' numbers are missing."""

    columns: Columns
    stream: Stream
    dirty: Stream | None  # of energy: rows of dirty_range
    hours: tuple[list[datetime], list[str]] | None  # of power: rows of dirty_hour
    last: NDArray[np.intp]  # the latest row of each meter, by meter


@dataclass(frozen=True, slots=True)
class Samples:
    """All samples of one kind, judged; ``ready`` are those that can be stored, if the ledger knows no batch of them."""

    batches: Sequence[Batch]
    columns: Columns
    verdicts: NDArray[np.uint8]
    ready: Ready


@dataclass(frozen=True, slots=True)
class Prepared:
    """What one transaction is to write. ``held``: batches that are left out, because of their quarantine's bound."""

    batches: Sequence[Batch]
    held: Collection[Key]
    installations: Installations
    now: datetime
    keep: Keep
    samples: Sequence[Samples]
    events: Mapping[Key, tuple[list[Event], list[Event]]]  # possible, impossible
    quarantined: Mapping[Key, int]  # rows


def store(
    connection: Connection,
    batches: Sequence[Batch],
    installations: Installations,
    now: datetime,
    keep: Keep = _NOTHING_KEPT,
) -> Stored:
    """Store each batch that the ledger does not hold yet; set aside what cannot be stored.

    ``batches``: each key at most once. Rows of a batch are stored once, however often it comes.
    """
    stored = write(connection, prepare(batches, installations, now, keep))
    settle_state(connection)
    return stored


def prepare(
    batches: Sequence[Batch],
    installations: Installations,
    now: datetime,
    keep: Keep = _NOTHING_KEPT,
    *,
    full: Collection[str] = (),
) -> Prepared:
    """All of ``store`` but the database. ``full``: gateways for which nothing more is set aside; their batches with
    rows that cannot be stored are left out."""
    samples = []
    quarantined: dict[Key, int] = {}
    for kind in (Kind.ENERGY, Kind.POWER):
        own = [batch for batch in batches if batch.kind is kind]
        columns = columns_of(kind, own, installations)
        verdicts = judge(columns, now, keep)
        good = verdicts == Verdict.STORED
        if good.all():
            quarantined.update(dict.fromkeys(map(key_of, own), 0))
        else:
            bad = np.bincount(columns.batch, ~good, minlength=len(own)).astype(int)
            quarantined.update(zip(map(key_of, own), bad.tolist(), strict=True))
        samples.append(Samples(own, columns, verdicts, make_ready(columns if good.all() else columns[good])))
    events = {key_of(batch): judge_events(batch, now) for batch in batches if batch.kind is Kind.EVENTS}
    quarantined.update({key: len(bad_events) for key, (_, bad_events) in events.items()})
    held = {key for key, bad_rows in quarantined.items() if bad_rows and key[0] in full} if full else set()
    if held:
        rest = prepare([batch for batch in batches if key_of(batch) not in held], installations, now, keep)
        return replace(rest, held=held)
    return Prepared(batches, (), installations, now, keep, samples, events, quarantined)


def write(connection: Connection, prepared: Prepared) -> Stored:
    """The statements of ``store``, within the caller's transaction. ``settle_state`` is still to be called."""
    batch_ids = _enter(connection, prepared)
    rows: Counter[str] = Counter()
    aside: list[SetAside] = []
    written: list[Ready] = []
    for samples in prepared.samples:
        numbers = np.array([batch_ids.get(key_of(batch), 0) for batch in samples.batches], np.int64)
        new = numbers[samples.columns.batch] > 0
        good = samples.verdicts == Verdict.STORED
        for i in np.unique(samples.columns.batch[new & ~good]):
            own = samples.columns.batch == i
            aside += set_aside(
                samples.batches[i], samples.columns[own], samples.verdicts[own], prepared.now, prepared.keep
            )
        ready = samples.ready if numbers.all() else make_ready(samples.columns[new & good])
        rows[samples.columns.kind.value] += write_rows(connection, ready, numbers)
        written.append(ready)
    told = []
    for batch in prepared.batches:
        if batch.kind is Kind.EVENTS and key_of(batch) in batch_ids:
            good_events, bad_events = prepared.events[key_of(batch)]
            told.append((batch, good_events, batch_ids[key_of(batch)]))
            aside += set_events_aside(batch, bad_events)
    if told:
        rows[Kind.EVENTS.value] += write_events(connection, told, prepared.installations)
    note(connection, written)
    write_set_aside(connection, aside)
    reasons: Counter[str] = Counter()
    for one in aside:
        reasons[one.reason.reason] += one.rows
    return Stored(len(batch_ids), len(prepared.batches) - len(batch_ids), rows, reasons)


def _enter(connection: Connection, prepared: Prepared) -> dict[Key, int]:
    """Write batches into the ledger; the numbers of those it did not hold."""
    if not prepared.batches:
        return {}
    # Sorted, so that two ingestors with the same batches wait for each other instead of deadlocking.
    ordered = sorted(prepared.batches, key=key_of)
    aside = [prepared.quarantined[key_of(batch)] for batch in ordered]
    with connection.pipeline():
        # Before the next statement looks: while the ledger is compacted, it would see neither a batch nor its range.
        connection.execute("LOCK TABLE batch IN ROW EXCLUSIVE MODE")
        entered = connection.execute(
            """
            INSERT INTO batch (gateway, epoch, seq, kind, rows, quarantined, sent_at)
            SELECT gateway, epoch, seq, kind, rows, quarantined, sent_at
            FROM unnest(%s::text[], %s::text[], %s, %s::text[], %s, %s, %s)
                WITH ORDINALITY AS told (gateway, epoch, seq, kind, rows, quarantined, sent_at, place)
            WHERE NOT EXISTS (
                SELECT FROM batch_range held
                WHERE (held.gateway, held.epoch) = (told.gateway, told.epoch) AND held.seqs @> told.seq)
            ORDER BY place
            ON CONFLICT DO NOTHING RETURNING gateway, epoch, seq, batch_id
            """,
            [
                [batch.gateway for batch in ordered],
                [batch.epoch for batch in ordered],
                Int8s(np.array([batch.seq for batch in ordered], np.int64)),
                [batch.kind.value for batch in ordered],
                Int4s(np.array([batch.rows - bad for batch, bad in zip(ordered, aside, strict=True)])),
                Int4s(np.array(aside)),
                Instants(np.array([batch.sent_at for batch in ordered], np.int64)),
            ],
        )
    return {
        (cast(str, gateway), cast(str, epoch), cast(int, seq)): cast(int, batch_id)
        for gateway, epoch, seq, batch_id in entered
    }


def entered(connection: Connection, keys: Collection[Key]) -> set[Key]:
    """Those of ``keys`` that the ledger holds."""
    if not keys:
        return set()
    found = connection.execute(
        """
        SELECT gateway, epoch, seq FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS told (gateway, epoch, seq)
        WHERE EXISTS (SELECT FROM batch b WHERE (b.gateway, b.epoch, b.seq) = (told.gateway, told.epoch, told.seq))
           OR EXISTS (SELECT FROM batch_range r
                      WHERE (r.gateway, r.epoch) = (told.gateway, told.epoch) AND r.seqs @> told.seq)
        """,
        [[gateway for gateway, _, _ in keys], [epoch for _, epoch, _ in keys], [seq for _, _, seq in keys]],
    )
    return set(cast(Iterable[Key], found))


# ---- samples and what ingest keeps up to date from them --------------------------------------------------------------


def make_ready(columns: Columns) -> Ready:
    """Rows that may be stored, encoded. Sorted like their index: neighbours there are written and read together."""
    columns = columns[np.lexsort((columns.values["at"], columns.meter_id))]
    meter_id, at = columns.meter_id, columns.values["at"]
    ends = np.r_[meter_id[1:] != meter_id[:-1], np.ones(min(1, len(at)), bool)]
    energy = columns.kind is Kind.ENERGY
    return Ready(
        columns,
        sample_stream(columns),
        _dirty_ranges(meter_id, at) if energy else None,
        None if energy else _dirty_hours(columns),
        np.flatnonzero(ends),
    )


def _dirty_ranges(meter_id: NDArray[np.int32], at: NDArray[np.int64]) -> Stream:
    """By meter and time. Marks further apart than an hour make two ranges: merged, a backfill and the live data would
    make a long one."""
    new = (meter_id[1:] != meter_id[:-1]) | (at[1:] - at[:-1] > _HOUR_US)
    first = np.flatnonzero(np.r_[np.ones(min(1, len(at)), bool), new])
    last = np.r_[first[1:], len(at)][: len(first)] - 1
    return stream([Field(meter_id[first], ">i4"), instant(at[first]), instant(at[last])])


def _dirty_hours(columns: Columns) -> tuple[list[datetime], list[str]]:
    """Hours whose power rollups are behind: one row for an hour and all its meters. The array goes as text, since an
    adapted list costs as much as the sample itself."""
    pairs = np.unique(columns.values["at"] // _HOUR_US << 32 | columns.meter_id)
    hour, meter_id = pairs >> 32, pairs & 0xFFFF_FFFF
    first = np.flatnonzero(np.r_[np.ones(min(1, len(hour)), bool), hour[1:] != hour[:-1]])
    return (
        list(map(from_us, (hour[first] * _HOUR_US).tolist())),
        ["{" + ",".join(map(str, meters.tolist())) + "}" for meters in np.split(meter_id, first[1:])][: len(first)],
    )


def write_rows(connection: Connection, ready: Ready, batch_id: NDArray[np.int64]) -> int:
    """Append rows; returns how many. batch_id: (B,) the ledger's number of each batch."""
    if not len(ready.columns):
        return 0
    ready.stream.fill_last(batch_id[ready.columns.batch])
    cursor = connection.cursor()
    with cursor.copy(_COPY[ready.columns.kind]) as copy:
        ready.stream.write(copy)
    if ready.dirty is not None:
        with cursor.copy("COPY dirty_range (meter_id, from_at, to_at) FROM STDIN (FORMAT BINARY)") as copy:
            ready.dirty.write(copy)
    return len(ready.columns)


def note(connection: Connection, written: Sequence[Ready]) -> None:
    """What follows from rows just written: hours for the rollups, and each meter's last word for ``settle_state``."""
    told = [ready.columns.meter_id[ready.last] for ready in written]
    meter_id = np.unique(np.concatenate([np.empty(0, np.int32), *told]))
    if not len(meter_id):
        return
    at = {kind: np.full(len(meter_id), NEVER_US, np.int64) for kind in (Kind.ENERGY, Kind.POWER)}
    read_us = np.full(len(meter_id), _NOT_READ, np.int64)
    offset_us = np.zeros(len(meter_id), np.int64)
    for ready, own in zip(written, told, strict=True):
        columns = ready.columns
        at[columns.kind][np.searchsorted(meter_id, own)] = columns.values["at"][ready.last]
        if columns.kind is Kind.ENERGY:
            continue  # the meter's time in an energy row is its record's, frozen at the mark
        # A backfilled row was read long after the meter's time was written down: it says nothing about the clock.
        tells = columns.valid["meter_at"] & (columns.values["quality"] & Quality.BACKFILLED == 0)
        clock = np.flatnonzero(tells)
        clock = clock[np.lexsort((columns.values["gateway_at"][clock], columns.meter_id[clock]))]
        place = np.searchsorted(meter_id, columns.meter_id[clock])  # of equal places the last, the newest, stays
        read_us[place] = columns.values["gateway_at"][clock]
        offset_us[place] = (columns.values["meter_at"] - columns.values["gateway_at"])[clock]
    with connection.pipeline():
        for ready in written:
            if ready.hours is not None:
                connection.execute(
                    "INSERT INTO dirty_hour SELECT start, meter_ids::integer[]"
                    " FROM unnest(%s::timestamptz[], %s::text[]) AS hour (start, meter_ids)",
                    ready.hours,
                )
        connection.execute(
            "INSERT INTO meter_said (meter_id, energy_at, power_at, read_us, offset_us) VALUES (%s, %s, %s, %s, %s)",
            [
                Int4s(meter_id), Instants(at[Kind.ENERGY]), Instants(at[Kind.POWER]), Int8s(read_us), Int8s(offset_us),
            ],
        )  # fmt: skip


def settle_state(connection: Connection) -> None:
    """Carry over into ``meter_state`` what was noted; what another ingestor is carrying over is left to it.

    By meter, so that ingestors that share meters take the locks in the same order.
    """
    connection.execute(
        """
        WITH gone AS (
            DELETE FROM meter_said WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM meter_said LIMIT %s FOR UPDATE SKIP LOCKED))
            RETURNING *
        ), told AS (
            SELECT told.meter_id, max(told.energy_at) AS energy_at, max(told.power_at) AS power_at,
                   max(ARRAY[told.read_us, told.offset_us]) AS clock
            FROM gone CROSS JOIN LATERAL
                unnest(gone.meter_id, gone.energy_at, gone.power_at, gone.read_us, gone.offset_us)
                AS told (meter_id, energy_at, power_at, read_us, offset_us)
            GROUP BY told.meter_id
        )
        INSERT INTO meter_state AS held (meter_id, last_energy_at, last_power_at, clock_offset_s, clock_read_at)
        SELECT meter_id, nullif(energy_at, '-infinity'), nullif(power_at, '-infinity'),
               CASE WHEN clock[1] > %s THEN clock[2] / 1e6 END,
               CASE WHEN clock[1] > %s THEN timestamptz 'epoch' + clock[1] * interval '1 microsecond' END
        FROM told ORDER BY meter_id
        ON CONFLICT (meter_id) DO UPDATE SET
            last_energy_at = greatest(held.last_energy_at, excluded.last_energy_at),
            last_power_at = greatest(held.last_power_at, excluded.last_power_at),
            clock_offset_s = CASE WHEN excluded.clock_read_at >= coalesce(held.clock_read_at, '-infinity')
                THEN excluded.clock_offset_s ELSE held.clock_offset_s END,
            clock_read_at = greatest(held.clock_read_at, excluded.clock_read_at)
        """,
        [NOTES_AT_ONCE, _NOT_READ, _NOT_READ],
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
    connection: Connection, told: Sequence[tuple[Batch, Sequence[Event], int]], installations: Installations
) -> int:
    """Append events of batches, each with its number in the ledger; returns how many."""
    events = [(batch.gateway, event, batch_id) for batch, own, batch_id in told for event in own]
    if not events:
        return 0
    at = np.array([event.at for _, event, _ in events], np.int64)
    # An event of a meter that is not in the registry is an event all the same.
    meter_ids = installations.meter_ids(
        [(gateway, (event.meter or "",)) for gateway, event, _ in events],
        np.arange(len(events)),
        np.zeros(len(events), np.uint16),
        at,
    )
    connection.execute(
        """
        INSERT INTO event (gateway, meter_id, meter, at, kind, detail, batch_id)
        SELECT gateway, nullif(meter_id, 0), meter, at, kind, detail::jsonb, batch_id
        FROM unnest(%s::text[], %s, %s::text[], %s, %s::text[], %s::text[], %s)
            AS told (gateway, meter_id, meter, at, kind, detail, batch_id)
        """,
        [
            [gateway for gateway, _, _ in events],
            Int4s(meter_ids),
            [event.meter for _, event, _ in events],
            Instants(at),
            [event.kind for _, event, _ in events],
            [msgspec.json.encode(event.detail).decode() for _, event, _ in events],
            Int8s(np.array([batch_id for _, _, batch_id in events], np.int64)),
        ],
    )
    return len(events)


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
