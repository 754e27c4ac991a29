"""Which read requests a meter is asked: the fewest that hold every wanted register, and of those the fewest registers.

A request is a run of addresses of one function. It may reach over registers nobody asked for: over those the table
lists freely, over others as far as ``gap_max`` allows, over a forbidden one never. No value is cut in two, so both
words of a counter come from one moment.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from itertools import groupby

from protocols import modbus
from protocols.quantities import ENERGY_NAMES
from protocols.templates import Limits, ModbusFamily, ModbusValue


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


def decode(family: ModbusFamily, made: Plan, answers: list[bytes]) -> dict[str, float | int | str | None]:
    """The values of a plan's ``readings``. ``answers``: the registers each request brought, (2 × count,) bytes.

    A value whose scale register says nothing is null: without it, it would be wrong by a power of ten. Raises
    FrameError for registers that cannot be such a value.
    """
    raws = {
        reading.key: answers[reading.request][2 * reading.offset : 2 * (reading.offset + reading.value.count)]
        for reading in made.readings
    }
    decoded: dict[str, float | int | str | None] = {}
    for reading in made.readings:
        value = family.decode(reading.value, raws[reading.key])
        if reading.value.scale_register is not None and isinstance(value, float | int):
            power = modbus.decode_scale(raws[reading.value.scale_register])
            value = None if power is None else value * 10.0**power
            if value is not None and reading.key in ENERGY_NAMES:
                value = round(value)
        decoded[reading.key] = value
    return decoded
