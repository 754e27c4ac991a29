"""Collection · 采集: do the meters answer, and did everything arrive?"""

from typing import Final

from dashboards.panels import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    YELLOW,
    Dashboard,
    gauges,
    lines,
    mapping,
    named,
    stat,
    table,
    thresholds,
)
from dashboards.shared import AREA, COLOURED_TEXT, DATA_UNTIL

_COMPLETE_PERCENT: Final = thresholds(RED, (95, ORANGE), (98, YELLOW), (99.5, GREEN))
# The reasons of `cloud.jobs.completeness`.
_REASONS: Final = mapping(
    {
        "quarantined": ("quarantined · 已隔离", ORANGE),
        "evicted": ("gateway queue full · 网关队列溢出", ORANGE),
        "clock": ("clock was set · 对时跳变", YELLOW),
        "meter_silent": ("meter silent · 电表失联", RED),
        "gateway_offline": ("gateway offline · 网关离线", RED),
        "meter_refuses": ("meter refuses · 电表拒绝", RED),
        "not_in_memory": ("not in the meter's memory · 电表内已无数据", GREY),
        "backfilling": ("being backfilled · 补采中", BLUE),
        "unknown": ("unknown · 原因不明", PURPLE),
    }
)


COLLECTION: Final = Dashboard(
    uid="gridloom-collection",
    title="Collection · 采集",
    description="Do the meters answer, and did everything arrive? · 电表是否应答,数据是否完整到达?",
    since="now-7d/d",
    variables=(AREA,),
    panels=(
        stat(
            "Collection success · 采集成功率",
            "Received of expected 15-minute intervals, whole days of the chosen range. "
            "· 所选日期内实收与应收 15 分钟区间之比。",
            """
            SELECT 100.0 * sum(received) / nullif(sum(expected), 0) AS "Collection success · 采集成功率"
            FROM completeness_area_day
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            """,
            unit="percent",
            decimals=2,
            steps=_COMPLETE_PERCENT,
        ),
        stat(
            "Intervals missing · 缺失区间",
            "Expected and not received in the chosen range. · 所选范围内应收未收的区间数。",
            """
            SELECT coalesce(sum(expected - received), 0) AS "Intervals missing · 缺失区间"
            FROM completeness_area_day
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            """,
            steps=thresholds(GREEN, (1, YELLOW)),
        ),
        stat(
            "Meters silent · 失联电表",
            "Open alerts of the rule meter_silent. · 未关闭的电表失联告警数。",
            """
            SELECT count(*) AS "Meters silent · 失联电表" FROM alert WHERE rule = 'meter_silent' AND closed_at IS NULL
            """,
            steps=thresholds(GREEN, (1, RED)),
        ),
        stat(
            "Gateways offline · 离线网关",
            "Gateways of the registry that said goodbye, or were never heard. · 档案中已离线或从未上线的网关。",
            """
            SELECT count(*) AS "Gateways offline · 离线网关"
            FROM area LEFT JOIN gateway_status USING (gateway) WHERE NOT coalesce(online, false)
            """,
            steps=thresholds(GREEN, (1, RED)),
        ),
        stat(
            "Rows in quarantine · 隔离数据行",
            "Set aside and not replayed yet: unknown meters, impossible values, undecodable messages. "
            "`gridloom quarantine` shows and replays them. · 已隔离、尚未重放的数据行。",
            """
            SELECT coalesce(sum(greatest(rows, 1)), 0) AS "Rows in quarantine · 隔离数据行"
            FROM quarantine WHERE replayed_at IS NULL
            """,
            steps=thresholds(GREEN, (1, ORANGE)),
        ),
        DATA_UNTIL,
        gauges(
            "Collection success by area · 各台区采集成功率",
            "Received of expected intervals in the chosen range. · 所选范围内实收与应收区间之比。",
            """
            SELECT area_id || ' ' || name_en || ' · ' || name_zh AS area,
                   100.0 * sum(received) / nullif(sum(expected), 0) AS "Collection success · 采集成功率"
            FROM completeness_area_day JOIN area USING (area_id)
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            GROUP BY area_id, name_en, name_zh ORDER BY area_id
            """,
            unit="percent",
            low=90,
            high=100,
            decimals=2,
            steps=_COMPLETE_PERCENT,
        ),
        gauges(
            "Collection success by gateway · 各网关采集成功率",
            "Received of expected intervals in the chosen range, of the points each gateway polls; the worst first. "
            "· 所选范围内各网关所采计量点的实收与应收区间之比,最差者在前。",
            """
            SELECT gateway, 100.0 * sum(received) / nullif(sum(expected), 0) AS "Collection success · 采集成功率"
            FROM completeness_area_day
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            GROUP BY gateway ORDER BY 2, 1 LIMIT 30
            """,
            unit="percent",
            low=90,
            high=100,
            decimals=2,
            steps=_COMPLETE_PERCENT,
        ),
        lines(
            "Collection success by day · 每日采集成功率",
            "One line per area. · 每个台区一条线。",
            """
            SELECT day::timestamp AT TIME ZONE ${zone:sqlstring} AS time, area_id AS metric,
                   100.0 * sum(received) / nullif(sum(expected), 0) AS "success"
            FROM completeness_area_day
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            GROUP BY day, area_id ORDER BY day, area_id
            """,
            unit="percent",
            width=12,
        ),
        lines(
            "Intervals missing by reason · 按原因的缺失区间",
            "Per business day: why they are not there, as far as is known. · 按日统计缺失区间及其已知原因。",
            """
            SELECT day::timestamp AT TIME ZONE ${zone:sqlstring} AS time, reason AS metric,
                   sum(intervals) AS "missing"
            FROM missing_area_day
            WHERE area_id IN (${area:sqlstring}) AND $__timeFilter(day::timestamp AT TIME ZONE ${zone:sqlstring})
            GROUP BY day, reason ORDER BY day, reason
            """,
            unit="none",
            style="bars",
            stacked=True,
            width=12,
        ),
        table(
            "Missing ranges · 缺失时段",
            "The newest first: which point, since when, and why. · 最近者在前:哪个计量点、从何时起、何种原因。",
            """
            SELECT point AS "Point · 计量点", area_id AS "Area · 台区", start_at AS "From · 起", end_at AS "To · 止",
                   (extract(epoch FROM end_at - start_at) / 900)::integer AS "Intervals · 区间",
                   reason AS "Reason · 原因"
            FROM gap JOIN metering_point USING (point_id)
            WHERE area_id IN (${area:sqlstring})
              AND day > (($__timeFrom()::timestamptz - interval '1 us') AT TIME ZONE ${zone:sqlstring})::date
              AND day <= ($__timeTo()::timestamptz AT TIME ZONE ${zone:sqlstring})::date
            ORDER BY start_at DESC, point LIMIT 200
            """,
            width=12,
            overrides=(named("Reason · 原因", mappings=[_REASONS]),),
        ),
        table(
            "Metering points with gaps · 有缺口的计量点",
            "The worst first; where to send someone. · 缺口最多者在前,供派工参考。",
            """
            SELECT point AS "Point · 计量点", area_id AS "Area · 台区",
                   100.0 * sum(received) / nullif(sum(expected), 0) AS "Success · 成功率",
                   sum(expected - received) AS "Missing · 缺失",
                   (SELECT max(last_energy_at) FROM installation JOIN meter_state USING (meter_id)
                    WHERE installation.point_id = metering_point.point_id) AS "Last reading · 最近读数"
            FROM completeness_day JOIN metering_point USING (point_id)
            WHERE area_id IN (${area:sqlstring})
              AND day > (($__timeFrom()::timestamptz - interval '1 us') AT TIME ZONE ${zone:sqlstring})::date
              AND day <= ($__timeTo()::timestamptz AT TIME ZONE ${zone:sqlstring})::date
            GROUP BY metering_point.point_id, point, area_id HAVING sum(received) < sum(expected)
            ORDER BY 3, 1 LIMIT 50
            """,
            width=12,
            overrides=(
                named("Success · 成功率", unit="percent", decimals=1, thresholds=_COMPLETE_PERCENT,
                      custom__cellOptions=COLOURED_TEXT),
            ),
        ),
        table(
            "Clock offset of meters · 电表时钟偏差",
            "Meter's clock less gateway's; positive: the meter is fast. · 电表时钟减网关时钟,正值表示电表偏快。",
            """
            SELECT point AS "Point · 计量点", area_id AS "Area · 台区", serial AS "Meter · 表号",
                   clock_offset_s AS "Offset · 偏差", clock_read_at AS "Read · 读取时间"
            FROM meter_state JOIN meter USING (meter_id) JOIN installation USING (meter_id)
            JOIN metering_point USING (point_id)
            WHERE clock_offset_s IS NOT NULL AND valid_to = 'infinity' AND area_id IN (${area:sqlstring})
            ORDER BY abs(clock_offset_s) DESC LIMIT 20
            """,
            width=12,
            overrides=(named("Offset · 偏差", unit="s", decimals=0),),
        ),
        table(
            "Gateways · 网关",
            "What each gateway last said about itself. · 各网关最近一次自报状态。",
            """
            SELECT gateway AS "Gateway · 网关", area_id AS "Area · 台区",
                   CASE WHEN online THEN 'online' ELSE 'offline' END AS "State · 状态",
                   at AS "Said · 上报时间", (status->>'meters')::bigint AS "Meters · 电表",
                   (status->>'queued_batches')::bigint AS "Queued batches · 待发批次",
                   (status->>'queued_bytes')::bigint AS "Queued · 待发字节",
                   (status->>'backfill_left')::bigint AS "Backfill left · 待补采",
                   status->>'software' AS "Software · 软件版本"
            FROM area LEFT JOIN gateway_status USING (gateway)
            WHERE area_id IN (${area:sqlstring}) ORDER BY gateway
            """,
            width=14,
            overrides=(
                named("Queued · 待发字节", unit="bytes"),
                named(
                    "State · 状态",
                    custom__cellOptions=COLOURED_TEXT,
                    mappings=[mapping({"online": ("online · 在线", GREEN), "offline": ("offline · 离线", RED)})],
                ),
            ),
        ),
        table(
            "Quarantine · 隔离区",
            "Why rows were set aside; nothing is dropped silently. · 数据被隔离的原因;不会静默丢弃。",
            """
            SELECT reason AS "Reason · 原因", gateway AS "Gateway · 网关", count(*) AS "Entries · 条目",
                   sum(greatest(rows, 1)) AS "Rows · 行", max(recorded_at) AS "Newest · 最近"
            FROM quarantine WHERE replayed_at IS NULL
            GROUP BY reason, gateway ORDER BY sum(greatest(rows, 1)) DESC LIMIT 50
            """,
            width=10,
        ),
    ),
)  # fmt: skip
