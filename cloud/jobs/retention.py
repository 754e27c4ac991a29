"""What is too old goes, as the table ``retention`` says; intervals never do."""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

# Of each table and call, so that nothing waits long for the locks; half a second on the slowest disk we use.
ROWS_MAX: Final = 50_000


@dataclass(frozen=True, slots=True)
class Removed:
    data: str  # table
    older_than: datetime
    amount: int
    unit: str  # rows; chunks, where TimescaleDB has them


def retain(connection: Connection, now: datetime, rows_max: int = ROWS_MAX) -> list[Removed]:
    """Remove what is older than it is to be kept at ``now``, at most ``rows_max`` rows a table. Tables with anything
    removed; call again while there are any."""
    found = connection.execute("SELECT * FROM retain(%s, %s) WHERE removed > 0", (now, rows_max))
    removed = [Removed(*row) for row in found]
    for one in removed:
        logger.info("retention table=%s older_than=%s %s=%d", one.data, one.older_than, one.unit, one.amount)
    return removed
