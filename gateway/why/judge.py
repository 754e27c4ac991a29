"""What is looked at, and in which order."""

from typing import Final

from gateway.why.answers import judge_frames
from gateway.why.case import KINDS, Case, Cause, Expectation, Verdict
from gateway.why.fragments import judge_fragments, judge_text
from gateway.why.line import judge_setting, judge_silence, judge_stuck
from gateway.why.reading import hexadecimal, read_as

BYTES_MAX: Final = 65_536  # of a capture; what comes after is not looked at
SURE_BITS: Final = 16.0  # what checks must say beyond chance before frames count as found


def explain(raw: bytes, expected: Expectation | None = None) -> list[Verdict]:
    """What the bytes say, the likeliest first; never empty."""
    case = Case(raw[:BYTES_MAX], expected or Expectation())
    request = case.expected.request
    for kind in KINDS if request else ():
        reading = read_as(kind, request)
        if reading.pieces and (case.asked is None or kind == case.expected.kind):
            case.asked, case.asked_kind = reading.pieces[0].frame, kind
    _judge(case)
    if not case.found:
        case.add(
            Cause.UNKNOWN,
            "No cause found: the bytes fit no protocol, speed, parity or wiring that was tried",
            [f"{len(case.raw)} bytes: {hexadecimal(case.raw, 24)}"],
            0.0,
            "Capture more: meterctl sniff --raw, at least three polls",
            "Say what you know: --protocol, --baud, --parity, --request",
            "Look at the line with an oscilloscope if it goes on: levels, reflections, a loose screw",
        )
    return sorted(case.found, key=lambda verdict: -verdict.confidence)


def _judge(case: Case) -> None:
    if not case.raw:
        judge_silence(case)
        return
    if judge_stuck(case):
        return
    readings = [read_as(kind, case.raw) for kind in KINDS]
    best = max(readings, key=lambda reading: (reading.bits, reading.kind == case.expected.kind))
    if best.bits >= SURE_BITS:
        judge_frames(case, best)
        return
    judge_fragments(case)
    if max((verdict.confidence for verdict in case.found), default=0.0) < 0.8:
        judge_text(case)
        judge_setting(case)
