"""A bundle of the full recipe at full size, random weights: is it written, does it load, what does one utterance cost?

    python -m bench.full_bundle
    python -m bench.full_bundle --folder full --steps score

make    folders of the five encoders of `recipes/medusa.toml` from their published configurations, and a checkpoint of its 14
        members, D = 1024
write   the bundle, as `medusa-export bundle` writes it: with parity of every graph, or not at all
score   the bundle in a fresh process: one utterance of 4 s through Whisper, the other encoders and the ensemble, in
        milliseconds, beside what the manifest says of operations

Each step is a process of its own; a folder that is given is kept, and steps whose result is there are left out. Whisper's
decoder has random weights as well, so its words are nonsense up to the limit of their length, and its vocabulary is that of an
English Whisper (tokenizer of the default bundle's): words are timed apart and mean nothing. It takes about 30 GB of disk,
24 GB of memory and the better part of an hour on two cores.
"""

import argparse
import json
import logging
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from ctranslate2.converters.transformers import WhisperLoader
from transformers import WhisperConfig, WhisperForConditionalGeneration

from bench.full_size import built, full_ensemble, say, word_tokenizer
from daemon.asr import AsrItem, Heard, Task
from daemon.config import DEFAULT_BUNDLE
from daemon.emotion import EmotionItem
from daemon.engine import EngineSettings, Models, load_models
from export.bundle import write_bundle
from model.audio import SAMPLE_RATE_HZ, Samples
from model.bundle import read_bundle
from model.network.checkpoint import save_checkpoint
from model.network.published import published_config
from model.sources import resolve
from model.spec import EncoderSpec
from model.transcript import Transcript

STEPS: Final = ("make", "write", "score")
SECONDS: Final = 4.0
_WORDS: Final = Transcript("and then they laughed at all of us so I said", "en", -0.1, 0.0, trusted=True)
_BESIDE_WHISPER: Final = ("tokenizer.json", "vocabulary.txt", "config.json")
_ENGLISH: Final = 51_864
"""Tokens of an English Whisper."""


def make(folder: Path) -> None:
    """Encoders and checkpoint."""
    torch.manual_seed(0)
    checkpoint = full_ensemble()
    encoders = tuple(_made(encoder, folder / "encoders" / encoder.name) for encoder in checkpoint.spec.encoders)
    checkpoint = replace(checkpoint, spec=replace(checkpoint.spec, encoders=encoders), model_card="# Random weights\n")
    save_checkpoint(folder / "checkpoint", checkpoint)


def _made(encoder: EncoderSpec, folder: Path) -> EncoderSpec:
    """The encoder with random weights in `folder`."""
    published = encoder.sources[0].removeprefix("hub:")
    folder.mkdir(parents=True, exist_ok=True)
    made = replace(encoder, sources=(f"path:{folder.resolve()}",))
    if encoder.kind == "whisper-ctranslate2":
        _make_whisper(published, folder)
        return replace(made, compute_type="int8")
    built(published).save_pretrained(folder)
    if encoder.kind == "text-transformer":
        word_tokenizer().save(str(folder / "tokenizer.json"))
    else:
        settings = {"do_normalize": True, "sampling_rate": SAMPLE_RATE_HZ}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return made


def _make_whisper(published: str, folder: Path) -> None:
    """A Whisper for CTranslate2, int8."""
    sizes: dict[str, Any] = {**published_config(published).to_dict(), "vocab_size": _ENGLISH}
    torch.set_default_dtype(torch.float16)
    try:
        network = WhisperForConditionalGeneration(WhisperConfig(**sizes))
    finally:
        torch.set_default_dtype(torch.float32)
    spec = WhisperLoader().get_model_spec(network)
    beside = resolve(_whisper_of_default().sources)
    for name in _BESIDE_WHISPER:
        shutil.copyfile(beside / name, folder / name)
    settings = {"feature_size": sizes["num_mel_bins"], "sampling_rate": SAMPLE_RATE_HZ}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    spec.register_vocabulary((beside / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:_ENGLISH])
    spec.validate()
    spec.optimize(quantization="int8")
    spec.save(str(folder))


