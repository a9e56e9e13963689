"""What few labels are worth: budgets of the target's labels, each spent on the source's members and on members from scratch.

Members are joined by a soft vote everywhere, so that what is compared is what they have learned, and not what a
meta-classifier could learn from a handful of clips. Whoever is content with a budget makes the run with `finetune`.

Shapes: N = test clips.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from model.network.member import Member
from model.spec import MemberSpec
from train.config import Recipe
from train.contamination import KEY, contaminating
from train.dataset import Examples
from train.features import Progress
from train.prepare import Prepared, View, prepare
from train.reference import Guesses, reference_of
from train.stages.members import ALL_SPEAKERS, Job, TrainingSet
from train.transfer.begin import begin, heard_by_source, selecting, taught_by
from train.transfer.budgets import Budget, Unit
from train.transfer.curve import Levels, Size, Spent, Tried, compare_budgets, of_turn, put_together
from train.transfer.fewshot_report import FINETUNED, SCRATCH, write_fewshot
from train.transfer.jobs import train_jobs
from train.transfer.self_training import Unspoken, self_trained
from train.transfer.source import UNTOUCHED, Source, soft_vote_guesses, with_weights
from train.transfer.target import Target, shared_classes
from train.turns import Turn, turns_of

SHARES: Final = (0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which budgets are tried.

    Attributes:
        shares: of the labelled pool, rising; the largest stands for full training.
        draws: how often each is drawn.
        unit: what is counted.
        turns: every session or fold of the target is tested on in its turn, and what they say is put together.
    """

    shares: tuple[float, ...] = SHARES
    draws: int = 3
    unit: Unit = "speakers"
    turns: bool = False

    def budgets(self, target: Target) -> list[Budget]:
        """Every draw of every share.

        Raises:
            RecipeError: if a share is none.
        """
        held = target.transfer.validation
        return [Budget(share, draw, self.unit, held) for draw in range(self.draws) for share in self.shares]


def fewshot(source: Source, target: Target, plan: Plan, data: Path, cache: Path, out: Path, progress: Progress) -> Path:
    """Trains what is missing, compares, and writes the tables; returns the page's path.

    Args:
        source: where members begin.
        target: corpus, stages, and how.
        plan: budgets, draws and turns.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the comparison.
        progress: told what is done.

    Raises:
        CorpusError: if the corpus is missing or incomplete.
        LeakageError: if somebody who made the source would be tested on.
        RecipeError: if a budget is none, or turns are asked of a corpus that is divided once.
    """
    turns = turns_of(target.recipe, data) if plan.turns else [Turn("", "", target.recipe)]
    taught, budgets, tried = taught_by(source, target, data, cache, _silent), plan.budgets(target), []
    for number, turn in enumerate(turns):

        def told(done: int, before: int = number * len(budgets)) -> None:
            progress("budgets", before + done, len(turns) * len(budgets))

        taking = replace(target, recipe=turn.recipe)
        tried.append(_try(source, taking, budgets, taught, data, cache, out / turn.folder, told))
    whole = put_together(tried)
    name, reference = target.recipe.data.corpus, whole.reference
    compared = compare_budgets(whole, plan.shares)
    compared[UNTOUCHED][KEY] = contaminating(target.recipe, name, _read_by(source.checkpoint.spec.members))
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
            "otherwise": {way: compare_budgets(whole.heard(way), plan.shares) for way in whole.otherwise},
            "turns": [
                of_turn(turn.name, found, plan.shares) for turn, found in zip(turns, tried, strict=True) if turn.name
            ],
        },
    )


def _try(
    source: Source,
    target: Target,
    budgets: Sequence[Budget],
    taught: TrainingSet | None,
    data: Path,
    cache: Path,
    out: Path,
    told: Callable[[int], None],
) -> Tried:
    """Spends every budget of one division of the corpus."""
    name = target.recipe.data.corpus
    prepared = heard_by_source(source, target, data, cache, _silent)
    test = prepared.test[name]
    begun = begin(source, target, data, cache, _silent).prepared
    started = _voting(source, target, begun)
    spent = []
    for done, budget in enumerate(budgets):
        told(done)
        spent.append(_spend(budget, source, target, taught, data, cache, out))
    told(len(budgets))
    return Tried(
        reference=reference_of(test, prepared.votes[name], prepared.genders[name]),
        levels=Levels(source.guesses(test), started(begun.test[name])),
        otherwise={
            way: Levels(source.guesses(examples), started(begun.otherwise[name][way]))
            for way, examples in prepared.otherwise[name].items()
            if way in begun.otherwise[name]
        },
        spent=tuple(spent),
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
    votes = scratch_recipe.data.intended_votes
    view = View(lambda split: budget.narrow(shared_classes(split, source.classes), votes), heard_alike)
    own = prepare(scratch_recipe, data, cache, _silent, view=view)
    fresh = _trained(scratch_recipe, selecting(own.training), unbought, folder / "scratch")

    def guesses(mine: Examples, theirs: Examples) -> dict[str, Guesses]:
        return {
            FINETUNED: soft_vote_guesses(tuned, encoders, mine, source.classes),
            SCRATCH: soft_vote_guesses(fresh, encoders, theirs, own.training.trained_classes),
        }

    return Spent(
        budget=budget,
        sizes=(
            Size(
                clips=len(training.train),
                validating=len(training.dev) if training.selects else 0,
                speakers=len({*training.train.speakers, *training.dev.speakers}),
            ),
        ),
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


def _silent(what: str, done: int, total: int) -> None:
    pass
