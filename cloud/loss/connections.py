"""Voltages of a folder's meters against its registry: who hangs at another transformer or phase than booked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.engines.loss.localise import Suspects
from cloud.engines.loss.topology import followed, voltage_words
from cloud.loss.folder import Folder

NAMED_SCORE: Final = 10.0  # as log odds: a meter that hangs elsewhere is worth a visit
MAJORITY: Final = 2  # of three phases, that follow the same other area
RECENT_DAYS: Final = 21  # tell where somebody hangs now, and the first ones whether it was always so
SAME_LEVEL: Final = 1.5  # times the customers' voltage: above it a head meter stands before the transformer


@dataclass(frozen=True, slots=True)
class Doubt:
    """Of one meter: the area and phase it hangs at ("" as booked), by how many standard deviations, in words, and
    whether it was so in the first days of the record, too.
    """

    area_id: str
    phase: str
    z: float
    words: str
    always: bool = False


def doubts(folder: Folder) -> dict[str, Doubt]:
    """Meters whose voltage follows another area's or phase's meters better than their own; {} without voltages.

    A single-phase meter's voltage is its only one, in whichever column it stands.
    """
    volts = folder.measurements.voltage_v
    if volts is None:
        return {}
    window = RECENT_DAYS * 86_400 // folder.measurements.step_s
    now, first = _doubts(folder, volts[-window:]), _doubts(folder, volts[:window])
    return {
        name: replace(one, always=name in first and first[name].area_id == one.area_id) for name, one in now.items()
    }


def both(by_voltage: Mapping[str, Doubt], by_sums: Mapping[str, Doubt], book: Mapping[str, str]) -> dict[str, Doubt]:
    """Doubts of either source; of one meter together, the one of another area than in the book first."""
    merged = {**by_voltage, **by_sums}
    for name in by_voltage.keys() & by_sums.keys():
        first, second = sorted((by_voltage[name], by_sums[name]), key=lambda doubt: doubt.area_id == book.get(name))
        merged[name] = replace(first, words=f"{first.words}; {second.words}")
    return merged


def _doubts(folder: Folder, volts: NDArray[np.float64]) -> dict[str, Doubt]:
    """Of some intervals."""
    there: NDArray[np.bool_] = np.asarray(np.isfinite(volts).any(axis=0))  # (M, 3)
    columns: list[tuple[int, int]] = []
    groups: list[tuple[str, str]] = []
    drawing = [at for at, meter in enumerate(folder.meters.rows) if meter.role != "supply"]
    usual = np.nanmedian(volts[:, drawing]) if there[drawing].any() else np.inf
    for at, meter in enumerate(folder.meters.rows):
        if meter.role == "check" or (there[at].any() and np.nanmedian(volts[:, at]) > SAME_LEVEL * usual):
            continue
        if len(meter.phases) == 1:
            measured = np.flatnonzero(there[at])
            pairs = [(int(measured[0]), meter.phases)] if len(measured) else []
        else:
            pairs = [("abc".index(p), p) for p in meter.phases if there[at, "abc".index(p)]]
        columns += [(at, column) for column, _ in pairs]
        groups += [(meter.area_id, phase) for _, phase in pairs]
    if not columns:
        return {}
    known = sorted(set(groups))
    group = np.array([known.index(one) for one in groups])
    meters, phases = np.array(columns).T
    found = followed(volts[:, meters, phases], group)
    names = [f"{area} phase {phase}" for area, phase in known]
    answer: dict[str, Doubt] = {}
    for at in np.unique(meters[found.doubted]):
        mine = np.flatnonzero((meters == at) & found.doubted)
        first = int(mine[np.argmax(found.z[mine])])
        meter = folder.meters.rows[at]
        area, phase = known[int(found.group[first])]
        if len(meter.phases) > 1 and sum(known[int(found.group[i])][0] == area for i in mine) < MAJORITY:
            continue
        answer[meter.meter_id] = Doubt(area, phase, float(found.z[first]), voltage_words(found, names, group, first))
    return answer


def told(suspects: Suspects, customers: Sequence[str], area_id: str, found: Mapping[str, Doubt]) -> Suspects:
    """Suspects with what voltages say first: whoever hangs in another area is no thief but in the wrong book."""
    if not any(name in found for name in customers):
        return suspects
    score: NDArray[np.float64] = suspects.score.copy()
    named, kind, evidence = suspects.named.copy(), list(suspects.kind), list(suspects.evidence)
    for at, name in enumerate(customers):
        doubt = found.get(name)
        if doubt is None:
            continue
        evidence[at] = f"{doubt.words}; {evidence[at]}"
        if doubt.area_id != area_id:
            kind[at], named[at] = "wrong_area", True
            score[at] = max(float(score[at]), NAMED_SCORE + doubt.z)
    return replace(suspects, score=score, named=named, kind=tuple(kind), evidence=tuple(evidence))
