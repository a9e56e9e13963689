"""`medusa-export`: from a checkpoint to a bundle, and from a bundle back to its checkpoint."""

import importlib.metadata
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from export.bundle import Progress as Report
from export.bundle import text_reference, write_bundle
from export.errors import ExportError
from export.parity import Figure, Limits, check, measure
from model.bundle import BundleError, read_bundle
from model.network.checkpoint import load_checkpoint
from model.sources import SourceError
from model.spec import SpecError

app = typer.Typer(help="Turn a checkpoint into a bundle.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(stderr=True)

CheckpointArgument = Annotated[Path, typer.Argument(help="What medusa-train wrote.", exists=True, file_okay=False)]
OutArgument = Annotated[Path, typer.Argument(help="Folder of the new bundle; must not exist.")]
BundleArgument = Annotated[Path, typer.Argument(help="Folder of a bundle.", exists=True, file_okay=False)]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medusa-export {importlib.metadata.version('medusa-rt')}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Turn a checkpoint into a bundle."""


@app.command()
def bundle(checkpoint: CheckpointArgument, out: OutArgument) -> None:
    """Export a checkpoint; the bundle appears only if every graph computes what its network computes.

    Example: medusa-export bundle runs/default/checkpoint daemon/bundles/default
    """
    with _told(), _progress() as report:
        manifest = write_bundle(checkpoint, out, report)
    _show([Figure(name, value, manifest.tolerances[name]) for name, value in manifest.parity.items()])
    size = sum((out / name).stat().st_size for name in manifest.files)
    console.print(f"{manifest.bundle_id}: {size / 1e6:.1f} MB in {out}", highlight=False)


@app.command()
def parity(checkpoint: CheckpointArgument, bundle: BundleArgument) -> None:
    """Compare every graph of a bundle with the networks of a checkpoint.

    Example: medusa-export parity runs/default/checkpoint daemon/bundles/default
    """
    with _told():
        trained, found = load_checkpoint(checkpoint), read_bundle(bundle)
        with _progress():
            figures = measure(trained, found, text_reference(trained.spec), Limits())
        _show(figures)
        check(figures)


def _show(figures: list[Figure]) -> None:
    table = Table("graph against network", "difference", "accepted")
    for figure in figures:
        colour = "green" if figure.passes else "red"
        table.add_row(figure.name, f"[{colour}]{figure.value:.2e}[/{colour}]", f"{figure.limit:.0e}")
    console.print(table)


@contextmanager
def _progress() -> Iterator[Report]:
    from transformers.utils import logging as transformers_logging  # not above: it warns where torch is missing

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of packages that are not used here
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("load", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield report


@contextmanager
def _told() -> Iterator[None]:
    """Turns our own errors into one line and exit status 2."""
    try:
        yield
    except (ExportError, BundleError, SourceError, SpecError) as error:
        console.print(f"[red]{type(error).__name__}:[/red] ", end="")
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(2) from error
