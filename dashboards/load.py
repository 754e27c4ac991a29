"""Load and forecast · 负荷与预测."""

from typing import Final

from dashboards.panels import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Dashboard,
    Variable,
    lines,
    named,
    stat,
    table,
    thresholds,
)
from dashboards.shared import DATA_UNTIL, SHED

_SERIES: Final = Variable(
    "series",
    "Series · 对象",
    """
    SELECT __value, __text FROM (
        SELECT 1 AS level, min(series) AS __value, 'Substation · 变电站 ' || split_part(min(series), ':', 2) AS __text
        FROM load WHERE series > 'substation' AND series LIKE 'substation:%' HAVING min(series) IS NOT NULL
        UNION ALL
        SELECT 2, 'feeder:' || feeder_id, 'Feeder · 馈线 ' || feeder_id || ' ' || name_en || ' · ' || name_zh
        FROM feeder
        UNION ALL
        SELECT 3, 'area:' || area_id, 'Area · 台区 ' || area_id || ' ' || name_en || ' · ' || name_zh FROM area
    ) AS choice ORDER BY level, __value
    """,
)


# One row, or none for an unknown series. A substation carries what its feeders carry.
_CAPACITY: Final = """
    SELECT capacity_w FROM area WHERE 'area:' || area_id = ${series:sqlstring}
    UNION ALL
    SELECT capacity_w FROM feeder WHERE 'feeder:' || feeder_id = ${series:sqlstring}
    UNION ALL
    SELECT sum(capacity_w) FROM feeder WHERE ${series:sqlstring} LIKE 'substation:%' HAVING count(*) > 0
"""

# The newest run that forecast this series: by origin, for a backtest made later is not newer.
_NEWEST_RUN: Final = """
    SELECT run_id FROM forecast_run AS run
    WHERE EXISTS (SELECT FROM forecast AS f
                  WHERE f.series = ${series:sqlstring} AND f.start >= run.origin AND f.run_id = run.run_id)
    ORDER BY origin DESC, run_id DESC LIMIT 1
"""


