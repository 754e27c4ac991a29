"""The whole gateway: `meterctl run` between meters on real sockets and a real broker, on a fast simulated clock."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from protocols.clock import Anchor, SystemClock, write_anchor
from protocols.quantities import Kind, Quality
from protocols.uplink import Command, Outcome, Shed, from_us, to_us
from simulators.services import Broker
from tests.conftest import stop
from tests.edge.endpoint import PASSWORD, Endpoint, registers_wh
from tests.edge.endpoint import running as on_the_wire
from tests.gateway.cloud import Cloud, cloud, until

START = datetime(2026, 3, 1, 4, 10, tzinfo=UTC)


@dataclass
class Box:
    """A gateway in its own process, with one Modbus line (m001 …) and one DL/T 645 line (m101 …)."""

    folder: Path
    broker: Broker
    modbus: Endpoint
    dlt645: Endpoint
    clock: SystemClock
    password: str = PASSWORD
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def write_site(self, *, meters: int, days: int, controllable: bool = True) -> None:
        text = f"""
[gateway]
name = "gw-1"
[uplink]
url = "{self.broker.url}"
[backfill]
days = {days}
"""
        for name, endpoint in (("modbus", self.modbus), ("dlt645", self.dlt645)):
            text += f"""
[[line]]
name = "{name}"
protocol = "{endpoint.protocol}"
host = "127.0.0.1"
port = {endpoint.port}
read_timeout_s = 0.6
"""
            for number in range(1, meters + 1):
                is_modbus = name == "modbus"
                text += f"""
