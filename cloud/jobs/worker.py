"""The loop of `gridloom work`: derive what is dirty, then everything that follows from it, as far as it is due."""

import logging
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any, Final

import psycopg

from cloud.jobs.areas import areas_with_head_v
from cloud.jobs.calendar import Calendar, floor_mark
from cloud.jobs.completeness import GRACE, SUBSTATION, ask_for_gaps, expect, list_gaps
from cloud.jobs.derive import changed_days, drain, open_session, put_in_force
from cloud.jobs.forecast_inputs import STEPS_PER_DAY
from cloud.jobs.forecasts import Forecaster
from cloud.jobs.losses import update_losses
from cloud.jobs.mailbox import Mailbox
from cloud.jobs.response import Response
from cloud.jobs.retention import retain
from cloud.jobs.rollups import roll_up
from cloud.jobs.suspects import Search
from cloud.jobs.watch import update_alerts
from cloud.store.migrations import Edition, migrations
from protocols.clock import Clock

logger = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

CYCLE_S: Final = 1.0
# One `gridloom work` leads; another one waits for its session to end.
LEADER_LOCK: Final = 0x6772_6964_0000_0002
# While a backfill pours in, what is derived from whole days waits, but no longer than this.
POURING: Final = 5_000
PATIENCE_S: Final = 15.0
CHUNKS_MAX: Final = 4
AREA_DAYS_MAX: Final = 60  # a cycle; the rest waits for the next one, so that commands never do
# A sweep, its way here and its intervals take this long after a mark; the mark's forecast waits for them.
SETTLED: Final = timedelta(minutes=3)
RETRY_S_MIN, RETRY_S_MAX = 0.5, 5.0
# A meter's hour is made anew once for each of its sweeps, however often we look; an operator sees it soon.
ROLL_UP_S: Final = 10.0


class NotReadyError(RuntimeError):
    """The database is there but not ours to use yet; the text says why and what to do."""


