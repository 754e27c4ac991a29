"""``meterctl templates`` and a site's own templates: a family is added without touching Python."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.config import Site, load
from gateway.templates import templates_command
from protocols import templates
from tests.gateway.test_config import GOOD
from tests.protocols.test_templates_families import HEAD, HZ


def run(*arguments: str) -> Result:
    return CliRunner().invoke(templates_command, arguments)


def own(folder: Path, text: str = HEAD + HZ) -> Path:
    folder.mkdir()
    (folder / "mine.toml").write_text(text.replace('"x"', '"mine"'), encoding="utf-8")
    return folder


def test_the_list_has_every_template_with_its_counts() -> None:
    lines = run().stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == templates.names()
    found = {it["name"]: it for it in json.loads(run("--json").stdout)}
    assert found.keys() == set(templates.names())
    sdm = found["eastron-sdm630"]
    assert (sdm["maker"], sdm["protocol"], sdm["phases"], len(sdm["quantities"])) == ("Eastron", "modbus", 3, 14)
    assert sdm["verified"] + sdm["unverified"] == 14 + sdm["extras"] == 90
    assert found["acrel-adl400"]["verified"] == 0


@pytest.mark.parametrize("name", templates.names())
def test_each_template_can_be_shown(name: str) -> None:
    result = run(name)
    assert result.exit_code == 0
    for register in templates.load(name).register:
        assert register.quantity in result.stdout
    assert json.loads(run(name, "--json").stdout)["table"]["name"] == name


def test_the_detail_says_what_a_float_cannot_resolve_and_what_is_not_known() -> None:
    shown = run("eastron-sdm630").stdout
    assert "steps of 0.061 to 1.95 Wh (at 1 MWh to 20 MWh), rollover not documented" in shown
    assert "side not documented" in shown
    assert "Conflict" in run("janitza-umg96").stdout


def test_a_wrong_or_unknown_template_fails_with_all_its_problems(tmp_path: Path) -> None:
    folder = own(tmp_path / "own", HEAD + HZ + '[[extra]]\nname = "a"\naddress = 101\ntype = "uint17"\n')
    result = run("mine", "--folder", str(folder), "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("mine.toml: extra[0].type: one of uint16")
    assert run("none").exit_code == 1
    assert len(run("--folder", str(folder)).stdout.splitlines()) == 1 + len(templates.names())


def site(tmp_path: Path, extra: str = "", **environment: str) -> object:
    path = tmp_path / "site.toml"
    path.write_text(GOOD.replace('"gridloom-demo-modbus"', '"mine"') + extra, encoding="utf-8")
    return load(path, environment, offline=True)


def test_a_site_takes_its_own_templates_from_the_file_or_the_environment(tmp_path: Path) -> None:
    folder = own(tmp_path / "own")
    for found in (
        site(tmp_path, '\n[templates]\ndirectory = "own"\n'),
        site(tmp_path, GRIDLOOM_TEMPLATES=str(folder)),
    ):
        assert isinstance(found, Site), found
        assert found.meters[1].template.name == "mine"


def test_a_folder_that_is_not_there_is_a_problem_of_the_site(tmp_path: Path) -> None:
    found = site(tmp_path, '\n[templates]\ndirectory = "gone"\n')
    assert isinstance(found, list)
    assert 'site.toml: templates.directory: a folder expected, got "gone"' in map(str, found)


def test_a_makers_table_does_not_fit_a_645_line(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    text = GOOD.replace('template = "dlt645-2007"', 'template = "eastron-sdm630"')
    path.write_text(text, encoding="utf-8")
    found = load(path, {}, offline=True)
    assert isinstance(found, list)
    assert any('"eastron-sdm630" speaks modbus' in str(problem) for problem in found)


def test_the_example_in_the_documentation_is_a_template() -> None:
    text = (Path(__file__).parents[2] / "docs/templates.md").read_text(encoding="utf-8")
    block = text.split("```toml")[2].split("```")[0]
    template = templates.parse(block, where="docs/templates.md")
    assert template.name == "acme-m1"


def test_the_detail_says_which_memory_a_meter_has() -> None:
    assert "memory: load records every 15 min" in run("dlt645-2007").stdout
    assert (
        "62 daily freezes from DI 05060001 on: energy_import_wh, energy_export_wh" in run("dlt645-2007-freeze").stdout
    )
    blocks = run("acrel-adl400").stdout
    assert "90 blocks, one a day, at 0x6000 + 34 (n - 1): energy_import_wh; unverified; fills gaps only while" in blocks
    assert "48 blocks, one a month" in blocks
    for name in ("dlt645-1997", "eastron-sdm630"):
        assert "a mark that was missed stays a gap" in run(name).stdout


def test_a_site_file_brings_its_own_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(tmp_path / "own")
    site = tmp_path / "site.toml"
    site.write_text(GOOD + '\n[templates]\ndirectory = "own"\n', encoding="utf-8")
    assert run("mine").exit_code == 1
    assert run("mine", "--site", str(site)).stdout.startswith("mine: Nobody")
    own(tmp_path / "other", HEAD.replace("Nobody", "Somebody") + HZ)
    monkeypatch.setenv("GRIDLOOM_TEMPLATES", str(tmp_path / "other"))
    assert run("mine", "--site", str(site)).stdout.startswith("mine: Somebody")  # as for the gateway itself
    monkeypatch.delenv("GRIDLOOM_TEMPLATES")
    site.write_text("[templates", encoding="utf-8")
    assert run("--site", str(site)).exit_code == 2
