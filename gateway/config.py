"""The site file of one gateway, checked whole before anything starts: all problems, not the first.

Addresses and secrets may or must come from the environment: ``GRIDLOOM_MQTT_URL`` and ``GRIDLOOM_TEMPLATES`` (a folder
of meter templates) override the file;
``GRIDLOOM_MQTT_PASSWORD``, ``GRIDLOOM_645_PASSWORD`` and the TLS files are never in it.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.budget import budget
from edge.model import Line, Meter, Parity, Protocol, Role, SerialEndpoint, SerialSetting, TcpEndpoint
from gateway.clocks.policy import Rules
from gateway.uplink import Broker
from protocols import templates

URL_VARIABLE: Final = "GRIDLOOM_MQTT_URL"
PASSWORD_VARIABLE: Final = "GRIDLOOM_MQTT_PASSWORD"  # noqa: S105  a name, not a secret
TEMPLATES_VARIABLE: Final = "GRIDLOOM_TEMPLATES"
DLT645_VARIABLE: Final = "GRIDLOOM_645_PASSWORD"
TLS_VARIABLES: Final = {"ca": "GRIDLOOM_MQTT_CA", "certificate": "GRIDLOOM_MQTT_CERT", "key": "GRIDLOOM_MQTT_KEY"}

# What the MQTT contract takes as a name, in topics and batches.
Name: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class GatewaySection(_Section):
    name: Name
    data_dir: str = "."  # relative to the site file


class UplinkSection(_Section):
    url: str | None = None


class PollSection(_Section):
    # Energy comes from the meters' load profiles, and those are kept at 15 min.
    interval_s: Literal[900] = 900


class BackfillSection(_Section):
    days: int = Field(35, ge=0, le=366)


class QueueSection(_Section):
    bytes_max: int = Field(2_000_000_000, ge=4_000_000)  # ~30 days of 100 meters; a smaller disk may take less


class ClocksSection(_Section):
    """Clocks are measured each day in any case; setting one moves meter data, so a person decides, or says who may."""

    correct: Literal["never", "asked", "policy"] = "asked"  # asked: by the command sync_clock; policy: also by itself
    trust: Literal["ntp", "always"] = "ntp"  # ntp: sets no clock while the kernel's own follows no time server
    limit_s: float = Field(60.0, ge=5, le=3_600, strict=False)  # past it rows are suspect: 7 % of an interval
    # Good meters keep 0.5 s a day at room temperature; in a hot or cold cabinet a few.
    drift_limit_s_per_day: float = Field(5.0, ge=0.5, le=3_600, strict=False)


class TemplatesSection(_Section):
    directory: str | None = None  # relative to the site file; its tables go before ours


class LineSection(_Section):
    """``host`` and ``port``, or ``device``. The serial settings are a device's, or say what is behind a TCP server.

    Where these are known, ``read_timeout_s`` is only what a meter may take to begin (DL/T 645: 0.5 s), and a late
    answer is waited for as long again.
    """

    name: Name
    protocol: Protocol
    host: str | None = Field(None, min_length=1)
    port: int | None = Field(None, ge=1, le=65_535)
    device: str | None = Field(None, min_length=1)
    baud: int | None = Field(None, ge=300, le=921_600)
    parity: Parity | None = None
    stop_bits: Literal[1, 2] = 1
    data_bits: Literal[7, 8] = 8  # 7 only with modbus-ascii
    read_timeout_s: float | None = Field(None, gt=0, le=60, strict=False)
    quarantine_s: float | None = Field(None, ge=0, le=60, strict=False)


class MeterSection(_Section):
    name: Name
    line: str
    address: str
    template: str
    utc_offset_h: float = Field(8.0, ge=-12, le=14, strict=False)
    controllable: bool = False
    role: Role = "customer"


@dataclass(frozen=True, slots=True)
class Problem:
    """``where`` is a path in the file, such as ``meter[3].address``, or an environment variable."""

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.file, self.where, self.what) if part)


@dataclass(frozen=True, slots=True)
class Site:
    """A gateway's site, checked. ``lines``: each with the meters behind it."""

    gateway: str
    data_dir: Path
    broker: Broker
    interval_s: int
    backfill_days: int
    queue_bytes_max: int
    lines: tuple[tuple[Line, tuple[Meter, ...]], ...]
    dlt645_password: str | None = field(default=None, repr=False)
    clocks: Rules = field(default_factory=Rules)

    @property
    def meters(self) -> tuple[Meter, ...]:
        return tuple(meter for _, meters in self.lines for meter in meters)


