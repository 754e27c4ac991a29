"""DL/T 645-2007 and -1997: load records and freezes, single items, clocks, the relay."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Final

from edge.client import DLT645, Client
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
from protocols import dlt645
from protocols.clock import Clock
from protocols.dlt645 import edition1997
from protocols.framing import FrameError, MeterError
from protocols.quantities import ENERGY_NAMES, POWER_NAMES, QUANTITIES
from protocols.templates import Dlt645Freeze, Dlt645Meter, Dlt645Register, Dlt645Template

logger = logging.getLogger(__name__)

CLOCK_WRITES_MAX: Final = 2  # a meter may pass midnight between the two writes
CLOCK_OFF_MAX: Final = timedelta(seconds=5)  # after it was written
_CLOCK_DIS: Final = {"2007": (dlt645.DATE, dlt645.TIME), "1997": (0xC010, 0xC011)}


class Dlt645Dialect:
    """``password``: 8 digits, the level first."""

    def __init__(self, line: Line, clock: Clock, password: str | None) -> None:
        self._client = Client(line, DLT645)
        self._clock = clock
        self._password = password
        self._edition: dlt645.Edition = "1997" if line.protocol == "dlt645-1997" else "2007"
        self._date, self._time = _CLOCK_DIS[self._edition]

    # ---- marks -------------------------------------------------------------------------------------------------------

    async def read_marks(self, meter: Meter, first: datetime, count: int, priority: Priority) -> list[Mark]:
        template = _template(meter)
        if not isinstance(template, Dlt645Template):
            return []
        if template.profile is None:
            return await self._read_freezes(meter, template.freeze, first, count, priority) if template.freeze else []
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
            data = await self._read(meter, dlt645.LOAD_AT, priority, query)
        except MeterError as error:
            if not error.code & dlt645.Fault.NO_SUCH_DATA:  # some meters say so instead of sending no record
                raise
            return {}
        return {
            record.at: Mark(record.at, {name: getattr(record, name) for name in ENERGY_NAMES}, record.is_bad)
            for record in dlt645.decode_load_records(data, meter.zone)
        }

    async def _read_freezes(
        self, meter: Meter, freeze: Dlt645Freeze, first: datetime, count: int, priority: Priority
    ) -> list[Mark]:
        marks = [
            await self._read_freeze(meter, freeze, midnight, priority)
            for midnight in local_midnights(first, count, meter.zone)
        ]
        return [mark for mark in marks if mark is not None]

    async def _read_freeze(self, meter: Meter, freeze: Dlt645Freeze, mark: datetime, priority: Priority) -> Mark | None:
        """The freeze whose own time is ``mark``. Freezes are counted back from the last, so all move on at midnight."""
        for _ in range(2):
            newest = days_after(mark, self._clock.now(), meter.zone) + 1
            number = await find_frozen(
                mark, newest, freeze.count, lambda number: self._freeze_time(meter, freeze, number, priority)
            )
            if number is None:
                return None
            values = {
                register.quantity: await self._read_frozen(meter, register, number, priority)
                for register in freeze.register
            }
            # The time again: had midnight come meanwhile, some values would be of another day.
            if await self._freeze_time(meter, freeze, number, priority) == mark:
                return Mark(mark, values) if any(value is not None for value in values.values()) else None
        return None

    async def _freeze_time(
        self, meter: Meter, freeze: Dlt645Freeze, number: int, priority: Priority
    ) -> datetime | None:
        try:
            data = await self._read(meter, freeze.time + number - 1, priority)
        except MeterError as error:
            if not error.code & dlt645.Fault.NO_SUCH_DATA:
                raise
            return None
        if len(data) != 5:
            raise FrameError("freeze time: 5 bytes expected", raw=data)
        if not any(data) or data.count(0xFF) == 5:  # nothing frozen there
            return None
        return dlt645.decode_time(data, "MHdmy", meter.zone)

    async def _read_frozen(self, meter: Meter, register: Dlt645Register, number: int, priority: Priority) -> int | None:
        try:
            data = await self._read(meter, register.di + number - 1, priority)
        except MeterError as error:
            if not error.code & dlt645.Fault.NO_SUCH_DATA:  # a single-phase meter freezes no reactive energy
                raise
            return None
        steps = dlt645.decode_item(register.di, data)[register.member]
        return None if steps is None else steps * int(register.scale)

    # ---- now ---------------------------------------------------------------------------------------------------------

    async def read_counters(self, meter: Meter, priority: Priority) -> Values:
        values = await self._read_registers(meter, ENERGY_NAMES, priority)
        return {name: None if value is None else round(value) for name, value in values.items()}

    async def read_power(self, meter: Meter, priority: Priority) -> Snapshot:
        values = await self._read_registers(meter, POWER_NAMES, priority)
        return Snapshot(values, (await self.read_clock(meter, priority)).meter_at)

    async def _read_registers(self, meter: Meter, names: Iterable[str], priority: Priority) -> dict[str, float | None]:
        blocks: dict[int, tuple[int | None, ...]] = {}
        values: dict[str, float | None] = {}
        for register in _template(meter).register:
            if register.quantity not in names:
                continue
            if register.di not in blocks:
                data = await self._read(meter, register.di, priority)
                blocks[register.di] = dlt645.decode_item(register.di, data, self._edition)
            steps = blocks[register.di][register.member]
            values[register.quantity] = None if steps is None else steps * register.scale
        return values

    async def read_item(self, meter: Meter, item: str, priority: Priority) -> ItemReading:
        di, register = self._find(meter, item)
        # Of load records the last one, or the earliest.
        extra = dlt645.encode_load_query(1, None, meter.zone) if di >> 24 == 0x06 else b""
        frames: list[tuple[bytes, bytes]] = []
        data = await self._read(meter, di, priority, extra, frames=frames)
        if register is not None:
            steps = dlt645.decode_item(di, data, self._edition)[register.member]
            value = None if steps is None else steps * Decimal(str(register.scale)).normalize()
            values: Iterable[tuple[str, ItemValue, str]] = [(item, value, QUANTITIES[item].unit)]
        elif extra:
            values = _load_values(di, data)
        else:
            values = _values(dlt645.decode_data(self._edition, di, data))
        request, reply = (b"".join(parts) for parts in zip(*frames, strict=True))
        return ItemReading(item, tuple(values), request, reply)

    def _find(self, meter: Meter, item: str) -> tuple[int, Dlt645Register | None]:
        digits = 4 if self._edition == "1997" else 8
        if re.fullmatch(rf"[0-9A-Fa-f]{{{digits}}}", item):
            return int(item, 16), None
        for register in _template(meter).register:
            if register.quantity == item:
                return register.di, register
        known = ", ".join(register.quantity for register in _template(meter).register)
        raise UnsupportedError(f'"{item}": {digits} hexadecimal digits, or one of {known} expected')

    # ---- clocks ------------------------------------------------------------------------------------------------------

    async def read_clock(self, meter: Meter, priority: Priority) -> ClockReading:
        heard = Overheard(self._clock)
        untap = self._client.tap(heard)
        try:
            date = await self._read(meter, self._date, priority)
            time = await self._read(meter, self._time, priority)
            if time[1:] == b"\0\0":  # the first minute of a day: the date may be yesterday's, so both again
                date = await self._read(meter, self._date, priority)
                time = await self._read(meter, self._time, priority)
        finally:
            untap()
        now = self._clock.now()
        return ClockReading(dlt645.decode_clock(date, time, meter.zone), heard.sent_at or now, now)

    async def broadcast_clock(self, at: datetime, zone: tzinfo, before: datetime | None) -> None:
        ahead = at - self._clock.now()
        await self._client.tell(lambda: dlt645.broadcast_time(self._time_for(before) + ahead, zone))

    def _time_for(self, before: datetime | None) -> datetime:
        """Now, for an order that goes out now. A clock set later than meant may pass a mark."""
        now = self._clock.now()
        if before is not None and now >= before:
            raise ExpiredError(f"the clock was to be set before {before:%Y-%m-%d %H:%M:%S}Z")
        return now

    async def write_clock(self, meter: Meter, at: datetime, before: datetime | None) -> None:
        """Date, then time, as they are when each is sent; then the clock is read to see that it took them."""
        password = self._need_password()
        ahead = at - self._clock.now()
        written = self._clock.now()

        def write(di: int, fields: str) -> Callable[[], dlt645.Frame]:
            def now() -> dlt645.Frame:
                nonlocal written
                written = self._time_for(before) + ahead
                return self._write(meter, di, password, dlt645.encode_time(written, fields, meter.zone))

            return now

        off = timedelta()
        for _ in range(CLOCK_WRITES_MAX):
            dated = None
            while dated != written.astimezone(meter.zone).date():  # midnight came between the two
                await self._order(meter, write(self._date, "wdmy"), Priority.COMMAND)
                dated = written.astimezone(meter.zone).date()
                await self._order(meter, write(self._time, "SMH"), Priority.COMMAND)
            reading = await self.read_clock(meter, Priority.COMMAND)
            off = reading.meter_at - (reading.answered_at + ahead)
            if abs(off) <= CLOCK_OFF_MAX:
                return
        raise FrameError(f"the meter took the time but its clock is {off.total_seconds():+.0f} s off")

    def _write(self, meter: Meter, di: int, password: str, data: bytes) -> dlt645.Frame:
        if self._edition == "1997":
            return edition1997.write(meter.address, di, password, data)
        return dlt645.write(meter.address, di, dlt645.Credentials(password), data)

    def _need_password(self) -> str:
        if self._password is None:
            raise UnsupportedError("no DL/T 645 password: set GRIDLOOM_645_PASSWORD on the gateway")
        return self._password

    # ---- the relay ---------------------------------------------------------------------------------------------------

    async def set_relay(self, meter: Meter, *, closed: bool, expires_at: datetime, priority: Priority) -> None:
        if self._edition == "1997":
            raise UnsupportedError("DL/T 645-1997 has no order for a relay")
        action = dlt645.RelayAction.CLOSE if closed else dlt645.RelayAction.TRIP
        order = dlt645.RelayOrder(action, self._need_password(), operator="00000000", expires_at=expires_at)

        def send() -> dlt645.Frame:
            if self._clock.now() >= expires_at:
                raise ExpiredError(f"the order was valid until {expires_at:%Y-%m-%d %H:%M:%S}Z")
            return dlt645.relay(meter.address, order, meter.zone)

        await self._order(meter, send, priority)

    # ---- the line ----------------------------------------------------------------------------------------------------

    async def ask(self, request: dlt645.Frame, *, meter_key: str, priority: Priority) -> dlt645.Frame:
        return await self._client.exchange(request, meter=meter_key, priority=priority)

    def tap(self, listener: Callable[[TapEvent], None]) -> Callable[[], None]:
        return self._client.tap(listener)

    def close(self) -> None:
        self._client.close()

    async def _read(
        self,
        meter: Meter,
        di: int,
        priority: Priority,
        extra: bytes = b"",
        *,
        frames: list[tuple[bytes, bytes]] | None = None,
    ) -> bytes:
        """The item to its end, over as many frames as it takes. ``frames`` gathers what went over the line."""
        make = edition1997.read if self._edition == "1997" else dlt645.read
        long = dlt645.LongRead(make(meter.address, di, extra))
        heard = Overheard(self._clock)
        untap = self._client.tap(heard) if frames is not None else None
        try:
            data = None
            while data is None:
                answer = await self._exchange(meter, long.request, priority)
                if frames is not None:
                    frames.append((heard.request, bytes(heard.reply)))
                data = long.take(answer)
            return data
        finally:
            if untap is not None:
                untap()

    async def _order(self, meter: Meter, request: Callable[[], dlt645.Frame], priority: Priority) -> None:
        dlt645.raise_refusal(await self._exchange(meter, request, priority))

    async def _exchange(
        self, meter: Meter, request: dlt645.Frame | Callable[[], dlt645.Frame], priority: Priority
    ) -> dlt645.Frame:
        goes_first = meter.role != "customer"
        return await self._client.exchange(request, meter=meter.name, priority=priority, goes_first=goes_first)


def _template(meter: Meter) -> Dlt645Meter:
    assert isinstance(meter.template, Dlt645Meter), f"{meter.name}: the site check lets no other template here"
    return meter.template


def _pieces(count: int, size_max: int) -> Iterator[tuple[int, int]]:
    """(offset, size) of the requests that ``count`` marks need."""
    return ((offset, min(size_max, count - offset)) for offset in range(0, count, size_max))


def _values(found: dlt645.Decoded) -> Iterator[tuple[str, ItemValue, str]]:
    item = found.item
    if item is None or found.flag or not found.values:
        yield (found.flag or "raw", found.raw.hex(" "), "")
        return
    for i, value in enumerate(found.values):
        name = item.name if len(found.values) == 1 else f"{item.name} {i + 1}"
        yield (name, _plain(value), item.unit if isinstance(value, Decimal) else "")


def _load_values(di: int, data: bytes) -> Iterator[tuple[str, ItemValue, str]]:
    for block in dlt645.decode_load_blocks(data, class_asked=di >> 16 & 0xFF):
        yield ("at", _plain(block.at), "")
        for kind, numbers in zip(dlt645.CLASSES, block.classes, strict=True):
            for name, number in zip(kind.names, numbers or (), strict=numbers is not None):
                quantity, _, unit = name.rpartition("_")
                yield (quantity, _plain(number), unit) if unit in _LOAD_UNITS else (name, _plain(number), "")


_LOAD_UNITS: Final = {"v", "a", "hz", "kw", "kvar", "kwh", "kvarh"}


def _plain(value: dlt645.Value) -> ItemValue:
    match value:
        case dlt645.Rejected(raw, reason):
            return f"{raw.hex(' ')} ({reason})"
        case dlt645.Raw(raw):
            return raw.hex(" ")
        case dlt645.Word(digits):
            return f"0x{digits}"
        case dlt645.Digits(digits):
            return digits
        case dlt645.MeterTime():
            return str(value)
        case _:
            return value
