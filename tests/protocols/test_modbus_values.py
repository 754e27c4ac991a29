"""Register values: hand-worked bytes in every order, BCD, text, sentinels and scales."""

import contextlib
import math
import struct
from decimal import Decimal
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import modbus
from protocols.framing import FrameError

orders = st.sampled_from(["big", "little"])


@given(st.sampled_from(sorted(modbus.TYPES)), orders, orders, st.data())
def test_values_go_there_and_back_in_every_order(kind: str, words: str, bytes_: str, data: st.DataObject) -> None:
    size = modbus.TYPES[kind][1]
    value: float
    if kind.startswith("float"):
        value = data.draw(st.floats(allow_nan=False, allow_infinity=False, width=32))
    elif kind.startswith("bcd"):
        value = data.draw(st.integers(0, 10 ** (4 * size) - 1))
    elif kind.startswith("u"):
        value = data.draw(st.integers(0, 2 ** (16 * size) - 1))
    else:
        value = data.draw(st.integers(-(2 ** (16 * size - 1)), 2 ** (16 * size - 1) - 1))
    raw = modbus.encode_value(value, kind, word_order=words, byte_order=bytes_)
    assert modbus.decode_value(raw, kind, word_order=words, byte_order=bytes_) == value


@pytest.mark.parametrize(
    ("order", "raw"), [("ABCD", "11223344"), ("CDAB", "33441122"), ("BADC", "22114433"), ("DCBA", "44332211")]
)
def test_the_four_orders_of_32_bits(order: str, raw: str) -> None:
    words, bytes_ = modbus.ORDERS[order]
    assert modbus.encode_value(0x11223344, "uint32", word_order=words, byte_order=bytes_).hex() == raw
    assert modbus.decode_value(bytes.fromhex(raw), "uint32", word_order=words, byte_order=bytes_) == 0x11223344


def test_64_bits_with_the_low_word_first() -> None:
    raw = bytes.fromhex("0708 0506 0304 0102")
    assert modbus.decode_value(raw, "uint64", word_order="little") == 0x0102030405060708
    assert modbus.decode_value(raw, "uint64", word_order="little", byte_order="little") == 0x0201040306050807


def test_float_230_5() -> None:
    """IEEE 754, worked by hand: 230.5 = 1.80078125 × 2^7, so 4366 8000H."""
    assert modbus.decode_value(bytes.fromhex("43668000"), "float32") == 230.5
    assert modbus.decode_value(bytes.fromhex("8000 4366"), "float32", word_order="little") == 230.5


def test_bcd_digits_are_decimal() -> None:
    assert modbus.decode_value(bytes.fromhex("0012 3456"), "bcd32") == 123_456
    assert modbus.encode_value(123_456, "bcd32") == bytes.fromhex("0012 3456")
    assert modbus.decode_value(b"\xff" * 4, "bcd32") is None
    with pytest.raises(FrameError, match="digit above 9"):
        modbus.decode_value(bytes.fromhex("0012 345A"), "bcd32")


@pytest.mark.parametrize(("value", "kind"), [(65_536, "uint16"), (-1, "uint32"), (1e39, "float32"), (10_000, "bcd16"),
                                             (-1, "bcd16"), (2**63, "int64")])  # fmt: skip
def test_a_value_that_does_not_fit_is_refused(value: float, kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        modbus.encode_value(value, kind)


@pytest.mark.parametrize(
    ("kind", "which", "raw"),
    [
        ("uint16", "all-ones", "FFFF"),
        ("uint32", "all-ones", "FFFFFFFF"),
        ("int32", "highest", "7FFFFFFF"),
        ("int16", "lowest", "8000"),
        ("int64", "lowest", "8000000000000000"),
        ("uint64", "all-ones", "FFFFFFFFFFFFFFFF"),
    ],
)
def test_not_available_is_none_where_the_table_says_so(
    kind: str, which: Literal["all-ones", "highest", "lowest"], raw: str
) -> None:
    null = modbus.sentinel(kind, which)
    assert modbus.decode_value(bytes.fromhex(raw), kind, null=null) is None
    assert modbus.decode_value(bytes.fromhex(raw), kind) == null, "without a table it is a number"
    assert modbus.decode_value(modbus.encode_value(0, kind), kind, null=null) == 0


def test_nan_and_infinity_are_none() -> None:
    for value in (math.nan, math.inf, -math.inf):
        assert modbus.decode_value(struct.pack(">d", value), "float64") is None
    assert modbus.decode_value(bytes.fromhex("7FC00000"), "float32") is None


def test_a_scale_register_moves_the_point_exactly() -> None:
    assert modbus.apply_scale(23_051, modbus.decode_scale(bytes.fromhex("FFFE"))) == Decimal("230.51")
    assert modbus.apply_scale(7, modbus.decode_scale(bytes.fromhex("0003"))) == 7000
    assert modbus.decode_scale(bytes.fromhex("8000")) is None
    assert modbus.apply_scale(7, None) is None
    for raw in (b"\x00\x0b", b"\xff\xf5", b"\x00"):
        with pytest.raises(FrameError, match="scale"):
            modbus.decode_scale(raw)


def test_text_is_ascii_filled_with_nul() -> None:
    raw = modbus.encode_text("SDM630", 4)
    assert raw == b"SDM630\0\0"
    assert modbus.decode_text(raw) == "SDM630"
    assert modbus.decode_text(b"DS6M03  ", byte_order="little") == "SDM630"
    with pytest.raises(FrameError, match="printable"):
        modbus.decode_text(b"\x80\x01")
    with pytest.raises(ValueError, match="at most 2"):
        modbus.encode_text("ABC", 1)


@given(st.sampled_from(sorted(modbus.TYPES)), orders, orders, st.data())
def test_any_registers_are_a_value_none_or_a_frame_error(
    kind: str, words: str, bytes_: str, data: st.DataObject
) -> None:
    size = 2 * modbus.TYPES[kind][1]
    raw = data.draw(st.binary(min_size=size, max_size=size))
    with contextlib.suppress(FrameError):
        value = modbus.decode_value(raw, kind, word_order=words, byte_order=bytes_)
        assert value is None or math.isfinite(value)
    with contextlib.suppress(FrameError):
        modbus.decode_text(raw, byte_order=bytes_)
