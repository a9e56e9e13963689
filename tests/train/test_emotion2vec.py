"""From a published checkpoint to a recipe's features, and to a bundle's graph."""

import argparse
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from export.bundle import write_bundle
from export.precision import Precisions
from export.references import reference_of, relative
from model.audio import MAX_UTTERANCE
from model.bundle import graph_file, read_bundle
from model.network.checkpoint import save_checkpoint
from model.network.emotion2vec import Layout
from model.network.speech_encoder import SpeechEncoder, SpeechFrames
from model.onnx_encoders import OnnxSpeechEncoder
from model.onnx_session import make_session
from model.sources import sha256_of
from model.spec import EncoderSpec
from tests.model.tiny import tiny_checkpoint, tiny_encoders, tiny_member, tiny_spec, write_tiny_text_encoder
from tests.model.tiny_audio import noise
from tests.model.tiny_emotion2vec import TINY, published_weights, tiny_emotion2vec, write_tiny_emotion2vec
from tests.model.tiny_whisper import tiny_whisper, write_ctranslate2
from train.cli import app
from train.config import EncoderConfig
from train.corpora import READERS
from train.emotion2vec import convert, read_weights
from train.encoding import load_speech, speech_pass
from train.errors import RecipeError
from train.execution import CPU

LIMIT = 1e-5
SHORTEST, HOP = 400, 320
BUCKET = 8000


