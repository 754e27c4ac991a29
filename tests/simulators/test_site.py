"""The folder `build` writes, and what the command says when something is wrong."""

import csv
import json
import tomllib
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cloud.engines.loss.flow import place, solve
from cloud.engines.loss.network import Line, Transformer, compile_network
from gateway import config
from simulators import site
from simulators.__main__ import main
from simulators.layout import SOURCE_PU
from simulators.profiles import QUARTERS
from simulators.site import RelayAction, Site
from simulators.world import WH_PER_STEP, ZONE, World
from tests.simulators.conftest import METERS, START


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_registry_hangs_together(built: Site) -> None:
    folder = built.directory / "registry"
    nodes = {row["node_id"]: row for row in rows(folder / "nodes.csv")}
    meters = rows(folder / "meters.csv")
    assert len(meters) == METERS
    assert sum(row["role"] == "supply" for row in meters) == 6
    for row in meters:
        assert nodes[row["node_id"]]["area_id"] == row["area_id"]
        assert nodes[row["node_id"]]["kind"] == ("source" if row["role"] == "supply" else "customer")
    # Radial: every node but the source is fed by exactly one line or transformer.
    fed = [row["to_node"] for row in rows(folder / "lines.csv")]
    fed += [row["lv_node"] for row in rows(folder / "transformers.csv")]
    assert sorted(fed) == sorted(name for name, row in nodes.items() if row["kind"] != "source")
    areas = rows(folder / "areas.csv")
    assert {row["feeder_id"] for row in areas} == {row["feeder_id"] for row in rows(folder / "feeders.csv")}
    assert len({row["gateway"] for row in areas}) == 6


def test_gateways_take_their_site_files(built: Site) -> None:
    """Every meter of the registry hangs on the gateway of its area, under its wire name."""
    environment = {"GRIDLOOM_MQTT_PASSWORD": "x" * 12, "GRIDLOOM_645_PASSWORD": "02123456"}
    ports = {line.name: line.port for line in built.lines}
    expected = {(row["gateway"], row["wire_name"]) for row in rows(built.directory / "registry/meters.csv")}
    told = set()
    for path in sorted((built.directory / "gateways").glob("*/site.toml")):
        assert isinstance(config.load(path, environment), config.Site), "problems"
        document = tomllib.loads(path.read_text())
        assert document["gateway"]["name"] == path.parent.name
        assert all(line["port"] == ports[line["name"]] for line in document["line"])
        told |= {(path.parent.name, meter["name"]) for meter in document["meter"]}
    assert told == expected


def test_truth_names_the_odd_meters_each_in_its_own_area(built: Site) -> None:
    truth = json.loads((built.directory / "truth.json").read_text())
    odd = {entry["kind"]: entry["area"] for entry in truth["meters"]}
    assert set(odd) == {"scaled", "bypass", "broken", "drifting"}
    assert len({*odd.values(), truth["stressed_area"]}) == 5
    day = truth["areas"]["A1"]["2026-02-20"]
    assert day["unexplained_wh"] == pytest.approx(
        day["supplied_wh"] - day["technical_wh"] - day["registered_wh"], abs=0.3
    )


def test_a_journal_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    whole = RelayAction(START.timestamp(), "A6-C01", False, START.timestamp() + 60)
    site.append_journal(tmp_path, whole)
    with (tmp_path / "relays.jsonl").open("a") as file:
        file.write('{"at_s": 12, "po')
    assert site.read_journal(tmp_path) == [whole]
    site.append_journal(tmp_path, whole)
    assert site.read_journal(tmp_path) == [whole, whole], "and does not spoil the next one"


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["build", "--meters", "5"], 2, "30 to 3000 expected, got 5"),
        (["build", "--start", "yesterday"], 2, "an ISO time such as"),
        (["build", "--start", "2026-03-01T17:00"], 2, "add the offset"),
        (["run"], 1, "make it with: python -m simulators build"),
        (["truth", "--points", "A6-C01"], 2, "belong together"),
    ],
)
def test_mistakes_get_one_line_that_says_what_to_do(tmp_path: Path, arguments: list[str], code: int, text: str) -> None:
    done = CliRunner().invoke(main, [arguments[0], "--data", str(tmp_path / "none"), *arguments[1:]])
    assert done.exit_code == code
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_truth_of_unknown_points_is_refused(built: Site) -> None:
    window = ["--from", START.isoformat(), "--to", (START + timedelta(hours=1)).isoformat()]
    done = CliRunner().invoke(main, ["truth", "--data", str(built.directory), *window, "--points", "A1-HEAD,B7"])
    assert done.exit_code == 1
    assert "customers of this site expected, got B7, A1-HEAD" in done.stderr


