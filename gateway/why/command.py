"""``meterctl why``."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import click

from edge.model import Protocol, SerialSetting
from gateway import decode
from gateway.why.capture import Capture, read_capture
from gateway.why.case import TOLERANCE, Cause, Expectation, Verdict
from gateway.why.judge import BYTES_MAX, explain


def as_document(verdict: Verdict) -> dict[str, object]:
    return {
        "cause": verdict.cause.value,
        "what": verdict.what,
        "confidence": verdict.confidence,
        "evidence": list(verdict.evidence),
        "todo": list(verdict.todo),
    }


def as_text(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for i, verdict in enumerate(verdicts, 1):
        yield f"{i}. {verdict.what}" + (f"  [{verdict.confidence:.0%}]" if verdict.cause is not Cause.UNKNOWN else "")
        yield from (f"     {line}" for line in verdict.evidence)
        yield from (f"   → {line}" for line in verdict.todo)


class _Bytes(click.ParamType[bytes]):
    name = "HEX"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        line = decode.read_line(str(value))
        if line.error == "not_hex":
            self.fail(f"hexadecimal expected: {line.detail}", param, ctx)
        return line.raw


@click.command(
    "why",
    epilog="""\b
Copy and run:
  meterctl why F8F8F8F8809E069E0000000000809E06F8781E601E60 --baud 4800 --parity N --protocol dlt645-2007
  meterctl why --file capture.txt --baud 2400 --parity E
  meterctl why 0103040A3D4366D93D --request 010300000002C40B --expect-value 230
  meterctl why --silent --baud 9600 --parity E
""",
)
@click.argument("heard", metavar="[HEX]...", nargs=-1)
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A capture: of sniff --raw, hex, or bytes.",
)
@click.option("--silent", is_flag=True, help="Nothing at all was heard.")
@click.option("--protocol", type=click.Choice(get_args(Protocol)), help="What the line is set to.")
@click.option("--baud", type=click.IntRange(300, 921_600), help="Speed of the port that heard the bytes.")
@click.option("--parity", type=click.Choice(["N", "E", "O"]), help="Of that port; E for DL/T 645, else N, if left out.")
@click.option("--stop-bits", type=click.IntRange(1, 2), default=1, show_default=True)
@click.option("--data-bits", type=click.IntRange(7, 8), default=8, show_default=True)
@click.option("--request", type=_Bytes(), help="What was sent before.")
@click.option("--expect-value", type=float, help="What the meter's display shows.")
@click.option("--tolerance", type=click.FloatRange(0, 1), default=TOLERANCE, show_default=True, help="Of that value.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def why_command(
    heard: tuple[str, ...],
    path: Path | None,
    silent: bool,
    protocol: Protocol | None,
    baud: int | None,
    parity: Literal["N", "E", "O"] | None,
    stop_bits: int,
    data_bits: int,
    request: bytes | None,
    expect_value: float | None,
    tolerance: float,
    as_json: bool,
) -> None:
    """Say why the bytes HEX that came over a line are not the reply you want. Talks to nobody.

    The bytes come as HEX, from --file, or on standard input. Say what you know; every option makes the verdict surer.
    Exit 0 when something was recognised, 1 when not.
    """
    if silent:
        capture = Capture(b"")
    elif heard:
        line = decode.read_line(" ".join(heard))
        if line.error == "not_hex":
            raise click.BadParameter(f"hexadecimal expected: {line.detail}", param_hint="HEX")
        capture = Capture(line.raw)
    elif path is not None:
        with path.open("rb") as file:
            capture = read_capture(file.read(4 * BYTES_MAX))
    elif sys.stdin.isatty():
        raise click.UsageError("no bytes: give them as HEX, with --file or on standard input; or --silent if none came")
    else:
        capture = read_capture(sys.stdin.buffer.read(4 * BYTES_MAX))
    protocol = protocol or capture.protocol
    setting = capture.setting
    if baud is not None:
        is_645 = protocol is not None and protocol.startswith("dlt645")
        setting = SerialSetting(baud, parity or ("E" if is_645 else "N"), stop_bits, data_bits)
    expected = Expectation(protocol, setting, request or capture.request, expect_value, tolerance)
    raw, verdicts = capture.raw, explain(capture.raw, expected)
    if as_json:
        document = {"bytes": len(raw), "verdicts": [as_document(verdict) for verdict in verdicts]}
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        click.echo("\n".join(as_text(verdicts)))
    sys.exit(1 if verdicts[0].cause is Cause.UNKNOWN else 0)
