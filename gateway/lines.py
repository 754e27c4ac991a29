"""The line a command is about: one of a site file, or one that options describe. And how its setting is given."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import IO, Any, Final, cast, get_args

import click

from edge.model import Line, Meter, Parity, Protocol, SerialEndpoint, SerialSetting, TcpEndpoint
from gateway.config import Site, load

PROTOCOLS: Final[tuple[Protocol, ...]] = get_args(Protocol)
MODBUS_TCP_PORT: Final = 502


@dataclass(frozen=True, slots=True)
class Described:
    """Options as given: ``bauds``, ``parities`` and ``protocols`` may name several where a command tries them."""

    device: str | None
    host: str | None
    port: int | None
    protocols: tuple[Protocol, ...]
    bauds: tuple[int, ...]
    parities: tuple[Parity, ...]
    stop_bits: int
    timeout_s: float | None

    @property
    def is_given(self) -> bool:
        return self.device is not None or self.host is not None

    def line(self, protocol: Protocol, setting: SerialSetting | None, *, timeout_s: float, quarantine_s: float) -> Line:
        """``setting``: None behind a TCP port whose speed nobody told."""
        times = (self.timeout_s or timeout_s, quarantine_s)
        if self.device is not None:
            assert setting is not None
            return Line("line", protocol, SerialEndpoint(self.device, setting), *times)
        assert self.host is not None
        port = self.port or MODBUS_TCP_PORT
        return Line("line", protocol, TcpEndpoint(self.host, port), *times, setting)

    def one_line(self) -> Line:
        """For a command that needs to know it all. Raises click.UsageError."""
        if len(self.protocols) != 1:
            raise click.UsageError(f"--protocol: one of {', '.join(PROTOCOLS)} expected")
        (protocol,) = self.protocols
        if self.device is not None and protocol in ("modbus-tcp", "modbus-rtu-over-tcp"):
            raise click.UsageError(f"--protocol {protocol}: needs --host and --port, not --device")
        usual = SerialSetting(2400, "E") if protocol.startswith("dlt645") else SerialSetting(9600, "N")
        setting = None
        if self.device is not None or self.bauds:
            baud = self.bauds[0] if self.bauds else usual.baud
            parity = self.parities[0] if self.parities else usual.parity
            setting = SerialSetting(baud, parity, self.stop_bits)
        return self.line(protocol, setting, timeout_s=1.0, quarantine_s=0.5)


def line_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options, and hands them over as ``described``."""

    @click.option("--device", metavar="PATH", help="A serial device, such as /dev/ttyUSB0.")
    @click.option("--host", help="A meter, gateway or serial server on the network.")
    @click.option("--port", type=click.IntRange(1, 65_535), help="Its port; 502 where not given.")
    @click.option("--protocol", "protocols", type=click.Choice(PROTOCOLS), multiple=True, help="What is spoken there.")
    @click.option("--baud", "bauds", type=click.IntRange(300, 921_600), multiple=True, help="Bits per second.")
    @click.option("--parity", "parities", type=click.Choice(["N", "E", "O"]), multiple=True)
    @click.option("--stop-bits", type=click.IntRange(1, 2), default=1, show_default=True)
    @click.option("--timeout", "timeout_s", type=click.FloatRange(0.01, 60), help="Seconds a meter may take to answer.")
    @wraps(command)
    def with_options(
        *args: Any,
        device: str | None,
        host: str | None,
        port: int | None,
        protocols: tuple[str, ...],
        bauds: tuple[int, ...],
        parities: tuple[str, ...],
        stop_bits: int,
        timeout_s: float | None,
        **others: Any,
    ) -> None:
        if device is not None and (host is not None or port is not None):
            raise click.UsageError("--device, or --host and --port; not both")
        if port is not None and host is None:
            raise click.UsageError("--port needs --host")
        described = Described(
            device, host, port, cast(tuple[Protocol, ...], protocols), bauds, cast(tuple[Parity, ...], parities),
            stop_bits, timeout_s,
        )  # fmt: skip
        command(*args, described=described, **others)

    return with_options


def load_site(path: Path) -> Site:
    """Prints the problems and ends with exit 1 where there are some."""
    found = load(path, os.environ, offline=True)
    if isinstance(found, Site):
        return found
    for problem in found:
        click.echo(str(problem), err=True)
    raise Failed(f"{path.name} is not fine; the whole list: meterctl check {path}")


def line_of(site: Site, name: str | None) -> tuple[Line, tuple[Meter, ...]]:
    """The line called ``name``, or the only one. Raises click.UsageError."""
    lines = {line.name: (line, meters) for line, meters in site.lines}
    if name is None and len(lines) == 1:
        return next(iter(lines.values()))
    if name not in lines:
        raise click.UsageError(f"--line: one of {', '.join(lines)} expected" + (f', got "{name}"' if name else ""))
    return lines[name]


class Failed(click.ClickException):
    """Ends a command with exit 1; the text says what, where, and what to do."""

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"meterctl: {self.message}", err=True, file=file)
