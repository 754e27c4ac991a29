"""The meters over real sockets: against pymodbus, against our own codecs, and as a process that is killed."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pymodbus import ExceptionResponse
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.pdu.file_message import FileRecord, ReadFileRecordResponse

from protocols import dlt645
from protocols.clock import Anchor, write_anchor
from protocols.dlt645 import Fault, Frame, RelayAction, RelayOrder
from protocols.framing import MeterError
from simulators import servers
from simulators.layout import Habit
from simulators.meters import DLT645, MODBUS
from simulators.servers import Field
from simulators.site import Site
from simulators.world import WH_PER_STEP, ZONE, World
from tests.conftest import wait_for_port
from tests.simulators.conftest import START

PASSWORD = "02123456"
DAY_ZERO = datetime(2000, 1, 1, tzinfo=UTC)


class FixedClock:
    """Stands where it is put."""

    def __init__(self, now: datetime) -> None:
        self.moment = now

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()

    async def sleep(self, real_s: float) -> None:
        await asyncio.sleep(0)

    async def sleep_until(self, moment: datetime) -> None:
        self.moment = max(self.moment, moment)


@asynccontextmanager
async def answering(here: Site, world: World, *, after_s: float = 65.0) -> AsyncIterator[Field]:
    field = Field(here, world, FixedClock(START + timedelta(seconds=after_s)), PASSWORD)
    listening = await servers.bind(field)
    try:
        for server in listening:
            await server.start_serving()
        yield field
    finally:
        for server in listening:
            server.close()


def find(world: World, protocol: str, *, controllable: bool = False) -> int:
    return next(
        row
        for row, m in enumerate(world.meters)
        if m.protocol == protocol and m.controllable == controllable and m.role == "customer" and m.habit is Habit.PLAIN
    )


def port_of(field: Field, row: int) -> int:
    return next(line.port for line in field.site.lines if line.name == field.world.meters[row].line)


def advance(field: Field, seconds: float) -> None:
    assert isinstance(field.clock, FixedClock)
    field.clock.moment += timedelta(seconds=seconds)


async def ask(field: Field, row: int, request: Frame, timeout_s: float = 5) -> Frame | None:
    """The answer to a 645 request on the row's line; None where nobody answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(field, row))
    try:
        writer.write(b"\x00\x68" + dlt645.encode(request))  # noise first, as lines have it
        decoder = dlt645.Decoder()
        async with asyncio.timeout(timeout_s):
            while True:
                for event in decoder.feed(await reader.read(512)):
                    if isinstance(event, Frame):
                        assert dlt645.is_answer(request, event)
                        return event
    except TimeoutError:
        return None
    finally:
        writer.close()


def sync(test: Callable[[Site, World], Awaitable[None]]) -> Callable[[Site, World], None]:
    """Run an async test; keeps its name and document."""

    def run(built: Site, world: World) -> None:
        async def body() -> None:
            await test(built, world)

        asyncio.run(body())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


# ---- Modbus, asked by pymodbus ---------------------------------------------------------------------------------------


@asynccontextmanager
async def pymodbus(field: Field, row: int) -> AsyncIterator[AsyncModbusTcpClient]:
    client = AsyncModbusTcpClient("127.0.0.1", port=port_of(field, row), timeout=1, retries=0)
    assert await client.connect()
    try:
        yield client
    finally:
        client.close()


@sync
async def test_pymodbus_reads_the_block_of_the_template(built: Site, world: World) -> None:
    async with answering(built, world) as field:
        row = find(field.world, MODBUS)
        unit = int(field.world.meters[row].address)
        async with pymodbus(field, row) as client:
            answer = await client.read_holding_registers(0, count=30, device_id=unit)
            raw = struct.pack(">30H", *answer.registers)
            power = field.world.power(row, field.now_s())
            meter = field.world.meters[row]
            values = struct.unpack(">10f5I", raw)
            assert values[0] * meter.ratio == pytest.approx(power.active_w, rel=1e-6)
            assert sum(values[2:5]) / 3 == pytest.approx(power.volts, rel=1e-3)
            assert sum(v * a for v, a in zip(values[2:5], values[5:8], strict=True)) * meter.ratio == pytest.approx(
                abs(complex(power.active_w, power.reactive_var)), rel=1e-3
            )
            assert 49.9 < values[9] < 50.1
            assert values[10] == int(field.now_s())
            assert list(values[11:]) == field.world.reading(row, field.now_s()).tolist()
            beyond = await client.read_holding_registers(29, count=2, device_id=unit)
            assert isinstance(beyond, ExceptionResponse) and beyond.exception_code == 2


