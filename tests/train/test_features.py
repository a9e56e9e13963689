from collections.abc import Mapping
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch

from model import audio
from model.audio import MAX_UTTERANCE, MEL_HOP, MIN_UTTERANCE, POST_PAD, PRE_PAD, VAD_WINDOW, WHISPER_HOP, frame_count
from model.network.encoders import load_text_encoder
from model.recording import read_mono
from model.spec import EncoderSpec
from model.text import TextTokenizer
from tests.fakes import silence, voice
from tests.model.tiny import TEXT_DIM, WORDS, write_tiny_text_encoder
from tests.train.synthetic import RECIPES, make_clip, write_wav
from train.config import load_recipe
from train.features import Cache, cut_clip, encoder_key, extract_speech, extract_text
from train.manifest import Clip

PITCHES_HZ = (100.0, 150.0, 220.0)
Calls = list[tuple[str, int, int]]


class Killed(Exception):
    """A run that ends in the middle."""


def arrays(*names: str) -> dict[str, np.ndarray]:
    return {name: np.full((3, 2), len(name), np.float16) for name in names}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


# Cutting.


def test_a_clip_is_cut_as_the_daemon_cuts_it() -> None:
    speech = voice(1.0)
    cut = cut_clip(np.concatenate([silence(1.0), speech, silence(1.0)]))
    assert len(speech) - VAD_WINDOW < len(cut) <= len(speech) + PRE_PAD + POST_PAD + 4 * VAD_WINDOW
    assert np.abs(cut).max() == np.abs(speech).max()
    np.testing.assert_array_equal(cut[: PRE_PAD - 2 * VAD_WINDOW], 0.0)


def test_a_clip_without_speech_is_kept_whole() -> None:
    assert len(cut_clip(silence(1.3))) == len(silence(1.3))


def test_lengths_stay_within_what_is_scored() -> None:
    assert len(cut_clip(silence(0.1))) == MIN_UTTERANCE
    assert len(cut_clip(silence(21.0))) == MAX_UTTERANCE


# The cache.


