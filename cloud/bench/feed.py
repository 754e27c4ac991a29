"""What the bench's gateways send: rows as columns, the messages they travel in, and the same rows ready for COPY.

Everything follows from a ``Feed``, so the program that publishes and the one that compares make the same rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from cloud.store.binary_copy import Field, encode, instant
from protocols.quantities import ENERGY_NAMES, POWER_NAMES, Kind
from protocols.uplink import COLUMN_TYPES, NULLABLE_INTEGERS, VERSION, from_us

INTERVAL_US: Final = 900_000_000
NULLS: Final = 0.2
NO_BATCH: Final = 10**12  # rows that no ledger knows are numbered from here

Arrays = dict[str, NDArray[Any]]


class Feed(msgspec.Struct, frozen=True, kw_only=True):
    """``gateways`` in turn send a message of ``rows`` rows, ``messages`` times each. A gateway's meters report mark by
    mark from ``start_us`` on, µs since 1970; a fifth of the values is null."""

    kind: Kind
    gateways: list[str]
    meters: int  # of each gateway
    rows: int  # of each message
    messages: int  # of each gateway
    start_us: int
    epoch: str
    seed: int = 1

    @property
    def total_messages(self) -> int:
        return self.messages * len(self.gateways)

    @property
    def total_rows(self) -> int:
        return self.total_messages * self.rows


def quantities(kind: Kind) -> tuple[str, ...]:
    return ENERGY_NAMES if kind is Kind.ENERGY else POWER_NAMES


def wire_names(meters: int) -> list[str]:
    return [f"m{i:04d}" for i in range(meters)]


def columns(feed: Feed, gateway: int) -> tuple[Arrays, Arrays]:
    """Values and validity of a gateway's rows, in the order it sends them: (messages x rows,) each.

    ``meter`` counts the gateway's meters. A null float is NaN, a null integer 0 with validity False.
    """
    random = np.random.default_rng((feed.seed, gateway))
    row = np.arange(feed.messages * feed.rows)
    return _rows(feed.kind, random, row // feed.meters, row % feed.meters, feed.start_us)


def _rows(
    kind: Kind, random: np.random.Generator, mark: NDArray[np.int64], meter: NDArray[np.int64], start_us: int
) -> tuple[Arrays, Arrays]:
    count = len(mark)
    at = start_us + mark * INTERVAL_US
    gateway_at = at + 3_000_000 + meter * 7_000
    values: Arrays = {"meter": meter, "at": at, "gateway_at": gateway_at, "quality": np.zeros(count, np.uint16)}
    valid: Arrays = {}
    valid["meter_at"] = random.random(count) >= NULLS
    values["meter_at"] = np.where(valid["meter_at"], gateway_at + (meter % 9 - 4) * 1_000_000, 0)
    size = 0.3 + (meter * 37 % 101) / 20  # kW, of each meter
    day = (mark % 96) / 96
    if kind is Kind.ENERGY:
        for i, name in enumerate(ENERGY_NAMES):
            valid[name] = random.random(count) >= NULLS
            register = 10 * (meter * 1_000 + mark * (size * 25 / (1 + 3 * i)).astype(np.int64))
            values[name] = np.where(valid[name], register, 0)
        return values, valid
    noise = random.standard_normal((len(POWER_NAMES), count), np.float32)
    load_w = np.round(1000 * size * (0.7 + 0.3 * np.sin(2 * np.pi * (day - 0.3))) * (1 + 0.1 * noise[0]))
    volts = np.round(230 + 3 * noise[2:5], 1)
    table = [load_w, np.round(0.3 * load_w), *volts, *np.round(load_w / 3 / volts, 2)]
    table += [np.round(0.95 + 0.01 * noise[8], 3), np.round(50 + 0.02 * noise[9], 2)]
    for name, column in zip(POWER_NAMES, table, strict=True):
        values[name] = np.where(random.random(count) < NULLS, np.nan, column).astype(np.float32)
    return values, valid


# ---- as messages -----------------------------------------------------------------------------------------------------


def payloads(feed: Feed, gateway: int) -> Iterator[bytes]:
    """The gateway's batches, seq 1 first, as MessagePack; ``sent_at`` is the first instant until it is stamped."""
    values, valid = columns(feed, gateway)
    names = wire_names(feed.meters)
    every = {name: array.astype(COLUMN_TYPES[name], copy=False) for name, array in values.items() if name != "meter"}
    for k in range(feed.messages):
        some = slice(k * feed.rows, (k + 1) * feed.rows)
        said, index = np.unique(values["meter"][some], return_inverse=True)
        packed: dict[str, bytes] = {"meter_index": index.astype(np.uint16).tobytes()}
        packed |= {name: array[some].tobytes() for name, array in every.items()}
        bitmaps = {
            name: np.packbits(mask[some], bitorder="little").tobytes()
            for name, mask in valid.items()
            if not mask[some].all()
        }
        yield msgspec.msgpack.encode(
            {
                "version": VERSION,
                "gateway": feed.gateways[gateway],
                "epoch": feed.epoch,
                "seq": k + 1,
                "kind": feed.kind.value,
                "sent_at": feed.start_us,
                "meters": [names[i] for i in said.tolist()],
                "columns": packed,
                "valid": bitmaps,
            }
        )


