"""Which read requests a meter is asked: the fewest that hold every wanted register, and of those the fewest registers.

A request is a run of addresses of one function. It may reach over registers nobody asked for: over those the table
lists freely, over others as far as ``gap_max`` allows, over a forbidden one never. No value is cut in two, so both
words of a counter come from one moment.
"""

import math
import struct
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby

from protocols import modbus
from protocols.quantities import ENERGY_NAMES
from protocols.templates import ENERGY_BOUND, Limits, ModbusFamily, ModbusValue


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """``count`` registers from ``address`` on, zero-based, read with ``function``. As wanted, and as a request."""

    function: int
    address: int
    count: int

    @property
    def end(self) -> int:
        return self.address + self.count


class PlanError(ValueError):
    """No plan exists: what is wanted is forbidden, or longer than a request."""


@dataclass(frozen=True, slots=True)
class Reading:
    """``value`` lies ``offset`` registers into the answer to request number ``request``."""

    value: ModbusValue
    key: str
    request: int
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    requests: tuple[Span, ...]
    readings: tuple[Reading, ...]


def coalesce(wanted: Iterable[Span], limits: Limits, listed: Iterable[Span] = ()) -> list[Span]:
    """The requests for ``wanted``. ``listed``: what else is known to be readable, so it is no gap.

    Raises PlanError. Exact, by dynamic programming over the spans in order of address, O(n × spans in one request):

    Whether a run of addresses may be asked for depends on the run alone, and every part of an allowed run that begins
    and ends with a listed register is allowed. So some optimum cuts the ordered spans into consecutive pieces: of two
    requests that begin at a < b, spans of the first that begin at b or later fit into the second, or the second lay
    inside the first and was not needed; moving them lengthens nothing.
    """
    requests: list[Span] = []
    ordered = sorted(set(wanted))
    known = {*listed, *ordered}
    for function, spans in groupby(ordered, key=lambda span: span.function):
        readable = {a for span in known if span.function == function for a in range(span.address, span.end)}
        requests += _coalesce(list(spans), limits, readable)
    return requests


def _coalesce(spans: list[Span], limits: Limits, readable: Collection[int]) -> list[Span]:
    # best[i]: (requests, registers, start of the last piece) of the first i spans.
    best: list[tuple[int, int, int]] = [(0, 0, 0)]
    for i in range(len(spans)):
        found: tuple[int, int, int] | None = None
        end = 0
        for first in range(i, -1, -1):
            end = max(end, spans[first].end)
            run = range(spans[first].address, end)
            if not _is_allowed(run, limits, readable):
                break  # neither is any longer one
            candidate = (best[first][0] + 1, best[first][1] + len(run), first)
            found = candidate if found is None else min(found, candidate)
        if found is None:
            span = spans[i]
            what = f"registers {span.address} to {span.end - 1}"
            raise PlanError(f"{what}: forbidden, or longer than {limits.words_max} registers")
        best.append(found)
    requests: list[Span] = []
    stop = len(spans)
    while stop:
        first = best[stop][2]
        piece = spans[first:stop]
        address, end = piece[0].address, max(span.end for span in piece)
        requests.append(Span(piece[0].function, address, end - address))
        stop = first
    return requests[::-1]


def _is_allowed(run: range, limits: Limits, readable: Collection[int]) -> bool:
    if len(run) > limits.words_max or any(a <= run[-1] and run[0] <= b for a, b in limits.forbidden):
        return False
    gap = 0
    for address in run:
        gap = 0 if address in readable else gap + 1
        if gap > limits.gap_max:
            return False
    return True


@cache
def plan(family: ModbusFamily, keys: frozenset[str]) -> Plan:
    """How to read the registers and extras named in ``keys``, and the scale registers they need.

    Raises PlanError where there is no plan, KeyError for a name the table does not have.
    """
    values = {value.key: value for value in family.values}
    wanted = {key: values[key] for key in keys}
    for value in list(wanted.values()):
        if value.scale_register:
            wanted[value.scale_register] = values[value.scale_register]
    spans = {key: Span(family.function_of(value), value.address, value.count) for key, value in wanted.items()}
    listed = [Span(family.function_of(value), value.address, value.count) for value in family.values]
    requests = coalesce(spans.values(), family.limits, listed)
    readings: list[Reading] = []
    for key, span in sorted(spans.items(), key=lambda item: (item[1], item[0])):
        number = next(
            i
            for i, request in enumerate(requests)
            if request.function == span.function and request.address <= span.address and span.end <= request.end
        )
        readings.append(Reading(wanted[key], key, number, span.address - requests[number].address))
    return Plan(tuple(requests), tuple(readings))


