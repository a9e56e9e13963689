"""What a whole run on a corpus of a dozen made-up speakers leaves behind."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.bundle import write_bundle
from model.labels import CLASSES
from model.network.checkpoint import load_checkpoint
from model.runtime import load_runtime
from model.sources import sha256_of
from tests.train.tiny_run import SPEAKERS, TRAINED, Run
from train.cache import pinned
from train.calibration import correct_prior
from train.config import ComputeConfig, Recipe
from train.corpora import read_corpus
from train.cost import EVALUATION, FEATURES, META, STAGE_1, STAGE_2
from train.cross_validation import NAME
from train.dataset import tensors
from train.errors import CorpusError, RecipeError
from train.history import META as META_CURVES
from train.prepare import prepare
from train.report import render
from train.results import ADAPTED_PROBE, SOUP
from train.run import train_ensemble
from train.transcripts import CONFIDENCE, TranscriptCache

ROOT = Path(__file__).parents[2]


def test_a_run_leaves_a_checkpoint_that_says_how_it_came_about(run: Run) -> None:
    checkpoint = load_checkpoint(run.out / "checkpoint")
    assert [member.spec.name for member in checkpoint.members] == ["voice", "words"]
    assert checkpoint.spec.members == run.recipe.member_specs()
    assert set(checkpoint.spec.trained_classes) == set(TRAINED)
    assert checkpoint.spec.trained_attributes == ()
    assert checkpoint.temperature > 0
    assert 0 < checkpoint.abstain_below < 1
    assert [fallback.spec.members for fallback in checkpoint.fallbacks] == [("voice",)]
    assert checkpoint.training["licence"] == run.recipe.data.licence
    assert checkpoint.training["contaminated_by"] == ["text"], "names of encoders, as in every row"
    assert "so that its figures flatter: text: ravdess." in checkpoint.model_card
    assert checkpoint.training["dropped"] == {
        "cremad": {"votes without clip": 1},
        "ravdess": {"class that was not trained": 2},
    }
    assert "Never trained, so with probability exactly 0: happy, surprise, fear, contempt" in checkpoint.model_card


def test_results_are_of_unseen_speakers_and_have_intervals(run: Run) -> None:
    page, results = (run.out / "report.html").read_text(), json.loads((run.out / "report.json").read_text())
    assert "NaN" not in (run.out / "report.json").read_text()
    assert "<script" not in page
    assert "http" not in page
    sets = [f"{name} (unseen speakers)" for name in ("cremad", "cremad, degraded", "ravdess")]
    systems = {"majority vote", "soft vote", "single meta-classifier", "member voice", "member words", SOUP}
    own, degraded, other = (results["evaluations"].pop(name) for name in sets)
    assert own["calibration"]["vote_loss"] is not None
    assert other["calibration"]["vote_loss"] is other["jensen_shannon"] is None, "RAVDESS has no raters"
    assert {score["voted_uar"] for score in other["systems"].values()} == {None}
    assert own["genders"].keys() == {"female", "male", "gap"}
    again = results["evaluations"].pop(f"cremad, {NAME}")
    assert results["evaluations"] == {}
    assert systems | {"linear probe", ADAPTED_PROBE} < again["systems"].keys() < own["systems"].keys()
    training = prepare(run.recipe, run.data, run.cache, lambda *call: None).training.train
    assert tuple(row["id"] for row in rows_of(run, again)) == training.ids
    assert {row["fold"] for row in rows_of(run, again)} == {"0", "1"}
    told = f"{len(training)} clips of {len(set(training.speakers))} training speakers, each judged by an ensemble whose members"
    for text in (page, (run.out / "MODEL_CARD.md").read_text()):
        assert text.count(told) == 1
        assert text.count("speakers that no stage saw") == 3
    assert f"cremad, {NAME}" not in load_checkpoint(run.out / "checkpoint").metrics, "of no ensemble that ships"
    assert not {row["speaker"] for row in rows_of(run, again)} & {row["speaker"] for row in rows_of(run, own)}
    assert (own["speakers"], other["speakers"], other["clips"]) == (3, 2, 4)
    assert (degraded["speakers"], degraded["clips"]) == (3, own["clips"])
    assert systems < set(own["systems"])
    for score in own["systems"].values():
        assert score["micro_f1"] == score["accuracy"]
        for metric in ("uar", "macro_f1", "accuracy"):
            assert 0.0 <= score[metric]["low"] <= score[metric]["value"] <= score[metric]["high"] <= 1.0
    for found in (own, degraded):
        assert all(score["contaminated_by"] == [] for score in found["systems"].values())
    heard = {"member voice", "fallback 1: voice", "linear probe", "linear probe, degraded copies too", ADAPTED_PROBE}
    flattered = {name for name, score in other["systems"].items() if score["contaminated_by"] == ["text"]}
    assert flattered == set(other["systems"]) - heard, "what reads the text encoder, whose labels were this corpus'"
    assert {name for name, score in other["systems"].items() if not score["contaminated_by"]} == heard
    assert set(own["uar_gain_of_soup"]) == set(own["systems"]) - {SOUP}
    assert np.sum(own["confusion"]) == own["clips"]
    for system in systems:
        assert system in page


def test_calibration_is_fitted_on_the_development_speakers(run: Run) -> None:
    results = json.loads((run.out / "report.json").read_text())
    dev = prepare(run.recipe, run.data, run.cache, lambda *call: None).training.dev
    found, checkpoint = results["calibration"], load_checkpoint(run.out / "checkpoint")
    assert (found["clips"], found["speakers"]) == (len(dev), len(set(dev.speakers)))
    assert (found["temperature"], found["abstain_below"]) == (checkpoint.temperature, checkpoint.abstain_below)
    assert tuple(found["prior"]) == TRAINED
    assert checkpoint.prior_log_ratio == {name: prior["log_ratio"] for name, prior in found["prior"].items()}
    for kind in ("heard", "taught"):
        assert sum(prior[kind] for prior in found["prior"].values()) == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        posterior = checkpoint.ensemble()(*tensors(dev.frames, run.recipe.encoder_specs()))[0].numpy()
    ratio = np.ones(8)
    for name, prior in found["prior"].items():
        ratio[CLASSES.index(name)] = np.exp(prior["log_ratio"])
    np.testing.assert_allclose(
        correct_prior(posterior, ratio).mean(axis=0), dev.targets.mean(axis=0), atol=1.5 / len(dev)
    )


def rows_of(run: Run, evaluation: dict[str, Any]) -> list[dict[str, str]]:
    """The table of posteriors that an evaluation left."""
    with (run.out / evaluation["predictions"]).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_test_clip_stands_in_a_table_with_its_posterior(run: Run) -> None:
    prepared = prepare(run.recipe, run.data, run.cache, lambda *call: None)
    results = json.loads((run.out / "report.json").read_text())
    for name, examples in prepared.test.items():
        evaluation = results["evaluations"][f"{name} (unseen speakers)"]
        rows = rows_of(run, evaluation)
        assert [(row["id"], row["speaker"]) for row in rows] == list(zip(examples.ids, examples.speakers, strict=True))
        right = sum(row["top"] == row["intended"] for row in rows)
        assert right / len(rows) == evaluation["systems"][SOUP]["accuracy"]["value"]
        assert {row["vote_angry"] == "" for row in rows} == {name == "ravdess"}
        assert {row["gender"] for row in rows} == {"female", "male"}


def test_tables_tell_how_sure_the_recogniser_was(run: Run) -> None:
    """Of the words that are read: a degraded copy is given those of its recording."""
    evaluations = json.loads((run.out / "report.json").read_text())["evaluations"]
    tables = {name.partition(" (")[0]: rows_of(run, evaluation) for name, evaluation in evaluations.items()}
    told = {
        name: {row["id"]: [float(row[f"words_{kind}"]) for kind in CONFIDENCE] for row in rows}
        for name, rows in tables.items()
    }
    assert len(told) == 4
    assert told["cremad"] == told["cremad, degraded"]
    cache = TranscriptCache(run.cache, pinned(run.recipe.encoder_specs()["whisper"]))
    for name, by_clip in told.items():
        clips = read_corpus(name.partition(",")[0], run.data).clips
        heard = cache.confidence({clip.id: sha256_of(clip.audio) for clip in clips if clip.id in by_clip})
        assert by_clip.keys() == heard.keys()
        for clip, values in by_clip.items():
            np.testing.assert_allclose(values, heard[clip], rtol=1e-5)


def test_curves_and_seconds_of_every_member_and_stage_are_kept(run: Run) -> None:
    results, cost = json.loads((run.out / "report.json").read_text()), json.loads((run.out / "cost.json").read_text())
    jobs = [(member, fold) for member in ("voice", "words") for fold in (None, 0, 1)]
    curves = [(row["member"], row["fold"], row["stage"]) for row in results["learning_curves"]]
    assert (
        curves
        == [(*job, stage) for job in jobs for stage in ("stage1", "stage2")] + [(META_CURVES, None, "stage3")] * 2
    )
    runs = results["learning_curves"][-2:]
    assert [(row["seed"], len(row["loss"]), row["best_epoch"]) for row in runs] == [(1, 2, 1), (2, 2, 1)]
    assert "Meta-classifiers" in (run.out / "report.html").read_text()
    names = {member + ("" if fold is None else f"-without-fold-{fold}") for member, fold in jobs}
    assert set(cost) == {FEATURES, STAGE_1, STAGE_2, META, EVALUATION}
    assert set(cost[STAGE_1]) == set(cost[STAGE_2]) == names
    assert all(seconds > 0 for jobs in cost.values() for seconds in jobs.values())


def test_seeds_and_the_soup_s_ingredients_are_told(run: Run) -> None:
    seeds = json.loads((run.out / "report.json").read_text())["seeds"]
    assert seeds["members"] == {"voice": 1, "words": 2}
    assert seeds["meta"] == [1, 2]
    assert seeds["soup"] == {"kind": "uniform", "ingredients": [1, 2]}


def test_two_processes_train_the_members_that_one_trains(run: Run, tmp_path: Path) -> None:
    stage = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "accumulate": 2}
    # Without dropout, which every process draws for itself.
    whole = run.recipe.model_dump() | {"member_defaults": {**run.recipe.member_defaults.model_dump(), "dropout": 0.0}}
    recipe = Recipe.model_validate(whole | {"stage1": stage, "stage2": stage})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(), encoding="utf-8")
    train_ensemble(recipe, run.data, run.cache, tmp_path / "one", 1, lambda *call: None)
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program += ["-m", "tests.train.run_program", *map(str, (tmp_path / "recipe.json", run.data, run.cache))]
    subprocess.run([*program, str(tmp_path / "two")], cwd=ROOT, check=True, capture_output=True, text=True)
    one, two = (load_checkpoint(tmp_path / name / "checkpoint") for name in ("one", "two"))
    dev = prepare(recipe, run.data, run.cache, lambda *call: None).training.dev
    inputs = tensors(dev.frames, recipe.encoder_specs())
    with torch.no_grad():
        for single, shared in zip(one.members, two.members, strict=True):
            torch.testing.assert_close(shared(*inputs)[0], single(*inputs)[0], atol=1e-3, rtol=1e-3)
    notes = [json.loads((tmp_path / n / "members" / "voice.stage1.json").read_text()) for n in ("one", "two")]
    assert notes[0]["steps"] == notes[1]["steps"] > 0
    assert notes[0]["key"] == notes[1]["key"]
    assert (tmp_path / "two" / "report.html").is_file()


def test_a_device_that_is_not_here_stops_the_run_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("is about machines without a GPU")
    recipe = run.recipe.model_copy(update={"compute": ComputeConfig(device="cuda")})
    with pytest.raises(RecipeError, match="no CUDA device"):
        train_ensemble(recipe, run.data, run.cache, tmp_path / "out", 1, lambda *call: None)
    assert list(tmp_path.iterdir()) == []


def test_the_card_and_the_page_can_be_made_again(run: Run, tmp_path: Path) -> None:
    for name in ("report.json", "cost.json"):
        shutil.copy(run.out / name, tmp_path / name)
    render(tmp_path)
    for name in ("report.html", "MODEL_CARD.md"):
        assert (tmp_path / name).read_bytes() == (run.out / name).read_bytes()
    card = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == load_checkpoint(run.out / "checkpoint").model_card
    limits = card[card.index("## Limits") :]
    for note in run.recipe.notes:
        assert f"- {note}\n" in limits
    assert len(run.recipe.notes) == 5
    assert "Not trained, because no clip was rated for it: arousal, valence, dominance." in limits


def test_parts_share_no_speaker(run: Run) -> None:
    prepared = prepare(run.recipe, run.data, run.cache, lambda *call: None)
    training, test = prepared.training, prepared.test["cremad"]
    parts = [set(examples.speakers) for examples in (training.train, training.dev, test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(SPEAKERS)
    fold_of = {(speaker, fold) for speaker, fold in zip(training.train.speakers, training.folds, strict=True)}
    assert len(fold_of) == len(set(training.train.speakers))
    assert set(training.folds) == {0, 1}
    assert training.trained_classes == TRAINED
    for examples, votes in ((prepared.test[name], prepared.votes[name]) for name in prepared.test):
        np.testing.assert_allclose(votes.sum(axis=1), 1.0, atol=1e-5)
        assert len(votes) == len(examples)
    rows = [row for row, name in enumerate(test.ids) if "_SAD_" in name]
    np.testing.assert_allclose(prepared.votes["cremad"][rows][:, CLASSES.index("sad")], 4 / 9, atol=1e-4)


def test_degraded_copies_keep_the_words_of_their_recording(run: Run) -> None:
    prepared = prepare(run.recipe, run.data, run.cache, lambda *call: None)
    training, (clean, degraded) = prepared.training, prepared.alone[0]
    assert clean.ids == degraded.ids
    for row in range(len(clean)):
        np.testing.assert_array_equal(clean.frames["text"][row], degraded.frames["text"][row])
        assert clean.frames["whisper"][row].tobytes() != degraded.frames["whisper"][row].tobytes()
    assert training.dev.ids[: len(training.dev) // 2] == training.dev.ids[len(training.dev) // 2 :]


def test_the_checkpoint_becomes_a_bundle_that_scores_alike(run: Run, tmp_path: Path) -> None:
    write_bundle(run.out / "checkpoint", tmp_path / "bundle")
    runtime = load_runtime(tmp_path / "bundle", threads=1)
    test = prepare(run.recipe, run.data, run.cache, lambda *call: None).test["cremad"]
    items = [{name: rows[row].astype(np.float32) for name, rows in test.frames.items()} for row in range(len(test))]
    scored = runtime.ensemble.score(items)
    checkpoint = load_checkpoint(run.out / "checkpoint")
    with torch.no_grad():
        expected = checkpoint.ensemble()(*tensors(test.frames, run.recipe.encoder_specs()))[0].numpy()
    np.testing.assert_allclose([posteriors.probabilities for posteriors in scored], expected, atol=1e-4)
    untrained = [CLASSES.index(name) for name in CLASSES if name not in TRAINED]
    assert all(posteriors.probabilities[index] == 0.0 for posteriors in scored for index in untrained)
    assert all(posteriors.attributes == (None, None, None) for posteriors in scored)


def test_a_corpus_that_is_missing_stops_the_run_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cremad"):
        train_ensemble(run.recipe, tmp_path, tmp_path / "cache", tmp_path / "out", 1, lambda *call: None)
    assert list(tmp_path.iterdir()) == []
