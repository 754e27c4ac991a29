"""Meters for simulated serial lines as `meterctl` meets them in the field: DL/T 645 ones, and makers' families."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from protocols import dlt645, modbus, templates
from protocols.framing import FrameError
from protocols.templates import ModbusFamily
from simulators.lines import Responder, dlt645_meter, modbus_meter
from simulators.ports import free_port
from tests.conftest import stop

VOLTAGES = {0x02010100: 0, 0x02010200: 1, 0x02010300: 2, 0xB611: 0, 0xB612: 1, 0xB613: 2}


def meter_645(address: str, *, phases: int = 3, edition: dlt645.Edition = "2007", energy: int = 123456) -> Responder:
    """Answers to its address, whole or in part; ``energy`` in 0.01 kWh. A phase it has not is refused."""

    def answer(request: dlt645.Frame) -> dlt645.Frame | None:
        if request.edition != edition:
            return None
        if request.function == dlt645.Function.READ_ADDRESS:
            return dlt645.reply(request, address, dlt645.encode_address(address))
        if request.di is None:
            return None
        item = dlt645.items(edition).get(request.di)
        if item is None or item.size is None or VOLTAGES.get(request.di, 0) >= phases:
            fault = dlt645.Fault1997.BAD_DATA_IDENTIFIER if edition == "1997" else dlt645.Fault.NO_SUCH_DATA
            return dlt645.refuse(request, address, fault)
        steps = 2203 if request.di in VOLTAGES and edition == "2007" else 220 if request.di in VOLTAGES else energy
        size = item.size // item.count
        return dlt645.reply(request, address, dlt645.encode_bcd(steps, size) * item.count)

    return dlt645_meter(address, answer)


def family_meter(
    unit: int, name: str, values: Mapping[str, float], *, calls_itself: tuple[str, ...] = (), ascii: bool = False
) -> Responder:
    """A meter of a family: its registers hold ``values`` (others 0), what the table does not list is refused."""
    family = templates.load(name)
    assert isinstance(family, ModbusFamily)
    return modbus_meter(unit, registers_of(family, values, calls_itself), ascii=ascii)


def registers_of(
    family: ModbusFamily, values: Mapping[str, float], calls_itself: tuple[str, ...]
) -> Callable[[bytes], bytes]:
    images: dict[tuple[int, int], int] = {}
    for value in family.values:
        if value.type == "ascii":
            raw = modbus.encode_text("X", value.count)
        else:
            steps = values.get(value.key, 0) / value.scale
            raw = modbus.encode_value(
                steps,
                value.type,
                word_order=value.word_order or family.word_order,
                byte_order=value.byte_order or family.byte_order,
            )
        for i in range(value.count):
            images[family.function_of(value), value.address + i] = int.from_bytes(raw[2 * i : 2 * i + 2], "big")

    def answer(pdu: bytes) -> bytes:
        if pdu[0] == modbus.Function.ENCAPSULATED and calls_itself:
            access, first = modbus.decode_identify(pdu)
            objects = {number: text.encode() for number, text in enumerate(calls_itself)}
            return modbus.encode_identify_reply(access, first, objects)
        try:
            first, count = modbus.decode_read(pdu)
        except FrameError:
            return modbus.encode_exception(pdu[0], modbus.Fault.ILLEGAL_FUNCTION)
        words = [images.get((pdu[0], address)) for address in range(first, first + count)]
        # What lies between two registers of the table is there, too: the table says how far one may read over it.
        if pdu[0] not in (3, 4) or words[0] is None or words[-1] is None:
            return modbus.encode_exception(pdu[0], modbus.Fault.ILLEGAL_DATA_ADDRESS)
        return modbus.encode_read_reply(pdu[0], b"".join((word or 0).to_bytes(2, "big") for word in words))

    return answer


# ---- meterctl as a process -------------------------------------------------------------------------------------------

_MAIN = "from gateway.meterctl import main; main()"
SECRETS = {"GRIDLOOM_MQTT_PASSWORD": "nobody-listens", "GRIDLOOM_LOG": "INFO"}


def meterctl(*arguments: str, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", _MAIN, *arguments],
        env={**os.environ, **SECRETS},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def document(done: "subprocess.CompletedProcess[str]") -> Any:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def write_site(folder: Path, device: str, meters: Mapping[str, str], *, setting: str = "", template: str) -> Path:
    """A site with one line on ``device``, and a broker that is not there."""
    text = f"""
[gateway]
name = "gw-1"
[uplink]
url = "mqtt://127.0.0.1:{free_port()}"
[backfill]
days = 0
[[line]]
name = "east"
device = "{device}"
read_timeout_s = 0.5
{setting}
"""
    for name, address in meters.items():
        text += f'[[meter]]\nname = "{name}"\nline = "east"\naddress = "{address}"\ntemplate = "{template}"\n'
    path = folder / "site.toml"
    path.write_text(text)
    return path


@contextlib.contextmanager
def running_agent(site: Path) -> Iterator[int]:
    """`meterctl run`; gives its pid once its socket is there."""
    log = site.with_suffix(".log")
    with log.open("wb") as out:
        command = [sys.executable, "-c", _MAIN, "run", str(site)]
        process = subprocess.Popen(command, env={**os.environ, **SECRETS}, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while not (site.parent / "agent.sock").is_socket():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process.pid
    finally:
        stop(process, signal.SIGINT)
