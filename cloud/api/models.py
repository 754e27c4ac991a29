"""What the API answers. Times are ISO 8601 with Z; energy is integer Wh where billing reads it, kWh where people do."""

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Percent = Annotated[
    float | None, Field(description="of the energy fed in, by the head and by generation; null where there was none")
]


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


# ---- billing --------------------------------------------------------------------------------------------------------


class Interval(Answer):
    """Energy of one metering point during [start, end): differences of the registers, after CT and PT ratios."""

    point: str
    start: datetime
    end: datetime
    energy_import_wh: int | None = Field(description="null where a reading is missing, never 0")
    energy_export_wh: int | None
    reactive_import_varh: int | None
    reactive_export_varh: int | None
    quality: list[str] = Field(description="flags against the value; empty means good", examples=[["BACKFILLED"]])
    quality_bits: int
    version: int = Field(description="the calculation this value comes from; a correction has a higher one")


class IntervalPage(Answer):
    as_of: int = Field(description="ask with as_of=this to see exactly these values again, whatever is corrected later")
    intervals: list[Interval]
    next: str | None = Field(description="cursor of the next page; null on the last one")


# ---- load and forecast ----------------------------------------------------------------------------------------------


class Load(Answer):
    start: datetime
    supplied_wh: int | None = Field(
        description="through the head meters, import less export; null where one is missing"
    )
    supplied_w: float | None = Field(description="the same as mean power")
    delivered_wh: int | None = Field(description="to the customers whose meters are there")
    meters_expected: int
    meters_received: int


class LoadSeries(Answer):
    series: str
    capacity_w: float | None
    loads: list[Load]


class ForecastValue(Answer):
    start: datetime
    p10_w: float
    p50_w: float
    p90_w: float
    origin: datetime = Field(description="nothing later than this was used")
    quantiles_w: list[float] | None = Field(
        description="ascending, one for each of the run's levels; null unless asked for by quantiles=true, and of runs "
        "made before they were kept"
    )


class ForecastSeries(Answer):
    series: str
    origin: datetime | None
    model: str | None
    model_version: str | None
    horizon_h: int | None
    levels: list[float] = Field(description="of quantiles_w: 0.05 is the value that one load in twenty stays below")
    inputs: dict[str, JsonValue] | None = Field(
        description="what the run was made from: load and weather until when, the calendar, the share of each member, "
        "and the series that fell back to seasonal naive"
    )
    forecasts: list[ForecastValue]


class Accuracy(Answer):
    series: str | None = Field(description="null: all series together")
    wape: float | None = Field(description="sum of absolute errors / sum of actual energy, day ahead")
    wape_seasonal_naive: float | None = Field(description="the same of `as a week ago`, over the same days")
    wql: float | None = Field(
        description="weighted quantile loss: 2 · sum of the mean pinball loss over p10 … p90 / sum of actual energy"
    )
    inside_80: float | None = Field(description="share of loads within p10 to p90; 0.80 is right")
    days: int
    intervals: int
    actual_kwh: float


class ForecastAccuracy(Answer):
    model: str | None
    horizon_h: int | None
    pooled: Accuracy
    series: list[Accuracy]


# ---- loss -----------------------------------------------------------------------------------------------------------


class LossDay(Answer):
    area: str
    day: date
    supplied_kwh: float | None
    delivered_kwh: float | None
    technical_kwh: float | None
    unexplained_kwh: float | None = Field(description="supplied - delivered - technical")
    unexplained_lo_kwh: float | None = Field(
        description="80 % interval: gains, clocks and registers of the meters, what was filled, the network model; "
        "null on days computed before it was kept"
    )
    unexplained_hi_kwh: float | None
    loss_percent: Percent
    technical_percent: Percent
    unexplained_percent: Percent
    aligned: int = Field(description="intervals in which the head and most customers were measured; only these count")
    filled: int = Field(description="customers' intervals among them that were missing and taken from the days around")
    expected: int
    state: Literal["normal", "high", "negative", "not_computable"]
    reason: str


class LossTotal(Answer):
    area: str
    name_en: str
    name_zh: str
    days: int = Field(description="days that could be computed")
    supplied_kwh: float | None
    delivered_kwh: float | None
    technical_kwh: float | None
    unexplained_kwh: float | None
    unexplained_lo_kwh: float | None = Field(
        description="days' intervals added up as they are: a meter is wrong by the same factor each day"
    )
    unexplained_hi_kwh: float | None
    loss_percent: Percent
    technical_percent: Percent
    unexplained_percent: Percent
    loss_low_percent: float
    loss_high_percent: float
    days_out_of_range: int
    state: Literal["normal", "high", "negative", "not_computable"] | None = Field(description="of the newest day")


class Losses(Answer):
    totals: list[LossTotal]
    days: list[LossDay]


class Suspect(Answer):
    """A customer whose record explains what its area loses beyond its technical loss, or has too much of."""

    area: str
    point: str
    rank: int = Field(description="1: whom to visit first")
    named: bool = Field(description="the evidence is strong enough for a visit; it has an alert, too")
    score: float = Field(description="log odds of a fault: 0 as likely as not, 10 is 22,000 to one")
    kind: str = Field(
        description="what the record looks like: scaled, night, peak, cap, subtract, stopped, intermittent, ct_ratio, "
        "wrong_area, phase_missing …"
    )
    since: datetime | None = Field(description="null: before the first day looked at")
    stolen_kwh: float = Field(
        description="missing from the record since then; negative: too much in it; of wrong_area: in the wrong book"
    )
    stolen_lo_kwh: float = Field(description="80 % interval")
    stolen_hi_kwh: float
    evidence_en: str
    evidence_zh: str = Field(description="empty where only English is known")


