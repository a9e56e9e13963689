"""Graphs against networks: does a bundle compute what was trained?

Posteriors are compared, not logits: they are what a client sees. Attributes are compared over their range of 6.

Shapes: B = batch, F = frames, T = tokens, M = members, K = compared values, d = width of a frame.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import nn

from export.errors import ParityError
from export.to_onnx import META_INPUT
from model.audio import MIN_UTTERANCE, WHISPER_HOP, bucket_length
from model.bundle import ENSEMBLE, TEXT_OUTPUT, WHISPER_INPUT, WHISPER_OUTPUT, Bundle, graph_file, inputs_of, mask_of
from model.features import Frames, collate
from model.labels import ATTRIBUTE_RANGE
from model.network.checkpoint import Checkpoint
from model.network.deepser import DeepSER
from model.network.encoders import TextEncoder, load_text_encoder
from model.network.metaclassifier import WIDTH
from model.network.whisper_encoder import WhisperEncoder, load_whisper_encoder
from model.onnx_encoders import OnnxTextEncoder, text_encoder_of
from model.onnx_session import make_session
from model.runtime import EnsembleRuntime
from model.sources import resolve_encoder
from model.spec import EncoderSpec, EnsembleSpec
from model.text import TextTokenizer, word_frames

Array = npt.NDArray[np.float32]
Feed = dict[str, npt.NDArray[Any]]
Comparable = Callable[[Sequence[Array]], Array]
"""A graph's outputs as one array `[B, K]` in units of probability."""

TEXTS: Final = (
    "",
    "no",
    "The airplane is almost full.",
    "I am so sorry for your loss, this is heartbreaking.",
    "   ",
    "What the hell are you doing? I have been waiting for three weeks and nobody answers my calls!",
    " ".join(["and then they laughed"] * 60),  # longer than the encoder takes: cut
)
_BATCH_SIZES: Final = (1, 2, len(TEXTS))
_EXTRA_STEPS: Final = 3
_PADDING_VALUE: Final = 9.0
_META_ROWS: Final = 7
_RANGE: Final = ATTRIBUTE_RANGE[1] - ATTRIBUTE_RANGE[0]


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest accepted differences.

    Attributes:
        posterior: of a float32 graph from its network, of padded from unpadded, of a batch from single utterances.
        hidden: of the float32 encoders' hidden states, relative L2.
        shrunk: of the shrunk text encoder's hidden states, relative L2.
        bundle: of the posterior of the whole bundle, shrunk text encoder included.
    """

    posterior: float = 1e-5
    hidden: float = 1e-5
    shrunk: float = 2e-2
    bundle: float = 2e-2


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured difference and what is accepted."""

    name: str
    value: float
    limit: float

    @property
    def passes(self) -> bool:
        """Whether it is accepted; NaN is not."""
        return self.value <= self.limit


def check(figures: Sequence[Figure]) -> None:
    """Accepts figures that all pass.

    Raises:
        ParityError: naming the worst.
    """
    failed = [figure for figure in figures if not figure.passes]
    if failed:
        worst = max(failed, key=lambda figure: np.nan_to_num(figure.value, nan=np.inf) / max(figure.limit, 1e-30))
        raise ParityError(
            f"{worst.name}: the difference is {worst.value:.3g}, at most {worst.limit:g} is accepted "
            f"({len(failed)} of {len(figures)} figures fail)"
        )


class TextReference:
    """The text encoder in torch, from the sources of the checkpoint.

    Raises:
        SourceError: if no source has the weights.
    """

    def __init__(self, encoder: EncoderSpec) -> None:
        self.folder = resolve_encoder(encoder)
        self.network: TextEncoder = load_text_encoder(self.folder)
        self.tokenizer = TextTokenizer(self.folder / "tokenizer.json")

    def encode(self, texts: Sequence[str]) -> list[Frames]:
        """Frames `float32 [F, d]` of each text."""
        batch = self.tokenizer.encode(texts)
        with torch.no_grad():
            hidden = self.network(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask))
        return word_frames(hidden.numpy(), batch)


def measure_text_graph(reference: TextReference, graph: bytes, limits: Limits) -> Figure:
    """The float32 graph of a text encoder against its network, alone and in a batch."""
    session = make_session(graph, threads=1)
    worst = 0.0
    for texts in ([TEXTS[1]], TEXTS):
        batch = reference.tokenizer.encode(texts)
        (hidden,) = session.run([TEXT_OUTPUT], {"ids": batch.ids, "mask": batch.mask})
        worst = max(worst, _relative(reference.encode(texts), word_frames(hidden, batch)))
    return Figure("text encoder, float32", worst, limits.hidden)


