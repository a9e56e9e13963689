"""What a bundle does on a device: does it say the same there, how fast, with how much memory, and how many calls.

    bench/gpu.sh                                     all of it, on a machine with a GPU
    python -m bench.device --device cuda --parts parity sweep
    python -m bench.device --device cpu --batches 1 2 --rounds 3 --seconds 1

parity     posteriors of utterances of the demo call, against those of the CPU without bound tensors
sweep      batches of one length: all of an utterance (features on the host, every encoder, ensemble) and its graphs alone;
           utterances a second, latency, memory, and which share of a measured matrix product's speed the graphs reach
ensemble   the ensemble on the device, its frames already there, against the CPU, to which they are copied
calls      two-channel calls at the pace of speech through a daemon

Operations are those of the manifest's `costs`, which are of 4 s: shares are told for that length alone. Memory is that
of the whole device (nvidia-smi), or of this process on a CPU. Exit status 1 where the posteriors differ by more than they may.
"""

import argparse
import asyncio
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from bench.speech import speaker, utterances
from bench.under_test import daemon_under_test, percentile
from daemon.asr import AsrItem, Heard, Task
from daemon.batcher import BatchSettings
from daemon.client import paced, stream
from daemon.config import DEFAULT_BUNDLE
from daemon.emotion import EmotionItem
from daemon.engine import EngineSettings, Models, load_models
from daemon.errors import ConfigError
from model.audio import MEL_HOP, SAMPLE_RATE_HZ, Samples, bucket_length
from model.binding import BoundFrames, BoundGraph
from model.bundle import Manifest
from model.features import Frames, functionals, prosody_frames
from model.onnx_session import ProviderError, make_session
from model.providers import (
    DEVICES,
    ConvSearch,
    Device,
    Execution,
    FixedShape,
    GpuSettings,
    memory_of,
    providers_of,
)
from model.runtime import Runtime, load_runtime
from model.spec import WHISPER_KINDS
from model.transcript import Transcript

PARTS: Final = ("parity", "sweep", "ensemble", "calls")
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
_COUNTED_S: Final = 4.0
_WORDS: Final = "and then they laughed at all of us so I said"
_SIZES: Final = {"cpu": 512, "cuda": 8192}
"""Width of the matrices whose product is the measure."""
_LIMITS: Final = {"fp32": 1e-4, "fp16-weights": 1e-4, "fp16": 5e-3, "bf16": 5e-3, "int8": 2e-2}
"""Largest difference of a posterior between two devices, by the coarsest precision of the bundle. Both sum float32 in
another order, so it is not the limit of one file against its network."""
Times = npt.NDArray[np.float64]


def times_of(work: Callable[[], object], rounds: int) -> Times:
    """Milliseconds of each call; the first two warm up and are left out."""
    taken = []
    for number in range(rounds + 2):
        begun = time.perf_counter()
        work()
        if number >= 2:
            taken.append(1e3 * (time.perf_counter() - begun))
    return np.array(taken)


def spoken(count: int, seconds: float) -> list[Samples]:
    """Speech of the demo call, `float32 [T]` each, from different moments of it."""
    voices = np.concatenate(utterances())
    length, step = round(seconds * SAMPLE_RATE_HZ), len(voices) // (count + 1)
    return [np.resize(voices[number * step :], length) for number in range(count)]


def heard(models: Models, audio: Sequence[Samples]) -> list[EmotionItem]:
    """Utterances with Whisper's frames of them, and words that are not theirs, the same on every device."""
    found = models.asr([AsrItem(samples, None, Task.FEATURES) for samples in audio])
    words = [_WORDS[: 4 + 3 * number % len(_WORDS)] for number in range(len(audio))]
    return [
        EmotionItem(samples, Heard(each.frames, Transcript(text, "en", 0.0, 0.0, trusted=True)))
        for samples, each, text in zip(audio, found, words, strict=True)
    ]


def parity(here: Models, there: Models, count: int, limit: float) -> bool:
    """Prints how far posteriors lie apart; whether it is within the limit."""
    audio = utterances()[:count]
    worst, same, total = 0.0, 0, 0
    for samples in audio:
        expected, found = (
            np.array(model.emotion(heard(model, [samples]))[0].posteriors.probabilities) for model in (here, there)
        )
        worst = max(worst, float(np.abs(expected - found).max()))
        same, total = same + int(expected.argmax() == found.argmax()), total + 1
    batch = [np.resize(each, len(audio[0])) for each in audio[:3]]  # one length: the same bucket
    expected, found = (
        np.array([scored.posteriors.probabilities for scored in model.emotion(heard(model, batch))])
        for model in (here, there)
    )
    worst = max(worst, float(np.abs(expected - found).max()))
    say(
        f"parity: largest difference {worst:.2e}, at most {limit:g} is accepted; "
        f"{same} of {total} keep their top class: {'passed' if worst <= limit else 'FAILED'}"
    )
    return worst <= limit


