"""The MQTT contract between gateway and cloud: topics, batches, receipts, commands, replies, status.

A batch is columnar. On the wire a column is little-endian packed bytes (MessagePack), or a plain list with nulls
(JSON, so that a shell script can publish). ``decode_batch`` turns both into packed bytes, which numpy reads as views.
``(gateway, epoch, seq)`` names a batch for ever, with the same content whenever it is sent again.
"""

import math
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeAlias, TypeVar

import msgspec

from protocols.quantities import ENERGY_NAMES, POWER_NAMES, Kind

VERSION: Final = 1
ROOT: Final = f"gridloom/v{VERSION}"
MSGPACK: Final = "application/vnd.gridloom.batch+msgpack"
JSON: Final = "application/vnd.gridloom.batch+json"
ROWS_MAX: Final = 10_000
BYTES_MAX: Final = 1_048_576
METERS_MAX: Final = 2_000
ITEMS_MAX: Final = 50  # of one read command
SITE_BYTES_MAX: Final = 262_144  # of a pushed site file
REPLY_BYTES_MAX: Final = 262_144

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_EPOCH = re.compile(r"[0-9a-f]{32}")
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_US = timedelta(microseconds=1)

# Packed type of each column: array typecode (native int64 and float32 are little-endian on every machine we run on).
COLUMN_TYPES: Final[Mapping[str, str]] = {
    "meter_index": "H",
    "at": "q",
    "gateway_at": "q",
    "meter_at": "q",
    "quality": "H",
    **dict.fromkeys(ENERGY_NAMES, "q"),
    **dict.fromkeys(POWER_NAMES, "f"),
}
NULLABLE_INTEGERS: Final = ("meter_at", *ENERGY_NAMES)
REQUIRED: Final = ("meter_index", "at", "gateway_at")


class Topic(StrEnum):
    """Last part of ``gridloom/v1/{gateway}/…``."""

    ENERGY = "energy"
    POWER = "power"
    EVENTS = "events"
    STATUS = "status"
    REPLY = "reply"
    COMMAND = "command"
    RECEIPT = "receipt"


class PayloadError(ValueError):
    """The peer sent something that is not the contract; the text says what and where."""


def topic(gateway: str, last: Topic) -> str:
    return f"{ROOT}/{gateway}/{last.value}"


def split_topic(text: str) -> tuple[str, Topic]:
    """Gateway and last part of a topic. Raises PayloadError for anything outside the contract."""
    parts = text.split("/")
    try:
        if len(parts) == 4 and "/".join(parts[:2]) == ROOT and _NAME.fullmatch(parts[2]):
            return parts[2], Topic(parts[3])
    except ValueError:
        pass
    raise PayloadError(f'topic "{text}": {ROOT}/{{gateway}}/{{{"|".join(Topic)}}} expected')


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 UTC, the time of the wire."""
    return (moment - _UNIX) // _US


def from_us(us: int) -> datetime:
    return _UNIX + us * _US


# ---- batches ---------------------------------------------------------------------------------------------------------


Column = bytes | list[int | float | None]


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Something a gateway or a meter reports about itself. ``kind`` is snake_case, e.g. ``meter_silent``."""

    at: int
    kind: str
    meter: str | None = None
    detail: dict[str, str | int | float | bool | None] = {}


class _WireBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    version: int
    gateway: str
    epoch: str
    seq: int
    kind: Kind
    sent_at: int
    meters: list[str] = []
    columns: dict[str, Column] = {}
    # Validity of nullable integer columns: bit i (lowest first) is set when row i holds a value. Absent: all do.
    valid: dict[str, bytes] = {}
    events: list[Event] = []


