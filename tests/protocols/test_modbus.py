"""Modbus TCP: the standard's own examples, properties, and pymodbus as the judge of our PDUs."""

import contextlib
import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import modbus
from protocols.framing import FrameError, Garbage, MeterError
from protocols.modbus import FileRange, Frame, TcpDecoder

frames = st.builds(
    Frame, st.integers(0, 0xFFFF), st.integers(0, 255), st.binary(min_size=1, max_size=modbus.PDU_BYTES_MAX)
)


def test_read_holding_registers_request_and_reply() -> None:
    """Modbus Application Protocol V1.1b3 §6.3: three registers from 107."""
    request = modbus.encode_read(0x03, 0x006B, 3)
    assert request == bytes.fromhex("03 006B 0003")
    assert modbus.decode_read(request) == (0x006B, 3)
    reply = bytes.fromhex("03 06 022B 0000 0064")
    assert modbus.decode_read_reply(reply, 3) == bytes.fromhex("022B 0000 0064")
    assert modbus.encode_read_reply(0x03, bytes.fromhex("022B 0000 0064")) == reply


def test_write_single_register() -> None:
    """§6.6: register 1 to 3; the reply repeats the request."""
    request = modbus.encode_write_one(0x0001, 0x0003)
    assert request == bytes.fromhex("06 0001 0003")
    assert modbus.decode_write(request) == (1, b"\x00\x03")
    modbus.check_write_reply(request, modbus.encode_write_reply(request))


def test_write_multiple_registers() -> None:
    """§6.12: two registers from 1."""
    request = modbus.encode_write_many(0x0001, bytes.fromhex("000A 0102"))
    assert request == bytes.fromhex("10 0001 0002 04 000A 0102")
    assert modbus.decode_write(request) == (1, bytes.fromhex("000A 0102"))
    assert modbus.encode_write_reply(request) == bytes.fromhex("10 0001 0002")
    modbus.check_write_reply(request, bytes.fromhex("10 0001 0002"))
    with pytest.raises(FrameError, match="expected"):
        modbus.check_write_reply(request, bytes.fromhex("10 0001 0001"))


def test_read_file_record() -> None:
    """§6.14: two registers from file 4, record 1, and two from file 3, record 9."""
    ranges = [FileRange(4, 1, 2), FileRange(3, 9, 2)]
    request = modbus.encode_read_file(ranges)
    assert request == bytes.fromhex("14 0E 06 0004 0001 0002 06 0003 0009 0002")
    assert modbus.decode_read_file(request) == ranges
    reply = bytes.fromhex("14 0C 05 06 0DFE 0020 05 06 33CD 0040")
    parts = [bytes.fromhex("0DFE 0020"), bytes.fromhex("33CD 0040")]
    assert modbus.decode_read_file_reply(reply, ranges) == parts
    assert modbus.encode_read_file_reply(parts) == reply


def test_a_file_read_that_would_not_fit_its_reply_is_refused_on_both_sides() -> None:
    assert modbus.encode_read_file([FileRange(1, 0, 120)])
    with pytest.raises(ValueError, match="245 fit"):
        modbus.encode_read_file([FileRange(1, 0, 122)])
    with pytest.raises(FrameError, match="would not fit"):
        modbus.decode_read_file(bytes.fromhex("14 07 06 0001 0000 00FF"))


def test_an_exception_is_raised_by_its_name() -> None:
    with pytest.raises(MeterError, match="illegal_data_address") as caught:
        modbus.decode_read_reply(modbus.encode_exception(0x03, modbus.Fault.ILLEGAL_DATA_ADDRESS), 1)
    assert caught.value.code == 2
    with pytest.raises(MeterError, match="unknown exception"):
        modbus.decode_read_reply(b"\x83\x77", 1)


def test_a_reply_of_another_length_is_not_cut_to_fit() -> None:
    with pytest.raises(FrameError, match="3 registers expected"):
        modbus.decode_read_reply(bytes.fromhex("03 04 022B 0000"), 3)


@given(frames)
def test_what_is_encoded_decodes(frame: Frame) -> None:
    assert TcpDecoder().feed(modbus.encode(frame)) == [frame]


@given(st.lists(st.one_of(frames.map(modbus.encode), st.binary(max_size=20))), st.data())
def test_any_chunking_gives_the_same_events(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    whole, pieces = TcpDecoder(), TcpDecoder()
    events: list[Frame | Garbage] = []
    rest = stream
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        events += pieces.feed(rest[:size])
        rest = rest[size:]
    assert events + pieces.flush() == whole.feed(stream) + whole.flush()


def test_a_gateways_banner_is_garbage_before_the_frame() -> None:
    frame = Frame(7, 1, b"\x03\x02\x00\x01")
    assert TcpDecoder().feed(b"HELLO-GATEWAY!" + modbus.encode(frame))[-1] == frame


@pytest.mark.parametrize(
    ("frame", "counts"),
    [
        (Frame(9, 5, b"\x03\x02\x00\x01"), True),
        (Frame(9, 5, b"\x83\x02"), True),
        (Frame(8, 5, b"\x03\x02\x00\x01"), False),  # an earlier request's
        (Frame(9, 6, b"\x03\x02\x00\x01"), False),  # another meter's
        (Frame(9, 5, b"\x04\x02\x00\x01"), False),  # another function's
    ],
)
def test_only_a_reply_to_this_request_counts(frame: Frame, counts: bool) -> None:
    assert modbus.is_answer(Frame(9, 5, modbus.encode_read(3, 0, 1)), frame) is counts


@given(st.sampled_from(sorted(modbus.TYPES)), st.sampled_from(["big", "little"]), st.data())
def test_values_go_there_and_back_in_either_word_order(kind: str, order: str, data: st.DataObject) -> None:
    bits = 16 * modbus.TYPES[kind][1]
    value: float
    if kind.startswith("float"):
        value = data.draw(st.floats(allow_nan=False, allow_infinity=False, width=32))
    elif kind.startswith("u"):
        value = data.draw(st.integers(0, 2**bits - 1))
    else:
        value = data.draw(st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
    raw = modbus.encode_value(value, kind, word_order=order)
    assert modbus.decode_value(raw, kind, word_order=order) == value


def test_words_are_swapped_but_not_their_bytes() -> None:
    assert modbus.decode_value(bytes.fromhex("3344 1122"), "uint32", word_order="little") == 0x11223344


def test_nan_and_infinity_are_null() -> None:
    assert modbus.decode_value(struct.pack(">f", math.nan), "float32") is None
    assert modbus.decode_value(struct.pack(">f", math.inf), "float32") is None
    assert modbus.decode_value(modbus.encode_value(None, "float32"), "float32") is None
    assert modbus.encode_value(None, "uint32") == b"\xff" * 4


@given(st.binary(min_size=1, max_size=260))
def test_no_pdu_raises_anything_but_what_is_documented(pdu: bytes) -> None:
    for decode in (
        modbus.decode_read,
        modbus.decode_write,
        modbus.decode_read_file,
        lambda pdu: modbus.decode_read_reply(pdu, 3),
        lambda pdu: modbus.decode_read_file_reply(pdu, [FileRange(1, 0, 10)]),
    ):
        with contextlib.suppress(FrameError, MeterError):
            decode(pdu)
