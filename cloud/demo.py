"""``gridloom demo`` and ``gridloom dashboards``: hand the arguments on to the program that does it.

The cloud imports only ``protocols``, so these two start as programs of their own.
"""

import os
import subprocess
import sys

import click

PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False}


def _become(*command: str) -> None:
    """Replace this process: signals and the exit code are then the other program's own."""
    arguments = [sys.executable, "-m", *command]
    if any(option in command for option in ("-h", "--help")):
        shown = subprocess.run(arguments, capture_output=True, text=True, check=False)
        click.echo(shown.stdout, nl=False)
        click.echo(shown.stderr, nl=False, err=True)
        raise SystemExit(shown.returncode)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, arguments)  # noqa: S606 our own program, no shell


@click.command(add_help_option=False, context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def demo(arguments: tuple[str, ...]) -> None:
    """Run the whole line on this machine, with simulated meters."""
    _become("simulators", "demo", *arguments)


@click.command(add_help_option=False, context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def dashboards(arguments: tuple[str, ...]) -> None:
    """Build the Grafana dashboards, or push them to a Grafana."""
    _become("dashboards", *arguments)
