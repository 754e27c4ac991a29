"""Alert rules: what is abnormal, where, and what to do about it, in English and Chinese."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from typing import Final

from cloud.jobs.calendar import INTERVAL, Calendar, floor_mark

PEAK: Final = "forecast_above_capacity"
LOSS: Final = "loss_out_of_range"
SILENT: Final = "meter_silent"
DRIFT: Final = "clock_drift"
INCOMPLETE: Final = "completeness_low"
FORECAST: Final = "forecast_worse_than_naive"
SUSPECT: Final = "suspect_named"

SILENT_AFTER: Final = 2 * INTERVAL
# After a mark, a sweep and its way to the cloud take this long at most.
SILENT_GRACE: Final = timedelta(minutes=5)
# A gateway that brings fewer than this share of its meters has a fault of its own: its meters are not to blame.
GATEWAY_SENDS: Final = 0.5
DRIFT_MAX_S: Final = 60.0
UNEXPLAINED_MAX_PERCENT: Final = 1.5
UNEXPLAINED_DAYS: Final = 7
UNEXPLAINED_DAYS_MIN: Final = 3
# A day is judged when most of its intervals count; what was measured an hour ago is still "now".
ALIGNED_MIN: Final = 0.8
LOAD_STALE: Final = timedelta(hours=1)
# By this time of the day gateways have had the night to fill the gaps of the day before.
COMPLETE_BY: Final = time(8)
COMPLETE_MIN: Final = 0.95
_KINDS: Final = {"area": ("Area", "台区"), "feeder": ("Feeder", "馈线"), "substation": ("Substation", "变电站")}


@dataclass(frozen=True, slots=True)
class Expected:
    """Mean power of one interval that is expected (p50) or was measured."""

    start: datetime
    power_w: float


@dataclass(frozen=True, slots=True)
class Loss:
    """A whole business day that could be computed, Wh.

    ``lo``, ``hi``: 80 % interval of the unexplained.  ``fed_in``: by the head and by generation.  All three, and the
    state that the uncertainty allows, are None on days of an earlier version.
    """

    day: str
    supplied_wh: float
    delivered_wh: float
    unexplained_wh: float | None
    aligned_share: float
    lo_wh: float | None = None
    hi_wh: float | None = None
    fed_in_wh: float | None = None
    state: str | None = None

    @property
    def input_wh(self) -> float:
        return self.supplied_wh if self.fed_in_wh is None else self.fed_in_wh


@dataclass(frozen=True, slots=True)
class AreaFacts:
    """``forecast``: latest run from the running interval on, in order.  ``losses``: whole days, newest first.

    ``collected``: received of expected intervals of the day before, and the reason most of the others have.
    """

    area_id: str
    name_en: str
    name_zh: str
    capacity_w: float
    low_percent: float
    high_percent: float
    load: Expected | None = None
    forecast: Sequence[Expected] = ()
    losses: Sequence[Loss] = ()
    collected: float | None = None
    missing_for: str | None = None

    @property
    def subject(self) -> str:
        return f"area:{self.area_id}"

    @property
    def judged_losses(self) -> list[Loss]:
        """Days of which enough was measured to judge them."""
        return [day for day in self.losses if day.aligned_share >= ALIGNED_MIN and day.input_wh > 0]


@dataclass(frozen=True, slots=True)
class MeterFacts:
    """``clock_offset_s``: the meter's clock less the gateway's.  ``backfilling``: the gateway still reads memory."""

    point: str
    area_id: str
    gateway: str
    online: bool
    backfilling: bool
    last_energy_at: datetime | None
    clock_offset_s: float | None

    @property
    def subject(self) -> str:
        return f"meter:{self.point}"


@dataclass(frozen=True, slots=True)
class ForecastFacts:
    """Day-ahead errors of a series on the scored days of a week.  ``enough``: of days to judge by."""

    series: str
    name_en: str
    name_zh: str
    days: int
    error_wh: float
    naive_error_wh: float
    actual_wh: float
    enough: bool
    worse: bool


@dataclass(frozen=True, slots=True)
class SuspectFacts:
    """A customer whom the newest search of its area names.  ``since``: None when before ``from_day``, its first day.

    ``stolen_wh`` with its 80 % interval: missing from the record since then; negative: too much in it; of a wrong
    area what its book has and another one supplies.
    """

    point: str
    area_id: str
    kind: str
    since: datetime | None
    from_day: date
    stolen_wh: float
    lo_wh: float
    hi_wh: float
    score: float
    evidence: str

    @property
    def subject(self) -> str:
        return f"meter:{self.point}"


@dataclass(frozen=True, slots=True)
class Finding:
    rule: str
    subject: str
    severity: str
    message_en: str
    message_zh: str
    evidence: dict[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``undecided``: (rule, subject) that nothing can be said about now; an alert on it stays as it is."""

    findings: tuple[Finding, ...]
    undecided: frozenset[tuple[str, str]]


