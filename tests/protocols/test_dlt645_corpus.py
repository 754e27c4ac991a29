"""DL/T 645 against every frame gathered from public sources: framing, values and rejections, counted apart."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocols import dlt645
from protocols.dlt645 import Broken, Frame, decode_one, explain
from protocols.dlt645.table import items
from protocols.framing import Garbage

# The corpus gives no names for the error bits of 1997 ("bits 02"); we do.
NAMED_BY_US = {"F315": ["bad_data_identifier"]}
VALUES = {"value", "values", "time", "text", "word_hex", "records", "address"}
ORDERS = {"password", "valid_until", "freeze", "baud_word", "new_address", "event_di", "seq", "blocks", "fragment"}


@pytest.fixture(scope="module")
def corpus(shared: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (shared / "dlt645" / "frames.jsonl").read_text().splitlines()]
    assert len(records) == 284
    return records


def scored(corpus: list[dict[str, Any]], origin: str) -> Iterator[dict[str, Any]]:
    """The frames the score is about: their record carries no flag."""
    return (record for record in corpus if record["origin"] == origin and "flag" not in record)


@pytest.mark.parametrize(
    ("origin", "score"),
    [
        ("public", {"framed": 211, "explained": 211, "values": 99, "orders": 13, "refusals": 11, "rejected": 13}),
        # The rest were made from the same reading of the standard, which makes them weaker evidence.
        ("synthetic", {"framed": 43, "explained": 43, "values": 11, "orders": 14, "refusals": 8}),
    ],
)
def test_every_frame_without_a_flag_scores(corpus: list[dict[str, Any]], origin: str, score: dict[str, int]) -> None:
    counts: Counter[str] = Counter()
    for record in scored(corpus, origin):
        raw = bytes.fromhex(record["hex"])
        if not record["valid"]:
            counts["rejected"] += rejects(record, raw)
            continue
        frame = framed(record, raw)
        counts["framed"] += 1
        meaning = explain(frame)
        want = dict(record["meaning"])
        if record["id"] in NAMED_BY_US:
            want["errors"] = NAMED_BY_US[record["id"]]
        assert meaning == want, record["id"]
        counts["explained"] += 1
        counts["values"] += frame.is_reply and bool(VALUES & meaning.keys())
        counts["orders"] += bool(ORDERS & meaning.keys())
        counts["refusals"] += frame.is_abnormal
    print(f"corpus, {origin} frames without a flag: {dict(counts)}")
    assert counts == score


def framed(record: dict[str, Any], raw: bytes) -> Frame:
    """The stream decoder and the one-frame decoder find the same frame, and it encodes to the same bytes."""
    (frame,) = dlt645.Decoder().feed(raw)
    assert isinstance(frame, Frame)
    assert decode_one(raw) == frame
    assert (frame.address, f"{frame.control:02X}") == (record["address"], record["control"])
    assert frame.data.hex().upper() == record["data_hex_after_minus33"]
    assert frame.edition == record["version"]
    di = None if frame.di is None else f"{frame.di:0{2 * frame.di_bytes}X}"
    assert di == record["di"]
    assert dlt645.encode(frame, preamble=record["preamble"]) == raw
    return frame


def rejects(record: dict[str, Any], raw: bytes) -> bool:
    """The stream yields no frame, and the one-frame decoder names the fault and the edition as the corpus does."""
    decoder = dlt645.Decoder()
    assert all(isinstance(event, Garbage) for event in decoder.feed(raw) + decoder.flush()), record["id"]
    broken = decode_one(raw)
    assert isinstance(broken, Broken)
    return (broken.error, broken.edition) == (record["error"], record["version"])


def test_flagged_frames_are_read_as_their_bytes_say(corpus: list[dict[str, Any]]) -> None:
    """A flag names an error of the source; the meaning in the record is that of the bytes."""
    counts: Counter[str] = Counter()
    for record in corpus:
        if "flag" not in record:
            continue
        found = decode_one(bytes.fromhex(record["hex"]))
        if isinstance(found, Broken):
            assert (found.error, found.edition) == (record["error"], record["version"])
            counts["rejected"] += 1
        else:
            assert explain(found) == record["meaning"]
            counts["explained"] += 1
    print(f"corpus, flagged frames: {dict(counts)}")
    assert counts == {"rejected": 13, "explained": 4}


def test_the_tables_hold_all_the_shared_tables_hold(shared: Path) -> None:
    """Every identifier, also those that ours derives from the dimensions of another row."""
    import csv

    counts = {}
    for edition in ("1997", "2007"):
        with (shared / "dlt645" / f"di_{edition}.csv").open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        for row in rows:
            item = items("1997" if edition == "1997" else "2007")[int(row["di_hex"], 16)]
            assert (item.name, item.name_zh, item.unit) == (row["name_en"], row["name_zh"], row["unit"])
            flags = (item.signed, item.readable, item.writable)
            assert flags == tuple(row[key] == "1" for key in ("signed", "read", "write"))
            assert bytes_of(row["bytes"]) in (item.size, item.group_bytes if item.is_open else None)
        counts[edition] = len(rows)
    assert counts == {"1997": 149, "2007": 977}


def bytes_of(text: str) -> int | None:
    """ "3+5", "4*13", "8*(1+k)" (of one member) or "var"."""
    if text == "var":
        return None
    if "k" in text:
        return int(text.split("*")[0])
    product = 1
    for factor in text.split("*"):
        product *= sum(map(int, factor.split("+")))
    return product
