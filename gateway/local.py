"""The running agent's local socket, by which ``meterctl`` works through it instead of beside it.

``agent.sock`` in the data folder, for its owner alone. The agent greets; the client asks one question (a JSON line, its
``op`` says which); replies follow, each ``{"reply": …}`` on a line, and the last line has ``"end": true``, with the
``error`` where something went wrong. Whoever hangs up ends what they asked for.
"""

import asyncio
import io
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import msgspec

from gateway.config import Site

logger = logging.getLogger(__name__)

SOCKET: Final = "agent.sock"
CLIENTS_MAX: Final = 8
QUESTION_BYTES_MAX: Final = 64 * 1024
REPLY_BYTES_MAX: Final = 4 * 1024 * 1024  # the status of 5,000 meters
ASK_S: Final = 10.0  # from the greeting to the whole question
TAKE_S: Final = 10.0  # for a client to take a reply
ANSWER_S: Final = 4 * 3600.0  # a long sniff; nothing runs for ever because nobody hung up
GREETING_S: Final = 5.0
_PATH_BYTES_MAX: Final = 107  # what sockaddr_un holds, without its final zero

Q = TypeVar("Q", bound=msgspec.Struct)
R = TypeVar("R")
Answers: TypeAlias = AsyncGenerator[msgspec.Struct, None]


class LocalError(RuntimeError):
    """The agent cannot be asked, or refused; the text says what to do."""


class Greeting(msgspec.Struct, frozen=True):
    """``error``: why nobody will listen."""

    pid: int
    gateway: str
    software: str
    error: str = ""


class _Part(msgspec.Struct, frozen=True):
    reply: msgspec.Raw


class _End(msgspec.Struct, frozen=True):
    error: str = ""
    end: bool = True


class _Line(msgspec.Struct, frozen=True):
    """One of the two, as the client reads it."""

    reply: msgspec.Raw = msgspec.Raw(b"")
    error: str = ""
    end: bool = False


class _Op(msgspec.Struct, frozen=True):
    op: str


