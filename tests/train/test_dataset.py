import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.labels import CLASS_INDEX, CLASSES
from tests.train.synthetic import ENCODERS, make_clip, make_examples
from train import dataset
from train.dataset import (
    HalfFrames,
    balanced_subset,
    batches_by_length,
    concatenate,
    examples_of,
    make_batch,
    mix_copies,
    passes_by_length,
    steps_of,
)
from train.errors import CorpusError

LABELS = ("angry", "sad", None, "happy", "angry", "neutral", "sad")


def frames_of(value: float) -> HalfFrames:
    return np.full((2, 3), value, np.float16)


def test_clips_and_features_are_joined_by_id() -> None:
    clips = [make_clip("a", "s1"), make_clip("b", "s2"), make_clip("c", "s1")]
    features = {"whisper": {"c": frames_of(3), "stray": frames_of(9), "a": frames_of(1), "b": frames_of(2)}}
    examples = examples_of(clips, features, 0.0)
    assert [rows[0, 0] for rows in examples.frames["whisper"]] == [1, 2, 3]
    assert examples.ids == ("a", "b", "c")
    assert examples.speakers == ("s1", "s2", "s1")


def test_a_missing_row_raises_and_shifts_nothing() -> None:
    with pytest.raises(KeyError, match="b"):
        examples_of([make_clip("a"), make_clip("b")], {"whisper": {"a": frames_of(1), "c": frames_of(3)}}, 0.0)


def test_labels_of_clips() -> None:
    nan = float("nan")
    clips = [
        make_clip("a", votes={"sad": 3.0, "angry": 1.0}, intended="sad", attributes=(2.0, nan, 6.5)),
        make_clip("b", votes={"sad": 1.0, "angry": 1.0}),
    ]
    examples = examples_of(clips, {}, 4.0)
    assert examples.targets[0, CLASS_INDEX["sad"]] == pytest.approx(7 / 8)
    np.testing.assert_array_equal(examples.attributes, np.array([[2.0, nan, 6.5], [nan] * 3], np.float32))
    assert examples.intended.tolist() == [CLASS_INDEX["sad"], -1]
    assert examples.dominant.tolist() == [CLASS_INDEX["sad"], -1]


def test_a_subset_keeps_rows_together() -> None:
    examples = make_examples(LABELS)
    subset = examples.subset([5, 0, 0])
    assert subset.ids == tuple(examples.ids[i] for i in (5, 0, 0))
    assert subset.speakers == tuple(examples.speakers[i] for i in (5, 0, 0))
    assert subset.intended.tolist() == [CLASS_INDEX[name] for name in ("neutral", "angry", "angry")]
    for row, index in enumerate((5, 0, 0)):
        np.testing.assert_array_equal(subset.targets[row], examples.targets[index])
        np.testing.assert_array_equal(subset.attributes[row], examples.attributes[index])
        for name in ENCODERS:
            np.testing.assert_array_equal(subset.frames[name][row], examples.frames[name][index])


def test_a_batch_is_padded_and_masked() -> None:
    examples = make_examples(LABELS)
    batch = make_batch(examples, ENCODERS)
    for name, encoder in ENCODERS.items():
        lengths = [len(rows) for rows in examples.frames[name]]
        assert batch.frames[name].dtype == torch.float32
        assert batch.frames[name].shape[1] % encoder.stack == 0
        assert batch.masks[name].sum(dim=1).tolist() == lengths
        assert not batch.frames[name][~batch.masks[name]].any()


def test_missing_attributes_are_masked_and_not_filled() -> None:
    examples = make_examples(LABELS)
    labels = make_batch(examples, ENCODERS).labels
    assert labels.rated.tolist() == (~np.isnan(examples.attributes)).tolist()
    assert labels.rated.sum(dim=0).tolist() == [7, 4, 0]
    assert torch.isfinite(labels.attributes).all()
    np.testing.assert_array_equal(labels.classes.numpy(), examples.targets)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=150), st.integers(1, 20), st.integers(0, 9))
