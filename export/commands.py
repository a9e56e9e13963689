"""`medusa-export`: from a checkpoint to a bundle; bundles signed, compared with their checkpoint, written for Triton."""

import importlib.metadata
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from export.bundle import Progress as Report
from export.bundle import write_bundle
from export.errors import DestinationError, ExportError, KeyFileError
from export.parity import Limits, check, measure
from export.parity_table import figures_of, parity_table
from export.precision import PRECISIONS, Precisions
from export.precision_table import measure_precisions, table_of
from export.schema import manifest_schema
from export.triton_repository import write_repository
from model.bundle import BundleError, read_bundle
from model.network.checkpoint import load_checkpoint
from model.recording import RecordingError
from model.signature import KeyFormatError, name_of, read_private_key, write_keys
from model.signature import sign as sign_sums
from model.sources import SourceError
from model.spec import SpecError

app = typer.Typer(help="Turn a checkpoint into a bundle.", no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(stderr=True)

CheckpointArgument = Annotated[Path, typer.Argument(help="What medusa-train wrote.", exists=True, file_okay=False)]
OutArgument = Annotated[Path, typer.Argument(help="Folder of the new bundle; must not exist.")]
BundleArgument = Annotated[Path, typer.Argument(help="Folder of a bundle.", exists=True, file_okay=False)]
PRECISION_HELP = (
    f"{', '.join(PRECISIONS)} for encoders, members, ensemble, encoder.NAME or member.NAME; may be given several times."
)
KEY_HELP = "Private ed25519 key that signs the bundle, as `keygen` makes it."


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
def bundle(
    checkpoint: CheckpointArgument,
    out: OutArgument,
    sign: Annotated[Path | None, typer.Option("--sign", help=KEY_HELP, metavar="KEY", dir_okay=False)] = None,
    triton: Annotated[
        Path | None, typer.Option("--triton", help="Write a Triton model repository too; must not exist.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option("--precision", help=PRECISION_HELP, metavar="WHAT=PRECISION")
    ] = None,
) -> None:
    """Export a checkpoint; the bundle appears only if every graph computes what its network computes.

    Example: medusa-export bundle runs/default/checkpoint daemon/bundles/default
    """
    with _told(), _progress() as report:
        key = _private_key(sign) if sign else None  # before an export that takes minutes
        if triton is not None and triton.exists():
            raise DestinationError(f"{triton} exists already: remove it or name another folder")
        write_bundle(checkpoint, out, report, precisions=Precisions.parse(precision or ()))
        if key is not None:
            sign_sums(out, key)
        if triton is not None:
            write_repository(read_bundle(out), triton)
    written = read_bundle(out)
    console.print(parity_table(written, figures_of(written)))
    size = sum((out / name).stat().st_size for name in written.manifest.files)
    console.print(f"{written.id}: {size / 1e6:.1f} MB in {out}", highlight=False)


@app.command()
def parity(checkpoint: CheckpointArgument, bundle: BundleArgument) -> None:
    """Compare every graph of a bundle with the networks of a checkpoint.

    Example: medusa-export parity runs/default/checkpoint daemon/bundles/default
    """
    with _told():
        trained, found = load_checkpoint(checkpoint), read_bundle(bundle)
        with _progress():
            figures = measure(trained, found, Limits())
        console.print(parity_table(found, figures))
        check(figures)


@app.command()
def quantize(
    checkpoint: CheckpointArgument,
    out: Annotated[Path, typer.Option("--out", help="Folder for the graphs; must not exist.")],
    recordings: Annotated[
        Path | None,
        typer.Option("--recordings", help="Utterances to measure with; made ones if not given.", exists=True),
    ] = None,
) -> None:
    """Write every graph of a checkpoint in every precision, and show size, loss and speed of each.

    Example: medusa-export quantize runs/default/checkpoint --out precisions
    """
    with _told(), _progress() as report:
        rows = measure_precisions(checkpoint, out, recordings, progress=report)
    console.print(table_of(rows))


@app.command()
def keygen(file: Annotated[Path, typer.Argument(help="Private key; the public one goes to FILE.pub.")]) -> None:
    """Make an ed25519 key pair for signing bundles, and print what `models.trusted_keys` takes.

    Example: medusa-export keygen bundles.key
    """
    with _told():
        try:
            public = write_keys(file)
        except FileExistsError as error:
            raise KeyFileError(f"{error.filename or file} exists already: a key is never overwritten") from error
        except OSError as error:
            raise KeyFileError(f"{file} cannot be written: {error.strerror}") from error
    typer.echo(public)


@app.command()
def sign(
    bundle: BundleArgument, key: Annotated[Path, typer.Option("--key", help=KEY_HELP, metavar="KEY", dir_okay=False)]
) -> None:
    """Check every file of a bundle and sign it.

    Example: medusa-export sign daemon/bundles/default --key bundles.key
    """
    with _told():
        private, found = _private_key(key), read_bundle(bundle)
        sign_sums(bundle, private)
    console.print(f"{found.id} is signed by {name_of(private.public_key())}", highlight=False, soft_wrap=True)


@app.command()
def triton(bundle: BundleArgument, out: Annotated[Path, typer.Argument(help="New folder; must not exist.")]) -> None:
    """Write a bundle as a model repository of Triton Inference Server.

    Example: medusa-export triton daemon/bundles/default triton-models
    """
    with _told():
        names = write_repository(read_bundle(bundle), out)
    console.print(f"{', '.join(names)} in {out}", highlight=False, soft_wrap=True)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a bundle's manifest.

    Example: medusa-export schema > docs/bundle.schema.json
    """
    typer.echo(json.dumps(manifest_schema(), indent=2, ensure_ascii=False))


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        return read_private_key(path)
    except KeyFormatError as error:
        raise KeyFileError(str(error)) from error
    except OSError as error:
        raise KeyFileError(f"the key {path} cannot be read: {error.strerror}") from error


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
    except (ExportError, BundleError, SourceError, SpecError, RecordingError) as error:
        console.print(f"[red]{type(error).__name__}:[/red] ", end="")
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(2) from error
