"""What is fuzzed: functions from any bytes to nothing, which raise only for a finding.

Each catches the exceptions that the docstrings of what it calls promise for a peer's bytes, and no others. The bytes of
a case are also its choices (``Case``), so that a fuzzer that follows coverage can learn them.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

import msgspec

from edge import plan
from edge.model import SerialSetting
from gateway import config, decode, sniff, why
from gateway.why.command import as_document, as_text
from protocols import dlt645, modbus, templates, uplink
from protocols.dlt645 import edition1997
from protocols.framing import GARBAGE_BYTES_MAX, FrameError, Garbage, MeterError, StreamDecoder
from protocols.quantities import ENERGY_NAMES, POWER_NAMES, Kind
from protocols.templates import ModbusFamily
from tests.gateway.test_queue import NOW, energy, power

BEIJING: Final = timezone(timedelta(hours=8))
T = TypeVar("T")
Seeds: TypeAlias = Iterator[bytes]


class Case:
    """The bytes of a case, used up from the front: choices first, then what the decoder gets."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def number(self, below: int) -> int:
        size = (below - 1).bit_length() // 8 + 1
        head, self.raw = self.raw[:size], self.raw[size:]
        return int.from_bytes(head, "little") % below

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[self.number(len(choices))]


@dataclass(frozen=True)
class Target:
    """``cost``: how many others a run of it takes the time of."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Seeds]
    bytes_max: int = 1_024
    cost: int = 1


# ---- streams ---------------------------------------------------------------------------------------------------------

Streams: TypeAlias = StreamDecoder[dlt645.Frame] | StreamDecoder[modbus.Frame]
FRAME_BYTES_MAX: Final = {dlt645.Decoder: 212, modbus.TcpDecoder: 260, modbus.RtuDecoder: 256, modbus.AsciiDecoder: 513}


def held(decoder: Streams) -> int:
    """Bytes a decoder keeps between two calls."""
    return sum(len(part) for part in vars(decoder).values() if isinstance(part, bytes | bytearray))


def check_held(decoder: Streams) -> None:
    # A frame that is not whole, noise that is not yet told, and the request whose echo is awaited.
    sent_bytes = 2 * modbus.RTU_BYTES_MAX + 1 if isinstance(decoder, modbus.SerialDecoder) else 0
    assert held(decoder) <= FRAME_BYTES_MAX[type(decoder)] + GARBAGE_BYTES_MAX + sent_bytes


def events_of(make: Callable[[], Streams], case: Case) -> list[object]:
    """The events of the bytes, which must not depend on how they were cut, nor on how often silence was told at the
    end; nothing is lost on the way, and little is kept."""
    sizes = [1 + case.number(64) for _ in range(4)]
    whole, pieces = make(), make()
    events: list[object] = [*whole.feed(case.raw)]
    check_held(whole)
    events += whole.flush()
    assert held(whole) == 0
    found: list[object] = []
    rest, i = case.raw, 0
    while rest:
        size = sizes[i % 4]
        found += pieces.feed(rest[:size])
        check_held(pieces)
        rest, i = rest[size:], i + 1
    found += pieces.flush()
    assert found == events
    garbage = [event.raw for event in events if isinstance(event, Garbage)]
    assert all(1 <= len(raw) <= 2 * modbus.RTU_BYTES_MAX + 1 for raw in garbage)
    assert sum(map(len, garbage)) <= len(case.raw)
    return events


def dlt645_stream(raw: bytes) -> None:
    events = events_of(dlt645.Decoder, Case(raw))
    frames = [event for event in events if isinstance(event, dlt645.Frame)]
    for frame in frames:
        use_645(frame)
    for one, other in pairwise(frames):
        if dlt645.is_answer(one, other):
            answered_645(one, other)


def use_645(frame: dlt645.Frame) -> None:
    """Everything that looks at a frame. The decoders of requests must take any: a meter hears what it hears."""
    assert dlt645.Decoder().feed(dlt645.encode(frame)) == [frame]
    assert dlt645.decode_one(dlt645.encode(frame)) == frame
    dlt645.function_name(frame)
    json.dumps(dlt645.explain(frame))
    dlt645.fault_names(frame)
    for read in (
        dlt645.decode_read,
        dlt645.decode_write,
        dlt645.decode_freeze,
        dlt645.decode_change_password,
        dlt645.decode_clear,
        edition1997.decode_read,
        edition1997.decode_write,
        edition1997.decode_change_password,
    ):
        refused(lambda read=read: read(frame))  # type: ignore[misc]
    refused(lambda: dlt645.decode_broadcast_time(frame, BEIJING))
    refused(lambda: dlt645.decode_relay(frame, BEIJING))
    refused(lambda: dlt645.decode_credentials(frame.data))
    refused(lambda: dlt645.decode_address(frame.data))
    refused(lambda: dlt645.decode_clock(frame.data[:4], frame.data[4:], BEIJING))
    refused(lambda: dlt645.decode_load_query(frame.data[4:], BEIJING))
    dlt645.decode_speed(frame.data)


def answered_645(request: dlt645.Frame, answer: dlt645.Frame) -> None:
    refused(lambda: dlt645.decode_reply(request, answer))
    if request.function in (dlt645.Function.READ, dlt645.Function1997.READ) and request.di_bytes:
        refused(lambda: dlt645.LongRead(request).take(answer))


def refused(call: Callable[[], T]) -> T | None:
    """A peer's bytes may be refused: None."""
    try:
        return call()
    except (FrameError, MeterError):
        return None