def test_a_cache_gives_back_what_was_added(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.missing(["b", "a", "b"]) == ["b", "a"]
    cache.add(arrays("a", "bbb"))
    cache.add(arrays("cc"))
    for again in (cache, Cache(tmp_path)):
        assert again.missing(["a", "bbb", "cc", "d"]) == ["d"]
        found = again.read(["cc", "a"])
        assert {name: float(values[0, 0]) for name, values in found.items()} == {"cc": 2, "a": 1}


def test_a_shard_that_was_being_written_does_not_count(tmp_path: Path) -> None:
    Cache(tmp_path).add(arrays("a"))
    (shard,) = tmp_path.iterdir()
    (tmp_path / "0123456789abcdef.part").write_bytes(shard.read_bytes()[:40])
    assert Cache(tmp_path).missing(["a", "b"]) == ["b"]


WHISPER = EncoderSpec("whisper", "whisper-ctranslate2", 384, 8, ("package:a/model",), compute_type="int8")


@pytest.mark.parametrize(
    "change",
    [
        {"sources": ("package:b/model",)},
        {"revision": "2"},
        {"layer_rule": "last"},
        {"padding": "none"},
        {"compute_type": "float32"},
        {"dim": 512},
        {"sha256": "00"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_encoder_has_another_key(change: Mapping[str, object]) -> None:
    assert encoder_key(replace(WHISPER, **change)) != encoder_key(WHISPER)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["PRE_PAD", "POST_PAD", "BUCKET_MARGIN", "MIN_UTTERANCE"])
def test_changed_cutting_and_padding_rules_have_another_key(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoder_key(WHISPER)
    monkeypatch.setattr(audio, rule, getattr(audio, rule) + 160)
    assert encoder_key(WHISPER) != before


def test_a_member_s_step_is_no_matter_of_the_encoder() -> None:
    assert encoder_key(replace(WHISPER, stack=4)) == encoder_key(WHISPER)
    assert encoder_key(WHISPER).startswith("whisper-")


# Speech, through the encoders of the shipped recipe.


@pytest.fixture(scope="module")
def encoders() -> dict[str, EncoderSpec]:
    known = load_recipe(RECIPES / "default.toml").encoder_specs()
    return {name: known[name] for name in ("whisper", "prosody")}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Voices of three pitches and lengths; the fourth clip is a copy of the first."""
    folder = tmp_path_factory.mktemp("clips")
    for index, pitch in enumerate(PITCHES_HZ):
        write_wav(folder / f"clip{index}.wav", voice(0.5 + 0.2 * index, pitch))
    (folder / "clip3.wav").write_bytes((folder / "clip0.wav").read_bytes())
    return [replace(make_clip(f"clip{index}"), audio=folder / f"clip{index}.wav") for index in range(4)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_whole_utterances_are_encoded_once(clips: list[Clip], encoders: dict[str, EncoderSpec], cache: Path) -> None:
    """One pass over the whole utterance, and no short chunks: a frame every 20 ms, trimmed to the speech."""
    calls: Calls = []
    found = extract_speech(clips, encoders, cache, lambda *call: calls.append(call))
    assert calls
    for clip in clips:
        length = len(cut_clip(read_mono(clip.audio)))
        assert found.frames["whisper"][clip.id].shape == (frame_count(length, WHISPER_HOP), encoders["whisper"].dim)
        assert found.frames["prosody"][clip.id].shape == (frame_count(length, MEL_HOP), encoders["prosody"].dim)
        assert found.frames["whisper"][clip.id].dtype == np.float16
        assert np.isfinite(found.frames["whisper"][clip.id]).all()
    assert found.transcripts["clip0"] == found.transcripts["clip3"]
    before = times(cache)
    calls.clear()
    again = extract_speech(list(reversed(clips)), encoders, cache, lambda *call: calls.append(call))
    assert calls == []
    assert times(cache) == before
    assert again.transcripts == found.transcripts
    for modality, frames in found.frames.items():
        for clip in clips:
            np.testing.assert_array_equal(again.frames[modality][clip.id], frames[clip.id])


def test_neighbours_do_not_change_features(
    clips: list[Clip], encoders: dict[str, EncoderSpec], cache: Path, tmp_path: Path
) -> None:
    together = extract_speech(clips, encoders, cache, lambda *call: None)
    alone = extract_speech(clips[1:2], encoders, tmp_path, lambda *call: None)
    for modality in encoders:
        expected = together.frames[modality]["clip1"].astype(np.float32)
        np.testing.assert_allclose(alone.frames[modality]["clip1"], expected, atol=0.02)
    assert alone.transcripts["clip1"] == together.transcripts["clip1"]


def test_degraded_copies_are_kept_apart_and_not_transcribed(
    clips: list[Clip], encoders: dict[str, EncoderSpec], cache: Path
) -> None:
    clean = extract_speech(clips, encoders, cache, lambda *call: None)
    before, calls = times(cache), Calls()
    copies = [extract_speech(clips[:2], encoders, cache, lambda *call: calls.append(call), copy) for copy in (1, 2, 1)]
    assert len(calls) == 2  # the third is read
    assert before.items() < times(cache).items()
    assert [copy.transcripts for copy in copies] == [{}] * 3
    for modality in encoders:
        first, second, again = (copy.frames[modality]["clip0"] for copy in copies)
        np.testing.assert_array_equal(first, again)
        assert first.shape[1] == clean.frames[modality]["clip0"].shape[1]
        assert len({values.tobytes() for values in (first, second, clean.frames[modality]["clip0"])}) == 3
    unchanged = extract_speech(clips, encoders, cache, lambda *call: None)
    np.testing.assert_array_equal(unchanged.frames["whisper"]["clip0"], clean.frames["whisper"]["clip0"])


# Words, through a tiny text encoder.


@pytest.fixture(scope="module")
def text_encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    folder = tmp_path_factory.mktemp("text")
    write_tiny_text_encoder(folder)
    return EncoderSpec("text", "text-transformer", TEXT_DIM, 1, (f"path:{folder}",))


def sentences(count: int) -> dict[str, str]:
    return {f"s{index}": " ".join(words) for index, words in enumerate(islice(product(WORDS, repeat=3), count))}


def test_special_tokens_are_left_out_and_real_ones_are_not(text_encoder: EncoderSpec, tmp_path: Path) -> None:
    texts = {"long": "i am so happy today !", "short": "no", "empty": ""}
    frames = extract_text(texts, text_encoder, tmp_path, lambda *call: None)
    assert {name: rows.shape for name, rows in frames.items()} == {
        "long": (6, TEXT_DIM),
        "short": (1, TEXT_DIM),
        "empty": (0, TEXT_DIM),
    }
    folder = Path(text_encoder.sources[0].removeprefix("path:"))
    tokens = TextTokenizer(folder / "tokenizer.json").encode([texts["long"]])
    with torch.no_grad():
        hidden = load_text_encoder(folder)(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask))[0].numpy()
    np.testing.assert_allclose(frames["long"], hidden[1:-1], atol=5e-3)  # alone, the first and the last real token kept


def test_a_killed_run_loses_one_shard(text_encoder: EncoderSpec, tmp_path: Path) -> None:
    texts, calls = sentences(700), Calls()

    def killed_after_the_first(*call: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        extract_text(texts, text_encoder, tmp_path, killed_after_the_first)
    before = times(tmp_path)
    frames = extract_text(texts, text_encoder, tmp_path, lambda *call: calls.append(call))
    assert len(frames) == 700
    assert [total for _, _, total in calls] == [700 - 512]
    assert times(tmp_path).items() > before.items()


def test_equal_texts_are_encoded_once(text_encoder: EncoderSpec, tmp_path: Path) -> None:
    calls = Calls()
    frames = extract_text({"a": "no !", "b": "no !"}, text_encoder, tmp_path, lambda *call: calls.append(call))
    assert calls == [("text features", 1, 1)]
    np.testing.assert_array_equal(frames["a"], frames["b"])
    extract_text({"c": "no !"}, text_encoder, tmp_path, lambda *call: calls.append(call))
    assert len(calls) == 1
