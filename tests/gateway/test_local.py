"""The agent's local socket, on a real one: bounds, manners, and clients that vanish."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from gateway import local
from gateway.config import Site
from gateway.local import CLIENTS_MAX, QUESTION_BYTES_MAX, SOCKET, Local, LocalAgent, LocalError, connect
from gateway.uplink import Broker


class Count(msgspec.Struct, tag_field="op", tag="count", frozen=True):
    to: int


class Number(msgspec.Struct, frozen=True):
    number: int


class Server:
    """An agent's socket with one operation, that counts and tells when it was left; it runs in a thread."""

    def __init__(self, folder: Path) -> None:
        self.local = Local(folder, gateway="gw-1", software="gridloom test")
        self.local.offer(Count, self._count)
        self.left = threading.Event()

    async def _count(self, question: Count) -> AsyncGenerator[msgspec.Struct, None]:
        try:
            for number in range(question.to):
                yield Number(number)
                if number == 13:
                    raise LocalError("thirteen is not counted")
                await asyncio.sleep(0 if number < 5 else 0.05)
        finally:
            self.left.set()


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    loop = asyncio.new_event_loop()
    task = loop.create_task(server.local.run())

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(asyncio.sleep(0.05))  # what was cancelled ends
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    while connect(site(folder)) is None and thread.is_alive():
        time.sleep(0.01)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)


def site(folder: Path) -> Site:
    return Site("gw-1", folder, Broker("127.0.0.1", 1883, "gw-1", ""), 900, 35, 4_000_000, ())


def ask(folder: Path, to: int) -> list[int]:
    agent = connect(site(folder))
    assert agent is not None and agent.pid == os.getpid() and agent.gateway == "gw-1"
    return [reply.number for reply in agent.ask(Count(to), Number)]


@contextmanager
def raw_client(folder: Path) -> Iterator[socket.SocketIO]:
    """A client of its own making, after the greeting."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(10)
        link.connect(str(folder / SOCKET))
        with link.makefile("rwb", buffering=0) as stream:
            stream.readline()
            yield stream


def test_a_question_has_replies_and_an_end(tmp_path: Path) -> None:
    with running(tmp_path):
        assert ask(tmp_path, 3) == [0, 1, 2]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lambda to: ask(tmp_path, to), [4] * 4)) == [[0, 1, 2, 3]] * 4


def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    folder = tmp_path / ("long-" * 30)
    folder.mkdir()
    with running(folder):
        assert (folder / SOCKET).is_socket()
        assert ask(folder, 1) == [0]


def test_only_the_owner_may_ask(tmp_path: Path) -> None:
    with running(tmp_path):
        assert stat.S_IMODE((tmp_path / SOCKET).stat().st_mode) == 0o600


def test_nobody_listens(tmp_path: Path) -> None:
    assert connect(site(tmp_path)) is None


def test_what_a_killed_agent_left_is_replaced_and_a_living_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = f"import os, socket; s = socket.socket(socket.AF_UNIX); s.bind({str(tmp_path / SOCKET)!r}); os._exit(9)"
    subprocess.run([sys.executable, "-c", dead], check=False)
    assert (tmp_path / SOCKET).is_socket()
    assert connect(site(tmp_path)) is None
    with running(tmp_path):
        assert ask(tmp_path, 1) == [0]
        asyncio.run(asyncio.wait_for(Local(tmp_path, gateway="gw-2", software="").run(), 10))
        assert "another agent listens there" in caplog.text
        assert ask(tmp_path, 1) == [0]
    assert not (tmp_path / SOCKET).exists()


def test_who_hangs_up_ends_what_they_asked_for(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        agent = connect(site(tmp_path))
        assert agent is not None
        for reply in agent.ask(Count(10_000), Number):
            if reply.number == 6:
                break
        assert server.left.wait(10)
        assert ask(tmp_path, 1) == [0]


def test_a_refusal_is_told(tmp_path: Path) -> None:
    with running(tmp_path), pytest.raises(LocalError, match="thirteen is not counted"):
        ask(tmp_path, 20)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"op": "dance"}\n', '\\"dance\\" is none of count; is the agent of another version?'),
        (b'{"op": "count"}\n', "not understood: Object missing required field `to`"),
        (b"rhubarb\n", "not understood: "),
        (b"[" * (QUESTION_BYTES_MAX + 10) + b"\n", f"the question is longer than {QUESTION_BYTES_MAX} bytes"),
    ],
)
def test_nonsense_is_answered_with_an_error(tmp_path: Path, line: bytes, said: str) -> None:
    with running(tmp_path):
        with raw_client(tmp_path) as stream:
            stream.write(line)
            answer = stream.readline()
        assert said in answer.decode() and b'"end":true' in answer
        assert ask(tmp_path, 1) == [0]


def test_one_client_too_many_is_told_so_and_the_others_go_on(tmp_path: Path) -> None:
    with running(tmp_path), ExitStack() as others:
        for _ in range(CLIENTS_MAX):
            others.enter_context(raw_client(tmp_path))
        with pytest.raises(LocalError, match=f"{CLIENTS_MAX} others ask already"):
            ask(tmp_path, 1)


def test_who_says_nothing_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "ASK_S", 0.1)
    with running(tmp_path), raw_client(tmp_path) as stream:
        assert stream.readline() == b""


def test_an_agent_that_hangs_is_not_passed_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GREETING_S", 0.2)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / SOCKET))
        mute.listen()
        with pytest.raises(LocalError, match="does not answer"):
            connect(site(tmp_path))


def test_an_agent_that_dies_meanwhile_is_told(tmp_path: Path) -> None:
    with running(tmp_path):
        agent = connect(site(tmp_path))
        assert isinstance(agent, LocalAgent)
        replies = agent.ask(Count(10_000), Number)
        assert next(replies).number == 0
    with pytest.raises(LocalError, match="went away"):
        list(replies)
