"""``meterctl bench``: how fast this machine reads, decodes and queues, beside other libraries in the same run.

Whoever is beside us does the same work from the same bytes, in turns with us, so that what else the machine does hits
both. Rates are per second of CPU time of the process that measures; meters run in processes of their own.
"""

import asyncio
import itertools
import json
import os
import platform
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

import click

from edge.budget import silence_s
from edge.bus import Bus
from edge.client import Client, modbus_codec
from edge.model import Line, Meter, PollFailure, Priority, SerialEndpoint, SerialSetting, TapEvent, TcpEndpoint
from edge.plan import Decoder, plan
from gateway.queue import BATCH_ROWS, Queue
from protocols import dlt645, modbus, templates
from protocols.clock import Anchor, SystemClock, write_anchor
from protocols.quantities import POWER_NAMES, Kind
from protocols.templates import Limits, ModbusExtra, ModbusFamily
from protocols.uplink import Row

POINTS_TARGET: Final = 100_000
DECODER_TARGET: Final = 5.0
UTILISATION_TARGET: Final = 0.9
RSS_TARGET_MB: Final = 80.0

LOOPBACK: Final = "127.0.0.1"
CONNECTIONS: Final = 4  # while one waits for its meter, another is decoded
FLOATS: Final = 62  # as many float32 as a request holds
SCALE: Final = 0.1

Poll: TypeAlias = Callable[[], Awaitable[list[Row]]]


@dataclass(frozen=True, slots=True)
class Figure:
    """``value`` None: not measured, and ``note`` says why. ``at_least`` False: the target is a most."""

    what: str
    value: float | None
    unit: str
    note: str = ""
    target: float | None = None
    at_least: bool = True

    @property
    def is_met(self) -> bool | None:
        if self.value is None or self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


Figures: TypeAlias = dict[str, Figure]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. ``rounds``: who stands beside whom takes turns so often; the median counts."""

    rounds: int = 5
    round_s: float = 2.0
    frames: int = 20_000
    line_s: float = 20.0
    line_meters: int = 8
    agent_s: float = 60.0
    agent_meters: int = 500


QUICK: Final = Effort(rounds=1, round_s=0.3, frames=500, line_s=2.0, line_meters=2, agent_s=4.0, agent_meters=20)


# ---- Modbus TCP ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spent:
    points: int
    cpu_s: float
    wall_s: float


def measure_modbus(effort: Effort) -> Figures:
    """Points a second and core: asked for over loopback, decoded, scaled, and queued durably in the agent's batches."""
    with TemporaryDirectory(prefix="meterctl-bench-") as folder, _meters(CONNECTIONS, 0) as ports:
        queue = Queue(Path(folder) / "queue.sqlite", gateway="bench", interval_s=900, bytes_max=2_000_000_000)
        try:
            spent = asyncio.run(_modbus_rounds(ports["modbus"], queue, effort))
        finally:
            queue.close()
    figures: Figures = {}
    for key, (what, target) in _MODBUS_WHAT.items():
        of = spent.get(key)
        if of is None:
            figures[key] = Figure(what, None, "points/s/core", "pymodbus is not installed: pip install pymodbus")
            continue
        rate = statistics.median(one.points / one.cpu_s for one in of)
        wall = statistics.median(one.points / one.wall_s for one in of)
        figures[key] = Figure(what, rate, "points/s/core", f"{wall:,.0f} points/s of wall time", target)
    return figures | _ratios(figures)


_MODBUS_WHAT: Final = {
    "modbus_blocks": (f"Modbus TCP, {FLOATS} float32 a request", POINTS_TARGET),
    "modbus_sdm630": ("Modbus TCP, SDM630 template, as the agent polls it", POINTS_TARGET),
    "modbus_single": ("Modbus TCP, one float32 a request", None),
    "pymodbus_blocks": (f"the same with pymodbus, {FLOATS} float32 a request", None),
    "pymodbus_single": ("the same with pymodbus, one float32 a request", None),
}


def _ratios(figures: Figures) -> Figures:
    pairs = {
        "modbus_blocks_to_pymodbus_blocks": ("ours to pymodbus, blocks", "modbus_blocks", "pymodbus_blocks"),
        "modbus_blocks_to_pymodbus_single": ("our blocks to pymodbus one by one", "modbus_blocks", "pymodbus_single"),
        "modbus_single_to_pymodbus_single": ("ours to pymodbus, one by one", "modbus_single", "pymodbus_single"),
    }
    return {
        key: _ratio(what, figures[ours].value, figures[theirs].value, figures[theirs].note)
        for key, (what, ours, theirs) in pairs.items()
    }


