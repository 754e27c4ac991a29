"""``meterctl why``: causes named from bytes, against a forward model of the line that was written by others."""

import json
import random
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.model import Line, Protocol, SerialEndpoint, SerialSetting
from gateway.sniff import Chunk, capture_head, capture_line
from gateway.why import CONFIDENCE_MAX, Cause, Expectation, Verdict, explain, read_capture, why_command
from protocols import dlt645, modbus
from simulators.lines import Setting, overhear

ADDRESS = "000000000161"
VOLTAGE = 0x02010100
Parity = Literal["N", "E", "O"]


@dataclass(frozen=True)
class Exchange:
    request: bytes
    reply: bytes


def exchange_645(address: str, di: int, data: str) -> Exchange:
    reply = dlt645.Frame(address, 0x91, di.to_bytes(4, "little") + bytes.fromhex(data))
    return Exchange(dlt645.encode(dlt645.read(address, di)), dlt645.encode(reply))


def exchange_rtu(unit: int, function: int, address: int, *values: float) -> Exchange:
    read = modbus.encode_read(function, address, 2 * len(values))
    reply = modbus.encode_read_reply(function, struct.pack(f">{len(values)}f", *values))
    return Exchange(modbus.encode_rtu(modbus.Frame(0, unit, read)), modbus.encode_rtu(modbus.Frame(0, unit, reply)))


EXCHANGES: dict[Protocol, list[Exchange]] = {
    "dlt645-2007": [
        exchange_645(ADDRESS, VOLTAGE, "0623"),
        exchange_645("202211001234", 0x00010000, "78563412"),
        exchange_645("110000845679", 0x02030000, "563412"),
        exchange_645("320100556677", 0x0001FF00, "7856341200000000112233000011223300112233"),
    ],
    "modbus-rtu": [
        exchange_rtu(1, 3, 0, 231.2, 230.9, 229.8),
        exchange_rtu(5, 4, 0x34, 1523.5),
        exchange_rtu(17, 3, 0x2000, 5.11, 4.98, 5.2, 0.01),
        exchange_rtu(2, 4, 0, 229.1, 231.7, 230.4, 12.5, 11.9, 12.2),
    ],
}
VOLTS = EXCHANGES["dlt645-2007"][0]
FLOATS = exchange_rtu(1, 3, 0, 231.2)


def first(raw: bytes, **known: Any) -> Verdict:
    return explain(raw, Expectation(**known))[0]


# ---- the line --------------------------------------------------------------------------------------------------------


def on_the_line(parts: list[bytes], sent: Setting, heard: Setting) -> bytes:
    """Frames with a pause between, as the other end hears them."""
    return b"".join(overhear(part, sent, heard) for part in parts)


def scored(sniffed: bool) -> Iterator[tuple[str, str, Verdict, bool]]:
    """(protocol, how fast the sender is, verdict, whether it is right) over speeds, parities and exchanges."""
    for protocol, exchanges in EXCHANGES.items():
        for baud in (1200, 2400, 4800, 9600) if sniffed else (1200, 2400, 4800, 9600, 19200):
            for parity in ("N", "E"):
                for port in (Setting(2400, "E"), Setting(9600, "N")):
                    sent = Setting(baud, parity)
                    for exchange in exchanges[:1] if sniffed else exchanges:
                        parts = [exchange.request, exchange.reply]
                        heard = on_the_line(parts if sniffed else [exchange.reply], sent, port)
                        setting = SerialSetting(port.baud, port.parity)
                        asked = b"" if sniffed else exchange.request
                        got = first(heard, protocol=protocol, setting=setting, request=asked)
                        want = Cause.FORMAT if baud == port.baud else Cause.SPEED
                        if heard == b"".join(parts if sniffed else [exchange.reply]):
                            want = Cause.HEALTHY  # a wrong parity alone leaves the bytes as they are
                        is_right = got.cause == want and (want != Cause.SPEED or f"{baud}" in got.what)
                        ratio = baud / port.baud
                        pace = "slower" if ratio < 1 else "same" if ratio == 1 else f"{ratio:g}x faster"
                        yield protocol, pace, got, is_right


