"""A folder with an emotion2vec: its weights under the names that they were published with, and their sizes.

config.json, preprocessor_config.json      what `transformers` calls the settings of a model of its own
model.safetensors                          tensors by published name

Source of the names: the checkpoints emotion2vec_base and emotion2vec+ (seed, base, large) of its authors, and fairseq's
`data2vec_multi`, which made them.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.audio import SAMPLE_RATE_HZ
from model.network.emotion2vec import Emotion2Vec, Layout

MODEL_TYPE: Final = "emotion2vec"
"""What config.json calls it."""
WEIGHTS: Final = "model.safetensors"
_AUDIO: Final = "modality_encoders.AUDIO."
_RENAMED: Final = (
    (r"front_end\.(\d+)\.convolution\.", r"local_encoder.conv_layers.\1.0."),
    (r"front_end\.(\d+)\.norm\.", r"local_encoder.conv_layers.\1.2.1."),
    (r"projection\.0\.", "project_features.1."),
    (r"projection\.1\.", "project_features.2."),
    (r"prenet\.", "context_encoder.blocks."),
    (r"prenet_norm\.", "context_encoder.norm."),
)
"""Beginnings of our names -> of those published, below `_AUDIO`."""


def published_name(ours: str) -> str:
    """The name of a parameter of `Emotion2Vec` in the published checkpoints."""
    if ours.startswith("blocks."):
        return ours
    if found := re.match(r"positions\.(\d+)\.", ours):
        return f"{_AUDIO}relative_positional_encoder.{int(found[1]) + 1}.0.{ours[found.end() :]}"
    for pattern, replacement in _RENAMED:
        if re.match(pattern, ours):
            return _AUDIO + re.sub(pattern, replacement, ours, count=1)
    return _AUDIO + ours


def published_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint of these sizes, by its published name."""
    with torch.device("meta"):
        network = Emotion2Vec(layout)
    return {published_name(name): tuple(values.shape) for name, values in network.state_dict().items()}


def layout_of(shapes: Mapping[str, Collection[int]]) -> Layout:
    """The sizes that a checkpoint's tensors have, by their published names.

    Raises:
        ValueError: naming the tensors that are missing, unexpected or of another shape than the others ask for.
    """

    def size(name: str, axis: int, axes: int) -> int:
        shape = tuple(shapes.get(name, ()))
        if len(shape) != axes:
            raise ValueError(
                f"these are not the weights of an emotion2vec: {name} has {axes} axes, got {shape or 'none'}"
            )
        return shape[axis]

    dim = size(f"{_AUDIO}project_features.2.weight", 0, 2)
    layout = Layout(
        dim=dim,
        heads=size(f"{_AUDIO}alibi_scale", 2, 5),
        feed_forward=size(f"{_AUDIO}context_encoder.blocks.0.mlp.fc1.weight", 0, 2),
        prenet=_count(shapes, rf"{re.escape(_AUDIO)}context_encoder\.blocks\.(\d+)\."),
        blocks=_count(shapes, r"blocks\.(\d+)\."),
        channels=size(f"{_AUDIO}project_features.2.weight", 1, 2),
        positions=_count(shapes, rf"{re.escape(_AUDIO)}relative_positional_encoder\.(\d+)\."),
        position_kernel=size(f"{_AUDIO}relative_positional_encoder.1.0.weight", 2, 3),
        position_groups=max(1, dim // max(1, size(f"{_AUDIO}relative_positional_encoder.1.0.weight", 1, 3))),
        extra_tokens=size(f"{_AUDIO}extra_tokens", 1, 3),
    )
    check_weights(layout, shapes)
    return layout


def _count(names: Collection[str], pattern: str) -> int:
    return len({found[1] for name in names if (found := re.match(pattern, name))})


def check_weights(layout: Layout, shapes: Mapping[str, Collection[int]]) -> None:
    """Accepts tensors by published name that are all of a checkpoint of these sizes, and nothing else.

    Raises:
        ValueError: naming those that are missing, unexpected, or of another shape.
    """
    expected = published_shapes(layout)
    faults = {
        "missing": sorted(set(expected) - set(shapes)),
        "unexpected": sorted(set(shapes) - set(expected)),
        "of another shape": [
            f"{name} {tuple(shapes[name])} for {shape}"
            for name, shape in sorted(expected.items())
            if name in shapes and tuple(shapes[name]) != shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise ValueError(f"these are not the weights of {layout}: {told}")


def write_folder(weights: Mapping[str, Tensor], folder: Path) -> Layout:
    """Writes weights by their published names as a folder that `load_speech_encoder` reads; returns their sizes.

    Raises:
        ValueError: as `layout_of`; nothing is written then.
    """
    layout = layout_of({name: values.shape for name, values in weights.items()})
    folder.mkdir(parents=True, exist_ok=True)
    own = {name: values.float().clone(memory_format=torch.contiguous_format) for name, values in weights.items()}
    save_file(own, folder / WEIGHTS)  # which refuses one tensor under two names
    (folder / "config.json").write_text(json.dumps({"model_type": MODEL_TYPE, **asdict(layout)}, indent=1), "utf-8")
    settings = {"do_normalize": True, "sampling_rate": SAMPLE_RATE_HZ}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1), "utf-8")
    return layout


def read_layout(folder: Path) -> Layout | None:
    """The sizes that a folder's config.json names; None where it describes another kind of model.

    Raises:
        OSError: if there is no config.json.
        ValueError: if it cannot be read, or its sizes are not those of an emotion2vec.
    """
    path = folder / "config.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(described, dict) or described.pop("model_type", "") != MODEL_TYPE:
        return None
    known = asdict(Layout()).keys()
    if described.keys() != known or not all(type(size) is int and size > 0 for size in described.values()):
        raise ValueError(f"{path}: an {MODEL_TYPE} has the sizes {', '.join(known)}, above 0, got {described}")
    return Layout(**described)


def load_emotion2vec(folder: Path, layout: Layout) -> Emotion2Vec:
    """The network of a folder that `write_folder` wrote.

    Raises:
        OSError: if there are no weights.
        ValueError: if they cannot be read, or are not those of these sizes.
    """
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    check_weights(layout, {name: values.shape for name, values in weights.items()})
    network = Emotion2Vec(layout)
    network.load_state_dict({ours: weights[published_name(ours)] for ours in network.state_dict()})
    return network.eval()
