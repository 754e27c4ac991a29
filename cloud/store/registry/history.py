"""The registry's history: who was where, and when.

Periods are half-open [valid_from, valid_to). ``BEGIN`` and ``END`` stand for always.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final, LiteralString, TypeVar, cast

from cloud.store.migrations import Connection
from cloud.store.registry.files import CLOSING, OPENING

BEGIN: Final = datetime.min.replace(tzinfo=UTC)
END: Final = datetime.max.replace(tzinfo=UTC)
Registers = tuple[int | None, ...]  # as ENERGY_NAMES
NOT_NOTED: Final[Registers] = (None, None, None, None)
MeterKind = tuple[str, str | None, int | None]  # of a meter: protocol, template, counter_modulus_wh


@dataclass(frozen=True, slots=True)
class Installation:
    """A meter at a point under a wire name. ``opening``, ``closing``: its registers at the two ends, where noted."""

    point: str
    serial: str
    gateway: str
    wire_name: str
    ct_ratio: int
    pt_ratio: int
    opening: Registers = NOT_NOTED
    closing: Registers = NOT_NOTED
    valid_from: datetime = BEGIN
    valid_to: datetime = END

    @property
    def wire(self) -> tuple[str, str]:
        return self.gateway, self.wire_name


@dataclass(frozen=True, slots=True)
class Membership:
    """Where a point belongs, and as what."""

    point: str
    area_id: str
    role: str
    phases: str
    node_id: str
    controllable: bool
    valid_from: datetime = BEGIN
    valid_to: datetime = END


@dataclass(frozen=True, slots=True)
class Feeding:
    """The feeder an area hangs on."""

    area_id: str
    feeder_id: str
    valid_from: datetime = BEGIN
    valid_to: datetime = END


Period = TypeVar("Period", bound=Installation | Membership | Feeding)


@dataclass(slots=True)
class History:
    """Periods by point (areas: by area), in time. ``line``: of meters.csv, for what came from there."""

    installations: dict[str, list[Installation]] = field(default_factory=dict)
    memberships: dict[str, list[Membership]] = field(default_factory=dict)
    feedings: dict[str, list[Feeding]] = field(default_factory=dict)
    line: dict[Installation, int] = field(default_factory=dict)

    def copy(self) -> "History":
        return History(
            {key: list(rows) for key, rows in self.installations.items()},
            {key: list(rows) for key, rows in self.memberships.items()},
            {key: list(rows) for key, rows in self.feedings.items()},
            dict(self.line),
        )


def what(period: Installation | Membership | Feeding) -> tuple[object, ...]:
    """All of it but the dates, and what was noted at them."""
    dates = ("valid_from", "valid_to", "opening", "closing")
    return tuple(getattr(period, one.name) for one in fields(period) if one.name not in dates)


def show(moment: datetime) -> str:
    return "always" if moment == BEGIN else "for good" if moment == END else f"{moment:%FT%TZ}"


def in_force(periods: Sequence[Period], now: datetime) -> Period:
    """What is in force, or comes next, or was last."""
    return next((one for one in periods if now < one.valid_to), periods[-1])


def load_history(connection: Connection) -> History:
    history = History()
    dates: LiteralString = f"{_bound('valid_from')}, {_bound('valid_to')}"
    registers: LiteralString = ", ".join(cast(tuple[LiteralString, ...], (*OPENING, *CLOSING)))
    for point, serial, gateway, wire_name, ct, pt, start, end, *noted in cast(
        Iterable[tuple[Any, ...]],
        connection.execute(
            f"SELECT point, serial, gateway, wire_name, ct_ratio, pt_ratio, {dates}, {registers}"  # noqa: S608
            " FROM installation JOIN meter USING (meter_id) JOIN metering_point USING (point_id)"
            " ORDER BY point_id, valid_from"
        ),
    ):
        opening, closing = tuple(noted[: len(OPENING)]), tuple(noted[len(OPENING) :])
        history.installations.setdefault(point, []).append(
            Installation(point, serial, gateway, wire_name, ct, pt, opening, closing, start or BEGIN, end or END)
        )
    for point, area_id, role, phases, node_id, controllable, start, end in cast(
        Iterable[tuple[Any, ...]],
        connection.execute(
            f"SELECT point, i.area_id, i.role, i.phases, i.node_id, i.controllable, {dates}"  # noqa: S608
            " FROM point_in_area i JOIN metering_point USING (point_id) ORDER BY point_id, valid_from"
        ),
    ):
        history.memberships.setdefault(point, []).append(
            Membership(point, area_id, role, phases, node_id, controllable, start or BEGIN, end or END)
        )
    for area_id, feeder_id, start, end in cast(
        Iterable[tuple[Any, ...]],
        connection.execute(
            f"SELECT area_id, feeder_id, {dates} FROM area_on_feeder ORDER BY area_id, valid_from"  # noqa: S608
        ),
    ):
        history.feedings.setdefault(area_id, []).append(Feeding(area_id, feeder_id, start or BEGIN, end or END))
    return history


def _bound(name: LiteralString) -> LiteralString:
    return f"CASE WHEN isfinite({name}) THEN {name} END"


def load_meters(connection: Connection) -> dict[str, MeterKind]:
    """By serial."""
    rows = connection.execute("SELECT serial, protocol, template, counter_modulus_wh FROM meter")
    return {cast(str, serial): cast(MeterKind, tuple(kind)) for serial, *kind in rows}