class Decoder:
    """``plan``'s answers to values, compiled: one ``struct`` for all numbers of a request that share an order.

    Values are None where the meter says "none", where no row could carry them, and where the scale register says
    nothing, since without it a value would be wrong by a power of ten.
    """

    def __init__(self, family: ModbusFamily, made: Plan) -> None:
        self._blocks = [
            block for number, request in enumerate(made.requests) for block in _blocks(family, made, number, request)
        ]
        self._others = [
            (reading, partial(family.decode, reading.value))
            for reading in made.readings
            if _letter(reading.value) is None
        ]
        self._scaled = [(reading.key, reading.value.scale_register) for reading in made.readings]
        self._powers = {
            name: next(it for it in made.readings if it.key == name) for _, name in self._scaled if name is not None
        }

    def __call__(self, answers: Sequence[bytes]) -> dict[str, float | int | str | None]:
        """``answers``: the registers each request brought, (2 × count,) bytes. Raises FrameError for what is no such
        value."""
        values: dict[str, float | int | str | None] = {}
        for block in self._blocks:
            raw = answers[block.request]
            if block.swaps_bytes:
                words = array("H", raw)
                words.byteswap()
                raw = words.tobytes()
            for key, scale, null, is_energy, steps in zip(
                block.keys, block.scales, block.nulls, block.energies, block.layout.unpack(raw), strict=True
            ):
                scaled = steps * scale
                if steps == null or scaled - scaled != 0:  # NaN and infinity differ from themselves
                    values[key] = None
                elif not is_energy:
                    values[key] = scaled
                else:
                    values[key] = round(scaled) if abs(scaled) < ENERGY_BOUND else None
        for reading, decode_one in self._others:
            values[reading.key] = decode_one(_raw(reading, answers))
        if self._powers:
            self._apply_powers(values, answers)
        return values

    def _apply_powers(self, values: dict[str, float | int | str | None], answers: Sequence[bytes]) -> None:
        powers = {name: modbus.decode_scale(_raw(reading, answers)) for name, reading in self._powers.items()}
        for key, name in self._scaled:
            value = values[key]
            if name is None or isinstance(value, str) or value is None:
                continue
            power = powers[name]
            scaled = None if power is None else value * 10.0**power
            if scaled is None or not math.isfinite(scaled):
                values[key] = None
            elif key in ENERGY_NAMES:
                values[key] = round(scaled) if abs(scaled) < ENERGY_BOUND else None
            else:
                values[key] = scaled


@dataclass(frozen=True, slots=True)
class _Block:
    """The numbers of one request in one order; ``layout`` takes its whole answer."""

    request: int
    layout: struct.Struct
    swaps_bytes: bool
    keys: tuple[str, ...]
    scales: tuple[float | int, ...]
    nulls: tuple[int | None, ...]
    energies: tuple[bool, ...]


def _letter(value: ModbusValue) -> str | None:
    """The struct letter of a number; None for what takes more than that: text and BCD."""
    return None if value.type == "ascii" or value.type.startswith("bcd") else modbus.TYPES[value.type][0]


def _blocks(family: ModbusFamily, made: Plan, number: int, request: Span) -> Iterator[_Block]:
    # Low words first is high words first with all bytes of the block turned round, so each order is a struct's own
    # after at most one swap of the bytes of every register.
    found: dict[tuple[str, bool], list[Reading]] = {}
    for reading in made.readings:
        if reading.request == number and _letter(reading.value) is not None:
            words = reading.value.word_order or family.word_order
            octets = reading.value.byte_order or family.byte_order
            found.setdefault(("<" if words == "little" else ">", words != octets), []).append(reading)
    for (endian, swaps), readings in found.items():
        left = sorted(readings, key=lambda it: it.offset)
        while left:  # more than once where a table names registers twice
            text, at = endian, 0
            taken: list[Reading] = []
            for reading in left:
                if reading.offset >= at:
                    text += f"{2 * (reading.offset - at)}x{_letter(reading.value)}"
                    at = reading.offset + reading.value.count
                    taken.append(reading)
            left = [reading for reading in left if reading not in taken]
            scales = tuple(_scale(reading.value) for reading in taken)
            yield _Block(
                number,
                struct.Struct(f"{text}{2 * (request.count - at)}x"),
                swaps,
                tuple(reading.key for reading in taken),
                scales,
                tuple(reading.value.null for reading in taken),
                tuple(reading.key in ENERGY_NAMES for reading in taken),
            )


def _scale(value: ModbusValue) -> float | int:
    """An integer where the product is one, so that it is exact also past 2**53."""
    return int(value.scale) if value.scale.is_integer() and value.type not in ("float32", "float64") else value.scale


def _raw(reading: Reading, answers: Sequence[bytes]) -> bytes:
    return answers[reading.request][2 * reading.offset : 2 * (reading.offset + reading.value.count)]


def decode(family: ModbusFamily, made: Plan, answers: Sequence[bytes]) -> dict[str, float | int | str | None]:
    """``Decoder`` for once."""
    return Decoder(family, made)(answers)
