"""What was sent, given the bytes that a UART with other settings made of it.

A UART waits for a falling edge and samples each bit in its middle, at its own speed. Read backwards, every byte it
heard fixes a few levels of the sender's line; how DL/T 645 and Modbus frame their bytes fixes others beforehand. A
wrong idea of the sender's settings soon contradicts one or the other. ``weigh`` follows all frames that are still
possible at once and says how much better they explain the bytes than chance does. A slow receiver skips most of what a
fast sender says: no frame can be read back then, but the few bits it caught still speak.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Literal, NamedTuple, TypeAlias

from edge.model import SerialSetting
from protocols import dlt645, modbus

Grammar: TypeAlias = Literal["any", "dlt645", "modbus-rtu", "modbus-ascii"]

PATHS_MAX: Final = 40  # followed at once; the unlikeliest are dropped
BEGIN_BITS: Final = -5.0  # a frame may begin at any byte,
NEXT_BITS: Final = -1.0  # most often after another,
CUT_BITS: Final = -4.0  # and should come to its end
HOPELESS_BITS: Final = 40.0  # behind the best: dropped
LATE: Final = 1 / 16  # of a receiver's bit: how late it may see the edge


@dataclass(frozen=True, slots=True)
class Ends:
    """An idea of how both ends are set. ``inverted``: A and B are swapped."""

    sender: SerialSetting
    receiver: SerialSetting
    inverted: bool = False

    @property
    def ratio(self) -> float:
        """The receiver's bit in the sender's bits."""
        return self.sender.baud / self.receiver.baud


@dataclass(frozen=True, slots=True)
class Found:
    """``bits``: as a power of two, how many times likelier the bytes are with these frames than by chance.

    ``frames``: the bytes sent, None where what was heard leaves them open. ``is_cut``: the last one has no end.
    """

    bits: float = 0.0
    frames: tuple[tuple[int | None, ...], ...] = ()
    is_cut: bool = False


# ---- sets of bytes, as masks of 256 bits -----------------------------------------------------------------------------

ANY: Final = (1 << 256) - 1
# [bit][level]: the bytes that have it. Bit 8 is their even parity, bit 9 the odd one.
_HAS: Final = tuple(
    tuple(sum(1 << byte for byte in range(256) if level == (byte >> bit & 1)) for level in (0, 1)) for bit in range(8)
) + tuple(
    tuple(sum(1 << byte for byte in range(256) if level == (byte.bit_count() & 1) ^ odd) for level in (0, 1))
    for odd in (0, 1)
)


def _set(*values: int) -> int:
    return sum(1 << value for value in {*values})


def _members(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _only(mask: int) -> int | None:
    """The byte, where one is left."""
    return None if mask & (mask - 1) else mask.bit_length() - 1


# ---- frames, place by place ------------------------------------------------------------------------------------------

# Places that the bytes before them settle.
_SUM, _CRC_LOW, _CRC_HIGH = -1, -2, -3

_BCD = {int(f"{i:02d}", 16) for i in range(100)}
_DATA_645 = _set(*((byte + 0x33) & 0xFF for byte in _BCD | {0xFF, 0xAA, 0xA0, 0xE0}))
_CONTROLS = _set(
    *(function | bits for function in (0x11, 0x12, 0x13, 0x14, 0x1C, 0x01, 0x02, 0x04) for bits in (0, 0x80, 0xC0)),
    *(0x08, 0xB1, 0xB2, 0xA1, 0x16, 0x96),
)
_LENGTH_645_MAX = 120  # longer ones are rare, and each length is a path
_FUNCTIONS = _set(1, 2, 3, 4, 5, 6, 0x10, 0x81, 0x82, 0x83, 0x84, 0x86, 0x90)
_HEX = _set(*b"0123456789ABCDEF")
# What one byte does to a CRC, from what the whole does: the table's entry is the CRC of one byte without the start.
_CRC = tuple(modbus.crc16(bytes((byte ^ 0xFF,))) ^ 0xFF for byte in range(256))


@cache
def _identifier(at: int, length: int) -> int:
    """What stands at ``at`` of data that may begin with an identifier, as sent."""
    table, size = (dlt645.ITEMS, 4) if length >= 4 else (dlt645.ITEMS_1997, 2)
    return _DATA_645 | (_set(*((di >> 8 * at) + 0x33 & 0xFF for di in table)) if at < size else 0)


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """Places one after the other, each the set of its bytes. ``follow`` says what the last byte decides."""

    cells: tuple[int, ...]
    follow: str = ""


class _Place(NamedTuple):
    """``check``: the sum or CRC of the bytes before, None when one of them is open."""

    layout: _Layout
    at: int
    check: int | None


class Frames:
    """The frames of one protocol. ``request``: what was asked, which settles much of what is answered.

    ``sums``: keep checksums. Paths that differ in one cannot be followed together, so where much is open there would be
    too many of them.
    """

    def __init__(self, grammar: Grammar, request: bytes = b"", *, sums: bool = True) -> None:
        self._grammar = grammar
        self._sums = sums
        self._layouts: dict[tuple[str, int], _Layout] = {}
        self._address: tuple[int, ...] = (_set(*_BCD, 0xAA),) * 6
        self._identifier: tuple[int, ...] = ()
        asked = request.lstrip(b"\xfe")
        self._unit: int | None = None
        self._asked = b""  # function, address and count of the request
        if grammar == "dlt645" and asked[:1] == b"\x68":
            if not {0xAA, 0x99} & {*asked[1:7]}:
                self._address = tuple(1 << byte for byte in asked[1:7])
            if asked[8:9] == b"\x11":
                self._identifier = tuple(1 << byte for byte in asked[10:14])
        elif grammar == "modbus-rtu" and len(request) == 8 and request[1] in (3, 4):
            self._unit, self._asked = request[0], request[1:6]

    def first(self) -> list[tuple[float, _Place]]:
        if self._grammar == "modbus-rtu":  # most read, and most units are low
            rarely = [(-2.0, _Place(self._layout("unit", 1), 0, 0xFFFF))]
            return [(-0.4, _Place(self._layout("unit"), 0, 0xFFFF)), *rarely]
        begins = {"any": "any", "dlt645": "fe", "modbus-ascii": ":"}
        return [(0.0, _Place(self._layout(begins[self._grammar]), 0, None))]

    def cell(self, place: _Place) -> int:
        mask = place.layout.cells[place.at]
        if mask >= 0:
            return mask
        if place.check is None:
            return ANY
        return 1 << (place.check >> 8 if mask == _CRC_HIGH else place.check & 0xFF)

    def after(self, place: _Place, mask: int) -> Iterator[tuple[float, int, _Place | None]]:
        """(bits, bytes here, next place) when the byte here is one of ``mask``; no next place: the frame is over."""
        layout, at, check = place
        if at + 1 < len(layout.cells):
            yield 0.0, mask, _Place(layout, at + 1, self._add(check, mask) if layout.cells[at] >= 0 else check)
        elif not layout.follow:
            yield 0.0, mask, None
        elif layout.follow == "any":
            yield 0.0, mask, _Place(layout, 0, None)
            yield CUT_BITS, mask, None
        elif layout.follow == "digits":
            rest = mask & _HEX
            if rest:
                yield math.log2(rest.bit_count() / mask.bit_count()), rest, _Place(self._layout("digits"), 0, None)
            if rest != mask:
                yield -math.log2(mask.bit_count()), mask & ~rest, _Place(self._layout("lf"), 0, None)
        else:
            each = -math.log2(mask.bit_count())
            for byte in _members(mask):
                for bits, following in self._follow(layout.follow, byte):
                    summed = self._add(check, 1 << byte) if layout.follow != "fe" else 0x68
                    yield each + bits, 1 << byte, _Place(following, 0, summed)

    def _add(self, check: int | None, mask: int) -> int | None:
        byte = _only(mask)
        if check is None or byte is None or not self._sums:
            return None
        if self._grammar == "dlt645":
            return (check + byte) & 0xFF
        return check >> 8 ^ _CRC[(check ^ byte) & 0xFF]

    def _follow(self, follow: str, byte: int) -> Iterator[tuple[float, _Layout]]:
        if follow == "fe":
            yield 0.0, self._layout("fe" if byte == 0xFE else "645")
        elif follow == "length":
            yield 0.0, self._layout("data", byte)
        elif follow == "bytes":
            yield 0.0, self._layout("registers", byte)
        elif byte >= 0x80:
            yield 0.0, self._layout("fault")
        elif byte in (5, 6, 0x10):
            yield 0.0, self._layout("written")
        else:  # a request or its reply
            for share, rare in ((-1.4, 0), (-3.0, 1)):
                yield share, self._layout("read", rare)
                yield share, self._layout("bytes", rare)

    def _layout(self, kind: str, number: int = 0) -> _Layout:
        key = (kind, number)
        if key not in self._layouts:
            self._layouts[key] = self._make(kind, number)
        return self._layouts[key]

    def _make(self, kind: str, number: int) -> _Layout:
        crc = (_CRC_LOW, _CRC_HIGH)
        match kind:
            case "any":
                return _Layout((ANY,), "any")
            case "fe":
                return _Layout((_set(0xFE, 0x68),), "fe")
            case "645":
                lengths = (1 << _LENGTH_645_MAX + 1) - 1
                return _Layout((*self._address, _set(0x68), _CONTROLS, lengths), "length")
            case "data":
                named = self._identifier if number >= 4 else ()
                data = (named[i] if i < len(named) else _identifier(i, number) for i in range(number))
                return _Layout((*data, _SUM, _set(0x16)))
            case "unit":
                if self._asked:
                    return _Layout((1 << (self._unit or 0), _set(self._asked[0], self._asked[0] | 0x80)), "function")
                low = _set(*range(1, 33)), _set(3, 4)
                return _Layout(((1 << modbus.UNIT_MAX + 1) - 2, _FUNCTIONS) if number else low, "function")
            case "read":  # an address and a count
                if self._asked:
                    return _Layout((*(1 << byte for byte in self._asked[1:]), *crc))
                if number:
                    return _Layout((ANY, ANY, _set(0), _set(*range(1, modbus.READ_WORDS_MAX + 1)), *crc))
                return _Layout((_set(*range(8)), ANY, _set(0), _set(*range(1, 65)), *crc))
            case "written":
                return _Layout((ANY,) * 4 + crc)
            case "fault":
                return _Layout((_set(*range(1, 12)), *crc))
            case "bytes":
                if self._asked:
                    return _Layout((1 << min(2 * self._asked[4], 250),), "bytes")
                return _Layout((_set(*range(2, 251 if number else 65, 2)),), "bytes")
            case "registers":
                return _Layout((ANY,) * number + crc)
            case ":":
                return _Layout((_set(0x3A), *(_HEX,) * 6, _HEX | _set(0x0D)), "digits")
            case "digits":  # the second of a pair, and what comes after the pair
                return _Layout((_HEX, _HEX | _set(0x0D)), "digits")
        return _Layout((_set(0x0A),))


# ---- paths -----------------------------------------------------------------------------------------------------------

_Past: TypeAlias = "tuple[int, _Past] | None"
# A sender's line up to the character that begins at `begin`, counted in the sender's bits from the receiver's edge;
# `mask`: what the character may still be; its `place` is None once the frame is over and the line rests; `bits`; the
# characters before it; the frames before this one. A bare tuple: hundreds of thousands are made in a second.
_Path: TypeAlias = "tuple[int, int, _Place | None, float, _Past, tuple[_Past, ...]]"
_LOG2: Final = (0.0, *(math.log2(count) for count in range(1, 257)))


class _Line:
    """The receiver at work on the paths of one idea of the ends."""

    def __init__(self, ends: Ends, frames: Frames, paths_max: int) -> None:
        self._frames = frames
        self._paths_max = paths_max
        self._flip = int(ends.inverted)
        sender = ends.sender
        self._char_bits = sender.char_bits
        able = (1 << (1 << sender.data_bits)) - 1
        self._able = able
        # [offset in a character][level] -> its bytes that have it
        parity = {"N": (), "E": (_HAS[8],), "O": (_HAS[9],)}[sender.parity]
        levels = [(ANY, 0), *_HAS[: sender.data_bits], *parity, *[(0, ANY)] * sender.stop_bits]
        self._levels = [tuple(mask & able for mask in pair[:: -1 if self._flip else 1]) for pair in levels]
        self._heard_bits = ends.receiver.data_bits
        self._samples = [_around((1.5 + i) * ends.ratio, ends.ratio) for i in range(self._heard_bits)]
        self._stop = _around((ends.receiver.char_bits - 0.5) * ends.ratio, ends.ratio)

    def begin(self, bits: float, frames: tuple[_Past, ...]) -> list[_Path]:
        """The line rests, and then a frame begins; at its first edge."""
        paths: list[_Path] = [
            (0, self._frames.cell(place) & self._able, place, bits + share, None, frames)
            for share, place in self._frames.first()
        ]
        edges: list[_Path] = []
        self._seek(paths, 0, not self._flip, edges, [])
        return edges

    def hear(self, paths: list[_Path], byte: int, gain: float) -> tuple[list[_Path], list[_Path]]:
        """(those at the next edge, those whose frame is over) when ``byte`` is what the receiver made of it.

        ``gain``: how unlikely the byte is by chance.
        """
        for i, places in enumerate(self._samples):
            level = byte >> i & 1
            if len(places) == 1:
                paths = self._constrain(paths, places[0][0], level)
            else:
                fallen = [_add(path, share) for at, share in places for path in self._constrain(paths, at, level)]
                paths = _merge(fallen, self._paths_max)
            if not paths:
                return [], []
        edges: list[_Path] = []
        over: list[_Path] = []
        for at, share in self._stop:
            self._seek([_add(path, share + gain) for path in paths], at, False, edges, over)
        return _merge(edges, self._paths_max), over

    def _constrain(self, paths: list[_Path], at: int, level: int) -> list[_Path]:
        """The paths whose level is ``level`` at ``at``."""
        kept: list[_Path] = []
        char_bits, rest_level = self._char_bits, 1 ^ self._flip
        allowed = [pair[level] for pair in self._levels]
        waiting = list(paths)
        for path in waiting:  # grows: what comes after a character is looked at in turn
            begin, mask, place, bits, past, frames = path
            offset = at - begin
            if place is None:
                if level == rest_level:
                    kept.append(path)
            elif offset >= char_bits:
                waiting += self._next(path)
            else:
                left = mask & allowed[offset]
                if left == mask:
                    kept.append(path)
                elif left:
                    bits += _LOG2[left.bit_count()] - _LOG2[mask.bit_count()]
                    kept.append((begin, left, place, bits, past, frames))
        return kept

    def _next(self, path: _Path) -> Iterator[_Path]:
        """After the character of ``path`` the next one, or the line at rest."""
        begin, mask, here, bits, past, frames = path
        assert here is not None
        for share, left, place in self._frames.after(here, mask):
            cell = self._frames.cell(place) & self._able if place else 0
            if cell or place is None:
                yield begin + self._char_bits, cell, place, bits + share, (left, past), frames

    def _seek(self, paths: list[_Path], at: int, is_high: bool, edges: list[_Path], over: list[_Path]) -> None:
        """From ``at`` on: the line must be high, and then fall. Paths come out counted from that edge."""
        low, high = ([], paths) if is_high else (paths, [])
        while low or high:
            low = self._settle(low, at, over)
            if not self._flip:  # swapped, the line rests low: its rest is one more edge
                high = self._settle(high, at, over)
            edges += [(path[0] - at, *path[1:]) for path in self._constrain(high, at, 0)]
            high = self._constrain(high, at, 1) + self._constrain(low, at, 1)
            low = self._constrain(low, at, 0)
            at += 1

    def _settle(self, paths: list[_Path], at: int, over: list[_Path]) -> list[_Path]:
        """Take those out whose line rests: no more edges come."""
        waiting, kept = list(paths), []
        for path in waiting:
            if path[2] is None:
                over.append(path)
            elif at - path[0] >= self._char_bits:
                waiting += self._next(path)
            else:
                kept.append(path)
        return kept


def _around(at: float, ratio: float) -> list[tuple[int, float]]:
    """(bit, share in bits) of the sender's bits that a sample at ``at`` may fall into."""
    early, late = math.floor(at - 1e-6), math.floor(at + LATE * ratio)
    return [(late, 0.0)] if early == late else [(early, -1.0), (late, -1.0)]


