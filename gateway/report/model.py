"""What a commissioning report says: facts as they were read, and findings about them."""

from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

Level: TypeAlias = Literal["fault", "look", "note"]  # to be mended, to be looked at, to be known
State: TypeAlias = Literal["good", "look", "fault"]


class Text(msgspec.Struct, frozen=True):
    """In both languages of the page."""

    zh: str
    en: str


class Finding(msgspec.Struct, frozen=True):
    """``code`` names its kind for programs."""

    level: Level
    code: str
    what: Text
    todo: Text


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity as read; ``value`` is in the quantity's unit, None where the meter says it has none.

    ``item`` is what was asked, so that ``meterctl read`` can ask again; ``said``: the meter's own number and unit.
    """

    quantity: str
    value: float | None
    unit: str
    item: str
    said: str = ""
    is_verified: bool = False


class Exchange(msgspec.Struct, frozen=True):
    """One question: frames in hexadecimal, without a reply where ``failure`` says why."""

    item: str
    request: str
    reply: str
    elapsed_ms: float
    failure: str = ""


class Clock(msgspec.Struct, frozen=True, kw_only=True):
    """``offset_s``: ahead of the gateway is positive. ``read_at``: when it was measured."""

    offset_s: float
    drift_s_per_day: float | None = None
    read_at: datetime | None = None


class Day(msgspec.Struct, frozen=True):
    """Marks of one local day that are collected, of those that are past."""

    day: str
    collected: int
    due: int


class MeterFacts(msgspec.Struct, frozen=True, kw_only=True):
    """``is_found``: it answered now; None where it was not asked."""

    name: str
    line: str
    address: str
    role: str
    template: str
    models: str
    phases: int
    is_found: bool | None
    values: tuple[Value, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    reply_ms: float | None = None
    clock: Clock | None = None
    days: tuple[Day, ...] = ()
    newest_mark: datetime | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def share(self) -> float | None:
        """Of the marks due; None where nothing is known."""
        due = sum(day.due for day in self.days)
        return sum(day.collected for day in self.days) / due if due else None

    @property
    def state(self) -> State:
        levels = {finding.level for finding in self.findings}
        return "fault" if "fault" in levels else "look" if "look" in levels else "good"

    def value(self, quantity: str) -> float | None:
        return next((value.value for value in self.values if value.quantity == quantity), None)


class LineFacts(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    protocol: str
    endpoint: str
    setting: str


class QueueFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What waits for the cloud. ``receipt_at``: when it last confirmed."""

    batches: int
    fill: float
    receipt_at: datetime | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """``through``: whose connections were used. ``zone_h``: of the days and times shown."""

    gateway: str
    site: str
    software: str
    made_at: datetime
    made_by: str
    through: Text
    zone_h: float
    lines: tuple[LineFacts, ...]
    meters: tuple[MeterFacts, ...]
    queue: QueueFacts | None = None
    findings: tuple[Finding, ...] = ()

    def count(self, state: State) -> int:
        return sum(meter.state == state for meter in self.meters)
