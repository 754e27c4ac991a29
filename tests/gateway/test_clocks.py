"""Meters' clocks on real lines: the simulated site's meters over TCP and a serial line, with clocks that go wrong."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge.bus import Bus
from edge.model import Line, Meter, SerialEndpoint, SerialSetting, TcpEndpoint
from gateway.clocks import Clocks
from gateway.clocks.own_time import OwnTime
from gateway.clocks.policy import Rules
from gateway.health import clock_error_s
from gateway.queue import Queue
from protocols import templates
from protocols.clock import Anchor, SystemClock, write_anchor
from protocols.uplink import Event
from simulators import layout, lines, servers, site
from simulators.lines import SerialLine, Setting, dlt645_meter
from simulators.meters import DLT645, MODBUS, MeterClock
from simulators.servers import Field
from simulators.site import Site, read_clock_journal
from simulators.world import World
from tests.conftest import stop

PASSWORD = "02123456"
BUILT = datetime(2026, 3, 1, 9, tzinfo=UTC)
START = datetime(2026, 3, 1, 9, 7, tzinfo=UTC)  # 17:07 local: clear of marks and hours
SEED, METERS = 3, 60
POLICY = Rules(correct="policy", trust="always")


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Site:
    directory = tmp_path_factory.mktemp("town")
    site.build(directory, seed=SEED, meters=METERS, start=BUILT)
    return site.load(directory)


@dataclass
class Watched(Field):
    """The meters' side, which tells when a clock was set, before it answers."""

    on_set: Callable[[int], None] = lambda row: None

    def set_clock(self, row: int, to: datetime, *, broadcast: bool = False) -> None:
        Field.set_clock(self, row, to, broadcast=broadcast)
        self.on_set(row)


@dataclass
class Box:
    """One line of the town with few of its meters, their clocks to order, and a gateway's clocks on it."""

    folder: Path
    clock: SystemClock
    there: Watched
    rows: list[int]
    meters: list[Meter]
    line: Line
    rules: Rules = POLICY
    password: str | None = PASSWORD
    events: list[Event] = field(default_factory=list)

    def set(self, *ahead_s: float, gains_s_per_day: float = 0.0) -> None:
        since_s = self.clock.now().timestamp()
        for row, offset_s in zip(self.rows, ahead_s, strict=True):
            self.there.world.clocks[row] = MeterClock(offset_s, gains_s_per_day, since_s)

    def ahead_s(self) -> list[float]:
        return [(self.there.meter_now(row) - self.clock.now()).total_seconds() for row in self.rows]

    def settings(self) -> list[int]:
        """How often each clock was set."""
        return [len(self.there.world.clocks[row].settings) for row in self.rows]

    def of(self, kind: str) -> dict[str | None, Event]:
        return {event.meter: event for event in self.events if event.kind == kind}

    @contextmanager
    def queue(self) -> Iterator[Queue]:
        it = Queue(self.folder / "queue.sqlite", gateway="gw-1", interval_s=900, bytes_max=4_000_000)
        try:
            yield it
        finally:
            it.close()

    @asynccontextmanager
    async def clocks(self, *, own_time: OwnTime | None = None, works: bool = True) -> AsyncIterator[Clocks]:
        """``works``: with its daily task."""

        async def report(event: Event) -> None:
            self.events.append(event)

        bus = Bus(self.line, self.clock, self.password)
        with self.queue() as queue:
            it = Clocks(
                [(bus, self.meters)], queue, self.clock, self.rules,
                report=report, may_write=self.password is not None, own_time=own_time,
            )  # fmt: skip
            task = asyncio.create_task(it.run()) if works else None
            try:
                yield it
            finally:
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])
                await bus.close()


