"""The registry on record: who was where, and when. Files and exchanges become a new history, and the difference between
it and the one on record is written, with everything that must be derived again because of it.

Periods are half-open [valid_from, valid_to). ``BEGIN`` and ``END`` stand for always.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, LiteralString, TypeVar, cast

from cloud.store.migrations import Connection
from cloud.store.registry_files import (
    CLOSING,
    FILES,
    OPENING,
    REFERRED,
    Problem,
    Registry,
    Row,
    Value,
    read_registry,
    write_registry,
)
from protocols.templates import Dlt645Meter, ModbusTemplate, load

__all__ = (
    "History",
    "Problem",
    "Registers",
    "Registry",
    "RegistryError",
    "Saved",
    "exchange",
    "export_registry",
    "known_names",
    "load_history",
    "read_registry",
    "save_registry",
)

BEGIN: Final = datetime.min.replace(tzinfo=UTC)
END: Final = datetime.max.replace(tzinfo=UTC)
MARK_S: Final = 900
_LOCK: Final = 0x6772_6964_7265_6769  # one change of the registry at a time
_TOLD_MAX: Final = 50  # changes a summary tells one by one

Registers = tuple[int | None, ...]  # as ENERGY_NAMES
NOT_NOTED: Final[Registers] = (None, None, None, None)
# Where a register returns to 0, if nobody stated a template: eight digits of 0.01 kWh, and the demo's Modbus meter.
_MODULUS_WH: Final = {"dlt645-2007": 10**9, "dlt645-1997": 10**9, "modbus-tcp": 2**32 * 10}


class RegistryError(RuntimeError):
    """What is asked for contradicts itself or what is on record. ``problems``: each, where it came from files."""

    def __init__(self, text: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(text)
        self.problems = tuple(problems)


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


def _bound(name: LiteralString) -> LiteralString:
    return f"CASE WHEN isfinite({name}) THEN {name} END"


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


# ---- what files make of a history ------------------------------------------------------------------------------------


def plan(before: History, registry: Registry, since: datetime) -> tuple[History, list[Problem]]:
    """What ``registry`` makes of ``before``, and every contradiction.

    What a file without dates states is so from ``since`` on where something else was the case; a first statement holds
    always. Of a point that a dated file names, the file's lines are the whole history.
    """
    after = before.copy()
    problems: list[Problem] = []
    after.line.clear()
    meters, lines = registry.rows["meters.csv"], registry.lines["meters.csv"]
    if "meters.csv" in registry.dated:
        _state_histories(after, meters, lines, problems)
    else:
        _state_now(after, meters, lines, since, problems)
    feeders = registry.rows["area_feeders.csv"]
    told = {cast(str, row["area_id"]) for row in feeders}
    if "area_feeders.csv" in registry.dated:
        for area_id in told:
            after.feedings[area_id] = sorted(
                (
                    Feeding(area_id, cast(str, row["feeder_id"]), *_dates(row))
                    for row in feeders
                    if row["area_id"] == area_id
                ),
                key=lambda one: one.valid_from,
            )
        rows, file = [row for row in registry.rows["areas.csv"] if row["area_id"] not in told], "areas.csv"
    else:
        rows = [*(row for row in registry.rows["areas.csv"] if row["area_id"] not in told), *feeders]
        file = "areas.csv"
    for row in rows:
        feeding = Feeding(cast(str, row["area_id"]), cast(str, row["feeder_id"]))
        try:
            after.feedings[feeding.area_id] = _from_then(after.feedings.get(feeding.area_id, []), feeding, since)
        except ValueError as error:
            problems.append(Problem(file, 0, f"{feeding.area_id}: {error}"))
    problems += _contradictions(after, registry)
    return after, sorted(problems, key=lambda one: (one.file, one.line))


def _dates(row: Row) -> tuple[datetime, datetime]:
    return cast(datetime, row.get("valid_from") or BEGIN), cast(datetime, row.get("valid_to") or END)


def _installation(row: Row) -> Installation:
    names = ("point", "serial", "gateway", "wire_name", "ct_ratio", "pt_ratio")
    values: dict[str, Any] = {name: row[name] for name in names}
    values["opening"], values["closing"] = (tuple(row.get(name) for name in part) for part in (OPENING, CLOSING))
    values["valid_from"], values["valid_to"] = _dates(row)
    return Installation(**values)


def _membership(row: Row) -> Membership:
    names = ("point", "area_id", "role", "phases", "node_id", "controllable")
    values: dict[str, Any] = {name: row[name] for name in names}
    values["valid_from"], values["valid_to"] = _dates(row)
    return Membership(**values)


def _what(period: Installation | Membership | Feeding) -> tuple[object, ...]:
    """All of it but the dates, and what was noted at them."""
    dates = ("valid_from", "valid_to", "opening", "closing")
    return tuple(getattr(period, one.name) for one in fields(period) if one.name not in dates)


def _from_then(held: Sequence[Period], wanted: Period, since: datetime) -> list[Period]:
    """``held`` with ``wanted`` from ``since`` on. Raises ValueError where something later is on record."""
    if not held:
        return [wanted]
    last = held[-1]
    if last.valid_to == END and _what(last) == _what(wanted):
        return list(held)
    if last.valid_to == END and last.valid_from == since:
        return [*held[:-1], replace(wanted, valid_from=since)]  # the same day's second thought
    if last.valid_from >= since or (last.valid_to != END and last.valid_to > since):
        raise ValueError(
            f"something else is on record from {_show(last.valid_from)} on, so it cannot change as of {_show(since)};"
            " give a later --since, or state the dates in the file"
        )
    ended = [replace(last, valid_to=since)] if last.valid_to == END else [last]
    return [*held[:-1], *ended, replace(wanted, valid_from=since)]


def _state_histories(after: History, rows: Sequence[Row], lines: Sequence[int], problems: list[Problem]) -> None:
    by_point: dict[str, list[tuple[Row, int]]] = {}
    for row, line in zip(rows, lines, strict=True):
        by_point.setdefault(cast(str, row["point"]), []).append((row, line))
    for point, told in by_point.items():
        told.sort(key=lambda one: _dates(one[0])[0])
        installations: list[Installation] = []
        memberships: list[Membership] = []
        for row, line in told:
            one, place = _installation(row), _membership(row)
            if installations:
                last = installations[-1]
                goes_on = last.valid_to == one.valid_from and _what(last) == _what(one)
                if goes_on and last.closing == one.opening == NOT_NOTED:  # only where the point belongs has changed
                    one = replace(one, valid_from=last.valid_from, opening=last.opening)
                    installations.pop()
                    line = after.line[last]
                elif not goes_on and _is_off_mark(last, one):
                    text = (
                        f"valid_from: {point} has another ratio from {_show(one.valid_from)} on, between two marks;"
                        " give a quarter of an hour, or the registers then, as closing_… and opening_…"
                    )
                    problems.append(Problem("meters.csv", line, text))
            installations.append(one)
            after.line[one] = line
            if memberships and _what(memberships[-1]) == _what(place):
                memberships[-1] = replace(memberships[-1], valid_to=place.valid_to)
            else:
                if memberships:
                    memberships[-1] = replace(memberships[-1], valid_to=place.valid_from)
                memberships.append(place)
        after.installations[point], after.memberships[point] = installations, memberships


def _is_off_mark(last: Installation, one: Installation) -> bool:
    """Whether a meter goes on at another ratio from an instant that no reading tells of."""
    return (
        last.serial == one.serial
        and last.valid_to == one.valid_from
        and last.ct_ratio * last.pt_ratio != one.ct_ratio * one.pt_ratio
        and one.valid_from.timestamp() % MARK_S != 0
        and NOT_NOTED in (last.closing, one.opening)
    )


def _state_now(
    after: History, rows: Sequence[Row], lines: Sequence[int], since: datetime, problems: list[Problem]
) -> None:
    held = [one for periods in after.installations.values() for one in periods]
    seen: dict[object, list[Installation]] = {}
    for one in held:
        for key in (one.serial, one.wire):
            seen.setdefault(key, []).append(one)
    fresh: list[tuple[Installation, int]] = []
    ended: dict[Installation, int] = {}
    for row, line in zip(rows, lines, strict=True):
        wanted = _installation(row)
        touching = {
            *after.installations.get(wanted.point, ()),
            *seen.get(wanted.serial, ()),
            *seen.get(wanted.wire, ()),
        }
        open_ones = {one for one in touching if one.valid_to == END}
        same = {one for one in open_ones if _what(one) == _what(wanted)}
        ended.update(dict.fromkeys(open_ones - same, line))
        if not same:
            fresh.append((replace(wanted, valid_from=since if touching else BEGIN), line))
        for one in same:
            after.line[one] = line
        try:
            after.memberships[wanted.point] = _from_then(
                after.memberships.get(wanted.point, []), _membership(row), since
            )
        except ValueError as error:
            problems.append(Problem("meters.csv", line, f"{wanted.point}: {error}"))
    for one, line in ended.items():
        if one.valid_from >= since:
            text = (
                f"meter {one.wire_name} of {one.gateway}: installed since {_show(one.valid_from)}, so it cannot change"
                f" as of {_show(since)}; give a later --since"
            )
            problems.append(Problem("meters.csv", line, text))
            continue
        periods = after.installations[one.point]
        periods[periods.index(one)] = replace(one, valid_to=since)
    for one, line in fresh:
        after.installations.setdefault(one.point, []).append(one)
        after.line[one] = line


def _contradictions(after: History, registry: Registry) -> list[Problem]:
    """Two of anything at one time: of what a meter, a point or a wire name can be only once."""
    problems: list[Problem] = []
    every = [one for periods in after.installations.values() for one in periods]
    what: tuple[tuple[str, Callable[[Installation], object]], ...] = (
        ("point", lambda one: one.point),
        ("serial", lambda one: one.serial),
        ("gateway+wire_name", lambda one: one.wire),
    )
    for name, key in what:
        by_key: dict[object, list[Installation]] = {}
        for one in every:
            by_key.setdefault(key(one), []).append(one)
        for value, periods in by_key.items():
            periods.sort(key=lambda one: (one.valid_from, one.valid_to))
            for first, second in pairwise(periods):
                if second.valid_from < first.valid_to:
                    a, b = (first, second) if second in after.line else (second, first)
                    shown = " ".join(value) if isinstance(value, tuple) else value
                    on = f"line {after.line[a]}" if a in after.line else "record"
                    text = (
                        f"{name}: {shown} is on {on} as {a.serial} at {a.point}, {_show(a.valid_from)} to"
                        f" {_show(a.valid_to)}; let one end before the other begins"
                    )
                    problems.append(Problem("meters.csv", after.line.get(b, 0), text))
    for area_id, feedings in after.feedings.items():
        for first_feeding, second_feeding in pairwise(feedings):
            if second_feeding.valid_from < first_feeding.valid_to:
                text = f"{area_id}: on {first_feeding.feeder_id} and {second_feeding.feeder_id} at one time"
                problems.append(Problem("area_feeders.csv", 0, text))
    meters: dict[str, tuple[Row, int]] = {}
    for row, line in zip(registry.rows["meters.csv"], registry.lines["meters.csv"], strict=True):
        other, first_line = meters.setdefault(cast(str, row["serial"]), (row, line))
        for column in ("protocol", "template", "counter_modulus_wh"):
            if row.get(column) != other.get(column):
                text = f'{column}: "{other.get(column) or ""}" expected as on line {first_line}, a meter has one'
                problems.append(Problem("meters.csv", line, text))
    return problems


def _show(moment: datetime) -> str:
    return "always" if moment == BEGIN else "for good" if moment == END else f"{moment:%FT%TZ}"


# ---- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Saved:
    """Rows of the files, what changed of each table, and the first of the dated changes in words."""

    rows: int
    changes: Mapping[str, Mapping[str, int]]  # table → added, changed, removed
    told: tuple[str, ...]

    @property
    def changed(self) -> int:
        return sum(number for each in self.changes.values() for number in each.values())


# Table, file, columns; the first column is the key. Order: what is referred to comes first.
_TABLES: Final[tuple[tuple[LiteralString, str, tuple[LiteralString, ...]], ...]] = (
    ("feeder", "feeders.csv", ("feeder_id", "name_en", "name_zh", "capacity_w")),
    (
        "area",
        "areas.csv",
        (
            "area_id", "name_en", "name_zh", "gateway", "capacity_w", "loss_low_percent", "loss_high_percent",
        ),
    ),
    ("network_node", "nodes.csv", ("node_id", "area_id", "kind", "phases")),
    (
        "network_line",
        "lines.csv",
        ("line_id", "from_node", "to_node", "length_m", "r_ohm_per_km", "x_ohm_per_km"),
    ),
    (
        "network_transformer",
        "transformers.csv",
        (
            "transformer_id", "hv_node", "lv_node", "rated_kva", "hv_v", "lv_v",
            "no_load_loss_w", "load_loss_w", "impedance_percent",
        ),
    ),
)  # fmt: skip


def save_registry(
    connection: Connection, registry: Registry, *, since: datetime, now: datetime | None = None, dry_run: bool = False
) -> Saved:
    """Write ``registry`` in one transaction; the same files again change nothing.

    What is on record and not in the files stays. See ``plan`` for ``since``. ``now``: what is in force then is what
    the undated tables show; ``since`` where not given. Raises RegistryError with every contradiction.
    """
    with connection.transaction(force_rollback=dry_run):
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        before = load_history(connection)
        after, problems = plan(before, registry, since)
        if problems:
            raise RegistryError(f"{len(problems)} problems; the first: {problems[0]}", problems)
        changes = {}
        for table, file, columns in _TABLES:
            rows = [[row[name] for name in columns] for row in registry.rows[file]]
            if table == "area":
                columns = (*columns, "feeder_id")
                rows = [[*row, _in_force(after.feedings[cast(str, row[0])], now or since).feeder_id] for row in rows]
            changes[table] = _upsert(connection, table, columns, rows)
        changes["meter"] = _save_meters(connection, registry)
        points: list[list[Value]] = [
            [one.point, one.area_id, one.role, one.phases, one.node_id, one.controllable]
            for one in (_in_force(periods, now or since) for periods in after.memberships.values())
        ]
        columns = ("point", "area_id", "role", "phases", "node_id", "controllable")
        changes["metering_point"] = _upsert(connection, "metering_point", columns, points)
        dated, told = write(connection, before, after)
        return Saved(sum(len(rows) for rows in registry.rows.values()), changes | dated, told)


def _in_force(periods: Sequence[Period], now: datetime) -> Period:
    """What is in force, or comes next, or was last."""
    return next((one for one in periods if now < one.valid_to), periods[-1])


def _upsert(
    connection: Connection, table: LiteralString, columns: tuple[LiteralString, ...], rows: Sequence[Sequence[Value]]
) -> dict[str, int]:
    key, *rest = columns
    listed: LiteralString = ", ".join(columns)
    fresh: LiteralString = ", ".join([f"f.{name}" for name in rest])
    held: LiteralString = ", ".join([f"t.{name}" for name in rest])
    settings: LiteralString = ", ".join([f"{name} = f.{name}" for name in rest])
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TEMP TABLE fresh ON COMMIT DROP AS SELECT {listed} FROM {table} WITH NO DATA")  # noqa: S608
        with cursor.copy(f"COPY fresh ({listed}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        # Unchanged rows are left alone, so that importing the same files twice writes nothing.
        changed = cursor.execute(
            f"UPDATE {table} t SET {settings} FROM fresh f"  # noqa: S608
            f" WHERE t.{key} = f.{key} AND ({held}) IS DISTINCT FROM ({fresh})"
        ).rowcount
        added = cursor.execute(
            f"INSERT INTO {table} ({listed}) SELECT {listed} FROM fresh f"  # noqa: S608
            f" WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.{key} = f.{key})"
        ).rowcount
        cursor.execute("DROP TABLE fresh")
    return {"added": added, "changed": changed}


def counter_modulus_wh(protocol: str, template: str | None) -> int | None:
    """Where a meter's import register returns to 0; None where nobody knows."""
    if template is None:
        return _MODULUS_WH.get(protocol)
    table = load(template)
    if isinstance(table, ModbusTemplate):
        return 2**32 * table.profile.scale
    register = next((one for one in table.register if one.quantity == "energy_import_wh"), None)
    steps = table.counter_modulus if isinstance(table, Dlt645Meter) else getattr(register, "counter_modulus", None)
    return round(steps * register.scale) if steps and register else None


