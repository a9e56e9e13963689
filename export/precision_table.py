"""What each precision of each component costs and saves: `medusa-export quantize`.

A component is given a precision while the others stay the networks in torch, so a row shows that component's loss alone. Every
graph that is measured is written: FOLDER/PRECISION/encoders/NAME.onnx and so on. A component that a precision leaves as it is
in float32 shows the loss of float32. Fallbacks are compared with their own networks: what they lose is not what leaving
members out costs.

Shapes: N = utterances.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, get_args

import numpy as np
import onnx
from rich.table import Table

from export.encoders import weights_file, write_graph
from export.errors import DestinationError
from export.group_attention import Kernel
from export.parity import Limits
from export.parity_encoders import graph_session
from export.parity_graphs import Array, Item, feed, member_difference
from export.parity_utterances import (
    Heard,
    Rows,
    Utterance,
    example_utterances,
    graph_posteriors,
    network_posteriors,
)
from export.precision import ENSEMBLE_COMPONENT, PRECISIONS, Precision, converted, kernel_of
from export.references import reference_of, relative
from export.to_onnx import export_ensemble, export_member
from model.audio import MAX_UTTERANCE, MIN_UTTERANCE, pad_to
from model.bundle import ENSEMBLE, fallback_file, graph_file, inputs_of
from model.network.checkpoint import Checkpoint, load_checkpoint
from model.onnx_encoders import with_graphs
from model.recording import read_mono

Exported = Callable[[], onnx.ModelProto]
Progress = Callable[[str, int, int], None]
"""(what, done, total)."""

_TIMED: Final = 24
"""Utterances that are timed, one at a time."""
SOUNDS: Final = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@dataclass(frozen=True, slots=True)
class Row:
    """One component at one precision.

    Attributes:
        component: its name, "members" for all of them.
        precision: its arithmetic.
        size: bytes of its files.
        hidden: relative L2 difference of an encoder's frames, of the worst utterance; None for what has none.
        posterior: largest difference of a posterior.
        same_class: share of utterances that keep their top class; None where it was not counted.
        speed: how many times as fast as in float32, on one thread of this CPU; None where it says nothing.
        limit: what is accepted of `posterior`.
    """

    component: str
    precision: Precision
    size: int
    hidden: float | None
    posterior: float
    same_class: float | None
    speed: float | None
    limit: float


def recorded_utterances(folder: Path, count: int) -> list[Utterance]:
    """Recordings of a folder, the first `count` of them in an order that mixes it, with words that are not theirs.

    Raises:
        DestinationError: if the folder holds no recording.
        RecordingError: if one cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)
    if not files:
        raise DestinationError(f"{folder} holds no recording: their names end in {', '.join(SOUNDS)}")
    order = np.random.default_rng(0).permutation(len(files))[:count]
    texts = [utterance.text for utterance in example_utterances(len(order))]
    audio = [read_mono(files[index])[:MAX_UTTERANCE] for index in order]
    return [
        Utterance(pad_to(samples, max(len(samples), MIN_UTTERANCE)), text)
        for samples, text in zip(audio, texts, strict=True)
    ]


