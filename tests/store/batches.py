"""Batches as gateways make them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from protocols.quantities import Kind, Quality
from protocols.uplink import Batch, Row, decode_batch, encode_rows

EPOCH = "0" * 31 + "1"
START = datetime(2026, 5, 20, 0, 0, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def energy_row(meter: str, k: int, *, wh: int | None = None, quality: int = Quality.GOOD) -> Row:
    """The row of ``meter`` at the k-th mark; export is null."""
    at = START + k * QUARTER
    return Row(meter, at, at + timedelta(seconds=6), at, quality, {"energy_import_wh": 10 * k if wh is None else wh})


def power_row(meter: str, k: int, *, offset_s: float | None = 0.0, quality: int = Quality.GOOD) -> Row:
    at = START + k * QUARTER
    read = at + timedelta(seconds=8)
    meter_at = None if offset_s is None else read + timedelta(seconds=offset_s)
    return Row(meter, at, read, meter_at, quality, {"active_power_w": 100.5 + k, "voltage_l1_v": None})


def payload(kind: Kind, seq: int, rows: Sequence[Row], *, gateway: str = "gw-1", epoch: str = EPOCH) -> bytes:
    return encode_rows(gateway=gateway, epoch=epoch, seq=seq, kind=kind, sent_at=START, rows=rows)


def batch(kind: Kind, seq: int, rows: Sequence[Row], *, gateway: str = "gw-1", epoch: str = EPOCH) -> Batch:
    return decode_batch(payload(kind, seq, rows, gateway=gateway, epoch=epoch))
