"""Which site a gateway runs: the file it was started with, or one that was pushed and has proved itself.

The file on disk is never written. In ``data_dir`` stand ``site.pushed.toml`` (came up, and counts) and, while it is
tried, ``site.trial.toml``. Every step is one rename: a gateway that is killed, or loses its power, during a trial
finds the trial file at its next start and goes back. Who changes the file on site has the last word: a pushed site
counts only while the file it replaced is as it was then.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from gateway.config import Problem, Site, load

logger = logging.getLogger(__name__)

PUSHED: Final = "site.pushed.toml"
TRIAL: Final = "site.trial.toml"
VOID: Final = "site.void.toml"  # a pushed one that the file on site has overtaken
_MARK: Final = "# gridloom pushed "


@dataclass(frozen=True, slots=True)
class Active:
    """A site and where it comes from. ``command``: the one that pushed it."""

    site: Site
    origin: Literal["file", "pushed", "trial"]
    sha256: str  # of the text
    command: str = ""


class Sites:
    """``path``: the file given to ``meterctl run``; relative paths in a pushed site start from its folder too."""

    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self.path = path
        self._environment = environment

    def start(self) -> Active | list[Problem]:
        """The site that counts, after a trial that was interrupted is undone."""
        original = load(self.path, self._environment)
        if isinstance(original, list):
            return original
        if self._remove(original.data_dir / TRIAL):
            logger.warning("the trial of a pushed site was interrupted; it is undone")
        pushed = self._pushed(original)
        if pushed is None:
            return Active(original, "file", digest(self.path.read_text(encoding="utf-8")))
        logger.info("a pushed site is at work path=%s, not %s", original.data_dir / PUSHED, self.path)
        return pushed

    def active(self) -> Active | list[Problem]:
        """The site that counts. Changes nothing."""
        original = load(self.path, self._environment, offline=True)
        if isinstance(original, list):
            return original
        return self._pushed(original, looking=True) or Active(original, "file", self._digest())

    def check(self, text: str, now: Active) -> Site | list[Problem]:
        """A pushed text: everything that is wrong with it, including what no push may change."""
        found = load(self.path, self._environment, text=text)
        if isinstance(found, list):
            return found
        problems = []
        for where, was, is_now in (
            ("gateway.name", now.site.gateway, found.gateway),
            ("gateway.data_dir", str(now.site.data_dir), str(found.data_dir)),
        ):
            if was != is_now:
                problems.append(Problem(self.path.name, where, f'may not change by a push, from "{was}" to "{is_now}"'))
        return problems or found

    def try_out(self, text: str, site: Site, *, command: str, now: datetime) -> Active:
        """Put a checked site on trial: from here on it is either confirmed or undone."""
        about = {"command": command, "at": now.isoformat(timespec="seconds"), "replaces": self._digest()}
        _write(site.data_dir / TRIAL, f"{_MARK}{json.dumps(about)}\n{text}")
        return Active(site, "trial", digest(text), command)

    def confirm(self, trial: Active) -> Active:
        """The trial counts, also after a power cut."""
        folder = trial.site.data_dir
        (folder / TRIAL).replace(folder / PUSHED)
        _sync(folder)
        return Active(trial.site, "pushed", trial.sha256, trial.command)

    def roll_back(self, trial: Active) -> None:
        self._remove(trial.site.data_dir / TRIAL)

    # ---- files -------------------------------------------------------------------------------------------------------

    def _digest(self) -> str:
        return digest(self.path.read_text(encoding="utf-8"))

    def _pushed(self, original: Site, *, looking: bool = False) -> Active | None:
        path = original.data_dir / PUSHED
        try:
            first, _, text = path.read_text(encoding="utf-8").partition("\n")
            about = json.loads(first.removeprefix(_MARK))
            replaces, command = str(about["replaces"]), str(about["command"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.error("the pushed site is unreadable path=%s: %s; %s counts", path, error, self.path)
            return None
        if replaces != self._digest():
            if not looking:
                logger.warning("%s was changed since a site was pushed: the file counts again", self.path)
                path.replace(original.data_dir / VOID)
                _sync(original.data_dir)
            return None
        found = load(self.path, self._environment, offline=looking, text=text)
        if isinstance(found, list):
            problems = "; ".join(map(str, found))
            logger.error("the pushed site is no longer valid path=%s: %s; %s counts", path, problems, self.path)
            return None
        if (found.gateway, found.data_dir) != (original.gateway, original.data_dir):
            logger.error("the pushed site is another gateway's path=%s; %s counts", path, self.path)
            return None
        return Active(found, "pushed", digest(text), command)

    @staticmethod
    def _remove(path: Path) -> bool:
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        _sync(path.parent)
        return True


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    """All of it or nothing, whenever the power fails."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
