"""``meterctl sniff``: listens on a line, never writes, and explains every frame that passes.

Whoever talks there is not asked: requests and replies are told apart by what they say, and paired, so that a question
nobody answered shows. Bytes that are no frame are shown as they are, with what is wrong with them.
"""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Protocol, TextIO, TypeAlias

import click
import msgspec

from edge.bus import Bus
from edge.link import LinkError, link
from edge.model import Line
from edge.model import Protocol as LineProtocol
from gateway import decode, local
from gateway.lines import Described, Failed, line_of, line_options, load_site
from gateway.local import Answers, LocalAgent, LocalError
from protocols import dlt645, modbus
from protocols.clock import Clock, SystemClock
from protocols.framing import FrameError, Garbage, StreamDecoder
from protocols.modbus.length import reply_bytes, request_bytes
from protocols.templates import ModbusFamily

Direction: TypeAlias = Literal["out", "in", ""]  # as the agent sees it; "" where nobody knows
Kind: TypeAlias = Literal["request", "reply", "echo", "garbage"]
AnyFrame: TypeAlias = dlt645.Frame | modbus.Frame

SILENCE_S: Final = 0.25  # adapters and serial servers deliver late, so a shorter pause ends no frame
CHUNKS_MAX: Final = 10_000  # between the line and a slow reader
TALKERS_MAX: Final = 1_000  # 645 addresses have 12 digits, and noise makes one up now and then


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """One frame, or bytes that are none. ``waited_ms``: of a reply, since its request was heard.

    ``raw``: hexadecimal, without the bytes FEH that wake a receiver. ``says``: for people, one line each.
    """

    at: datetime
    direction: Direction
    kind: Kind
    who: str
    raw: str
    says: tuple[str, ...]
    waited_ms: float | None = None


class Talker(msgspec.Struct):
    """What was heard of one meter: requests to it, replies from it."""

    who: str
    requests: int = 0
    replies: int = 0
    unanswered: int = 0
    refused: int = 0
    reply_mean_ms: float | None = None
    reply_max_ms: float | None = None


class Statistics(msgspec.Struct, kw_only=True):
    seconds: float = 0.0
    octets: int = 0
    frames: int = 0
    unanswered: int = 0
    checksum_failures: int = 0
    garbage_octets: int = 0
    silence_max_s: float = 0.0
    talkers: tuple[Talker, ...] = ()


@dataclass(frozen=True, slots=True)
class Overheard:
    """What a frame is to a listener. ``answers``: the open question; ``expects``: an answer."""

    kind: Kind
    who: str
    raw: bytes
    says: tuple[str, ...]
    answers: bool = False
    expects: bool = False
    is_refusal: bool = False


class Language(Protocol):
    def decoder(self) -> "StreamDecoder[dlt645.Frame] | StreamDecoder[modbus.Frame]": ...

    def overhear(self, frame: AnyFrame, asked: AnyFrame | None, direction: Direction) -> Overheard:
        """``asked``: the question that is open."""
        ...

    def flaw(self, raw: bytes) -> tuple[str, bool]:
        """Why ``raw`` is no frame, and whether only its checksum is wrong."""
        ...


