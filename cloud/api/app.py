"""The application: routes, the key in front of them, security headers, metrics, /docs and the console."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
from fastapi import Depends, FastAPI, Response
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipMiddleware

from cloud.api import completeness, grid, intervals, operations, problems
from cloud.api.access import Site, SiteNeeded, require_key
from cloud.api.models import Health

CONSOLE: Final = Path(__file__).resolve().parent.parent / "console"

# Swagger UI needs its own style elements and data: images; the console needs neither.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_POLICY: Final = _POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")

_DOCS_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Gridloom API</title>
<link rel="icon" href="/console/icon.svg">
<link rel="stylesheet" href="/console/vendor/swagger-ui/swagger-ui.css">
<div id="docs"></div>
<script src="/console/vendor/swagger-ui/swagger-ui-bundle.js"></script>
<script src="/console/docs.js"></script>
</html>
"""

_ABOUT: Final = """\
Read-only. Send `Authorization: Bearer KEY` (or `X-API-Key: KEY`); `gridloom key create NAME` prints a key.

Times are ISO 8601; ranges are half-open `[from, to)`; 15-minute intervals are labelled by their start. Energy for
billing is whole Wh, and a missing value is null, never 0. Errors are RFC 9457 problem documents.
"""

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Metrics:
    """One process's figures in the Prometheus text format."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "gridloom_http_request_seconds", "Time to answer", ["route"], registry=self.registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10),
        )  # fmt: skip
        self.requests = Counter("gridloom_http_requests", "Answers", ["route", "status"], registry=self.registry)
        self._gauges = {
            name: Gauge(f"gridloom_{name}", text, registry=self.registry)
            for name, text in {
                "gateways": "Gateways in the registry",
                "gateways_online": "Gateways that say they are online",
                "points": "Metering points in the registry",
                "backfill_left": "Meter marks the gateways have yet to fetch",
                "intervals_expected": "Intervals that are over",
                "intervals_received": "Intervals with energy",
                "load_watts": "Newest load of the whole substation",
                "alerts_open": "Open alerts",
                "alerts_critical": "Open critical alerts",
                "rows": "Rows of energy and power stored",
                "clock_seconds": "The site's clock, seconds since 1970 UTC",
            }.items()
        }

    async def text(self, site: Site) -> bytes:
        now = await operations.status_of(site)
        values = {
            "gateways": now.gateways,
            "gateways_online": now.gateways_online,
            "points": now.points,
            "backfill_left": now.backfill_left,
            "intervals_expected": now.expected,
            "intervals_received": now.received,
            "load_watts": float("nan") if now.load_w is None else now.load_w,
            "alerts_open": now.alerts_open,
            "alerts_critical": now.alerts_critical,
            "rows": now.rows,
            "clock_seconds": now.now.timestamp(),
        }
        for name, value in values.items():
            self._gauges[name].set(value)
        return generate_latest(self.registry)


class Envelope:
    """Security headers on every answer, and its time and status in the metrics."""

    def __init__(self, app: Application, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        began_s = time.perf_counter()
        status = 500

        async def send_wrapped(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = _DOCS_POLICY if path == "/docs" else _POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                if path.startswith(("/v1/", "/healthz", "/metrics")):
                    headers["Cache-Control"] = "no-store"
                else:
                    headers["Cache-Control"] = "no-cache"  # revalidated by ETag: an upgrade is seen at once
            await send(message)

        try:
            await self._app(scope, receive, send_wrapped)
        finally:
            # The pattern, not the path: a scanner must not fill the memory with labels.
            route = getattr(scope.get("route"), "path", "/console" if path.startswith("/console") else "unmatched")
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began_s)
            self._metrics.requests.labels(route, str(status)).inc()


def create_app(site: Site) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await site.database.close()

    app = FastAPI(
        title="Gridloom",
        version="1",
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses={
            code: {"model": problems.ProblemDocument, "description": text, "content": {problems.MEDIA_TYPE: {}}}
            for code, text in {
                401: "No key, or a wrong one",
                404: "Nothing has this name",
                422: "A parameter is wrong",
                503: "The database is away",
            }.items()
        },
    )
    app.state.site = site
    metrics = Metrics()
    problems.install(app)
    app.add_middleware(GZipMiddleware, minimum_size=1024, compresslevel=5)
    app.add_middleware(Envelope, metrics=metrics)

    keyed = [Depends(require_key)]
    for router in (
        intervals.router,
        grid.router,
        completeness.router,
        operations.router,
        operations.ingest_route(operations.IngestCount()),
    ):
        app.include_router(router, dependencies=keyed)

    @app.get(
        "/metrics", dependencies=keyed, tags=["process"], summary="For Prometheus, behind a key like everything else"
    )
    async def metrics_text(site: SiteNeeded) -> Response:
        """Scrape it with `authorization: {credentials: KEY}`."""
        return Response(await metrics.text(site), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", tags=["process"], summary="Whether the database answers; needs no key")
    async def healthz(site: SiteNeeded) -> Health:
        try:
            health = await site.database.one(Health, "SELECT 'ok' AS status FROM (SELECT count(*) FROM api_key) keys")
        except psycopg.Error as error:
            raise problems.database_away(error) from error
        assert health is not None
        return health

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS_PAGE)

    @app.get("/", include_in_schema=False)
    async def console() -> FileResponse:
        return FileResponse(CONSOLE / "index.html")

    app.mount("/console", StaticFiles(directory=CONSOLE))
    return app
