"""Modbus over any framing: makers' families by their plan, and the demo's meter with its load profile."""

import logging
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from typing import Final, Literal

from edge.client import Client, modbus_codec
from edge.dialect.answers import (
    ExpiredError,
    Mark,
    Overheard,
    Snapshot,
    UnsupportedError,
    Values,
    days_after,
    find_frozen,
    local_midnights,
)
from edge.model import ClockReading, ItemReading, ItemValue, Line, Meter, Priority, TapEvent
from edge.plan import Decoder, plan
from protocols import modbus
from protocols.clock import Clock
from protocols.framing import MeterError
from protocols.quantities import ENERGY_NAMES, POWER_NAMES, QUANTITIES
from protocols.templates import (
    MARK_WORDS,
    Limits,
    ModbusExtra,
    ModbusFamily,
    ModbusFreeze,
    ModbusProfile,
    ModbusTemplate,
    usable_freeze,
)

logger = logging.getLogger(__name__)

_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCK: Final = "clock_s"  # an extra: seconds since 1970 UTC
_MARK = struct.Struct(">5I")  # one mark of the demo's load profile: its time, then the registers in ENERGY_NAMES' order
_RAW_ITEM = re.compile(r"([1-4]):(0[xX][0-9A-Fa-f]{1,4}|[0-9]{1,5}):([0-9]{1,4})(?::([a-z]+[0-9]*))?")


