"""What to do about the clocks of one line: pure, from measurements to a decision.

A load record is the register at a mark of the meter's own clock, so a step must not pass a mark: set back, the clock
lives it twice; set forward, never.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from math import ceil, floor
from typing import Final, Literal, TypeAlias

RESOLUTION_S: Final = 1.0  # of what a meter shows: it is read half of this late on average
WANDER: Final = 1e-4  # s per s a clock may leave its last measurement by: 9 s a day, of a poor crystal
FRESH: Final = timedelta(minutes=10)  # no order rests on an older measurement
BROADCAST_MAX_S: Final = 300.0  # DL/T 645: a meter takes no longer step from 08H
GUARD_S: Final = 30.0  # from any mark, before and after the step: the sweep reads then, and an order may be sent late
HOUR_S: Final = 3_600  # meters freeze on the hour, at midnight, and settle on some hour of a day
HOUR_GUARD_S: Final = 300.0
SET_S: Final = 1.0  # what a meter that is told the right second may be off by: its fraction of a second, and ours
SEARCH_STEP_S: Final = 15


@dataclass(frozen=True, slots=True)
class Rules:
    """``[clocks]`` of the site file. ``correct``: never, only when asked (sync_clock), or also by the daily policy.

    ``trust``: whether the box's own clock must be known to follow a time server before it sets others'.
    """

    correct: Literal["never", "asked", "policy"] = "asked"
    trust: Literal["ntp", "always"] = "ntp"
    limit_s: float = 60.0
    drift_limit_s_per_day: float = 5.0


@dataclass(frozen=True, slots=True)
class Offset:
    """A meter's clock less the gateway's, at ``at``; the truth lies within ``uncertainty_s``."""

    offset_s: float
    uncertainty_s: float
    at: datetime

    @classmethod
    def of(cls, meter_at: datetime, asked_at: datetime, answered_at: datetime) -> "Offset":
        half = (answered_at - asked_at) / 2
        offset = meter_at - asked_at - half
        return cls(offset.total_seconds() + RESOLUTION_S / 2, half.total_seconds() + RESOLUTION_S / 2, answered_at)

    @property
    def least_s(self) -> float:
        return max(0.0, abs(self.offset_s) - self.uncertainty_s)

    @property
    def most_s(self) -> float:
        return abs(self.offset_s) + self.uncertainty_s

    def aged(self, now: datetime) -> "Offset":
        return replace(self, uncertainty_s=self.uncertainty_s + WANDER * abs((now - self.at).total_seconds()))


@dataclass(frozen=True, slots=True)
class Known:
    """One meter of a line. ``offset``: None where it was not heard. ``wanted``: it is to be set where it is wrong."""

    meter: str
    zone: timezone
    offset: Offset | None
    corrected_at: datetime | None = None
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """``over_s``: clocks surely further off than this are to be set. ``may_write``: the password for 14H is known."""

    over_s: float
    may_write: bool
    interval_s: int = 900


@dataclass(frozen=True, slots=True)
class Broadcast:
    at: datetime


@dataclass(frozen=True, slots=True)
class Write:
    at: datetime
    meter: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Nothing to do, or for each meter that should be set why it cannot be."""

    why: Mapping[str, str] = field(default_factory=dict)


Decision: TypeAlias = Broadcast | Write | Leave


def decide(line: Sequence[Known], now: datetime, until: datetime, policy: Policy) -> Decision:
    """What to do next about the clocks of all meters of one line, at a moment in [now, until].

    A broadcast where it moves no meter for the worse; else one meter by 14H, the one whose moment comes first. Neither
    the old time nor the new one may pass a mark through the step; a step longer than fits between two marks passes the
    fewest, and no midnight where that can be.
    """
    off = overdue(line, now, policy)
    why = {known.meter: "its clock was set today already" for known in off if _is_spent(known, now)}
    due = [known for known in off if known.meter not in why]
    if not due:
        return Leave(why)
    found = _broadcast(_as_of(line, now), now, until, policy)
    if isinstance(found, datetime):
        return Broadcast(found)
    if not policy.may_write:
        return Leave(why | {known.meter: f"{found}; for 14H set GRIDLOOM_645_PASSWORD" for known in due})
    moments = [(_moment([known], now, until, policy.interval_s), known.meter) for known in due]
    first = min(((at, meter) for at, meter in moments if at is not None), default=None)
    if first is not None:
        return Write(*first)
    return Leave(why | {known.meter: f"no moment until {until:%H:%M}Z is clear of marks and hours" for known in due})


