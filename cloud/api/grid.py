"""Load, forecast and loss: the derived tables, which are small. No route here reads raw samples."""

from dataclasses import dataclass
from datetime import date, datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, JsonValue

from cloud.api.access import SUBSTATION, DaysAsked, Site, SiteNeeded, SpanAsked, bounded
from cloud.api.models import (
    Accuracy,
    Area,
    Feeder,
    ForecastAccuracy,
    ForecastSeries,
    ForecastValue,
    Load,
    LoadSeries,
    LossDay,
    Losses,
    LossTotal,
    Point,
    Registry,
    Searched,
    Suspect,
    Suspects,
)
from cloud.api.problems import Problem

router = APIRouter(tags=["grid"])

SeriesAsked = Annotated[str, Query(description="substation:S1, feeder:… or area:…", examples=["area:A1"])]
AreaAsked = Annotated[str | None, Query(description="default: all areas")]


@dataclass(frozen=True, slots=True)
class _Known:
    capacity_w: float | None


async def capacity_of(site: Site, series: str) -> float | None:
    """Operating limit in W; of a substation, the sum of its feeders'. Raises Problem 404 for a series nobody knows."""
    known = await site.database.one(
        _Known,
        """
        SELECT capacity_w FROM area WHERE 'area:' || area_id = %(series)s
        UNION ALL SELECT capacity_w FROM feeder WHERE 'feeder:' || feeder_id = %(series)s
        UNION ALL SELECT (SELECT sum(capacity_w) FROM feeder) WHERE %(series)s = %(substation)s
        """,
        {"series": series, "substation": SUBSTATION},
    )
    if known is None:
        raise Problem(
            HTTPStatus.NOT_FOUND,
            "unknown-series",
            detail=f"There is no series {series}.",
            where="query: series",
            action=f"Use {SUBSTATION}, feeder:ID or area:ID; GET /v1/registry lists the feeders and areas.",
        )
    return known.capacity_w


async def known_area(site: Site, area: str | None) -> None:
    """Raises Problem 404 for an area nobody knows; None means all of them."""
    if (
        area
        and await site.database.one(_Known, "SELECT capacity_w FROM area WHERE area_id = %(area)s", {"area": area})
        is None
    ):
        raise Problem(
            HTTPStatus.NOT_FOUND,
            "unknown-area",
            detail=f"There is no area {area}.",
            where="query: area",
            action="GET /v1/registry lists the areas.",
        )


@router.get("/v1/registry", summary="Feeders, areas and metering points")
async def registry(site: SiteNeeded) -> Registry:
    return Registry(
        feeders=await site.database.rows(
            Feeder, "SELECT feeder_id AS feeder, name_en, name_zh, capacity_w FROM feeder ORDER BY feeder_id"
        ),
        areas=await site.database.rows(
            Area,
            """
            SELECT area_id AS area, feeder_id AS feeder, name_en, name_zh, gateway, capacity_w, loss_low_percent,
                   loss_high_percent
            FROM area ORDER BY area_id
            """,
        ),
        points=await site.database.rows(
            Point,
            """
            SELECT point, area_id AS area, role, phases, controllable, serial, protocol, i.gateway, i.wire_name
            FROM metering_point p
            LEFT JOIN installation i ON i.point_id = p.point_id AND %(now)s >= i.valid_from AND %(now)s < i.valid_to
            LEFT JOIN meter m USING (meter_id)
            ORDER BY point
            """,
            {"now": site.clock.now()},
        ),
    )


@router.get("/v1/loads", summary="Load of a substation, feeder or area")
async def loads(site: SiteNeeded, series: SeriesAsked, span: SpanAsked) -> LoadSeries:
    """15-minute intervals with start in [from, to). Positive is import."""
    bounded(span)
    return LoadSeries(
        series=series,
        capacity_w=await capacity_of(site, series),
        loads=await site.database.rows(
            Load,
            """
            SELECT start, supplied_wh, supplied_wh * 4.0::double precision AS supplied_w, delivered_wh, meters_expected,
                   meters_received
            FROM load WHERE series = %(series)s AND start >= %(from)s AND start < %(to)s ORDER BY start
            """,
            {"series": series, "from": span.start, "to": span.end},
        ),
    )