[[meter]]
name = "m{number if is_modbus else 100 + number:03d}"
line = "{name}"
address = "{number if is_modbus else f"{100 + number:012d}"}"
template = "{"gridloom-demo-modbus" if is_modbus else "dlt645-2007"}"
controllable = {str(controllable).lower()}
"""
        (self.folder / "site.toml").write_text(text)

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        secrets = {
            "GRIDLOOM_MQTT_PASSWORD": self.broker.users["gw-1"],
            "GRIDLOOM_645_PASSWORD": self.password,
            "GRIDLOOM_CLOCK": str(self.folder / "clock.json"),
        }
        run = "from gateway.meterctl import main; main()"
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-c", run, "run", str(self.folder / "site.toml"), *options]
            process = subprocess.Popen(command, env={**os.environ, **secrets}, stderr=log)
        self.processes.append(process)
        return process

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()


@asynccontextmanager
async def box(folder: Path, broker: Broker, *, rate: float) -> AsyncIterator[Box]:
    write_anchor(folder / "clock.json", Anchor(time.time(), START.timestamp(), rate))
    clock = SystemClock(folder / "clock.json")
    modbus, dlt645 = Endpoint("modbus-tcp", now=clock.now), Endpoint("dlt645-2007", now=clock.now)
    async with on_the_wire(modbus), on_the_wire(dlt645):
        it = Box(folder, broker, modbus, dlt645, clock)
        try:
            yield it
        finally:
            for process in it.processes:
                await asyncio.to_thread(stop, process, signal.SIGKILL)


def energies(there: Cloud) -> tuple[Counter[tuple[str, datetime]], dict[tuple[str, datetime], tuple[int, int]]]:
    """How often each (meter, mark) came in different batches, and (Wh imported, quality) of it."""
    counted: Counter[tuple[str, datetime]] = Counter()
    values: dict[tuple[str, datetime], tuple[int, int]] = {}
    for batch in {(batch.epoch, batch.seq): batch for batch in there.batches}.values():
        if batch.kind is Kind.ENERGY:
            index, quality_bits = (memoryview(batch.columns[name]).cast("H") for name in ("meter_index", "quality"))
            at, imported = (memoryview(batch.columns[name]).cast("q") for name in ("at", "energy_import_wh"))
            for i, us, wh, quality in zip(index, at, imported, quality_bits, strict=True):
                counted[batch.meters[i], from_us(us)] += 1
                values[batch.meters[i], from_us(us)] = wh, quality
    return counted, values


def kinds(there: Cloud) -> list[tuple[str, str | None]]:
    """Of each event once: a batch that a kill left without a receipt comes again."""
    batches = {(batch.epoch, batch.seq): batch for batch in there.batches}.values()
    return [(event.kind, event.meter) for batch in batches for event in batch.events]


def test_marks_are_swept_live_and_gaps_come_from_memory(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=300) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=2, days=2)
            process = it.start()
            meters = ("m001", "m002", "m101", "m102")
            # The process may take 50 simulated minutes to start: the window of two days moves on meanwhile.
            first, last = datetime(2026, 2, 27, 5, 15, tzinfo=UTC), datetime(2026, 3, 1, 5, 0, tzinfo=UTC)
            wanted = {(meter, first + i * timedelta(minutes=15)) for meter in meters for i in range(2 * 96)}
            assert max(at for _, at in wanted) == last
            await until(lambda: wanted <= energies(there)[0].keys())
            counted, values = energies(there)
            assert set(counted.values()) == {1}
            for (meter, at), (wh, quality) in values.items():
                assert wh == registers_wh(int(meter[1:]), at)[0]
                assert quality == Quality.BACKFILLED or (at > START and quality == Quality.GOOD)
            assert any(quality == Quality.GOOD for _, quality in values.values())
            power = [batch for batch in there.batches if batch.kind is Kind.POWER]
            assert max(batch.rows for batch in power) > 2, "what the lines read in one moment travels together"
            assert there.statuses[-1].meters == 4
            began = time.monotonic()
            await asyncio.to_thread(stop, process, signal.SIGTERM)
            assert process.returncode == 0
            assert time.monotonic() - began < 3
            assert "Traceback" not in it.log

    asyncio.run(scenario())


def test_kill_9_in_the_middle_of_a_backfill_loses_and_doubles_nothing(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=1) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=6, days=30)
            for pause_s in (0.7, 1.0, 1.3):
                process = it.start()
                await asyncio.sleep(pause_s)
                process.kill()
                await asyncio.to_thread(process.wait)
            it.start()
            await until(lambda: len(energies(there)[0]) == 12 * 30 * 96, 60)
            assert set(energies(there)[0].values()) == {1}
            assert len({batch.epoch for batch in there.batches}) == 1

    asyncio.run(scenario())


def test_silence_and_a_wrong_clock_are_events(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=600) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=2, days=1)
            site = it.folder / "site.toml"  # a silent meter is left alone for fifty times its timeout
            site.write_text(site.read_text().replace("read_timeout_s = 0.6", "read_timeout_s = 0.15", 1))
            it.modbus.delay_s = lambda number: None if number == 2 else 0.0
            it.dlt645.now = lambda: it.clock.now() - timedelta(hours=2)
            it.start()
            await until(lambda: ("meter_silent", "m002") in kinds(there))
            it.modbus.delay_s = lambda number: 0.0
            await until(lambda: ("meter_back", "m002") in kinds(there))
            silent = {meter for kind, meter in kinds(there) if kind == "meter_silent"}
            assert silent == {"m002"}
            assert Counter(kinds(there))["clock_drift", "m101"] == 1
            assert not any(meter in ("m001", "m002") for kind, meter in kinds(there) if kind == "clock_drift")
            assert all(
                bool(quality & Quality.CLOCK_SUSPECT) == (meter > "m100")
                for (meter, _), (_, quality) in energies(there)[1].items()
            )
            await until(lambda: sum(meter == "m002" for meter, _ in energies(there)[0]) >= 96)

    asyncio.run(scenario())


def test_marks_a_meter_has_not_are_asked_for_again_when_it_has_them(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=200) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=1, days=1)
            newest = datetime(2026, 3, 1, 4, 0, tzinfo=UTC)
            has_it = False
            for endpoint in (it.modbus, it.dlt645):
                endpoint.has = lambda at: has_it or at < newest
            it.start()
            # The process may take some marks to start: the window of a day moves on meanwhile.
            wanted = {(meter, newest - i * timedelta(minutes=15)) for meter in ("m001", "m101") for i in range(1, 88)}
            await until(lambda: wanted <= energies(there)[0].keys())
            await asyncio.sleep(0.5)
            asked = len(it.modbus.asked)
            await asyncio.sleep(1.5)
            assert len(it.modbus.asked) - asked < 5, "not asked again at once"
            has_it = True
            await until(lambda: ("m001", newest) in energies(there)[0] and ("m101", newest) in energies(there)[0])

    asyncio.run(scenario())


def test_a_slow_line_holds_no_other_up(embedded_broker: Broker, tmp_path: Path) -> None:
    """Eight meters that take half a second each; the other line's power of the mark does not wait for them."""

    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=60) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=8, days=0)
            site = it.folder / "site.toml"
            site.write_text(site.read_text().replace("read_timeout_s = 0.6", "read_timeout_s = 5"))
            it.dlt645.delay_s = lambda number: 0.5
            it.start()
            slow = {f"m{number}" for number in range(101, 109)}
            await until(lambda: slow <= {meter for meter, _ in energies(there)[0]})
            mark = min(at for meter, at in energies(there)[0] if meter in slow)
            read_at = {
                (batch.kind, batch.meters[index]): from_us(us)
                for batch in there.batches
                if batch.kind is not Kind.EVENTS
                for index, at, us in zip(
                    memoryview(batch.columns["meter_index"]).cast("H"),
                    memoryview(batch.columns["at"]).cast("q"),
                    memoryview(batch.columns["gateway_at"]).cast("q"),
                    strict=True,
                )
                if from_us(at) == mark
            }
            quick = [read_at[Kind.POWER, f"m{number:03d}"] for number in range(1, 9)]
            assert max(quick) < max(read_at[Kind.ENERGY, meter] for meter in slow)

    asyncio.run(scenario())


