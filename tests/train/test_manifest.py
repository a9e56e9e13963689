from collections.abc import Iterable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.labels import CLASS_INDEX, CLASSES
from tests.train.synthetic import make_clip
from train.errors import CorpusError, LeakageError
from train.manifest import (
    Clip,
    Manifest,
    Split,
    assert_disjoint,
    dominant,
    dominant_class,
    leave_one_fold_out,
    leave_one_session_out,
    published_split,
    rescale,
    speaker_folds,
    split_speakers,
    target,
    unknown_speaker,
)

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
    for dev, held in ((both, test), (train, both), (both, Manifest(()))):
        with pytest.raises(LeakageError, match=r"share the speakers \['cremad-100[12]'\]: split by speaker"):
            Split(train=train, dev=dev, test=held)
    with pytest.raises(LeakageError, match="fold 0 and fold 2"):
        assert_disjoint({"fold 0": train, "fold 1": test, "fold 2": train})


@given(st.integers(3, 12), st.integers(3, 12), st.integers(0, 5))
def test_every_speaker_is_tested_in_one_fold_and_never_trained_there(speakers: int, folds: int, seed: int) -> None:
    manifest = corpus(speakers)
    if folds > speakers:
        with pytest.raises(CorpusError, match=f"got {folds} folds of {speakers} speakers"):
            leave_one_fold_out(manifest, folds, seed)
        return
    splits = leave_one_fold_out(manifest, folds, seed)
    tested = [name for split in splits for name in split.test.speakers]
    assert sorted(tested) == manifest.speakers
    for split, following in zip(splits, [*splits[1:], splits[0]], strict=True):
        assert split.dev == following.test
        clips = [clip for part in split.parts.values() for clip in part.clips]
        assert sorted(clips, key=lambda clip: clip.id) == sorted(manifest.clips, key=lambda clip: clip.id)
        assert not set(split.train.speakers) & {*split.test.speakers, *split.dev.speakers}


def test_folds_of_speakers_need_speakers() -> None:
    manifest = corpus(5)
    unnamed = replace(manifest.clips[0], speaker_known=False)
    with pytest.raises(CorpusError, match="1 clips tell no speaker"):
        leave_one_fold_out(Manifest((unnamed, *manifest.clips[1:])), 3, 0)


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


@pytest.mark.parametrize(
    ("heard", "other", "expected"),
    [
        ({"sad": 3.0, "angry": 1.0}, 2.0, "sad"),
        ({"sad": 3.0, "angry": 1.0}, 3.0, None),
        ({"sad": 1.0}, 4.0, None),
        (TIE, 0.0, None),
    ],
)
def test_votes_for_other_emotions_can_undo_a_consensus(
    heard: dict[str, float], other: float, expected: str | None
) -> None:
    clip = replace(make_clip(votes=heard), other_votes=other)
    assert dominant_class(clip, 0.0) == (None if expected is None else CLASS_INDEX[expected])
    np.testing.assert_array_equal(target(clip, 0.0), target(make_clip(votes=heard), 0.0))


def test_the_actor_counts_in_the_dominant_class() -> None:
    clip = make_clip(votes=TIE, intended="sad")
    assert dominant_class(clip, 0.0) is None
    assert dominant_class(clip, 1.0) == CLASS_INDEX["sad"]


@pytest.mark.parametrize(
    ("intended", "consensus", "label"),
    [("sad", "angry", "sad"), (None, "angry", "angry"), (None, None, None), ("fear", None, "fear")],
)
def test_the_label_is_what_was_meant_else_what_was_agreed(
    intended: str | None, consensus: str | None, label: str | None
) -> None:
    assert replace(make_clip(intended=intended), consensus=consensus).label == label


@given(st.floats(-10, 10), st.floats(0.5, 20), st.floats(0, 1))
def test_a_scale_is_mapped_linearly_to_1_7(low: float, width: float, share: float) -> None:
    assert rescale(low + share * width, low, low + width) == pytest.approx(1 + 6 * share, abs=1e-6)
    assert np.isnan(rescale(float("nan"), low, low + width))


def of_parts(*rows: tuple[str, str]) -> Manifest:
    """A clip for every (speaker, published part)."""
    return Manifest(tuple(replace(make_clip(f"clip-{i}", s), split=part) for i, (s, part) in enumerate(rows)))


def speakers_of(parts: Iterable[Manifest]) -> list[list[str]]:
    return [part.speakers for part in parts]


