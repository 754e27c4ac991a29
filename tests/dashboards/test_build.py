"""What `python -m dashboards` writes, and the schema Grafana expects of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from dashboards.__main__ import DASHBOARDS, HERE, files, main
from dashboards.panels import COLUMNS, DATASOURCE_UID

ZONE = "Asia/Shanghai"


def documents() -> dict[str, Any]:
    return {dashboard.uid: dashboard.json(ZONE) for dashboard in DASHBOARDS}


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, arguments, env=environment)


def test_the_committed_json_is_what_build_writes(tmp_path: Path) -> None:
    for path, text in files(ZONE, DATASOURCE_UID, HERE / "json", HERE / "provisioning" / "alerting"):
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `python -m dashboards build`"
    assert len(list((HERE / "json").iterdir())) == len(DASHBOARDS)


def test_build_writes_where_it_is_told(tmp_path: Path) -> None:
    done = invoke(
        "build", "--out", str(tmp_path / "json"), "--alerting", str(tmp_path / "a"), "--zone", "Europe/Copenhagen"
    )
    assert done.exit_code == 0, done.output
    written: Any = json.loads((tmp_path / "json" / "gridloom-loss.json").read_text())
    assert written["timezone"] == "Europe/Copenhagen"
    assert written["templating"]["list"][0]["current"]["value"] == "Europe/Copenhagen"


@pytest.mark.parametrize("uid", [dashboard.uid for dashboard in DASHBOARDS])
def test_the_schema_is_the_one_grafana_reads(uid: str) -> None:
    document = documents()[uid]
    assert document["id"] is None, "an id would belong to another Grafana"
    assert document["schemaVersion"] == 41
    assert len(uid) <= 40
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    cells: set[tuple[int, int]] = set()
    for panel in document["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= COLUMNS
        taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, f"{panel['title']} lies over another panel"
        cells |= taken
        assert panel["datasource"] == {"type": "grafana-postgresql-datasource", "uid": "gridloom"}
        for target in panel["targets"]:
            assert target["rawQuery"] and target["editorMode"] == "code"
            assert target["format"] in ("table", "time_series")


def test_titles_and_descriptions_are_in_both_languages() -> None:
    for document in documents().values():
        for part in (document, *document["panels"]):
            for text in (part["title"], part["description"]):
                english, _, chinese = text.partition(" · ")
                assert english.isascii(), text
                assert any("\u4e00" <= letter <= "\u9fff" for letter in chinese), text


def test_the_band_fills_from_p90_down_to_p10() -> None:
    [chart] = [p for p in documents()["gridloom-load"]["panels"] if p["title"].startswith("Load, forecast")]
    options = {
        override["matcher"]["options"]: {entry["id"]: entry["value"] for entry in override["properties"]}
        for override in chart["fieldConfig"]["overrides"]
    }
    assert options["p90"]["custom.fillBelowTo"] == "p10"
    names = [target["rawSql"] for target in chart["targets"]]
    for name in options:
        assert any(f'"{name}"' in sql for sql in names), f"no column is called {name}"


def test_field_options_name_columns_that_exist() -> None:
    for document in documents().values():
        for panel in document["panels"]:
            sql = " ".join(target["rawSql"] for target in panel["targets"])
            for override in panel["fieldConfig"]["overrides"]:
                if override["matcher"]["id"] == "byName":
                    assert f'"{override["matcher"]["options"]}"' in sql, panel["title"]


def test_every_variable_is_used_and_every_used_variable_is_there() -> None:
    for uid, document in documents().items():
        names = {variable["name"] for variable in document["templating"]["list"]}
        text = json.dumps([document["panels"], document["annotations"]])
        used = {part.split(":sqlstring}")[0] for part in text.split("${")[1:]}
        assert used == names - ({"zone"} if "zone" not in used else set()), uid


def test_provisioning_files_agree_with_the_build() -> None:
    [source] = yaml.safe_load((HERE / "provisioning/datasources/gridloom.yaml").read_text())["datasources"]
    assert source["uid"] == DATASOURCE_UID
    assert source["type"] == "grafana-postgresql-datasource"
    assert "database" in source["jsonData"] and "database" not in source  # the other place is dead since 12.2
    assert source["secureJsonData"]["password"].startswith("${")
    [provider] = yaml.safe_load((HERE / "provisioning/dashboards/gridloom.yaml").read_text())["providers"]
    alerting = json.loads((HERE / "provisioning/alerting/rules.json").read_text())
    [group] = alerting["groups"]
    assert group["folder"] == provider["folder"]
    uids = [rule["uid"] for rule in group["rules"]]
    assert len(set(uids)) == len(uids)
    for rule in group["rules"]:
        assert rule["condition"] in {query["refId"] for query in rule["data"]}
        assert len(rule["uid"]) <= 40


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    wrong_zone = invoke("build", "--out", str(tmp_path), "--zone", "Mars/Olympus")
    assert (wrong_zone.exit_code, "not a time zone" in wrong_zone.output) == (2, True)
    (tmp_path / "file").touch()
    no_folder = invoke("build", "--out", str(tmp_path / "file" / "json"), "--alerting", str(tmp_path))
    assert no_folder.exit_code == 1
    assert "Error:" in no_folder.output and "Traceback" not in no_folder.output


def test_help_ends_with_commands_to_copy() -> None:
    for command in ([], ["build"], ["push"]):
        shown = invoke(*command, "--help")
        assert shown.exit_code == 0
        assert "python -m dashboards" in shown.output.split("Copy and run:")[1]
