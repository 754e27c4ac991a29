"""DL/T 645-2007: public frames, properties, and a decoder nobody here wrote."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import dlt645
from protocols.dlt645 import Decoder, Fault, Frame, LoadRecord, RelayAction, RelayOrder
from protocols.framing import GARBAGE_BYTES_MAX, FrameError, Garbage, MeterError

BEIJING = timezone(timedelta(hours=8))
METER = "000000123456"

# Frames from public code and captures, with the source the corpus gives for each.
ENERGY_REPLY = bytes.fromhex("6861010000000068910833333433593333338A16")  # F001, a Java log of 2017: 0.26 kWh
ADDRESS_REPLY = bytes.fromhex("FEFEFEFEFEFEFE6812907856341268930645C3AB8967450716")  # F040, a C# test: 7 preambles
REFUSAL = bytes.fromhex("FEFEFEFE6860079204009168D101376716")  # F051, a Go test: password or not authorised
CLOSE_PERMITTED = bytes.fromhex("68611001301215681C10356A3935343333334E333333336345CC2D16")  # F071, a 376.1 gateway
BROADCAST_TIME = bytes.fromhex("6899999999999968080684554338394A4B16")  # F084, meter firmware: 2017-06-05 10:22:51

frames = st.builds(
    Frame,
    address=st.text("0123456789A", min_size=12, max_size=12),
    control=st.integers(0, 255),
    data=st.binary(max_size=dlt645.DATA_BYTES_MAX),
)


def only_frame(raw: bytes) -> Frame:
    (frame,) = Decoder().feed(raw)
    assert isinstance(frame, Frame)
    return frame


def test_a_recorded_reply_decodes_to_its_register() -> None:
    frame = only_frame(ENERGY_REPLY)
    request = dlt645.read("000000000161", 0x00010000)
    assert dlt645.is_answer(request, frame)
    assert dlt645.decode_item(0x00010000, dlt645.decode_reply(request, frame)) == (26,)


def test_the_address_reply_carries_the_real_address_after_any_preamble() -> None:
    frame = only_frame(ADDRESS_REPLY)
    request = dlt645.read_address()
    assert dlt645.is_answer(request, frame)
    assert dlt645.decode_address(dlt645.decode_reply(request, frame)) == "123456789012"


def test_a_refusal_names_its_error_bits() -> None:
    with pytest.raises(MeterError, match="password_or_unauthorised") as caught:
        dlt645.decode_reply(dlt645.read("910004920760", 0x00010000), only_frame(REFUSAL))
    assert caught.value.code == Fault.PASSWORD_OR_UNAUTHORISED


def test_a_relay_order_has_password_operator_and_expiry_low_byte_first() -> None:
    order = RelayOrder(RelayAction.CLOSE_PERMITTED, "02020637", "00000001", datetime(2099, 12, 30, tzinfo=BEIJING))
    assert dlt645.decode_relay(only_frame(CLOSE_PERMITTED), BEIJING) == order
    assert dlt645.encode(dlt645.relay("151230011061", order, BEIJING), preamble=0) == CLOSE_PERMITTED


def test_broadcast_time_is_local_and_seconds_first() -> None:
    moment = datetime(2017, 6, 5, 10, 22, 51, tzinfo=BEIJING)
    assert dlt645.decode_broadcast_time(only_frame(BROADCAST_TIME), BEIJING) == moment
    assert dlt645.encode(dlt645.broadcast_time(moment, BEIJING), preamble=0) == BROADCAST_TIME


def test_a_relay_order_without_a_date_is_rejected() -> None:
    frame = only_frame(bytes.fromhex("68061024051920681C1035333333333333334D33333333333333C016"))  # F083
    with pytest.raises(FrameError, match="time"):
        dlt645.decode_relay(frame, BEIJING)


# ---- the stream ------------------------------------------------------------------------------------------------------


@given(frames, st.integers(0, 7))
def test_what_is_encoded_decodes(frame: Frame, preamble: int) -> None:
    assert Decoder().feed(dlt645.encode(frame, preamble=preamble)) == [frame]


@given(
    st.lists(st.one_of(frames.map(dlt645.encode), st.binary(max_size=40), st.just(b"\x68"), st.just(b"\xfe" * 300))),
    st.data(),
)
def test_any_chunking_gives_the_same_events(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    whole, pieces = Decoder(), Decoder()
    events: list[Frame | Garbage] = []
    rest = stream
    while rest:
        size = data.draw(st.integers(1, max(1, min(len(rest), 60))))
        events += pieces.feed(rest[:size])
        rest = rest[size:]
    assert events + pieces.flush() == whole.feed(stream) + whole.flush()


@given(st.binary(max_size=30), frames)
def test_a_frame_is_found_after_garbage_and_a_false_start(garbage: bytes, frame: Frame) -> None:
    decoder = Decoder()
    stream = garbage + bytes.fromhex("68") + dlt645.encode(frame)
    assert frame in decoder.feed(stream) + decoder.flush()


def test_garbage_is_handed_out_in_bounded_pieces() -> None:
    events = Decoder().feed(b"\x00" * 1000)
    assert [len(event.raw) for event in events if isinstance(event, Garbage)] == [GARBAGE_BYTES_MAX] * 3


def test_a_frame_swallowed_by_a_false_length_comes_out_when_the_line_falls_silent() -> None:
    false_start = bytes.fromhex("68 000000000000 68 91 c8")  # promises 200 bytes of data
    decoder = Decoder()
    assert decoder.feed(false_start + ENERGY_REPLY) == []
    assert decoder.flush()[-1] == only_frame(ENERGY_REPLY)


# ---- what counts as an answer ----------------------------------------------------------------------------------------

REQUEST = dlt645.read(METER, 0x00010000)


@pytest.mark.parametrize(
    ("frame", "counts"),
    [
        (dlt645.reply(REQUEST, METER, bytes(4)), True),
        (dlt645.refuse(REQUEST, METER, Fault.OTHER), True),
        (REQUEST, False),  # the RS-485 echo of one's own request
        (dlt645.reply(REQUEST, "000000123457", bytes(4)), False),  # another meter
        (dlt645.reply(dlt645.read(METER, 0x00020000), METER, bytes(4)), False),  # another item, late
        (dlt645.reply(dlt645.read_address(), METER, bytes(6)), False),  # another function
    ],
)
def test_only_a_reply_to_this_request_counts(frame: Frame, counts: bool) -> None:
    assert dlt645.is_answer(REQUEST, frame) is counts


def test_aa_abbreviates_an_address_from_the_high_end() -> None:
    assert dlt645.address_matches("AAAAAAAA3456", METER)
    assert not dlt645.address_matches("AAAAAAAA3457", METER)
    assert dlt645.address_matches(dlt645.WILDCARD, METER)


# ---- values ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.booleans(), st.data())
def test_bcd_goes_there_and_back(size: int, signed: bool, data: st.DataObject) -> None:
    most = 8 * 10 ** (2 * size - 1) - 1 if signed else 10 ** (2 * size) - 1
    value = data.draw(st.none() | st.integers(-most if signed else 0, most))
    assert dlt645.decode_bcd(dlt645.encode_bcd(value, size, signed=signed), signed=signed) == value


def test_the_top_bit_is_a_sign_only_where_the_item_is_signed() -> None:
    raw = bytes.fromhex("0022 80")
    assert dlt645.decode_bcd(raw, signed=True) == -2200
    assert dlt645.decode_bcd(raw) == 802200


@pytest.mark.parametrize("raw", ["0e00", "00af", "ff12"])
def test_what_is_not_bcd_is_rejected_with_its_bytes(raw: str) -> None:
    with pytest.raises(FrameError) as caught:
        dlt645.decode_bcd(bytes.fromhex(raw))
    assert caught.value.raw == bytes.fromhex(raw)


def test_a_number_that_does_not_fit_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        dlt645.encode_bcd(10_000, 2)
    with pytest.raises(ValueError, match="does not fit"):
        dlt645.encode_bcd(-1, 2)


def test_missing_phases_are_null_and_odd_lengths_are_rejected() -> None:
    assert dlt645.decode_item(0x0201FF00, bytes.fromhex("5622 ffff ffff")) == (2256, None, None)  # F020
    assert dlt645.decode_item(0x0201FF00, bytes.fromhex("5622")) == (2256, None, None)
    with pytest.raises(FrameError, match="3 x 2 bytes expected, got 3"):
        dlt645.decode_item(0x0201FF00, bytes.fromhex("562200"))


@given(st.datetimes(datetime(2001, 1, 1), datetime(2098, 12, 31), timezones=st.just(UTC)))  # noqa: DTZ001
def test_the_clock_goes_there_and_back(moment: datetime) -> None:
    date = dlt645.encode_time(moment, "wdmy", BEIJING)
    time = dlt645.encode_time(moment, "SMH", BEIJING)
    assert dlt645.decode_clock(date, time, BEIJING) == moment.replace(microsecond=0)


def test_a_week_starts_with_sunday_zero() -> None:
    assert dlt645.encode_time(datetime(2024, 3, 3, tzinfo=BEIJING), "w", BEIJING) == b"\x00"


def test_a_time_of_all_ff_is_rejected() -> None:
    with pytest.raises(FrameError, match="time: null"):
        dlt645.decode_clock(bytes.fromhex("05010626"), bytes.fromhex("0000ff"), BEIJING)


def test_part_of_an_item_is_not_taken_for_the_item() -> None:
    frame = only_frame(ENERGY_REPLY)
    more = Frame(frame.address, frame.control | 0x20, frame.data)
    with pytest.raises(FrameError, match="more frames follow"):
        dlt645.decode_reply(dlt645.read(frame.address, 0x00010000), more)


# ---- load records ----------------------------------------------------------------------------------------------------

# F369 (synthetic, from the standard's layout): class 4 only, 2022-06-15 10:00 Beijing time.
CLASS_4 = bytes.fromhex("A0A01B0010150622AAAAAA78563412210300001100000022000000AAAAAA0FE5")
TEN_O_CLOCK = datetime(2022, 6, 15, 10, tzinfo=BEIJING)


def test_a_load_record_of_class_4_decodes_and_encodes_again() -> None:
    record = LoadRecord(TEN_O_CLOCK, 123_456_780, 3_210, 110, 220)
    assert dlt645.decode_load_records(CLASS_4, BEIJING) == [record]
    assert dlt645.encode_load_records([record], BEIJING) == CLASS_4


def test_no_record_is_no_data_and_six_fit_one_reply() -> None:
    assert dlt645.decode_load_records(b"", BEIJING) == []
    records = [
        LoadRecord(TEN_O_CLOCK + i * timedelta(minutes=15), 10 * i, None, -20, 0, is_bad=i == 3)
        for i in range(dlt645.LOAD_RECORDS_MAX)
    ]
    data = dlt645.encode_load_records(records, BEIJING)
    assert len(data) + 4 <= dlt645.DATA_BYTES_MAX
    assert dlt645.decode_load_records(data, BEIJING) == records


def test_leading_aa_that_a_meter_leaves_out_are_not_missed() -> None:
    body = CLASS_4[3:8] + CLASS_4[11:30]
    record = bytes((0xA0, 0xA0, len(body))) + body
    assert dlt645.decode_load_records(
        record + bytes((sum(record) & 0xFF, 0xE5)), BEIJING
    ) == dlt645.decode_load_records(CLASS_4, BEIJING)


@given(st.integers(0, len(CLASS_4) - 1), st.integers(1, 255))
def test_a_damaged_load_record_is_rejected_or_whole(place: int, change: int) -> None:
    damaged = bytearray(CLASS_4)
    damaged[place] ^= change
    with pytest.raises(FrameError):
        dlt645.decode_load_records(bytes(damaged), BEIJING)


def test_the_load_query_goes_there_and_back() -> None:
    extra = dlt645.encode_load_query(6, TEN_O_CLOCK, BEIJING)
    assert extra == bytes.fromhex("06 0010150622")
    assert dlt645.decode_load_query(extra, BEIJING) == (6, TEN_O_CLOCK)
    assert dlt645.decode_load_query(dlt645.encode_load_query(1, None, BEIJING), BEIJING) == (1, None)


# ---- a peer ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # its first call imports the package
@given(frames)
def test_the_dlt645_package_frames_as_we_do(frame: Frame) -> None:
    from dlt645.protocol.protocol import DLT645Protocol

    # The package takes the address as it is on the wire.
    raw = bytes(DLT645Protocol.build_frame(bytes.fromhex(frame.address)[::-1], frame.control, frame.data))
    assert raw == dlt645.encode(frame)
    theirs = DLT645Protocol.deserialize(raw)
    assert (bytes(theirs.addr)[::-1].hex().upper(), theirs.ctrl_code) == (frame.address, frame.control)