def _save_meters(connection: Connection, registry: Registry) -> dict[str, int]:
    rows = registry.rows["meters.csv"]
    known = {
        cast(str, serial): (protocol, template, modulus)
        for serial, protocol, template, modulus in cast(
            Iterable[tuple[Any, ...]],
            connection.execute("SELECT serial, protocol, template, counter_modulus_wh FROM meter"),
        )
    }
    wanted: dict[str, list[Value]] = {}
    for row in rows:
        serial, protocol = cast(str, row["serial"]), cast(str, row["protocol"])
        held = known.get(serial, (protocol, None, None))
        template = cast(str | None, row["template"] if "template" in row else held[1])
        modulus = row.get("counter_modulus_wh")
        if modulus is None and (serial not in known or held[:2] != (protocol, template)):
            modulus = counter_modulus_wh(protocol, template)
        elif modulus is None:
            modulus = held[2]
        wanted[serial] = [serial, protocol, template, modulus]
    return _upsert(connection, "meter", ("serial", "protocol", "template", "counter_modulus_wh"), list(wanted.values()))


def write(connection: Connection, before: History, after: History) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """Put the difference on record, hand over power and events, and mark what must be derived again.

    Returns what changed of each dated table, and some of it in words. A point's or an area's first place is no change.
    """
    connection.execute("SET CONSTRAINTS ALL DEFERRED")
    changes = {
        "installation": _replace(
            connection, before.installations, after.installations, "installation",
            ("point", "serial", "gateway", "wire_name", "ct_ratio", "pt_ratio", "valid_from", "valid_to",
             *cast(tuple[LiteralString, ...], (*OPENING, *CLOSING))),
            lambda one: [*_what(one), one.valid_from, one.valid_to, *one.opening, *one.closing],
            "metering_point USING (point) JOIN meter USING (serial)", "point_id, meter_id", 2,
        ),
        "point_in_area": _replace(
            connection, before.memberships, after.memberships, "point_in_area",
            ("point", "area_id", "role", "phases", "node_id", "controllable", "valid_from", "valid_to"),
            lambda one: [*_what(one), one.valid_from, one.valid_to],
            "metering_point m USING (point)", "point_id", 1,
        ),
        "area_on_feeder": _replace(
            connection, before.feedings, after.feedings, "area_on_feeder",
            ("area_id", "feeder_id", "valid_from", "valid_to"),
            lambda one: [*_what(one), one.valid_from, one.valid_to],
            "area a USING (area_id)", "area_id", 1,
        ),
    }  # fmt: skip
    _mark_points(connection, before, after)
    _mark_series(connection, before, after)
    return changes, tuple(_tell(before, after))