class ModbusDialect:
    def __init__(self, line: Line, clock: Clock) -> None:
        self._client = Client(line, modbus_codec(line.protocol))
        self._clock = clock
        self._numbers_requests = line.protocol == "modbus-tcp"
        self._transaction = 0

    # ---- marks -------------------------------------------------------------------------------------------------------

    async def read_marks(self, meter: Meter, first: datetime, count: int, priority: Priority) -> list[Mark]:
        if isinstance(meter.template, ModbusFamily):
            return await self._read_freezes(meter, meter.template, first, count, priority)
        profile = _demo(meter).profile
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

    async def _read_freezes(
        self, meter: Meter, family: ModbusFamily, first: datetime, count: int, priority: Priority
    ) -> list[Mark]:
        freeze = next((it for it in family.freeze if usable_freeze(family, it)), None)
        midnights = local_midnights(first, count, meter.zone)
        if freeze is None or not midnights:
            return []
        if freeze.ratios:
            ratios = await self._read_plan(meter, _planned(family, freeze.ratios), priority)
            if any(ratio != 1 for ratio in ratios.values()):
                # One side of PT and CT in the registers, the other in the blocks: booked together they are a leap.
                logger.debug("frozen blocks left alone meter=%s ratios=%s", meter.name, ratios)
                return []
        marks = [await self._read_freeze(meter, family, freeze, midnight, priority) for midnight in midnights]
        return [mark for mark in marks if mark is not None]

    async def _read_freeze(
        self, meter: Meter, family: ModbusFamily, freeze: ModbusFreeze, mark: datetime, priority: Priority
    ) -> Mark | None:
        blocks: dict[int, Values] = {}

        async def time_of(number: int) -> datetime | None:
            at, blocks[number] = await self._read_block(meter, family, freeze, number, priority)
            return at

        newest = max(1, days_after(mark, self._clock.now(), meter.zone))
        number = await find_frozen(mark, newest, freeze.count, time_of)
        if number is None or all(value is None for value in blocks[number].values()):
            return None
        return Mark(mark, blocks[number], is_verified=freeze.verified)

    async def _read_block(
        self, meter: Meter, family: ModbusFamily, freeze: ModbusFreeze, number: int, priority: Priority
    ) -> tuple[datetime | None, Values]:
        """Block ``number`` in one request, so that its time and its registers belong together. No time: empty."""
        count = max(it.address + it.count for it in freeze.register) - freeze.address
        start = freeze.address + freeze.words * (number - 1)
        pdu = await self._ask(meter, modbus.encode_read(family.function, start, count), priority)
        raw = modbus.decode_read_reply(pdu, count)
        year, month, day, hour = raw[:4]
        try:
            at = datetime(2000 + year, month, day, hour, tzinfo=meter.zone).astimezone(UTC)
        except ValueError:  # FFFFH is empty; and BCD, should a meter use it, is no date of this century's first half
            return None, {}
        values: dict[str, int | None] = {}
        for register in freeze.register:
            offset = 2 * (register.address - freeze.address)
            value = family.decode(register, raw[offset : offset + 2 * register.count])
            values[register.quantity] = value if isinstance(value, int) else None
        return at, values

    # ---- now ---------------------------------------------------------------------------------------------------------

    async def read_counters(self, meter: Meter, priority: Priority) -> Values:
        return _numbers(await self._read_plan(meter, _kind_plan(_family(meter), "energy"), priority))

    async def read_power(self, meter: Meter, priority: Priority) -> Snapshot:
        values = await self._read_plan(meter, _kind_plan(_family(meter), "power"), priority)
        return Snapshot(_numbers(values), _moment(values[_CLOCK]) if _CLOCK in values else None)

    async def _read_plan(
        self, meter: Meter, made: "_PlannedRead", priority: Priority, frames: list[tuple[bytes, bytes]] | None = None
    ) -> dict[str, float | int | str | None]:
        answers = []
        for pdu, count in made.requests:
            answers.append(modbus.decode_read_reply(await self._ask(meter, pdu, priority, frames), count))
        return made.decode(answers)

    async def read_item(self, meter: Meter, item: str, priority: Priority) -> ItemReading:
        frames: list[tuple[bytes, bytes]] = []
        values: tuple[tuple[str, ItemValue, str], ...]
        if match := _RAW_ITEM.fullmatch(item):
            values = await self._read_raw(meter, item, match, priority, frames)
        else:
            family, unit = _find(meter, item)
            found = await self._read_plan(meter, _planned(family, (item,)), priority, frames)
            values = ((item, found[item], unit),)
        request, reply = (b"".join(parts) for parts in zip(*frames, strict=True))
        return ItemReading(item, values, request, reply)

    async def _read_raw(
        self, meter: Meter, item: str, match: re.Match[str], priority: Priority, frames: list[tuple[bytes, bytes]]
    ) -> tuple[tuple[str, ItemValue, str], ...]:
        """``function:address:count[:type]``; without a type each register by itself, as uint16."""
        function, address, count = int(match[1]), int(match[2], 0), int(match[3])
        try:
            pdu = modbus.encode_read(function, address, count)
        except ValueError as error:
            raise UnsupportedError(f'"{item}": {error}') from error
        kind = match[4] or "uint16"
        if function in (modbus.Function.READ_COILS, modbus.Function.READ_DISCRETE):
            bits = modbus.decode_bits_reply(await self._ask(meter, pdu, priority, frames), count)
            return tuple((f"0x{address + i:04X}", int(bit), "") for i, bit in enumerate(bits))
        words = count if kind == "ascii" else modbus.TYPES[kind][1] if kind in modbus.TYPES else 0
        if not words or count % words:
            known = ", ".join((*modbus.TYPES, "ascii"))
            raise UnsupportedError(f'"{item}": one of {known} expected, in whole numbers of its registers')
        data = modbus.decode_read_reply(await self._ask(meter, pdu, priority, frames), count)
        order, octets = _family(meter).word_order, _family(meter).byte_order
        values: list[tuple[str, ItemValue, str]] = []
        for i in range(0, count, words):
            raw = data[2 * i : 2 * (i + words)]
            value: ItemValue
            if kind == "ascii":
                value = modbus.decode_text(raw, byte_order=octets)
            else:
                value = modbus.decode_value(raw, kind, word_order=order, byte_order=octets)
            values.append((f"0x{address + i:04X}", value, ""))
        return tuple(values)

    # ---- clocks and the relay ----------------------------------------------------------------------------------------

    async def read_clock(self, meter: Meter, priority: Priority) -> ClockReading:
        if not isinstance(meter.template, ModbusTemplate):
            raise UnsupportedError(f"{meter.template.name} has no clock in its table")
        heard = Overheard(self._clock)
        untap = self._client.tap(heard)
        try:
            values = await self._read_plan(meter, _planned(_family(meter), (_CLOCK,)), priority)
        finally:
            untap()
        now = self._clock.now()
        return ClockReading(_moment(values[_CLOCK]), heard.sent_at or now, now)

    async def broadcast_clock(self, at: datetime, zone: tzinfo, before: datetime | None) -> None:
        raise UnsupportedError("Modbus has no broadcast of the time")

    async def write_clock(self, meter: Meter, at: datetime, before: datetime | None) -> None:
        raise UnsupportedError(f"{meter.template.name} has no clock to write in its table")

    async def set_relay(self, meter: Meter, *, closed: bool, expires_at: datetime, priority: Priority) -> None:
        if not isinstance(meter.template, ModbusTemplate):
            raise UnsupportedError(f"{meter.template.name} has no relay in its table")
        seconds = (expires_at - _UNIX) // timedelta(seconds=1)
        order = modbus.encode_value(0 if closed else 1, "uint16") + modbus.encode_value(seconds, "uint32")
        pdu = modbus.encode_write_many(meter.template.relay.address, order)

        def send() -> modbus.Frame:
            if self._clock.now() >= expires_at:
                raise ExpiredError(f"the order was valid until {expires_at:%Y-%m-%d %H:%M:%S}Z")
            return self._frame(meter, pdu)

        answer = await self._exchange(meter, send, priority)
        modbus.check_write_reply(pdu, answer.pdu)

    # ---- the line ----------------------------------------------------------------------------------------------------

    async def ask(self, request: modbus.Frame, *, meter_key: str, priority: Priority) -> modbus.Frame:
        return await self._client.exchange(request, meter=meter_key, priority=priority)

    def tap(self, listener: Callable[[TapEvent], None]) -> Callable[[], None]:
        return self._client.tap(listener)

    def close(self) -> None:
        self._client.close()

    def _frame(self, meter: Meter, pdu: bytes) -> modbus.Frame:
        if self._numbers_requests:
            self._transaction = (self._transaction + 1) & 0xFFFF
        return modbus.Frame(self._transaction, int(meter.address), pdu)

    async def _exchange(
        self, meter: Meter, request: modbus.Frame | Callable[[], modbus.Frame], priority: Priority
    ) -> modbus.Frame:
        goes_first = meter.role != "customer"
        return await self._client.exchange(request, meter=meter.name, priority=priority, goes_first=goes_first)

    async def _ask(
        self, meter: Meter, pdu: bytes, priority: Priority, frames: list[tuple[bytes, bytes]] | None = None
    ) -> bytes:
        """The answer's PDU. ``frames`` gathers what went over the line."""
        if frames is None:
            return (await self._exchange(meter, self._frame(meter, pdu), priority)).pdu
        heard = Overheard(self._clock)
        untap = self._client.tap(heard)
        try:
            answer = await self._exchange(meter, self._frame(meter, pdu), priority)
            frames.append((heard.request, bytes(heard.reply)))
            return answer.pdu
        finally:
            untap()


