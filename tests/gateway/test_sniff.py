"""`meterctl sniff`: frames told apart and paired on paper, then overheard on real ptys, alone and through the agent."""

import json
import os
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.model import Line, Protocol, SerialEndpoint, SerialSetting
from gateway import why
from gateway.sniff import Chunk, Direction, Heard, Listener, capture_head, capture_line, read_capture
from protocols import dlt645, modbus, templates
from protocols.templates import ModbusFamily
from simulators.lines import Meter, SerialLine, Setting
from tests.gateway.onbus import meter_645, meterctl, running_agent, write_site

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
ASK = dlt645.read("000000000007", 0x00010000)
SAY = dlt645.reply(ASK, "000000000007", dlt645.encode_bcd(123456, 4))


def hear(
    protocol: Protocol, *chunks: tuple[float, bytes] | tuple[float, bytes, Direction]
) -> tuple[Listener, list[Heard]]:
    """Bytes at so many seconds after the start."""
    listener = Listener(protocol, START)
    heard: list[Heard] = []
    for at_s, raw, *way in chunks:
        heard += listener.hear(START + timedelta(seconds=at_s), raw, *way)
    return listener, heard + listener.fall_silent()


def test_a_645_question_and_its_answer_are_paired_and_timed() -> None:
    listener, heard = hear("dlt645-2007", (1.0, dlt645.encode(ASK)), (1.25, dlt645.encode(SAY)))
    assert [it.kind for it in heard] == ["request", "reply"]
    assert heard[1].waited_ms == 250.0
    assert heard[1].who == "000000000007" and "1234.56 kWh" in heard[1].says
    counts = listener.statistics(START + timedelta(seconds=10))
    assert (counts.frames, counts.unanswered, counts.garbage_octets) == (2, 0, 0)
    assert counts.silence_max_s == 8.75
    assert [(it.who, it.requests, it.replies, it.reply_mean_ms) for it in counts.talkers] == [
        ("000000000007", 1, 1, 250.0)
    ]


def test_a_question_nobody_answers_and_an_answer_nobody_asked_for_show() -> None:
    late = dlt645.reply(ASK, "000000000009", bytes(4))
    listener, heard = hear(
        "dlt645-2007", (0.0, dlt645.encode(ASK)), (1.0, dlt645.encode(ASK)), (2.0, dlt645.encode(late))
    )
    assert [it.kind for it in heard] == ["request", "request", "reply"]
    assert heard[2].waited_ms is None and "no answer to the question to 000000000007" in heard[2].says[-1]
    counts = listener.statistics(START + timedelta(seconds=9))
    assert counts.unanswered == 2  # both: the second is still open after seven seconds
    assert {it.who: it.unanswered for it in counts.talkers} == {"000000000007": 1, "000000000009": 0}


def test_a_broadcast_waits_for_no_answer() -> None:
    broadcast = dlt645.broadcast_time(START, UTC)
    listener, _ = hear("dlt645-2007", (0.0, dlt645.encode(broadcast)), (1.0, dlt645.encode(ASK)))
    assert listener.statistics(START + timedelta(seconds=1.1)).unanswered == 0


def test_a_wrong_checksum_is_counted_and_noise_is_not() -> None:
    broken = bytearray(dlt645.encode(SAY))
    broken[-2] ^= 1
    listener, heard = hear("dlt645-2007", (0.0, b"\x00\x80\x00"), (1.0, dlt645.encode(ASK)), (1.2, bytes(broken)))
    assert [it.kind for it in heard] == ["garbage", "request", "garbage"]
    assert "its checksum is wrong" in heard[2].says[0]
    counts = listener.statistics(START + timedelta(seconds=2))
    assert counts.checksum_failures == 1 and counts.garbage_octets == 3 + len(broken)

    request = modbus.encode_rtu(modbus.Frame(0, 3, modbus.encode_read(4, 0, 2)))
    listener, heard = hear("modbus-rtu", (0.0, request[:-1] + b"\x00"))
    assert "CRC" in heard[-1].says[0] and listener.statistics(START).checksum_failures == 1