def _replace(
    connection: Connection,
    before: Mapping[str, Sequence[Period]],
    after: Mapping[str, Sequence[Period]],
    table: LiteralString,
    columns: tuple[LiteralString, ...],
    row_of: Callable[[Period], list[Any]],
    joined: LiteralString,
    identities: LiteralString,
    named: int,
) -> dict[str, int]:
    """Write the periods of everything whose history differs. ``named``: leading columns that ``identities`` replace."""
    keys = [key for key, periods in after.items() if list(before.get(key, ())) != list(periods)]
    if keys:
        listed: LiteralString = ", ".join(columns)
        stored: LiteralString = ", ".join([f"f.{name}" for name in columns[named:]])
        stored_names: LiteralString = ", ".join(columns[named:])
        identity: LiteralString = identities.split(",")[0]
        owner: LiteralString = "area" if identity == "area_id" else "metering_point"
        with connection.cursor() as cursor:
            cursor.execute(
                f"DELETE FROM {table} WHERE {identity} IN"  # noqa: S608
                f" (SELECT {identity} FROM {owner} WHERE {columns[0]} = ANY(%s))",
                [keys],
            )
            types: LiteralString = ", ".join([f"{name} {_TYPES.get(name, 'text')}" for name in columns])
            cursor.execute(f"CREATE TEMP TABLE fresh ({types}) ON COMMIT DROP")
            with cursor.copy(f"COPY fresh ({listed}) FROM STDIN") as copy:
                for key in keys:
                    for one in after[key]:
                        copy.write_row([_infinite(value) for value in row_of(one)])
            cursor.execute(
                f"INSERT INTO {table} ({identities}, {stored_names})"  # noqa: S608
                f" SELECT {identities}, {stored} FROM fresh f JOIN {joined}"
            )
            cursor.execute("DROP TABLE fresh")
    count: Counter[str] = Counter(added=0, changed=0, removed=0)
    for key in keys:
        if key not in before and table != "installation":
            continue
        old = {one.valid_from: one for one in before.get(key, ())}
        new = {one.valid_from: one for one in after[key]}
        count["added"] += len(new.keys() - old.keys())
        count["removed"] += len(old.keys() - new.keys())
        count["changed"] += sum(old[start] != new[start] for start in old.keys() & new.keys())
    return dict(count)


