"""Proof that exported graphs compute what their networks compute.

Random frames of many lengths and batch sizes, with texts of no words, go through both; so do padding and neighbours, which
must not matter. The figures are the largest absolute differences of posteriors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from export.errors import ParityError
from export.to_onnx import fusion_encoders
from model.features import Frames, collate
from model.network.checkpoint import Checkpoint
from model.network.encoders import TextEncoder
from model.network.metaclassifier import WIDTH, Ensemble
from model.runtime import ENSEMBLE_OUTPUTS, MASK_SUFFIX, make_session
from model.spec import EncoderSpec
from model.text import TextTokenizer, word_frames

BATCHES: Final = (1, 2, 7)
STEPS: Final = (1, 2, 13, 60, 126)
"""Lengths in steps of a member: the least, a few seconds, the longest utterance (20 s of 160 ms) and one more."""
TOLERANCES: Final = {
    "member_logits": 1e-4,
    "meta_logits": 1e-4,
    "ensemble_posterior": 1e-5,
    "batch_invariance": 1e-5,
    "padding_invariance": 1e-5,
    "quantised_text_posterior": 2e-2,
}
_TEXTS: Final = (
    "",
    "Hello.",
    "The airplane is almost full.",
    "I am so angry with your service.",
    "Thank you very much, that was wonderful, and I will certainly tell my friends about it.",
    "We have been waiting for three weeks now and nobody was able to tell us where the parcel is or when it will arrive.",
)

Items = list[dict[str, Frames]]


def random_items(encoders: Mapping[str, EncoderSpec], batch: int, steps: int, seed: int) -> Items:
    """`batch` items of up to `steps` steps per modality, off the multiples of `stack`; every third has no text."""
    rng = np.random.default_rng(seed)
    items: Items = []
    for row in range(batch):
        item = {}
        for name, encoder in encoders.items():
            longest = encoder.stack * steps
            length = 1 if encoder.kind == "functionals" else max(1, longest - int(rng.integers(0, longest // 2 + 1)))
            if encoder.kind == "text-transformer" and row % 3 == 2:
                length = 0
            item[name] = rng.standard_normal((length, encoder.dim)).astype(np.float32)
        items.append(item)
    return items


def graph_feeds(items: Sequence[Mapping[str, Frames]], encoders: Mapping[str, EncoderSpec]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Padded inputs of a fusion graph."""
    feeds = {}
    for name, encoder in encoders.items():
        feeds[name], feeds[name + MASK_SUFFIX] = collate([item[name] for item in items], encoder.stack)
    return feeds


def _torch_inputs(feeds: Mapping[str, np.ndarray], encoders: Mapping[str, EncoderSpec]):  # type: ignore[no-untyped-def,type-arg]
    frames = {name: torch.from_numpy(feeds[name]) for name in encoders}
    masks = {name: torch.from_numpy(feeds[name + MASK_SUFFIX]) for name in encoders}
    return frames, masks


@torch.no_grad()
def measure(checkpoint: Checkpoint, folder: Path, text_encoder: TextEncoder | None) -> dict[str, float]:
    """Largest differences between the networks of `checkpoint` and the graphs in `folder`."""
    encoders = {encoder.name: encoder for encoder in checkpoint.spec.encoders}
    ensemble = checkpoint.ensemble()
    figures = {"member_logits": 0.0, "meta_logits": _measure_meta(checkpoint, folder)}
    for member in checkpoint.members:
        used = fusion_encoders(member, encoders)
        session = make_session(folder / "members" / f"{member.spec.name}.onnx", 1)
        for batch in BATCHES:
            for steps in STEPS:
                feeds = graph_feeds(random_items(used, batch, steps, seed=batch + steps), used)
                expected = member(*_torch_inputs(feeds, used))[0].numpy()
                got = np.asarray(session.run(["logits"], feeds)[0])
                figures["member_logits"] = max(figures["member_logits"], _difference(expected, got))
    figures |= _measure_ensemble(ensemble, folder / "ensemble.onnx", fusion_encoders(ensemble, encoders))
    if text_encoder is not None:
        figures |= measure_text(ensemble, encoders, text_encoder, folder)
    return figures