def _ratio(what: str, ours: float | None, theirs: float | None, note: str, target: float | None = None) -> Figure:
    if ours is None or theirs is None:
        return Figure(what, None, "times", note, target)
    return Figure(what, ours / theirs, "times", "", target)


async def _modbus_rounds(ports: Sequence[int], queue: Queue, effort: Effort) -> dict[str, list[Spent]]:
    clients = [Client(_tcp_line(i, port), modbus_codec("modbus-tcp")) for i, port in enumerate(ports)]
    buses = [Bus(_tcp_line(i, port), SystemClock()) for i, port in enumerate(ports)]
    polls: dict[str, Sequence[Poll]] = {
        "modbus_blocks": [_block_poll(client) for client in clients],
        "modbus_sdm630": [_sdm630_poll(bus) for bus in buses],
        "modbus_single": [_single_poll(client) for client in clients],
    }
    peers = await _pymodbus_clients(ports)
    if peers:
        polls["pymodbus_blocks"] = [_pymodbus_block_poll(peer) for peer in peers]
        polls["pymodbus_single"] = [_pymodbus_single_poll(peer) for peer in peers]
    spent: dict[str, list[Spent]] = {key: [] for key in polls}
    try:
        for poll in itertools.chain.from_iterable(polls.values()):
            await poll()  # connects, and compiles what is compiled once
        for _ in range(effort.rounds):
            for key, some in polls.items():
                spent[key].append(await _collect(some, queue, effort.round_s))
    finally:
        for client in clients:
            client.close()
        for bus in buses:
            await bus.close()
        for peer in peers:
            peer.close()
    return spent


async def _collect(polls: Sequence[Poll], queue: Queue, seconds: float) -> Spent:
    points = 0

    async def keep(rows: list[Row]) -> None:
        nonlocal points
        await asyncio.to_thread(queue.append_rows, Kind.POWER, rows, datetime.now(UTC))
        points += sum(len(row.values) for row in rows)

    async def work(poll: Poll) -> None:
        rows: list[Row] = []
        while time.perf_counter() < end_s:
            rows += await poll()
            if len(rows) >= BATCH_ROWS:
                await keep(rows)
                rows = []
        if rows:
            await keep(rows)

    cpu_s, begin_s = time.process_time(), time.perf_counter()
    end_s = begin_s + seconds
    await asyncio.gather(*map(work, polls))
    return Spent(points, time.process_time() - cpu_s, time.perf_counter() - begin_s)


def _tcp_line(number: int, port: int) -> Line:
    return Line(f"line-{number}", "modbus-tcp", TcpEndpoint(LOOPBACK, port), read_timeout_s=10.0)


# The block is a concentrator's: the power quantities of as many meters as fill it, the last one in part.
_PARTS: Final = [
    (f"m{at // len(POWER_NAMES)}", POWER_NAMES[: FLOATS - at], slice(at, at + len(POWER_NAMES)))
    for at in range(0, FLOATS, len(POWER_NAMES))
]


def _rows(values: Sequence[Any]) -> list[Row]:
    now = datetime.now(UTC)
    return [Row(meter, now, now, None, 0, dict(zip(names, values[part], strict=True))) for meter, names, part in _PARTS]


def _concentrator(count: int) -> ModbusFamily:
    extras = tuple(ModbusExtra(name=f"value_{i:02d}", address=2 * i, type="float32", scale=SCALE) for i in range(count))
    return ModbusFamily(
        name="bench",
        maker="none",
        models=(),
        phases=3,
        source="gateway/bench.py",
        function=4,
        word_order="big",
        limits=Limits(),
        probe=(),
        register=(),
        extra=extras,
    )


_Ask: TypeAlias = Callable[[], Awaitable[list[Any]]]


