"""The whole run: members (stages 1 and 2) in parallel, meta-classifier, soup, calibration; `train.finish` does the rest."""

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Final

import torch

from model.network.member import Member
from train.config import Recipe
from train.cost import FEATURES, META, Cost
from train.errors import RunError
from train.evaluated import evaluation_key, is_evaluated, remember
from train.execution import Ranks, device_of, join_ranks, keep_freed_memory, leave_ranks
from train.features import Progress
from train.finish import Descent, finish_run
from train.history import write_meta_histories
from train.prepare import Prepared, prepare
from train.report import PAGE_FILE
from train.stacking import Stacked, stack
from train.stages.members import (
    ALL_SPEAKERS,
    Job,
    Place,
    TrainingSet,
    is_trained,
    last_key,
    selected_stages,
    train_member,
)
from train.stored_stack import load_stacked, save_stacked, stack_key

_NAMED: Final = 5
"""Missing members that a message names."""

_worker: tuple[TrainingSet, Place] | None = None
"""What a worker process trains on, and where; set once by its initialiser."""


@dataclass(frozen=True, slots=True)
class Task:
    """One member to train into a folder; its recipe may differ from others' in all but the data and the encoders."""

    job: Job
    recipe: Recipe
    folder: Path


def train_ensemble(recipe: Recipe, data: Path, cache: Path, out: Path, workers: int, progress: Progress) -> Path:
    """Runs or resumes a recipe; returns the report's path. What is there is not done again, the evaluation neither.

    Started by torchrun, the processes train each member together, one after the other; the first does all the rest.

    Args:
        recipe: what to train.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the run.
        workers: processes that train members side by side; without effect under torchrun.
        progress: told what is done.

    Raises:
        RecipeError: if the recipe asks for a device that is not here.
    """
    prepared = train_members(recipe, data, cache, out, workers, progress)
    if prepared is None:
        return out / PAGE_FILE
    train_meta_classifiers(recipe, prepared, out)
    if is_evaluated(out, evaluation_key(recipe, prepared, _stack_key(recipe, prepared))):
        progress("evaluation", len(prepared.test), len(prepared.test))
        return out / PAGE_FILE
    return evaluate_run(recipe, prepared, cache, out, progress)


def train_members(
    recipe: Recipe, data: Path, cache: Path, out: Path, workers: int, progress: Progress
) -> Prepared | None:
    """Features, and stages 1 and 2 of every member, as far as they are not there.

    Args:
        recipe: what to train.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the run.
        workers: processes that train members side by side; without effect under torchrun.
        progress: told what is done.

    Returns:
        What members were trained on; None in the processes of torchrun that have only helped.

    Raises:
        RecipeError: if the recipe asks for a device that is not here.
    """
    device_of(recipe.compute.device)
    ranks = join_ranks()
    try:
        if ranks.rank > 0:
            _help(recipe, data, cache, out, ranks)
            return None
        cost = Cost(out)
        with cost.timed(FEATURES):
            prepared = prepare(recipe, data, cache, progress)
        ranks.wait()
        if ranks.world > 1:
            _train_together(recipe, prepared.training, out / "members", ranks, progress, cost)
        else:
            tasks = [Task(job, recipe, out / "members") for job in jobs_of(recipe)]
            for task, seconds in train_side_by_side(tasks, recipe, data, cache, workers, progress):
                _note(cost, task.job, seconds)
        return prepared
    finally:
        leave_ranks()


def train_meta_classifiers(recipe: Recipe, prepared: Prepared, out: Path) -> Stacked:
    """Stages 3 and 4 and calibration on the members of a run, or their result if the folder already has it.

    Raises:
        RecipeError: if the recipe asks for a device that is not here.
        RunError: if a member of this recipe and data is not there.
    """
    members, key = _finished_members(recipe, prepared, out)
    kept = load_stacked(out / "meta", key, _on_all_speakers(members))
    if kept is not None:
        return kept
    with Cost(out).timed(META):
        trained = stack(recipe, prepared, members)
    write_meta_histories(out / "meta", dict(zip(recipe.meta.seeds, trained.histories, strict=True)))
    save_stacked(out / "meta", key, trained)
    return trained


def _finished_members(recipe: Recipe, prepared: Prepared, out: Path) -> tuple[dict[str, dict[int, Member]], str]:
    """The members that a run's folder holds, and the key of what stages 3 and 4 make of them."""
    device, folder, content = device_of(recipe.compute.device), out / "members", prepared.training.content
    jobs = jobs_of(recipe)
    missing = [job.name for job in jobs if not is_trained(job, recipe, content, folder)]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise RunError(
            f"{folder} lacks {len(missing)} of {len(jobs)} members as this recipe and data make them ({named}): "
            f"medusa-train members --out {out} trains them"
        )
    return read_members(recipe, prepared.training, folder, device), _stack_key(recipe, prepared)