def measure_precisions(
    checkpoint_folder: Path,
    folder: Path,
    recordings: Path | None = None,
    limits: Limits | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[Row]:
    """Writes every graph of a checkpoint in every precision, and measures each.

    Args:
        checkpoint_folder: what `train` wrote.
        folder: for the graphs; must not exist.
        recordings: utterances to measure with; None makes some.
        limits: what is accepted, and how many utterances are run.
        progress: told what is done.

    Raises:
        DestinationError: if `folder` exists, or `recordings` holds none.
        ExportError: if a graph cannot be had in a precision.
        SpecError: if the checkpoint is not complete.
        SourceError: if the weights of an encoder are not to be had.
    """
    if folder.exists():
        raise DestinationError(f"{folder} exists already: remove it or name another folder")
    checkpoint, limits = load_checkpoint(checkpoint_folder), limits or Limits()
    count = limits.utterances
    utterances = recorded_utterances(recordings, count) if recordings else example_utterances(count)
    for precision in PRECISIONS:
        for part in ("encoders", "members"):
            (folder / precision / part).mkdir(parents=True)
    total = len(PRECISIONS) * (len(with_graphs(checkpoint.spec)) + 2 + len(checkpoint.fallbacks))
    rows = []
    for row in _measured(checkpoint, folder, utterances, limits):
        rows.append(row)
        progress(f"{row.component} {row.precision}", len(rows), total)
    return rows


def table_of(rows: Sequence[Row]) -> Table:
    """The rows as a terminal shows them."""
    table = Table("component", "precision", "MB", "hidden states", "posterior", "accepted", "same class", "speed")
    for row in rows:
        colour = "green" if row.posterior <= row.limit else "red"
        table.add_row(
            row.component,
            row.precision,
            f"{row.size / 1e6:.1f}",
            "" if row.hidden is None else f"{row.hidden:.1e}",
            f"[{colour}]{row.posterior:.1e}[/{colour}]",
            f"{row.limit:.0e}",
            "" if row.same_class is None else f"{row.same_class:.2%}",
            "" if row.speed is None else f"{row.speed:.2f}x",
        )
    return table


def _measured(checkpoint: Checkpoint, folder: Path, utterances: Sequence[Utterance], limits: Limits) -> Iterator[Row]:
    rows, graphs = Rows(checkpoint, utterances), with_graphs(checkpoint.spec)
    frames = {encoder.name: Heard(reference_of(encoder), utterances).network() for encoder in graphs}
    items = rows.complete(frames)
    expected = network_posteriors(checkpoint, items)
    for encoder in graphs:
        reference, exact_s, component = reference_of(encoder), 0.0, f"encoder {encoder.name}"
        heard = Heard(reference, utterances)
        made = dict.fromkeys(PRECISIONS, reference.graph)
        for version in _versions(made, folder, graph_file(encoder)):
            session = graph_session(version.path)
            found = heard.graph(session)
            took_s = _seconds([partial(reference.found, session, [item]) for item in heard.items[:_TIMED]])
            exact_s = exact_s or took_s
            posteriors = network_posteriors(checkpoint, rows.complete(frames | {encoder.name: found}))
            row = _row(component, version, limits, expected, posteriors, _speed(version, exact_s, took_s))
            yield replace(row, hidden=relative(frames[encoder.name], found))
    yield from _members(checkpoint, folder, limits)
    parts = {ENSEMBLE: (ENSEMBLE_COMPONENT, checkpoint)}
    for number in range(1, len(checkpoint.fallbacks) + 1):
        parts[fallback_file(number)] = f"fallback {number}", checkpoint.fallback(number)
    for file, (component, part) in parts.items():
        yield from _ensemble(component, part, file, folder, items, limits)


def _ensemble(
    component: str, part: Checkpoint, file: str, folder: Path, items: Sequence[Item], limits: Limits
) -> Iterator[Row]:
    """The whole ensemble or a fallback, against its own networks."""
    expected, exact_s = network_posteriors(part, items), 0.0
    feeds = [feed(inputs_of(part.spec), [item]) for item in items[:_TIMED]]
    for version in _versions(_by_kernel(partial(export_ensemble, part.ensemble())), folder, file):
        session = graph_session(version.path)
        took_s = _seconds([partial(session.run, None, one) for one in feeds])
        exact_s = exact_s or took_s
        found = graph_posteriors(part, session, items)
        yield _row(component, version, limits, expected, found, _speed(version, exact_s, took_s))


def _row(
    component: str, version: "_Version", limits: Limits, expected: Array, found: Array, speed: float | None
) -> Row:
    same = float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())
    posterior, limit = float(np.abs(expected - found).max()), limits.accepted(version.precision)
    return Row(component, version.precision, version.size, None, posterior, same, speed, limit)


def _members(checkpoint: Checkpoint, folder: Path, limits: Limits) -> Iterator[Row]:
    """All members as one row a precision: their sizes together, the largest loss."""
    sizes, worst = dict.fromkeys(PRECISIONS, 0), dict.fromkeys(PRECISIONS, 0.0)
    for member in checkpoint.members:
        for version in _versions(
            _by_kernel(partial(export_member, member)), folder, f"members/{member.spec.name}.onnx"
        ):
            difference = member_difference(checkpoint, member, version.path)
            sizes[version.precision] += version.size
            worst[version.precision] = float(np.maximum(worst[version.precision], difference))
    for precision in PRECISIONS:
        limit = limits.accepted(precision)
        yield Row("members", precision, sizes[precision], None, worst[precision], None, None, limit)


@dataclass(frozen=True, slots=True)
class _Version:
    precision: Precision
    path: Path

    @property
    def size(self) -> int:
        return sum(file.stat().st_size for file in (self.path, weights_file(self.path)) if file.exists())


def _by_kernel(exported: Callable[[Kernel], onnx.ModelProto]) -> dict[Precision, Exported]:
    """What each precision is made of, one function for all that are made of the same."""
    made: dict[Kernel, Exported] = {kernel: partial(exported, kernel) for kernel in get_args(Kernel)}
    return {precision: made[kernel_of(precision)] for precision in PRECISIONS}


def _versions(made: Mapping[Precision, Exported], folder: Path, name: str) -> Iterator[_Version]:
    """The graph in every precision, float32 first; one is in memory at a time, and each is exported once."""
    written: dict[Exported, Path] = {}
    for precision in PRECISIONS:
        source, path = made[precision], folder / precision / name
        if source not in written:
            written[source] = folder / f"exported-{len(written)}.onnx"
            write_graph(source(), written[source])
        write_graph(converted(onnx.load(written[source]), precision), path)
        yield _Version(precision, path)
    for exported in written.values():
        exported.unlink()
        weights_file(exported).unlink(missing_ok=True)


def _seconds(calls: Sequence[Callable[[], object]]) -> float:
    """The shortest of three rounds."""
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        for call in calls:
            call()
        took.append(time.perf_counter() - begun)
    return min(took)


def _speed(version: _Version, exact_s: float, took_s: float) -> float | None:
    """How many times as fast as in float32; bfloat16 is emulated."""
    return None if version.precision == "bf16" else exact_s / took_s