_SENT_AT: Final = b"\xa7sent_at\xcf"  # MessagePack: the key, then eight bytes


def sent_at_offset(message: bytes) -> int:
    return message.index(_SENT_AT) + len(_SENT_AT)


# ---- as COPY, and as tuples ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows:
    """All rows of a feed in the order its messages go out. ``meter_id``: the registry's."""

    kind: Kind
    values: Arrays
    valid: Arrays

    def __len__(self) -> int:
        return len(self.values["at"])

    @property
    def filled(self) -> float:
        """Quantities that are not null, of an average row."""
        return sum(float(_present(self, name).mean()) for name in quantities(self.kind))


def all_rows(feed: Feed, meter_ids: NDArray[np.int32]) -> Rows:
    """meter_ids: (gateways, meters) as the registry numbers them."""
    each = [columns(feed, gateway) for gateway in range(len(feed.gateways))]
    for gateway, (values, _) in enumerate(each):
        values["meter_id"] = meter_ids[gateway][values.pop("meter")]

    def turns(arrays: list[NDArray[Any]]) -> NDArray[Any]:
        return np.stack(arrays).reshape(len(arrays), feed.messages, feed.rows).swapaxes(0, 1).reshape(-1)

    values = {name: turns([one[name] for one, _ in each]) for name in each[0][0]}
    valid = {name: turns([one[name] for _, one in each]) for name in each[0][1]}
    values["batch_id"] = NO_BATCH + np.arange(feed.total_rows) // feed.rows
    return Rows(feed.kind, values, valid)


def day_of_rows(kind: Kind, meter_ids: NDArray[np.int32], start_us: int, marks: int = 96) -> Rows:
    """``marks`` marks of every meter, mark by mark."""
    row = np.arange(marks * len(meter_ids))
    random = np.random.default_rng((7, start_us))
    values, valid = _rows(kind, random, row // len(meter_ids), row % len(meter_ids), start_us)
    values["meter_id"] = meter_ids[values.pop("meter")]
    values["batch_id"] = NO_BATCH + row // 500
    return Rows(kind, values, valid)


def column_names(kind: Kind) -> tuple[str, ...]:
    return ("meter_id", "at", "gateway_at", "meter_at", "quality", *quantities(kind), "batch_id")


def copy_streams(rows: Rows, commit: int) -> list[bytes]:
    """Whole binary COPY streams of ``commit`` rows each; the last may be shorter."""
    return [encode(copy_fields(rows, slice(first, first + commit))) for first in range(0, len(rows), commit)]


def _present(rows: Rows, name: str) -> NDArray[np.bool_]:
    return rows.valid[name] if name in NULLABLE_INTEGERS else ~np.isnan(rows.values[name])


def copy_fields(rows: Rows, some: slice) -> list[Field]:
    """In the order of ``column_names``."""
    values = {name: array[some] for name, array in rows.values.items()}
    fields = [
        Field(values["meter_id"], ">i4"),
        instant(values["at"]),
        instant(values["gateway_at"]),
        instant(values["meter_at"], rows.valid["meter_at"][some]),
        Field(values["quality"], ">i2"),
    ]
    for name in quantities(rows.kind):
        dtype = ">i8" if name in NULLABLE_INTEGERS else ">f4"
        fields.append(Field(values[name], dtype, _present(rows, name)[some]))
    return [*fields, Field(values["batch_id"], ">i8")]


def tuples(rows: Rows, count: int) -> list[tuple[int | float | datetime | None, ...]]:
    """The first ``count`` rows as a program without columns has them."""
    columns: list[list[Any]] = []
    for name in column_names(rows.kind):
        listed = rows.values[name][:count].tolist()
        if name.endswith("at"):
            listed = [from_us(us) for us in listed]
        if name == "meter_at" or name in quantities(rows.kind):
            present = _present(rows, name)[:count].tolist()
            listed = [value if there else None for value, there in zip(listed, present, strict=True)]
        columns.append(listed)
    return list(zip(*columns, strict=True))
