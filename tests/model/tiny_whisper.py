"""A tiny Whisper model, as `transformers` builds it and as CTranslate2 keeps it. No downloads."""

from pathlib import Path

import torch
from ctranslate2.converters.transformers import WhisperLoader
from ctranslate2.specs import WhisperSpec
from transformers import WhisperConfig, WhisperForConditionalGeneration

LAYERS, HEADS, WIDTH, BANDS, FRAMES = 3, 2, 16, 8, 50


def tiny_whisper() -> WhisperForConditionalGeneration:
    """A Whisper model of width 16 with random weights."""
    config = WhisperConfig(
        vocab_size=20,
        num_mel_bins=BANDS,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_layers=1,
        decoder_attention_heads=HEADS,
        decoder_ffn_dim=WIDTH,
        max_source_positions=FRAMES,
        max_target_positions=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    torch.manual_seed(0)
    network: WhisperForConditionalGeneration = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.train(mode=False)
    return network


def write_ctranslate2(network: WhisperForConditionalGeneration, folder: Path, quantization: str | None) -> Path:
    """As CTranslate2's converter writes it; changes the network's weights in place when it quantizes."""
    spec, loader = WhisperSpec(LAYERS, HEADS, 1, HEADS), WhisperLoader()
    loader.set_encoder(spec.encoder, network.model.encoder)
    loader.set_decoder(spec.decoder, network.model.decoder)
    loader.set_linear(spec.decoder.projection, network.proj_out)
    spec.register_vocabulary([f"token{index}" for index in range(20)])
    spec.validate()
    spec.optimize(quantization=quantization)
    folder.mkdir()
    spec.save(str(folder))
    return folder
