"""What the edge talks about: lines, the meters on them, and polls that failed."""

from dataclasses import dataclass
from datetime import timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Literal

from protocols.templates import Template


@dataclass(frozen=True, slots=True)
class Line:
    """One TCP endpoint with one or many meters behind it. Times are real seconds.

    ``quarantine_s``: how long after a timeout the late answer may still come; nothing is asked meanwhile where an
    answer does not name its request (DL/T 645 meters answer within 0.5 s).
    """

    name: str
    protocol: Literal["dlt645-2007", "modbus-tcp"]
    host: str
    port: int
    read_timeout_s: float = 1.0
    quarantine_s: float = 0.5


@dataclass(frozen=True, slots=True)
class Meter:
    """``name``: local to the gateway. ``address``: 12 digits for DL/T 645, the unit 1 to 247 for Modbus."""

    name: str
    address: str
    template: Template
    utc_offset_h: float = 8.0
    controllable: bool = False

    @property
    def zone(self) -> timezone:
        """Of the meter's own clock, where that keeps local time."""
        return timezone(timedelta(hours=self.utc_offset_h))


class Priority(IntEnum):
    """Who goes first on a line; equals go in the order they came."""

    LIVE = 0
    COMMAND = 1
    BACKFILL = 2


class Reason(StrEnum):
    SILENT = "silent"  # no answer in time
    BACKING_OFF = "backing_off"  # was silent, and it is too early to ask again
    LINK_DOWN = "link_down"
    REFUSED = "refused"  # the meter answered with an error
    GARBLED = "garbled"  # the answer does not decode
    ABSENT = "absent"  # the meter answered that it does not have this
    EXPIRED = "expired"  # an order came too late to be sent


@dataclass(frozen=True, slots=True)
class PollFailure:
    """A poll that brought nothing. Only ``SILENT`` and ``BACKING_OFF`` speak about whether the meter is there."""

    reason: Reason
    detail: str = ""
