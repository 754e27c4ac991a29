"""A small bounded set of read-only connections. The database may go away and come back at any time."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import LiteralString, TypeVar

import psycopg
from psycopg.rows import class_row

CONNECTIONS_MAX = 6
CONNECT_TIMEOUT_S = 3
# A request that takes longer is stopped by the server: nobody waits for it any more.
STATEMENT_TIMEOUT_S = 20

Parameter = object
Row = TypeVar("Row")


class Database:
    """``rows`` runs one SELECT. Raises psycopg.OperationalError when the database is away."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._idle: list[psycopg.AsyncConnection[tuple[object, ...]]] = []
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)

    async def rows(
        self, kind: type[Row], query: LiteralString, parameters: Mapping[str, Parameter] | None = None
    ) -> list[Row]:
        """The answer, each row as one ``kind`` made from keyword arguments."""
        async with self._slots:
            try:
                return await self._run(kind, query, parameters)
            except psycopg.OperationalError:
                if not self._idle:
                    raise
                # The server was restarted since the idle connections were made: none of them can be used.
                await self._close_idle()
                return await self._run(kind, query, parameters)

    async def one(
        self, kind: type[Row], query: LiteralString, parameters: Mapping[str, Parameter] | None = None
    ) -> Row | None:
        """The first row, if there is one."""
        found = await self.rows(kind, query, parameters)
        return found[0] if found else None

    async def close(self) -> None:
        await self._close_idle()

    async def _run(
        self, kind: type[Row], query: LiteralString, parameters: Mapping[str, Parameter] | None
    ) -> list[Row]:
        async with self._connection() as connection, connection.cursor(row_factory=class_row(kind)) as cursor:
            await cursor.execute(query, parameters)
            return await cursor.fetchall()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[object, ...]]]:
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            yield connection
        finally:
            # A connection in the middle of a cancelled or failed request is not worth saving.
            if connection.closed or connection.info.transaction_status is not psycopg.pq.TransactionStatus.IDLE:
                await connection.close()
            else:
                self._idle.append(connection)

    async def _connect(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        connection = await psycopg.AsyncConnection.connect(
            self._dsn, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S, prepare_threshold=None
        )
        await connection.execute(
            "SET default_transaction_read_only = on; SET timezone = 'UTC'; SET application_name = 'gridloom-serve'"
        )
        await connection.execute(psycopg.sql.SQL("SET statement_timeout = {}").format(STATEMENT_TIMEOUT_S * 1000))
        return connection

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()