def evaluate(
    areas: Iterable[AreaFacts],
    meters: Sequence[MeterFacts],
    forecasts: Iterable[ForecastFacts] = (),
    suspects: Iterable[SuspectFacts] = (),
    *,
    now: datetime,
    lookahead: timedelta,
    calendar: Calendar,
) -> Verdict:
    findings: list[Finding | None] = []
    undecided: set[tuple[str, str]] = set()
    for area in areas:
        findings.append(_peak(area, now, lookahead, calendar))
        if not area.forecast and area.load is None:
            undecided.add((PEAK, area.subject))
        findings.append(_loss(area))
        if not area.judged_losses:
            undecided.add((LOSS, area.subject))
        if now.astimezone(calendar.zone).time() >= COMPLETE_BY:
            findings.append(_incomplete(area))
        else:
            undecided.add((INCOMPLETE, area.subject))
    for one in forecasts:
        findings.append(_worse(one))
        if not one.enough:
            undecided.add((FORECAST, one.series))
    findings.extend(_suspect(one, calendar) for one in suspects)
    newest = floor_mark(now - SILENT_GRACE)
    sending = _sending(meters, newest)
    for meter in meters:
        # A meter that was never heard of may just not have had its turn in the first backfill.
        waits = meter.last_energy_at is None and meter.backfilling
        if meter.gateway in sending and not waits:
            findings.append(_silent(meter, newest, calendar))
        else:
            undecided.add((SILENT, meter.subject))
        findings.append(_drift(meter))
    return Verdict(tuple(finding for finding in findings if finding), frozenset(undecided))


def _peak(area: AreaFacts, now: datetime, lookahead: timedelta, calendar: Calendar) -> Finding | None:
    ahead = [e for e in area.forecast if e.start < now + lookahead and e.power_w > area.capacity_w]
    measured = area.load if area.load and now - area.load.start <= LOAD_STALE else None
    above_now = measured is not None and measured.power_w > area.capacity_w
    if not ahead and not above_now:
        return None
    peak = max([*ahead, *([measured] if measured and above_now else [])], key=lambda e: e.power_w)
    percent = 100 * peak.power_w / area.capacity_w
    clock = peak.start.astimezone(calendar.zone).strftime("%m-%d %H:%M")
    said_en, said_zh = ("measured", "实测") if peak is measured else ("expected", "预计")
    return Finding(
        PEAK,
        area.subject,
        "critical",
        f"Area {area.area_id} {area.name_en}: {peak.power_w / 1e3:.0f} kW {said_en} at {clock}, {percent:.0f} % of its "
        f"{area.capacity_w / 1e3:.0f} kW limit. Shed controllable load or move load to another transformer.",
        f"台区 {area.area_id} {area.name_zh}：{said_zh} {clock} 负荷 {peak.power_w / 1e3:.0f} kW，"
        f"为限额 {area.capacity_w / 1e3:.0f} kW 的 {percent:.0f}%。请削减可控负荷或转移负荷。",
        {
            "peak_w": round(peak.power_w),
            "peak_at": peak.start.isoformat(),
            "above_from": (now if above_now else ahead[0].start).isoformat(),
            "capacity_w": area.capacity_w,
            "basis": "measured" if peak is measured else "forecast",
        },
    )