def _asker(client: Client[modbus.Frame], address: int, count: int) -> _Ask:
    """One request to its values, through what the bus is made of: client, plan, compiled decoder."""
    family = _concentrator(address // 2 + count)
    keys = [extra.name for extra in family.extra[address // 2 :]]
    made = plan(family, frozenset(keys))
    decode = Decoder(family, made)
    (request,) = made.requests
    pdu = modbus.encode_read(request.function, request.address, request.count)
    transactions = itertools.cycle(range(0x10000))

    async def ask() -> list[Any]:
        frame = modbus.Frame(next(transactions), 1, pdu)
        answer = await client.exchange(frame, meter="bench", priority=Priority.LIVE)
        return list(decode([modbus.decode_read_reply(answer.pdu, request.count)]).values())

    return ask


def _block_poll(client: Client[modbus.Frame]) -> Poll:
    ask = _asker(client, 0, FLOATS)

    async def poll() -> list[Row]:
        return _rows(await ask())

    return poll


def _single_poll(client: Client[modbus.Frame]) -> Poll:
    asks = [_asker(client, 2 * i, 1) for i in range(FLOATS)]

    async def poll() -> list[Row]:
        return _rows([value for ask in asks for value in await ask()])

    return poll


def _sdm630_poll(bus: Bus) -> Poll:
    template = templates.load("eastron-sdm630")
    meters = itertools.cycle([Meter(f"{bus.line.name}-{unit}", str(unit), template) for unit in range(1, 11)])

    async def poll() -> list[Row]:
        row = await bus.read_power(next(meters), datetime.now(UTC))
        if isinstance(row, PollFailure):
            raise click.ClickException(f"{bus.line.endpoint}: {row.reason}: {row.detail}")
        return [row]

    return poll


async def _pymodbus_clients(ports: Sequence[int]) -> list[Any]:
    try:
        from pymodbus.client import AsyncModbusTcpClient
    except ImportError:
        return []
    peers = [AsyncModbusTcpClient(LOOPBACK, port=port, timeout=10) for port in ports]
    for peer in peers:
        await peer.connect()
    return peers


def _pymodbus_block_poll(peer: Any) -> Poll:
    async def poll() -> list[Row]:
        got = await peer.read_input_registers(0, count=2 * FLOATS, device_id=1)
        values = peer.convert_from_registers(got.registers, peer.DATATYPE.FLOAT32)
        return _rows([value * SCALE for value in values])

    return poll


def _pymodbus_single_poll(peer: Any) -> Poll:
    async def poll() -> list[Row]:
        values: list[float] = []
        for i in range(FLOATS):
            got = await peer.read_input_registers(2 * i, count=2, device_id=1)
            values.append(peer.convert_from_registers(got.registers, peer.DATATYPE.FLOAT32) * SCALE)
        return _rows(values)

    return poll


# ---- DL/T 645 --------------------------------------------------------------------------------------------------------

_METER_645: Final = "000000123456"
# What is polled most: identifier and the digits of a value.
_VALUES_645: Final = {
    0x00010000: "12345678",
    0x00020000: "00000012",
    0x02010100: "2205",
    0x02030000: "012345",
    0x02060000: "0987",
    0x02800002: "5001",
}


def measure_dlt645(effort: Effort) -> Figures:
    """Replies to six reads, one chunk each, in turns with the decoder of the PyPI package ``dlt645``.

    "frames": from the bytes to a frame that is whole, sums up and has 33H taken off. "values": on to address, function
    and data identifier agreeing with the request, and the value in its unit: a Decimal here, a float there. "steps":
    the same to the integer that the gateway books. The package writes every frame as text for a log that is off;
    "unlogged" is the package without that.
    """
    requests = [dlt645.read(_METER_645, di) for di in _VALUES_645]
    replies = [
        dlt645.encode(dlt645.reply(request, _METER_645, bytes.fromhex(digits)[::-1]))
        for request, digits in zip(requests, _VALUES_645.values(), strict=True)
    ]
    pairs = list(zip(requests, _VALUES_645, replies, strict=True))
    decoder = dlt645.Decoder()

    def frames() -> None:
        for raw in replies:
            decoder.feed(raw)

    def values() -> None:
        for request, di, raw in pairs:
            (frame,) = decoder.feed(raw)
            assert isinstance(frame, dlt645.Frame) and dlt645.is_answer(request, frame)
            dlt645.decode_data("2007", di, dlt645.decode_reply(request, frame))

    def steps() -> None:
        for request, di, raw in pairs:
            (frame,) = decoder.feed(raw)
            assert isinstance(frame, dlt645.Frame) and dlt645.is_answer(request, frame)
            dlt645.decode_item(di, dlt645.decode_reply(request, frame))

    works: dict[str, Callable[[], None]] = {
        "dlt645_frames": frames,
        "dlt645_values": values,
        "dlt645_steps": steps,
        **_peer_645(replies),
    }
    rates: dict[str, list[float]] = {key: [] for key in works}
    for work in works.values():
        work()  # reads tables, once
    for _ in range(effort.rounds):
        for key, work in works.items():
            with _unlogged() if key.endswith("_unlogged") else nullcontext():
                begin_s = time.process_time()
                for _ in range(effort.frames // len(replies)):
                    work()
                rates[key].append(effort.frames // len(replies) * len(replies) / (time.process_time() - begin_s))
    note = "dlt645 is not installed: pip install dlt645"
    figures = {
        key: Figure(what, statistics.median(rates[key]) if key in rates else None, unit, "" if key in rates else note)
        for key, what, unit in (
            ("dlt645_frames", "DL/T 645 replies to frames", "frames/s/core"),
            ("pypi_dlt645_frames", "the same with PyPI dlt645", "frames/s/core"),
            ("pypi_dlt645_frames_unlogged", "the same with PyPI dlt645, unlogged", "frames/s/core"),
            ("dlt645_values", "DL/T 645 replies to values (Decimal)", "values/s/core"),
            ("dlt645_steps", "DL/T 645 replies to values (integer steps)", "values/s/core"),
            ("pypi_dlt645_values", "DL/T 645 replies to values (float), PyPI dlt645", "values/s/core"),
            ("pypi_dlt645_values_unlogged", "the same, unlogged", "values/s/core"),
        )
    }
    for key, what, ours, theirs in (
        ("dlt645_frames_ratio", "frames", "dlt645_frames", "pypi_dlt645_frames"),
        ("dlt645_values_ratio", "values (Decimal)", "dlt645_values", "pypi_dlt645_values"),
        ("dlt645_steps_ratio", "values (steps)", "dlt645_steps", "pypi_dlt645_values"),
    ):
        of, other, unlogged = (figures[name].value for name in (ours, theirs, f"{theirs}_unlogged"))
        figures[key] = _ratio(f"ours to PyPI dlt645, {what}", of, other, note, DECODER_TARGET)
        figures[f"{key}_unlogged"] = _ratio(f"ours to PyPI dlt645 unlogged, {what}", of, unlogged, note)
    return figures


def _peer_645(replies: Sequence[bytes]) -> dict[str, Callable[[], None]]:
    try:
        from dlt645 import DLT645Protocol, MeterClientService, TcpClient
    except ImportError:
        return {}
    service = MeterClientService(TcpClient(ip=LOOPBACK, port=1, timeout=1))  # never connected: it only decodes
    service.set_address(bytes.fromhex(_METER_645)[::-1].hex())  # it wants the order of the wire

    def frames() -> None:
        for raw in replies:
            DLT645Protocol.deserialize(raw)

    def values() -> None:
        for raw in replies:
            if service.handle_response(DLT645Protocol.deserialize(raw)) is None:
                raise AssertionError("a reply of our own making must count")

    works = {"pypi_dlt645_frames": frames, "pypi_dlt645_values": values}
    return works | {f"{key}_unlogged": work for key, work in works.items()}


@contextmanager
def _unlogged() -> Iterator[None]:
    """PyPI dlt645 without the text of every frame."""
    from dlt645.protocol.frame import Frame

    as_text = Frame.__repr__
    Frame.__repr__ = lambda _: ""
    try:
        yield
    finally:
        Frame.__repr__ = as_text


# ---- RS-485 ----------------------------------------------------------------------------------------------------------

TURNAROUND_S: Final = 0.02


def measure_rs485(effort: Effort) -> Figures:
    """How much of what a 9600-baud line can do is used, on a pty that takes a byte's time for a byte."""
    return {
        f"rs485_{name}": _line_use(what, protocol, template, effort)
        for name, what, protocol, template in (
            ("modbus_rtu", "RS-485 at 9600 8E1, Modbus RTU, SDM630", "modbus-rtu", "eastron-sdm630"),
            ("dlt645", "RS-485 at 9600 8E1, DL/T 645", "dlt645-2007", "dlt645-2007"),
        )
    }


def _line_use(what: str, protocol: Any, template: str, effort: Effort) -> Figure:
    setting = SerialSetting(9600, "E")
    command = [sys.executable, "-m", "simulators", "line", "--protocol", protocol, "--meters", str(effort.line_meters)]
    command += ["--baud", str(setting.baud), "--turnaround", str(TURNAROUND_S)]
    try:
        with _helper(command) as told:
            line = Line("bench", protocol, SerialEndpoint(told["path"], setting))
            meters = [Meter(f"m{i}", address, templates.load(template)) for i, address in enumerate(told["addresses"])]
            return asyncio.run(_poll_line(what, line, setting, meters, effort.line_s))
    except HelperError:
        return Figure(what, None, "of the limit", "needs the simulators: pip install 'gridloom[demo]'")


async def _poll_line(what: str, line: Line, setting: SerialSetting, meters: Sequence[Meter], seconds: float) -> Figure:
    bus = Bus(line, SystemClock())
    octets = requests = polls = failures = 0

    def listen(event: TapEvent) -> None:
        nonlocal octets, requests
        octets += len(event.raw)
        requests += event.direction == "out"

    try:
        await bus.read_power(meters[0], datetime.now(UTC))  # opens the device
        untap = bus.tap(listen)
        begin_s = time.perf_counter()
        while time.perf_counter() < begin_s + seconds:
            # As in a sweep: all are waiting, the bus goes from one to the next.
            rows = await asyncio.gather(*(bus.read_power(meter, datetime.now(UTC)) for meter in meters))
            polls += len(rows)
            failures += sum(isinstance(row, PollFailure) for row in rows)
        wall_s = time.perf_counter() - begin_s
        untap()
    finally:
        await bus.close()
    least_s = octets * setting.char_s + requests * (TURNAROUND_S + silence_s(line.protocol, setting))
    note = f"{requests} requests, {octets} bytes in {wall_s:.1f} s; {failures} of {polls} polls failed"
    return Figure(what, least_s / wall_s, "of the limit", note, UTILISATION_TARGET)


# ---- the agent's memory ----------------------------------------------------------------------------------------------

_SIMULATED_RATE: Final = 300.0  # a mark every three seconds


def measure_memory(effort: Effort) -> Figures:
    """The largest resident size of ``meterctl run`` while it sweeps its meters and fills 35 days of gaps."""
    what = f"memory of the agent with {effort.agent_meters} meters, at most"
    target = RSS_TARGET_MB if effort.agent_meters == Effort().agent_meters else None
    if not Path("/proc/self/status").exists():
        return {"agent_rss": Figure(what, None, "MB", "needs Linux: /proc", target, at_least=False)}
    with TemporaryDirectory(prefix="meterctl-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        clock = folder / "clock.json"
        now_s = time.time()
        write_anchor(clock, Anchor(now_s, now_s - 3 * 86_400, _SIMULATED_RATE))
        environment = {**os.environ, "GRIDLOOM_CLOCK": str(clock), "GRIDLOOM_MQTT_PASSWORD": "bench"}
        environment.pop("GRIDLOOM_MQTT_URL", None)
        ports = stack.enter_context(_meters(6, 4, environment))
        broker = stack.enter_context(_broker(folder))
        site = folder / "site.toml"
        site.write_text(_site(effort.agent_meters, ports, broker or _free_port()))
        log = stack.enter_context((folder / "log").open("w+"))
        command = [sys.executable, "-c", "from gateway.meterctl import main; main()", "run", str(site)]
        agent = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=log, stdout=log)
        try:
            rows = _wait_for_rows(agent, folder / "queue.sqlite", effort.agent_s)
            if not rows:
                log.seek(0)
                return {"agent_rss": Figure(what, None, "MB", f"no agent at work: {log.read()[-300:]}", target, False)}
            status = Path(f"/proc/{agent.pid}/status").read_text()
        finally:
            agent.terminate()
            agent.wait(30)
    kilobytes = {line.split()[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Vm")}
    note = f"{kilobytes['VmRSS:'] / 1024:.0f} MB at the end, with {'mosquitto' if broker else 'no broker'}; queued: "
    note += ", ".join(f"{count:,} rows of {kind}" for kind, count in sorted(rows.items()))
    return {"agent_rss": Figure(what, kilobytes["VmHWM:"] / 1024, "MB", note, target, at_least=False)}


def _wait_for_rows(agent: "subprocess.Popen[bytes]", path: Path, seconds: float) -> dict[str, int]:
    """Rows of each kind after ``seconds``, or as soon as a sweep is queued on a slow machine; none where it fails."""
    begin_s = time.monotonic()
    while agent.poll() is None and time.monotonic() < begin_s + seconds + 60:
        time.sleep(0.5)
        if time.monotonic() < begin_s + seconds or not path.exists():
            continue
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db, suppress(sqlite3.OperationalError):
            rows = dict(db.execute("SELECT kind, sum(rows) FROM batch GROUP BY kind"))
            if {"energy", "power"} <= rows.keys():
                return rows
    return {}


def _site(meters: int, ports: Mapping[str, Sequence[int]], broker: int) -> str:
    lines = [("modbus-tcp", port) for port in ports["modbus"]] + [("dlt645-2007", port) for port in ports["dlt645"]]
    text = ['[gateway]\nname = "bench"\n', f'[uplink]\nurl = "mqtt://{LOOPBACK}:{broker}"\n']
    text += [
        f'[[line]]\nname = "l{i}"\nprotocol = "{protocol}"\nhost = "{LOOPBACK}"\nport = {port}\n'
        for i, (protocol, port) in enumerate(lines)
    ]
    for number in range(meters):
        i, unit = number % len(lines), number // len(lines) + 1
        if lines[i][0] == "modbus-tcp":
            address, template = str(unit), "eastron-sdm630" if i < 2 else "gridloom-demo-modbus"
        else:
            address, template = f"{number:012d}", "dlt645-2007"
        text.append(f'[[meter]]\nname = "m{number}"\nline = "l{i}"\naddress = "{address}"\ntemplate = "{template}"\n')
    return "\n".join(text)


def _broker(folder: Path) -> AbstractContextManager[int | None]:
    """mosquitto on loopback where it is installed, and its port. Nobody receipts what it is sent."""
    program = shutil.which("mosquitto")
    return _mosquitto(program, folder) if program else nullcontext()


@contextmanager
def _mosquitto(program: str, folder: Path) -> Iterator[int]:
    port = _free_port()
    settings = folder / "mosquitto.conf"
    settings.write_text(f"listener {port} {LOOPBACK}\nallow_anonymous true\n")
    process = subprocess.Popen([program, "-c", str(settings)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


# ---- processes beside us ---------------------------------------------------------------------------------------------


class HelperError(Exception):
    """The process did not come up."""


@contextmanager
def _helper(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """A process that prints one line of JSON when it is ready, and ends with its standard input, so also when we do."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        told = process.stdout.readline()
        if not told:
            raise HelperError(" ".join(command))
        yield json.loads(told)
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        process.stdout.close()


def _meters(
    modbus_ports: int, dlt645_ports: int, environment: Mapping[str, str] | None = None
) -> AbstractContextManager[dict[str, Any]]:
    command = [sys.executable, "-m", "gateway.bench_meters", str(modbus_ports), str(dlt645_ports)]
    return _helper(command, environment)


# ---- the command -----------------------------------------------------------------------------------------------------

PARTS: Final[dict[str, Callable[[Effort], Figures]]] = {
    "modbus": measure_modbus,
    "dlt645": measure_dlt645,
    "rs485": measure_rs485,
    "memory": measure_memory,
}


@click.command(
    "bench",
    epilog="""\b
Copy and run:
  meterctl bench
  meterctl bench --quick
  meterctl bench --part modbus --part dlt645 --json
""",
)
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Only this; may be repeated.")
@click.option("--quick", is_flag=True, help="A few seconds: shows that it works, not how fast.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON document.")
def bench_command(parts: tuple[str, ...], quick: bool, as_json: bool) -> None:
    """Measure what this machine reads, decodes and queues, beside other libraries where they are installed.

    Talks to processes it starts on loopback only. Takes about three minutes; a busy machine shows in the figures.
    """
    effort = QUICK if quick else Effort()
    figures: Figures = {}
    for part in parts or PARTS:
        if sys.stderr.isatty():
            click.echo(f"measuring {part} …", err=True)
        figures |= PARTS[part](effort)
    machine = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "quick": quick,
    }
    if as_json:
        told = {key: {**asdict(figure), "met": figure.is_met} for key, figure in figures.items()}
        click.echo(json.dumps({"machine": machine, "figures": told}, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_table(figures)))
        load = f"load {machine['load']} on {machine['cpus']} CPUs"
        click.echo(f"\nPython {machine['python']}, {load}{'; quick, so only roughly' if quick else ''}")


def _table(figures: Figures) -> Iterator[str]:
    width = max(len(figure.what) for figure in figures.values())
    for figure in figures.values():
        value = "-" if figure.value is None else _number(figure.value)
        sign = "≥" if figure.at_least else "≤"
        target = "" if figure.target is None else f"{sign} {_number(figure.target)}"
        verdict = {None: "", True: "met", False: "MISSED"}[figure.is_met]
        row = f"{figure.what:<{width}}  {value:>11} {figure.unit:<14} {target:<10} {verdict:<7} {figure.note}"
        yield row.rstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
