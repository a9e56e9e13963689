"""What sharing encoders, grouping members and int8 are worth: the ensemble as graphs against the ensemble in torch.

    python -m bench.export
    python -m bench.export --full --parts system

system    one pass per encoder and the grouped ensemble in ONNX Runtime, in each of --precisions, against PyTorch eager in
          float32 with one encoder pass per member and modality, as one would run the paper's members one after the other
          (31 passes in its Table 1)
members   the grouped ensemble against a loop over its members' graphs, both in ONNX Runtime
int8      the grouped ensemble in int8 against float32

One utterance, random weights, medians and quartiles over rounds; contenders take turns, so that what else the machine does
falls on both. Features that numpy makes (pitch, statistics) are left out on both sides: a member that reads statistics of
Whisper's frames counts as a pass of Whisper. With --full (recipes/medusa.toml, D = 1024, encoders of published size) one
encoder is in memory at a time: passes are timed one by one and added up. Then no two contenders of "members" share the
memory either, nor do the two precisions of the ensemble, and they run one after the other.
"""

import argparse
import gc
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

from bench.full_size import ENCODERS, RUNS
from export.cost import Sizes, frame_sizes
from export.encoders import write_graph
from export.precision import Precision, converted, kernel_of
from export.references import Reference, reference_of
from export.shared_weights import WeightStore
from export.to_onnx import export_ensemble, export_member
from model.audio import SAMPLE_RATE_HZ, WHISPER_HOP, bucket_length
from model.bundle import inputs_of
from model.labels import ATTRIBUTES, CLASSES
from model.network.deepser import DeepSER
from model.network.metaclassifier import Ensemble, MetaClassifier
from model.onnx_session import make_session
from model.spec import EncoderSpec, EnsembleSpec
from train.config import Recipe, load_recipe

PARTS: Final = ("system", "members", "int8")
_FULL: Final = Path("recipes/medusa.toml")
_SMALL: Final = (Path("recipes/small.toml"), Path("recipes/default.toml"))
_GROUPED_DIM: Final = 256
"""Width of the members that "members" and "int8" measure without --full."""
_REST_S: Final = 0.02
"""Threads of the contender before spin for some milliseconds after their work, and would take a core from the next one."""
_WORDS: Final = "and then they laughed at all of us so I said"
Times = npt.NDArray[np.float64]
Feed = dict[str, npt.NDArray[Any]]
Run = Callable[[], object]