# ---- demand response -------------------------------------------------------------------------------------------------


def shed(clock: SystemClock, *meters: str, start_s: float, end_s: float, expires_s: float = 600) -> Command:
    now = clock.now()
    return Command(
        id="c-1",
        issued_at=to_us(now),
        expires_at=to_us(now + timedelta(seconds=expires_s)),
        body=Shed(
            event="dr-1",
            start=to_us(now + timedelta(seconds=start_s)),
            end=to_us(now + timedelta(seconds=end_s)),
            meters=list(meters),
        ),
    )


def test_a_demand_response_event_opens_relays_and_closes_them(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=60) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=2, days=1)
            it.start()
            await until(lambda: any(status.online for status in there.statuses))
            command = shed(it.clock, "m001", "m101", "m999", start_s=60, end_s=300)
            assert isinstance(command.body, Shed)
            await there.send("gw-1", command)
            await until(lambda: it.modbus.relays == {1: False} and it.dlt645.relays == {101: False})
            assert it.clock.now() >= from_us(command.body.start)
            assert not there.replies
            await until(lambda: bool(there.replies))
            assert it.clock.now() >= from_us(command.body.end)
            assert (it.modbus.relays, it.dlt645.relays) == ({1: True}, {101: True})
            (reply,) = there.replies
            assert (reply.id, reply.outcome) == ("c-1", Outcome.DONE)
            assert reply.meters == {
                "m001": "opened and closed",
                "m101": "opened and closed",
                "m999": "rejected: this gateway has no such meter",
            }
            await until(lambda: Counter(kind for kind, _ in kinds(there))["relay_closed"] == 2)
            assert Counter(kind for kind, _ in kinds(there))["relay_opened"] == 2
            # The cloud asks again: the same reply, and no relay moves.
            it.modbus.relays.clear()
            await there.send("gw-1", command)
            await until(lambda: len(there.replies) == 2)
            assert there.replies[1] == reply
            assert it.modbus.relays == {}

    asyncio.run(scenario())