class Listener:
    """Bytes in, explained frames out. ``families``: what the Modbus units are, by number, to name their registers."""

    def __init__(
        self, protocol: LineProtocol, started: datetime, families: Mapping[int, ModbusFamily] | None = None
    ) -> None:
        self._language: Language = (
            Dlt645Language() if protocol.startswith("dlt645") else ModbusLanguage(protocol, families or {})
        )
        self._decoders: dict[Direction, StreamDecoder[dlt645.Frame] | StreamDecoder[modbus.Frame]] = {}
        self._started = self._last = started
        self._asked: tuple[AnyFrame, str, datetime] | None = None  # who was asked what, and when
        self._counts = Statistics()
        self._talkers: dict[str, Talker] = {}
        self._replies_timed: dict[str, int] = {}

    def hear(self, at: datetime, raw: bytes, direction: Direction = "") -> list[Heard]:
        self._counts.silence_max_s = max(self._counts.silence_max_s, (at - self._last).total_seconds())
        self._counts.octets += len(raw)
        self._last = at
        if direction not in self._decoders:
            self._decoders[direction] = self._language.decoder()
        return [self._tell(at, direction, event) for event in self._decoders[direction].feed(raw)]

    def fall_silent(self) -> list[Heard]:
        """Nothing came for SILENCE_S: what is left is no frame."""
        return [
            self._tell(self._last, direction, event)
            for direction, decoder in self._decoders.items()
            for event in decoder.flush()
        ]

    def statistics(self, now: datetime) -> Statistics:
        """So far. A question asked less than a second ago may still be answered."""
        silence_s = (now - self._last).total_seconds()
        counts = msgspec.structs.replace(
            self._counts,
            seconds=(now - self._started).total_seconds(),
            silence_max_s=max(self._counts.silence_max_s, silence_s),
            talkers=tuple(sorted(self._talkers.values(), key=lambda talker: talker.who)),
        )
        if self._asked is not None and (now - self._asked[2]).total_seconds() > 1:
            counts.unanswered += 1
        return counts

    def _tell(self, at: datetime, direction: Direction, event: AnyFrame | Garbage) -> Heard:
        if isinstance(event, Garbage):
            says, is_checksum = self._language.flaw(event.raw)
            self._counts.garbage_octets += len(event.raw)
            self._counts.checksum_failures += is_checksum
            raw = event.raw.hex(" ").upper()
            return Heard(at=at, direction=direction, kind="garbage", who="", raw=raw, says=(says,))
        it = self._language.overhear(event, self._asked[0] if self._asked else None, direction)
        self._counts.frames += 1
        says_all, waited_ms = it.says, None
        if it.kind == "request":
            self._count_request(at, event, it)
        elif it.kind == "reply" and it.answers and self._asked is not None:
            waited_ms = round((at - self._asked[2]).total_seconds() * 1000, 1)
            self._asked = None
        elif it.kind == "reply":
            whom = f"it is no answer to the question to {self._asked[1]}" if self._asked else "nobody asked for it"
            says_all = (*says_all, f"{whom}: a late reply, or a meter that is not meant")
        if it.kind == "reply":
            self._count_reply(it, waited_ms)
        raw = it.raw.hex(" ").upper()
        return Heard(
            at=at, direction=direction, kind=it.kind, who=it.who, raw=raw, says=says_all, waited_ms=waited_ms
        )  # fmt: skip

    def _count_request(self, at: datetime, frame: AnyFrame, it: Overheard) -> None:
        if self._asked is not None:
            self._counts.unanswered += 1
            self._talker(self._asked[1]).unanswered += 1
        self._talker(it.who).requests += 1
        self._asked = (frame, it.who, at) if it.expects else None

    def _count_reply(self, it: Overheard, waited_ms: float | None) -> None:
        talker = self._talker(it.who)
        talker.replies += 1
        talker.refused += it.is_refusal
        if waited_ms is not None:
            number = self._replies_timed[talker.who] = self._replies_timed.get(talker.who, 0) + 1
            mean = talker.reply_mean_ms or 0.0
            talker.reply_mean_ms = mean + (waited_ms - mean) / number
            talker.reply_max_ms = max(talker.reply_max_ms or 0.0, waited_ms)

    def _talker(self, who: str) -> Talker:
        if who not in self._talkers and len(self._talkers) >= TALKERS_MAX:
            who = "others"
        return self._talkers.setdefault(who, Talker(who))


# ---- DL/T 645 --------------------------------------------------------------------------------------------------------


