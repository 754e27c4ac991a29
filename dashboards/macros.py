"""What Grafana does to a panel's SQL before PostgreSQL sees it, so that a test can run the very text of a dashboard.

Variables are put in by the browser, macros by the PostgreSQL data source (``macros.go`` of Grafana). Only the forms
our dashboards use are known; anything else is an error, so that nothing reaches Grafana untested.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

_VARIABLE = re.compile(r"\$\{(\w+):sqlstring\}")
# As in Grafana: the arguments end at the first closing parenthesis, so none may hold one.
_MACRO = re.compile(r"\$(__[A-Za-z]+)\(([^)]*)\)")
_INTERVAL = re.compile(r"'?(\d+)([smhd])'?")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def expand(sql: str, variables: Mapping[str, str | Sequence[str]], start: datetime, end: datetime) -> str:
    """``sql`` as PostgreSQL gets it for the time range [start, end].

    A variable with several values becomes a comma-separated list of quoted strings. Raises ValueError for an unknown
    variable or macro, and where a ``$`` is left over.
    """

    def variable(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise ValueError(f"{match[0]}: no such variable; known are {', '.join(variables)}")
        value = variables[match[1]]
        values = [value] if isinstance(value, str) else value
        return ",".join(_quoted(text) for text in values)

    def macro(match: re.Match[str]) -> str:
        return _macro(match[1], [text.strip() for text in match[2].split(",")], start, end)

    expanded = _MACRO.sub(macro, _VARIABLE.sub(variable, sql))
    if "$" in expanded:
        raise ValueError(f"a variable or macro is left over: {expanded[expanded.index('$') :][:60]}")
    return expanded


def _macro(name: str, arguments: list[str], start: datetime, end: datetime) -> str:
    match name, arguments:
        case "__timeFrom", [""]:
            return _moment(start)
        case "__timeTo", [""]:
            return _moment(end)
        case "__timeFilter", [column]:
            return f"{column} BETWEEN {_moment(start)} AND {_moment(end)}"
        case "__timeGroupAlias", [column, interval] if size := _INTERVAL.fullmatch(interval):
            width_s = int(size[1]) * _UNIT_S[size[2]]
            return f'floor(extract(epoch from {column})/{width_s})*{width_s} AS "time"'
    raise ValueError(f"${name}({', '.join(arguments)}): not a macro our dashboards use")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _moment(moment: datetime) -> str:
    return _quoted(moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