# ---- forecasts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    run_id: int
    origin: datetime
    model: str
    model_version: str
    horizon_h: int
    levels: list[float]
    inputs: dict[str, JsonValue] | None


@router.get("/v1/forecasts", summary="Forecast with its p10 to p90 band")
async def forecasts(
    site: SiteNeeded,
    series: SeriesAsked,
    origin: Annotated[
        AwareDatetime | None, Query(description="the run made from this instant; default: newest")
    ] = None,
    start: Annotated[AwareDatetime | None, Query(alias="from", description="default: where the run starts")] = None,
    end: Annotated[AwareDatetime | None, Query(alias="to", description="default: where the run ends")] = None,
    quantiles: Annotated[bool, Query(description="the whole distribution, 0.05 to 0.95, as `quantiles_w`")] = False,
) -> ForecastSeries:
    """Without `from` and `to`: one run. With `from` and no `origin`: for each interval the newest run with it.

    Areas add up to their feeder and feeders to the substation in `p50_w`, within one run.
    """
    await capacity_of(site, series)
    run = await site.database.one(
        _Run,
        """
        SELECT run_id, origin, model, model_version, horizon_h, levels::numeric[]::float8[] AS levels, inputs
        FROM forecast_run r
        WHERE (%(origin)s::timestamptz IS NULL OR origin = %(origin)s)
          AND EXISTS (SELECT 1 FROM forecast f WHERE f.series = %(series)s AND f.run_id = r.run_id
                      AND f.start >= r.origin - interval '1 day' AND f.start < r.origin + interval '8 days')
        ORDER BY origin DESC, run_id DESC LIMIT 1
        """,
        {"origin": origin, "series": series},
    )
    if run is None:
        return ForecastSeries(
            series=series, origin=None, model=None, model_version=None, horizon_h=None, levels=[], inputs=None,
            forecasts=[],
        )  # fmt: skip
    values = await site.database.rows(
        ForecastValue,
        """
        SELECT DISTINCT ON (f.start) f.start, p10_w, p50_w, p90_w, r.origin,
               CASE WHEN %(quantiles)s THEN quantiles END AS quantiles_w
        FROM forecast f JOIN forecast_run r USING (run_id)
        WHERE f.series = %(series)s AND (%(run)s::bigint IS NULL OR run_id = %(run)s)
          AND (%(from)s::timestamptz IS NULL OR f.start >= %(from)s)
          AND (%(to)s::timestamptz IS NULL OR f.start < %(to)s)
        ORDER BY f.start, r.origin DESC, run_id DESC
        LIMIT 20000
        """,
        {
            "series": series,
            "run": None if start and origin is None else run.run_id,
            "from": start,
            "to": end,
            "quantiles": quantiles,
        },
    )
    return ForecastSeries(
        series=series,
        origin=run.origin,
        model=run.model,
        model_version=run.model_version,
        horizon_h=run.horizon_h,
        levels=run.levels,
        inputs=run.inputs,
        forecasts=values,
    )


@dataclass(frozen=True, slots=True)
class _Model:
    model: str
    horizon_h: int | None


