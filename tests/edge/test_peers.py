"""The bus's client against servers nobody here wrote: pymodbus, and the dlt645 package."""

import asyncio
import logging

from dlt645.service.serversvc.async_server_service import AsyncMeterServerService
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge.client import DLT645, MODBUS_TCP, Client
from edge.model import Line, Priority, TcpEndpoint
from protocols import dlt645, modbus
from simulators.ports import free_port


def test_pymodbus_serves_our_client() -> None:
    values = [230.5, -1250.0, 50.02]

    async def run() -> None:
        port = free_port()
        data = [
            SimData(0x10, values=values, datatype=DataType.FLOAT32),
            SimData(0x40, values=[0] * 4, datatype=DataType.REGISTERS),
        ]
        server = ModbusTcpServer(SimDevice(17, simdata=data), address=("127.0.0.1", port))
        await server.serve_forever(background=True)
        client = Client(Line("line", "modbus-tcp", TcpEndpoint("127.0.0.1", port)), MODBUS_TCP)

        async def ask(transaction: int, pdu: bytes) -> bytes:
            request = modbus.Frame(transaction, 17, pdu)
            return (await client.exchange(request, meter="m", priority=Priority.LIVE)).pdu

        try:
            raw = modbus.decode_read_reply(await ask(1, modbus.encode_read(3, 0x10, 6)), 6)
            assert [modbus.decode_value(raw[i : i + 4], "float32") for i in (0, 4, 8)] == [
                modbus.decode_value(modbus.encode_value(value, "float32"), "float32") for value in values
            ]
            write = modbus.encode_write_many(0x41, modbus.encode_value(0xDEADBEEF, "uint32"))
            modbus.check_write_reply(write, await ask(2, write))
            write = modbus.encode_write_one(0x40, 7)
            modbus.check_write_reply(write, await ask(3, write))
            raw = modbus.decode_read_reply(await ask(4, modbus.encode_read(3, 0x40, 3)), 3)
            assert raw == bytes.fromhex("0007 DEAD BEEF")
            refused = await ask(5, modbus.encode_read(3, 0x4000, 1))
            assert refused == modbus.encode_exception(3, modbus.Fault.ILLEGAL_DATA_ADDRESS)
        finally:
            client.close()
            await server.shutdown()  # type: ignore[no-untyped-call]

    asyncio.run(run())


def test_the_dlt645_package_serves_our_client() -> None:
    logging.getLogger("dlt645").setLevel(logging.ERROR)

    async def run() -> None:
        async with AsyncMeterServerService.new_tcp_server("127.0.0.1", 0) as server:
            server.set_address(bytes.fromhex("000000123456")[::-1])  # the package wants it as on the wire
            server.set_00(0x00010000, 1234.56)
            server.set_02(0x02800002, 49.98)
            client = Client(Line("line", "dlt645-2007", TcpEndpoint("127.0.0.1", server.server.port)), DLT645)

            async def ask(request: dlt645.Frame) -> bytes:
                answer = await client.exchange(request, meter="m", priority=Priority.LIVE)
                return dlt645.decode_reply(request, answer)

            try:
                assert dlt645.decode_address(await ask(dlt645.read_address())) == "000000123456"
                for di, steps in ((0x00010000, 123_456), (0x02800002, 4_998)):
                    assert dlt645.decode_item(di, await ask(dlt645.read("000000123456", di))) == (steps,)
            finally:
                client.close()
                await asyncio.sleep(0.05)

    asyncio.run(run())