_TYPES: Final[dict[LiteralString, LiteralString]] = {
    "ct_ratio": "integer",
    "pt_ratio": "integer",
    "controllable": "boolean",
    "valid_from": "timestamptz",
    "valid_to": "timestamptz",
    **dict.fromkeys(cast(tuple[LiteralString, ...], (*OPENING, *CLOSING)), "bigint"),
}


def _infinite(value: object) -> object:
    return "-infinity" if value == BEGIN else "infinity" if value == END else value


# ---- what must be derived again --------------------------------------------------------------------------------------


def _differences(
    before: Sequence[Period], after: Sequence[Period], same: Callable[[Period], object]
) -> Iterator[tuple[datetime, datetime, Period | None, Period | None]]:
    """Periods during which something else was the case before than is now."""
    edges = sorted({edge for one in (*before, *after) for edge in (one.valid_from, one.valid_to)})
    for start, end in pairwise(edges):
        old = next((one for one in before if one.valid_from <= start < one.valid_to), None)
        new = next((one for one in after if one.valid_from <= start < one.valid_to), None)
        if (old and same(old)) != (new and same(new)):
            yield start, end, old, new


def _noted(periods: Sequence[Installation]) -> set[tuple[datetime, str, Registers]]:
    opening = {(one.valid_from, one.serial, one.opening) for one in periods if one.opening != NOT_NOTED}
    return opening | {(one.valid_to, one.serial, one.closing) for one in periods if one.closing != NOT_NOTED}


