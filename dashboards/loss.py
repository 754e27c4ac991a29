"""Line loss · 线损: measured, technical, unexplained."""

from typing import Final

from dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    Dashboard,
    bars,
    lines,
    mapping,
    named,
    stat,
    states,
    table,
    thresholds,
)
from dashboards.shared import AREA, COLOURED_CELL, DATA_UNTIL

_STATES: Final = {
    "0": ("normal · 正常", GREEN),
    "1": ("high · 偏高", RED),
    "2": ("negative · 负损", PURPLE),
    "3": ("not computable · 不可算", GREY),
}

_KINDS: Final = {
    "scaled": "constant share missing · 恒定比例少计",
    "night": "missing at night · 夜间少计",
    "peak": "missing in the evening · 晚间少计",
    "cap": "cut off at a ceiling · 示数封顶",
    "subtract": "constant power missing · 固定功率少计",
    "stopped": "register stands still · 停走",
    "intermittent": "missing on some days · 间歇性少计",
    "ct_ratio": "too much recorded · 多计",
    "wrong_area": "fed by another area · 户变关系错误",
    "phase_missing": "one phase missing · 缺相少计",
}

LOSS: Final = Dashboard(
    uid="gridloom-loss",
    title="Line loss · 线损",
    description="What was supplied and not delivered, how much of it physics explains, and what is left. "
    "· 供入未供出的电量、技术线损可解释的部分与剩余不明损耗。",
    since="now-35d/d",
    variables=(AREA,),
    panels=(
        stat(
            "Line loss · 线损率",
            "Supplied less delivered, over what was fed in; only intervals of the head and of most customers count. "
            "· (供入−供出)/输入电量,仅计总表及大部分用户齐全的区间。",
            """
            SELECT 100 * sum(supplied_wh - delivered_wh) / nullif(sum(coalesce(fed_in_wh, supplied_wh)), 0)
                   AS "Line loss · 线损率"
            FROM loss_day WHERE area_id IN (${area:sqlstring})
              AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            """,
            unit="percent",
            decimals=2,
        ),
        stat(
            "Technical · 技术线损",
            "From the power flow over the network model: lines and transformers. "
            "· 由网络模型潮流计算:线路与变压器损耗。",
            """
            SELECT sum(technical_wh) AS "Technical · 技术线损" FROM loss_day WHERE area_id IN (${area:sqlstring})
              AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            """,
            unit="watth",
            decimals=1,
        ),
        stat(
            "Unexplained · 不明损耗",
            "Measured less technical: theft, wrong ratios, wrong wiring. · 统计线损减技术线损:窃电、倍率或接线错误。",
            """
            SELECT sum(unexplained_wh) AS "Unexplained · 不明损耗" FROM loss_day WHERE area_id IN (${area:sqlstring})
              AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            """,
            unit="watth",
            decimals=1,
            steps=thresholds(ORANGE),
        ),
        stat(
            "Areas out of range · 异常台区",
            "Areas whose newest computable day is too high or negative. · 最近可算日线损偏高或为负的台区。",
            """
            SELECT count(*) FILTER (WHERE state IN ('high', 'negative')) AS "Areas out of range · 异常台区"
            FROM (SELECT DISTINCT ON (area_id) area_id, state FROM loss_day
                  WHERE area_id IN (${area:sqlstring}) AND state <> 'not_computable'
                    AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
                  ORDER BY area_id, day DESC) AS newest
            """,
            steps=thresholds(GREEN, (1, RED)),
        ),
        stat(
            "Intervals used · 可用区间",
            "Share of intervals in which the head and most customers were there. · 总表及大部分用户齐全的区间占比。",
            """
            SELECT 100.0 * sum(aligned) / nullif(sum(expected), 0) AS "Intervals used · 可用区间"
            FROM loss_day WHERE area_id IN (${area:sqlstring})
              AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            """,
            unit="percent",
            decimals=1,
        ),
        DATA_UNTIL,
        bars(
            "Loss by area · 各台区线损",
            "Technical and unexplained energy over the chosen range. · 所选范围内的技术线损与不明损耗电量。",
            """
            SELECT area_id || ' ' || name_zh AS area, sum(technical_wh) AS "Technical · 技术线损",
                   sum(unexplained_wh) AS "Unexplained · 不明损耗"
            FROM loss_day JOIN area USING (area_id)
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            GROUP BY area_id, name_zh ORDER BY area_id
            """,
            unit="watth",
            category="area",
            overrides=(
                named("Technical · 技术线损", color={"mode": "fixed", "fixedColor": BLUE}),
                named("Unexplained · 不明损耗", color={"mode": "fixed", "fixedColor": ORANGE}),
            ),
        ),
        lines(
            "Unexplained by day · 每日不明损耗",
            "One line per area; a thief is a step that stays. · 每台区一条线;窃电表现为持续的台阶。",
            """
            SELECT day::timestamp AT TIME ZONE ${zone:sqlstring} AS time, area_id AS metric,
                   unexplained_wh AS "unexplained"
            FROM loss_day WHERE area_id IN (${area:sqlstring})
              AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            ORDER BY day, area_id
            """,
            unit="watth",
            width=12,
        ),
        lines(
            "Unexplained, and how sure · 不明损耗及其区间",
            "The chosen areas together; their 80 % intervals added up. · 所选台区合计及各台区 80% 区间之和。",
            """
            SELECT day::timestamp AT TIME ZONE ${zone:sqlstring} AS time, sum(unexplained_lo_wh) AS "10 %",
                   sum(unexplained_wh) AS "Unexplained · 不明损耗", sum(unexplained_hi_wh) AS "90 %"
            FROM loss_day WHERE area_id IN (${area:sqlstring}) AND unexplained_lo_wh IS NOT NULL
              AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            GROUP BY day ORDER BY day
            """,
            unit="watth",
            width=12,
            overrides=(
                named("Unexplained · 不明损耗", color={"mode": "fixed", "fixedColor": ORANGE}),
                named("10 %", color={"mode": "fixed", "fixedColor": ORANGE}, custom__lineWidth=0),
                named("90 %", color={"mode": "fixed", "fixedColor": ORANGE}, custom__lineWidth=0,
                      custom__fillBelowTo="10 %", custom__fillOpacity=20),
            ),
        ),
        lines(
            "Loss rate by day · 每日线损率",
            "Measured loss over what was fed in. · 统计线损电量与输入电量之比。",
            """
            SELECT day::timestamp AT TIME ZONE ${zone:sqlstring} AS time, area_id AS metric,
                   100 * (supplied_wh - delivered_wh) / nullif(coalesce(fed_in_wh, supplied_wh), 0) AS "rate"
            FROM loss_day WHERE area_id IN (${area:sqlstring})
              AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            ORDER BY day, area_id
            """,
            unit="percent",
            width=12,
        ),
        states(
            "State by day · 每日状态",
            "Against each area's own limits. · 按各台区自身限值判定。",
            """
            SELECT day::timestamp AT TIME ZONE ${zone:sqlstring} AS time, area_id AS metric,
                   CASE state WHEN 'normal' THEN 0 WHEN 'high' THEN 1 WHEN 'negative' THEN 2 ELSE 3 END AS "state"
            FROM loss_day WHERE area_id IN (${area:sqlstring})
              AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            ORDER BY day, area_id
            """,
            _STATES,
            width=12,
            height=10,
        ),
        table(
            "Who to visit first · 优先排查",
            "Customers whose records explain what their area loses, by the newest search of each area. Check topology "
            "and phases first. Log odds: 0 is as likely as not. "
            "· 各台区最近一次排查中可解释不明损耗的用户;请先核对户变关系和相位。",
            """
            SELECT CASE WHEN named THEN 'visit · 建议核查' ELSE 'possible · 存疑' END AS "Advice · 建议",
                   area_id || ' ' || name_en || ' · ' || name_zh AS "Area · 台区", point AS "Point · 计量点",
                   kind AS "Kind · 类型",
                   CASE WHEN since IS NULL THEN '< ' || from_day
                        ELSE to_char(since AT TIME ZONE ${zone:sqlstring}, 'YYYY-MM-DD') END AS "Since · 起始",
                   stolen_wh AS "Missing · 少计", stolen_lo_wh AS "10 %", stolen_hi_wh AS "90 %",
                   score AS "Log odds · 对数几率", evidence_en AS "Evidence · 依据"
            FROM (SELECT area_id, max(day) AS day FROM loss_search WHERE reason = '' GROUP BY area_id) newest
            JOIN loss_search USING (area_id, day) JOIN loss_suspect USING (area_id, day)
            JOIN area USING (area_id) JOIN (SELECT point_id, point FROM metering_point) p USING (point_id)
            WHERE area_id IN (${area:sqlstring})
            ORDER BY named DESC, abs(stolen_wh) DESC LIMIT 100
            """,
            overrides=(
                *(named(name, unit="watth", decimals=1) for name in ("Missing · 少计", "10 %", "90 %")),
                named("Log odds · 对数几率", decimals=1),
                named("Kind · 类型", mappings=[mapping({kind: (text, ORANGE) for kind, text in _KINDS.items()})]),
            ),
        ),
        table(
            "Areas and days · 台区日明细",
            "Newest first. · 最近日期在前。",
            """
            SELECT to_char(day, 'YYYY-MM-DD') AS "Day · 日期",
                   area_id || ' ' || name_en || ' · ' || name_zh AS "Area · 台区",
                   supplied_wh AS "Supplied · 供入", delivered_wh AS "Delivered · 供出",
                   supplied_wh - delivered_wh AS "Measured · 统计线损", technical_wh AS "Technical · 技术线损",
                   unexplained_wh AS "Unexplained · 不明损耗",
                   unexplained_lo_wh AS "10 %", unexplained_hi_wh AS "90 %",
                   100 * (supplied_wh - delivered_wh) / nullif(coalesce(fed_in_wh, supplied_wh), 0) AS "Rate · 线损率",
                   state AS "State · 状态", aligned || '/' || expected AS "Intervals · 区间", reason AS "Reason · 原因"
            FROM loss_day JOIN area USING (area_id)
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            ORDER BY day DESC, area_id LIMIT 500
            """,
            height=12,
            overrides=(
                *(named(name, unit="watth", decimals=1) for name in (
                    "Supplied · 供入", "Delivered · 供出", "Measured · 统计线损", "Technical · 技术线损",
                    "Unexplained · 不明损耗", "10 %", "90 %")),
                named("Rate · 线损率", unit="percent", decimals=2),
                named("State · 状态", custom__cellOptions=COLOURED_CELL, mappings=[mapping({
                    "normal": _STATES["0"], "high": _STATES["1"],
                    "negative": _STATES["2"], "not_computable": _STATES["3"]})]),
            ),
        ),
    ),
)  # fmt: skip
