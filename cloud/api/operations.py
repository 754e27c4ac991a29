"""What operators watch: ingest, alerts, events, demand response, gateways, and one line about it all."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, LiteralString

from fastapi import APIRouter, Query, Request

from cloud.api.access import SUBSTATION, Site, SiteNeeded, Span, SpanAsked, bounded
from cloud.api.grid import AreaAsked, known_area
from cloud.api.intervals import find_points
from cloud.api.models import (
    Alert,
    Alerts,
    DemandResponse,
    DemandResponses,
    Event,
    Events,
    Gateway,
    Gateways,
    Ingest,
    Status,
)

router = APIRouter(tags=["operations"])

LimitAsked = Annotated[int, Query(ge=1, le=5000)]


@dataclass(frozen=True, slots=True)
class _Line:
    gateways: int
    gateways_online: int
    points: int
    backfill_left: int
    expected: int
    received: int
    load_at: datetime | None
    load_w: float | None
    alerts_open: int
    alerts_critical: int
    demand_response: Literal["none", "planned", "running", "over"]
    rows: int
    revision: str


_LINE: Final[LiteralString] = """
    SELECT (SELECT count(*) FROM area) AS gateways,
           (SELECT count(*) FROM area JOIN gateway_status USING (gateway) WHERE online) AS gateways_online,
           (SELECT count(*) FROM metering_point) AS points,
           (SELECT coalesce(sum((status->>'backfill_left')::bigint), 0) FROM gateway_status) AS backfill_left,
           coalesce(c.expected, 0) AS expected, coalesce(c.received, 0) AS received,
           l.start AS load_at, l.supplied_wh * 4.0::double precision AS load_w,
           a.open AS alerts_open, a.critical AS alerts_critical,
           CASE WHEN d.running THEN 'running' WHEN d.planned THEN 'planned' WHEN d.newest IS NOT NULL THEN 'over'
                ELSE 'none' END AS demand_response,
           (SELECT coalesce(sum(rows), 0) FROM batch_count WHERE kind IN ('energy', 'power')) AS rows,
           concat_ws('.', (SELECT max(version) FROM interval_version), (SELECT max(run_id) FROM forecast_run),
                     extract(epoch FROM l.start)::bigint, c.expected, c.received, a.newest, a.open, a.closed,
                     d.measured, d.states,
                     (SELECT extract(epoch FROM max(computed_at))::bigint FROM loss_day)) AS revision
    FROM (SELECT sum(expected) AS expected, sum(received) AS received FROM completeness_area_day) c
    CROSS JOIN (SELECT count(*) AS open, count(*) FILTER (WHERE severity = 'critical') AS critical,
                       (SELECT max(alert_id) FROM alert) AS newest,
                       (SELECT extract(epoch FROM max(closed_at)) FROM alert) AS closed
                FROM alert WHERE closed_at IS NULL) a
    CROSS JOIN (SELECT bool_or(%(now)s >= start_at AND %(now)s < end_at AND state <> 'failed') AS running,
                       bool_or(%(now)s < start_at AND state <> 'failed') AS planned, max(start_at) AS newest,
                       count(measured_at) AS measured,
                       string_agg(left(state, 1), '' ORDER BY start_at, event_id) AS states
                FROM dr_event) d
    LEFT JOIN (SELECT start, supplied_wh FROM load WHERE series = %(substation)s AND supplied_wh IS NOT NULL
               ORDER BY start DESC LIMIT 1) l ON true