def modbus_stream(make: Callable[[], StreamDecoder[modbus.Frame]]) -> Callable[[bytes], None]:
    def run(raw: bytes) -> None:
        case = Case(raw)
        request = modbus.Frame(0, 1 + case.number(4), REQUESTS[case.number(len(REQUESTS))])
        listens = case.number(2)

        def decoder() -> StreamDecoder[modbus.Frame]:
            made = make()
            if isinstance(made, modbus.SerialDecoder) and not listens:
                made.sent(request)
            return made

        for event in events_of(decoder, case):
            if isinstance(event, modbus.Frame):
                modbus.is_answer(request, event)
                if modbus.is_serial_answer(request, event):
                    answered_modbus(request.pdu, event.pdu)

    return run


REQUESTS: Final = (
    modbus.encode_read(1, 5, 9),
    modbus.encode_read(2, 0, 2000),
    modbus.encode_read(3, 0, 2),
    modbus.encode_read(4, 0x48, 125),
    modbus.encode_write_coil(7, on=True),
    modbus.encode_write_one(7, 0x1234),
    modbus.encode_write_coils(7, [True] * 9),
    modbus.encode_write_many(7, b"\x12\x34\x56\x78"),
    modbus.encode_read_file([modbus.FileRange(1, 0, 10), modbus.FileRange(2, 10, 20)]),
    modbus.encode_identify(),
)


def answered_modbus(asked: bytes, pdu: bytes) -> None:
    """What a client does with a reply, right or wrong."""
    count = int.from_bytes(asked[3:5], "big")
    function = asked[0]
    if function in (1, 2):
        bits = refused(lambda: modbus.decode_bits_reply(pdu, count))
        assert bits is None or len(bits) == count
    elif function in (3, 4):
        data = refused(lambda: modbus.decode_read_reply(pdu, count))
        assert data is None or len(data) == 2 * count
    elif function == modbus.Function.READ_FILE:
        ranges = modbus.decode_read_file(asked)
        refused(lambda: modbus.decode_read_file_reply(pdu, ranges))
    elif function == modbus.Function.ENCAPSULATED:
        refused(lambda: modbus.decode_identify_reply(pdu))
    else:
        refused(lambda: modbus.check_write_reply(asked, pdu))


def modbus_pdu(raw: bytes) -> None:
    """Any bytes as a request to a meter, and as the reply to any request."""
    for read in (
        modbus.decode_read,
        modbus.decode_write,
        modbus.decode_write_coils,
        modbus.decode_read_file,
        modbus.decode_identify,
        modbus.decode_identify_reply,
        modbus.check_accepted,
    ):
        refused(lambda read=read: read(raw))  # type: ignore[misc]
    for asked in REQUESTS:
        answered_modbus(asked, raw)


# ---- values ----------------------------------------------------------------------------------------------------------

