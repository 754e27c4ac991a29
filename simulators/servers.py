"""The meters on the wire: DL/T 645 and Modbus TCP over one port per line, answering from the world.

A request costs a dictionary look-up and some packing; registers are ready-made integers. What is addressed to nobody
here gets no answer, as on a bus.
"""

import asyncio
import errno
import hmac
import logging
import re
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import inf, sqrt
from typing import Final, TypeAlias

from protocols import dlt645, modbus, templates
from protocols.clock import Clock
from protocols.dlt645 import LoadRecord, RelayAction
from protocols.framing import FrameError, Garbage
from simulators.layout import Habit
from simulators.meters import DLT645
from simulators.meters import Meter as MeterPlan
from simulators.ports import LOOPBACK
from simulators.site import ClockSetting, Site, SiteError, append_clock_journal, append_journal
from simulators.site import RelayAction as JournalEntry
from simulators.world import INTERVAL_S, WH_PER_STEP, ZONE, Integers, World

logger = logging.getLogger(__name__)

PASSWORD_VARIABLE: Final = "GRIDLOOM_645_PASSWORD"  # noqa: S105 - a name, not a secret
AHEAD_S = 6 * 3600  # the world is computed this far ahead of the clock, so that no request waits for a power flow
HISTORY_KEPT_S = 2 * 86_400
PHASE_SHARE = (1.004, 0.993, 1.003)  # of the mean voltage: no three phases are alike
BROADCAST_MAX_S = 300  # a meter takes no longer step from 08H
DATE_BYTES, TIME_BYTES = 4, 3  # of 04000101 and 04000102
UNREAD_BYTES_MAX = 65_536  # a peer that asks on without reading the answers is cut off


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a meter shows now, on its own side of the transformers."""

    active_w: float
    reactive_var: float
    volts: tuple[float, ...]
    amperes: tuple[float, ...]
    power_factor: float
    frequency_hz: float


@dataclass(slots=True)
class Field:
    """All meters of the site and what they share: the world, the clock, the relay journal."""

    site: Site
    world: World
    clock: Clock
    password: str = field(default="", repr=False)

    def now_s(self) -> float:
        return self.clock.now().timestamp()

    def is_silent(self, row: int) -> bool:
        return self.world.meters[row].habit is Habit.BROKEN and self.now_s() >= self.site.silent_from_s

    def meter_now(self, row: int) -> datetime:
        """The meter's own clock."""
        return datetime.fromtimestamp(self.world.clocks[row].at(self.now_s()), UTC)

    def energies(self, row: int) -> Integers:
        return self.world.reading(row, self.now_s())

    def record(self, row: int, mark_s: int) -> list[int] | None:
        return self.world.record(row, mark_s, self.now_s())

    def snapshot(self, row: int) -> Snapshot:
        meter, power = self.world.meters[row], self.world.power(row, self.now_s())
        volts = tuple(power.volts / meter.pt_ratio * share for share in PHASE_SHARE)
        active_w, reactive_var = power.active_w / meter.ratio, power.reactive_var / meter.ratio
        apparent_va = sqrt(active_w**2 + reactive_var**2)
        amperes = tuple(apparent_va / 3 / volt for volt in volts)
        factor = active_w / apparent_va if apparent_va else 1.0
        return Snapshot(active_w, reactive_var, volts, amperes, factor, power.frequency_hz)

    def set_relay(self, row: int, *, closed: bool, expires_at: datetime) -> None:
        """Journal it, then do it. ``expires_at`` is by the meter's clock."""
        meter, at_s = self.world.meters[row], self.now_s()
        expires_s = None if closed else self.world.clocks[row].true(expires_at.timestamp())
        expires_s = inf if expires_s is None else expires_s
        append_journal(self.site.directory, JournalEntry(at_s, meter.point, closed, expires_s))
        self.world.set_relay(row, at_s, closed=closed, expires_s=expires_s)
        logger.info("relay %s point=%s until=%s", "closed" if closed else "opened", meter.point, expires_at.isoformat())

    def set_clock(self, row: int, to: datetime, *, broadcast: bool = False) -> None:
        """Journal it, then do it."""
        meter, at_s, before = self.world.meters[row], self.now_s(), self.meter_now(row)
        append_clock_journal(self.site.directory, ClockSetting(at_s, meter.point, to.timestamp(), broadcast))
        self.world.clocks[row].set(at_s, to.timestamp(), broadcast=broadcast)
        logger.info("clock set point=%s from=%s to=%s", meter.point, before.isoformat(), to.isoformat())

    def compute_ahead(self) -> None:
        now_s = self.now_s()
        self.world.extend(now_s + AHEAD_S)
        self.world.forget(now_s - HISTORY_KEPT_S)

    async def keep_ahead(self) -> None:
        while True:
            self.compute_ahead()
            await self.clock.sleep(1)


