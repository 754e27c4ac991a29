"""DL/T 645 on the bus: both editions, answers of many frames, counters, freezes, clocks, single items."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from edge.bus import OFF_MARK_MAX, ON_MARK_MAX, Bus
from edge.model import ClockReading, ItemReading, Line, Meter, PollFailure, Priority, Reason, TapEvent, TcpEndpoint
from protocols import dlt645, templates
from protocols.quantities import Quality
from protocols.uplink import Row
from tests.edge.endpoint import BEIJING, MARK, QUARTER, UNIX
from tests.edge.serving import Meter645, ToldClock, serving

ADDRESS = "000000123456"
PASSWORD = "04123456"
DAY = timedelta(days=1)
MIDNIGHT = datetime(2026, 3, 1, 16, 0, tzinfo=UTC)  # of 2 March in Beijing


def bcd(steps: int, size: int = 4) -> bytes:
    return dlt645.encode_bcd(steps, size)


def meter(template: str = "dlt645-2007", role: str = "customer") -> Meter:
    return Meter("m1", ADDRESS, templates.load(template), role=role)  # type: ignore[arg-type]


def with_bus(
    device: Meter645,
    clock: ToldClock,
    scenario: Callable[[Bus], Awaitable[None]],
    *,
    protocol: str = "dlt645-2007",
    password: str | None = PASSWORD,
) -> None:
    async def run() -> None:
        async with serving(device) as port:
            line = Line("line", protocol, TcpEndpoint("127.0.0.1", port), 5.0)  # type: ignore[arg-type]
            bus = Bus(line, clock, password)
            try:
                await scenario(bus)
            finally:
                await bus.close()

    asyncio.run(run())


ITEMS_1997 = {
    0x9010: bcd(12_345_678),
    0x9020: bcd(4),
    0x9110: bcd(500),
    0x9120: b"\xff" * 4,
    0xB630: bcd(23_456, 3),
    0xB640: bcd(120, 2),
    0xB611: bcd(230, 2),
    0xB612: bcd(231, 2),
    0xB613: bcd(232, 2),
    0xB621: bcd(1_025, 2),
    0xB622: bcd(1_026, 2),
    0xB623: bcd(1_027, 2),
    0xB650: bcd(987, 2),
}


def test_a_1997_meter_gives_energy_power_and_its_clock() -> None:
    clock = ToldClock(MARK + timedelta(seconds=4))
    device = Meter645(ADDRESS, dict(ITEMS_1997), "1997", now=clock.now, clock_ahead=timedelta(seconds=-30))

    async def scenario(bus: Bus) -> None:
        it = meter("dlt645-1997")
        energy = await bus.read_energy(it, MARK)
        assert isinstance(energy, Row), energy
        assert energy.values == {
            "energy_import_wh": 123_456_780,
            "energy_export_wh": 40,
            "reactive_import_varh": 5_000,
            "reactive_export_varh": None,
        }
        assert all(isinstance(value, int | None) for value in energy.values.values())
        assert (energy.at, energy.gateway_at, energy.meter_at, energy.quality) == (MARK, clock.moment, None, 0)
        power = await bus.read_power(it, MARK)
        assert isinstance(power, Row), power
        assert power.meter_at == clock.moment - timedelta(seconds=30)
        assert power.values == pytest.approx(
            {
                "active_power_w": 2345.6,
                "reactive_power_var": 1200,
                "voltage_l1_v": 230,
                "voltage_l2_v": 231,
                "voltage_l3_v": 232,
                "current_l1_a": 10.25,
                "current_l2_a": 10.26,
                "current_l3_a": 10.27,
                "power_factor": 0.987,
            }
        )
        assert await bus.read_profile(it, MARK, 96) == []
        relay = await bus.set_relay(it, closed=True, expires_at=MARK + DAY)
        assert isinstance(relay, PollFailure)
        assert relay.reason is Reason.REFUSED

    with_bus(device, clock, scenario, protocol="dlt645-1997")


@pytest.mark.parametrize(
    ("late", "quality"),
    [
        (timedelta(), Quality.GOOD),
        (ON_MARK_MAX, Quality.GOOD),
        (ON_MARK_MAX + timedelta(seconds=1), Quality.OFF_MARK),
        (OFF_MARK_MAX, Quality.OFF_MARK),
        (OFF_MARK_MAX + timedelta(seconds=1), None),
        (timedelta(seconds=-1), None),
    ],
)
def test_a_counter_is_the_marks_only_near_it(late: timedelta, quality: Quality | None) -> None:
    clock = ToldClock(MARK + late)
    device = Meter645(ADDRESS, dict(ITEMS_1997), "1997")

    async def scenario(bus: Bus) -> None:
        row = await bus.read_energy(meter("dlt645-1997"), MARK)
        if quality is None:
            assert isinstance(row, PollFailure)
            assert row.reason is Reason.ABSENT
            assert device.asked == []
        else:
            assert isinstance(row, Row)
            assert (row.quality, row.gateway_at) == (quality, clock.moment)

    with_bus(device, clock, scenario, protocol="dlt645-1997")


def test_a_counter_that_came_too_late_is_not_booked() -> None:
    clock = ToldClock(MARK + OFF_MARK_MAX - timedelta(seconds=3))

    def tick(di: int) -> None:
        clock.moment += timedelta(seconds=1)

    device = Meter645(ADDRESS, dict(ITEMS_1997), "1997", on_asked=tick)

    async def scenario(bus: Bus) -> None:
        row = await bus.read_energy(meter("dlt645-1997"), MARK)
        assert isinstance(row, PollFailure)
        assert "too late" in row.detail

    with_bus(device, clock, scenario, protocol="dlt645-1997")


@pytest.mark.parametrize("edition", ["2007", "1997"])
def test_a_long_answer_is_read_to_its_end(edition: dlt645.Edition) -> None:
    tariffs = list(range(1, 41))
    di = 0x0001FF00 if edition == "2007" else 0x901F
    device = Meter645(ADDRESS, {di: b"".join(map(bcd, tariffs))}, edition, bytes_max=60)

    async def scenario(bus: Bus) -> None:
        item = f"{di:08X}" if edition == "2007" else f"{di:04X}"
        found = await bus.read_item(meter(f"dlt645-{edition}"), item)
        assert isinstance(found, ItemReading), found
        assert [value for _, value, _ in found.values] == [Decimal(steps).scaleb(-2) for steps in tariffs]
        assert {unit for _, _, unit in found.values} == {"kWh"}
        sent, came = dlt645.Decoder().feed(found.request), dlt645.Decoder().feed(found.reply)
        assert len(sent) == len(came) == 3
        assert all(isinstance(frame, dlt645.Frame) for frame in [*sent, *came])

    with_bus(device, ToldClock(MARK), scenario, protocol=f"dlt645-{edition}")


def test_a_meter_that_never_ends_is_given_up() -> None:
    class Endless(Meter645):
        def answer(self, request: dlt645.Frame) -> dlt645.Frame | None:
            if request.function == dlt645.Function.READ_FOLLOW_UP:
                return dlt645.Frame(self.address, 0xB2, request.data[:4] + b"\x00" + request.data[4:])
            return dlt645.Frame(self.address, 0xB1, request.data[:4] + b"\x00")

    async def scenario(bus: Bus) -> None:
        found = await bus.read_item(meter(), "00010000")
        assert isinstance(found, PollFailure)
        assert (found.reason, "parts" in found.detail) == (Reason.GARBLED, True)

    with_bus(Endless(ADDRESS, {}), ToldClock(MARK), scenario)


def test_load_records_of_many_frames_come_whole() -> None:
    marks = [MARK + i * QUARTER for i in range(6)]
    records = [dlt645.LoadRecord(at, 10 * i, 20, 30, 40) for i, at in enumerate(marks)]
    device = Meter645(ADDRESS, {dlt645.LOAD_AT: dlt645.encode_load_records(records, BEIJING)}, bytes_max=70)

    async def scenario(bus: Bus) -> None:
        rows = await bus.read_profile(meter(), MARK, 6)
        assert isinstance(rows, list), rows
        assert [(row.at, row.values["energy_import_wh"]) for row in rows] == [
            (r.at, r.energy_import_wh) for r in records
        ]

    with_bus(device, ToldClock(MARK), scenario)


# ---- freezes ---------------------------------------------------------------------------------------------------------


def frozen(midnights: list[datetime]) -> dict[int, bytes]:
    """Daily freezes of ``midnights``, the last one first; the import counts days since 1970, in 0.01 kWh."""
    items: dict[int, bytes] = {}
    for back, at in enumerate(midnights):
        items[0x05060001 + back] = dlt645.encode_time(at, "MHdmy", BEIJING)
        days = (at - UNIX) // DAY
        for kind, own in ((1, days), (2, 7), (3, 8)):
            items[0x05060001 + (kind << 8) + back] = bcd(own) + bcd(own // 2)  # total and one tariff
    return items


def test_local_midnights_are_filled_from_daily_freezes() -> None:
    device = Meter645(ADDRESS, frozen([MIDNIGHT - back * DAY for back in range(62)]))

    async def scenario(bus: Bus) -> None:
        it = meter("dlt645-2007-freeze")
        rows = await bus.read_profile(it, MIDNIGHT - 3 * DAY, 2 * 96 + 1)
        assert isinstance(rows, list), rows
        assert [row.at for row in rows] == [MIDNIGHT - back * DAY for back in (3, 2, 1)]
        for row in rows:
            assert row.quality == Quality.BACKFILLED
            assert row.values == {
                "energy_import_wh": (row.at - UNIX) // DAY * 10,
                "energy_export_wh": 70,
                "reactive_import_varh": 80,
                "reactive_export_varh": None,  # this meter does not freeze it
            }
        asked = len(device.asked)
        assert await bus.read_profile(it, MIDNIGHT + QUARTER, 40) == []
        assert len(device.asked) == asked  # no midnight among them

    with_bus(device, ToldClock(MIDNIGHT + timedelta(hours=5)), scenario)


@pytest.mark.parametrize(
    ("kept", "found"),
    [
        ([0, 1, 5, 6], True),  # without power for three days: the freezes moved together
        ([0, 1, 2], False),
        ([], False),
    ],
)
def test_a_freeze_is_believed_by_its_own_time_only(kept: list[int], found: bool) -> None:
    device = Meter645(ADDRESS, frozen([MIDNIGHT - back * DAY for back in kept]))

    async def scenario(bus: Bus) -> None:
        wanted = MIDNIGHT - 5 * DAY
        rows = await bus.read_profile(meter("dlt645-2007-freeze"), wanted, 1)
        assert isinstance(rows, list), rows
        assert [row.values["energy_import_wh"] for row in rows] == ([(wanted - UNIX) // DAY * 10] if found else [])

    with_bus(device, ToldClock(MIDNIGHT + timedelta(hours=5)), scenario)


def test_a_freeze_stays_together_when_midnight_passes_while_it_is_read() -> None:
    midnights = [MIDNIGHT - back * DAY for back in range(4)]
    device = Meter645(ADDRESS, frozen(midnights[1:]))

    def roll(di: int) -> None:
        if di >> 8 == 0x050602:  # after the import was read and before the export
            device.items = frozen(midnights)
            clock.moment = MIDNIGHT

    device.on_asked = roll
    clock = ToldClock(MIDNIGHT - timedelta(seconds=1))

    async def scenario(bus: Bus) -> None:
        rows = await bus.read_profile(meter("dlt645-2007-freeze"), MIDNIGHT - DAY, 1)
        assert isinstance(rows, list), rows
        (row,) = rows
        assert row.values["energy_import_wh"] == (MIDNIGHT - DAY - UNIX) // DAY * 10
        assert device.asked.count(0x05060101) == device.asked.count(0x05060102) == 1

    with_bus(device, clock, scenario)


# ---- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", ["2007", "1997"])
def test_a_clock_is_read_and_written(edition: dlt645.Edition) -> None:
    clock = ToldClock(MARK, timedelta(milliseconds=10))
    device = Meter645(ADDRESS, {}, edition, now=clock.now, clock_ahead=timedelta(hours=-50))

    async def scenario(bus: Bus) -> None:
        it = meter(f"dlt645-{edition}")
        before = await bus.read_clock(it)
        assert isinstance(before, ClockReading), before
        assert before.asked_at <= before.answered_at
        assert abs(before.meter_at - before.answered_at + timedelta(hours=50)) < timedelta(seconds=2)
        assert await bus.write_clock(it, clock.now()) is None
        after = await bus.read_clock(it)
        assert isinstance(after, ClockReading)
        assert abs(after.meter_at - after.answered_at) < timedelta(seconds=2)

    with_bus(device, clock, scenario, protocol=f"dlt645-{edition}")


def test_what_is_written_is_the_time_when_the_turn_came_not_when_it_was_asked_for() -> None:
    clock = ToldClock(MARK)
    device = Meter645(ADDRESS, {0x00010000: bcd(1)}, now=clock.now, clock_ahead=timedelta(minutes=7))

    def busy(di: int) -> None:
        clock.moment += timedelta(minutes=2)

    async def scenario(bus: Bus) -> None:
        device.on_asked = busy
        reading = asyncio.create_task(bus.read_item(meter(), "00010000"))
        await asyncio.sleep(0)
        writing = asyncio.create_task(bus.write_clock(meter(), clock.now()))
        await reading
        device.on_asked = lambda di: None
        assert await writing is None
        assert device.clock_ahead == timedelta()

    with_bus(device, clock, scenario)


@pytest.mark.parametrize(("password", "says"), [("04999999", "password_or_unauthorised"), (None, "GRIDLOOM_645")])
def test_a_clock_is_not_written_without_the_password(password: str | None, says: str) -> None:
    clock = ToldClock(MARK)
    device = Meter645(ADDRESS, {}, now=clock.now, clock_ahead=timedelta(minutes=9))

    async def scenario(bus: Bus) -> None:
        failure = await bus.write_clock(meter(), clock.now())
        assert isinstance(failure, PollFailure)
        assert (failure.reason, says in failure.detail) == (Reason.REFUSED, True)
        assert device.clock_ahead == timedelta(minutes=9)

    with_bus(device, clock, scenario, password=password)


def test_a_meter_that_takes_the_time_and_does_not_keep_it_is_told() -> None:
    class Stubborn(Meter645):
        def answer(self, request: dlt645.Frame) -> dlt645.Frame | None:
            if request.function == dlt645.Function.WRITE:
                return dlt645.reply(request, self.address)
            return super().answer(request)

    clock = ToldClock(MARK)

    async def scenario(bus: Bus) -> None:
        failure = await bus.write_clock(meter(), clock.now())
        assert isinstance(failure, PollFailure)
        assert "-600 s off" in failure.detail

    with_bus(Stubborn(ADDRESS, {}, now=clock.now, clock_ahead=timedelta(minutes=-10)), clock, scenario)


def test_a_broadcast_sets_the_clock_and_waits_for_no_answer() -> None:
    clock = ToldClock(MARK)
    device = Meter645(ADDRESS, {}, now=clock.now, clock_ahead=timedelta(minutes=4))

    async def scenario(bus: Bus) -> None:
        assert await bus.broadcast_clock(clock.now(), BEIJING) is None
        assert isinstance(await bus.read_clock(meter()), ClockReading)
        assert device.clock_ahead == timedelta()

    with_bus(device, clock, scenario)


# ---- one thing, any address, all bytes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "data", "values"),
    [
        ("00010000", bcd(123_456), [("current fwd active total", Decimal("1234.56"), "kWh")]),
        ("energy_import_wh", bcd(123_456), [("energy_import_wh", Decimal(1_234_560), "Wh")]),
        ("frequency_hz", bcd(4_998, 2), [("frequency_hz", Decimal("49.98"), "Hz")]),
        ("04000101", bytes.fromhex("00010326"), [("date + weekday", "YY=26 MM=03 DD=01 WW=00", "")]),
        ("DEADBEEF", b"\x01\x02", [("raw", "01 02", "")]),
    ],
)
def test_one_item_is_read_decoded_and_raw(item: str, data: bytes, values: list[tuple[str, object, str]]) -> None:
    di = {"energy_import_wh": 0x00010000, "frequency_hz": 0x02800002}.get(item) or int(item, 16)

    async def scenario(bus: Bus) -> None:
        found = await bus.read_item(meter(), item, Priority.LIVE)
        assert isinstance(found, ItemReading), found
        assert [(value, unit) for _, value, unit in found.values] == [(value, unit) for _, value, unit in values]
        if item != "00010000":
            assert [name for name, _, _ in found.values] == [name for name, _, _ in values]
        assert found.request == dlt645.encode(dlt645.read(ADDRESS, di))
        assert found.reply == dlt645.encode(dlt645.reply(dlt645.read(ADDRESS, di), ADDRESS, data))

    with_bus(Meter645(ADDRESS, {di: data}), ToldClock(MARK), scenario)


def test_the_last_load_record_is_an_item_too() -> None:
    record = dlt645.LoadRecord(MARK, 10, 20, 30, None)
    device = Meter645(ADDRESS, {dlt645.LOAD_LATEST: dlt645.encode_load_records([record], BEIJING)})

    async def scenario(bus: Bus) -> None:
        found = await bus.read_item(meter(), "06040002")
        assert isinstance(found, ItemReading), found
        assert found.values == (
            ("at", "YY=26 MM=03 DD=01 hh=12 mm=00", ""),
            ("energy_import", Decimal("0.01"), "kwh"),
            ("energy_export", Decimal("0.02"), "kwh"),
            ("combined_reactive_1", Decimal("0.03"), "kvarh"),
            ("combined_reactive_2", None, "kvarh"),
        )

    with_bus(device, ToldClock(MARK), scenario)


@pytest.mark.parametrize("item", ["0001", "mood", "3:0x0000:2"])
def test_an_item_nobody_knows_is_refused_with_the_known_ones(item: str) -> None:
    async def scenario(bus: Bus) -> None:
        failure = await bus.read_item(meter(), item)
        assert isinstance(failure, PollFailure)
        assert failure.reason is Reason.REFUSED
        assert "8 hexadecimal digits" in failure.detail and "energy_import_wh" in failure.detail

    with_bus(Meter645(ADDRESS, {}), ToldClock(MARK), scenario)


def test_a_scan_asks_any_address_and_a_tap_hears_all_bytes() -> None:
    device = Meter645(ADDRESS, {0x00010000: bcd(5)})

    async def scenario(bus: Bus) -> None:
        events: list[TapEvent] = []
        untap = bus.tap(events.append)
        request = dlt645.read(ADDRESS, 0x00010000)
        answer = await bus.ask(request, meter_key="scan", priority=Priority.SCAN)
        assert isinstance(answer, dlt645.Frame)
        assert dlt645.decode_reply(request, answer) == bcd(5)
        assert [event.direction for event in events] == ["out", "in"]
        assert events[0].raw == dlt645.encode(request)
        untap()
        await bus.read_item(meter(), "00010000")
        assert len(events) == 2

    with_bus(device, ToldClock(MARK), scenario)
