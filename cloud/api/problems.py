"""Every error is an RFC 9457 problem document that says what is wrong, where, and what to do."""

import logging
from collections.abc import Mapping
from http import HTTPStatus

import psycopg
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
NOT_MIGRATED = psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn


class ProblemDocument(BaseModel):
    """RFC 9457, with two members of our own: ``where`` and ``action``."""

    type: str = Field(examples=["urn:gridloom:problem:unknown-point"])
    title: str = Field(description="what is wrong, the same for every occurrence")
    status: int
    detail: str = Field(description="what is wrong this time")
    where: str = Field(description="the parameter or part the fault is in", examples=["query: point"])
    action: str = Field(description="what to do about it")
    instance: str = Field(description="the path that was asked for")


class Problem(Exception):  # noqa: N818 the RFC's word
    """Answer the request with this problem. ``kind`` is kebab-case; the title is derived from it."""

    def __init__(self, status: HTTPStatus, kind: str, *, detail: str, where: str, action: str) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.where = where
        self.action = action

    def response(self, request: Request, headers: Mapping[str, str] | None = None) -> JSONResponse:
        document = ProblemDocument(
            type=f"urn:gridloom:problem:{self.kind}",
            title=self.kind.replace("-", " ").capitalize(),
            status=self.status,
            detail=self.detail,
            where=self.where,
            action=self.action,
            instance=request.url.path,
        )
        extra = dict(headers or {})
        if self.status is HTTPStatus.UNAUTHORIZED:
            extra["WWW-Authenticate"] = 'Bearer realm="gridloom"'
        if self.status is HTTPStatus.SERVICE_UNAVAILABLE:
            extra["Retry-After"] = "5"
        return JSONResponse(document.model_dump(), self.status, extra, MEDIA_TYPE)


def bad_parameter(name: str, detail: str, action: str) -> Problem:
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, "bad-parameter", detail=detail, where=f"query: {name}", action=action
    )


def database_away(error: psycopg.Error) -> Problem:
    if isinstance(error, NOT_MIGRATED):
        return Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "database-not-migrated",
            detail="The database does not have this version's tables.",
            where="database",
            action="Run: gridloom migrate",
        )
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "database-unavailable",
        detail="The database does not answer.",
        where="database",
        action="Try again in a few seconds. If it lasts: check that PostgreSQL runs and GRIDLOOM_DSN points at it.",
    )


def install(app: FastAPI) -> None:
    """Turn everything that can go wrong in a request into a problem document."""

    @app.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> JSONResponse:
        return problem.response(request)

    @app.exception_handler(RequestValidationError)
    async def on_bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = error.errors()
        names = [".".join(str(part) for part in fault["loc"][1:]) or "request" for fault in faults]
        detail = "; ".join(f"{name}: {fault['msg']}" for name, fault in zip(names, faults, strict=True))
        if any(fault["type"].startswith(("timezone", "datetime")) for fault in faults):
            action = "Write instants as 2026-01-31T16:00:00Z (or with an offset, its + written as %2B)."
        else:
            action = "See /docs for the parameters of this path."
        kind = str(faults[0]["loc"][0]) if faults else "request"
        where = f"{kind}: {', '.join(names)}"
        problem = Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "bad-parameter", detail=detail, where=where, action=action)
        return problem.response(request)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        problem = Problem(
            status,
            status.phrase.lower().replace(" ", "-"),
            detail=f"{request.method} {request.url.path}: {status.description or status.phrase}.",
            where="path",
            action="See /docs for the paths there are.",
        )
        return problem.response(request, error.headers)

    @app.exception_handler(psycopg.Error)
    async def on_database(request: Request, error: psycopg.Error) -> JSONResponse:
        if isinstance(error, psycopg.errors.QueryCanceled):
            problem = Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "query-too-slow",
                detail="The database needed too long for this answer and was stopped.",
                where="query",
                action="Ask for a shorter time range, or again when the database is less busy.",
            )
        elif isinstance(
            error, psycopg.OperationalError | psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn
        ):
            problem = database_away(error)
        else:
            logger.error("query failed path=%s", request.url.path, exc_info=error)
            problem = internal_error()
        return problem.response(request)

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again after the answer, and uvicorn logs the traceback: no second log line here.
        return internal_error().response(request)


def internal_error() -> Problem:
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal-error",
        detail="The server failed on this request; the fault is ours.",
        where="server",
        action="Report it with the time and the path; the server's log has the details.",
    )
