"""Against parts that others wrote: data2vec's front end in `transformers`, torch's own Transformer layer."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Data2VecAudioConfig, Data2VecAudioModel

from model.network.emotion2vec import CONVOLUTIONS, Emotion2Vec, Layout, distance_bias
from model.network.emotion2vec_folder import layout_of, published_shapes, read_layout, write_folder
from model.network.published import parameters_in
from model.network.speech_encoder import (
    SpeechEncoder,
    SpeechFrames,
    described,
    load_speech_encoder,
    wants_standardised,
)
from model.spec import EncoderSpec
from tests.model.tiny_audio import relative, waves
from tests.model.tiny_emotion2vec import TINY, published_weights, tiny_emotion2vec, write_tiny_emotion2vec

CPU = torch.device("cpu")
TOLERANCE = 1e-5
AUDIO = "modality_encoders.AUDIO"


def block_names(prefix: str, dim: int, wide: int) -> dict[str, tuple[int, ...]]:
    norms = {f"{prefix}.{norm}.{part}": (dim,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    return norms | {
        f"{prefix}.attn.qkv.weight": (3 * dim, dim),
        f"{prefix}.attn.qkv.bias": (3 * dim,),
        f"{prefix}.attn.proj.weight": (dim, dim),
        f"{prefix}.attn.proj.bias": (dim,),
        f"{prefix}.mlp.fc1.weight": (wide, dim),
        f"{prefix}.mlp.fc1.bias": (wide,),
        f"{prefix}.mlp.fc2.weight": (dim, wide),
        f"{prefix}.mlp.fc2.bias": (dim,),
    }


def schema(dim: int, heads: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published encoder, written down from the checkpoints' own listing."""
    names: dict[str, tuple[int, ...]] = {}
    for number in range(8):
        names |= block_names(f"blocks.{number}", dim, 4 * dim)
    for number in range(4):
        names |= block_names(f"{AUDIO}.context_encoder.blocks.{number}", dim, 4 * dim)
    for number, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        layer = f"{AUDIO}.local_encoder.conv_layers.{number}"
        names[f"{layer}.0.weight"] = (512, 512 if number else 1, kernel)
        names |= {f"{layer}.2.1.weight": (512,), f"{layer}.2.1.bias": (512,)}
    for number in range(1, 6):
        layer = f"{AUDIO}.relative_positional_encoder.{number}.0"
        names |= {f"{layer}.weight": (dim, dim // 16, 19), f"{layer}.bias": (dim,)}
    return names | {
        f"{AUDIO}.alibi_scale": (1, 1, heads, 1, 1),
        f"{AUDIO}.extra_tokens": (1, 10, dim),
        f"{AUDIO}.context_encoder.norm.weight": (dim,),
        f"{AUDIO}.context_encoder.norm.bias": (dim,),
        f"{AUDIO}.project_features.1.weight": (512,),
        f"{AUDIO}.project_features.1.bias": (512,),
        f"{AUDIO}.project_features.2.weight": (dim, 512),
        f"{AUDIO}.project_features.2.bias": (dim,),
    }


BASE, LARGE = Layout(), Layout(dim=1024, heads=16, feed_forward=4096)


@pytest.mark.parametrize(("layout", "dim", "heads"), [(BASE, 768, 12), (LARGE, 1024, 16)])
def test_every_tensor_of_the_published_sizes_is_accounted_for(layout: Layout, dim: int, heads: int) -> None:
    expected = schema(dim, heads)
    assert len(expected) == 183, "the 185 tensors of emotion2vec+ large are these and its head's two"
    assert published_shapes(layout) == expected
    assert layout_of(expected) == layout


# What it computes.


def test_slopes_are_alibi_s() -> None:
    """The paper's example for 8 heads; for 12, those of 8 and every other one of 16's."""
    assert distance_bias(2, 8)[:, 0, 1].tolist() == [-(0.5**n) for n in range(1, 9)]
    twelve = -distance_bias(2, 12)[:, 0, 1]
    expected = [0.5**n for n in range(1, 9)] + [2 ** (-8 * n / 16) for n in (1, 3, 5, 7)]
    torch.testing.assert_close(twelve, torch.tensor(expected))
    bias = distance_bias(7, 3)
    assert torch.equal(bias, bias.transpose(1, 2))
    assert (bias.diagonal(dim1=1, dim2=2) == 0).all()
    torch.testing.assert_close(bias[0, 0], -torch.arange(7.0) * 2**-4.0)


def test_up_to_the_first_block_it_is_data2vec_s_front_end() -> None:
    """Convolutions, projection and positional convolutions are data2vec's, which `transformers` has too."""
    network: Any = tiny_emotion2vec()
    config = Data2VecAudioConfig(
        hidden_size=TINY.dim,
        num_attention_heads=TINY.heads,
        num_hidden_layers=1,
        conv_dim=(TINY.channels,) * 7,
        conv_kernel=[kernel for kernel, _ in CONVOLUTIONS],
        conv_stride=[stride for _, stride in CONVOLUTIONS],
        conv_bias=False,
        num_conv_pos_embeddings=TINY.positions,
        conv_pos_kernel_size=TINY.position_kernel,
        num_conv_pos_embedding_groups=TINY.position_groups,
    )
    theirs: Any = Data2VecAudioModel(config)
    theirs.train(mode=False)
    with torch.no_grad():
        for mine, layer in zip(network.front_end, theirs.feature_extractor.conv_layers, strict=True):
            layer.conv.load_state_dict(mine.convolution.state_dict())
            layer.layer_norm.load_state_dict(mine.norm.state_dict())
        theirs.feature_projection.layer_norm.load_state_dict(network.projection[0].state_dict())
        theirs.feature_projection.projection.load_state_dict(network.projection[1].state_dict())
        for convolution, layer in zip(network.positions, theirs.encoder.pos_conv_embed.layers, strict=True):
            layer.conv.load_state_dict(convolution.state_dict())
        audio = torch.from_numpy(np.stack(waves(9_000, 9_000)))
        projected, _ = theirs.feature_projection(theirs.feature_extractor(audio).transpose(1, 2))
        expected = projected + theirs.encoder.pos_conv_embed(projected)
    heard: list[Tensor] = []
    network.prenet_norm.register_forward_hook(lambda _, given, __: heard.append(given[0]))
    with torch.no_grad():
        network(audio, torch.tensor([expected.shape[1]] * 2))
    (given,) = heard
    torch.testing.assert_close(given[:, : TINY.extra_tokens], network.extra_tokens.expand(2, -1, -1))
    torch.testing.assert_close(given[:, TINY.extra_tokens :], expected, atol=1e-5, rtol=1e-4)


def torch_layer(weights: dict[str, Tensor], prefix: str) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        TINY.dim, TINY.heads, TINY.feed_forward, dropout=0.0, activation="gelu", batch_first=True
    )
    names = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.in_proj_bias": "attn.qkv.bias",
        "self_attn.out_proj.weight": "attn.proj.weight",
        "self_attn.out_proj.bias": "attn.proj.bias",
        "linear1.weight": "mlp.fc1.weight",
        "linear1.bias": "mlp.fc1.bias",
        "linear2.weight": "mlp.fc2.weight",
        "linear2.bias": "mlp.fc2.bias",
    }
    names |= {f"{norm}.{part}": f"{norm}.{part}" for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    layer.load_state_dict({theirs: weights[f"{prefix}.{ours}"] for theirs, ours in names.items()})
    return layer.eval()


def test_from_the_first_block_it_is_torch_s_layers_with_a_bias() -> None:
    """Norm, blocks before, blocks behind; extra tokens have no distance; a scale below 0 counts as 0."""
    network = tiny_emotion2vec()
    with torch.no_grad():
        network.alibi_scale[0, 0, 0] = -1.0
    weights = published_weights(network)
    inputs: list[Tensor] = []
    network.prenet_norm.register_forward_hook(lambda _, given, __: inputs.append(given[0]))
    with torch.no_grad():
        found = network(torch.from_numpy(np.stack(waves(6_400))), torch.tensor([19]))
    x, extra = inputs[0], TINY.extra_tokens
    _, second, third = network.alibi_scale.detach().flatten().tolist()
    slopes = (0.0, 2**-8.0 * second, 2**-2.0 * third)
    bias = torch.zeros(TINY.heads, x.shape[1], x.shape[1])
    for head, slope in enumerate(slopes):
        for query in range(extra, x.shape[1]):
            for key in range(extra, x.shape[1]):
                bias[head, query, key] = -slope * abs(query - key)
    norm = f"{AUDIO}.context_encoder.norm"
    with torch.no_grad():
        x = nn.functional.layer_norm(x, (TINY.dim,), weights[f"{norm}.weight"], weights[f"{norm}.bias"])
        prefixes = [f"{AUDIO}.context_encoder.blocks.{n}" for n in range(TINY.prenet)]
        for prefix in [*prefixes, *(f"blocks.{n}" for n in range(TINY.blocks))]:
            x = torch_layer(weights, prefix)(x, src_mask=bias)
    torch.testing.assert_close(found, x[:, extra:], atol=1e-4, rtol=1e-4)


def test_frames_are_the_last_block_s_and_20_ms_apart() -> None:
    network = tiny_emotion2vec()
    audio = torch.from_numpy(np.stack(waves(16_000)))
    hidden, kept = SpeechEncoder(network)(audio, torch.ones(1, 16_000, dtype=torch.bool))
    assert hidden.shape == (1, 49, TINY.dim)
    assert kept.all()
    torch.testing.assert_close(hidden, network(audio, torch.tensor([49])))


# Padding and neighbours.


@pytest.mark.parametrize("arithmetic", [None, torch.bfloat16])
def test_neighbours_do_not_change_a_result(arithmetic: torch.dtype | None) -> None:
    encode = SpeechFrames(SpeechEncoder(tiny_emotion2vec()), True, CPU, arithmetic)
    assert not encode.needs_equal_lengths
    audio = waves(16_000, 6_400, 400, 11_111, 20_007)
    for wave, frames in zip(audio, encode(audio), strict=True):
        (alone,) = encode([wave])
        assert relative(frames, alone) < (TOLERANCE if arithmetic is None else 0.02)


def test_padding_does_not_change_a_result_nor_does_what_it_holds() -> None:
    network = SpeechEncoder(tiny_emotion2vec())
    (wave,) = waves(8_000)
    alone, _ = network(torch.from_numpy(wave)[None], torch.ones(1, 8_000, dtype=torch.bool))
    for filling in (0.0, 0.7):
        padded = torch.full((1, 24_000), filling)
        padded[0, :8_000] = torch.from_numpy(wave)
        mask = (torch.arange(24_000) < 8_000)[None]
        hidden, kept = network(padded, mask)
        assert relative(hidden[kept], alone[0]) < TOLERANCE
        unmasked, _ = network(padded, torch.ones_like(mask))
        assert relative(unmasked[0, :24], alone[0]) > 0.01, "else there would be nothing to mask"


def test_padding_is_kept_out_of_each_positional_convolution() -> None:
    """One that is given zeros gives something else than zeros to the next; attention's mask alone would not help."""
    network = tiny_emotion2vec()
    x, kept = torch.randn(1, 12, TINY.dim), (torch.arange(20) < 12)[None]
    with torch.no_grad():
        alone = network._place(x, torch.ones(1, 12, dtype=torch.bool))
        together = network._place(torch.cat([x, torch.randn(1, 8, TINY.dim)], dim=1), kept)
    torch.testing.assert_close(together[:, :12], alone)


def test_an_utterance_shorter_than_one_frame_is_refused() -> None:
    network = SpeechEncoder(tiny_emotion2vec())
    assert network.receptive_field == 400
    with pytest.raises(ValueError, match=r"at least the 400 samples that one frame hears, got \[399\] samples"):
        network(torch.zeros(1, 399), torch.ones(1, 399, dtype=torch.bool))


# The folder.


def test_a_folder_is_loaded_as_it_was_written(tmp_path: Path) -> None:
    network = tiny_emotion2vec()
    folder = write_tiny_emotion2vec(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert load_file(folder / "model.safetensors").keys() == published_shapes(TINY).keys()
    assert read_layout(folder) == TINY
    assert wants_standardised(folder)
    assert parameters_in(folder) == sum(parameter.numel() for parameter in network.parameters())
    spec = EncoderSpec("emotions", "speech-transformer", TINY.dim, 1)
    assert described(spec, folder) == replace(spec, standardised=True, equal_lengths=False)
    found = load_speech_encoder(folder)
    assert found.dim == TINY.dim
    assert not any(parameter.requires_grad for parameter in found.parameters())
    audio, mask = torch.from_numpy(np.stack(waves(8_000))), torch.ones(1, 8_000, dtype=torch.bool)
    torch.testing.assert_close(found(audio, mask)[0], SpeechEncoder(network)(audio, mask)[0])


def test_one_tensor_under_two_names_is_written_twice(tmp_path: Path) -> None:
    weights = published_weights(tiny_emotion2vec())
    weights["blocks.0.norm1.bias"] = weights["blocks.0.norm2.bias"]
    write_folder(weights, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(stored["blocks.0.norm1.bias"], weights["blocks.0.norm2.bias"])
    assert torch.equal(stored["blocks.0.norm2.bias"], weights["blocks.0.norm2.bias"])


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    weights = published_weights(tiny_emotion2vec())
    del weights["blocks.1.norm1.bias"]
    weights["norm.weight"] = torch.zeros(TINY.dim)
    weights["blocks.0.mlp.fc2.bias"] = torch.zeros(7)
    with pytest.raises(ValueError, match="not the weights of Layout") as caught:
        write_folder(weights, tmp_path / "model")
    told = str(caught.value)
    assert "missing: blocks.1.norm1.bias; unexpected: norm.weight; of another shape: " in told
    assert f"blocks.0.mlp.fc2.bias (7,) for ({TINY.dim},)" in told
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match=r"project_features\.2\.weight has 2 axes, got none"):
        write_folder({"wav2vec2.masked_spec_embed": torch.zeros(3)}, tmp_path / "model")


def test_a_folder_whose_weights_are_not_of_its_sizes_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_emotion2vec(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "blocks": 3}))
    with pytest.raises(ValueError, match=r"missing: blocks\.2\.attn\.proj\.bias, blocks\.2"):
        load_speech_encoder(folder)
    (folder / "config.json").write_text(json.dumps({**config, "blocks": 0}))
    with pytest.raises(ValueError, match=r"has the sizes dim, heads, .* above 0, got .*'blocks': 0"):
        load_speech_encoder(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load_speech_encoder(folder)
    with pytest.raises(
        ValueError, match="heads and position_groups divide dim, and position_kernel is odd, got 5, 4, 24 and 5"
    ):
        Emotion2Vec(Layout(**{**asdict(TINY), "heads": 5}))
