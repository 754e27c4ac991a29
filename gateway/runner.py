"""Runs the agent, starts it again when told to, and puts a pushed site on trial.

A trial is won when the broker has acknowledged us under the new site and, on every line of it where a meter answered in
the last hour, one answers again (where all lines have other names now: on any line). New lines need not answer: their
meters may be fitted tomorrow. Otherwise, after the limit, the site before comes back. Either way the command that
pushed it is answered once, after the outcome is known.
"""

import asyncio
import logging
import signal
import sqlite3
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from gateway.agent import Agent
from gateway.commands import made
from gateway.commands.journal import Journal
from gateway.commands.orders import Answer
from gateway.queue import Queue
from gateway.sites import Active, Sites
from protocols.clock import Clock
from protocols.uplink import Outcome, to_us

logger = logging.getLogger(__name__)

TRIAL_S: Final = 120.0
STOP_MAX_S: Final = 2.5
ALIVE: Final = timedelta(hours=1)  # a line counts as alive when a meter on it answered within this
AGAIN_MAX_S: Final = 15.0  # for an agent to end that another one follows


@dataclass(slots=True)
class Runner:
    sites: Sites
    queue: Queue
    clock: Clock
    software: str
    trial_s: float = TRIAL_S

    async def run(self, active: Active) -> int:
        """Until SIGINT or SIGTERM; returns the exit status."""
        stop = asyncio.Event()
        for how in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(how, stop.set)
        stopping = asyncio.create_task(stop.wait())
        agent, running = self._start(active)
        heard: dict[str, datetime] = {}  # also by the agents before this one
        while True:
            await asyncio.wait((running, stopping, agent.wish), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                break
            if running.done():
                return self._failed(running)
            wish, heard = agent.wish.result(), heard | agent.heard()
            alive = {line for line, at in heard.items() if at >= self.clock.now() - ALIVE}
            if not await self._end(running, AGAIN_MAX_S):
                return 1
            if wish is None:
                active = await asyncio.to_thread(self._read_again, active)
                agent, running = self._start(active)
                continue
            logger.info("a pushed site is on trial for %.0f s, command %s", self.trial_s, wish.command)
            agent, running = self._start(wish)
            missing = await self._prove(agent, running, stopping, alive)
            if stopping.done():  # the trial is undone at the next start, and answered then
                break
            if not missing:
                missing, active = await asyncio.to_thread(self._keep, wish, active)
            if not missing:
                agent.settle(active)
                agent.told()
                continue
            if not await self._end(running, AGAIN_MAX_S):
                return 1
            await asyncio.to_thread(self._undo, wish, missing)
            agent, running = self._start(active)
        await self._end(running, STOP_MAX_S)
        logger.info("gateway %s stopped, %d batches wait in the queue", active.site.gateway, self.queue.batches)
        return 0

    def _start(self, active: Active) -> "tuple[Agent, asyncio.Task[None]]":
        self.queue.bytes_max = active.site.queue_bytes_max
        agent = Agent(active, self.sites, self.queue, self.clock, software=self.software)
        return agent, asyncio.create_task(agent.run())

    @staticmethod
    async def _end(running: "asyncio.Task[None]", timeout_s: float) -> bool:
        running.cancel()
        _, left = await asyncio.wait({running}, timeout=timeout_s)
        if left:
            logger.error("the agent does not end within %.0f s", timeout_s)
        return not left

    def _failed(self, running: "asyncio.Task[None]") -> int:
        try:
            running.result()
        except* sqlite3.DatabaseError as group:
            reason = f"{group.exceptions[0]}; a damaged file is set aside at the next start"
            logger.error("queue failed path=%s: %s", self.queue.path, reason)
        return 1

    def _read_again(self, active: Active) -> Active:
        """The site as it is on disk now; a file that somebody left broken does not stop a gateway that works."""
        found = self.sites.start()
        if isinstance(found, list):
            problems = "; ".join(map(str, found))
            logger.error("restarted with the site as it was; the file cannot be used: %s", problems)
            return active
        if (found.site.gateway, found.site.data_dir) != (active.site.gateway, active.site.data_dir):
            logger.error("restarted with the site as it was; for another gateway or folder stop and start meterctl")
            return active
        return found

    # ---- trials ------------------------------------------------------------------------------------------------------

    async def _prove(
        self, agent: Agent, running: "asyncio.Task[None]", stopping: "asyncio.Task[bool]", alive: set[str]
    ) -> str:
        """What is missing when the limit is over; nothing when the trial is won."""
        proof = asyncio.create_task(agent.prove(alive))
        waiting: set[asyncio.Task[None] | asyncio.Task[bool]] = {proof, running, stopping}
        await asyncio.wait(waiting, timeout=self.trial_s, return_when=asyncio.FIRST_COMPLETED)
        if proof.done() and not running.done():
            proof.result()
            return ""
        proof.cancel()
        if running.done():
            error = running.exception()
            return f"the gateway ended: {error}" if error else "the gateway ended"
        return f"not within {self.trial_s:.0f} s: {agent.missing(alive)}"

    def _keep(self, trial: Active, before: Active) -> tuple[str, Active]:
        try:
            kept = self.sites.confirm(trial)
        except OSError as error:
            return f"it came up but cannot be kept: {error}", before
        logger.info("the pushed site came up and counts now, command %s", trial.command)
        self._answer(trial.command, Answer(Outcome.DONE, "came up and is kept"))
        return "", kept

    def _undo(self, trial: Active, missing: str) -> None:
        self.sites.roll_back(trial)
        logger.warning("the pushed site did not come up (%s): the site before is back", missing)
        self._answer(trial.command, Answer(Outcome.FAILED, f"{missing}; the site before is back"))

    def _answer(self, command_id: str, answer: Answer) -> None:
        Journal(self.queue).save_reply(made(command_id, to_us(self.clock.now()), answer))