class Local:
    """The agent's side. ``offer`` adds operations, ``run`` serves them until it is cancelled."""

    def __init__(self, data_dir: Path, *, gateway: str, software: str) -> None:
        self._path = data_dir / SOCKET
        self._greeting = Greeting(os.getpid(), gateway, software)
        self._operations: dict[str, Callable[[bytes], Answers]] = {}
        self._clients: set[asyncio.Task[None]] = set()

    def offer(self, question: type[Q], answer: Callable[[Q], Answers]) -> None:
        """``question``: a struct tagged ``op``. ``answer`` raises LocalError to refuse; it is closed when the client
        hangs up, so what it must undo belongs in a ``finally``."""
        op = question.__struct_config__.tag
        assert isinstance(op, str) and op not in self._operations, f"{question}: its own tag expected"
        self._operations[op] = lambda line: answer(msgspec.json.decode(line, type=question))

    async def run(self) -> None:
        """Without a socket the gateway still meters, so a folder that cannot hold one is told and no more."""
        try:
            listener = _bind(self._path)
        except (OSError, LocalError) as error:
            logger.warning("no local socket path=%s reason=%s; meterctl cannot ask this agent", self._path, error)
            return
        server = await asyncio.start_unix_server(self._welcome, sock=listener, limit=QUESTION_BYTES_MAX)
        try:
            await server.serve_forever()
        finally:
            server.close()
            self._path.unlink(missing_ok=True)
            for client in self._clients:
                client.cancel()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            if len(self._clients) <= CLIENTS_MAX:
                await _send(writer, self._greeting)
                await self._serve(reader, writer)
            else:
                error = f"{CLIENTS_MAX} others ask already; try again later"
                await _send(writer, msgspec.structs.replace(self._greeting, error=error))
        except (OSError, TimeoutError):  # the client is gone, or takes nothing
            pass
        except asyncio.CancelledError:  # the agent stops
            pass
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(ASK_S):
                line = await reader.readline()
        except ValueError:
            await _send(writer, _End(error=f"the question is longer than {QUESTION_BYTES_MAX} bytes"))
            return
        if not line:
            return  # it only wanted the greeting
        last = _End()
        asking = asyncio.create_task(self._answer(line, writer))
        hanging_up = asyncio.create_task(reader.read(1))
        try:
            async with asyncio.timeout(ANSWER_S):
                await asyncio.wait({asking, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                return
            asking.result()
        except TimeoutError:
            last = _End(error=f"not done after {ANSWER_S / 3600:.0f} h")
        except LocalError as error:
            last = _End(error=str(error))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            last = _End(error=f"not understood: {error}")
        finally:
            for task in (asking, hanging_up):
                task.cancel()
            await asyncio.gather(asking, hanging_up, return_exceptions=True)
        await _send(writer, last)

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> None:
        op = msgspec.json.decode(line, type=_Op).op
        if op not in self._operations:
            raise LocalError(
                f'"{op}" is none of {", ".join(sorted(self._operations))}; is the agent of another version?'
            )
        async with aclosing(self._operations[op](line)) as replies:
            async for reply in replies:
                await _send(writer, _Part(msgspec.Raw(msgspec.json.encode(reply))))


async def _send(writer: asyncio.StreamWriter, document: msgspec.Struct) -> None:
    writer.write(msgspec.json.encode(document) + b"\n")
    async with asyncio.timeout(TAKE_S):
        await writer.drain()


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """A name of ``path`` that fits a socket address: a long one goes through the open folder (Linux)."""
    if len(os.fsencode(path)) <= _PATH_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        short = Path(f"/proc/self/fd/{folder}", path.name)
        if not short.parent.is_dir():
            raise LocalError(f"{path}: longer than {_PATH_BYTES_MAX} bytes; give gateway.data_dir a shorter path")
        yield str(short)
    finally:
        os.close(folder)


def _bind(path: Path) -> socket.socket:
    """Listening, 0600 from the first moment on; what a dead agent left is replaced. Raises OSError, LocalError."""
    listener = socket.socket(socket.AF_UNIX)
    try:
        os.fchmod(listener.fileno(), 0o600)  # Linux gives the file this mode
        with _reachable(path) as name:
            if path.is_socket():
                with socket.socket(socket.AF_UNIX) as knock:
                    knock.settimeout(GREETING_S)
                    try:
                        knock.connect(name)
                    except ConnectionRefusedError:
                        path.unlink()
                    else:
                        raise LocalError("another agent listens there")
            listener.bind(name)
            path.chmod(0o600)
            listener.listen(CLIENTS_MAX)
            listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


# ---- the side of meterctl --------------------------------------------------------------------------------------------


class LocalAgent:
    """A running agent that can be asked; each question takes a connection of its own."""

    def __init__(self, path: Path, greeting: Greeting) -> None:
        self._path = path
        self.pid = greeting.pid
        self.gateway = greeting.gateway
        self.software = greeting.software

    def __str__(self) -> str:
        return f"the agent running as pid {self.pid}"

    def ask(self, question: msgspec.Struct, kind: type[R], *, timeout_s: float = 60.0) -> Iterator[R]:
        """The replies as they come, each of ``kind``; leaving the loop early hangs up. ``timeout_s``: between replies.

        Raises LocalError when the agent refuses, falls silent or goes away.
        """
        with _connection(self._path, timeout_s) as (link, stream, _):
            try:
                link.sendall(msgspec.json.encode(question) + b"\n")
            except OSError as error:
                raise LocalError("the running agent went away") from error
            while True:
                document = _receive(stream, _Line)
                if document.reply:
                    yield msgspec.json.decode(document.reply, type=kind)
                if document.error:
                    raise LocalError(document.error)
                if document.end:
                    return


def connect(site: Site) -> LocalAgent | None:
    """The agent running on this site's data folder; None where there is none. Raises LocalError when one is there and
    cannot be asked, since to go past it would disturb its lines."""
    path = site.data_dir / SOCKET
    try:
        if not path.is_socket():
            return None
        with _connection(path, GREETING_S) as (_, _, greeting):
            return LocalAgent(path, greeting)
    except PermissionError as error:
        raise LocalError(f"{path}: the agent runs as another user; use `sudo -u` with its name") from error
    except (ConnectionRefusedError, FileNotFoundError):  # left behind by one that was killed
        return None


@contextmanager
def _connection(path: Path, timeout_s: float) -> Iterator[tuple[socket.socket, io.BufferedReader, Greeting]]:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(GREETING_S)
        with _reachable(path) as name:
            link.connect(name)
        with link.makefile("rb") as stream:
            greeting = _receive(stream, Greeting)
            if greeting.error:
                raise LocalError(f"the agent running as pid {greeting.pid} does not listen: {greeting.error}")
            link.settimeout(timeout_s)
            yield link, stream, greeting


def _receive(stream: io.BufferedReader, kind: type[R]) -> R:
    try:
        line = stream.readline(REPLY_BYTES_MAX)
    except TimeoutError as error:
        raise LocalError("the running agent does not answer; look at its log, or stop it and try again") from error
    except ConnectionError as error:
        raise LocalError("the running agent went away") from error
    if not line.endswith(b"\n"):
        raise LocalError("the running agent went away")
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.MsgspecError as error:
        raise LocalError(f"the running agent is of another version ({error}); restart it") from error
