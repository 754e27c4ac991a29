"""Values in frames that are right: the order of words and bytes, the unit, the decimal point."""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from gateway.why.case import Case, Cause
from gateway.why.reading import Piece, Reading, is_reply
from protocols import dlt645, modbus

_TYPES: Final = ("float32", "float64", "uint32", "int32", "uint64", "uint16", "int16")
_SCALES: Final = (1.0, 0.1, 0.01, 0.001, 10.0, 100.0, 1000.0)


def judge_value(case: Case, reading: Reading, replies: list[Piece], shown: list[str], sure: float) -> None:
    value = case.expected.value
    assert value is not None
    frame = replies[-1].frame
    if isinstance(frame, dlt645.Frame):
        _judge_645(case, frame, value, shown, sure)
    elif frame.pdu[0] in (3, 4) and len(frame.pdu) >= 4:
        _judge_registers(case, frame.pdu[2:], value, [*reading.strays(case.raw)], shown, sure)


def _judge_registers(case: Case, data: bytes, value: float, strays: list[str], shown: list[str], sure: float) -> None:
    matches = list(_matches(data, value, case.expected.tolerance))
    plain = [match for match in matches if match.order == "ABCD" and match.scale == 1]
    if plain:
        told = [f"register +{match.at}: {match}" for match in plain[:2]]
        evidence = [*shown, *told, *strays]
        case.add(Cause.HEALTHY, f"Nothing wrong: the reply holds {value:g} as expected", evidence, sure)
        return
    # Floats say most: only few bit patterns are a number near the expected one.
    matches.sort(key=lambda match: (not match.type.startswith("float"), match.scale != 1, match.order != "ABCD"))
    if not matches:
        case.add(
            Cause.OTHER_VALUE,
            f"The frame is right, but no register order or type in it gives {value:g}",
            [*shown, *(f"as {name}: {told}" for name, told in _guesses(data))],
            0.5 * sure,
            "Is it the right register? Check address (zero-based or one-based) and function 3 or 4 in the manual",
            "A ratio of the current or voltage transformer may be in the display and not in the register",
        )
        return
    match = matches[0]
    rivals = len({(other.order, other.type.strip("u")) for other in matches if other.scale == 1 or match.scale != 1})
    confidence = sure * (0.93 if match.type.startswith("float") else 0.85) / max(1.0, rivals / 2)
    ordinary = _Match("ABCD", match.type, match.at, 1.0, _take(data, match.at, match.type, "ABCD") or 0.0)
    evidence = [*shown, f"register +{match.at}: {match}", f"register +{match.at}: {ordinary}"]
    if match.order == "CDAB" or (match.order == "DCBA" and match.words > 1):
        case.add(
            Cause.WORD_ORDER,
            f"Word order: the meter sends the value as {match.order}, not ABCD",
            evidence,
            confidence,
            f'In the meter\'s template: word_order = "{modbus.ORDERS[match.order].words}", '
            f'byte_order = "{modbus.ORDERS[match.order].bytes}"',
        )
    elif match.order != "ABCD":
        case.add(
            Cause.BYTE_ORDER,
            f"Byte order: the two bytes of each register are swapped ({match.order if match.words > 1 else 'BA'})",
            evidence,
            confidence,
            'In the meter\'s template: byte_order = "little"',
        )
    else:
        case.add(
            Cause.SCALE,
            f"The register counts in other units: it holds {match.value / match.scale:g}, the display {value:g}",
            evidence,
            confidence,
            f"In the meter's template: scale = {match.scale:g} (check the unit against the manual)",
        )