EDITIONS: Final[tuple[dlt645.Edition, ...]] = ("2007", "1997")
_DIS: Final = {"2007": sorted(dlt645.ITEMS), "1997": sorted(dlt645.ITEMS_1997)}
FAMILIES: Final = [template for name in templates.names() if isinstance(template := templates.load(name), ModbusFamily)]
PLANS: Final = [(family, plan.plan(family, frozenset(it.key for it in family.values))) for family in FAMILIES]


def dlt645_item(raw: bytes) -> None:
    case = Case(raw)
    edition = case.one_of(EDITIONS)
    known = case.number(8)  # else any identifier
    di = case.one_of(_DIS[edition]) if known else case.number(1 << 32)
    # Tariffs, settlement days and earlier records follow from the rows.
    di ^= case.number(0x10) << 8 * case.number(2) if case.number(4) == 0 else 0
    data = case.raw
    found = dlt645.decode_data(edition, di, data)
    if found.values and not found.ends_with_aa and not any(isinstance(it, str) for it in found.values):
        assert dlt645.encode_data(edition, di, found.values) == data
    if edition == "2007" and di in dlt645.ITEMS:
        item = dlt645.ITEMS[di]
        if len(item.group) == 1 and item.group[0].kind is dlt645.Kind.NUMBER:
            refused(lambda: dlt645.decode_item(di, data))
    for function in (0x91, 0x81, 0x94, 0x84, 0x14, 0x04, 0xB1, 0xB2):
        wide = di.to_bytes(4, "little")[: 2 if function & 0x1F < 0x10 else 4]
        use = dlt645.Frame("000000000161", function, (wide + data)[: dlt645.DATA_BYTES_MAX])
        json.dumps(dlt645.explain(use))
        list(decode.says(use))


def dlt645_records(raw: bytes) -> None:
    case = Case(raw)
    asked = case.number(7)
    blocks = refused(lambda: dlt645.decode_load_blocks(case.raw, class_asked=asked))
    if blocks is not None:
        again = dlt645.encode_load_blocks(blocks)
        assert dlt645.encode_load_blocks(dlt645.decode_load_blocks(again, class_asked=asked)) == again
    refused(lambda: dlt645.decode_load_records(case.raw, BEIJING))
    refused(lambda: dlt645.decode_load_query(case.raw, BEIJING))


def modbus_values(raw: bytes) -> None:
    case = Case(raw)
    name = case.one_of(sorted(modbus.TYPES))
    order = modbus.ORDERS[case.one_of(sorted(modbus.ORDERS))]
    octets = case.raw[: 2 * modbus.TYPES[name][1]].ljust(2 * modbus.TYPES[name][1], b"\0")
    value = refused(lambda: modbus.decode_value(octets, name, word_order=order.words, byte_order=order.bytes))
    if value is not None:
        again = modbus.encode_value(value, name, word_order=order.words, byte_order=order.bytes)
        assert modbus.decode_value(again, name, word_order=order.words, byte_order=order.bytes) == value
    refused(lambda: modbus.decode_text(case.raw, byte_order=order.bytes))
    refused(lambda: modbus.decode_scale(case.raw[:2]))


def modbus_plan(raw: bytes) -> None:
    """All registers of a family at once, from any answers; one that cannot be is refused, none is guessed."""
    case = Case(raw)
    family, made = case.one_of(PLANS)
    answers, at = [], 0
    for request in made.requests:
        answers.append(case.raw[at : at + 2 * request.count].ljust(2 * request.count, b"\0"))
        at += 2 * request.count
    values = refused(lambda: plan.decode(family, made, answers))
    if values is None:
        return
    assert values.keys() >= {it.key for it in family.values}
    for kind, wanted in ((Kind.ENERGY, ENERGY_NAMES), (Kind.POWER, POWER_NAMES)):
        row = uplink.Row("m1", NOW, NOW, None, 0, {name: values[name] for name in wanted if name in values})  # type: ignore[misc]
        uplink.encode_rows(gateway="gw-1", epoch="0" * 32, seq=1, kind=kind, sent_at=NOW, rows=[row])


# ---- documents -------------------------------------------------------------------------------------------------------


