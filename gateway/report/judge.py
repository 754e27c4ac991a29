"""What an engineer should look at before leaving: from the readings of one meter to findings, each with what to do.

Limits: voltage of 220 V customers +7 % and -10 % (GB/T 12325); the rest are thresholds of experience, chosen so that a
meter in order passes at no load. A comparison is made only where every value it needs was read.
"""

import math
from collections.abc import Iterator
from statistics import median
from typing import Final

from gateway.report.model import Clock, Day, Exchange, Finding, Level, Text, Value

NOMINAL_V: Final = (57.7, 63.5, 100.0, 110.0, 120.0, 220.0, 230.0, 277.0, 380.0, 400.0)
MISSING_SHARE: Final = 0.1  # of the nominal voltage: below, the phase is not there
HIGH_SHARE, LOW_SHARE = 1.07, 0.90
LIVE_V: Final = 5.0  # a phase below carries no current either, which then is no finding of its own
LOADED_A: Final = 0.05  # below, ratios of currents and powers say nothing
POWER_FACTOR_LOW: Final = 0.5
CLOCK_LOOK_S, CLOCK_FAULT_S = 60.0, 300.0
DRIFT_LOOK_S: Final = 2.0  # a day: a crystal that is in order keeps 0.5
COMPLETE_LOOK, COMPLETE_FAULT = 0.99, 0.90
SLOW_REPLY_MS: Final = 1_500.0
_PHASES: Final = "ABC"  # L1 to L3, as they are called in Chinese


def judge(
    *,
    phases: int,
    values: tuple[Value, ...],
    exchanges: tuple[Exchange, ...],
    clock: Clock | None,
    days: tuple[Day, ...],
    is_found: bool | None,
    reply_ms: float | None,
) -> tuple[Finding, ...]:
    """The findings of one meter, the gravest first."""
    found: list[Finding] = []
    if is_found is False:
        reason = next((exchange.failure for exchange in exchanges if exchange.failure), "")
        found.append(_silent(reason))
    elif is_found:
        by_name = {value.quantity: value.value for value in values}
        found += _voltages(phases, by_name)
        found += _currents(phases, by_name)
        found += _powers(phases, by_name)
        found += _unread(values, exchanges)
        if reply_ms is not None and reply_ms > SLOW_REPLY_MS:
            found.append(
                _finding(
                    "look",
                    "slow_reply",
                    f"应答很慢：约 {reply_ms:.0f} ms",
                    f"It answers slowly: about {reply_ms:.0f} ms",
                    "检查总线、波特率和串口服务器的打包时间",
                    "Check the bus, its speed, and the packing time of a serial server",
                )
            )
    found += _clock(clock)
    found += _completeness(days)
    order: dict[Level, int] = {"fault": 0, "look": 1, "note": 2}
    return tuple(sorted(found, key=lambda finding: order[finding.level]))


def _finding(level: Level, code: str, zh: str, en: str, todo_zh: str, todo_en: str) -> Finding:
    return Finding(level, code, Text(zh, en), Text(todo_zh, todo_en))


def _silent(reason: str) -> Finding:
    told = f" ({reason})" if reason else ""
    return _finding(
        "fault",
        "silent",
        f"没有应答{told}",
        f"No answer{told}",
        "依次检查：电表是否上电、A/B 极性、地址、波特率与校验位；收到字节但不成帧时用 meterctl why 分析",
        "Check in turn: power, A and B, address, speed and parity; where bytes come but no frame: meterctl why",
    )


def nominal_v(voltages: list[float]) -> float | None:
    """The nominal phase voltage the readings are of; None where they are of none."""
    highest = max(voltages, default=0.0)
    usual = median([voltage for voltage in voltages if voltage >= MISSING_SHARE * highest] or [0.0])
    nearest = min(NOMINAL_V, key=lambda nominal: abs(usual / nominal - 1))
    return nearest if abs(usual / nearest - 1) < 0.2 else None