class Dlt645Language:
    def decoder(self) -> StreamDecoder[dlt645.Frame]:
        return dlt645.Decoder()

    def overhear(self, frame: AnyFrame, asked: AnyFrame | None, direction: Direction) -> Overheard:
        assert isinstance(frame, dlt645.Frame)
        raw = dlt645.encode(frame, preamble=0)
        if direction == "in" and frame == asked:
            return Overheard("echo", "", raw, ("the adapter hears what it sends",))
        says = (decode.headline(frame), *decode.says(frame))
        if not frame.is_reply:
            silent = (dlt645.Function.BROADCAST_TIME,)
            expects = frame.address != dlt645.BROADCAST and frame.function not in silent
            return Overheard("request", frame.address, raw, says, expects=expects)
        answers = isinstance(asked, dlt645.Frame) and dlt645.is_answer(asked, frame)
        return Overheard("reply", frame.address, raw, says, answers=answers, is_refusal=frame.is_abnormal)

    def flaw(self, raw: bytes) -> tuple[str, bool]:
        start = raw.find(b"\x68")
        if start < 0 or len(raw) - start < 12:
            return "no frame of DL/T 645", False
        found = dlt645.decode_one(raw[start:])
        if isinstance(found, dlt645.Frame):
            return "a frame inside another one that never ended", False
        return f"no frame: {decode.FLAWS[found.error]} ({found.detail})", found.error == "checksum"


# ---- Modbus ----------------------------------------------------------------------------------------------------------

_READS: Final = {1: "coils", 2: "discrete inputs", 3: "holding registers", 4: "input registers"}
_MIRRORED: Final = (modbus.Function.WRITE_COIL, modbus.Function.WRITE_ONE)


class ModbusLanguage:
    def __init__(self, protocol: LineProtocol, families: Mapping[int, ModbusFamily]) -> None:
        self._protocol = protocol
        self._families = families

    def decoder(self) -> StreamDecoder[modbus.Frame]:
        if self._protocol == "modbus-tcp":
            return modbus.TcpDecoder()
        return modbus.AsciiDecoder() if self._protocol == "modbus-ascii" else modbus.RtuDecoder()

    def overhear(self, frame: AnyFrame, asked: AnyFrame | None, direction: Direction) -> Overheard:
        assert isinstance(frame, modbus.Frame)
        raw = self._encode(frame)
        if direction == "in" and frame == asked and frame.pdu[0] not in _MIRRORED:
            return Overheard("echo", "", raw, ("the adapter hears what it sends",))
        question = asked if isinstance(asked, modbus.Frame) else None
        answers = question is not None and modbus.is_serial_answer(question, frame)
        who = f"unit {frame.unit}"
        is_request = direction == "out" or (not direction and not answers and _may_be_request(frame.pdu))
        if is_request:
            says = (f"{who} {_question(frame.pdu)}",)
            return Overheard("request", who, raw, says, expects=frame.unit != modbus.BROADCAST)
        is_refusal = bool(frame.pdu[0] & 0x80)
        values = self._values(frame, question if answers else None)
        told = (f"{who} {_reply_name(frame.pdu)}", *values)
        return Overheard("reply", who, raw, told, answers=answers, is_refusal=is_refusal)

    def flaw(self, raw: bytes) -> tuple[str, bool]:
        if self._protocol == "modbus-ascii":
            is_whole = raw.startswith(b":") and raw.endswith(b"\r\n")
            return ("no frame: its LRC is wrong", True) if is_whole else ("no frame of Modbus ASCII", False)
        if self._protocol == "modbus-tcp" or len(raw) < 4:
            return "no frame of Modbus", False
        lengths = {request_bytes(raw[1:]), reply_bytes(raw[1:])}
        if len(raw) - 3 in lengths and raw[0] <= modbus.UNIT_MAX:
            want = modbus.crc16(raw[:-2]).to_bytes(2, "little").hex(" ").upper()
            return f"no frame: CRC {want} expected, got {raw[-2:].hex(' ').upper()}", True
        return "no frame of Modbus RTU", False

    def _encode(self, frame: modbus.Frame) -> bytes:
        encoders = {"modbus-tcp": modbus.encode, "modbus-ascii": modbus.encode_ascii}
        return encoders.get(self._protocol, modbus.encode_rtu)(frame)

    def _values(self, frame: modbus.Frame, question: modbus.Frame | None) -> tuple[str, ...]:
        """The registers of a reply, by the question's address: named where the family of the unit is known."""
        if question is None or frame.pdu[0] not in (3, 4):
            return ()
        try:
            first, count = modbus.decode_read(question.pdu)
            data = modbus.decode_read_reply(frame.pdu, count)
        except FrameError:
            return ()
        family = self._families.get(frame.unit)
        named = []
        for value in family.values if family else ():
            at = value.address - first
            if family is None or family.function_of(value) != frame.pdu[0] or at < 0 or at + value.count > count:
                continue
            try:
                shown = family.decode(value, data[2 * at : 2 * (at + value.count)])
            except FrameError as error:
                shown = str(error)
            number = f"{shown:.7g}" if isinstance(shown, float) else shown
            named.append(f"0x{value.address:04X} {value.key} = {'none' if number is None else number}")
        if named:
            return tuple(named)
        words = [data[i : i + 2].hex().upper() for i in range(0, len(data), 2)]
        return (f"0x{first:04X}: {' '.join(words)}",)


