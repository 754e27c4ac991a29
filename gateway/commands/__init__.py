"""Commands from the cloud: each is carried out at most once, also across a restart, and answered exactly once.

An id is in the journal before anything is done, and so is the fact that it was begun. What a former process began and
did not answer is not repeated: the reply says that it was interrupted. Three are different by nature. Demand response
goes on where it was left, for what was opened must be closed. A restart is done once the gateway is up again. A pushed
site was kept or undone, which the files on disk tell. A command is void after ``expires_at``: one that arrives later is
not begun.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Final

from gateway.commands.demand_response import NAME_MAX, DemandResponse
from gateway.commands.field import Field
from gateway.commands.journal import Journal, JournalFullError
from gateway.commands.orders import Answer, Orders
from gateway.sites import digest
from protocols.clock import Clock
from protocols.uplink import (
    REPLY_BYTES_MAX,
    Command,
    Configure,
    Envelope,
    Event,
    Outcome,
    PayloadError,
    RelayConfirm,
    Reply,
    Restart,
    Shed,
    decode,
    encode,
    to_us,
)

logger = logging.getLogger(__name__)

# A day after a command is void even a slow clock in the cloud will not send it again, and its id may be forgotten.
REMEMBER: Final = timedelta(days=1)


class Commands:
    """The gateway's open commands. ``told`` is called whenever a reply is waiting for the uplink."""

    def __init__(
        self,
        journal: Journal,
        clock: Clock,
        field: Field,
        *,
        report: Callable[[Event], Awaitable[None]],
        told: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._field = field
        self._told = told
        self._response = DemandResponse(journal, clock, field, report=report, reply=self._reply_meters)
        self._orders = Orders(journal, clock, field)
        self._arrived: asyncio.Queue[tuple[Command, bool]] = asyncio.Queue()

    async def receive(self, payload: bytes) -> None:
        """Take a command from the uplink. One that is known gets its reply again, if it has one."""
        command: Command | Envelope
        reply: Reply | None = None
        try:
            command = decode(payload, Command)
            void_at = max(command.expires_at, command.body.end if isinstance(command.body, Shed) else 0)
            if refusal := self._refusal(command):
                reply = self._made(command.id, Answer(*refusal))
        except PayloadError as error:
            try:
                command = decode(payload, Envelope)
            except PayloadError:
                logger.warning("command ignored: %s", error)
                return
            void_at = command.expires_at
            reply = self._made(command.id, Answer(Outcome.REJECTED, f"not understood: {error}"))
        try:
            is_new = await asyncio.to_thread(
                self._journal.accept,
                command.id,
                payload,
                void_at=void_at + REMEMBER // timedelta(microseconds=1),
                now=self._clock.now(),
                reply=reply,
            )
        except JournalFullError as error:
            logger.error("command %s dropped: %s", command.id, error)
            return
        if not is_new:
            logger.info("command %s is known already", command.id)
            await asyncio.to_thread(self._journal.tell_again, command.id)
            self._told()
        elif reply:
            logger.info("command %s: %s %s", command.id, reply.outcome.value, reply.detail)
            self._told()
        elif isinstance(command, Command):
            self._arrived.put_nowait((command, False))

    async def run(self) -> None:
        """Carry out or answer what a former process left open, then what arrives."""
        for command_id, command, began in await asyncio.to_thread(self._journal.unanswered):
            if self._field.active.origin == "trial" and command_id == self._field.active.command:
                continue  # its outcome is what is being found out
            if isinstance(command, PayloadError):
                await self._reply(command_id, Answer(Outcome.FAILED, f"not understood any more: {command}"))
            else:
                self._arrived.put_nowait((command, began))
        async with asyncio.TaskGroup() as tasks:
            while True:
                tasks.create_task(self._carry_out(*await self._arrived.get()))

    async def _carry_out(self, command: Command, began: bool) -> None:
        if isinstance(command.body, Shed):
            await self._response.carry_out(command.id, command.body)
            return
        logger.info("command %s: %s", command.id, type(command.body).__name__)
        if began:
            answer: Answer | None = self._after_restart(command)
        elif refusal := self._refusal(command):  # accepted by a former process, too late by now
            answer = Answer(*refusal)
        else:
            answer = await self._orders.carry_out(command)
        if answer:
            await self._reply(command.id, answer)

    def _refusal(self, command: Command) -> tuple[Outcome, str] | None:
        if isinstance(command.body, Shed):
            return self._response.refusal(command, command.body)
        if len(command.id) > NAME_MAX:
            return Outcome.REJECTED, f"id: at most {NAME_MAX} letters expected"
        late_us = to_us(self._clock.now()) - command.expires_at
        if late_us >= 0:
            return Outcome.EXPIRED, f"arrived {late_us / 1e6:.0f} s too late"
        return None

    def _after_restart(self, command: Command) -> Answer:
        """What became of a command that a former process had begun."""
        active = self._field.active
        match command.body:
            case Restart():
                return Answer(Outcome.DONE, "restarted")
            case Configure(site=text) if active.origin == "pushed" and active.sha256 == digest(text):
                return Answer(Outcome.DONE, "came up and is kept")
            case Configure():
                return Answer(Outcome.FAILED, "interrupted by a restart during the trial; undone, not repeated")
            case RelayConfirm():
                return Answer(Outcome.FAILED, "interrupted; not repeated. The relay may have moved: read its state")
        return Answer(Outcome.FAILED, "interrupted; not repeated")

    # ---- replies -----------------------------------------------------------------------------------------------------

    async def _reply_meters(self, command_id: str, outcome: Outcome, detail: str, meters: dict[str, str]) -> None:
        await self._reply(command_id, Answer(outcome, detail, meters=meters))

    async def _reply(self, command_id: str, answer: Answer) -> None:
        if await asyncio.to_thread(self._journal.save_reply, self._made(command_id, answer)):
            logger.info("command %s: %s %s", command_id, answer.outcome.value, answer.detail)
        self._told()

    def _made(self, command_id: str, answer: Answer) -> Reply:
        return made(command_id, to_us(self._clock.now()), answer)


def made(command_id: str, at: int, answer: Answer) -> Reply:
    """A reply within its bound: results and problems beyond it are left out, and it says so."""
    reply = Reply(
        id=command_id,
        at=at,
        outcome=answer.outcome,
        detail=answer.detail,
        meters=answer.meters,
        results=answer.results,
        problems=answer.problems,
        prepared=answer.prepared,
    )
    over = len(encode(reply)) - REPLY_BYTES_MAX
    if over <= 0:
        return reply
    bare = replace(answer, results=[], problems=[])
    room = REPLY_BYTES_MAX - len(encode(made(command_id, at, replace(bare, meters={})))) - 200
    kept: list[object] = []
    for one in (*answer.results, *answer.problems, *answer.meters.items()):
        room -= len(repr(one).encode()) + 32
        if room < 0:
            break
        kept.append(one)
    return Reply(
        id=command_id,
        at=at,
        outcome=answer.outcome,
        detail=f"{answer.detail}; the rest is left out, a reply holds {REPLY_BYTES_MAX} bytes",
        meters={name: note for name, note in answer.meters.items() if (name, note) in kept},
        results=[result for result in answer.results if result in kept],
        problems=[problem for problem in answer.problems if problem in kept],
        prepared=answer.prepared,
    )