def _mark_points(connection: Connection, before: History, after: History) -> None:
    dirty: list[tuple[str, str, datetime, datetime]] = []  # point, meter whose readings are concerned, from, to
    moved: list[tuple[str, str, datetime, datetime]] = []  # meter, the one that stands under its wire name now
    for point in after.installations:
        old, new = before.installations.get(point, []), after.installations[point]
        if old == new:
            continue
        for start, end, was, now in _differences(old, new, lambda one: (one.serial, one.ct_ratio * one.pt_ratio)):
            dirty += [(point, one.serial, start, end) for one in {was, now} if one]
            if was and now and was.serial != now.serial:
                moved.append((was.serial, now.serial, start, end))
        dirty += [(point, serial, at, at) for at, serial, _ in _noted(old) ^ _noted(new)]
    if not dirty:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP TABLE fresh (point text, serial text, from_at timestamptz, to_at timestamptz) ON COMMIT DROP"
        )
        with cursor.copy("COPY fresh FROM STDIN") as copy:
            for dirt in dirty:
                copy.write_row([_infinite(value) for value in dirt])
        # Only where there are readings, in weeks. Meters first: rows of the one that went may be those of the one that
        # came. A mark more on either side: an interval ends where the next begins.
        cursor.execute(_DIRTY)
        cursor.execute("INSERT INTO dirty_range (meter_id, from_at, to_at) SELECT DISTINCT meter_id, a, b FROM dirt")
        cursor.execute("INSERT INTO dirty_range (point_id, from_at, to_at) SELECT DISTINCT point_id, a, b FROM dirt")
        cursor.execute("DROP TABLE dirt")
        cursor.execute("DROP TABLE fresh")
        for one, other, start, end in moved:
            span = {"one": one, "other": other, "start": _infinite(start), "end": _infinite(end)}
            cursor.execute(_DIRTY_HOURS, span)
            cursor.execute(_HAND_OVER_POWER, span)
            cursor.execute(_HAND_OVER_EVENTS, span)


