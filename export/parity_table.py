"""The figures of a bundle as a terminal shows them: component, precision, file size, loss, limit."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from export.encoders import weights_file
from export.parity import Component, Figure, components
from model.bundle import Bundle


def parity_table(bundle: Bundle, figures: Sequence[Figure]) -> Table:
    """A line for each figure; those of no component, such as the whole bundle's, have neither precision nor size."""
    parts = {part.name: part for part in components(bundle.manifest)}
    table = Table("component", "precision", "MB", "compared", "difference", "accepted")
    for figure in figures:
        name, _, what = figure.name.partition(", ")
        part = parts.get(name)
        colour = "green" if figure.passes else "red"
        table.add_row(
            name,
            part.precision if part else "",
            f"{size_of(bundle.path, part) / 1e6:.1f}" if part else "",
            what or "with the network",
            f"[{colour}]{figure.value:.2e}[/{colour}]",
            f"{figure.limit:.0e}",
        )
    return table


def figures_of(bundle: Bundle) -> list[Figure]:
    """The figures that were measured when a bundle was written."""
    manifest = bundle.manifest
    return [Figure(name, value, manifest.tolerances[name]) for name, value in manifest.parity.items()]


def size_of(folder: Path, part: Component) -> int:
    """Bytes of a component's files. The ensemble's large constants are its members' and count there."""
    graph = folder / part.file
    return sum(file.stat().st_size for file in (graph, weights_file(graph)) if file.exists())