"""


async def status_of(site: Site) -> Status:
    now = site.clock.now()
    line = await site.database.one(_Line, _LINE, {"now": now, "substation": SUBSTATION})
    assert line is not None
    return Status(
        now=now,
        rate=site.clock.speed(),
        zone=site.zone.key,
        gateways=line.gateways,
        gateways_online=line.gateways_online,
        points=line.points,
        backfill_left=line.backfill_left,
        expected=line.expected,
        received=line.received,
        completeness=line.received / line.expected if line.expected else None,
        load_at=line.load_at,
        load_w=line.load_w,
        alerts_open=line.alerts_open,
        alerts_critical=line.alerts_critical,
        demand_response=line.demand_response,
        rows=line.rows,
        revision=line.revision,
    )


@router.get("/v1/status", summary="One line about everything")
async def status(site: SiteNeeded) -> Status:
    return await status_of(site)


@router.get("/v1/gateways", summary="What each gateway last said about itself")
async def gateways(site: SiteNeeded) -> Gateways:
    found = await site.database.rows(
        Gateway,
        """
        SELECT gateway, area_id AS area, coalesce(online, false) AS online, at, status->>'software' AS software,
               (status->>'meters')::integer AS meters, (status->>'queued_batches')::bigint AS queued_batches,
               (status->>'queued_bytes')::bigint AS queued_bytes, (status->>'backfill_left')::bigint AS backfill_left
        FROM area LEFT JOIN gateway_status USING (gateway) ORDER BY gateway
        """,
    )
    return Gateways(gateways=found)


# ---- ingest ---------------------------------------------------------------------------------------------------------


class IngestCount:
    """``/v1/ingest`` looks at every raw row's key of the days asked for, so that is done once at a time, and the usual
    answer, of the newest day, is kept for a few seconds."""

    KEEP_S: Final = 5.0

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._made: Ingest | None = None
        self._made_s = 0.0

    async def get(self, site: Site, span: Span, *, newest: bool) -> Ingest:
        """``newest``: ``span`` is what nobody chose."""
        async with self._lock:
            if newest and self._made is not None and site.clock.monotonic() - self._made_s <= self.KEEP_S:
                return self._made
            counted = await site.database.one(_Ingested, _INGESTED, {"from": span.start, "to": span.end})
            assert counted is not None
            found = counted.answer(span)
            if newest:
                self._made, self._made_s = found, site.clock.monotonic()
            return found


@dataclass(frozen=True, slots=True)
class _Ingested:
    rows_energy: int
    rows_power: int
    events: int
    batches: int
    quarantined: int
    first_recorded_at: datetime | None
    last_recorded_at: datetime | None
    duplicates_raw: int
    duplicates_interval: int

    def answer(self, span: Span) -> Ingest:
        first, last = self.first_recorded_at, self.last_recorded_at
        return Ingest(
            rows=self.rows_energy + self.rows_power,
            rows_energy=self.rows_energy,
            rows_power=self.rows_power,
            events=self.events,
            batches=self.batches,
            quarantined=self.quarantined,
            first_recorded_at=first,
            last_recorded_at=last,
            ingest_seconds=(last - first).total_seconds() if first and last else 0.0,
            duplicates=self.duplicates_raw + self.duplicates_interval,
            duplicates_raw=self.duplicates_raw,
            duplicates_raw_from=span.start,
            duplicates_raw_to=span.end,
            duplicates_interval=self.duplicates_interval,
        )


# Raw duplicates: the index (meter_id, at), asked meter by meter, finds the few instants with more than one row; only
# those look up their epoch, because the same instant under another epoch is legal. All else costs the same at any age.
_INGESTED: Final[LiteralString] = """
    WITH energy_again AS (
        SELECT meter_id, at FROM meter m CROSS JOIN LATERAL (
            SELECT at FROM energy_sample s WHERE s.meter_id = m.meter_id AND at >= %(from)s AND at < %(to)s
            GROUP BY at HAVING count(*) > 1) again
    ), power_again AS (
        SELECT meter_id, at FROM meter m CROSS JOIN LATERAL (
            SELECT at FROM power_sample s WHERE s.meter_id = m.meter_id AND at >= %(from)s AND at < %(to)s
            GROUP BY at HAVING count(*) > 1) again
    ), surplus AS (
        SELECT count(*) - 1 AS n
        FROM energy_again a JOIN LATERAL (
            SELECT batch_id FROM energy_sample s WHERE (s.meter_id, s.at) = (a.meter_id, a.at)) s ON true
        JOIN batch USING (batch_id) GROUP BY gateway, epoch, meter_id, at
        UNION ALL
        SELECT count(*) - 1 AS n
        FROM power_again a JOIN LATERAL (
            SELECT batch_id FROM power_sample s WHERE (s.meter_id, s.at) = (a.meter_id, a.at)) s ON true
        JOIN batch USING (batch_id) GROUP BY gateway, epoch, meter_id, at
    )
    SELECT b.*,
           (SELECT coalesce(sum(greatest(rows, 1)), 0) FROM quarantine WHERE replayed_at IS NULL) AS quarantined,
           (SELECT coalesce(sum(n), 0) FROM surplus) AS duplicates_raw,
           (SELECT count(DISTINCT (point_id, start)) FROM interval
            WHERE date_bin('15 min', start, timestamptz '2000-01-01 00:00Z') <> start)
           + (SELECT count(*) FROM load WHERE meters_received > meters_expected) AS duplicates_interval
    FROM (SELECT coalesce(sum(rows) FILTER (WHERE kind = 'energy'), 0) AS rows_energy,
                 coalesce(sum(rows) FILTER (WHERE kind = 'power'), 0) AS rows_power,
                 coalesce(sum(rows) FILTER (WHERE kind = 'events'), 0) AS events,
                 coalesce(sum(batches), 0) AS batches, min(first_recorded_at) AS first_recorded_at,
                 max(last_recorded_at) AS last_recorded_at
          FROM batch_count) b