def measure(checkpoint: Checkpoint, bundle: Bundle, text: TextReference | None, limits: Limits) -> list[Figure]:
    """Every graph of a bundle against the checkpoint it should come from."""
    items = example_items(checkpoint)
    figures = _ensemble_figures(checkpoint, bundle.path, items, limits)
    figures += [_member_figure(member, checkpoint.spec, bundle.path, items, limits) for member in checkpoint.members]
    figures.append(_meta_figure(checkpoint, bundle.path, limits))
    whisper = checkpoint.spec.whisper
    if whisper is not None and whisper.states:
        figures += _whisper_figures(load_whisper_encoder(whisper), bundle.path / graph_file(whisper), limits)
    if text is not None:
        shipped = OnnxTextEncoder(bundle, threads=1)
        alone = [shipped.encode([sentence])[0] for sentence in TEXTS]
        figures.append(Figure("text encoder", _relative(text.encode(TEXTS), alone), limits.shrunk))
        figures.append(Figure("text encoder, neighbours", _relative(alone, shipped.encode(TEXTS)), limits.hidden))
    figures.append(_bundle_figure(checkpoint, bundle, text, items, limits))
    return figures


def example_items(checkpoint: Checkpoint) -> list[dict[str, Frames]]:
    """Utterances of many lengths: the shortest, multiples of `stack` and others, a transcript without words.

    Frames are random with the mean and deviation of the training data, as the members standardise them.
    """
    generator = np.random.default_rng(0)
    items: list[dict[str, Frames]] = [{} for _ in TEXTS]
    for shift, encoder in enumerate(inputs_of(checkpoint.spec)):
        stack = encoder.stack
        lengths = [1, stack, stack + 1, 3 * stack - 1, 10 * stack, 17 * stack + stack // 2, 40 * stack]
        if encoder.kind == "text-transformer":
            lengths[0] = 0
        member = next(member for member in checkpoint.members if encoder.name in member.spec.modalities)
        statistics = member.stacks[encoder.name]
        mean, scale = (getattr(statistics, name).numpy() for name in ("mean", "scale"))
        for index, item in enumerate(items):
            values = generator.standard_normal((lengths[(index + shift) % len(lengths)], encoder.dim))
            item[encoder.name] = (values / scale + mean).astype(np.float32)
    return items


def _ensemble_figures(
    checkpoint: Checkpoint, folder: Path, items: Sequence[Mapping[str, Frames]], limits: Limits
) -> list[Figure]:
    session = make_session(folder / ENSEMBLE, threads=1)
    encoders = inputs_of(checkpoint.spec)
    worst = _worst(session, checkpoint.ensemble(), encoders, items, _ensemble_values)
    together = _ensemble_values(session.run(None, _feed(encoders, items)))
    padded = _ensemble_values(session.run(None, _feed(encoders, items, _EXTRA_STEPS)))
    alone = np.concatenate([_ensemble_values(session.run(None, _feed(encoders, [item]))) for item in items])
    return [
        Figure("ensemble", worst, limits.posterior),
        Figure("ensemble, padding", _largest(together - padded), limits.posterior),
        Figure("ensemble, neighbours", _largest(together - alone), limits.posterior),
    ]


def _member_figure(
    member: DeepSER, spec: EnsembleSpec, folder: Path, items: Sequence[Mapping[str, Frames]], limits: Limits
) -> Figure:
    session = make_session(folder / "members" / f"{member.spec.name}.onnx", threads=1)
    encoders = tuple(spec.encoder(name) for name in member.spec.modalities)
    worst = _worst(session, member, encoders, items, _head_values)
    return Figure(f"member {member.spec.name}", worst, limits.posterior)


def _meta_figure(checkpoint: Checkpoint, folder: Path, limits: Limits) -> Figure:
    shape = (_META_ROWS, WIDTH * len(checkpoint.members))
    outputs = np.random.default_rng(0).random(shape, np.float32)
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in checkpoint.meta(torch.from_numpy(outputs))]
    found = make_session(folder / "meta.onnx", threads=1).run(None, {META_INPUT: outputs})
    return Figure("meta-classifier", _largest(_head_values(expected) - _head_values(found)), limits.posterior)