@sync
async def test_pymodbus_reads_twelve_marks_of_the_load_profile(built: Site, world: World) -> None:
    async with answering(built, world) as field:
        row = find(field.world, MODBUS)
        unit = int(field.world.meters[row].address)
        first = START - timedelta(days=20, hours=5)
        file, of_day = (first - DAY_ZERO).days, first.hour * 4

        async def read(file: int, mark: int, count: int) -> bytes | int:
            request = FileRecord(
                file_number=file, record_number=mark * 10, record_length=count * 20
            )  # bytes; halved on the wire
            answer = await client.read_file_record([request], device_id=unit)
            if isinstance(answer, ExceptionResponse):
                return answer.exception_code
            assert isinstance(answer, ReadFileRecordResponse)
            return bytes(answer.records[0].record_data)

        async with pymodbus(field, row) as client:
            raw = await read(file, of_day, 12)
            assert isinstance(raw, bytes) and len(raw) == 240
            for i, (mark_s, *steps) in enumerate(struct.iter_unpack(">5I", raw)):
                assert mark_s == first.timestamp() + 900 * i
                assert steps == field.world.record(row, mark_s, field.now_s())
            live = await read((START - DAY_ZERO).days, START.hour * 4 - 1, 3)  # the last of these is in the future
            assert isinstance(live, bytes)
            marks = list(struct.iter_unpack(">5I", live))
            assert [mark[0] for mark in marks[:2]] == [START.timestamp() - 900, START.timestamp()]
            assert marks[2] == (0xFFFFFFFF,) * 5
            assert await read((START - DAY_ZERO).days, START.hour * 4 + 1, 2) == 2, "none of them is there"
            assert await read(file - 60, 0, 12) == 2, "before the memory"


@sync
async def test_pymodbus_opens_and_closes_a_relay(built: Site, _: World) -> None:
    async with answering(built, built.world()) as field:
        row = find(field.world, MODBUS, controllable=True)
        unit = int(field.world.meters[row].address)

        async def write(address: int, action: int, until_s: float) -> int:
            values = [action, *struct.unpack(">2H", struct.pack(">I", int(until_s)))]
            answer = await client.write_registers(address, values, device_id=unit)
            return answer.exception_code if isinstance(answer, ExceptionResponse) else 0

        async with pymodbus(field, row) as client:
            assert await write(0x0100, 1, field.now_s() - 1) == 3, "expired"
            assert await write(0x0100, 7, field.now_s() + 60) == 3, "no such action"
            assert await write(0x0101, 1, field.now_s() + 60) == 2
            assert field.world.is_closed(row, field.now_s())
            assert await write(0x0100, 1, field.now_s() + 3600) == 0
            assert not field.world.is_closed(row, field.now_s())
            shown = field.energies(row).tolist()
            advance(field, 1000)
            assert field.energies(row).tolist() == shown
            assert await write(0x0100, 0, field.now_s() + 60) == 0
            assert field.world.is_closed(row, field.now_s())
        other = find(field.world, MODBUS)
        async with pymodbus(field, other) as client:
            unit = int(field.world.meters[other].address)
            assert await write(0x0100, 1, field.now_s() + 3600) == 2, "it has no relay"


@sync
async def test_a_unit_that_is_not_there_is_silent(built: Site, world: World) -> None:
    async with answering(built, world) as field:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(field, find(field.world, MODBUS)))
        writer.write(bytes.fromhex("0001 0000 0006 F7 03 0000 0002"))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.read(64)
        writer.close()


