"""The line itself: silent, stuck, or heard with the wrong speed, format or wiring."""

from collections.abc import Iterator
from typing import Final

from edge.model import SerialSetting
from gateway.sniff import AnyFrame
from gateway.uart import COMMON_BAUD, Grammar, Suspect, suspects
from gateway.why.case import NAMES, Case, Cause, Kind
from gateway.why.reading import FRAMES_SHOWN, hexadecimal, read_as, says
from protocols import dlt645, modbus
from protocols.dlt645.frame import HEADER_BYTES

# Speeds to try where the port's is not known: only their ratio to the first counts then.
_RATIOS: Final = (9600, 1200, 2400, 4800, 19200, 38400)
CHANCE_BITS: Final = 8.0  # some hundred readings are tried, and one of them fits best by luck
FORMAT_CHANCE_BITS: Final = 4.0  # but only a few at the port's own speed, and parity is what is mostly wrong


def judge_silence(case: Case) -> None:
    setting = str(case.expected.setting) if case.expected.setting else "the meter's"
    todo = (
        "Is the meter powered? Does its display light up, and is it the port of this meter?",
        "A and B: measure between them with the line at rest: +0.2 to +5 V from A to B; swap them if negative",
        f"Speed and parity: is the port set to {setting}? Try: meterctl scan (it tries the common ones)",
        "Address: ask one meter alone with the wildcard (DL/T 645: AAAAAAAAAAAA; a Modbus meter shows its unit)",
        "Preamble: some DL/T 645 meters want four FEH before the request",
        "120 ohm at both ends of a long line, and at no other place; one pair of the cable, shield on one end",
    )
    asked = [f"sent: {hexadecimal(case.expected.request)}"] if case.expected.request else []
    case.add(Cause.NOTHING, "Nothing was heard: no meter answers", [*asked, "0 bytes received"], 0.9, *todo)


def judge_stuck(case: Case) -> bool:
    values = {*case.raw}
    if len(case.raw) < 2 or len(values) > 1 or not values <= {0x00, 0xFF}:
        return False
    if values == {0x00}:
        case.add(
            Cause.STUCK,
            "The line is held low: the port hears a break, not characters",
            [f"{len(case.raw)} bytes, all 00"],
            0.7,
            "Swap A and B: a line that rests the wrong way round looks like this",
            "Measure A to B at rest: near 0 V means no bias or a short",
        )
    else:
        case.add(
            Cause.STUCK,
            "Only short pulses are heard: noise, or a sender that is very much faster than the port",
            [f"{len(case.raw)} bytes, all FF"],
            0.5,
            "Disconnect the meters one by one; bias and terminate the line",
            "Raise the port's speed: meterctl scan tries the common ones",
        )
    return True


def judge_setting(case: Case) -> None:
    """Other speeds, formats and wiring; without a known setting only their ratio."""
    own = case.expected.setting
    receivers = [own] if own else [SerialSetting(_RATIOS[0], "E"), SerialSetting(_RATIOS[0], "N")]
    bauds = COMMON_BAUD if own else _RATIOS
    kind = case.expected.kind
    grammars: list[Grammar] = ["dlt645", "modbus-rtu", "modbus-ascii"]
    if kind == "dlt645" or kind == "modbus-rtu" or kind == "modbus-ascii":
        grammars = [kind]
    found = [
        one for receiver in receivers for one in suspects(case.raw, receiver, grammars, case.expected.request, bauds)
    ]
    groups: dict[tuple[float, bool, bool, bool], list[Suspect]] = {}
    for one in sorted(found, key=_weight, reverse=True):
        ends = one.ends
        as_is = ends.sender == ends.receiver
        groups.setdefault((ends.ratio, ends.inverted, as_is, ends.sender.data_bits == 7), []).append(one)
    ranked = sorted(groups.values(), key=lambda group: -_weight(group[0]))
    for i, group in enumerate(ranked[:2]):
        if group[0].ends.sender == group[0].ends.receiver and not group[0].ends.inverted:
            return  # as it stands it is no worse
        rival = _weight(ranked[1 - i][0]) if len(ranked) > 1 else 0.0
        chance = FORMAT_CHANCE_BITS if group[0].ends.ratio == 1 and not group[0].ends.inverted else CHANCE_BITS
        odds = 2.0 ** -min(60.0, _weight(group[0]) - chance) + 2.0 ** min(60.0, rival - _weight(group[0]))
        confidence = 1 / (1 + odds)
        if confidence > 0.3:
            _suspect(case, group, own, confidence)
    if not case.found:
        _too_few(case)