def load(
    path: Path, environment: Mapping[str, str], *, offline: bool = False, text: str | None = None
) -> Site | list[Problem]:
    """The site in ``path``, or everything that is wrong with it.

    ``offline``: secrets need not be set. ``text``: instead of what is in the file, as if it were there.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8") if text is None else text)
    except (OSError, UnicodeDecodeError) as error:
        return [Problem(path.name, "", f"cannot be read: {getattr(error, 'strerror', None) or error}")]
    except (ValueError, RecursionError) as error:  # also numbers and nesting beyond what Python reads
        return [Problem(path.name, "", f"is not TOML: {error}")]
    return _Check(path, document, environment, offline).site()


S = TypeVar("S", bound=_Section)


class _Check:
    """One pass over a document that gathers problems."""

    def __init__(self, path: Path, document: dict[str, Any], environment: Mapping[str, str], offline: bool) -> None:
        self._path = path
        self._document = document
        self._environment = environment
        self._offline = offline
        self._problems: list[Problem] = []

    def site(self) -> Site | list[Problem]:
        known = ("gateway", "uplink", "poll", "backfill", "queue", "clocks", "templates", "line", "meter")
        for name in self._document:
            if name not in known:
                self._add(name, f"unknown section; known are {', '.join(known)}")
        gateway = self._table("gateway", GatewaySection)
        uplink = self._table("uplink", UplinkSection)
        poll = self._table("poll", PollSection)
        backfill = self._table("backfill", BackfillSection)
        queue = self._table("queue", QueueSection)
        clocks = self._table("clocks", ClocksSection)
        own = self._table("templates", TemplatesSection)
        lines = self._tables("line", LineSection)
        meters = self._tables("meter", MeterSection)
        self._unique("line", "name", ((i, line.name) for i, line in lines.items()))
        self._unique("meter", "name", ((i, meter.name) for i, meter in meters.items()))
        self._unique("meter", "address", ((i, f"{meter.address} on {meter.line}") for i, meter in meters.items()))
        self._unique("line", "device", ((i, line.device) for i, line in lines.items() if line.device))
        whole = {i: found for i, line in lines.items() if (found := self._line(f"line[{i}]", line))}
        made = self._meters(lines, meters, self._folder(own.directory if own else None))
        behind = {i: tuple(made[j] for j in made if meters[j].line == line.name) for i, line in whole.items()}
        for i, line in whole.items():
            plan = budget(line, behind[i], poll.interval_s) if poll else None
            if plan is not None and not plan.fits:
                self._add(f"line[{i}]", str(plan))
        broker = self._broker(gateway.name if gateway else "", uplink.url if uplink else None)
        dlt645_password = self._dlt645_password()
        if self._problems or not (gateway and broker and poll and backfill and queue and clocks):
            return self._problems
        return Site(
            gateway=gateway.name,
            data_dir=(self._path.parent / gateway.data_dir).resolve(),
            broker=broker,
            interval_s=poll.interval_s,
            backfill_days=backfill.days,
            queue_bytes_max=queue.bytes_max,
            lines=tuple((line, behind[i]) for i, line in whole.items()),
            dlt645_password=dlt645_password,
            clocks=Rules(clocks.correct, clocks.trust, clocks.limit_s, clocks.drift_limit_s_per_day),
        )

    # ---- the file ----------------------------------------------------------------------------------------------------

    def _add(self, where: str, what: str) -> None:
        self._problems.append(Problem(self._path.name, where, what))

    def _section(self, where: str, model: type[S], value: Any) -> S | None:
        if not isinstance(value, dict):
            self._add(where, "a table expected")
            return None
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for detail in error.errors():
                path = ".".join([where, *map(str, detail["loc"])])
                self._add(path, _say(detail["type"], detail.get("ctx", {}), detail["input"], model) or detail["msg"])
            return None

    def _table(self, name: str, model: type[S]) -> S | None:
        return self._section(name, model, self._document.get(name, {}))

    def _tables(self, name: str, model: type[S]) -> dict[int, S]:
        """Index in the file → section, without those that are wrong."""
        values = self._document.get(name, [])
        if not isinstance(values, list) or not values:
            self._add(name, f"at least one [[{name}]] expected")
            return {}
        sections = {i: self._section(f"{name}[{i}]", model, value) for i, value in enumerate(values)}
        return {i: section for i, section in sections.items() if section}

    def _unique(self, section: str, key: str, values: Iterable[tuple[int, str]]) -> None:
        seen: dict[str, int] = {}
        for i, value in values:
            if value in seen:
                self._add(f"{section}[{i}].{key}", f'"{value}" is {section}[{seen[value]}] already')
            seen.setdefault(value, i)

    def _folder(self, directory: str | None) -> Path | None:
        """Where the user's templates are; None where that is nowhere."""
        override = self._environment.get(TEMPLATES_VARIABLE)
        if not (override or directory):
            return None
        folder = Path(override) if override else self._path.parent / str(directory)
        try:
            templates.names(folder)
        except templates.TemplateError:
            file, where = ("", TEMPLATES_VARIABLE) if override else (self._path.name, "templates.directory")
            self._problems.append(Problem(file, where, "a folder expected" + _got(override or directory)))
            return None
        return folder

    def _line(self, where: str, line: LineSection) -> Line | None:
        """The line of a section, or None and its problems told."""
        before = len(self._problems)
        endpoint: TcpEndpoint | SerialEndpoint | None = None
        setting = None
        if line.baud is not None and line.parity is not None:
            setting = SerialSetting(line.baud, line.parity, line.stop_bits, line.data_bits)
            if line.data_bits == 7 and line.protocol != "modbus-ascii":
                self._add(f"{where}.data_bits", f"{line.protocol} needs 8")
        elif line.device or line.baud is not None or line.parity is not None:
            missing = "baud" if line.baud is None else "parity"
            self._add(f"{where}.{missing}", "is missing; a serial line states its baud and parity")
        if line.device and (line.host or line.port):
            self._add(where, "host and port, or device expected, got both")
        elif line.device:
            endpoint = SerialEndpoint(line.device, setting) if setting else None
            if line.protocol in ("modbus-tcp", "modbus-rtu-over-tcp"):
                self._add(f"{where}.device", f"{line.protocol} needs host and port; on a device speak modbus-rtu")
        elif line.host and line.port:
            endpoint = TcpEndpoint(line.host, line.port)
            if line.protocol == "modbus-rtu":
                self._add(f"{where}.protocol", 'through a TCP server it is "modbus-rtu-over-tcp"' + _got(line.protocol))
        elif line.host or line.port:
            self._add(f"{where}.{'port' if line.host else 'host'}", "is missing")
        else:
            self._add(where, "host and port, or device expected")
        if endpoint is None or len(self._problems) > before:
            return None
        delay_s = line.read_timeout_s or (0.5 if setting and line.protocol.startswith("dlt645") else 1.0)
        quarantine_s = (delay_s if setting else 0.5) if line.quarantine_s is None else line.quarantine_s
        return Line(line.name, line.protocol, endpoint, delay_s, quarantine_s, setting)

    def _meters(
        self, lines: Mapping[int, LineSection], meters: Mapping[int, MeterSection], folder: Path | None
    ) -> dict[int, Meter]:
        protocols = {line.name: line.protocol for line in lines.values()}
        lines_are_whole = len(lines) == len(self._document.get("line", []))
        made = {}
        for i, meter in meters.items():
            where = f"meter[{i}]"
            template = None
            try:
                template = templates.load(meter.template, folder)
            except templates.TemplateError as error:
                self._add(
                    f"{where}.template",
                    str(error).removeprefix(f'template "{meter.template}": '),
                )
            protocol = protocols.get(meter.line)
            if protocol is None:
                if lines_are_whole:  # otherwise the broken line is the problem, and it is told
                    self._add(f"{where}.line", f"one of {', '.join(protocols)} expected" + _got(meter.line))
                continue
            # A Modbus table is for any framing: that is the line's.
            spoken = ("modbus-tcp", "modbus") if protocol.startswith("modbus") else (protocol,)
            if template is not None and templates.protocol(template) not in spoken:
                what = f'"{meter.template}" speaks {templates.protocol(template)}, line "{meter.line}" {protocol}'
                self._add(f"{where}.template", what)
            if problem := _address_problem(protocol, meter.address):
                self._add(f"{where}.address", problem + _got(meter.address))
            elif template is not None:
                made[i] = Meter(meter.name, meter.address, template, meter.utc_offset_h, meter.controllable, meter.role)
        return made

    # ---- the environment ---------------------------------------------------------------------------------------------

    def _broker(self, gateway: str, url: str | None) -> Broker | None:
        override = self._environment.get(URL_VARIABLE)
        where, text = (URL_VARIABLE, override) if override else ("uplink.url", url)
        file = "" if override else self._path.name
        if not text:
            self._add("uplink.url", f"is missing, and {URL_VARIABLE} is not set")
            return None
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            self._problems.append(Problem(file, where, f"{error}{_got(text)}"))
            return None
        if parts.username or parts.password:
            self._problems.append(Problem(file, where, f"no user or password here; set {PASSWORD_VARIABLE}"))
        elif parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or parts.path.strip("/"):
            self._problems.append(Problem(file, where, f"mqtt://host:port or mqtts://host:port expected{_got(text)}"))
        password = self._environment.get(PASSWORD_VARIABLE, "")
        tls = parts.scheme == "mqtts"
        files = {name: self._environment.get(variable) or None for name, variable in TLS_VARIABLES.items()}
        if not (password or (tls and files["certificate"]) or self._offline):
            what = f"is not set; the broker's password of user {gateway or 'the gateway'}"
            what += f"; or set {TLS_VARIABLES['certificate']} and {TLS_VARIABLES['key']}" if tls else ""
            self._problems.append(Problem("", PASSWORD_VARIABLE, what))
        broker = Broker(parts.hostname or "", port or (8883 if tls else 1883), gateway, password, tls, **files)
        try:
            broker.tls_context()
        except OSError as error:
            what = f"{error}; a PEM file is missing or broken"
            self._problems.append(Problem("", ", ".join(TLS_VARIABLES.values()), what))
        return broker

    def _dlt645_password(self) -> str | None:
        text = self._environment.get(DLT645_VARIABLE) or None
        if text and not re.fullmatch(r"[0-9]{8}", text):  # never shown: it is a secret
            what = "8 digits expected, the level (02) first"
            self._problems.append(Problem("", DLT645_VARIABLE, what))
        return text


