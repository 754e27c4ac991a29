"""What every route is given: the database, the clock, the site's zone; and who may ask."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Final
from zoneinfo import ZoneInfo

from fastapi import Depends, Query, Request, Security
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AwareDatetime

from cloud.api.database import Database
from cloud.api.problems import Problem, bad_parameter
from protocols.clock import SystemClock

SUBSTATION: Final = "substation:S1"
INTERVAL: Final = timedelta(minutes=15)
DAY: Final = timedelta(days=1)
SERIES_SPAN_MAX: Final = timedelta(days=100)


@dataclass(frozen=True, slots=True)
class Site:
    database: Database
    clock: SystemClock
    zone: ZoneInfo

    def today(self) -> date:
        """The business day."""
        return self.clock.now().astimezone(self.zone).date()


def site_of(request: Request) -> Site:
    site = request.app.state.site
    assert isinstance(site, Site)
    return site


SiteNeeded = Annotated[Site, Depends(site_of)]


# ---- keys -----------------------------------------------------------------------------------------------------------


def new_key() -> tuple[str, bytes]:
    """A key of 256 random bits and the hash that is stored. No salt is needed: there is nothing to guess."""
    key = f"gl_{secrets.token_urlsafe(32)}"
    return key, hash_key(key)


def hash_key(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, slots=True)
class KeyName:
    name: str


_bearer = HTTPBearer(auto_error=False, description="`gridloom key create NAME` prints one")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="the same key, for programs that have no bearer")


async def require_key(
    site: SiteNeeded,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> str:
    """The name of the key. Looked up every time, so that a revoked key stops at once."""
    key = bearer.credentials if bearer else header
    if not key:
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "key-missing",
            detail="This path needs an API key.",
            where="header: Authorization",
            action="Send `Authorization: Bearer KEY`; make a key with: gridloom key create NAME",
        )
    found = await site.database.one(
        KeyName,
        "SELECT name FROM api_key WHERE hash = %(hash)s AND revoked_at IS NULL",
        {"hash": hash_key(key)},
    )
    if found is None:
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "key-wrong",
            detail="This API key is unknown or revoked.",
            where="header: Authorization",
            action="Check the key, or make a new one with: gridloom key create NAME",
        )
    return found.name


# ---- time ranges ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open [start, end)."""

    start: datetime
    end: datetime


async def _span(
    site: SiteNeeded,
    start: Annotated[
        AwareDatetime | None,
        Query(alias="from", description="first instant, included, with Z or an offset; default: a day before `to`"),
    ] = None,
    end: Annotated[
        AwareDatetime | None, Query(alias="to", description="first instant after; default: a day after `from`, or now")
    ] = None,
) -> Span:
    to = (end or (start + DAY if start else site.clock.now())).astimezone(UTC)
    since = (start or to - DAY).astimezone(UTC)
    if since >= to:
        raise bad_parameter("from, to", f"from ({since:%FT%TZ}) is not before to ({to:%FT%TZ}).", "Swap them.")
    return Span(since, to)


SpanAsked = Annotated[Span, Depends(_span)]


def bounded(span: Span) -> Span:
    if span.end - span.start > SERIES_SPAN_MAX:
        days = (span.end - span.start).days
        raise bad_parameter(
            "from, to", f"{days} days asked for, at most {SERIES_SPAN_MAX.days} in one answer.", "Ask in several parts."
        )
    return span


@dataclass(frozen=True, slots=True)
class Days:
    """Business days [first, end), either side open."""

    first: date | None
    end: date | None


async def _days(
    first: Annotated[date | None, Query(alias="from", description="first business day, included; default: all")] = None,
    end: Annotated[date | None, Query(alias="to", description="first business day after; default: all")] = None,
) -> Days:
    if first and end and first >= end:
        raise bad_parameter("from, to", f"from ({first}) is not before to ({end}).", "The end is not included.")
    return Days(first, end)


DaysAsked = Annotated[Days, Depends(_days)]
