"""Meters made of items and registers on a real socket, and a clock that says what it is told."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo

from protocols import dlt645, modbus
from protocols.clock import SystemClock
from protocols.dlt645 import Frame, edition1997
from protocols.framing import FrameError
from tests.edge.endpoint import BEIJING


class ToldClock(SystemClock):
    """``moment``, until somebody sets it; ``step`` is added with every look."""

    def __init__(self, moment: datetime, step: timedelta = timedelta()) -> None:
        super().__init__()
        self.moment = moment
        self._step = step

    def now(self) -> datetime:
        self.moment += self._step
        return self.moment


@dataclass
class Meter645:
    """Answers from ``items``, long ones in parts of ``bytes_max``; its clock is ``now`` plus what was set.

    ``asked``: the data identifiers in order. ``on_asked`` is told each before the answer.
    """

    address: str
    items: dict[int, bytes]
    edition: dlt645.Edition = "2007"
    bytes_max: int = dlt645.DATA_BYTES_MAX
    password: str = "04123456"
    zone: tzinfo = BEIJING
    now: Callable[[], datetime] | None = None
    on_asked: Callable[[int], None] = lambda di: None
    clock_ahead: timedelta = timedelta()
    asked: list[int] = field(default_factory=list)
    refused_writes: int = 0
    _parts: list[Frame] = field(default_factory=list)

    def answer(self, request: Frame) -> Frame | None:
        if request.address not in (self.address, dlt645.BROADCAST):
            return None
        function = request.function
        if function == dlt645.Function.BROADCAST_TIME:
            assert self.now is not None
            self.clock_ahead = dlt645.decode_broadcast_time(request, self.zone) - self.now()
            return None
        if function in (dlt645.Function.READ_FOLLOW_UP, dlt645.Function1997.READ_FOLLOW_UP):
            self._parts = self._parts[1:]
            return self._parts[0] if self._parts else self._refuse(request)
        if function in (dlt645.Function.WRITE, dlt645.Function1997.WRITE):
            return self._write(request)
        di, _ = (edition1997 if self.edition == "1997" else dlt645).decode_read(request)
        self.asked.append(di)
        self.on_asked(di)
        data = self._item(di)
        if data is None:
            return self._refuse(request)
        self._parts = dlt645.split_reply(request, self.address, data, bytes_max=self.bytes_max)
        return self._parts[0]

    def _item(self, di: int) -> bytes | None:
        if self.now is not None and di in (dlt645.DATE, 0xC010, dlt645.TIME, 0xC011):
            return dlt645.encode_time(
                self.now() + self.clock_ahead, "wdmy" if di in (dlt645.DATE, 0xC010) else "SMH", self.zone
            )
        return self.items.get(di)

    def _refuse(self, request: Frame) -> Frame:
        fault = dlt645.Fault1997.BAD_DATA_IDENTIFIER if self.edition == "1997" else dlt645.Fault.NO_SUCH_DATA
        return dlt645.refuse(request, self.address, fault)

    def _write(self, request: Frame) -> Frame:
        assert self.now is not None
        if self.edition == "1997":
            di, password, data = edition1997.decode_write(request)
        else:
            di, who, data = dlt645.decode_write(request)
            password = who.password
        if password != self.password:
            self.refused_writes += 1
            return dlt645.refuse(request, self.address, dlt645.Fault.PASSWORD_OR_UNAUTHORISED)
        shown = (self.now() + self.clock_ahead).astimezone(self.zone)
        if di in (dlt645.DATE, 0xC010):
            wanted = dlt645.decode_clock(data, dlt645.encode_time(shown, "SMH", self.zone), self.zone)
        else:
            wanted = dlt645.decode_clock(dlt645.encode_time(shown, "wdmy", self.zone), data, self.zone)
        self.clock_ahead += wanted - shown.replace(microsecond=0)
        return dlt645.reply(request, self.address)


@dataclass
class Registers:
    """A Modbus meter: words by (function, address); what is not there is refused."""

    unit: int
    words: dict[tuple[int, int], int]
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    def put(self, function: int, address: int, raw: bytes) -> None:
        for i in range(0, len(raw), 2):
            self.words[function, address + i // 2] = int.from_bytes(raw[i : i + 2], "big")

    def answer(self, pdu: bytes) -> bytes:
        function = pdu[0]
        try:
            address, count = modbus.decode_read(pdu)
        except FrameError:
            return modbus.encode_exception(function, modbus.Fault.ILLEGAL_FUNCTION)
        self.asked.append((function, address, count))
        words = [self.words.get((function, address + i)) for i in range(count)]
        if any(word is None for word in words):
            return modbus.encode_exception(function, modbus.Fault.ILLEGAL_DATA_ADDRESS)
        return modbus.encode_read_reply(function, b"".join((word or 0).to_bytes(2, "big") for word in words))


@asynccontextmanager
async def serving(*meters: Meter645 | Registers) -> AsyncIterator[int]:
    """The port on which the meters answer, all of one protocol."""
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(meters), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class _Connection(asyncio.Protocol):
    def __init__(self, meters: tuple[Meter645 | Registers, ...]) -> None:
        self._meters = meters
        self._dlt645, self._modbus = dlt645.Decoder(), modbus.TcpDecoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if isinstance(self._meters[0], Registers):
            for event in self._modbus.feed(data):
                assert isinstance(event, modbus.Frame), event
                for meter in self._meters:
                    if isinstance(meter, Registers) and meter.unit == event.unit:
                        reply = modbus.Frame(event.transaction, event.unit, meter.answer(event.pdu))
                        self._transport.write(modbus.encode(reply))
            return
        for request in self._dlt645.feed(data):
            assert isinstance(request, Frame), request
            for meter in self._meters:
                assert isinstance(meter, Meter645)
                answer = meter.answer(request)
                if answer is not None:
                    self._transport.write(dlt645.encode(answer))
