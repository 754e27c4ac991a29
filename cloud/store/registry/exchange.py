"""A meter that takes another's place."""

from dataclasses import replace
from datetime import datetime

from cloud.store.migrations import Connection
from cloud.store.registry.history import NOT_NOTED, Registers, load_history, show
from cloud.store.registry.plan import RegistryError, contradictions, is_off_mark
from cloud.store.registry.record import LOCK, Saved, counter_modulus_wh, write


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
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        before = load_history(connection)
        periods = before.installations.get(point, [])
        if not periods:
            raise RegistryError(f"{point}: no such metering point, or no meter was ever there")
        held = [one for one in periods if one.serial == old and one.valid_from < at <= one.valid_to]
        if not held:
            now = next((one for one in periods if one.valid_from <= at < one.valid_to), None)
            there = f"{now.serial} is there since {show(now.valid_from)}" if now else "no meter is there"
            raise RegistryError(f"{point}: {old} was not there until {show(at)}; {there}")
        place = held[0]
        follows = next((one for one in periods if one.valid_from == at), None)
        if place.valid_to == at and follows is None:
            raise RegistryError(f"{point}: {old} ended at {show(at)} and nothing followed; state it in meters.csv")
        if place.valid_to == at and follows is not None and follows.serial != new:
            raise RegistryError(f"{point}: at {show(at)} {follows.serial} followed {old}, not {new}")
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
        problems = contradictions(after)
        if problems:
            raise RegistryError(problems[0].text)
        if is_off_mark(ended, begun):
            raise RegistryError(f"{show(at)} lies between two marks; give the registers, or a quarter of an hour")
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
