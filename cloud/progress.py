"""A bar on stderr for work that takes longer than two seconds, while a person is watching."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Of ``total`` pieces of work; call with a piece's name when it begins, those before are then done."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
    ) as shown:  # fmt: skip
        task = shown.add_task("", total=total, completed=-1)

        def begin(what: str) -> None:
            shown.update(task, advance=1, description=what)

        yield begin