# ---- DL/T 645, asked with our codecs ---------------------------------------------------------------------------------


@sync
async def test_645_meters_tell_their_values(built: Site, world: World) -> None:
    async with answering(built, world) as field:
        row = find(field.world, DLT645)
        meter, power = field.world.meters[row], field.world.power(row, field.now_s())

        async def read(di: int) -> bytes:
            request = dlt645.read(meter.serial, di)
            answer = await ask(field, row, request)
            assert answer is not None
            return dlt645.decode_reply(request, answer)

        for di, register in zip((0x00010000, 0x00020000, 0x00030000, 0x00040000), field.energies(row), strict=True):
            assert dlt645.decode_item(di, await read(di)) == (register,)
        total, *phases = dlt645.decode_item(0x0203FF00, await read(0x0203FF00))
        assert total == round(power.active_w / meter.ratio * 10)
        assert sum(phase or 0 for phase in phases) == pytest.approx(total, abs=2)
        volts = dlt645.decode_item(0x0201FF00, await read(0x0201FF00))
        assert sum(volt or 0 for volt in volts) / 30 == pytest.approx(power.volts, abs=0.1)
        assert dlt645.decode_clock(await read(dlt645.DATE), await read(dlt645.TIME), ZONE) == field.clock.now()
        with pytest.raises(MeterError, match="no_requested_data"):
            await read(0x00010001)
        address = dlt645.Frame(meter.serial, dlt645.Function.READ_ADDRESS)
        answer = await ask(field, row, address)
        assert answer is not None and dlt645.decode_address(dlt645.decode_reply(address, answer)) == meter.serial


@sync
async def test_645_load_records_are_the_registers_at_the_marks(built: Site, world: World) -> None:
    async with answering(built, world) as field:
        row = find(field.world, DLT645)

        async def records(at: datetime, count: int) -> list[dlt645.LoadRecord]:
            extra = dlt645.encode_load_query(count, at, ZONE)
            request = dlt645.read(field.world.meters[row].serial, dlt645.LOAD_AT, extra)
            answer = await ask(field, row, request)
            assert answer is not None
            return list(dlt645.decode_load_records(dlt645.decode_reply(request, answer), ZONE))

        first = START - timedelta(days=34)
        told = await records(first, 6)
        assert [record.at for record in told] == [first + timedelta(minutes=15 * i) for i in range(6)]
        for record in told:
            steps = field.world.record(row, round(record.at.timestamp()), field.now_s())
            assert steps is not None
            assert [
                record.energy_import_wh,
                record.energy_export_wh,
                record.reactive_import_varh,
                record.reactive_export_varh,
            ] == [step * WH_PER_STEP for step in steps]
        assert [record.at for record in await records(START, 6)] == [START], "the rest is in the future"
        assert await records(START - timedelta(days=80), 6) == []


@sync
async def test_645_relay_wants_the_password_and_a_future_expiry(built: Site, _: World) -> None:
    async with answering(built, built.world()) as field:
        row = find(field.world, DLT645, controllable=True)

        async def order(action: RelayAction, password: str, for_s: float, on: int = row) -> bytes:
            told = RelayOrder(action, password, "00000001", field.clock.now() + timedelta(seconds=for_s))
            request = dlt645.relay(field.world.meters[on].serial, told, ZONE)
            answer = await ask(field, on, request)
            assert answer is not None
            return dlt645.decode_reply(request, answer)

        with pytest.raises(MeterError) as refused:
            await order(RelayAction.TRIP, "02654321", 600)
        assert refused.value.code == Fault.PASSWORD_OR_UNAUTHORISED
        with pytest.raises(MeterError):
            await order(RelayAction.TRIP, PASSWORD, -10)
        with pytest.raises(MeterError):
            await order(RelayAction.TRIP, PASSWORD, 600, on=find(field.world, DLT645))
        assert field.world.is_closed(row, field.now_s())
        assert await order(RelayAction.TRIP, PASSWORD, 600) == b""
        advance(field, 300)
        assert field.snapshot(row).active_w == 0
        advance(field, 301)
        assert field.snapshot(row).active_w > 3000, "it closes when the order has expired"
        assert await order(RelayAction.TRIP, PASSWORD, 600) == b""
        assert await order(RelayAction.CLOSE, PASSWORD, 600) == b""
        assert field.world.is_closed(row, field.now_s())
        field.password = ""
        with pytest.raises(MeterError):
            await order(RelayAction.TRIP, "02000000", 600)