_DIRTY: Final = """
    CREATE TEMP TABLE dirt ON COMMIT DROP AS
    SELECT meter_id, point_id, a, least(a + interval '7 days', last) AS b
    FROM (
        SELECT meter_id, point_id,
               date_bin('15 min', greatest(f.from_at, oldest.at), 'epoch') - interval '15 min' AS first,
               date_bin('15 min', least(f.to_at, newest.at), 'epoch') + interval '30 min' AS last
        FROM fresh f JOIN meter m USING (serial) JOIN metering_point USING (point)
        CROSS JOIN LATERAL (
            SELECT at FROM energy_sample s WHERE s.meter_id = m.meter_id ORDER BY at LIMIT 1) oldest
        CROSS JOIN LATERAL (
            SELECT at FROM energy_sample s WHERE s.meter_id = m.meter_id ORDER BY at DESC LIMIT 1) newest
        WHERE f.from_at <= newest.at + interval '15 min' AND f.to_at >= oldest.at - interval '15 min'
    ) ranges, generate_series(first, last, interval '7 days') a
"""
# What came under a wire name after another meter had taken its place there. Energy follows when it is derived.
_STRAY_POWER: Final[LiteralString] = """
    FROM meter one, meter other
    WHERE one.serial = %(one)s AND other.serial = %(other)s AND s.meter_id = one.meter_id
      AND s.at >= %(start)s::timestamptz AND s.at < %(end)s::timestamptz
      AND NOT EXISTS (SELECT FROM installation i
                      WHERE i.meter_id = one.meter_id AND s.at >= i.valid_from AND s.at < i.valid_to)
"""
_DIRTY_HOURS: Final[LiteralString] = f"""
    INSERT INTO dirty_hour (start, meter_ids)
    SELECT DISTINCT date_trunc('hour', at), ARRAY[one_id, other_id]
    FROM (SELECT s.at, one.meter_id AS one_id, other.meter_id AS other_id
          {_STRAY_POWER.replace("FROM meter one", "FROM power_sample s, meter one")}) stray
"""  # noqa: S608
_HAND_OVER_POWER: Final[LiteralString] = f"UPDATE power_sample s SET meter_id = other.meter_id {_STRAY_POWER}"  # noqa: S608
_HAND_OVER_EVENTS: Final = """
    UPDATE event s SET meter_id = i.meter_id
    FROM meter one, installation i
    WHERE one.serial = %(one)s AND s.meter_id = one.meter_id
      AND s.at >= %(start)s::timestamptz AND s.at < %(end)s::timestamptz
      AND (i.gateway, i.wire_name) = (s.gateway, s.meter) AND s.at >= i.valid_from AND s.at < i.valid_to
      AND i.meter_id <> s.meter_id
"""


