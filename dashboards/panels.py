"""Grafana's classic dashboard schema, as far as we use it: queries, panels, variables, one dashboard.

Field names follow Grafana 12 and 13 (``schemaVersion`` 41; both read it, 13 converts it as it loads).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

Json = Mapping[str, object]

SCHEMA_VERSION: Final = 41
DATASOURCE_TYPE: Final = "grafana-postgresql-datasource"
DATASOURCE_UID: Final = "gridloom"
COLUMNS: Final = 24  # the width of Grafana's grid
TAG: Final = "gridloom"

GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "#8e8e8e"


def datasource(uid: str) -> Json:
    return {"type": DATASOURCE_TYPE, "uid": uid}


@dataclass(frozen=True, slots=True)
class Query:
    """``series``: the first column is the time, a text column named ``metric`` tells lines apart; else a table."""

    sql: str
    series: bool = False

    def json(self, uid: str, ref_id: str = "A") -> Json:
        return {
            "datasource": datasource(uid),
            "editorMode": "code",
            "format": "time_series" if self.series else "table",
            "rawQuery": True,
            "rawSql": _tidy(self.sql),
            "refId": ref_id,
        }


def thresholds(first: str, *steps: tuple[float, str]) -> Json:
    """``first`` is the colour below all steps; a step's colour holds from its value up."""
    rest = [{"color": color, "value": value} for value, color in steps]
    return {"mode": "absolute", "steps": [{"color": first, "value": None}, *rest]}


def mapping(texts: Mapping[str, tuple[str, str]]) -> Json:
    """Raw value → (shown text, colour)."""
    shown = {
        value: {"text": text, "color": color, "index": index}
        for index, (value, (text, color)) in enumerate(texts.items())
    }
    return {"type": "value", "options": shown}


def named(name: str, **properties: object) -> Json:
    """Field options of the column called ``name``; ``__`` in a key stands for the dot of ``custom.…``."""
    options = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": options}


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. ``width`` in columns of 24, ``height`` in rows of about 38 px."""

    kind: str
    title: str
    description: str
    queries: tuple[Query, ...]
    width: int
    height: int
    options: Json
    defaults: Json
    overrides: tuple[Json, ...] = ()

    def json(self, number: int, x: int, y: int, uid: str) -> Json:
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": datasource(uid),
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "targets": [query.json(uid, chr(ord("A") + i)) for i, query in enumerate(self.queries)],
            "options": self.options,
            "fieldConfig": {"defaults": self.defaults, "overrides": list(self.overrides)},
        }


_LEGEND: Final = {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True}
_TOOLTIP: Final = {"hideZeros": False, "mode": "multi", "sort": "none"}


def stat(title: str, description: str, sql: str, *, unit: str = "none", width: int = 4, height: int = 4,
         steps: Json | None = None, decimals: int | None = None, overrides: Sequence[Json] = ()) -> Panel:  # fmt: skip
    """The newest value, large."""
    defaults: dict[str, object] = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": steps or thresholds(BLUE),
        "noValue": "–",
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "showPercentChange": False,
        "textMode": "auto",
        "wideLayout": True,
    }
    return Panel("stat", title, description, (Query(sql),), width, height, options, defaults, tuple(overrides))


def lines(title: str, description: str, *sql: str, unit: str, width: int = 24, height: int = 10, style: str = "line",
          stacked: bool = False, overrides: Sequence[Json] = ()) -> Panel:  # fmt: skip
    """Lines or bars over time. A gap stays a gap: a missing value is not drawn over."""
    custom = {
        "axisPlacement": "auto",
        "drawStyle": style,
        "fillOpacity": 60 if style == "bars" else 0,
        "lineInterpolation": "linear",
        "lineWidth": 1 if style == "bars" else 2,
        "pointSize": 5,
        "showPoints": "auto" if style == "line" else "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "off"},
    }
    defaults = {"unit": unit, "color": {"mode": "palette-classic"}, "thresholds": thresholds(GREEN), "custom": custom}
    queries = tuple(Query(text, series=True) for text in sql)
    options = {"legend": _LEGEND, "tooltip": _TOOLTIP}
    return Panel("timeseries", title, description, queries, width, height, options, defaults, tuple(overrides))


def bars(title: str, description: str, sql: str, *, unit: str, category: str, width: int = 12, height: int = 10,
         overrides: Sequence[Json] = ()) -> Panel:  # fmt: skip
    """One stacked bar per row of the table; ``category`` is the column that names it."""
    options = {
        "barRadius": 0,
        "barWidth": 0.8,
        "fullHighlight": False,
        "groupWidth": 0.7,
        "legend": _LEGEND,
        "orientation": "auto",
        "showValue": "auto",
        "stacking": "normal",
        "tooltip": _TOOLTIP,
        "xField": category,
        "xTickLabelRotation": 0,
        "xTickLabelSpacing": 0,
    }
    custom = {"axisPlacement": "auto", "fillOpacity": 80, "lineWidth": 1, "thresholdsStyle": {"mode": "off"}}
    defaults = {"unit": unit, "color": {"mode": "palette-classic"}, "thresholds": thresholds(GREEN), "custom": custom}
    return Panel("barchart", title, description, (Query(sql),), width, height, options, defaults, tuple(overrides))


def gauges(title: str, description: str, sql: str, *, unit: str, low: float, high: float, steps: Json,
           width: int = 12, height: int = 10, decimals: int = 1) -> Panel:  # fmt: skip
    """One horizontal bar per row: a text column names it, the number fills it."""
    options = {
        "displayMode": "lcd",
        "legend": {**_LEGEND, "showLegend": False},
        "maxVizHeight": 300,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "auto",
        "orientation": "horizontal",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": True},
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
    }
    defaults = {
        "unit": unit,
        "min": low,
        "max": high,
        "decimals": decimals,
        "color": {"mode": "thresholds"},
        "thresholds": steps,
    }
    return Panel("bargauge", title, description, (Query(sql),), width, height, options, defaults)


def states(title: str, description: str, sql: str, texts: Mapping[str, tuple[str, str]], *, width: int = 24,
           height: int = 8) -> Panel:  # fmt: skip
    """A coloured ribbon per line; values are small integers, named and coloured by ``texts``."""
    options = {
        "alignValue": "left",
        "legend": _LEGEND,
        "mergeValues": True,
        "rowHeight": 0.85,
        "showValue": "auto",
        "tooltip": _TOOLTIP,
    }
    defaults = {
        "color": {"mode": "thresholds"},
        "thresholds": thresholds(GREY),
        "mappings": [mapping(texts)],
        "custom": {"fillOpacity": 75, "lineWidth": 0, "spanNulls": False},
    }
    return Panel("state-timeline", title, description, (Query(sql, series=True),), width, height, options, defaults)


def table(title: str, description: str, sql: str, *, width: int = 24, height: int = 9,
          overrides: Sequence[Json] = ()) -> Panel:  # fmt: skip
    options = {"cellHeight": "sm", "showHeader": True}
    defaults = {
        "color": {"mode": "thresholds"},
        "thresholds": thresholds("text"),
        "custom": {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True, "inspect": False},
    }
    return Panel("table", title, description, (Query(sql),), width, height, options, defaults, tuple(overrides))


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard. ``sql`` gives the columns ``__value`` and ``__text``."""

    name: str
    label: str
    sql: str
    many: bool = False

    def json(self, uid: str) -> Json:
        every = {"text": ["All"], "value": ["$__all"]}
        return {
            "name": self.name,
            "type": "query",
            "label": self.label,
            "datasource": datasource(uid),
            "query": _tidy(self.sql),
            "definition": _tidy(self.sql),
            "refresh": 1,  # when the dashboard loads
            "sort": 0,  # as the query orders them
            "multi": self.many,
            "includeAll": self.many,
            "current": every if self.many else {},
            "options": [],
            "regex": "",
            "hide": 0,
        }