def test_batches_hold_every_example_once(lengths: list[int], size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = list(batches_by_length(rng.permutation(len(lengths)), np.array(lengths), size, rng))
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert max(map(len, batches)) <= size
    assert len(batches) <= -(-len(lengths) // size) + len(lengths) // (8 * size) + 1


def test_batches_hold_similar_lengths_in_a_random_order() -> None:
    lengths = np.random.default_rng(0).permutation(160)
    rng = np.random.default_rng(1)
    first, second = (list(batches_by_length(rng.permutation(160), lengths, 10, rng)) for _ in range(2))
    assert np.mean([np.ptp(lengths[batch]) for batch in first]) < 30  # unsorted: about 130
    assert [batch.tolist() for batch in first] != [batch.tolist() for batch in second]
    assert sorted(map(np.mean, first)) != list(map(np.mean, first))


def test_every_example_is_one_of_its_copies() -> None:
    copies = [make_examples(LABELS * 20, seed) for seed in (0, 1, 2)]
    rng = np.random.default_rng(0)
    drawn, again = (mix_copies(copies, rng) for _ in range(2))
    origins = []
    for row in range(len(drawn)):
        held = [c for c, copy in enumerate(copies) if drawn.frames["whisper"][row] is copy.frames["whisper"][row]]
        assert len(held) == 1
        origins += held
        assert all(drawn.frames[name][row] is copies[held[0]].frames[name][row] for name in ENCODERS)
    assert min(np.bincount(origins)) > len(drawn) / 6
    assert any(a is not b for a, b in zip(drawn.frames["whisper"], again.frames["whisper"], strict=True))
    assert drawn.ids == copies[0].ids
    np.testing.assert_array_equal(drawn.targets, copies[0].targets)


def test_joined_parts_keep_their_rows_together() -> None:
    parts = [make_examples(LABELS, 0), make_examples(LABELS[:2], 1)]
    joined = concatenate(parts)
    assert joined.ids == parts[0].ids + parts[1].ids
    assert len(joined) == len(joined.speakers) == len(joined.targets) == len(joined.attributes) == 9
    for name in ENCODERS:
        assert joined.frames[name][8] is parts[1].frames[name][1]
    np.testing.assert_array_equal(joined.targets[7:], parts[1].targets)
    np.testing.assert_array_equal(joined.intended[7:], parts[1].intended)


classes = st.lists(st.integers(-1, 4), min_size=1, max_size=120).map(np.array).filter(lambda rows: (rows >= 0).any())


@given(classes, st.integers(0, 9))
def test_a_balanced_subset_has_equally_many_of_each_class(rows: np.ndarray, seed: int) -> None:
    drawn = balanced_subset(rows, np.random.default_rng(seed))
    assert len(set(drawn.tolist())) == len(drawn)
    size = min(int((rows == label).sum()) for label in set(rows.tolist()) - {-1})
    for label in set(rows.tolist()) - {-1}:
        assert (rows[drawn] == label).sum() == size
    assert (rows[drawn] == -1).sum() == min(size, int((rows == -1).sum()))


def test_a_balanced_subset_needs_a_class() -> None:
    with pytest.raises(CorpusError, match="none of 3 clips has a class that most of its raters heard"):
        balanced_subset(np.full(3, -1), np.random.default_rng(0))


def test_classes_have_one_order() -> None:
    targets = np.eye(8, dtype=np.float32)
    clips = [make_clip(name, votes={name: 1.0}) for name in CLASSES]
    np.testing.assert_array_equal(examples_of(clips, {}, 0.0).targets, targets)


# Passes.


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=80))
def test_passes_hold_every_row_once_and_cost_no_more_than_one_pass(steps: list[int]) -> None:
    rows, count = passes_by_length(np.array(steps)), np.array(steps)
    assert sorted(np.concatenate(rows)) == list(range(len(steps)))
    assert all(len(part) for part in rows)
    work = sum(len(part) * count[part].max() + dataset._PASS_STEPS for part in rows)
    assert work <= len(steps) * count.max() + dataset._PASS_STEPS


def test_long_rows_do_not_pad_short_ones() -> None:
    rows = passes_by_length(np.array([10, 900, 11, 880, 12] * 4))
    assert sorted(sorted(part % 5) for part in rows) == [[0] * 4 + [2] * 4 + [4] * 4, [1] * 4 + [3] * 4]
    assert len(passes_by_length(np.array([30, 31, 32, 30]))) == 1


def test_steps_are_those_of_all_modalities() -> None:
    frames = {"whisper": [np.zeros((5, 6), np.float16), np.zeros((0, 6), np.float16)], "text": [frames_of(1)] * 2}
    assert steps_of(frames, {name: ENCODERS[name] for name in frames}).tolist() == [3 + 2, 2]