def test_modbus_questions_and_answers_are_told_apart_without_a_direction() -> None:
    family = templates.load("eastron-sdm630")
    assert isinstance(family, ModbusFamily)
    asked = modbus.Frame(0, 3, modbus.encode_read(4, 0, 2))
    answered = modbus.Frame(0, 3, modbus.encode_read_reply(4, modbus.encode_value(230.5, "float32")))
    told = modbus.Frame(0, 3, modbus.encode_write_one(0x12, 7))
    refused = modbus.Frame(0, 4, modbus.encode_exception(3, modbus.Fault.ILLEGAL_DATA_ADDRESS))
    asked_4 = modbus.Frame(0, 4, modbus.encode_read(3, 9, 1))
    listener = Listener("modbus-rtu", START, {3: family})
    line = b"".join(map(modbus.encode_rtu, (asked, asked, answered, told, told, asked_4, refused)))
    heard = listener.hear(START, line)
    assert [it.kind for it in heard] == ["request", "request", "reply", "request", "reply", "request", "reply"]
    assert heard[2].says[1] == "0x0000 voltage_l1_v = 230.5"
    assert heard[6].says[0] == "unit 4 refuses function 3: illegal data address (2)"
    counts = listener.statistics(START)
    assert {it.who: (it.requests, it.replies, it.unanswered, it.refused) for it in counts.talkers} == {
        "unit 3": (3, 2, 1, 0),
        "unit 4": (1, 1, 0, 1),
    }


def test_an_adapter_that_hears_itself_is_no_second_question() -> None:
    raw = dlt645.encode(ASK)
    _, heard = hear("dlt645-2007", (0, raw, "out"), (0.1, raw, "in"), (0.2, dlt645.encode(SAY), "in"))
    assert [it.kind for it in heard] == ["request", "echo", "reply"]
    assert heard[2].waited_ms == 200.0
    rtu = modbus.encode_rtu(modbus.Frame(0, 3, modbus.encode_read(4, 0, 2)))
    _, heard = hear("modbus-rtu", (0, rtu, "out"), (0.1, rtu, "in"))
    assert [it.kind for it in heard] == ["request", "echo"]


@pytest.mark.parametrize("protocol", ["dlt645-2007", "dlt645-1997", "modbus-rtu", "modbus-ascii", "modbus-tcp"])
@given(chunks=st.lists(st.tuples(st.binary(max_size=80), st.sampled_from(["in", "out", ""])), max_size=8))
def test_anything_may_come_over_a_line(protocol: Protocol, chunks: list[tuple[bytes, Direction]]) -> None:
    """No exception, and no byte is lost but the fillers of DL/T 645."""
    listener = Listener(protocol, START)
    heard = [it for raw, way in chunks for it in listener.hear(START, raw, way)] + listener.fall_silent()
    shown = sum(len(bytes.fromhex(it.raw)) for it in heard)
    fillers = sum(raw.count(0xFE) for raw, _ in chunks) if protocol.startswith("dlt645") else 0
    octets = sum(len(raw) for raw, _ in chunks)
    assert octets - fillers <= shown <= octets
    assert listener.statistics(START).octets == octets


@given(st.lists(st.tuples(st.sampled_from(["in", "out", ""]), st.binary(min_size=1, max_size=30)), max_size=5))
def test_a_capture_is_read_back_and_why_reads_it_too(chunks: list[tuple[Direction, bytes]]) -> None:
    line = Line("x", "dlt645-2007", SerialEndpoint("/dev/ttyUSB0", SerialSetting(2400, "E")))
    made = [Chunk(START + timedelta(milliseconds=i), way, raw) for i, (way, raw) in enumerate(chunks)]
    text = capture_head(line) + "".join(map(capture_line, made))
    assert read_capture(text) == made
    if made:
        capture = why.read_capture(text.encode())
        asked = {chunk.raw for chunk in made if chunk.direction == "out"}
        is_one = len(asked) == 1  # then it is the question, and the rest what came of it
        assert capture.raw == b"".join(chunk.raw for chunk in made if not is_one or chunk.direction != "out")
        assert capture.request == (asked.pop() if is_one else b"")
        assert (capture.protocol, capture.setting) == (line.protocol, line.setting)


