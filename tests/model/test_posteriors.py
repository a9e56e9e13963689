import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.labels import CLASSES, class_mask
from model.posteriors import disagreement, posteriors_of

Row = npt.NDArray[np.float32]
MEMBERS = arrays(np.float32, st.tuples(st.integers(2, 6), st.just(8)), elements=st.floats(0.0078125, 1.0, width=32))


def posterior(*values: float) -> Row:
    return np.array(values, np.float32)


FLAT = np.full(8, 0.125, np.float32)
SURE = posterior(0.9, 0.1, 0, 0, 0, 0, 0, 0)


def test_probabilities_sum_to_one_exactly_enough_for_the_wire() -> None:
    result = posteriors_of(SURE * np.float32(0.999), np.ones(3, np.float32), FLAT[None], (), 0.0)
    assert sum(result.probabilities) == pytest.approx(1.0, abs=1e-12)
    assert result.top == "angry"
    assert result.confidence == pytest.approx(0.9, abs=1e-6)


def test_of_equal_classes_the_first_is_on_top() -> None:
    assert posteriors_of(FLAT, np.ones(3, np.float32), FLAT[None], (), 0.0).top == CLASSES[0]


def test_attributes_that_were_not_trained_are_unknown() -> None:
    values = posterior(2.0, 3.0, 4.0)
    assert posteriors_of(SURE, values, SURE[None], ("valence",), 0.0).attributes == (None, 3.0, None)


@pytest.mark.parametrize(("threshold", "abstained"), [(0.89, False), (0.91, True)])
def test_abstains_below_its_threshold(threshold: float, abstained: bool) -> None:
    assert posteriors_of(SURE, np.ones(3, np.float32), SURE[None], (), threshold).abstained is abstained


def test_a_failed_model_is_no_posterior() -> None:
    broken = SURE.copy()
    broken[2] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        posteriors_of(broken, np.ones(3, np.float32), SURE[None], (), 0.0)


@given(MEMBERS)
def test_disagreement_lies_between_none_and_all(members: npt.NDArray[np.float32]) -> None:
    normal = members / members.sum(axis=1, keepdims=True)
    assert 0.0 <= disagreement(normal) <= 1.0
    assert disagreement(np.repeat(normal[:1], 3, axis=0)) == pytest.approx(0.0, abs=1e-6)


def test_members_of_opposite_opinion_disagree_fully() -> None:
    assert disagreement(np.eye(2, 8, dtype=np.float32)) == pytest.approx(1.0, abs=1e-6)
    assert disagreement(SURE[None]) == 0.0


def test_unknown_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="bored"):
        class_mask(("angry", "bored"))