def table(rows: list[tuple[str, str, Verdict, bool]], title: str) -> float:
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for protocol, pace, got, is_right in rows:
        wrong = "not recognised" if got.cause is Cause.UNKNOWN else f"wrongly {got.cause}"
        counts[protocol, pace]["right" if is_right else wrong] += 1
    share = sum(is_right for *_, is_right in rows) / len(rows)
    print(f"\nmeterctl why, {title}: {share:.1%} of {len(rows)} first verdicts right")
    for (protocol, pace), count in sorted(counts.items()):
        print(f"  {protocol:12} sender {pace:10} {', '.join(f'{n} {what}' for what, n in count.most_common())}")
    return share


def test_a_reply_to_a_known_request_tells_speed_and_format() -> None:
    rows = list(scored(sniffed=False))
    assert table(rows, "replies whose request is known") >= 0.95


def test_a_capture_without_requests_tells_them_of_senders_that_are_not_faster() -> None:
    rows = list(scored(sniffed=True))
    table(rows, "overheard exchanges")
    assert all(is_right for _, pace, _, is_right in rows if pace == "slower")
    same = [is_right for _, pace, _, is_right in rows if pace == "same"]
    assert sum(same) / len(same) >= 0.75
    # A slow port skips most of what a fast sender says. What cannot be told is not guessed.
    wrong = [got for _, _, got, is_right in rows if not is_right and got.cause is not Cause.UNKNOWN]
    assert len(wrong) / len(rows) < 0.05


def swapped(raw: bytes, sent: Setting, heard: Setting) -> bytes:
    """What a UART makes of ``raw`` when A and B are swapped: at rest it sees a break, and every bit the wrong way."""
    levels: list[int] = []
    for byte in raw:
        data = [byte >> i & 1 for i in range(8)]
        parity = {"N": [], "E": [sum(data) & 1], "O": [1 - (sum(data) & 1)]}[sent.parity]
        levels += [1 - level for level in (0, *data, *parity, *[1] * sent.stop_bits)]
    end = len(levels)
    levels += [0] * 40
    out, at = bytearray(), 0.0
    while at < end:
        while at < end and not levels[int(at)]:
            at += 1 / 16
        while at < end and levels[int(at)]:
            at += 1 / 16
        if at < end:
            out.append(sum(levels[int(at + 1.5 + i)] << i for i in range(8)))
            at += heard.char_bits - 0.5
    return bytes(out)


@pytest.mark.parametrize("parity", ["N", "E"])
@pytest.mark.parametrize("protocol", list(EXCHANGES))
def test_swapped_wires_are_told(protocol: Protocol, parity: Parity) -> None:
    right = 0
    for exchange in EXCHANGES[protocol]:
        setting = Setting(9600, parity)
        heard = swapped(exchange.request, setting, setting) + swapped(exchange.reply, setting, setting)
        got = first(heard, protocol=protocol, setting=SerialSetting(9600, parity))
        right += got.cause is Cause.SWAPPED
    print(f"swapped wires, {protocol} 8{parity}1: {right} of {len(EXCHANGES[protocol])}")
    assert right == len(EXCHANGES[protocol])


def test_the_frame_that_appears_is_the_evidence() -> None:
    heard = on_the_line([VOLTS.reply], Setting(2400, "E"), Setting(9600, "N"))
    got = first(heard, protocol="dlt645-2007", setting=SerialSetting(9600, "N"), request=VOLTS.request)
    assert "2400 baud" in got.what
    assert "230.6 V" in " ".join(got.evidence)
    assert any("baud = 2400" in line for line in got.todo)


def test_without_the_ports_setting_the_ratio_is_told() -> None:
    heard = on_the_line([VOLTS.request, VOLTS.reply], Setting(2400, "E"), Setting(9600, "N"))
    assert "4 times slower" in first(heard).what


def test_seven_data_bits_are_told_from_the_top_bit() -> None:
    ascii_frame = modbus.encode_ascii(modbus.Frame(0, 1, b"\x03\x04\x43\x67\x33\x33"))
    heard = bytes(byte | (byte.bit_count() & 1) << 7 for byte in ascii_frame)
    got = first(heard, protocol="modbus-ascii")
    assert got.cause is Cause.FORMAT
    assert "even parity" in got.what