@dataclass(frozen=True, slots=True)
class Graphs:
    """The graphs of a bundle on a batch that is prepared: nothing but their passes, and the ensemble's."""

    runtime: Runtime
    audio: list[Samples]
    rows: list[dict[str, Frames]]
    mels: npt.NDArray[np.float32] | None

    def encoded(self) -> dict[str, BoundFrames]:
        """Frames of speech and text encoders, where they are left; what does not bind goes into the rows."""
        there = {}
        for speech in self.runtime.speech:
            if speech.binds and self.runtime.shared:
                there[speech.spec.name] = speech.encode_bound(self.audio)
            else:
                self._fill(speech.spec.name, speech.encode(self.audio))
        for text in self.runtime.text:
            if text.binds and self.runtime.shared:
                there[text.spec.name] = text.encode_bound([_WORDS] * len(self.audio))
            else:
                self._fill(text.spec.name, text.encode([_WORDS] * len(self.audio)))
        return there

    def all(self) -> object:
        """Every graph once."""
        if self.mels is not None and self.runtime.hidden_states is not None:
            self.runtime.hidden_states(self.mels)
        return self.runtime.ensemble.score(self.rows, self.encoded())

    def _fill(self, name: str, frames: Sequence[Frames]) -> None:
        for row, values in zip(self.rows, frames, strict=True):
            row[name] = values


