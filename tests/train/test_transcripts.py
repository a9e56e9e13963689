from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.spec import EncoderSpec
from model.transcript import Transcript
from train.cache import Array, Cache, encoder_key
from train.transcripts import CONFIDENCE, TranscriptCache

WHISPER = EncoderSpec("whisper", "whisper-ctranslate2", 384, 8, compute_type="int8")
SURE = Transcript("so ein schöner Tag", "de", -0.25, 0.125, trusted=True)
SILENT = Transcript("", "en", -1.5, 0.75, trusted=True)
DOUBTED = Transcript("no no no no", "en", -0.5, 0.25, trusted=False)
HEARD = {"a": SURE, "b": SILENT, "c": DOUBTED}
CLIPS = {"clip-c": "c", "clip-a": "a", "copy-of-a": "a", "clip-b": "b"}


class Killed(Exception):
    """A process that ends in the middle."""


def confidence_of(cache: TranscriptCache, names: Mapping[str, str] = CLIPS) -> dict[str, list[float]]:
    return {clip: values.tolist() for clip, values in cache.confidence(names).items()}


def test_words_are_kept_as_they_are_believed_and_confidence_as_it_was_heard(tmp_path: Path) -> None:
    TranscriptCache(tmp_path, WHISPER).add(HEARD)
    cache = TranscriptCache(tmp_path, WHISPER)
    assert cache.missing("abcd") == ["d"]
    assert cache.words(CLIPS) == {"clip-c": "", "clip-a": SURE.text, "copy-of-a": SURE.text, "clip-b": ""}
    assert CONFIDENCE == ("log_probability", "no_speech", "trusted")
    sure = [-0.25, 0.125, 1.0]
    assert confidence_of(cache) == {
        "clip-c": [-0.5, 0.25, 0.0],
        "clip-a": sure,
        "copy-of-a": sure,
        "clip-b": [-1.5, 0.75, 1.0],
    }
    assert {values.dtype for values in cache.confidence(CLIPS).values()} == {np.dtype(np.float32)}


def test_copies_keep_transcripts_of_their_own(tmp_path: Path) -> None:
    clean, copy = (TranscriptCache(tmp_path, WHISPER, suffix) for suffix in ("", "-degraded-1-1"))
    clean.add(HEARD)
    assert copy.missing("a") == ["a"]
    copy.add({"a": replace(DOUBTED, log_probability=-0.75)})
    assert confidence_of(copy, {"clip": "a"}) == {"clip": [-0.75, 0.25, 0.0]}
    assert confidence_of(clean, {"clip": "a"}) == {"clip": [-0.25, 0.125, 1.0]}


def test_words_of_before_confidence_was_kept_are_not_missing(tmp_path: Path) -> None:
    """The folder and the bytes are those of caches that exist."""
    words = {"a": np.frombuffer(SURE.text.encode(), np.uint8), "b": np.zeros(1, np.uint8)}
    Cache(tmp_path / f"{encoder_key(WHISPER)}-trusted-words").add(words)
    cache = TranscriptCache(tmp_path, WHISPER)
    assert cache.missing("abc") == ["c"]
    cache.add({"c": DOUBTED})
    assert cache.words(CLIPS) == {"clip-c": "", "clip-a": SURE.text, "copy-of-a": SURE.text, "clip-b": ""}
    found = cache.confidence(CLIPS)
    assert found["clip-c"].tolist() == [-0.5, 0.25, 0.0]
    for clip in ("clip-a", "copy-of-a", "clip-b"):
        np.testing.assert_array_equal(found[clip], np.full(3, np.nan))


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_kill_leaves_no_words_without_confidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Wherever it comes: before, between and after the two shards. What it left is completed."""
    left, add = written, Cache.add

    def until_killed(cache: Cache, arrays: Mapping[str, Array]) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        add(cache, arrays)

    with monkeypatch.context() as patched:
        patched.setattr(Cache, "add", until_killed)
        if written < 2:
            with pytest.raises(Killed):
                TranscriptCache(tmp_path, WHISPER).add(HEARD)
        else:
            TranscriptCache(tmp_path, WHISPER).add(HEARD)
    after = TranscriptCache(tmp_path, WHISPER)
    missing = after.missing(HEARD)
    assert missing == ([] if written == 2 else list(HEARD))
    if missing:
        after.add({name: HEARD[name] for name in missing})
    again = TranscriptCache(tmp_path, WHISPER)
    assert again.missing(HEARD) == []
    assert np.isfinite(list(again.confidence(CLIPS).values())).all()
