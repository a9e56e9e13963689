"""`medusa-train robustness`: what bad lines cost finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from train.console import CACHE, CacheOption, DataOption, OutOption, console, progress, told
from train.robustness import measure_robustness
from train.transfer.source import read_source


def robustness(
    run: Annotated[
        list[Path],
        typer.Option(
            "--run", help="A finished run; more of them are held against the first.", exists=True, file_okay=False
        ),
    ],
    data: DataOption,
    out: OutOption,
    cache: CacheOption = CACHE,
) -> None:
    """Show what microphones, rooms, noise, telephones, Opus and wrong words cost finished runs, each by itself.

    Example: medusa-train robustness --run runs/plain --run runs/default --data data --out runs/robustness
    """
    with progress() as (report, _), told():
        page = measure_robustness([read_source(folder) for folder in run], data, cache, out, report)
    console.print(f"conditions: {out} ({page})", markup=False, highlight=False, soft_wrap=True)
