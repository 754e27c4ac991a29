"""Everything a cloud may order but demand response: each is begun in the journal, done once, and answered."""

import asyncio
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from edge.model import PollFailure
from gateway.commands.field import Field, say
from gateway.commands.journal import Journal, Order
from gateway.sites import Active
from protocols.clock import Clock
from protocols.uplink import (
    ITEMS_MAX,
    METERS_MAX,
    SITE_BYTES_MAX,
    Backfill,
    Command,
    Configure,
    ItemResult,
    Outcome,
    Prepared,
    Read,
    RelayConfirm,
    RelayPrepare,
    Restart,
    Row,
    SyncClock,
    from_us,
    to_us,
)

# Between the two steps of a relay: time to look, and too short to forget about it.
PREPARED_LIFE: Final = timedelta(minutes=5)
ITEM_LETTERS_MAX: Final = 100
SPAN_MAX: Final = timedelta(days=366)
PIECE_MARKS: Final = 24  # one read from memory, as gaps are read: what a lost frame costs
KEEP_ROWS: Final = 480  # of one meter, then they go to the queue: what a kill costs
AGAIN_S: Final = 2.0
AGAIN_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a reply says, without whose it is and when."""

    outcome: Outcome
    detail: str
    meters: dict[str, str] = dataclasses.field(default_factory=dict)
    results: list[ItemResult] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)
    prepared: Prepared | None = None


class Orders:
    def __init__(self, journal: Journal, clock: Clock, field: Field) -> None:
        self._journal = journal
        self._clock = clock
        self._field = field
        self._changing = asyncio.Lock()  # one restart or trial at a time

    async def carry_out(self, command: Command) -> Answer | None:
        """None where the answer comes later: after a restart, or from whoever watches a trial."""
        match command.body:
            case Read() as read:
                return await self._read(command, read)
            case Backfill() as backfill:
                return await self._backfill(command, backfill)
            case SyncClock() as sync:
                return await self._sync_clocks(command, sync)
            case RelayPrepare() as relay:
                return await self._prepare(command, relay)
            case RelayConfirm() as relay:
                return await self._confirm(command, relay)
            case Restart() | Configure():
                async with self._changing:
                    return await self._change(command)
        raise AssertionError(command.body)

    async def _begin(self, command: Command) -> None:
        await asyncio.to_thread(self._journal.begin, command.id)

    def _is_over(self, command: Command) -> bool:
        return to_us(self._clock.now()) >= command.expires_at

    def _unknown(self, meters: list[str]) -> Answer | None:
        """Why an order on ``meters`` is not begun: all strangers, not the first."""
        if len(meters) > METERS_MAX:
            return Answer(Outcome.REJECTED, f"meters: at most {METERS_MAX} expected")
        strangers = {name: "this gateway has no such meter" for name in meters if name not in self._field.meters}
        if not strangers:
            return None
        return Answer(Outcome.REJECTED, f"{len(strangers)} meters are not this gateway's", meters=strangers)

    # ---- meters ------------------------------------------------------------------------------------------------------

    async def _read(self, command: Command, read: Read) -> Answer:
        if refusal := self._unknown([read.meter]):
            return refusal
        if not 1 <= len(read.items) <= ITEMS_MAX or max(map(len, read.items)) > ITEM_LETTERS_MAX:
            what = f"items: 1 to {ITEMS_MAX} expected, of at most {ITEM_LETTERS_MAX} letters"
            return Answer(Outcome.REJECTED, what)
        await self._begin(command)
        results: list[ItemResult] = []
        for item in read.items:
            if self._is_over(command):
                results.append(ItemResult(item=item, error="not read: the command expired"))
            else:
                results.append(await self._field.read(read.meter, item))
        count = sum(not result.error for result in results)
        outcome = Outcome.DONE if count else Outcome.FAILED
        return Answer(outcome, f"{count} of {len(results)} items of {read.meter} read", results=results)

    async def _sync_clocks(self, command: Command, sync: SyncClock) -> Answer:
        if refusal := self._unknown(sync.meters):
            return refusal
        await self._begin(command)
        meters = sync.meters or list(self._field.meters)
        synced = await self._field.sync_clocks(meters, f"command {command.id}", from_us(command.expires_at))
        right = sum(not one.reason for one in synced.values())
        said = {name: str(one) for name, one in synced.items()}
        outcome = Outcome.DONE if right else Outcome.FAILED
        return Answer(outcome, f"{right} of {len(meters)} clocks are right", meters=said)

    async def _backfill(self, command: Command, backfill: Backfill) -> Answer:
        if refusal := self._unknown(backfill.meters):
            return refusal
        now = self._clock.now()
        if not 0 <= backfill.start < backfill.end < 2**53:
            return Answer(Outcome.REJECTED, "start: before end expected")
        if from_us(backfill.end) - from_us(backfill.start) > SPAN_MAX or backfill.start > to_us(now):
            return Answer(Outcome.REJECTED, f"start, end: at most {SPAN_MAX.days} days, not in the future, expected")
        await self._begin(command)
        step_us = self._field.queue.interval_s * 1_000_000
        first = -(-backfill.start // step_us)
        end = min(-(-backfill.end // step_us), self._field.queue.mark_of(now) + 1)
        meters = list(dict.fromkeys(backfill.meters)) or list(self._field.meters)
        tallies = await asyncio.gather(*(self._read_again(command, name, first, end) for name in meters))
        read = sum(tally.read for tally in tallies)
        total = len(meters) * max(end - first, 0)
        said = {name: tally.said(max(end - first, 0)) for name, tally in zip(meters, tallies, strict=True)}
        outcome = Outcome.DONE if read or not total else Outcome.FAILED
        return Answer(outcome, f"{read} of {total} marks of {len(meters)} meters read from memory", meters=said)

    async def _read_again(self, command: Command, name: str, first: int, end: int) -> "_Tally":
        """Newest first. A meter that does not answer is asked again until the command expires."""
        tally, rows, wait_s = _Tally(), list[Row](), AGAIN_S
        for piece_first, piece_end in _pieces(first, end):
            while not self._is_over(command):
                found = await self._field.read_marks(name, piece_first, piece_end)
                if found is None:
                    await self._clock.sleep(wait_s)
                    wait_s = min(2 * wait_s, AGAIN_MAX_S)
                    continue
                wait_s = AGAIN_S
                if isinstance(found, PollFailure):
                    tally.refused, tally.why = tally.refused + piece_end - piece_first, say(found)
                else:
                    rows += found
                    tally.absent += piece_end - piece_first - len(found)
                break
            if len(rows) >= KEEP_ROWS:
                await self._keep(rows, tally)
                rows = []
        if rows:
            await self._keep(rows, tally)
        return tally

    async def _keep(self, rows: list[Row], tally: "_Tally") -> None:
        if await self._field.keep(rows):
            tally.read += len(rows)
        else:
            tally.why = "the queue cannot be written"

    # ---- relays ------------------------------------------------------------------------------------------------------

    async def _prepare(self, command: Command, relay: RelayPrepare) -> Answer:
        if problem := self._field.problem(relay.meter):
            return Answer(Outcome.REJECTED, f"{relay.meter}: {problem}")
        await self._begin(command)
        order = Order(relay.meter, relay.closed, to_us(self._clock.now() + PREPARED_LIFE))
        token = await asyncio.to_thread(self._journal.prepare, command.id, order)
        what = f"{relay.meter}: prepared to {'close' if relay.closed else 'open'}; nothing has moved"
        return Answer(Outcome.DONE, what, prepared=Prepared(token=token, void_at=order.void_at))

    async def _confirm(self, command: Command, relay: RelayConfirm) -> Answer:
        order = await asyncio.to_thread(self._journal.take, command.id, relay.token, self._clock.now())
        if isinstance(order, str):
            return Answer(Outcome.REJECTED, order)
        if problem := self._field.problem(order.meter):  # another site came meanwhile
            await asyncio.to_thread(self._journal.not_opened, order.meter, command.id)
            return Answer(Outcome.REJECTED, f"{order.meter}: {problem}")
        expires_at = from_us(min(order.void_at, command.expires_at))
        refusal = await self._field.switch(order.meter, closed=order.closed, expires_at=expires_at)
        done = "closed" if order.closed else "opened"
        if refusal is None:
            if order.closed:
                await asyncio.to_thread(self._journal.closed_by_hand, order.meter)
            await self._field.happened(f"relay_{done}", order.meter, command.id)
            return Answer(Outcome.DONE, f"{order.meter}: {done}")
        if refusal.surely:
            await asyncio.to_thread(self._journal.not_opened, order.meter, command.id)
            return Answer(Outcome.FAILED, f"{order.meter}: not {done}: {refusal.reason}")
        return Answer(Outcome.FAILED, f"{order.meter}: may be {done}, nothing confirms it: {refusal.reason}")

    # ---- the gateway itself ------------------------------------------------------------------------------------------

    async def _change(self, command: Command) -> Answer | None:
        active = self._field.active
        if active.origin == "trial" or self._field.wish.done():
            return Answer(Outcome.REJECTED, "a site is on trial or a restart is under way; wait for its outcome")
        if isinstance(command.body, Configure):
            return await self._configure(command, command.body.site, active)
        await self._begin(command)
        self._field.wish.set_result(None)
        return None

    async def _configure(self, command: Command, text: str, active: Active) -> Answer | None:
        if len(text.encode()) > SITE_BYTES_MAX:
            return Answer(Outcome.REJECTED, f"site: at most {SITE_BYTES_MAX} bytes expected")
        site = await asyncio.to_thread(self._field.sites.check, text, active)
        if isinstance(site, list):
            problems = [str(problem) for problem in site]
            return Answer(Outcome.REJECTED, f"{len(problems)} problems in the site file", problems=problems)
        await self._begin(command)
        try:
            trial = await asyncio.to_thread(
                self._field.sites.try_out, text, site, command=command.id, now=self._clock.now()
            )
        except OSError as error:
            return Answer(Outcome.FAILED, f"{site.data_dir}: {error.strerror}; make room; nothing has changed")
        self._field.wish.set_result(trial)
        return None


@dataclass(slots=True)
class _Tally:
    """Marks of one meter: ``read`` and queued, ``absent`` from its memory, ``refused`` with the reason ``why``."""

    read: int = 0
    absent: int = 0
    refused: int = 0
    why: str = ""

    def said(self, total: int) -> str:
        left = total - self.read - self.absent - self.refused
        parts = [f"{self.read} of {total} read"]
        parts += [f"{self.absent} the meter does not have"] if self.absent else []
        parts += [f"{self.refused} refused"] if self.refused else []
        parts += [f"{left} not answered in time"] if left and not self.why else []
        return ", ".join(parts) + (f" ({self.why})" if self.why else "")


def _pieces(first: int, end: int) -> Iterator[tuple[int, int]]:
    """Newest first; none crosses a multiple of PIECE_MARKS, so that none crosses a UTC day."""
    while end > first:
        start = max(first, (end - 1) // PIECE_MARKS * PIECE_MARKS)
        yield start, end
        end = start