# ---- Modbus ----------------------------------------------------------------------------------------------------------

_TEMPLATE = templates.load("gridloom-demo-modbus")
assert isinstance(_TEMPLATE, templates.ModbusTemplate)
assert _TEMPLATE.profile and _TEMPLATE.clock and _TEMPLATE.relay
_RELAY_ADDRESS = _TEMPLATE.relay.address
_BLOCK_WORDS = 0x1E
_INSTANT = struct.Struct(">10f")
_CLOCK_AND_ENERGIES = struct.Struct(">5I")
_MARK = struct.Struct(">5I")
_MARK_WORDS = _MARK.size // 2
_ABSENT = b"\xff" * _MARK.size
_RELAY = struct.Struct(">HI")
_DAY_ZERO_S = round(datetime.combine(_TEMPLATE.profile.day_zero, datetime.min.time(), UTC).timestamp())


def answer_modbus(site: Field, row: int, pdu: bytes) -> bytes:
    """The response PDU to ``pdu``. The register map is ``protocols/meters/gridloom-demo-modbus.toml``."""
    function = pdu[0]
    try:
        if function == modbus.Function.READ_HOLDING:
            return _read_holding(site, row, *modbus.decode_read(pdu))
        if function == modbus.Function.READ_FILE:
            ranges = modbus.decode_read_file(pdu)
            parts = [_profile(site, row, part) for part in ranges]
            if None in parts:
                return modbus.encode_exception(function, modbus.Fault.ILLEGAL_DATA_ADDRESS)
            return modbus.encode_read_file_reply([part for part in parts if part is not None])
        if function == modbus.Function.WRITE_MANY:
            return _write(site, row, pdu)
    except FrameError:
        return modbus.encode_exception(function, modbus.Fault.ILLEGAL_DATA_VALUE)
    return modbus.encode_exception(function, modbus.Fault.ILLEGAL_FUNCTION)


def _read_holding(site: Field, row: int, address: int, count: int) -> bytes:
    if address + count > _BLOCK_WORDS:
        return modbus.encode_exception(modbus.Function.READ_HOLDING, modbus.Fault.ILLEGAL_DATA_ADDRESS)
    now = site.snapshot(row)
    block = _INSTANT.pack(
        now.active_w, now.reactive_var, *now.volts, *now.amperes, now.power_factor, now.frequency_hz
    ) + _CLOCK_AND_ENERGIES.pack(int(site.meter_now(row).timestamp()), *site.energies(row).tolist())
    return modbus.encode_read_reply(modbus.Function.READ_HOLDING, block[2 * address : 2 * (address + count)])


def _profile(site: Field, row: int, part: modbus.FileRange) -> bytes | None:
    """The registers of whole marks of one day; None where the memory has none of them."""
    first, rest = divmod(part.record, _MARK_WORDS)
    count, odd = divmod(part.count, _MARK_WORDS)
    if rest or odd or not count or first + count > 96:
        return None
    day_s = _DAY_ZERO_S + part.file * 86_400
    marks = [day_s + (first + i) * INTERVAL_S for i in range(count)]
    records = [site.record(row, mark_s) for mark_s in marks]
    if not any(records):
        return None
    return b"".join(
        _MARK.pack(mark_s, *record) if record else _ABSENT for mark_s, record in zip(marks, records, strict=True)
    )


def _write(site: Field, row: int, pdu: bytes) -> bytes:
    address, data = modbus.decode_write(pdu)
    if address != _RELAY_ADDRESS or len(data) != _RELAY.size or not site.world.meters[row].controllable:
        return modbus.encode_exception(pdu[0], modbus.Fault.ILLEGAL_DATA_ADDRESS)
    action, expires_s = _RELAY.unpack(data)
    expires_at = datetime.fromtimestamp(expires_s, UTC)
    if action not in (0, 1) or expires_at <= site.meter_now(row):
        return modbus.encode_exception(pdu[0], modbus.Fault.ILLEGAL_DATA_VALUE)
    site.set_relay(row, closed=action == 0, expires_at=expires_at)
    return modbus.encode_write_reply(pdu)


# ---- DL/T 645 --------------------------------------------------------------------------------------------------------


def answer_dlt645(site: Field, row: int, request: dlt645.Frame) -> dlt645.Frame | None:
    """The reply to a frame meant for this meter; None for what gets no answer."""
    own = site.world.meters[row].serial
    try:
        if request.function == dlt645.Function.READ:
            data = _read_item(site, row, *dlt645.decode_read(request))
            if data is None:
                return dlt645.refuse(request, own, dlt645.Fault.NO_SUCH_DATA)
            return dlt645.reply(request, own, data)
        if request.function == dlt645.Function.READ_ADDRESS:
            return dlt645.reply(request, own, bytes.fromhex(own)[::-1])
        if request.function == dlt645.Function.RELAY:
            return _order_relay(site, row, request)
        if request.function == dlt645.Function.WRITE:
            return _write_clock(site, row, request)
        if request.function == dlt645.Function.BROADCAST_TIME:
            _take_broadcast(site, row, request)
            return None
    except FrameError:
        pass
    return dlt645.refuse(request, own, dlt645.Fault.OTHER)