@dataclass(frozen=True, slots=True)
class Batch:
    """A validated batch.

    ``columns``: name → packed little-endian bytes, all ``rows`` long; types in ``COLUMN_TYPES``; times in µs since
    1970 UTC. ``meters``: wire names that column ``meter_index`` (uint16) points into. ``valid``: name → bitmap,
    lowest bit first, for nullable integers that have nulls; floats use NaN.
    """

    gateway: str
    epoch: str
    seq: int
    kind: Kind
    sent_at: int
    rows: int
    meters: tuple[str, ...] = ()
    columns: Mapping[str, bytes] = field(default_factory=dict)
    valid: Mapping[str, bytes] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One meter at one mark. ``values`` holds quantities of one kind; None or an absent name is null."""

    meter: str
    at: datetime
    gateway_at: datetime
    meter_at: datetime | None
    quality: int
    values: Mapping[str, float | int | None]


def _pack(typecode: str, values: Iterable[Any]) -> bytes:
    return array(typecode, values).tobytes()


def _pack_nullable(name: str, values: Sequence[Any]) -> tuple[bytes, bytes | None]:
    """Packed column and its validity bitmap; None where every row holds a value."""
    typecode = COLUMN_TYPES[name]
    if typecode == "f":
        return _pack("f", (math.nan if value is None else value for value in values)), None
    packed = _pack(typecode, (0 if value is None else value for value in values))
    if None not in values:
        return packed, None
    bitmap = bytearray((len(values) + 7) // 8)
    for i, value in enumerate(values):
        if value is not None:
            bitmap[i >> 3] |= 1 << (i & 7)
    return packed, bytes(bitmap)


def encode_rows(*, gateway: str, epoch: str, seq: int, kind: Kind, sent_at: datetime, rows: Sequence[Row]) -> bytes:
    """One batch of energy or power rows as MessagePack. A column that is null throughout is left out."""
    meters = sorted({row.meter for row in rows})
    index = {meter: i for i, meter in enumerate(meters)}
    columns: dict[str, Column] = {
        "meter_index": _pack("H", (index[row.meter] for row in rows)),
        "at": _pack("q", (to_us(row.at) for row in rows)),
        "gateway_at": _pack("q", (to_us(row.gateway_at) for row in rows)),
        "quality": _pack("H", (int(row.quality) for row in rows)),
    }
    valid: dict[str, bytes] = {}
    nullable: dict[str, list[Any]] = {
        "meter_at": [None if row.meter_at is None else to_us(row.meter_at) for row in rows]
    }
    for name in ENERGY_NAMES if kind is Kind.ENERGY else POWER_NAMES:
        nullable[name] = [row.values.get(name) for row in rows]
    for name, values in nullable.items():
        if all(value is None for value in values):
            continue
        columns[name], bitmap = _pack_nullable(name, values)
        if bitmap is not None:
            valid[name] = bitmap
    return msgspec.msgpack.encode(
        _WireBatch(
            version=VERSION,
            gateway=gateway,
            epoch=epoch,
            seq=seq,
            kind=kind,
            sent_at=to_us(sent_at),
            meters=meters,
            columns=columns,
            valid=valid,
        )
    )


def encode_events(*, gateway: str, epoch: str, seq: int, sent_at: datetime, events: Sequence[Event]) -> bytes:
    return msgspec.msgpack.encode(
        _WireBatch(
            version=VERSION,
            gateway=gateway,
            epoch=epoch,
            seq=seq,
            kind=Kind.EVENTS,
            sent_at=to_us(sent_at),
            events=list(events),
        )
    )


_decode_msgpack = msgspec.msgpack.Decoder(_WireBatch).decode
_decode_json = msgspec.json.Decoder(_WireBatch).decode


def decode_batch(payload: bytes, content_type: str = MSGPACK) -> Batch:
    """The batch in ``payload``, checked against every bound of the contract.

    Raises PayloadError with what is wrong and where.
    """
    if len(payload) > BYTES_MAX:
        raise PayloadError(f"payload: {len(payload)} bytes, at most {BYTES_MAX} allowed")
    if content_type not in (MSGPACK, JSON):
        raise PayloadError(f'content type "{content_type}": {MSGPACK} or {JSON} expected')
    try:
        wire = (_decode_msgpack if content_type == MSGPACK else _decode_json)(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadError(f"payload: {error}") from error
    _check_header(wire)
    columns: dict[str, bytes] = {}
    valid: dict[str, bytes] = {}
    if wire.kind is Kind.EVENTS:
        if wire.columns or wire.meters or wire.valid:
            raise PayloadError("columns: none expected in a batch of events")
        rows = len(wire.events)
        if rows > ROWS_MAX:
            raise PayloadError(f"events: {rows}, at most {ROWS_MAX} allowed")
    else:
        rows, columns, valid = _check_columns(wire)
    return Batch(
        gateway=wire.gateway,
        epoch=wire.epoch,
        seq=wire.seq,
        kind=wire.kind,
        sent_at=wire.sent_at,
        rows=rows,
        meters=tuple(wire.meters),
        columns=columns,
        valid=valid,
        events=tuple(wire.events),
    )


def _check_header(wire: _WireBatch) -> None:
    if wire.version != VERSION:
        raise PayloadError(f"version: {VERSION} expected, got {wire.version}")
    if not _NAME.fullmatch(wire.gateway):
        raise PayloadError(f'gateway: letters, digits, ".", "_", "-" expected, got "{wire.gateway[:80]}"')
    if not _EPOCH.fullmatch(wire.epoch):
        raise PayloadError(f'epoch: 32 hex digits expected, got "{wire.epoch[:80]}"')
    if not 1 <= wire.seq < 2**62:
        raise PayloadError(f"seq: 1 or more expected, got {wire.seq}")
    if not 0 <= wire.sent_at < 2**55:
        raise PayloadError(f"sent_at: microseconds since 1970 expected, got {wire.sent_at}")


def _check_columns(wire: _WireBatch) -> tuple[int, dict[str, bytes], dict[str, bytes]]:
    if wire.events:
        raise PayloadError(f"events: none expected in a batch of {wire.kind.value}")
    if len(wire.meters) > METERS_MAX:
        raise PayloadError(f"meters: {len(wire.meters)}, at most {METERS_MAX} allowed")
    for name in wire.meters:
        if not _NAME.fullmatch(name):
            raise PayloadError(f'meters: letters, digits, ".", "_", "-" expected, got "{name[:80]}"')
    quantities = ENERGY_NAMES if wire.kind is Kind.ENERGY else POWER_NAMES
    allowed = {*REQUIRED, "meter_at", "quality", *quantities}
    for name in [*wire.columns, *wire.valid]:
        if name not in allowed:
            raise PayloadError(f'columns: "{name[:80]}" does not belong to a batch of {wire.kind.value}')
    for name in REQUIRED:
        if name not in wire.columns:
            raise PayloadError(f'columns: "{name}" is missing')
    columns: dict[str, bytes] = {}
    valid = dict(wire.valid)
    for name, column in wire.columns.items():
        if isinstance(column, bytes):
            columns[name] = column
            continue
        if None in column and name not in NULLABLE_INTEGERS and COLUMN_TYPES[name] != "f":
            raise PayloadError(f'columns: "{name}" may not be null')
        try:
            columns[name], bitmap = _pack_nullable(name, column)
        except (TypeError, OverflowError) as error:
            raise PayloadError(f'columns: "{name}": {error}') from error
        if bitmap is not None:
            valid[name] = bitmap
    width = {name: array(COLUMN_TYPES[name]).itemsize for name in columns}
    rows = len(columns["at"]) // 8
    if not 1 <= rows <= ROWS_MAX:
        raise PayloadError(f"rows: 1 to {ROWS_MAX} expected, got {rows}")
    for name, packed in columns.items():
        if len(packed) != rows * width[name]:
            raise PayloadError(f'columns: "{name}" has {len(packed)} bytes, {rows * width[name]} expected')
    for name, bitmap in valid.items():
        if name not in NULLABLE_INTEGERS or name not in columns or len(bitmap) != (rows + 7) // 8:
            raise PayloadError(f'valid: "{name}" is not the bitmap of a nullable integer column of {rows} rows')
    highest = max(array("H", columns["meter_index"]))
    if highest >= len(wire.meters):
        raise PayloadError(f"meter_index: {highest} points past the {len(wire.meters)} meters")
    return rows, columns, valid


# ---- what travels back, and the rest ---------------------------------------------------------------------------------


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Seqs of ``epoch`` that are committed, stored or quarantined, as inclusive ranges. Only this deletes a batch."""

    version: int = VERSION
    epoch: str
    stored: list[tuple[int, int]]


