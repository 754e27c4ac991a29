"""What a demo has shown: every figure from the API, beside the simulator's truth, and whether it holds."""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime, time, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx

BACKFILL_DAYS = 35
COMPLETENESS_MIN = 0.999
# A thief's area stands out when its unexplained share is this much, and this many times the worst honest area's.
UNEXPLAINED_PERCENT_MIN = 1.5
UNEXPLAINED_TIMES_MIN = 3.0
THIEVES = ("scaled", "bypass")
PACKAGES = ("gridloom", "numpy", "psycopg", "aiomqtt", "paho-mqtt", "fastapi", "power-grid-model")
RULES = ("forecast_above_capacity", "loss_out_of_range", "meter_silent", "clock_drift", "suspect_named")


def make_report(api: httpx.Client, data: Path, *, restarts: Mapping[str, int]) -> dict[str, Any]:
    """Ask the API, add the truth of ``data``. Raises httpx.HTTPError when the API does not answer."""
    site = json.loads((data / "site.json").read_text())
    truth = json.loads((data / "truth.json").read_text())
    status = _get(api, "/v1/status")
    zone = ZoneInfo(status["zone"])
    # Whole business days the gateways had to read from the meters' memory.
    until = datetime.fromisoformat(site["start"]).astimezone(zone).date()
    days = {"from": str(until - timedelta(days=BACKFILL_DAYS - 1)), "to": str(until)}
    healthy = _healthy(api, days, truth)
    since = datetime.combine(until - timedelta(days=BACKFILL_DAYS), time(), zone)
    ingest = _get(api, "/v1/ingest", {"from": since.isoformat(), "to": status["now"]})
    accuracy = _get(api, "/v1/forecasts/accuracy")
    registry = _get(api, "/v1/registry")
    return {
        "meters": len([point for point in registry["points"] if point["serial"]]),
        "gateways": status["gateways"],
        "days": days,
        "intervals_expected": healthy["expected"],
        "intervals_received": healthy["received"],
        "completeness": healthy["received"] / healthy["expected"] if healthy["expected"] else 0.0,
        "duplicates": ingest["duplicates"],
        "quarantined": ingest["quarantined"],
        "ingest_rows": ingest["rows"],
        "ingest_seconds": ingest["ingest_seconds"],
        "forecast": {
            "wape": accuracy["pooled"]["wape"],
            "wape_seasonal_naive": accuracy["pooled"]["wape_seasonal_naive"],
            "horizon_h": accuracy["horizon_h"],
            "series": len(accuracy["series"]),
            "days": accuracy["pooled"]["days"],
        },
        "losses": _losses(api, days, truth),
        "suspects": _suspects(api, truth),
        "alerts": [
            {"rule": alert["rule"], "subject": alert["subject"]}
            for alert in _get(api, "/v1/alerts", {"limit": "1000"})["alerts"]
        ],
        "dr": _demand_response(api, data),
        "truth": {
            "thieves": [m["area"] for m in truth["meters"] if m["kind"] in THIEVES],
            "stealing": [m["point"] for m in truth["meters"] if m["kind"] in THIEVES],
            "broken": [m["point"] for m in truth["meters"] if m["kind"] == "broken"],
            "drifting": [m["point"] for m in truth["meters"] if m["kind"] == "drifting"],
        },
        "restarts": dict(restarts),
        "simulated_time": status["now"],
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}},
    }


def _get(api: httpx.Client, path: str, asked: Mapping[str, str] | None = None) -> dict[str, Any]:
    answer = api.get(path, params=asked)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _healthy(api: httpx.Client, days: Mapping[str, str], truth: Mapping[str, Any]) -> dict[str, int]:
    """Intervals of the backfilled days, without the meter that is broken."""
    broken = {meter["point"] for meter in truth["meters"] if meter["kind"] == "broken"}
    points = [
        group
        for group in _get(api, "/v1/completeness", {**days, "by": "point"})["groups"]
        if group["point"] not in broken
    ]
    return {name: sum(point[name] for point in points) for name in ("expected", "received")}


