"""The whole run: members (stages 1 and 2) in parallel, meta-classifier, soup, calibration, evaluation, checkpoint."""

import multiprocessing
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model.labels import CLASSES
from model.network.checkpoint import Checkpoint, save_checkpoint
from model.network.deepser import DeepSER
from model.network.metaclassifier import MetaClassifier
from model.spec import EnsembleSpec
from train.config import Recipe
from train.dataset import TEXT, Examples, concatenate
from train.evaluate import compare, majority_vote, probe_guesses
from train.features import Progress, extract_text
from train.loop import class_bias, predict
from train.prepare import Prepared, prepare
from train.report import model_card, write_report
from train.stages.members import ALL_SPEAKERS, Job, TrainingSet, draw_training, out_of_fold, train_member
from train.stages.meta import fit_temperature, meta_posterior, soup, stacked_outputs, train_meta

_ABSTAIN_QUANTILE = 0.1
"""Share of held-out utterances, the least confident, on which the ensemble abstains."""
SOUP = "soup of meta-classifiers"

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
    prepared = prepare(recipe, data, cache, progress)
    members = _train_members(recipe, prepared.training, data, cache, out / "members", workers, progress)
    trained = _stack(recipe, prepared, members)
    results = _results(recipe, prepared, trained, cache, progress)
    spec = EnsembleSpec(
        encoders=tuple(recipe.encoder_specs().values()),
        members=recipe.member_specs(),
        trained_classes=prepared.training.trained_classes,
        trained_attributes=(),
    )
    checkpoint = Checkpoint(
        name=recipe.name,
        spec=spec,
        members=trained.members,
        meta=trained.soup,
        temperature=trained.temperature,
        abstain_below=trained.abstain_below,
        metrics=results["evaluations"],
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


def _start_worker(recipe: Recipe, data: Path, cache: Path) -> None:
    global _data  # one training set per worker process, too large to send with every job
    torch.set_num_threads(1)
    _data = prepare(recipe, data, cache, lambda what, done, total: None).training


def _run_job(job: Job, recipe: Recipe, folder: Path) -> Job:
    assert _data is not None
    train_member(job, recipe, _data, folder)
    return job


def _train_members(
    recipe: Recipe, training: TrainingSet, data: Path, cache: Path, folder: Path, workers: int, progress: Progress
) -> dict[str, dict[int, DeepSER]]:
    """Every member on all speakers and without each fold: member name -> fold -> network."""
    jobs = [Job(m, fold) for m in recipe.member_specs() for fold in (ALL_SPEAKERS, *range(recipe.meta.folds))]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (recipe, data, cache)) as pool:
        running = [pool.submit(_run_job, job, recipe, folder) for job in jobs]
        for done, future in enumerate(as_completed(running), 1):
            future.result()
            progress("members, stages 1 and 2", done, len(jobs))
    return {
        member.name: {job.fold: train_member(job, recipe, training, folder) for job in jobs if job.member == member}
        for member in recipe.member_specs()
    }


@dataclass(frozen=True, slots=True)
class _Stacked:
    members: tuple[DeepSER, ...]
    runs: tuple[MetaClassifier, ...]
    soup: MetaClassifier
    temperature: float
    abstain_below: float


def _stack(recipe: Recipe, prepared: Prepared, members: Mapping[str, Mapping[int, DeepSER]]) -> _Stacked:
    """Stages 3 and 4, and calibration on the development speakers."""
    training, encoders = prepared.training, recipe.encoder_specs()
    full = tuple(folds[ALL_SPEAKERS] for folds in members.values())
    drawn = [
        draw_training(recipe, training, training.copies, np.random.default_rng([recipe.seed, draw]))
        for draw in range(recipe.meta.draws)
    ]
    outputs = torch.cat(
        [
            stacked_outputs(
                [
                    out_of_fold({f: m for f, m in folds.items() if f != ALL_SPEAKERS}, encoders, examples, training)
                    for folds in members.values()
                ]
            )
            for examples in drawn
        ]
    )
    together = concatenate(drawn)
    classes = training.trained_classes
    runs = tuple(train_meta(outputs, together, classes, recipe.meta, seed) for seed in recipe.meta.seeds)
    mixed = soup(runs)
    dev_outputs = _member_outputs(recipe, full, training.dev, classes)
    bias = class_bias(classes)
    with torch.no_grad():
        temperature = fit_temperature(mixed(dev_outputs)[0], training.dev.targets, bias)
    confidence = meta_posterior(mixed, dev_outputs, bias, temperature).max(axis=1)
    return _Stacked(full, runs, mixed, temperature, float(np.quantile(confidence, _ABSTAIN_QUANTILE)))


def _member_outputs(
    recipe: Recipe, members: tuple[DeepSER, ...], examples: Examples, classes: tuple[str, ...]
) -> torch.Tensor:
    encoders, bias = recipe.encoder_specs(), class_bias(classes)
    return stacked_outputs([predict(member, encoders, examples, bias) for member in members])


