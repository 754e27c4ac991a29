"""What may be wrong, what somebody knows beforehand, and what is found."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal, TypeAlias, get_args

from edge.model import Protocol, SerialSetting
from gateway.sniff import AnyFrame

CONFIDENCE_MAX: Final = 0.97  # bytes alone prove nothing
TOLERANCE: Final = 0.02  # of an expected value: a reading on the display is a little older or newer


class Cause(StrEnum):
    HEALTHY = "healthy"
    NOTHING = "nothing"  # no bytes at all
    SPEED = "speed"
    FORMAT = "format"  # parity, data bits, stop bits
    SWAPPED = "a_b_swapped"
    STUCK = "stuck"  # the line does not move
    FRAMING = "framing"  # one Modbus framing where another was expected
    PROTOCOL = "protocol"
    ECHO = "echo"
    REQUEST_ONLY = "request_only"
    PREFIX = "prefix"  # a TCP gateway's registration or heartbeat
    TEXT = "text"
    TRUNCATED = "truncated"
    HEADLESS = "headless"  # the first bytes are missing
    OTHER_METER = "other_meter"
    OTHER_ANSWER = "other_answer"
    REFUSED = "refused"
    WORD_ORDER = "word_order"
    BYTE_ORDER = "byte_order"
    SCALE = "scale"
    OTHER_VALUE = "other_value"
    CRC_ORDER = "crc_order"
    WITHOUT_33H = "without_33h"
    COLLISION = "collision"
    DAMAGED = "damaged"
    UNKNOWN = "unknown"


Kind: TypeAlias = Literal["dlt645", "modbus-rtu", "modbus-ascii", "modbus-tcp"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
NAMES: Final = {
    "dlt645": "DL/T 645",
    "modbus-rtu": "Modbus RTU",
    "modbus-ascii": "Modbus ASCII",
    "modbus-tcp": "Modbus TCP",
}


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the user knows. ``setting``: of the port that heard the bytes; ``value``: what the meter's display shows."""

    protocol: Protocol | None = None
    setting: SerialSetting | None = None
    request: bytes = b""
    value: float | None = None
    tolerance: float = TOLERANCE

    @property
    def kind(self) -> Kind | None:
        if self.protocol is None:
            return None
        if self.protocol.startswith("dlt645"):
            return "dlt645"
        return {"modbus-tcp": "modbus-tcp", "modbus-ascii": "modbus-ascii"}.get(self.protocol, "modbus-rtu")  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``confidence``: 0 to CONFIDENCE_MAX. ``todo``: what to do next, one thing after the other."""

    cause: Cause
    what: str
    evidence: tuple[str, ...]
    confidence: float
    todo: tuple[str, ...] = ()


@dataclass(slots=True)
class Case:
    """The bytes, what is known beforehand, and what was found so far. ``asked``: the frame of the request."""

    raw: bytes
    expected: Expectation
    asked: AnyFrame | None = None
    asked_kind: Kind | None = None
    found: list[Verdict] = field(default_factory=list)

    def add(self, cause: Cause, what: str, evidence: Sequence[str], confidence: float, *todo: str) -> None:
        self.found.append(Verdict(cause, what, tuple(evidence), min(CONFIDENCE_MAX, round(confidence, 2)), todo))
