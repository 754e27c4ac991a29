"""How the two protocols say the same things: registers at marks, the values of now, the relay.

A dialect asks through a client and decodes; failures rise as the exceptions of the layers below.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Protocol

from edge.client import DLT645, MODBUS_TCP, Client
from edge.model import Line, Meter, Priority
from edge.plan import Plan, decode, plan
from protocols import dlt645, modbus
from protocols.framing import MeterError
from protocols.quantities import ENERGY_NAMES, POWER_NAMES
from protocols.templates import (
    MARK_WORDS,
    Dlt645Template,
    ModbusFamily,
    ModbusProfile,
    ModbusRegister,
    ModbusTemplate,
)

_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_MARK = struct.Struct(">5I")  # one mark of a Modbus load profile: its time, then the registers in ENERGY_NAMES' order

Values = Mapping[str, float | int | None]


@dataclass(frozen=True, slots=True)
class Mark:
    """Energy registers at ``at`` by the meter's clock. ``is_bad``: the meter itself marks them as wrong."""

    at: datetime
    values: Values
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Instantaneous values; ``meter_at`` is the meter's clock, read last, so it dates the moment of the return.

    None where the table knows no clock.
    """

    values: Values
    meter_at: datetime | None


class Dialect(Protocol):
    async def read_marks(self, meter: Meter, first: datetime, count: int, priority: Priority) -> list[Mark]:
        """What the meter has of the ``count`` marks from ``first`` on, perhaps with others, in no certain order."""
        ...

    async def read_power(self, meter: Meter, priority: Priority) -> Snapshot: ...

    async def set_relay(self, meter: Meter, *, closed: bool, expires_at: datetime, priority: Priority) -> None: ...

    def close(self) -> None: ...


class Dlt645Dialect:
    """``relay_password``: 8 digits, the level first."""

    def __init__(self, line: Line, relay_password: str | None) -> None:
        self._client = Client(line, DLT645)
        self._relay_password = relay_password

    async def read_marks(self, meter: Meter, first: datetime, count: int, priority: Priority) -> list[Mark]:
        template = _dlt645(meter)
        step = timedelta(seconds=template.profile.interval_s)
        marks: dict[datetime, Mark] = {}
        for offset, size in _pieces(count, template.profile.marks_max):
            wanted = {first + i * step for i in range(offset, offset + size)}
            marks |= await self._read_records(meter, first + offset * step, size, priority)
            if not wanted <= marks.keys():
                # The reply does not say which time was asked for, so one that comes even after the quarantine would
                # pass for "not in memory". Absence must be said twice.
                marks |= await self._read_records(meter, first + offset * step, size, priority)
        return list(marks.values())

    async def _read_records(
        self, meter: Meter, first: datetime, count: int, priority: Priority
    ) -> dict[datetime, Mark]:
        query = dlt645.encode_load_query(count, first, meter.zone)
        try:
            data = await self._ask(meter, dlt645.read(meter.address, dlt645.LOAD_AT, query), priority)
        except MeterError as error:
            if not error.code & dlt645.Fault.NO_SUCH_DATA:  # some meters say so instead of sending no record
                raise
            return {}
        return {
            record.at: Mark(record.at, {name: getattr(record, name) for name in ENERGY_NAMES}, record.is_bad)
            for record in dlt645.decode_load_records(data, meter.zone)
        }

    async def read_power(self, meter: Meter, priority: Priority) -> Snapshot:
        blocks: dict[int, tuple[int | None, ...]] = {}
        values: dict[str, float | int | None] = {}
        for register in _dlt645(meter).register:
            if register.quantity not in POWER_NAMES:
                continue
            if register.di not in blocks:
                data = await self._read(meter, register.di, priority)
                blocks[register.di] = dlt645.decode_item(register.di, data)
            steps = blocks[register.di][register.member]
            values[register.quantity] = None if steps is None else steps * register.scale
        return Snapshot(values, await self._read_clock(meter, priority))

    async def _read_clock(self, meter: Meter, priority: Priority) -> datetime:
        date = await self._read(meter, dlt645.DATE, priority)
        time = await self._read(meter, dlt645.TIME, priority)
        if time[1:] == b"\0\0":  # the first minute of a day: the date may be yesterday's, so both again
            date = await self._read(meter, dlt645.DATE, priority)
            time = await self._read(meter, dlt645.TIME, priority)
        return dlt645.decode_clock(date, time, meter.zone)

    async def set_relay(self, meter: Meter, *, closed: bool, expires_at: datetime, priority: Priority) -> None:
        assert self._relay_password is not None, "the bus sends no order without"
        action = dlt645.RelayAction.CLOSE if closed else dlt645.RelayAction.TRIP
        order = dlt645.RelayOrder(action, self._relay_password, operator="00000000", expires_at=expires_at)
        await self._ask(meter, dlt645.relay(meter.address, order, meter.zone), priority)

    def close(self) -> None:
        self._client.close()

    async def _read(self, meter: Meter, di: int, priority: Priority) -> bytes:
        return await self._ask(meter, dlt645.read(meter.address, di), priority)

    async def _ask(self, meter: Meter, request: dlt645.Frame, priority: Priority) -> bytes:
        answer = await self._client.exchange(request, meter=meter.name, priority=priority)
        return dlt645.decode_reply(request, answer)


class ModbusDialect:
    def __init__(self, line: Line) -> None:
        self._client = Client(line, MODBUS_TCP)
        self._transaction = 0

    async def read_marks(self, meter: Meter, first: datetime, count: int, priority: Priority) -> list[Mark]:
        profile = _modbus(meter).profile
        step = timedelta(seconds=profile.interval_s)
        marks: list[Mark] = []
        at, end = first, first + count * step
        while at < end:
            midnight = datetime(at.year, at.month, at.day, tzinfo=UTC)
            # One file holds one day.
            size = min(profile.marks_max, (min(end, midnight + timedelta(days=1)) - at) // step)
            file = (midnight.date() - profile.day_zero).days
            ranges = [modbus.FileRange(file, (at - midnight) // step * MARK_WORDS, size * MARK_WORDS)]
            try:
                pdu = await self._ask(meter, modbus.encode_read_file(ranges), priority)
                (records,) = modbus.decode_read_file_reply(pdu, ranges)
                marks += _decode_marks(records, profile)
            except MeterError as error:
                if error.code != modbus.Fault.ILLEGAL_DATA_ADDRESS:  # that one says: none of these marks
                    raise
            at += size * step
        return marks

    async def read_power(self, meter: Meter, priority: Priority) -> Snapshot:
        if isinstance(meter.template, ModbusFamily):
            return await self._read_family(meter, meter.template, priority)
        template = _modbus(meter)
        block = _block(template)
        pdu = await self._ask(meter, modbus.encode_read(template.function, block.start, len(block)), priority)
        data = modbus.decode_read_reply(pdu, len(block))
        values = {
            register.quantity: _decode_register(register, data, block.start, template.word_order)
            for register in template.register
            if register.quantity in POWER_NAMES
        }
        start = 2 * (template.clock.address - block.start)
        seconds = modbus.decode_value(data[start : start + 4], template.clock.type, word_order=template.word_order)
        return Snapshot(values, _UNIX + timedelta(seconds=int(seconds or 0)))

    async def _read_family(self, meter: Meter, family: ModbusFamily, priority: Priority) -> Snapshot:
        made = _power_plan(family)
        answers: list[bytes] = []
        for request in made.requests:
            pdu = modbus.encode_read(request.function, request.address, request.count)
            answers.append(modbus.decode_read_reply(await self._ask(meter, pdu, priority), request.count))
        decoded = decode(family, made, answers)
        values = {name: value for name, value in decoded.items() if name in POWER_NAMES and not isinstance(value, str)}
        return Snapshot(values, None)

    async def set_relay(self, meter: Meter, *, closed: bool, expires_at: datetime, priority: Priority) -> None:
        seconds = (expires_at - _UNIX) // timedelta(seconds=1)
        order = modbus.encode_value(0 if closed else 1, "uint16") + modbus.encode_value(seconds, "uint32")
        request = modbus.encode_write_many(_modbus(meter).relay.address, order)
        modbus.check_write_reply(request, await self._ask(meter, request, priority))

    def close(self) -> None:
        self._client.close()

    async def _ask(self, meter: Meter, pdu: bytes, priority: Priority) -> bytes:
        self._transaction = (self._transaction + 1) & 0xFFFF
        request = modbus.Frame(self._transaction, int(meter.address), pdu)
        answer = await self._client.exchange(request, meter=meter.name, priority=priority)
        return answer.pdu


def dialect(line: Line, relay_password: str | None) -> Dialect:
    return Dlt645Dialect(line, relay_password) if line.protocol == "dlt645-2007" else ModbusDialect(line)


def _dlt645(meter: Meter) -> Dlt645Template:
    assert isinstance(meter.template, Dlt645Template), f"{meter.name}: the site check lets no other template here"
    return meter.template


def _modbus(meter: Meter) -> ModbusTemplate:
    assert isinstance(meter.template, ModbusTemplate), f"{meter.name}: the site check lets no other template here"
    return meter.template


def _pieces(count: int, size_max: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of the requests that ``count`` marks need."""
    return ((offset, min(size_max, count - offset)) for offset in range(0, count, size_max))


