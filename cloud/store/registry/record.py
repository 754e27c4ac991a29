"""The registry put on record: the difference between two histories, and all that follows from it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString, cast

from cloud.store.migrations import Connection
from cloud.store.registry.consequences import mark_points, mark_series
from cloud.store.registry.difference import tell
from cloud.store.registry.files import CLOSING, OPENING, Registry, Value
from cloud.store.registry.history import History, Installation, Period, in_force, load_history, load_meters, what
from cloud.store.registry.plan import RegistryError, plan
from cloud.store.registry.tables import TABLES, fresh, infinite, upsert
from protocols.templates import Dlt645Meter, ModbusTemplate, load

LOCK: Final = 0x6772_6964_7265_6769  # one change of the registry at a time


@dataclass(frozen=True, slots=True)
class Saved:
    """Rows of the files, what changed of each table, and the first of the dated changes in words."""

    rows: int
    changes: Mapping[str, Mapping[str, int]]  # table → added, changed, removed
    told: tuple[str, ...]

    @property
    def changed(self) -> int:
        return sum(number for each in self.changes.values() for number in each.values())


def save_registry(
    connection: Connection, registry: Registry, *, since: datetime, now: datetime | None = None, dry_run: bool = False
) -> Saved:
    """Write ``registry`` in one transaction; the same files again change nothing.

    What is on record and not in the files stays. See ``plan`` for ``since``. ``now``: what is in force then is what
    the undated tables show; ``since`` where not given. Raises RegistryError with every contradiction.
    """
    with connection.transaction(force_rollback=dry_run):
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        before = load_history(connection)
        after, problems = plan(before, registry, since)
        if problems:
            raise RegistryError(f"{len(problems)} problems; the first: {problems[0]}", problems)
        changes = {}
        for table, file, columns in TABLES:
            rows = [[row[name] for name in columns] for row in registry.rows[file]]
            if table == "area":
                columns = (*columns, "feeder_id")
                rows = [[*row, in_force(after.feedings[cast(str, row[0])], now or since).feeder_id] for row in rows]
            changes[table] = upsert(connection, table, columns, rows)
        changes["meter"] = _save_meters(connection, registry)
        places = [what(in_force(periods, now or since)) for periods in after.memberships.values()]
        columns = ("point", "area_id", "role", "phases", "node_id", "controllable")
        changes["metering_point"] = upsert(connection, "metering_point", columns, places)
        dated, told = write(connection, before, after)
        return Saved(sum(len(rows) for rows in registry.rows.values()), changes | dated, told)


def _save_meters(connection: Connection, registry: Registry) -> dict[str, int]:
    rows = registry.rows["meters.csv"]
    known = load_meters(connection)
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
    return upsert(connection, "meter", ("serial", "protocol", "template", "counter_modulus_wh"), list(wanted.values()))


# Where a register returns to 0, if nobody stated a template: eight digits of 0.01 kWh, and the demo's Modbus meter.
_MODULUS_WH: Final = {"dlt645-2007": 10**9, "dlt645-1997": 10**9, "modbus-tcp": 2**32 * 10}


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


@dataclass(frozen=True, slots=True)
class _Dated:
    """A table of periods. ``names`` are stored as ``identities``, which ``joined`` finds; ``owner``: of the first."""

    table: LiteralString
    owner: LiteralString
    names: tuple[LiteralString, ...]
    identities: LiteralString
    joined: LiteralString
    columns: Mapping[LiteralString, LiteralString]  # name → type, of the rest


_DATES: Final[Mapping[LiteralString, LiteralString]] = {"valid_from": "timestamptz", "valid_to": "timestamptz"}
_REGISTERS: Final = dict.fromkeys(cast(tuple[LiteralString, ...], (*OPENING, *CLOSING)), "bigint")
_INSTALLATIONS: Final = _Dated(
    "installation", "metering_point", ("point", "serial"), "point_id, meter_id",
    "metering_point USING (point) JOIN meter USING (serial)",
    {"gateway": "text", "wire_name": "text", "ct_ratio": "integer", "pt_ratio": "integer", **_DATES, **_REGISTERS},
)  # fmt: skip
_MEMBERSHIPS: Final = _Dated(
    "point_in_area", "metering_point", ("point",), "point_id", "metering_point m USING (point)",
    {"area_id": "text", "role": "text", "phases": "text", "node_id": "text", "controllable": "boolean", **_DATES},
)  # fmt: skip
_FEEDINGS: Final = _Dated(
    "area_on_feeder", "area", ("area_id",), "area_id", "area a USING (area_id)", {"feeder_id": "text", **_DATES}
)


def write(connection: Connection, before: History, after: History) -> tuple[dict[str, dict[str, int]], tuple[str, ...]]:
    """Put the difference on record, hand over power and events, and mark what must be derived again.

    Returns what changed of each dated table, and some of it in words. A point's or an area's first place is no change.
    """
    connection.execute("SET CONSTRAINTS ALL DEFERRED")
    changes = {
        table.table: _write_periods(connection, table, held, wanted)
        for table, held, wanted in (
            (_INSTALLATIONS, before.installations, after.installations),
            (_MEMBERSHIPS, before.memberships, after.memberships),
            (_FEEDINGS, before.feedings, after.feedings),
        )
    }
    mark_points(connection, before, after)
    mark_series(connection, before, after)
    return changes, tuple(tell(before, after))


def _write_periods(
    connection: Connection, dated: _Dated, before: Mapping[str, Sequence[Period]], after: Mapping[str, Sequence[Period]]
) -> dict[str, int]:
    """Write the periods of everything whose history differs."""
    keys = [key for key, periods in after.items() if list(before.get(key, ())) != list(periods)]
    if keys:
        identity: LiteralString = dated.identities.split(",")[0]
        connection.execute(
            f"DELETE FROM {dated.table} WHERE {identity} IN"  # noqa: S608
            f" (SELECT {identity} FROM {dated.owner} WHERE {dated.names[0]} = ANY(%s))",
            [keys],
        )
        types: LiteralString = ", ".join(
            [*(f"{name} text" for name in dated.names), *(f"{name} {kind}" for name, kind in dated.columns.items())]
        )
        stored: LiteralString = ", ".join(dated.columns)
        given: LiteralString = ", ".join([f"f.{name}" for name in dated.columns])
        rows = ([infinite(value) for value in _row(one)] for key in keys for one in after[key])
        with fresh(connection, f"({types}) ON COMMIT DROP", rows) as cursor:
            cursor.execute(
                f"INSERT INTO {dated.table} ({dated.identities}, {stored})"  # noqa: S608
                f" SELECT {dated.identities}, {given} FROM fresh f JOIN {dated.joined}"
            )
    count: Counter[str] = Counter(added=0, changed=0, removed=0)
    for key in keys:
        if key not in before and dated is not _INSTALLATIONS:
            continue
        old = {one.valid_from: one for one in before.get(key, ())}
        new = {one.valid_from: one for one in after[key]}
        count["added"] += len(new.keys() - old.keys())
        count["removed"] += len(old.keys() - new.keys())
        count["changed"] += sum(old[start] != new[start] for start in old.keys() & new.keys())
    return dict(count)


def _row(period: Period) -> list[object]:
    """As the columns of its table."""
    registers = (*period.opening, *period.closing) if isinstance(period, Installation) else ()
    return [*what(period), period.valid_from, period.valid_to, *registers]
