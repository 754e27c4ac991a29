"""The planner: covers everything, keeps every limit, never reads a forbidden gap, and no plan is shorter."""

import random
import struct
from collections.abc import Iterator
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from edge.plan import PlanError, Span, coalesce, decode, plan
from protocols import modbus, templates
from protocols.framing import FrameError
from protocols.quantities import POWER_NAMES
from protocols.templates import Limits, ModbusExtra, ModbusFamily, ModbusRegister, Probe

FAMILIES = [name for name in templates.names() if isinstance(templates.load(name), ModbusFamily)]

spans = st.builds(Span, st.sampled_from([3, 4]), st.integers(0, 24), st.integers(1, 4))
limits = st.builds(
    Limits,
    words_max=st.integers(4, 16),
    gap_max=st.integers(0, 6),
    forbidden=st.lists(st.integers(0, 28).map(lambda a: (a, a)), max_size=3).map(tuple),
)


def family(name: str) -> ModbusFamily:
    template = templates.load(name)
    assert isinstance(template, ModbusFamily)
    return template


def is_forbidden(span: Span, bounds: Limits) -> bool:
    return any(a < span.end and span.address <= b for a, b in bounds.forbidden)


def check(requests: list[Span], wanted: list[Span], bounds: Limits, listed: list[Span]) -> None:
    for span in wanted:
        assert any(
            request.function == span.function and request.address <= span.address and span.end <= request.end
            for request in requests
        ), span
    for request in requests:
        assert request.count <= bounds.words_max
        assert not is_forbidden(request, bounds)
        readable = {
            a for span in (*wanted, *listed) if span.function == request.function for a in range(span.address, span.end)
        }
        gap = 0
        for address in range(request.address, request.end):
            gap = 0 if address in readable else gap + 1
            assert gap <= bounds.gap_max


def partitions(items: list[Span]) -> Iterator[list[list[Span]]]:
    if not items:
        yield []
        return
    head, *rest = items
    for parts in partitions(rest):
        yield [[head], *parts]
        for i in range(len(parts)):
            yield [*parts[:i], [head, *parts[i]], *parts[i + 1 :]]


def brute_force(wanted: list[Span], bounds: Limits, listed: list[Span]) -> tuple[int, int]:
    """(requests, registers) of the best of all ways to group the spans."""
    costs = []
    for parts in partitions(wanted):
        hulls = []
        for part in parts:
            if len({span.function for span in part}) > 1:
                break
            start, end = min(span.address for span in part), max(span.end for span in part)
            hulls.append(Span(part[0].function, start, end - start))
        else:
            try:
                check(hulls, wanted, bounds, listed)
            except AssertionError:
                continue
            costs.append((len(hulls), sum(hull.count for hull in hulls)))
    return min(costs)


@given(st.lists(spans, max_size=6, unique=True), limits, st.lists(spans, max_size=4))
def test_no_grouping_needs_fewer_requests_or_then_fewer_registers(
    wanted: list[Span], bounds: Limits, listed: list[Span]
) -> None:
    wanted = [span for span in wanted if not is_forbidden(span, bounds)]
    requests = coalesce(wanted, bounds, listed)
    check(requests, wanted, bounds, listed)
    assert (len(requests), sum(request.count for request in requests)) == brute_force(wanted, bounds, listed)


@given(st.lists(spans, max_size=40), limits)
def test_a_plan_covers_everything_and_keeps_the_limits(wanted: list[Span], bounds: Limits) -> None:
    wanted = [span for span in wanted if not is_forbidden(span, bounds)]
    check(coalesce(iter(wanted), bounds), wanted, bounds, [])


def test_a_request_stops_before_a_forbidden_register() -> None:
    wanted = [Span(3, 0, 2), Span(3, 4, 2)]
    assert coalesce(wanted, Limits(gap_max=5)) == [Span(3, 0, 6)]
    assert coalesce(wanted, Limits(gap_max=5, forbidden=((2, 2),))) == wanted
    assert coalesce(wanted, Limits(gap_max=1)) == wanted
    assert coalesce(wanted, Limits(gap_max=0), [Span(3, 2, 2)]) == [Span(3, 0, 6)]


@pytest.mark.parametrize("bounds", [Limits(forbidden=((1, 1),)), Limits(words_max=1)])
def test_what_cannot_be_read_is_refused(bounds: Limits) -> None:
    with pytest.raises(PlanError, match="registers 0 to 1"):
        coalesce([Span(3, 0, 2)], bounds)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_whole_table_can_be_planned(name: str) -> None:
    it = family(name)
    listed = [Span(it.function_of(value), value.address, value.count) for value in it.values]
    made = plan(it, frozenset(value.key for value in it.values))
    check(list(made.requests), listed, it.limits, [])
    assert len(made.readings) == len(it.values)


@pytest.mark.parametrize(
    ("name", "requests"), [("eastron-sdm72v2", 1), ("eastron-sdm630", 1), ("chint-dtsu666", 3), ("abb-b23-a43", 5)]
)
def test_the_power_of_a_family_takes_few_requests(name: str, requests: int) -> None:
    it = family(name)
    wanted = frozenset(register.quantity for register in it.register if register.quantity in POWER_NAMES)
    assert len(plan(it, wanted).requests) == requests