def ahead_s(field: Field, row: int) -> float:
    return (field.meter_now(row) - field.clock.now()).total_seconds()


@sync
async def test_645_broadcast_time_moves_every_meter_of_the_line_once_a_day_and_five_minutes_at_most(
    built: Site, _: World
) -> None:
    async with answering(built, built.world()) as field:
        row = find(field.world, DLT645)
        line = field.world.meters[row].line
        rows = [r for r, meter in enumerate(field.world.meters) if meter.line == line]

        async def tell(by_s: float) -> None:
            told = field.clock.now() + timedelta(seconds=by_s)
            assert await ask(field, row, dlt645.broadcast_time(told, ZONE), timeout_s=0.2) is None

        await tell(400)
        assert [ahead_s(field, r) for r in rows if field.world.clocks[r].is_right] == [0.0] * len(rows)
        await tell(240)
        assert {ahead_s(field, r) for r in rows} == {240.0}
        await tell(0)
        assert {ahead_s(field, r) for r in rows} == {240.0}, "once a day"
        advance(field, 86_400)
        await tell(0)
        assert {round(ahead_s(field, r)) for r in rows} == {0}
        again = built.world()
        assert again.clocks[row].at(field.now_s()) == field.world.clocks[row].at(field.now_s()), "it outlives a restart"


@sync
async def test_645_writes_date_and_time_with_the_password(built: Site, _: World) -> None:
    async with answering(built, built.world()) as field:
        row = find(field.world, DLT645)
        serial, told = field.world.meters[row].serial, field.clock.now() - timedelta(days=3, hours=2)

        async def write(di: int, data: bytes, password: str = PASSWORD) -> bytes:
            request = dlt645.write(serial, di, dlt645.Credentials(password), data)
            answer = await ask(field, row, request)
            assert answer is not None
            return dlt645.decode_reply(request, answer)

        date, time = dlt645.encode_time(told, "wdmy", ZONE), dlt645.encode_time(told, "SMH", ZONE)
        with pytest.raises(MeterError) as refused:
            await write(dlt645.DATE, date, "04000000")
        assert refused.value.code == Fault.PASSWORD_OR_UNAUTHORISED
        for di, data in ((dlt645.DATE, bytes.fromhex("01320301")), (dlt645.TIME, time[:2]), (0x04000103, b"\x0f")):
            with pytest.raises(MeterError):
                await write(di, data)
        assert ahead_s(field, row) == 0
        assert await write(dlt645.DATE, date) == b""
        assert ahead_s(field, row) == -3 * 86_400
        assert await write(dlt645.TIME, time) == b""
        assert ahead_s(field, row) == -3 * 86_400 - 7200


@sync
async def test_wrong_addresses_broadcasts_and_crowds_get_no_answer(built: Site, world: World) -> None:
    async with answering(built, world) as field:
        row = find(field.world, DLT645)
        for request in (
            dlt645.read("209900000001", 0x00010000),
            dlt645.read_address(),  # several meters would talk at once
            dlt645.broadcast_time(START - timedelta(days=1), ZONE),
            dlt645.freeze(),
        ):
            assert await ask(field, row, request, timeout_s=0.2) is None


