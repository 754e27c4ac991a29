"""One line, many meters: all six protocols, the line's own times, who goes first, and what silence costs the others."""

import asyncio
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge import client as client_module
from edge.budget import reply_bytes, request_bytes, silence_s
from edge.client import DLT645, MODBUS_RTU, BackingOffError, Client, Place, SilentError, Turns, modbus_codec
from edge.model import Line, Priority, Protocol, SerialEndpoint, SerialSetting, TapEvent, TcpEndpoint
from protocols import dlt645, modbus
from simulators import faults
from simulators.lines import Meter, Responder, SerialLine, Setting, dlt645_meter, modbus_meter
from tests.edge.serial import items, registers

FAST = SerialSetting(115_200, "N")
SCALE = 25  # of a line at 9600 baud, where it is faster than life


def modbus_client(line: SerialLine, setting: SerialSetting = FAST, **times: Any) -> Client[modbus.Frame]:
    return Client(Line("l", "modbus-rtu", SerialEndpoint(line.path, setting), **times), MODBUS_RTU)


def read(unit: int, address: int = 0, count: int = 2) -> modbus.Frame:
    return modbus.Frame(0, unit, modbus.encode_read(3, address, count))


def words(answer: modbus.Frame, count: int = 2) -> list[int]:
    raw = modbus.decode_read_reply(answer.pdu, count)
    return [int.from_bytes(raw[i : i + 2], "big") for i in range(0, 2 * count, 2)]


def rtu_line(*units: int, setting: Setting | None = None, turnaround_s: float = 0.001, **how: Any) -> SerialLine:
    setting = setting or Setting(115_200, "N")
    return SerialLine([Meter(modbus_meter(unit, registers(unit)), setting, turnaround_s) for unit in units], **how)


async def outcome(answer: Awaitable[Any]) -> Any:
    """The answer, or the kind of its failure."""
    try:
        return await answer
    except (SilentError, BackingOffError) as error:
        return type(error)


# ---- protocols -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["modbus-rtu", "modbus-ascii"])
@pytest.mark.parametrize("echoes", [False, True])
def test_modbus_on_a_device_with_and_without_an_echo(protocol: Protocol, echoes: bool) -> None:
    ascii = protocol == "modbus-ascii"
    meters = [Meter(modbus_meter(u, registers(u), ascii=ascii), Setting(115_200, "N"), 0.001) for u in (1, 2)]

    async def scenario() -> None:
        with SerialLine(meters, echoes=echoes) as line:
            client = Client(Line("l", protocol, SerialEndpoint(line.path, FAST)), modbus_codec(protocol))
            for unit in (1, 2, 1):
                answer = await client.exchange(read(unit, 5), meter=str(unit), priority=Priority.LIVE)
                assert words(answer) == [256 * unit + 5, 256 * unit + 6]
            write = modbus.Frame(0, 2, modbus.encode_write_one(7, 99))
            answer = await client.exchange(write, meter="2", priority=Priority.COMMAND)
            assert answer == write
            await client.tell(modbus.Frame(0, 0, modbus.encode_write_one(7, 99)))
            assert words(await client.exchange(read(2), meter="2", priority=Priority.LIVE)) == [512, 513]
            client.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("protocol", "di"), [("dlt645-2007", 0x0001_0000), ("dlt645-1997", 0x9010)])
@pytest.mark.parametrize("echoes", [False, True])
def test_both_editions_of_645_on_a_device(protocol: Protocol, di: int, echoes: bool) -> None:
    numbers = (11, 12)
    meters = [Meter(dlt645_meter(f"{n:012d}", items(n)), Setting(19_200, "E"), 0.001) for n in numbers]
    make = dlt645.read if protocol == "dlt645-2007" else dlt645.edition1997.read

    async def scenario() -> None:
        with SerialLine(meters, echoes=echoes) as line:
            device = SerialEndpoint(line.path, SerialSetting(19_200, "E"))
            client = Client(Line("l", protocol, device), DLT645)
            for number in (*numbers, 11):
                request = make(f"{number:012d}", di)
                answer = await client.exchange(request, meter=str(number), priority=Priority.LIVE)
                raw = dlt645.decode_reply(request, answer)
                assert dlt645.decode_item(di, raw, "1997" if di == 0x9010 else "2007") == (number,)
            client.close()

    asyncio.run(scenario())


