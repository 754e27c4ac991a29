"""The sole owner of a line: polls and orders by priority, as rows or as failures that stop nobody else."""

from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import TypeVar

from edge.client import BackingOffError, SilentError
from edge.dialect import Mark, dialect
from edge.link import LinkError
from edge.model import Line, Meter, PollFailure, Priority, Reason
from protocols.clock import Clock
from protocols.framing import FrameError, MeterError
from protocols.quantities import Quality
from protocols.templates import ModbusFamily
from protocols.uplink import Row

T = TypeVar("T")


class Bus:
    """``relay_password``: 8 digits, the level first; without it no DL/T 645 relay is moved.

    Polls of many meters may be started at once: they take turns.
    """

    def __init__(self, line: Line, clock: Clock, relay_password: str | None = None) -> None:
        self.line = line
        self._clock = clock
        self._may_order = line.protocol != "dlt645-2007" or relay_password is not None
        self._dialect = dialect(line, relay_password)

    async def read_energy(self, meter: Meter, mark: datetime) -> Row | PollFailure:
        """The registers at exactly ``mark``, from the meter's load profile, so it may be read late."""
        if isinstance(meter.template, ModbusFamily):
            return PollFailure(Reason.ABSENT, f"{meter.template.name} has no load profile: its registers have no mark")
        marks = await self._try(self._dialect.read_marks(meter, mark, 1, Priority.LIVE))
        if isinstance(marks, PollFailure):
            return marks
        for found in marks:
            if found.at == mark:
                return self._row(meter, found, Quality.GOOD)
        return PollFailure(Reason.ABSENT, f"no load record at {mark:%Y-%m-%d %H:%M}Z")

    async def read_profile(self, meter: Meter, first: datetime, count: int) -> list[Row] | PollFailure:
        """The marks the meter has of ``count`` from ``first`` on, in order; an empty list when it has none."""
        if isinstance(meter.template, ModbusFamily):
            return []
        marks = await self._try(self._dialect.read_marks(meter, first, count, Priority.BACKFILL))
        if isinstance(marks, PollFailure):
            return marks
        step = timedelta(seconds=meter.template.profile.interval_s)
        # A meter may answer with the next records it has: only those asked for count, and each once.
        wanted = {first + i * step for i in range(count)}
        found = {mark.at: mark for mark in marks if mark.at in wanted}
        return [self._row(meter, found[at], Quality.BACKFILLED) for at in sorted(found)]

    async def read_power(self, meter: Meter, at: datetime) -> Row | PollFailure:
        """Instantaneous values and the meter's clock, as of ``gateway_at``; ``at`` is the mark they stand for."""
        snapshot = await self._try(self._dialect.read_power(meter, Priority.LIVE))
        if isinstance(snapshot, PollFailure):
            return snapshot
        return Row(meter.name, at, self._clock.now(), snapshot.meter_at, int(Quality.GOOD), snapshot.values)

    async def set_relay(self, meter: Meter, *, closed: bool, expires_at: datetime) -> PollFailure | None:
        """Open or close the relay; sent once, never past ``expires_at``. After SILENT the relay may have moved."""
        if isinstance(meter.template, ModbusFamily):
            return PollFailure(Reason.REFUSED, f"{meter.template.name} has no relay in its table")
        if not self._may_order:
            return PollFailure(Reason.REFUSED, "no DL/T 645 password: set GRIDLOOM_645_PASSWORD on the gateway")
        if self._clock.now() >= expires_at:
            return PollFailure(Reason.EXPIRED, f"the order was valid until {expires_at:%Y-%m-%d %H:%M:%S}Z")
        order = self._dialect.set_relay(meter, closed=closed, expires_at=expires_at, priority=Priority.COMMAND)
        return await self._try(order)

    async def close(self) -> None:
        """Polls under way fail with LINK_DOWN."""
        self._dialect.close()

    def _row(self, meter: Meter, mark: Mark, quality: Quality) -> Row:
        if mark.is_bad:
            quality |= Quality.METER_ERROR
        return Row(meter.name, mark.at, self._clock.now(), mark.at, int(quality), mark.values)

    async def _try(self, poll: Awaitable[T]) -> T | PollFailure:
        try:
            return await poll
        except BackingOffError as error:
            return PollFailure(Reason.BACKING_OFF, str(error))
        except SilentError as error:
            return PollFailure(Reason.SILENT, str(error))
        except LinkError as error:
            return PollFailure(Reason.LINK_DOWN, str(error))
        except MeterError as error:
            return PollFailure(Reason.REFUSED, str(error))
        except FrameError as error:
            return PollFailure(Reason.GARBLED, str(error))