def template_text(raw: bytes) -> None:
    text = raw.decode(errors="replace")
    try:
        made = templates.parse(text, where="fuzz.toml")
    except templates.TemplateError:
        return
    if isinstance(made, ModbusFamily):
        for value in made.values:
            for filler in (b"\0", b"\xff", b"\x7f", b"\x01"):
                refused(lambda value=value, filler=filler: made.decode(value, filler * 2 * value.count))  # type: ignore[misc]
            if value.type != "ascii":
                value.step(1e300)


def site_text(raw: bytes) -> None:
    found = config.load(Path("site.toml"), {}, offline=True, text=raw.decode(errors="replace"))
    if isinstance(found, list):
        assert all(str(problem) for problem in found)


def batch(raw: bytes) -> None:
    case = Case(raw)
    content_type = case.one_of((uplink.MSGPACK, uplink.JSON, "text/plain"))
    try:
        made = uplink.decode_batch(case.raw, content_type)
    except uplink.PayloadError:
        return
    # What the ingestor relies on without asking again.
    for name, column in made.columns.items():
        view = memoryview(column).cast(uplink.COLUMN_TYPES[name])  # type: ignore[call-overload]
        assert len(view) == made.rows
    if made.kind is not Kind.EVENTS:
        assert max(memoryview(made.columns["meter_index"]).cast("H")) < len(made.meters)
    else:
        assert len(made.events) == made.rows


# What a document may hold where something else is expected.
ODD: Final[tuple[object, ...]] = (
    None, True, -1, 0, 1, 2**15, 2**31, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, 1e300, -0.0,
    "", "m1", "energy", "at", "x" * 100, "\x00", b"", b"\0" * 8, b"\xff" * 16, b"\x01" * 24, [], [None], [0] * 3, [0.5],
    {}, {"at": []},
)  # fmt: skip


KEYS: Final = ("version", "kind", "events", "valid", "columns", "quality", "x")


def changed(case: Case, document: object, depth: int = 0) -> object:
    """A document with something in it replaced, left out or put in."""
    inner: list[object] = list(document) if isinstance(document, dict | list) else []
    if not inner or depth > 4 or case.number(8) == 0:
        return case.one_of(ODD)
    at = case.number(len(inner))
    match document:
        case dict():
            made = dict(document)
            match case.number(6):
                case 0:
                    del made[inner[at]]
                case 1:
                    made[case.one_of(KEYS)] = case.one_of(ODD)
                case _:
                    made[inner[at]] = changed(case, made[inner[at]], depth + 1)
            return made
        case _:
            match case.number(6):
                case 0:
                    del inner[at]
                case 1:
                    inner += [case.one_of(ODD)] * (1 + case.number(20))
                case _:
                    inner[at] = changed(case, inner[at], depth + 1)
            return inner


def document(raw: bytes) -> None:
    """Batches and messages that are well-formed MessagePack or JSON and wrong in meaning: random bytes seldom are."""
    case = Case(raw)
    number = case.number(len(DOCUMENTS))
    made = DOCUMENTS[number][1]
    for _ in range(1 + case.number(4)):
        made = changed(case, made)
    kind = DOCUMENTS[number][0]
    packed = msgspec.msgpack.encode(made)
    if kind >= 0:
        message(bytes((kind,)) + packed)
        return
    batch(b"\0" + packed)
    batch(b"\1" + msgspec.json.encode(made))


MESSAGES: Final = (uplink.Receipt, uplink.Command, uplink.Reply, uplink.Status)


def message(raw: bytes) -> None:
    case = Case(raw)
    kind = case.one_of(MESSAGES)
    try:
        made = uplink.decode(case.raw, kind)  # type: ignore[arg-type]
    except uplink.PayloadError:
        return
    uplink.encode(made)


def topic(raw: bytes) -> None:
    text = raw.decode(errors="replace")
    try:
        gateway, last = uplink.split_topic(text)
    except uplink.PayloadError:
        return
    assert uplink.topic(gateway, last) == text


# ---- for people ------------------------------------------------------------------------------------------------------


def decode_line(raw: bytes) -> None:
    """``meterctl decode``: a line of text, as typed or pasted; or the bytes as hex."""
    case = Case(raw)
    is_text = case.number(2)
    line = decode.read_line(case.raw.decode(errors="replace") if is_text else case.raw.hex())
    json.dumps(decode.as_document(line))
    assert all(isinstance(text, str) for text in decode.as_text(line))
    decode.split_arguments(case.raw.decode(errors="replace").split())


