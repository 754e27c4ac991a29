"""Where a report's facts come from: meters are read, through the running agent or on our own connections; what was
collected and how the clocks were is in the queue's file, which is only read."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime, timedelta, timezone
from statistics import median
from typing import Final, Protocol, TypeAlias

from edge.bus import Bus
from edge.model import ClockReading, Line, Meter, Reason
from edge.plan import Plan, decode, plan
from gateway import read, status
from gateway.config import Site
from gateway.local import LocalAgent, LocalError
from gateway.marks import Marks
from gateway.queue import QUEUE_FILE, QueueError
from gateway.report.judge import judge
from gateway.report.model import (
    Clock,
    Day,
    Exchange,
    Finding,
    LineFacts,
    MeterFacts,
    QueueFacts,
    Report,
    Text,
    Value,
)
from protocols.clock import SystemClock
from protocols.framing import FrameError
from protocols.quantities import QUANTITIES
from protocols.templates import Dlt645Register, Dlt645Template, Dlt645Template1997, ModbusFamily, ModbusTemplate

DAYS_MAX: Final = 35
ASKED_AT_ONCE: Final = 4  # lines: the agent takes eight clients, and others want to ask as well
_UNIT_FACTORS: Final = {"kWh": 1000.0, "kvarh": 1000.0, "kW": 1000.0, "kvar": 1000.0, "MWh": 1e6, "MW": 1e6}
_HOPELESS: Final = (Reason.SILENT.value, Reason.BACKING_OFF.value, Reason.LINK_DOWN.value)

Progress: TypeAlias = Callable[[str], None]


class Reader(Protocol):
    """Asks meters. ``through``: whose connection it is."""

    through: Text
    is_agent: bool

    async def read(self, meter: Meter, item: str) -> read.Said: ...

    async def offset_s(self, meter: Meter) -> float | None:
        """Of the meter's clock, ahead is positive; None where it has none or does not tell."""
        ...


class AgentReader:
    """Through the running agent, whose own polls go on in between."""

    is_agent = True

    def __init__(self, agent: LocalAgent) -> None:
        self._agent = agent
        self.through = Text(f"运行中的代理（pid {agent.pid}）", f"the running agent (pid {agent.pid})")

    async def read(self, meter: Meter, item: str) -> read.Said:
        question = read.Read(meter.name, item)
        return await asyncio.to_thread(lambda: next(iter(self._agent.ask(question, read.Said, timeout_s=180))))

    async def offset_s(self, meter: Meter) -> float | None:
        return None  # its status says it of all meters at once


class OwnReader:
    """On connections of our own, where no agent runs."""

    is_agent = False
    through = Text("本命令自己的连接", "this command's own connections")

    def __init__(self, buses: Mapping[str, Bus]) -> None:
        self._buses = buses  # by meter

    async def read(self, meter: Meter, item: str) -> read.Said:
        return await read.read(self._buses[meter.name], meter, item)

    async def offset_s(self, meter: Meter) -> float | None:
        found = await self._buses[meter.name].read_clock(meter)
        if not isinstance(found, ClockReading):
            return None
        ahead_s = (found.meter_at - found.answered_at).total_seconds()
        behind_s = (found.asked_at - found.meter_at).total_seconds()
        return ahead_s if ahead_s > 0 else -max(behind_s, 0.0)


@asynccontextmanager
async def own_reader(site: Site, clock: SystemClock) -> AsyncIterator[OwnReader]:
    buses = {line.name: Bus(line, clock) for line, _ in site.lines}
    try:
        yield OwnReader({meter.name: buses[line.name] for line, meters in site.lines for meter in meters})
    finally:
        for bus in buses.values():
            await bus.close()


# ---- one meter -------------------------------------------------------------------------------------------------------


async def _ask(reader: Reader, meter: Meter, item: str) -> tuple[read.Said, Exchange]:
    began_s = time.monotonic()
    try:
        said = await reader.read(meter, item)
    except LocalError as error:
        said = read.Said(
            meter=meter.name,
            address=meter.address,
            item=item,
            description="",
            reason=Reason.LINK_DOWN.value,
            detail=str(error),
        )
    elapsed_ms = (time.monotonic() - began_s) * 1000
    failure = f"{said.reason}: {said.detail}".rstrip(": ") if said.reason else ""
    return said, Exchange(item, said.request, said.reply, elapsed_ms, failure)


