"""`medusa-train`: from a data folder to a trained ensemble and a report."""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model.recording import RecordingError
from model.sources import SourceError
from train.config import Recipe, load_recipe
from train.errors import TrainError
from train.features import Progress as Report
from train.prepare import prepare
from train.report import read_results, render
from train.run import train_ensemble

app = typer.Typer(help="Train a MEDUSA ensemble.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(stderr=True)
results = Console()
"""Standard output: what a command was asked for. Everything else is told on standard error."""

RecipeOption = Annotated[Path, typer.Option("--config", help="Recipe file.", exists=True, dir_okay=False)]
DataOption = Annotated[Path, typer.Option("--data", help="Folder with a sub-folder per corpus.", file_okay=False)]
CacheOption = Annotated[Path, typer.Option("--cache", help="Where features are kept.", file_okay=False)]
OutOption = Annotated[Path, typer.Option("--out", help="Where the run is kept.", file_okay=False)]

_CACHE = Path(".cache/features")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medusa-train {importlib.metadata.version('medusa-rt')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train a MEDUSA ensemble."""


@contextmanager
def _progress() -> Iterator[tuple[Report, Progress]]:
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


def _load(path: Path) -> Recipe:
    try:
        return load_recipe(path)
    except TrainError as error:
        raise _refusal(str(error)) from error


def _refusal(message: str) -> typer.Exit:
    """Shows a message as it is: its square brackets are no markup, its paths are not cut."""
    console.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    return typer.Exit(2)


@app.command()
def features(config: RecipeOption, data: DataOption, cache: CacheOption = _CACHE) -> None:
    """Extract the features of every clip, once.

    Example: medusa-train features --config recipes/default.toml --data data
    """
    recipe = _load(config)
    with _progress() as (report, _), _told():
        prepared = prepare(recipe, data, cache, report)
    console.print(f"features of {len(prepared.training.train)} training clips are in {cache}")


@app.command()
def run(config: RecipeOption, data: DataOption, out: OutOption, cache: CacheOption = _CACHE, workers: int = 2) -> None:
    """Run everything: features, the four stages, evaluation, report. Start it again to continue where it stopped.

    Example: medusa-train run --config recipes/default.toml --data data --out runs/default
    """
    recipe = _load(config)
    with _progress() as (report, _), _told():
        page = train_ensemble(recipe, data, cache, out, workers, report)
    console.print(f"checkpoint and report: {out} ({page})")


@app.command()
def report(out: OutOption) -> None:
    """Print the results of a finished run, and write its page and model card again from them.

    Example: medusa-train report --out runs/default
    """
    with _told():
        page = render(out)
        evaluations = read_results(out)["evaluations"]
    for name, evaluation in evaluations.items():
        results.print(name, style="bold", markup=False)
        for system, score in evaluation["systems"].items():
            uar = score["uar"]
            results.print(f"  {system:32} UAR {uar['value']:.3f} [{uar['low']:.3f}, {uar['high']:.3f}]", markup=False)
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _told() -> Iterator[None]:
    """Turns our own errors into one line and exit status 2."""
    try:
        yield
    except (TrainError, RecordingError, SourceError) as error:
        raise _refusal(str(error)) from error