def test_building_again_keeps_the_town_and_another_town_wants_another_folder(built: Site) -> None:
    registry = (built.directory / "registry/meters.csv").read_text()
    again = CliRunner().invoke(main, ["build", "--data", str(built.directory), "--json"])
    assert again.exit_code == 0
    now = site.load(built.directory)
    assert (now.seed, now.meters, now.start) == (built.seed, built.meters, built.start)
    assert json.loads(again.stdout)["start"] == START.isoformat()
    assert (built.directory / "registry/meters.csv").read_text() == registry
    other = CliRunner().invoke(main, ["build", "--data", str(built.directory), "--seed", "99"])
    assert other.exit_code == 1
    assert "holds the site of seed 3, 60 meters" in other.stderr


def test_our_engine_finds_the_truth_in_the_registry_and_the_registers(built: Site, world: World) -> None:
    """Files and registers as the cloud gets them: its own engine agrees with power-grid-model within 0.5 % a day."""
    registry = built.directory / "registry"
    nodes = {row["node_id"]: row for row in rows(registry / "nodes.csv")}
    meters = rows(registry / "meters.csv")
    truth = json.loads((built.directory / "truth.json").read_text())
    thieves = {entry["area"] for entry in truth["meters"] if entry["kind"] in ("scaled", "bypass")}
    day = START.astimezone(ZONE).date() - timedelta(days=4)
    first = (day - world.first_day).days * QUARTERS
    for area in sorted(set(truth["areas"]) - thieves):
        lines = [
            Line(r["from_node"], r["to_node"], float(r["length_m"]), float(r["r_ohm_per_km"]), float(r["x_ohm_per_km"]))
            for r in rows(registry / "lines.csv")
            if nodes[r["to_node"]]["area_id"] == area
        ]
        transformers = [
            Transformer(
                r["hv_node"],
                r["lv_node"],
                float(r["rated_kva"]),
                float(r["hv_v"]),
                float(r["lv_v"]),
                float(r["no_load_loss_w"]),
                float(r["load_loss_w"]),
                float(r["impedance_percent"]),
            )
            for r in rows(registry / "transformers.csv")
            if nodes[r["lv_node"]]["area_id"] == area
        ]
        source = next(name for name, row in nodes.items() if row["area_id"] == area and row["kind"] == "source")
        network = compile_network(source, lines, transformers)
        customers = [r for r in meters if r["area_id"] == area and r["role"] == "customer"]
        index = [world.row_of[r["point"]] for r in customers]
        ratio = np.array([int(r["ct_ratio"]) * int(r["pt_ratio"]) for r in customers])
        steps = np.diff(world.registers[index, first : first + QUARTERS + 1], axis=1)
        net = (steps[:, :, [0, 2]] - steps[:, :, [1, 3]]) * WH_PER_STEP * ratio[:, None, None]
        placed = place(network, [r["node_id"] for r in customers])
        found = solve(placed, net[:, :, 0] * 4, net[:, :, 1] * 4, SOURCE_PU, voltages=False).loss_w.sum() / 4
        assert found == pytest.approx(truth["areas"][area][day.isoformat()]["technical_wh"], rel=0.005)
