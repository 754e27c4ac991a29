"""What several dashboards share.

Times are the site's, which a demo simulates: what asks "now" takes the newest row, not the wall clock, and a range that
shows nothing is recognised by "Data until". Daily figures stand at the start of their business day in the site's zone.
"""

from typing import Final

from dashboards.panels import PURPLE, Marks, Variable, stat

AREA: Final = Variable(
    "area",
    "Area · 台区",
    """
    SELECT area_id AS __value, area_id || ' ' || name_en || ' · ' || name_zh AS __text
    FROM area ORDER BY area_id
    """,
    many=True,
)


DATA_UNTIL: Final = stat(
    "Data until · 数据截至",
    "End of the newest interval with a load, on the site's clock. If it lies outside the chosen range, the range is "
    "wrong, not the data. · 最新负荷区间的结束时间(站点时钟)。若不在所选范围内,请调整时间范围。",
    """
    SELECT (extract(epoch FROM start) + 900) * 1000 AS "Data until · 数据截至"
    FROM load WHERE supplied_wh IS NOT NULL ORDER BY start DESC LIMIT 1
    """,
    unit="dateTimeAsLocal",
)


# Demand response as a shade over every panel.
SHED: Final = Marks(
    "Demand response · 需求响应",
    PURPLE,
    """
    SELECT start_at AS time, end_at AS timeend, event_id || ' ' || area_id || ' ' || state AS text
    FROM dr_event WHERE start_at <= $__timeTo() AND end_at >= $__timeFrom()
    """,
)


COLOURED_TEXT: Final = {"type": "color-text"}
COLOURED_CELL: Final = {"type": "color-background", "mode": "basic"}
