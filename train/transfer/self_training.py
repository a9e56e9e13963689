"""Self-training: members guess what audio without labels holds, and are trained on their guesses beside the labels there are.

    round 0       members as they begin, where nothing is labelled; else trained on the labels
    round n       guesses of round n - 1, by a soft vote, sharpened  ->  members, anew from where they begin
    the last one  is the caller's to train, and is kept

Nothing is guessed about a speaker by members that are judged by that speaker: every fold has its own guesses. Source: Amini &
Gallinari (2002), "Semi-supervised logistic regression", ECAI; see `train.pseudo_labels`.

Shapes: N = utterances, 8 = classes in canonical order.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from model.adaptation import Adaptation
from model.network.member import Member
from model.spec import EncoderSpec
from train.config import Recipe
from train.dataset import Examples
from train.features import Progress
from train.loop import class_bias, predict
from train.prepare import Dealt
from train.pseudo_labels import Guessed, sharpened
from train.stages.members import Job, TrainingSet, fresh_member
from train.transfer.jobs import train_jobs
from train.transfer.start import Rows
from train.transfer.target import SelfTraining
from train.transfer.unlabelled import Unlabelled

_ATTRIBUTES: Final = 3


@dataclass(frozen=True, slots=True)
class Unspoken:
    """Audio without labels for members to guess about.

    Attributes:
        audio: as it was recorded.
        adaptation: how its channels are heard; None for as they are.
        config: how often is guessed, and what a guess is worth.
    """

    audio: Unlabelled
    adaptation: Adaptation | None
    config: SelfTraining


def self_trained(
    jobs: Sequence[Job], recipe: Recipe, training: TrainingSet, given: Unspoken, folder: Path, progress: Progress
) -> TrainingSet:
    """The training set with guesses beside its labels, all rounds but the last being trained.

    Args:
        jobs: what is trained, all members of a fold together.
        recipe: of the members.
        training: the labelled examples, which may be none where it says what members begin with.
        given: audio without labels; where it is none, the training set is returned as it was.
        folder: keeps every round's members.
        progress: told what is done.
    """
    if not len(given.audio):
        return training
    for number in range(given.config.rounds):
        members = _standing(jobs, recipe, training, folder / f"round-{number}", progress)
        training = _guessing(members, jobs, recipe, training, given)
    return training


def told_of(audio: Unlabelled) -> str:
    """What a reader of the card must know."""
    return (
        f"Members were trained on guesses of their own about {len(audio)} clips of {len(set(audio.speakers))} speakers without "
        "labels: what they took for another class before, they may now take for it with more certainty, and confidence was not "
        "fitted to it where no label of these recordings was there."
    )


def _standing(
    jobs: Sequence[Job], recipe: Recipe, training: TrainingSet, folder: Path, progress: Progress
) -> Mapping[str, Member]:
    """The members of a round by the name of their job."""
    if len(training.train) or training.guessed:
        return train_jobs(list(jobs), recipe, training, folder, progress, folder.name)
    assert training.start is not None, "members that were never trained have nothing to guess by"
    encoders, found = recipe.encoder_specs(), {}
    for job in jobs:
        found[job.name] = fresh_member(job, encoders)
        training.start.begin(found[job.name])
    return found


def _guessing(
    members: Mapping[str, Member], jobs: Sequence[Job], recipe: Recipe, training: TrainingSet, given: Unspoken
) -> TrainingSet:
    config = given.config.model_dump_json(exclude={"rounds"})  # more rounds go on where fewer have ended
    digest = hashlib.sha256(f"{training.content} {config}".encode())
    by_fold = {}
    for fold in sorted({job.fold for job in jobs}):
        own = {name for name, number in zip(training.train.speakers, training.folds, strict=True) if number == fold}
        audio = given.audio.without(speakers=own)
        if not len(audio):
            continue
        heard = audio.heard(given.adaptation, np.random.default_rng(recipe.seed))
        voting = [members[job.name] for job in jobs if job.fold == fold]
        posterior = _soft_vote(voting, recipe.encoder_specs(), heard, training.trained_classes)
        targets = sharpened(posterior, given.config.sharpness)
        by_fold[fold] = Dealt(recipe, given.adaptation).often((_with_guesses(audio, targets),))
        digest.update("\n".join(audio.ids).encode() + targets.tobytes())
    return replace(training, guessed=Guessed(by_fold, given.config.label_weight), content=digest.hexdigest())


def _soft_vote(
    members: Sequence[Member], encoders: Mapping[str, EncoderSpec], heard: Rows, classes: tuple[str, ...]
) -> npt.NDArray[np.float32]:
    posteriors = [predict(member, encoders, heard, class_bias(classes))[0] for member in members]
    return np.asarray(np.mean(posteriors, axis=0), np.float32)


def _with_guesses(audio: Unlabelled, targets: npt.NDArray[np.float32]) -> Examples:
    """Utterances with guesses `[N, 8]` for targets; nobody has rated their attributes."""
    return Examples(
        ids=audio.ids,
        frames=audio.frames,
        targets=targets,
        attributes=np.full((len(audio), _ATTRIBUTES), np.nan, np.float32),
        intended=np.full(len(audio), -1, np.int64),
        speakers=audio.speakers,
        outvoted=np.zeros(len(audio), np.bool_),
    )
