"""What a benchmark found, as one JSON document: for `bench.report`, and for whoever compares two days."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1
_PACKAGES: Final = (
    "medusa-rt",
    "numpy",
    "onnxruntime",
    "faster-whisper",
    "ctranslate2",
    "aiortc",
    "websockets",
    "redis",
)

Row = dict[str, Any]


class DocumentError(ValueError):
    """A file that is no document of a benchmark."""


@dataclass(frozen=True, slots=True)
class Document:
    """One run.

    Attributes:
        program: of the benchmarks: streams, impairment, soak or chaos.
        command: with which it ran.
        date: when it ended, UTC, ISO 8601.
        versions: of Python, of ours and of what it stands on; those that are installed.
        cores: that the program might use; what it measured had the same ones.
        rows: what was measured, a mapping each; the program says of what.
        facts: what is true of the whole run.
    """

    program: str
    command: str
    date: str
    versions: dict[str, str]
    cores: int
    rows: list[Row]
    facts: Row


def add_json(parser: ArgumentParser) -> None:
    """Gives a program the option `--json FILE`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there, for bench.report")


def made(program: str, rows: Sequence[Row], **facts: Any) -> Document:
    """The document of a run that ends now, of this process' command line."""
    command = shlex.join(["python", "-m", f"bench.{program}", *sys.argv[1:]])
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return Document(program, command, date, _versions(), len(os.sched_getaffinity(0)), list(rows), facts)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write(path: Path | None, document: Document) -> None:
    """Writes a document; nothing where no file was named."""
    if path is not None:
        path.write_text(json.dumps({"format": FORMAT, **asdict(document)}, indent=1, allow_nan=False) + "\n")


def read(path: Path) -> Document:
    """Reads a document.

    Raises:
        DocumentError: if the file is none, or of another format.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DocumentError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise DocumentError(f"{path} is no document of format {FORMAT}: write one with --json of a benchmark")
    try:
        return Document(**found)
    except TypeError as error:
        raise DocumentError(f"{path} is no document of a benchmark: {error}") from error
