"""What registers hold: integers, floats, BCD and text, in any order of words and bytes, and what means "none".

The standard fixes only the 16-bit register, high byte first (V1.1b3 §4.2). How meters put longer values into registers
is their makers' choice, commonly named by where the bytes A (highest) to D of 32 bits stand: ABCD, CDAB, BADC, DCBA.
"""

import math
import struct
from decimal import Decimal
from typing import Final, Literal, NamedTuple, TypeAlias

from protocols.framing import FrameError

Endian: TypeAlias = Literal["big", "little"]


class Order(NamedTuple):
    """``words`` "big": the high word first. ``bytes`` "little": the two bytes of each register are swapped."""

    words: Endian
    bytes: Endian


ORDERS: Final = {
    "ABCD": Order("big", "big"),
    "CDAB": Order("little", "big"),
    "BADC": Order("big", "little"),
    "DCBA": Order("little", "little"),
}

# Struct letter and width of each type; on the wire every register is big-endian. BCD: four decimal digits a register.
TYPES: Final = {
    "uint16": ("H", 1), "int16": ("h", 1), "bcd16": ("H", 1),
    "uint32": ("I", 2), "int32": ("i", 2), "bcd32": ("I", 2), "float32": ("f", 2),
    "uint64": ("Q", 4), "int64": ("q", 4), "bcd64": ("Q", 4), "float64": ("d", 4),
}  # fmt: skip

SCALE_EXPONENT_MAX: Final = 10
_NO_EXPONENT = -0x8000


def encode_value(value: float | None, type: str, *, word_order: str = "big", byte_order: str = "big") -> bytes:
    """Registers of one value. None is NaN, and for integers and BCD all bits set. Raises ValueError out of range."""
    letter, words = TYPES[type]
    try:
        if value is None:
            raw = b"\xff" * (2 * words) if letter not in "fd" else struct.pack(">" + letter, math.nan)
        elif type.startswith("bcd"):
            if not 0 <= value < 10 ** (4 * words):
                raise ValueError(f"{type}: at most {4 * words} digits and no sign expected, got {value}")
            raw = bytes.fromhex(f"{int(value):0{4 * words}d}")
        else:
            raw = struct.pack(">" + letter, value if letter in "fd" else int(value))
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{type}: {value} does not fit") from error
    return _reorder(raw, word_order, byte_order)


def decode_value(
    raw: bytes, type: str, *, word_order: str = "big", byte_order: str = "big", null: int | None = None
) -> float | int | None:
    """Inverse of ``encode_value``. NaN, infinity, an integer equal to ``null`` and BCD of all bits set are none.

    Other integers keep all bits: what means none there is their table's matter (``sentinel``). Raises ValueError for a
    wrong number of registers, FrameError for BCD with a digit above 9.
    """
    letter, words = TYPES[type]
    if len(raw) != 2 * words:
        raise ValueError(f"{type}: {2 * words} bytes expected, got {len(raw)}")
    ordered = _reorder(raw, word_order, byte_order)
    if type.startswith("bcd"):
        return _decode_bcd(ordered, raw)
    value: float | int = struct.unpack(">" + letter, ordered)[0]
    return value if value != null and math.isfinite(value) else None


def _decode_bcd(ordered: bytes, raw: bytes) -> int | None:
    digits = ordered.hex()
    if digits.isdecimal():
        return int(digits)
    if digits.strip("f"):
        raise FrameError("BCD: a digit above 9", raw=raw)
    return None


def sentinel(type: str, kind: Literal["all-ones", "highest", "lowest"]) -> int:
    """The integer that makers use for "not available", to be given as ``null``.

    "all-ones": unsigned registers of ABB B23/A43 and SunSpec. "highest": ABB's signed ones (7FFFH…). "lowest":
    SunSpec's signed ones (8000H…). Sources: the notes of the register maps, SunSpec Information Model Specification.
    """
    letter, words = TYPES[type]
    if letter in "fd":
        raise ValueError(f"{type}: floats say it with NaN")
    bits = 16 * words
    if kind == "all-ones":
        return (1 << bits) - 1 if letter.isupper() else -1
    if letter.isupper():
        return (1 << bits) - 1 if kind == "highest" else 0
    return (1 << (bits - 1)) - 1 if kind == "highest" else -(1 << (bits - 1))


def decode_scale(raw: bytes) -> int | None:
    """The exponent of ten in a scale register, as SunSpec has it (int16, -10 to 10); 8000H is none.

    Raises FrameError for any other number: a scale that is guessed moves the decimal point of a bill.
    """
    exponent: int = struct.unpack(">h", raw)[0] if len(raw) == 2 else SCALE_EXPONENT_MAX + 1
    if exponent == _NO_EXPONENT:
        return None
    if abs(exponent) > SCALE_EXPONENT_MAX:
        raise FrameError(f"scale: -{SCALE_EXPONENT_MAX} to {SCALE_EXPONENT_MAX} expected", raw=raw)
    return exponent


def apply_scale(value: int | None, exponent: int | None) -> Decimal | None:
    """``value`` × 10^``exponent``, exactly; None where either is none."""
    return None if value is None or exponent is None else Decimal(value).scaleb(exponent)


def encode_text(text: str, words: int, *, byte_order: str = "big") -> bytes:
    """ASCII in ``words`` registers, filled with NUL. Raises ValueError for other characters or too many."""
    raw = text.encode("ascii")  # UnicodeEncodeError is a ValueError
    if len(raw) > 2 * words:
        raise ValueError(f"text: at most {2 * words} characters fit, got {len(raw)}")
    return _reorder(raw.ljust(2 * words, b"\0"), "big", byte_order)


def decode_text(raw: bytes, *, byte_order: str = "big") -> str:
    """ASCII up to the first NUL, without the spaces around it. Raises FrameError for other bytes."""
    text = _reorder(raw, "big", byte_order).split(b"\0", 1)[0]
    if len(raw) % 2 or any(not 0x20 <= byte < 0x7F for byte in text):
        raise FrameError("text: printable ASCII in whole registers expected", raw=raw)
    return text.decode("ascii").strip()


def _reorder(raw: bytes, word_order: str, byte_order: str) -> bytes:
    if byte_order == "little":  # reversing all swaps bytes and words; reversing the words again leaves the bytes
        return raw[::-1] if word_order == "little" else _swap_words(raw[::-1])
    return raw if word_order == "big" else _swap_words(raw)


def _swap_words(raw: bytes) -> bytes:
    return b"".join(raw[start : start + 2] for start in range(len(raw) - 2, -1, -2))
