"""Sizes of the encoders of recipes that want a GPU, as their authors published them: for counting without downloading.

Weights are never made from these; a checkpoint brings its own configuration.
"""

from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    HubertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    RobertaConfig,
    Wav2Vec2Config,
    WavLMConfig,
    WhisperConfig,
)

from model.network.emotion2vec import Emotion2Vec
from model.network.emotion2vec_folder import read_layout

_LARGE_SPEECH: Final = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
}
_LARGE_TEXT: Final = {"hidden_size": 1024, "num_attention_heads": 16}

PUBLISHED: Final[dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]]] = {
    "microsoft/wavlm-large": (
        WavLMConfig,
        {**_LARGE_SPEECH, "conv_bias": False, "num_buckets": 320, "max_bucket_distance": 800},
    ),
    "facebook/hubert-large-ls960-ft": (HubertConfig, {**_LARGE_SPEECH, "conv_bias": True}),
    "Systran/faster-whisper-large-v3": (
        WhisperConfig,
        {
            "vocab_size": 51_866,
            "num_mel_bins": 128,
            "d_model": 1280,
            "encoder_layers": 32,
            "decoder_layers": 32,
            "encoder_attention_heads": 20,
            "decoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "decoder_ffn_dim": 5120,
        },
    ),
    "FacebookAI/roberta-large": (
        RobertaConfig,
        {
            **_LARGE_TEXT,
            "vocab_size": 50_265,
            "num_hidden_layers": 24,
            "intermediate_size": 4096,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
        },
    ),
    "answerdotai/ModernBERT-large": (
        ModernBertConfig,
        {**_LARGE_TEXT, "vocab_size": 50_368, "num_hidden_layers": 28, "intermediate_size": 2624},
    ),
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": (
        Wav2Vec2Config,
        {**_LARGE_SPEECH, "num_hidden_layers": 12, "conv_bias": True},
    ),
    "google-bert/bert-base-uncased": (BertConfig, {}),
}
"""Hub name -> class and sizes of its configuration."""


def published_config(name: str) -> PreTrainedConfig:
    """The configuration of a published model.

    Raises:
        KeyError: if its sizes are not written down here.
    """
    kind, sizes = PUBLISHED[name]
    return kind(**sizes)


def parameter_count(config: PreTrainedConfig) -> int:
    """Parameters of a model, of its encoder alone where it has a decoder too; nothing is allocated."""
    with torch.device("meta"):
        network = AutoModel.from_config(config)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    encoder = network.get_encoder() if config.is_encoder_decoder else network
    return sum(parameter.numel() for parameter in encoder.parameters())


def parameters_in(folder: Path) -> int:
    """Parameters of the text or speech encoder that a folder's config.json describes; nothing is allocated.

    Raises:
        OSError: if there is no config.json.
        ValueError: if it describes no model that is known here.
    """
    if layout := read_layout(folder):
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in Emotion2Vec(layout).parameters())
    return parameter_count(AutoConfig.from_pretrained(folder))