@dataclass(frozen=True, slots=True)
class _PlannedRead:
    """``requests``: each PDU with its number of registers."""

    requests: tuple[tuple[bytes, int], ...]
    decode: Decoder


@cache
def _kind_plan(family: ModbusFamily, kind: Literal["energy", "power"]) -> _PlannedRead:
    """All of a family's registers of one kind; with the power the clock, where the table has one."""
    names = ENERGY_NAMES if kind == "energy" else (*POWER_NAMES, _CLOCK)
    return _planned(family, tuple(it.key for it in family.values if it.key in names))


def _planned(family: ModbusFamily, keys: tuple[str, ...]) -> _PlannedRead:
    made = plan(family, frozenset(keys))
    requests = tuple((modbus.encode_read(it.function, it.address, it.count), it.count) for it in made.requests)
    return _PlannedRead(requests, Decoder(family, made))


def _numbers(values: dict[str, float | int | str | None]) -> Values:
    """Quantities alone, without the scale registers and the clock that were read along."""
    return {name: value for name, value in values.items() if name in QUANTITIES and not isinstance(value, str)}


def _moment(seconds: float | int | str | None) -> datetime:
    return _UNIX + timedelta(seconds=int(seconds or 0))


def _find(meter: Meter, item: str) -> tuple[ModbusFamily, str]:
    """The table that has ``item``, and the item's unit."""
    family = _family(meter)
    for value in family.values:
        if value.key == item:
            return family, value.unit if isinstance(value, ModbusExtra) else QUANTITIES[item].unit
    known = ", ".join(value.key for value in family.values)
    raise UnsupportedError(f'"{item}": function:address:count[:type], such as 3:0x0048:2:float32, or one of {known}')


def _family(meter: Meter) -> ModbusFamily:
    return meter.template if isinstance(meter.template, ModbusFamily) else _as_family(_demo(meter))


@cache
def _as_family(template: ModbusTemplate) -> ModbusFamily:
    """The registers of the demo's meter and its clock, read as a maker's are."""
    return ModbusFamily(
        name=template.name,
        maker="Gridloom",
        models=(),
        phases=3,
        source=template.source,
        function=template.function,
        word_order=template.word_order,
        limits=Limits(),
        probe=(),
        register=template.register,
        extra=(ModbusExtra(name=_CLOCK, address=template.clock.address, type=template.clock.type, unit="s"),),
    )


def _demo(meter: Meter) -> ModbusTemplate:
    assert isinstance(meter.template, ModbusTemplate), f"{meter.name}: the site check lets no other template here"
    return meter.template


def _decode_marks(records: bytes, profile: ModbusProfile) -> Iterator[Mark]:
    for seconds, *steps in _MARK.iter_unpack(records):
        if seconds != profile.null:
            registers = (None if step == profile.null else step * profile.scale for step in steps)
            yield Mark(_UNIX + timedelta(seconds=seconds), dict(zip(ENERGY_NAMES, registers, strict=True)))