def _whisper_figures(network: WhisperEncoder, graph: Path, limits: Limits) -> list[Figure]:
    """A Whisper encoder's graph against its network: every length class, alone and in a batch."""
    session, generator = make_session(graph, threads=1), np.random.default_rng(0)
    worst = neighbours = 0.0
    for frames in _whisper_lengths(network.max_frames):
        mels = generator.standard_normal((3, network.bands, 2 * frames)).astype(np.float32)
        (found,) = session.run([WHISPER_OUTPUT], {WHISPER_INPUT: mels})
        (alone,) = session.run([WHISPER_OUTPUT], {WHISPER_INPUT: mels[:1]})
        with torch.no_grad():
            expected = network(torch.from_numpy(mels)).numpy()
        worst = max(worst, _relative(list(expected), list(found)))
        neighbours = max(neighbours, _relative(list(alone), list(found[:1])))
    return [
        Figure("whisper encoder", worst, limits.hidden),
        Figure("whisper encoder, neighbours", neighbours, limits.hidden),
    ]


def _whisper_lengths(longest: int) -> list[int]:
    """The shortest input, the shortest bucket and one off it, the longest."""
    bucket = bucket_length(MIN_UTTERANCE) // WHISPER_HOP
    return [length for length in (1, bucket - 1, bucket, bucket + 1, longest) if 1 <= length <= longest]


def _bundle_figure(
    checkpoint: Checkpoint,
    bundle: Bundle,
    text: TextReference | None,
    items: Sequence[Mapping[str, Frames]],
    limits: Limits,
) -> Figure:
    """What a client sees, words included, against the networks."""
    expected_items, found_items = [dict(item) for item in items], [dict(item) for item in items]
    encoder = text_encoder_of(bundle)
    if text is not None and encoder is not None:
        shipped = OnnxTextEncoder(bundle, threads=1)
        for rows, frames in ((expected_items, text.encode(TEXTS)), (found_items, shipped.encode(TEXTS))):
            for row, words in zip(rows, frames, strict=True):
                row[encoder.name] = words
    expected = _torch_run(checkpoint.ensemble(), inputs_of(checkpoint.spec), expected_items)[0]
    found = np.array([scores.probabilities for scores in EnsembleRuntime(bundle, threads=1).score(found_items)])
    return Figure("bundle", _largest(expected - found), limits.bundle)


def _worst(
    session: onnxruntime.InferenceSession,
    network: nn.Module,
    encoders: Sequence[EncoderSpec],
    items: Sequence[Mapping[str, Frames]],
    comparable: Comparable,
) -> float:
    worst = 0.0
    for size in _BATCH_SIZES:
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            found = comparable(session.run(None, _feed(encoders, batch)))
            worst = max(worst, _largest(comparable(_torch_run(network, encoders, batch)) - found))
    return worst


def _torch_run(
    network: nn.Module, encoders: Sequence[EncoderSpec], items: Sequence[Mapping[str, Frames]]
) -> list[Array]:
    feed = {name: torch.from_numpy(values) for name, values in _feed(encoders, items).items()}
    masks = {encoder.name: feed[mask_of(encoder.name)] for encoder in encoders}
    with torch.no_grad():
        return [tensor.numpy() for tensor in network(feed, masks)]


def _feed(encoders: Sequence[EncoderSpec], items: Sequence[Mapping[str, Frames]], extra_steps: int = 0) -> Feed:
    """A graph's inputs; extra steps hold values that must not matter."""
    feed: Feed = {}
    for encoder in encoders:
        frames, mask = collate([item[encoder.name] for item in items], encoder.stack)
        extra = (0, extra_steps * encoder.stack)
        feed[encoder.name] = np.pad(frames, ((0, 0), extra, (0, 0)), constant_values=_PADDING_VALUE)
        feed[mask_of(encoder.name)] = np.pad(mask, ((0, 0), extra))
    return feed


def _ensemble_values(outputs: Sequence[Array]) -> Array:
    posterior, attributes, members = outputs
    return np.concatenate([posterior, attributes / _RANGE, members.reshape(len(members), -1)], axis=1)


def _head_values(outputs: Sequence[Array]) -> Array:
    logits, attributes = outputs
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.concatenate([powers / powers.sum(axis=1, keepdims=True), attributes / _RANGE], axis=1)


def _relative(expected: Sequence[Frames], found: Sequence[Frames]) -> float:
    """Largest relative L2 difference of a text's frames; texts without words must have none on both sides."""
    worst = 0.0
    for right, frames in zip(expected, found, strict=True):
        if right.shape != frames.shape:
            return float("inf")
        worst = max(worst, float(np.linalg.norm(frames - right)) / max(float(np.linalg.norm(right)), 1e-12))
    return worst


def _largest(difference: npt.NDArray[np.floating]) -> float:
    return float(np.abs(difference).max())
