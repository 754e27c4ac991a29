"""A maker's table on the bus: its power block comes over a real socket, and what it cannot do is said."""

import asyncio
import struct
from datetime import timedelta

from edge.bus import Bus
from edge.model import Line, Meter, PollFailure, Reason, TcpEndpoint
from protocols import modbus, templates
from protocols.clock import SystemClock
from protocols.uplink import Row
from tests.edge.endpoint import MARK

IMAGE = {0: 230.0, 2: 231.0, 4: 232.0, 6: 1.5, 8: 2.5, 10: 3.5, 52: -1200.0, 60: 90.0, 62: 0.95, 70: 50.01}


class Sdm630(asyncio.Protocol):
    """Answers function 4 from IMAGE; an address it does not list is NaN."""

    asked: list[tuple[int, int]]

    def __init__(self) -> None:
        self._decoder = modbus.TcpDecoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for request in self._decoder.feed(data):
            assert isinstance(request, modbus.Frame)
            address, count = modbus.decode_read(request.pdu)
            type(self).asked.append((address, count))
            raw = b"".join(struct.pack(">f", IMAGE.get(at, float("nan"))) for at in range(address, address + count, 2))
            reply = modbus.encode_read_reply(request.pdu[0], raw)
            self._transport.write(modbus.encode(modbus.Frame(request.transaction, request.unit, reply)))


def test_the_power_of_an_sdm630_is_one_request() -> None:
    async def scenario() -> None:
        Sdm630.asked = []
        server = await asyncio.get_running_loop().create_server(Sdm630, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        bus = Bus(Line("l", "modbus-tcp", TcpEndpoint("127.0.0.1", port)), SystemClock())
        meter = Meter("m1", "7", templates.load("eastron-sdm630"), controllable=True)
        row = await bus.read_power(meter, MARK)
        assert isinstance(row, Row), row
        assert row.meter_at is None
        assert {name: round(float(value or 0), 2) for name, value in row.values.items()} == {
            "voltage_l1_v": 230.0,
            "voltage_l2_v": 231.0,
            "voltage_l3_v": 232.0,
            "current_l1_a": 1.5,
            "current_l2_a": 2.5,
            "current_l3_a": 3.5,
            "active_power_w": -1200.0,
            "reactive_power_var": 90.0,
            "power_factor": 0.95,
            "frequency_hz": 50.01,
        }
        assert Sdm630.asked == [(0, 72)]
        energy = await bus.read_energy(meter, MARK)
        assert isinstance(energy, PollFailure)
        assert energy.reason is Reason.ABSENT
        assert await bus.read_profile(meter, MARK, 4) == []
        order = await bus.set_relay(meter, closed=False, expires_at=SystemClock().now() + timedelta(minutes=1))
        assert isinstance(order, PollFailure)
        assert order.reason is Reason.REFUSED
        assert Sdm630.asked == [(0, 72)]
        await bus.close()
        server.close()

    asyncio.run(scenario())
