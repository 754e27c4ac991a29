"""Alerts and demand response · 告警与需求响应."""

from typing import Final

from dashboards.panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Dashboard,
    lines,
    mapping,
    named,
    stat,
    table,
    thresholds,
)
from dashboards.shared import AREA, COLOURED_TEXT, DATA_UNTIL, SHED

_SEVERITY: Final = mapping(
    {
        "critical": ("critical · 严重", RED),
        "warning": ("warning · 警告", ORANGE),
        "info": ("info · 提示", BLUE),
    }
)


ALERTS: Final = Dashboard(
    uid="gridloom-alerts",
    title="Alerts and demand response · 告警与需求响应",
    description="What needs a person, and what was done about peaks. · 需要人处理的事项,以及对负荷高峰采取的措施。",
    since="now-7d",
    variables=(AREA,),
    marks=(SHED,),
    panels=(
        stat(
            "Open: critical · 未关闭:严重",
            "Someone must act. · 需立即处理。",
            """
            SELECT count(*) AS "Critical · 严重" FROM alert WHERE closed_at IS NULL AND severity = 'critical'
            """,
            steps=thresholds(GREEN, (1, RED)),
        ),
        stat(
            "Open: warning · 未关闭:警告",
            "Degraded, still working. · 已劣化,仍在运行。",
            """
            SELECT count(*) AS "Warning · 警告" FROM alert WHERE closed_at IS NULL AND severity = 'warning'
            """,
            steps=thresholds(GREEN, (1, ORANGE)),
        ),
        stat(
            "Demand-response events · 需求响应事件",
            "Started in the chosen range. · 所选范围内开始的事件。",
            """
            SELECT count(*) AS "Events · 事件" FROM dr_event
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(start_at)
            """,
        ),
        stat(
            "Energy shed · 削减电量",
            "Measured reduction against the baseline, of measured events. · 已计量事件相对基线的削减电量。",
            """
            SELECT sum(reduction_wh) AS "Energy shed · 削减电量" FROM dr_event
            WHERE area_id IN (${area:sqlstring}) AND state = 'measured' AND $__timeFilter(start_at)
            """,
            unit="watth",
            decimals=2,
        ),
        stat(
            "Events failed · 失败事件",
            "No gateway acted before the command expired. · 指令过期前网关未执行。",
            """
            SELECT count(*) AS "Events failed · 失败事件" FROM dr_event
            WHERE area_id IN (${area:sqlstring}) AND state = 'failed' AND $__timeFilter(start_at)
            """,
            steps=thresholds(GREEN, (1, RED)),
        ),
        DATA_UNTIL,
        table(
            "Open alerts · 未关闭告警",
            "Whatever the chosen range is; the gravest first. · 不受时间范围限制;最严重者在前。",
            """
            SELECT severity AS "Severity · 级别", rule AS "Rule · 规则", subject AS "Subject · 对象",
                   opened_at AS "Since · 开始", message_en AS "Message", message_zh AS "说明"
            FROM alert WHERE closed_at IS NULL
            ORDER BY array_position(ARRAY['critical', 'warning', 'info'], severity), opened_at DESC LIMIT 200
            """,
            height=10,
            overrides=(named("Severity · 级别", custom__cellOptions=COLOURED_TEXT, mappings=[_SEVERITY]),),
        ),
        table(
            "Demand-response events · 需求响应事件",
            "Baseline, what was drawn, and the reduction between them. · 基线、实际与两者之差。",
            """
            SELECT event_id AS "Event · 事件", area_id AS "Area · 台区", start_at AS "Start · 开始",
                   end_at AS "End · 结束",
                   cardinality(points) AS "Points · 计量点", state AS "State · 状态", baseline_wh AS "Baseline · 基线",
                   actual_wh AS "Actual · 实际", reduction_wh AS "Reduction · 削减", method AS "Method · 方法"
            FROM dr_event
            WHERE area_id IN (${area:sqlstring}) AND start_at <= $__timeTo() AND end_at >= $__timeFrom()
            ORDER BY start_at DESC LIMIT 200
            """,
            overrides=(
                *(named(name, unit="watth", decimals=2)
                  for name in ("Baseline · 基线", "Actual · 实际", "Reduction · 削减")),
                named("State · 状态", custom__cellOptions=COLOURED_TEXT, mappings=[mapping({
                    "planned": ("planned · 已计划", BLUE), "sent": ("sent · 已下发", YELLOW),
                    "done": ("done · 已执行", GREEN),
                    "measured": ("measured · 已计量", GREEN), "failed": ("failed · 失败", RED)})]),
            ),
        ),
        lines(
            "Load of the areas · 台区负荷",
            "Events are shaded. · 阴影为需求响应时段。",
            """
            SELECT start AS time, area_id AS metric, supplied_wh * 4.0 AS "load"
            FROM load JOIN area ON series = 'area:' || area_id
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(start) ORDER BY start, area_id
            """,
            unit="watt",
        ),
        lines(
            "Alerts opened by day · 每日新增告警",
            "By rule. · 按规则统计。",
            """
            SELECT date_trunc('day', opened_at, ${zone:sqlstring}) AS time, rule AS metric, count(*) AS "opened"
            FROM alert WHERE $__timeFilter(opened_at) GROUP BY 1, 2 ORDER BY 1, 2
            """,
            unit="none",
            style="bars",
            stacked=True,
            width=10,
        ),
        table(
            "Alert history · 告警历史",
            "Open at some moment of the chosen range. · 所选范围内曾处于打开状态的告警。",
            """
            SELECT opened_at AS "Opened · 打开", closed_at AS "Closed · 关闭", severity AS "Severity · 级别",
                   rule AS "Rule · 规则", subject AS "Subject · 对象", message_en AS "Message", message_zh AS "说明"
            FROM alert WHERE opened_at <= $__timeTo() AND (closed_at IS NULL OR closed_at >= $__timeFrom())
            ORDER BY opened_at DESC LIMIT 500
            """,
            width=14,
            height=10,
            overrides=(named("Severity · 级别", custom__cellOptions=COLOURED_TEXT, mappings=[_SEVERITY]),),
        ),
    ),
)  # fmt: skip
