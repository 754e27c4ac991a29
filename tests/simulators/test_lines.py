"""Serial lines: opened with termios as a program opens an adapter, with the codecs on both ends."""

import itertools
import os
import select
import struct
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import dlt645, modbus
from protocols.framing import Garbage
from protocols.modbus import Echo, Frame
from simulators import faults
from simulators.faults import Fault
from simulators.lines import Meter, SerialLine, Setting, dlt645_meter, modbus_meter, overhear

FAST = Setting(115_200, "N")


def registers(unit: int) -> Callable[[bytes], bytes]:
    """Register n of this meter holds 256 × unit + n; any write is accepted."""

    def answer(pdu: bytes) -> bytes:
        if pdu[0] in (modbus.Function.WRITE_ONE, modbus.Function.WRITE_MANY):
            return modbus.encode_write_reply(pdu)
        address, count = modbus.decode_read(pdu)
        return modbus.encode_read_reply(
            pdu[0], struct.pack(f">{count}H", *(256 * unit + address + i for i in range(count)))
        )

    return answer


def meter(unit: int, setting: Setting = FAST, *, ascii: bool = False) -> Meter:
    return Meter(modbus_meter(unit, registers(unit), ascii=ascii), setting, turnaround_s=0.002)


@contextmanager
def opened(line: SerialLine, speed: int | None = None) -> Iterator[int]:
    """The other end, as a program opens it."""
    with line:
        port = os.open(line.path, os.O_RDWR | os.O_NOCTTY)
        try:
            tty.setraw(port)
            if speed is not None:
                attributes = termios.tcgetattr(port)
                attributes[4] = attributes[5] = speed
                termios.tcsetattr(port, termios.TCSANOW, attributes)
            yield port
        finally:
            os.close(port)