LINES: Final = ("dlt645-2007", "dlt645-1997", "modbus-tcp", "modbus-rtu", "modbus-ascii", "modbus-rtu-over-tcp")
_DIRECTIONS: Final[tuple[sniff.Direction, ...]] = ("", "out", "in")


def sniffed(raw: bytes) -> None:
    """``meterctl sniff``: a line on which anything is said, by anybody."""
    case = Case(raw)
    protocol = case.one_of(LINES)
    families = dict(enumerate(FAMILIES, 1))
    at = datetime(2026, 3, 1, tzinfo=UTC)
    listener = sniff.Listener(protocol, at, families)  # type: ignore[arg-type]
    told: list[sniff.Heard] = []
    while case.raw:
        size, direction = 1 + case.number(80), case.one_of(_DIRECTIONS)
        at += timedelta(milliseconds=case.number(400))
        told += listener.hear(at, case.raw[:size], direction)
        case.raw = case.raw[size:]
    told += listener.fall_silent()
    for heard in told:
        msgspec.json.encode(heard)
    msgspec.json.encode(listener.statistics(at))


SETTINGS: Final = (None, SerialSetting(2400, "E"), SerialSetting(9600, "N"))


def wondered(raw: bytes) -> None:
    """``meterctl why``: anything that somebody captured, with or without what was asked and expected."""
    case = Case(raw)
    expected = why.Expectation(
        protocol=case.one_of((None, *LINES)),
        setting=case.one_of(SETTINGS),
        request=(b"", modbus.encode_rtu(modbus.Frame(0, 1, REQUESTS[2])), dlt645.encode(READ_645))[case.number(3)],
        value=case.one_of((None, 230.1, -5.0)),
    )
    verdicts = why.explain(case.raw, expected)
    assert verdicts
    assert all(0 <= verdict.confidence <= why.CONFIDENCE_MAX for verdict in verdicts)
    json.dumps([as_document(verdict) for verdict in verdicts])
    assert list(as_text(verdicts))


def captured(raw: bytes) -> None:
    assert len(why.read_capture(raw).raw) <= len(raw)


READ_645: Final = dlt645.read("000000000161", 0x00010000)


# ---- where to begin --------------------------------------------------------------------------------------------------


def shared_frames() -> list[bytes]:
    """Frames of the shared corpus, also the broken ones, where it is at hand."""
    path = Path(os.environ.get("GRIDLOOM_SHARED") or Path(__file__).resolve().parents[3] / "shared")
    corpus = path / "dlt645" / "frames.jsonl"
    if not corpus.is_file():
        return [FRAME_645]
    return [FRAME_645, *(bytes.fromhex(json.loads(line)["hex"]) for line in corpus.read_text().splitlines())]


FRAME_645: Final = bytes.fromhex("6861010000000068910833333433593333338A16")


def frames_645() -> Seeds:
    frames = shared_frames()
    for frame in frames:
        yield b"\x07\x3f\x01\x20" + frame
    for one, other in pairwise(frames):
        yield b"\x00\x10\x3f\x05" + one + other


def lines_645() -> Seeds:
    for frame in shared_frames():
        yield b"\x00" + frame
        yield b"\x01" + frame.hex(" ").encode()


def items_645() -> Seeds:
    for frame in shared_frames():
        found = dlt645.decode_one(frame)
        if isinstance(found, dlt645.Frame) and found.di is not None and found.di in _DIS[found.edition]:
            edition = EDITIONS.index(found.edition)
            place = _DIS[found.edition].index(found.di)
            width = (len(_DIS[found.edition]) - 1).bit_length() // 8 + 1
            choices = bytes((edition, 1)) + place.to_bytes(width, "little") + b"\x01"
            yield choices + found.data[found.di_bytes :]


