"""What must never be in the tree, and what the documents promise."""

import re
import subprocess
from pathlib import Path

import click
from click.testing import CliRunner

from cloud.gridloom import COMMANDS, gridloom

ROOT = Path(__file__).resolve().parents[1]
# Spelt in pieces, so that this file does not name them itself.
FORBIDDEN = ("py" + "pi.org", "python" + "hosted", "npm" + "js.", "deb.deb" + "ian", "/wo" + "rk/")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in listed.decode().split("\0") if name]


def test_no_registry_address_and_no_machine_path_in_the_tree() -> None:
    found = []
    for path in tracked():
        text = path.read_bytes().decode(errors="ignore") if path.is_file() else ""
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert not found


def test_every_command_has_help_that_ends_with_commands_to_copy() -> None:
    for name in COMMANDS:
        command = gridloom.get_command(click.Context(gridloom), name)
        assert command is not None
        if name == "dashboards":  # hands its arguments on to `python -m dashboards`, see tests/dashboards
            continue
        shown = CliRunner().invoke(command, ["--help"])
        assert shown.exit_code == 0, name
        assert "Copy and run" in shown.output, name


def test_readmes_name_every_room_and_both_commands() -> None:
    for readme in ("README.md", "README.zh-CN.md"):
        text = (ROOT / readme).read_text()
        for word in (
            "make demo",
            "make test",
            "protocols/",
            "edge/",
            "gateway/",
            "cloud/",
            "simulators/",
            "dashboards/",
        ):
            assert word in text, f"{readme}: {word}"


def test_links_in_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (path.parent / target).exists(), f"{path.name}: {target}"
