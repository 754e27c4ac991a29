"""GET /v1/intervals: what billing pulls. Pages of one snapshot, as JSON or CSV."""

import base64
import binascii
import csv
import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse

from cloud.api.access import INTERVAL, Site, SiteNeeded, SpanAsked
from cloud.api.models import Interval, IntervalPage
from cloud.api.problems import Problem, bad_parameter
from protocols.quantities import Quality

LIMIT_MAX = 10_000
POINTS_MAX = 200
COLUMNS = tuple(Interval.model_fields)

router = APIRouter(tags=["billing"])


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the last page ended, and which version all pages of this answer are read at."""

    as_of: int
    point_id: int
    start: datetime

    def encode(self) -> str:
        document = json.dumps([self.as_of, self.point_id, int(self.start.timestamp())], separators=(",", ":"))
        return base64.urlsafe_b64encode(document.encode()).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        try:
            as_of, point_id, start_s = (int(part) for part in json.loads(base64.urlsafe_b64decode(text + "==")))
            return cls(as_of, point_id, datetime.fromtimestamp(start_s, UTC))
        except (ValueError, TypeError, OverflowError, OSError, binascii.Error) as error:
            raise bad_parameter(
                "cursor", "This is not a cursor.", "Use `next` of the page before, unchanged."
            ) from error


@dataclass(frozen=True, slots=True)
class _Point:
    point_id: int
    point: str


@dataclass(frozen=True, slots=True)
class _Version:
    version: int


@dataclass(frozen=True, slots=True)
class _Row:
    point_id: int
    start: datetime
    energy_import_wh: int | None
    energy_export_wh: int | None
    reactive_import_varh: int | None
    reactive_export_varh: int | None
    quality: int
    version: int

    def interval(self, point: str) -> Interval:
        return Interval(
            point=point,
            start=self.start,
            end=self.start + INTERVAL,
            energy_import_wh=self.energy_import_wh,
            energy_export_wh=self.energy_export_wh,
            reactive_import_varh=self.reactive_import_varh,
            reactive_export_varh=self.reactive_export_varh,
            quality=[flag.name or "" for flag in Quality(self.quality)],
            quality_bits=self.quality,
            version=self.version,
        )


async def find_points(site: Site, names: list[str]) -> dict[int, str]:
    """Identities of the named metering points. Raises Problem 404 with the names nobody knows."""
    found = await site.database.rows(
        _Point, "SELECT point_id, point FROM metering_point WHERE point = ANY(%(names)s)", {"names": names}
    )
    known = {row.point for row in found}
    if unknown := [name for name in names if name not in known]:
        raise Problem(
            HTTPStatus.NOT_FOUND,
            "unknown-point",
            detail=f"No metering point is called {', '.join(unknown[:5])}.",
            where="query: point",
            action="GET /v1/registry lists the points.",
        )
    return {row.point_id: row.point for row in found}


async def _snapshot(site: Site, as_of: int | None, cursor: Cursor | None) -> int:
    newest = await site.database.one(_Version, "SELECT coalesce(max(version), 0) AS version FROM interval_version")
    assert newest is not None
    asked = cursor.as_of if cursor else as_of
    if asked is None:
        return newest.version
    if not 0 <= asked <= newest.version:
        raise bad_parameter("as_of", f"Version {asked} is not closed yet.", f"The newest is {newest.version}.")
    return asked


@router.get(
    "/v1/intervals",
    response_model=IntervalPage,
    summary="Interval energy of metering points",
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
async def intervals(
    request: Request,
    site: SiteNeeded,
    span: SpanAsked,
    point: Annotated[list[str], Query(min_length=1, max_length=POINTS_MAX, description="repeat it for several points")],
    as_of: Annotated[int | None, Query(ge=0, description="values as they were in this version")] = None,
    cursor: Annotated[str | None, Query(max_length=200, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = 1000,
    format: Annotated[Literal["json", "csv"] | None, Query(description="wins over the Accept header")] = None,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> Response:
    """Half-open [from, to), by start. All pages of one answer show one version, even while corrections arrive.

    An interval no reading came for is absent, or there with nulls. As CSV the next page is in the `Link` header and the
    version in `X-As-Of`; quality flags are separated by spaces and a missing value is an empty field.
    """
    after = Cursor.decode(cursor) if cursor else None
    points = await find_points(site, point)
    version = await _snapshot(site, as_of, after)
    rows = await site.database.rows(
        _Row,
        """
        SELECT DISTINCT ON (point_id, start) point_id, start, energy_import_wh, energy_export_wh,
               reactive_import_varh, reactive_export_varh, quality, version
        FROM interval
        WHERE point_id = ANY(%(points)s) AND start >= %(from)s AND start < %(to)s AND version <= %(version)s
          AND (%(after_point)s::integer IS NULL
               OR (point_id, start) > (%(after_point)s::integer, %(after_start)s::timestamptz))
        ORDER BY point_id, start, version DESC
        LIMIT %(limit)s
        """,
        {
            "points": list(points),
            "from": span.start,
            "to": span.end,
            "version": version,
            "after_point": after.point_id if after else None,
            "after_start": after.start if after else None,
            "limit": limit + 1,
        },
    )
    more = len(rows) > limit
    rows = rows[:limit]
    following = Cursor(version, rows[-1].point_id, rows[-1].start).encode() if more else None
    found = [row.interval(points[row.point_id]) for row in rows]
    headers = {"X-As-Of": str(version), "Vary": "Accept"}
    if following:
        headers["Link"] = f'<{request.url.include_query_params(cursor=following)}>; rel="next"'
    if format == "csv" or (format is None and "text/csv" in accept):
        return Response(_csv(found), headers=headers, media_type="text/csv; charset=utf-8")
    page = IntervalPage(as_of=version, intervals=found, next=following)
    return JSONResponse(page.model_dump(mode="json"), headers=headers)


def _csv(found: list[Interval]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")  # RFC 4180
    writer.writerow(COLUMNS)
    for interval in found:
        row = interval.model_dump(mode="json")
        row["quality"] = " ".join(interval.quality)
        writer.writerow(row[name] for name in COLUMNS)
    return text.getvalue()
