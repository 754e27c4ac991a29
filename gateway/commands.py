"""Commands from the cloud: a demand-response event opens relays at its start and closes them at its end.

Every step is in the queue's file before it is taken, so that a command is executed at most once, and a kill in the
middle still closes what was opened. Exactly one reply is made per command; the same one is sent again where the cloud
asks again. A command is void after ``expires_at``: one that arrives later is not begun. One that arrived in time acts
during [start, end) and nowhere else.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from gateway.queue import Queue
from protocols.clock import Clock
from protocols.uplink import METERS_MAX, Command, Event, Outcome, PayloadError, Reply, decode, encode, from_us, to_us

logger = logging.getLogger(__name__)

# A day after a command is void even a slow clock in the cloud will not send it again, and its id may be forgotten.
REMEMBER: Final = timedelta(days=1)
COMMANDS_MAX: Final = 1_000
SPAN_MAX: Final = timedelta(days=7)
NAME_MAX: Final = 100
# An order to close is void this long after it is given, by the meter's clock.
ORDER_LIFE: Final = timedelta(minutes=10)
OPEN_RETRY_S: Final = 1.0
OPEN_RETRY_MAX_S: Final = 30.0
CLOSE_RETRY_S: Final = 5.0
CLOSE_RETRY_MAX_S: Final = 300.0


class RelayState(StrEnum):
    """Of one meter under one command, as far as we know."""

    REJECTED = "rejected"  # not ours to switch
    OPENING = "opening"  # asked; without an answer it may be open
    OPEN = "open"
    REFUSED = "refused"  # the meter said no, or was never asked
    CLOSED = "closed"
    UNSURE = "unsure"  # never confirmed open; closed now


MUST_CLOSE: Final = (RelayState.OPENING, RelayState.OPEN)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a relay did not move. ``surely``: the meter certainly did not act.  ``final``: it would refuse again."""

    reason: str
    surely: bool
    final: bool


@dataclass(frozen=True, slots=True)
class Switchgear:
    """What the commands act on. ``problem`` says why a meter may not be switched; ``switch`` moves its relay."""

    problem: Callable[[str], str | None]
    switch: Callable[[str, bool, datetime], Awaitable[Refusal | None]]


