"""What is kept of meters' clocks, in the queue's file: measurements, orders, and when the gateway's own was set.

The methods block on the disk, as the queue's do. What a full disk refuses rises as sqlite3.OperationalError.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias

from gateway.clocks.policy import Offset
from gateway.queue import Queue
from protocols.uplink import from_us, to_us

KEEP: Final = timedelta(days=400)  # orders: longer than anybody backfills
_STEPPED: Final = "clock_stepped_at"
_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS clock (
    meter         TEXT PRIMARY KEY,
    at            INTEGER NOT NULL,             -- µs since 1970 UTC, as all times here
    offset_s      REAL NOT NULL,                -- the meter's clock less the gateway's
    uncertainty_s REAL NOT NULL,
    base_at       INTEGER,                      -- the measurement the next drift counts from
    base_offset_s REAL,
    base_uncertainty_s REAL,
    drift_s_per_day    REAL,
    right_at      INTEGER                       -- last known to be within the limit
) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS clock_order (
    meter         TEXT NOT NULL,
    at            INTEGER NOT NULL,
    method        TEXT NOT NULL,
    asked_by      TEXT NOT NULL,
    before_s      REAL NOT NULL,
    after_s       REAL,                         -- null: not read since; it may or may not have been sent
    suspect_from  INTEGER,                      -- marks a wrong clock lived, and those the step passed
    suspect_until INTEGER,
    PRIMARY KEY (meter, at)
) WITHOUT ROWID""",
)

Method: TypeAlias = Literal["broadcast", "write"]


@dataclass(frozen=True, slots=True)
class Measured:
    """The last measurement of a clock. ``base``: the one the next drift counts from."""

    offset: Offset
    base: Offset | None
    drift_s_per_day: float | None
    right_at: datetime | None


@dataclass(frozen=True, slots=True)
class Order:
    """A clock was to be set at ``at``. ``after_s`` is None until it was read again.

    ``suspect``: from mark to mark in µs, where what the meter remembers was lived by a wrong clock, twice, or not.
    """

    meter: str
    at: datetime
    method: Method
    asked_by: str
    before_s: float
    after_s: float | None = None
    suspect: tuple[int, int] | None = None


class Journal:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        with queue.transaction() as db:
            for statement in _SCHEMA:
                db.execute(statement)

    def measured(self) -> dict[str, Measured]:
        with self._queue.transaction() as db:
            rows = db.execute("SELECT * FROM clock").fetchall()
        return {
            meter: Measured(
                Offset(offset_s, uncertainty_s, from_us(at)),
                Offset(base_s, base_uncertainty_s, from_us(base_at)) if base_at is not None else None,
                drift,
                from_us(right_at) if right_at is not None else None,
            )
            for meter, at, offset_s, uncertainty_s, base_at, base_s, base_uncertainty_s, drift, right_at in rows
        }

    def orders(self, now: datetime) -> list[Order]:
        """Oldest first."""
        with self._queue.transaction() as db:
            db.execute("DELETE FROM clock_order WHERE at < ?", (to_us(now - KEEP),))
            rows = db.execute("SELECT * FROM clock_order ORDER BY at").fetchall()
        return [
            Order(meter, from_us(at), method, asked_by, before_s, after_s, None if begin is None else (begin, end))
            for meter, at, method, asked_by, before_s, after_s, begin, end in rows
        ]

    def stepped_at(self) -> datetime | None:
        """When the gateway's own clock was last set."""
        with self._queue.transaction() as db:
            found = db.execute("SELECT value FROM meta WHERE name = ?", (_STEPPED,)).fetchone()
        return from_us(int(found[0])) if found else None

    def measure(self, meter: str, found: Measured) -> None:
        offset, base = found.offset, found.base
        values = (
            meter,
            to_us(offset.at),
            offset.offset_s,
            offset.uncertainty_s,
            *((to_us(base.at), base.offset_s, base.uncertainty_s) if base else (None, None, None)),
            found.drift_s_per_day,
            to_us(found.right_at) if found.right_at else None,
        )
        with self._queue.transaction() as db:
            db.execute("INSERT OR REPLACE INTO clock VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def order(self, orders: Iterable[Order]) -> None:
        """On disk before anything is sent. An order that is told again is settled by its ``after_s``."""
        values = [
            (it.meter, to_us(it.at), it.method, it.asked_by, it.before_s, it.after_s, *(it.suspect or (None, None)))
            for it in orders
        ]
        with self._queue.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO clock_order VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)

    def withdraw(self, orders: Iterable[Order]) -> None:
        with self._queue.transaction() as db:
            keys = [(order.meter, to_us(order.at)) for order in orders]
            db.executemany("DELETE FROM clock_order WHERE meter = ? AND at = ?", keys)

    def step(self, at: datetime) -> None:
        """The gateway's own clock was set: what it measured before is worth nothing."""
        with self._queue.transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_STEPPED, str(to_us(at))))
            db.execute("DELETE FROM clock")
