"""Adaptation to audio that nobody has labelled. Nothing in here is given a label of the target: see `Unlabelled`.

    coral, mmd, dann    members are trained on the source's labels, with their representations drawn to the target's; linear
                        members, which have none of their own, stay as they are
    self-train          members are trained on guesses of their own (`train.transfer.self_training`), normalised first
    normalise           what the ensemble takes for usual is measured again (`train.transfer.normalise`)
    prior               how often each emotion occurs is estimated again (`train.transfer.prior`)

Selection and calibration are the source's development speakers' alone; the target's test speakers are for the report.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.adaptation import Adaptation
from model.labels import CLASSES
from model.network.member import Member
from model.spec import Lineage
from train.acquaintance import Acquaintance, assert_unheard
from train.config import Recipe
from train.corpora import read_corpus
from train.cost import FEATURES, Cost
from train.errors import RecipeError, RunError
from train.features import Progress
from train.finish import Descent, finish_run
from train.loop import class_bias
from train.manifest import Split
from train.prepare import Prepared, View, prepare
from train.stacking import Stacked, member_outputs
from train.stages.members import ALL_SPEAKERS, Job, occurring, selected_stages
from train.stages.meta import meta_posterior
from train.stored_stack import save_given
from train.transfer import alignment
from train.transfer.begin import start_of, started_content
from train.transfer.finetune import untouched
from train.transfer.jobs import train_jobs
from train.transfer.joining import joined, soft_vote
from train.transfer.normalise import normalised, reference_of
from train.transfer.prior import Prior, estimate_prior, expecting
from train.transfer.self_training import Unspoken, self_trained
from train.transfer.self_training import told_of as told_of_guesses
from train.transfer.source import Source, with_weights
from train.transfer.start import Start
from train.transfer.target import SelfTraining, Target, shared_classes
from train.transfer.unlabelled import Unlabelled, target_audio

Method = Literal["coral", "mmd", "dann", "normalise", "prior", "self-train"]
METHODS: Final[tuple[str, ...]] = get_args(Method)
_ALIGNING: Final = get_args(alignment.Method)


_NORMALISED: Final = (
    "Means and deviations of the inputs are the target's: on speakers who sound like the training data, figures are worse than "
    "the source's (see its row)."
)


@dataclass(frozen=True, slots=True)
class Adapted:
    """An ensemble that was adapted.

    Attributes:
        ensemble: its members, what joins them, its calibration.
        adaptation: how it hears channels.
        limits: what a reader of the card must know.
        selected: keys of the stages that were trained and that held-out speakers selected (`selected_stages`).
    """

    ensemble: Stacked
    adaptation: Adaptation | None
    limits: tuple[str, ...] = ()
    selected: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Heard:
    """The source's corpus with its labels, and the target's audio without.

    Attributes:
        recipe: of the new run.
        view: the target's test speakers, and channels as the source hears them.
        prepared: the source's corpus, and the test sets of both.
        audio: of the target's other speakers.
    """

    recipe: Recipe
    view: View
    prepared: Prepared
    audio: Unlabelled


def adapt(source: Source, target: Target, method: str, data: Path, cache: Path, out: Path, progress: Progress) -> Path:
    """Adapts, evaluates on the source's test sets and the target's, and writes a run; returns the report's path.

    Args:
        source: the ensemble to adapt.
        target: which corpus, and the stage that aligns.
        method: one of `METHODS`.
        data: folder with a sub-folder per corpus, the source's among them.
        cache: folder of the feature cache.
        out: folder of the new run.
        progress: told what is done.

    Raises:
        RecipeError: if there is no such method, or it has nothing to train.
        CorpusError: if a corpus is missing or incomplete.
        LeakageError: if somebody who made the source would be tested on.
        RunError: if the source's corpus is not that of its run.
    """
    if method not in METHODS:
        raise RecipeError(f"a method is one of {', '.join(METHODS)}, got {method!r}")
    if method in _ALIGNING and all(spec.family == "linear" for spec in source.recipe.member_specs()):
        raise RecipeError(f"{method} draws representations together, and linear members have none of their own")
    with Cost(out).timed(FEATURES):
        heard = hear(source, target, data, cache, progress)
    found = adapted(source, target, method, heard, out / "members", progress)
    tested = heard.prepared
    if found.adaptation is not source.checkpoint.adaptation:
        moved = replace(heard.view, adaptation=found.adaptation)
        tested = replace(prepare(heard.recipe, data, cache, progress, view=moved), training=tested.training)
    save_given(out / "meta", found.ensemble)
    command, audio = f"medusa-train adapt --method {method}", heard.audio
    corpus, speakers = target.recipe.data.corpus, tuple(sorted(set(audio.speakers)))
    step = Lineage(source.id, command, corpus, len(audio), len(speakers), labelled=False)
    descent = Descent(
        lineage=(*source.checkpoint.lineage, step),
        beside=untouched(source, heard.prepared),
        limits=found.limits,
        probes=False,
        selected=found.selected,
        known=(*source.acquaintances((source.recipe.data.corpus,), data), Acquaintance(corpus, speakers)),
    )
    return finish_run(heard.recipe, tested, found.ensemble, cache, out, progress, descent)


def hear(source: Source, target: Target, data: Path, cache: Path, progress: Progress) -> Heard:
    """Prepares both corpora.

    Raises:
        RecipeError: if they have one name.
        CorpusError: if a corpus is missing or incomplete.
        LeakageError: if somebody who made the source would be tested on.
        RunError: if the source's corpus is not that of its run.
    """
    corpus, recipe = target.recipe.data.corpus, adapted_recipe(source.recipe, target)
    audio, division = target_audio(target.recipe, data, cache, progress)
    tested = division.tested
    labelled = read_corpus(corpus, data, target.recipe.data.options).clips if tested else ()
    tests = [clip for clip in labelled if clip.id in tested and clip.label in source.classes]
    known = source.acquaintances((corpus, recipe.data.corpus), data)
    if not target.recipe.data.allow_overlap:
        assert_unheard(known, corpus, {clip.speaker for clip in tests})
    if not tests:  # nothing to hold the target's figures against
        recipe = recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"evaluate": (), "evaluate_options": {}})}
        )

    def narrow(split: Split) -> Split:
        if not split.allow_overlap:
            assert_unheard(known, recipe.data.corpus, split.test.speakers)
        return shared_classes(split, source.classes)

    view = View(narrow, source.checkpoint.adaptation, {corpus: tested}, source.classes)
    prepared = prepare(recipe, data, cache, progress, view=view)
    occur = occurring(prepared.training.train.targets)
    if occur != source.classes and not source.checkpoint.lineage:  # of a run that was brought here, some may be missing
        got = ", ".join(occur)
        raise RunError(f"the source's corpus has the classes {got}, the run was trained on {', '.join(source.classes)}")
    return Heard(recipe, view, prepared, audio)


def adapted(source: Source, target: Target, method: str, heard: Heard, folder: Path, progress: Progress) -> Adapted:
    """The ensemble, adapted by one of `METHODS`; members that are trained are kept in `folder`."""
    own, rng = source.checkpoint.adaptation, np.random.default_rng(heard.recipe.seed)
    as_is = _as_served(source, heard)
    if method in ("normalise", "self-train"):
        moved = reference_of(heard.audio, own) if own else None
        audio, encoders = heard.audio.heard(moved, rng), heard.recipe.encoder_specs()
        weights = {member.spec.name: normalised(member, audio, encoders) for member in source.members}
        if method == "normalise":
            members = tuple(with_weights(member, weights[member.spec.name], heard.recipe) for member in source.members)
            return Adapted(replace(as_is, members=members), moved, (_NORMALISED,))
        members = _self_trained(weights, target, heard, moved, folder, progress)
        return Adapted(replace(as_is, members=members), moved, (_NORMALISED, told_of_guesses(heard.audio)))
    audio = heard.audio.heard(own, rng)
    if method != "prior":
        kind = cast("alignment.Method", method)
        start = Start(
            weights={member.spec.name: member.state_dict() for member in source.members},
            auxiliary=alignment.aligning(audio, kind, target.transfer.weight),
        )
        training = heard.prepared.training
        content = started_content(f"{training.content} {method} {' '.join(audio.ids)}", start, target.transfer)
        jobs = [Job(spec, ALL_SPEAKERS) for spec in heard.recipe.member_specs() if spec.family != "linear"]
        training = replace(training, start=start, content=content)
        trained = train_jobs(jobs, heard.recipe, training, folder, progress)
        members = tuple(trained.get(member.spec.name, member) for member in source.members)
        attributes, fallbacks = as_is.trained_attributes, as_is.fallbacks
        ensemble = joined(heard.recipe, heard.prepared, members, as_is.soup, attributes, fallbacks)
        return Adapted(ensemble, own, selected=selected_stages(jobs, heard.recipe, training))
    outputs = member_outputs(heard.recipe, source.members, audio, source.classes)
    posterior = meta_posterior(as_is.soup, outputs, class_bias(source.classes), as_is.temperature)
    prior = estimate_prior(posterior, taught_prior(as_is, heard.prepared.training.dev.targets))
    changed = expecting(as_is.soup, prior, as_is.temperature)
    ratio = as_is.prior_ratio / prior.ratio  # of the development speakers over what it now expects
    smaller = tuple(replace(f, meta=expecting(f.meta, prior, f.spec.temperature)) for f in as_is.fallbacks)
    ensemble = replace(as_is, runs=(copy.deepcopy(changed),), soup=changed, prior_ratio=ratio, fallbacks=smaller)
    return Adapted(ensemble, own, (_told_of(prior, source.classes),))


def _self_trained(
    weights: Mapping[str, Mapping[str, Tensor]],
    target: Target,
    heard: Heard,
    adaptation: Adaptation | None,
    folder: Path,
    progress: Progress,
) -> tuple[Member, ...]:
    """Members that begin with `weights` and learn from guesses alone; nothing selects, for no label of the target could."""
    recipe, start = heard.recipe, start_of(weights, target.transfer)
    source = heard.prepared.training
    training = replace(
        source,
        copies=(source.train.subset(np.array([], np.int64)),),
        folds=np.array([], np.int64),
        bank=None,
        misheard=None,
        content=started_content(f"{source.trained_classes} unlabelled", start, target.transfer),
        start=start,
        selects=False,
    )
    jobs = [Job(spec, ALL_SPEAKERS) for spec in recipe.member_specs()]
    given = Unspoken(heard.audio, adaptation, target.transfer.self_training or SelfTraining())
    training = self_trained(jobs, recipe, training, given, folder / "self-training", progress)
    return tuple(train_jobs(jobs, recipe, training, folder, progress).values())


def _as_served(source: Source, heard: Heard) -> Stacked:
    """The source's members and what joins them, calibrated as they are served."""
    given, attributes = source.meta or soft_vote(len(source.members)), source.checkpoint.spec.trained_attributes
    found = joined(heard.recipe, heard.prepared, source.members, given, attributes)
    if source.meta is None:
        return found
    return replace(
        found,
        temperature=source.checkpoint.temperature,
        abstain_below=source.checkpoint.abstain_below,
        fallbacks=source.fallbacks,
    )


