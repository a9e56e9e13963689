"""Members, meta-classifier and ensemble: graphs against networks over frames of many lengths.

Posteriors are compared, not logits: they are what a client sees. Attributes are compared over their range of 6.

Shapes: B = batch, F = frames, M = members, K = compared values, d = width of a frame.
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

from export.parity_encoders import graph_session
from export.to_onnx import META_INPUT
from model.bundle import MODALITY_SHARE, ensemble_outputs, inputs_of, mask_of
from model.features import FUNCTIONALS_STEPS, Frames, collate
from model.labels import ATTRIBUTE_RANGE
from model.network.checkpoint import Checkpoint
from model.network.member import Member
from model.network.metaclassifier import WIDTH
from model.spec import EncoderSpec

Array = npt.NDArray[np.float32]
Feed = dict[str, npt.NDArray[Any]]
Item = Mapping[str, Frames]
Comparable = Callable[[Sequence[Array]], Array]
"""A graph's outputs as one array `[B, K]` in units of probability."""

_BATCH_SIZES: Final = (1, 2, 7)
_ITEMS: Final = 7
_EXTRA_STEPS: Final = 3
_PADDING_VALUE: Final = 9.0
_META_ROWS: Final = 7
_RANGE: Final = ATTRIBUTE_RANGE[1] - ATTRIBUTE_RANGE[0]
_STATISTICS: Final = (("mean", 0.0), ("scale", 1.0))
"""Of a member's frames, and what stands for them where no member reads an encoder's."""


@dataclass(frozen=True, slots=True)
class Differences:
    """Largest differences in units of probability: from the network, of padded from unpadded, of a batch from one by one."""

    network: float
    padding: float
    neighbours: float


def ensemble_differences(checkpoint: Checkpoint, graph: Path) -> Differences:
    """A graph that is served against its ensemble."""
    session, items = graph_session(graph), example_items(checkpoint)
    encoders, names = inputs_of(checkpoint.spec), list(ensemble_outputs(checkpoint.spec))

    def run(batch: Sequence[Item], extra_steps: int = 0) -> Array:
        return _ensemble_values(session.run(names, feed(encoders, batch, extra_steps)))

    together = run(items)
    alone = np.concatenate([run([item]) for item in items])
    network = _worst(session, names, checkpoint.ensemble(), encoders, items, _ensemble_values)
    if checkpoint.spec.shared_by:
        network = max(network, _share_difference(checkpoint, session, encoders, items))
    return Differences(
        network=network,
        padding=_largest(together - run(items, _EXTRA_STEPS)),
        neighbours=_largest(together - alone),
    )


def _share_difference(
    checkpoint: Checkpoint,
    session: onnxruntime.InferenceSession,
    encoders: Sequence[EncoderSpec],
    items: Sequence[Item],
) -> float:
    """The shares of modalities that the graph tells against those of the networks."""
    batch = feed(encoders, items)
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    masks = {encoder.name: tensors[mask_of(encoder.name)] for encoder in encoders}
    with torch.no_grad():
        expected = checkpoint.ensemble().modality_share(tensors, masks).numpy()
    return _largest(expected - session.run([MODALITY_SHARE], batch)[0])


def member_difference(checkpoint: Checkpoint, member: Member, graph: Path) -> float:
    """A member's graph against its network."""
    encoders = tuple(checkpoint.spec.encoder(name) for name in member.spec.modalities)
    items = example_items(checkpoint)
    return _worst(graph_session(graph), None, member, encoders, items, _head_values)


def meta_difference(checkpoint: Checkpoint, graph: Path) -> float:
    """The meta-classifier's graph against its network."""
    shape = (_META_ROWS, WIDTH * len(checkpoint.members))
    outputs = np.random.default_rng(0).random(shape, np.float32)
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in checkpoint.meta(torch.from_numpy(outputs))]
    found = graph_session(graph).run(None, {META_INPUT: outputs})
    return _largest(_head_values(expected) - _head_values(found))


def example_items(checkpoint: Checkpoint) -> list[dict[str, Frames]]:
    """Utterances of many lengths: the shortest, multiples of `stack` and others, a transcript without words."""
    items: list[dict[str, Frames]] = [{} for _ in range(_ITEMS)]
    for shift, encoder in enumerate(inputs_of(checkpoint.spec)):
        stack = encoder.stack
        lengths = [1, stack, stack + 1, 3 * stack - 1, 10 * stack, 17 * stack + stack // 2, 40 * stack]
        if encoder.kind == "text-transformer":
            lengths[0] = 0
        if encoder.kind == "functionals":  # which are of one length
            lengths = [FUNCTIONALS_STEPS]
        wanted = [lengths[(index + shift) % len(lengths)] for index in range(_ITEMS)]
        for item, frames in zip(items, random_frames(checkpoint, encoder, wanted), strict=True):
            item[encoder.name] = frames
    return items


def random_frames(checkpoint: Checkpoint, encoder: EncoderSpec, lengths: Sequence[int]) -> list[Frames]:
    """Frames with the mean and deviation of the training data, as the members standardise them; 0 and 1 if none does."""
    generator = np.random.default_rng(len(encoder.name))
    found = [member.stacks[encoder.name] for member in checkpoint.members if encoder.name in member.stacks]
    mean, scale = (getattr(found[0], name).numpy() if found else default for name, default in _STATISTICS)
    return [(generator.standard_normal((length, encoder.dim)) / scale + mean).astype(np.float32) for length in lengths]


def torch_run(network: nn.Module, encoders: Sequence[EncoderSpec], items: Sequence[Item]) -> list[Array]:
    """A network's outputs for a batch of utterances."""
    tensors = {name: torch.from_numpy(values) for name, values in feed(encoders, items).items()}
    masks = {encoder.name: tensors[mask_of(encoder.name)] for encoder in encoders}
    with torch.no_grad():
        return [tensor.numpy() for tensor in network(tensors, masks)]


def feed(encoders: Sequence[EncoderSpec], items: Sequence[Item], extra_steps: int = 0) -> Feed:
    """A graph's inputs; extra steps hold values that must not matter."""
    found: Feed = {}
    for encoder in encoders:
        frames, mask = collate([item[encoder.name] for item in items], encoder.stack)
        extra = (0, extra_steps * encoder.stack)
        found[encoder.name] = np.pad(frames, ((0, 0), extra, (0, 0)), constant_values=_PADDING_VALUE)
        found[mask_of(encoder.name)] = np.pad(mask, ((0, 0), extra))
    return found


def _worst(
    session: onnxruntime.InferenceSession,
    names: list[str] | None,
    network: nn.Module,
    encoders: Sequence[EncoderSpec],
    items: Sequence[Item],
    comparable: Comparable,
) -> float:
    differences = []
    for size in _BATCH_SIZES:
        for start in range(0, len(items), size):
            batch = items[start : start + size]
            found = comparable(session.run(names, feed(encoders, batch)))
            differences.append(_largest(comparable(torch_run(network, encoders, batch)) - found))
    return float(np.max(differences))  # NaN, where there is one


def _ensemble_values(outputs: Sequence[Array]) -> Array:
    """Posterior, attributes and votes; what else there is follows from them."""
    posterior, attributes, members = outputs[:3]
    return np.concatenate([posterior, attributes / _RANGE, members.reshape(len(members), -1)], axis=1)


def _head_values(outputs: Sequence[Array]) -> Array:
    logits, attributes = outputs
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.concatenate([powers / powers.sum(axis=1, keepdims=True), attributes / _RANGE], axis=1)


def _largest(difference: npt.NDArray[np.floating]) -> float:
    return float(np.abs(difference).max())
