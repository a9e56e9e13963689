"""What the commands of `medusa-train` share: their options, progress bars, and errors as one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model.recording import RecordingError
from model.sources import SourceError
from train.errors import TrainError
from train.features import Progress as Report

console = Console(stderr=True)
"""Where a command tells what it does; what it was asked for goes to standard output."""

DATA: Final = typer.Option("--data", help="Folder with a sub-folder per corpus.", file_okay=False)
OUT: Final = typer.Option("--out", help="Where the run is kept.", file_okay=False)
DataOption = Annotated[Path, DATA]
OutOption = Annotated[Path, OUT]
CacheOption = Annotated[Path, typer.Option("--cache", help="Where features are kept.", file_okay=False)]
CACHE: Final = Path(".cache/features")


@contextmanager
def progress() -> Iterator[tuple[Report, Progress]]:
    """Bars that fill as they are told; yields who tells, and the bars."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, int] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]  # TaskID is an int

        yield report, bar


def refusal(message: str) -> typer.Exit:
    """Shows a message as it is: its square brackets are no markup, its paths are not cut."""
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(2)


@contextmanager
def told() -> Iterator[None]:
    """Turns our own errors into one line and exit status 2."""
    try:
        yield
    except (TrainError, RecordingError, SourceError) as error:
        raise refusal(str(error)) from error
