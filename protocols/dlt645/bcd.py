"""Numbers and times of DL/T 645: BCD, low byte first. A meter keeps local time without an offset."""

from datetime import UTC, datetime, tzinfo

from protocols.framing import FrameError


def encode_bcd(value: int | None, size: int, *, signed: bool = False) -> bytes:
    """``size`` bytes, low byte first; None is all FF. A signed item has its sign in the top bit of the last byte."""
    if value is None:
        return b"\xff" * size
    digits = f"{abs(value):0{2 * size}d}"
    if len(digits) > 2 * size or (value < 0 and not signed) or (signed and digits[0] > "7"):
        raise ValueError(f"{value} does not fit {size} {'signed' if signed else 'unsigned'} BCD bytes")
    raw = bytearray(bytes.fromhex(digits)[::-1])
    if value < 0:
        raw[-1] |= 0x80
    return bytes(raw)


def decode_bcd(raw: bytes, signed: bool = False) -> int | None:
    """Inverse of ``encode_bcd``. Raises FrameError with the raw bytes where a digit is not decimal."""
    digits = raw[::-1].hex()
    is_negative = signed and digits >= "8"
    if is_negative:
        digits = f"{int(digits[0], 16) - 8}{digits[1:]}"
    if digits.isdecimal():
        return -int(digits) if is_negative else int(digits)
    if raw.count(0xFF) == len(raw):
        return None
    raise FrameError("BCD: not a decimal digit", raw=raw)


def encode_time(moment: datetime, fields: str, zone: tzinfo) -> bytes:
    """``fields`` name the bytes in wire order with strftime letters: ``MHdmy`` is mm hh DD MM YY, ``w`` 0 = Sunday."""
    local = moment.astimezone(zone)
    return bytes(int(f"{local:%{letter}}", 16) for letter in fields)


def decode_time(raw: bytes, fields: str, zone: tzinfo) -> datetime:
    """Inverse of ``encode_time``; missing fields are at their least. Raises FrameError for what no calendar has."""
    numbers = {"y": 0, "m": 1, "d": 1, "H": 0, "M": 0, "S": 0}
    for letter, byte in zip(fields, raw, strict=True):
        number = decode_bcd(bytes((byte,)))
        if number is None:
            raise FrameError("time: null", raw=raw)
        numbers[letter] = number
    try:
        local = datetime(
            2000 + numbers["y"], numbers["m"], numbers["d"], numbers["H"], numbers["M"], numbers["S"], tzinfo=zone
        )
    except ValueError as error:
        raise FrameError(f"time: {error}", raw=raw) from error
    return local.astimezone(UTC)
