"""Late replies on a shared serial bus, time scaled 1:100: nothing is booked to the wrong meter, quantity or mark.

Three replies of ten come later than they should, some still in time, most after the timeout and up to the end of the
quarantine. ``GRIDLOOM_LATE_POLLS=10000`` polls so often; the counts are printed. Beside it stands pymodbus as one would
use it, on the same bus: a short timeout, no retries, many meters.
"""

import asyncio
import logging
import os
import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal

import pytest
from pymodbus import FramerType, ModbusException
from pymodbus.client import AsyncModbusSerialClient

from edge import client as client_module
from edge.bus import Bus
from edge.model import ItemReading, Line, Meter, PollFailure, Priority, Protocol, Reason, SerialEndpoint, SerialSetting
from protocols import dlt645, modbus
from protocols.clock import SystemClock
from protocols.uplink import Row
from simulators import lines
from simulators.faults import Fault, Reply, late
from simulators.lines import SerialLine, Setting, dlt645_meter, modbus_meter
from tests.edge.endpoint import MARK, QUARTER, Endpoint, meter_645, meter_modbus, values_at
from tests.edge.serial import registers

SCALE = 100
POLLS = int(os.environ.get("GRIDLOOM_LATE_POLLS", "500"))
NUMBERS = range(1, 6)
TURNAROUND_S = 0.02
# Real seconds: a hundred times as much on the line.
TIMEOUT_S, QUARANTINE_S, ADAPTER_S = 0.010, 0.020, 0.005
LATE_S = (0.005, 0.030)
# Registers apart from the meter's own; two reads of two of them look alike in everything but the values.
APART = 0x1000
DIS = (0x0001_0000, 0x0001_0100, 0x0002_0000, 0x0201_0100)


def lateness(seed: int) -> Callable[[Reply], Fault | None]:
    rng = random.Random(seed)
    return lambda _reply: late(SCALE * rng.uniform(*LATE_S)) if rng.random() < 0.3 else None


def modbus_bus(seed: int) -> SerialLine:
    endpoint = Endpoint("modbus-tcp")

    def meter(unit: int) -> lines.Meter:
        apart = registers(unit)

        def answer(pdu: bytes) -> bytes:
            is_apart = pdu[0] == modbus.Function.READ_HOLDING and modbus.decode_read(pdu)[0] >= APART
            return apart(pdu) if is_apart else endpoint._answer_modbus(pdu, unit)

        return lines.Meter(modbus_meter(unit, answer), Setting(9600), TURNAROUND_S)

    return SerialLine([meter(n) for n in NUMBERS], time_scale=SCALE, client=Setting(9600), choose=lateness(seed))


def dlt645_bus(seed: int) -> SerialLine:
    endpoint = Endpoint("dlt645-2007")

    def meter(number: int) -> lines.Meter:
        def answer(request: dlt645.Frame) -> dlt645.Frame:
            if request.di not in DIS:
                return endpoint._answer_645(request, number)
            item = dlt645.encode_item(request.di, [10 * number + DIS.index(request.di)])
            return dlt645.reply(request, request.address, item)

        return lines.Meter(dlt645_meter(f"{number:012d}", answer), Setting(2400), TURNAROUND_S)

    return SerialLine([meter(n) for n in NUMBERS], time_scale=SCALE, client=Setting(2400), choose=lateness(seed))


async def poll_modbus(bus: Bus, rng: random.Random) -> str:
    number = rng.choice(NUMBERS)
    meter = meter_modbus(number)
    kind = rng.random()
    if kind < 0.6:
        address = APART + 2 * rng.randrange(8)
        reading = await bus.read_item(meter, f"3:{address}:2", Priority.LIVE)
        want = [(f"0x{at:04X}", 256 * number + at, "") for at in (address, address + 1)]
        return verdict(reading, lambda it: isinstance(it, ItemReading) and list(it.values) == want)
    return await poll_row(bus, meter, number, rng, power=kind > 0.8)


