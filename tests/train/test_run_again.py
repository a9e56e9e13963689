"""Runs that go on, are made again, and are made stage by stage: each ends in what one run makes, and nothing is done twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from tests.train.tiny_run import Run
from train.cli import app
from train.config import Recipe, load_recipe
from train.errors import RunError
from train.evaluated import evaluation_key, forget, is_evaluated, remember
from train.prepare import prepare
from train.run import evaluate_run, train_meta_classifiers


def test_a_killed_run_continues_where_it_stopped(run: Run, tmp_path: Path) -> None:
    """One stage of one member is done again; all else is read, and the results are the same."""
    killed = Path(shutil.copytree(run.out, tmp_path / "out"))
    for path in killed.glob("members/words-without-fold-1.stage2.*"):
        path.unlink()
    shutil.rmtree(killed / "checkpoint")
    before = {path: path.stat().st_mtime_ns for path in (*killed.rglob("members/*"), *run.cache.rglob("*.safetensors"))}
    calls = run.again(killed)
    assert {what for what, _, _ in calls} == {
        "members, stages 1 and 2",
        "evaluation",
        "cross-validation",
    }  # no features
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path.name for path in (killed / "members").iterdir() if path not in before} == {
        "words-without-fold-1.stage2.json",
        "words-without-fold-1.stage2.safetensors",
    }
    for name in ("report.json", "checkpoint/meta.safetensors", "checkpoint/members/words.safetensors"):
        assert (killed / name).read_bytes() == (run.out / name).read_bytes()


def test_a_second_run_does_nothing_but_what_has_changed(run: Run, tmp_path: Path) -> None:
    """The evaluation is read too, unless a file of it is gone or the recipe is another; `evaluate` makes it anew."""
    out = Path(shutil.copytree(run.out, tmp_path / "out"))

    def times() -> dict[str, int]:
        kept = (path for path in out.rglob("*") if path.is_file() and path.name != "cost.json")
        return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in kept}

    before = times()
    calls = run.again(out)
    assert times() == before
    assert ("evaluation", 3, 3) in calls, "the bar is full"
    assert "cross-validation" not in {what for what, _, _ in calls}
    (out / "predictions" / "ravdess.csv").unlink()
    assert "cross-validation" in {what for what, _, _ in run.again(out)}
    assert times().keys() == before.keys()
    again = times()
    renamed = replace(run, recipe=run.recipe.model_copy(update={"notes": ("told otherwise",)}))
    renamed.again(out)
    assert "told otherwise" in (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    changed = {name for name, when in times().items() if when != again[name]}
    assert {"report.json", "evaluated.json"} <= changed
    assert not any(name.startswith(("members/", "meta/")) for name in changed)
    prepared = prepare(run.recipe, run.data, run.cache, lambda *call: None)
    evaluate_run(run.recipe, prepared, run.cache, out, lambda *call: None)
    assert times()["report.json"] > again["report.json"]


def test_an_evaluation_of_another_program_or_a_killed_one_does_not_count(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(run.recipe, run.data, run.cache, lambda *call: None)
    key = evaluation_key(run.recipe, prepared, "stack")
    assert key == evaluation_key(run.recipe, prepared, "stack")
    assert key != evaluation_key(run.recipe, prepared, "other")
    fewer = replace(prepared, test={name: test for name, test in prepared.test.items() if name != "ravdess"})
    assert key != evaluation_key(run.recipe, fewer, "stack")
    clean = prepared.test["ravdess"]
    louder = replace(
        clean, frames={**clean.frames, "prosody": [rows + np.float16(1) for rows in clean.frames["prosody"]]}
    )
    assert key != evaluation_key(run.recipe, replace(prepared, test={**prepared.test, "ravdess": louder}), "stack")
    unknown = {name: np.full_like(values, np.nan) for name, values in prepared.word_confidence.items()}
    assert key != evaluation_key(run.recipe, replace(prepared, word_confidence=unknown), "stack")
    program = tmp_path / "train"
    program.mkdir()
    (program / "__init__.py").write_text("# another one")
    monkeypatch.setattr("train.__file__", str(program / "__init__.py"))
    assert key != evaluation_key(run.recipe, prepared, "stack")
    out = Path(shutil.copytree(run.out, tmp_path / "out"))
    remember(out, key)
    assert is_evaluated(out, key)
    assert not is_evaluated(out, "other")
    weights = out / "checkpoint" / "members" / "voice.safetensors"
    weights.rename(out / "elsewhere")
    assert not is_evaluated(out, key), "whatever is gone is made again"
    (out / "elsewhere").rename(weights)
    assert is_evaluated(out, key)
    forget(out)
    assert not is_evaluated(out, key)


def write_recipe(path: Path, recipe: Recipe) -> None:
    """A recipe as TOML, also with what no dump holds."""
    whole = recipe.model_dump(mode="json", exclude_none=True)
    for name, encoder in recipe.encoders.items():
        whole["encoders"][name] |= {"licence": encoder.licence, "supervised_on": list(encoder.supervised_on)}
    path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in whole.items()), encoding="utf-8")
    assert load_recipe(path) == recipe


def toml(value: object) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)} = {toml(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def test_stage_by_stage_ends_in_what_one_run_makes(run: Run, tmp_path: Path) -> None:
    """To the byte, with a cache of its own; a stage says what it lacks, and one that is done is not done again."""
    write_recipe(tmp_path / "recipe.toml", run.recipe)
    given = ["--config", tmp_path / "recipe.toml", "--data", run.data, "--cache", tmp_path / "cache"]
    out = tmp_path / "out"

    def invoke(command: str, *more: str | Path) -> Result:
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, *map(str, (*given, *more))])

    assert invoke("features").exit_code == 0
    for command, lacking, maker in (
        ("meta", "lacks 6 of 6 members", "members"),
        ("evaluate", "lacks 6 of 6", "members"),
    ):
        refused = invoke(command, "--out", out)
        assert refused.exit_code == 2
        assert lacking in refused.stderr
        assert f"medusa-train {maker} --out {out}" in refused.stderr
    assert invoke("members", "--out", out, "--workers", "1").exit_code == 0
    refused = invoke("evaluate", "--out", out)
    assert (refused.exit_code, f"medusa-train meta --out {out}" in refused.stderr) == (2, True)
    for command in ("meta", "evaluate"):
        done = invoke(command, "--out", out)
        assert done.exit_code == 0, done.output
    for part in ("checkpoint", "members", "meta", "predictions"):
        expected = sorted(path.relative_to(run.out) for path in (run.out / part).rglob("*") if path.is_file())
        assert expected == sorted(path.relative_to(out) for path in (out / part).rglob("*") if path.is_file())
        for path in expected:
            assert (out / path).read_bytes() == (run.out / path).read_bytes(), path
    assert (out / "report.json").read_bytes() == (run.out / "report.json").read_bytes()
    before = {path: path.stat().st_mtime_ns for name in ("members", "meta") for path in (out / name).iterdir()}
    assert invoke("members", "--out", out, "--workers", "1").exit_code == invoke("meta", "--out", out).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_meta_classifiers_of_other_members_do_not_count(run: Run, tmp_path: Path) -> None:
    """A changed recipe is told from one whose stages are done; every figure that was kept comes back."""
    killed = Path(shutil.copytree(run.out, tmp_path / "out"))
    prepared = prepare(run.recipe, run.data, run.cache, lambda *call: None)
    first = train_meta_classifiers(run.recipe, prepared, killed)
    (killed / "meta" / "stacked.safetensors").unlink()
    again = train_meta_classifiers(run.recipe, prepared, killed)
    for name in ("temperature", "abstain_below", "ingredients", "trained_attributes", "histories"):
        assert getattr(first, name) == getattr(again, name)
    np.testing.assert_array_equal(first.prior_ratio, again.prior_ratio)
    for one, other in zip((*first.runs, first.soup), (*again.runs, again.soup), strict=True):
        assert torch.equal(one.linear.weight, other.linear.weight)
        assert torch.equal(one.linear.bias, other.linear.bias)
    meta = run.recipe.meta.model_copy(update={"epochs": 3})
    longer = run.recipe.model_copy(update={"meta": meta})
    with pytest.raises(RunError, match="holds no meta-classifiers on these members"):
        evaluate_run(longer, prepared, run.cache, killed, lambda *call: None)
    assert len(train_meta_classifiers(longer, prepared, killed).histories[0].rows) == 3
    with pytest.raises(RunError, match=r"lacks 6 of 6 members .*voice, voice-without-fold-0, .*, \.\.\.\)"):
        train_meta_classifiers(run.recipe.model_copy(update={"seed": 99}), prepared, killed)
