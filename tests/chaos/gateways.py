"""``python -m tests.chaos.gateways`` with a ``Crew`` as JSON on stdin: gateways without meters, until they are killed.

Queue and uplink are the product's own; what is queued is known beforehand (``content``), and witnessed.
"""

import asyncio
import random
import sqlite3
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from gateway.commands.journal import Journal
from gateway.queue import QUEUE_FILE, Queue
from gateway.uplink import Broker, Uplink
from protocols.clock import SystemClock
from protocols.quantities import Kind
from protocols.uplink import Status, to_us
from tests.chaos.content import events_of, kind_of, rows_of
from tests.chaos.witness import Account, Witness

QUEUE_BYTES_MAX = 200_000_000


class Crew(msgspec.Struct):
    """The gateways of one process. ``gateways``: name → password. Nothing new is collected once ``enough`` is there."""

    port: int
    gateways: dict[str, str]
    queues: str
    witnesses: str
    enough: str
    start: datetime
    period_s: float


class WitnessedQueue(Queue):
    def __init__(self, path: Path, witness: Witness, *, gateway: str) -> None:
        super().__init__(path, gateway=gateway, interval_s=900, bytes_max=QUEUE_BYTES_MAX)
        self.witness = witness
        witness.open(self.epoch, self.seq)

    @property
    def seq(self) -> int:
        return self._seq

    def settle(self, epoch: str, stored: Sequence[tuple[int, int]], now: datetime | None = None) -> int:
        for first, last in stored:
            self.witness.promise(epoch, first, last)
        return super().settle(epoch, stored, now)


class Gateway:
    def __init__(self, crew: Crew, name: str) -> None:
        path = Path(crew.witnesses) / name
        account = Account(path)
        account.read()
        self._name = name
        self._enough = Path(crew.enough)
        self._crew = crew
        self._clock = SystemClock()
        self._witness = Witness(path)
        self._queue = WitnessedQueue(Path(crew.queues) / name / QUEUE_FILE, self._witness, gateway=name)
        if account.begun:  # and killed before the outcome was written: the queue knows it
            if self._queue.seq >= account.begun.seq:
                self._witness.end(account.begun.step)
            else:
                self._witness.refuse(account.begun.step)
            account.read()
        self._step = account.next_step
        self._uplink = Uplink(
            Broker("127.0.0.1", crew.port, name, crew.gateways[name]),
            self._queue,
            Journal(self._queue),
            self._clock,
            receive=self._ignore,
            status=lambda: Status(online=True, at=to_us(self._clock.now()), epoch=self._queue.epoch),
        )

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._uplink.run())
            tasks.create_task(self._collect())

    async def _collect(self) -> None:
        while not self._enough.exists():
            if await asyncio.to_thread(self._put, self._step):
                self._step += 1
                self._uplink.wake()
                if kind_of(self._step) is not Kind.ENERGY:  # the mark has more
                    continue
            await asyncio.sleep(self._crew.period_s * random.uniform(0.5, 1.5))

    def _put(self, step: int) -> bool:
        """False where the disk is full."""
        now = self._clock.now()
        self._witness.begin(step, self._queue.seq + 1, to_us(now))
        try:
            if kind_of(step) is Kind.EVENTS:
                self._queue.append_events(events_of(self._name, self._crew.start, step), now)
            else:
                self._queue.append_rows(kind_of(step), rows_of(self._name, self._crew.start, step), now)
        except sqlite3.OperationalError:
            self._witness.refuse(step)
            return False
        self._witness.end(step)
        return True

    @staticmethod
    async def _ignore(payload: bytes) -> None:
        del payload


async def main() -> None:
    crew = msgspec.json.decode(sys.stdin.buffer.read(), type=Crew)
    async with asyncio.TaskGroup() as tasks:
        for name in crew.gateways:
            tasks.create_task(Gateway(crew, name).run())


if __name__ == "__main__":
    asyncio.run(main())