class Searched(Answer):
    """An area that was searched for suspects: none is an answer, too."""

    area: str
    day: date = Field(description="last whole day looked at")
    from_day: date
    customers: int
    reason: str = Field(description="why it could not be searched; empty where it was")
    searched_at: datetime
    suspects: list[Suspect]


class Suspects(Answer):
    areas: list[Searched]


# ---- operations -----------------------------------------------------------------------------------------------------


class Alert(Answer):
    alert: int
    rule: str
    subject: str
    severity: Literal["info", "warning", "critical"]
    opened_at: datetime
    closed_at: datetime | None
    message_en: str
    message_zh: str
    evidence: JsonValue


class Alerts(Answer):
    alerts: list[Alert]


Reason = Literal[
    "quarantined",
    "evicted",
    "clock",
    "meter_silent",
    "gateway_offline",
    "meter_refuses",
    "not_in_memory",
    "backfilling",
    "unknown",
]


class Missing(Answer):
    """Intervals missing for one reason."""

    reason: Reason
    intervals: int


class Collected(Answer):
    """采集成功率 of one day, area, gateway or point, whichever was asked for."""

    day: date | None = None
    area: str | None = None
    gateway: str | None = None
    point: str | None = None
    expected: int
    received: int
    completeness: float | None = Field(description="received / expected; null while nothing is expected")
    missing: list[Missing] = Field(description="why, the most frequent reason first; not yet of the newest minutes")


class Completeness(Answer):
    total: Collected
    groups: list[Collected]


class Asked(Answer):
    """The backfill command that was sent for a gap."""

    at: datetime
    command: str
    outcome: str | None = Field(description="what the gateway answered; null while it has not")
    said: str | None = Field(description="its words on this meter")


class Gap(Answer):
    point: str
    area: str
    gateway: str | None
    meter: str | None = Field(description="name on the gateway's wire")
    start: datetime
    end: datetime
    intervals: int
    reason: Reason = Field(
        description="""why, as far as is known:
`quarantined` the rows came and were set aside; `evicted` the gateway's queue was full;
`clock` a clock was set, these marks never were; `meter_silent` the meter did not answer;
`gateway_offline` the gateway was away; `meter_refuses` the meter was asked again and refused;
`not_in_memory` it was asked again and has it no more; `backfilling` the gateway still reads meters' memory;
`unknown` nobody said why"""
    )
    asked: Asked | None = Field(description="null: nobody but the gateway itself has asked the meter again")
    run: str | None = Field(description="the next command for a person, to copy")


class Gaps(Answer):
    gaps: list[Gap]
    next: str | None = Field(description="cursor of the next page; null on the last one")


class Ingest(Answer):
    rows: int = Field(description="rows of energy and power ever stored")
    rows_energy: int
    rows_power: int
    events: int
    batches: int
    quarantined: int = Field(
        description="rows set aside, and messages that could not be taken apart; nothing is dropped silently"
    )
    first_recorded_at: datetime | None
    last_recorded_at: datetime | None
    ingest_seconds: float
    duplicates: int = Field(description="duplicates_raw + duplicates_interval")
    duplicates_raw: int = Field(
        description="rows beyond the first of one (gateway, epoch, meter, instant), of the instants looked at"
    )
    duplicates_raw_from: datetime = Field(description="first instant looked at")
    duplicates_raw_to: datetime = Field(description="first instant after")
    duplicates_interval: int = Field(
        description="intervals that overlap another, and loads with a meter counted twice, ever"
    )


class Event(Answer):
    gateway: str
    point: str | None
    meter: str | None = Field(description="name on the gateway's wire")
    at: datetime
    kind: str
    detail: JsonValue


class Events(Answer):
    events: list[Event]


class DemandResponse(Answer):
    event: str
    area: str
    alert: int | None
    start: datetime
    end: datetime
    points: list[str]
    state: Literal["planned", "sent", "done", "failed", "measured"]
    baseline_kwh: float | None
    actual_kwh: float | None
    reduction_kwh: float | None
    method: str | None
    measured_at: datetime | None
    outcome: str | None = Field(description="what the gateway answered to the newest command")


class DemandResponses(Answer):
    events: list[DemandResponse]
    reduction_kwh: float


class Feeder(Answer):
    feeder: str
    name_en: str
    name_zh: str
    capacity_w: float


class Area(Answer):
    area: str
    feeder: str
    name_en: str
    name_zh: str
    gateway: str
    capacity_w: float
    loss_low_percent: float
    loss_high_percent: float


class Point(Answer):
    point: str
    area: str
    role: Literal["supply", "customer", "check", "generation"]
    phases: str
    controllable: bool
    serial: str | None
    protocol: str | None
    gateway: str | None
    wire_name: str | None


class Registry(Answer):
    feeders: list[Feeder]
    areas: list[Area]
    points: list[Point]


class Gateway(Answer):
    gateway: str
    area: str
    online: bool
    at: datetime | None = Field(description="when it said so; null: never heard of")
    software: str | None
    meters: int | None
    queued_batches: int | None
    queued_bytes: int | None
    backfill_left: int | None


class Gateways(Answer):
    gateways: list[Gateway]


class Status(Answer):
    """One line about everything, cheap enough to ask for every second."""

    now: datetime = Field(description="the site's clock, which may be simulated")
    rate: float = Field(description="simulated seconds per real second")
    zone: str
    gateways: int
    gateways_online: int
    points: int
    backfill_left: int
    expected: int
    received: int
    completeness: float | None
    load_at: datetime | None = Field(description="start of the newest interval with a load of the whole substation")
    load_w: float | None
    alerts_open: int
    alerts_critical: int
    demand_response: Literal["none", "planned", "running", "over"]
    rows: int
    revision: str = Field(description="changes when there is something new to fetch")


class Health(Answer):
    status: Literal["ok"]