def test_a_plan_decodes_what_its_requests_bring() -> None:
    it = family("eastron-sdm630")
    made = plan(it, frozenset({"voltage_l1_v", "frequency_hz", "energy_import_wh"}))
    (request,) = made.requests
    image = bytearray(2 * request.count)
    for address, raw in ((0, 231.5), (70, 50.0), (72, 16_384.0)):
        struct.pack_into(">f", image, 2 * (address - request.address), raw)
    assert decode(it, made, [bytes(image)]) == {
        "voltage_l1_v": 231.5,
        "frequency_hz": 50.0,
        "energy_import_wh": 16_384_000,
    }


@pytest.mark.parametrize(("power", "value"), [(b"\xff\xff", 23.0), (b"\0\0", 230.0), (b"\x80\0", None)])
def test_a_scale_register_is_read_along_and_applied(power: bytes, value: float | None) -> None:
    it = ModbusFamily(
        name="x",
        maker="Nobody",
        models=(),
        phases=1,
        source="a test",
        function=3,
        word_order="big",
        limits=Limits(),
        probe=(Probe("voltage_l1_v", 0, 1),),
        register=(ModbusRegister(quantity="voltage_l1_v", address=0, type="uint16", scale_register="power"),),
        extra=(ModbusExtra(name="power", address=9, type="int16", null=-0x8000),),
    )
    made = plan(it, frozenset({"voltage_l1_v"}))
    assert made.requests == (Span(3, 0, 1), Span(3, 9, 1))
    assert decode(it, made, [b"\x00\xe6", power])["voltage_l1_v"] == (value and pytest.approx(value))


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_compiled_decoder_says_what_the_table_says(name: str, rng: random.Random) -> None:
    it = family(name)
    made = plan(it, frozenset(value.key for value in it.values if not value.scale_register))
    common = (b"\x00\x00", b"\xff\xff", b"\x7f\xc0", b"\x7f\x80", b"\x80\x00", b"\x12\x34")
    answers = [
        b"".join(rng.choice(common) if rng.random() < 0.4 else rng.randbytes(2) for _ in range(request.count))
        for request in made.requests
    ]
    expected: dict[str, object] = {}
    wrong = False
    for reading in made.readings:
        raw = answers[reading.request][2 * reading.offset : 2 * (reading.offset + reading.value.count)]
        try:
            expected[reading.key] = it.decode(reading.value, raw)
        except FrameError:
            wrong = True
    if wrong:
        with pytest.raises(FrameError):
            decode(it, made, answers)
    else:
        decoded = decode(it, made, answers)
        assert decoded == expected
        assert {key: type(value) for key, value in decoded.items()} == {k: type(v) for k, v in expected.items()}


@pytest.mark.parametrize(("words", "octets"), [(w, o) for w in ("big", "little") for o in ("big", "little")])
def test_orders_may_differ_within_one_answer(words: Literal["big", "little"], octets: Literal["big", "little"]) -> None:
    it = ModbusFamily(
        name="x",
        maker="Nobody",
        models=(),
        phases=1,
        source="a test",
        function=3,
        word_order="big",
        limits=Limits(),
        probe=(Probe("voltage_l1_v", 0, 1),),
        register=(
            ModbusRegister(quantity="voltage_l1_v", address=0, type="float32"),
            ModbusRegister(
                quantity="energy_import_wh", address=2, type="int64", scale=10.0, word_order=words, byte_order=octets
            ),
        ),
        extra=(
            ModbusExtra(name="low", address=3, type="uint16"),  # the same registers, named twice
            ModbusExtra(name="digits", address=6, type="bcd32", word_order=words, byte_order=octets),
            ModbusExtra(name="text", address=8, type="ascii", words=2, byte_order=octets),
        ),
    )
    energy = modbus.encode_value(2**59 + 1, "int64", word_order=words, byte_order=octets)
    answer = modbus.encode_value(230.5, "float32") + energy
    answer += modbus.encode_value(12_345_678, "bcd32", word_order=words, byte_order=octets)
    answer += modbus.encode_text("abc", 2, byte_order=octets)
    made = plan(it, frozenset(value.key for value in it.values))
    assert decode(it, made, [answer]) == {
        "voltage_l1_v": 230.5,
        "energy_import_wh": 10 * (2**59 + 1),
        "low": int.from_bytes(energy[2:4], "big"),
        "digits": 12_345_678,
        "text": "abc",
    }


@pytest.mark.parametrize("type_", ["float32", "float64", "uint64"])
def test_an_energy_that_no_row_can_carry_is_none(type_: str) -> None:
    """A float in the wrong word order is such a number."""
    register = ModbusRegister(quantity="energy_import_wh", address=0, type=type_, scale=1000.0)
    it = replace(family("eastron-sdm630"), register=(register,), extra=())
    raw = (b"\x7f\x7f" + b"\xff" * 6 if type_ == "float32" else b"\x7f\xef" + b"\xff" * 6)[: 2 * register.count]
    assert it.decode(register, raw) is None
    assert decode(it, plan(it, frozenset(["energy_import_wh"])), [raw]) == {"energy_import_wh": None}
