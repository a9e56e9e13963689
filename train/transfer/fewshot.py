"""What few labels are worth: budgets of the target's labels, each spent on the source's members and on members from scratch.

Members are joined by a soft vote everywhere, so that what is compared is what they have learned, and not what a
meta-classifier could learn from a handful of clips. Whoever is content with a budget makes the run with `finetune`.

Shapes: N = test clips, 8 = classes in canonical order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model.network.member import Member
from model.spec import MemberSpec
from train.config import Recipe
from train.contamination import KEY, contaminating
from train.dataset import Examples
from train.features import Progress
from train.metrics import Estimate, speaker_bootstrap, unweighted_average_recall
from train.prepare import Prepared, View, prepare
from train.reference import Guesses, Reference, reference_of
from train.stages.members import ALL_SPEAKERS, Job, TrainingSet
from train.transfer.begin import begin, heard_by_source, selecting, taught_by
from train.transfer.budgets import Budget, Unit
from train.transfer.fewshot_report import BEGUN, FINETUNED, SCRATCH, write_fewshot
from train.transfer.jobs import train_jobs
from train.transfer.self_training import Unspoken, self_trained
from train.transfer.source import UNTOUCHED, Source, soft_vote_guesses, with_weights
from train.transfer.target import Target, shared_classes

SHARES: Final = (0.1, 0.2, 0.5, 1.0)
_QUIET: Final = 1e-9
"""A gap smaller than this is none, and nothing can close it."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which budgets are tried.

    Attributes:
        shares: of the labelled pool, rising; the largest stands for full training.
        draws: how often each is drawn.
        unit: what is counted.
    """

    shares: tuple[float, ...] = SHARES
    draws: int = 3
    unit: Unit = "speakers"


@dataclass(frozen=True, slots=True)
class Spent:
    """One draw of one budget: its clips and speakers, and what the two systems guess on the test clips, `[N]`.

    Attributes:
        guesses: by system, where each speaker's clips are one call.
        otherwise: by way in which the clips are heard (`Prepared.otherwise`), then by system.
    """

    budget: Budget
    clips: int
    validating: int
    speakers: int
    guesses: Mapping[str, Guesses]
    otherwise: Mapping[str, Mapping[str, Guesses]] = field(default_factory=dict)

    def heard(self, way: str) -> "Spent":
        """The same with the clips heard in another way."""
        return replace(self, guesses=self.otherwise[way], otherwise={})


@dataclass(frozen=True, slots=True)
class Levels:
    """What guesses without a label, `[N]` each.

    Attributes:
        untouched: the source as it is served: all its members, and channels as it hears them.
        begun: the members that every budget begins with, which may have heard unlabelled audio, by a soft vote.
    """

    untouched: Guesses
    begun: Guesses


def fewshot(source: Source, target: Target, plan: Plan, data: Path, cache: Path, out: Path, progress: Progress) -> Path:
    """Trains what is missing, compares, and writes the tables; returns the page's path.

    Args:
        source: where members begin.
        target: corpus, stages, and how.
        plan: budgets and draws.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the comparison.
        progress: told what is done.

    Raises:
        CorpusError: if the corpus is missing or incomplete.
        LeakageError: if somebody who made the source would be tested on.
        RecipeError: if a budget is none.
    """
    name = target.recipe.data.corpus
    prepared = heard_by_source(source, target, data, cache, _silent)
    test = prepared.test[name]
    reference = reference_of(test, prepared.votes[name], prepared.genders[name])
    begun = begin(source, target, data, cache, _silent).prepared
    taught = taught_by(source, target, data, cache, _silent)
    started = _voting(source, target, begun)
    levels = Levels(source.guesses(test), started(begun.test[name]))
    ways = {
        way: Levels(source.guesses(examples), started(begun.otherwise[name][way]))
        for way, examples in prepared.otherwise[name].items()
        if way in begun.otherwise[name]
    }
    budgets = [
        Budget(share, draw, plan.unit, target.transfer.validation)
        for draw in range(plan.draws)
        for share in plan.shares
    ]
    spent = []
    for done, budget in enumerate(budgets):
        progress("budgets", done, len(budgets))
        spent.append(_spend(budget, source, target, taught, data, cache, out))
    progress("budgets", len(budgets), len(budgets))
    compared = compare_budgets(reference, levels, spent, plan.shares)
    compared[UNTOUCHED][KEY] = contaminating(target.recipe, name, _read_by(source.checkpoint.spec.members))
    otherwise = {
        way: compare_budgets(reference, reached, [one.heard(way) for one in spent], plan.shares)
        for way, reached in ways.items()
    }
    return write_fewshot(
        out,
        {
            "format": 1,
            "name": f"medusa-rt {target.recipe.name}",
            "source": source.id,
            "source_corpus": source.recipe.data.corpus,
            "corpus": name,
            "members": [member.name for member in source.recipe.members],
            "unit": plan.unit,
            "draws": plan.draws,
            "clips": int((reference.truth >= 0).sum()),
            "speakers": len(set(reference.speakers)),
            "reference": reference.kind,
            "rehearsal": target.transfer.rehearsal,
            "self_training": config.model_dump() if (config := target.transfer.self_training) else None,
            "classes": list(source.classes),
            KEY: contaminating(target.recipe, name, _read_by(source.recipe.member_specs())),
            **compared,
            "otherwise": otherwise,
        },
    )


def _read_by(members: Sequence[MemberSpec]) -> set[str]:
    return {modality for member in members for modality in member.modalities}


def _voting(source: Source, target: Target, begun: Prepared) -> Callable[[Examples], Guesses]:
    """Guesses of the members that every budget begins with."""
    assert begun.training.start is not None
    weights = begun.training.start.weights
    members = [with_weights(member, weights[member.spec.name], source.recipe) for member in source.members]
    return lambda examples: soft_vote_guesses(members, target.recipe.encoder_specs(), examples, source.classes)


def _spend(
    budget: Budget, source: Source, target: Target, taught: TrainingSet | None, data: Path, cache: Path, out: Path
) -> Spent:
    folder, name = out / "members" / budget.name, target.recipe.data.corpus
    found = begin(source, target, data, cache, _silent, budget, taught)
    begun, unbought = found.prepared, found.unbought(budget, target.transfer)
    training, encoders = begun.training, target.recipe.encoder_specs()
    tuned = _trained(target.recipe, training, unbought, folder / "finetuned")
    scratch_recipe = _from_scratch(source.recipe, target)
    heard_alike = begun.adaptation  # what needs no label is the same for both
    view = View(lambda split: budget.narrow(shared_classes(split, source.classes)), heard_alike)
    own = prepare(scratch_recipe, data, cache, _silent, view=view)
    fresh = _trained(scratch_recipe, selecting(own.training), unbought, folder / "scratch")

    def guesses(mine: Examples, theirs: Examples) -> dict[str, Guesses]:
        return {
            FINETUNED: soft_vote_guesses(tuned, encoders, mine, source.classes),
            SCRATCH: soft_vote_guesses(fresh, encoders, theirs, own.training.trained_classes),
        }

    return Spent(
        budget=budget,
        clips=len(training.train),
        validating=len(training.dev) if training.selects else 0,
        speakers=len({*training.train.speakers, *training.dev.speakers}),
        guesses=guesses(begun.test[name], own.test[name]),
        otherwise={
            way: guesses(mine, own.otherwise[name][way])
            for way, mine in begun.otherwise[name].items()
            if way in own.otherwise[name]
        },
    )


def _trained(recipe: Recipe, training: TrainingSet, unbought: Unspoken | None, folder: Path) -> list[Member]:
    jobs = [Job(spec, ALL_SPEAKERS) for spec in recipe.member_specs()]
    if unbought:
        training = self_trained(jobs, recipe, training, unbought, folder / "self-training", _silent)
    return list(train_jobs(jobs, recipe, training, folder, _silent).values())


def _from_scratch(source: Recipe, target: Target) -> Recipe:
    """The target's recipe with the source's first stage and fit: what holds a source would hardly let fresh weights move."""
    stage1 = source.stage1.model_copy(update={"epochs": target.transfer.scratch_epochs})
    stage2 = source.stage2.model_copy(update={"epochs": 0})
    return target.recipe.model_copy(update={"stage1": stage1, "stage2": stage2, "linear": source.linear})


def compare_budgets(
    reference: Reference, levels: Levels, spent: Sequence[Spent], shares: Sequence[float]
) -> dict[str, Any]:
    """The curve as plain data for JSON: UAR of every budget, mean over its draws, with intervals by speakers.

    Args:
        reference: the truth about N test clips.
        levels: what is reached without a label.
        spent: every draw of every budget.
        shares: the budgets, rising; 1 is full training, and without it there is no gap to close.
    """
    known = np.flatnonzero(reference.truth >= 0)
    truth, speakers = reference.truth[known], [reference.speakers[row] for row in known]

    def score(rows: npt.NDArray[np.int64], guesses: Sequence[Guesses]) -> float:
        """Mean UAR over draws."""
        return float(np.mean([unweighted_average_recall(truth[rows], found[known][rows]) for found in guesses]))

    def estimate(statistic: Callable[[npt.NDArray[np.int64]], float]) -> dict[str, float] | None:
        """The statistic with its interval; None where it does not exist."""
        found: Estimate = speaker_bootstrap(speakers, statistic)
        return None if np.isnan([found.value, found.low, found.high]).any() else asdict(found)

    def drawn(share: float, system: str) -> list[Guesses]:
        return [one.guesses[system] for one in spent if one.budget.share == share]

    def mean(guesses: Sequence[Guesses]) -> dict[str, float] | None:
        return estimate(lambda rows: score(rows, guesses))

    def gain(guesses: Sequence[Guesses], over: Sequence[Guesses]) -> dict[str, float] | None:
        return estimate(lambda rows: score(rows, guesses) - score(rows, over))

    def gap_closed(
        guesses: Sequence[Guesses], begin: Sequence[Guesses], full: Sequence[Guesses]
    ) -> dict[str, float] | None:
        all_of_it = gain(full, begin) if shares[-1] == 1 else None
        if all_of_it is None or all_of_it["low"] <= 0:  # no gap that can be told from none
            return None
        return estimate(lambda rows: closed(score(rows, begin), score(rows, guesses), score(rows, full)))

    begun, untouched = [levels.begun], [levels.untouched]
    full = {system: drawn(shares[-1], system) for system in (FINETUNED, SCRATCH)}
    everything = np.arange(len(known))
    rows = []
    for share in shares:
        of_share = [one for one in spent if one.budget.share == share]
        mine = {system: drawn(share, system) for system in (FINETUNED, SCRATCH)}
        rows.append(
            {
                "share": share,
                "clips": [one.clips for one in of_share],
                "validating": [one.validating for one in of_share],
                "speakers": [one.speakers for one in of_share],
                "systems": {
                    system: {
                        "uar": mean(guesses),
                        "by_draw": [score(everything, [one]) for one in guesses],
                        "gain_over_begun": gain(guesses, begun),
                    }
                    for system, guesses in mine.items()
                },
                "finetuned_over_scratch": gain(mine[FINETUNED], mine[SCRATCH]),
                "gap_closed": {system: gap_closed(mine[FINETUNED], begun, reached) for system, reached in full.items()},
                "gap_closed_from_untouched": gap_closed(mine[FINETUNED], untouched, full[FINETUNED]),
            }
        )
    return {
        UNTOUCHED: {"uar": mean(untouched)},
        BEGUN: {"uar": mean(begun), "gain_over_untouched": gain(begun, untouched)},
        "budgets": rows,
    }


def closed(begun: float, reached: float, full: float) -> float:
    """Share of the gap from a level to full training that is closed; NaN where full training is no better."""
    gap = full - begun
    return (reached - begun) / gap if gap > _QUIET else float("nan")


def _silent(what: str, done: int, total: int) -> None:
    pass
