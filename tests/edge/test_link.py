"""A serial device as a link: bytes both ways, one owner, unplugged and plugged in again, and what an engineer reads."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge import link as link_module
from edge.link import Link, LinkError, SerialLink, link
from edge.model import Line, SerialEndpoint, SerialSetting, TcpEndpoint
from protocols import modbus
from simulators.lines import Meter, SerialLine, Setting, modbus_meter
from simulators.ports import free_port
from tests.edge.serial import registers

SETTING = SerialSetting(115_200, "N")
REQUEST = modbus.encode_rtu(modbus.Frame(0, 7, modbus.encode_read(3, 0, 2)))
REPLY = modbus.encode_rtu(modbus.Frame(0, 7, registers(7)(modbus.encode_read(3, 0, 2))))


def bus() -> SerialLine:
    return SerialLine([Meter(modbus_meter(7, registers(7)), Setting(115_200, "N"), turnaround_s=0.001)])


class Ear:
    """A link and what it hears."""

    def __init__(self, device: str) -> None:
        self.heard = bytearray()
        self.lost = asyncio.Event()
        line = Line("l", "modbus-rtu", SerialEndpoint(device, SETTING))
        self.link: Link = link(line, on_chunk=self.heard.extend, on_lost=self.lost.set)

    async def hears(self, raw: bytes) -> None:
        async with asyncio.timeout(10):
            while raw not in self.heard:  # noqa: ASYNC110  a link has no event for it
                await asyncio.sleep(0.005)

    async def connects(self) -> None:
        async with asyncio.timeout(10):
            while True:
                try:
                    return await self.link.connect()
                except LinkError:
                    await asyncio.sleep(0.02)


async def error_of(connect: Callable[[], object]) -> str:
    with pytest.raises(LinkError) as caught:
        await connect()  # type: ignore[misc]
    return str(caught.value)


def test_a_device_carries_bytes_both_ways_and_has_one_owner() -> None:
    async def scenario() -> None:
        with bus() as line:
            ear = Ear(line.path)
            await ear.link.connect()
            await ear.link.connect()  # is connected already
            ear.link.write(REQUEST)
            await ear.hears(REPLY)
            other = Ear(line.path)
            assert await error_of(other.link.connect) == f"{line.path}: in use by another program; stop that first"
            ear.link.close()
            await ear.lost.wait()
            await other.connects()
            other.link.close()
            await other.lost.wait()
            assert "closed" in await error_of(other.link.connect)

    asyncio.run(scenario())


def test_an_adapter_is_unplugged_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "RETRY_S", 0.02)
    monkeypatch.setattr(link_module, "RETRY_MAX_S", 0.1)
    device = tmp_path / "ttyUSB0"

    async def scenario() -> None:
        ear = Ear(str(device))
        missing = await error_of(ear.link.connect)
        assert missing == f"{device}: no such device; is the adapter plugged in? See: ls /dev/serial/by-id"
        assert missing in await error_of(ear.link.connect), "the next attempt waits, and says why"
        for _ in range(2):
            with bus() as line:
                device.symlink_to(line.path)
                await ear.connects()
                ear.heard.clear()
                ear.link.write(REQUEST)
                await ear.hears(REPLY)
                device.unlink()
            async with asyncio.timeout(10):
                await ear.lost.wait()
            ear.lost.clear()
            with pytest.raises(LinkError, match=r"ttyUSB0: the adapter was unplugged"):
                ear.link.write(REQUEST)
        ear.link.close()

    asyncio.run(scenario())


def test_what_is_not_ours_to_open_says_what_to_do() -> None:
    async def scenario() -> None:
        with bus() as line:
            os.chmod(line.path, 0)  # noqa: PTH101
            user = os.geteuid()
            if user == 0:
                os.seteuid(65_534)
            try:
                text = await error_of(Ear(line.path).link.connect)
            finally:
                os.seteuid(user)
        assert text.startswith(f"{line.path}: permission denied; add the user to group ")
        assert "group root" not in text

    asyncio.run(scenario())


def test_a_file_is_no_serial_device(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no adapter")
    assert asyncio.run(error_of(Ear(str(file)).link.connect)) == f"{file}: not a serial device"


def test_a_line_chooses_its_link() -> None:
    port = free_port()
    line = Line("l", "modbus-rtu-over-tcp", TcpEndpoint("127.0.0.1", port), setting=SETTING)
    made = link(line, on_chunk=bytearray().extend, on_lost=lambda: None)
    assert not isinstance(made, SerialLink)
    assert asyncio.run(error_of(made.connect)).startswith(f"127.0.0.1:{port}: ")