@dataclass
class Worker:
    dsn: str
    clock: Clock
    calendar: Calendar
    mailbox: Mailbox
    response: Response
    lookahead: timedelta
    country: str | None = None  # whose public holidays are kept; None: none but those in calendar_day
    _said: str | None = None

    def run(self, *, once: bool = False) -> None:
        """Work until interrupted, whatever happens to the database; with ``once`` until nothing is left to do."""
        wait_s = RETRY_S_MIN
        while True:
            try:
                with closing(self._connect()) as connection:
                    self._lead(connection)
                    open_session(connection)
                    self._say("at work")
                    wait_s = RETRY_S_MIN
                    cycle = Cycle(self, connection)
                    while cycle.step() or not once:
                        time.sleep(0 if cycle.behind else CYCLE_S)
                    return
            except (psycopg.OperationalError, psycopg.InterfaceError, NotReadyError) as error:
                if once:
                    raise
                self._say(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
            time.sleep(wait_s * random.uniform(0.75, 1.25))
            wait_s = min(2 * wait_s, RETRY_S_MAX)

    def _connect(self) -> Connection:
        return psycopg.connect(
            self.dsn, autocommit=True, connect_timeout=5, application_name="gridloom work", options="-c timezone=UTC"
        )

    @staticmethod
    def _lead(connection: Connection) -> None:
        row = connection.execute(
            "SELECT to_regclass('schema_migration'), pg_try_advisory_lock(%s)", (LEADER_LOCK,)
        ).fetchone()
        assert row
        if row[0] is None:
            raise NotReadyError("the database has no tables; run: gridloom migrate")
        applied = connection.execute("SELECT max(version) FROM schema_migration").fetchone()
        newest = max(one.version for one in migrations() if one.edition is Edition.POSTGRESQL)
        if applied is None or applied[0] is None or applied[0] < newest:
            raise NotReadyError("the database's schema is older than this program; run: gridloom migrate")
        if not row[1]:
            raise NotReadyError("another gridloom work leads; waiting to take over")

    def _say(self, state: str) -> None:
        """One line per change."""
        if state != self._said:
            self._said = state
            logger.log(logging.INFO if state == "at work" else logging.WARNING, "database: %s", state)


@dataclass
class Cycle:
    """What is due. Kept in memory only: a new process looks through all days once."""

    worker: Worker
    connection: Connection
    behind: bool = False
    _mark: datetime | None = None
    _first_mark: datetime | None = None
    _dirty: set[tuple[str, date]] | None = None
    _with_head_v: set[str] = field(default_factory=set)
    _forecaster: Forecaster | None = None
    _forecast_mark: datetime | None = None
    _history_days: int = 0
    _deferred_at: float = field(default_factory=time.monotonic)
    _listed: datetime | None = None
    _rolled_up_at: float = float("-inf")
    _retained: date | None = None
    search: Search = field(init=False)

    def __post_init__(self) -> None:
        self.search = Search(self.worker.dsn, self.worker.calendar)

    def step(self) -> bool:
        """Do what is due. Returns whether it found anything to do."""
        worker, connection = self.worker, self.connection
        now, calendar = worker.clock.now(), worker.calendar
        if floor_mark(now) != self._mark:
            put_in_force(connection, now)
        done = drain(connection, calendar, now, chunks_max=CHUNKS_MAX)
        changed = sum(chunk.intervals for chunk in done)
        if changed > POURING:
            logger.info("derived %d intervals", changed)
        if done or floor_mark(now) != self._mark:
            self._first_mark = expect(connection, calendar, now)
        if self._first_mark is not None:
            self._gather_days(changed_days(done), now)
            pouring = changed > POURING and time.monotonic() - self._deferred_at < PATIENCE_S
            if not pouring:
                self._deferred_at = time.monotonic()
                self._guarded("losses", self._losses, now)
                self._guarded("forecasts", self._forecasts, now)
                if not self._dirty:
                    self.search.step(connection, now)
                self._gaps(now)
                update_alerts(connection, calendar, now=now, lookahead=worker.lookahead)
        kept = self._keep(now)
        self._mark = floor_mark(now)
        worker.response.step(connection, worker.mailbox, now=now, monotonic_s=worker.clock.monotonic())
        self.behind = len(done) == CHUNKS_MAX or bool(self._dirty) or kept
        return bool(done) or self.behind or self.search.busy

    def _keep(self, now: datetime) -> bool:
        """Power rollups often, retention each day, a bounded piece a cycle. Returns whether more is left."""
        if time.monotonic() - self._rolled_up_at >= ROLL_UP_S:
            if roll_up(self.connection, now):
                return True
            self._rolled_up_at = time.monotonic()
        if (today := self.worker.calendar.day(now)) != self._retained:
            if retain(self.connection, now):
                return True
            self._retained = today
        return False

    @staticmethod
    def _guarded(what: str, do: Callable[[datetime], None], now: datetime) -> None:
        """Numbers an engine cannot digest must not keep a command from going out. Tried again when next due."""
        try:
            do(now)
        except (ArithmeticError, ValueError):
            logger.exception("%s not computed; the other work goes on", what)

    def _gather_days(self, changed: set[tuple[str, date]], now: datetime) -> None:
        """Days whose loss must be looked at again: changed ones, and at a new mark those that it may complete."""
        if self._dirty is None:
            self._dirty = self._days()
        self._dirty |= changed
        if floor_mark(now) != self._mark:
            today = self.worker.calendar.day(now)
            areas = self.connection.execute("SELECT area_id FROM area").fetchall()
            self._dirty |= {(area, day) for (area,) in areas for day in (today, today - timedelta(days=1))}
            # Meters remember energy but not voltage: the first one read at a head tells about the days before it too.
            known = areas_with_head_v(self.connection, now)
            if fresh := known - self._with_head_v:
                self._dirty |= {(area, day) for area, day in self._days() if area in fresh}
                self._with_head_v |= fresh

    def _gaps(self, now: datetime) -> None:
        """Once a mark, when what it brought is here."""
        mark = floor_mark(now)
        if mark != self._listed and now - mark >= GRACE:
            more = list_gaps(self.connection, self.worker.calendar, now)
            ask_for_gaps(self.connection, now)
            self._listed = self._listed if more else mark

    def _days(self) -> set[tuple[str, date]]:
        """Every business day of every area with a load."""
        return {
            (area, day)
            for area, day in self.connection.execute(
                "SELECT DISTINCT substr(series, 6), (start AT TIME ZONE %s)::date FROM load"
                " WHERE series LIKE 'area:%%'",
                (str(self.worker.calendar.zone),),
            )
        }

    def _losses(self, now: datetime) -> None:
        assert self._dirty is not None
        assert self._first_mark is not None
        # Newest first: the running day is what people look at.
        due = sorted(self._dirty, key=lambda area_day: (area_day[1], area_day[0]), reverse=True)[:AREA_DAYS_MAX]
        self._dirty -= set(due)
        update_losses(self.connection, self.worker.calendar, due, first_mark=self._first_mark, now=now)
        today = self.worker.calendar.day(now)
        if any(day < today - timedelta(days=1) for _, day in due):
            self.search.past_changed()

    def _forecasts(self, now: datetime) -> None:
        """Once a mark, when what it brought is here, and at once when the history has grown by a day."""
        row = self.connection.execute(
            "SELECT count(*) / %s FROM load WHERE series = %s", (STEPS_PER_DAY, SUBSTATION)
        ).fetchone()
        assert row
        days: int = row[0]
        mark, grown = floor_mark(now - SETTLED), days != self._history_days
        if not days or not (grown or mark != self._forecast_mark):
            return
        if self._forecaster is None:
            self._forecaster = Forecaster(self.worker.calendar, self.worker.country)
        self._forecast_mark, self._history_days = mark, days
        self._forecaster.update(self.connection, now, grown=grown)
