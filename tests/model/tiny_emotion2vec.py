"""A tiny emotion2vec with random weights, as its folder and as it is published. No downloads."""

from pathlib import Path

import torch
from torch import Tensor

from model.network.emotion2vec import Emotion2Vec, Layout
from model.network.emotion2vec_folder import published_name, write_folder

TINY = Layout(
    dim=24,
    heads=3,
    feed_forward=40,
    prenet=2,
    blocks=2,
    channels=8,
    positions=5,
    position_kernel=5,
    position_groups=4,
    extra_tokens=3,
)
"""Three heads, because slopes of a number that is no power of two are made another way."""


def tiny_emotion2vec(seed: int = 0) -> Emotion2Vec:
    """A model whose padding would be heard: its weights are not small."""
    torch.manual_seed(seed)
    network = Emotion2Vec(TINY)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network.eval()


def published_weights(network: Emotion2Vec) -> dict[str, Tensor]:
    """Its weights by published name."""
    return {published_name(name): values.detach() for name, values in network.state_dict().items()}


def write_tiny_emotion2vec(folder: Path, seed: int = 0) -> Path:
    """The folder that `medusa-train convert` would make of it."""
    write_folder(published_weights(tiny_emotion2vec(seed)), folder)
    return folder