class Commands:
    """The gateway's open commands. ``told`` is called whenever a reply is waiting for the uplink."""

    def __init__(
        self,
        queue: Queue,
        clock: Clock,
        switchgear: Switchgear,
        *,
        report: Callable[[Event], Awaitable[None]],
        told: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._clock = clock
        self._switchgear = switchgear
        self._report = report
        self._told = told
        self._arrived: asyncio.Queue[Command] = asyncio.Queue()

    async def receive(self, payload: bytes) -> None:
        """Take a command from the uplink. One that is known gets its reply again, if it has one."""
        try:
            command = decode(payload, Command)
        except PayloadError as error:
            logger.warning("command ignored: %s", error)
            return
        if not await asyncio.to_thread(self._accept, command):
            logger.info("command %s is known already", command.id)
            await asyncio.to_thread(self._tell_again, command.id)
            self._told()
            return
        logger.info("command %s: demand response %s on %d meters", *_names(command))
        refusal = self._refusal(command)
        if refusal:
            await self._reply(command, *refusal, {})
        else:
            self._arrived.put_nowait(command)

    async def run(self) -> None:
        """Carry out what a former process left open, then what arrives."""
        for command in await asyncio.to_thread(self._unanswered):
            logger.info("command %s: demand response %s on %d meters, continued", *_names(command))
            self._arrived.put_nowait(command)
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._carry_out(await self._arrived.get()))

    # ---- one command -------------------------------------------------------------------------------------------------

    def _refusal(self, command: Command) -> tuple[Outcome, str] | None:
        now, body = to_us(self._clock.now()), command.body
        if now >= min(command.expires_at, body.end):
            return Outcome.EXPIRED, f"arrived {(now - min(command.expires_at, body.end)) / 1e6:.0f} s too late"
        if body.start >= body.end:
            return Outcome.REJECTED, "start: before end expected"
        if max(body.end - now, now - body.start) > SPAN_MAX // timedelta(microseconds=1):
            return Outcome.REJECTED, f"start, end: within {SPAN_MAX.days} days of now expected"
        if not 1 <= len(body.meters) <= METERS_MAX:
            return Outcome.REJECTED, f"meters: 1 to {METERS_MAX} expected"
        if max(map(len, (command.id, body.event, *body.meters))) > NAME_MAX:
            return Outcome.REJECTED, f"id, event, meters: at most {NAME_MAX} letters expected"
        return None

    async def _carry_out(self, command: Command) -> None:
        start, end = from_us(command.body.start), from_us(command.body.end)
        states = await asyncio.to_thread(self._states, command.id)
        await self._clock.sleep_until(start)
        await self._open_all(command, [meter for meter in dict.fromkeys(command.body.meters) if meter not in states])
        await self._clock.sleep_until(end)
        await self._close_all(command)
        states = await asyncio.to_thread(self._states, command.id)
        await self._reply(command, *outcome_of(command, states))
        wait_s = CLOSE_RETRY_S
        while any(state in MUST_CLOSE for state, _ in states.values()):
            await self._clock.sleep(wait_s * random.uniform(0.75, 1.25))
            wait_s = min(2 * wait_s, CLOSE_RETRY_MAX_S)
            await self._close_all(command)
            states = await asyncio.to_thread(self._states, command.id)

    async def _open_all(self, command: Command, meters: list[str]) -> None:
        """Open ``meters``. Unanswered orders are given again until the end; opening an open relay changes nothing.

        A process that was killed meanwhile does not come here again for a meter it had asked.
        """
        end, wait_s = from_us(command.body.end), OPEN_RETRY_S
        while meters and self._clock.now() < end:
            opened = await asyncio.gather(*(self._open(command, meter) for meter in meters))
            meters = [meter for meter, settled in zip(meters, opened, strict=True) if not settled]
            if meters:
                again = asyncio.create_task(self._clock.sleep(wait_s * random.uniform(0.75, 1.25)))
                over = asyncio.create_task(self._clock.sleep_until(end))
                await asyncio.wait((again, over), return_when=asyncio.FIRST_COMPLETED)
                again.cancel()
                over.cancel()
                wait_s = min(2 * wait_s, OPEN_RETRY_MAX_S)

    async def _open(self, command: Command, meter: str) -> bool:
        """True once it is settled whether this relay is open: it is, or never will be."""
        if problem := self._switchgear.problem(meter):
            await asyncio.to_thread(self._note, command.id, meter, RelayState.REJECTED, problem)
            return True
        before, _ = (await asyncio.to_thread(self._states, command.id)).get(meter, (RelayState.REFUSED, ""))
        await asyncio.to_thread(self._note, command.id, meter, RelayState.OPENING, "no answer yet")
        # Void after the end; a meter that keeps the time itself connects again then, should this box be gone.
        refusal = await self._switchgear.switch(meter, False, from_us(command.body.end))
        if refusal is None:
            await asyncio.to_thread(self._note, command.id, meter, RelayState.OPEN, "")
            await self._happened("relay_opened", meter, command)
            return True
        logger.warning("relay not opened meter=%s reason=%s", meter, refusal.reason)
        # What an earlier unanswered order did stays unsure, whatever became of this one.
        state = RelayState.REFUSED if refusal.surely and before is RelayState.REFUSED else RelayState.OPENING
        await asyncio.to_thread(self._note, command.id, meter, state, refusal.reason)
        return refusal.final

    async def _close_all(self, command: Command) -> None:
        states = await asyncio.to_thread(self._states, command.id)
        meters = [meter for meter, (state, _) in states.items() if state in MUST_CLOSE]
        await asyncio.gather(*(self._close(command, meter, *states[meter]) for meter in meters))

    async def _close(self, command: Command, meter: str, state: RelayState, note: str) -> None:
        holder = await asyncio.to_thread(self._held_by, command.id, meter)
        closed = RelayState.CLOSED if state is RelayState.OPEN else RelayState.UNSURE
        if holder:
            # Another event still wants this load shed; its own end closes the relay.
            await asyncio.to_thread(self._note, command.id, meter, closed, f"left open for {holder}")
            return
        refusal = await self._switchgear.switch(meter, True, self._clock.now() + ORDER_LIFE)
        if refusal is None:
            said = "opened and closed" if state is RelayState.OPEN else f"opening unsure ({note}), closed"
            await asyncio.to_thread(self._note, command.id, meter, closed, said)
            await self._happened("relay_closed", meter, command)
        else:
            logger.warning("relay not closed, will try again meter=%s reason=%s", meter, refusal.reason)
            await asyncio.to_thread(self._note, command.id, meter, state, f"not closed yet: {refusal.reason}")

    async def _happened(self, kind: str, meter: str, command: Command) -> None:
        detail: dict[str, str | int | float | bool | None] = {"command": command.id, "event": command.body.event}
        await self._report(Event(at=to_us(self._clock.now()), kind=kind, meter=meter, detail=detail))

    async def _reply(self, command: Command, outcome: Outcome, detail: str, meters: dict[str, str]) -> None:
        reply = Reply(id=command.id, at=to_us(self._clock.now()), outcome=outcome, detail=detail, meters=meters)
        if await asyncio.to_thread(self._save_reply, reply):
            logger.info("command %s: %s %s", command.id, outcome.value, detail)
        self._told()

    # ---- what is kept ------------------------------------------------------------------------------------------------

    def _accept(self, command: Command) -> bool:
        """False for an id that was seen before."""
        now = self._clock.now()
        void_at = max(command.expires_at, command.body.end) + REMEMBER // timedelta(microseconds=1)
        with self._queue.transaction() as db:
            db.execute("DELETE FROM command WHERE void_at < ? AND reply IS NOT NULL AND told", (to_us(now),))
            known = db.execute("SELECT count(*) FROM command").fetchone()[0]
            if known >= COMMANDS_MAX:
                logger.error("command %s dropped: %d commands are remembered already", command.id, known)
                return False
            done = db.execute(
                "INSERT INTO command (id, body, void_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                (command.id, encode(command), min(void_at, 2**62)),
            )
            return done.rowcount == 1

    def _unanswered(self) -> list[Command]:
        """Commands without a reply, and those with a relay still to close."""
        with self._queue.transaction() as db:
            bodies = db.execute(
                "SELECT body FROM command WHERE reply IS NULL OR id IN (SELECT id FROM relay WHERE state IN (?, ?))",
                MUST_CLOSE,
            ).fetchall()
        return [decode(body, Command) for (body,) in bodies]

    def _states(self, command_id: str) -> dict[str, tuple[RelayState, str]]:
        with self._queue.transaction() as db:
            rows = db.execute("SELECT meter, state, note FROM relay WHERE id = ?", (command_id,)).fetchall()
        return {meter: (RelayState(state), note) for meter, state, note in rows}

    def _note(self, command_id: str, meter: str, state: RelayState, note: str) -> None:
        with self._queue.transaction() as db:
            db.execute("INSERT OR REPLACE INTO relay VALUES (?, ?, ?, ?)", (command_id, meter, state, note))

    def _held_by(self, command_id: str, meter: str) -> str | None:
        """Another command that keeps this relay open beyond now."""
        with self._queue.transaction() as db:
            rows = db.execute(
                "SELECT body FROM command JOIN relay USING (id) WHERE meter = ? AND id <> ? AND state IN (?, ?)",
                (meter, command_id, *MUST_CLOSE),
            ).fetchall()
        others: Iterable[Command] = (decode(body, Command) for (body,) in rows)
        now = to_us(self._clock.now())
        return next((other.id for other in others if other.body.end > now), None)

    def _save_reply(self, reply: Reply) -> bool:
        """False where a reply was made before: that one stands."""
        with self._queue.transaction() as db:
            done = db.execute("UPDATE command SET reply = ? WHERE id = ? AND reply IS NULL", (encode(reply), reply.id))
            return done.rowcount == 1

    def _tell_again(self, command_id: str) -> None:
        with self._queue.transaction() as db:
            db.execute("UPDATE command SET told = 0 WHERE id = ?", (command_id,))