def _address_problem(protocol: Protocol, address: str) -> str | None:
    if protocol.startswith("dlt645"):
        return None if re.fullmatch(r"[0-9]{12}", address) else "12 digits expected"
    return None if re.fullmatch(r"[1-9][0-9]{0,2}", address) and int(address) <= 247 else "1 to 247 expected"


def _got(value: object) -> str:
    if isinstance(value, str):
        return f', got "{value[:80]}"'
    return f", got {str(value).lower() if isinstance(value, bool) else str(value)[:80]}"


def _say(kind: str, context: Mapping[str, Any], value: object, model: type[_Section]) -> str | None:
    """Pydantic's finding in our words; None where its own will do."""
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return f"unknown setting; known are {', '.join(model.model_fields)}"
        case "string_pattern_mismatch":
            return f'letters, digits, ".", "_", "-" expected, at most 63{_got(value)}'
        case "literal_error":
            return f"{context['expected']} expected{_got(value)}"
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            ((_, bound),) = context.items()
            word = {"greater_than": "more than", "less_than": "less than", "less_than_equal": "at most"}.get(kind)
            return f"{word or 'at least'} {bound} expected{_got(value)}"
        case "string_type":
            return f"text in quotes expected{_got(value)}"
        case "int_type" | "float_type" | "bool_type":
            words = {"int_type": "a whole number", "float_type": "a number", "bool_type": "true or false"}
            return f"{words[kind]} expected{_got(value)}"
    return None
