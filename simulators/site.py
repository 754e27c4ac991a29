"""A site on disk: the registry and the gateways' site files the others read, and the truth only the report reads."""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from math import inf
from pathlib import Path
from typing import Any

from simulators.layout import BYPASS_FROM_H, BYPASS_TO_H, FEEDERS, SCALED_SHARE, Habit
from simulators.meters import LOST_PER_DAY_S, SLOW_AT_START_S, TEMPLATES, Meter, gateway_name
from simulators.ports import LOOPBACK, free_ports
from simulators.powerflow import HV_V, LV_V
from simulators.world import DAYS_BEFORE, ZONE, World

DAYS_AHEAD = 2  # computed with the site; the rest as time goes on
SILENT_AFTER_S = 20 * 60  # from the start; then the broken meter never answers again
# The stressed area's limit is what its load passes on every one of the last evenings, from 17:15 to 21:00.
EVENING = slice(69, 84)
EVENINGS, EVENING_MARGIN = 14, 0.97
LOSS_HIGH_PERCENT = 5.0  # of supply; the honest areas of this site lose 2 to 4


class SiteError(Exception):
    """The folder is not a site, or not usable; the text says what, where and what to do."""


@dataclass(frozen=True, slots=True)
class Line:
    """A TCP port; the meters whose ``line`` is ``name`` answer there."""

    name: str
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Site:
    """What makes the world again after a restart."""

    directory: Path
    seed: int
    meters: int
    start: datetime
    lines: tuple[Line, ...]

    @property
    def silent_from_s(self) -> float:
        return self.start.timestamp() + SILENT_AFTER_S

    def world(self) -> World:
        """The world as it has become: computed again, with the relay actions of the journal."""
        world = World(self.seed, self.meters, self.start)
        self.catch_up(world)
        return world

    def catch_up(self, world: World) -> None:
        """Compute a fresh world up to what the journal tells of."""
        world.extend(world.start_s + DAYS_AHEAD * 86_400)
        for action in read_journal(self.directory):
            if (row := world.row_of.get(action.point)) is not None:
                world.set_relay(row, action.at_s, closed=action.closed, expires_s=action.expires_s)
        for setting in read_clock_journal(self.directory):
            if (row := world.row_of.get(setting.point)) is not None:
                world.clocks[row].set(setting.at_s, setting.to_s, broadcast=setting.broadcast)


def load(directory: Path) -> Site:
    path = directory / "site.json"
    try:
        told = json.loads(path.read_text())
        lines = tuple(Line(line["name"], line["protocol"], int(line["port"])) for line in told["lines"])
        return Site(directory, int(told["seed"]), int(told["meters"]), datetime.fromisoformat(told["start"]), lines)
    except FileNotFoundError:
        raise SiteError(f"{path}: not there; make it with: python -m simulators build --data {directory}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise SiteError(f"{path}: not a site file ({error!r}); build the site in another folder") from error


def build(directory: Path, *, seed: int, meters: int, start: datetime) -> World:
    """Write the whole folder, with free ports. Raises ValueError for a number of meters that does not fit."""
    world = World(seed, meters, start)
    world.extend(world.start_s + DAYS_AHEAD * 86_400)
    names = list(dict.fromkeys((meter.line, meter.protocol) for meter in world.meters))
    ports = free_ports(len(names))
    lines = tuple(Line(name, protocol, port) for (name, protocol), port in zip(names, ports, strict=True))
    _write_registry(directory / "registry", world)
    for area, members in groupby(world.meters, key=lambda meter: meter.area):
        here = list(members)
        used = {meter.line for meter in here}
        folder = directory / "gateways" / gateway_name(area)
        folder.mkdir(parents=True, exist_ok=True)
        text = _gateway_toml(gateway_name(area), [line for line in lines if line.name in used], here)
        (folder / "site.toml").write_text(text)
    _write_json(directory / "truth.json", truth(world))
    _write_json(
        directory / "site.json",
        {
            "seed": seed,
            "meters": meters,
            "start": start.astimezone(UTC).isoformat(),
            "lines": [{"name": line.name, "protocol": line.protocol, "port": line.port} for line in lines],
        },
    )
    return world


def _write_json(path: Path, value: object) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(value, indent=1) + "\n")
    fresh.replace(path)


# ---- registry --------------------------------------------------------------------------------------------------------