class Server(asyncio.Protocol):
    """A TCP server with a serial line behind it: hands the bytes on, in pieces, ``pause_s`` between two."""

    def __init__(self, meters: list[Responder], piece: int = 3, pause_s: float = 0.0) -> None:
        self._meters, self._piece, self._pause_s = meters, piece, pause_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        raw = b"".join(meter(data) for meter in self._meters)
        loop = asyncio.get_running_loop()
        for i in range(0, len(raw), self._piece):
            loop.call_later(i // self._piece * self._pause_s, self._transport.write, raw[i : i + self._piece])


def with_server(
    protocol: Protocol,
    meters: list[Responder],
    scenario: Callable[[Client[modbus.Frame]], Awaitable[None]],
    *,
    read_timeout_s: float = 1.0,
    **how: float,
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Server(meters, **how), "127.0.0.1", 0)  # type: ignore[arg-type]
        where = TcpEndpoint("127.0.0.1", server.sockets[0].getsockname()[1])
        client = Client(Line("l", protocol, where, read_timeout_s), modbus_codec(protocol))
        try:
            await scenario(client)
        finally:
            client.close()
            server.close()
            await asyncio.sleep(0)

    asyncio.run(run())


@pytest.mark.parametrize("protocol", ["modbus-rtu-over-tcp", "modbus-ascii"])
def test_modbus_serial_frames_through_a_tcp_server(protocol: Protocol) -> None:
    async def scenario(client: Client[modbus.Frame]) -> None:
        for unit in (1, 2):
            answer = await client.exchange(read(unit, 5), meter=str(unit), priority=Priority.LIVE)
            assert words(answer) == [256 * unit + 5, 256 * unit + 6]

    with_server(protocol, [modbus_meter(u, registers(u), ascii=protocol == "modbus-ascii") for u in (1, 2)], scenario)


# ---- times -----------------------------------------------------------------------------------------------------------


def test_an_answer_in_progress_is_not_cut_off_but_not_waited_for_for_ever() -> None:
    """Forty bytes a piece of one every 10 ms take longer than the timeout of 0.3 s; the bound is twice that."""

    async def scenario(client: Client[modbus.Frame]) -> None:
        answer = await client.exchange(read(1, 0, 18), meter="1", priority=Priority.LIVE)
        assert words(answer, 18) == list(range(256, 256 + 18))

    def dribble(_chunk: bytes) -> bytes:
        return b"\xff" * 400  # begins no frame

    async def endless(client: Client[modbus.Frame]) -> None:
        begin_s = time.monotonic()
        with pytest.raises(SilentError, match=r"but \d+ bytes that are none: another speed or parity"):
            await client.exchange(read(1), meter="1", priority=Priority.LIVE)
        assert 0.55 < time.monotonic() - begin_s < 2.0

    slow = {"piece": 1, "pause_s": 0.01, "read_timeout_s": 0.3}
    with_server("modbus-rtu-over-tcp", [modbus_meter(1, registers(1))], scenario, **slow)
    with_server("modbus-rtu-over-tcp", [dribble], endless, **slow)


@pytest.mark.parametrize(("baud", "least_s"), [(1200, 3.5 * 11 / 1200), (9600, 3.5 * 11 / 9600)])
def test_an_rtu_request_comes_after_silence_and_not_much_later(baud: int, least_s: float) -> None:
    setting = SerialSetting(baud, "E")
    assert silence_s("modbus-rtu", setting) == pytest.approx(least_s)
    assert silence_s("modbus-rtu", SerialSetting(38_400, "E")) == 0.00175
    seen: list[TapEvent] = []

    async def scenario() -> None:
        with rtu_line(1, 2, setting=Setting(baud), turnaround_s=0.005) as line:
            client = modbus_client(line, setting)
            untap = client.tap(seen.append)
            polls = (client.exchange(read(u), meter=str(u), priority=Priority.LIVE) for u in (1, 2, 1, 2))
            await asyncio.gather(*polls)
            untap()
            client.close()

    asyncio.run(scenario())
    pauses = [b.at_monotonic - a.at_monotonic for a, b in itertools.pairwise(seen) if b.direction == "out"]
    assert len(pauses) == 3
    assert all(pause >= least_s for pause in pauses)
    assert min(pauses) < least_s + 0.02


def test_a_timeout_is_the_time_of_the_bytes_and_of_the_meter() -> None:
    setting, request = SerialSetting(2400, "E"), read(9, 0, 20)
    size = request_bytes("modbus-rtu", request) + reply_bytes("modbus-rtu", request)
    assert size == 8 + 45

    async def scenario() -> None:
        with rtu_line(1, setting=Setting(2400)) as line:
            client = modbus_client(line, setting, read_timeout_s=0.05, quarantine_s=0.05)
            begin_s = time.monotonic()
            assert await outcome(client.exchange(request, meter="9", priority=Priority.LIVE)) is SilentError
            assert 53 * 11 / 2400 + 0.05 < time.monotonic() - begin_s < 53 * 11 / 2400 + 0.05 + 0.3
            client.close()

    asyncio.run(scenario())


def test_the_line_is_kept_busy() -> None:
    """The share of the line's limit that polling reaches: bytes × 11 / 9600 + the meter's delay + silence."""
    delay_s, setting, count = 0.02, SerialSetting(9600, "E"), 60
    polls = 12

    async def scenario() -> float:
        with rtu_line(1, 2, setting=Setting(9600), turnaround_s=delay_s) as line:
            client = modbus_client(line, setting)
            await client.exchange(read(1, 0, count), meter="1", priority=Priority.LIVE)
            begin_s = time.monotonic()
            for i in range(polls):
                unit = 1 + i % 2
                await client.exchange(read(unit, 0, count), meter=str(unit), priority=Priority.LIVE)
            took_s = time.monotonic() - begin_s
            client.close()
            return took_s

    limit_s = (8 + 5 + 2 * count) * setting.char_s + delay_s + silence_s("modbus-rtu", setting)
    share = polls * limit_s / asyncio.run(scenario())
    print(f"9600 8E1: {100 * share:.1f} % of the line's limit")
    assert 0.7 < share <= 1.01


# ---- silence ---------------------------------------------------------------------------------------------------------


def test_after_a_timeout_the_line_rests_until_the_late_answer_came() -> None:
    async def scenario() -> None:
        with rtu_line(1, 2) as line:
            client = modbus_client(line, read_timeout_s=0.02, quarantine_s=5.0)
            line.order(faults.late(0.3))
            begin_s = time.monotonic()
            first = outcome(client.exchange(read(1), meter="1", priority=Priority.LIVE))
            second = outcome(client.exchange(read(2), meter="2", priority=Priority.LIVE))
            silent, answer = await asyncio.gather(first, second)
            assert silent is SilentError
            assert words(answer) == [512, 513]
            assert 0.3 < time.monotonic() - begin_s < 3.0, "until it came, and no longer"
            line.order(faults.silent)
            client._line = Line("l", "modbus-rtu", client._line.endpoint, 0.02, 0.4)
            begin_s = time.monotonic()
            assert await outcome(client.exchange(read(2), meter="2", priority=Priority.LIVE)) is SilentError
            assert words(await client.exchange(read(1), meter="1", priority=Priority.COMMAND)) == [256, 257]
            assert time.monotonic() - begin_s > 0.4
            client.close()

    asyncio.run(scenario())


def test_backoff_steps_grow_and_a_person_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeout and quarantine of 0.04 s: a meter never heard waits 0.2 s (five times), then 0.4 s."""
    monkeypatch.setattr(client_module, "BACKOFF_S", 0.05)
    monkeypatch.setattr(client_module, "BACKOFF_COSTS", 5)
    monkeypatch.setattr(client_module, "ADAPTER_S", 0.0)

    async def scenario() -> None:
        with rtu_line(1, 2, 3) as line:
            client = modbus_client(line, read_timeout_s=0.02, quarantine_s=0.02)

            async def ask(unit: int, priority: Priority = Priority.LIVE) -> Any:
                return await outcome(client.exchange(read(unit), meter=str(unit), priority=priority))

            waits = []
            for _ in range(3):
                assert await ask(9) is SilentError
                waits.append(client._backoffs["9"].wait_s)
                assert await ask(9) is BackingOffError
                await asyncio.sleep(waits[-1])
            assert waits == pytest.approx([waits[0], 2 * waits[0], 4 * waits[0]])
            assert 0.2 <= waits[0] < 0.25

            assert words(await ask(1)) == [256, 257]
            assert words(await ask(2)) == [512, 513]
            line.order(faults.silent, faults.silent)
            assert await ask(1) is SilentError
            assert client._backoffs["1"].wait_s == 0.05, "one lost frame"
            assert await ask(1) is BackingOffError
            assert await ask(1, Priority.COMMAND) is SilentError
            assert client._backoffs["1"].wait_s == pytest.approx(waits[0], rel=0.1)
            assert words(await ask(1, Priority.COMMAND)) == [256, 257], "asked though it backs off"
            assert "1" not in client._backoffs
            assert "9" in client._backoffs

            for unit in range(20, 25):
                assert await ask(unit, Priority.SCAN) is SilentError
            assert set(client._backoffs) == {"9"}, "a scan leaves no trace"
            client.close()

    asyncio.run(scenario())


def test_when_a_silent_line_speaks_again_every_meter_is_asked_at_once() -> None:
    dead = faults.silent

    async def scenario() -> None:
        with rtu_line(1, 2, 3) as line:
            client = modbus_client(line, read_timeout_s=0.01, quarantine_s=0.01)

            async def sweep() -> list[Any]:
                polls = (client.exchange(read(u), meter=str(u), priority=Priority.LIVE) for u in (1, 2, 3))
                return [type(it) if isinstance(it, modbus.Frame) else it for it in [await outcome(p) for p in polls]]

            assert await sweep() == [modbus.Frame] * 3
            line.order(dead, dead, dead)
            assert await sweep() == [SilentError] * 3
            assert await sweep() == [BackingOffError] * 3
            await client.exchange(read(2), meter="2", priority=Priority.COMMAND)
            assert await sweep() == [modbus.Frame] * 3
            line.order(dead)
            assert await sweep() == [SilentError, modbus.Frame, modbus.Frame]
            assert await sweep() == [BackingOffError, modbus.Frame, modbus.Frame], "one meter is not the line"
            client.close()

    asyncio.run(scenario())


def test_turns_go_by_priority_then_place_then_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LAST_TURNS", 6)

    async def scenario() -> list[str]:
        turns, order = Turns(), []

        async def take(name: str, priority: Priority, place: Place = Place.IN_ORDER) -> None:
            async with turns.turn(priority, place):
                order.append(name)
                await asyncio.sleep(0)

        await asyncio.gather(
            take("first", Priority.SCAN),
            take("scan", Priority.SCAN, Place.FIRST),
            take("gap", Priority.BACKFILL),
            take("dead", Priority.LIVE, Place.LAST),
            take("customer", Priority.LIVE),
            take("order", Priority.COMMAND),
            take("boundary", Priority.LIVE, Place.FIRST),
            take("customer 2", Priority.LIVE),
            *(take(f"customer {i}", Priority.LIVE) for i in range(3, 6)),
        )
        return order

    assert asyncio.run(scenario()) == [
        "first", "boundary", "customer", "customer 2", "customer 3", "dead", "customer 4", "customer 5",
        "order", "gap", "scan",
    ], "six came after dead, and that is enough"  # fmt: skip


def test_boundary_meters_go_first_and_one_that_was_silent_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_S", 0.0)

    async def scenario() -> list[int]:
        asked: list[int] = []
        with rtu_line(1, 2, 3, 4) as line:
            client = modbus_client(line, read_timeout_s=0.02, quarantine_s=0.01)

            async def ask(unit: int, **how: Any) -> None:
                await client.exchange(read(unit), meter=str(unit), priority=Priority.LIVE, **how)
                asked.append(unit)

            await ask(1)
            line.order(faults.silent)
            with pytest.raises(SilentError):
                await ask(1)
            await asyncio.gather(ask(2), ask(1), ask(3), ask(4, goes_first=True))
            client.close()
        return asked[1:]

    assert asyncio.run(scenario()) == [2, 4, 3, 1], "the first had its turn before the others came"


def test_one_dead_meter_of_forty_costs_the_others_little() -> None:
    """A bus at 9600 baud with its real proportions, but faster, polled without a pause from the start.

    What the dead meter takes is counted from its request to the next one, so that a busy machine does not blur it.
    """
    dead, whole_s = 17, 240 / SCALE
    units = range(1, 41)
    setting = SerialSetting(9600 * SCALE, "E")
    polls = dict.fromkeys(units, 0)
    lost_s, timeouts = 0.0, 0  # of the dead one
    asked: list[tuple[float, int]] = []

    async def scenario(line: SerialLine) -> float:
        client = modbus_client(line, setting, read_timeout_s=1.0 / SCALE, quarantine_s=1.0 / SCALE)
        client.tap(lambda event: asked.append((event.at_monotonic, event.raw[0])) if event.direction == "out" else None)
        end_s = time.monotonic() + whole_s

        async def poll(unit: int) -> None:
            nonlocal timeouts
            while time.monotonic() < end_s:
                answer = await outcome(client.exchange(read(unit, 0, 20), meter=str(unit), priority=Priority.LIVE))
                polls[unit] += isinstance(answer, modbus.Frame)
                timeouts += unit == dead and answer is SilentError
                if answer is BackingOffError:
                    await asyncio.sleep(0.01)

        begin_s = time.monotonic()
        await asyncio.gather(*(poll(unit) for unit in units))
        took_s = time.monotonic() - begin_s
        client.close()
        return took_s

    alive = (unit for unit in units if unit != dead)
    with rtu_line(*alive, setting=Setting(9600), turnaround_s=0.02, time_scale=SCALE, client=Setting(9600)) as line:
        took_s = asyncio.run(scenario(line))
    for (at_s, unit), (next_s, _) in itertools.pairwise(asked):
        if unit == dead:
            lost_s += next_s - at_s
    living = [polls[unit] for unit in units if unit != dead]
    share = lost_s / took_s
    rate, undisturbed = sum(living) / took_s, sum(living) / (took_s - lost_s)
    print(
        f"living meters: {rate:.0f} polls/s, {undisturbed:.0f} without the dead one: {100 * share:.2f} % lost "
        f"to {timeouts} timeouts in {took_s * SCALE:.0f} s of the line"
    )
    assert sum(living) > 400
    assert 2 <= timeouts <= 4
    assert statistics.quantiles(living)[0] > 0.9 * max(living), "all in turn"
    assert share < 0.03
