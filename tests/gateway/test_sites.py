"""Which site counts, by what is on disk: a kill or a power cut between any two steps leaves the one or the other."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway import sites as module
from gateway.commands import made
from gateway.commands.orders import Answer
from gateway.sites import PUSHED, TRIAL, VOID, Active, Sites
from protocols.uplink import REPLY_BYTES_MAX, ItemResult, Outcome, Value, encode
from tests.gateway.test_config import GOOD

SECRETS = {"GRIDLOOM_MQTT_PASSWORD": "x", "GRIDLOOM_MQTT_URL": "mqtt://127.0.0.1:1883"}
NOW = datetime(2026, 3, 1, 4, tzinfo=UTC)
OTHER = GOOD + "\n# pushed\n"


@pytest.fixture
def sites(tmp_path: Path) -> Sites:
    (tmp_path / "site.toml").write_text(GOOD)
    return Sites(tmp_path / "site.toml", SECRETS)


def start(sites: Sites) -> Active:
    active = sites.start()
    assert isinstance(active, Active), active
    active.site.data_dir.mkdir(exist_ok=True, parents=True)
    return active


def try_out(sites: Sites, text: str = OTHER) -> Active:
    site = sites.check(text, start(sites))
    assert not isinstance(site, list), site
    return sites.try_out(text, site, command="c-1", now=NOW)


def files(active: Active) -> set[str]:
    return {path.name for path in active.site.data_dir.iterdir() if path.name.startswith("site.")} - {"site.toml"}


def test_a_confirmed_site_counts_at_the_next_start_and_the_file_is_as_it_was(sites: Sites) -> None:
    trial = try_out(sites)
    assert trial.origin == "trial"
    kept = sites.confirm(trial)
    assert (kept.origin, kept.sha256) == ("pushed", module.digest(OTHER))
    again = start(sites)
    assert again == kept
    assert files(again) == {PUSHED}
    assert sites.path.read_text() == GOOD
    looked = Sites(sites.path, {}).active()
    assert isinstance(looked, Active) and looked.origin == "pushed", "without secrets, for who only looks"


def test_a_trial_that_was_cut_is_undone_at_the_next_start(sites: Sites, caplog: pytest.LogCaptureFixture) -> None:
    trial = try_out(sites)
    assert files(trial) == {TRIAL}
    assert start(sites).origin == "file"
    assert files(trial) == set()
    assert "interrupted; it is undone" in caplog.text


def test_a_trial_that_was_cut_leaves_the_pushed_site_before_it(sites: Sites) -> None:
    first = sites.confirm(try_out(sites))
    try_out(sites, OTHER + "# second\n")
    assert start(sites) == first


def test_who_changes_the_file_has_the_last_word(sites: Sites) -> None:
    sites.confirm(try_out(sites))
    sites.path.write_text(GOOD + "# by Wang\n")
    active = start(sites)
    assert (active.origin, files(active)) == ("file", {VOID})
    sites.path.write_text(GOOD)
    assert start(sites).origin == "file", "what was overtaken does not come back"


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"# gridloom pushed {\n", b"# gridloom pushed []\nx"])
def test_a_damaged_pushed_site_is_told_and_the_file_counts(
    sites: Sites, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    kept = sites.confirm(try_out(sites))
    (kept.site.data_dir / PUSHED).write_bytes(damage)
    assert start(sites).origin == "file"
    assert "the pushed site is unreadable" in caplog.text


def test_name_and_folder_may_not_change(sites: Sites) -> None:
    active = start(sites)
    moved = GOOD.replace('name = "gw-1"', 'name = "gw-2"', 1).replace(
        "[gateway]", '[gateway]\ndata_dir = "elsewhere"', 1
    )
    found = sites.check(moved, active)
    assert isinstance(found, list)
    assert [problem.where for problem in found] == ["gateway.name", "gateway.data_dir"]


def test_every_step_is_synced_before_the_next(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut forgets what was not fsynced: the new file before its name, the name before anybody counts on it."""
    steps: list[str] = []

    def seen(name: str, do: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **how: object) -> object:
            is_folder = name == "fsync" and os.path.isdir(f"/proc/self/fd/{arguments[0]}")  # noqa: PTH112
            steps.append("fsync folder" if is_folder else name)
            return do(*arguments, **how)

        return call

    site = sites.check(OTHER, start(sites))
    assert not isinstance(site, list)
    monkeypatch.setattr(os, "fsync", seen("fsync", os.fsync))
    monkeypatch.setattr(Path, "replace", seen("replace", Path.replace))
    monkeypatch.setattr(Path, "unlink", seen("unlink", Path.unlink))
    trial = sites.try_out(OTHER, site, command="c-1", now=NOW)
    sites.confirm(trial)
    assert steps == ["fsync", "replace", "fsync folder", "replace", "fsync folder"]
    steps.clear()
    trial = sites.try_out(OTHER, site, command="c-2", now=NOW)
    sites.roll_back(trial)
    assert steps == ["fsync", "replace", "fsync folder", "unlink", "fsync folder"]


def test_a_reply_stays_within_its_bound_and_says_what_it_leaves_out() -> None:
    results = [
        ItemResult(item=f"{i}", values=[Value(name="x", value="9" * 20_000)], reply="F" * 9_000) for i in range(50)
    ]
    reply = made("c-1", 0, Answer(Outcome.DONE, "50 of 50 items read", results=results))
    assert len(encode(reply)) <= REPLY_BYTES_MAX
    assert 5 <= len(reply.results) < 50
    assert reply.results == results[: len(reply.results)]
    assert "the rest is left out" in reply.detail
    meters = {f"m{i}": "y" * 300 for i in range(2_000)}
    reply = made("c-1", 0, Answer(Outcome.DONE, "looked", meters=meters))
    assert len(encode(reply)) <= REPLY_BYTES_MAX
    assert len(reply.meters) > 500
