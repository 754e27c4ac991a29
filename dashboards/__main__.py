"""``python -m dashboards``: write the dashboards as JSON, or push them to a Grafana."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import click

from dashboards import rules
from dashboards.alerts import ALERTS
from dashboards.collection import COLLECTION
from dashboards.load import LOAD
from dashboards.loss import LOSS
from dashboards.panels import DATASOURCE_UID, Json
from dashboards.power import POWER

HERE: Final = Path(__file__).parent
DASHBOARDS: Final = (COLLECTION, LOAD, POWER, LOSS, ALERTS)
FOLDER_UID: Final = "gridloom"
DEFAULT_ZONE: Final = "Asia/Shanghai"


def _zone(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        return ZoneInfo(value).key
    except (KeyError, ValueError, OSError) as error:
        raise click.BadParameter(f'"{value}" is not a time zone; for example {DEFAULT_ZONE}') from error


zone_option = click.option(
    "--zone",
    envvar="GRIDLOOM_ZONE",
    default=DEFAULT_ZONE,
    show_default=True,
    callback=_zone,
    help="The site's time zone: where a business day starts.",
)
source_option = click.option(
    "--data-source",
    default=DATASOURCE_UID,
    show_default=True,
    help="Uid of the PostgreSQL data source in Grafana.",
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Copy and run:
  python -m dashboards build
  python -m dashboards push --url http://127.0.0.1:3000 --token-env GRAFANA_TOKEN
""",
)
def main() -> None:
    """Grafana dashboards as code, for Grafana 12 and 13."""


def files(zone: str, source: str, out: Path, alerting: Path) -> Iterator[tuple[Path, str]]:
    """Path and text of everything ``build`` writes."""
    for dashboard in DASHBOARDS:
        yield out / f"{dashboard.uid}.json", _text(dashboard.json(zone, source))
    yield alerting / "rules.json", _text(rules.provisioning(source))


def _text(document: Json) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


@main.command(
    epilog="""\b
Copy and run:
  python -m dashboards build
  python -m dashboards build --out /tmp/json --alerting /tmp/alerting --zone Europe/Copenhagen
"""
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=HERE / "json",
              help="Folder of the dashboards' JSON.  [default: dashboards/json]")  # fmt: skip
@click.option("--alerting", type=click.Path(file_okay=False, path_type=Path),
              default=HERE / "provisioning" / "alerting",
              help="Folder of the alert rules.  [default: dashboards/provisioning/alerting]")  # fmt: skip
@zone_option
@source_option
def build(out: Path, alerting: Path, zone: str, data_source: str) -> None:
    """Write the dashboards and alert rules as JSON files, for Grafana's provisioning."""
    for path, text in files(zone, data_source, out, alerting):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise click.ClickException(f"{path}: {error.strerror}; choose another folder") from error
        click.echo(path)


@main.command(
    epilog="""\b
Copy and run:
  GRAFANA_TOKEN=… python -m dashboards push --url http://127.0.0.1:3000 --token-env GRAFANA_TOKEN
"""
)
@click.option("--url", required=True, help="Address of Grafana, e.g. http://127.0.0.1:3000")
@click.option("--token-env", default="GRAFANA_TOKEN", show_default=True,
              help="Environment variable that holds a service-account token with the role Editor.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what was pushed as JSON.")
@zone_option
@source_option
def push(url: str, token_env: str, as_json: bool, zone: str, data_source: str) -> None:
    """Put the dashboards into the folder Gridloom of a running Grafana, over what is there.

    Alert rules go by provisioning only: pushed ones would be read-only in Grafana's pages without saying why.
    """
    from dashboards.grafana import PushError, push_dashboards

    token = os.environ.get(token_env)
    if not token:
        raise click.UsageError(
            f"{token_env} is not set; make a service account with the role Editor in Grafana and export its token"
        )
    documents = [dashboard.json(zone, data_source) for dashboard in DASHBOARDS]
    try:
        pushed = push_dashboards(url, token, (FOLDER_UID, rules.FOLDER), documents)
    except PushError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(pushed))
    else:
        for uid, address in pushed.items():
            click.echo(f"{uid}  {address}")


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m dashboards"))
