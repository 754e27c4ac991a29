"""The bus against programs nobody here wrote: pymodbus and the dlt645 package as meters, and mbpoll and the dlt645
package asking ours."""

import asyncio
import logging
import os
import re
import shutil
import struct
import subprocess
import tty
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from dlt645.service.clientsvc.client_service import MeterClientService
from dlt645.service.serversvc.async_server_service import AsyncMeterServerService
from pymodbus import FramerType
from pymodbus.server import ModbusBaseServer, ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge.bus import Bus
from edge.model import (
    ItemReading,
    Line,
    Meter,
    PollFailure,
    Priority,
    Protocol,
    Reason,
    SerialEndpoint,
    SerialSetting,
    TcpEndpoint,
)
from protocols import dlt645, modbus, templates
from protocols.uplink import Row
from simulators import lines
from simulators.ports import free_port
from tests.conftest import IN_CI
from tests.edge.endpoint import MARK
from tests.edge.serving import Meter645, Registers, ToldClock, serving

UNIT = 17
ADDRESS = "000000123456"
SETTING = SerialSetting(19_200, "N")
FRAMERS: dict[Protocol, FramerType] = {
    "modbus-tcp": FramerType.SOCKET,
    "modbus-rtu-over-tcp": FramerType.RTU,
    "modbus-rtu": FramerType.RTU,
    "modbus-ascii": FramerType.ASCII,
}
# What an SDM630 shows, by address: voltages, currents, powers, frequency; energy import at 0x48, in kWh.
SDM630 = {
    0: 230.5,
    2: 231.5,
    4: 229.5,
    6: 1.25,
    8: 2.5,
    10: 3.75,
    52: -1250.0,
    60: 125.0,
    62: 0.5,
    70: 50.0,
    72: 1234.5,
}


# ---- pymodbus --------------------------------------------------------------------------------------------------------


def carry(source: int, sink: int) -> None:
    os.write(sink, os.read(source, 4096))


@asynccontextmanager
async def wire() -> AsyncIterator[tuple[str, str]]:
    """Two serial devices joined by a cable."""
    loop = asyncio.get_running_loop()
    (one, one_end), (two, two_end) = os.openpty(), os.openpty()
    for end in (one_end, two_end):
        tty.setraw(end)
    for here, there in ((one, two), (two, one)):
        loop.add_reader(here, carry, here, there)
    try:
        yield os.ttyname(one_end), os.ttyname(two_end)
    finally:
        for fd in (one, two):
            loop.remove_reader(fd)
        for fd in (one, one_end, two, two_end):
            os.close(fd)


@asynccontextmanager
async def pymodbus_meter(protocol: Protocol) -> AsyncIterator[Line]:
    """An SDM630 as pymodbus serves it, and the line on which it is; ASCII goes over the serial cable too."""
    values = [SDM630.get(address, 0.0) for address in range(0, 96, 2)]
    device = SimDevice(UNIT, simdata=[SimData(0, values=values, datatype=DataType.FLOAT32)])
    async with AsyncExitStack() as stack:
        server: ModbusBaseServer
        endpoint: TcpEndpoint | SerialEndpoint
        if protocol in ("modbus-rtu", "modbus-ascii"):
            ours, theirs = await stack.enter_async_context(wire())
            endpoint = SerialEndpoint(ours, SETTING)
            server = ModbusSerialServer(
                device, framer=FRAMERS[protocol], port=theirs, baudrate=SETTING.baud, parity=SETTING.parity
            )
        else:
            endpoint = TcpEndpoint("127.0.0.1", free_port())
            server = ModbusTcpServer(device, framer=FRAMERS[protocol], address=(endpoint.host, endpoint.port))
        await server.serve_forever(background=True)
        stack.push_async_callback(server.shutdown)
        yield Line("line", protocol, endpoint, read_timeout_s=3.0)


@pytest.mark.parametrize("protocol", list(FRAMERS))
def test_pymodbus_is_read_as_an_sdm630_in_every_framing(protocol: Protocol) -> None:
    async def run() -> None:
        async with pymodbus_meter(protocol) as line:
            bus = Bus(line, ToldClock(MARK))
            meter = Meter("m1", str(UNIT), templates.load("eastron-sdm630"))
            try:
                power = await bus.read_power(meter, MARK)
                assert isinstance(power, Row), power
                assert power.values == {
                    "voltage_l1_v": 230.5,
                    "voltage_l2_v": 231.5,
                    "voltage_l3_v": 229.5,
                    "current_l1_a": 1.25,
                    "current_l2_a": 2.5,
                    "current_l3_a": 3.75,
                    "active_power_w": -1250.0,
                    "reactive_power_var": 125.0,
                    "power_factor": 0.5,
                    "frequency_hz": 50.0,
                }
                energy = await bus.read_energy(meter, MARK)
                assert isinstance(energy, Row), energy
                assert (energy.values["energy_import_wh"], energy.quality) == (1_234_500, 0)
                item = await bus.read_item(meter, "3:0x0048:2:float32")
                assert isinstance(item, ItemReading), item
                assert item.values == (("0x0048", 1234.5, ""),)
                refused = await bus.read_item(meter, "4:0x4000:2")
                assert isinstance(refused, PollFailure)
                assert (refused.reason, "illegal_data_address" in refused.detail) == (Reason.REFUSED, True)
                write = modbus.encode_write_many(0x50, struct.pack(">f", 7.5))
                answer = await bus.ask(modbus.Frame(0, UNIT, write), meter_key="m1", priority=Priority.COMMAND)
                assert isinstance(answer, modbus.Frame), answer
                modbus.check_write_reply(write, answer.pdu)
                item = await bus.read_item(meter, "3:0x50:2:float32")
                assert isinstance(item, ItemReading) and item.values[0][1] == 7.5
            finally:
                await bus.close()

    asyncio.run(run())


