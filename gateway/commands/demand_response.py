"""A demand-response event opens relays at its start and closes them at its end.

Every step is in the journal before it is taken, so a kill in the middle still closes what was opened. An event that
arrived in time acts during [start, end) and nowhere else.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from gateway.commands.field import Field
from gateway.commands.journal import MUST_CLOSE, Journal, RelayState
from protocols.clock import Clock
from protocols.uplink import METERS_MAX, Command, Event, Outcome, Shed, from_us, to_us

logger = logging.getLogger(__name__)

SPAN_MAX: Final = timedelta(days=7)
NAME_MAX: Final = 100
# An order to close is void this long after it is given, by the meter's clock.
ORDER_LIFE: Final = timedelta(minutes=10)
OPEN_RETRY_S: Final = 1.0
OPEN_RETRY_MAX_S: Final = 30.0
CLOSE_RETRY_S: Final = 5.0
CLOSE_RETRY_MAX_S: Final = 300.0


class DemandResponse:
    """``reply`` is called once per command, when its event is over."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        field: Field,
        *,
        report: Callable[[Event], Awaitable[None]],
        reply: Callable[[str, Outcome, str, dict[str, str]], Awaitable[None]],
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._field = field
        self._report = report
        self._reply = reply

    def refusal(self, command: Command, shed: Shed) -> tuple[Outcome, str] | None:
        now = to_us(self._clock.now())
        if now >= min(command.expires_at, shed.end):
            return Outcome.EXPIRED, f"arrived {(now - min(command.expires_at, shed.end)) / 1e6:.0f} s too late"
        if shed.start >= shed.end:
            return Outcome.REJECTED, "start: before end expected"
        if max(shed.end - now, now - shed.start) > SPAN_MAX // timedelta(microseconds=1):
            return Outcome.REJECTED, f"start, end: within {SPAN_MAX.days} days of now expected"
        if not 1 <= len(shed.meters) <= METERS_MAX:
            return Outcome.REJECTED, f"meters: 1 to {METERS_MAX} expected"
        if max(map(len, (command.id, shed.event, *shed.meters))) > NAME_MAX:
            return Outcome.REJECTED, f"id, event, meters: at most {NAME_MAX} letters expected"
        return None

    async def carry_out(self, command_id: str, shed: Shed) -> None:
        """From wherever a former process left it."""
        logger.info("command %s: demand response %s on %d meters", command_id, shed.event, len(shed.meters))
        states = await asyncio.to_thread(self._journal.states, command_id)
        await self._clock.sleep_until(from_us(shed.start))
        await self._open_all(command_id, shed, [name for name in dict.fromkeys(shed.meters) if name not in states])
        await self._clock.sleep_until(from_us(shed.end))
        await self._close_all(command_id, shed)
        states = await asyncio.to_thread(self._journal.states, command_id)
        await self._reply(command_id, *outcome_of(shed, states))
        wait_s = CLOSE_RETRY_S
        while any(state in MUST_CLOSE for state, _ in states.values()):
            await self._clock.sleep(wait_s * random.uniform(0.75, 1.25))
            wait_s = min(2 * wait_s, CLOSE_RETRY_MAX_S)
            await self._close_all(command_id, shed)
            states = await asyncio.to_thread(self._journal.states, command_id)

    async def _open_all(self, command_id: str, shed: Shed, meters: list[str]) -> None:
        """Open ``meters``. Unanswered orders are given again until the end; opening an open relay changes nothing.

        A process that was killed meanwhile does not come here again for a meter it had asked.
        """
        end, wait_s = from_us(shed.end), OPEN_RETRY_S
        while meters and self._clock.now() < end:
            opened = await asyncio.gather(*(self._open(command_id, shed, meter) for meter in meters))
            meters = [meter for meter, settled in zip(meters, opened, strict=True) if not settled]
            if meters:
                again = asyncio.create_task(self._clock.sleep(wait_s * random.uniform(0.75, 1.25)))
                over = asyncio.create_task(self._clock.sleep_until(end))
                await asyncio.wait((again, over), return_when=asyncio.FIRST_COMPLETED)
                again.cancel()
                over.cancel()
                wait_s = min(2 * wait_s, OPEN_RETRY_MAX_S)

    async def _open(self, command_id: str, shed: Shed, meter: str) -> bool:
        """True once it is settled whether this relay is open: it is, or never will be."""
        problem = self._field.problem(meter)
        if not problem and (by_hand := await asyncio.to_thread(self._journal.opened_by_hand, meter)):
            # Closing it at the end would connect somebody who was disconnected for a reason.
            problem = f"opened by hand before, by command {by_hand}"
        if problem:
            await self._note(command_id, meter, RelayState.REJECTED, problem)
            return True
        states = await asyncio.to_thread(self._journal.states, command_id)
        before, _ = states.get(meter, (RelayState.REFUSED, ""))
        await self._note(command_id, meter, RelayState.OPENING, "no answer yet")
        # Void after the end; a meter that keeps the time itself connects again then, should this box be gone.
        refusal = await self._field.switch(meter, closed=False, expires_at=from_us(shed.end))
        if refusal is None:
            await self._note(command_id, meter, RelayState.OPEN, "")
            await self._happened("relay_opened", meter, command_id, shed)
            return True
        logger.warning("relay not opened meter=%s reason=%s", meter, refusal.reason)
        # What an earlier unanswered order did stays unsure, whatever became of this one.
        state = RelayState.REFUSED if refusal.surely and before is RelayState.REFUSED else RelayState.OPENING
        await self._note(command_id, meter, state, refusal.reason)
        return refusal.final

    async def _close_all(self, command_id: str, shed: Shed) -> None:
        states = await asyncio.to_thread(self._journal.states, command_id)
        meters = [meter for meter, (state, _) in states.items() if state in MUST_CLOSE]
        await asyncio.gather(*(self._close(command_id, shed, meter, *states[meter]) for meter in meters))

    async def _close(self, command_id: str, shed: Shed, meter: str, state: RelayState, note: str) -> None:
        holder = await asyncio.to_thread(self._journal.held_by, command_id, meter, self._clock.now())
        closed = RelayState.CLOSED if state is RelayState.OPEN else RelayState.UNSURE
        if holder:
            # Another event still wants this load shed and its own end closes the relay, or a person wants it open.
            await self._note(command_id, meter, closed, f"left open for {holder}")
            return
        expires_at = self._clock.now() + ORDER_LIFE
        refusal = await self._field.switch(meter, closed=True, expires_at=expires_at)
        if refusal is None:
            said = "opened and closed" if state is RelayState.OPEN else f"opening unsure ({note}), closed"
            await self._note(command_id, meter, closed, said)
            await self._happened("relay_closed", meter, command_id, shed)
        else:
            logger.warning("relay not closed, will try again meter=%s reason=%s", meter, refusal.reason)
            await self._note(command_id, meter, state, f"not closed yet: {refusal.reason}")

    async def _note(self, command_id: str, meter: str, state: RelayState, note: str) -> None:
        await asyncio.to_thread(self._journal.note, command_id, meter, state, note)

    async def _happened(self, kind: str, meter: str, command_id: str, shed: Shed) -> None:
        detail: dict[str, str | int | float | bool | None] = {"command": command_id, "event": shed.event}
        await self._report(Event(at=to_us(self._clock.now()), kind=kind, meter=meter, detail=detail))


def outcome_of(shed: Shed, states: dict[str, tuple[RelayState, str]]) -> tuple[Outcome, str, dict[str, str]]:
    """Done when something was shed and all of it is connected again; the sentence says how much."""
    opened = sum(state is RelayState.CLOSED for state, _ in states.values())
    unsure = sum(state is RelayState.UNSURE for state, _ in states.values())
    stuck = sum(state in MUST_CLOSE for state, _ in states.values())
    meters = {
        meter: note if state in (RelayState.CLOSED, RelayState.UNSURE, *MUST_CLOSE) else f"{state.value}: {note}"
        for meter, (state, note) in states.items()
    }
    detail = f"{opened} of {len(set(shed.meters))} meters were shed and are connected again"
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
