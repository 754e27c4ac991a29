"""The bus against endpoints on real sockets: what is asked comes back, and a fault stops only its own meter."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from edge import client as client_module
from edge import link as link_module
from edge.bus import Bus
from edge.model import Line, Meter, PollFailure, Reason, TcpEndpoint
from protocols.clock import SystemClock
from protocols.quantities import ENERGY_NAMES, POWER_NAMES, Quality
from protocols.uplink import Row
from tests.edge.endpoint import (
    MARK,
    PASSWORD,
    QUARTER,
    Endpoint,
    ProtocolName,
    meter_645,
    meter_modbus,
    running,
    values_at,
)

MAKE_METER: dict[ProtocolName, Callable[[int], Meter]] = {"dlt645-2007": meter_645, "modbus-tcp": meter_modbus}
both_protocols = pytest.mark.parametrize("protocol", sorted(MAKE_METER))


def with_bus(
    endpoint: Endpoint,
    scenario: Callable[[Bus], Awaitable[None]],
    *,
    read_timeout_s: float = 1.0,
    quarantine_s: float = 0.5,
    password: str | None = PASSWORD,
) -> None:
    async def run() -> None:
        async with running(endpoint):
            line = endpoint.line(read_timeout_s=read_timeout_s, quarantine_s=quarantine_s)
            bus = Bus(line, SystemClock(), password)
            try:
                await scenario(bus)
            finally:
                await bus.close()

    asyncio.run(run())


def reason(result: object) -> Reason | None:
    return result.reason if isinstance(result, PollFailure) else None


@both_protocols
def test_energy_is_read_at_exactly_the_mark(protocol: ProtocolName) -> None:
    async def scenario(bus: Bus) -> None:
        row = await bus.read_energy(MAKE_METER[protocol](7), MARK)
        assert isinstance(row, Row)
        assert (row.meter, row.at, row.meter_at, row.quality) == ("m007", MARK, MARK, Quality.GOOD)
        assert row.values == values_at(7, MARK)
        assert all(isinstance(value, int) for value in row.values.values())

    with_bus(Endpoint(protocol), scenario)


@both_protocols
def test_power_comes_with_the_meters_own_clock(protocol: ProtocolName) -> None:
    drifting = MARK + timedelta(seconds=95)

    async def scenario(bus: Bus) -> None:
        row = await bus.read_power(MAKE_METER[protocol](3), MARK)
        assert isinstance(row, Row)
        assert (row.at, row.meter_at) == (MARK, drifting)
        assert set(row.values) == set(POWER_NAMES)
        assert row.values["active_power_w"] == pytest.approx(0.3 if protocol == "dlt645-2007" else 3.0)

    with_bus(Endpoint(protocol, now=lambda: drifting), scenario)


def test_a_date_read_before_midnight_is_read_again_after_it() -> None:
    moments = iter([datetime(2026, 3, 1, 15, 59, 59, tzinfo=UTC), *[datetime(2026, 3, 1, 16, 0, 0, tzinfo=UTC)] * 3])

    endpoint = Endpoint("dlt645-2007", now=lambda: next(moments))

    async def scenario(bus: Bus) -> None:
        row = await bus.read_power(meter_645(3), MARK)
        assert isinstance(row, Row)
        assert row.meter_at == datetime(2026, 3, 1, 16, 0, 0, tzinfo=UTC)

    # The clock is asked only for the two items of the clock: once before midnight, three times after.
    with_bus(endpoint, scenario)


@both_protocols
@pytest.mark.parametrize("count", [1, 6, 12, 13, 96, 100])
def test_a_profile_is_read_whole_over_requests_and_midnight(protocol: ProtocolName, count: int) -> None:
    first = datetime(2026, 3, 1, 22, 15, tzinfo=UTC)

    async def scenario(bus: Bus) -> None:
        rows = await bus.read_profile(MAKE_METER[protocol](9), first, count)
        assert isinstance(rows, list)
        assert [row.at for row in rows] == [first + i * QUARTER for i in range(count)]
        for row in rows:
            assert row.values == values_at(9, row.at)
            assert row.quality == Quality.BACKFILLED

    with_bus(Endpoint(protocol), scenario)


@both_protocols
def test_marks_the_meter_lacks_are_absent_and_the_others_come(protocol: ProtocolName) -> None:
    memory_begins = MARK + 5 * QUARTER

    async def scenario(bus: Bus) -> None:
        meter = MAKE_METER[protocol](2)
        rows = await bus.read_profile(meter, MARK, 8)
        assert isinstance(rows, list)
        assert [row.at for row in rows] == [memory_begins + i * QUARTER for i in range(3)]
        assert await bus.read_profile(meter, MARK, 5) == []
        assert reason(await bus.read_energy(meter, MARK)) is Reason.ABSENT

    with_bus(Endpoint(protocol, has=lambda at: at >= memory_begins), scenario)


@both_protocols
def test_a_relay_is_moved_before_its_expiry_only(protocol: ProtocolName) -> None:
    endpoint = Endpoint(protocol)

    async def scenario(bus: Bus) -> None:
        meter, now = MAKE_METER[protocol](4), datetime.now(UTC)
        assert await bus.set_relay(meter, closed=False, expires_at=now + QUARTER) is None
        assert endpoint.relays == {4: False}
        assert await bus.set_relay(meter, closed=True, expires_at=now + QUARTER) is None
        assert endpoint.relays == {4: True}
        late = await bus.set_relay(meter, closed=False, expires_at=now - QUARTER)
        assert reason(late) is Reason.EXPIRED
        assert endpoint.relays == {4: True}

    with_bus(endpoint, scenario)


@pytest.mark.parametrize(("password", "says"), [("02999999", "password_or_unauthorised"), (None, "GRIDLOOM_645")])
def test_a_645_relay_needs_its_password(password: str | None, says: str) -> None:
    endpoint = Endpoint("dlt645-2007")

    async def scenario(bus: Bus) -> None:
        result = await bus.set_relay(meter_645(4), closed=False, expires_at=datetime.now(UTC) + QUARTER)
        assert isinstance(result, PollFailure)
        assert result.reason is Reason.REFUSED
        assert says in result.detail
        assert not endpoint.relays

    with_bus(endpoint, scenario, password=password)


@both_protocols
def test_a_dead_meter_costs_one_timeout_a_backoff_step(protocol: ProtocolName) -> None:
    dead = 5
    endpoint = Endpoint(protocol, delay_s=lambda number: None if number == dead else 0.0)

    async def scenario(bus: Bus) -> None:
        meters = [MAKE_METER[protocol](number) for number in range(1, 41)]
        for i in range(5):
            sweep = await asyncio.gather(*(bus.read_energy(meter, MARK) for meter in meters))
            failed = [meter.name for meter, result in zip(meters, sweep, strict=True) if reason(result)]
            assert failed == ["m005"]
            assert reason(sweep[dead - 1]) is (Reason.BACKING_OFF if i else Reason.SILENT)
        assert endpoint.asked.count(dead) == 1

    with_bus(endpoint, scenario, read_timeout_s=0.5, quarantine_s=0.05)  # the living have time on a busy machine


def test_a_meter_that_answers_again_is_asked_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_S", 0.5)
    monkeypatch.setattr(client_module, "BACKOFF_COSTS", 0)
    is_alive = False
    endpoint = Endpoint("dlt645-2007", delay_s=lambda number: 0.0 if is_alive else None)

    async def scenario(bus: Bus) -> None:
        nonlocal is_alive
        meter = meter_645(1)
        assert reason(await bus.read_energy(meter, MARK)) is Reason.SILENT
        is_alive = True
        assert reason(await bus.read_energy(meter, MARK)) is Reason.BACKING_OFF
        await asyncio.sleep(0.6)
        for _ in range(3):
            assert reason(await bus.read_energy(meter, MARK)) is None

    with_bus(endpoint, scenario, read_timeout_s=0.3, quarantine_s=0.01)


@both_protocols
def test_live_polls_overtake_commands_and_backfill(protocol: ProtocolName) -> None:
    endpoint = Endpoint(protocol)

    async def scenario(bus: Bus) -> None:
        make = MAKE_METER[protocol]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bus.read_profile(make(1), MARK, 96))
            await asyncio.sleep(0)
            tasks.create_task(bus.read_profile(make(2), MARK, 1))
            tasks.create_task(bus.set_relay(make(3), closed=False, expires_at=datetime.now(UTC) + QUARTER))
            tasks.create_task(bus.read_energy(make(4), MARK))
            tasks.create_task(bus.read_energy(make(5), MARK))
        assert endpoint.asked[:5] == [1, 4, 5, 3, 2]

    with_bus(endpoint, scenario)


@both_protocols
def test_a_killed_endpoint_is_found_again(protocol: ProtocolName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "RETRY_MAX_S", 0.2)
    endpoint = Endpoint(protocol)

    async def scenario(bus: Bus) -> None:
        meter = MAKE_METER[protocol](1)
        assert reason(await bus.read_energy(meter, MARK)) is None
        for _ in range(2):
            endpoint.kill()
            started_s = time.monotonic()
            while time.monotonic() < started_s + 0.3:
                assert reason(await bus.read_energy(meter, MARK)) is Reason.LINK_DOWN
                await asyncio.sleep(0.01)
            await endpoint.start()
            deadline_s = time.monotonic() + 2
            while reason(await bus.read_energy(meter, MARK)):
                assert time.monotonic() < deadline_s
                await asyncio.sleep(0.01)

    with_bus(endpoint, scenario)


def test_a_connection_that_went_deaf_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_S", 0.0)
    monkeypatch.setattr(client_module, "BACKOFF_COSTS", 0)
    endpoint = Endpoint("modbus-tcp", delay_s=lambda number: None if endpoint.connections == 1 else 0.0)

    async def scenario(bus: Bus) -> None:
        for _ in range(client_module.DEAF_TIMEOUTS_MAX):
            assert reason(await bus.read_energy(meter_modbus(1), MARK)) is Reason.SILENT
        await asyncio.sleep(0.3)
        assert reason(await bus.read_energy(meter_modbus(1), MARK)) is None

    with_bus(endpoint, scenario, read_timeout_s=0.2)


def test_no_endpoint_at_all_is_a_failure_and_not_an_exception() -> None:
    async def run() -> None:
        bus = Bus(Line("line", "modbus-tcp", TcpEndpoint("127.0.0.1", 1)), SystemClock())
        for _ in range(3):
            assert reason(await bus.read_energy(meter_modbus(1), MARK)) is Reason.LINK_DOWN
        await bus.close()
        assert reason(await bus.read_energy(meter_modbus(1), MARK)) is Reason.LINK_DOWN

    asyncio.run(run())


def test_a_cancelled_poll_leaves_the_line_usable() -> None:
    endpoint = Endpoint("dlt645-2007", delay_s=lambda number: 0.05)

    async def scenario(bus: Bus) -> None:
        for started in (0.0, 0.02):
            polls = [asyncio.create_task(bus.read_energy(meter_645(number), MARK)) for number in (1, 2, 3)]
            await asyncio.sleep(started)
            polls[0].cancel()
            polls[1].cancel()
            row = await polls[2]
            assert isinstance(row, Row)
            assert row.values == values_at(3, MARK)

    with_bus(endpoint, scenario, quarantine_s=0.1)


@pytest.mark.parametrize("protocol", ["modbus-tcp"])
def test_late_replies_never_book_a_wrong_value(protocol: ProtocolName, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 polls, three replies of ten after the timeout. Serial lines, where it is harder: test_late.py."""
    monkeypatch.setattr(client_module, "BACKOFF_S", 0.0)
    monkeypatch.setattr(client_module, "BACKOFF_COSTS", 0)
    rng = random.Random(7)
    timeout_s = 0.006

    def delay_s(number: int) -> float:
        return rng.uniform(1.0, 4.0) * timeout_s if rng.random() < 0.3 else rng.uniform(0.0, 0.3) * timeout_s

    booked = failed = 0

    async def poll(bus: Bus, meter: Meter, number: int) -> None:
        nonlocal booked, failed
        at = MARK + rng.randrange(96) * QUARTER
        if rng.random() < 0.5:
            row = await bus.read_energy(meter, at)
            want = values_at(number, at)
        else:
            row = await bus.read_power(meter, at)
            want = {}
        if isinstance(row, PollFailure):
            assert row.reason not in (Reason.GARBLED, Reason.REFUSED)
            failed += 1
            return
        booked += 1
        assert (row.meter, row.at) == (meter.name, at)
        if want:
            assert row.values == want
        else:
            scale = {"active_power_w": 0.1, "voltage_l1_v": 0.1, "current_l1_a": 0.001, "frequency_hz": 0.01}
            for quantity, step in scale.items():
                expected = number * (step if protocol == "dlt645-2007" else 1)
                assert row.values[quantity] == pytest.approx(expected)

    async def scenario(bus: Bus) -> None:
        numbers = [rng.randrange(1, 6) for _ in range(500)]
        for start in range(0, 500, 10):
            await asyncio.gather(
                *(poll(bus, MAKE_METER[protocol](number), number) for number in numbers[start : start + 10])
            )

    with_bus(Endpoint(protocol, delay_s=delay_s), scenario, read_timeout_s=timeout_s, quarantine_s=2 * timeout_s)
    print(f"{protocol}: {booked} booked right, {failed} failed, 0 wrong")
    assert booked > 50
    assert failed > 50


def test_energy_names_are_what_load_records_carry() -> None:
    assert list(values_at(1, MARK)) == list(ENERGY_NAMES)