def times_of(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """Milliseconds of each contender, in turns; the first round warms up and is left out."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, work in contenders.items():
            time.sleep(_REST_S)
            begun = time.perf_counter()
            work()
            if number:
                taken[name].append(1e3 * (time.perf_counter() - begun))
    return {name: np.array(values) for name, values in taken.items()}


def spread(values: Times) -> str:
    """Median and quartiles."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.4g} ({low:.4g} to {high:.4g})"


def spec_of(recipe: Recipe, dim: int | None = None) -> EnsembleSpec:
    """A recipe's ensemble, its members of another width if one is given."""
    members = recipe.member_specs()
    if dim is not None:
        members = tuple(replace(member, dim=dim, feed_forward=2 * dim) for member in members)
    return EnsembleSpec(tuple(recipe.encoder_specs().values()), tuple(members), CLASSES, ATTRIBUTES)


def random_ensemble(spec: EnsembleSpec) -> Ensemble:
    """An ensemble that nobody trained."""
    torch.manual_seed(0)
    encoders = {encoder.name: encoder for encoder in spec.encoders}
    members = [DeepSER(member, encoders).eval() for member in spec.members]
    return Ensemble(spec, members, MetaClassifier(len(members)).eval()).eval().requires_grad_(requires_grad=False)


def feed_of(sizes: Sizes) -> Feed:
    """Random frames, masks without padding."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(size, np.float32) if len(size) == 3 else np.ones(size, np.bool_)
        for name, size in sizes.items()
    }


def eager(ensemble: Ensemble, feed: Feed) -> Callable[[], object]:
    """The ensemble in torch."""
    names = [encoder.name for encoder in inputs_of(ensemble.spec)]
    frames = {name: torch.from_numpy(feed[name]) for name in names}
    masks = {name: torch.from_numpy(feed[f"{name}_mask"]) for name in names}

    def work() -> object:
        with torch.no_grad():
            return ensemble(frames, masks)

    return work


def passes_of(spec: EnsembleSpec) -> dict[str, int]:
    """Encoder -> passes where every member has its own; statistics are those of Whisper's frames."""
    passes: dict[str, int] = {}
    for member in spec.members:
        for name in member.modalities:
            kind = spec.encoder(name).kind
            network = spec.whisper.name if kind == "functionals" and spec.whisper else name
            if kind != "prosody":
                passes[network] = passes.get(network, 0) + 1
    return passes


def item_of(encoder: EncoderSpec, reference: Reference[Any], seconds: float) -> object:
    """An utterance as the encoder takes it."""
    samples = round(seconds * SAMPLE_RATE_HZ)
    rng = np.random.default_rng(0)
    if encoder.kind == "text-transformer":
        return _WORDS
    if encoder.kind == "speech-transformer":
        return rng.standard_normal(samples, np.float32)
    return rng.standard_normal(
        (reference.examples[0].shape[0], 2 * (bucket_length(samples) // WHISPER_HOP)), np.float32
    )


def encoder_times(encoder: EncoderSpec, full: bool, given: argparse.Namespace) -> dict[str, Times]:
    """A pass of one encoder, in torch ("eager") and as a graph of each precision."""
    reference = ENCODERS[encoder.name](encoder.name) if full else reference_of(encoder)
    item = item_of(encoder, reference, given.seconds)
    contenders: dict[str, Callable[[], object]] = {"eager": lambda: reference.expected([item])}
    with tempfile.TemporaryDirectory() as folder:
        graph = reference.graph()
        for precision in given.precisions:
            path = Path(folder) / f"{precision}.onnx"
            write_graph(converted(copied(graph), precision), path)
            contenders[precision] = _encoder_runner(reference, make_session(path, given.threads), item)
        del graph
        return times_of(contenders, given.rounds)


def _encoder_runner(reference: Reference[Any], session: onnxruntime.InferenceSession, item: object) -> Run:
    return lambda: reference.found(session, [item])


def copied(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Another graph that is equal: writing one and giving it another precision change it."""
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    return copy


def system(recipe: Recipe, full: bool, given: argparse.Namespace) -> None:
    """Prints the whole system's ratio, with graphs of each precision."""
    spec = spec_of(recipe)
    passes, per_member = passes_of(spec), np.zeros(given.rounds)
    shared = {precision: np.zeros(given.rounds) for precision in given.precisions}
    say(
        f"system: {recipe.name}, {len(spec.members)} members, {sum(passes.values())} encoder passes against {len(passes)}"
    )
    for name, count in passes.items():
        taken = encoder_times(spec.encoder(name), full, given)
        say(f"  {name:10} pass in torch {spread(taken['eager'])} ms, {_of_each(taken, given.precisions)}")
        per_member += count * taken["eager"]
        for precision, times in shared.items():
            times += taken[precision]
        gc.collect()
    taken = ensemble_times(spec, full, given)
    say(f"  members    in torch {spread(taken['eager'])} ms, grouped {_of_each(taken, given.precisions)}")
    whole = {precision: times + taken[precision] for precision, times in shared.items()}
    eager_whole = per_member + taken["eager"]
    say(f"  together   in torch {spread(eager_whole)} ms, {_of_each(whole, given.precisions)}")
    for precision, times in whole.items():
        say(f"  torch over graphs in {precision} {spread(eager_whole / times)}")


def _of_each(taken: Mapping[str, Times], precisions: Sequence[Precision]) -> str:
    return ", ".join(f"graph in {precision} {spread(taken[precision])} ms" for precision in precisions)


def ensemble_times(spec: EnsembleSpec, full: bool, given: argparse.Namespace) -> dict[str, Times]:
    """All members and the meta-classifier, in torch ("eager") and as the grouped graph of each precision."""
    feed = feed_of(frame_sizes(inputs_of(spec), given.seconds))
    ensemble = random_ensemble(spec)
    made: dict[str, Callable[[], Run]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for precision in given.precisions:
            path = Path(folder) / f"{precision}.onnx"
            write_graph(converted(export_ensemble(ensemble, kernel_of(precision)), precision), path)
            made[precision] = partial(_runner, path, feed, given.threads)
            gc.collect()
        work = {"eager": eager(ensemble, feed)}
        if not full:
            return times_of({**work, **{name: make() for name, make in made.items()}}, given.rounds)
        taken = times_of(work, given.rounds)
        work.clear()
        del ensemble
        gc.collect()
        return taken | {precision: alone(make, precision, given.rounds) for precision, make in made.items()}


def write_ensemble(ensemble: Ensemble, folder: Path) -> None:
    """The members' graphs and the ensemble's, weights once; a member's graph is in memory alone."""
    (folder / "members").mkdir()
    store = WeightStore(folder)
    for member in ensemble.members:
        assert isinstance(member, DeepSER)
        store.write_with_weights(export_member(member, "fused"), f"members/{member.spec.name}.onnx")
    store.write(export_ensemble(ensemble, "fused"), "ensemble.onnx")


def members(spec: EnsembleSpec, full: bool, given: argparse.Namespace) -> None:
    """Prints grouped members against a loop over member graphs."""
    say(f"members: {len(spec.members)} of width {spec.members[0].dim}, {given.seconds:g} s")
    feed = feed_of(frame_sizes(inputs_of(spec), given.seconds))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ensemble(random_ensemble(spec), folder)
        gc.collect()
        sizes = {part.stem: part.stat().st_size for part in folder.glob("*.onnx")}
        weights = sum(part.stat().st_size for part in folder.glob("members/*"))
        say(f"  ensemble.onnx {sizes['ensemble'] / 1e6:.1f} MB beside members of {weights / 1e6:.1f} MB")

        def loop() -> Callable[[], object]:
            graphs = [folder / "members" / f"{member.name}.onnx" for member in spec.members]
            sessions = [make_session(graph, given.threads) for graph in graphs]
            feeds = [
                {part: feed[part] for modality in member.modalities for part in (modality, f"{modality}_mask")}
                for member in spec.members
            ]
            return lambda: [session.run(None, part) for session, part in zip(sessions, feeds, strict=True)]

        def grouped() -> Callable[[], object]:
            session = make_session(folder / "ensemble.onnx", given.threads)
            return lambda: session.run(None, feed)

        made = {"loop": loop, "grouped": grouped}
        if full:
            taken = {kind: alone(make, kind, given.rounds) for kind, make in made.items()}
        else:
            taken = times_of({kind: make() for kind, make in made.items()}, given.rounds)
    say(f"  loop {spread(taken['loop'])} ms, grouped {spread(taken['grouped'])} ms")
    say(f"  loop over grouped {spread(taken['loop'] / taken['grouped'])}")


def alone(make: Callable[[], Run], kind: str, rounds: int) -> Times:
    """One contender with nothing else in memory."""
    taken = times_of({kind: make()}, rounds)[kind]
    gc.collect()
    return taken


def int8(spec: EnsembleSpec, full: bool, given: argparse.Namespace) -> None:
    """Prints int8 against float32."""
    del full  # both fit where one does
    say(f"int8: {len(spec.members)} members of width {spec.members[0].dim}")
    feed = feed_of(frame_sizes(inputs_of(spec), given.seconds))
    ensemble = random_ensemble(spec)
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[], object]] = {}
        for precision in ("fp32", "int8"):
            path = Path(folder) / f"{precision}.onnx"
            write_graph(converted(export_ensemble(ensemble, kernel_of(precision)), precision), path)
            runs[precision] = _runner(path, feed, given.threads)
        taken = times_of(runs, given.rounds)
    say(f"  fp32 {spread(taken['fp32'])} ms, int8 {spread(taken['int8'])} ms")
    say(f"  fp32 over int8 {spread(taken['fp32'] / taken['int8'])}")


def _runner(path: Path, feed: Feed, threads: int) -> Run:
    session = make_session(path, threads)
    return lambda: session.run(None, feed)


def say(words: str) -> None:
    """One line on standard output."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def run(parts: Iterable[str], recipes: Sequence[Path], full: bool, given: argparse.Namespace) -> None:
    """Measures the parts that were asked for."""
    wide = spec_of(load_recipe(_FULL), None if full else _GROUPED_DIM)
    for part in parts:
        if part == "system":
            for recipe in recipes:
                system(load_recipe(recipe), full, given)
        else:
            {"members": members, "int8": int8}[part](wide, full, given)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the paper's sizes: gigabytes, and minutes a round")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--seconds", type=float, default=4.0, help="length of the utterance")
    parser.add_argument(
        "--precisions", choices=RUNS, nargs="+", default=("fp32", "int8"), help="of the graphs of system"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators of packages that are not used here
    torch.set_num_threads(given.threads)
    run(given.parts, [_FULL] if given.full else _SMALL, given.full, given)


if __name__ == "__main__":
    main()