"""


def ingest_route(count: IngestCount) -> APIRouter:
    """The route of one process's count."""
    route = APIRouter(tags=["operations"])

    @route.get("/v1/ingest", summary="What was stored, set aside, and whether anything is there twice")
    async def ingest(request: Request, site: SiteNeeded, span: SpanAsked) -> Ingest:
        """Counts are of all that was ever stored. Rows that are there twice are looked for among the instants in
        [from, to), by default the last day, 100 days at most: looking costs as much as reading their keys. Batches
        entered more than 63 days ago are not told apart any more, so a duplicate must be looked for before.

        `ingest_seconds` runs from the first batch recorded to the last. Without `from` and `to` up to 5 s old.
        """
        chosen = {"from", "to"} & request.query_params.keys()
        return await count.get(site, bounded(span), newest=not chosen)

    return route


# ---- alerts, events, demand response --------------------------------------------------------------------------------


@router.get("/v1/alerts", summary="Alerts, newest first")
async def alerts(
    site: SiteNeeded,
    state: Annotated[Literal["open", "closed", "all"], Query()] = "all",
    rule: Annotated[str | None, Query(description="e.g. loss_out_of_range")] = None,
    subject: Annotated[str | None, Query(description="e.g. area:A1")] = None,
    limit: LimitAsked = 200,
) -> Alerts:
    found = await site.database.rows(
        Alert,
        """
        SELECT alert_id AS alert, rule, subject, severity, opened_at, closed_at, message_en, message_zh, evidence
        FROM alert
        WHERE (%(state)s = 'all' OR (closed_at IS NULL) = (%(state)s = 'open'))
          AND (%(rule)s::text IS NULL OR rule = %(rule)s) AND (%(subject)s::text IS NULL OR subject = %(subject)s)
        ORDER BY opened_at DESC, alert_id DESC LIMIT %(limit)s
        """,
        {"state": state, "rule": rule, "subject": subject, "limit": limit},
    )
    return Alerts(alerts=found)


@router.get("/v1/events", summary="What meters and gateways reported about themselves, newest first")
async def events(
    site: SiteNeeded,
    span: SpanAsked,
    kind: Annotated[str | None, Query(description="e.g. clock_drift")] = None,
    gateway: Annotated[str | None, Query()] = None,
    point: Annotated[str | None, Query()] = None,
    limit: LimitAsked = 500,
) -> Events:
    if point:
        await find_points(site, [point])
    found = await site.database.rows(
        Event,
        """
        SELECT e.gateway, p.point, e.meter, e.at, e.kind, e.detail
        FROM event e
        LEFT JOIN installation i ON i.meter_id = e.meter_id AND e.at >= i.valid_from AND e.at < i.valid_to
        LEFT JOIN metering_point p USING (point_id)
        WHERE e.at >= %(from)s AND e.at < %(to)s AND (%(kind)s::text IS NULL OR e.kind = %(kind)s)
          AND (%(gateway)s::text IS NULL OR e.gateway = %(gateway)s)
          AND (%(point)s::text IS NULL OR p.point = %(point)s)
        ORDER BY e.at DESC LIMIT %(limit)s
        """,
        {"from": span.start, "to": span.end, "kind": kind, "gateway": gateway, "point": point, "limit": limit},
    )
    return Events(events=found)


@router.get("/v1/dr", summary="Demand-response events and what they saved, newest first")
async def demand_response(
    site: SiteNeeded,
    area: AreaAsked = None,
    state: Annotated[Literal["planned", "sent", "done", "failed", "measured"] | None, Query()] = None,
    limit: LimitAsked = 200,
) -> DemandResponses:
    """`reduction_kwh` is the baseline less the actual energy of the shed points, once it has been measured."""
    await known_area(site, area)
    found = await site.database.rows(
        DemandResponse,
        """
        SELECT d.event_id AS event, area_id AS area, alert_id AS alert, start_at AS start, end_at AS "end",
               ARRAY(SELECT point FROM metering_point p WHERE p.point_id = ANY(d.points) ORDER BY point) AS points,
               state, baseline_wh / 1000 AS baseline_kwh, actual_wh / 1000 AS actual_kwh,
               reduction_wh / 1000 AS reduction_kwh, method, measured_at, c.outcome
        FROM dr_event d
        LEFT JOIN LATERAL (SELECT outcome FROM command c WHERE c.event_id = d.event_id
                           ORDER BY issued_at DESC LIMIT 1) c ON true
        WHERE (%(area)s::text IS NULL OR area_id = %(area)s) AND (%(state)s::text IS NULL OR state = %(state)s)
        ORDER BY start_at DESC, event_id LIMIT %(limit)s
        """,
        {"area": area, "state": state, "limit": limit},
    )
    return DemandResponses(events=found, reduction_kwh=sum(event.reduction_kwh or 0.0 for event in found))
