"""Encoders' graphs as files, and encoders that cannot become one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from transformers import HubertConfig, HubertModel

from export.encoders import export_speech_encoder, weights_file, write_graph
from export.errors import ExportError
from export.references import reference_of, relative
from model.features import Frames
from model.network.speech_encoder import SpeechEncoder
from model.onnx_encoders import with_graphs
from model.onnx_session import make_session
from model.spec import EncoderSpec
from tests.model.tiny import TEXT_DIM, WHISPER_DIM, tiny_encoders, tiny_member, tiny_spec, write_tiny_text_encoder
from tests.model.tiny_speech import SPEECH_DIM, write_tiny_speech

WIDTH = 32


def product_graph(weights: Frames) -> onnx.ModelProto:
    """A graph that multiplies by a constant matrix."""
    node = onnx.helper.make_node("MatMul", ["x", "weights"], ["y"])
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, (1, WIDTH)) for name in ("x", "y")]
    graph = onnx.helper.make_graph(
        [node], "product", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weights, "weights")]
    )
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 20)])


def test_a_large_graph_keeps_its_constants_in_a_file_beside(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    x, path = np.ones((1, WIDTH), np.float32), tmp_path / "speech.onnx"
    write_graph(product_graph(weights), path, inline=weights.nbytes - 1)
    assert weights_file(path) == tmp_path / "speech.weights"
    assert weights_file(path).read_bytes() == weights.tobytes()
    assert path.stat().st_size < weights.nbytes
    (found,) = make_session(path, threads=1).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weights, rtol=1e-5)
    write_graph(onnx.load(path), path, inline=weights.nbytes)
    assert [file.name for file in tmp_path.iterdir()] == ["speech.onnx"]
    (found,) = make_session(path, threads=1).run(None, {"x": x})
    np.testing.assert_allclose(found, x @ weights, rtol=1e-5)


def test_whisper_s_graph_is_there_for_functionals_too() -> None:
    """They read its frames, whether or not a member does; an encoder that nobody reads is left out."""
    whisper, prosody, text = tiny_encoders()
    functionals = EncoderSpec("functionals", "functionals", 2 * (WHISPER_DIM + 2), 1)
    spec = replace(
        tiny_spec((whisper, prosody, functionals, text)), members=(tiny_member("f", ("functionals",), layers=1),)
    )
    assert with_graphs(spec) == (whisper,)
    assert [encoder.name for encoder in with_graphs(tiny_spec())] == ["whisper", "text"]


def test_a_front_end_that_hears_more_than_25_ms_is_refused() -> None:
    config = HubertConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        conv_kernel=(20, 3, 3, 3, 3, 2, 2),
    )
    network = SpeechEncoder(HubertModel(config))
    assert network.receptive_field == 410
    with pytest.raises(ExportError, match="hears 410 samples, and utterances of 400 are served"):
        export_speech_encoder(network)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    write_tiny_text_encoder(tmp_path / "text")
    spec = EncoderSpec("roberta", "text-transformer", 1024, 1, (f"path:{tmp_path / 'text'}",))
    with pytest.raises(ExportError, match=f"'roberta': its weights give frames of width {TEXT_DIM}, not dim = 1024"):
        reference_of(spec)


def test_a_checkpoint_that_does_not_say_how_to_feed_it_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_speech(tmp_path / "wavlm")
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16_000}))
    spec = EncoderSpec("wavlm", "speech-transformer", SPEECH_DIM, 1, (f"path:{folder}",))
    with pytest.raises(ExportError, match="'wavlm': .*do_normalize is true or false, got None"):
        reference_of(spec)


def test_a_text_encoder_without_its_tokenizer_is_refused(tmp_path: Path) -> None:
    write_tiny_text_encoder(tmp_path / "text")
    (tmp_path / "text" / "tokenizer.json").unlink()
    with pytest.raises(ExportError, match=r"'text': .*tokenizer\.json"):
        reference_of(EncoderSpec("text", "text-transformer", TEXT_DIM, 1, (f"path:{tmp_path / 'text'}",)))


def test_the_largest_difference_counts() -> None:
    right = [np.ones((2, 3), np.float32), np.zeros((0, 3), np.float32)]
    assert relative(right, right) == 0.0
    assert relative(right, [right[0] * 1.5, right[1]]) == pytest.approx(0.5)
    assert relative(right, [right[0][:1], right[1]]) == np.inf
    assert np.isnan(relative([right[0]] * 3, [right[0], right[0] * np.nan, right[0] * 2]))
