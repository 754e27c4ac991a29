"""What the file holds that somebody caught on the line."""

import re
from dataclasses import dataclass
from typing import Final, cast, get_args

from edge.model import Parity, Protocol, SerialSetting
from gateway import sniff

_WAYS: Final = ("in", "out", "rx", "tx")
_TIMES = re.compile(r"\d{4}-\d\d-\d\dT?[\d:.+Z-]*|\d+:\d\d(:\d\d)?(\.\d+)?Z?|\b\d+\.\d+\b")


@dataclass(frozen=True, slots=True)
class Capture:
    """What a file holds: the bytes that came, and what else it says."""

    raw: bytes
    request: bytes = b""
    protocol: Protocol | None = None
    setting: SerialSetting | None = None


def read_capture(raw: bytes) -> Capture:
    """Of ``meterctl sniff --raw``, of hexadecimal text with times and words between, or else the bytes themselves."""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        return Capture(raw)
    try:
        chunks = sniff.read_capture(text)
    except ValueError:
        return Capture(_from_hex(text) or raw)
    if not chunks:
        return Capture(b"" if not text.strip() or text.startswith("#") else raw)
    sent = {chunk.raw for chunk in chunks if chunk.direction == "out"}
    came = b"".join(chunk.raw for chunk in chunks if chunk.direction != "out")
    head = text.splitlines()[0]
    protocol, setting = (re.search(pattern, head) for pattern in (r"protocol=(\S+)", r"setting=(\d+) (\d)([NEO])(\d)"))
    known = protocol is not None and protocol[1] in get_args(Protocol)
    return Capture(
        # One question and what came of it; of several the whole conversation.
        came if len(sent) == 1 else b"".join(chunk.raw for chunk in chunks),
        sent.pop() if len(sent) == 1 else b"",
        cast(Protocol, protocol[1]) if known and protocol else None,
        SerialSetting(int(setting[1]), cast(Parity, setting[3]), int(setting[4]), int(setting[2])) if setting else None,
    )


def _from_hex(text: str) -> bytes:
    """Nothing where the text is no hexadecimal: then it is itself what came over the line."""
    out = ""
    for line in text.splitlines():
        bare = _TIMES.sub(" ", re.sub("0[xX]", " ", line.split("#")[0]))
        words = [word for word in re.split(r"[\s,;|<>\-]+", bare) if word and word.lower() not in _WAYS]
        if not all(len(word) % 2 == 0 and re.fullmatch(r"[0-9A-Fa-f]+", word) for word in words):
            return b""
        out += "".join(words)
    return bytes.fromhex(out)
