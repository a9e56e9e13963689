import shutil
from dataclasses import replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import pytest
import torch

from model.audio import MEL_HOP, WHISPER_HOP, frame_count
from model.features import functionals
from model.network.encoders import load_text_encoder
from model.recording import read_mono
from model.spec import EncoderSpec
from model.text import TextTokenizer
from tests.fakes import voice
from tests.model.tiny import TEXT_DIM, WORDS, write_tiny_text_encoder
from tests.model.tiny_speech import SPEECH_DIM, write_tiny_speech
from tests.train.synthetic import RECIPES, make_clip, write_wav
from train.cache import encoder_key, pinned
from train.config import load_recipe
from train.cutting import cut_clip
from train.encoding import load_speech
from train.errors import RecipeError
from train.execution import CPU
from train.features import Extraction, extract_speech, extract_text
from train.manifest import Clip
from train.transcribing import load_whisper

PITCHES_HZ = (100.0, 150.0, 220.0)
Calls = list[tuple[str, int, int]]


class Killed(Exception):
    """A run that ends in the middle."""


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


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
    found = extract_speech(clips, Extraction(encoders, cache, lambda *call: calls.append(call)))
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
    again = extract_speech(list(reversed(clips)), Extraction(encoders, cache, lambda *call: calls.append(call)))
    assert calls == []
    assert times(cache) == before
    assert again.transcripts == found.transcripts
    for modality, frames in found.frames.items():
        for clip in clips:
            np.testing.assert_array_equal(again.frames[modality][clip.id], frames[clip.id])


def test_neighbours_do_not_change_features(
    clips: list[Clip], encoders: dict[str, EncoderSpec], cache: Path, tmp_path: Path
) -> None:
    together = extract_speech(clips, Extraction(encoders, cache, lambda *call: None))
    alone = extract_speech(clips[1:2], Extraction(encoders, tmp_path, lambda *call: None))
    for modality in encoders:
        expected = together.frames[modality]["clip1"].astype(np.float32)
        np.testing.assert_allclose(alone.frames[modality]["clip1"], expected, atol=0.02)
    assert alone.transcripts["clip1"] == together.transcripts["clip1"]


def test_degraded_copies_are_kept_apart_and_transcribed_only_where_words_are_wanted(
    clips: list[Clip], encoders: dict[str, EncoderSpec], cache: Path
) -> None:
    clean = extract_speech(clips, Extraction(encoders, cache, lambda *call: None))
    before, calls = times(cache), Calls()
    copies = [
        extract_speech(clips[:2], Extraction(encoders, cache, lambda *call: calls.append(call)), copy, transcribe=False)
        for copy in (1, 2, 1)
    ]
    assert len(calls) == 2  # the third is read
    assert before.items() < times(cache).items()
    assert [copy.transcripts for copy in copies] == [copy.confidence for copy in copies] == [{}] * 3
    for modality in encoders:
        first, second, again = (copy.frames[modality]["clip0"] for copy in copies)
        np.testing.assert_array_equal(first, again)
        assert first.shape[1] == clean.frames[modality]["clip0"].shape[1]
        assert len({values.tobytes() for values in (first, second, clean.frames[modality]["clip0"])}) == 3
    heard = extract_speech(clips[:2], Extraction(encoders, cache, lambda *call: None), 1)
    assert heard.transcripts.keys() == {"clip0", "clip1"}
    np.testing.assert_array_equal(heard.frames["whisper"]["clip0"], copies[0].frames["whisper"]["clip0"])
    unchanged = extract_speech(clips, Extraction(encoders, cache, lambda *call: None))
    assert unchanged.transcripts == clean.transcripts
    np.testing.assert_array_equal(unchanged.frames["whisper"]["clip0"], clean.frames["whisper"]["clip0"])


def test_confidence_of_words_is_kept_beside_them_and_unknown_in_older_caches(
    clips: list[Clip], encoders: dict[str, EncoderSpec], tmp_path: Path
) -> None:
    """A cache that has words alone is not transcribed again; clips that are new to it are, and theirs is known."""
    calls: Calls = []
    how = Extraction(encoders, tmp_path, lambda *call: calls.append(call))
    found = extract_speech(clips[:2], how)
    whisper = load_whisper(pinned(encoders["whisper"]))
    for clip in clips[:2]:
        (heard,) = whisper.transcribe(whisper.encode([cut_clip(read_mono(clip.audio))]))
        expected = (heard.log_probability, heard.no_speech, heard.trusted)
        np.testing.assert_allclose(found.confidence[clip.id], expected, rtol=1e-3)
    (kept,) = tmp_path.glob("*-words-confidence")
    shutil.rmtree(kept)
    calls.clear()
    older = extract_speech(clips[:2], how)
    assert calls == []
    assert older.transcripts == found.transcripts
    assert all(np.isnan(values).all() for values in older.confidence.values())
    grown = extract_speech(clips, how)
    assert [total for _, _, total in calls] == [1]  # the third; the fourth is a copy of the first
    known = {clip: bool(np.isfinite(values).all()) for clip, values in grown.confidence.items()}
    assert known == {"clip0": False, "clip1": False, "clip2": True, "clip3": False}