async def poll_645(bus: Bus, rng: random.Random) -> str:
    number = rng.choice(NUMBERS)
    meter = meter_645(number)
    if rng.random() < 0.5:
        i = rng.randrange(len(DIS))
        reading = await bus.read_item(meter, f"{DIS[i]:08X}", Priority.LIVE)
        want = Decimal(10 * number + i).scaleb(-dlt645.ITEMS[DIS[i]].decimals)
        return verdict(reading, lambda it: isinstance(it, ItemReading) and [v for _, v, _ in it.values] == [want])
    return await poll_row(bus, meter, number, rng, power=False)


async def poll_row(bus: Bus, meter: Meter, number: int, rng: random.Random, *, power: bool) -> str:
    at = MARK + rng.randrange(96) * QUARTER
    if power:
        row = await bus.read_power(meter, at)
        return verdict(row, lambda it: isinstance(it, Row) and set(it.values.values()) == {float(number)})
    row = await bus.read_energy(meter, at)
    return verdict(row, lambda it: isinstance(it, Row) and (it.at, it.values) == (at, values_at(number, at)))


def verdict(result: object, is_right: Callable[[object], bool]) -> str:
    if isinstance(result, PollFailure):
        return str(result.reason)
    return "right" if is_right(result) else "wrong"


@pytest.mark.parametrize(
    ("protocol", "make", "poll", "baud"),
    [("modbus-rtu", modbus_bus, poll_modbus, 9600), ("dlt645-2007", dlt645_bus, poll_645, 2400)],
    ids=["modbus-rtu", "dlt645-2007"],
)
def test_late_replies_never_book_a_wrong_value(
    protocol: Protocol,
    make: Callable[[int], SerialLine],
    poll: Callable[[Bus, random.Random], "asyncio.Future[str]"],
    baud: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "ADAPTER_S", ADAPTER_S)
    for name in ("BACKOFF_S", "BACKOFF_MAX_S"):
        monkeypatch.setattr(client_module, name, 1.0 / SCALE)
    monkeypatch.setattr(client_module, "BACKOFF_COSTS", 0)
    rng = random.Random(7)

    async def scenario(device: str) -> Counter[str]:
        setting = SerialSetting(baud * SCALE, "E")
        bus = Bus(Line("l", protocol, SerialEndpoint(device, setting), TIMEOUT_S, QUARANTINE_S), SystemClock())
        counts: Counter[str] = Counter()
        for start in range(0, POLLS, 10):
            polls = [poll(bus, rng) for _ in range(start, min(start + 10, POLLS))]
            counts.update(await asyncio.gather(*polls))
        await bus.close()
        return counts

    with make(11) as line:
        counts = asyncio.run(scenario(line.path))
    failed = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if name not in ("right", "wrong"))
    print(f"{protocol}: {POLLS} polls: {counts['right']} booked right, {counts['wrong']} wrong ({failed})")
    assert counts["wrong"] == 0
    assert counts[Reason.GARBLED] == counts[Reason.REFUSED] == counts[Reason.LINK_DOWN] == 0
    assert counts["right"] > 0.2 * POLLS
    assert counts[Reason.SILENT] > 0.03 * POLLS


def test_pymodbus_used_naively_beside_it() -> None:
    """How many values pymodbus books wrong on the same bus is its affair: printed, and only the right ones asserted."""
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
    rng = random.Random(7)

    async def scenario(device: str) -> Counter[str]:
        client = AsyncModbusSerialClient(
            device, framer=FramerType.RTU, baudrate=115_200, timeout=TIMEOUT_S + ADAPTER_S, retries=0
        )
        counts: Counter[str] = Counter()
        for _ in range(POLLS):
            unit, address = rng.choice(NUMBERS), APART + 2 * rng.randrange(8)
            try:
                if not client.connected:
                    await client.connect()
                answer = await client.read_holding_registers(address, count=2, device_id=unit)
            except ModbusException:
                counts["failed"] += 1
                continue
            if answer.isError():
                counts["failed"] += 1
            else:
                counts["right" if answer.registers == [256 * unit + address + i for i in (0, 1)] else "wrong"] += 1
        client.close()
        return counts

    with modbus_bus(11) as line:
        counts = asyncio.run(scenario(line.path))
    print(f"pymodbus: {POLLS} polls: {counts['right']} right, {counts['wrong']} wrong, {counts['failed']} failed")
    assert counts["right"] > 0