def _may_be_request(pdu: bytes) -> bool:
    return not pdu[0] & 0x80 and request_bytes(pdu) == len(pdu)


def _question(pdu: bytes) -> str:
    if pdu[0] in _READS and len(pdu) == 5:
        first, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        return f"is asked for {count} {_READS[pdu[0]]} from 0x{first:04X}"
    try:
        if pdu[0] in (modbus.Function.WRITE_ONE, modbus.Function.WRITE_MANY):
            address, data = modbus.decode_write(pdu)
            return f"is told to write 0x{address:04X}: {data.hex(' ', 2).upper()}"
        if pdu[0] in (modbus.Function.WRITE_COIL, modbus.Function.WRITE_COILS):
            address, bits = modbus.decode_write_coils(pdu)
            return f"is told to write coils from 0x{address:04X}: {' '.join('01'[bit] for bit in bits)}"
        if pdu[0] == modbus.Function.ENCAPSULATED:
            modbus.decode_identify(pdu)
            return "is asked who it is (43/14)"
    except FrameError as error:
        return f"is asked function {pdu[0]}, wrongly: {error}"
    return f"is asked function {pdu[0]}"


def _reply_name(pdu: bytes) -> str:
    if pdu[0] & 0x80:
        code = pdu[1] if len(pdu) > 1 else 0
        known = {int(fault): fault.name.lower().replace("_", " ") for fault in modbus.Fault}
        return f"refuses function {pdu[0] & 0x7F}: {known.get(code, 'unknown exception')} ({code})"
    if pdu[0] in _READS and len(pdu) > 1:
        return f"answers with {pdu[1]} bytes of {_READS[pdu[0]]}"
    if pdu[0] == modbus.Function.ENCAPSULATED:
        try:
            objects = modbus.decode_identify_reply(pdu).objects
        except FrameError:
            return "answers function 43"
        return "says who it is: " + ", ".join(text.decode("ascii", "replace") for text in objects.values())
    return f"confirms function {pdu[0]}"


# ---- listening -------------------------------------------------------------------------------------------------------


class Sniff(msgspec.Struct, tag_field="op", tag="sniff", frozen=True):
    line: str
    seconds: float


class Chunk(msgspec.Struct, frozen=True):
    """Bytes as they came; none says that the line fell silent."""

    at: datetime
    direction: Direction
    raw: bytes


async def answer(buses: Mapping[str, Bus], clock: Clock, question: Sniff) -> Answers:
    """The agent's side."""
    if question.line not in buses:
        raise LocalError(f'"{question.line}": one of {", ".join(buses)} expected')
    heard = _Heard(clock)
    untap = buses[question.line].tap(lambda event: heard.put(event.raw, event.direction))
    try:
        async for chunk in heard.chunks(question.seconds):
            yield chunk
    finally:
        untap()


async def listen(line: Line, seconds: float) -> AsyncGenerator[Chunk, None]:
    """Opens ``line`` and writes nothing to it. Raises LinkError, also when it is lost."""
    heard = _Heard(SystemClock())
    lost = asyncio.Event()
    opened = link(line, on_chunk=lambda raw: heard.put(raw, ""), on_lost=lost.set)
    await opened.connect()
    try:
        async for chunk in heard.chunks(seconds):
            yield chunk
            if lost.is_set():
                await opened.connect()
                lost.clear()
    finally:
        opened.close()