class Harm:
    """What an object of a checkpoint may do when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def checkpoint(tmp_path: Path, *, further: bool = True, **beside: object) -> dict[str, object]:
    """As its authors save it: with the settings of training, the teacher, a decoder; trained further, with a head."""
    prefix = "d2v_model." if further else ""
    weights: dict[str, object] = {prefix + name: w for name, w in published_weights(tiny_emotion2vec()).items()}
    weights[f"{prefix}modality_encoders.AUDIO.decoder.blocks.0.0.weight"] = torch.zeros(4, 4, 7)
    if further:
        weights["proj.weight"] = torch.zeros(9, TINY.dim)
    else:
        weights["_ema"] = torch.zeros(3)
    settings = argparse.Namespace(arch="data2vec_multi")
    return {"args": settings, "cfg": {"model": settings}, "model": weights, **beside}


@pytest.mark.parametrize("further", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_becomes_a_folder_that_is_that_model(further: bool, old: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(checkpoint(tmp_path, further=further), path, _use_new_zipfile_serialization=not old)
    (tmp_path / "config.yaml").write_text("model: Emotion2vec\n")
    assert convert(f"path:{tmp_path}", tmp_path / "model") == TINY
    assert sha256_of(tmp_path / "model") == sha256_of(write_tiny_emotion2vec(tmp_path / "same"))


def test_nothing_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "harm"
    torch.save(checkpoint(tmp_path, extra=Harm(mark), trained=np.float64(3.0), others=[argparse.Namespace()]), path)
    assert read_weights(path).keys() == published_weights(tiny_emotion2vec()).keys()
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "else there would have been nothing to keep from running"


class Writer(torch.nn.Module):
    """A TorchScript program that writes a file while it is loaded."""

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = mark

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.mark, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.mark, self.training = state[0], state[1]
        torch.save(torch.zeros(1), state[0])

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:'torch.load' received:UserWarning")
def test_a_program_is_refused_and_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "model.pt", tmp_path / "harm"
    torch.jit.script(Writer(str(mark))).save(str(path))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    mark.unlink(missing_ok=True)
    with pytest.raises(RecipeError, match=r"model\.pt is no checkpoint of emotion2vec: it is a TorchScript program"):
        read_weights(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "else there would have been nothing to keep from running"


def test_a_file_that_is_no_emotion2vec_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(RecipeError, match=r"model\.pt is no checkpoint of torch"):
        convert(f"path:{path}", tmp_path / "out")
    torch.save([1, 2], path)
    with pytest.raises(RecipeError, match="holds no weights by name"):
        convert(f"path:{path}", tmp_path / "out")
    weights = published_weights(tiny_emotion2vec())
    del weights["modality_encoders.AUDIO.context_encoder.norm.bias"]
    torch.save({**weights, "blocks.0.attn.relative": torch.zeros(2)}, path)
    with pytest.raises(
        RecipeError, match=r"missing: modality_enc.*context_encoder\.norm\.bias; unexpected: blocks\.0\.attn\.relative$"
    ):
        convert(f"path:{path}", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_name(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        path.write_bytes(content)
        with pytest.raises(RecipeError, match=r"model\.pt is no checkpoint of"):
            read_weights(path)


def test_it_has_to_be_clear_which_file_and_where_to(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has one checkpoint, .* got none: name the file"):
        convert(f"path:{tmp_path}", tmp_path / "out")
    for name in ("a.pt", "b.pt"):
        torch.save(checkpoint(tmp_path), tmp_path / name)
    with pytest.raises(RecipeError, match=r"got a\.pt, b\.pt: name the file"):
        convert(f"path:{tmp_path}", tmp_path / "out")
    convert(f"path:{tmp_path / 'b.pt'}", tmp_path / "out")
    with pytest.raises(RecipeError, match="out exists already"):
        convert(f"path:{tmp_path / 'b.pt'}", tmp_path / "out")


def test_the_command_tells_what_a_recipe_has_to_say(tmp_path: Path) -> None:
    torch.save(checkpoint(tmp_path), tmp_path / "model.pt")
    arguments = ["convert", "--source", f"path:{tmp_path / 'model.pt'}", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f'kind = "speech-transformer", dim = {TINY.dim}, sources = ["path:{tmp_path / "out"}"]' in result.stderr
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def spec(folder: Path, stack: int = 1) -> EncoderSpec:
    return EncoderSpec("emotions", "speech-transformer", TINY.dim, stack, (f"path:{folder}",))


def test_a_recipe_s_features_are_the_network_s(tmp_path: Path) -> None:
    encoder = spec(write_tiny_emotion2vec(tmp_path / "model"))
    network = load_speech(encoder, CPU)
    cut = {f"clip{n}": wave for n, wave in enumerate(noise(8_000, 5_000, 12_345))}
    found = speech_pass(network, cut, encoder)
    reference = SpeechFrames(SpeechEncoder(tiny_emotion2vec()), True, CPU)
    for name, wave in cut.items():
        (expected,) = reference([wave])
        np.testing.assert_allclose(found[name].astype(np.float32), expected, atol=2e-3, rtol=2e-3)
    with pytest.raises(RecipeError, match="frames of width 24, not dim = 768"):
        load_speech(replace(encoder, dim=768), CPU)


@pytest.mark.timeout(900)
def test_it_is_exported_with_parity_and_served(tmp_path: Path) -> None:
    """At the shortest length, a frame's edge and around it, bucket edges and the longest; alone, in batches, padded."""
    encoder = spec(write_tiny_emotion2vec(tmp_path / "model"), stack=2)
    write_ctranslate2(tiny_whisper(), tmp_path / "whisper", None)
    write_tiny_text_encoder(tmp_path / "text")
    beside = tiny_encoders(f"path:{tmp_path / 'whisper'}", f"path:{tmp_path / 'text'}")
    ensemble = replace(
        tiny_spec((*beside, encoder)),
        members=(
            tiny_member("a", ("emotions", "text"), layers=1),
            replace(tiny_member("b", ("emotions", "text"), layers=1, seed=2), family="vga", attention="vad-guided"),
        ),
    )
    save_checkpoint(tmp_path / "checkpoint", tiny_checkpoint(ensemble))
    write_bundle(tmp_path / "checkpoint", tmp_path / "bundle", precisions=Precisions.parse(["encoders=fp32"]))
    bundle = read_bundle(tmp_path / "bundle")
    served = bundle.spec.encoder("emotions")
    assert (served.standardised, served.equal_lengths) == (True, False)
    assert bundle.manifest.parity["encoder emotions, float32"] <= LIMIT
    reference, session = reference_of(encoder), make_session(bundle.path / graph_file(served), threads=1)
    edge = SHORTEST + 20 * HOP
    audio = noise(SHORTEST, SHORTEST + 1, edge - 1, edge, edge + 1, BUCKET, BUCKET + 1)
    expected = reference.expected([*audio, *noise(MAX_UTTERANCE)])
    alone = [reference.found(session, [wave])[0] for wave in [*audio, *noise(MAX_UTTERANCE)]]
    assert relative(expected, alone) <= LIMIT
    assert relative(expected[:-1], reference.found(session, audio)) <= LIMIT
    for extra in (1, HOP, 5 * HOP):
        assert relative(expected[2:5], reference.found(session, audio[2:5], extra)) <= LIMIT
    together: Sequence[Any] = OnnxSpeechEncoder(bundle, served, threads=1).encode(audio)
    assert relative(expected[:-1], together) <= LIMIT


def test_what_the_documentation_has_a_recipe_say_is_an_encoder_of_its_base_size() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```toml\n(\[encoders\.emotion\]\n.*?)```", text, re.DOTALL)
    encoder = EncoderConfig.model_validate(tomllib.loads(shown)["encoders"]["emotion"])
    assert (encoder.kind, encoder.dim) == ("speech-transformer", Layout().dim)
    assert set(encoder.supervised_on) <= READERS.keys(), "names that figures are marked by"
    assert len(encoder.supervised_on) == len(READERS) - 1, "all but a table of one's own"