def _worse(facts: ForecastFacts) -> Finding | None:
    if not facts.worse:
        return None
    kind, name = facts.series.split(":", 1)
    kind_en, kind_zh = _KINDS.get(kind, (kind, kind))
    ours, naive = (
        f"{100 * error_wh / facts.actual_wh:.1f} %" if facts.actual_wh > 0 else f"{error_wh / 1e3:.1f} kWh"
        for error_wh in (facts.error_wh, facts.naive_error_wh)
    )
    return Finding(
        FORECAST,
        facts.series,
        "warning",
        f"{kind_en} {name} {facts.name_en}".rstrip() + f": over {facts.days} days the forecast was {ours} off, "
        f"the same day of the week before {naive}. That stands in until the forecast is better again. "
        "Look for a lasting change of load, a changed registry or wrong weather.",
        f"{kind_zh} {name} {facts.name_zh}".rstrip() + f"：{facts.days} 天内预测误差 {ours}，"
        f"而上周同日为 {naive}。恢复之前改用上周同日。请检查负荷是否长期变化、档案是否变更、气象数据是否有误。",
        {
            "days": facts.days,
            "error_wh": round(facts.error_wh),
            "naive_error_wh": round(facts.naive_error_wh),
            "actual_wh": round(facts.actual_wh),
        },
    )


def _loss(area: AreaFacts) -> Finding | None:
    judged = area.judged_losses
    if not judged:
        return None
    last = judged[0]
    percent = 100 * (last.supplied_wh - last.delivered_wh) / last.input_wh
    explained = [day for day in judged if day.unexplained_wh is not None][:UNEXPLAINED_DAYS]
    input_wh = sum(day.input_wh for day in explained)
    unexplained_wh = sum(day.unexplained_wh or 0.0 for day in explained)
    # Meters are wrong by the same factor each day: what is unsure adds up as it is.
    low_wh, high_wh = (
        sum((day.unexplained_wh or 0.0) if edge is None else edge for day, edge in zip(explained, edges, strict=True))
        for edges in ([day.lo_wh for day in explained], [day.hi_wh for day in explained])
    )
    share = 100 * unexplained_wh / input_wh if len(explained) >= UNEXPLAINED_DAYS_MIN else None
    evidence: dict[str, str | float | None] = {
        "day": last.day,
        "loss_percent": round(percent, 2),
        "unexplained_percent": None if share is None else round(share, 2),
        "unexplained_kwh": round(unexplained_wh / 1000, 1),
        "unexplained_lo_kwh": round(low_wh / 1000, 1),
        "unexplained_hi_kwh": round(high_wh / 1000, 1),
        "days": len(explained),
    }
    en, zh = f"Area {area.area_id} {area.name_en}", f"台区 {area.area_id} {area.name_zh}"
    if share is not None and share > UNEXPLAINED_MAX_PERCENT and low_wh > 0:
        sure = f" ({low_wh / 1000:.0f} to {high_wh / 1000:.0f})" if high_wh > low_wh else ""
        sure_zh = f"（{low_wh / 1000:.0f}～{high_wh / 1000:.0f}）" if high_wh > low_wh else ""
        return Finding(
            LOSS,
            area.subject,
            "warning",
            f"{en}: {unexplained_wh / 1000:.0f} kWh{sure} in {len(explained)} days ({share:.1f} % of supply) is lost "
            "beyond what wires and transformer explain. Look for theft, a bypassed or slow meter, or a wrong CT ratio.",
            f"{zh}：近 {len(explained)} 天有 {unexplained_wh / 1000:.0f} kWh{sure_zh}超出技术线损，"
            f"占供电量 {share:.1f}%。请排查窃电、旁路、表计偏慢或互感器变比错误。",
            evidence,
        )
    if percent > area.high_percent and last.state in (None, "high"):
        return Finding(
            LOSS,
            area.subject,
            "warning",
            f"{en}: loss of {percent:.1f} % on {last.day}, limit {area.high_percent:g} %. Check for theft, missing "
            "customers in the registry, and overloaded lines.",
            f"{zh}：{last.day} 线损率 {percent:.1f}%，上限 {area.high_percent:g}%。"
            "请排查窃电、户变关系缺失和线路过载。",
            evidence,
        )
    if percent < area.low_percent and last.state in (None, "negative"):
        return Finding(
            LOSS,
            area.subject,
            "warning",
            f"{en}: negative loss of {percent:.1f} % on {last.day}, limit {area.low_percent:g} %. Check CT ratios, "
            "customers booked in the wrong area, and meter clocks.",
            f"{zh}：{last.day} 线损率 {percent:.1f}%，低于下限 {area.low_percent:g}%。请核对变比、户变关系和表计时钟。",
            evidence,
        )
    return None


