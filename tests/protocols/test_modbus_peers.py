"""Our RTU, ASCII and TCP codecs against pymodbus, both ways: over sockets, and over a simulated serial line."""

import asyncio
import struct
from collections.abc import Callable

import pytest
from pymodbus import FramerType, ModbusDeviceIdentification
from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.pdu.mei_message import ReadDeviceInformationResponse
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from protocols import modbus
from protocols.framing import Garbage, MeterError
from protocols.modbus import AsciiDecoder, Frame, RtuDecoder, SerialDecoder, TcpDecoder
from simulators.lines import Meter, SerialLine, Setting, modbus_meter
from simulators.ports import free_port

Kind = tuple[FramerType, Callable[[Frame], bytes], Callable[[], SerialDecoder | TcpDecoder]]
KINDS: dict[str, Kind] = {
    "tcp": (FramerType.SOCKET, modbus.encode, TcpDecoder),
    "rtu-over-tcp": (FramerType.RTU, modbus.encode_rtu, lambda: RtuDecoder(replies_only=True)),
    "ascii-over-tcp": (FramerType.ASCII, modbus.encode_ascii, AsciiDecoder),
}
UNIT = 17
IDENTITY = {0: b"Gridloom", 1: b"SIM-1", 2: b"1.0", 4: b"simulated meter"}


class Bank:
    """A meter of 64 registers and 64 coils, made of the server side of our codecs."""

    def __init__(self) -> None:
        self.words = [0] * 64
        self.coils = [False] * 64

    def answer(self, pdu: bytes) -> bytes:
        function = pdu[0]
        if function in (1, 2):
            address, count = modbus.decode_read(pdu)
            return modbus.encode_bits_reply(function, self.coils[address : address + count])
        if function in (3, 4):
            address, count = modbus.decode_read(pdu)
            if address + count > len(self.words):
                return modbus.encode_exception(function, modbus.Fault.ILLEGAL_DATA_ADDRESS)
            return modbus.encode_read_reply(function, struct.pack(f">{count}H", *self.words[address : address + count]))
        if function in (5, 15):
            address, states = modbus.decode_write_coils(pdu)
            self.coils[address : address + len(states)] = states
            return modbus.encode_write_reply(pdu)
        if function in (6, 16):
            address, data = modbus.decode_write(pdu)
            values = struct.unpack(f">{len(data) // 2}H", data)
            self.words[address : address + len(values)] = values
            return modbus.encode_write_reply(pdu)
        if function == modbus.Function.ENCAPSULATED:
            return modbus.encode_identify_reply(*modbus.decode_identify(pdu), IDENTITY)
        return modbus.encode_exception(function, modbus.Fault.ILLEGAL_FUNCTION)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_pymodbus_serves_our_client(kind: str) -> None:
    framer, encode, make = KINDS[kind]

    async def run() -> None:
        port = free_port()
        data = [SimData(0, values=[0] * 64, datatype=DataType.REGISTERS)]
        names = {"VendorName": "peer", "ProductCode": "P", "MajorMinorRevision": "3"}
        named = ModbusDeviceIdentification(info_name=names)  # type: ignore[no-untyped-call]
        device = SimDevice(UNIT, simdata=data)
        server = ModbusTcpServer(device, framer=framer, identity=named, address=("127.0.0.1", port))
        await server.serve_forever(background=True)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        decoder = make()

        async def ask(pdu: bytes) -> bytes:
            request = Frame(0, UNIT, pdu)
            writer.write(encode(request))
            while True:
                for event in decoder.feed(await asyncio.wait_for(reader.read(4096), 5)):
                    if isinstance(event, Garbage) or not modbus.is_serial_answer(request, event):
                        raise AssertionError(event)
                    return event.pdu

        try:
            write = modbus.encode_write_many(4, modbus.encode_value(230.5, "float32") + b"\xde\xad")
            modbus.check_write_reply(write, await ask(write))
            one = modbus.encode_write_one(7, 0xBEEF)
            modbus.check_write_reply(one, await ask(one))
            raw = modbus.decode_read_reply(await ask(modbus.encode_read(3, 4, 4)), 4)
            assert raw == bytes.fromhex("43668000 DEAD BEEF")
            with pytest.raises(MeterError, match="illegal_data_address"):
                modbus.decode_read_reply(await ask(modbus.encode_read(3, 0x4000, 1)), 1)
            identity = modbus.decode_identify_reply(await ask(modbus.encode_identify()))
            assert identity.objects == {0: b"peer", 1: b"P", 2: b"3"}
        finally:
            writer.close()
            await server.shutdown()  # type: ignore[no-untyped-call]

    asyncio.run(run())


async def converse(client: AsyncModbusTcpClient | AsyncModbusSerialClient, bank: Bank) -> None:
    assert await client.connect()
    try:
        assert not (await client.write_registers(4, [1, 2, 3], device_id=UNIT)).isError()
        assert not (await client.write_register(7, 0xBEEF, device_id=UNIT)).isError()
        assert (await client.read_holding_registers(4, count=4, device_id=UNIT)).registers == [1, 2, 3, 0xBEEF]
        assert (await client.read_input_registers(7, count=1, device_id=UNIT)).registers == [0xBEEF]
        states = [True, False, True, True, False, False, True, True, True, False]
        assert not (await client.write_coils(3, states, device_id=UNIT)).isError()
        assert not (await client.write_coil(13, True, device_id=UNIT)).isError()
        assert (await client.read_coils(3, count=11, device_id=UNIT)).bits[:11] == [*states, True]
        assert (await client.read_discrete_inputs(3, count=3, device_id=UNIT)).bits[:3] == states[:3]
        assert (await client.read_holding_registers(60, count=10, device_id=UNIT)).exception_code == 2
        identity = await client.read_device_information(read_code=2, object_id=0, device_id=UNIT)
        assert isinstance(identity, ReadDeviceInformationResponse) and identity.information == IDENTITY
        assert bank.words[4:8] == [1, 2, 3, 0xBEEF]
    finally:
        client.close()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_pymodbus_asks_our_server(kind: str) -> None:
    framer, encode, _ = KINDS[kind]
    bank = Bank()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = {"tcp": TcpDecoder, "rtu-over-tcp": RtuDecoder, "ascii-over-tcp": AsciiDecoder}[kind]()
        while chunk := await reader.read(4096):
            for event in decoder.feed(chunk):
                assert isinstance(event, Frame), event
                writer.write(encode(Frame(event.transaction, event.unit, bank.answer(event.pdu))))
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await converse(AsyncModbusTcpClient("127.0.0.1", port=port, framer=framer, timeout=5), bank)
        server.close()

    asyncio.run(run())


@pytest.mark.parametrize("ascii", [False, True])
def test_pymodbus_asks_a_simulated_serial_line(ascii: bool) -> None:
    bank = Bank()
    meter = Meter(modbus_meter(UNIT, bank.answer, ascii=ascii), Setting(19_200, "N"), turnaround_s=0.005)
    with SerialLine([meter, Meter(modbus_meter(3, Bank().answer, ascii=ascii), Setting(19_200, "N"))]) as line:
        framer = FramerType.ASCII if ascii else FramerType.RTU

        async def run() -> None:
            await converse(AsyncModbusSerialClient(line.path, framer=framer, baudrate=19_200, timeout=5), bank)

        asyncio.run(run())