def graphs_of(runtime: Runtime, models: Models, audio: list[Samples]) -> Graphs:
    """A batch with everything that numpy makes, made."""
    spec, rows = runtime.bundle.spec, []
    for item in heard(models, audio):
        prosody, row = prosody_frames(item.audio), {}
        for encoder in spec.encoders:
            if encoder.kind in WHISPER_KINDS:
                row[encoder.name] = item.heard.frames
            elif encoder.kind == "prosody":
                row[encoder.name] = prosody
            elif encoder.kind == "functionals":
                row[encoder.name] = functionals(item.heard.frames, prosody)
        rows.append(row)
    mels = None
    if runtime.hidden_states is not None:
        shape = (len(audio), runtime.hidden_states.bands, bucket_length(len(audio[0])) // MEL_HOP)
        mels = np.random.default_rng(0).standard_normal(shape, np.float32)
    return Graphs(runtime, audio, rows, mels)


def operations(manifest: Manifest) -> float:
    """Floating-point operations of the graphs of an utterance of 4 s; 0 where nobody counted them."""
    served = [name for name in manifest.costs if name == "ensemble" or name.startswith("encoder ")]
    return sum(manifest.costs[name].get("flops", 0.0) for name in served)


def matrix_peak(device: Device, gpu: GpuSettings, half: bool, threads: int) -> float:
    """Operations a second of one large matrix product in ONNX Runtime, in float16 or float32, its matrices on the device."""
    size, kind = _SIZES[memory_of(device)], TensorProto.FLOAT16 if half else TensorProto.FLOAT
    tensors = [helper.make_tensor_value_info(name, kind, [size, size]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    where: Device = "cpu" if device == "cpu" else "cuda"
    session = make_session(model.SerializeToString(), threads, providers_of(where, gpu, "peak", {}, "fp32"))
    bound, dtype = BoundGraph(session, memory_of(device)), np.float16 if half else np.float32
    generator, scale = np.random.default_rng(0), size**-0.5  # so that products of products neither grow nor vanish
    feed = {name: (scale * generator.standard_normal((size, size), np.float32)).astype(dtype) for name in "ab"}
    (product,) = bound.run(feed, ("c",))  # from here on, what is multiplied lies on the device
    (other,) = bound.run({"a": feed["b"], "b": feed["a"]}, ("c",))
    taken = times_of(lambda: bound.run({"a": product, "b": other}, ("c",)), 20)
    return 2.0 * size**3 / (1e-3 * float(taken.min()))


def memory_mb(device: Device) -> float:
    """Memory of the device in use (MiB), or the highest of this process."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0])


def sweep(runtime: Runtime, models: Models, device: Device, given: argparse.Namespace) -> None:
    """Prints a line per batch size."""
    manifest = runtime.bundle.manifest
    half = any(precision in ("fp16", "bf16") for precision in manifest.precisions.values())
    peak, counted = matrix_peak(device, GpuSettings(), half, given.threads), operations(manifest)
    told = given.seconds == _COUNTED_S and counted > 0
    say(f"sweep: {given.seconds:g} s, {peak / 1e12:.3g} TFLOP/s in a {'float16' if half else 'float32'} matrix product")
    for batch in given.batches:
        audio = spoken(batch, given.seconds)
        graphs = graphs_of(runtime, models, audio)
        alone = times_of(graphs.all, given.rounds)
        whole = times_of(lambda audio=audio: models.emotion(heard(models, audio)), given.rounds)  # type: ignore[misc]  # mypy takes the default for another type
        share = counted * batch / (1e-3 * float(np.median(alone))) / peak
        say(
            f"  batch {batch:3}: {1e3 * batch / np.median(whole):7.1f} utterances/s, p50 {np.median(whole):7.1f} ms, "
            f"p99 {np.percentile(whole, 99):7.1f} ms; graphs p50 {np.median(alone):7.1f} ms, "
            f"p99 {np.percentile(alone, 99):7.1f} ms{f', {share:.1%} of the product' if told else ''}; "
            f"{memory_mb(device):.0f} MiB"
        )


def ensembles(runtime: Runtime, models: Models, here: Runtime, given: argparse.Namespace) -> None:
    """Prints the ensemble on the device and on the CPU, with what each has to copy."""
    for batch in given.batches:
        graphs = graphs_of(runtime, models, spoken(batch, given.seconds))
        there = graphs.encoded()

        def copied(graphs: Graphs = graphs, there: dict[str, BoundFrames] = there) -> object:
            rows = [dict(row) for row in graphs.rows]
            for name, frames in there.items():
                for row, values in zip(rows, frames.host(), strict=True):
                    row[name] = values
            return here.ensemble.score(rows)

        def kept(graphs: Graphs = graphs, there: dict[str, BoundFrames] = there) -> object:
            return runtime.ensemble.score(graphs.rows, there)

        device_ms, cpu_ms = (float(np.median(times_of(work, given.rounds))) for work in (kept, copied))
        say(f"ensemble: batch {batch:3}: on the device {device_ms:.1f} ms, on the CPU {cpu_ms:.1f} ms")


async def calls(device: Device, count: int, seconds: float, bundle: Path, given: argparse.Namespace) -> None:
    """Prints the wait of every final result of two-channel calls at the pace of speech."""
    voices = utterances()
    settings = [f"MEDUSA_MODELS__DEVICE={device}", f"MEDUSA_BUNDLE={bundle}", f"MEDUSA_MODELS__THREADS={given.threads}"]
    waits: list[float] = []

    async def one(url: str, number: int) -> None:
        audio = np.concatenate([speaker(voices, seconds, 2 * number + channel) for channel in (0, 1)])
        asked: dict[str, Any] = {"sample_rate": SAMPLE_RATE_HZ, "channels": 2, "roles": "customer,agent"}
        async for message in stream(url, paced(audio), **asked):
            if message["type"] == "emotion" and message["final"]:
                waits.append(message["latency_ms"]["total"])

    async with daemon_under_test(*settings) as daemon, asyncio.TaskGroup() as running:
        for number in range(count):
            running.create_task(one(daemon.url, number))
    if not waits:
        raise SystemExit(f"calls: {count} of {seconds:g} s said nothing: make them longer")
    say(
        f"calls: {count} of {seconds:g} s, two channels, {len(waits)} utterances, wait p50 {percentile(waits, 50)} ms, "
        f"p95 {percentile(waits, 95)} ms, p99 {percentile(waits, 99)} ms"
    )


def say(words: str) -> None:
    """One line on standard output."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def run(given: argparse.Namespace) -> bool:
    """Measures the parts that were asked for; whether posteriors are within their limit.

    Raises:
        ConfigError: if the device is not there, or the bundle cannot be served.
    """
    device, folder = cast(Device, given.device), given.bundle
    gpu = GpuSettings(
        given.memory_mb, cast(ConvSearch, given.conv_search), given.engines, tuple(map(FixedShape.parse, given.graphs))
    )
    execution = Execution(device, device, gpu, max(given.batches), bound=True)
    settings = EngineSettings(
        device=device, gpu=gpu, threads=given.threads, batch=BatchSettings(max_batch_size=max(given.batches))
    )
    passed = True
    if set(given.parts) - {"calls"}:
        plain = load_models(folder, replace(settings, device="cpu", gpu=GpuSettings()))
        there = load_models(folder, settings, execution)
        say(f"{there.bundle.id} on {device}, {given.threads} CPU threads")
        if "parity" in given.parts:
            limits = [_LIMITS[precision] for precision in plain.bundle.manifest.precisions.values()]
            limit = max(limits, default=_LIMITS["fp32"]) if given.limit is None else given.limit
            passed = parity(plain, there, given.utterances, limit)
        if {"sweep", "ensemble"} & set(given.parts):
            runtime = load_runtime(folder, given.threads, execution)
            if "sweep" in given.parts:
                sweep(runtime, there, device, given)
            if "ensemble" in given.parts:
                ensembles(runtime, there, load_runtime(folder, given.threads), given)
    if "calls" in given.parts:
        asyncio.run(calls(device, given.calls, given.call_seconds, folder, given))
    return passed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS[:-1])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--seconds", type=float, default=_COUNTED_S, help="length of an utterance")
    parser.add_argument("--utterances", type=int, default=100, help="of the demo call, at most, that parity compares")
    parser.add_argument("--limit", type=float, help="difference that is accepted; by default the precisions'")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2, help="of what the CPU computes")
    parser.add_argument("--memory-mb", type=int, default=0, help="models.gpu_memory_mb")
    parser.add_argument("--conv-search", default="HEURISTIC", help="models.conv_search")
    parser.add_argument("--engines", type=Path, default=Path(".medusa/engines"), help="models.engine_cache")
    parser.add_argument("--graphs", nargs="*", default=(), help="models.cuda_graphs, as 1x4 8x4")
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--call-seconds", type=float, default=60.0)
    try:
        return 0 if run(parser.parse_args(arguments)) else 1
    except (ConfigError, ProviderError) as error:
        sys.stderr.write(f"{error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