def records_645() -> Seeds:
    for frame in shared_frames():
        found = dlt645.decode_one(frame)
        if isinstance(found, dlt645.Frame) and b"\xa0\xa0" in found.data:
            yield b"\x00" + found.data[found.di_bytes :]
    record = dlt645.LoadRecord(NOW, 10, 20, None, -30)
    yield b"\x04" + dlt645.encode_load_records([record, record], BEIJING)
    yield b"\x00" + dlt645.encode_load_query(3, NOW, BEIJING)


def pdus() -> Seeds:
    yield from REQUESTS
    yield modbus.encode_bits_reply(1, [True, False] * 5)[:4]
    yield modbus.encode_read_reply(3, b"\x01\x02\x03\x04")
    yield modbus.encode_exception(3, modbus.Fault.ILLEGAL_DATA_ADDRESS)
    yield modbus.encode_read_file_reply([bytes(20), bytes(40)])
    names = {0: b"Gridloom", 1: b"demo", 2: b"1.0", 0x80: b"x" * 100, 0x81: b"y" * 200}
    yield modbus.encode_identify_reply(modbus.Access.EXTENDED, 0, names)
    yield modbus.encode_identify_reply(modbus.Access.BASIC, 0, names)


def streams(encode: Callable[[modbus.Frame], bytes]) -> Callable[[], Seeds]:
    def seeds() -> Seeds:
        for i, pdu in enumerate(pdus()):
            frame = encode(modbus.Frame(i, 1, pdu))
            yield bytes((0, i % len(REQUESTS), 1, 7, 1, 40, 2)) + frame
            yield bytes((0, i % len(REQUESTS), 0, 7, 1, 40, 2)) + frame + b"noise" + frame
        for i, request in enumerate(REQUESTS):
            sent = encode(modbus.Frame(0, 1, request))
            yield bytes((0, i, 0, 3, 9, 2, 30)) + sent + encode(modbus.Frame(0, 1, request[:5]))

    return seeds


def values() -> Seeds:
    for i in range(len(modbus.TYPES)):
        yield bytes((i, i % 4)) + b"\x12\x34\x56\x78\x90\x12\x34\x56"
        yield bytes((i, i % 4)) + b"Gridloom\0\0"


def answers() -> Seeds:
    for i, (_, made) in enumerate(PLANS):
        for octet in (b"\x00", b"\x41", b"\x7f", b"\xff"):
            yield bytes((i,)) + octet * 2 * sum(request.count for request in made.requests)


def template_texts() -> Seeds:
    folder = Path(templates.__file__).parent / "meters"
    for name in templates.names():
        yield (folder / f"{name}.toml").read_bytes()
    yield (folder / "eastron-sdm630.toml").read_bytes().replace(b'"float32"', b'"float64"')
    yield b"a = " + b"9" * 5_000
    yield b"a = " + b"[" * 2_000


def site_texts() -> Seeds:
    yield b"""[gateway]
name = "gw-1"
data_dir = "data"
[uplink]
url = "mqtts://broker.example:8883"
[[line]]
name = "tcp"
protocol = "modbus-tcp"
host = "127.0.0.1"
port = 502
[[line]]
name = "bus"
protocol = "dlt645-2007"
device = "/dev/ttyUSB0"
baud = 2400
parity = "E"
[[meter]]
name = "m1"
line = "tcp"
address = "1"
template = "eastron-sdm630"
[[meter]]
name = "m2"
line = "bus"
address = "000000000161"
template = "dlt645-2007"
role = "boundary"
"""
    yield b"a = " + b"9" * 5_000
    yield b"a = " + b"[" * 2_000


def batches() -> Seeds:
    epoch = "0" * 32
    for kind, row in ((Kind.ENERGY, energy), (Kind.POWER, power)):
        rows = [row(f"m{i}", 7) for i in range(3)]
        packed = uplink.encode_rows(gateway="gw-1", epoch=epoch, seq=1, kind=kind, sent_at=NOW, rows=rows)
        yield b"\x00" + packed
    event = uplink.Event(at=1, kind="meter_silent", meter="m1", detail={"reason": "silent"})
    yield b"\x00" + uplink.encode_events(gateway="gw-1", epoch=epoch, seq=2, sent_at=NOW, events=[event])
    columns = {"meter_index": [0], "at": [9], "gateway_at": [9], "energy_import_wh": [None]}
    document = {"version": 1, "gateway": "gw-1", "epoch": epoch, "seq": 1, "kind": "energy", "sent_at": 9}
    yield b"\x01" + json.dumps({**document, "meters": ["m1"], "columns": columns}).encode()


