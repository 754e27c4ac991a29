"""Check meters of a folder: who is behind them by their sums, and a balance of what is behind each.

What flows through a check meter is what the customers behind it draw and what the wires there lose. A record that the
registry puts behind one and that does not show in it, or the other way round, is a doubt of the registry, told before
anybody is suspected. With the doubts mended each check meter makes a smaller balance, in which a thief stands out more
and nobody on its other side can be meant.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.loss import balance
from cloud.engines.loss.balance import Filled
from cloud.engines.loss.localise import AreaBalance, Suspects, localise
from cloud.engines.loss.topology import Behind, behind
from cloud.loss import technical
from cloud.loss.connections import RECENT_DAYS, Doubt, both, doubts, told
from cloud.loss.folder import Folder

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

RATIO: Final = (0.5, 2.0)  # of what is behind it, that a check meter in order shows
SURE_SD: Final = 0.1  # of a share: the median of such tells the meter's own ratio


@dataclass(frozen=True, slots=True)
class Booked:
    """An area as its book has it: M customers and their balance."""

    area_id: str
    customers: tuple[str, ...]
    balance: AreaBalance


@dataclass(frozen=True, slots=True)
class Part:
    """One balance of the area `area`, and whose records are in it: (area, column) of each of its customers."""

    area: int
    balance: AreaBalance
    owner: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """``parts``: what stands behind one check meter each and not behind the next, or a whole area where none is; every
    customer is in one. ``doubts``: by customer. ``broken``: check meters that cannot be used, in words.
    """

    parts: tuple[Part, ...]
    doubts: Mapping[str, Doubt]
    broken: Mapping[str, str]


def suspects(folder: Folder, areas: Sequence[Booked], clock_s: float) -> tuple[list[Suspects], dict[str, str]]:
    """Suspects of each area with what topology says first, and that alone: words by customer or check meter."""
    by_voltage = doubts(folder)
    found = split(folder, areas, by_voltage, clock_s)
    said = localise([part.balance for part in found.parts])
    merged = both(by_voltage, found.doubts, {name: area.area_id for area in areas for name in area.customers})
    answers = [
        told(_joined(found, said, number, area), area.customers, area.area_id, merged)
        for number, area in enumerate(areas)
    ]
    return answers, {**found.broken, **{name: doubt.words for name, doubt in merged.items()}}


def _joined(found: Parts, said: Sequence[Suspects], number: int, area: Booked) -> Suspects:
    """The parts' suspects as those of an area."""
    rows: list[tuple[Suspects, int]] = [(said[0], 0)] * len(area.customers)
    elsewhere = np.zeros(len(area.customers), np.bool_)
    for one, part in zip(said, found.parts, strict=True):
        for at, (of, column) in enumerate(part.owner):
            if of == number:
                rows[column] = (one, at)
                elsewhere[column] = part.area != number
    if all(one is rows[0][0] for one, _ in rows) and len(rows[0][0].score) == len(rows):
        return rows[0][0]

    def column_of(name: str) -> Array:
        return np.array([getattr(one, name)[at] for one, at in rows])

    # All that the book has of somebody who has always hung elsewhere is another area's.
    billed = area.balance.customer_wh.sum(axis=0)
    off = balance.Z80 * area.balance.customer_gain_sd * np.abs(billed)
    return Suspects(
        score=column_of("score"),
        kind=tuple(one.kind[at] for one, at in rows),
        since_step=np.where(elsewhere, 0, column_of("since_step")).astype(np.int64),
        stolen_wh=np.where(elsewhere, billed, column_of("stolen_wh")),
        lo_wh=np.where(elsewhere, billed - off, column_of("lo_wh")),
        hi_wh=np.where(elsewhere, billed + off, column_of("hi_wh")),
        named=column_of("named").astype(np.bool_),
        evidence=tuple(one.evidence[at] for one, at in rows),
        evidence_zh=tuple(one.evidence_zh[at] for one, at in rows),
        unrecorded_wh={who: one.unrecorded_wh[at] for who, (one, at) in enumerate(rows) if at in one.unrecorded_wh},
    )


@dataclass(frozen=True, slots=True)
class _Checks:
    """K check meters of an area. position: in the folder's meters; wh: (T, K) net, NaN where not aligned; registered:
    (M, K) customers behind each; above: (K,) the next one towards the head, -1 where there is none.
    """

    position: tuple[int, ...]
    wh: Array
    registered: Mask
    above: tuple[int, ...]