def _voltages(phases: int, read: dict[str, float | None]) -> Iterator[Finding]:
    names = [f"voltage_l{i}_v" for i in range(1, phases + 1)]
    pairs = [(i, value) for i, name in enumerate(names, 1) if (value := read.get(name)) is not None]
    voltages = [abs(value) for _, value in pairs]
    if not voltages:
        return
    nominal = nominal_v(voltages)
    if nominal is None:
        yield _finding(
            "look",
            "voltage_odd",
            f"电压 {_list(voltages)} V 不接近任何额定值",
            f"Voltages {_list(voltages)} V are near no nominal value",
            "核对字序、小数位和 PT 变比；用万用表在端子上测量",
            "Check word order, decimal point and PT ratio; measure at the terminals",
        )
        return
    missing = [i for i, value in pairs if abs(value) < MISSING_SHARE * nominal]
    for i in missing:
        pt = nominal < 120
        yield _finding(
            "fault",
            "phase_missing",
            f"{_PHASES[i - 1]} 相失压：{read[f'voltage_l{i}_v']:.1f} V",
            f"Phase L{i} has no voltage: {read[f'voltage_l{i}_v']:.1f} V",
            "检查 PT 二次侧熔丝和接线" if pt else "检查该相熔丝、断路器和电压接线端子",
            "Check the fuses and wiring on the PT's secondary side" if pt else "Check this phase's fuse and terminal",
        )  # fmt: skip
    for i, value in pairs:
        ratio = abs(value) / nominal
        if i not in missing and not LOW_SHARE <= ratio <= HIGH_SHARE:
            side = ("偏高", "high") if ratio > 1 else ("偏低", "low")
            yield _finding(
                "look",
                "voltage_off",
                f"{_PHASES[i - 1]} 相电压{side[0]}：{value:.1f} V，额定 {nominal:g} V",
                f"Phase L{i} is {side[1]}: {value:.1f} V of {nominal:g} V",
                "在端子上复测；持续偏离时告知供电方（GB/T 12325：+7 %/-10 %）",
                "Measure again at the terminal; if it stays, tell the network operator (GB/T 12325: +7 % / -10 %)",
            )


def _currents(phases: int, read: dict[str, float | None]) -> Iterator[Finding]:
    currents = {i: value for i in range(1, phases + 1) if (value := read.get(f"current_l{i}_a")) is not None}
    if phases < 3 or len(currents) < 3:
        return
    highest = max(abs(value) for value in currents.values())
    if highest < 20 * LOADED_A:
        return
    dead = {i for i in currents if (volts := read.get(f"voltage_l{i}_v")) is not None and abs(volts) < LIVE_V}
    for i, value in currents.items():
        if abs(value) < 0.01 * highest and i not in dead:
            yield _finding(
                "look",
                "current_missing",
                f"{_PHASES[i - 1]} 相无电流（{value:.3f} A），其他相 {highest:.2f} A",
                f"No current in phase L{i} ({value:.3f} A) while another carries {highest:.2f} A",
                "检查该相 CT 二次是否开路或短接片未拆；也可能该相确实没有负荷",
                "Check whether this CT's secondary is open or still bridged; the phase may also carry no load",
            )


def _powers(phases: int, read: dict[str, float | None]) -> Iterator[Finding]:
    power, factor, frequency = read.get("active_power_w"), read.get("power_factor"), read.get("frequency_hz")
    volts = [read.get(f"voltage_l{i}_v") for i in range(1, phases + 1)]
    amperes = [read.get(f"current_l{i}_a") for i in range(1, phases + 1)]
    pairs = [(abs(u), abs(i)) for u, i in zip(volts, amperes, strict=True) if u is not None and i is not None]
    apparent = sum(u * i for u, i in pairs) if len(pairs) == phases else None
    is_loaded = any(current > LOADED_A for _, current in pairs)
    if power is not None and power < 0 and is_loaded:
        yield _finding(
            "look",
            "power_negative",
            f"有功功率为负（{power:.0f} W）：正在反向送电，或 CT 接反",
            f"Active power is negative ({power:.0f} W): it feeds the grid, or a CT is reversed",
            "没有发电设备时，把各相 CT 的 S1/S2（或电流进出线）对调核对",
            "Where nothing generates, check S1 and S2 of each CT (or the direction of the conductors)",
        )
    if power is not None and apparent is not None and is_loaded:
        if abs(power) > 1.1 * apparent:
            yield _finding(
                "look",
                "power_above_apparent",
                f"有功 {abs(power):.0f} W 大于视在 {apparent:.0f} VA",
                f"Active power {abs(power):.0f} W is above the apparent power {apparent:.0f} VA",
                "核对功率寄存器的单位、小数位和 CT/PT 变比",
                "Check unit and decimal point of the power register, and the CT and PT ratios",
            )
        elif (
            apparent > 0 and abs(power) / apparent < POWER_FACTOR_LOW and not (factor is not None and abs(factor) > 0.8)
        ):
            yield _finding(
                "look",
                "power_factor_low",
                f"功率因数约 {abs(power) / apparent:.2f}，对一般负荷过低",
                f"The power factor is about {abs(power) / apparent:.2f}, too low for an ordinary load",
                "核对电压与电流是否同相（相序错接、CT 装错相、一相反接）",
                "Check that voltage and current of each phase belong together (swapped phases, one CT reversed)",
            )
        elif factor is not None and abs(abs(factor) - abs(power) / apparent) > 0.2 and apparent > 50:
            yield _finding(
                "look",
                "power_factor_differs",
                f"功率因数 {factor:.3f} 与 P/S = {abs(power) / apparent:.2f} 不符",
                f"The power factor {factor:.3f} does not fit P/S = {abs(power) / apparent:.2f}",
                "核对功率因数寄存器的编码（四象限编码、小数位）",
                "Check how the power factor register is coded (four quadrants, decimal point)",
            )
    if factor is not None and abs(factor) > 1.001:
        yield _finding(
            "fault",
            "power_factor_impossible",
            f"功率因数 {factor:.3f} 不可能",
            f"A power factor of {factor:.3f} is impossible",
            "该寄存器的小数位或字序不对：核对模板",
            "Decimal point or word order of this register is wrong: check the template",
        )
    if frequency is not None and not any(abs(frequency - nominal) < 1 for nominal in (50, 60)):
        yield _finding(
            "look",
            "frequency_odd",
            f"频率 {frequency:.2f} Hz 异常",
            f"A frequency of {frequency:.2f} Hz is odd",
            "核对频率寄存器的字序和小数位",
            "Check word order and decimal point of the frequency register",
        )


