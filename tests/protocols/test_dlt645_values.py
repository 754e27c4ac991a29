"""DL/T 645 values: every identifier there and back, dimensions, load records, and any bytes at all."""

import json
from decimal import Decimal
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import dlt645
from protocols.dlt645 import ITEMS, ITEMS_1997, Broken, Frame, MeterTime, Rejected, Word, decode_data, explain
from protocols.dlt645.load_record import CLASSES, LoadBlock, decode_load_blocks, encode_load_blocks
from protocols.dlt645.table import Kind
from protocols.framing import FrameError

Edition = Literal["1997", "2007"]
EVERY_ITEM: list[tuple[Edition, int]] = [("2007", di) for di in ITEMS] + [("1997", di) for di in ITEMS_1997]


def values(di: int, hexed: str, edition: Edition = "2007") -> tuple[dlt645.Value, ...]:
    return decode_data(edition, di, bytes.fromhex(hexed)).values


@pytest.mark.parametrize(("edition", "di"), EVERY_ITEM)
def test_every_identifier_goes_there_and_back(edition: Edition, di: int) -> None:
    """BCD digits 12 everywhere, and all FF: decoded without a flag, encoded to the same bytes."""
    item = dlt645.items(edition)[di]
    if item.group[0].kind in (Kind.LOAD, Kind.RAW):
        return
    size = (item.group_bytes or 15) * (5 if item.is_open else item.count)
    for byte in (b"\x12", b"1") if item.group[0].kind is Kind.TEXT else (b"\x12", b"\xff"):
        data = byte * size
        found = decode_data(edition, di, data)
        assert (found.flag, found.item) == ("", item)
        assert dlt645.encode_data(edition, di, found.values) == data
        assert json.dumps(explain(Frame("0" * 12, 0x91, dlt645.encode_di(di) + data)))


def test_a_sign_is_a_sign_only_where_the_item_is_signed() -> None:
    assert values(0x02800007, "5580") == (Decimal("-5.5"),)  # F411
    assert values(0x00010000, "78563492") == (Decimal("923456.78"),)  # F413
    assert str(values(0x02020200, "000080")[0]) == "-0.000"


def test_null_bad_digits_and_odd_lengths_are_told_apart() -> None:
    assert values(0x0201FF00, "5622FFFFFFFF") == (Decimal("225.6"), None, None)  # F020
    assert values(0x00010000, "00000E00") == (Rejected(bytes.fromhex("00000E00"), "not BCD"),)  # F181
    odd = decode_data("2007", 0x02010100, bytes.fromhex("44332211"))  # F140
    assert (odd.values, odd.flag) == ((), "length 4 != table 2")
    assert values(0x0201FF00, "5622") == (Decimal("225.6"),)  # a single-phase meter
    assert decode_data("2007", 0x0201FF00, bytes(3)).flag == "length 3 != table 6"
    assert decode_data("2007", 0x0001FF00, bytes(7)).flag == "length 7 != table 4*(1+k)"


def test_dimensions_make_blocks_tariffs_days_and_earlier_records() -> None:
    assert len(values(0x0001FF03, "00" * 20)) == 5
    assert len(values(0x000100FF, "00" * 52)) == 13
    assert len(values(0x000105FF, "00" * 52)) == 13
    assert ITEMS[0x000105FF].name == "forward active tariff 5 energy current+12 settlement days"
    assert ITEMS[0x00013F0C].name == "settlement -12 forward active energy tariff 63"
    assert ITEMS[0x00013F0C].name_zh == "(上12结算日)正向有功费率63电能"
    assert ITEMS[0x0506013E].name == "daily freeze fwd active energy, -62"
    assert 0x0506013F not in ITEMS
    assert 0x00014000 not in ITEMS
    assert 0x00010000 | 0x0D not in ITEMS
    assert 0x0001FFFF not in ITEMS