class Shed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="demand_response", tag_field="kind"):
    """Open the relays of ``meters`` during [start, end), µs since 1970 UTC."""

    event: str
    start: int
    end: int
    meters: list[str]


class Read(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="read", tag_field="kind"):
    """Read ``items`` of one meter now: data identifiers, quantities of its template, or Modbus registers."""

    meter: str
    items: list[str]


class Backfill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="backfill", tag_field="kind"):
    """Read the marks in [start, end) from the memory of ``meters``, also those that were collected before.

    µs since 1970 UTC; no meters: all of them.
    """

    start: int
    end: int
    meters: list[str] = []


class SyncClock(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="sync_clock", tag_field="kind"):
    """Look at the clocks of ``meters`` and set them as the gateway's policy allows; no meters: all of them."""

    meters: list[str] = []


class RelayPrepare(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="relay_prepare", tag_field="kind"):
    """The first of two steps: moves nothing. The reply carries the token that a ``RelayConfirm`` must name."""

    meter: str
    closed: bool


class RelayConfirm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="relay_confirm", tag_field="kind"):
    """The second step: moves the relay that was prepared under ``token``, once, before the token is void."""

    token: str


class Restart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="restart", tag_field="kind"):
    """Stop cleanly and start again. The reply comes after the start."""


class Configure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="configure", tag_field="kind"):
    """Try the site file ``site`` (TOML), and keep it if the gateway comes up with it. The reply tells the outcome."""

    site: str