def _judge_645(case: Case, frame: dlt645.Frame, value: float, shown: list[str], sure: float) -> None:
    if frame.di is None:
        return
    found = dlt645.decode_data(frame.edition, frame.di, frame.data[frame.di_bytes :])
    numbers = [float(one) for one in found.values if isinstance(one, Decimal)]
    if any(abs(number - value) <= case.expected.tolerance * abs(value) for number in numbers) or not numbers:
        return
    for number in numbers:
        ratio = value / number if number else 0.0
        power = round(math.log10(abs(ratio))) if ratio else 0
        if power and abs(ratio / 10**power - 1) <= case.expected.tolerance:
            case.add(
                Cause.SCALE,
                f"The decimal point is elsewhere: the meter says {number:g}, the display {value:g}",
                shown,
                0.7 * sure,
                "Unit (kWh or MWh, V or kV) or a transformer ratio: compare with the display's own unit",
            )
            return
    case.add(
        Cause.OTHER_VALUE,
        f"The frame is right, but says {', '.join(f'{number:g}' for number in numbers[:4])} instead of {value:g}",
        shown,
        0.5 * sure,
        "Is it the same item, tariff and phase? A display often shows the primary side, registers the secondary",
    )


@dataclass(frozen=True, slots=True)
class _Match:
    """A value in registers: ``at`` counts registers from the first one of the reply."""

    order: str
    type: str
    at: int
    scale: float
    value: float

    @property
    def words(self) -> int:
        return modbus.TYPES[self.type][1]

    def __str__(self) -> str:
        times = f" × {self.scale:g}" if self.scale != 1 else ""
        return f"{self.type} {self.order}{times} = {self.value:.7g}"


def _take(data: bytes, at: int, type: str, order: str) -> float | None:
    words = modbus.TYPES[type][1]
    raw = data[2 * at : 2 * (at + words)]
    if len(raw) < 2 * words:
        return None
    where = modbus.ORDERS[order]
    value = modbus.decode_value(raw, type, word_order=where.words, byte_order=where.bytes)
    return None if value is None else float(value)


def _matches(data: bytes, value: float, tolerance: float) -> Iterator[_Match]:
    for type in _TYPES:
        words = modbus.TYPES[type][1]
        scales = _SCALES if not type.startswith("float") else (1.0, 0.001, 1000.0)
        for order in modbus.ORDERS if words > 1 else ("ABCD", "BADC"):
            for at in range(len(data) // 2 - words + 1):
                number = _take(data, at, type, order)
                if not number or not math.isfinite(number):
                    continue
                for scale in scales:
                    if abs(number * scale - value) <= tolerance * abs(value):
                        yield _Match(order, type, at, scale, number * scale)


def _guesses(data: bytes) -> Iterator[tuple[str, str]]:
    for order in ("ABCD", "CDAB"):
        numbers = [_take(data, at, "float32", order) for at in range(0, min(8, len(data) // 2 - 1), 2)]
        yield f"float32 {order}", ", ".join("none" if number is None else f"{number:.5g}" for number in numbers)
    yield "uint16", ", ".join(str(word) for (word,) in struct.iter_unpack(">H", data[:16]))


def order_note(reading: Reading) -> Iterator[str]:
    """Registers that are numbers only with the words the other way round: said, but no fault of the frame."""
    for piece in reading.pieces[-1:]:
        frame = piece.frame
        if (
            not isinstance(frame, modbus.Frame)
            or frame.pdu[0] not in (3, 4)
            or not is_reply(frame)
            or len(frame.pdu) < 10
        ):
            continue
        data = frame.pdu[2:]
        likely = [order for order in modbus.ORDERS if _all_likely(data, order)]
        if likely and "ABCD" not in likely:
            numbers = ", ".join(
                f"{_take(data, at, 'float32', likely[0]):.5g}" for at in range(0, min(6, len(data) // 2), 2)
            )
            yield f"if these are float32, their order is {likely[0]}: {numbers}; check with --expect-value"


def _all_likely(data: bytes, order: str) -> bool:
    numbers = [_take(data, at, "float32", order) for at in range(0, len(data) // 2 - 1, 2)]
    return all(number == 0 or (number is not None and 1e-3 < abs(number) < 1e8) for number in numbers) and any(numbers)
