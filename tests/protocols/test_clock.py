"""Simulated time starts in the past, runs at its rate, and never passes the wall clock."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.clock import Anchor, SystemClock, read_anchor, write_anchor

SECONDS = st.floats(0, 4e9)


@given(SECONDS, SECONDS, st.floats(0.1, 1000), SECONDS)
def test_simulated_time_never_passes_the_wall_clock(real: float, simulated: float, rate: float, now: float) -> None:
    assert Anchor(real, simulated, rate).at(now) <= now


def test_it_runs_at_its_rate_and_falls_into_step_with_the_wall_clock() -> None:
    anchor = Anchor(real_s=1000, simulated_s=400, rate=60)
    assert anchor.at(1005) == 700
    assert anchor.speed(1005) == 60
    assert anchor.at(2000) == 2000
    assert anchor.speed(2000) == 1


def test_a_running_clock_notices_a_new_rate(tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    now = time.time()
    write_anchor(path, Anchor(now, now - 86_400, 1))
    clock = SystemClock(path)
    before = clock.now()
    assert clock.speed() == 1
    write_anchor(path, Anchor(now, now - 86_400, 1000))
    assert clock.speed() == 1000
    began = time.monotonic()
    asyncio.run(clock.sleep_until(before + timedelta(minutes=10)))
    assert time.monotonic() - began < 5
    assert clock.now() - before >= timedelta(minutes=10)


def test_without_a_file_it_is_the_wall_clock() -> None:
    assert abs(SystemClock().now().timestamp() - time.time()) < 1


def test_a_broken_clock_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "clock.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not a clock file"):
        read_anchor(path)
