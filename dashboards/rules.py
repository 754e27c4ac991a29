"""Grafana alert rules as code: what watches Gridloom itself, in Grafana's file-provisioning form.

The rules on load, loss and meters are Gridloom's own (``gridloom work``) and run without Grafana; here they are only
handed to Grafana's notifications. No rule asks for "now": a demo's clock is not the wall clock.
"""

from dataclasses import dataclass
from typing import Final

from dashboards.panels import DATASOURCE_UID, Json, Query

FOLDER: Final = "Gridloom"


@dataclass(frozen=True, slots=True)
class Rule:
    """Fires for each row of ``sql`` whose number is past ``limit``: (``gt`` or ``lt``, value). Text columns are labels.

    ``pending``: how long it must stay so, in Grafana's words (``5m``).
    """

    uid: str
    title: str
    summary: str
    severity: str
    sql: str
    limit: tuple[str, float]
    pending: str

    def json(self, uid: str) -> Json:
        window = {"from": 600, "to": 0}
        query = {**Query(self.sql).json(uid), "intervalMs": 1000, "maxDataPoints": 43_200}
        threshold = {
            "refId": "B",
            "type": "threshold",
            "datasource": {"type": "__expr__", "uid": "__expr__"},
            "expression": "A",
            "conditions": [{"evaluator": {"type": self.limit[0], "params": [self.limit[1]]}}],
        }
        return {
            "uid": self.uid,
            "title": self.title,
            "condition": "B",
            "data": [
                {"refId": "A", "relativeTimeRange": window, "datasourceUid": uid, "model": query},
                {"refId": "B", "relativeTimeRange": window, "datasourceUid": "__expr__", "model": threshold},
            ],
            "noDataState": "OK",
            "execErrState": "Error",
            "for": self.pending,
            "annotations": {"summary": self.summary},
            "labels": {"severity": self.severity, "service": "gridloom"},
            "isPaused": False,
        }


RULES: Final = (
    Rule(
        "gridloom-open-critical",
        "Critical alerts are open · 存在未关闭的严重告警",
        "{{ $labels.rule }}: {{ $values.A.Value }} open; see the dashboard Alerts and demand response",
        "critical",
        """
        SELECT rule, count(*) AS open FROM alert WHERE closed_at IS NULL AND severity = 'critical' GROUP BY rule
        """,
        ("gt", 0),
        "0s",
    ),
    Rule(
        "gridloom-meters-silent",
        "Meters are silent · 电表失联",
        "{{ $values.A.Value }} meters do not answer; see the dashboard Collection",
        "warning",
        """
        SELECT count(*) AS silent FROM alert WHERE closed_at IS NULL AND rule = 'meter_silent'
        """,
        ("gt", 0),
        "1m",
    ),
    Rule(
        "gridloom-completeness-low",
        "Collection success is low · 采集成功率偏低",
        "area {{ $labels.area_id }}: {{ $values.A.Value }} % of the newest day's intervals arrived, 98 % expected",
        "warning",
        """
        SELECT area_id, 100.0 * sum(received) / sum(expected) AS percent
        FROM completeness_area_day
        WHERE day = (SELECT max(day) FROM completeness_area_day) AND expected > 0
        GROUP BY area_id
        """,
        ("lt", 98),
        "15m",  # a sweep that is under way is not a gap
    ),
    Rule(
        "gridloom-gateway-offline",
        "A gateway is offline · 网关离线",
        "gateway {{ $labels.gateway }} is offline; look at its power and its link",
        "critical",
        """
        SELECT gateway, CASE WHEN online THEN 0 ELSE 1 END AS offline FROM gateway_status
        """,
        ("gt", 0),
        "2m",
    ),
    Rule(
        "gridloom-quarantine",
        "Rows wait in quarantine · 隔离区有待处理数据",
        "{{ $values.A.Value }} rows: {{ $labels.reason }}; run `gridloom quarantine` to see and replay them",
        "warning",
        """
        SELECT reason, sum(greatest(rows, 1)) AS rows FROM quarantine WHERE replayed_at IS NULL GROUP BY reason
        """,
        ("gt", 0),
        "5m",
    ),
)


def provisioning(uid: str = DATASOURCE_UID) -> Json:
    """The file Grafana reads from ``provisioning/alerting``."""
    group = {
        "orgId": 1,
        "name": "gridloom",
        "folder": FOLDER,
        "interval": "1m",
        "rules": [rule.json(uid) for rule in RULES],
    }
    return {"apiVersion": 1, "groups": [group]}
