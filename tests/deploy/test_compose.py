"""docker-compose.yml, read as Compose reads it, against the real commands, the real schema and the real site."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("gridloom:"))
ONCE = {"migrate", "registry", "site"}
# Nothing of theirs can be asked from outside; their restart policy starts them again when they end.
SILENT = {"work"} | {name for name in SERVICES if name.startswith("gw-")}
PROGRAMS = {
    "gridloom": "cloud.gridloom:gridloom",
    "meterctl": "gateway.meterctl",
    "simulators": "simulators.__main__:main",
}
VARIABLE = re.compile(r"\$\{(\w+)(:[?-])?([^}]*)\}")


def program(name: str) -> click.Command:
    module, _, attribute = PROGRAMS[name].partition(":")
    loaded = importlib.import_module(module)
    if attribute:
        command = getattr(loaded, attribute)
    else:
        [command] = [one for one in vars(loaded).values() if isinstance(one, click.Group)]
    assert isinstance(command, click.Command)
    return command


def check_arguments(command: click.Command, arguments: list[str]) -> None:
    """Raises click's own error for an unknown command or option; asserts that no argument is left over."""
    context = click.Context(command)
    if isinstance(command, click.Group):
        below = command.get_command(context, arguments[0])
        assert below, f"no command {arguments[0]}"
        check_arguments(below, arguments[1:])
        return
    values, left, _ = command.make_parser(context).parse_args(arguments)
    assert not left, f"{command.name}: nobody takes {left}"
    for parameter in command.params:
        if isinstance(parameter, click.Argument) and parameter.required:
            assert values[parameter.name], f"{command.name} needs {parameter.name}"


def words(name: str) -> list[str]:
    """The command of a service, out of its shell where it has one, without ``python -m``."""
    command: list[str] = SERVICES[name]["command"]
    if command[:2] == ["sh", "-c"]:
        command = command[2].partition("exec ")[2].split()
    return command[2:] if command[:2] == ["python", "-m"] else command


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_the_program_takes(name: str) -> None:
    first, *arguments = words(name)
    check_arguments(program(first), arguments)


def test_commands_in_comments_are_right_too() -> None:
    [key] = re.findall(r"run --rm migrate gridloom (key create \w+)", TEXT)
    check_arguments(program("gridloom"), key.split())


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        check_arguments(program("gridloom"), ["migrate", "--no-such"])
    with pytest.raises(AssertionError):
        check_arguments(program("gridloom"), ["migrat"])


def test_images_are_pinned() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].partition(":")[2]
        assert re.match(r"\d+\.\d+\.\d+", tag), f"{name}: {service['image']}"
    assert SERVICES["database"]["image"].endswith("-pg17")
    assert SERVICES["grafana"]["image"].startswith("grafana/grafana:12.")


def test_nothing_is_published_beyond_loopback() -> None:
    for name, service in SERVICES.items():
        for published in service.get("ports", []):
            assert published.startswith("127.0.0.1:"), f"{name}: {published}"


def test_what_runs_for_long_has_a_health_check_and_comes_back() -> None:
    for name, service in SERVICES.items():
        if name not in ONCE:
            assert service["restart"] == "unless-stopped", name
        assert ("healthcheck" in service) == (name not in ONCE | SILENT), name


def test_dependencies_wait_for_health_or_completion() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how["condition"] == wanted, f"{name} → {other}"


def test_our_containers_write_only_into_volumes() -> None:
    for name in (*OURS, "broker", "grafana"):
        service = SERVICES[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_volumes_are_named_declared_and_used() -> None:
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
                assert volume.endswith(":ro"), f"{volume}: the repository is only read"
            else:
                used.add(source)
    assert used == set(COMPOSE["volumes"])
    assert "database:/var/lib/postgresql/data" in SERVICES["database"]["volumes"]


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable or "SECRET" in variable or variable == "MQTT_USERS":
                secrets = [pair.partition(":")[2] for pair in _pairs(value)] if variable == "MQTT_USERS" else [value]
            elif variable.endswith("_DSN"):
                secrets = [re.fullmatch(r"postgresql://\w+:(.*)@database:5432/gridloom", value)[1]]  # type: ignore[index]
            else:
                continue
            for secret in secrets:
                assert VARIABLE.fullmatch(secret), f"{name}: {variable} holds a literal"
                assert ":?" in secret, f"{name}: {variable} would start empty"


def _pairs(text: str) -> list[str]:
    """``name:${VARIABLE:?what to do}`` pairs; the text of a variable has spaces too."""
    return re.findall(r"[\w-]+:\$\{[^}]*\}", text)


def test_every_secret_is_one_that_make_secrets_writes() -> None:
    example = (ROOT / "deploy" / ".env.example").read_text()
    secret = set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    optional = set(re.findall(r"^# (\w+)=", example, re.MULTILINE))
    asked = {match[1]: match[2] for match in VARIABLE.finditer(TEXT)}
    assert {name for name, how in asked.items() if how == ":?"} == secret
    assert {name for name, how in asked.items() if how == ":-"} == optional
    assert set(asked) == secret | optional, "each variable says what to do or has a default"


def test_every_variable_our_programs_get_is_one_they_read() -> None:
    source = "".join(
        path.read_text()
        for room in ("protocols", "gateway", "cloud", "simulators")
        for path in (ROOT / room).rglob("*.py")
    )
    for name in OURS:
        for variable in SERVICES[name].get("environment", {}):
            assert f'"{variable}"' in source, f"{name}: nobody reads {variable}"
    provisioning = (ROOT / "dashboards/provisioning/datasources/gridloom.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+)\}", provisioning))
    assert asked == {name for name in SERVICES["grafana"]["environment"] if name.startswith("GRIDLOOM_")}


def test_each_program_logs_in_as_itself() -> None:
    """Least privilege: only what changes the schema has the owner's login."""
    logins = {
        name: service["environment"]["GRIDLOOM_DSN"].partition("://")[2].partition(":")[0]
        for name, service in SERVICES.items()
        if "GRIDLOOM_DSN" in service.get("environment", {})
    }
    assert logins == {
        "migrate": "owner_login",
        "registry": "owner_login",
        "ingest": "ingest_login",
        "work": "work_login",
        "serve": "api_login",
    }


def test_gateways_reach_no_database() -> None:
    assert set(SERVICES["database"]["networks"]) == {"store"}
    for name in (*(name for name in SERVICES if name.startswith("gw-")), "meters", "broker"):
        assert "store" not in SERVICES[name].get("networks", [])


def test_the_site_has_the_gateways_that_are_started(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "simulators", "build", "--data", str(tmp_path), "--meters", "60"],
        check=True, cwd=ROOT, capture_output=True,
    )  # fmt: skip
    made = {path.parent.name for path in (tmp_path / "gateways").glob("*/site.toml")}
    assert made == {name for name in SERVICES if name.startswith("gw-")}
    known = {pair.split(":")[0] for pair in _pairs(SERVICES["broker"]["environment"]["MQTT_USERS"])}
    assert known == made | {"cloud"}
    for name in made:
        assert SERVICES[name]["command"][-1] == f"/site/gateways/{name}/site.toml"
        own = f"GRIDLOOM_MQTT_{name.upper().replace('-', '_')}_PASSWORD"
        assert own in SERVICES[name]["environment"]["GRIDLOOM_MQTT_PASSWORD"]
    assert (tmp_path / "site.json").is_file(), "the service `site` takes this file for a finished site"
