"""Several ingestors as processes: started, started again when they die, stopped together."""

import logging
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocols.clock import Clock

logger = logging.getLogger(__name__)

LOOK_S: Final = 0.2
BACKOFF_S: Final = (0.5, 30.0)
STEADY_S: Final = 60.0  # who ran for so long begins with the shortest wait
STOP_S: Final = 30.0  # to finish, commit and acknowledge; then it is killed, and what it held comes again

_PROGRAM: Final = (sys.executable, "-c", "from cloud.gridloom import main; main()")


@dataclass(slots=True)
class _Child:
    arguments: Sequence[str]
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    start_at: float = 0.0
    delay_s: float = BACKOFF_S[0]
    finished: bool = False


class Supervisor:
    """``run`` returns after ``stop``, or when every worker has ended by itself and well, as when it drains."""

    def __init__(self, commands: Sequence[Sequence[str]], clock: Clock) -> None:
        """``commands``: arguments of `gridloom` for each worker."""
        self._children = [_Child(arguments) for arguments in commands]
        self._clock = clock
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        try:
            while not self._stopping.is_set() and not all(child.finished for child in self._children):
                for child in self._children:
                    self._look_after(child)
                self._stopping.wait(LOOK_S)
        finally:
            self._end()

    def _look_after(self, child: _Child) -> None:
        now_s = self._clock.monotonic()
        if child.process is None:
            if not child.finished and now_s >= child.start_at:
                # Its standard input closes when we are gone, however we went: it then stops, too.
                child.process = subprocess.Popen(
                    [*_PROGRAM, *child.arguments, "--until-stdin-closes"], stdin=subprocess.PIPE
                )
                child.started_at = now_s
            return
        status = child.process.poll()
        if status is None:
            return
        if child.process.stdin:
            child.process.stdin.close()
        child.process = None
        if status in (0, 2):  # 2: it was started wrongly, and will not be right another time
            child.finished = True
            if status:
                logger.error("worker cannot run arguments=%s", " ".join(child.arguments))
            return
        if now_s - child.started_at >= STEADY_S:
            child.delay_s = BACKOFF_S[0]
        wait_s = child.delay_s * random.uniform(0.5, 1.5)
        child.start_at = now_s + wait_s
        child.delay_s = min(2 * child.delay_s, BACKOFF_S[1])
        logger.error("worker ended arguments=%s status=%d; again in %.1f s", " ".join(child.arguments), status, wait_s)

    def _end(self) -> None:
        running = [child.process for child in self._children if child.process is not None]
        for process in running:
            process.terminate()
        deadline = self._clock.monotonic() + STOP_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - self._clock.monotonic()))
            except subprocess.TimeoutExpired:
                logger.error("worker does not stop pid=%d; killed, its messages come again", process.pid)
                process.kill()
                process.wait()
            if process.stdin:
                process.stdin.close()