async def read_meter(reader: Reader, meter: Meter) -> tuple[bool, list[Value], list[Exchange]]:
    """Whether it answers, and the quantities of its template. A silent meter is asked twice and no more."""
    values: list[Value] = []
    exchanges: list[Exchange] = []
    template = meter.template
    if isinstance(template, ModbusFamily) and not isinstance(template, ModbusTemplate):
        made = plan(template, frozenset(register.quantity for register in template.register))
        asked = [_span_item(made, i) for i in range(len(made.requests))]
    elif isinstance(template, Dlt645Template | Dlt645Template1997):
        made, digits = None, 4 if isinstance(template, Dlt645Template1997) else 8
        asked = list(dict.fromkeys(f"{register.di:0{digits}X}" for register in template.register))
    else:
        made, asked = None, [register.quantity for register in template.register]
    answers: list[bytes] = []
    heard = False
    for item in asked:
        said, exchange = await _ask(reader, meter, item)
        if not heard and said.reason in _HOPELESS:
            said, exchange = await _ask(reader, meter, item)
            if said.reason in _HOPELESS:
                return False, [], [exchange]
        heard = True
        exchanges.append(exchange)
        if made is not None:
            answers.append(b"".join(int(one.value or 0).to_bytes(2, "big") for one in said.values))
        elif not said.reason:
            values += _values(meter, said)
    if made is not None and isinstance(template, ModbusFamily) and not any(one.failure for one in exchanges):
        values = _planned_values(template, made, answers, asked)
    return True, values, exchanges


def _span_item(made: Plan, i: int) -> str:
    request = made.requests[i]
    return f"{request.function}:0x{request.address:04X}:{request.count}"


def _planned_values(family: ModbusFamily, made: Plan, answers: Sequence[bytes], asked: Sequence[str]) -> list[Value]:
    try:
        decoded = decode(family, made, list(answers))
    except FrameError:
        return []
    values = []
    for register in family.register:
        value = decoded.get(register.quantity)
        item = f"{family.function_of(register)}:0x{register.address:04X}:{register.count}:{register.type}"
        unit = QUANTITIES[register.quantity].unit
        number = None if value is None or isinstance(value, str) else float(value)
        said = "" if number is None else f"{number / register.scale:.7g}"
        values.append(
            Value(quantity=register.quantity, value=number, unit=unit, item=item, said=said,
                  is_verified=family.is_verified(register))
        )  # fmt: skip
    return values


def _values(meter: Meter, said: read.Said) -> list[Value]:
    """The quantities that an answer holds; of a block each register's own member."""
    template = meter.template
    found = []
    for register in template.register:
        if isinstance(register, Dlt645Register):
            digits = 4 if isinstance(template, Dlt645Template1997) else 8
            if f"{register.di:0{digits}X}" != said.item or register.member >= len(said.values):
                continue
            one, verified = said.values[register.member], register.verified
        elif register.quantity == said.item and said.values:
            one, verified = said.values[0], register.verified is True
        else:
            continue
        number = _number(one.value)
        factor = _UNIT_FACTORS.get(one.unit, 1.0)
        found.append(
            Value(
                quantity=register.quantity,
                value=None if number is None else number * factor,
                unit=QUANTITIES[register.quantity].unit,
                item=said.item,
                said="" if one.value is None else f"{one.value} {one.unit}".strip(),
                is_verified=verified,
            )
        )
    return found


def _number(value: str | int | float | None) -> float | None:
    with suppress(TypeError, ValueError):
        return float(value)  # type: ignore[arg-type]  # what is no number raises
    return None


# ---- what the queue's file knows -------------------------------------------------------------------------------------