@pytest.mark.parametrize("size", [1, 3, 8, 20, 60, 300])
def test_noise_has_no_cause(size: int) -> None:
    generator = random.Random(size)
    named = []
    for _ in range(3):
        raw = generator.randbytes(size)
        known = Expectation(protocol="modbus-rtu", setting=SerialSetting(9600, "N"))
        named += [verdict for verdict in explain(raw, known) if verdict.cause is not Cause.UNKNOWN]
    assert [verdict.what for verdict in named if verdict.confidence > 0.6] == []


def test_a_capture_of_4_kilobytes_takes_less_than_a_second() -> None:
    parts = [VOLTS.request, VOLTS.reply] * 60
    captures = {
        "healthy": b"".join(parts)[:4096],
        "slower": on_the_line(parts, Setting(2400, "E"), Setting(9600, "N"))[:4096],
        "noise": random.Random(1).randbytes(4096),
        "zeros and ones": bytes(random.Random(2).choice((0, 255)) for _ in range(4096)),
    }
    for name, raw in captures.items():
        for known in (Expectation("dlt645-2007", SerialSetting(9600, "N")), Expectation()):
            began_s = time.process_time()
            explain(raw, known)
            took_s = time.process_time() - began_s
            print(f"meterctl why, 4 kB of {name}, {'known' if known.setting else 'unknown'} setting: {took_s:.2f} s")
            assert took_s < 1.0, name


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_bytes_and_any_request_are_answered(data: st.DataObject) -> None:
    frames = [part for exchanges in EXCHANGES.values() for one in exchanges for part in (one.request, one.reply)]
    raw = bytearray(data.draw(st.sampled_from(frames)))
    for at in data.draw(st.lists(st.integers(0, len(raw) - 1), max_size=3)):
        raw[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(raw)))
    request = data.draw(st.sampled_from([b"", b"\x01", b"\xfe\xfe", *frames]))
    known = Expectation("modbus-rtu", SerialSetting(9600, "N"), request, data.draw(st.sampled_from([None, 0.0, 230.0])))
    verdicts = explain(bytes(raw[:cut]) + data.draw(st.binary(max_size=4)), known)
    assert verdicts and all(0 <= verdict.confidence <= CONFIDENCE_MAX for verdict in verdicts)


# ---- the frames ------------------------------------------------------------------------------------------------------

OTHER = dlt645.encode(dlt645.Frame("000000000162", 0x91, bytes.fromhex("000101020623")))
LATE = dlt645.encode(dlt645.Frame(ADDRESS, 0x91, bytes.fromhex("000102020623")))
WITHOUT_33H = dlt645.encode(
    dlt645.Frame(ADDRESS, 0x91, bytes((byte - 0x33) & 0xFF for byte in bytes.fromhex("000101020623")))
)
ANYBODY = dlt645.encode(dlt645.read(dlt645.WILDCARD, VOLTAGE))
BOTH_AT_ONCE = bytes(a & b for a, b in zip(VOLTS.reply, OTHER[:-2] + b"\x77\x16", strict=True))
MBAP = modbus.encode(modbus.Frame(7, 1, FLOATS.reply[1:-2]))
ASCII = modbus.encode_ascii(modbus.Frame(0, 1, FLOATS.reply[1:-2]))
REFUSED = modbus.encode_rtu(modbus.Frame(0, 1, b"\x83\x02"))
OLD = dlt645.encode(dlt645.Frame(ADDRESS, 0x81, bytes.fromhex("109078563412")))


