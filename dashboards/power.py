"""Power and voltage · 功率与电压: what the meters show between the registers, from the hourly and daily rollups."""

from typing import Final

from dashboards.panels import BLUE, GREEN, ORANGE, RED, Dashboard, lines, named, stat, table, thresholds
from dashboards.shared import AREA, COLOURED_TEXT, DATA_UNTIL

# Rollups hold what the meter said; the ratios are those in force then.
_HOURS: Final = """
    FROM metering_point JOIN installation i USING (point_id) JOIN power_hour h USING (meter_id)
    WHERE area_id IN (${area:sqlstring}) AND role <> 'check' AND $__timeFilter(h.start)
      AND h.start >= i.valid_from AND h.start < i.valid_to
"""
_DAYS: Final = _HOURS.replace("power_hour", "power_day")
# GB/T 12325 allows 220 V +7 % -10 % to neutral; meters behind a voltage transformer have other limits.
_LOW_VOLTAGE: Final = " AND pt_ratio = 1"
_LOWEST: Final = "least(voltage_l1_min_v, voltage_l2_min_v, voltage_l3_min_v)"
_HIGHEST: Final = "greatest(voltage_l1_max_v, voltage_l2_max_v, voltage_l3_max_v)"
_LOW_V, _HIGH_V = 198, 235.4

POWER: Final = Dashboard(
    uid="gridloom-power",
    title="Power and voltage · 功率与电压",
    description="What the meters show at each mark, by hour and by day. · 各时刻瞬时量的小时与日统计。",
    since="now-7d",
    variables=(AREA,),
    panels=(
        stat(
            "Lowest voltage · 最低电压",
            "Of any phase of any point in the chosen range; 198 V is the limit (220 V less 10 %). "
            "· 所选范围内各计量点各相最低电压;限值 198 V(220 V −10%)。",
            f'SELECT min({_LOWEST}) AS "Lowest voltage · 最低电压" {_HOURS} {_LOW_VOLTAGE}',
            unit="volt",
            decimals=1,
            steps=thresholds(RED, (_LOW_V, GREEN)),
        ),
        stat(
            "Highest voltage · 最高电压",
            "Of any phase of any point in the chosen range; 235.4 V is the limit (220 V + 7 %). "
            "· 所选范围内各计量点各相最高电压;限值 235.4 V(220 V +7%)。",
            f'SELECT max({_HIGHEST}) AS "Highest voltage · 最高电压" {_HOURS} {_LOW_VOLTAGE}',
            unit="volt",
            decimals=1,
            steps=thresholds(GREEN, (_HIGH_V, RED)),
        ),
        stat(
            "Power factor · 功率因数",
            "Mean of the head meters, by the size of their power. · 总表功率因数均值(按功率加权)。",
            f"""
            SELECT sum(abs(power_factor_mean * active_power_mean_w))
                   / nullif(sum(abs(active_power_mean_w)) FILTER (WHERE power_factor_mean IS NOT NULL), 0)
                   AS "Power factor · 功率因数" {_HOURS} AND role = 'supply'
            """,
            decimals=3,
            steps=thresholds(ORANGE, (0.9, GREEN)),
        ),
        DATA_UNTIL,
        lines(
            "Voltage of the areas · 台区电压",
            "Lowest and highest of any phase of any point, by hour. · 每小时各计量点各相最低与最高电压。",
            f"""
            SELECT h.start AS time, area_id || ' min' AS metric, min({_LOWEST}) AS "voltage"
            {_HOURS} {_LOW_VOLTAGE} GROUP BY h.start, area_id ORDER BY h.start, area_id
            """,
            f"""
            SELECT h.start AS time, area_id || ' max' AS metric, max({_HIGHEST}) AS "voltage"
            {_HOURS} {_LOW_VOLTAGE} GROUP BY h.start, area_id ORDER BY h.start, area_id
            """,
            unit="volt",
            width=12,
        ),
        lines(
            "Power at the head · 总表功率",
            "Highest and mean by hour, import less export. · 每小时最大值与平均值,受进减送出。",
            f"""
            SELECT h.start AS time, area_id || ' max' AS metric, max(active_power_max_w * ct_ratio * pt_ratio) AS "w"
            {_HOURS} AND role = 'supply' GROUP BY h.start, area_id ORDER BY h.start, area_id
            """,
            f"""
            SELECT h.start AS time, area_id AS metric, sum(active_power_mean_w * ct_ratio * pt_ratio) AS "w"
            {_HOURS} AND role = 'supply' GROUP BY h.start, area_id ORDER BY h.start, area_id
            """,
            unit="watt",
            width=12,
        ),
        table(
            "Points outside the voltage limits · 电压越限计量点",
            "Days with a reading below 198 V or above 235.4 V; the lowest first. · 出现越限电压的计量点与天数。",
            f"""
            SELECT point AS "Point · 计量点", area_id AS "Area · 台区", count(*) AS "Days · 天数",
                   min({_LOWEST}) AS "Lowest · 最低", max({_HIGHEST}) AS "Highest · 最高"
            {_DAYS} {_LOW_VOLTAGE} AND ({_LOWEST} < {_LOW_V} OR {_HIGHEST} > {_HIGH_V})
            GROUP BY point, area_id ORDER BY 4, 1 LIMIT 50
            """,
            width=12,
            overrides=(
                named("Lowest · 最低", unit="volt", decimals=1, custom__cellOptions=COLOURED_TEXT,
                      thresholds=thresholds(RED, (_LOW_V, BLUE))),
                named("Highest · 最高", unit="volt", decimals=1, custom__cellOptions=COLOURED_TEXT,
                      thresholds=thresholds(BLUE, (_HIGH_V, RED))),
            ),
        ),
        table(
            "Unbalanced heads · 三相不平衡",
            "Highest over mean phase current at the head meter, worst day of the range. "
            "· 总表最大相电流与三相平均之比,取所选范围内最差日。",
            f"""
            SELECT point AS "Point · 计量点", area_id AS "Area · 台区",
                   max(100 * (greatest(current_l1_mean_a, current_l2_mean_a, current_l3_mean_a)
                              / nullif((current_l1_mean_a + current_l2_mean_a + current_l3_mean_a) / 3, 0) - 1))
                   AS "Unbalance · 不平衡度"
            {_DAYS} AND role = 'supply' GROUP BY point, area_id ORDER BY 3 DESC NULLS LAST LIMIT 50
            """,
            width=12,
            overrides=(named("Unbalance · 不平衡度", unit="percent", decimals=1),),
        ),
    ),
)  # fmt: skip