# What the record looks like, and what to look for on site; in both languages.
_KIND: Final = {
    "scaled": (
        "a constant share is missing", "恒定比例少计",
        "CT ratio and wiring, a shunt, a slow meter", "互感器变比与接线、分流、表慢",
    ),
    "night": ("it is missing at night", "夜间少计", "a bypass that is switched at night", "夜间投切的旁路"),
    "peak": ("it is missing in the evening", "晚间少计", "a bypass that is switched in the evening", "晚间投切的旁路"),
    "cap": ("the record is cut off at a ceiling", "示数封顶", "a limited or saturated CT", "互感器饱和或限流"),
    "subtract": ("a constant power is missing", "固定功率少计", "a load before the meter", "表前接线的负荷"),
    "stopped": ("the register stands still", "停走", "a dead meter, an open CT, a bypass", "表坏、互感器开路、旁路"),
    "intermittent": ("it is missing on some days", "间歇性少计", "a bypass that is switched", "投切的旁路"),
    "ct_ratio": ("too much is recorded", "多计", "the CT ratio on record against the plate", "铭牌与档案变比"),
    "wrong_area": ("it is fed by another area", "户变关系错误", "the transformer that feeds it", "实际供电变压器"),
    "phase_missing": ("one phase is missing", "缺相少计", "the wires of each phase", "各相电压、电流接线"),
}  # fmt: skip


def _suspect(facts: SuspectFacts, calendar: Calendar) -> Finding:
    begin = facts.since.astimezone(calendar.zone).date() if facts.since else facts.from_day
    since_en, since_zh = f"since {begin}", f"自 {begin} 起"
    if facts.since is None:
        since_en, since_zh = f"since before {begin}", f"早于 {begin}"
    what_en, what_zh, look_en, look_zh = _KIND.get(facts.kind, (facts.kind, facts.kind, "its wiring", "接线"))
    less = facts.stolen_wh >= 0
    sides = (facts.lo_wh, facts.hi_wh) if less else (-facts.hi_wh, -facts.lo_wh)
    low, high = (f"{edge / 1000:,.0f}" for edge in sides)
    kwh = f"{abs(facts.stolen_wh) / 1000:,.0f}"
    is_en, is_zh = ("missing from its record", "未计入") if less else ("too much in its record", "多计")
    if facts.kind == "wrong_area":
        is_en, is_zh = "in the wrong area's book", "计入错误台区"
    return Finding(
        SUSPECT,
        facts.subject,
        "warning",
        f"Meter at {facts.point}, area {facts.area_id}: its record explains what the area loses; {what_en}, "
        f"{since_en}: {kwh} kWh ({low} to {high}) {is_en}. First check by which transformer and on which phases it is "
        f"fed, then visit; look for {look_en}.",
        f"台区 {facts.area_id} 计量点 {facts.point}：其电量记录可解释台区不明损耗，{what_zh}，{since_zh}，"
        f"{is_zh}约 {kwh} kWh（80% 区间 {low}～{high}）。请先核对户变关系和相位，再到现场核查{look_zh}。",
        {
            "kind": facts.kind,
            "since": facts.since.isoformat() if facts.since else None,
            "from_day": str(facts.from_day),
            "stolen_kwh": round(facts.stolen_wh / 1000, 1),
            "stolen_lo_kwh": round(facts.lo_wh / 1000, 1),
            "stolen_hi_kwh": round(facts.hi_wh / 1000, 1),
            "log_odds": round(facts.score, 1),
            "evidence": facts.evidence,
        },
    )