def _write_csv(path: Path, header: str, rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)


def _write_registry(folder: Path, world: World) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    areas, meters = world.areas, world.meters
    capacity_w = {area.plan.area: watts for area, watts in zip(areas, capacities_w(world), strict=True)}
    _write_csv(
        folder / "feeders.csv",
        "feeder_id,name_en,name_zh,capacity_w",
        (
            (feeder, en, zh, round(sum(a.transformer.rated_kva * 1e3 for a in areas if a.plan.feeder == feeder)))
            for feeder, en, zh in FEEDERS
        ),
    )
    _write_csv(
        folder / "areas.csv",
        "area_id,feeder_id,name_en,name_zh,gateway,capacity_w,loss_low_percent,loss_high_percent",
        (
            (
                p.area,
                p.feeder,
                p.name_en,
                p.name_zh,
                gateway_name(p.area),
                round(capacity_w[p.area]),
                -1,
                LOSS_HIGH_PERCENT,
            )
            for p in (area.plan for area in areas)
        ),
    )
    _write_csv(
        folder / "meters.csv",
        "serial,protocol,gateway,wire_name,point,area_id,role,phases,node_id,controllable,ct_ratio,pt_ratio",
        (
            (
                m.serial, m.protocol, gateway_name(m.area), m.wire_name, m.point, m.area, m.role, "abc", m.node,
                str(m.controllable).lower(), m.ct_ratio, m.pt_ratio,
            )
            for m in meters
        ),
    )  # fmt: skip
    homes = {meter.node for meter in meters if meter.role == "customer"}
    _write_csv(
        folder / "nodes.csv",
        "node_id,area_id,kind,phases",
        (
            row
            for area in areas
            for row in (
                (area.source_node, area.plan.area, "source", "abc"),
                *((n, area.plan.area, "customer" if n in homes else "bus", "abc") for n in area.nodes),
            )
        ),
    )
    _write_csv(
        folder / "lines.csv",
        "line_id,from_node,to_node,length_m,r_ohm_per_km,x_ohm_per_km",
        (
            (
                f"{area.plan.area}-L{i:03d}", line.from_node, line.to_node, line.length_m,
                line.r_ohm / line.length_m * 1000, line.x_ohm / line.length_m * 1000,
            )
            for area in areas
            for i, line in enumerate(area.lines, 1)
        ),
    )  # fmt: skip
    _write_csv(
        folder / "transformers.csv",
        "transformer_id,hv_node,lv_node,rated_kva,hv_v,lv_v,no_load_loss_w,load_loss_w,impedance_percent",
        (
            (
                f"{area.plan.area}-T1", area.source_node, area.busbar_node, t.rated_kva, HV_V, LV_V,
                t.no_load_loss_w, t.load_loss_w, t.impedance_percent,
            )
            for area in areas
            for t in (area.transformer,)
        ),
    )  # fmt: skip


def capacities_w(world: World) -> list[float]:
    """Operating limit of each area: the stressed one's lies under its usual evening peak, the others' well above."""
    supplied_w = world.supplied_w()
    evenings = supplied_w[:, DAYS_BEFORE - EVENINGS : DAYS_BEFORE + 2, EVENING]
    return [
        float(evenings[a].min() * EVENING_MARGIN)
        if area.plan.stressed
        else float(max(1.3 * supplied_w[a].max(), area.transformer.rated_kva * 1e3))
        for a, area in enumerate(world.areas)
    ]


# ---- gateways --------------------------------------------------------------------------------------------------------


def _gateway_toml(name: str, lines: Sequence[Line], meters: Sequence[Meter]) -> str:
    parts = [_GATEWAY.format(name=name)]
    parts += [_LINE.format(line=line, host=LOOPBACK) for line in lines]
    parts += [
        _METER.format(
            m=m,
            template=TEMPLATES[m.protocol],
            controllable=str(m.controllable).lower(),
        )
        for m in meters
    ]
    return "\n".join(parts)


