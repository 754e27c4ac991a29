"""docs/field.md and the field part of the READMEs: their commands exist, and what they print is what they show."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gateway.meterctl import meterctl

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/field.md", "README.md", "README.zh-CN.md")


def commands(page: str) -> list[list[str]]:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("meterctl ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("page", PAGES)
def test_its_commands_are_spelt_right(page: str) -> None:
    found = commands(page)
    assert len(found) >= 5
    for name, *arguments in found:
        command = meterctl.get_command(click.Context(meterctl), name)
        assert command is not None, name
        context = click.Context(command, info_name=name)
        options, _, _ = command.make_parser(context).parse_args(list(arguments))
        for parameter in command.params:
            given = options.get(parameter.name or "")
            if isinstance(parameter, click.Option) and isinstance(parameter.type, click.Choice) and given:
                for one in given if isinstance(given, list | tuple) else [given]:
                    parameter.type.convert(one, parameter, context)


@pytest.mark.parametrize("page", PAGES)
def test_what_why_prints_is_what_it_shows(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    run = 0
    for name, *arguments in commands(page):
        if name != "why" or "--file" in arguments:
            continue
        shown = CliRunner().invoke(meterctl, [name, *arguments])
        assert shown.exit_code == 0
        for line in shown.output.splitlines()[:2]:
            head = line.split(" = ")[0]  # READMEs leave out the middle of a long line
            assert head in text, head
        run += 1
    assert run


def test_every_command_is_in_the_guide() -> None:
    text = (ROOT / "docs/field.md").read_text(encoding="utf-8")
    missing = [name for name in meterctl.list_commands(click.Context(meterctl)) if f"meterctl {name}" not in text]
    assert [name for name in missing if name != "bench"] == []
