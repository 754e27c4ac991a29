"""The commissioning report as one HTML file: no script, no address, nothing to load; pictures are inline SVG.

Everything that comes from outside goes through ``escape``. Colour carries no meaning alone: a mark or a word repeats
it.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta, timezone
from html import escape
from importlib.resources import files
from typing import Final

from gateway.report.judge import (
    CLOCK_FAULT_S,
    CLOCK_LOOK_S,
    COMPLETE_FAULT,
    COMPLETE_LOOK,
    HIGH_SHARE,
    LOW_SHARE,
    duration,
    nominal_v,
    percent,
)
from gateway.report.model import Finding, Level, MeterFacts, Report, State, Text, Value

OPEN_METERS_MAX: Final = 12  # more are folded, so that the summary is what one sees
DOTS_A_ROW: Final = 32
FINDINGS_SHOWN: Final = 40

_STATES: Final[dict[State, tuple[str, Text]]] = {
    "good": ("✓", Text("正常", "in order")),
    "look": ("!", Text("需查看", "look at it")),
    "fault": ("✕", Text("故障", "fault")),
}
_LEVELS: Final[dict[Level, tuple[str, State, Text]]] = {
    "fault": ("✕", "fault", Text("故障", "fault")),
    "look": ("!", "look", Text("查看", "look")),
    "note": ("i", "good", Text("说明", "note")),
}
_NAMES: Final = {
    "energy_import_wh": Text("正向有功电能", "Energy, import"),
    "energy_export_wh": Text("反向有功电能", "Energy, export"),
    "reactive_import_varh": Text("正向无功电能", "Reactive energy, import"),
    "reactive_export_varh": Text("反向无功电能", "Reactive energy, export"),
    "active_power_w": Text("有功功率", "Active power"),
    "reactive_power_var": Text("无功功率", "Reactive power"),
    "voltage_l1_v": Text("A 相电压", "Voltage L1"),
    "voltage_l2_v": Text("B 相电压", "Voltage L2"),
    "voltage_l3_v": Text("C 相电压", "Voltage L3"),
    "current_l1_a": Text("A 相电流", "Current L1"),
    "current_l2_a": Text("B 相电流", "Current L2"),
    "current_l3_a": Text("C 相电流", "Current L3"),
    "power_factor": Text("功率因数", "Power factor"),
    "frequency_hz": Text("频率", "Frequency"),
}
_ROLES: Final = {
    "boundary": Text("关口表", "boundary"),
    "check": Text("考核表", "check"),
    "customer": Text("用户表", "customer"),
}
# (divide by, unit shown, decimals) once a number is so large
_SHOWN: Final = {
    "Wh": (1000.0, "kWh", 2),
    "varh": (1000.0, "kvarh", 2),
    "W": (1.0, "W", 1),
    "var": (1.0, "var", 1),
    "V": (1.0, "V", 1),
    "A": (1.0, "A", 3),
    "Hz": (1.0, "Hz", 2),
    "": (1.0, "", 3),
}


def render(report: Report) -> str:
    """The whole file."""
    return _Page(report).html()


def two(text: Text, tag: str = "span") -> str:
    return f'<{tag} class="two"><b lang="zh">{escape(text.zh)}</b> <i lang="en">{escape(text.en)}</i></{tag}>'


def _t(zh: str, en: str) -> str:
    return two(Text(zh, en))


def number(value: Value) -> str:
    if value.value is None:
        return "–"
    divisor, unit, decimals = _SHOWN.get(value.unit, (1.0, value.unit, 3))
    return f"{value.value / divisor:,.{decimals}f} {unit}".strip()


class _Page:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._zone = timezone(timedelta(hours=report.zone_h))
        self._ids = {meter.name: f"m{i}" for i, meter in enumerate(report.meters)}

    def html(self) -> str:
        report = self._report
        style = (files("gateway.report") / "style.css").read_text(encoding="utf-8")
        title = f"{report.gateway} · 投运报告 · Commissioning report"
        body = "\n".join(
            (
                self._header(),
                self._tiles(),
                self._findings(),
                self._topology(),
                self._calendar(),
                self._table(),
                self._meters(),
                self._signatures(),
                self._footer(),
            )
        )
        return (
            '<!doctype html>\n<html lang="zh-CN">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
        )

    # ---- summary -----------------------------------------------------------------------------------------------------

    def _at(self, moment: datetime | None) -> str:
        return f"{moment.astimezone(self._zone):%Y-%m-%d %H:%M}" if moment else "–"

    def _header(self) -> str:
        report = self._report
        zone = f"UTC{report.zone_h:+g}"
        facts = (
            (_t("网关", "Gateway"), escape(report.gateway)),
            (_t("站点文件", "Site file"), escape(report.site)),
            (_t("软件", "Software"), escape(report.software)),
            (_t("时间", "Made at"), f"{self._at(report.made_at)} <small>{zone}</small>"),
            (_t("人员", "Made by"), escape(report.made_by) or "–"),
            (_t("读取途径", "Read through"), two(report.through)),
        )
        rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
        state: State = "fault" if report.count("fault") else "look" if report.count("look") else "good"
        good, total = report.count("good"), len(report.meters)
        told = {
            "good": Text("全部正常，可以投运", "All in order: ready for service"),
            "look": Text(f"{total} 块中 {good} 块正常，其余需查看", f"{good} of {total} in order, look at the rest"),
            "fault": Text(
                f"{total} 块中 {report.count('fault')} 块有故障",
                f"{report.count('fault')} of {total} meters are at fault",
            ),
        }[state]
        mark = _STATES[state][0]
        return (
            '<header><div class="title"><p class="brand">Gridloom</p>'
            '<h1>投运报告 <i lang="en">Commissioning report</i></h1></div>'
            f'<p class="verdict {state}"><span class="mark">{mark}</span>{two(told)}</p>'
            f'<dl class="facts">{rows}</dl></header>'
        )

    def _tiles(self) -> str:
        meters = self._report.meters
        asked = [meter for meter in meters if meter.is_found is not None]
        found = sum(meter.is_found is True for meter in meters)
        clocks = [meter.clock for meter in meters if meter.clock]
        right = sum(abs(clock.offset_s) <= CLOCK_LOOK_S for clock in clocks)
        due = sum(day.due for meter in meters for day in meter.days)
        collected = sum(day.collected for meter in meters for day in meter.days)
        replies = sorted(meter.reply_ms for meter in meters if meter.reply_ms is not None)
        values = [value for meter in meters for value in meter.values]
        verified = sum(value.is_verified for value in values)
        share = collected / due if due else None
        clocks_told = f"{right}<small>/{len(clocks)}</small>" if clocks else "–"
        tiles = [
            self._tile("电表应答", "Meters that answer", f"{found}<small>/{len(asked) or len(meters)}</small>",
                       "good" if asked and found == len(asked) else "fault" if asked else None),
            self._tile("时钟在 1 分钟内", "Clocks within 1 min", clocks_told,
                       None if not clocks else "good" if right == len(clocks) else "look"),
            self._tile("采集完整率", "Complete", "–" if share is None else f"{percent(share)}", _share_state(share)),
            self._tile("应答时间（中位）", "Reply time, median",
                       f"{replies[len(replies) // 2]:.0f}<small> ms</small>" if replies else "–", None),
            self._tile("已证实的寄存器", "Verified registers",
                       f"{verified}<small>/{len(values)}</small>" if values else "–", None),
        ]  # fmt: skip
        queue = self._report.queue
        if queue is not None:
            when = self._at(queue.receipt_at)[5:] if queue.receipt_at else "无回执 no receipt"
            tiles.append(
                self._tile("待上送批次", "Batches waiting", f"{queue.batches}<small> · {when}</small>",
                           "look" if queue.receipt_at is None else "good")
            )  # fmt: skip
        return f'<section class="tiles">{"".join(tiles)}</section>'

    @staticmethod
    def _tile(zh: str, en: str, value: str, state: State | None) -> str:
        return f'<div class="tile {state or ""}"><p class="value">{value}</p><p>{_t(zh, en)}</p></div>'

    def _findings(self) -> str:
        pairs: list[tuple[MeterFacts | None, Finding]] = [(None, finding) for finding in self._report.findings]
        for level in ("fault", "look"):
            pairs += [
                (meter, finding)
                for meter in self._report.meters
                for finding in meter.findings
                if finding.level == level
            ]
        if not pairs:
            return self._section(
                "findings", "要做的事", "What to do", f"<p>{_t('没有需要处理的事项。', 'Nothing to be done.')}</p>"
            )
        shown = "".join(self._finding(finding, meter) for meter, finding in pairs[:FINDINGS_SHOWN])
        rest = pairs[FINDINGS_SHOWN:]
        folded = ""
        if rest:
            count = _t(f"其余 {len(rest)} 项", f"{len(rest)} more")
            inside = "".join(self._finding(finding, meter) for meter, finding in rest)
            folded = f'<details><summary>{count}</summary><ul class="findings">{inside}</ul></details>'
        return self._section("findings", "要做的事", "What to do", f'<ul class="findings">{shown}</ul>{folded}')

    def _finding(self, finding: Finding, meter: MeterFacts | None) -> str:
        mark, state, _ = _LEVELS[finding.level]
        name = f'<a href="#{self._ids[meter.name]}">{escape(meter.name)}</a>' if meter else ""
        return (
            f'<li class="{state}"><span class="mark">{mark}</span><div><p>{name} {two(finding.what)}</p>'
            f'<p class="todo">{two(finding.todo)}</p></div></li>'
        )

    def _section(self, name: str, zh: str, en: str, inside: str) -> str:
        return f'<section id="{name}"><h2>{_t(zh, en)}</h2>{inside}</section>'

    # ---- pictures ----------------------------------------------------------------------------------------------------

    def _topology(self) -> str:
        """The gateway, its lines, and every meter as a dot: filled good, ringed to look at, crossed at fault."""
        rows, y, width, left = [], 12.0, 1000.0, 330.0
        step = (width - left - 20) / DOTS_A_ROW
        tops: list[float] = []
        for line in self._report.lines:
            meters = [meter for meter in self._report.meters if meter.line == line.name]
            height = 46 + 20 * max(0, math.ceil(len(meters) / DOTS_A_ROW) - 1)
            middle = y + 23
            tops.append(middle)
            setting = " · ".join(part for part in (line.protocol, line.setting) if part)
            told = sum(meter.state == "good" for meter in meters)
            end = left + step * min(len(meters), DOTS_A_ROW) - 4
            rows += [
                f"<g><title>{escape(line.name)} {escape(line.endpoint)}</title>",
                _rect(130, y + 2, 172, 42, "box", 8),
                _label(142, y + 20, _short(line.name, 14), "strong", "start"),
                _label(292, y + 20, f"{told}/{len(meters)}", "quiet", "end"),
                _label(142, y + 36, _short(setting, 27), "quiet", "start"),
                _wire(302, end, middle, "wire"),
            ]
            for i, meter in enumerate(meters):
                x = left + step * (i % DOTS_A_ROW) + 4
                rows.append(self._dot(meter, x, middle + 20 * (i // DOTS_A_ROW)))
            rows.append("</g>")
            y += height + 8
        if not tops:
            return ""
        center = (tops[0] + tops[-1]) / 2
        wires = "".join(
            f'<path d="M96 {center:g} C114 {center:g} 112 {top:g} 130 {top:g}" class="wire" fill="none"/>'
            for top in tops
        )
        gateway = (
            _rect(4, center - 24, 92, 48, "gateway", 10)
            + _label(50, center - 3, "网关 gateway", "on")
            + _label(50, center + 14, _short(self._report.gateway, 13), "on small")
        )
        inside = (
            f'<div class="wide"><svg viewBox="0 0 {width:g} {y + 4:g}" role="img" aria-label="lines and meters">'
            f"{wires}{gateway}{''.join(rows)}</svg></div>{self._legend()}"
        )
        return self._section("lines", "线路与电表", "Lines and meters", inside)

    def _dot(self, meter: MeterFacts, x: float, y: float) -> str:
        title = f"<title>{escape(meter.name)} · {escape(meter.address)} · {_STATES[meter.state][1].en}</title>"
        radius = 8 if meter.role == "boundary" else 6.5
        cross = (
            f'<path d="M{x - 3:g} {y - 3:g} l6 6 m0 -6 l-6 6" class="cross"/>'
            if meter.state == "fault"
            else f'<path d="M{x:g} {y - 3.4:g} v4 m0 2 v.6" class="cross"/>' if meter.state == "look" else ""
        )  # fmt: skip
        return (
            f'<a href="#{self._ids[meter.name]}"><circle cx="{x:g}" cy="{y:g}" r="{radius:g}" '
            f'class="dot {meter.state}"/>{cross}{title}</a>'
        )

    def _legend(self) -> str:
        counts = "".join(
            f'<li class="{state}"><span class="mark">{mark}</span>{two(text)} '
            f"<strong>{self._report.count(state)}</strong></li>"
            for state, (mark, text) in _STATES.items()
        )
        return f'<ul class="legend">{counts}</ul>'

    def _calendar(self) -> str:
        """Completeness by day, one row a meter: the darker, the more is there; a figure where something is missing."""
        meters = [meter for meter in self._report.meters if meter.days]
        if not meters:
            return ""
        shown = sorted(meters, key=lambda meter: (meter.share or 0.0, meter.name))[:40]
        chosen = [meter for meter in meters if meter in shown]
        days = [day.day for day in max((meter.days for meter in meters), key=len)]
        left, cell, row = 150.0, (1000.0 - 150 - 70) / len(days), 20.0
        parts = []
        for i, day in enumerate(days):
            if i % max(1, len(days) // 14) == 0:
                parts.append(_label(left + cell * (i + 0.5), 12, day[5:], "quiet"))
        y = 20.0
        for meter in chosen:
            parts.append(_label(left - 8, y + 14, _short(meter.name, 18), anchor="end"))
            parts += self._cells(meter, days, left, y, cell, row - 3)
            parts.append(_label(992, y + 14, "–" if meter.share is None else percent(meter.share), "strong", "end"))
            y += row
        note = ""
        if len(chosen) < len(meters):
            zh = f"仅列出最不完整的 {len(chosen)} 块，共 {len(meters)} 块。"
            note = f"<p>{_t(zh, f'The {len(chosen)} least complete of {len(meters)} meters.')}</p>"
        means = _t(
            "每格一天，按网关队列已落盘的 15 分钟抄读点计算",
            "A cell is a day, by the 15-minute marks that the gateway holds on disk",
        )
        inside = (
            f'<div class="wide"><svg viewBox="0 0 1000 {y + 2:g}" role="img" aria-label="completeness by day">'
            f'{"".join(parts)}</svg></div>{note}<p class="quiet">{means}</p>'
        )
        return self._section("complete", "采集完整率", "Completeness", inside)

    @staticmethod
    def _cells(
        meter: MeterFacts, days: Sequence[str], left: float, y: float, cell: float, height: float
    ) -> Iterable[str]:
        by_day = {day.day: day for day in meter.days}
        for i, name in enumerate(days):
            day = by_day.get(name)
            x = left + cell * i
            if day is None or not day.due:
                yield _rect(x + 1, y, cell - 2, height, "none")
                continue
            share = day.collected / day.due
            is_full = share >= COMPLETE_LOOK
            kind = "full" if is_full else "most" if share >= COMPLETE_FAULT else "some" if share else "zero"
            yield f"<g><title>{escape(name)}: {day.collected}/{day.due}</title>"
            yield _rect(x + 1, y, cell - 2, height, kind)
            if not is_full and cell >= 30:
                yield _label(x + cell / 2, y + height - 4.5, f"{math.floor(share * 100)}%", f"cell {kind}")
            yield "</g>"

    def _table(self) -> str:
        rows = []
        for meter in self._report.meters:
            mark, text = _STATES[meter.state]
            volts = " / ".join(_plain(meter.value(f"voltage_l{i}_v"), 1) for i in range(1, meter.phases + 1))
            amperes = " / ".join(_plain(meter.value(f"current_l{i}_a"), 2) for i in range(1, meter.phases + 1))
            if not meter.values:
                volts = amperes = "–"
            energy = meter.value("energy_import_wh")
            offset = "–" if meter.clock is None else _signed(meter.clock.offset_s)
            share = "–" if meter.share is None else percent(meter.share)
            rows.append(
                f'<tr class="{meter.state}"><td><span class="mark" title="{escape(text.en)}">{mark}</span></td>'
                f'<th scope="row"><a href="#{self._ids[meter.name]}">{escape(meter.name)}</a>'
                f"<small>{escape(meter.address)}</small></th>"
                f"<td>{escape(meter.line)}<small>{escape(meter.template)}</small></td>"
                f'<td class="num">{volts}</td><td class="num">{amperes}</td>'
                f'<td class="num">{_plain(meter.value("active_power_w"), 0)}</td>'
                f'<td class="num">{"–" if energy is None else f"{energy / 1000:,.2f}"}</td>'
                f'<td class="num">{offset}</td><td class="num">{share}</td>'
                f'<td class="num">{"–" if meter.reply_ms is None else f"{meter.reply_ms:.0f}"}</td></tr>'
            )
        heads = (
            ("", ""), ("电表", "Meter"), ("线路 · 模板", "Line · template"), ("电压 V", "Voltage V"),
            ("电流 A", "Current A"), ("有功 W", "Power W"), ("正向 kWh", "Import kWh"), ("时钟偏差", "Clock"),
            ("完整率", "Complete"), ("应答 ms", "Reply ms"),
        )  # fmt: skip
        head = "".join(f"<th>{_t(zh, en) if zh else ''}</th>" for zh, en in heads)
        table = f'<table class="all"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        inside = f'<div class="wide">{table}</div>'
        if len(rows) > 60:
            inside = f"<details><summary>{_t(f'{len(rows)} 块电表', f'{len(rows)} meters')}</summary>{inside}</details>"
        return self._section("table", "一览", "At a glance", inside)

    # ---- one meter ---------------------------------------------------------------------------------------------------

    def _meters(self) -> str:
        many = len(self._report.meters) > OPEN_METERS_MAX
        cards = "".join(self._meter(meter, many and meter.state == "good") for meter in self._report.meters)
        return self._section("meters", "逐表", "Meter by meter", f'<div class="cards">{cards}</div>')

    def _meter(self, meter: MeterFacts, folded: bool) -> str:
        mark, text = _STATES[meter.state]
        role = two(_ROLES.get(meter.role, Text(meter.role, meter.role)))
        about = " · ".join(escape(part) for part in (meter.address, meter.line, meter.template, meter.models) if part)
        found = {
            True: _t("已应答", "answers"),
            False: _t("无应答", "does not answer"),
            None: _t("未读取", "not asked"),
        }[meter.is_found]
        pictures = "".join(
            part
            for part in (
                self._bars(meter, "voltage", "V"),
                self._bars(meter, "current", "A"),
                self._clock_bar(meter),
                self._replies(meter),
            )
            if part
        )
        findings = "".join(self._finding(finding, None) for finding in meter.findings)
        body = (
            f'<p class="about">{role} · {found} · {about}</p>'
            + (f'<ul class="findings">{findings}</ul>' if findings else "")
            + (f'<div class="pictures">{pictures}</div>' if pictures else "")
            + self._values(meter)
            + self._exchanges(meter)
        )
        return (
            f'<details class="meter {meter.state}" id="{self._ids[meter.name]}"{"" if folded else " open"}>'
            f'<summary><span class="mark">{mark}</span><strong>{escape(meter.name)}</strong> {two(text)}</summary>'
            f"{body}</details>"
        )

    def _bars(self, meter: MeterFacts, kind: str, unit: str) -> str:
        """The phases side by side; of voltages with the band that is allowed around the nominal one."""
        read = [(i, meter.value(f"{kind}_l{i}_{unit.lower()}")) for i in range(1, meter.phases + 1)]
        known = [abs(value) for _, value in read if value is not None]
        if not known:
            return ""
        nominal = nominal_v(known) if kind == "voltage" else None
        top = max([*known, *([1.15 * nominal] if nominal else [])]) or 1.0
        height, base = 74.0, 92.0
        parts = []
        if nominal:
            high, low = (base - height * min(1.0, share * nominal / top) for share in (HIGH_SHARE, LOW_SHARE))
            parts.append(_rect(6, high, 188, low - high, "band", 0))
        width = 188 / meter.phases
        for i, value in read:
            x = 6 + width * (i - 0.5)
            size = 0.0 if value is None else height * abs(value) / top
            off = nominal and value is not None and not LOW_SHARE <= abs(value) / nominal <= HIGH_SHARE
            parts.append(_rect(x - 13, base - size, 26, max(size, 1), f"bar l{i}{' off' if off else ''}"))
            parts.append(_label(x, base - size - 4, _plain(value, 1 if kind == "voltage" else 2), "strong"))
            parts.append(_label(x, base + 13, f"L{i}", "quiet"))
        title = _t("电压 V", "Voltage V") if kind == "voltage" else _t("电流 A", "Current A")
        if nominal:
            title += f" <small>{nominal:g} V +7/-10 %</small>"
        return _figure(title, kind, "".join(parts) + _wire(6, 194, base))

    def _clock_bar(self, meter: MeterFacts) -> str:
        """Offset on a scale that shows seconds and hours alike."""
        if meter.clock is None:
            return ""
        offset = meter.clock.offset_s

        def place(seconds: float) -> float:
            share = math.log10(1 + min(abs(seconds), 86_400)) / math.log10(86_401)
            return 100 + math.copysign(90 * share, seconds)

        state = "fault" if abs(offset) > CLOCK_FAULT_S else "look" if abs(offset) > CLOCK_LOOK_S else "good"
        marks = ((-86_400, "-1 d"), (-300, "-5 min"), (0, "0"), (300, "+5 min"), (86_400, "+1 d"))
        parts = [_rect(place(-CLOCK_LOOK_S), 52, place(CLOCK_LOOK_S) - place(-CLOCK_LOOK_S), 16, "band")]
        parts.append(_wire(10, 190, 60))
        for at, name in marks:
            parts += [_rect(place(at) - 0.5, 55, 1, 10, "tick", 0), _label(place(at), 82, name, "quiet")]
        parts.append(f'<circle cx="{place(offset):g}" cy="60" r="6.5" class="dot {state}"/>')
        parts.append(_label(min(168, max(32, place(offset))), 38, _signed(offset), "big"))
        if meter.clock.drift_s_per_day is not None:
            parts.append(_label(100, 104, f"{meter.clock.drift_s_per_day:+.2f} s/d", "quiet"))
        return _figure(_t("时钟偏差", "Clock offset"), "clock offset", "".join(parts))

    def _replies(self, meter: MeterFacts) -> str:
        times = [exchange.elapsed_ms for exchange in meter.exchanges if not exchange.failure]
        if not times or meter.reply_ms is None:
            return ""
        top = max(times)
        width = 188 / max(len(times), 8)
        bars = [
            _rect(7 + width * i, 92 - 68 * ms / top, width - 2, max(1.0, 68 * ms / top), "bar time")
            for i, ms in enumerate(times)
        ]
        bars.append(_wire(6, 194, 92))
        bars.append(_label(194, 14, f"{meter.reply_ms:.0f} ms", "strong", "end"))
        bars.append(_label(6, 105, f"{len(times)} × · max {top:.0f} ms", "quiet", "start"))
        return _figure(_t("应答时间 ms", "Reply time ms"), "reply time", "".join(bars))

    @staticmethod
    def _values(meter: MeterFacts) -> str:
        if not meter.values:
            return ""
        rows = "".join(
            f"<tr><th scope='row'>{two(_NAMES.get(value.quantity, Text(value.quantity, value.quantity)))}</th>"
            f'<td class="num">{escape(number(value))}</td><td class="num quiet">{escape(value.said)}</td>'
            f"<td><code>{escape(value.item)}</code></td>"
            f"<td>{'✓' if value.is_verified else '<span class=doubt>?</span>'}</td></tr>"
            for value in meter.values
        )
        heads = (
            ("量", "Quantity"),
            ("当前值", "Now"),
            ("表内原值", "In the meter"),
            ("数据项", "Item"),
            ("已证实", "Verified"),
        )
        head = "".join(f"<th>{_t(zh, en)}</th>" for zh, en in heads)
        return (
            f'<div class="wide"><table class="values"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        )

    @staticmethod
    def _exchanges(meter: MeterFacts) -> str:
        if not meter.exchanges:
            return ""
        rows = "".join(
            f"<tr><td><code>{escape(one.item)}</code></td><td><code>{escape(one.request) or '–'}</code></td>"
            f"<td><code>{escape(one.reply)}</code>{escape(one.failure)}</td>"
            f'<td class="num">{one.elapsed_ms:.0f} ms</td></tr>'
            for one in meter.exchanges
        )
        title = _t("原始报文", "Raw frames")
        return f'<details class="raw"><summary>{title}</summary><div class="wide"><table>{rows}</table></div></details>'

    # ---- the end -----------------------------------------------------------------------------------------------------

    @staticmethod
    def _signatures() -> str:
        fields = "".join(
            f'<div><p class="line"></p><p>{_t(zh, en)}</p></div>'
            for zh, en in (("施工人员", "Installed by"), ("验收人员", "Accepted by"), ("日期", "Date"))
        )
        return f'<section class="signatures">{fields}</section>'

    def _footer(self) -> str:
        report = self._report
        told = _t(
            "本报告由 meterctl report 生成，数值为现场读取，未经修饰。",
            "Made by meterctl report from what the meters said; nothing is filled in.",
        )
        at = report.made_at.isoformat(timespec="seconds")
        return f"<footer><p>{told}</p><p>{escape(report.software)} · {escape(report.gateway)} · {at}</p></footer>"


def _label(x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, kind: str, radius: float = 2) -> str:
    size = f'width="{width:g}" height="{height:g}" rx="{radius:g}"'
    return f'<rect x="{x:g}" y="{y:g}" {size} class="{kind}"/>'


def _wire(x1: float, x2: float, y: float, kind: str = "axis") -> str:
    return f'<line x1="{x1:g}" x2="{x2:g}" y1="{y:g}" y2="{y:g}" class="{kind}"/>'


def _figure(title: str, name: str, inside: str) -> str:
    return (
        f"<figure><figcaption>{title}</figcaption>"
        f'<svg viewBox="0 0 200 110" role="img" aria-label="{name}">{inside}</svg></figure>'
    )


def _share_state(share: float | None) -> State | None:
    if share is None:
        return None
    return "good" if share >= COMPLETE_LOOK else "look" if share >= COMPLETE_FAULT else "fault"


def _plain(value: float | None, decimals: int) -> str:
    return "–" if value is None else f"{value:,.{decimals}f}"


def _signed(seconds: float) -> str:
    return f"{'+' if seconds > 0 else '-' if seconds < 0 else ''}{duration(abs(seconds))}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