def _losses(api: httpx.Client, days: Mapping[str, str], truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per area over the days the cloud could compute; the truth over the same days."""
    answer = _get(api, "/v1/losses", days)
    losses = []
    for total in answer["totals"]:
        area = total["area"]
        computed = {day["day"] for day in answer["days"] if day["area"] == area and day["unexplained_kwh"] is not None}
        real = [day for name, day in truth["areas"][area].items() if name in computed]
        losses.append(
            {
                "area": area,
                "days": total["days"],
                "supplied_kwh": total["supplied_kwh"],
                "delivered_kwh": total["delivered_kwh"],
                "technical_kwh": total["technical_kwh"],
                "unexplained_kwh": total["unexplained_kwh"],
                "true_technical_kwh": sum(day["technical_wh"] for day in real) / 1000,
                "true_unexplained_kwh": sum(day["unexplained_wh"] for day in real) / 1000,
            }
        )
    return losses


def _suspects(api: httpx.Client, truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Whom the newest search names; the truth over the same days, as far as its area's loss tells."""
    thieves = {m["area"]: m["point"] for m in truth["meters"] if m["kind"] in THIEVES}
    suspects = []
    for area in _get(api, "/v1/suspects")["areas"]:
        days = [day for name, day in truth["areas"][area["area"]].items() if area["from_day"] <= name <= area["day"]]
        suspects += [
            {
                **{name: one[name] for name in ("area", "point", "kind", "since", "score")},
                **{name: one[name] for name in ("stolen_kwh", "stolen_lo_kwh", "stolen_hi_kwh")},
                "true_stolen_kwh": sum(day["unexplained_wh"] for day in days) / 1000
                if thieves.get(area["area"]) == one["point"]
                else 0.0,
            }
            for one in area["suspects"]
            if one["named"]
        ]
    return suspects


def _demand_response(api: httpx.Client, data: Path) -> dict[str, Any]:
    measured = [event for event in _get(api, "/v1/dr")["events"] if event["state"] == "measured"]
    return {
        "events": len(measured),
        "reduction_kwh": sum(event["reduction_kwh"] for event in measured),
        "true_reduction_kwh": sum(_true_reduction_kwh(data, event) for event in measured),
    }


def _true_reduction_kwh(data: Path, event: Mapping[str, Any]) -> float:
    asked = ["--from", event["start"], "--to", event["end"], "--points", ",".join(event["points"])]
    told = subprocess.run(
        [sys.executable, "-m", "simulators", "truth", "--data", str(data), *asked, "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(told.stdout)["reduction_wh"]) / 1000


def summary(report: Mapping[str, Any]) -> list[str]:
    """Whom to visit, a line each, in both languages."""
    return [
        f"visit first 优先排查: {one['point']} {one['kind']}, {one['stolen_kwh']:,.0f} kWh "
        f"({one['stolen_lo_kwh']:,.0f} to {one['stolen_hi_kwh']:,.0f}), in truth 实际 {one['true_stolen_kwh']:,.0f} kWh"
        for one in report["suspects"]
    ]


def check(report: Mapping[str, Any]) -> list[str]:
    """What does not hold, a sentence each; empty means all of it does."""
    return list(_problems(report))


def _problems(report: Mapping[str, Any]) -> Iterator[str]:
    if report["completeness"] < COMPLETENESS_MIN:
        yield (
            f"completeness {report['completeness']:.4%} of healthy meters, {COMPLETENESS_MIN:.1%} expected "
            f"({report['intervals_received']} of {report['intervals_expected']} intervals)"
        )
    for name in ("duplicates", "quarantined"):
        if report[name]:
            yield f"{name}: {report[name]}, none expected"
    forecast = report["forecast"]
    if forecast["wape"] is None or forecast["wape"] >= forecast["wape_seasonal_naive"]:
        yield f"forecast: WAPE {forecast['wape']} is not below seasonal naive's {forecast['wape_seasonal_naive']}"
    yield from _loss_problems(report)
    yield from _suspect_problems(report)
    alerts = {(alert["rule"], alert["subject"]) for alert in report["alerts"]}
    for rule in RULES:
        if rule not in {name for name, _ in alerts}:
            yield f"alerts: none of {rule}"
    for rule, kind in (("meter_silent", "broken"), ("clock_drift", "drifting")):
        for point in report["truth"][kind]:
            if not any(name == rule and subject.endswith(point) for name, subject in alerts):
                yield f"alerts: {rule} of {point} is missing"
    response = report["dr"]
    if not response["events"]:
        yield "demand response: no event was measured"
    elif response["reduction_kwh"] <= 0 or response["true_reduction_kwh"] <= 0:
        yield (
            f"demand response: {response['reduction_kwh']:.2f} kWh measured, "
            f"{response['true_reduction_kwh']:.2f} kWh in truth, more than 0 expected"
        )


def _suspect_problems(report: Mapping[str, Any]) -> Iterator[str]:
    """Somebody who steals is named, and nobody where nobody does."""
    thieves = set(report["truth"]["thieves"])
    if not {one["point"] for one in report["suspects"]} & set(report["truth"]["stealing"]):
        yield f"suspects: none of {', '.join(report['truth']['stealing'])} is named"
    for one in report["suspects"]:
        if one["area"] not in thieves:
            yield f"suspects: {one['point']} of the honest area {one['area']} is named"


def _loss_problems(report: Mapping[str, Any]) -> Iterator[str]:
    """Both thieves' areas must stand out from every honest one."""
    share = {}
    for loss in report["losses"]:
        if not loss["supplied_kwh"] or loss["unexplained_kwh"] is None:
            yield f"losses: area {loss['area']} could not be computed"
        else:
            share[loss["area"]] = 100 * loss["unexplained_kwh"] / loss["supplied_kwh"]
    thieves = set(report["truth"]["thieves"])
    worst = max((abs(percent) for area, percent in share.items() if area not in thieves), default=0.0)
    for area in sorted(thieves & share.keys()):
        if share[area] < max(UNEXPLAINED_PERCENT_MIN, UNEXPLAINED_TIMES_MIN * worst):
            yield (
                f"losses: area {area} does not stand out: {share[area]:.2f} % unexplained, "
                f"honest areas up to {worst:.2f} %"
            )
