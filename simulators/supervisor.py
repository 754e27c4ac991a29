"""Keeps programs running: starts them in order, restarts what dies, ends all of them, leaves none behind."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

RESTART_MIN_S = 0.5
RESTART_MAX_S = 8.0
STOP_S = 8.0
HEALTH_S = 5.0
HEALTH_TRIES = 3
LOG_BYTES_MAX = 20_000_000
_PR_SET_PDEATHSIG = 1


class ProgramError(RuntimeError):
    """A program could not be started or would not become ready; the text says which, and where its log is."""


@dataclass(frozen=True)
class Program:
    """One program: its command, its environment on top of ours, and how it is told to stop."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    popen: Mapping[str, Any] = field(default_factory=dict)
    stop_signal: signal.Signals = signal.SIGTERM
    # Asked every HEALTH_S; a program that runs but fails this HEALTH_TRIES times in a row is killed and started again.
    healthy: Callable[[], bool] | None = None


@dataclass
class _Running:
    program: Program
    process: "subprocess.Popen[bytes]"
    started_s: float
    restarts: int = 0
    wait_s: float = RESTART_MIN_S
    again_s: float | None = None
    asked_s: float = 0.0
    ill: int = 0


class Supervisor:
    """Owns a set of programs. Their output goes to ``logs/NAME.log``, their ids to ``processes.json``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._logs = directory / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, _Running] = {}

    def log_of(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def start(self, program: Program) -> None:
        self._running[program.name] = _Running(program, self._spawn(program), time.monotonic())
        self._write_ids()

    def run(self, program: Program, timeout_s: float = 120) -> str:
        """Run a program to its end and return what it printed. Raises ProgramError when it fails."""
        try:
            done = subprocess.run(
                program.command,
                env=os.environ | dict(program.environment),
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_s,
                preexec_fn=_die_with_parent,
            )
        except subprocess.TimeoutExpired as error:
            raise ProgramError(f"{program.name}: not finished after {timeout_s:.0f} s") from error
        with self._open_log(program.name) as log:
            log.write(done.stderr.encode())
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
            raise ProgramError(f"{program.name}: {last[0]} (log: {self.log_of(program.name)})")
        return done.stdout

    def wait_ready(self, name: str, ready: Callable[[], bool], timeout_s: float = 60) -> None:
        """Wait until ``ready``; a program that ends meanwhile is an error, not a reason to restart it."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            code = self._running[name].process.poll()
            if code is not None or time.monotonic() > deadline:
                last = self.log_of(name).read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
                state = f"ended with {code}" if code is not None else f"not ready after {timeout_s:.0f} s"
                raise ProgramError(f"{name} {state}: {last[0]} (log: {self.log_of(name)})")
            time.sleep(0.05)

    def tend(self) -> None:
        """Start again what has died, each after its own growing pause. Call this a few times a second."""
        now_s = time.monotonic()
        for running in self._running.values():
            if running.process.poll() is None:
                if now_s - running.started_s > 30:
                    running.wait_s = RESTART_MIN_S
                self._examine(running, now_s)
                continue
            if running.again_s is None:
                running.again_s = now_s + running.wait_s
                running.wait_s = min(running.wait_s * 2, RESTART_MAX_S)
            elif now_s >= running.again_s:
                running.process = self._spawn(running.program)
                running.started_s, running.again_s, running.ill = now_s, None, 0
                running.restarts += 1
                self._write_ids()

    @staticmethod
    def _examine(running: _Running, now_s: float) -> None:
        healthy = running.program.healthy
        if healthy is None or now_s - max(running.asked_s, running.started_s) < HEALTH_S:
            return
        running.asked_s = now_s
        running.ill = 0 if healthy() else running.ill + 1
        if running.ill >= HEALTH_TRIES:
            running.process.kill()

    @property
    def ids(self) -> dict[str, int]:
        return {name: running.process.pid for name, running in self._running.items()}

    @property
    def restarts(self) -> dict[str, int]:
        return {name: running.restarts for name, running in self._running.items() if running.restarts}

    def stop(self) -> None:
        """End all programs, the last started first; whoever will not go in time is killed."""
        deadline = time.monotonic() + STOP_S
        for running in reversed(self._running.values()):
            if running.process.poll() is None:
                running.process.send_signal(running.program.stop_signal)
        for running in reversed(self._running.values()):
            try:
                running.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.wait()
        self._running.clear()
        with contextlib.suppress(FileNotFoundError):
            self._ids.unlink()

    @property
    def _ids(self) -> Path:
        return self._directory / "processes.json"

    def _write_ids(self) -> None:
        fresh = self._ids.with_suffix(".new")
        fresh.write_text(json.dumps(self.ids))
        fresh.replace(self._ids)

    def _open_log(self, name: str) -> IO[bytes]:
        path = self.log_of(name)
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.replace(path.with_suffix(".log.old"))
        return path.open("ab")

    def _spawn(self, program: Program) -> "subprocess.Popen[bytes]":
        with self._open_log(program.name) as log:
            return subprocess.Popen(
                program.command,
                env=os.environ | dict(program.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which ends the rest in order
                preexec_fn=_die_with_parent,
                **program.popen,
            )


def _die_with_parent() -> None:
    """Even when the supervisor is killed, no program is left behind (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def port_answers(port: int, host: str = "127.0.0.1") -> bool:
    try:
        socket.create_connection((host, port), 0.5).close()
    except OSError:
        return False
    return True
