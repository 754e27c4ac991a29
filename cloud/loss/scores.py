"""What a run found against what was true: ``truth.csv`` with ``meter_id, kind, stolen_wh, since``."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from cloud.engines.loss.balance import Z80
from cloud.loss.folder import FolderError
from cloud.loss.run import AreaRun


@dataclass(frozen=True, slots=True)
class Fault:
    meter_id: str
    kind: str
    stolen_wh: float
    since: np.datetime64
    supplied_from: str = ""  # of a wrong area: the area that feeds it


@dataclass(frozen=True, slots=True)
class Scores:
    """None where nothing is there to score. Errors of stolen energy are in percent of the truth.

    ``precision_at_k``: mean over areas with k faults.  ``stolen_error_percent``: of all areas' unexplained energy
    together; ``stolen_error_median_percent``: of one area's.  ``area_coverage``, ``meter_coverage``: share of 80 %
    intervals that hold the truth, of areas' unexplained energy and of the faulty meters'.  ``since_error_days``:
    median.  ``kind_right``: share of faulty meters whose kind is right.  ``confusion``: true kind → said kind → meters.
    """

    customers: int
    faulty: int
    auc: float | None
    precision_at_k: float | None
    stolen_error_percent: float | None
    stolen_error_median_percent: float | None
    area_coverage: float | None
    meter_coverage: float | None
    since_error_days: float | None
    kind_right: float | None
    named: int
    named_right: int
    confusion: dict[str, dict[str, int]]

    def document(self) -> dict[str, object]:
        return asdict(self)


def read_truth(path: Path) -> dict[str, Fault]:
    """Faults by meter. Raises FolderError with file and line."""
    faults: dict[str, Fault] = {}
    problems: list[str] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            gone = {"meter_id", "kind", "stolen_wh", "since"} - set(reader.fieldnames or ())
            if gone:
                raise FolderError([f"{path}:1: column {', '.join(sorted(gone))} missing"])
            for row in reader:
                try:
                    since = datetime.fromisoformat(row["since"])
                    since = since if since.tzinfo is None else since.astimezone(UTC).replace(tzinfo=None)
                    at = np.datetime64(since, "us")
                    fed = row.get("supplied_from") or ""
                    fault = Fault(row["meter_id"], row["kind"], float(row["stolen_wh"]), at, fed)
                except ValueError as error:
                    problems.append(f"{path}:{reader.line_num}: {error}")
                    continue
                faults[fault.meter_id] = fault
    except OSError as error:
        raise FolderError([f"{path}: {error.strerror or error}"]) from error
    if problems:
        raise FolderError(problems)
    return faults


def auc(score: NDArray[np.float64], faulty: NDArray[np.bool_]) -> float | None:
    """Area under the ROC curve, ties counted half; None when all are of one kind."""
    there, not_there = int(faulty.sum()), int((~faulty).sum())
    if not there or not not_there:
        return None
    return float((rankdata(score)[faulty].sum() - there * (there + 1) / 2) / (there * not_there))


def score(runs: Sequence[AreaRun], truth: dict[str, Fault], time: NDArray[np.datetime64]) -> Scores:
    """runs: with suspects.  truth: faults by meter.  time: (T,) interval starts."""
    of_area: list[tuple[float, float, float]] = []  # stolen in truth, found, its standard deviation
    scores, faulty_all, precision, since_error, covered, right = [], [], [], [], [], []
    confusion: dict[str, dict[str, int]] = {}
    named = named_right = 0
    hidden = _hidden(truth, {name: area.area_id for area in runs for name in area.customers})
    for area in runs:
        if area.technical_wh is not None and hidden is not None:
            of_area.append((hidden.get(area.area_id, 0.0), area.rest_wh, area.rest_sd_wh))
        found = area.suspects
        if found is None:
            continue
        faulty = np.array([name in truth for name in area.customers])
        scores.append(np.asarray(found.score, np.float64))
        faulty_all.append(faulty)
        said = np.asarray(found.named)
        named += int(said.sum())
        named_right += int((said & faulty).sum())
        if faulty.any():
            precision.append(float(faulty[np.argsort(-scores[-1], kind="stable")[: faulty.sum()]].mean()))
        for at in np.flatnonzero(faulty):
            fault = truth[area.customers[at]]
            covered.append(bool(found.lo_wh[at] <= fault.stolen_wh <= found.hi_wh[at]))
            kind = found.kind[at] if said[at] else "not named"
            right.append(kind == fault.kind)
            row = confusion.setdefault(fault.kind, {})
            row[kind] = row.get(kind, 0) + 1
            if said[at] and found.since_step[at] >= 0:
                since_error.append(abs((time[found.since_step[at]] - fault.since) / np.timedelta64(1, "D")))
    pooled, faulty = (np.concatenate(x) if x else np.zeros(0) for x in (scores, faulty_all))
    stolen, got, sd = np.array(of_area, np.float64).reshape(-1, 3).T
    each = 100 * np.abs(got - stolen)[stolen != 0] / np.abs(stolen[stolen != 0])
    return Scores(
        customers=len(pooled),
        faulty=int(faulty.sum()),
        auc=_round(auc(pooled, faulty.astype(np.bool_))),
        precision_at_k=_mean(precision),
        stolen_error_percent=_round(100 * abs(got.sum() - stolen.sum()) / abs(stolen.sum())) if stolen.sum() else None,
        stolen_error_median_percent=_round(float(np.median(each))) if len(each) else None,
        area_coverage=_mean(np.abs(got - stolen) <= Z80 * sd),
        meter_coverage=_mean(covered),
        since_error_days=_round(float(np.median(since_error))) if since_error else None,
        kind_right=_mean(right),
        named=named,
        named_right=named_right,
        confusion=confusion,
    )


def _hidden(truth: dict[str, Fault], book: dict[str, str]) -> dict[str, float] | None:
    """Wh that each area's balance misses; None when a wrong area's other side is not known."""
    hidden: dict[str, float] = {}
    for fault in truth.values():
        area = book.get(fault.meter_id)
        if area is None:
            continue
        if fault.kind == "wrong_area":
            if not fault.supplied_from:
                return None
            # Booked here and fed from there: too much is delivered here, and too little there.
            hidden[area] = hidden.get(area, 0.0) - fault.stolen_wh
            hidden[fault.supplied_from] = hidden.get(fault.supplied_from, 0.0) + fault.stolen_wh
        else:
            hidden[area] = hidden.get(area, 0.0) + fault.stolen_wh
    return hidden


def _round(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _mean(values: Sequence[float] | NDArray[np.bool_]) -> float | None:
    return _round(float(np.mean(values))) if len(values) else None