def test_the_published_split_is_taken_as_published() -> None:
    manifest = of_parts(("a", "train"), ("b", "dev"), ("c", "test1"), ("d", "test2"), ("e", "extra"), ("f", ""))
    split = published_split(manifest)
    assert speakers_of(parts_of(split)) == [["a"], ["b"], ["c", "d"]]
    assert split.dropped == {"published part 'extra' not asked for": 1, "in no published part": 1}
    one = published_split(manifest, test=("test2",))
    assert speakers_of(parts_of(one)) == [["a"], ["b"], ["d"]]
    assert one.dropped["published part 'test1' not asked for"] == 1


def test_a_development_part_may_be_drawn_from_the_training_speakers() -> None:
    manifest = of_parts(*((f"s{n}", "train") for n in range(10)), ("t", "dev"))
    split = published_split(manifest, dev=(), test=("dev",), dev_fraction=0.2, seed=1)
    assert [len(part.speakers) for part in parts_of(split)] == [8, 2, 1]
    assert ids(*parts_of(split)) == ids(manifest)
    assert split.test.speakers == ["t"]
    assert split.dev.speakers != published_split(manifest, dev=(), test=("dev",), dev_fraction=0.2).dev.speakers


def test_a_published_part_that_is_not_there_is_named() -> None:
    manifest = of_parts(("a", "train"), ("b", "test3"))
    with pytest.raises(CorpusError, match=r"no clip for dev \(dev\): the corpus publishes test3, train"):
        published_split(manifest)
    with pytest.raises(CorpusError, match="the corpus publishes no split"):
        published_split(corpus(3))
    with pytest.raises(CorpusError, match=r"belongs to one side, got dev = \['dev'\], test = \['dev'\]"):
        published_split(manifest, test=("dev",))


def test_a_published_split_is_checked_and_its_overlap_named() -> None:
    manifest = of_parts(("a", "train"), ("b", "train"), ("a", "dev"), ("b", "test"), ("c", "test"))
    with pytest.raises(LeakageError) as caught:
        published_split(manifest)
    assert "train and dev share the speakers ['a']; train and test share the speakers ['b']" in str(caught.value)
    split = published_split(manifest, allow_overlap=True)
    assert split.shared == {"train and dev": ["a"], "train and test": ["b"]}


def unnamed(id: str, session: str) -> Clip:
    voice = make_clip(id, unknown_speaker("cremad", session))
    return replace(voice, session=session, speaker_known=False)


@given(st.integers(0, 20))
def test_unknown_voices_only_train_and_never_beside_a_held_out_speaker(seed: int) -> None:
    named = [replace(clip, session=f"show {clip.speaker[-1]}") for clip in corpus(6).clips]
    voices = [unnamed(f"x{number}", f"show {number}") for number in range(8)]
    split = split_speakers(Manifest((*named, *voices)), 0.2, 0.2, seed)
    held = {clip.session for part in (split.dev, split.test) for clip in part.clips}
    assert all(clip.speaker_known for part in (split.dev, split.test) for clip in part.clips)
    kept = [clip for clip in split.train.clips if not clip.speaker_known]
    assert len(held) == 2
    assert {clip.session for clip in kept} == {clip.session for clip in voices} - held
    assert split.dropped == {"unknown speaker in a recording of a held-out speaker": 2}
    assert split.of_unknown_speaker == {"train": 6}


def test_unknown_voices_do_not_change_who_is_held_out() -> None:
    named, voices = corpus(12), tuple(unnamed(f"x{number}", "") for number in range(30))
    alone, beside = (split_speakers(m, 0.2, 0.3, 5) for m in (named, Manifest((*named.clips, *voices))))
    assert speakers_of((alone.dev, alone.test)) == speakers_of((beside.dev, beside.test))
    assert len(beside.train.clips) == len(alone.train.clips) + 30


def test_without_known_speakers_there_is_no_split_by_speaker() -> None:
    with pytest.raises(CorpusError, match="no clip tells its speaker"):
        split_speakers(Manifest((unnamed("x", "show"),)), 0.1, 0.1, 0)


def test_leaving_sessions_out_needs_three_of_them() -> None:
    two = Manifest(tuple(replace(make_clip(str(n), str(n)), session=f"s{n}") for n in range(2)))
    with pytest.raises(CorpusError, match=r"needs three sessions and one for every clip, got \['s0', 's1'\]"):
        leave_one_session_out(two)
