"""The full recipe at full size, random weights: do its encoders and its ensemble export, and do the graphs compute the same?

    python -m bench.full_size
    python -m bench.full_size --only wavlm
    python -m bench.full_size --precision int8

Each is built from its published configuration, exported (in float32 if nothing else is said), loaded in ONNX Runtime, and
compared with its network: every example alone (the shortest legal input, frame and bucket edges, one off them, the longest),
then all but the longest in one padded batch. The ensemble is that of `recipes/medusa.toml`: all members, D = 1024. Limits are
those of a bundle that is written (`export.parity`). One part is in memory at a time, each in a process of its own: the peak is
that of its process; the ensemble needs 16 GiB.

Exit status 1 if a difference is above its limit, or a part's process was killed.
"""

import argparse
import gc
import logging
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel

from export.cost import UTTERANCE_S, flops_of, frame_sizes
from export.encoders import weights_file, write_graph
from export.parity import Limits
from export.parity_graphs import ensemble_differences
from export.precision import Precision, converted, kernel_of
from export.references import TEXTS, Reference, SpeechReference, TextReference, WhisperReference, relative
from export.shared_weights import WeightStore
from export.to_onnx import export_ensemble
from model.bundle import inputs_of
from model.labels import ATTRIBUTES, CLASSES
from model.network.checkpoint import Checkpoint
from model.network.encoders import TextEncoder
from model.network.member import build_member
from model.network.metaclassifier import MetaClassifier
from model.network.published import published_config
from model.network.speech_encoder import SpeechEncoder
from model.network.whisper_encoder import WhisperEncoder
from model.network.whisper_weights import EncoderWeights
from model.onnx_session import make_session
from model.spec import EnsembleSpec
from model.text import TextTokenizer
from train.config import load_recipe

ENSEMBLE: Final = "ensemble"
RUNS: Final[tuple[Precision, ...]] = ("fp32", "fp16-weights", "fp16", "int8")
"""Precisions that a CPU computes; bfloat16 is not one."""
_RECIPE: Final = Path(__file__).parents[1] / "recipes" / "medusa.toml"
_TEMPERATURE: Final = 0.05
"""Random heads say next to nothing: twenty times that is said, and twenty times every difference."""
_EXTRA: Final = 3
_SPECIAL: Final = ("<s>", "<pad>", "</s>", "<unk>")


def built(published: str) -> Any:
    """A network of `transformers` with random weights, in the computation that is exported."""
    config = published_config(published)
    return AutoModel.from_config(config, attn_implementation="eager")  # type: ignore[no-untyped-call]


def speech(name: str, published: str) -> SpeechReference:
    """A speech transformer."""
    return SpeechReference(name, SpeechEncoder(built(published)), standardised=True)


