"""Ablations of a recipe: its members with one thing taken away, and other ways to join them, held against the full recipe.

Members of the full recipe are those of the run in the same folder; what a run has trained is not trained again.

Shapes: N = clips, M = members, 8 = classes in canonical order.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model.network.member import Member
from model.spec import EncoderSpec
from train.ablation_report import write_ablations
from train.ablation_tables import MAJORITY, SINGLE, SOFT, SOUP, ensembles_table, members_table
from train.ablations import ABLATIONS, Ablation, chosen_members, ensemble_sizes
from train.config import Recipe
from train.contamination import MEMBERS_KEY, contaminating_members
from train.cost import Cost
from train.dataset import Examples
from train.evaluate import majority_vote
from train.execution import device_of
from train.features import Progress
from train.loop import class_bias, predict, selection_score
from train.prepare import Prepared, prepare
from train.reference import Guesses, reference_of
from train.run import Task, jobs_of, read_members, train_side_by_side
from train.stacking import Stacked, stack
from train.stages.members import ALL_SPEAKERS, Job, train_member
from train.stages.meta import meta_posterior, stacked_outputs

Networks = Mapping[str, Member]
"""Member name -> network."""


def ablate(
    recipe: Recipe,
    data: Path,
    cache: Path,
    out: Path,
    workers: int,
    progress: Progress,
    members: tuple[str, ...] = (),
) -> Path:
    """Trains what is missing, compares, and writes the tables; returns the page's path.

    Args:
        recipe: the full recipe.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the run, which may have finished before.
        workers: processes that train members side by side.
        progress: told what is done.
        members: names of the members to take things away from; none for those that `chosen_members` finds.

    Raises:
        RecipeError: if a member or the device is not there.
    """
    chosen = chosen_members(recipe, members)
    prepared, device = prepare(recipe, data, cache, progress), device_of(recipe.compute.device)
    tasks = [Task(job, recipe, out / "members") for job in jobs_of(recipe)]
    for ablation in ABLATIONS:
        tasks += _tasks(ablation, recipe, prepared, out, chosen) if ablation.is_trained else []
    train_missing(tasks, recipe, data, cache, workers, progress)
    trained = read_members(recipe, prepared.training, out / "members", device)
    full = {name: trained[name][ALL_SPEAKERS] for name in chosen}
    changed = {
        ablation.name: {
            task.job.member.name: train_member(task.job, task.recipe, prepared.training, task.folder).to(device)
            for task in _tasks(ablation, recipe, prepared, out, chosen)
        }
        for ablation in ABLATIONS
    }
    ensembles = _ensembles(recipe, prepared, trained)
    sets = {}
    for done, name in enumerate(prepared.test):
        progress("comparisons", done, len(prepared.test))
        sets[f"{name} (unseen speakers)"] = _compare(recipe, prepared, name, full, changed, ensembles)
    progress("comparisons", len(prepared.test), len(prepared.test))
    left_out = {
        ablation.name: {name: why for name in chosen if (why := ablation.why_not(recipe, prepared.training, name))}
        for ablation in ABLATIONS
    }
    return write_ablations(
        out,
        {
            "format": 2,
            "name": f"medusa-rt {recipe.name}",
            "members": list(chosen),
            "left_out": left_out,
            "without_dominant_class": int((prepared.training.train.dominant < 0).sum()),
            "training_clips": len(prepared.training.train),
            "sets": sets,
        },
    )


def train_missing(
    tasks: Sequence[Task], recipe: Recipe, data: Path, cache: Path, workers: int, progress: Progress
) -> None:
    """Trains members that are not there, side by side, and notes what each has cost beside their folder."""
    for task, seconds in train_side_by_side(tasks, recipe, data, cache, workers, progress):
        cost = Cost(task.folder.parent)
        for stage, spent in seconds.items():
            cost.add(stage, task.job.name, spent)


def guesses_of(
    networks: Networks, encoders: Mapping[str, EncoderSpec], examples: Examples, bias: Tensor
) -> dict[str, Guesses]:
    """What each of several members guesses, `[N]`."""
    return {
        name: np.asarray(predict(network, encoders, examples, bias)[0].argmax(axis=1), np.int64)
        for name, network in networks.items()
    }


def _tasks(ablation: Ablation, recipe: Recipe, prepared: Prepared, out: Path, chosen: Sequence[str]) -> list[Task]:
    """The chosen members without one thing, trained on all training speakers; those that it changes."""
    changed = ablation.change(recipe)
    folder = out / "ablations" / ablation.name.replace(" ", "-") / "members" if ablation.is_trained else out / "members"
    return [
        Task(Job(spec, ALL_SPEAKERS), changed, folder)
        for spec in changed.member_specs()
        if spec.name in chosen and not ablation.why_not(recipe, prepared.training, spec.name)
    ]


def _ensembles(
    recipe: Recipe, prepared: Prepared, trained: Mapping[str, Mapping[int, Member]]
) -> dict[tuple[str, ...], Stacked]:
    """Stages 3 and 4 on the best members, for each size; which are best, the development speakers decide."""
    training, encoders = prepared.training, recipe.encoder_specs()
    bias = class_bias(training.trained_classes)
    scores = {
        name: selection_score(folds[ALL_SPEAKERS], encoders, training.dev, bias) for name, folds in trained.items()
    }
    ranked = sorted(scores, key=lambda name: -scores[name])
    found = {}
    for size in ensemble_sizes(len(ranked)):
        kept = tuple(member for member in recipe.members if member.name in ranked[:size])
        part = recipe.model_copy(update={"members": kept, "fallbacks": ()})
        found[tuple(m.name for m in kept)] = stack(part, prepared, {m.name: trained[m.name] for m in kept})
    return found


def _compare(
    recipe: Recipe,
    prepared: Prepared,
    name: str,
    full: Networks,
    changed: Mapping[str, Networks],
    ensembles: Mapping[tuple[str, ...], Stacked],
) -> dict[str, Any]:
    """Both tables on one test set, as plain data for JSON."""
    test, encoders = prepared.test[name], recipe.encoder_specs()
    reference = reference_of(test, prepared.votes[name], prepared.genders[name])
    bias = class_bias(prepared.training.trained_classes)
    joined = {}
    for names, stacked in ensembles.items():
        predictions = [predict(member, encoders, test, bias) for member in stacked.members]
        inputs, members = stacked_outputs(predictions), np.stack([posterior for posterior, _ in predictions], axis=1)
        joined[names] = {
            MAJORITY: majority_vote(members),
            SOFT: members.mean(axis=1).argmax(axis=1),
            SINGLE: meta_posterior(stacked.runs[0], inputs, bias, 1.0).argmax(axis=1),
            SOUP: meta_posterior(stacked.soup, inputs, bias, 1.0).argmax(axis=1),
        }
    known = np.flatnonzero(reference.truth >= 0)
    return {
        "clips": len(known),
        "speakers": len({reference.speakers[row] for row in known}),
        "reference": reference.kind,
        "members": members_table(
            reference,
            guesses_of(full, encoders, test, bias),
            {
                ablation: guesses_of(networks, encoders, test, bias)
                for ablation, networks in changed.items()
                if networks
            },
        ),
        "ensembles": ensembles_table(reference, joined),
        MEMBERS_KEY: contaminating_members(recipe, name),
    }