class _Heard:
    """Between a callback and a generator; what nobody takes in time is dropped, so that memory stays bounded."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._chunks: asyncio.Queue[Chunk] = asyncio.Queue(CHUNKS_MAX)

    def put(self, raw: bytes, direction: Direction) -> None:
        with suppress(asyncio.QueueFull):
            self._chunks.put_nowait(Chunk(self._clock.now(), direction, raw))

    async def chunks(self, seconds: float) -> AsyncGenerator[Chunk, None]:
        """For so long; 0 is for ever. An empty one for each SILENCE_S without bytes."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + seconds if seconds else math.inf
        while (left_s := end_s - loop.time()) > 0:
            try:
                async with asyncio.timeout(min(SILENCE_S, left_s)):
                    chunk = await self._chunks.get()
            except TimeoutError:
                chunk = Chunk(self._clock.now(), "", b"")
            yield chunk


# ---- a capture -------------------------------------------------------------------------------------------------------


def capture_line(chunk: Chunk) -> str:
    """One line of a capture file: when, which way ("-" where nobody knows), the bytes."""
    return f"{chunk.at.isoformat()} {chunk.direction or '-'} {chunk.raw.hex(' ')}\n"


def capture_head(line: Line) -> str:
    setting = f" setting={line.setting}" if line.setting else ""
    return f"# meterctl sniff protocol={line.protocol} endpoint={line.endpoint}{setting}\n"


def read_capture(text: str) -> list[Chunk]:
    """Inverse of ``capture_line``; lines that begin with # and empty ones are left out. Raises ValueError."""
    chunks: list[Chunk] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            at, direction, raw = line.split(None, 2)
            way = _DIRECTIONS[direction]
            chunks.append(Chunk(datetime.fromisoformat(at), way, bytes.fromhex(raw)))
        except (ValueError, KeyError) as error:
            raise ValueError(f'line {number}: a time, "in", "out" or "-", and hexadecimal bytes expected') from error
    return chunks


_DIRECTIONS: Final[dict[str, Direction]] = {"in": "in", "out": "out", "-": ""}


# ---- the command -----------------------------------------------------------------------------------------------------