def overdue(line: Sequence[Known], now: datetime, policy: Policy) -> list[Known]:
    """The wanted clocks that are surely off by more than the policy allows, and by more than setting them would."""
    return [
        known
        for known in _as_of(line, now)
        if known.wanted and known.offset and known.offset.least_s > max(policy.over_s, _after_s([known]))
    ]


def _as_of(line: Sequence[Known], now: datetime) -> list[Known]:
    """Measurements grow vague with time, and soon count for nothing."""
    recent = (it.offset.aged(now) if it.offset and abs(now - it.offset.at) <= FRESH else None for it in line)
    return [replace(known, offset=offset) for known, offset in zip(line, recent, strict=True)]


def _is_spent(known: Known, now: datetime) -> bool:
    """A meter takes 08H once a day, its own local one, and we write no more often either."""
    at = known.corrected_at
    return at is not None and at.astimezone(known.zone).date() >= now.astimezone(known.zone).date()


def _after_s(known: Iterable[Known]) -> float:
    """What clocks may be off by after they were set: the way there is known as well as the way of the measurement."""
    return SET_S + max((it.offset.uncertainty_s for it in known if it.offset), default=0.0)


def _broadcast(line: Sequence[Known], now: datetime, until: datetime, policy: Policy) -> datetime | str:
    """When, or why not. It moves every meter, so all must be known, in reach, and none the worse for it."""
    after_s = _after_s(line)
    if len({known.zone.utcoffset(None) for known in line}) > 1:
        return "no broadcast: the meters of the line keep different local times"
    for known in line:
        if known.offset is None:
            return f"no broadcast: {known.meter} does not answer, and would be moved unseen"
        if _is_spent(known, now):
            return f"no broadcast: {known.meter} was set today already"
        if known.offset.most_s > BROADCAST_MAX_S:
            return f"no broadcast: {known.meter} is {known.offset.offset_s:+.0f} s off, 08H takes 5 minutes at most"
        # At worst it is right by now and off by after_s then: no more than we are unsure of it anyhow.
        if after_s > max(abs(known.offset.offset_s), known.offset.uncertainty_s):
            return f"no broadcast: {known.meter} is only {known.offset.offset_s:+.1f} s off and might get worse"
    at = _moment(line, now, until, policy.interval_s)
    return at or f"no broadcast: no moment until {until:%H:%M}Z is clear of marks and hours"


def _moment(known: Sequence[Known], now: datetime, until: datetime, interval_s: int) -> datetime | None:
    """The least harmful second in [now, until] to set these clocks at once; of equals the first."""
    after_s, offsets = _after_s(known), [it.offset for it in known if it.offset]
    old = (
        min(it.offset_s - it.uncertainty_s for it in offsets),
        max(it.offset_s + it.uncertainty_s for it in offsets),
    )
    ends = (old, (-after_s, after_s))
    low, high = min(old[0], -after_s), max(old[1], after_s)
    may_pass = high - low + 2 * GUARD_S > interval_s
    zone = known[0].zone
    local_s = (zone.utcoffset(None) or timedelta()).total_seconds()
    best: tuple[tuple[bool, int, int], int] | None = None
    for second in range(ceil(now.timestamp()), floor(until.timestamp()) + 1, SEARCH_STEP_S):
        at_s = second + local_s
        if any(
            _meets(at_s + begin, at_s + end, period_s, guard_s)
            for begin, end in ends
            for period_s, guard_s in ((interval_s, GUARD_S), (HOUR_S, HOUR_GUARD_S))
        ):
            continue
        marks, days = (_passed(at_s + low, at_s + high, step_s) for step_s in (interval_s, 86_400))
        if marks == 0:
            return datetime.fromtimestamp(second, UTC)
        months = days > 0 and len({_month(at_s + low), _month(at_s + high)}) > 1
        if may_pass and (best is None or (months, days, marks) < best[0]):
            best = (months, days, marks), second
    return datetime.fromtimestamp(best[1], UTC) if best else None


def _meets(begin_s: float, end_s: float, period_s: int, guard_s: float) -> bool:
    """Whether a multiple of ``period_s`` lies in [begin − guard, end + guard]."""
    return floor((end_s + guard_s) / period_s) >= ceil((begin_s - guard_s) / period_s)


def _passed(low_s: float, high_s: float, period_s: int) -> int:
    return floor(high_s / period_s) - floor(low_s / period_s)


def _month(local_s: float) -> tuple[int, int]:
    local = datetime.fromtimestamp(local_s, UTC)
    return local.year, local.month