def word_tokenizer() -> Tokenizer:
    """A tokenizer of whole words: what ids stand for does not matter to random weights."""
    words = sorted({word for sentence in TEXTS for word in sentence.split()})
    vocabulary = {word: index for index, word in enumerate((*_SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # no password
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def text(name: str, published: str) -> TextReference:
    """A text transformer."""
    with tempfile.TemporaryDirectory() as folder:
        word_tokenizer().save(str(Path(folder) / "tokenizer.json"))
        return TextReference(name, TextEncoder(built(published)), TextTokenizer(Path(folder) / "tokenizer.json"))


def whisper(name: str, published: str) -> WhisperReference:
    """Whisper's encoder in our own network, with one middle state beside the last."""
    config = published_config(published)
    dim, layers = config.d_model, config.encoder_layers
    shapes = {
        "conv1.weight": (dim, config.num_mel_bins, 3),
        "conv2.weight": (dim, dim, 3),
        "positions": (config.max_source_positions, dim),
        **{f"{convolution}.bias": (dim,) for convolution in ("conv1", "conv2")},
    }
    wide = {"qkv": (3 * dim, dim), "attention_out": (dim, dim), "expand": (4 * dim, dim), "contract": (dim, 4 * dim)}
    for index in range(layers):
        for part, shape in wide.items():
            shapes |= {f"layers.{index}.{part}.weight": shape, f"layers.{index}.{part}.bias": shape[:1]}
    tensors = {key: 0.02 * torch.randn(shape) for key, shape in shapes.items()}
    norms = [f"layers.{index}.{part}" for index in range(layers) for part in ("attention_norm", "feed_forward_norm")]
    for norm in (*norms, "norm"):
        tensors |= {f"{norm}.weight": torch.ones(dim), f"{norm}.bias": torch.zeros(dim)}
    weights = EncoderWeights(tensors, layers, config.encoder_attention_heads)
    return WhisperReference(name, WhisperEncoder(weights, (layers // 2, layers)))


ENCODERS: Final[dict[str, Callable[[str], Reference[Any]]]] = {
    "wavlm": lambda name: speech(name, "microsoft/wavlm-large"),
    "hubert": lambda name: speech(name, "facebook/hubert-large-ls960-ft"),
    "roberta": lambda name: text(name, "FacebookAI/roberta-large"),
    "modernbert": lambda name: text(name, "answerdotai/ModernBERT-large"),
    "whisper": lambda name: whisper(name, "Systran/faster-whisper-large-v3"),
}


def measure(name: str, threads: int, precision: Precision) -> bool:
    """Exports and compares one encoder, prints its line; whether it is within what a bundle is held to."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    reference = ENCODERS[name](name)
    examples = reference.examples
    expected = reference.expected(examples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        begun = time.perf_counter()
        write_graph(converted(reference.graph(), precision), path)
        exported = time.perf_counter() - begun
        gc.collect()
        size = sum(file.stat().st_size for file in (path, weights_file(path)) if file.exists())
        begun = time.perf_counter()
        session = make_session(path, threads)
        loaded = time.perf_counter() - begun
        begun = time.perf_counter()
        alone = relative(expected, [reference.found(session, [item])[0] for item in examples])
        together = relative(expected[:-1], reference.found(session, examples[:-1], _EXTRA))
        computed = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(
        f"{name:10} {size / 1e9:5.2f} GB  export {exported:6.1f} s  load {loaded:5.1f} s  compare {computed:6.1f} s  "
        f"relative L2 alone {alone:.2e}  in a batch {together:.2e}  peak {peak:5.2f} GiB"
    )
    limits = Limits()
    return max(alone, together) <= (limits.hidden if precision == "fp32" else limits.coarse_hidden[precision])


def measure_ensemble(threads: int, precision: Precision) -> bool:
    """Exports and compares the ensemble, prints its line; whether it is within what a bundle is held to."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    checkpoint = full_ensemble()
    parameters = sum(tensor.numel() for member in checkpoint.members for tensor in member.parameters())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ensemble.onnx"
        begun = time.perf_counter()
        graph = export_ensemble(checkpoint.ensemble(), kernel_of(precision))
        WeightStore(path.parent).write_with_weights(converted(graph, precision), path.name)
        del graph
        exported = time.perf_counter() - begun
        gc.collect()
        size = sum(file.stat().st_size for file in (path, weights_file(path)))
        flops = flops_of(path, frame_sizes(inputs_of(checkpoint.spec), UTTERANCE_S))
        begun = time.perf_counter()
        found = ensemble_differences(checkpoint, path)
        computed = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(
        f"{ENSEMBLE:10} {size / 1e9:5.2f} GB  export {exported:6.1f} s  compare {computed:6.1f} s  "
        f"{len(checkpoint.members)} members, {parameters / 1e9:.2f} billion parameters, {flops / 1e9:.0f} GFLOP for "
        f"{UTTERANCE_S:g} s  largest difference from the networks {found.network:.2e}, with padding {found.padding:.2e}, "
        f"in a batch {found.neighbours:.2e}  peak {peak:5.2f} GiB"
    )
    limits = Limits()
    exact = precision in ("fp32", "fp16-weights")  # arithmetic is float32 in both
    around = limits.posterior if exact else limits.coarse_invariance[precision]
    return found.network <= limits.accepted(precision) and max(found.padding, found.neighbours) <= around


def full_ensemble() -> Checkpoint:
    """The ensemble of the full recipe with random weights."""
    recipe = load_recipe(_RECIPE)
    spec = EnsembleSpec(tuple(recipe.encoder_specs().values()), recipe.member_specs(), CLASSES, ATTRIBUTES)
    members = tuple(build_member(member, recipe.encoder_specs()).eval() for member in spec.members)
    meta = MetaClassifier(len(members)).eval()
    return Checkpoint(recipe.name, spec, members, meta, _TEMPERATURE, 0.0, {}, {}, "")


def say(words: str) -> None:
    """One line on standard output."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*ENCODERS, ENSEMBLE], help="one part, in this process")
    parser.add_argument("--precision", choices=RUNS, default="fp32", help="of every graph")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if given.only:
        warnings.filterwarnings("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of operators that nobody uses here
        how = given.threads, given.precision
        held = measure_ensemble(*how) if given.only == ENSEMBLE else measure(given.only, *how)
        sys.exit(0 if held else 1)
    settings = ["--threads", str(given.threads), "--precision", given.precision]
    command = [sys.executable, "-m", "bench.full_size", *settings, "--only"]
    statuses = [subprocess.run([*command, name], check=False).returncode for name in (*ENCODERS, ENSEMBLE)]
    sys.exit(1 if any(statuses) else 0)  # one that was killed has a negative status


if __name__ == "__main__":
    main()
