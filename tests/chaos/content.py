"""What the gateways of a chaos run collect: every row known from gateway and step, with a hash that SQL takes, too."""

import hashlib
import random
import struct
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, LiteralString

import psycopg

from protocols.quantities import ENERGY_NAMES, POWER_NAMES, Kind, Quality
from protocols.uplink import Event, Row, encode_events, encode_rows, to_us

METERS: Final = 20
EVENTS: Final = 2
KINDS: Final = (Kind.ENERGY, Kind.POWER, Kind.EVENTS)
QUARTER: Final = timedelta(minutes=15)
NULLS: Final = 0.2
_US: Final = timedelta(microseconds=1)

Digest = tuple[int, str]  # rows, and SHA-256 over their sorted hashes: equal only for the same rows, each as often


def kind_of(step: int) -> Kind:
    """A gateway's steps are energy, power and events of one mark, then of the next."""
    return KINDS[step % len(KINDS)]


def at(start: datetime, step: int) -> datetime:
    return start + step // len(KINDS) * QUARTER


def rows_in(step: int) -> int:
    return EVENTS if kind_of(step) is Kind.EVENTS else METERS


def rows_of(gateway: str, start: datetime, step: int) -> list[Row]:
    chance = random.Random(f"{gateway} {step}")
    names = ENERGY_NAMES if kind_of(step) is Kind.ENERGY else POWER_NAMES
    mark = at(start, step)
    rows = []
    for meter in range(METERS):
        read_at = mark + chance.randrange(9_000_000) * _US
        values: dict[str, float | int | None] = {}
        for name in names:
            value = chance.randrange(10**12) if kind_of(step) is Kind.ENERGY else chance.uniform(-1e4, 1e4)
            values[name] = None if chance.random() < NULLS else value
        rows.append(
            Row(
                meter=f"m{meter:02}",
                at=mark,
                gateway_at=read_at,
                meter_at=None if chance.random() < NULLS else read_at - chance.randrange(-3_000_000, 3_000_000) * _US,
                quality=chance.choice((Quality.GOOD, Quality.GOOD, Quality.BACKFILLED, Quality.CLOCK_SUSPECT)),
                values=values,
            )
        )
    return rows


def events_of(gateway: str, start: datetime, step: int) -> list[Event]:
    mark = to_us(at(start, step))
    return [
        Event(at=mark, kind="meter_silent", meter="m00", detail={"step": step, "text": f"{gateway} 测试"}),
        Event(at=mark + 1, kind="gateway_restarted", detail={"step": step, "text": "-"}),
    ]


def payload_of(gateway: str, epoch: str, seq: int, start: datetime, step: int, sent_at: datetime) -> bytes:
    """The batch as the queue encoded it."""
    if kind_of(step) is Kind.EVENTS:
        events = events_of(gateway, start, step)
        return encode_events(gateway=gateway, epoch=epoch, seq=seq, sent_at=sent_at, events=events)
    rows = rows_of(gateway, start, step)
    return encode_rows(gateway=gateway, epoch=epoch, seq=seq, kind=kind_of(step), sent_at=sent_at, rows=rows)


# ---- the same hash of a row, here and in the database ----------------------------------------------------------------


def hashes_of(gateway: str, start: datetime, step: int) -> list[str]:
    if kind_of(step) is Kind.EVENTS:
        return [
            _md5("|".join((gateway, str(it.at), it.kind, it.meter or "-", *map(str, it.detail.values()))).encode())
            for it in events_of(gateway, start, step)
        ]
    code = ">q" if kind_of(step) is Kind.ENERGY else ">f"
    return [
        _md5(
            b"".join(
                (
                    f"{gateway}/{row.meter}".encode(),
                    struct.pack(">qqh", to_us(row.at), to_us(row.gateway_at), row.quality),
                    _field(">q", None if row.meter_at is None else to_us(row.meter_at)),
                    *(_field(code, value) for value in row.values.values()),
                )
            )
        )
        for row in rows_of(gateway, start, step)
    ]


def _field(code: str, value: float | int | None) -> bytes:
    return b"\0" if value is None else b"\1" + struct.pack(code, value)


def _md5(canonical: bytes) -> str:
    return hashlib.md5(canonical, usedforsecurity=False).hexdigest()


def digest_of(hashes: Sequence[str]) -> Digest:
    return len(hashes), hashlib.sha256(b"".join(map(bytes.fromhex, sorted(hashes)))).hexdigest()


def _hashed(table: LiteralString, columns: Sequence[LiteralString], send: LiteralString) -> LiteralString:
    fields: LiteralString = " || ".join([rf"coalesce('\x01'::bytea || {send}({name}), '\x00')" for name in columns])
    return rf"""
        SELECT i.gateway, md5(
            convert_to(i.gateway || '/' || i.wire_name, 'UTF8') || int8send((extract(epoch FROM at) * 1000000)::bigint)
            || int8send((extract(epoch FROM gateway_at) * 1000000)::bigint) || int2send(quality)
            || coalesce('\x01'::bytea || int8send((extract(epoch FROM meter_at) * 1000000)::bigint), '\x00')
            || {fields}) AS hash
        FROM {table} JOIN installation i USING (meter_id)
    """  # noqa: S608


_STORED: Final[Mapping[Kind, LiteralString]] = {
    Kind.ENERGY: _hashed(
        "energy_sample",
        ("energy_import_wh", "energy_export_wh", "reactive_import_varh", "reactive_export_varh"),
        "int8send",
    ),
    Kind.POWER: _hashed(
        "power_sample",
        (
            "active_power_w", "reactive_power_var", "voltage_l1_v", "voltage_l2_v", "voltage_l3_v",
            "current_l1_a", "current_l2_a", "current_l3_a", "power_factor", "frequency_hz",
        ),
        "float4send",
    ),
    Kind.EVENTS: """
        SELECT gateway, md5(convert_to(concat_ws('|', gateway, (extract(epoch FROM at) * 1000000)::bigint, kind,
            coalesce(meter, '-'), detail->>'step', detail->>'text'), 'UTF8')) AS hash
        FROM event WHERE detail ? 'step'
    """,
}  # fmt: skip


def stored_digests(connection: psycopg.Connection[Any]) -> dict[tuple[str, Kind], Digest]:
    """By gateway and kind, computed in the database."""
    return {
        (gateway, kind): (count, digest)
        for kind, hashed in _STORED.items()
        for gateway, count, digest in connection.execute(
            f"SELECT gateway, count(*), encode(sha256(string_agg(decode(hash, 'hex'), '' ORDER BY hash)), 'hex')"  # noqa: S608
            f" FROM ({hashed}) AS hashed GROUP BY gateway"
        ).fetchall()
    }


def stored_hashes(connection: psycopg.Connection[Any], kind: Kind) -> list[tuple[str, str]]:
    """(gateway, hash) of every row stored, as often as it is there."""
    return connection.execute(_STORED[kind]).fetchall()
