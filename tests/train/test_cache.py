import mmap
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model import audio
from model.sources import SourceError, sha256_of
from model.spec import EncoderSpec
from train import cutting
from train.cache import Cache, encoder_key, let_go, pinned

ROOT = Path(__file__).parents[2]


def arrays(*names: str) -> dict[str, np.ndarray]:
    return {name: np.full((3, 2), len(name), np.float16) for name in names}


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
        {"kind": "whisper-onnx", "states": (2, 4)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_changed_encoder_has_another_key(change: Mapping[str, object]) -> None:
    assert encoder_key(replace(WHISPER, **change)) != encoder_key(WHISPER)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["PRE_PAD", "POST_PAD", "BUCKET_MARGIN", "MIN_UTTERANCE", "MAX_UTTERANCE"])
def test_changed_cutting_and_padding_rules_have_another_key(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoder_key(WHISPER)
    monkeypatch.setattr(audio, rule, getattr(audio, rule) + 160)
    assert encoder_key(WHISPER) != before


@pytest.mark.parametrize(
    "change",
    [{"onset": 0.6}, {"offset": 0.3}, {"min_speech_ms": 128}, {"endpoint_silence_ms": 700}],
    ids=lambda change: next(iter(change)),
)
def test_changed_endpointing_has_another_key(change: Mapping[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoder_key(WHISPER)
    monkeypatch.setattr(cutting, "RULES", replace(cutting.RULES, **change))  # type: ignore[arg-type]  # int and float
    assert encoder_key(WHISPER) != before


def test_keys_stay_as_they_are() -> None:
    """A cache of hours is lost with them. What an export notes of a checkpoint is no part: its hash is."""
    assert encoder_key(WHISPER) == "whisper-4d059e0b9097"
    wavlm = EncoderSpec("wavlm", "speech-transformer", 8, 1, sha256="00")
    assert encoder_key(replace(wavlm, standardised=True, equal_lengths=True)) == encoder_key(wavlm)


def test_a_member_s_step_is_no_matter_of_the_encoder() -> None:
    assert encoder_key(replace(WHISPER, stack=4)) == encoder_key(WHISPER)
    assert encoder_key(WHISPER).startswith("whisper-")


def test_changed_bucket_steps_have_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = encoder_key(WHISPER)
    monkeypatch.setattr(audio, "BUCKET_STEPS", (8_000, 32_000))
    assert encoder_key(WHISPER) != before


def test_words_do_not_depend_on_how_audio_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    words = EncoderSpec("text", "text-transformer", 12, 1, ("path:text",))
    before = encoder_key(words)
    monkeypatch.setattr(audio, "PRE_PAD", 0)
    assert encoder_key(words) == before


def write_weights(folder: Path, content: bytes) -> EncoderSpec:
    folder.mkdir()
    (folder / "model.bin").write_bytes(content)
    return replace(WHISPER, sources=(f"path:{folder}",))


def test_other_weights_in_the_same_place_have_another_key(tmp_path: Path) -> None:
    """And the same weights in another place the same one."""
    first, moved, other = (write_weights(tmp_path / name, name[:1].encode()) for name in ("a", "a2", "b"))
    assert pinned(first).sha256 == sha256_of(tmp_path / "a" / "model.bin")
    assert encoder_key(pinned(first)) == encoder_key(pinned(moved)) != encoder_key(pinned(other))


def test_weights_that_are_nowhere_are_named() -> None:
    with pytest.raises(SourceError, match="package:a/model"):
        pinned(WHISPER)


def test_an_encoder_without_weights_needs_none() -> None:
    prosody = EncoderSpec("prosody", "prosody", 4, 16)
    assert pinned(prosody) == prosody


# Reading.


def test_arrays_are_maps_of_their_files(tmp_path: Path) -> None:
    """Of every kind that is cached, also one without rows, and nobody can change them."""
    rng = np.random.default_rng(0)
    kept: dict[str, np.ndarray] = {
        "words": np.frombuffer(b"odd", np.uint8),
        "frames": rng.standard_normal((7, 5)).astype(np.float16),
        "none": np.zeros((0, 5), np.float16),
    }
    cache = Cache(tmp_path)
    cache.add(kept)
    for name, array in cache.read(["none", "frames", "words"]).items():
        owner: object = array.base
        assert isinstance(owner, mmap.mmap)
        assert array.dtype == kept[name].dtype
        np.testing.assert_array_equal(array, kept[name])
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_what_was_let_go_is_read_again(tmp_path: Path) -> None:
    cache, rng = Cache(tmp_path), np.random.default_rng(0)
    kept = {str(n): rng.standard_normal((n, 3)).astype(np.float16) for n in (0, 1, 900, 2000)}
    cache.add(kept)
    found, own = cache.read(list(kept)), np.arange(5)
    for _ in range(2):
        let_go([*found.values(), own])  # of an array that is no map, nothing is taken
        for name, array in found.items():
            np.testing.assert_array_equal(array, kept[name])
    assert own.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_reads_a_cache_holds_a_few_batches(tmp_path: Path) -> None:
    """60 shards of 2 MB; a batch is 0.5 MB. It may open no file more than it has, were it not for the maps."""
    cache, values = Cache(tmp_path), np.random.default_rng(0).standard_normal((64, 256)).astype(np.float16)
    for shard in range(60):
        cache.add({f"{shard:03d}-{row:03d}": np.roll(values, row) for row in range(64)})
    program = [sys.executable, "-m", "tests.train.resident_program", str(tmp_path)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, shards = map(int, done.stdout.split())
    assert shards == 60
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) > 120_000_000
    assert grown < 20_000_000