def _mark_series(connection: Connection, before: History, after: History) -> None:
    dirty: set[tuple[str, datetime, datetime]] = set()
    for point, places in after.memberships.items():
        old = before.memberships.get(point, [])
        if old != places:
            for start, end, was, now in _differences(old, places, lambda one: (one.area_id, one.role, one.node_id)):
                dirty |= {(f"area:{one.area_id}", start, end) for one in (was, now) if one}
    for area_id, feedings in after.feedings.items():
        held = before.feedings.get(area_id, [])
        if held != feedings:
            for start, end, on, onto in _differences(held, feedings, lambda one: one.feeder_id):
                dirty |= {(f"feeder:{one.feeder_id}", start, end) for one in (on, onto) if one}
    with connection.cursor() as cursor:
        cursor.executemany(
            """
            INSERT INTO dirty_range (series, from_at, to_at)
            SELECT %s, week, least(week + interval '7 days' - interval '15 min', last)
            FROM (SELECT greatest(date_bin('15 min', %s::timestamptz, 'epoch'), min(start)) AS first,
                         least(%s::timestamptz, max(start)) AS last
                  FROM load WHERE series = 'substation:S1' HAVING count(*) > 0) load,
                      generate_series(first, last, interval '7 days') week
            """,
            [(series, _infinite(start), _infinite(end)) for series, start, end in sorted(dirty)],
        )


def _tell(before: History, after: History) -> Iterator[str]:
    """The first changes of what was on record before, in words."""
    told = 0
    for periods, held in (
        (after.installations, before.installations),
        (after.memberships, before.memberships),
        (after.feedings, before.feedings),
    ):
        for key, rows in cast(dict[str, list[Any]], periods).items():
            old: Sequence[Any] = cast(dict[str, list[Any]], held).get(key, [])
            if not old or old == rows:
                continue
            for start, end, was, now in _differences(old, rows, _what):
                if told == _TOLD_MAX:
                    yield "…"
                    return
                told += 1
                yield f"{key}: {_say(was)} → {_say(now)}, {_show(start)} to {_show(end)}"


def _say(period: Installation | Membership | Feeding | None) -> str:
    match period:
        case Installation():
            ratio = f" × {period.ct_ratio * period.pt_ratio}" if period.ct_ratio * period.pt_ratio > 1 else ""
            return f"{period.serial} ({period.gateway} {period.wire_name}){ratio}"
        case Membership():
            return f"{period.role} of {period.area_id} ({period.phases}, {period.node_id})"
        case Feeding():
            return period.feeder_id
    return "nothing"


# ---- exchange and export ---------------------------------------------------------------------------------------------


def exchange(
    connection: Connection,
    point: str,
    *,
    old: str,
    new: str,
    at: datetime,
    closing: Registers = NOT_NOTED,
    opening: Registers = NOT_NOTED,
    wire_name: str | None = None,
    template: str | None = None,
    ratios: tuple[int, int] | None = None,
    dry_run: bool = False,
) -> Saved:
    """Put on record that meter ``new`` took the place of ``old`` at ``point``; said twice, it changes nothing.

    What is not given stays as it was with the old meter. ``new`` may be ``old``: a reset, or other ratios, with the
    registers before and after. Raises RegistryError.
    """
    with connection.transaction(force_rollback=dry_run):
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        before = load_history(connection)
        periods = before.installations.get(point, [])
        if not periods:
            raise RegistryError(f"{point}: no such metering point, or no meter was ever there")
        held = [one for one in periods if one.serial == old and one.valid_from < at <= one.valid_to]
        if not held:
            now = next((one for one in periods if one.valid_from <= at < one.valid_to), None)
            there = f"{now.serial} is there since {_show(now.valid_from)}" if now else "no meter is there"
            raise RegistryError(f"{point}: {old} was not there until {_show(at)}; {there}")
        place = held[0]
        follows = next((one for one in periods if one.valid_from == at), None)
        if place.valid_to == at and follows is None:
            raise RegistryError(f"{point}: {old} ended at {_show(at)} and nothing followed; state it in meters.csv")
        if place.valid_to == at and follows is not None and follows.serial != new:
            raise RegistryError(f"{point}: at {_show(at)} {follows.serial} followed {old}, not {new}")
        ended = replace(place, valid_to=at, closing=closing)
        ct_ratio, pt_ratio = ratios or (place.ct_ratio, place.pt_ratio)
        begun = replace(
            place, serial=new, wire_name=wire_name or place.wire_name, ct_ratio=ct_ratio, pt_ratio=pt_ratio,
            opening=opening, closing=(follows or place).closing, valid_from=at, valid_to=(follows or place).valid_to,
        )  # fmt: skip
        after = before.copy()
        after.installations[point] = [
            *(one for one in periods if one not in (place, follows)), ended, begun,
        ]  # fmt: skip
        after.installations[point].sort(key=lambda one: one.valid_from)
        after.line[begun] = 0
        problems = _contradictions(after, _NO_FILES)
        if problems:
            raise RegistryError(problems[0].text)
        if _is_off_mark(ended, begun):
            raise RegistryError(f"{_show(at)} lies between two marks; give the registers, or a quarter of an hour")
        added = connection.execute(
            """
            INSERT INTO meter (serial, protocol, template, counter_modulus_wh)
            SELECT %(new)s, protocol, coalesce(%(template)s, template), CASE WHEN %(template)s::text IS NULL
                   THEN counter_modulus_wh ELSE %(modulus)s END
            FROM meter WHERE serial = %(old)s AND NOT EXISTS (SELECT FROM meter WHERE serial = %(new)s)
            """,
            {
                "new": new,
                "old": old,
                "template": template,
                "modulus": counter_modulus_wh("", template) if template else None,
            },
        ).rowcount
        changes, told = write(connection, before, after)
        return Saved(0, {"meter": {"added": added}} | changes, told)


