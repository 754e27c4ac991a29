"""The arithmetic of a line, against what the bus really sends and what the codecs really encode."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from edge.budget import Budget, Request, _day, _sweep, budget, reply_bytes, request_bytes, silence_s
from edge.bus import Bus
from edge.model import Line, Meter, Protocol, SerialEndpoint, SerialSetting, TapEvent, TcpEndpoint
from protocols import dlt645, modbus, templates
from protocols.clock import SystemClock
from protocols.templates import ModbusFamily
from simulators import lines
from simulators.lines import SerialLine, Setting, dlt645_meter, modbus_meter
from tests.edge.endpoint import MARK, Endpoint
from tests.edge.serial import items

SLOW = SerialSetting(2400, "E")
FAST = SerialSetting(115_200, "N")


def meter(template: str, address: str = "7") -> Meter:
    loaded = templates.load(template)
    is_645 = templates.protocol(loaded).startswith("dlt645")
    return Meter("m", address.zfill(12) if is_645 else address, loaded)


def line(protocol: Protocol, setting: SerialSetting = SLOW, read_timeout_s: float = 0.5) -> Line:
    return Line("rs485-1", protocol, SerialEndpoint("/dev/ttyUSB0", setting), read_timeout_s)


def test_a_sixty_meter_line_worked_by_hand() -> None:
    """Four requests of one item, a load record and the clock: 9 × (11 bits × bytes / 2400 + 0.5 s + one character).

    A read is 20 bytes with the preamble, its reply 20 and the item; the load query has 6 more, its record 32.
    """
    found = budget(line("dlt645-2007"), [meter("dlt645-2007", str(i)) for i in range(1, 61)], 900)
    assert found is not None
    # power, reactive power: 4 × 3 bytes; voltage: 3 × 2; current: 3 × 3; power factor: 4 × 2; frequency 2; 4; 3
    items_bytes = [12, 12, 6, 9, 8, 2, 4, 3]
    sizes = [26 + 20 + 32, *(20 + 20 + size for size in items_bytes)]
    each_s = sum(size * 11 / 2400 + 0.5 + 11 / 2400 for size in sizes)
    ((count, reckoned_s),) = found.meters
    assert count == 60
    assert reckoned_s == pytest.approx(each_s, abs=0.001)
    assert found.sweep_s == pytest.approx(60 * each_s, abs=0.1)
    assert found.fits
    assert str(found).startswith("line rs485-1: 60 meters × 6.6 s = 397 s of 900 s (44 %) at 2400 8E1 when each answer")
    # A day is 16 requests for 6 records each, in what the sweep leaves.
    day_s = 16 * ((26 + 20 + 6 * 32 + 1) * 11 / 2400 + 0.5)
    assert found.day_s == pytest.approx(60 * day_s)
    assert str(found).endswith(f"one day of gaps of all is filled in {60 * day_s / (1 - found.share) / 3600:.1f} h")


def test_what_does_not_fit_says_what_to_do() -> None:
    meters = [*(meter("dlt645-2007", str(i)) for i in range(1, 150)), meter("dlt645-2007-freeze", "200")]
    found = budget(line("dlt645-2007"), meters, 900)
    assert found is not None
    assert not found.fits
    text = str(found)
    assert text.startswith("line rs485-1: 149 meters × 6.6 s + 1 meter × ")
    assert "at most 80 %" in text
    assert "a higher baud" in text
    quick = budget(line("dlt645-2007", read_timeout_s=0.1), meters, 900)
    assert quick is not None
    assert quick.fits


def test_where_the_speed_is_not_known_nothing_is_promised() -> None:
    there = Line("l", "modbus-tcp", TcpEndpoint("127.0.0.1", 1))
    assert budget(there, [meter("eastron-sdm630")], 900) is None
    assert budget(replace(there, setting=FAST), [meter("eastron-sdm630")], 900) is not None


@pytest.mark.parametrize("template", templates.names())
def test_every_template_has_a_budget(template: str) -> None:
    one = meter(template)
    protocol: Protocol = "modbus-rtu" if one.address == "7" else "dlt645-2007"
    found = budget(line(protocol), [one], 900)
    assert isinstance(found, Budget)
    assert 0.5 < found.sweep_s < 30
    assert (found.day_s > 0) == templates.has_profile(one.template)


def family_meter(unit: int) -> lines.Meter:
    def answer(pdu: bytes) -> bytes:
        _, count = modbus.decode_read(pdu)
        return modbus.encode_read_reply(pdu[0], bytes(2 * count))

    return lines.Meter(modbus_meter(unit, answer), Setting(115_200, "N"), 0.001)


@pytest.mark.parametrize(
    ("protocol", "template"),
    [
        ("dlt645-2007", "dlt645-2007"),
        ("dlt645-2007", "dlt645-2007-freeze"),
        ("dlt645-1997", "dlt645-1997"),
        ("modbus-rtu", "gridloom-demo-modbus"),
        ("modbus-rtu", "eastron-sdm630"),
        ("modbus-rtu", "schneider-pm5xxx"),
    ],
)
def test_the_budget_counts_what_the_bus_sends(protocol: Protocol, template: str) -> None:
    """A sweep and a day of gaps on a pty: request by request the same bytes, and no reply longer than reckoned."""
    asked = meter(template)
    endpoint = Endpoint("modbus-tcp")
    if isinstance(asked.template, ModbusFamily):
        answering = family_meter(7)
    elif protocol == "modbus-rtu":
        answering = lines.Meter(modbus_meter(7, lambda pdu: endpoint._answer_modbus(pdu, 7)), Setting(115_200, "N"))
    else:
        answering = lines.Meter(dlt645_meter(asked.address, meter_645(asked)), Setting(115_200, "N"), 0.001)
    seen: list[TapEvent] = []

    async def scenario(device: str) -> None:
        bus = Bus(Line("l", protocol, SerialEndpoint(device, FAST)), SystemClock())
        untap = bus.tap(seen.append)
        clock = SystemClock()
        mark = MARK if templates.has_profile(asked.template) else clock.now()
        await bus.read_energy(asked, mark)
        await bus.read_power(asked, mark)
        if templates.has_profile(asked.template):
            await bus.read_profile(asked, MARK.replace(hour=0), 96)
        untap()
        await bus.close()

    with SerialLine([answering]) as pty:
        asyncio.run(scenario(pty.path))
    sent = [len(event.raw) for event in seen if event.direction == "out"]
    reckoned: list[Request] = [*_sweep(asked), *_day(asked)]
    assert sorted(sent) == sorted(request_bytes(protocol, it) for it in reckoned)
    heard = sum(len(event.raw) for event in seen if event.direction == "in")
    assert 0 < heard <= sum(reply_bytes(protocol, it) for it in reckoned)


def meter_645(asked: Meter) -> Callable[[dlt645.Frame], dlt645.Frame]:
    endpoint, any_item = Endpoint("dlt645-2007"), items(7)
    clocks = {0xC010: "wdmy", 0xC011: "SMH"}

    def answer(request: dlt645.Frame) -> dlt645.Frame:
        if request.edition == "2007":
            return endpoint._answer_645(request, 7)
        if request.di in clocks:
            return dlt645.reply(request, asked.address, dlt645.encode_time(MARK, clocks[request.di], asked.zone))
        return any_item(request)

    return answer


@pytest.mark.parametrize("protocol", ["modbus-rtu", "modbus-ascii"])
@pytest.mark.parametrize(
    ("pdu", "reply"),
    [
        (modbus.encode_read(3, 0, 20), modbus.encode_read_reply(3, bytes(40))),
        (modbus.encode_read(1, 0, 19), modbus.encode_bits_reply(1, [True] * 19)),
        (modbus.encode_write_one(1, 2), modbus.encode_write_reply(modbus.encode_write_one(1, 2))),
        (modbus.encode_write_many(1, bytes(8)), modbus.encode_write_reply(modbus.encode_write_many(1, bytes(8)))),
        (
            modbus.encode_read_file([modbus.FileRange(1, 0, 100), modbus.FileRange(2, 0, 2)]),
            modbus.encode_read_file_reply([bytes(200), bytes(4)]),
        ),
    ],
)
def test_modbus_lengths_are_those_of_the_codec(protocol: Protocol, pdu: bytes, reply: bytes) -> None:
    encode = modbus.encode_ascii if protocol == "modbus-ascii" else modbus.encode_rtu
    request = modbus.Frame(0, 9, pdu)
    assert request_bytes(protocol, request) == len(encode(request))
    assert reply_bytes(protocol, request) == len(encode(modbus.Frame(0, 9, reply)))
    unknown = modbus.Frame(0, 9, b"\x2b\x0e\x01\x00")
    assert reply_bytes(protocol, unknown) == len(encode(modbus.Frame(0, 9, bytes(253))))


def test_silence_is_the_protocols() -> None:
    assert silence_s("modbus-rtu", SerialSetting(9600, "E")) == pytest.approx(3.5 * 11 / 9600)
    assert silence_s("modbus-rtu-over-tcp", SerialSetting(38_400, "E")) == 0.00175
    assert silence_s("modbus-ascii", SerialSetting(9600, "N")) == pytest.approx(10 / 9600)
    assert silence_s("dlt645-1997", SerialSetting(1200, "E")) == pytest.approx(11 / 1200)
