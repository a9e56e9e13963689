"""The training speakers as a test set: everyone is judged by an ensemble whose members have never heard him.

Stage 3 needs members without each fold of speakers anyway. Here such members, and a soup of meta-classifiers whose training
left out the fold's clips, judge the fold that they lack: as many clips as were trained on, and only linear layers to train.

What this is not: a run for each fold, which `train.crossvalidate` makes. Members have heard one fold less than those that ship.
On the other side the outputs that stage 3 learns from are of members that did hear the fold, about other folds; epochs are
chosen, and temperature and abstention fitted, on the development speakers, the latter by members that heard everybody; and the
reference of the channels is that of all training clips. How much either side weighs was not measured.

Shapes: N = training clips, M = members, 8 = classes in canonical order.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model.network.member import Member
from train.calibration import correct_prior
from train.config import Recipe
from train.contamination import KEY, contaminating
from train.dataset import FUNCTIONALS, Examples, concatenate
from train.evaluate import compare, majority_vote
from train.features import Progress
from train.loop import class_bias
from train.prepare import TRAINING, Prepared
from train.probe import Probe, audio_modalities
from train.reference import Guesses, Judged, Outputs, reference_of
from train.results import ADAPTED_PROBE, PROBES, SOUP
from train.stacking import calibrated, dev_outputs, rated_attributes, stacking_set
from train.stages.members import ALL_SPEAKERS, out_of_fold
from train.stages.meta import StackingSet, meta_posterior, souped, stacked_outputs

NAME: Final = "cross-validated over the training speakers"
_STEP: Final = "cross-validation"

Folds = Mapping[str, Mapping[int, Member]]
"""Member name -> fold that it never heard, or `ALL_SPEAKERS` -> network."""


def cross_validate(recipe: Recipe, prepared: Prepared, members: Folds, progress: Progress) -> Judged:
    """What the training speakers are held against, what ensembles without them say, and the evaluation as plain data.

    Args:
        recipe: of the members.
        prepared: holds the training clips, heard as test clips are: whole calls, with their own words.
        members: trained on all speakers, and without each fold.
        progress: told what is done.
    """
    progress(_STEP, 0, recipe.meta.folds)
    training, encoders = prepared.training, recipe.encoder_specs()
    classes, clips, folds = training.trained_classes, training.train, training.folds
    bias, dev = class_bias(classes), dev_outputs(recipe, prepared, members)
    data = stacking_set(recipe, prepared, members)
    without = [{f: member for f, member in parts.items() if f != ALL_SPEAKERS} for parts in members.values()]
    predictions = [out_of_fold(parts, encoders, clips, training) for parts in without]
    stacked = stacked_outputs(predictions)
    posterior, uncalibrated, corrected = (np.empty((len(clips), 8), np.float32) for _ in range(3))
    attributes, confident, single = np.empty((len(clips), 3), np.float32), [], np.empty(len(clips), np.int64)
    for fold in range(recipe.meta.folds):
        rows = np.flatnonzero(folds == fold)
        found = souped(_without(data, folds, fold), recipe.meta, dev)
        fitted, outputs = calibrated(found.soup, dev, classes), stacked[torch.from_numpy(rows)]
        posterior[rows] = meta_posterior(found.soup, outputs, bias, fitted.temperature)
        uncalibrated[rows] = meta_posterior(found.soup, outputs, bias, 1.0)
        corrected[rows] = correct_prior(posterior[rows], fitted.prior_ratio)
        single[rows] = meta_posterior(found.runs[0], outputs, bias, 1.0).argmax(axis=1)
        with torch.no_grad():
            attributes[rows] = found.soup(outputs)[1].numpy()
        confident.append(fitted.abstain_below)
        progress(_STEP, fold + 1, recipe.meta.folds)
    votes = np.stack([found for found, _ in predictions], axis=1)
    outputs_of_all = Outputs(
        members=votes,
        uncalibrated=uncalibrated,
        posterior=posterior,
        prior_corrected=corrected,
        attributes=attributes,
        trained_attributes=rated_attributes(clips),
        abstain_below=float(np.mean(confident)),
    )
    names = [member.name for member in recipe.member_specs()]
    systems = {
        **_probes(recipe, prepared),
        **{f"member {name}": votes[:, number].argmax(axis=1) for number, name in enumerate(names)},
        "majority vote": majority_vote(votes),
        "soft vote": votes.mean(axis=1).argmax(axis=1),
        "single meta-classifier": single,
        SOUP: posterior.argmax(axis=1),
    }
    reference = reference_of(clips, prepared.votes[TRAINING], prepared.genders[TRAINING])
    evaluation = compare(reference, systems, SOUP, outputs_of_all)
    read = {f"member {member.name}": set(member.modalities) for member in recipe.member_specs()}
    whole = set().union(*read.values())
    read |= {name: set(audio_modalities(recipe.encoder_specs())) for name in PROBES} | {ADAPTED_PROBE: {FUNCTIONALS}}
    for system, scored in evaluation["systems"].items():
        scored[KEY] = contaminating(recipe, recipe.data.corpus, read.get(system, whole))
    return Judged(reference, outputs_of_all, systems, evaluation)


def told_of(recipe: Recipe) -> str:
    """What a reader must know of these figures."""
    kept, folds = recipe.meta.folds - 1, recipe.meta.folds
    return (
        f"Cross-validated: every training speaker is judged by members trained on the other {kept} of {folds} folds of "
        "speakers, and by meta-classifiers trained on the clips of those folds. Epochs are chosen and temperatures fitted on "
        "the development speakers, as for the ensemble that ships; outputs that the meta-classifiers learn from are of "
        "members that heard the fold that they judge. It abstains below the mean of the folds' thresholds."
    )


def _without(data: StackingSet, folds: npt.NDArray[np.int64], fold: int) -> StackingSet:
    """A stacking set, which holds all training clips as often as it was drawn, without the clips of a fold."""
    rows = np.flatnonzero(np.tile(folds, len(data.examples) // len(folds)) != fold)
    return StackingSet(
        data.outputs[torch.from_numpy(rows)], data.examples.subset(rows), data.trained_classes, data.terms
    )


def _probes(recipe: Recipe, prepared: Prepared) -> dict[str, Guesses]:
    """Guesses of the probes of `train.results.fit_probes`, each fold by a probe that was fitted without it."""
    training, modalities = prepared.training, audio_modalities(recipe.encoder_specs())
    copies, dev = prepared.alone
    found = {PROBES[0]: _by_fold(training.folds, copies[:1], copies[0], dev, modalities)}
    if len(copies) > 1:
        found[PROBES[1]] = _by_fold(training.folds, copies, copies[0], dev, modalities)
    if recipe.adaptation:
        once = training.copies[:: recipe.adaptation.draws]
        found[ADAPTED_PROBE] = _by_fold(training.folds, once, training.train, training.dev, (FUNCTIONALS,))
    return found


def _by_fold(
    folds: npt.NDArray[np.int64],
    copies: Sequence[Examples],
    clips: Examples,
    dev: Examples,
    modalities: Sequence[str],
) -> Guesses:
    """Guesses `[N]` for `clips`, each by a probe that was fitted on the copies of all other folds."""
    guesses = np.empty(len(clips), np.int64)
    for fold in np.unique(folds):
        kept, rows = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        probe = Probe.fit(concatenate([copy.subset(kept) for copy in copies]), dev, modalities)
        guesses[rows] = probe.guesses(clips.subset(rows))
    return guesses