_LIMITS = (
    "Acted speech of twelve short English sentences: spontaneous speech is harder, and these figures do not carry over.",
    "Other recordings (another corpus, a telephone, noise) are scored worse: see the other tables.",
    "The recipe (which features, how many degraded copies) was chosen with an eye on these test tables: they flatter a little.",
    "English only. The word branch learned from written comments.",
    "Arousal, valence and dominance were not trained.",
    "An emotion posterior is a guess at what a listener would hear, not a fact about a person.",
)


def _results(recipe: Recipe, prepared: Prepared, trained: _Stacked, cache: Path, progress: Progress) -> dict[str, Any]:
    classes = prepared.training.trained_classes
    evaluations = {f"{name} (unseen speakers)": _evaluate(recipe, prepared, trained, name) for name in prepared.test}
    data, training = recipe.data, prepared.training
    untrained = [name for name in CLASSES if name not in classes]
    return {
        "name": f"medusa-rt {recipe.name}",
        "summary": (
            f"{len(trained.members)} DeepSER members ({', '.join(m.spec.name for m in trained.members)}), a linear "
            f"meta-classifier on their out-of-fold outputs, a soup of {len(trained.runs)} runs. "
            f"Classes: {', '.join(classes)}. Never trained, so with probability exactly 0: {', '.join(untrained)}."
        ),
        "data": [
            f"Trained on {data.corpus}: {len(training.train)} clips of {len(set(training.train.speakers))} speakers.",
            f"Selected and calibrated on {len(set(training.dev.speakers))} other speakers.",
            f"Degraded copies of every clip (rooms, microphones, noise, telephone lines): {data.degraded_copies}.",
            f"Licence of the data: {data.licence}.",
            f"Soft targets: the raters' votes, the actor's intention counted as {data.intended_votes:g} raters.",
        ],
        "evaluations": evaluations,
        "words": _words(recipe, prepared, trained, cache, progress),
        "words_note": (
            "Flat recordings (neutral clips of unseen speakers) scored with different words in the place of their "
            "transcript, mean posterior: words should move it where they carry emotion, and leave it alone where not."
        ),
        "limits": list(_LIMITS),
    }


def _evaluate(recipe: Recipe, prepared: Prepared, trained: _Stacked, corpus: str) -> dict[str, Any]:
    test, votes = prepared.test[corpus], prepared.votes[corpus]
    bias = class_bias(prepared.training.trained_classes)
    encoders = recipe.encoder_specs()
    predictions = [predict(member, encoders, test, bias) for member in trained.members]
    outputs = stacked_outputs(predictions)
    posteriors = np.stack([posterior for posterior, _ in predictions], axis=1)
    copies = prepared.training.copies
    probes = [probe_guesses(seen, test) for seen in (copies[0], concatenate(copies))]
    posterior = meta_posterior(trained.soup, outputs, bias, trained.temperature)
    systems: dict[str, npt.NDArray[np.int64]] = {
        "linear probe": probes[0],
        "linear probe, degraded copies too": probes[1],
        **{f"member {m.spec.name}": posteriors[:, i].argmax(axis=1) for i, m in enumerate(trained.members)},
        "majority vote": majority_vote(posteriors),
        "soft vote": posteriors.mean(axis=1).argmax(axis=1),
        "single meta-classifier": meta_posterior(trained.runs[0], outputs, bias, 1.0).argmax(axis=1),
        SOUP: posterior.argmax(axis=1),
    }
    tied = np.sort(votes, axis=1)[:, -1] - np.sort(votes, axis=1)[:, -2] < 1e-3
    voted = np.where(tied, -1, votes.argmax(axis=1))
    return compare(test, voted, systems, SOUP, posterior, votes)


_EXAMPLES = (
    "",
    "The airplane is almost full.",
    "I am so angry with your service.",
    "This is absolutely disgusting.",
    "I am really scared that something bad will happen.",
    "I am so sorry for your loss, this is heartbreaking.",
    "Thank you so much, that is wonderful news!",
)


def _words(
    recipe: Recipe, prepared: Prepared, trained: _Stacked, cache: Path, progress: Progress
) -> list[dict[str, str]]:
    """Flat recordings of unseen speakers scored with different words: mean posterior over the clips."""
    encoders = recipe.encoder_specs()
    if TEXT not in encoders:
        return []
    test = prepared.test[recipe.data.corpus]
    flat = test.subset(np.flatnonzero(test.targets[:, CLASSES.index("neutral")] > 0.9))
    if not len(flat):
        return []
    frames = extract_text({text: text for text in _EXAMPLES}, encoders[TEXT], cache, progress)
    bias = class_bias(prepared.training.trained_classes)
    rows = []
    for text in _EXAMPLES:
        spoken = replace(flat, frames={**flat.frames, TEXT: [frames[text]] * len(flat)})
        outputs = _member_outputs(recipe, trained.members, spoken, prepared.training.trained_classes)
        mean = meta_posterior(trained.soup, outputs, bias, trained.temperature).mean(axis=0)
        shown = ", ".join(f"{CLASSES[i]} {mean[i]:.2f}" for i in np.argsort(-mean)[:4])
        rows.append({"text": text, "top": CLASSES[int(mean.argmax())], "shown": shown})
    return rows