class Kept:
    """What the gateway has on disk of its meters; empty where it never ran."""

    def __init__(self, site: Site) -> None:
        self.collected: dict[str, Marks] = {}
        self.clocks: dict[str, Clock] = {}
        self.queue: QueueFacts | None = None
        path = site.data_dir / QUEUE_FILE
        if not path.exists():
            return
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            for name, first, end in db.execute('SELECT meter, first, "end" FROM collected'):
                self.collected.setdefault(name, Marks()).add(first, end)
            with suppress(sqlite3.OperationalError):  # no clock was ever measured
                for name, at, offset_s, drift in db.execute("SELECT meter, at, offset_s, drift_s_per_day FROM clock"):
                    read_at = datetime.fromtimestamp(at / 1e6, UTC)
                    self.clocks[name] = Clock(offset_s=offset_s, drift_s_per_day=drift, read_at=read_at)
        with suppress(QueueError):
            facts = status.read_queue(site)
            batches = sum(waiting.batches for waiting in facts.waiting)
            fill = facts.octets / max(1, facts.octets_max)
            self.queue = QueueFacts(batches=batches, fill=fill, receipt_at=facts.receipt_at)

    def days(self, site: Site, meter: Meter, now: datetime, count: int) -> tuple[Day, ...]:
        """The last days by the meter's own zone, the running one last."""
        if not self.collected:
            return ()
        marks = self.collected.get(meter.name, Marks())
        due_end = int(now.timestamp()) // site.interval_s + 1
        midnight = now.astimezone(meter.zone).replace(hour=0, minute=0, second=0, microsecond=0)
        days = []
        for back in range(count - 1, -1, -1):
            start = midnight - timedelta(days=back)
            first = int(start.timestamp()) // site.interval_s
            end = min(due_end, int((start + timedelta(days=1)).timestamp()) // site.interval_s)
            due = max(0, end - first)
            missing = sum(gap.end - gap.first for gap in marks.gaps(first, end)) if due else 0
            days.append(Day(f"{start:%Y-%m-%d}", due - missing, due))
        return tuple(days)


# ---- the report ------------------------------------------------------------------------------------------------------


async def gather(
    site: Site,
    site_name: str,
    reader: Reader | None,
    *,
    agent: LocalAgent | None,
    software: str,
    made_by: str,
    now: datetime,
    days: int,
    progress: Progress,
) -> Report:
    """``reader``: None reads no meter. Lines are read side by side, the meters of one after the other."""
    kept = Kept(site)
    told: dict[str, status.MeterStatus] = {}
    findings: list[Finding] = []
    if agent is not None:
        try:
            answer = await asyncio.to_thread(lambda: next(iter(agent.ask(status.AskStatus(), status.GatewayStatus))))
            told = {meter.name: meter for meter in answer.meters}
        except LocalError as error:
            what = Text(f"代理未给出状态：{error}", f"The agent gave no status: {error}")
            findings.append(Finding("look", "no_status", what, Text("重新运行 meterctl status", "Run meterctl status")))
    at_once = asyncio.Semaphore(ASKED_AT_ONCE)

    async def line_meters(line: Line, meters: Sequence[Meter]) -> list[MeterFacts]:
        async with at_once:
            return [await one(line, meter) for meter in meters]

    async def one(line: Line, meter: Meter) -> MeterFacts:
        found: bool | None = None
        values: list[Value] = []
        exchanges: list[Exchange] = []
        clock = kept.clocks.get(meter.name)
        status_of = told.get(meter.name)
        if status_of is not None and status_of.clock_offset_s is not None:
            drift = clock.drift_s_per_day if clock else None
            clock = Clock(offset_s=status_of.clock_offset_s, drift_s_per_day=drift, read_at=now)
        if reader is not None:
            found, values, exchanges = await read_meter(reader, meter)
            if found and (offset_s := await reader.offset_s(meter)) is not None:
                clock = Clock(offset_s=offset_s, drift_s_per_day=clock.drift_s_per_day if clock else None, read_at=now)
        times = [exchange.elapsed_ms for exchange in exchanges if not exchange.failure]
        reply_ms = median(times) if times else None
        by_day = kept.days(site, meter, now, days)
        template = meter.template
        phases = getattr(template, "phases", 3)
        progress(meter.name)
        return MeterFacts(
            name=meter.name,
            line=line.name,
            address=meter.address,
            role=meter.role,
            template=template.name,
            models=", ".join(getattr(template, "models", ())),
            phases=phases,
            is_found=found,
            values=tuple(values),
            exchanges=tuple(exchanges),
            reply_ms=reply_ms,
            clock=clock,
            days=by_day,
            newest_mark=status_of.newest_mark if status_of else None,
            findings=judge(
                phases=phases,
                values=tuple(values),
                exchanges=tuple(exchanges),
                clock=clock,
                days=by_day,
                is_found=found,
                reply_ms=reply_ms,
            ),
        )

    parts = await asyncio.gather(*(line_meters(line, meters) for line, meters in site.lines))
    meters = tuple(meter for part in parts for meter in part)
    through = Text("未读取电表", "no meter was read") if reader is None else reader.through
    zone_h = site.meters[0].utc_offset_h if site.meters else 8.0
    return Report(
        gateway=site.gateway,
        site=site_name,
        software=software,
        made_at=now.astimezone(timezone(timedelta(hours=zone_h))),
        made_by=made_by,
        through=through,
        zone_h=zone_h,
        lines=tuple(
            LineFacts(
                name=line.name,
                protocol=line.protocol,
                endpoint=str(line.endpoint),
                setting=str(line.setting) if line.setting else "",
            )
            for line, _ in site.lines
        ),
        meters=meters,
        queue=kept.queue,
        findings=(*findings, *_on_the_whole(site, meters, kept)),
    )


def _on_the_whole(site: Site, meters: Sequence[MeterFacts], kept: Kept) -> list[Finding]:
    """What is not one meter's: a line on which nobody answers, a gateway that never collected, a full queue."""
    found = []
    for line, _ in site.lines:
        on_it = [meter for meter in meters if meter.line == line.name and meter.is_found is not None]
        if len(on_it) > 1 and not any(meter.is_found for meter in on_it):
            found.append(
                Finding(
                    "fault",
                    "line_silent",
                    Text(f"线路 {line.name} 上没有一块表应答", f"No meter answers on line {line.name}"),
                    Text(
                        f"先查公共原因：{line.endpoint} 的接线、A/B、波特率、校验位；可用 meterctl sniff 监听",
                        f"Look for what they share: {line.endpoint}, A and B, speed, parity; listen: meterctl sniff",
                    ),
                )
            )
    if not kept.collected:
        found.append(
            Finding(
                "look",
                "never_ran",
                Text("网关尚未采集任何数据", "The gateway has collected nothing yet"),
                Text(
                    "启动 meterctl run，一小时后重新生成本报告",
                    "Start meterctl run; report again in an hour",
                ),
            )
        )
    if kept.queue is not None and kept.queue.fill > 0.8:
        found.append(
            Finding(
                "fault",
                "queue_full",
                Text(f"队列已用 {kept.queue.fill:.0%}", f"The queue is {kept.queue.fill:.0%} full"),
                Text("检查到云端的网络和证书：meterctl status", "Check the way to the cloud: meterctl status"),
            )
        )
    return found