def test_functionals_are_computed_once_from_what_is_cached(
    clips: list[Clip], encoders: dict[str, EncoderSpec], cache: Path
) -> None:
    """They are kept like all frames, apart for every copy; other frames below them are other functionals."""
    three = encoders | {"functionals": load_recipe(RECIPES / "default.toml").encoder_specs()["functionals"]}
    calls: Calls = []
    how = Extraction(three, cache, lambda *call: calls.append(call))
    for copy in (0, 1):
        found = extract_speech(clips, how, copy).frames
        for clip in clips:
            read = (found[name][clip.id].astype(np.float32) for name in ("whisper", "prosody"))
            np.testing.assert_array_equal(found["functionals"][clip.id], functionals(*read).astype(np.float16))
    before = times(cache)
    assert ("functionals", 3, 3) in calls  # four clips, two of them the same recording
    calls.clear()
    again = extract_speech(clips, how).frames["functionals"]["clip0"]
    assert calls == []
    louder = three | {"prosody": replace(three["prosody"], revision="another")}
    other = extract_speech(clips, Extraction(louder, cache, lambda *call: None)).frames["functionals"]["clip0"]
    np.testing.assert_array_equal(other, again)
    assert sum("functionals" in str(path) for path in times(cache).keys() - before.keys()) == 1


def test_arithmetic_that_the_device_lacks_is_a_mistake_of_the_recipe(encoders: dict[str, EncoderSpec]) -> None:
    wrong = replace(encoders["whisper"], kind="whisper-ctranslate2", dim=384, states=(), compute_type="float8")
    with pytest.raises(RecipeError, match="'whisper' cannot run with compute_type 'float8' on cpu"):
        load_whisper(wrong)


# Speech transformers, tiny ones.


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, EncoderSpec]:
    """WavLM in float32, HuBERT in bfloat16."""
    specs = {}
    for name, arithmetic in (("wavlm", "float32"), ("hubert", "bfloat16")):
        folder = write_tiny_speech(tmp_path_factory.mktemp("speech") / name, name)
        specs[name] = EncoderSpec(
            name, "speech-transformer", SPEECH_DIM, 1, (f"path:{folder}",), compute_type=arithmetic
        )
    return specs


def test_every_audio_encoder_is_extracted(
    clips: list[Clip], encoders: dict[str, EncoderSpec], transformers: dict[str, EncoderSpec], cache: Path
) -> None:
    """Beside what was cached before, which stays as it was; whole utterances, a frame every 20 ms."""
    before = extract_speech(clips, Extraction(encoders, cache, lambda *call: None))
    files, calls = times(cache), Calls()
    found = extract_speech(clips, Extraction(encoders | transformers, cache, lambda *call: calls.append(call)))
    assert [(what, total) for what, _, total in calls] == [("speech features", 4)]
    assert files.items() < times(cache).items()
    for name, encoder in transformers.items():
        network = load_speech(encoder, CPU)
        for clip in clips:
            audio = cut_clip(read_mono(clip.audio))
            frames = found.frames[name][clip.id]
            assert frames.shape == ((len(audio) - 80) // WHISPER_HOP, SPEECH_DIM)
            assert frames.dtype == np.float16
            expected = network([audio])[0]
            error = np.linalg.norm(frames.astype(np.float32) - expected) / np.linalg.norm(expected)
            assert error < (1e-3 if encoder.compute_type == "float32" else 0.1)
    for name in encoders:
        np.testing.assert_array_equal(found.frames[name]["clip0"], before.frames[name]["clip0"])
    assert found.transcripts == before.transcripts
    calls.clear()
    again = extract_speech(clips[:2], Extraction(encoders | transformers, cache, lambda *call: calls.append(call)))
    assert calls == []
    np.testing.assert_array_equal(again.frames["wavlm"]["clip1"], found.frames["wavlm"]["clip1"])


def test_the_arithmetic_and_the_settings_are_part_of_the_name(
    transformers: dict[str, EncoderSpec], tmp_path: Path
) -> None:
    wavlm = transformers["wavlm"]
    raw = write_tiny_speech(tmp_path / "raw", "wavlm", normalise=False)
    others = [replace(wavlm, compute_type="bfloat16"), replace(wavlm, sources=(f"path:{raw}",))]
    keys = [encoder_key(pinned(encoder)) for encoder in (wavlm, *others)]
    assert len(set(keys)) == 3


def test_a_killed_extraction_continues_with_the_clips_that_it_lost(
    clips: list[Clip],
    encoders: dict[str, EncoderSpec],
    transformers: dict[str, EncoderSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("train.features._SHARD", 2)
    all_encoders = encoders | transformers

    def killed_after_the_first(*call: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        extract_speech(clips, Extraction(all_encoders, tmp_path, killed_after_the_first))
    before, calls = times(tmp_path), Calls()
    found = extract_speech(clips, Extraction(all_encoders, tmp_path, lambda *call: calls.append(call)))
    assert [total for _, _, total in calls] == [1]  # of three recordings, two were kept
    assert before.items() <= times(tmp_path).items()
    assert set(found.frames["hubert"]) == {clip.id for clip in clips}


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
