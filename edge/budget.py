"""How long what is asked takes on a line of known speed, and whether a sweep of its meters fits the interval.

Pure arithmetic: bytes × the bits of a character / baud, the time a meter may take to answer, and the silence the
protocol demands. The client takes its deadlines from here, so that what ``meterctl check`` promises is what it waits.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

from edge.model import Line, Meter, Protocol, SerialSetting
from edge.plan import plan
from protocols import dlt645, modbus
from protocols.quantities import ENERGY_NAMES, POWER_NAMES
from protocols.templates import (
    MARK_WORDS,
    Dlt645Profile,
    Dlt645Template,
    Dlt645Template1997,
    ModbusFamily,
    ModbusProfile,
    ModbusTemplate,
    has_profile,
)

Request: TypeAlias = dlt645.Frame | modbus.Frame

# Of the interval, for the sweep; the rest is for gaps, commands, clocks, and meters that are asked again.
SWEEP_SHARE_MAX: Final = 0.8

RTU_SILENCE_CHARS: Final = 3.5  # V1.02 §2.5.1.1: what parts two frames …
RTU_SILENCE_FAST_S: Final = 0.00175  # … and what does above 19,200 baud
# ASCII and DL/T 645 demand none: one character, until the driver of the meter that spoke has let go of the line.
SILENCE_CHARS: Final = 1.0

_RTU_BYTES: Final = 3  # unit and CRC around a PDU
_645_BYTES: Final = dlt645.PREAMBLE_BYTES + 12
_DI_BYTES: Final = 4
_CLOCK_1997: Final = (0xC010, 0xC011)  # date and time
_DAY: Final = timedelta(days=1)
_LOAD_RECORD_BYTES: Final = 32  # of class 4 alone
_A_MARK: Final = datetime(2026, 1, 1, tzinfo=UTC)  # any will do: a time always has the same length


def silence_s(protocol: Protocol, setting: SerialSetting) -> float:
    """What must pass in silence before a request."""
    if protocol.startswith("dlt645") or protocol == "modbus-ascii":
        return SILENCE_CHARS * setting.char_s
    return RTU_SILENCE_FAST_S if setting.baud > 19_200 else RTU_SILENCE_CHARS * setting.char_s


def request_bytes(protocol: Protocol, request: Request) -> int:
    """On the serial line; behind a gateway for Modbus TCP that is RTU."""
    if isinstance(request, dlt645.Frame):
        return _645_BYTES + len(request.data)
    return _modbus_bytes(protocol, len(request.pdu))


def reply_bytes(protocol: Protocol, request: Request) -> int:
    """The longest answer to ``request`` that is not a fault of the meter, on the serial line."""
    if isinstance(request, dlt645.Frame):
        return _645_BYTES + _reply_data_bytes(request)
    return _modbus_bytes(protocol, _reply_pdu_bytes(request.pdu))


def _modbus_bytes(protocol: Protocol, pdu_bytes: int) -> int:
    # ASCII: a colon, two digits a byte of unit, PDU and LRC, CR LF.
    return 1 + 2 * (pdu_bytes + 2) + 2 if protocol == "modbus-ascii" else pdu_bytes + _RTU_BYTES


def _reply_pdu_bytes(asked: bytes) -> int:
    function = asked[0]
    count = int.from_bytes(asked[3:5], "big")
    match function:
        case modbus.Function.READ_COILS | modbus.Function.READ_DISCRETE:
            return min(2 + math.ceil(count / 8), modbus.PDU_BYTES_MAX)
        case modbus.Function.READ_HOLDING | modbus.Function.READ_INPUT:
            return min(2 + 2 * count, modbus.PDU_BYTES_MAX)
        case (
            modbus.Function.WRITE_COIL
            | modbus.Function.WRITE_ONE
            | modbus.Function.WRITE_COILS
            | modbus.Function.WRITE_MANY
        ):
            return 5
        case modbus.Function.READ_FILE:
            counts = (int.from_bytes(asked[at : at + 2], "big") for at in range(7, len(asked), 7))
            return min(2 + sum(2 + 2 * words for words in counts), modbus.PDU_BYTES_MAX)
    return modbus.PDU_BYTES_MAX


def _reply_data_bytes(request: dlt645.Frame) -> int:
    di, asked = request.di, request.data[request.di_bytes :]
    if request.function == dlt645.Function.READ_ADDRESS:
        return 6
    if di is None:
        return 4 if request.function > dlt645.Function.READ_ADDRESS else dlt645.DATA_BYTES_MAX
    if di == dlt645.LOAD_AT and asked:
        return min(_DI_BYTES + asked[0] * _LOAD_RECORD_BYTES, dlt645.DATA_BYTES_MAX)
    item = (dlt645.ITEMS_1997 if request.edition == "1997" else dlt645.ITEMS).get(di)
    if item is None or item.size is None or item.is_open:
        return dlt645.DATA_BYTES_MAX
    return min(_DI_BYTES + item.size, dlt645.DATA_BYTES_MAX)


# ---- does a plan fit -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """What one sweep of a line's meters takes at most: energy and power of all, their clocks with it.

    ``meters``: (how many, seconds each). ``day_s``: what reading one day of every meter from its memory takes.
    """

    line: str
    setting: SerialSetting
    reply_delay_s: float
    meters: tuple[tuple[int, float], ...]
    day_s: float
    interval_s: float

    @property
    def sweep_s(self) -> float:
        return sum(count * each_s for count, each_s in self.meters)

    @property
    def share(self) -> float:
        return self.sweep_s / self.interval_s

    @property
    def fits(self) -> bool:
        return self.share <= SWEEP_SHARE_MAX

    @property
    def arithmetic(self) -> str:
        meters = " + ".join(f"{count} meter{'s' * (count > 1)} × {each_s:.1f} s" for count, each_s in self.meters)
        return (
            f"{meters} = {self.sweep_s:.0f} s of {self.interval_s:.0f} s ({100 * self.share:.0f} %) "
            f"at {self.setting} when each answer begins after {self.reply_delay_s:g} s"
        )

    def __str__(self) -> str:
        if not self.fits:
            return (
                f"line {self.line}: {self.arithmetic}; at most {100 * SWEEP_SHARE_MAX:.0f} %, the rest is for gaps. "
                "Fewer meters a line or a higher baud, or, where they answer sooner, a lower read_timeout_s"
            )
        if not self.day_s:
            return f"line {self.line}: {self.arithmetic}"
        # The sweep goes on meanwhile; gaps are filled in what it leaves.
        fill_h = self.day_s / (1 - self.share) / 3600
        return f"line {self.line}: {self.arithmetic}; one day of gaps of all is filled in {fill_h:.1f} h"


def budget(line: Line, meters: Sequence[Meter], interval_s: float) -> Budget | None:
    """None where the speed is not known."""
    setting = line.setting
    if setting is None:
        return None
    each = Counter(round(sum(_exchange_s(line, setting, it) for it in _sweep(meter)), 3) for meter in meters)
    return Budget(
        line=line.name,
        setting=setting,
        reply_delay_s=line.read_timeout_s,
        meters=tuple((count, each_s) for each_s, count in each.most_common()),
        day_s=sum(_exchange_s(line, setting, it) for meter in meters for it in _day(meter)),
        interval_s=interval_s,
    )


def _exchange_s(line: Line, setting: SerialSetting, request: Request) -> float:
    size = request_bytes(line.protocol, request) + reply_bytes(line.protocol, request)
    return silence_s(line.protocol, setting) + size * setting.char_s + line.read_timeout_s


def _sweep(meter: Meter) -> Iterator[Request]:
    """What the dialects ask for one mark's energy and power; of a 645 meter date and time besides."""
    template = meter.template
    wanted = POWER_NAMES if has_profile(template) else (*ENERGY_NAMES, *POWER_NAMES)
    match template:
        case Dlt645Template(register=registers):
            if template.profile is not None:
                yield _load(meter, 1)
            for di in dict.fromkeys(it.di for it in registers if it.quantity in wanted):
                yield dlt645.read(meter.address, di)
            yield dlt645.read(meter.address, dlt645.DATE)
            yield dlt645.read(meter.address, dlt645.TIME)
        case Dlt645Template1997(register=registers):
            for di in (*dict.fromkeys(it.di for it in registers if it.quantity in wanted), *_CLOCK_1997):
                yield dlt645.edition1997.read(meter.address, di)
        case ModbusTemplate(register=words, clock=clock):
            yield _file(meter, 1)
            spans = [(it.address, it.count) for it in words if it.quantity in wanted]
            spans.append((clock.address, modbus.TYPES[clock.type][1]))
            first = min(address for address, _ in spans)
            last = max(address + count for address, count in spans)
            yield modbus.Frame(0, int(meter.address), modbus.encode_read(template.function, first, last - first))
        case ModbusFamily(register=words):
            for names in (ENERGY_NAMES, POWER_NAMES):
                keys = frozenset(it.quantity for it in words if it.quantity in names)
                for span in plan(template, keys).requests:
                    pdu = modbus.encode_read(span.function, span.address, span.count)
                    yield modbus.Frame(0, int(meter.address), pdu)


def _day(meter: Meter) -> Iterator[Request]:
    """What one day of marks from the meter's memory takes; nothing where it notes none."""
    match meter.template:
        case Dlt645Template(profile=Dlt645Profile() as profile):
            yield from _marks(meter, profile, _load)
        case ModbusTemplate(profile=profile):
            yield from _marks(meter, profile, _file)


def _marks(
    meter: Meter, profile: Dlt645Profile | ModbusProfile, ask: Callable[[Meter, int], Request]
) -> Iterator[Request]:
    left = _DAY // timedelta(seconds=profile.interval_s)
    while left > 0:
        yield ask(meter, min(left, profile.marks_max))
        left -= profile.marks_max


def _load(meter: Meter, count: int) -> Request:
    query = dlt645.encode_load_query(count, _A_MARK, meter.zone)
    return dlt645.read(meter.address, dlt645.LOAD_AT, query)


def _file(meter: Meter, count: int) -> Request:
    pdu = modbus.encode_read_file([modbus.FileRange(1, 0, count * MARK_WORDS)])
    return modbus.Frame(0, int(meter.address), pdu)
