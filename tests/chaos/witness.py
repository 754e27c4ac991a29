"""What each gateway of a chaos run collected and was promised: one line of text each, written before anything else.

A SIGKILL leaves a line whole, or without its end where a page ends; that is cut off at the next start.
"""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path


class Witness:
    """A gateway's pen. ``begin`` is written before the queue commits, ``promised`` before it deletes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        os.truncate(self._file, path.read_bytes().rfind(b"\n") + 1)

    def open(self, epoch: str, seq: int) -> None:
        self._write("open", epoch, seq)

    def begin(self, step: int, seq: int, sent_us: int) -> None:
        self._write("begin", step, seq, sent_us)

    def end(self, step: int) -> None:
        self._write("end", step)

    def refuse(self, step: int) -> None:
        """The queue's disk is full."""
        self._write("refused", step)

    def promise(self, epoch: str, first: int, last: int) -> None:
        self._write("promised", epoch, first, last)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, *words: str | int) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


@dataclass(frozen=True, slots=True)
class Collected:
    """A batch that the queue took."""

    step: int
    seq: int
    sent_us: int


@dataclass
class Account:
    """A reader of one witness, from where it stopped the last time.

    ``begun``: what the gateway does not know the outcome of, before it has looked into its queue.
    """

    path: Path
    epochs: list[str] = field(default_factory=list)
    starts: int = 0
    refused: int = 0
    collected: dict[int, Collected] = field(default_factory=dict)  # by seq
    promised: dict[str, set[int]] = field(default_factory=dict)  # by epoch
    begun: Collected | None = None
    forgotten: list[str] = field(default_factory=list)
    _offset: int = 0
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @property
    def next_step(self) -> int:
        return max((it.step for it in self.collected.values()), default=-1) + 1

    @property
    def is_promised(self) -> bool:
        """Whether all that was collected has a receipt, and nothing is open since the last kill."""
        if self.begun or not self.epochs:
            return False
        return self.collected.keys() <= self.promised.get(self.epochs[-1], set())

    def read(self) -> None:
        if not self.path.exists():
            return
        with self._reading, self.path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]  # the last line may just be being written
            for line in whole.splitlines():
                self._take(line.decode().split())
            self._offset += len(whole)

    def _take(self, words: list[str]) -> None:
        match words:
            case ["open", epoch, seq]:
                self.starts += 1
                if epoch not in self.epochs:
                    self.epochs.append(epoch)
                last = max(self.collected, default=0)
                if int(seq) < last:
                    self.forgotten.append(f"{self.path.stem}: batch {last} was queued, and now it ends with {seq}")
            case ["begin", step, seq, sent_us]:
                self.begun = Collected(int(step), int(seq), int(sent_us))
            case ["end", step]:
                assert self.begun and self.begun.step == int(step)
                self.collected[self.begun.seq] = self.begun
                self.begun = None
            case ["refused", step]:
                assert self.begun and self.begun.step == int(step)
                self.refused += 1
                self.begun = None
            case ["promised", epoch, first, last]:
                self.promised.setdefault(epoch, set()).update(range(int(first), int(last) + 1))
            case _:
                raise AssertionError(f"{self.path}: {words}")