def _add(path: _Path, bits: float) -> _Path:
    return (*path[:3], path[3] + bits, *path[4:])


def _merge(paths: Iterable[_Path], most: int) -> list[_Path]:
    """Paths that will fare alike count together, with the history of the likelier one; the unlikeliest go."""
    by_fate: dict[tuple[int, int, _Place | None], _Path] = {}
    for path in paths:
        fate = path[:3]
        other = by_fate.get(fate)
        if other is not None:
            more, less = (path, other) if path[3] > other[3] else (other, path)
            path = _add(more, math.log2(1 + 2 ** (less[3] - more[3])))
        by_fate[fate] = path
    kept = sorted(by_fate.values(), key=_bits, reverse=True)[:most]
    return [path for path in kept if path[3] > kept[0][3] - HOPELESS_BITS]


def _bits(path: _Path) -> float:
    return path[3]


def weigh(heard: Sequence[int], ends: Ends, frames: Frames, *, paths_max: int = PATHS_MAX) -> Found:
    """How well frames sent by ``ends.sender`` explain ``heard``; noise may stand before and between them."""
    line = _Line(ends, frames, paths_max)
    data_bits = ends.receiver.data_bits
    # A slower sender is told by its long levels, which are a habit as well.
    chance = _chance(heard, data_bits) if ends.ratio >= 1 else [float(data_bits)] * len(heard)
    open_paths: list[_Path] = []
    rest: tuple[float, tuple[_Past, ...]] = (0.0, ())  # the likeliest with no frame open
    best, is_cut, is_after = rest, False, False
    for i, byte in enumerate(heard):
        if i == PATIENCE_BYTES and best[0] <= 0:
            break
        if is_after or not open_paths:
            open_paths += line.begin(rest[0] + (NEXT_BITS if is_after else BEGIN_BITS), rest[1])
        open_paths, over = line.hear(open_paths, byte, chance[i])
        is_after = False
        for _, _, _, bits, past, before in over:
            if bits > rest[0]:
                rest, is_after = (bits, (*before, past)), True
        if rest[0] > best[0]:
            best, is_cut = rest, False
        if open_paths and open_paths[0][3] + CUT_BITS > best[0]:
            _, mask, _, bits, past, before = open_paths[0]
            best, is_cut = (bits + CUT_BITS, (*before, (mask, past))), True
    return Found(best[0], tuple(_history(past) for past in best[1]), is_cut)


