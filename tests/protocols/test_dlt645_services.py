"""Every function of DL/T 645, both sides: what a master encodes a meter decodes, and only its answer counts."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import dlt645
from protocols.dlt645 import Credentials, Fault, Fault1997, Frame, Function, LongRead, Output, edition1997, explain
from protocols.framing import FrameError, MeterError

BEIJING = timezone(timedelta(hours=8))
METER = "000000123456"
WHO = Credentials("04123456", "12345678")


def on_the_wire(frame: Frame) -> Frame:
    (found,) = dlt645.Decoder().feed(dlt645.encode(frame))
    assert isinstance(found, Frame)
    return found


def test_the_corpus_orders_are_encoded_byte_by_byte() -> None:
    """The synthetic F373, F374, F380, F391, F403, F406 and the public F128 of the shared corpus, after 33H is off."""
    two = Credentials("02123456", "12345678")
    assert dlt645.freeze(day="01", hour="10", minute="00").data == bytes.fromhex("00100199")
    assert dlt645.freeze(hour="23", minute="00").data == bytes.fromhex("00239999")
    assert dlt645.write_address(METER).data == bytes.fromhex("563412000000")
    assert dlt645.event_clear(METER, two).data == bytes.fromhex("0256341278563412FFFFFFFF")
    assert dlt645.set_output(METER, Output.DEMAND_PERIOD).data == b"\x01"
    assert dlt645.write(METER, 0x04000103, two, b"\x15").data == bytes.fromhex("03010004025634127856341215")
    assert dlt645.change_speed(METER, 2400).data == b"\x08"


def test_what_the_master_asks_the_meter_reads() -> None:
    write = on_the_wire(dlt645.write(METER, 0x04000103, WHO, b"\x15"))
    assert dlt645.decode_write(write) == (0x04000103, WHO, b"\x15")
    assert dlt645.decode_freeze(on_the_wire(dlt645.freeze(METER))) == ("99", "99", "99", "99")
    assert dlt645.decode_address(on_the_wire(dlt645.write_address("201900000007")).data) == "201900000007"
    assert dlt645.decode_clear(on_the_wire(dlt645.demand_reset(METER, WHO))) == (WHO, None)
    assert dlt645.decode_clear(on_the_wire(dlt645.meter_clear(METER, WHO))) == (WHO, None)
    assert dlt645.decode_clear(on_the_wire(dlt645.event_clear(METER, WHO, 0x03300D01))) == (WHO, 0x03300D01)
    change = on_the_wire(dlt645.change_password(METER, 0x04000C05, "04123456", "04654321"))
    assert dlt645.decode_change_password(change) == (0x04000C05, "04123456", "04654321")
    for baud in dlt645.SPEED_WORDS:
        assert dlt645.decode_speed(on_the_wire(dlt645.change_speed(METER, baud)).data) == baud
    security = on_the_wire(dlt645.security(METER, 0x07000002, "12345678", b"\x01\x02"))
    assert security.edition == "2007"
    meaning = explain(security)
    assert (meaning["operator"], meaning["raw"]) == ("12345678", "0102")


@pytest.mark.parametrize("action", list(dlt645.RelayAction))
def test_every_relay_action_goes_there_and_back(action: dlt645.RelayAction) -> None:
    order = dlt645.RelayOrder(action, "02123456", "12345678", datetime(2026, 12, 31, 15, 59, 59, tzinfo=UTC))
    assert dlt645.decode_relay(on_the_wire(dlt645.relay(METER, order, BEIJING)), BEIJING) == order


def test_what_no_meter_takes_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="600, 1200, 2400"):
        dlt645.change_speed(METER, 300)
    with pytest.raises(ValueError, match="at most 50"):
        dlt645.write(METER, 0x04000403, WHO, bytes(39))
    with pytest.raises(ValueError, match="8 digits"):
        dlt645.demand_reset(METER, Credentials("123456"))
    with pytest.raises(ValueError, match="07xxxxxx"):
        dlt645.security(METER, 0x04000101, "12345678", b"")


def test_a_password_is_in_no_message_and_no_representation() -> None:
    assert "123456'" not in repr(WHO)
    with pytest.raises(FrameError) as caught:
        dlt645.decode_clear(Frame(METER, Function.METER_CLEAR, bytes.fromhex("0456341278")))
    assert "56 34 12" not in str(caught.value)


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "data", "counts"),
    [
        (dlt645.change_speed(METER, 9600), b"\x20", True),
        (dlt645.change_speed(METER, 9600), b"\x08", False),
        (dlt645.set_output(METER, Output.SLOT_SWITCH), b"\x02", True),
        (dlt645.change_password(METER, 0x04000C05, "04123456", "04654321"), bytes.fromhex("04214365"), True),
        (dlt645.change_password(METER, 0x04000C05, "04123456", "04654321"), bytes.fromhex("04563412"), False),
        (dlt645.meter_clear(METER, WHO), b"", True),
        (dlt645.write(METER, 0x04000103, WHO, b"\x15"), b"", True),
    ],
)
def test_an_answer_repeats_what_it_must(request_: Frame, data: bytes, counts: bool) -> None:
    assert dlt645.is_answer(request_, dlt645.reply(request_, METER, data)) is counts
    assert dlt645.is_answer(request_, dlt645.refuse(request_, METER, Fault.OTHER))


def test_a_meter_may_answer_from_its_new_address() -> None:
    request = dlt645.write_address("201900000007", METER)
    assert dlt645.is_answer(request, dlt645.reply(request, "201900000007"))
    assert not dlt645.is_answer(request, dlt645.reply(request, "201900000008"))


@pytest.mark.parametrize("code", range(256))
def test_every_error_byte_is_named_in_both_editions(code: int) -> None:
    for request in (dlt645.read(METER, 0x00010000), edition1997.read(METER, 0x9010)):
        answer = Frame(METER, request.control | 0xC0, bytes((code,)))
        with pytest.raises(MeterError) as caught:
            dlt645.decode_reply(request, answer)
        bits = Fault if request.edition == "2007" else Fault1997
        want = [(bit.name or "").lower() for bit in bits if code & bit]
        assert list(caught.value.names) == (want or ["no reason given"])


# ---- long answers ----------------------------------------------------------------------------------------------------


@given(
    st.binary(max_size=3000),
    st.integers(8, dlt645.DATA_BYTES_MAX),
    st.sampled_from([dlt645.read(METER, 0x0001FF00), edition1997.read(METER, 0x901F)]),
    st.booleans(),
)
def test_what_a_meter_splits_the_client_joins(data: bytes, room: int, request: Frame, by_wildcard: bool) -> None:
    if by_wildcard:
        request = Frame("A" * 12, request.control, request.data)
    if len(data) > 200 * (room - 6):
        data = data[: 200 * (room - 6)]
    parts = dlt645.split_reply(request, METER, data, bytes_max=room)
    reading = LongRead(request)
    for number, part in enumerate(parts):
        asked = on_the_wire(reading.request)
        assert asked.address == (request.address if number == 0 else METER)
        if number and request.edition == "2007":
            assert asked.data[-1] == number
        assert len(part.data) <= room
        whole = reading.take(on_the_wire(part))
        assert (whole is None) is (number < len(parts) - 1)
    assert whole == data


def test_a_part_that_was_not_asked_for_is_not_taken() -> None:
    request = dlt645.read(METER, 0x0001FF00)
    parts = dlt645.split_reply(request, METER, bytes(500))
    reading = LongRead(request)
    assert reading.take(parts[0]) is None
    with pytest.raises(ValueError, match="not the answer"):
        reading.take(parts[2])
    with pytest.raises(MeterError, match="no_requested_data"):
        reading.take(dlt645.refuse(reading.request, METER, Fault.NO_REQUESTED_DATA))
    assert reading.take(parts[1]) is None
    assert reading.take(parts[2]) == bytes(500)


def test_a_meter_that_never_ends_is_stopped() -> None:
    reading = LongRead(edition1997.read(METER, 0x901F))
    with pytest.raises(FrameError, match="more than 256 parts"):
        while True:
            data = reading.request.data[:2] + b"\x00"
            assert reading.take(Frame(METER, reading.request.control | 0xA0, data)) is None


# ---- 1997 ------------------------------------------------------------------------------------------------------------


def test_the_1997_functions_go_there_and_back() -> None:
    write = on_the_wire(edition1997.write(METER, 0xC111, "04123456", b"\x15"))
    assert (write.edition, edition1997.decode_write(write)) == ("1997", (0xC111, "04123456", b"\x15"))
    assert explain(write)["value"] == "15"
    assert edition1997.decode_read(on_the_wire(edition1997.read_follow_up(METER, 0x901F))) == (0x901F, b"")
    change = on_the_wire(edition1997.change_password(METER, "04123456", "04654321"))
    assert edition1997.decode_change_password(change) == ("04123456", "04654321")
    for frame in (
        edition1997.write_address("201900000007"),
        edition1997.change_speed(METER, 0x10),
        edition1997.demand_reset(METER, "04123456"),
    ):
        answer = dlt645.reply(frame, "201900000007" if "A" in frame.address else METER)
        assert (on_the_wire(frame).edition, dlt645.is_answer(frame, answer)) == ("1997", True)


def test_a_1997_answer_must_be_about_the_same_item() -> None:
    request = edition1997.read(METER, 0x9010)
    assert dlt645.decode_reply(request, dlt645.reply(request, METER, bytes(4))) == bytes(4)
    assert not dlt645.is_answer(request, dlt645.reply(edition1997.read(METER, 0x9020), METER, bytes(4)))
    assert not dlt645.is_answer(request, dlt645.reply(dlt645.read(METER, 0x00010000), METER, bytes(4)))
