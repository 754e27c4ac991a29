"""The ``gridloom`` command. Each command lives in the room it starts, and is imported when it is asked for."""

import importlib
import logging
import os
import sys

import click

COMMANDS = {
    "demo": "cloud.demo:demo",
    "migrate": "cloud.store.commands:migrate",
    "registry": "cloud.store.commands:registry",
    "export": "cloud.store.export:export",
    "ingest": "cloud.ingest.commands:ingest",
    "quarantine": "cloud.ingest.commands:quarantine",
    "work": "cloud.jobs.commands:work",
    "command": "cloud.jobs.command:command",
    "forecast": "cloud.forecast.commands:forecast",
    "serve": "cloud.api.commands:serve",
    "key": "cloud.api.commands:key",
    "dashboards": "cloud.demo:dashboards",
    "loss": "cloud.loss.commands:loss",
    "bench": "cloud.bench.commands:bench",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when used, so that ``gridloom --help`` needs none of the engines."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Copy and run:
  gridloom demo
  gridloom migrate --dry-run
  gridloom registry import registry/
  gridloom ingest
  gridloom command gw-a1 read m001 energy_import_wh
  gridloom serve --port 8080
""",
)
@click.version_option(package_name="gridloom")
def gridloom() -> None:
    """Gridloom's cloud side: ingest, store, engines, API and dashboards.

    Addresses and secrets come from the environment: GRIDLOOM_DSN, GRIDLOOM_MQTT_URL, GRIDLOOM_MQTT_USERNAME,
    GRIDLOOM_MQTT_PASSWORD.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=os.environ.get("GRIDLOOM_LOG", "INFO"),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )


def main() -> None:
    gridloom.main(prog_name="gridloom")