def test_a_line_that_is_down_when_the_event_starts_is_tried_until_it_is_back(
    embedded_broker: Broker, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=60) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=1, days=1)
            it.start()
            await until(lambda: any(status.online for status in there.statuses))
            it.modbus.delay_s = lambda number: None
            await there.send("gw-1", shed(it.clock, "m001", "m101", start_s=30, end_s=900))
            await until(lambda: "relay not opened meter=m001" in it.log)
            assert it.dlt645.relays == {101: False}
            it.modbus.delay_s = lambda number: 0.0
            await until(lambda: it.modbus.relays == {1: False})
            await until(lambda: bool(there.replies))
            assert there.replies[0].outcome is Outcome.DONE
            assert there.replies[0].detail.startswith("2 of 2")

    asyncio.run(scenario())


def test_a_gateway_killed_in_the_middle_of_an_event_still_closes(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=60) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=2, days=1)
            process = it.start()
            await until(lambda: any(status.online for status in there.statuses))
            await there.send("gw-1", shed(it.clock, "m001", "m101", start_s=0, end_s=400))
            await until(lambda: ("relay_opened", "m101") in kinds(there) and ("relay_opened", "m001") in kinds(there))
            process.kill()
            await asyncio.to_thread(process.wait)
            it.modbus.relays.clear()
            it.dlt645.relays.clear()
            it.start()
            await until(lambda: bool(there.replies))
            assert (it.modbus.relays, it.dlt645.relays) == ({1: True}, {101: True}), "closed, and not opened again"
            assert Counter(kind for kind, _ in kinds(there))["relay_opened"] == 2
            await asyncio.sleep(1)
            assert [reply.outcome for reply in there.replies] == [Outcome.DONE]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("meters", "start_s", "end_s", "expires_s", "password", "outcome", "detail"),
    [
        (("m001",), 60, 120, -1, PASSWORD, Outcome.EXPIRED, "too late"),
        (("m001",), -120, -60, 600, PASSWORD, Outcome.EXPIRED, "too late"),
        (("m001",), 120, 60, 600, PASSWORD, Outcome.REJECTED, "before end"),
        (("m999",), 0, 30, 600, PASSWORD, Outcome.REJECTED, "0 of 1"),
        (("m101",), 0, 30, 600, "", Outcome.FAILED, "0 of 1"),
        (("m101",), 0, 30, 600, "02999999", Outcome.FAILED, "0 of 1"),
    ],
)
def test_what_cannot_be_done_is_answered(
    embedded_broker: Broker,
    tmp_path: Path,
    meters: tuple[str, ...],
    start_s: float,
    end_s: float,
    expires_s: float,
    password: str,
    outcome: Outcome,
    detail: str,
) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=60) as it, cloud(embedded_broker, "gw-1") as there:
            it.password = password
            it.write_site(meters=1, days=0)
            it.start()
            await until(lambda: any(status.online for status in there.statuses))
            await there.send("gw-1", shed(it.clock, *meters, start_s=start_s, end_s=end_s, expires_s=expires_s))
            await until(lambda: bool(there.replies))
            (reply,) = there.replies
            assert reply.outcome is outcome
            assert detail in reply.detail
            assert not it.modbus.relays
            assert not it.dlt645.relays

    asyncio.run(scenario())


def test_a_meter_that_is_not_controllable_is_left_alone(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with box(tmp_path, embedded_broker, rate=60) as it, cloud(embedded_broker, "gw-1") as there:
            it.write_site(meters=1, days=0, controllable=False)
            it.start()
            await until(lambda: any(status.online for status in there.statuses))
            await there.send("gw-1", shed(it.clock, "m001", start_s=0, end_s=30))
            await until(lambda: bool(there.replies))
            assert there.replies[0].outcome is Outcome.REJECTED
            assert there.replies[0].meters == {"m001": "rejected: not controllable in the site file"}
            assert not it.modbus.relays

    asyncio.run(scenario())