_GATEWAY = """\
# Made by `python -m simulators build`; `meterctl check` and `meterctl run` read it.
[gateway]
name = "{name}"  # also the MQTT user name; the password comes from GRIDLOOM_MQTT_PASSWORD
data_dir = "."  # relative to this file
[uplink]
url = "mqtt://127.0.0.1:1883"  # GRIDLOOM_MQTT_URL goes before it
[poll]
interval_s = 900
[backfill]
days = 35  # meters remember at least 62
[queue]
bytes_max = 2_000_000_000
"""
_LINE = """\
[[line]]
name = "{line.name}"
protocol = "{line.protocol}"
host = "{host}"
port = {line.port}
read_timeout_s = 1.0
"""
_METER = """\
[[meter]]
name = "{m.wire_name}"
line = "{m.line}"
address = "{m.address}"
template = "{template}"
utc_offset_h = 8
controllable = {controllable}
"""


# ---- journals --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RelayAction:
    """A relay opened until ``expires_s``, or closed, at ``at_s``."""

    at_s: float
    point: str
    closed: bool
    expires_s: float = inf


@dataclass(frozen=True, slots=True)
class ClockSetting:
    """A meter's clock set to ``to_s`` at ``at_s``, both in seconds since 1970 UTC."""

    at_s: float
    point: str
    to_s: float
    broadcast: bool


def append_journal(directory: Path, action: RelayAction) -> None:
    told = {"at_s": action.at_s, "point": action.point, "closed": action.closed}
    if action.expires_s != inf:
        told["expires_s"] = action.expires_s
    _append(directory / "relays.jsonl", told)


def read_journal(directory: Path) -> list[RelayAction]:
    return [RelayAction(**told) for told in _read(directory / "relays.jsonl")]


def append_clock_journal(directory: Path, setting: ClockSetting) -> None:
    _append(directory / "clocks.jsonl", asdict(setting))


def read_clock_journal(directory: Path) -> list[ClockSetting]:
    return [ClockSetting(**told) for told in _read(directory / "clocks.jsonl")]


def _append(path: Path, told: dict[str, Any]) -> None:
    """On disk before the meter answers: what was confirmed outlives a crash."""
    with path.open("a+b") as file:
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)  # a line cut off by a crash would spoil the one that follows
        file.write(json.dumps(told).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut off by a crash was never confirmed."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]


# ---- truth -----------------------------------------------------------------------------------------------------------


def truth(world: World) -> dict[str, object]:
    """Losses per area and local day in Wh, and what is wrong with whom. Only the report may read it."""
    areas: dict[str, dict[str, dict[str, float]]] = {}
    for area, day, balance in world.balances():
        areas.setdefault(area, {})[day.isoformat()] = {
            "supplied_wh": round(balance.supplied_wh, 1),
            "technical_wh": round(balance.technical_wh, 1),
            "registered_wh": round(balance.registered_wh, 1),
            "unexplained_wh": round(balance.unexplained_wh, 1) + 0.0,  # no minus zero
        }
    since = datetime.combine(world.first_day, datetime.min.time(), ZONE).isoformat()
    silent_from = (world.start + timedelta(seconds=SILENT_AFTER_S)).isoformat()
    more: dict[Habit, dict[str, object]] = {
        Habit.SCALED: {"registered_share": SCALED_SHARE, "since": since},
        Habit.BYPASS: {"from_hour": BYPASS_FROM_H, "to_hour": BYPASS_TO_H, "since": since},
        Habit.BROKEN: {"silent_from": silent_from},
        Habit.DRIFTING: {"clock_offset_s_at_start": -SLOW_AT_START_S, "loses_s_per_day": LOST_PER_DAY_S},
    }
    return {
        "areas": areas,
        "meters": [
            {"point": m.point, "area": m.area, "serial": m.serial, "kind": m.habit.value, **more[m.habit]}
            for m in world.meters
            if m.habit is not Habit.PLAIN
        ],
        "stressed_area": next(area.plan.area for area in world.areas if area.plan.stressed),
    }


def reduction(world: World, points: Sequence[str], from_at: datetime, to_at: datetime) -> dict[str, float]:
    """What the points would have drawn in [from_at, to_at) and what they drew, in Wh. Raises SiteError."""
    unknown = [point for point in points if point not in world.row_of]
    heads = [point for point in points if point.endswith("-HEAD")]
    if unknown or heads:
        raise SiteError(f"points: customers of this site expected, got {', '.join(unknown + heads)}")
    wanted = drew = 0.0
    for point in points:
        one, other = world.drawn_wh(world.row_of[point], from_at.timestamp(), to_at.timestamp())
        wanted, drew = wanted + one, drew + other
    return {"would_have_drawn_wh": wanted, "drawn_wh": drew, "reduction_wh": wanted - drew}