@router.get("/v1/forecasts/accuracy", summary="How wrong the forecasts were, next to seasonal naive")
async def accuracy(
    site: SiteNeeded,
    days: DaysAsked,
    model: Annotated[str | None, Query(description="default: the newest one that is not seasonal_naive")] = None,
) -> ForecastAccuracy:
    """WAPE, day ahead from 00:00 of each day, over the days both models have. 0.08 means 8 % of the energy."""
    chosen = await site.database.one(
        _Model,
        """
        SELECT model, (SELECT max(horizon_h) FROM forecast_run r WHERE r.model = a.model) AS horizon_h
        FROM forecast_accuracy a
        WHERE model <> 'seasonal_naive' AND (%(model)s::text IS NULL OR model = %(model)s)
        ORDER BY day DESC LIMIT 1
        """,
        {"model": model},
    )
    found = await site.database.rows(
        Accuracy,
        """
        SELECT series, sum(a.abs_error_wh) / nullif(sum(a.actual_wh), 0) AS wape,
               sum(n.abs_error_wh) / nullif(sum(n.actual_wh), 0) AS wape_seasonal_naive,
               2 * sum(a.pinball_wh) / nullif(sum(a.actual_wh) FILTER (WHERE a.pinball_wh IS NOT NULL), 0) AS wql,
               sum(a.inside_80)::float8 / nullif(sum(a.intervals) FILTER (WHERE a.inside_80 IS NOT NULL), 0)
                   AS inside_80,
               count(DISTINCT day) AS days, coalesce(sum(a.intervals), 0) AS intervals,
               coalesce(sum(a.actual_wh), 0) / 1000 AS actual_kwh
        FROM forecast_accuracy a JOIN forecast_accuracy n USING (series, day)
        WHERE a.model = %(model)s AND n.model = 'seasonal_naive'
          AND (%(from)s::date IS NULL OR day >= %(from)s) AND (%(to)s::date IS NULL OR day < %(to)s)
        GROUP BY GROUPING SETS ((series), ()) ORDER BY series NULLS FIRST
        """,
        {"model": chosen.model if chosen else None, "from": days.first, "to": days.end},
    )
    return ForecastAccuracy(
        model=chosen.model if chosen else None,
        horizon_h=chosen.horizon_h if chosen else None,
        pooled=found[0],
        series=found[1:],
    )


# ---- loss -----------------------------------------------------------------------------------------------------------


