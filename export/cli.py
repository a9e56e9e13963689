"""`medusa-export`: a trained checkpoint to a bundle."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from export.bundle import write_bundle
from export.errors import ExportError
from export.parity import TOLERANCES, measure, require
from model.bundle import BundleError
from model.network.checkpoint import load_checkpoint
from model.network.encoders import load_text_encoder
from model.sources import SourceError, resolve
from model.spec import SpecError

app = typer.Typer(help="Turn a trained ensemble into an ONNX bundle.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(stderr=True)

CheckpointArgument = Annotated[Path, typer.Argument(help="Folder that medusa-train wrote (RUN/checkpoint).", file_okay=False)]
_OWN_ERRORS = (ExportError, BundleError, SpecError, SourceError)


@app.command()
def bundle(checkpoint: CheckpointArgument, out: Annotated[Path, typer.Argument(help="Folder of the new bundle.")]) -> None:
    """Export everything, prove parity, write the bundle.

    Example: medusa-export bundle runs/default/checkpoint bundles/mine
    """
    try:
        with console.status("exporting") as status:
            manifest = write_bundle(checkpoint, out, lambda name: status.update(f"exporting: {name}"))
    except _OWN_ERRORS as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(2) from error
    console.print(f"{manifest.bundle_id} is in {out}")
    _print_figures(manifest.parity)


@app.command()
def parity(checkpoint: CheckpointArgument, folder: Annotated[Path, typer.Argument(metavar="BUNDLE", file_okay=False)]) -> None:
    """Measure a bundle against the checkpoint it came from.

    Example: medusa-export parity runs/default/checkpoint bundles/mine
    """
    try:
        trained = load_checkpoint(checkpoint)
        text = next((e for e in trained.spec.encoders if e.name == "text"), None)
        encoder = load_text_encoder(resolve(text.sources)) if text else None
        figures = measure(trained, folder, encoder)
        _print_figures(figures)
        require(figures)
    except _OWN_ERRORS as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        raise typer.Exit(2) from error


def _print_figures(figures: dict[str, float]) -> None:
    for name, value in figures.items():
        limit = f"(limit {TOLERANCES[name]:.0e})" if name in TOLERANCES else ""
        console.print(f"  {name:28} {value:.2e} {limit}", highlight=False)