def box_for(town: Site, folder: Path, *, rate: float, protocol: str = DLT645, count: int = 3) -> Box:
    write_anchor(folder / "clock.json", Anchor(time.time(), START.timestamp(), rate))
    clock = SystemClock(folder / "clock.json")
    world = World(town.seed, town.meters, town.start)
    rows = [
        row
        for row, it in enumerate(world.meters)
        if it.protocol == protocol and it.habit is layout.Habit.PLAIN and it.role == "customer"
    ]
    own = Site(folder, town.seed, town.meters, town.start, town.lines)
    name = "dlt645-2007" if protocol == DLT645 else "gridloom-demo-modbus"
    line = Line("line", "dlt645-2007" if protocol == DLT645 else "modbus-tcp", TcpEndpoint("127.0.0.1", 1))
    chosen = [row for row in rows if world.meters[row].line == world.meters[rows[0]].line][:count]
    meters = [Meter(f"m{i}", world.meters[row].address, templates.load(name)) for i, row in enumerate(chosen)]
    # The others of the line are not there: a broadcast would move them too.
    return Box(folder, clock, Watched(own, world, clock, PASSWORD), chosen, meters, line)


@asynccontextmanager
async def tcp(town: Site, folder: Path, *, rate: float = 30, protocol: str = DLT645) -> AsyncIterator[Box]:
    box = box_for(town, folder, rate=rate, protocol=protocol)
    rows = {box.there.world.meters[row].address: row for row in box.rows}
    kind = servers.Dlt645Line if protocol == DLT645 else servers.ModbusLine
    server = await asyncio.get_running_loop().create_server(lambda: kind(box.there, rows), "127.0.0.1", 0)
    box.line = Line("line", box.line.protocol, TcpEndpoint("127.0.0.1", server.sockets[0].getsockname()[1]), 0.6)
    try:
        yield box
    finally:
        server.close()


@contextmanager
def serial(town: Site, folder: Path, *, rate: float) -> Iterator[Box]:
    box = box_for(town, folder, rate=rate)

    def answering(row: int) -> lines.Meter:
        respond = dlt645_meter(
            box.there.world.meters[row].address, lambda frame: servers.answer_dlt645(box.there, row, frame)
        )
        return lines.Meter(respond, Setting(9600, "E"))

    with SerialLine([answering(row) for row in box.rows]) as bus:
        box.line = Line("line", "dlt645-2007", SerialEndpoint(bus.path, SerialSetting(9600, "E")), read_timeout_s=0.5)
        yield box