_NO_FILES: Final = Registry({file.name: () for file in FILES}, {file.name: () for file in FILES}, frozenset())


def known_names(connection: Connection) -> dict[tuple[str, str], set[Value]]:
    """What files that are not given may be referred to for."""
    tables: dict[str, LiteralString] = {"feeders.csv": "feeder", "areas.csv": "area", "nodes.csv": "network_node"}
    return {
        (file, column): {
            cast(str, name)
            for (name,) in connection.execute(f"SELECT {column} FROM {tables[file]}")  # noqa: S608
        }
        for file, column in REFERRED
    }


def export_registry(connection: Connection, folder: Path) -> int:
    """Write all that is on record as files that ``read_registry`` reads again; returns how many rows.

    A point that moved while its meter stayed has a line for each; a meter's line ends where either changes.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        history = load_history(connection)
        rows: dict[str, list[Sequence[Value]]] = {}
        for table, file, columns in _TABLES:
            names = (*columns[:1], "feeder_id", *columns[1:]) if table == "area" else columns
            rows[file] = cast(
                list[Sequence[Value]],
                connection.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY 1").fetchall(),  # noqa: S608
            )
        meters = {
            cast(str, serial): (protocol, template, modulus)
            for serial, protocol, template, modulus in cast(
                Iterable[tuple[Any, ...]],
                connection.execute("SELECT serial, protocol, template, counter_modulus_wh FROM meter"),
            )
        }
    rows["area_feeders.csv"] = [
        (one.area_id, one.feeder_id, *_blank(one)) for periods in history.feedings.values() for one in periods
    ]
    rows["meters.csv"] = [
        _meter_line(part, place, meters[part.serial])
        for point, periods in sorted(history.installations.items())
        for one in periods
        for part, place in _split(one, history.memberships[point])
    ]
    write_registry(folder, rows)
    return sum(map(len, rows.values()))


def _split(one: Installation, memberships: Sequence[Membership]) -> Iterator[tuple[Installation, Membership]]:
    for place in memberships:
        start, end = max(one.valid_from, place.valid_from), min(one.valid_to, place.valid_to)
        if start < end:
            yield (
                replace(
                    one, valid_from=start, valid_to=end,
                    opening=one.opening if start == one.valid_from else NOT_NOTED,
                    closing=one.closing if end == one.valid_to else NOT_NOTED,
                ),
                place,
            )  # fmt: skip


def _blank(period: Installation | Feeding) -> tuple[datetime | None, datetime | None]:
    start, end = period.valid_from, period.valid_to
    return None if start == BEGIN else start, None if end == END else end


def _meter_line(one: Installation, place: Membership, meter: tuple[Any, ...]) -> Sequence[Value]:
    protocol, template, modulus = meter
    return (
        one.serial, protocol, *one.wire, one.point, place.area_id, place.role, place.phases, place.node_id,
        place.controllable, one.ct_ratio, one.pt_ratio, template, modulus, *_blank(one), *one.opening, *one.closing,
    )  # fmt: skip