Body: TypeAlias = Shed | Read | Backfill | SyncClock | RelayPrepare | RelayConfirm | Restart | Configure


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Executed at most once, also across a restart; answered by exactly one Reply. Void after ``expires_at``."""

    version: int = VERSION
    id: str
    issued_at: int
    expires_at: int
    body: Body


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of a command nobody here understands: enough to answer that."""

    version: int = VERSION
    id: str
    expires_at: int


class Outcome(StrEnum):
    DONE = "done"
    FAILED = "failed"
    REJECTED = "rejected"
    EXPIRED = "expired"


# What a gateway says of itself grows with its version: a cloud that is older ignores the fields it does not know, so
# Reply, Status and what they carry do not forbid them. What acts or counts (commands, receipts, batches) does.


class Value(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One value of an item that was read. Decimals travel as text, so that no digit is lost; null: not there."""

    name: str
    value: str | int | float | None
    unit: str = ""


class ItemResult(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """``request``, ``reply``: the frames as hex. ``error`` says why there are no values."""

    item: str
    values: list[Value] = []
    quality: int = 0
    request: str = ""
    reply: str = ""
    error: str = ""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a ``RelayConfirm`` must name, before ``void_at``."""

    token: str
    void_at: int


class Reply(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """``detail`` is a sentence for people; ``meters`` says per wire name what happened to it.

    ``problems``: everything that is wrong with a site file.
    """

    version: int = VERSION
    id: str
    at: int
    outcome: Outcome
    detail: str = ""
    meters: dict[str, str] = {}
    results: list[ItemResult] = []
    problems: list[str] = []
    prepared: Prepared | None = None


class Status(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Retained. The broker publishes the will (``online=False``) when the gateway vanishes.

    ``site``: which configuration is at work, ``file``, ``pushed`` or ``trial``, and ``site_sha256`` of its text.
    ``lines_down``: lines on which no meter answers. ``oldest_at``: of what waits in the queue; ``receipt_at``: of the
    last receipt. ``clock_is_synchronised`` is the gateway's own clock by NTP, null where it cannot be told.
    """

    version: int = VERSION
    online: bool
    at: int
    epoch: str = ""
    software: str = ""
    python: str = ""
    site: str = ""
    site_sha256: str = ""
    uptime_s: int = 0
    meters: int = 0
    meters_silent: int = 0
    lines: int = 0
    lines_down: list[str] = []
    queued_batches: int = 0
    queued_bytes: int = 0
    queue_fill: float = 0.0
    oldest_at: int | None = None
    receipt_at: int | None = None
    backfill_left: int = 0
    clock_is_synchronised: bool | None = None
    disk_free_bytes: int | None = None
    rss_bytes: int | None = None


T = TypeVar("T", Receipt, Command, Envelope, Reply, Status)


def encode(message: Receipt | Command | Reply | Status) -> bytes:
    return msgspec.msgpack.encode(message)


def decode(payload: bytes, kind: type[T]) -> T:
    """Raises PayloadError when ``payload`` is not one ``kind``."""
    try:
        message = msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PayloadError(f"{kind.__name__.lower()}: {error}") from error
    if message.version != VERSION:
        raise PayloadError(f"{kind.__name__.lower()}: version {VERSION} expected, got {message.version}")
    return message
