"""All that is on record, as files."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import cast

from cloud.store.migrations import Connection
from cloud.store.registry.files import Value, write_registry
from cloud.store.registry.history import (
    BEGIN,
    END,
    NOT_NOTED,
    Feeding,
    Installation,
    Membership,
    MeterKind,
    load_history,
    load_meters,
)
from cloud.store.registry.tables import TABLES


def export_registry(connection: Connection, folder: Path) -> int:
    """Write all that is on record as files that ``read_registry`` reads again; returns how many rows.

    A point that moved while its meter stayed has a line for each; a meter's line ends where either changes.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        history = load_history(connection)
        rows: dict[str, list[Sequence[Value]]] = {}
        for table, file, columns in TABLES:
            names = (*columns[:1], "feeder_id", *columns[1:]) if table == "area" else columns
            rows[file] = cast(
                list[Sequence[Value]],
                connection.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY 1").fetchall(),  # noqa: S608
            )
        meters = load_meters(connection)
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


def _meter_line(one: Installation, place: Membership, meter: MeterKind) -> Sequence[Value]:
    protocol, template, modulus = meter
    return (
        one.serial, protocol, *one.wire, one.point, place.area_id, place.role, place.phases, place.node_id,
        place.controllable, one.ct_ratio, one.pt_ratio, template, modulus, *_blank(one), *one.opening, *one.closing,
    )  # fmt: skip