# ---- the dlt645 package ----------------------------------------------------------------------------------------------


def test_the_dlt645_package_is_read_by_the_bus() -> None:
    logging.getLogger("dlt645").setLevel(logging.ERROR)

    async def run() -> None:
        async with AsyncMeterServerService.new_tcp_server("127.0.0.1", 0) as server:
            server.set_address(bytes.fromhex(ADDRESS)[::-1])  # the package wants it as on the wire
            server.set_00(0x00010000, 1234.56)
            server.set_02(0x02800002, 49.98)
            line = Line("line", "dlt645-2007", TcpEndpoint("127.0.0.1", server.server.port), read_timeout_s=3.0)
            bus = Bus(line, ToldClock(MARK))
            meter = Meter("m1", ADDRESS, templates.load("dlt645-2007"))
            try:
                request = dlt645.read_address()
                answer = await bus.ask(request, meter_key="m1", priority=Priority.SCAN)
                assert isinstance(answer, dlt645.Frame), answer
                assert dlt645.decode_address(dlt645.decode_reply(request, answer)) == ADDRESS
                for item, value, unit in (("00010000", "1234.56", "kWh"), ("02800002", "49.98", "Hz")):
                    found = await bus.read_item(meter, item)
                    assert isinstance(found, ItemReading), found
                    ((_, got, got_unit),) = found.values
                    assert (str(got), got_unit) == (value, unit)
            finally:
                await bus.close()
                await asyncio.sleep(0.05)

    asyncio.run(run())


def test_the_dlt645_package_asks_a_simulated_meter_on_a_serial_line() -> None:
    logging.getLogger("dlt645").setLevel(logging.ERROR)
    items = {0x00010000: dlt645.encode_bcd(123_456, 4), 0x02800002: dlt645.encode_bcd(4_998, 2)}
    device = Meter645(ADDRESS, items)

    def answer(request: dlt645.Frame) -> dlt645.Frame | None:
        if request.function == dlt645.Function.READ_ADDRESS:
            return dlt645.reply(request, ADDRESS, dlt645.encode_address(ADDRESS))
        return device.answer(request)

    setting = lines.Setting(9600, "E")
    with lines.SerialLine([lines.Meter(lines.dlt645_meter(ADDRESS, answer), setting)], client=setting) as line:
        # "N": pyserial fails on a pty, which keeps no parity; that of the line is the simulator's.
        client = MeterClientService.new_rtu_client(line.path, 9600, 8, 1, "N", 5.0)
        try:
            client.address = bytearray(bytes.fromhex(ADDRESS)[::-1])  # the package wants it as on the wire
            energy, frequency = client.read_00(0x00010000), client.read_02(0x02800002)
            assert energy is not None and energy.value == pytest.approx(1234.56)
            assert frequency is not None and frequency.value == pytest.approx(49.98)
            named = client.read_address()
            assert named is not None and named.value == bytes.fromhex(ADDRESS)[::-1].hex()  # as it is on the wire
            assert device.asked == [0x00010000, 0x02800002]
        finally:
            client.disconnect()


# ---- mbpoll, which is libmodbus --------------------------------------------------------------------------------------


def mbpoll() -> str:
    """Its path. Under CI it must be there; elsewhere its tests are skipped and the reason printed."""
    path = shutil.which("mbpoll")
    if path is None:
        reason = "mbpoll is not installed; `make services` installs it (root on Debian)"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def shown(output: str) -> dict[int, float]:
    """Reference → value, from lines such as ``[72]:  1234.5``."""
    return {int(at): float(value) for at, value in re.findall(r"^\[(\d+)\]:\s+(\S+)", output, re.MULTILINE)}


def sdm630() -> Registers:
    device = Registers(UNIT, {})
    for address in range(0, 96, 2):
        for function in (3, 4):
            device.put(function, address, struct.pack(">f", SDM630.get(address, 0.0)))
    return device


@pytest.mark.parametrize("mode", ["tcp", "rtu"])
def test_mbpoll_reads_a_simulated_meter(mode: str) -> None:
    program, device = mbpoll(), sdm630()
    read = [program, "-1", "-0", "-B", "-q", "-o", "5", "-a", str(UNIT), "-t", "3:float", "-r", "0", "-c", "24"]

    async def run(arguments: list[str]) -> str:
        process = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    async def over_tcp() -> str:
        async with serving(device) as port:
            return await run([*read, "-m", "tcp", "-p", str(port), "127.0.0.1"])

    if mode == "tcp":
        output = asyncio.run(over_tcp())
    else:
        setting = lines.Setting(19_200, "N")
        with lines.SerialLine([lines.Meter(lines.modbus_meter(UNIT, device.answer), setting)]) as line:
            output = asyncio.run(run([*read, "-m", "rtu", "-b", "19200", "-P", "none", line.path]))
    assert device.asked == [(4, 0, 48)]
    assert shown(output) == pytest.approx({address: SDM630.get(address, 0.0) for address in range(0, 48, 2)})