@pytest.mark.parametrize(
    ("raw", "known", "cause"),
    [
        (b"", {}, Cause.NOTHING),
        (bytes(6), {}, Cause.STUCK),
        (b"\xff" * 6, {}, Cause.STUCK),
        (VOLTS.request, {"request": VOLTS.request}, Cause.ECHO),
        (FLOATS.request, {"request": FLOATS.request}, Cause.ECHO),
        (VOLTS.request, {}, Cause.REQUEST_ONLY),
        (b"IMEI:861234567890123\r\n" + VOLTS.reply, {}, Cause.PREFIX),
        (b"HEARTBEAT01", {}, Cause.PREFIX),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", {}, Cause.TEXT),
        (MBAP, {"protocol": "modbus-rtu"}, Cause.FRAMING),
        (MBAP, {"protocol": "modbus-rtu-over-tcp"}, Cause.FRAMING),
        (FLOATS.reply, {"protocol": "modbus-tcp"}, Cause.FRAMING),
        (ASCII, {"protocol": "modbus-rtu"}, Cause.FRAMING),
        (FLOATS.reply, {"protocol": "modbus-ascii"}, Cause.FRAMING),
        (VOLTS.reply, {"protocol": "modbus-rtu"}, Cause.PROTOCOL),
        (FLOATS.reply, {"protocol": "dlt645-2007"}, Cause.PROTOCOL),
        (OLD, {"protocol": "dlt645-2007"}, Cause.PROTOCOL),
        (VOLTS.reply[:17], {"request": VOLTS.request}, Cause.TRUNCATED),
        (FLOATS.reply[:6], {"request": FLOATS.request}, Cause.TRUNCATED),
        (ASCII[:9], {}, Cause.TRUNCATED),
        (MBAP[:10], {"protocol": "modbus-tcp"}, Cause.TRUNCATED),
        (VOLTS.reply[9:], {"request": VOLTS.request}, Cause.HEADLESS),
        (FLOATS.reply[2:], {"request": FLOATS.request}, Cause.HEADLESS),
        (OTHER, {"request": VOLTS.request}, Cause.OTHER_METER),
        (exchange_rtu(9, 3, 0, 231.2).reply, {"request": FLOATS.request}, Cause.OTHER_METER),
        (LATE, {"request": VOLTS.request}, Cause.OTHER_ANSWER),
        (FLOATS.reply[:-2] + FLOATS.reply[:-3:-1], {"request": FLOATS.request}, Cause.CRC_ORDER),
        (WITHOUT_33H, {}, Cause.WITHOUT_33H),
        (REFUSED, {"request": FLOATS.request}, Cause.REFUSED),
        (bytes.fromhex("FEFEFEFE6860079204009168D101376716"), {}, Cause.REFUSED),
        (VOLTS.reply + OTHER, {"request": ANYBODY}, Cause.COLLISION),
        (BOTH_AT_ONCE, {"request": ANYBODY}, Cause.COLLISION),
        (VOLTS.reply[:-2] + b"\x00\x16", {"request": VOLTS.request}, Cause.DAMAGED),
        (FLOATS.reply[:5] + b"\x3b" + FLOATS.reply[6:], {"request": FLOATS.request}, Cause.DAMAGED),
    ],
)  # fmt: skip
def test_a_fault_is_named(raw: bytes, known: dict[str, Any], cause: Cause) -> None:
    verdicts = explain(raw, Expectation(**known))
    assert verdicts[0].cause is cause, [(verdict.cause, verdict.confidence, verdict.what) for verdict in verdicts]
    assert verdicts[0].evidence and verdicts[0].todo
    assert verdicts[0].confidence <= CONFIDENCE_MAX


@pytest.mark.parametrize("preamble", [0, 1, 4, 7])
def test_a_healthy_frame_has_no_cause(preamble: int) -> None:
    raw = b"\xfe" * preamble + VOLTS.reply.lstrip(b"\xfe")
    verdicts = explain(raw, Expectation(request=VOLTS.request, protocol="dlt645-2007"))
    assert [verdict.cause for verdict in verdicts] == [Cause.HEALTHY]
    assert "230.6 V" in " ".join(verdicts[0].evidence)
    assert f"preamble: {preamble} bytes FE" in " ".join(verdicts[0].evidence)


def test_every_valid_public_frame_is_healthy_a_request_or_refused(shared: Any) -> None:
    records = [json.loads(line) for line in (shared / "dlt645" / "frames.jsonl").read_text().splitlines()]
    seen = Counter(first(bytes.fromhex(record["hex"])).cause for record in records if record["valid"])
    print(f"meterctl why of the valid frames of the corpus: {dict(seen)}")
    assert set(seen) <= {Cause.HEALTHY, Cause.REQUEST_ONLY, Cause.REFUSED}


