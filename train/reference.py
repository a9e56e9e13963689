"""What an evaluation compares: the truth about a set of clips, and what the soup and its members say about them.

Shapes: N = clips, M = members, 8 = classes in canonical order, 3 = attributes in canonical order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.labels import ATTRIBUTES, CLASSES
from train.calibration import disagreements
from train.dataset import Examples
from train.errors import RunError

Posterior = npt.NDArray[np.floating]
Guesses = npt.NDArray[np.int64]

ACTED: Final = "acted emotion"
VOTED: Final = "dominant vote"
_ONE_VOICE: Final = 1e-3
"""Mass beside the first class up to which a vote vector holds a single opinion."""
_TIED: Final = 1e-3
"""Lead in the votes below which two classes are equal."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What the guesses on a set of clips are held against.

    Attributes:
        ids: N ids.
        speakers: N speakers.
        genders: N of "female", "male" or "".
        truth: class index `[N]`, -1 where a clip has none.
        kind: what the truth is: "acted emotion" or, where nobody acted, "dominant vote".
        votes: annotators' vote vectors `[N, 8]`, rows sum to 1; None where they only repeat the truth.
        attributes: ratings `[N, 3]` in 1..7, NaN where missing.
    """

    ids: tuple[str, ...]
    speakers: tuple[str, ...]
    genders: tuple[str, ...]
    truth: Guesses
    kind: str
    votes: Posterior | None
    attributes: npt.NDArray[np.floating]

    @property
    def voted(self) -> Guesses | None:
        """Index of the dominant vote `[N]`, -1 without consensus; None where the votes are the truth already."""
        if self.votes is None or self.kind != ACTED:
            return None
        return _dominant_votes(self.votes)


def _dominant_votes(votes: Posterior) -> Guesses:
    ranked = np.sort(votes, axis=1)
    return np.where(ranked[:, -1] - ranked[:, -2] < _TIED, -1, votes.argmax(axis=1)).astype(np.int64)


def reference_of(examples: Examples, votes: Posterior, genders: Sequence[str]) -> Reference:
    """What a set of clips can be held against, decided from its data.

    A corpus of acted emotions without raters has vote vectors that repeat the acted emotion: scores against them would
    be the same figures under another name, so such votes are left out.
    """
    acted = bool((examples.intended >= 0).any())
    truth = examples.intended if acted else _dominant_votes(votes)
    one_voice = bool((votes.max(axis=1) > 1.0 - _ONE_VOICE).all()) and bool((votes.argmax(axis=1) == truth).all())
    return Reference(
        ids=examples.ids,
        speakers=examples.speakers,
        genders=tuple(genders),
        truth=truth,
        kind=ACTED if acted else VOTED,
        votes=None if one_voice else votes,
        attributes=examples.attributes,
    )


@dataclass(frozen=True, slots=True)
class Outputs:
    """What the soup and its members say about N clips.

    Attributes:
        members: the members' posteriors `[N, M, 8]`.
        uncalibrated: the soup's posteriors `[N, 8]` at temperature 1.
        posterior: the soup's posteriors `[N, 8]` at the fitted temperature: what the bundle gives.
        prior_corrected: those under the class prior of the development speakers, `[N, 8]`.
        attributes: the soup's attributes `[N, 3]` in 1..7.
        trained_attributes: the attributes that were trained.
        abstain_below: confidence under which the ensemble abstains.
    """

    members: npt.NDArray[np.float32]
    uncalibrated: Posterior
    posterior: Posterior
    prior_corrected: Posterior
    attributes: npt.NDArray[np.floating]
    trained_attributes: tuple[str, ...]
    abstain_below: float

    @property
    def trained_columns(self) -> list[tuple[int, str]]:
        """Column and name of every attribute that was trained."""
        return [(column, name) for column, name in enumerate(ATTRIBUTES) if name in self.trained_attributes]

    @property
    def disagreement(self) -> npt.NDArray[np.float64]:
        """The members' disagreement `[N]` in 0..1."""
        return disagreements(self.members)


@dataclass(frozen=True, slots=True)
class Judged:
    """N clips that systems have guessed on.

    Attributes:
        reference: what the guesses are held against.
        outputs: what the soup and its members say.
        systems: name -> guesses `[N]`, the soup's among them.
        evaluation: how they compare, as plain data (`train.evaluate.compare`).
    """

    reference: Reference
    outputs: Outputs
    systems: Mapping[str, Guesses]
    evaluation: dict[str, Any]


def joined(references: Sequence[Reference]) -> Reference:
    """The truth about several sets of clips as about one.

    Raises:
        RunError: if one is held against votes and another against what was acted.
    """
    kinds = {reference.kind for reference in references}
    if len(kinds) > 1:
        raise RunError(f"parts of one corpus are held against different things, {' and '.join(sorted(kinds))}")
    rated = any(reference.votes is not None for reference in references)
    return Reference(
        ids=tuple(clip for reference in references for clip in reference.ids),
        speakers=tuple(speaker for reference in references for speaker in reference.speakers),
        genders=tuple(gender for reference in references for gender in reference.genders),
        truth=np.concatenate([reference.truth for reference in references]),
        kind=kinds.pop(),
        votes=np.concatenate([_votes(reference) for reference in references]) if rated else None,
        attributes=np.concatenate([reference.attributes for reference in references]),
    )


def _votes(reference: Reference) -> Posterior:
    """Votes that were left out repeat the truth; where there is none, nobody has voted."""
    repeated = np.eye(len(CLASSES))[reference.truth] * (reference.truth >= 0)[:, None]
    return repeated if reference.votes is None else reference.votes