@dataclass(frozen=True, slots=True)
class Marks:
    """Annotations drawn over every panel; ``sql`` gives ``time``, ``timeend`` and ``text``."""

    name: str
    color: str
    sql: str

    def json(self, uid: str) -> Json:
        query = Query(self.sql).json(uid, "Anno")
        return {
            "name": self.name,
            "datasource": datasource(uid),
            "enable": True,
            "hide": False,
            "iconColor": self.color,
            "target": query,
        }


@dataclass(frozen=True, slots=True)
class Dashboard:
    """``since`` and ``until`` are Grafana's relative times, e.g. ``now-2d``."""

    uid: str
    title: str
    description: str
    panels: tuple[Panel, ...]
    since: str
    until: str = "now"
    variables: tuple[Variable, ...] = ()
    marks: tuple[Marks, ...] = field(default=())

    def json(self, zone: str, uid: str = DATASOURCE_UID) -> Json:
        """``zone``: the site's time zone, which says where a business day starts; ``uid``: of the data source."""
        return {
            "id": None,
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "timezone": zone,
            "time": {"from": self.since, "to": self.until},
            "timepicker": {},
            "refresh": "30s",
            "links": [
                {
                    "asDropdown": False,
                    "icon": "external link",
                    "includeVars": False,
                    "keepTime": False,
                    "tags": [TAG],
                    "targetBlank": False,
                    "title": "Gridloom",
                    "type": "dashboards",
                }
            ],
            "templating": {"list": [_zone_constant(zone), *(variable.json(uid) for variable in self.variables)]},
            "annotations": {"list": [mark.json(uid) for mark in self.marks]},
            "panels": self._placed(uid),
        }

    def _placed(self, uid: str) -> list[Json]:
        """Panels from left to right; a line ends where the next panel does not fit."""
        placed: list[Json] = []
        x = y = line_height = 0
        for number, panel in enumerate(self.panels, start=1):
            if x + panel.width > COLUMNS:
                x, y, line_height = 0, y + line_height, 0
            placed.append(panel.json(number, x, y, uid))
            x, line_height = x + panel.width, max(line_height, panel.height)
        return placed


def _zone_constant(zone: str) -> Json:
    """Hidden from the viewer; SQL asks for it as ``${zone:sqlstring}``."""
    value = {"text": zone, "value": zone}
    return {"name": "zone", "type": "constant", "query": zone, "current": value, "hide": 2, "skipUrlSync": True}


def _tidy(sql: str) -> str:
    """Without the indentation the Python source gave it."""
    return "\n".join(line.strip() for line in sql.strip().splitlines())
