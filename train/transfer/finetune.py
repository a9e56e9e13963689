"""Fine-tuning: the members of a finished run, trained further on a corpus of one's own, and joined and calibrated anew."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from model.network.member import Member
from model.spec import Lineage
from train.acquaintance import Acquaintance
from train.config import Recipe
from train.cost import FEATURES, META, Cost
from train.features import Progress
from train.finish import Descent, finish_run
from train.prepare import Prepared
from train.reference import Guesses
from train.run import jobs_of, train_meta_classifiers
from train.stacking import Stacked
from train.stages.members import ALL_SPEAKERS, Job, occurring, selected_stages
from train.stored_stack import save_given
from train.transfer.begin import begin, heard_by_source, taught_by
from train.transfer.budgets import Budget
from train.transfer.jobs import train_jobs
from train.transfer.joining import joined, soft_vote
from train.transfer.self_training import self_trained, told_of
from train.transfer.source import UNTOUCHED, Source, with_weights
from train.transfer.start import CHOSEN
from train.transfer.target import Target
from train.transfer.unlabelled import divided

COMMAND: Final = "medusa-train finetune"

_NOBODY_HELD_OUT: Final = (
    "Nobody of the {} labelled speakers was held out: nothing was selected, and temperature and threshold are fitted to what "
    "members made of these clips before they learned them."
)


def finetune(
    source: Source,
    target: Target,
    data: Path,
    cache: Path,
    out: Path,
    progress: Progress,
    budget: Budget | None = None,
) -> Path:
    """Trains the source's members on the target, or what is missing of it; returns the report's path.

    Args:
        source: where members begin.
        target: corpus, stages, and how.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the new run.
        progress: told what is done.
        budget: of the labels, as `fewshot` draws it; None for all of them.

    Raises:
        CorpusError: if the corpus is missing or incomplete.
        LeakageError: if somebody who made the source would be tested on.
        RunError: if the target has no class that the source knows.
    """
    cost, recipe = Cost(out), target.recipe
    known = source.acquaintances((source.recipe.data.corpus,), data)
    with cost.timed(FEATURES):
        taught = taught_by(source, target, data, cache, progress)
        begun = begin(source, target, data, cache, progress, budget, taught)
        as_source = heard_by_source(source, target, data, cache, progress)
    against = why_not_refit(source, target, begun.prepared)
    refit = not against
    jobs = jobs_of(recipe) if refit else [Job(spec, ALL_SPEAKERS) for spec in recipe.member_specs()]
    prepared = begun.prepared
    guessed = begun.unbought(budget, target.transfer) if budget else begun.without_labels(target.transfer)
    if guessed:
        training = self_trained(jobs, recipe, prepared.training, guessed, out / "self-training", progress)
        prepared = replace(prepared, training=training)
    trained = train_jobs(jobs, recipe, prepared.training, out / "members", progress)
    with cost.timed(META):
        ensemble = (
            train_meta_classifiers(recipe, prepared, out)
            if refit
            else _kept(source, recipe, prepared, tuple(trained.values()), out)
        )
    given = "the source's" if source.meta else "a soft vote"
    limits = () if refit else (f"The meta-classifier is {given}: {against}.",)
    if not prepared.training.selects:
        limits = (*limits, _NOBODY_HELD_OUT.format(len(set(prepared.training.train.speakers))))
    heard = (heard_without_labels(recipe, data),) if begun.audio else ()
    descent = Descent(
        lineage=(
            *source.checkpoint.lineage,
            step_of(source, prepared, recipe, f"{COMMAND} {budget}" if budget else COMMAND),
        ),
        beside=untouched(source, as_source),
        limits=(*limits, *((told_of(guessed.audio),) if guessed else ())),
        probes=prepared.training.selects,  # theirs would choose their strength on what they have learned
        selected=selected_stages(jobs, recipe, prepared.training),
        known=(*known, *heard),
    )
    return finish_run(recipe, prepared, ensemble, cache, out, progress, descent)


def untouched(source: Source, as_source: Prepared) -> dict[str, dict[str, Guesses]]:
    """The source's own guesses on every test set, by the way in which clips are heard: what a transfer is held against.

    Args:
        source: as it is served.
        as_source: the test sets, with channels as the source hears them.
    """
    found = {}
    for name, test in as_source.test.items():
        others = {f"{UNTOUCHED}, {way}": source.guesses(heard) for way, heard in as_source.otherwise[name].items()}
        found[name] = {UNTOUCHED: source.guesses(test), **others}
        if source.meta is None:
            found[name][CHOSEN] = source.chosen_guesses(test)
    return found


def heard_without_labels(recipe: Recipe, data: Path) -> Acquaintance:
    """The speakers whose audio a target's statistics are measured on."""
    return Acquaintance(recipe.data.corpus, tuple(sorted({clip.speaker for clip in divided(recipe, data).clips})))


def why_not_refit(source: Source, target: Target, prepared: Prepared) -> str:
    """Why no meta-classifier is trained on the target; "" where one is.

    One that has never seen a class right gives it no probability, so a class that the target lacks would be unlearned there.
    """
    learned, folds = prepared.training.train, target.recipe.meta.folds
    speakers, occur = len(set(learned.speakers)), occurring(learned.targets)
    if target.transfer.meta == "keep":
        return "as the target file asks"
    if not prepared.training.selects:
        return "no labelled speaker is held out to judge it by"
    if speakers < folds:
        return f"{speakers} training speakers, {folds} folds"
    lacking = [name for name in source.classes if name not in occur]
    return f"the target has no clip of {', '.join(lacking)}, which one trained on it would unlearn" if lacking else ""


def step_of(source: Source, prepared: Prepared, recipe: Recipe, command: str) -> Lineage:
    """What the run learned from, for its lineage."""
    learned = prepared.training.train
    return Lineage(source.id, command, recipe.data.corpus, len(learned), len(set(learned.speakers)))


def _kept(source: Source, recipe: Recipe, prepared: Prepared, members: tuple[Member, ...], out: Path) -> Stacked:
    meta = source.meta or soft_vote(len(members))
    attributes = source.checkpoint.spec.trained_attributes
    judged = members if prepared.training.selects else _as_begun(source, prepared)
    stacked = replace(joined(recipe, prepared, judged, meta, attributes, source.fallbacks), members=members)
    if not prepared.training.selects:  # what these clips moved is the prior that the others were found to have
        stacked = replace(stacked, prior_ratio=np.ones_like(stacked.prior_ratio))
    save_given(out / "meta", stacked)
    return stacked


def _as_begun(source: Source, prepared: Prepared) -> tuple[Member, ...]:
    """The members before they have learned a clip of the target."""
    assert prepared.training.start is not None
    weights = prepared.training.start.weights
    return tuple(with_weights(member, weights[member.spec.name], source.recipe) for member in source.members)
