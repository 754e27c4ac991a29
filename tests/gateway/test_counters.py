"""`meterctl run` with a meter that keeps no load profile: its register at the mark, marked by how late it was read."""

import asyncio
import os
import signal
import struct
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from edge.bus import ON_MARK_MAX
from protocols.clock import Anchor, SystemClock, write_anchor
from protocols.quantities import Kind, Quality
from protocols.uplink import Batch, from_us
from simulators.services import Broker
from tests.conftest import stop
from tests.edge.serving import Registers, serving
from tests.gateway.cloud import Cloud, cloud, until

START = datetime(2026, 3, 1, 4, 11, tzinfo=UTC)
RATE = 40


class Counting(Registers):
    """An SDM630 that counts 1 Wh each second since START."""

    clock: SystemClock

    def answer(self, pdu: bytes) -> bytes:
        self.put(4, 0x48, struct.pack(">f", (self.clock.now() - START).total_seconds() / 1000))
        return super().answer(pdu)


def booked(there: Cloud) -> dict[datetime, tuple[datetime, int, int]]:
    """Mark → (when it was read, Wh imported, quality)."""
    found: dict[datetime, tuple[datetime, int, int]] = {}
    for batch in there.batches:
        if batch.kind is Kind.ENERGY:
            at, read, imported = (_column(batch, name, "q") for name in ("at", "gateway_at", "energy_import_wh"))
            for mark, us, wh, quality in zip(at, read, imported, _column(batch, "quality", "H"), strict=True):
                assert from_us(mark) not in found, "a mark is booked once"
                found[from_us(mark)] = from_us(us), wh, quality
    return found


def _column(batch: Batch, name: str, kind: str) -> memoryview:
    return memoryview(batch.columns[name]).cast(kind)  # type: ignore[call-overload, no-any-return]


def launch(folder: Path, broker: Broker) -> "subprocess.Popen[bytes]":
    secrets = {"GRIDLOOM_MQTT_PASSWORD": broker.users["gw-1"], "GRIDLOOM_CLOCK": str(folder / "clock.json")}
    run = "from gateway.meterctl import main; main()"
    command = [sys.executable, "-c", run, "run", str(folder / "site.toml")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, env={**os.environ, **secrets}, stderr=log)


def test_a_counter_is_booked_at_the_mark_and_says_how_late_it_was_read(embedded_broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        device = Counting(7, {(4, address): 0 for address in range(0x60)})
        write_anchor(tmp_path / "clock.json", Anchor(time.time(), START.timestamp(), RATE))
        device.clock = SystemClock(tmp_path / "clock.json")
        async with serving(device) as port, cloud(embedded_broker, "gw-1") as there:
            (tmp_path / "site.toml").write_text(f"""
[gateway]
name = "gw-1"
[uplink]
url = "{embedded_broker.url}"
[[line]]
name = "l"
protocol = "modbus-tcp"
host = "127.0.0.1"
port = {port}
[[meter]]
name = "m1"
line = "l"
address = "7"
template = "eastron-sdm630"
""")
            process = launch(tmp_path, embedded_broker)
            try:
                await until(lambda: bool(booked(there)))
            finally:
                await asyncio.to_thread(stop, process, signal.SIGKILL)
            for mark, (read_at, wh, quality) in booked(there).items():
                assert timedelta() <= read_at - mark
                assert quality == (Quality.GOOD if read_at - mark <= ON_MARK_MAX else Quality.OFF_MARK)
                # The register of a moment between the mark and the answer, not of the mark itself.
                assert mark <= START + timedelta(seconds=wh + 1)
                assert START + timedelta(seconds=wh - 1) <= read_at
            # Energy and power of each mark, and no question about gaps: the meter remembers nothing.
            assert len(device.asked) <= 2 * (len(booked(there)) + 1)

    asyncio.run(scenario())