def _measure_meta(checkpoint: Checkpoint, folder: Path) -> float:
    session = make_session(folder / "meta.onnx", 1)
    worst = 0.0
    for batch in BATCHES:
        outputs = torch.rand(batch, WIDTH * len(checkpoint.members), generator=torch.Generator().manual_seed(batch))
        expected = checkpoint.meta(outputs)[0].numpy()
        got = np.asarray(session.run(["logits"], {"member_outputs": outputs.numpy()})[0])
        worst = max(worst, _difference(expected, got))
    return worst


def _measure_ensemble(ensemble: Ensemble, graph: Path, encoders: Mapping[str, EncoderSpec]) -> dict[str, float]:
    session = make_session(graph, 1)
    outputs = list(ENSEMBLE_OUTPUTS)
    exact = batch_effect = padding_effect = 0.0
    for batch in BATCHES:
        for steps in STEPS:
            items = random_items(encoders, batch, steps, seed=100 * batch + steps)
            feeds = graph_feeds(items, encoders)
            got = np.asarray(session.run(outputs, feeds)[0])
            exact = max(exact, _difference(ensemble(*_torch_inputs(feeds, encoders))[0].numpy(), got))
            alone = np.concatenate([np.asarray(session.run(outputs, graph_feeds([item], encoders))[0]) for item in items])
            batch_effect = max(batch_effect, _difference(alone, got))
            padded = np.asarray(session.run(outputs, _pad_more(feeds, encoders))[0])
            padding_effect = max(padding_effect, _difference(padded, got))
    return {"ensemble_posterior": exact, "batch_invariance": batch_effect, "padding_invariance": padding_effect}


def _pad_more(feeds: Mapping[str, np.ndarray], encoders: Mapping[str, EncoderSpec]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """The same inputs with two more steps of padding that hold garbage."""
    padded = {}
    for name, encoder in encoders.items():
        frames, mask, extra = feeds[name], feeds[name + MASK_SUFFIX], 2 * encoder.stack
        garbage = np.full((len(frames), extra, frames.shape[2]), 7.5, np.float32)
        padded[name] = np.concatenate([frames, garbage], axis=1)
        padded[name + MASK_SUFFIX] = np.pad(mask, ((0, 0), (0, extra)))
    return padded


def measure_text(
    ensemble: Ensemble, encoders: Mapping[str, EncoderSpec], text_encoder: TextEncoder, folder: Path
) -> dict[str, float]:
    """What the quantised text encoder costs: on its frames (relative L2) and on posteriors."""
    tokenizer = TextTokenizer(folder / "tokenizers" / "text.json")
    tokens = tokenizer.encode(_TEXTS)
    exact = word_frames(text_encoder(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)).numpy(), tokens)
    session = make_session(folder / "encoders" / "text.onnx", 1)
    small = word_frames(np.asarray(session.run(["hidden"], {"ids": tokens.ids, "mask": tokens.mask})[0]), tokens)
    used = fusion_encoders(ensemble, encoders)
    items = random_items(used, len(_TEXTS), 20, seed=5)
    posteriors = []
    for texts in (exact, small):
        feeds = graph_feeds([{**item, "text": rows} for item, rows in zip(items, texts, strict=True)], used)
        posteriors.append(ensemble(*_torch_inputs(feeds, used))[0].numpy())
    joined, joined_small = np.concatenate(exact), np.concatenate(small)
    return {
        "quantised_text_relative_l2": float(np.linalg.norm(joined - joined_small) / np.linalg.norm(joined)),
        "quantised_text_posterior": _difference(*posteriors),
    }


def require(figures: Mapping[str, float]) -> None:
    """Checks figures against their limits.

    Raises:
        ParityError: naming every figure over its limit.
    """
    wrong = [
        f"{name} differs by {figures[name]:.2e}, allowed is {limit:.0e}"
        for name, limit in TOLERANCES.items()
        if name in figures and not figures[name] <= limit
    ]
    if wrong:
        raise ParityError("the exported graphs do not compute what was trained: " + "; ".join(wrong))


def _difference(first: np.ndarray, second: np.ndarray) -> float:  # type: ignore[type-arg]
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return float("inf")
    return float(np.abs(first - second).max())


