"""What was read goes to disk: rows and events of all lines that come within a moment share one fsync."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gateway.queue import BATCH_ROWS, Queue
from protocols.clock import Clock
from protocols.quantities import Kind
from protocols.uplink import Event, Row

logger = logging.getLogger(__name__)

GATHER_S: Final = 0.05  # a sweep of 500 endpoints makes some 20 batches, not 500
FULL_S: Final = 1.0  # between two tries on a full disk


@dataclass(slots=True)
class _Load:
    """What one write takes along. ``kept`` is done when it is on disk (True) or the disk is full (False)."""

    kept: "asyncio.Future[bool]"
    rows: dict[Kind, list[Row]] = field(default_factory=dict)
    again: list[Row] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    size: int = 0


class Keeper:
    """The agent's one writer of readings. ``kept`` is called after each write.

    Whoever hands something in waits until it is on disk, so a full disk slows the lines down instead of filling the
    memory: what is refused is not collected, and is read again.
    """

    def __init__(self, queue: Queue, clock: Clock, *, kept: Callable[[], None]) -> None:
        self._queue, self._clock, self._kept = queue, clock, kept
        self._load: _Load | None = None
        self._has_work = asyncio.Event()
        self._is_full = asyncio.Event()  # a write's worth waits
        self.disk_is_full = False

    async def rows(self, kind: Kind, rows: Sequence[Row], *, again: bool = False) -> bool:
        """Whether they are kept. ``again``: energy that somebody asked for, also where it was collected before."""
        if not rows:
            return True
        load = self._open()
        (load.again if again else load.rows.setdefault(kind, [])).extend(rows)
        return await self._hand_in(load, len(rows))

    async def events(self, events: Sequence[Event]) -> bool:
        if not events:
            return True
        load = self._open()
        load.events.extend(events)
        return await self._hand_in(load, len(events))

    async def run(self) -> None:
        """Write for ever. Raises sqlite3.DatabaseError where the queue is damaged."""
        while True:
            await self._has_work.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._is_full.wait()
            load, self._load = self._load, None
            self._has_work.clear()
            self._is_full.clear()
            assert load is not None
            load.kept.set_result(await self._write(load))

    def _open(self) -> _Load:
        if self._load is None:
            self._load = _Load(asyncio.get_running_loop().create_future())
        return self._load

    async def _hand_in(self, load: _Load, size: int) -> bool:
        load.size += size
        self._has_work.set()
        if load.size >= BATCH_ROWS:
            self._is_full.set()
        return await asyncio.shield(load.kept)  # one who gives up takes nothing from the others

    async def _write(self, load: _Load) -> bool:
        try:
            await asyncio.to_thread(self._append, load)
        except sqlite3.OperationalError as error:
            if not self.disk_is_full:
                logger.error("queue cannot be written path=%s: %s; make room", self._queue.path, error)
            self.disk_is_full = True
            await self._clock.sleep(FULL_S)
            return False
        if self.disk_is_full:
            logger.info("queue can be written again path=%s", self._queue.path)
            self.disk_is_full = False
        self._kept()
        return True

    def _append(self, load: _Load) -> None:
        now = self._clock.now()
        for kind, rows in load.rows.items():
            self._queue.append_rows(kind, rows, now)
        if load.again:
            self._queue.append_rows(Kind.ENERGY, load.again, now, again=True)
        if load.events:
            self._queue.append_events(load.events, now)
