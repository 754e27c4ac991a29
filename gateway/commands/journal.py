"""What is known of each command, in the queue's file: every step is there before it is taken."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from gateway.queue import Queue
from protocols.uplink import Command, PayloadError, Reply, Shed, decode, encode, to_us

COMMANDS_MAX: Final = 1_000

_SCHEMA: Final = (
    """
    CREATE TABLE IF NOT EXISTS command (   -- at most once: an id stays until it is void everywhere
        id      TEXT PRIMARY KEY,
        body    BLOB NOT NULL,
        void_at INTEGER NOT NULL,          -- µs; after this nobody may send it again
        reply   BLOB,
        told    INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS began (     -- commands somebody has started to carry out
        id  TEXT PRIMARY KEY REFERENCES command ON DELETE CASCADE
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS relay (     -- what a demand-response command did to each meter
        id     TEXT NOT NULL REFERENCES command ON DELETE CASCADE,
        meter  TEXT NOT NULL,
        state  TEXT NOT NULL,
        note   TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (id, meter)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS prepared (  -- relays that wait for their second step
        token   TEXT PRIMARY KEY,
        id      TEXT NOT NULL REFERENCES command ON DELETE CASCADE,
        meter   TEXT NOT NULL,
        closed  INTEGER NOT NULL,
        void_at INTEGER NOT NULL,
        used    INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE IF NOT EXISTS opened_by_hand (  -- relays a person opened; no event may close them
        meter  TEXT PRIMARY KEY,
        id     TEXT NOT NULL
    ) WITHOUT ROWID
    """,
)


class RelayState(StrEnum):
    """Of one meter under one demand-response command, as far as we know."""

    REJECTED = "rejected"  # not ours to switch
    OPENING = "opening"  # asked; without an answer it may be open
    OPEN = "open"
    REFUSED = "refused"  # the meter said no, or was never asked
    CLOSED = "closed"
    UNSURE = "unsure"  # never confirmed open; closed now


MUST_CLOSE: Final = (RelayState.OPENING, RelayState.OPEN)


@dataclass(frozen=True, slots=True)
class Order:
    """A relay that was prepared."""

    meter: str
    closed: bool
    void_at: int


class Journal:
    """Methods block on the disk, as the queue's do."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        with queue.transaction() as db:
            for statement in _SCHEMA:
                db.execute(statement)

    # ---- commands and replies ----------------------------------------------------------------------------------------

    def accept(
        self, command_id: str, payload: bytes, *, void_at: int, now: datetime, reply: Reply | None = None
    ) -> bool:
        """Remember a command, with its reply where that is known at once. False for an id that was seen before.

        Raises JournalFullError where too many are remembered already.
        """
        with self._queue.transaction() as db:
            db.execute("DELETE FROM command WHERE void_at < ? AND reply IS NOT NULL AND told", (to_us(now),))
            if db.execute("SELECT count(*) FROM command WHERE id = ?", (command_id,)).fetchone()[0]:
                return False
            known = db.execute("SELECT count(*) FROM command").fetchone()[0]
            if known >= COMMANDS_MAX:
                raise JournalFullError(f"{known} commands are remembered already")
            db.execute(
                "INSERT INTO command (id, body, void_at, reply) VALUES (?, ?, ?, ?)",
                (command_id, payload, min(void_at, 2**62), None if reply is None else encode(reply)),
            )
            return True

    def begin(self, command_id: str) -> None:
        """From here on it counts as carried out, whatever becomes of us."""
        with self._queue.transaction() as db:
            db.execute("INSERT INTO began VALUES (?)", (command_id,))

    def unanswered(self) -> list[tuple[str, Command | PayloadError, bool]]:
        """Commands without a reply or with a relay still to close: id, what it is, and whether it was begun."""
        with self._queue.transaction() as db:
            rows = db.execute(
                "SELECT id, body, id IN (SELECT id FROM began) FROM command"
                " WHERE reply IS NULL OR id IN (SELECT id FROM relay WHERE state IN (?, ?))",
                MUST_CLOSE,
            ).fetchall()
        found: list[tuple[str, Command | PayloadError, bool]] = []
        for command_id, body, began in rows:
            try:
                found.append((command_id, decode(body, Command), bool(began)))
            except PayloadError as error:  # an older program than the one that accepted it
                found.append((command_id, error, bool(began)))
        return found

    def save_reply(self, reply: Reply) -> bool:
        """False where a reply was made before: that one stands."""
        with self._queue.transaction() as db:
            done = db.execute("UPDATE command SET reply = ? WHERE id = ? AND reply IS NULL", (encode(reply), reply.id))
            return done.rowcount == 1

    def replies(self) -> list[tuple[str, bytes]]:
        """Command ids and replies the broker has not acknowledged yet."""
        with self._queue.transaction() as db:
            return db.execute(
                "SELECT id, reply FROM command WHERE reply IS NOT NULL AND NOT told ORDER BY id"
            ).fetchall()

    def told(self, command_id: str) -> None:
        with self._queue.transaction() as db:
            db.execute("UPDATE command SET told = 1 WHERE id = ?", (command_id,))

    def tell_again(self, command_id: str) -> None:
        with self._queue.transaction() as db:
            db.execute("UPDATE command SET told = 0 WHERE id = ?", (command_id,))

    # ---- demand response ---------------------------------------------------------------------------------------------

    def states(self, command_id: str) -> dict[str, tuple[RelayState, str]]:
        with self._queue.transaction() as db:
            rows = db.execute("SELECT meter, state, note FROM relay WHERE id = ?", (command_id,)).fetchall()
        return {meter: (RelayState(state), note) for meter, state, note in rows}

    def note(self, command_id: str, meter: str, state: RelayState, note: str) -> None:
        with self._queue.transaction() as db:
            db.execute("INSERT OR REPLACE INTO relay VALUES (?, ?, ?, ?)", (command_id, meter, state, note))

    def held_by(self, command_id: str, meter: str, now: datetime) -> str | None:
        """Another command that keeps this relay open beyond now, or a person who opened it."""
        if by_hand := self.opened_by_hand(meter):
            return by_hand
        with self._queue.transaction() as db:
            rows = db.execute(
                "SELECT body FROM command JOIN relay USING (id) WHERE meter = ? AND id <> ? AND state IN (?, ?)",
                (meter, command_id, *MUST_CLOSE),
            ).fetchall()
        others: Iterable[Command] = (decode(body, Command) for (body,) in rows)
        return next(
            (other.id for other in others if isinstance(other.body, Shed) and other.body.end > to_us(now)), None
        )

    # ---- relays in two steps -----------------------------------------------------------------------------------------

    def prepare(self, command_id: str, order: Order) -> str:
        """Returns the token that confirms ``order``."""
        token = secrets.token_urlsafe(9)
        with self._queue.transaction() as db:
            db.execute(
                "INSERT INTO prepared (token, id, meter, closed, void_at) VALUES (?, ?, ?, ?, ?)",
                (token, command_id, order.meter, order.closed, order.void_at),
            )
        return token

    def take(self, command_id: str, token: str, now: datetime) -> Order | str:
        """The order under ``token``, which nobody gets again, with ``command_id`` begun; or why there is none."""
        with self._queue.transaction() as db:
            row = db.execute("SELECT meter, closed, void_at, used FROM prepared WHERE token = ?", (token,)).fetchone()
            if row is None:
                return "token: nothing is prepared under it"
            meter, closed, void_at, used = row
            if used:
                return "token: was used already"
            if void_at <= to_us(now):
                return f"token: void since {(to_us(now) - void_at) / 1e6:.0f} s; prepare it again"
            db.execute("UPDATE prepared SET used = 1 WHERE token = ?", (token,))
            db.execute("INSERT INTO began VALUES (?)", (command_id,))
            if not closed:
                # Whoever opened it first keeps it open: an order that fails now does not undo that.
                db.execute("INSERT OR IGNORE INTO opened_by_hand VALUES (?, ?)", (meter, command_id))
            return Order(meter, bool(closed), void_at)

    def opened_by_hand(self, meter: str) -> str | None:
        """The command by which a person opened this relay, and nobody closed it since."""
        with self._queue.transaction() as db:
            row = db.execute("SELECT id FROM opened_by_hand WHERE meter = ?", (meter,)).fetchone()
        return None if row is None else str(row[0])

    def closed_by_hand(self, meter: str) -> None:
        with self._queue.transaction() as db:
            db.execute("DELETE FROM opened_by_hand WHERE meter = ?", (meter,))

    def not_opened(self, meter: str, command_id: str) -> None:
        """What ``take`` noted did not happen."""
        with self._queue.transaction() as db:
            db.execute("DELETE FROM opened_by_hand WHERE meter = ? AND id = ?", (meter, command_id))


class JournalFullError(Exception):
    """The journal's bound is reached; nothing was remembered."""