def split(folder: Folder, areas: Sequence[Booked], by_voltage: Mapping[str, Doubt], clock_s: float) -> Parts:
    """``by_voltage``: who has always hung in another area by its voltage stands in that one's balance, too."""
    per_day = max(1, 86_400 // folder.measurements.step_s)
    recent, first = slice(-RECENT_DAYS * per_day, None), slice(0, RECENT_DAYS * per_day)
    doubts: dict[str, Doubt] = {}
    broken: dict[str, str] = {}
    kept: list[_Checks] = []
    home: dict[tuple[int, int], tuple[int, int]] = {}  # the area and check meter (-1: none) that feed a customer
    strangers: list[tuple[int, int]] = []
    for number, area in enumerate(areas):
        checks = _checks(folder, area)
        seen = behind(checks.wh[recent], area.balance.customer_wh[recent], checks.registered)
        words = _broken(folder, checks, seen)
        if words:
            broken |= words
            good = [k for k, at in enumerate(checks.position) if folder.meters.rows[at].meter_id not in words]
            checks = _only(checks, good)
            seen = Behind(seen.share[:, good], seen.sd[:, good], seen.doubted[:, good])
        kept.append(checks)
        mended = checks.registered ^ seen.doubted
        unseen: Mask = np.asarray(seen.doubted.any(axis=1) & ~mended.any(axis=1))
        if unseen.any():
            # Whom the head sees stands before the check meters, whom it does not elsewhere.
            everybody = np.ones((len(area.customers), 1), np.bool_)
            head = behind(area.balance.supplied_wh[recent, None], area.balance.customer_wh[recent], everybody)
            unseen &= head.doubted[:, 0]
            strangers += [(number, who) for who in np.flatnonzero(unseen).tolist()]
        for who in range(len(area.customers)):
            home[number, who] = number, _nearest(checks, (checks.registered if unseen[who] else mended)[who])
        for who in np.flatnonzero(seen.doubted.any(axis=1)).tolist():
            doubts[area.customers[who]] = _doubt(folder, area, checks, seen, mended, who)
    for number, who in strangers:
        record = areas[number].balance.customer_wh[:, [who]]
        for other, checks in enumerate(kept):
            if other == number or not checks.position:
                continue
            theirs = np.hstack([areas[other].balance.customer_wh, record])
            registered = np.vstack([checks.registered, np.zeros((1, len(checks.position)), np.bool_)])
            seen = behind(checks.wh[recent], theirs[recent], registered)
            if seen.doubted[-1].any():
                k = _nearest(checks, seen.doubted[-1])
                always = bool(behind(checks.wh[first], theirs[first], registered).doubted[-1, k])
                name = areas[number].customers[who]
                doubts[name] = _abroad(folder, doubts[name], checks, seen, areas[other].area_id, k, always=always)
                if always:
                    home[number, who] = other, k
    of_area = {area.area_id: number for number, area in enumerate(areas)}
    for number, area in enumerate(areas):
        for who, name in enumerate(area.customers):
            doubt = by_voltage.get(name)
            if doubt and doubt.always and doubt.area_id in of_area and name not in doubts:
                other = of_area[doubt.area_id]
                if other != number and not kept[other].position:
                    home[number, who] = other, -1
    parts: list[Part] = []
    for number, area in enumerate(areas):
        own = [one for one, place in home.items() if place[0] == number]
        if not kept[number].position and own == [(number, who) for who in range(len(area.customers))]:
            parts.append(Part(number, area.balance, tuple(own)))
        else:
            parts += _parts(folder, areas, number, kept[number], home, clock_s)
    return Parts(tuple(parts), doubts, broken)


def _checks(folder: Folder, area: Booked) -> _Checks:
    """None (K = 0) where there are none, or where the network does not tell what is behind them."""
    rows = folder.meters.rows
    position = [at for at, m in enumerate(rows) if m.role == "check" and m.area_id == area.area_id]
    heads = [m.node_id for m in rows if m.role == "supply" and m.area_id == area.area_id]
    node = {m.meter_id: m.node_id for m in rows}
    up = _way_up(folder, heads[0]) if position and len(set(heads)) == 1 else {}
    way = {at: _nodes_up(up, rows[at].node_id) for at in position}
    # The head's own node has the whole area behind it, and a node that is not below the head nothing.
    position = [at for at in position if len(way[at]) > 1 and way[at][-1] == heads[0]]
    paths = [set(_nodes_up(up, node[name])) for name in area.customers]
    registered = np.array([[rows[at].node_id in path for at in position] for path in paths], np.bool_)
    above = []
    for at in position:
        over = [k for k, other in enumerate(position) if rows[other].node_id in way[at][1:]]
        above.append(max(over, key=lambda k: len(way[position[k]]), default=-1))
    measured = folder.measurements
    wh = measured.imported_wh[:, position] - np.nan_to_num(measured.exported_wh[:, position])
    wh = np.where(np.isfinite(area.balance.supplied_wh)[:, None], wh, np.nan)
    return _Checks(tuple(position), wh, registered.reshape(len(area.customers), len(position)), tuple(above))


def _way_up(folder: Folder, head: str) -> dict[str, str]:
    """Each node's next one towards the head."""
    edges: dict[str, list[str]] = {}
    for near, far in (
        *((line.from_node, line.to_node) for line in folder.lines),
        *((unit.hv_node, unit.lv_node) for unit in folder.transformers),
    ):
        edges.setdefault(near, []).append(far)
        edges.setdefault(far, []).append(near)
    up = {head: head}
    waiting = deque([head])
    while waiting:
        name = waiting.popleft()
        for other in edges.get(name, ()):
            if other not in up:
                up[other] = name
                waiting.append(other)
    return up


def _nodes_up(up: Mapping[str, str], name: str) -> list[str]:
    path = [name]
    while up.get(name, name) != name:
        name = up[name]
        path.append(name)
    return path


def _only(checks: _Checks, keep: Sequence[int]) -> _Checks:
    """These check meters alone; who stood behind one that is left out stands behind the next above."""

    def new(k: int) -> int:
        while k >= 0 and k not in keep:
            k = checks.above[k]
        return list(keep).index(k) if k >= 0 else -1

    return _Checks(
        tuple(checks.position[k] for k in keep), checks.wh[:, list(keep)], checks.registered[:, list(keep)],
        tuple(new(checks.above[k]) for k in keep),
    )  # fmt: skip


def _nearest(checks: _Checks, mine: Mask) -> int:
    """Of the check meters that see a customer the one furthest from the head; -1 where none does."""

    def depth(k: int) -> int:
        return 0 if k < 0 else 1 + depth(checks.above[k])

    return max(np.flatnonzero(mine).tolist(), key=depth, default=-1)


def _broken(folder: Folder, checks: _Checks, seen: Behind) -> dict[str, str]:
    words = {}
    for k, at in enumerate(checks.position):
        mine = checks.registered[:, k] & (seen.sd[:, k] < SURE_SD)
        shown = float(np.median(seen.share[mine, k])) if mine.any() else 1.0
        if not RATIO[0] < shown < RATIO[1]:
            name = folder.meters.rows[at].meter_id
            words[name] = (
                f"check meter {name} shows {shown:.2f} times what those booked behind it draw: check its ratio and "
                "where it stands; its sum is not used"
            )
    return words


def _doubt(folder: Folder, area: Booked, checks: _Checks, seen: Behind, mended: Mask, who: int) -> Doubt:
    """What the sums say of a customer, and what mending the book does to them."""
    name = [folder.meters.rows[at].meter_id for at in checks.position]
    booked, sees = (_nearest(checks, row[who]) for row in (checks.registered, mended))
    said = [f"check meter {name[sees]} sees this record ({_share(seen, who, sees)} of it)"] if sees >= 0 else []
    if booked >= 0 and not mended[who, booked]:
        does_not = f"{name[booked]}, behind which it is booked, does not ({_share(seen, who, booked)})"
        said.append(does_not if said else f"check meter {does_not}, nor does another of the area")
    k = int(np.flatnonzero(seen.doubted[who])[0])
    wh = area.balance.customer_wh
    before, after = (_missed(checks.wh[:, k], wh[:, mine], area) for mine in (_but(mended, k, who), mended[:, k]))
    said.append(
        f"{'with' if mended[who, k] else 'without'} it the sum behind {name[k]} leaves {after:+.1f} instead of "
        f"{before:+.1f} kWh a day"
    )
    z = float(np.abs(seen.share - ~mended)[who, k] / seen.sd[who, k])
    return Doubt(area.area_id, "", z, "; ".join(said) + "; correct where it is booked first")


def _share(seen: Behind, who: int, k: int) -> str:
    return f"{seen.share[who, k]:.2f} ± {max(float(seen.sd[who, k]), 0.01):.2f}"


def _but(mended: Mask, k: int, who: int) -> Mask:
    mine = mended[:, k].copy()
    mine[who] = ~mine[who]
    return mine


def _missed(check_wh: Array, wh: Array, area: Booked) -> float:
    """kWh a day of a check meter's sum beyond the records behind it, wires included."""
    left = check_wh - wh.sum(axis=1)
    return float(np.nanmean(left)) * 86.4 / area.balance.step_s if np.isfinite(left).any() else np.nan


def _abroad(
    folder: Folder, doubt: Doubt, checks: _Checks, seen: Behind, area_id: str, k: int, *, always: bool
) -> Doubt:
    """Whom no check meter of the own area sees, and one of another area does."""
    name = folder.meters.rows[checks.position[k]].meter_id
    words = f"check meter {name} of {area_id} sees this record ({_share(seen, -1, k)} of it); {doubt.words}"
    return replace(doubt, area_id=area_id, words=words, always=always)


def _parts(
    folder: Folder,
    areas: Sequence[Booked],
    number: int,
    checks: _Checks,
    home: Mapping[tuple[int, int], tuple[int, int]],
    clock_s: float,
) -> list[Part]:
    """What is behind each check meter and not behind the next, and what is behind none, where somebody stands there."""
    area = areas[number].balance
    through = {-1: area.supplied_wh, **dict(enumerate(checks.wh.T))}
    lost = {
        -1: area.technical_wh,
        **{k: _lost(folder, areas[number], checks, k, clock_s) for k in range(len(checks.above))},
    }
    parts = []
    for k in through:
        owner = tuple(one for one, place in home.items() if place == (number, k))
        if not owner:
            continue
        below = [j for j, over in enumerate(checks.above) if over == k]
        supplied = through[k] - sum((through[j] for j in below), np.zeros_like(through[k]))
        technical_wh, inner = lost[k], [wh for j in below if (wh := lost[j]) is not None]
        if technical_wh is not None:
            technical_wh = np.asarray(technical_wh - sum(inner)) if len(inner) == len(below) else None
        measured = [float(np.nansum(through[j])) for j in (k, *below)]
        gain = area.supply_gain_sd * float(np.hypot.reduce(measured)) / max(abs(float(np.nansum(supplied))), 1.0)
        parts.append(Part(number, _gathered(areas, owner, supplied, technical_wh, gain), owner))
    return parts


def _gathered(
    areas: Sequence[Booked],
    owner: Sequence[tuple[int, int]],
    supplied_wh: Array,
    technical_wh: Array | None,
    gain: float,
) -> AreaBalance:
    """The balance of some customers, of whichever book."""
    each = [(areas[of].balance, column) for of, column in owner]
    zero = np.zeros(len(supplied_wh))
    three = np.array([one.three_phase is None or bool(one.three_phase[at]) for one, at in each])
    return replace(
        areas[owner[0][0]].balance,
        supplied_wh=supplied_wh,
        customer_wh=np.column_stack([one.customer_wh[:, at] for one, at in each]),
        technical_wh=technical_wh,
        customer_sd_wh=np.column_stack(
            [zero if one.customer_sd_wh is None else one.customer_sd_wh[:, at] for one, at in each]
        ),
        supply_gain_sd=gain,
        customer_gain_sd=float(np.mean([one.customer_gain_sd for one, _ in each])),
        three_phase=None if three.all() else three,
        ct_ratio=np.array([1.0 if one.ct_ratio is None else one.ct_ratio[at] for one, at in each]),
    )


def _lost(folder: Folder, area: Booked, checks: _Checks, k: int, clock_s: float) -> Array | None:
    """(T,) Wh lost behind a check meter, by flow where the area's is; a doubted load is where it is booked."""
    if area.balance.technical_wh is None:
        return None
    place = {meter.meter_id: at for at, meter in enumerate(folder.meters.rows)}
    mine = np.flatnonzero(checks.registered[:, k])
    flow = technical.area_flow(folder, area.area_id, [checks.position[k]], [place[area.customers[who]] for who in mine])
    if isinstance(flow, str):
        return None
    wh = area.balance.customer_wh[:, mine]
    sd = np.zeros_like(wh) if area.balance.customer_sd_wh is None else area.balance.customer_sd_wh[:, mine]
    drawn = Filled(wh, sd, sd > 0, np.ones(len(mine)))
    per_day = max(1, 86_400 // folder.measurements.step_s)
    seen = checks.wh[:, k]
    solved = flow.solve(drawn, seen, np.isfinite(seen), steps_per_day=per_day, clock_s=clock_s)
    return None if isinstance(solved, str) else solved.wh
