"""What is other between two histories, period by period, and in words."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, cast

from cloud.store.registry.history import Feeding, History, Installation, Membership, Period, show, what

_TOLD_MAX: Final = 50  # changes a summary tells one by one


def differences(
    before: Sequence[Period], after: Sequence[Period], same: Callable[[Period], object]
) -> Iterator[tuple[datetime, datetime, Period | None, Period | None]]:
    """Periods during which something else was the case before than is now."""
    edges = sorted({edge for one in (*before, *after) for edge in (one.valid_from, one.valid_to)})
    for start, end in pairwise(edges):
        old = next((one for one in before if one.valid_from <= start < one.valid_to), None)
        new = next((one for one in after if one.valid_from <= start < one.valid_to), None)
        if (old and same(old)) != (new and same(new)):
            yield start, end, old, new


def tell(before: History, after: History) -> Iterator[str]:
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
            for start, end, was, now in differences(old, rows, what):
                if told == _TOLD_MAX:
                    yield "…"
                    return
                told += 1
                yield f"{key}: {_say(was)} → {_say(now)}, {show(start)} to {show(end)}"


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
