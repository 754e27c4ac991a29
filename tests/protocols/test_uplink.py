"""The MQTT payload: what is encoded comes back, what is not the contract is refused with a sentence."""

import json
import math
from array import array
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import uplink
from protocols.quantities import ENERGY_NAMES, POWER_NAMES, Kind, Quality
from protocols.uplink import JSON, MSGPACK, Command, PayloadError, Receipt, Row, Shed, Status, Topic, decode_batch

EPOCH = "0123456789abcdef" * 2
NOW = datetime(2026, 3, 1, 4, 15, tzinfo=UTC)
INT64 = st.integers(-(2**63), 2**63 - 1)
INSTANTS = st.integers(946_684_800_000_000, 4_102_444_800_000_000).map(uplink.from_us)  # 2000 to 2100


def energy_rows() -> st.SearchStrategy[list[Row]]:
    values = st.dictionaries(st.sampled_from(ENERGY_NAMES), st.none() | INT64)
    row = st.builds(
        Row,
        meter=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True),
        at=INSTANTS,
        gateway_at=INSTANTS,
        meter_at=st.none() | INSTANTS,
        quality=st.integers(0, 127),
        values=values,
    )
    return st.lists(row, min_size=1, max_size=40)


def column(batch: uplink.Batch, name: str) -> list[int | None]:
    if name not in batch.columns:
        return [None] * batch.rows
    values = array(uplink.COLUMN_TYPES[name], batch.columns[name]).tolist()
    bitmap = batch.valid.get(name)
    if bitmap is None:
        return list(values)
    return [value if bitmap[i >> 3] >> (i & 7) & 1 else None for i, value in enumerate(values)]


@given(energy_rows())
def test_energy_rows_come_back_as_they_were(rows: list[Row]) -> None:
    payload = uplink.encode_rows(gateway="gw", epoch=EPOCH, seq=7, kind=Kind.ENERGY, sent_at=NOW, rows=rows)
    batch = decode_batch(payload, MSGPACK)
    assert (batch.gateway, batch.epoch, batch.seq, batch.rows) == ("gw", EPOCH, 7, len(rows))
    assert [batch.meters[i or 0] for i in column(batch, "meter_index")] == [row.meter for row in rows]
    assert column(batch, "at") == [uplink.to_us(row.at) for row in rows]
    assert column(batch, "meter_at") == [row.meter_at and uplink.to_us(row.meter_at) for row in rows]
    assert column(batch, "quality") == [row.quality for row in rows]
    for name in ENERGY_NAMES:
        assert column(batch, name) == [row.values.get(name) for row in rows]


def test_a_missing_power_value_is_nan_and_an_absent_column_is_left_out() -> None:
    rows = [
        Row("a", NOW, NOW, None, Quality.GOOD, {"voltage_l1_v": 230.5}),
        Row("b", NOW, NOW, None, Quality.GOOD, {"voltage_l1_v": None}),
    ]
    batch = decode_batch(uplink.encode_rows(gateway="g", epoch=EPOCH, seq=1, kind=Kind.POWER, sent_at=NOW, rows=rows))
    values = array("f", batch.columns["voltage_l1_v"])
    assert values[0] == 230.5
    assert math.isnan(values[1])
    assert not set(POWER_NAMES[:1]) & set(batch.columns)


def document(**changes: object) -> dict[str, object]:
    base: dict[str, object] = {
        "version": 1, "gateway": "gw-1", "epoch": EPOCH, "seq": 1, "kind": "energy", "sent_at": 1_700_000_000_000_000,
        "meters": ["m1", "m2"],
        "columns": {"meter_index": [0, 1], "at": [0, 900_000_000], "gateway_at": [1, 2], "energy_import_wh": [5, None]},
    }  # fmt: skip
    return base | changes


