"""What the edge talks about: lines, the meters on them, and polls that failed."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Literal, TypeAlias

from protocols.templates import Template

Protocol: TypeAlias = Literal[
    "dlt645-2007", "dlt645-1997", "modbus-tcp", "modbus-rtu", "modbus-ascii", "modbus-rtu-over-tcp"
]
Parity: TypeAlias = Literal["N", "E", "O"]
Role: TypeAlias = Literal["boundary", "check", "customer"]
ItemValue: TypeAlias = str | int | float | Decimal | None


@dataclass(frozen=True, slots=True)
class SerialSetting:
    """How a UART is set. ``8E1`` is 11 bits a character with the start bit, ``8N1`` is 10."""

    baud: int
    parity: Parity
    stop_bits: int = 1
    data_bits: int = 8

    @property
    def char_bits(self) -> int:
        return 1 + self.data_bits + (self.parity != "N") + self.stop_bits

    @property
    def char_s(self) -> float:
        return self.char_bits / self.baud

    def __str__(self) -> str:
        return f"{self.baud} {self.data_bits}{self.parity}{self.stop_bits}"


@dataclass(frozen=True, slots=True)
class TcpEndpoint:
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class SerialEndpoint:
    """``device``: a path such as /dev/ttyUSB0."""

    device: str
    setting: SerialSetting

    def __str__(self) -> str:
        return self.device


@dataclass(frozen=True, slots=True)
class Line:
    """One serial line or TCP endpoint with one or many meters behind it. Times are real seconds.

    ``setting``: the line's speed, where known; of a serial endpoint its own, behind a TCP serial server what the site
    says. ``read_timeout_s``: how long a meter may take to begin its answer where the speed is known, and to end it
    where not. ``quarantine_s``: how long after a timeout the late answer may still come; nothing is asked meanwhile
    where an answer does not name its request (DL/T 645 meters answer within 0.5 s).
    """

    name: str
    protocol: Protocol
    endpoint: TcpEndpoint | SerialEndpoint
    read_timeout_s: float = 1.0
    quarantine_s: float = 0.5
    setting: SerialSetting | None = None

    def __post_init__(self) -> None:
        if isinstance(self.endpoint, SerialEndpoint):
            object.__setattr__(self, "setting", self.endpoint.setting)


@dataclass(frozen=True, slots=True)
class Meter:
    """``name``: local to the gateway. ``address``: 12 digits for DL/T 645, the unit 1 to 247 for Modbus.

    ``role``: a boundary meter measures what an area takes, a check meter what another meter should say; both are read
    before the customers.
    """

    name: str
    address: str
    template: Template
    utc_offset_h: float = 8.0
    controllable: bool = False
    role: Role = "customer"

    @property
    def zone(self) -> timezone:
        """Of the meter's own clock, where that keeps local time."""
        return timezone(timedelta(hours=self.utc_offset_h))


class Priority(IntEnum):
    """Who goes first on a line; equals go in the order they came, boundary and check meters before customers."""

    LIVE = 0
    COMMAND = 1
    BACKFILL = 2
    SCAN = 3


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


@dataclass(frozen=True, slots=True)
class TapEvent:
    """Bytes as they went over a line. ``at_monotonic``: the event loop's seconds. "out" is what we sent."""

    at_monotonic: float
    direction: Literal["out", "in"]
    raw: bytes


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A meter's own clock. When it is right, ``meter_at`` lies between ``asked_at`` and ``answered_at``."""

    meter_at: datetime
    asked_at: datetime
    answered_at: datetime


@dataclass(frozen=True, slots=True)
class ItemReading:
    """What a meter says under ``item``. ``values``: (name, value, unit) each; what is not described is hex.

    ``request`` and ``reply`` are the bytes on the line, of a long answer all its frames.
    """

    item: str
    values: tuple[tuple[str, ItemValue, str], ...]
    request: bytes
    reply: bytes
