from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.labels import CLASS_INDEX, CLASSES
from tests.train.synthetic import make_clip
from train.errors import LeakageError
from train.manifest import Clip, Manifest, Split, assert_disjoint, dominant, speaker_folds, split_speakers, target

TIE = {"angry": 2.0, "sad": 2.0}


def corpus(speakers: int, clips_each: int = 3) -> Manifest:
    """Clips of numbered speakers; the last clip of each has no consensus."""
    return Manifest(
        tuple(
            make_clip(f"{1000 + s}_{c}", f"cremad-{1000 + s}", TIE if c == clips_each - 1 else None)
            for s in range(speakers)
            for c in range(clips_each)
        )
    )


def parts_of(split: Split) -> list[Manifest]:
    return [split.train, split.dev, split.test]


def ids(*parts: Manifest) -> list[str]:
    return sorted(clip.id for part in parts for clip in part.clips)


@given(st.integers(4, 40), st.integers(0, 5))
def test_a_split_is_disjoint_in_speakers_and_complete(speakers: int, seed: int) -> None:
    manifest = corpus(speakers)
    parts = parts_of(split_speakers(manifest, 0.15, 0.25, seed))
    assert ids(*parts) == ids(manifest)
    assert not any(set(a.speakers) & set(b.speakers) for a, b in combinations(parts, 2))
    assert [len(part.speakers) for part in parts[1:]] == [round(0.15 * speakers), round(0.25 * speakers)]


@given(st.integers(5, 30), st.integers(2, 5), st.integers(0, 5))
def test_folds_are_disjoint_in_speakers_and_complete(speakers: int, folds: int, seed: int) -> None:
    manifest = corpus(speakers)
    parts = speaker_folds(manifest, folds, seed)
    assert ids(*parts) == ids(manifest)
    assert not any(set(a.speakers) & set(b.speakers) for a, b in combinations(parts, 2))
    sizes = [len(part.speakers) for part in parts]
    assert len(sizes) == folds
    assert max(sizes) - min(sizes) <= 1


def test_a_seed_decides_the_split_and_nothing_else_does() -> None:
    manifest = corpus(20)
    shuffled = Manifest(tuple(reversed(manifest.clips[::2])))  # other clips of the same speakers, in another order
    first, again, other = (split_speakers(m, 0.1, 0.2, s) for m, s in ((manifest, 3), (shuffled, 3), (manifest, 4)))
    assert [part.speakers for part in parts_of(first)] == [part.speakers for part in parts_of(again)]
    assert first.test.speakers != other.test.speakers
    folds, same = speaker_folds(manifest, 4, 3), speaker_folds(shuffled, 4, 3)
    assert [fold.speakers for fold in folds] == [fold.speakers for fold in same]


def test_a_shared_speaker_is_leakage() -> None:
    both, train, test = (
        Manifest(tuple(make_clip(f"{speaker}_{index}", speaker) for index, speaker in enumerate(speakers)))
        for speakers in (("cremad-1001", "cremad-1002"), ("cremad-1001",), ("cremad-1002",))
    )
    Split(train=train, dev=Manifest(()), test=test)
    for parts in ({"dev": both, "test": test}, {"dev": train, "test": both}, {"dev": both, "test": Manifest(())}):
        with pytest.raises(LeakageError, match=r"share the speakers \['cremad-100[12]'\]: split by speaker"):
            Split(train=train, **parts)
    with pytest.raises(LeakageError, match="fold 0 and fold 2"):
        assert_disjoint({"fold 0": train, "fold 1": test, "fold 2": train})


def test_clips_without_consensus_are_kept() -> None:
    manifest = corpus(10)
    parts = parts_of(split_speakers(manifest, 0.2, 0.2, 0))
    for part in (*parts, *speaker_folds(manifest, 3, 0)):
        tied = [clip for clip in part.clips if dominant(target(clip, 0.0)) is None]
        assert len(tied) == len(part.speakers)


votes = st.lists(st.integers(0, 12), min_size=8, max_size=8).filter(any)


@given(votes, st.sampled_from([None, *CLASSES]), st.floats(0, 20))
def test_targets_are_the_votes_normalised(counts: list[int], intended: str | None, weight: float) -> None:
    clip = make_clip(votes=dict(zip(CLASSES, map(float, counts), strict=True)), intended=intended)
    expected = np.array(counts, np.float64)
    if intended is not None:
        expected[CLASS_INDEX[intended]] += weight
    found = target(clip, weight)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-6)
    assert found.sum() == pytest.approx(1.0, abs=1e-5)


def test_nobody_voted() -> None:
    silent = make_clip("1001_DFA_ANG_XX", votes={}, intended="angry")
    assert target(silent, 2.0)[CLASS_INDEX["angry"]] == 1.0
    with pytest.raises(ValueError, match="'1001_DFA_ANG_XX' has no votes"):
        target(silent, 0.0)


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ({"sad": 3.0, "angry": 2.0}, "sad"),
        (TIE, None),
        ({"angry": 1.0, "sad": 1.0, "neutral": 1.0}, None),
        ({"angry": 2.0, "fear": 3.0, "neutral": 3.0}, None),
        ({"contempt": 0.5}, "contempt"),
    ],
)
def test_a_tie_for_the_first_place_is_no_consensus(heard: dict[str, float], expected: str | None) -> None:
    clip: Clip = make_clip(votes=heard)
    assert dominant(target(clip, 0.0)) == (None if expected is None else CLASS_INDEX[expected])