def test_a_shell_script_can_publish_json() -> None:
    batch = decode_batch(json.dumps(document()).encode(), JSON)
    assert column(batch, "energy_import_wh") == [5, None]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "version: 1 expected"),
        ({"gateway": "a/b"}, "gateway"),
        ({"epoch": "x"}, "epoch: 32 hex digits"),
        ({"seq": 0}, "seq: 1 or more"),
        ({"kind": "weather"}, "kind"),
        ({"surprise": 1}, "surprise"),
        ({"columns": {"at": [0]}}, '"meter_index" is missing'),
        ({"columns": {"meter_index": [0, 1], "at": [0], "gateway_at": [0]}}, '"meter_index" has 4 bytes, 2 expected'),
        ({"columns": {"meter_index": [9], "at": [0], "gateway_at": [0]}}, "points past the 2 meters"),
        ({"columns": {"meter_index": [0], "at": [None], "gateway_at": [0]}}, '"at" may not be null'),
        ({"columns": {"meter_index": [0], "at": [2**70], "gateway_at": [0]}}, "at"),
        ({"columns": {"meter_index": [0], "at": [0], "gateway_at": [0], "voltage_l1_v": [1.0]}}, "does not belong"),
        ({"columns": {"meter_index": [], "at": [], "gateway_at": []}}, "rows: 1 to"),
        ({"events": [{"at": 1, "kind": "x"}]}, "events: none expected"),
    ],
)
def test_what_is_not_the_contract_is_refused_with_what_and_where(changes: dict[str, object], says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        decode_batch(json.dumps(document(**changes)).encode(), JSON)


@given(st.binary(max_size=200), st.sampled_from([MSGPACK, JSON, "text/plain"]))
def test_no_bytes_raise_anything_else(payload: bytes, content_type: str) -> None:
    with pytest.raises(PayloadError):
        decode_batch(payload, content_type)


def test_an_oversized_payload_is_refused_before_it_is_read() -> None:
    with pytest.raises(PayloadError, match="at most"):
        decode_batch(b"\x80" * (uplink.BYTES_MAX + 1))


def test_receipts_commands_and_status_come_back() -> None:
    shed = Shed(event="e", start=1, end=2, meters=["m1"])
    receipt = Receipt(epoch=EPOCH, stored=[(1, 5), (9, 9)])
    command = Command(id="c", issued_at=1, expires_at=2, body=shed)
    status = Status(online=True, at=1)
    assert uplink.decode(uplink.encode(receipt), Receipt) == receipt
    assert uplink.decode(uplink.encode(command), Command) == command
    assert uplink.decode(uplink.encode(status), Status) == status
    with pytest.raises(PayloadError, match="receipt"):
        uplink.decode(b"\xc1", Receipt)


BODIES = [
    uplink.Read(meter="m1", items=["00010000"]),
    uplink.Backfill(start=1, end=2),
    uplink.SyncClock(meters=["m1"]),
    uplink.RelayPrepare(meter="m1", closed=False),
    uplink.RelayConfirm(token="t"),
    uplink.Restart(),
    uplink.Configure(site="[gateway]"),
]


@pytest.mark.parametrize("body", BODIES)
def test_every_kind_of_command_comes_back(body: uplink.Body) -> None:
    command = Command(id="c", issued_at=1, expires_at=2, body=body)
    assert uplink.decode(uplink.encode(command), Command) == command


def test_demand_response_is_on_the_wire_what_it_was() -> None:
    """Bytes recorded before there were other commands: gateways and clouds of either age understand each other."""
    old = bytes.fromhex(
        "85a776657273696f6e01a26964a163a96973737565645f617401aa657870697265735f617402a4626f6479"
        "85a46b696e64af64656d616e645f726573706f6e7365a56576656e74a165a5737461727401a3656e6402a66d657465727391a26d31"
    )
    command = Command(id="c", issued_at=1, expires_at=2, body=Shed(event="e", start=1, end=2, meters=["m1"]))
    assert uplink.encode(command) == old
    assert uplink.decode(old, Command) == command


def test_who_reads_a_status_or_a_reply_ignores_what_it_does_not_know() -> None:
    """An older cloud meets a newer gateway; but nobody carries out, or books, what it understands half of."""
    newer = {"version": 1, "online": True, "at": 1, "mood": "good"}
    assert uplink.decode(msgspec.msgpack.encode(newer), Status) == Status(online=True, at=1)
    reply = {
        "version": 1,
        "id": "c",
        "at": 1,
        "outcome": "done",
        "results": [{"item": "x", "colour": "red"}],
        "more": 1,
    }
    assert uplink.decode(msgspec.msgpack.encode(reply), uplink.Reply).results == [uplink.ItemResult(item="x")]
    odd = {"version": 1, "id": "c", "issued_at": 1, "expires_at": 2, "body": {"kind": "restart", "hard": True}}
    with pytest.raises(PayloadError, match="hard"):
        uplink.decode(msgspec.msgpack.encode(odd), Command)
    assert uplink.decode(msgspec.msgpack.encode(odd), uplink.Envelope).id == "c"
    with pytest.raises(PayloadError, match="late"):
        uplink.decode(msgspec.msgpack.encode({"epoch": EPOCH, "stored": [], "late": 1}), Receipt)


@given(st.binary(max_size=100), st.sampled_from([Command, uplink.Reply, Status, Receipt, uplink.Envelope]))
def test_no_bytes_of_a_message_raise_anything_else(payload: bytes, kind: type[Command]) -> None:
    with suppress(PayloadError):
        uplink.decode(payload, kind)


def test_topics_split_into_gateway_and_last_part() -> None:
    assert uplink.split_topic(uplink.topic("gw-1", Topic.ENERGY)) == ("gw-1", Topic.ENERGY)
    for text in ("gridloom/v1/gw/other", "gridloom/v2/gw/energy", "gridloom/v1/energy", "gridloom/v1/a b/energy"):
        with pytest.raises(PayloadError):
            uplink.split_topic(text)


def test_times_keep_their_microseconds() -> None:
    moment = NOW + timedelta(microseconds=1)
    assert uplink.from_us(uplink.to_us(moment)) == moment