@sync
async def test_the_broken_meter_falls_silent_twenty_minutes_after_the_start(built: Site, world: World) -> None:
    async with answering(built, world, after_s=19 * 60) as field:
        (row,) = (r for r, meter in enumerate(field.world.meters) if meter.habit is Habit.BROKEN)

        async def answers() -> bool:
            meter = field.world.meters[row]
            if meter.protocol == DLT645:
                return await ask(field, row, dlt645.read(meter.serial, 0x00010000), timeout_s=0.3) is not None
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(field, row))
            writer.write(struct.pack(">HHHBBHH", 1, 0, 6, int(meter.address), 3, 0, 2))
            try:
                async with asyncio.timeout(0.3):
                    return bool(await reader.read(64))
            except TimeoutError:
                return False
            finally:
                writer.close()

        assert await answers()
        advance(field, 61)
        assert not await answers()


@sync
async def test_what_is_not_a_request_stops_nothing(built: Site, world: World) -> None:
    async with answering(built, world) as field:
        row = find(field.world, DLT645)
        serial = field.world.meters[row].serial
        for line in {port_of(field, row), port_of(field, find(field.world, MODBUS))}:
            _, writer = await asyncio.open_connection("127.0.0.1", line)
            writer.write(bytes(range(256)) * 40 + b"GET / HTTP/1.1\r\n\r\n")
            await writer.drain()
            writer.close()
        for function, data in ((0x11, b"\x01"), (0x1C, b"\x02\x00"), (0x14, b""), (0x11, bytes.fromhex("01000406 99"))):
            answer = await ask(field, row, Frame(serial, function, data))
            assert answer is not None and answer.is_abnormal
        assert await ask(field, row, dlt645.read(serial, 0x00010000)) is not None


# ---- the process -----------------------------------------------------------------------------------------------------


@contextmanager
def process(here: Site, clock: Path) -> Iterator["subprocess.Popen[str]"]:
    running = subprocess.Popen(
        [sys.executable, "-m", "simulators", "run", "--data", str(here.directory)],
        env={**os.environ, "GRIDLOOM_CLOCK": str(clock), servers.PASSWORD_VARIABLE: PASSWORD},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in here.lines:
            wait_for_port(line.port, 30)
        yield running
    finally:
        running.kill()
        running.wait(10)
        assert running.stderr is not None
        running.stderr.close()


def test_a_killed_simulator_comes_back_with_the_same_registers_and_relays(built: Site, tmp_path: Path) -> None:
    clock = tmp_path / "clock.json"
    write_anchor(clock, Anchor(real_s=0, simulated_s=START.timestamp() + 100, rate=0))  # stands still
    field = Field(built, built.world(), FixedClock(START), PASSWORD)
    row = find(field.world, DLT645, controllable=True)
    meter = field.world.meters[row]
    expires_at = START + timedelta(seconds=1000)
    trip = dlt645.relay(meter.serial, RelayOrder(RelayAction.TRIP, PASSWORD, "00000001", expires_at), ZONE)
    energy = dlt645.read(meter.serial, 0x00010000)
    with process(built, clock) as running:
        confirmed = asyncio.run(ask(field, row, trip))
        assert confirmed is not None and not confirmed.is_abnormal
        before = asyncio.run(ask(field, row, energy))
        running.kill()
    write_anchor(clock, Anchor(real_s=0, simulated_s=START.timestamp() + 900, rate=0))
    with process(built, clock) as running:
        assert asyncio.run(ask(field, row, energy)) == before
        running.send_signal(signal.SIGTERM)
        assert running.wait(3) == 0
    window = (START + timedelta(seconds=100), expires_at)
    told = subprocess.run(
        [
            sys.executable, "-m", "simulators", "truth", "--data", str(built.directory), "--json",
            "--from", window[0].isoformat(), "--to", window[1].isoformat(), "--points", meter.point,
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    answer = json.loads(told.stdout)
    assert answer["drawn_wh"] == pytest.approx(0)
    assert answer["reduction_wh"] == pytest.approx(answer["would_have_drawn_wh"])
    assert answer["reduction_wh"] > 3000 * 900 / 3600


def test_a_port_in_use_is_one_clear_line_and_exit_1(built: Site) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", built.lines[1].port))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-m", "simulators", "run", "--data", str(built.directory)], capture_output=True, text=True
        )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"port {built.lines[1].port} of line {built.lines[1].name}: in use" in done.stderr
