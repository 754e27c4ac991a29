"""An endpoint on a real socket with meters behind it, made of the codecs; it can be late, silent, killed.

Every register tells whose it is: a value booked to the wrong meter, quantity or mark shows.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import Literal, TypeAlias

from edge.model import Line, Meter, TcpEndpoint
from protocols import dlt645, modbus, templates
from protocols.dlt645 import LoadRecord
from protocols.quantities import ENERGY_NAMES, POWER_NAMES
from protocols.templates import MARK_WORDS, ModbusTemplate

BEIJING = timezone(timedelta(hours=8))
UNIX = datetime(1970, 1, 1, tzinfo=UTC)
MARK = datetime(2026, 3, 1, 4, 0, tzinfo=UTC)
QUARTER = timedelta(minutes=15)
PASSWORD = "02123456"


def meter_645(number: int) -> Meter:
    return Meter(f"m{number:03d}", f"{number:012d}", templates.load("dlt645-2007"), controllable=True)


def meter_modbus(number: int) -> Meter:
    return Meter(f"m{number:03d}", str(number), templates.load("gridloom-demo-modbus"), controllable=True)


ProtocolName: TypeAlias = Literal["dlt645-2007", "modbus-tcp"]
Registers: TypeAlias = tuple[int, int, int, int]


def registers_wh(number: int, at: datetime) -> Registers:
    """Four registers, multiples of 10, that name their meter, quantity and mark."""
    quarter = (at - UNIX) // QUARTER % 10_000
    own = number * 1_000_000 + quarter * 100
    return own, own + 10, own + 20, own + 30


def values_at(number: int, at: datetime) -> dict[str, int]:
    return dict(zip(ENERGY_NAMES, registers_wh(number, at), strict=True))


@dataclass
class Endpoint:
    """``delay_s``: of the answer to a request, None for none. ``has``: whether a mark is in the meters' memory."""

    protocol: ProtocolName
    delay_s: Callable[[int], float | None] = lambda number: 0.0
    has: Callable[[datetime], bool] = lambda at: True
    now: Callable[[], datetime] = lambda: MARK
    asked: list[int] = field(default_factory=list)
    relays: dict[int, bool] = field(default_factory=dict)
    port: int = 0
    connections: int = 0
    _server: asyncio.Server | None = None
    _transports: set[asyncio.Transport] = field(default_factory=set)

    def line(self, *, read_timeout_s: float = 1.0, quarantine_s: float = 0.5) -> Line:
        return Line("line", self.protocol, TcpEndpoint("127.0.0.1", self.port), read_timeout_s, quarantine_s)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def kill(self) -> None:
        """As if the process had died: nothing listens, every connection is reset."""
        assert self._server is not None
        self._server.close()
        for transport in list(self._transports):
            transport.abort()

    def answer(self, request: dlt645.Frame | modbus.Frame) -> tuple[int, bytes]:
        """(meter number, bytes of the answer)."""
        if isinstance(request, dlt645.Frame):
            return int(request.address), dlt645.encode(self._answer_645(request, int(request.address)))
        pdu = self._answer_modbus(request.pdu, request.unit)
        return request.unit, modbus.encode(modbus.Frame(request.transaction, request.unit, pdu))

    def _answer_645(self, request: dlt645.Frame, number: int) -> dlt645.Frame:
        if request.function == dlt645.Function.RELAY:
            order = dlt645.decode_relay(request, BEIJING)
            if order.password != PASSWORD:
                return dlt645.refuse(request, request.address, dlt645.Fault.PASSWORD_OR_UNAUTHORISED)
            self.relays[number] = order.action is dlt645.RelayAction.CLOSE
            return dlt645.reply(request, request.address)
        di, extra = dlt645.decode_read(request)
        if di == dlt645.LOAD_AT:
            count, first = dlt645.decode_load_query(extra, BEIJING)
            assert first is not None
            records = [
                LoadRecord(at, *registers_wh(number, at))
                for at in (first + i * QUARTER for i in range(count))
                if self.has(at)
            ]
            return dlt645.reply(request, request.address, dlt645.encode_load_records(records, BEIJING))
        if di in (dlt645.DATE, dlt645.TIME):
            fields = "wdmy" if di == dlt645.DATE else "SMH"
            return dlt645.reply(request, request.address, dlt645.encode_time(self.now(), fields, BEIJING))
        return dlt645.reply(request, request.address, dlt645.encode_item(di, [number] * dlt645.ITEMS[di].count))

    def _answer_modbus(self, pdu: bytes, number: int) -> bytes:
        template = templates.load("gridloom-demo-modbus")
        assert isinstance(template, ModbusTemplate)
        if pdu[0] == modbus.Function.WRITE_MANY:
            _, order = modbus.decode_write(pdu)
            self.relays[number] = order[:2] == b"\0\0"
            return modbus.encode_write_reply(pdu)
        if pdu[0] == modbus.Function.READ_FILE:
            (part,) = modbus.decode_read_file(pdu)
            midnight = datetime.combine(template.profile.day_zero, datetime.min.time(), UTC) + timedelta(days=part.file)
            first, count = midnight + part.record // MARK_WORDS * QUARTER, part.count // MARK_WORDS
            marks = [first + i * QUARTER for i in range(count)]
            if not any(self.has(at) for at in marks):
                return modbus.encode_exception(pdu[0], modbus.Fault.ILLEGAL_DATA_ADDRESS)
            return modbus.encode_read_file_reply([b"".join(self._mark(number, at) for at in marks)])
        address, count = modbus.decode_read(pdu)
        image = bytearray(2 * 0x20)
        for register in template.register:
            if register.quantity in POWER_NAMES:
                image[2 * register.address : 2 * register.address + 4] = modbus.encode_value(number, register.type)
        clock = 2 * template.clock.address
        image[clock : clock + 4] = modbus.encode_value((self.now() - UNIX) // timedelta(seconds=1), "uint32")
        return modbus.encode_read_reply(pdu[0], bytes(image[2 * address : 2 * (address + count)]))

    def _mark(self, number: int, at: datetime) -> bytes:
        if not self.has(at):
            return b"\xff" * 2 * MARK_WORDS
        words = ((at - UNIX) // timedelta(seconds=1), *(wh // 10 for wh in registers_wh(number, at)))
        return b"".join(modbus.encode_value(word, "uint32") for word in words)


class _Connection(asyncio.Protocol):
    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._decoder = dlt645.Decoder() if endpoint.protocol == "dlt645-2007" else modbus.TcpDecoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._endpoint._transports.add(transport)
        self._endpoint.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._endpoint._transports.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        for request in self._decoder.feed(data):
            assert isinstance(request, dlt645.Frame | modbus.Frame), request
            number, raw = self._endpoint.answer(request)
            self._endpoint.asked.append(number)
            delay_s = self._endpoint.delay_s(number)
            if delay_s is not None:
                asyncio.get_running_loop().call_later(delay_s, self._transport.write, raw)


@asynccontextmanager
async def running(endpoint: Endpoint) -> AsyncIterator[Endpoint]:
    await endpoint.start()
    try:
        yield endpoint
    finally:
        endpoint.kill()
        await asyncio.sleep(0)
