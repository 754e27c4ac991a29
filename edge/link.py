"""The one place that moves bytes: a connection that comes back by itself, without hammering a dead endpoint.

A link is a TCP connection or a serial device; what is above sees chunks of bytes and LinkError, and no difference.
"""

import asyncio
import errno
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import cast

import serialx

from edge.model import Line, SerialEndpoint, TcpEndpoint

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 3.0
RETRY_S = 0.25
RETRY_MAX_S = 5.0


class LinkError(Exception):
    """The wire's fault: no connection, or it broke."""


class Link(asyncio.Protocol):
    """Hands every chunk to ``on_chunk`` and tells ``on_lost`` when the connection ended.

    After a failed attempt the next one waits ``RETRY_S``, doubling to ``RETRY_MAX_S``; until then ``connect`` fails
    at once. The first byte received resets that: an endpoint that accepts and closes is no better than a dead one.
    """

    def __init__(
        self,
        name: str,
        endpoint: TcpEndpoint | SerialEndpoint,
        *,
        on_chunk: Callable[[bytes], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._name, self._where = name, str(endpoint)
        self._on_chunk, self._on_lost = on_chunk, on_lost
        self._transport: asyncio.Transport | None = None
        self._retry_s = RETRY_S
        self._next_attempt_s = 0.0
        self._last_reason = ""
        self._said_down = False
        self._is_closed = False

    async def _open(self) -> None:
        """Connect with ``self`` as the protocol. Raises OSError (TimeoutError is one) or LinkError."""
        raise NotImplementedError

    def _explain(self, error: OSError) -> str:
        """What is wrong, and what to do about it."""
        return str(error) or f"no answer in {CONNECT_TIMEOUT_S} s"

    @property
    def reason(self) -> str:
        """Why there is no connection."""
        return self._last_reason or "no connection"

    async def connect(self) -> None:
        """Return at once where connected. Raises LinkError."""
        if self._transport is not None:
            return
        if self._is_closed:
            raise LinkError(f"{self._where}: closed")
        loop = asyncio.get_running_loop()
        wait_s = self._next_attempt_s - loop.time()
        if wait_s > 0:
            raise LinkError(f"{self._where}: {self.reason} (next attempt in {wait_s:.1f} s)")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._open()
        except OSError as error:
            self._last_reason = self._explain(error)
            self._say_down(self._last_reason)
            self._wait_before_next()
            raise LinkError(f"{self._where}: {self._last_reason}") from error
        self._wait_before_next()

    def _wait_before_next(self) -> None:
        # Jitter, so that the lines of many gateways do not come back in step.
        self._next_attempt_s = asyncio.get_running_loop().time() + self._retry_s * random.uniform(0.5, 1.0)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _say_down(self, reason: str) -> None:
        if not self._said_down:
            logger.warning("link down line=%s endpoint=%s reason=%s", self._name, self._where, reason)
            self._said_down = True

    def write(self, raw: bytes) -> None:
        if self._transport is None:
            raise LinkError(f"{self._where}: {self.reason}")
        self._transport.write(raw)

    def abort(self) -> None:
        """Drop a connection that is open but no longer answers; the next ``connect`` makes a new one."""
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        self._is_closed = True
        self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # serialx has a base class of its own for transports, with the same methods.
        self._transport = cast(asyncio.Transport, transport)
        self._last_reason = ""
        if self._is_closed:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._said_down:
            logger.info("link up line=%s endpoint=%s", self._name, self._where)
            self._said_down = False
        self._retry_s, self._next_attempt_s = RETRY_S, 0.0
        self._on_chunk(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._is_closed:
            self._last_reason = self._explain(exc) if isinstance(exc, OSError) else "closed by peer"
            self._say_down(self._last_reason)
        self._on_lost()


class TcpLink(Link):
    def __init__(
        self, name: str, endpoint: TcpEndpoint, *, on_chunk: Callable[[bytes], None], on_lost: Callable[[], None]
    ) -> None:
        super().__init__(name, endpoint, on_chunk=on_chunk, on_lost=on_lost)
        self._endpoint = endpoint

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, self._endpoint.host, self._endpoint.port)


class SerialLink(Link):
    """The device is ours alone while it is open: who else opens it with a lock, as we do, is refused."""

    def __init__(
        self, name: str, endpoint: SerialEndpoint, *, on_chunk: Callable[[bytes], None], on_lost: Callable[[], None]
    ) -> None:
        super().__init__(name, endpoint, on_chunk=on_chunk, on_lost=on_lost)
        self._device, self._setting = endpoint.device, endpoint.setting

    async def _open(self) -> None:
        setting = self._setting
        try:
            await serialx.create_serial_connection(
                asyncio.get_running_loop(),
                lambda: self,
                self._device,
                baudrate=setting.baud,
                parity=serialx.Parity(setting.parity),
                stopbits=serialx.StopBits(setting.stop_bits),
                exclusive=True,
                byte_size=setting.data_bits,
            )
        except serialx.UnsupportedSetting as error:
            raise OSError(errno.EINVAL, str(error)) from error

    def _explain(self, error: OSError) -> str:
        match error.errno:
            case errno.EACCES | errno.EPERM:
                return f"permission denied; add the user to group {_group(self._device)} and log in again"
            case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                return "no such device; is the adapter plugged in? See: ls /dev/serial/by-id"
            case errno.EBUSY:
                return "in use by another program; stop that first"
            case errno.ENOTTY:
                return "not a serial device"
            case errno.EINVAL:
                return f"the adapter cannot do {self._setting}: {error.strerror}"
            case errno.EIO:
                return "the adapter was unplugged"
        return super()._explain(error)


def link(line: Line, *, on_chunk: Callable[[bytes], None], on_lost: Callable[[], None]) -> Link:
    match line.endpoint:
        case TcpEndpoint() as tcp:
            return TcpLink(line.name, tcp, on_chunk=on_chunk, on_lost=on_lost)
        case SerialEndpoint() as serial:
            return SerialLink(line.name, serial, on_chunk=on_chunk, on_lost=on_lost)


def _group(device: str) -> str:
    """Who may use ``device``; Debian's name where it does not say, or says root."""
    try:
        group = Path(device).group()
    except (OSError, KeyError, NotImplementedError):
        group = "root"
    return "dialout" if group == "root" else group