def _read_item(site: Field, row: int, di: int, extra: bytes) -> bytes | None:
    if di == dlt645.LOAD_AT:
        return _load_records(site, row, extra)
    if di in _ENERGY_ITEMS:
        return dlt645.encode_item(di, [int(site.energies(row)[_ENERGY_ITEMS[di]])])
    if di == dlt645.DATE:
        return dlt645.encode_time(site.meter_now(row), "wdmy", ZONE)
    if di == dlt645.TIME:
        return dlt645.encode_time(site.meter_now(row), "SMH", ZONE)
    if di in _POWER_ITEMS:
        return dlt645.encode_item(di, _POWER_ITEMS[di](site.snapshot(row)))
    return None


_ENERGY_ITEMS: Final = {0x00010000: 0, 0x00020000: 1, 0x00030000: 2, 0x00040000: 3}


def _with_phases(total: float) -> list[int]:
    """In steps of 0.1 W or var. A signed block of 3 bytes ends at 79.9999 kW: the big are metered through CTs."""
    steps = max(-POWER_STEPS_MAX, min(POWER_STEPS_MAX, round(total * 10)))
    return [steps, *(round(steps / 3),) * 3]


POWER_STEPS_MAX = 799_999
_POWER_ITEMS: Final[dict[int, Callable[[Snapshot], list[int]]]] = {
    0x0201FF00: lambda now: [round(volt * 10) for volt in now.volts],
    0x0202FF00: lambda now: [round(ampere * 1000) for ampere in now.amperes],
    0x0203FF00: lambda now: _with_phases(now.active_w),
    0x0204FF00: lambda now: _with_phases(now.reactive_var),
    0x0206FF00: lambda now: [round(now.power_factor * 1000)] * 4,
    0x02800002: lambda now: [round(now.frequency_hz * 100)],
}


