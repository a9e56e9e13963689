"""The end of a run, whichever way its ensemble came about: evaluation, tables of predictions, checkpoint, report."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.network.checkpoint import Checkpoint, save_checkpoint
from model.spec import EnsembleSpec, Lineage
from train.acquaintance import Acquaintance, write_speakers
from train.config import RECIPE_FILE, Recipe, plain_recipe
from train.contamination import KEY, taught_test_corpora
from train.cost import EVALUATION, Cost
from train.cross_validation import NAME, Folds, cross_validate, told_of
from train.evaluated import forget
from train.features import Progress
from train.history import learning_curves, linear_fits, meta_curves
from train.phrases import BY_FOLDS
from train.predictions import predictions_file, write_predictions
from train.prepare import TRAINING, Prepared
from train.reference import Guesses
from train.report import model_card, scores_of, write_report
from train.results import evaluate_set, fit_probes, results_of, words_table
from train.stacking import Stacked


@dataclass(frozen=True, slots=True)
class Descent:
    """What is told of a run beside its figures: what it trained, and with what it began where it did not begin anew.

    Attributes:
        lineage: the steps that made the ensemble, the first one first.
        beside: test set -> system -> its guesses `[N]`: what the ensemble is compared with, its source above all.
        limits: what a reader of the card must know.
        probes: linear probes on the training data are compared with too.
        selected: keys of the stages that it trained and that held-out speakers selected (`selected_stages`): their curves
            are shown.
        known: the speakers of the steps before, and of audio without labels.
    """

    lineage: tuple[Lineage, ...] = ()
    beside: Mapping[str, Mapping[str, Guesses]] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    probes: bool = True
    selected: frozenset[str] = frozenset()
    known: tuple[Acquaintance, ...] = ()


def finish_run(
    recipe: Recipe,
    prepared: Prepared,
    trained: Stacked,
    cache: Path,
    out: Path,
    progress: Progress,
    descent: Descent,
    folds: Folds | None = None,
) -> Path:
    """Evaluates an ensemble, writes checkpoint, report, recipe and speakers; returns the report's path.

    Args:
        recipe: of its members.
        prepared: what it was trained on and is tested with.
        trained: the ensemble.
        cache: folder of the feature cache.
        out: folder of the run.
        progress: told what is done.
        descent: where it comes from, and what it trained.
        folds: its members without each fold too, to judge the training speakers by; None for the test sets alone.
    """
    forget(out)
    with Cost(out).timed(EVALUATION):
        results = _evaluate(recipe, prepared, trained, cache, out, progress, descent, folds)
    for member in trained.members:
        member.cpu()
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
            KEY: list(taught_test_corpora(recipe)),
            "dropped": prepared.dropped,
        },
        model_card=model_card(results),
        adaptation=prepared.adaptation,
        lineage=descent.lineage,
        fallbacks=trained.fallbacks,
        prior_log_ratio={name: prior["log_ratio"] for name, prior in results["calibration"]["prior"].items()}
        if prepared.training.selects
        else {},
    )
    save_checkpoint(out / "checkpoint", checkpoint)
    training = prepared.training
    own = Acquaintance(
        recipe.data.corpus, tuple(sorted(set(training.train.speakers))), tuple(sorted(set(training.dev.speakers)))
    )
    write_speakers(out, descent.known if own in descent.known else (*descent.known, own))
    (out / RECIPE_FILE).write_text(json.dumps(plain_recipe(recipe), indent=1), encoding="utf-8")
    return write_report(out, results)


def _evaluate(
    recipe: Recipe,
    prepared: Prepared,
    trained: Stacked,
    cache: Path,
    out: Path,
    progress: Progress,
    descent: Descent,
    folds: Folds | None,
) -> dict[str, Any]:
    evaluations, probes = {}, fit_probes(recipe, prepared) if descent.probes else {}
    for done, name in enumerate(prepared.test):
        progress("evaluation", done, len(prepared.test))
        beside = descent.beside.get(name, {})
        judged = evaluate_set(recipe, prepared, trained, probes, name, beside)
        write_predictions(out / predictions_file(name), judged, prepared.word_confidence[name])
        evaluations[f"{name} (unseen speakers)"] = judged.evaluation | {"predictions": predictions_file(name)}
    if folds is not None:
        name = f"{recipe.data.corpus}, {NAME}"
        judged = cross_validate(recipe, prepared, folds, progress)
        confidence, numbers = prepared.word_confidence[TRAINING], prepared.training.folds
        write_predictions(out / predictions_file(name), judged, confidence, numbers)
        evaluations[name] = judged.evaluation | {BY_FOLDS: True, "predictions": predictions_file(name)}
    progress("evaluation", len(prepared.test), len(prepared.test))
    words = words_table(recipe, prepared, trained, cache, progress)
    results = results_of(recipe, prepared, trained, evaluations, words)
    if descent.lineage:
        results["lineage"] = [asdict(step) for step in descent.lineage]
        results["data"] = [*map(str, descent.lineage), *results["data"]]
    if folds is not None:
        results["data"].append(told_of(recipe))
    results["limits"] = [*descent.limits, *results["limits"]]
    names = tuple(member.name for member in recipe.members)
    curves = learning_curves(out / "members", names, descent.selected) + meta_curves(out / "meta")
    fits = linear_fits(out / "members", names, descent.selected)
    return results | {"learning_curves": curves, "linear_fits": fits}