def _too_few(case: Case) -> None:
    """A slow port makes few bytes of a fast sender's many: their number is all there is to tell it by."""
    wanted = _reply_size(case.asked)
    factor = wanted / len(case.raw)
    if factor < 1.6 or len(case.raw) < 2:
        return
    own = case.expected.setting
    speeds = [baud for baud in COMMON_BAUD if own and 0.7 * factor < baud / own.baud < 1.45 * factor]
    likely = " or ".join(map(str, speeds))
    case.add(
        Cause.SPEED,
        f"Wrong speed, it seems: the sender is about {factor:.1f} times faster than the port"
        + (f" ({likely} baud)" if likely else ""),
        [f"the reply has {wanted} bytes; {len(case.raw)} came, and none of them is where it should be"],
        0.5,
        f"Try {likely} baud" if likely else "Try higher speeds: meterctl scan",
        "Or only a piece of the reply came: send the request again and compare",
    )


def _suspect(case: Case, group: list[Suspect], own: SerialSetting | None, confidence: float) -> None:
    best = group[0]
    ends = best.ends
    alike = [str(one.ends.sender).split()[1] for one in group if _weight(one) > _weight(best) - 3]
    formats = " or ".join(dict.fromkeys(alike))
    framed = next((one for one in group if one.grammar != "any"), best)
    evidence = list(_recovered(framed, case.asked))
    evidence.append(f"this reading is 2^{best.found.bits:.0f} times likelier than chance")
    port = str(own) if own else "the port's setting"
    if ends.inverted:
        case.add(
            Cause.SWAPPED,
            "A and B are swapped: every level is inverted",
            [f"inverted, the line carries {formats}", *evidence],
            confidence,
            "Swap the two wires at the meter or at the adapter; nothing breaks by trying",
            "At rest A must be the more positive of the two (makers disagree about the letters: 485+, D+)",
        )
    elif ends.ratio == 1:
        case.add(
            Cause.FORMAT,
            f"Same speed, other character format: the sender uses {formats}, the port {port}",
            evidence,
            confidence,
            f'Set the port to {formats}: parity = "{ends.sender.parity}"',
            "DL/T 645 is 8E1 by default; Modbus RTU meters are often shipped with 8N1",
        )
    else:
        factor = ends.ratio if ends.ratio > 1 else 1 / ends.ratio
        side = "faster" if ends.ratio > 1 else "slower"
        setting = f" ({ends.sender.baud} baud, {formats})" if own else f" ({formats})"
        advice = (
            f"baud = {ends.sender.baud}"
            if own
            else f"a speed {factor:g} times {'higher' if ends.ratio > 1 else 'lower'}"
        )
        case.add(
            Cause.SPEED,
            f"Wrong speed: the sender is {factor:g} times {side} than the port{setting}",
            evidence,
            confidence,
            f"Set the line to {advice}" + (f', parity = "{ends.sender.parity}"' if len({*alike}) == 1 else ""),
            "Common: 1200, 2400 (DL/T 645-2007's default), 4800, 9600 (Modbus meters)",
        )


def _weight(suspect: Suspect) -> float:
    """Whole frames whose checksums were not assumed, but turned out right, count on top."""
    if suspect.found.bits < CHANCE_BITS or suspect.assumes_sums:
        return suspect.found.bits
    return suspect.found.bits + 20 * sum(1 for _ in _verified(suspect))


def _verified(suspect: Suspect) -> Iterator[tuple[bytes, AnyFrame, Kind]]:
    if suspect.grammar == "any":
        return
    for frame in suspect.found.frames:
        raw = bytes(byte for byte in frame if byte is not None)
        if len(raw) == len(frame):
            for piece in read_as(suspect.grammar, raw).pieces:
                yield raw, piece.frame, suspect.grammar


def _recovered(suspect: Suspect, asked: AnyFrame | None) -> Iterator[str]:
    """The frames that appear when the bytes are read so."""
    shown = 0
    for raw, frame, kind in _verified(suspect):
        if shown < FRAMES_SHOWN:
            yield f"read so, there is {hexadecimal(raw)} = {says(kind, frame, asked)}"
        shown += 1
    if not shown and suspect.grammar != "any":
        for recovered in suspect.found.frames[:FRAMES_SHOWN]:
            told = " ".join("??" if byte is None else f"{byte:02X}" for byte in recovered[:40])
            yield f"read so, {NAMES[suspect.grammar]} fits (?? could not be told): {told}"
    elif not shown:
        yield "every level lasts several of the port's bits, as a slower sender's do"


def _reply_size(asked: AnyFrame | None) -> int:
    """Bytes of the reply to a read, where the request fixes them; otherwise 0."""
    if isinstance(asked, modbus.Frame) and asked.pdu[0] in (3, 4) and len(asked.pdu) == 5:
        return 5 + 2 * int.from_bytes(asked.pdu[3:5], "big")
    item = dlt645.items(asked.edition).get(asked.di or 0) if isinstance(asked, dlt645.Frame) else None
    if item is None or not isinstance(asked, dlt645.Frame) or item.is_open:
        return 0
    return dlt645.PREAMBLE_BYTES + HEADER_BYTES + asked.di_bytes + item.group_bytes * item.count + 2