def _unread(values: tuple[Value, ...], exchanges: tuple[Exchange, ...]) -> Iterator[Finding]:
    failed = [exchange for exchange in exchanges if exchange.failure]
    if failed:
        items = ", ".join(exchange.item for exchange in failed[:6]) + (" …" if len(failed) > 6 else "")
        yield _finding(
            "look",
            "items_failed",
            f"{len(failed)} 项读取失败：{items}（{failed[0].failure}）",
            f"{len(failed)} items could not be read: {items} ({failed[0].failure})",
            "表计可能没有这些数据项：换用更合适的模板，或用 meterctl read 单独核对",
            "The meter may not have them: choose a closer template, or look at one with meterctl read",
        )
    doubtful = [value.quantity for value in values if not value.is_verified]
    if doubtful:
        yield _finding(
            "note",
            "unverified",
            f"{len(doubtful)} 个寄存器尚未经两个来源证实",
            f"{len(doubtful)} registers are not confirmed by two sources",
            "与表计显示屏逐项核对，一致后可在模板中标记 verified",
            "Compare them with the meter's display; once they agree, mark them verified in the template",
        )


def _clock(clock: Clock | None) -> Iterator[Finding]:
    if clock is None:
        return
    size = abs(clock.offset_s)
    if size > CLOCK_LOOK_S:
        side = ("快", "ahead") if clock.offset_s > 0 else ("慢", "behind")
        yield _finding(
            "fault" if size > CLOCK_FAULT_S else "look",
            "clock_off",
            f"时钟{side[0]} {duration(size)}",
            f"The clock is {duration(size)} {side[1]}",
            "由平台下发校时；偏差超过 5 分钟时广播（08H）无效，须用密码写入（14H）",
            "Have the platform set it; past 5 minutes it takes a write (14H) with the password, not a broadcast",
        )
    if clock.drift_s_per_day is not None and abs(clock.drift_s_per_day) > DRIFT_LOOK_S:
        yield _finding(
            "look",
            "clock_drifts",
            f"时钟每天漂移 {clock.drift_s_per_day:+.1f} 秒",
            f"The clock drifts by {clock.drift_s_per_day:+.1f} s a day",
            "时钟电池欠压或晶振故障：安排换表",
            "The clock's battery or crystal is failing: plan to replace the meter",
        )


def _completeness(days: tuple[Day, ...]) -> Iterator[Finding]:
    due = sum(day.due for day in days)
    collected = sum(day.collected for day in days)
    if not due or collected / due >= COMPLETE_LOOK:
        return
    share = collected / due
    told = percent(share)
    yield _finding(
        "fault" if share < COMPLETE_FAULT else "look",
        "incomplete",
        f"采集完整率 {told}，缺 {due - collected} 个点",
        f"{told} complete: {due - collected} marks are missing",
        "网关会自动从电表的负荷曲线补采；隔日再看，仍缺则电表没有存储该时段",
        "The gateway reads them from the meter's memory by itself; what is missing tomorrow the meter does not hold",
    )


def _list(numbers: list[float]) -> str:
    return ", ".join(f"{number:.1f}" for number in numbers)


def duration(seconds: float) -> str:
    """Short, for both languages."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def percent(share: float) -> str:
    """Never 100 % while something is missing."""
    return f"{math.floor(share * 1000) / 10:.1f}%"