def test_a_capture_that_is_none_says_which_line() -> None:
    with pytest.raises(ValueError, match="line 2"):
        read_capture("# a capture\n2026 sideways 68\n")


# ---- on ptys ---------------------------------------------------------------------------------------------------------


@contextmanager
def overheard_line(*chunks: bytes) -> Iterator[str]:
    """A pty on which somebody else talks, over and over."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    stop = threading.Event()

    def talk() -> None:
        while not stop.wait(0.3):
            for chunk in chunks:
                with suppress(OSError):
                    os.write(ours, chunk)
                time.sleep(0.03)

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield os.ttyname(theirs)
    finally:
        stop.set()
        thread.join()
        os.close(theirs)
        os.close(ours)


def test_sniff_listens_beside_another_master_and_writes_nothing(tmp_path: Path) -> None:
    raw = tmp_path / "capture.txt"
    with overheard_line(dlt645.encode(ASK), dlt645.encode(SAY)[:9], dlt645.encode(SAY)[9:]) as path:
        done = meterctl(
            "sniff", "--device", path, "--protocol", "dlt645-2007", "--baud", "9600", "--parity", "N",
            "--seconds", "2.5", "--json", "--raw", str(raw),
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"listening over {path}" in done.stderr
    *frames, last = map(json.loads, done.stdout.splitlines())
    kinds = [it["kind"] for it in frames]
    assert kinds.count("request") >= 2 and kinds.count("reply") >= 2
    assert {a for a, b in pairwise(kinds) if b == "reply"} == {"request"}
    assert last["summary"]["frames"] == len(kinds) - kinds.count("garbage")
    assert last["summary"]["talkers"][-1]["who"] == "000000000007"
    captured = b"".join(chunk.raw for chunk in read_capture(raw.read_text()))
    assert dlt645.encode(SAY) in captured
    assert raw.read_text().startswith(f"# meterctl sniff protocol=dlt645-2007 endpoint={path} setting=9600 8N1\n")


def test_sniff_through_the_agent_shows_both_directions(tmp_path: Path) -> None:
    with SerialLine([Meter(meter_645("000000000007"), Setting(9600, "E"))]) as line:
        setting = 'protocol = "dlt645-2007"\nbaud = 9600\nparity = "N"'
        site = write_site(tmp_path, line.path, {"flat-7": "000000000007"}, setting=setting, template="dlt645-2007")
        with running_agent(site) as pid:
            asking = threading.Thread(target=_read_some, args=(site,))
            asking.start()
            done = meterctl("sniff", str(site), "--seconds", "4")
            asking.join()
    assert done.returncode == 0, done.stderr
    assert f"through the agent running as pid {pid}" in done.stderr
    assert " > 68 07 00 00 00 00 00 68 11" in done.stdout and " < 68 07 00 00 00 00 00 68 91" in done.stdout
    assert "1234.56 kWh" in done.stdout
    assert "000000000007: asked" in done.stdout.splitlines()[-1]


def _read_some(site: Path) -> None:
    for _ in range(2):
        meterctl("read", str(site), "flat-7", "00010000")


def test_a_tcp_connection_cannot_be_overheard_and_the_command_says_so() -> None:
    done = meterctl("sniff", "--host", "127.0.0.1", "--protocol", "modbus-tcp")
    assert done.returncode == 1
    assert "cannot be overheard" in done.stderr and "meterctl run" in done.stderr


def test_silence_is_told() -> None:
    with SerialLine([]) as line:
        where = ["--device", line.path, "--baud", "2400", "--parity", "N", "--protocol", "modbus-rtu"]
        done = meterctl("sniff", *where, "--seconds", "0.5")
    assert done.returncode == 0, done.stderr
    assert "nothing was heard" in done.stdout