def _chance(heard: Sequence[int], data_bits: int) -> list[float]:
    """Bits that each byte takes to tell, by how often each of its bits was set before: noise may have a habit, too."""
    ones, bits = [0.5] * data_bits, []
    for count, byte in enumerate(heard, 1):
        shares = [(one if byte >> i & 1 else count - one) / count for i, one in enumerate(ones)]
        bits.append(min(float(data_bits), -sum(map(math.log2, shares))))
        ones = [one + (byte >> i & 1) for i, one in enumerate(ones)]
    return bits


def _history(past: _Past) -> tuple[int | None, ...]:
    found: list[int | None] = []
    while past is not None:
        mask, past = past
        found.append(_only(mask))
    return tuple(reversed(found))


# ---- ideas of the ends -----------------------------------------------------------------------------------------------

COMMON_BAUD: Final = (1200, 2400, 4800, 9600, 19200, 38400, 57600, 115200)
BAUD_RATIO_MAX: Final = 8.5  # beyond it a slow receiver hears next to nothing, and a fast one nothing but edges
GLANCE_BYTES: Final = 24  # enough to tell a slower sender's long levels
WINDOW_BYTES: Final = 64
PATIENCE_BYTES: Final = 16  # an idea that has explained nothing by then is given up
SEEN_BITS: Final = 2.2  # a byte; a slower sender betrays itself by more


