"""Commands on their way: from the table to the gateways, and their replies back into it.

Demand response and people (`gridloom command`) write commands; `gridloom work` sends each again until it is answered or
nobody can answer it any more. A gateway carries it out at most once however often it comes. What stands in the table
stays: it is the record of who asked for what, when, and what came back.
"""

import getpass
import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import msgspec
import numpy as np
import psycopg
from psycopg.types.json import Jsonb

from cloud.jobs.mailbox import Answer, Mailbox
from protocols.uplink import Body, Command, Outcome, Reply, to_us

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

RESEND_S: Final = 10.0
# A gateway that was away until a command was void still says so when it is back; after this nobody waits for it.
REPLY_MAX: Final = timedelta(hours=1)


def order(
    connection: Connection,
    gateway: str,
    body: Body,
    *,
    now: datetime,
    expires_at: datetime,
    asked_by: str,
    event_id: str | None = None,
) -> str:
    """Put a command on record, to be sent. Returns its id."""
    command = Command(id=uuid4().hex, issued_at=to_us(now), expires_at=to_us(expires_at), body=body)
    connection.execute(
        "INSERT INTO command (command_id, gateway, event_id, body, issued_at, expires_at, asked_by)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (command.id, gateway, event_id, Jsonb(msgspec.to_builtins(command)), now, expires_at, asked_by),
    )
    return command.id


def whoami() -> str:
    """Who asks, where nobody says: the account on this computer."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return socket.gethostname()


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended; without ``outcome`` nobody answered it in time."""

    command_id: str
    gateway: str
    event_id: str | None
    outcome: Outcome | None
    detail: str


@dataclass(slots=True)
class Dispatch:
    """``sent``: command → when it was last handed to the broker, on the monotonic clock."""

    sent: dict[str, float] = field(default_factory=dict)

    def step(
        self, connection: Connection, mailbox: Mailbox, *, now: datetime, monotonic_s: float
    ) -> tuple[list[str], list[Finished]]:
        """(Demand-response events whose command is out, what ended)."""
        out = self._send(connection, mailbox, now, monotonic_s)
        done = [*store_replies(connection, mailbox.answers(), now), *give_up(connection, now)]
        for one in done:
            self.sent.pop(one.command_id, None)
            said = f"{one.outcome or 'not answered'}: {one.detail}"
            logger.log(
                logging.INFO if one.outcome is Outcome.DONE else logging.WARNING,
                "command %s to %s %s", one.command_id, one.gateway, said,
            )  # fmt: skip
        return out, done

    def _send(self, connection: Connection, mailbox: Mailbox, now: datetime, monotonic_s: float) -> list[str]:
        out = []
        for command_id, gateway, event_id, body in connection.execute(_UNANSWERED).fetchall():
            if monotonic_s - self.sent.get(command_id, -np.inf) < RESEND_S:
                continue
            if not mailbox.send(gateway, msgspec.convert(body, Command)):
                break
            if command_id not in self.sent:
                logger.info("command %s (%s) sent to %s", command_id, body["body"]["kind"], gateway)
            self.sent[command_id] = monotonic_s
            connection.execute(
                "UPDATE command SET sent_at = coalesce(sent_at, %s) WHERE command_id = %s", (now, command_id)
            )
            if event_id is not None:
                out.append(event_id)
        return out


def store_replies(connection: Connection, answers: Iterable[Answer], now: datetime) -> list[Finished]:
    done = []
    for answer in answers:
        reply = answer.reply
        row = connection.execute(_REPLY, (now, reply.outcome, as_jsonb(reply), reply.id, answer.gateway)).fetchone()
        if row:
            done.append(Finished(reply.id, answer.gateway, row[0], reply.outcome, reply.detail))
    return done


def as_jsonb(reply: Reply) -> str:
    """What a meter said may hold what jsonb does not take: NaN becomes null, NUL the sign for what is unreadable."""
    return msgspec.json.encode(reply).decode().replace("\\u0000", "\\ufffd")


def give_up(connection: Connection, now: datetime) -> list[Finished]:
    """Commands that were never sent in time, or never answered, end here."""
    rows = connection.execute(_GIVE_UP, {"now": now, "silent": now - REPLY_MAX}).fetchall()
    return [Finished(command_id, gateway, event_id, None, "no reply from the gateway")
            for command_id, gateway, event_id in rows]  # fmt: skip


_UNANSWERED: Final = """
    SELECT command_id, gateway, event_id, body FROM command WHERE replied_at IS NULL AND outcome IS NULL
    ORDER BY issued_at
"""
_REPLY: Final = """
    UPDATE command SET replied_at = %s, outcome = %s, reply = %s::jsonb
    WHERE command_id = %s AND gateway = %s AND replied_at IS NULL RETURNING event_id
"""
_GIVE_UP: Final = """
    UPDATE command SET outcome = 'expired'
    WHERE outcome IS NULL AND (expires_at < %(silent)s OR (sent_at IS NULL AND expires_at < %(now)s))
    RETURNING command_id, gateway, event_id
"""
