"""Modbus PDUs and TCP framing: the standard's own examples and properties."""

import contextlib

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


def test_read_coils_and_discrete_inputs() -> None:
    """§6.1: coils 20 to 38; §6.2: inputs 197 to 218."""
    assert modbus.encode_read(0x01, 0x13, 0x13) == bytes.fromhex("01 0013 0013")
    coils = modbus.decode_bits_reply(bytes.fromhex("01 03 CD6B05"), 19)
    assert coils[:8] == (True, False, True, True, False, False, True, True)  # 27 to 20: 1100 1101
    assert coils[16:] == (True, False, True)  # 38 to 36: 101
    assert modbus.encode_bits_reply(0x01, coils) == bytes.fromhex("01 03 CD6B05")
    assert modbus.decode_read(bytes.fromhex("02 00C4 0016")) == (0xC4, 22)
    inputs = modbus.decode_bits_reply(bytes.fromhex("02 03 ACDB35"), 22)
    assert modbus.encode_bits_reply(0x02, inputs) == bytes.fromhex("02 03 ACDB35")
    with pytest.raises(FrameError, match="9 bits expected"):
        modbus.decode_bits_reply(bytes.fromhex("01 01 CD"), 9)


def test_read_input_registers() -> None:
    """§6.4: register 9 is 10."""
    assert modbus.encode_read(0x04, 8, 1) == bytes.fromhex("04 0008 0001")
    assert modbus.decode_read_reply(bytes.fromhex("04 02 000A"), 1) == b"\x00\x0a"


def test_write_coils() -> None:
    """§6.5: coil 173 on; §6.11: ten coils from 20."""
    request = modbus.encode_write_coil(0xAC, True)
    assert request == bytes.fromhex("05 00AC FF00")
    assert modbus.decode_write_coils(request) == (0xAC, (True,))
    modbus.check_write_reply(request, modbus.encode_write_reply(request))
    states = [True, False, True, True, False, False, True, True, True, False]
    request = modbus.encode_write_coils(0x13, states)
    assert request == bytes.fromhex("0F 0013 000A 02 CD01")
    assert modbus.decode_write_coils(request) == (0x13, tuple(states))
    assert modbus.encode_write_reply(request) == bytes.fromhex("0F 0013 000A")
    with pytest.raises(FrameError, match="FF00H"):
        modbus.decode_write_coils(bytes.fromhex("05 00AC 0001"))


NAMES = {0: b"Company identification", 1: b"Product code XX", 2: b"V2.11"}


def test_read_device_identification() -> None:
    """§6.21, the example of one transaction; its text prints 0DH as the length of the 15 bytes of the second object."""
    assert modbus.encode_identify() == bytes.fromhex("2B 0E 01 00")
    assert modbus.decode_identify(bytes.fromhex("2B 0E 01 00")) == (modbus.Access.BASIC, 0)
    reply = modbus.encode_identify_reply(modbus.Access.BASIC, 0, NAMES)
    assert reply[:9] == bytes.fromhex("2B 0E 01 81 00 00 03 00 16")
    assert modbus.decode_identify_reply(reply) == modbus.Identification(0x81, NAMES)


def test_one_object_is_given_or_refused() -> None:
    reply = modbus.encode_identify_reply(modbus.Access.ONE, 2, NAMES)
    assert modbus.decode_identify_reply(reply).objects == {2: b"V2.11"}
    with pytest.raises(MeterError, match="illegal_data_address"):
        modbus.decode_identify_reply(modbus.encode_identify_reply(modbus.Access.ONE, 9, NAMES))


@given(st.dictionaries(st.integers(0, 255), st.binary(max_size=244), min_size=1, max_size=12))
def test_a_long_identification_comes_in_several_replies(objects: dict[int, bytes]) -> None:
    heard: dict[int, bytes] = {}
    first: int | None = 0
    while first is not None:
        reply = modbus.encode_identify_reply(modbus.Access.EXTENDED, first, objects)
        assert len(reply) <= modbus.PDU_BYTES_MAX
        part = modbus.decode_identify_reply(reply)
        heard |= part.objects
        first = part.next_object
    assert heard == objects


def test_an_identification_that_would_go_on_for_ever_is_refused() -> None:
    with pytest.raises(FrameError, match="begin again"):
        modbus.decode_identify_reply(bytes.fromhex("2B 0E 01 81 FF 00 01 00 01 41"))


@pytest.mark.parametrize(("function", "count"), [(1, 2001), (3, 126), (4, 0), (2, 0)])
def test_a_read_of_too_much_is_refused_on_both_sides(function: int, count: int) -> None:
    with pytest.raises(ValueError, match="count"):
        modbus.encode_read(function, 0, count)
    with pytest.raises(FrameError, match="count"):
        modbus.decode_read(bytes((function, 0, 0)) + count.to_bytes(2, "big"))


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


@given(st.binary(max_size=260))
def test_no_pdu_raises_anything_but_what_is_documented(pdu: bytes) -> None:
    for decode in (
        modbus.decode_read,
        modbus.decode_write,
        modbus.decode_read_file,
        modbus.decode_write_coils,
        modbus.decode_identify,
        modbus.decode_identify_reply,
        lambda pdu: modbus.decode_bits_reply(pdu, 9),
        lambda pdu: modbus.decode_read_reply(pdu, 3),
        lambda pdu: modbus.decode_read_file_reply(pdu, [FileRange(1, 0, 10)]),
    ):
        with contextlib.suppress(FrameError, MeterError):
            decode(pdu)
