"""What files make of the history on record, and every contradiction in it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, cast

from cloud.store.registry.files import CLOSING, OPENING, Problem, Registry, Row
from cloud.store.registry.history import (
    BEGIN,
    END,
    NOT_NOTED,
    Feeding,
    History,
    Installation,
    Membership,
    Period,
    show,
    what,
)

MARK_S: Final = 900


class RegistryError(RuntimeError):
    """What is asked for contradicts itself or what is on record. ``problems``: each, where it came from files."""

    def __init__(self, text: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(text)
        self.problems = tuple(problems)


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
    problems += contradictions(after) + _contradicting_meters(registry)
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


def _from_then(held: Sequence[Period], wanted: Period, since: datetime) -> list[Period]:
    """``held`` with ``wanted`` from ``since`` on. Raises ValueError where something later is on record."""
    if not held:
        return [wanted]
    last = held[-1]
    if last.valid_to == END and what(last) == what(wanted):
        return list(held)
    if last.valid_to == END and last.valid_from == since:
        return [*held[:-1], replace(wanted, valid_from=since)]  # the same day's second thought
    if last.valid_from >= since or (last.valid_to != END and last.valid_to > since):
        raise ValueError(
            f"something else is on record from {show(last.valid_from)} on, so it cannot change as of {show(since)};"
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
                goes_on = last.valid_to == one.valid_from and what(last) == what(one)
                if goes_on and last.closing == one.opening == NOT_NOTED:  # only where the point belongs has changed
                    one = replace(one, valid_from=last.valid_from, opening=last.opening)
                    installations.pop()
                    line = after.line[last]
                elif not goes_on and is_off_mark(last, one):
                    text = (
                        f"valid_from: {point} has another ratio from {show(one.valid_from)} on, between two marks;"
                        " give a quarter of an hour, or the registers then, as closing_… and opening_…"
                    )
                    problems.append(Problem("meters.csv", line, text))
            installations.append(one)
            after.line[one] = line
            if memberships and what(memberships[-1]) == what(place):
                memberships[-1] = replace(memberships[-1], valid_to=place.valid_to)
            else:
                if memberships:
                    memberships[-1] = replace(memberships[-1], valid_to=place.valid_from)
                memberships.append(place)
        after.installations[point], after.memberships[point] = installations, memberships


def is_off_mark(last: Installation, one: Installation) -> bool:
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
        same = {one for one in open_ones if what(one) == what(wanted)}
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
                f"meter {one.wire_name} of {one.gateway}: installed since {show(one.valid_from)}, so it cannot change"
                f" as of {show(since)}; give a later --since"
            )
            problems.append(Problem("meters.csv", line, text))
            continue
        periods = after.installations[one.point]
        periods[periods.index(one)] = replace(one, valid_to=since)
    for one, line in fresh:
        after.installations.setdefault(one.point, []).append(one)
        after.line[one] = line


def contradictions(after: History) -> list[Problem]:
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
                        f"{name}: {shown} is on {on} as {a.serial} at {a.point}, {show(a.valid_from)} to"
                        f" {show(a.valid_to)}; let one end before the other begins"
                    )
                    problems.append(Problem("meters.csv", after.line.get(b, 0), text))
    for area_id, feedings in after.feedings.items():
        for first_feeding, second_feeding in pairwise(feedings):
            if second_feeding.valid_from < first_feeding.valid_to:
                text = f"{area_id}: on {first_feeding.feeder_id} and {second_feeding.feeder_id} at one time"
                problems.append(Problem("area_feeders.csv", 0, text))
    return problems


def _contradicting_meters(registry: Registry) -> list[Problem]:
    """A meter that changes its place stands on several lines, and is the same meter on all of them."""
    problems: list[Problem] = []
    meters: dict[str, tuple[Row, int]] = {}
    for row, line in zip(registry.rows["meters.csv"], registry.lines["meters.csv"], strict=True):
        other, first_line = meters.setdefault(cast(str, row["serial"]), (row, line))
        for column in ("protocol", "template", "counter_modulus_wh"):
            if row.get(column) != other.get(column):
                text = f'{column}: "{other.get(column) or ""}" expected as on line {first_line}, a meter has one'
                problems.append(Problem("meters.csv", line, text))
    return problems