@pytest.mark.parametrize(
    ("order", "cause"),
    [("ABCD", Cause.HEALTHY), ("CDAB", Cause.WORD_ORDER), ("BADC", Cause.BYTE_ORDER), ("DCBA", Cause.WORD_ORDER)],
)
@pytest.mark.parametrize("type", ["float32", "uint32"])
def test_the_order_of_a_value_is_told(order: str, cause: Cause, type: str) -> None:
    where = modbus.ORDERS[order]
    number = 231.2 if type == "float32" else 23_119_500
    data = modbus.encode_value(number, type, word_order=where.words, byte_order=where.bytes)
    raw = modbus.encode_rtu(modbus.Frame(0, 1, modbus.encode_read_reply(3, data)))
    assert first(raw, request=FLOATS.request, value=number * 1.005).cause is cause


def test_a_value_in_other_units_is_told() -> None:
    raw = modbus.encode_rtu(modbus.Frame(0, 1, modbus.encode_read_reply(3, b"\x09\x08\x00\x00")))
    got = first(raw, request=FLOATS.request, value=231.0)
    assert (got.cause, "scale = 0.1" in got.todo[0]) == (Cause.SCALE, True)


# ---- the command -----------------------------------------------------------------------------------------------------


def why(*arguments: str, given: bytes = b"") -> Result:
    return CliRunner().invoke(why_command, list(arguments), input=given)


def test_bytes_come_as_arguments_from_a_file_or_on_standard_input(tmp_path: Any) -> None:
    capture = tmp_path / "capture.txt"
    capture.write_text(f"# line A\n12:00:01.250 in  {VOLTS.reply.hex(' ')}\n")
    for result in (why(VOLTS.reply.hex()), why(*VOLTS.reply.hex(" ").split()), why("--file", str(capture)),
                   why(given=VOLTS.reply), why(given=VOLTS.reply.hex().encode())):  # fmt: skip
        assert result.exit_code == 0
        assert "Nothing wrong: a valid DL/T 645 frame" in result.output
        assert "230.6 V" in result.output


def test_a_capture_is_bytes_or_hexadecimal_text() -> None:
    assert read_capture(VOLTS.reply).raw == VOLTS.reply
    assert read_capture(b"0.0125 < 68 61\n0.0500 > 01 02\n").raw == b"\x68\x61\x01\x02"
    assert read_capture(b"HTTP/1.1 400 Bad Request\r\n").raw == b"HTTP/1.1 400 Bad Request\r\n"
    assert read_capture(ASCII).raw == ASCII
    assert read_capture(b"# meterctl sniff protocol=modbus-rtu endpoint=x\n").raw == b""


def test_a_capture_of_sniff_brings_its_setting_and_the_question(tmp_path: Any) -> None:
    at = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
    heard = on_the_line([VOLTS.reply], Setting(2400, "E"), Setting(4800, "N"))
    setting = SerialSetting(4800, "N")
    line = Line("east", "dlt645-2007", SerialEndpoint("/dev/ttyUSB0", setting))
    chunks = [Chunk(at, "out", VOLTS.request), Chunk(at, "in", heard[:9]), Chunk(at, "in", heard[9:])]
    text = capture_head(line) + "".join(map(capture_line, chunks))
    capture = read_capture(text.encode())
    assert (capture.raw, capture.request, capture.protocol) == (heard, VOLTS.request, "dlt645-2007")
    assert capture.setting == setting
    file = tmp_path / "capture.txt"
    file.write_text(text)
    shown = why("--file", str(file)).output
    assert "2 times slower than the port (2400 baud" in shown and "230.6 V" in shown


def test_json_and_exit_codes() -> None:
    document = json.loads(why("--json", FLOATS.reply.hex(), "--protocol", "modbus-tcp").output)
    assert document["bytes"] == len(FLOATS.reply)
    assert {"cause": "framing", "confidence": 0.95}.items() <= document["verdicts"][0].items()
    assert why("--silent", "--baud", "2400").exit_code == 0
    assert why("12345").exit_code == 2
    assert why(random.Random(3).randbytes(40).hex(), "--protocol", "modbus-rtu", "--baud", "9600").exit_code == 1


def test_the_commands_in_its_help_run() -> None:
    shown = CliRunner().invoke(why_command, ["--help"]).output
    examples = [line.split("meterctl why ")[1] for line in shown.splitlines() if "  meterctl why " in line]
    assert len(examples) >= 3
    for example in examples:
        if "--file" not in example:
            assert why(*example.split()).exit_code == 0, example
