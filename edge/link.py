"""The one place that moves bytes: a TCP connection that comes back by itself, without hammering a dead endpoint."""

import asyncio
import logging
import random
from collections.abc import Callable

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 3.0
RETRY_S = 0.25
RETRY_MAX_S = 5.0


class LinkError(Exception):
    """The wire's fault: no connection, or it broke."""


class TcpLink(asyncio.Protocol):
    """Hands every chunk to ``on_chunk`` and tells ``on_lost`` when the connection ended.

    After a failed attempt the next one waits ``RETRY_S``, doubling to ``RETRY_MAX_S``; until then ``connect`` fails
    at once. The first byte received resets that: an endpoint that accepts and closes is no better than a dead one.
    """

    def __init__(
        self, name: str, host: str, port: int, *, on_chunk: Callable[[bytes], None], on_lost: Callable[[], None]
    ) -> None:
        self._name, self._host, self._port = name, host, port
        self._on_chunk, self._on_lost = on_chunk, on_lost
        self._transport: asyncio.Transport | None = None
        self._retry_s = RETRY_S
        self._next_attempt_s = 0.0
        self._said_down = False
        self._is_closed = False

    async def connect(self) -> None:
        """Return at once where connected. Raises LinkError."""
        if self._transport is not None:
            return
        if self._is_closed:
            raise LinkError(f"{self._where}: closed")
        loop = asyncio.get_running_loop()
        wait_s = self._next_attempt_s - loop.time()
        if wait_s > 0:
            raise LinkError(f"{self._where}: no connection, next attempt in {wait_s:.1f} s")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.create_connection(lambda: self, self._host, self._port)
        except OSError as error:  # TimeoutError is one
            reason = str(error) or f"no answer in {CONNECT_TIMEOUT_S} s"
            if not self._said_down:
                logger.warning("link down line=%s endpoint=%s reason=%s", self._name, self._where, reason)
                self._said_down = True
            self._wait_before_next()
            raise LinkError(f"{self._where}: {reason}") from error
        self._wait_before_next()

    def _wait_before_next(self) -> None:
        # Jitter, so that the lines of many gateways do not come back in step.
        self._next_attempt_s = asyncio.get_running_loop().time() + self._retry_s * random.uniform(0.5, 1.0)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def write(self, raw: bytes) -> None:
        if self._transport is None:
            raise LinkError(f"{self._where}: no connection")
        self._transport.write(raw)

    def abort(self) -> None:
        """Drop a connection that is open but no longer answers; the next ``connect`` makes a new one."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        self._is_closed = True
        self.abort()

    @property
    def _where(self) -> str:
        return f"{self._host}:{self._port}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._is_closed:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._said_down:
            logger.info("link up line=%s endpoint=%s", self._name, self._where)
            self._said_down = False
        self._retry_s, self._next_attempt_s = RETRY_S, 0.0
        self._on_chunk(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not (self._said_down or self._is_closed):
            logger.warning("link down line=%s endpoint=%s reason=%s", self._name, self._where, exc or "closed by peer")
            self._said_down = True
        self._on_lost()