@router.get("/v1/losses", summary="Loss by area: measured, technical, unexplained")
async def losses(site: SiteNeeded, days: DaysAsked, area: AreaAsked = None) -> Losses:
    """Per business day and in total. Only days that could be computed add to the totals."""
    await known_area(site, area)
    asked = {"area": area, "from": days.first, "to": days.end}
    return Losses(
        totals=await site.database.rows(LossTotal, _LOSS_TOTALS, asked),
        days=await site.database.rows(
            LossDay,
            """
            SELECT area_id AS area, day, supplied_wh / 1000 AS supplied_kwh, delivered_wh / 1000 AS delivered_kwh,
                   technical_wh / 1000 AS technical_kwh, unexplained_wh / 1000 AS unexplained_kwh,
                   unexplained_lo_wh / 1000 AS unexplained_lo_kwh, unexplained_hi_wh / 1000 AS unexplained_hi_kwh,
                   100 * (supplied_wh - delivered_wh) / input_wh AS loss_percent,
                   100 * technical_wh / input_wh AS technical_percent,
                   100 * unexplained_wh / input_wh AS unexplained_percent,
                   aligned, filled, expected, state, reason
            FROM loss_day CROSS JOIN LATERAL (SELECT nullif(coalesce(fed_in_wh, supplied_wh), 0) AS input_wh) i
            WHERE (%(area)s::text IS NULL OR area_id = %(area)s)
              AND (%(from)s::date IS NULL OR day >= %(from)s) AND (%(to)s::date IS NULL OR day < %(to)s)
            ORDER BY area_id, day
            """,
            asked,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Search:
    area: str
    day: date
    from_day: date
    customers: int
    reason: str
    searched_at: datetime


@router.get("/v1/suspects", summary="Whom to visit first: customers whose records explain what their area loses")
async def suspects(
    site: SiteNeeded,
    area: AreaAsked = None,
    day: Annotated[date | None, Query(description="last day looked at; default: each area's newest search")] = None,
) -> Suspects:
    """Ranked within each area, ten at most. Searched once a day over up to 90 whole days.

    `named` ones are worth a visit, after topology and phases were checked; others are as likely as not.
    """
    await known_area(site, area)
    asked = {"area": area, "day": day}
    searches = await site.database.rows(
        _Search,
        """
        SELECT DISTINCT ON (area_id) area_id AS area, day, from_day, customers, reason, searched_at
        FROM loss_search
        WHERE (%(area)s::text IS NULL OR area_id = %(area)s) AND (%(day)s::date IS NULL OR day = %(day)s)
        ORDER BY area_id, day DESC
        """,
        asked,
    )
    found = await site.database.rows(
        Suspect,
        """
        SELECT s.area_id AS area, point, rank, named, score, kind, since, stolen_wh / 1000 AS stolen_kwh,
               stolen_lo_wh / 1000 AS stolen_lo_kwh, stolen_hi_wh / 1000 AS stolen_hi_kwh, evidence_en, evidence_zh
        FROM loss_suspect s JOIN metering_point USING (point_id)
        WHERE (s.area_id, s.day) IN (SELECT unnest(%(areas)s::text[]), unnest(%(days)s::date[]))
        ORDER BY s.area_id, rank
        """,
        {"areas": [one.area for one in searches], "days": [one.day for one in searches]},
    )
    return Suspects(
        areas=[
            Searched(
                area=one.area, day=one.day, from_day=one.from_day, customers=one.customers, reason=one.reason,
                searched_at=one.searched_at, suspects=[suspect for suspect in found if suspect.area == one.area],
            )
            for one in searches
        ]
    )  # fmt: skip


_LOSS_TOTALS = """
    SELECT a.area_id AS area, name_en, name_zh, loss_low_percent, loss_high_percent,
           count(unexplained_wh) AS days,
           sum(supplied_wh) / 1000 AS supplied_kwh, sum(delivered_wh) / 1000 AS delivered_kwh,
           sum(technical_wh) / 1000 AS technical_kwh, sum(unexplained_wh) / 1000 AS unexplained_kwh,
           CASE WHEN count(unexplained_lo_wh) = count(unexplained_wh)
                THEN sum(unexplained_lo_wh) / 1000 END AS unexplained_lo_kwh,
           CASE WHEN count(unexplained_hi_wh) = count(unexplained_wh)
                THEN sum(unexplained_hi_wh) / 1000 END AS unexplained_hi_kwh,
           100 * sum(supplied_wh - delivered_wh) / nullif(sum(input_wh), 0) AS loss_percent,
           100 * sum(technical_wh) / nullif(sum(input_wh), 0) AS technical_percent,
           100 * sum(unexplained_wh) / nullif(sum(input_wh), 0) AS unexplained_percent,
           count(*) FILTER (WHERE state IN ('high', 'negative')) AS days_out_of_range,
           (SELECT state FROM loss_day newest WHERE newest.area_id = a.area_id
             AND (%(from)s::date IS NULL OR newest.day >= %(from)s) AND (%(to)s::date IS NULL OR newest.day < %(to)s)
             ORDER BY newest.day DESC LIMIT 1) AS state
    FROM area a
    LEFT JOIN LATERAL (
        SELECT state, unexplained_wh, unexplained_lo_wh, unexplained_hi_wh,
               CASE WHEN unexplained_wh IS NOT NULL THEN coalesce(fed_in_wh, supplied_wh) END AS input_wh,
               CASE WHEN unexplained_wh IS NOT NULL THEN supplied_wh END AS supplied_wh,
               CASE WHEN unexplained_wh IS NOT NULL THEN delivered_wh END AS delivered_wh,
               CASE WHEN unexplained_wh IS NOT NULL THEN technical_wh END AS technical_wh
        FROM loss_day l
        WHERE l.area_id = a.area_id
          AND (%(from)s::date IS NULL OR day >= %(from)s) AND (%(to)s::date IS NULL OR day < %(to)s)
    ) l ON true
    WHERE %(area)s::text IS NULL OR a.area_id = %(area)s
    GROUP BY a.area_id, name_en, name_zh, loss_low_percent, loss_high_percent
    ORDER BY a.area_id
"""
