"""What commands act on: the meters through their buses, the queue, and the running of the gateway itself."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from edge.bus import Bus
from edge.model import Meter, PollFailure, Reason
from gateway.clocks import Synced
from gateway.queue import Queue
from gateway.sites import Active, Sites
from protocols.clock import Clock
from protocols.uplink import Event, ItemResult, Row, Value, to_us

# Failures after which the meter certainly did not act on an order.
_SURELY_STILL: Final = (Reason.REFUSED, Reason.BACKING_OFF, Reason.ABSENT, Reason.EXPIRED)
_UNHEARD: Final = (Reason.SILENT, Reason.BACKING_OFF, Reason.LINK_DOWN)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a relay did not move. ``surely``: the meter certainly did not act.  ``final``: it would refuse again."""

    reason: str
    surely: bool
    final: bool


@dataclass(slots=True)
class Field:
    """``keep`` queues energy rows that were read again; ``sync_clocks(meters, asked_by, until)`` sets what may be set.

    ``wish`` is set when the gateway is to stop and start again: with a site on trial, or None for the one it has.
    """

    meters: Mapping[str, tuple[Bus, Meter]]
    queue: Queue
    clock: Clock
    keep: Callable[[list[Row]], Awaitable[bool]]
    report: Callable[[Event], Awaitable[None]]
    sync_clocks: Callable[[Sequence[str], str, datetime], Awaitable[Mapping[str, Synced]]]
    sites: Sites
    active: Active
    wish: "asyncio.Future[Active | None]"

    def problem(self, name: str) -> str | None:
        """Why the relay of a meter may not be moved."""
        if name not in self.meters:
            return "this gateway has no such meter"
        return None if self.meters[name][1].controllable else "not controllable in the site file"

    async def switch(self, name: str, *, closed: bool, expires_at: datetime) -> Refusal | None:
        bus, meter = self.meters[name]
        failure = await bus.set_relay(meter, closed=closed, expires_at=expires_at)
        if failure is None:
            return None
        return Refusal(
            say(failure),
            surely=failure.reason in _SURELY_STILL,
            final=failure.reason in (Reason.REFUSED, Reason.EXPIRED),
        )

    async def happened(self, kind: str, meter: str, command_id: str) -> None:
        await self.report(Event(at=to_us(self.clock.now()), kind=kind, meter=meter, detail={"command": command_id}))

    async def read(self, name: str, item: str) -> ItemResult:
        bus, meter = self.meters[name]
        found = await bus.read_item(meter, item)
        if isinstance(found, PollFailure):
            return ItemResult(item=item, error=say(found))
        return ItemResult(
            item=found.item,
            values=[
                Value(name=label, value=value if isinstance(value, str | int | float | None) else str(value), unit=unit)
                for label, value, unit in found.values
            ],
            request=found.request.hex(" ").upper(),
            reply=found.reply.hex(" ").upper(),
        )

    async def read_marks(self, name: str, first: int, end: int) -> list[Row] | PollFailure | None:
        """What the meter remembers of the marks in [first, end); None when it did not answer and may later."""
        bus, meter = self.meters[name]
        rows = await bus.read_profile(meter, self.queue.at(first), end - first)
        if isinstance(rows, PollFailure):
            return None if rows.reason in _UNHEARD else rows
        return rows


def say(failure: PollFailure) -> str:
    return f"{failure.reason.value}: {failure.detail}" if failure.detail else failure.reason.value
