"""A maker's table on the bus: power, energy at the mark, frozen blocks and single registers, over a real socket."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from edge.bus import ON_MARK_MAX, Bus
from edge.model import ItemReading, Line, Meter, PollFailure, Priority, Reason, Role, TcpEndpoint
from protocols import modbus, templates
from protocols.clock import SystemClock
from protocols.quantities import Quality
from protocols.templates import ModbusFamily
from protocols.uplink import Row
from tests.edge.endpoint import MARK, QUARTER, UNIX, meter_modbus
from tests.edge.serving import Registers, ToldClock, serving

IMAGE = {0: 230.0, 2: 231.0, 4: 232.0, 6: 1.5, 8: 2.5, 10: 3.5, 52: -1200.0, 60: 90.0, 62: 0.95, 70: 50.01}


class Sdm630(asyncio.Protocol):
    """Answers function 4 from IMAGE; an address it does not list is NaN."""

    asked: list[tuple[int, int]]

    def __init__(self) -> None:
        self._decoder = modbus.TcpDecoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for request in self._decoder.feed(data):
            assert isinstance(request, modbus.Frame)
            address, count = modbus.decode_read(request.pdu)
            type(self).asked.append((address, count))
            raw = b"".join(struct.pack(">f", IMAGE.get(at, float("nan"))) for at in range(address, address + count, 2))
            reply = modbus.encode_read_reply(request.pdu[0], raw)
            self._transport.write(modbus.encode(modbus.Frame(request.transaction, request.unit, reply)))


def test_the_power_of_an_sdm630_is_one_request() -> None:
    async def scenario() -> None:
        Sdm630.asked = []
        server = await asyncio.get_running_loop().create_server(Sdm630, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        bus = Bus(Line("l", "modbus-tcp", TcpEndpoint("127.0.0.1", port)), SystemClock())
        meter = Meter("m1", "7", templates.load("eastron-sdm630"), controllable=True)
        row = await bus.read_power(meter, MARK)
        assert isinstance(row, Row), row
        assert row.meter_at is None
        assert {name: round(float(value or 0), 2) for name, value in row.values.items()} == {
            "voltage_l1_v": 230.0,
            "voltage_l2_v": 231.0,
            "voltage_l3_v": 232.0,
            "current_l1_a": 1.5,
            "current_l2_a": 2.5,
            "current_l3_a": 3.5,
            "active_power_w": -1200.0,
            "reactive_power_var": 90.0,
            "power_factor": 0.95,
            "frequency_hz": 50.01,
        }
        assert Sdm630.asked == [(0, 72)]
        order = await bus.set_relay(meter, closed=False, expires_at=SystemClock().now() + timedelta(minutes=1))
        assert isinstance(order, PollFailure)
        assert order.reason is Reason.REFUSED
        assert await bus.read_profile(meter, MARK, 4) == []
        assert Sdm630.asked == [(0, 72)]
        await bus.close()
        server.close()

    asyncio.run(scenario())


DAY = timedelta(days=1)
MIDNIGHT = datetime(2026, 3, 1, 16, 0, tzinfo=UTC)  # of 2 March in Beijing


def with_bus(clock: ToldClock, scenario: Callable[[Bus], Awaitable[None]], *devices: Registers) -> None:
    async def run() -> None:
        async with serving(*devices) as port:
            bus = Bus(Line("l", "modbus-tcp", TcpEndpoint("127.0.0.1", port), 5.0), clock)
            try:
                await scenario(bus)
            finally:
                await bus.close()

    asyncio.run(run())


def sdm630(unit: int, kwh: float) -> Registers:
    device = Registers(unit, {})
    for address in range(0, 0x60, 2):
        device.put(4, address, struct.pack(">f", kwh if address == 0x48 else 0.0))
    return device


@pytest.mark.parametrize(
    ("late", "quality"), [(ON_MARK_MAX, Quality.GOOD), (ON_MARK_MAX + timedelta(seconds=1), Quality.OFF_MARK)]
)
def test_the_energy_of_a_family_is_what_it_counts_when_the_mark_comes(late: timedelta, quality: Quality) -> None:
    clock = ToldClock(MARK + late)

    async def scenario(bus: Bus) -> None:
        row = await bus.read_energy(Meter("m1", "7", templates.load("eastron-sdm630")), MARK)
        assert isinstance(row, Row), row
        assert (row.at, row.gateway_at, row.meter_at, row.quality) == (MARK, clock.moment, None, quality)
        assert row.values["energy_import_wh"] == 1_234_500
        assert isinstance(row.values["energy_import_wh"], int)
        assert set(row.values) <= {
            "energy_import_wh",
            "energy_export_wh",
            "reactive_import_varh",
            "reactive_export_varh",
        }
        early = await bus.read_energy(Meter("m1", "7", templates.load("eastron-sdm630")), MARK + QUARTER)
        assert isinstance(early, PollFailure)
        assert early.reason is Reason.ABSENT

    with_bus(clock, scenario, sdm630(7, 1234.5))


def test_boundary_meters_are_read_before_customers() -> None:
    order: list[int] = []

    class Ordered(Registers):
        def answer(self, pdu: bytes) -> bytes:
            order.append(self.unit)
            return super().answer(pdu)

    devices = [Ordered(unit, sdm630(unit, 1.0).words) for unit in range(1, 6)]
    roles: dict[int, Role] = {4: "boundary", 5: "check"}

    async def scenario(bus: Bus) -> None:
        template = templates.load("eastron-sdm630")
        meters = [Meter(f"m{unit}", str(unit), template, role=roles.get(unit, "customer")) for unit in range(1, 6)]
        rows = await asyncio.gather(*(bus.read_energy(meter, MARK) for meter in meters))
        assert [row.quality for row in rows if isinstance(row, Row)] == [0] * 5

    with_bus(ToldClock(MARK), scenario, *devices)
    assert order == [1, 4, 5, 2, 3]  # the first had its turn before the others had asked


# ---- frozen blocks ---------------------------------------------------------------------------------------------------


def adl400(midnights: list[datetime], *, ct: int = 1) -> Registers:
    """Blocks of ``midnights``, the last first; the rest is empty. The total counts days since 1970, in 0.01 kWh."""
    device = Registers(1, {(3, 0x8D): 1, (3, 0x8E): ct})
    for number in range(90):
        start = 0x6000 + 34 * number
        device.put(3, start, b"\xff" * 68)
        if number < len(midnights):
            local = midnights[number].astimezone(METER.zone)
            device.put(3, start, bytes((local.year - 2000, local.month, local.day, local.hour)))
            device.put(3, start + 2, ((midnights[number] - UNIX) // DAY).to_bytes(4, "big"))
    return device


METER = Meter("m1", "1", templates.load("acrel-adl400"))


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        (range(90), [3, 2, 1]),
        ([0, 1, 3, 4, 5], [3, 1]),  # without power at one midnight
        ([0], []),
        ([], []),
    ],
)
def test_local_midnights_are_filled_from_frozen_blocks(kept: list[int], found: list[int]) -> None:
    device = adl400([MIDNIGHT - back * DAY for back in kept])

    async def scenario(bus: Bus) -> None:
        rows = await bus.read_profile(METER, MIDNIGHT - 3 * DAY, 2 * 96 + 1)
        assert isinstance(rows, list), rows
        assert [row.at for row in rows] == [MIDNIGHT - back * DAY for back in found]
        for row in rows:
            # No source says which midnight a block names, so it does not pass for a clean reading.
            assert row.quality == Quality.BACKFILLED | Quality.CLOCK_SUSPECT
            assert row.values == {"energy_import_wh": (row.at - UNIX) // DAY * 10}
        device.asked.clear()
        assert await bus.read_profile(METER, MIDNIGHT + QUARTER, 40) == []
        assert device.asked == []  # no midnight among them

    with_bus(ToldClock(MIDNIGHT + timedelta(hours=5)), scenario, device)


def test_blocks_of_the_other_side_of_a_transformer_are_left_alone() -> None:
    device = adl400([MIDNIGHT - back * DAY for back in range(90)], ct=40)

    async def scenario(bus: Bus) -> None:
        assert await bus.read_profile(METER, MIDNIGHT - DAY, 1) == []
        assert device.asked == [(3, 0x8D, 2)]

    with_bus(ToldClock(MIDNIGHT + timedelta(hours=5)), scenario, device)


def test_a_table_that_settles_sides_and_instants_is_booked_clean() -> None:
    family = METER.template
    assert isinstance(family, ModbusFamily)
    daily = msgspec.structs.replace(family.freeze[0], ratios=(), verified=True)
    registers = tuple(
        msgspec.structs.replace(it, side="secondary") if it.quantity == "energy_import_wh" else it
        for it in family.register
    )
    settled = replace(METER, template=msgspec.structs.replace(family, register=registers, freeze=(daily,)))
    unsettled = replace(METER, template=msgspec.structs.replace(family, freeze=(daily,)))

    async def scenario(bus: Bus) -> None:
        rows = await bus.read_profile(settled, MIDNIGHT, 1)
        assert isinstance(rows, list)
        assert [row.quality for row in rows] == [Quality.BACKFILLED]
        assert await bus.read_profile(unsettled, MIDNIGHT, 1) == []

    with_bus(ToldClock(MIDNIGHT + timedelta(hours=5)), scenario, adl400([MIDNIGHT], ct=40))


def test_a_block_in_bcd_is_no_date_rather_than_another() -> None:
    device = adl400([])
    device.put(3, 0x6000, bytes.fromhex("26030200"))  # 2 March 2026 in BCD would be 2038 in binary

    async def scenario(bus: Bus) -> None:
        assert await bus.read_profile(METER, MIDNIGHT, 1) == []

    with_bus(ToldClock(MIDNIGHT + timedelta(hours=5)), scenario, device)


# ---- single registers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "values"),
    [
        ("energy_import_wh", [("energy_import_wh", 1_234_500, "Wh")]),
        ("voltage_l1_v", [("voltage_l1_v", 0.0, "V")]),
        ("4:0x0048:2:float32", [("0x0048", 1234.5, "")]),
        ("4:72:4:float32", [("0x0048", 1234.5, ""), ("0x004A", 0.0, "")]),
        ("4:0x48:2", [("0x0048", 0x449A, ""), ("0x0049", 0x5000, "")]),
        ("4:0x48:2:ascii", None),
        ("4:0x48:3:float32", None),
        ("4:0x48:2:mood", None),
        ("4:0x48:126", None),
        ("9:0x48:2", None),
        ("mood", None),
    ],
)
def test_one_register_is_read_decoded_and_raw(item: str, values: list[tuple[str, object, str]] | None) -> None:
    async def scenario(bus: Bus) -> None:
        found = await bus.read_item(Meter("m1", "7", templates.load("eastron-sdm630")), item, Priority.LIVE)
        if values is None:
            assert isinstance(found, PollFailure)
            assert found.reason in (Reason.REFUSED, Reason.GARBLED)
            return
        assert isinstance(found, ItemReading), found
        assert list(found.values) == values
        (sent,), (came,) = modbus.TcpDecoder().feed(found.request), modbus.TcpDecoder().feed(found.reply)
        assert isinstance(sent, modbus.Frame) and isinstance(came, modbus.Frame)
        assert modbus.is_answer(sent, came)

    with_bus(ToldClock(MARK), scenario, sdm630(7, 1234.5))


def test_a_family_without_a_clock_says_so() -> None:
    async def scenario(bus: Bus) -> None:
        meter = Meter("m1", "7", templates.load("eastron-sdm630"))
        for failure in (
            await bus.read_clock(meter),
            await bus.write_clock(meter, MARK),
            await bus.broadcast_clock(MARK, meter.zone),
            await bus.write_clock(meter_modbus(1), MARK),
        ):
            assert isinstance(failure, PollFailure)
            assert failure.reason is Reason.REFUSED

    with_bus(ToldClock(MARK), scenario, sdm630(7, 0.0))
