"""A TCP proxy that cuts, holds back what flows, or lets nobody in."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Proxy:
    """Between a client and the server on port ``target``. Nobody is let in while it ``refuses``."""

    port: int
    target: int
    refuses: bool = False
    _flows: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _connections: "set[asyncio.Task[None]]" = field(default_factory=set)

    def __post_init__(self) -> None:
        self._flows.set()

    async def serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        try:
            async with server:
                await server.serve_forever()
        finally:
            self.cut()
            self._flows.set()
            await asyncio.gather(*self._connections, return_exceptions=True)

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def stall(self, duration_s: float) -> None:
        """Connections stay open and carry nothing."""
        self._flows.clear()
        try:
            await asyncio.sleep(duration_s)
        finally:
            self._flows.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connection(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = {writer}
        try:
            if self.refuses:
                return
            with suppress(OSError):  # the server is down
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
                ends.add(far_writer)
                if self.refuses:
                    return
                self._writers |= ends
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65_536):
                await self._flows.wait()
                writer.write(chunk)
                await writer.drain()
        writer.transport.abort()
