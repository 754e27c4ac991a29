"""Meters for ``meterctl bench``, in a process of their own: what is measured is the client's work alone.

``python -m gateway.bench_meters 4 2`` answers on four Modbus TCP ports and two of DL/T 645, prints the ports as JSON,
and ends with its standard input. Every float is 0.5; load records count up with their marks. GRIDLOOM_CLOCK counts.
"""

import asyncio
import json
import struct
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Final

from protocols import dlt645, modbus, templates
from protocols.clock import Clock, SystemClock
from protocols.framing import Garbage
from protocols.templates import MARK_WORDS, ModbusTemplate

LOOPBACK: Final = "127.0.0.1"
INTERVAL: Final = timedelta(minutes=15)

_BEIJING = timezone(timedelta(hours=8))  # what a site file says where it says nothing
_UNIX = datetime(1970, 1, 1, tzinfo=UTC)
_FLOATS = struct.pack(">f", 0.5) * (modbus.READ_WORDS_MAX // 2 + 2)
_MARK = struct.Struct(">5I")


def answer_modbus(pdu: bytes, now: datetime) -> bytes:
    demo = templates.load("gridloom-demo-modbus")
    assert isinstance(demo, ModbusTemplate)
    if pdu[0] == modbus.Function.READ_FILE:
        (part,) = modbus.decode_read_file(pdu)
        first = datetime.combine(demo.profile.day_zero, datetime.min.time(), UTC) + timedelta(days=part.file)
        numbers = range(part.record // MARK_WORDS, (part.record + part.count) // MARK_WORDS)
        marks = [int((first + number * INTERVAL - _UNIX).total_seconds()) for number in numbers]
        return modbus.encode_read_file_reply([b"".join(_MARK.pack(mark, *_registers(mark)) for mark in marks)])
    if pdu[0] not in (modbus.Function.READ_HOLDING, modbus.Function.READ_INPUT):
        return modbus.encode_exception(pdu[0], modbus.Fault.ILLEGAL_FUNCTION)
    address, count = modbus.decode_read(pdu)
    data = bytearray(_FLOATS[2 * (address % 2) :][: 2 * count])
    clock = 2 * (demo.clock.address - address)
    if pdu[0] == demo.function and 0 <= clock <= len(data) - 4:
        data[clock : clock + 4] = struct.pack(">I", int(now.timestamp()))
    return modbus.encode_read_reply(pdu[0], bytes(data))


def answer_645(request: dlt645.Frame, now: datetime) -> dlt645.Frame:
    di, extra = dlt645.decode_read(request)
    if di == dlt645.LOAD_AT:
        count, first = dlt645.decode_load_query(extra, _BEIJING)
        marks = [first + number * INTERVAL for number in range(count)] if first else []
        records = [_record(at) for at in marks]
        return dlt645.reply(request, request.address, dlt645.encode_load_records(records, _BEIJING))
    if di in (dlt645.DATE, dlt645.TIME):
        data = dlt645.encode_time(now, "wdmy" if di == dlt645.DATE else "SMH", _BEIJING)
    else:
        try:
            data = dlt645.encode_item(di, [1] * dlt645.ITEMS[di].count)
        except (KeyError, ValueError):
            return dlt645.refuse(request, request.address, dlt645.Fault.NO_SUCH_DATA)
    return dlt645.reply(request, request.address, data)


def _record(at: datetime) -> dlt645.LoadRecord:
    a, b, c, d = (10 * step for step in _registers(int(at.timestamp())))
    return dlt645.LoadRecord(at, a, b, c, d)


def _registers(mark_s: int) -> tuple[int, int, int, int]:
    """Four registers in steps of 10 Wh, as both protocols' load records count."""
    step = mark_s // 900 % 1_000_000
    return step, step, step, step


class _Meters(asyncio.Protocol):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport


class _ModbusMeters(_Meters):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._decoder = modbus.TcpDecoder()

    def data_received(self, data: bytes) -> None:
        for event in self._decoder.feed(data):
            if not isinstance(event, Garbage):
                pdu = answer_modbus(event.pdu, self._clock.now())
                self._transport.write(modbus.encode(modbus.Frame(event.transaction, event.unit, pdu)))


class _Dlt645Meters(_Meters):
    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._decoder = dlt645.Decoder()

    def data_received(self, data: bytes) -> None:
        for event in self._decoder.feed(data):
            if not isinstance(event, Garbage) and event.control == dlt645.Function.READ:
                self._transport.write(dlt645.encode(answer_645(event, self._clock.now())))


async def serve(modbus_ports: int, dlt645_ports: int) -> None:
    loop = asyncio.get_running_loop()
    clock = SystemClock.from_environment()
    ports: dict[str, list[int]] = {}
    kinds: tuple[tuple[str, int, Callable[[], asyncio.Protocol]], ...] = (
        ("modbus", modbus_ports, lambda: _ModbusMeters(clock)),
        ("dlt645", dlt645_ports, lambda: _Dlt645Meters(clock)),
    )
    for name, count, meters in kinds:
        servers = [await loop.create_server(meters, LOOPBACK, 0) for _ in range(count)]
        ports[name] = [server.sockets[0].getsockname()[1] for server in servers]
    print(json.dumps(ports), flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
