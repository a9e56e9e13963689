"""The whole run: members (stages 1 and 2) in parallel, meta-classifier, soup, calibration, evaluation, checkpoint."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from model.network.checkpoint import Checkpoint, save_checkpoint
from model.network.deepser import DeepSER
from model.spec import EnsembleSpec
from train.config import Recipe
from train.cost import EVALUATION, FEATURES, META, Cost
from train.features import Progress
from train.history import learning_curves
from train.predictions import predictions_file, write_predictions
from train.prepare import Prepared, prepare
from train.report import model_card, scores_of, write_report
from train.results import evaluate_set, results_of, words_table
from train.stacking import Stacked, stack
from train.stages.members import ALL_SPEAKERS, Job, TrainingSet, train_member

_data: TrainingSet | None = None
"""The training set of a worker process, set once by its initialiser."""


def train_ensemble(recipe: Recipe, data: Path, cache: Path, out: Path, workers: int, progress: Progress) -> Path:
    """Runs or resumes a recipe; returns the report's path.

    Args:
        recipe: what to train.
        data: folder with a sub-folder per corpus.
        cache: folder of the feature cache.
        out: folder of the run.
        workers: processes that train members side by side.
        progress: told what is done.
    """
    cost = Cost(out)
    with cost.timed(FEATURES):
        prepared = prepare(recipe, data, cache, progress)
    members = _train_members(recipe, prepared.training, data, cache, out / "members", workers, progress, cost)
    with cost.timed(META):
        trained = stack(recipe, prepared, members)
    with cost.timed(EVALUATION):
        results = _evaluate(recipe, prepared, trained, cache, out, progress)
    spec = EnsembleSpec(
        encoders=tuple(recipe.encoder_specs().values()),
        members=recipe.member_specs(),
        trained_classes=prepared.training.trained_classes,
        trained_attributes=trained.trained_attributes,
    )
    checkpoint = Checkpoint(
        name=recipe.name,
        spec=spec,
        members=trained.members,
        meta=trained.soup,
        temperature=trained.temperature,
        abstain_below=trained.abstain_below,
        metrics=scores_of(results["evaluations"]),
        training={
            "data": results["data"],
            "licence": recipe.data.licence,
            "contaminated_by": [],
            "dropped": prepared.dropped,
        },
        model_card=model_card(results),
    )
    save_checkpoint(out / "checkpoint", checkpoint)
    return write_report(out, results)


def _evaluate(
    recipe: Recipe, prepared: Prepared, trained: Stacked, cache: Path, out: Path, progress: Progress
) -> dict[str, Any]:
    evaluations = {}
    for done, name in enumerate(prepared.test):
        progress("evaluation", done, len(prepared.test))
        reference, outputs, evaluation = evaluate_set(recipe, prepared, trained, name)
        write_predictions(out / predictions_file(name), reference, outputs)
        evaluations[f"{name} (unseen speakers)"] = evaluation | {"predictions": predictions_file(name)}
    progress("evaluation", len(prepared.test), len(prepared.test))
    words = words_table(recipe, prepared, trained, cache, progress)
    results = results_of(recipe, prepared, trained, evaluations, words)
    names = tuple(member.name for member in recipe.members)
    return results | {"learning_curves": learning_curves(out / "members", names)}


def _start_worker(recipe: Recipe, data: Path, cache: Path) -> None:
    global _data  # one training set per worker process, too large to send with every job
    torch.set_num_threads(1)
    _data = prepare(recipe, data, cache, lambda what, done, total: None).training


def _run_job(job: Job, recipe: Recipe, folder: Path) -> tuple[Job, dict[str, float]]:
    """Trains one member; also returns the seconds of each stage that was not there already."""
    assert _data is not None
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def note(stage: str, row: dict[str, float]) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[stage], last = seconds.get(stage, 0.0) + now - last, now

    train_member(job, recipe, _data, folder, note)
    return job, seconds


def _train_members(
    recipe: Recipe,
    training: TrainingSet,
    data: Path,
    cache: Path,
    folder: Path,
    workers: int,
    progress: Progress,
    cost: Cost,
) -> dict[str, dict[int, DeepSER]]:
    """Every member on all speakers and without each fold: member name -> fold -> network."""
    jobs = [Job(m, fold) for m in recipe.member_specs() for fold in (ALL_SPEAKERS, *range(recipe.meta.folds))]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (recipe, data, cache)) as pool:
        running = [pool.submit(_run_job, job, recipe, folder) for job in jobs]
        for done, future in enumerate(as_completed(running), 1):
            job, seconds = future.result()
            for stage, spent in seconds.items():
                cost.add(stage, job.name, spent)
            progress("members, stages 1 and 2", done, len(jobs))
    return {
        member.name: {job.fold: train_member(job, recipe, training, folder) for job in jobs if job.member == member}
        for member in recipe.member_specs()
    }
