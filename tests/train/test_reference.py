"""What clips are held against: parts of a corpus put together."""

from dataclasses import replace

import numpy as np
import pytest

from model.labels import CLASSES
from tests.train.guessed import CLIPS, reference
from train.errors import RunError
from train.reference import VOTED, joined


def test_parts_are_joined_in_their_order() -> None:
    first, second = reference(), replace(reference(), ids=tuple(f"other-{n}" for n in range(CLIPS)))
    found = joined([first, second])
    assert found.ids == first.ids + second.ids
    assert found.truth.tolist() == first.truth.tolist() * 2
    assert found.attributes.shape == (2 * CLIPS, 3)
    assert (found.kind, found.votes) == (first.kind, None)


def test_votes_that_were_left_out_repeat_the_truth() -> None:
    """One part has raters who differ, the other none: that one's votes are its truth."""
    acted = reference()
    votes = np.full((CLIPS, len(CLASSES)), 1 / len(CLASSES))
    found = joined([acted, replace(reference(), votes=votes)])
    assert found.votes is not None
    known = acted.truth >= 0
    assert found.votes[:CLIPS][known].argmax(axis=1).tolist() == acted.truth[known].tolist()
    assert found.votes[:CLIPS].sum(axis=1).tolist() == known.astype(float).tolist()
    assert found.votes[CLIPS:].tolist() == votes.tolist()


def test_parts_that_are_held_against_different_things_are_refused() -> None:
    with pytest.raises(RunError, match="held against different things, acted emotion and dominant vote"):
        joined([reference(), replace(reference(), kind=VOTED)])