def _stack_key(recipe: Recipe, prepared: Prepared) -> str:
    return stack_key(recipe, [last_key(job, recipe, prepared.training.content) for job in jobs_of(recipe)])


def _on_all_speakers(members: Mapping[str, Mapping[int, Member]]) -> tuple[Member, ...]:
    return tuple(folds[ALL_SPEAKERS] for folds in members.values())


def evaluate_run(recipe: Recipe, prepared: Prepared, cache: Path, out: Path, progress: Progress) -> Path:
    """Evaluates what stages 1 to 4 have left, anew, writes checkpoint and report; returns the report's path.

    Raises:
        RecipeError: if the recipe asks for a device that is not here.
        RunError: if the result of a stage is not there.
    """
    members, key = _finished_members(recipe, prepared, out)
    trained = load_stacked(out / "meta", key, _on_all_speakers(members))
    if trained is None:
        raise RunError(
            f"{out / 'meta'} holds no meta-classifiers on these members: medusa-train meta --out {out} trains them"
        )
    new = Descent(selected=selected_stages(jobs_of(recipe), recipe, prepared.training))
    page = finish_run(recipe, prepared, trained, cache, out, progress, new, folds=members)
    remember(out, evaluation_key(recipe, prepared, key))
    return page


def jobs_of(recipe: Recipe) -> list[Job]:
    """Every member on all speakers and without each fold."""
    return [Job(m, fold) for m in recipe.member_specs() for fold in (ALL_SPEAKERS, *range(recipe.meta.folds))]


def _train_timed(job: Job, recipe: Recipe, data: TrainingSet, folder: Path, place: Place) -> dict[str, float]:
    """Trains one member; the seconds of each stage that was not there already."""
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def note(stage: str, row: dict[str, float]) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[stage], last = seconds.get(stage, 0.0) + now - last, now

    train_member(job, recipe, data, folder, note, place)
    return seconds


def _start_worker(recipe: Recipe, data: Path, cache: Path, numbers: "Synchronized[int]") -> None:
    global _worker  # one training set per worker process, too large to send with every job
    torch.set_num_threads(1)
    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    place = Place(device_of(recipe.compute.device, number))
    _worker = prepare(recipe, data, cache, _silent).training, place
    keep_freed_memory()


def _run_task(task: Task) -> tuple[Task, dict[str, float]]:
    assert _worker is not None
    data, place = _worker
    return task, _train_timed(task.job, task.recipe, data, task.folder, place)


def _silent(what: str, done: int, total: int) -> None:
    pass


def train_side_by_side(
    tasks: Sequence[Task], recipe: Recipe, data: Path, cache: Path, workers: int, progress: Progress
) -> Iterator[tuple[Task, dict[str, float]]]:
    """Trains members in processes of their own, as many at a time as there are workers.

    Args:
        tasks: what to train; no two of them write the same files.
        recipe: names the data and the device.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        workers: processes.
        progress: told what is done.

    Yields:
        Each task when it is done, with the seconds of every stage that was not there already.
    """
    context = multiprocessing.get_context("spawn")
    numbers = context.Value("i", 0)
    with ProcessPoolExecutor(workers, context, _start_worker, (recipe, data, cache, numbers)) as pool:
        running = [pool.submit(_run_task, task) for task in tasks]
        for done, future in enumerate(as_completed(running), 1):
            yield future.result()
            progress("members, stages 1 and 2", done, len(tasks))


def _train_together(
    recipe: Recipe, training: TrainingSet, folder: Path, ranks: Ranks, progress: Progress, cost: Cost | None
) -> None:
    """One member after the other, by all processes together."""
    place, jobs = Place(device_of(recipe.compute.device, ranks.on_machine), ranks), jobs_of(recipe)
    for done, job in enumerate(jobs, 1):
        seconds = _train_timed(job, recipe, training, folder, place)
        if cost is not None:
            _note(cost, job, seconds)
        progress("members, stages 1 and 2", done, len(jobs))


def _help(recipe: Recipe, data: Path, cache: Path, out: Path, ranks: Ranks) -> None:
    """What every process but the first does: its share of the members, once the first has extracted the features."""
    ranks.wait()
    training = prepare(recipe, data, cache, _silent).training
    _train_together(recipe, training, out / "members", ranks, _silent, None)


def _note(cost: Cost, job: Job, seconds: dict[str, float]) -> None:
    for stage, spent in seconds.items():
        cost.add(stage, job.name, spent)


def read_members(
    recipe: Recipe, training: TrainingSet, folder: Path, device: torch.device
) -> dict[str, dict[int, Member]]:
    """What was trained: member name -> fold -> network, on `device`."""
    members: dict[str, dict[int, Member]] = {member.name: {} for member in recipe.member_specs()}
    for job in jobs_of(recipe):
        members[job.member.name][job.fold] = train_member(job, recipe, training, folder).to(device)
    return members