def _whisper_of_default() -> EncoderSpec:
    encoder = read_bundle(DEFAULT_BUNDLE).spec.whisper
    assert encoder is not None
    return encoder


def write(folder: Path) -> None:
    """The bundle."""
    begun = time.perf_counter()
    manifest = write_bundle(folder / "checkpoint", folder / "bundle")
    size = sum(path.stat().st_size for path in (folder / "bundle").rglob("*") if path.is_file())
    worst = max(manifest.parity, key=lambda name: manifest.parity[name] / max(manifest.tolerances[name], 1e-30))
    say(
        f"written in {time.perf_counter() - begun:.0f} s, {size / 1e9:.2f} GB, {len(manifest.parity)} figures of parity; the "
        f"nearest to its limit is {worst}: {manifest.parity[worst]:.2e} of {manifest.tolerances[worst]:g}; "
        f"peak {_peak_gib():.1f} GiB"
    )
    for name, costs in manifest.costs.items():
        if not name.startswith("member "):
            told = f"{costs['flops'] / 1e9:8.1f} GFLOP" if costs.get("flops", -1) >= 0 else "     not counted"
            say(f"  {name:20} {told}  {costs['parameters'] / 1e6:8.1f} M parameters  {costs['bytes'] / 1e6:8.1f} MB")


def score(folder: Path, threads: int, rounds: int) -> None:
    """One utterance."""
    begun = time.perf_counter()
    models = load_models(folder / "bundle", EngineSettings(device="cpu", threads=threads))
    say(f"loaded and tried out in {time.perf_counter() - begun:.0f} s, {_peak_gib():.1f} GiB")
    rng = np.random.default_rng(0)
    audio = 0.1 * rng.standard_normal(round(SECONDS * SAMPLE_RATE_HZ)).astype(np.float32)
    taken = np.array([_parts(models, audio) for _ in range(rounds)]).T
    for name, values in zip(("Whisper's encoder", "other encoders", "ensemble"), taken, strict=True):
        least, middle, most = np.percentile(values, [0, 50, 100])
        say(f"  {name:20} median {middle:8.0f} ms of {rounds} ({least:.0f} to {most:.0f})")
    begun = time.perf_counter()
    models.asr([AsrItem(audio, "en", Task.WORDS)])
    say(
        f"  encoder and words    {1e3 * (time.perf_counter() - begun):8.0f} ms, up to the limit; peak {_peak_gib():.1f} GiB"
    )


def _parts(models: Models, audio: Samples) -> tuple[float, float, float]:
    """Milliseconds of Whisper's encoder, the other encoders and the ensemble."""
    begun = time.perf_counter()
    (heard,) = models.asr([AsrItem(audio, "en", Task.FEATURES)])
    whisper_s = time.perf_counter() - begun
    (scored,) = models.emotion([EmotionItem(audio, Heard(heard.frames, _WORDS))])
    total = sum(scored.posteriors.probabilities)
    if not abs(total - 1.0) < 1e-4:
        raise ValueError(f"probabilities sum to 1, got {total}")
    return 1e3 * whisper_s, 1e3 * scored.encoders_s, 1e3 * scored.fusion_s


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(step: str, folder: Path, given: argparse.Namespace) -> None:
    """One step."""
    warnings.filterwarnings("ignore")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators that nobody uses here
    torch.set_num_threads(given.threads)
    if step == "make":
        make(folder)
    elif step == "write":
        write(folder)
    else:
        score(folder, given.threads, given.rounds)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything lies; a temporary one if not given")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.folder and len(given.steps) == 1:
        run(given.steps[0], given.folder, given)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        there = {"make": folder / "checkpoint" / "ensemble.json", "write": folder / "bundle"}
        for step in given.steps:
            if step in there and there[step].exists():
                continue
            command = [sys.executable, "-m", "bench.full_bundle", "--folder", str(folder), "--steps", step]
            command += ["--threads", str(given.threads), "--rounds", str(given.rounds)]
            if (status := subprocess.run(command, check=False).returncode) != 0:
                sys.exit(abs(status))


if __name__ == "__main__":
    main()