def _load_records(site: Field, row: int, extra: bytes) -> bytes:
    count, at = dlt645.decode_load_query(extra, ZONE)
    if at is None:
        raise FrameError("load records: a time is expected", raw=extra)
    # From the given time on: the first mark not before it.
    mark_s = -(-round(at.timestamp()) // INTERVAL_S) * INTERVAL_S
    records = []
    for _ in range(min(count, dlt645.LOAD_RECORDS_MAX)):
        steps = site.record(row, mark_s)
        if steps is not None:
            imported, exported, reactive_in, reactive_out = (step * WH_PER_STEP for step in steps)
            at_mark = datetime.fromtimestamp(mark_s, UTC)
            records.append(LoadRecord(at_mark, imported, exported, reactive_in, reactive_out))
        mark_s += INTERVAL_S
    return dlt645.encode_load_records(records, ZONE)


def _order_relay(site: Field, row: int, request: dlt645.Frame) -> dlt645.Frame:
    own = site.world.meters[row].serial
    order = dlt645.decode_relay(request, ZONE)
    if not site.password or not hmac.compare_digest(order.password, site.password):
        return dlt645.refuse(request, own, dlt645.Fault.PASSWORD_OR_UNAUTHORISED)
    moves = order.action in (RelayAction.TRIP, RelayAction.CLOSE_PERMITTED, RelayAction.CLOSE)
    if not moves or not site.world.meters[row].controllable or order.expires_at <= site.meter_now(row):
        return dlt645.refuse(request, own, dlt645.Fault.OTHER)
    site.set_relay(row, closed=order.action != RelayAction.TRIP, expires_at=order.expires_at)
    return dlt645.reply(request, own)


def _take_broadcast(site: Field, row: int, request: dlt645.Frame) -> None:
    """At most 5 minutes, and once a day of the meter's own; otherwise the meter goes on as it was."""
    if request.address != dlt645.BROADCAST:
        return
    told, own = dlt645.decode_broadcast_time(request, ZONE), site.meter_now(row)
    days = {
        datetime.fromtimestamp(setting.to_s, ZONE).date()
        for setting in site.world.clocks[row].settings
        if setting.broadcast
    }
    if abs((told - own).total_seconds()) <= BROADCAST_MAX_S and own.astimezone(ZONE).date() not in days:
        site.set_clock(row, told, broadcast=True)


def _write_clock(site: Field, row: int, request: dlt645.Frame) -> dlt645.Frame:
    """The date or the time of day; the other one goes on. A second that is written begins then."""
    own = site.world.meters[row].serial
    di, who, data = dlt645.decode_write(request)
    if not site.password or not hmac.compare_digest(who.password, site.password):
        return dlt645.refuse(request, own, dlt645.Fault.PASSWORD_OR_UNAUTHORISED)
    now = site.meter_now(row)
    if di == dlt645.DATE and len(data) == DATE_BYTES:
        told = dlt645.decode_clock(data, dlt645.encode_time(now, "SMH", ZONE), ZONE)
        told += timedelta(microseconds=now.microsecond)
    elif di == dlt645.TIME and len(data) == TIME_BYTES:
        told = dlt645.decode_clock(dlt645.encode_time(now, "wdmy", ZONE), data, ZONE)
    else:
        return dlt645.refuse(request, own, dlt645.Fault.NO_SUCH_DATA)
    site.set_clock(row, told)
    return dlt645.reply(request, own)


# ---- lines -----------------------------------------------------------------------------------------------------------


class _Line(asyncio.Protocol):
    """One connection to a line; ``rows`` are its meters by address."""

    def __init__(self, site: Field, rows: dict[str, int]) -> None:
        self._site, self._rows = site, rows

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def _send(self, data: bytes) -> None:
        if self._transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self._transport.abort()
        else:
            self._transport.write(data)


class ModbusLine(_Line):
    def __init__(self, site: Field, rows: dict[str, int]) -> None:
        super().__init__(site, rows)
        self._units = {int(unit): row for unit, row in rows.items()}
        self._decoder = modbus.TcpDecoder()

    def data_received(self, data: bytes) -> None:
        for event in self._decoder.feed(data):
            if isinstance(event, Garbage):
                logger.debug("not Modbus: %s", event.raw.hex(" "))
                continue
            row = self._units.get(event.unit)
            if row is not None and not self._site.is_silent(row):
                pdu = answer_modbus(self._site, row, event.pdu)
                self._send(modbus.encode(modbus.Frame(event.transaction, event.unit, pdu)))


class Dlt645Line(_Line):
    def __init__(self, site: Field, rows: dict[str, int]) -> None:
        super().__init__(site, rows)
        self._decoder = dlt645.Decoder()

    def data_received(self, data: bytes) -> None:
        for event in self._decoder.feed(data):
            if isinstance(event, Garbage):
                logger.debug("not DL/T 645: %s", event.raw.hex(" "))
                continue
            for row in () if event.is_reply else self._meant(event):
                if not self._site.is_silent(row):
                    answer = answer_dlt645(self._site, row, event)
                    if answer is not None:
                        self._send(dlt645.encode(answer))

    def _meant(self, frame: dlt645.Frame) -> Collection[int]:
        """The meters a frame is for. A wildcard that several match would make them talk at once: nobody is heard."""
        if frame.address == dlt645.BROADCAST:
            # Others than the time would be answered below, and nobody answers a broadcast.
            return self._rows.values() if frame.function == dlt645.Function.BROADCAST_TIME else ()
        if (row := self._rows.get(frame.address)) is not None:
            return (row,)
        if "A" not in frame.address:
            return ()
        matching = [row for address, row in self._rows.items() if dlt645.address_matches(frame.address, address)]
        return matching if len(matching) == 1 else ()


LineProtocol: TypeAlias = type[ModbusLine] | type[Dlt645Line]


async def bind(site: Field) -> list[asyncio.Server]:
    """One port per line, held but not yet serving. Raises SiteError when one is taken, with none left open."""
    loop = asyncio.get_running_loop()
    servers: list[asyncio.Server] = []
    try:
        for line in site.site.lines:
            kind: LineProtocol = Dlt645Line if line.protocol == DLT645 else ModbusLine
            rows = _rows_of(line.name, site.world.meters)
            make = _connect(kind, site, rows)
            servers.append(await loop.create_server(make, LOOPBACK, line.port, start_serving=False))
    except OSError as error:
        for server in servers:
            server.close()
        reason = "in use by another program" if error.errno == errno.EADDRINUSE else error.strerror
        raise SiteError(
            f"port {line.port} of line {line.name}: {reason}; free it, or give the same site other ports with: "
            f"python -m simulators build --data {site.site.directory}"
        ) from error
    return servers


def _connect(kind: LineProtocol, site: Field, rows: dict[str, int]) -> Callable[[], asyncio.Protocol]:
    return lambda: kind(site, rows)


def _rows_of(line: str, meters: Iterable[MeterPlan]) -> dict[str, int]:
    return {meter.address: row for row, meter in enumerate(meters) if meter.line == line}


def check_password(text: str) -> str:
    """The 645 password: 8 digits, level 02 first; empty means relays refuse everything. Raises SiteError."""
    if text and not re.fullmatch(r"02[0-9]{6}", text):
        raise SiteError(f"{PASSWORD_VARIABLE}: 02 and six more digits expected (level 02 may switch relays)")
    return text