LOAD: Final = Dashboard(
    uid="gridloom-load",
    title="Load and forecast · 负荷与预测",
    description="Load now, tomorrow's with its band, and how good the forecast is. "
    "· 当前负荷、次日预测区间与预测准确率。",
    since="now-2d",
    until="now+1d",  # the forecast reaches a day past the newest load
    variables=(_SERIES,),
    marks=(SHED,),
    panels=(
        stat(
            "Load now · 当前负荷",
            "Mean power of the newest interval. · 最新区间的平均功率。",
            """
            SELECT supplied_wh * 4.0 AS "Load now · 当前负荷" FROM load
            WHERE series = ${series:sqlstring} AND supplied_wh IS NOT NULL ORDER BY start DESC LIMIT 1
            """,
            unit="watt",
            decimals=1,
        ),
        stat(
            "Of capacity · 负载率",
            "Load now over the operating limit. · 当前负荷与运行限额之比。",
            """
            SELECT 100 * supplied_wh * 4.0 / nullif((CAPACITY), 0) AS "Of capacity · 负载率" FROM load
            WHERE series = ${series:sqlstring} AND supplied_wh IS NOT NULL ORDER BY start DESC LIMIT 1
            """.replace("CAPACITY", _CAPACITY),
            unit="percent",
            decimals=0,
            steps=thresholds(GREEN, (80, YELLOW), (100, RED)),
        ),
        stat(
            "Peak ahead · 预测峰值",
            "Highest expected load (p50) of the newest forecast. · 最新预测的最大期望负荷 (p50)。",
            """
            SELECT max(p50_w) AS "Peak ahead · 预测峰值" FROM forecast
            WHERE series = ${series:sqlstring} AND run_id = (NEWEST_RUN)
            """.replace("NEWEST_RUN", _NEWEST_RUN),
            unit="watt",
            decimals=1,
        ),
        stat(
            "Peak at · 峰值时刻",
            "When that peak is expected. · 预计峰值出现时间。",
            """
            SELECT extract(epoch FROM start) * 1000 AS "Peak at · 峰值时刻" FROM forecast
            WHERE series = ${series:sqlstring} AND run_id = (NEWEST_RUN) ORDER BY p50_w DESC, start LIMIT 1
            """.replace("NEWEST_RUN", _NEWEST_RUN),
            unit="dateTimeAsLocal",
        ),
        stat(
            "Forecast error · 预测误差",
            "WAPE of the last 7 assessed days: sum of absolute errors over the sum of load, day ahead, best model. "
            "· 最近 7 个评估日的日前加权绝对百分比误差,取最优模型。",
            """
            SELECT 100 * sum(abs_error_wh) / nullif(sum(actual_wh), 0) AS "Forecast error · 预测误差"
            FROM forecast_accuracy
            WHERE series = ${series:sqlstring}
              AND day > (SELECT max(day) - 7 FROM forecast_accuracy WHERE series = ${series:sqlstring})
            GROUP BY model ORDER BY 1 LIMIT 1
            """,
            unit="percent",
            decimals=1,
        ),
        DATA_UNTIL,
        lines(
            "Load, forecast and capacity · 负荷、预测与限额",
            "The band spans p10 to p90 of the newest forecast: eight of ten loads should fall inside. "
            "· 阴影为最新预测的 p10–p90 区间,约八成负荷应落在其中。",
            """
            SELECT start AS time, supplied_wh * 4.0 AS "Load · 负荷" FROM load
            WHERE series = ${series:sqlstring} AND $__timeFilter(start) ORDER BY start
            """,
            """
            SELECT start AS time, p10_w AS "p10", p50_w AS "Forecast p50 · 预测", p90_w AS "p90" FROM forecast
            WHERE series = ${series:sqlstring} AND $__timeFilter(start) AND run_id = (NEWEST_RUN) ORDER BY start
            """.replace("NEWEST_RUN", _NEWEST_RUN),
            """
            SELECT moment AS time, capacity_w AS "Capacity · 限额"
            FROM (CAPACITY) AS capacity, unnest(ARRAY[$__timeFrom()::timestamptz, $__timeTo()::timestamptz]) AS moment
            ORDER BY moment
            """.replace("CAPACITY", _CAPACITY),
            unit="watt",
            height=12,
            overrides=(
                named("Load · 负荷", color={"mode": "fixed", "fixedColor": BLUE}),
                named("Forecast p50 · 预测", color={"mode": "fixed", "fixedColor": ORANGE},
                      custom__lineStyle={"dash": [6, 4], "fill": "dash"}),
                named("p10", color={"mode": "fixed", "fixedColor": ORANGE}, custom__lineWidth=0),
                named("p90", color={"mode": "fixed", "fixedColor": ORANGE}, custom__lineWidth=0,
                      custom__fillBelowTo="p10", custom__fillOpacity=20),
                named("Capacity · 限额", color={"mode": "fixed", "fixedColor": RED},
                      custom__lineStyle={"dash": [2, 4], "fill": "dash"}),
            ),
        ),
        lines(
            "Load by area · 各台区负荷",
            "Mean power per interval. · 每个区间的平均功率。",
            """
            SELECT start AS time, split_part(series, ':', 2) AS metric, supplied_wh * 4.0 AS "load"
            FROM load WHERE series LIKE 'area:%' AND $__timeFilter(start) ORDER BY start, series
            """,
            unit="watt",
            width=12,
            stacked=True,
            overrides=({"matcher": {"id": "byType", "options": "number"},
                        "properties": [{"id": "custom.fillOpacity", "value": 40}]},),
        ),
        lines(
            "Forecast error by day · 每日预测误差",
            "Day-ahead WAPE per business day; one line per model. Seasonal naive is the one to beat. "
            "· 每日日前 WAPE,每个模型一条线;季节朴素模型为对照基准。",
            """
            SELECT day::timestamp AT TIME ZONE ${zone:sqlstring} AS time, model AS metric,
                   100 * abs_error_wh / nullif(actual_wh, 0) AS "wape"
            FROM forecast_accuracy
            WHERE series = ${series:sqlstring}
              AND day > (SELECT max(day) - 35 FROM forecast_accuracy WHERE series = ${series:sqlstring})
              AND (day::timestamp AT TIME ZONE ${zone:sqlstring}) <= $__timeTo()
            ORDER BY day, model
            """,
            unit="percent",
            width=12,
        ),
        table(
            "Forecast runs · 预测批次",
            "The newest runs; nothing later than the origin was used. · 最近的预测批次;未使用起点之后的数据。",
            """
            SELECT origin AS "Origin · 起点", model AS "Model · 模型", model_version AS "Version · 版本",
                   horizon_h AS "Horizon · 时长", inputs_until AS "Inputs until · 输入截至",
                   made_at AS "Made · 生成时间"
            FROM forecast_run ORDER BY run_id DESC LIMIT 20
            """,
            overrides=(named("Horizon · 时长", unit="h"),),
        ),
    ),
)  # fmt: skip