def test_demand_freezes_and_events_carry_their_times() -> None:
    demand, at = values(0x0101FF00, "3412003015100622")
    assert (demand, str(at)) == (Decimal("0.1234"), "YY=22 MM=06 DD=10 hh=15 mm=30")
    start, end = values(0x03110002, "301510010626401510010626")
    assert (str(start), str(end)) == tuple(f"YY=26 MM=06 DD=01 hh=10 mm=15 ss={ss}" for ss in ("30", "40"))
    loss = values(0x03010103, "3015100106264015100106260102")
    assert (isinstance(loss[0], MeterTime), loss[2]) == (True, dlt645.Raw(b"\x01\x02"))
    assert values(0x04000503, "5000") == (Word("0050"),)  # F074
    assert values(0x04000405, "000041302E35") == ("5.0A",)  # F112


def test_a_1997_block_may_end_with_aa() -> None:
    found = decode_data("1997", 0x901F, bytes.fromhex("3093070128352000AA"))  # the head of F269
    assert (found.values, found.ends_with_aa) == ((Decimal("10793.30"), Decimal("2035.28")), True)


# ---- load records ----------------------------------------------------------------------------------------------------

TIME = MeterTime(("YY", "MM", "DD", "hh", "mm"), ("22", "06", "15", "10", "00"))


@st.composite
def load_blocks(draw: st.DrawFn) -> LoadBlock:
    classes: list[tuple[Decimal | Rejected | None, ...] | None] = []
    for kind in CLASSES:
        if draw(st.booleans()):
            classes.append(None)
            continue
        numbers = []
        for size, decimals, signed in kind.fields:
            most = 8 * 10 ** (2 * size - 1) - 1 if signed else 10 ** (2 * size) - 1
            steps = draw(st.none() | st.integers(-most if signed else 0, most))
            numbers.append(None if steps is None else Decimal(steps).scaleb(-decimals))
        classes.append(tuple(numbers))
    length = 5 + sum(1 + (kind.size if got else 0) for kind, got in zip(CLASSES, classes, strict=True))
    return LoadBlock(length, TIME, bytes.fromhex("0010150622"), tuple(classes), is_bad=draw(st.booleans()))


@given(st.lists(load_blocks(), max_size=3))
def test_load_records_of_all_classes_go_there_and_back(blocks: list[LoadBlock]) -> None:
    assert decode_load_blocks(encode_load_blocks(blocks)) == blocks


@pytest.mark.parametrize("number", range(1, 7))
def test_a_class_is_found_when_the_aas_before_it_are_left_out(number: int) -> None:
    size = CLASSES[number - 1].size
    body = bytes.fromhex("0010150622") + b"\x12" * size + b"\xaa"
    record = b"\xa0\xa0" + bytes((len(body),)) + body
    (block,) = decode_load_blocks(record + bytes((sum(record) & 0xFF, 0xE5)), class_asked=number)
    assert [bool(numbers) for numbers in block.classes] == [place == number for place in range(1, 7)]


@given(st.binary(max_size=120), st.integers(0, 255))
def test_any_bytes_are_load_records_or_a_frame_error(data: bytes, class_asked: int) -> None:
    try:
        decode_load_blocks(data, class_asked)
    except FrameError:
        return


# ---- any bytes at all ------------------------------------------------------------------------------------------------


@given(st.sampled_from(EVERY_ITEM), st.binary(max_size=60))
def test_any_data_of_any_item_is_explained(which: tuple[Edition, int], data: bytes) -> None:
    edition, di = which
    size, control = (2, 0x81) if edition == "1997" else (4, 0x91)
    frame = Frame("0" * 12, control, di.to_bytes(size, "little") + data)
    assert json.dumps(explain(frame))


@given(st.integers(0, 255), st.binary(max_size=dlt645.DATA_BYTES_MAX))
def test_any_frame_is_explained(control: int, data: bytes) -> None:
    frame = Frame("000000123456", control, data)
    assert json.dumps(explain(frame))
    assert all(dlt645.function_name(frame)[:1])


@given(st.binary(max_size=300))
def test_any_bytes_are_one_frame_or_say_why_not(raw: bytes) -> None:
    found = dlt645.decode_one(raw)
    assert isinstance(found, Broken) or dlt645.encode(found, preamble=len(raw) - len(raw.lstrip(b"\xfe"))) == raw
    if isinstance(found, Broken):
        assert 0 <= found.at <= len(raw)
