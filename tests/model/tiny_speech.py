"""Tiny speech encoders of `transformers` with random weights. No downloads."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, HubertConfig, PreTrainedModel, Wav2Vec2Config, WavLMConfig

SPEECH_DIM = 16
LAYERS = 5
KINDS = {"wavlm": WavLMConfig, "hubert": HubertConfig, "wav2vec2": Wav2Vec2Config}


def tiny_speech(kind: str = "wavlm", norm: str = "layer", seed: int = 0) -> PreTrainedModel:
    """A model of width 16 whose padding would be heard: its weights are not small.

    Args:
        kind: one of `KINDS`.
        norm: of the front end: "layer" as in "large" checkpoints, "group" as in "base" ones.
        seed: of its weights.
    """
    sizes: dict[str, Any] = {
        "hidden_size": SPEECH_DIM,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": (8,) * 7,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
        "conv_bias": norm == "layer",
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    }
    torch.manual_seed(seed)
    network: PreTrainedModel = AutoModel.from_config(KINDS[kind](**sizes))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    network.train(mode=False)
    return network


def write_tiny_speech(
    folder: Path, kind: str = "wavlm", norm: str = "layer", *, normalise: bool = True, seed: int = 0
) -> Path:
    """The model and its feature extractor's settings, as the hub keeps them."""
    tiny_speech(kind, norm, seed).save_pretrained(folder)
    settings = {"do_normalize": normalise, "sampling_rate": 16_000, "return_attention_mask": norm == "layer"}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
