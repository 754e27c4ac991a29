"""Every fuzz target for a short while, from its seeds; and floods, which must neither fill the memory nor hang."""

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.local import SOCKET
from protocols import dlt645, modbus
from protocols.framing import Garbage
from tests.fuzz.targets import TARGETS, Streams, check_held
from tests.gateway.test_local import running

EXAMPLES = int(os.environ.get("GRIDLOOM_FUZZ_EXAMPLES", "200"))


@cache
def seeds(name: str) -> list[bytes]:
    return list(TARGETS[name].seeds())


@st.composite
def cases(draw: st.DrawFn, name: str) -> bytes:
    """Any bytes, or a seed with some of its bytes changed, taken out or put in."""
    bytes_max = TARGETS[name].bytes_max
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=bytes_max))
    raw = bytearray(draw(st.sampled_from(seeds(name))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(raw)


@pytest.mark.parametrize("name", TARGETS)
def test_no_decoder_raises_what_it_does_not_promise(name: str) -> None:
    @settings(
        max_examples=max(1, EXAMPLES // TARGETS[name].cost),
        deadline=None,
        derandomize=os.environ.get("CI") == "true",
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(cases(name))
    @example(b"")
    def run(raw: bytes) -> None:
        TARGETS[name].run(raw)

    run()
    for seed in seeds(name):
        TARGETS[name].run(seed)


# ---- floods ----------------------------------------------------------------------------------------------------------

# What a peer could send for ever: beginnings that never become a frame, and frames that fail at their last byte.
FLOODS = {
    "all 68H": b"\x68",
    "645 headers that promise 200 bytes": b"\x68\0\0\0\0\0\0\x68\x11\xc8",
    "all FEH": b"\xfe",
    "all colons": b":",
    "ASCII without an end": b":" + b"0" * 510,
    "half MBAP headers": b"\0\0\0\0\0\xfe",
    "zeros": b"\0",
    "RTU replies of 250 bytes": b"\x01\x03\xfa",
    "RTU writes of 246 bytes": b"\x01\x10\0\0\0\x7b\xf6",
    "identifications": b"\x01\x2b\x0e\x01\x83\0\0\x01\0\xf0",
    "every byte": bytes(range(256)),
}
DECODERS: dict[str, Callable[[], Streams]] = {
    "645": dlt645.Decoder,
    "tcp": modbus.TcpDecoder,
    "rtu": modbus.RtuDecoder,
    "rtu replies": lambda: modbus.RtuDecoder(replies_only=True),
    "ascii": modbus.AsciiDecoder,
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_flood_fills_no_memory_and_costs_the_same_for_each_byte(decoder: str) -> None:
    def cost_s(flood: bytes, octets: int, cut: int) -> float:
        raw = (flood * (octets // len(flood) + 1))[:octets]
        it = DECODERS[decoder]()
        began = time.process_time()
        for at in range(0, octets, cut):
            it.feed(raw[at : at + cut])
        spent = time.process_time() - began
        check_held(it)
        return spent

    worst_us = 0.0
    for name, flood in FLOODS.items():
        for cut in (1, 1 << 20):
            for tries_left in (2, 1, 0):  # others use this machine, too
                short, long = cost_s(flood, 4_000, cut), cost_s(flood, 16_000, cut)
                if long < 10 * short or long < 0.005:  # 4 times as long is linear, 16 times quadratic
                    break
                assert tries_left, f"{name}, cut at {cut}: {short:.4f} s for 4,000 bytes, {long:.4f} s for 16,000"
            worst_us = max(worst_us, long / 16_000 * 1e6)
    print(f"flood, {decoder}: {worst_us:.1f} us a byte at worst")
    it = DECODERS[decoder]()
    events = it.feed(b"\x55" * (1 << 20))
    assert all(isinstance(event, Garbage) for event in events)
    check_held(it)


# ---- the local socket ------------------------------------------------------------------------------------------------


def test_the_agents_socket_answers_any_line(tmp_path: Path) -> None:
    """Over the real socket: a line that is no question is answered with an end and why, and the next one is served."""
    odd = [
        b"", b"{", b"[]", b"null", b'{"op": "count"}', b'{"op": "count", "to": "x"}', b'{"op": "count", "to": 1e400}',
        b'{"op": 5}', b'{"op": "\xff"}', b"[" * 60_000, b'{"op":' * 9_000,
        b'{"op": "count", "to": ' + b"9" * 5_000 + b"}", b"x" * 70_000, b"\0" * 100,
    ]  # fmt: skip
    with running(tmp_path):

        def says(line: bytes) -> list[bytes]:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(20)
                client.connect(str(tmp_path / SOCKET))
                with client.makefile("rwb") as stream:
                    stream.readline()  # the greeting
                    stream.write(line + b"\n")
                    with suppress(BrokenPipeError):
                        stream.flush()
                    return stream.readlines()

        @settings(max_examples=EXAMPLES // 2, deadline=None, derandomize=os.environ.get("CI") == "true")
        @given(st.binary(max_size=200).filter(lambda raw: b"\n" not in raw))
        def run(raw: bytes) -> None:
            check(raw)

        def check(line: bytes) -> None:
            answers = [json.loads(answer) for answer in says(line)]
            assert answers and answers[-1].get("end") is True, line[:80]
            assert answers[-1]["error"]

        for line in odd:
            check(line)
        run()
        assert json.loads(says(b'{"op": "count", "to": 2}')[-1]) == {"error": "", "end": True}