@dataclass(frozen=True, slots=True)
class Suspect:
    """``assumes_sums``: only frames with right checksums were followed."""

    ends: Ends
    grammar: Grammar
    found: Found
    assumes_sums: bool


def suspects(
    heard: bytes,
    receiver: SerialSetting,
    grammars: Sequence[Grammar],
    request: bytes = b"",
    bauds: Sequence[int] = COMMON_BAUD,
) -> list[Suspect]:
    """Ideas of the ends that explain ``heard`` better than chance, the best first; that all is well is one of them.

    Only one thing is wrong at a time: speed and format of the sender, or A and B.
    """
    found: list[Suspect] = []

    def consider(
        sender: SerialSetting, grammar: Grammar, size: int, *, inverted: bool = False, paths_max: int = PATHS_MAX
    ) -> None:
        ends = Ends(sender, receiver, inverted)
        sums = inverted or bool(request)
        frames = Frames(grammar, request, sums=sums)
        found.append(Suspect(ends, grammar, weigh(heard[:size], ends, frames, paths_max=paths_max), sums))

    def formats(baud: int, grammar: Grammar) -> list[SerialSetting]:
        made = [SerialSetting(baud, "E"), SerialSetting(baud, "N")]
        if baud <= receiver.baud:  # a fast sender's parity is not seen
            made.append(SerialSetting(baud, "O"))
        return [SerialSetting(baud, "E", data_bits=7), *made] if grammar == "modbus-ascii" else made

    bauds = [baud for baud in bauds if 1 / BAUD_RATIO_MAX <= baud / receiver.baud <= BAUD_RATIO_MAX]
    # Of a slower sender every bit is heard more than once, whatever it says.
    for baud in bauds:
        if baud < receiver.baud:
            for parity in _PARITIES:
                consider(SerialSetting(baud, parity), "any", GLANCE_BYTES)
    slower = max(found, key=_strength, default=None)
    seen_bits = SEEN_BITS * max(10, min(len(heard), GLANCE_BYTES))
    if slower is not None and slower.found.bits > seen_bits:
        for grammar in grammars:
            for sender in formats(slower.ends.sender.baud, grammar):
                consider(sender, grammar, 3 * WINDOW_BYTES // 2, paths_max=2 * PATHS_MAX)
    else:
        for grammar in grammars:
            consider(receiver, grammar, WINDOW_BYTES)  # nothing is wrong with the ends: what the others must beat
            for baud in bauds:
                if baud >= receiver.baud:
                    for sender in formats(baud, grammar):
                        if baud != receiver.baud or _is_heard_otherwise(sender, receiver):
                            consider(sender, grammar, WINDOW_BYTES)
            for sender in formats(receiver.baud, grammar):
                consider(sender, grammar, WINDOW_BYTES, inverted=True)
    # Many zeros alone look slow too.
    told = (one for one in found if one.found.bits > (seen_bits if one.grammar == "any" else 0.0))
    return sorted(told, key=_strength, reverse=True)


def _is_heard_otherwise(sender: SerialSetting, receiver: SerialSetting) -> bool:
    """At one speed a receiver that takes no more bits than are sent is in step again with each character."""
    return sender.data_bits != receiver.data_bits or sender.char_bits < receiver.char_bits


_PARITIES: Final[tuple[Literal["E", "N"], ...]] = ("E", "N")


def _strength(suspect: Suspect) -> float:
    return suspect.found.bits