@cache
def _power_plan(family: ModbusFamily) -> Plan:
    return plan(family, frozenset(it.quantity for it in family.register if it.quantity in POWER_NAMES))


@cache
def _block(template: ModbusTemplate) -> range:
    """The registers from the first to the last that hold power or the clock, read in one request."""
    spans = [
        (register.address, modbus.TYPES[register.type][1])
        for register in template.register
        if register.quantity in POWER_NAMES
    ]
    spans.append((template.clock.address, modbus.TYPES[template.clock.type][1]))
    return range(min(start for start, _ in spans), max(start + words for start, words in spans))


def _decode_register(register: ModbusRegister, data: bytes, first: int, word_order: str) -> float | None:
    start = 2 * (register.address - first)
    raw = data[start : start + 2 * modbus.TYPES[register.type][1]]
    value = modbus.decode_value(raw, register.type, word_order=word_order)
    return None if value is None or value == register.null else value * register.scale


def _decode_marks(records: bytes, profile: ModbusProfile) -> Iterator[Mark]:
    for seconds, *steps in _MARK.iter_unpack(records):
        if seconds != profile.null:
            registers = (None if step == profile.null else step * profile.scale for step in steps)
            yield Mark(_UNIX + timedelta(seconds=seconds), dict(zip(ENERGY_NAMES, registers, strict=True)))