def read(port: int, size: int, timeout_s: float = 5.0) -> bytes:
    """``size`` bytes, or what came until ``timeout_s`` passed."""
    heard, deadline_s = b"", time.monotonic() + timeout_s
    while len(heard) < size and select.select([port], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
        heard += os.read(port, size - len(heard))
    return heard


def ask(port: int, unit: int, count: int = 2, *, wait: int | None = None, timeout_s: float = 5.0) -> bytes:
    os.write(port, modbus.encode_rtu(Frame(0, unit, modbus.encode_read(3, 0, count))))
    return read(port, 5 + 2 * count if wait is None else wait, timeout_s)


def reply_of(unit: int, count: int = 2) -> Frame:
    return Frame(0, unit, registers(unit)(modbus.encode_read(3, 0, count)))


def decoded(raw: bytes) -> list[Frame | Garbage]:
    decoder = modbus.RtuDecoder(replies_only=True)
    return decoder.feed(raw) + decoder.flush()


def test_each_of_several_meters_answers_for_itself() -> None:
    with opened(SerialLine([meter(unit) for unit in (1, 2, 9)])) as port:
        for unit in (1, 9, 2):
            assert decoded(ask(port, unit)) == [reply_of(unit)]
        assert ask(port, 5, timeout_s=0.2) == b"", "nobody has this address"


def test_a_broadcast_is_not_answered() -> None:
    with opened(SerialLine([meter(1), meter(2)])) as port:
        os.write(port, modbus.encode_rtu(Frame(0, 0, modbus.encode_write_one(1, 2))))
        assert read(port, 1, 0.2) == b""
        assert decoded(ask(port, 2)) == [reply_of(2)]


@pytest.mark.parametrize(
    ("setting", "code", "bits"),
    [
        (Setting(2400, "E"), termios.B2400, 11),
        (Setting(9600, "E"), termios.B9600, 11),
        (Setting(9600, "N"), termios.B9600, 10),
    ],
)
def test_an_exchange_takes_at_least_its_bits(setting: Setting, code: int, bits: int) -> None:
    assert setting.char_bits == bits
    with opened(SerialLine([meter(1, setting)]), code) as port:
        begin_s = time.monotonic()
        first = ask(port, 1, 20, wait=1)
        first_s = time.monotonic() - begin_s
        raw = first + read(port, 44)
        whole_s = time.monotonic() - begin_s
    assert decoded(raw) == [reply_of(1, 20)]
    assert first_s >= (8 + 1) * bits / setting.baud + 0.002
    assert whole_s >= (8 + 45) * bits / setting.baud + 0.002


def test_scaled_time_keeps_the_proportions() -> None:
    line = SerialLine([meter(1, Setting(2400))], time_scale=10)
    with opened(line) as port:
        begin_s = time.monotonic()
        assert decoded(ask(port, 1)) == [reply_of(1)]
        assert time.monotonic() - begin_s >= (8 + 9) * 11 / 2400 / 10
    assert line.busy_s == pytest.approx((8 + 9) * 11 / 2400)


def test_two_requests_at_once_go_one_after_the_other() -> None:
    with opened(SerialLine([meter(1, Setting(9600))])) as port:
        begin_s = time.monotonic()
        os.write(port, modbus.encode_rtu(Frame(0, 99, modbus.encode_read(3, 0, 1))) * 4)
        ask(port, 1, wait=1)
        assert time.monotonic() - begin_s >= 5 * 8 * 11 / 9600


@pytest.mark.parametrize(
    "fault",
    [
        faults.silent,
        faults.truncated(4),
        faults.wrong_checksum,
        faults.from_another_meter(7),
        faults.wrong_word_order,
        faults.garbage(before=b"\x00\xff", after=b"\xfe"),
        faults.at_speed(9600),
    ],
    ids=["silent", "truncated", "checksum", "another", "words", "garbage", "speed"],
)
def test_a_fault_meets_one_reply_and_the_next_is_whole(fault: Fault) -> None:
    line = SerialLine([meter(1)])
    line.order(fault)
    with opened(line) as port:
        raw = ask(port, 1, wait=200, timeout_s=0.3)
        events = decoded(raw)
        frames = [event for event in events if isinstance(event, Frame)]
        if fault is faults.wrong_word_order:
            swapped = Frame(0, 1, bytes.fromhex("03 04 0101 0100"))
            assert events == [swapped]
        elif frames and frames[0].unit == 7:
            assert events == [Frame(0, 7, reply_of(7).pdu[:2] + reply_of(1).pdu[2:])]
            assert not modbus.is_serial_answer(Frame(0, 1, modbus.encode_read(3, 0, 2)), frames[0])
        elif raw[:2] == b"\x00\xff":
            assert events == [Garbage(b"\x00\xff"), reply_of(1), Garbage(b"\xfe")]
        else:
            assert not frames
            assert (raw == b"") is (fault is faults.silent)
        assert decoded(ask(port, 1)) == [reply_of(1)]


def test_faults_know_the_framing_of_ascii_and_dlt645() -> None:
    said = faults.Reply(modbus.encode_ascii(reply_of(1)))
    (other,) = modbus.AsciiDecoder().feed(faults.from_another_meter(7)(said).raw)
    assert other == Frame(0, 7, reply_of(1).pdu)
    decoder = modbus.AsciiDecoder()
    assert all(isinstance(event, Garbage) for event in decoder.feed(faults.wrong_checksum(said).raw) + decoder.flush())
    answer = dlt645.reply(dlt645.read("000000123456", 0x00010000), "000000123456", b"\x12\x34\x56\x78")
    said = faults.Reply(dlt645.encode(answer))
    (changed,) = dlt645.Decoder().feed(faults.from_another_meter("000000999999")(said).raw)
    assert isinstance(changed, dlt645.Frame) and (changed.address, changed.data) == ("000000999999", answer.data)
    listener = dlt645.Decoder()
    assert not [e for e in listener.feed(faults.wrong_checksum(said).raw) if isinstance(e, dlt645.Frame)]


def test_a_late_reply_comes_into_the_next_turn() -> None:
    line = SerialLine([meter(1), meter(2)])
    line.order(faults.late(0.3), faults.silent)
    with opened(line) as port:
        assert ask(port, 1, timeout_s=0.1) == b""
        assert decoded(ask(port, 2)) == [reply_of(1)], "what a client that does not look at the unit would book"


def test_an_adapter_hears_itself() -> None:
    with opened(SerialLine([meter(1)], echoes=True)) as port:
        question = Frame(0, 1, modbus.encode_read(3, 0, 2))
        request = modbus.encode_rtu(question)
        decoder = modbus.RtuDecoder(replies_only=True)
        decoder.sent(question)
        os.write(port, request)
        assert decoder.feed(read(port, 8 + 9)) == [Echo(request), reply_of(1)]


def test_meters_that_answer_at_once_garble_each_other() -> None:
    with opened(SerialLine([meter(1), Meter(modbus_meter(1, registers(2)), FAST, 0.002)])) as port:
        raw = ask(port, 1)
        assert reply_of(1) not in decoded(raw) and decoded(raw) != [Frame(0, 1, reply_of(2).pdu)]


def test_at_another_speed_a_client_gets_no_answer_and_at_the_right_one_it_does() -> None:
    line = SerialLine([meter(1, Setting(2400)), meter(2, Setting(9600))])
    with opened(line, termios.B9600) as port:
        assert ask(port, 1, timeout_s=0.2) == b""
        assert decoded(ask(port, 2)) == [reply_of(2)]
        attributes = termios.tcgetattr(port)
        attributes[4] = attributes[5] = termios.B2400
        termios.tcsetattr(port, termios.TCSANOW, attributes)
        assert decoded(ask(port, 1)) == [reply_of(1)]


def test_a_client_without_parity_is_not_understood_by_a_meter_with_parity() -> None:
    with opened(SerialLine([meter(1, Setting(9600, "E"))], client=Setting(9600, "N"))) as port:
        assert ask(port, 1, timeout_s=0.2) == b""


def test_ascii_meters_and_dlt645_meters_speak_on_it_too() -> None:
    def answer(request: dlt645.Frame) -> dlt645.Frame:
        return dlt645.reply(request, "000000123456", b"\x12\x34\x56\x78")

    with opened(SerialLine([meter(3, ascii=True), Meter(dlt645_meter("000000123456", answer), FAST)])) as port:
        os.write(port, modbus.encode_ascii(Frame(0, 3, modbus.encode_read(3, 0, 2))))
        assert modbus.AsciiDecoder().feed(read(port, 19)) == [reply_of(3)]
        request = dlt645.read("000000123456", 0x00010000)
        os.write(port, dlt645.encode(request))
        expected = dlt645.encode(answer(request))
        assert dlt645.Decoder().feed(read(port, len(expected))) == [answer(request)]


@given(st.binary(max_size=40), st.sampled_from([1200, 2400, 4800, 9600, 19200]), st.sampled_from([1200, 2400, 9600]))
def test_a_uart_hears_something_of_bounded_length(raw: bytes, sent: int, heard: int) -> None:
    told = overhear(raw, Setting(sent), Setting(heard))
    assert len(told) <= len(raw) * 11 * max(1, heard // sent + 1)
    assert sent != heard or told == raw


def test_a_uart_sampling_back_to_back_bytes_with_the_same_bits_hears_them() -> None:
    """One stop bit fewer than sent changes nothing: the line rests in between."""
    raw = bytes(itertools.islice(itertools.cycle(range(256)), 300))
    assert overhear(raw, Setting(9600, "N", 2), Setting(9600, "N", 1)) == raw