def adapted_recipe(source: Recipe, target: Target) -> Recipe:
    """The source's recipe with the target's one stage, tested on the target too.

    Raises:
        RecipeError: if both corpora have one name.
    """
    corpus = target.recipe.data.corpus
    if corpus == source.data.corpus:
        raise RecipeError(f"source and target are both {corpus!r}: adapting is to another corpus")
    return source.model_copy(
        update={
            "name": target.recipe.name,
            "notes": target.recipe.notes,
            "data": source.data.model_copy(
                update={"evaluate": (corpus,), "evaluate_options": {corpus: target.recipe.data.options}}
            ),
            "stage1": target.recipe.stage1,
            "linear": target.recipe.linear,
            "stage2": source.stage2.model_copy(update={"epochs": 0}),
            "meta": source.meta.model_copy(update={"seeds": source.meta.seeds[:1]}),
        }
    )


def taught_prior(ensemble: Stacked, dev_targets: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The class prior that training has taught an ensemble, `[8]`, sum 1: the development clips' over the fitted ratio."""
    implied = dev_targets.mean(axis=0).astype(np.float64) / ensemble.prior_ratio
    return np.asarray(implied / implied.sum(), np.float64)


def _told_of(prior: Prior, classes: tuple[str, ...]) -> str:
    shares = {name: share for name, share in zip(CLASSES, prior.found, strict=True) if name in classes}
    shown = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    return (
        f"The prior was estimated from audio without labels: {shown}. It is wrong where the ensemble takes one class for "
        "another."
    )