_WHY: Final = {
    "quarantined": ("rows are quarantined: `gridloom quarantine list`", "数据被隔离：`gridloom quarantine list`"),
    "evicted": ("the gateway's queue was full: make room and ask for a backfill", "网关队列曾溢出：清理空间后补采"),
    "clock": ("a clock was set", "时钟对时跳变"),
    "meter_silent": ("meters are silent: check their supply and wiring", "电表失联：检查供电和接线"),
    "gateway_offline": ("the gateway was offline: check its power and its link", "网关离线：检查电源和通信"),
    "meter_refuses": ("meters refuse to be read again", "电表拒绝补采"),
    "not_in_memory": ("meters have it no more", "电表内已无数据"),
    "backfilling": ("the gateway is still fetching it", "网关正在补采"),
}


def _incomplete(area: AreaFacts) -> Finding | None:
    if area.collected is None or area.collected >= COMPLETE_MIN:
        return None
    percent = 100 * area.collected
    why_en, why_zh = _WHY.get(area.missing_for or "", ("nobody said why", "原因不明"))
    return Finding(
        INCOMPLETE,
        area.subject,
        "warning",
        f"Area {area.area_id} {area.name_en}: {percent:.1f} % of yesterday's intervals are there, "
        f"{100 * COMPLETE_MIN:g} % expected by {COMPLETE_BY:%H:%M}. Mostly, {why_en}.",
        f"台区 {area.area_id} {area.name_zh}：昨日采集成功率 {percent:.1f}%，{COMPLETE_BY:%H:%M} 前应达到 "
        f"{100 * COMPLETE_MIN:g}%。主要原因：{why_zh}。",
        {"collected_percent": round(percent, 2), "reason": area.missing_for},
    )


def _sending(meters: Iterable[MeterFacts], newest: datetime) -> set[str]:
    """Gateways that are online and bring most of their meters up to date."""
    fresh: dict[str, list[bool]] = {}
    for meter in meters:
        there = meter.last_energy_at is not None and newest - meter.last_energy_at <= SILENT_AFTER
        fresh.setdefault(meter.gateway, []).append(meter.online and there)
    return {gateway for gateway, some in fresh.items() if sum(some) > GATEWAY_SENDS * len(some)}


def _silent(meter: MeterFacts, newest: datetime, calendar: Calendar) -> Finding | None:
    last = meter.last_energy_at
    if last is not None and newest - last <= SILENT_AFTER:
        return None
    clock = f"{last.astimezone(calendar.zone):%m-%d %H:%M}" if last else ""
    since_en, since_zh = (f"since {clock}", f"自 {clock} 起没") if last else ("ever", "从未")
    return Finding(
        SILENT,
        meter.subject,
        "warning",
        f"Meter at {meter.point}, area {meter.area_id}: no energy reading {since_en}, while {meter.gateway} reads the "
        "others. Check its supply, its address and its wiring on the bus.",
        f"台区 {meter.area_id} 计量点 {meter.point}：{since_zh}有电量读数，"
        f"而 {meter.gateway} 其他表正常。请检查供电、通信地址和总线接线。",
        {"last_energy_at": last.isoformat() if last else None, "gateway": meter.gateway},
    )


def _drift(meter: MeterFacts) -> Finding | None:
    offset_s = meter.clock_offset_s
    if offset_s is None or abs(offset_s) <= DRIFT_MAX_S:
        return None
    en, zh = ("ahead", "偏快") if offset_s > 0 else ("behind", "偏慢")
    return Finding(
        DRIFT,
        meter.subject,
        "warning",
        f"Meter at {meter.point}, area {meter.area_id}: its clock is {abs(offset_s):.0f} s {en}. Set it, and replace "
        "the meter or its battery if it drifts again; intervals and tariffs are shifted meanwhile.",
        f"台区 {meter.area_id} 计量点 {meter.point}：时钟{zh} {abs(offset_s):.0f} 秒。请对时；若再次漂移请换表或电池。"
        "期间区间电量和费率会错位。",
        {"clock_offset_s": round(offset_s, 1)},
    )
