"""Results of a run that never was: real evaluations of made-up posteriors."""

from typing import Any

import numpy as np
import numpy.typing as npt

from model.labels import CLASSES
from tests.train.synthetic import TRAINED, make_examples
from train.calibration import correct_prior, fit_prior_ratio
from train.evaluate import compare
from train.reference import Outputs, Reference, reference_of
from train.report import FORMAT

SOUP = "soup"
COLUMNS = [CLASSES.index(name) for name in TRAINED]


def random_posteriors(clips: int, seed: int, *, truth: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.float32]:
    """Posteriors `[N, 8]` over the trained classes alone, drawn towards `truth` where it is given."""
    strength = np.full((clips, len(TRAINED)), 0.6)
    if truth is not None:
        strength[np.arange(clips), [COLUMNS.index(index) for index in truth]] += 1.5
    rng = np.random.default_rng(seed)
    full = np.zeros((clips, len(CLASSES)), np.float32)
    full[:, COLUMNS] = np.stack([rng.dirichlet(row) for row in strength])
    return full


def make_outputs(clips: int, seed: int = 0, truth: npt.NDArray[np.int64] | None = None) -> Outputs:
    """Two members and their mean, which is too sure of itself without its temperature."""
    members = np.stack([random_posteriors(clips, seed + number, truth=truth) for number in (1, 2)], axis=1)
    posterior = members.mean(axis=1)
    sharp = posterior**3
    ratio = fit_prior_ratio(posterior, random_posteriors(clips, seed + 3))
    return Outputs(
        members=members,
        uncalibrated=sharp / sharp.sum(axis=1, keepdims=True),
        posterior=posterior,
        prior_corrected=correct_prior(posterior, ratio),
        attributes=np.random.default_rng(seed).uniform(1, 7, (clips, 3)),
        trained_attributes=("arousal", "valence"),
        abstain_below=0.4,
    )


def make_reference(clips: int = 80, *, rated: bool = True, genders: tuple[str, ...] = ("female", "male")) -> Reference:
    """Clips of eight speakers, half of them of each gender; without raters, the votes repeat the acted emotion."""
    examples = make_examples([TRAINED[row % 4] for row in range(clips)], speakers=8)
    votes = examples.targets if rated else np.eye(8, dtype=np.float32)[examples.intended]
    of = {f"speaker-{number}": genders[number % len(genders)] for number in range(8)}
    return reference_of(examples, votes, [of[speaker] for speaker in examples.speakers])


def make_evaluation(reference: Reference, seed: int = 0) -> dict[str, Any]:
    """The soup beside one system with a name that is no markup."""
    clips, truth = len(reference.ids), reference.truth
    outputs = make_outputs(clips, seed, truth)
    systems = {
        "<guess> & go": random_posteriors(clips, seed + 9).argmax(axis=1),
        SOUP: outputs.posterior.argmax(axis=1),
    }
    return compare(reference, systems, SOUP, outputs)


def make_results() -> dict[str, Any]:
    """Results of a set with raters and of one without."""
    curve = {"loss": [2.0, 1.5], "dev_macro_f1": [0.3, 0.4], "best_epoch": 1, "steps": 8}
    return {
        "format": FORMAT,
        "name": "medusa-rt <tiny>",
        "summary": "Two members & a soup.",
        "data": ["Trained on nothing."],
        "builds_on": [{"name": "whisper", "revision": "tiny", "licence": "MIT"}],
        "dropped": {"here": {"votes without clip": 3}, "there": {}},
        "evaluations": {
            "here": make_evaluation(make_reference()) | {"predictions": "predictions/here.csv"},
            "there": make_evaluation(make_reference(rated=False, genders=("",)), seed=5),
        },
        "calibration": {
            "clips": 40,
            "speakers": 4,
            "temperature": 1.25,
            "abstain_below": 0.4,
            "abstain_quantile": 0.1,
            "prior": {name: {"heard": 0.25, "taught": 0.2, "log_ratio": 0.125} for name in TRAINED},
        },
        "learning_curves": [
            {"member": "voice", "fold": fold, "stage": stage, **curve}
            for fold in (None, 0, 1)
            for stage in ("stage1", "stage2")
        ],
        "words": [{"text": "", "top": "neutral", "shown": "neutral 0.90"}],
        "words_note": "What words do.",
        "limits": ["English only."],
    }