def _names(command: Command) -> tuple[str, str, int]:
    return command.id, command.body.event, len(command.body.meters)


def outcome_of(command: Command, states: dict[str, tuple[RelayState, str]]) -> tuple[Outcome, str, dict[str, str]]:
    """Done when something was shed and all of it is connected again; the sentence says how much."""
    opened = sum(state is RelayState.CLOSED for state, _ in states.values())
    unsure = sum(state is RelayState.UNSURE for state, _ in states.values())
    stuck = sum(state in MUST_CLOSE for state, _ in states.values())
    meters = {
        meter: note if state in (RelayState.CLOSED, RelayState.UNSURE, *MUST_CLOSE) else f"{state.value}: {note}"
        for meter, (state, note) in states.items()
    }
    detail = f"{opened} of {len(set(command.body.meters))} meters were shed and are connected again"
    if unsure:
        detail += f"; {unsure} never confirmed that they were open"
    if stuck:
        return Outcome.FAILED, f"{detail}; {stuck} could not be closed yet and are tried again", meters
    if opened:
        return Outcome.DONE, detail, meters
    if not states:
        return Outcome.EXPIRED, "the gateway was away from start to end", meters
    rejected = all(state is RelayState.REJECTED for state, _ in states.values())
    return (Outcome.REJECTED if rejected else Outcome.FAILED), detail, meters


def replies(queue: Queue) -> list[tuple[str, bytes]]:
    """Command ids and replies the broker has not acknowledged yet."""
    with queue.transaction() as db:
        return db.execute("SELECT id, reply FROM command WHERE reply IS NOT NULL AND NOT told ORDER BY id").fetchall()


def replied(queue: Queue, command_id: str) -> None:
    with queue.transaction() as db:
        db.execute("UPDATE command SET told = 1 WHERE id = ?", (command_id,))