async def until(true: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_a_line_whose_clocks_all_wander_is_set_by_one_broadcast(town: Site, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tcp(town, tmp_path) as box:
            box.set(-95, -40, -25)
            async with box.clocks() as clocks:
                await until(lambda: len(box.of("clock_corrected")) == 3)
                assert all(abs(offset_s) < 6 for offset_s in box.ahead_s())
                assert list(box.of("clock_drift")) == ["m0"], "one was past the limit; all were the better for it"
                for name, before_s in (("m0", -95), ("m1", -40), ("m2", -25)):
                    detail = box.of("clock_corrected")[name].detail
                    assert (detail["method"], detail["asked_by"]) == ("broadcast", "policy")
                    assert detail["before_s"] == pytest.approx(before_s, abs=6)
                    assert detail["after_s"] == pytest.approx(0, abs=6)
                assert box.settings() == [1, 1, 1]
                assert "suspect_from" in box.of("clock_corrected")["m0"].detail
                assert "suspect_from" not in box.of("clock_corrected")["m1"].detail
                # What it remembers from before was lived by a wrong clock, what it will is right.
                assert clocks.is_suspect("m0", START - timedelta(hours=5))
                assert not clocks.is_suspect("m0", START + timedelta(hours=5))
                assert not clocks.is_suspect("m1", START - timedelta(hours=5))
            box.set(-95, -95, -95)  # they are wrong again, the same day
            async with box.clocks() as clocks:
                await until(lambda: "m2" in box.of("clock_not_corrected"))
                assert box.of("clock_not_corrected")["m2"].detail["reason"] == "its clock was set today already"
                assert box.settings() == [0, 0, 0]
                assert clocks.is_suspect("m1", START + timedelta(hours=1))

    asyncio.run(scenario())


def test_one_meter_hours_off_is_written_to_and_the_marks_it_skipped_are_named(town: Site, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tcp(town, tmp_path) as box:
            box.set(0, -2 * 3600, 0)
            async with box.clocks(works=False) as clocks:
                done = await clocks.sync(["m1", "m0"], asked_by="command c-1")
                assert done["m0"].method is None
                assert str(done["m0"]).startswith("right already")
                assert done["m1"].method == "write"
                assert done["m1"].reason == ""
                assert box.settings()[0] == box.settings()[2] == 0
                assert all(abs(offset_s) < 6 for offset_s in box.ahead_s())
                detail = box.of("clock_corrected")["m1"].detail
                assert detail["asked_by"] == "command c-1"
                assert detail["suspect_from"] == datetime(1970, 1, 1, tzinfo=UTC).isoformat(), "never seen right"
                ends_at = datetime.fromisoformat(str(detail["suspect_until"]))
                assert timedelta() < ends_at - START < timedelta(minutes=75)
                assert clocks.is_suspect("m1", ends_at - timedelta(hours=1))
                assert not clocks.is_suspect("m1", ends_at + timedelta(minutes=15))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("rules", "password", "reason"),
    [
        (Rules(correct="never"), PASSWORD, 'clocks.correct = "never"'),
        (Rules(trust="always"), None, "GRIDLOOM_645_PASSWORD"),
        (Rules(trust="always"), "02999999", "refused"),
    ],
)
def test_what_may_not_be_set_is_left_with_the_reason(
    town: Site, tmp_path: Path, rules: Rules, password: str | None, reason: str
) -> None:
    async def scenario() -> None:
        async with tcp(town, tmp_path) as box:
            box.rules, box.password = rules, password
            box.set(0, 400, 0)
            async with box.clocks(works=False) as clocks:
                done = await clocks.sync(["m1", "m7"], asked_by="somebody")
                assert reason in str(done["m1"])
                assert "no such meter" in str(done["m7"])
                assert box.settings() == [0, 0, 0]

    asyncio.run(scenario())


def test_a_modbus_meter_is_measured_and_not_set(town: Site, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tcp(town, tmp_path, protocol=MODBUS) as box:
            box.set(0, 200, 0)
            async with box.clocks() as clocks:
                await until(lambda: clocks.is_wrong("m1") is True and clocks.is_wrong("m2") is False)
                assert "Modbus" in str((await clocks.sync(["m1"], asked_by="somebody"))["m1"])
                assert list(box.of("clock_drift")) == ["m1"]
                assert box.of("clock_drift")["m1"].detail["offset_s"] == pytest.approx(200, abs=6)

    asyncio.run(scenario())


def test_a_serial_line_is_set_by_a_broadcast_and_a_write(town: Site, tmp_path: Path) -> None:
    async def scenario() -> None:
        with serial(town, tmp_path, rate=8) as box:
            box.set(60, 45, 80)
            async with box.clocks(works=False) as clocks:
                done = await clocks.sync(["m0", "m1", "m2"], asked_by="somebody")
                assert [it.method for it in done.values()] == ["broadcast"] * 3, done
                assert all(abs(offset_s) < 5 for offset_s in box.ahead_s())
        (tmp_path / "again").mkdir()
        with serial(town, tmp_path / "again", rate=8) as box:
            box.set(0, 0, -100)
            async with box.clocks(works=False) as clocks:
                done = await clocks.sync(["m2"], asked_by="somebody")
                assert str(done["m2"]).endswith("by write"), done
                assert all(abs(offset_s) < 5 for offset_s in box.ahead_s())

    asyncio.run(scenario())


def test_a_meter_that_does_not_answer_blocks_the_broadcast_and_not_the_write(town: Site, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tcp(town, tmp_path) as box:
            box.set(-95, -95, -95)
            silent = Meter("m9", "000000000009", box.meters[0].template)
            box.meters.append(silent)
            async with box.clocks(works=False) as clocks:
                done = await clocks.sync(["m0", "m9"], asked_by="somebody")
                assert "silent" in str(done["m9"])
                assert done["m0"].method == "write"
                assert box.settings()[1:] == [0, 0]

    asyncio.run(scenario())


# ---- a day ---------------------------------------------------------------------------------------------------------


class Calendar:
    """A clock that stands where it is put."""

    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, real_s: float) -> None:
        await asyncio.sleep(real_s)

    async def sleep_until(self, moment: datetime) -> None:
        self.moment = max(self.moment, moment)


def test_drift_is_what_two_days_differ_by_and_a_clock_that_runs_off_is_an_event(town: Site, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tcp(town, tmp_path) as box:
            box.set(0, 0, 0)
            calendar = Calendar(START)
            box.clock = box.there.clock = calendar  # type: ignore[assignment]
            box.set(-20, -20, -20, gains_s_per_day=-8)
            box.there.world.clocks[box.rows[2]].gains_s_per_day = -0.4
            for day in range(4):
                calendar.moment = START + timedelta(days=day)
                async with box.clocks(works=False) as clocks:  # every day another process
                    for meter in box.meters:
                        await clocks.measure(meter.name)
                        await clocks.measure(meter.name)  # at once again: says nothing about a day
            drifts = [clocks.states[meter.name].drift_s_per_day for meter in box.meters]
            assert drifts == [pytest.approx(-8, abs=1.1), pytest.approx(-8, abs=1.1), pytest.approx(-0.4, abs=1.1)]
            assert [event.meter for event in box.events if event.kind == "clock_rate"] == ["m0", "m1"], "once each"
            assert not box.of("clock_drift"), "44 s: within the limit"

    asyncio.run(scenario())


def test_what_a_busy_sweep_hears_does_not_take_back_what_was_measured(town: Site, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with tcp(town, tmp_path) as box:
            box.set(0, 0, 0)
            async with box.clocks(works=False) as clocks:
                answered_at = START + timedelta(seconds=90)
                assert clocks.is_wrong("m0") is None
                (event,) = clocks.hear("m0", START - timedelta(seconds=70), START, START + timedelta(seconds=1))
                assert (event.kind, event.detail["offset_s"]) == ("clock_drift", -70)
                assert clocks.hear("m0", START, START, answered_at) == []
                assert clocks.is_wrong("m0"), "it may be 45 s slow or right: that is no news"
                assert clocks.hear("m0", START, START, START + timedelta(seconds=1)) == []
                assert clocks.is_wrong("m0") is False
                assert not clocks.is_suspect("m0", START)

    asyncio.run(scenario())


# ---- the gateway's own time ------------------------------------------------------------------------------------------


def test_a_gateway_whose_clock_was_set_sets_no_others_for_a_day(town: Site, tmp_path: Path) -> None:
    async def scenario() -> None:
        wall_s = 1_000_000.0
        own_time = OwnTime("always", wall=lambda: wall_s, steady=lambda: 5_000.0)
        async with tcp(town, tmp_path) as box:
            box.set(-95, -95, -95)
            async with box.clocks(works=False, own_time=own_time) as clocks:
                wall_s += 1.5  # a leap second, or a server that is not quite right
                assert (await clocks.sync(["m0"], asked_by="somebody"))["m0"].reason == ""
                wall_s -= 3_600
                await clocks.measure("m1")
                done = await clocks.sync(["m1"], asked_by="somebody")
                assert "own clock was set" in str(done["m1"])
                assert box.of("gateway_clock_stepped")[None].detail == {"step_s": -3600.0}
            async with box.clocks(works=False) as clocks:  # another process knows it too
                assert "own clock was set" in str((await clocks.sync(["m1"], asked_by="somebody"))["m1"])
            box.clock = box.there.clock = Calendar(START - timedelta(days=40))  # type: ignore[assignment]
            async with box.clocks(works=False) as clocks:  # set back while it was off: its notes are of the future
                done = await clocks.sync(["m2"], asked_by="somebody")
                assert "own clock was set at 2026-01-20" in str(done["m2"])
            assert max(box.settings()) <= 1

    asyncio.run(scenario())


def test_a_gateway_that_follows_no_time_server_sets_no_clock() -> None:
    assert OwnTime("ntp", error_s=lambda: 0.04).doubt() is None
    assert "may be 16 s off" in str(OwnTime("ntp", error_s=lambda: 16.0).doubt())
    assert "clocks.trust" in str(OwnTime("ntp", error_s=lambda: None).doubt())
    assert OwnTime("always", error_s=lambda: 16.0).doubt() is None
    error_s = clock_error_s()
    assert error_s is None or 0 <= error_s <= 16, "this computer's kernel says so"


# ---- a power cut -----------------------------------------------------------------------------------------------------

GATEWAY = """
import asyncio, sys
from pathlib import Path
from edge.bus import Bus
from edge.model import Line, Meter, TcpEndpoint
from gateway.clocks import Clocks
from gateway.clocks.policy import Rules
from gateway.queue import Queue
from protocols import templates
from protocols.clock import SystemClock

async def main(folder, port, addresses):
    clock = SystemClock(folder / "clock.json")
    queue = Queue(folder / "queue.sqlite", gateway="gw-1", interval_s=900, bytes_max=4_000_000)
    bus = Bus(Line("line", "dlt645-2007", TcpEndpoint("127.0.0.1", port)), clock, "02123456")
    meters = [Meter(f"m{i}", it, templates.load("dlt645-2007")) for i, it in enumerate(addresses)]
    async def report(event): print(event.kind, event.meter, event.detail, flush=True)
    rules = Rules(correct="policy", trust="always")
    await Clocks([(bus, meters)], queue, clock, rules, report=report, may_write=True).run()

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
"""


def test_killed_between_the_order_and_its_note_it_neither_repeats_nor_forgets(town: Site, tmp_path: Path) -> None:
    """The meter was set; the gateway died before it could read it again."""

    def run(box: Box) -> "subprocess.Popen[str]":
        assert isinstance(box.line.endpoint, TcpEndpoint)
        command = [sys.executable, "-c", GATEWAY, str(tmp_path), str(box.line.endpoint.port)]
        command += [meter.address for meter in box.meters]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ})

    async def scenario() -> None:
        async with tcp(town, tmp_path) as box:
            box.set(0, -1300, 0)
            row = box.rows[1]
            process = run(box)
            try:

                def kill(row: int) -> None:
                    if len(box.there.world.clocks[row].settings) == 2:  # date and time are written
                        process.kill()

                box.there.on_set = kill
                await until(lambda: process.poll() is not None)
                assert process.returncode == -signal.SIGKILL
                assert process.stdout is not None
                assert "clock_corrected" not in process.stdout.read()
            finally:
                stop(process, signal.SIGKILL)
            with sqlite3.connect(tmp_path / "queue.sqlite") as db:
                (order,) = db.execute("SELECT meter, method, round(before_s / 10), after_s FROM clock_order").fetchall()
            assert order == ("m1", "write", -130, None)
            box.there.world.clocks[row].set(box.clock.now().timestamp(), box.clock.now().timestamp() + 100)
            box.there.on_set = lambda row: None
            process = run(box)
            try:
                assert process.stdout is not None
                heard = ""
                while "today already" not in heard:
                    heard += await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 30)
                (corrected,) = [line for line in heard.splitlines() if line.startswith("clock_corrected")]
                assert "m1" in corrected
                assert "'before_s': -1300" in corrected or "'before_s': -129" in corrected
                assert len(read_clock_journal(tmp_path)) == 2, "date and time, once"
                assert box.there.world.clocks[row].at(0.0) == 0.0 - 1300
            finally:
                stop(process, signal.SIGKILL)

    asyncio.run(scenario())