def messages() -> Seeds:
    shed = uplink.Shed(event="dr-1", start=1, end=2, meters=["m1"])
    yield b"\x00" + uplink.encode(uplink.Receipt(epoch="0" * 32, stored=[(1, 3), (5, 5)]))
    yield b"\x01" + uplink.encode(uplink.Command(id="c-1", issued_at=1, expires_at=2, body=shed))
    yield b"\x02" + uplink.encode(uplink.Reply(id="c-1", at=1, outcome=uplink.Outcome.DONE, meters={"m1": "opened"}))
    yield b"\x03" + uplink.encode(uplink.Status(online=True, at=1))


# -1 is a batch, else which message it is.
DOCUMENTS: Final[list[tuple[int, object]]] = [
    *((-1, msgspec.msgpack.decode(raw[1:])) for raw in batches() if raw[0] == 0),
    *((-1, msgspec.json.decode(raw[1:])) for raw in batches() if raw[0] == 1),
    *((raw[0], msgspec.msgpack.decode(raw[1:])) for raw in messages()),
]


def documents() -> Seeds:
    for number in range(len(DOCUMENTS)):
        for i in range(40):
            yield bytes((number, i % 4, 1 + i % 7, i % 13, 2 + i % 5, i % 3, 3 + i % 4, i % 32, i % 29, i))


def topics() -> Seeds:
    yield b"gridloom/v1/gw-1/energy"


def overheard() -> Seeds:
    for i, frame in enumerate(shared_frames()):
        yield bytes((0, len(frame) - 1, i % 3, 20, 0)) + frame
    for number, encode in ((2, modbus.encode), (3, modbus.encode_rtu), (4, modbus.encode_ascii)):
        for pdu in pdus():
            frame = encode(modbus.Frame(0, 1, pdu))
            yield bytes((number, min(len(frame), 80) - 1, 0, 20, 0)) + frame


def captures() -> Seeds:
    yield b"12:00:01.5 > 68 61 01 00 00 00 00 68 11 04 33 33 34 33 14 16\n12:00:02 < fe 68\n"
    yield b"0x01,0x03 # asked\n"
    yield FRAME_645


def wonders() -> Seeds:
    reply = modbus.encode_rtu(modbus.Frame(0, 1, modbus.encode_read_reply(3, b"\x43\x66\x19\x9a")))
    for i, heard in enumerate((FRAME_645, FRAME_645[3:], reply, reply[::-1], bytes(b ^ 0xFF for b in reply), b"")):
        yield bytes((i, i % 3, i % 3, i % 2)) + heard


TARGETS: Final = {
    "dlt645-stream": Target(dlt645_stream, frames_645),
    "dlt645-item": Target(dlt645_item, items_645, 300),
    "dlt645-records": Target(dlt645_records, records_645, 300),
    "modbus-tcp": Target(modbus_stream(modbus.TcpDecoder), streams(modbus.encode)),
    "modbus-rtu": Target(modbus_stream(modbus.RtuDecoder), streams(modbus.encode_rtu)),
    "modbus-rtu-replies": Target(
        modbus_stream(lambda: modbus.RtuDecoder(replies_only=True)), streams(modbus.encode_rtu)
    ),
    "modbus-ascii": Target(modbus_stream(modbus.AsciiDecoder), streams(modbus.encode_ascii)),
    "modbus-pdu": Target(modbus_pdu, pdus, 260),
    "modbus-values": Target(modbus_values, values, 40),
    "modbus-plan": Target(modbus_plan, answers, 600),
    "template": Target(template_text, template_texts, 8_192),
    "site": Target(site_text, site_texts, 8_192),
    "batch": Target(batch, batches, 2_048),
    "message": Target(message, messages, 2_048),
    "document": Target(document, documents, 60),
    "topic": Target(topic, topics, 100),
    "decode-line": Target(decode_line, lines_645),
    "sniff": Target(sniffed, overheard),
    "why": Target(wondered, wonders, 200, cost=50),
    "capture": Target(captured, captures),
}