@click.command(
    "sniff",
    epilog="""\b
Copy and run:
  meterctl sniff --device /dev/ttyUSB0 --protocol dlt645-2007 --baud 2400 --parity E
  meterctl sniff --device /dev/ttyUSB0 --protocol modbus-rtu --baud 9600 --parity N --seconds 60 --raw capture.txt
  meterctl sniff site.toml --line east --json
""",
)
@click.argument("site", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--line", "line_name", help="Which line of SITE.")
@line_options
@click.option("--seconds", type=click.FloatRange(min=0.1), help="How long; without it until Ctrl-C.")
@click.option("--raw", "raw_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the bytes here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per frame, and one at the end.")
def sniff_command(
    site: Path | None,
    line_name: str | None,
    described: Described,
    seconds: float | None,
    raw_path: Path | None,
    as_json: bool,
) -> None:
    """Listen on a line and explain what passes: requests and replies, by whom, how late, and what is no frame.

    Writes nothing to the line. Where the agent of SITE runs, it shows what it sends and hears; otherwise this command
    opens the line itself and hears whoever else talks there. Passwords in frames are shown. Ends with a summary.
    """
    if described.is_given == (site is not None):
        raise click.UsageError("SITE, or --device, or --host expected")
    agent: LocalAgent | None = None
    families: dict[int, ModbusFamily] = {}
    if site is None:
        line = described.one_line()
    else:
        loaded = load_site(site)
        line, meters = line_of(loaded, line_name)
        families = {int(it.address): it.template for it in meters if isinstance(it.template, ModbusFamily)}
        try:
            agent = local.connect(loaded)
        except LocalError as error:
            raise Failed(str(error)) from error
    if agent is None and line.protocol == "modbus-tcp":
        raise Failed("a Modbus TCP connection cannot be overheard from beside; start the agent: meterctl run SITE")
    setting = f" at {line.setting}" if line.setting else ""
    how = f"through {agent}" if agent else f"over {line.endpoint}{setting}, opened for this"
    click.echo(f"listening {how}; {'Ctrl-C ends' if not seconds else f'{seconds:g} s'}", err=True)
    raw_file = None
    try:
        raw_file = raw_path.open("w", encoding="utf-8") if raw_path else None
    except OSError as error:
        raise Failed(f"{raw_path}: {error.strerror}") from error
    sink = _Sink(line, families, as_json, raw_file)
    if raw_file is not None:
        raw_file.write(capture_head(line))
    problem = ""
    try:
        if agent is not None:
            for chunk in agent.ask(Sniff(line.name, seconds or 0), Chunk):
                sink.take(chunk)
        else:
            asyncio.run(_listen(line, seconds or 0, sink))
    except KeyboardInterrupt:
        pass
    except (LocalError, LinkError) as error:
        problem = str(error)
    finally:
        if raw_file is not None:
            raw_file.close()
    sink.end()
    if problem:
        raise Failed(problem)


async def _listen(line: Line, seconds: float, sink: "_Sink") -> None:
    async with aclosing(listen(line, seconds)) as chunks:
        async for chunk in chunks:
            sink.take(chunk)


class _Sink:
    """Times are those of the chunks: an agent may run on another clock than this process (a demo does)."""

    def __init__(
        self, line: Line, families: Mapping[int, ModbusFamily], as_json: bool, raw_file: TextIO | None
    ) -> None:
        self._line = line
        self._families = families
        self._as_json = as_json
        self._raw_file = raw_file
        self._listener: Listener | None = None
        self._now = datetime.now(UTC)

    def take(self, chunk: Chunk) -> None:
        self._now = chunk.at
        if self._listener is None:
            self._listener = Listener(self._line.protocol, chunk.at, self._families)
        if not chunk.raw:
            self._print(self._listener.fall_silent())
            return
        if self._raw_file is not None:
            self._raw_file.write(capture_line(chunk))
        self._print(self._listener.hear(chunk.at, chunk.raw, chunk.direction))

    def end(self) -> None:
        listener = self._listener or Listener(self._line.protocol, self._now, self._families)
        self._print(listener.fall_silent())
        counts = listener.statistics(self._now)
        if self._as_json:
            click.echo(json.dumps({"summary": msgspec.to_builtins(counts)}, ensure_ascii=False))
        else:
            click.echo("\n".join(summary_lines(counts)))

    def _print(self, heard: Iterable[Heard]) -> None:
        for it in heard:
            if self._as_json:
                click.echo(json.dumps(msgspec.to_builtins(it), ensure_ascii=False))
            else:
                click.echo("\n".join(heard_lines(it)))


_ARROWS: Final = {"request": ">", "reply": "<", "echo": "=", "garbage": "?"}


def heard_lines(it: Heard) -> Iterator[str]:
    waited = f"  after {it.waited_ms:.0f} ms" if it.waited_ms is not None else ""
    stamp = f"{it.at.astimezone():%H:%M:%S.%f}"[:-3]
    yield f"{stamp} {_ARROWS[it.kind]} {it.raw}{waited}"
    for text in it.says:
        yield f"{' ' * 15}{text}"


def summary_lines(counts: Statistics) -> Iterator[str]:
    yield (
        f"{counts.seconds:.0f} s: {counts.frames} frames in {counts.octets} bytes, {counts.unanswered} questions not "
        f"answered, {counts.checksum_failures} wrong checksums, {counts.garbage_octets} bytes that are no frame, "
        f"longest silence {counts.silence_max_s:.1f} s"
    )
    for talker in counts.talkers:
        times = ""
        if talker.reply_mean_ms is not None and talker.reply_max_ms is not None:
            times = f", after {talker.reply_mean_ms:.0f} ms on average, {talker.reply_max_ms:.0f} ms at most"
        yield (
            f"  {talker.who}: asked {talker.requests} times, answered {talker.replies}{times}, "
            f"not answered {talker.unanswered}, refused {talker.refused}"
        )
    if not counts.octets:
        yield "nothing was heard: is anybody asking? Check A and B, and that the adapter listens"
    elif not counts.frames:
        yield "no frame among what was heard: another speed, parity or protocol? Try: meterctl why --help"
