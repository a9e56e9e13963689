"""Deep fusion against its baselines, on a corpus of a dozen made-up speakers."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from model.spec import LINEAR, MemberSpec
from tests.model.tiny import write_tiny_text_encoder
from tests.train.synthetic import RECIPES, make_recipe
from tests.train.test_ablate import SETS, reference_with
from tests.train.tiny_run import Run, tiny_recipe, write_corpora
from train.ablate_baselines import ablate_baselines, baselines_table
from train.baselines import DEEP, LATE, PROBE, STRENGTHS, alone, baselines_recipe, compared_members, variants, why_not
from train.baselines_report import page, verdict
from train.cli import app
from train.config import Recipe, load_recipe
from train.errors import RecipeError
from train.seeded_rows import row_jobs
from train.stages.members import fresh_member

SEEDS = 2
ROWS = [DEEP, LATE, alone("whisper"), alone("text"), PROBE]
SHIPPED = sorted(RECIPES.rglob("*.toml"))


def comparable(recipe: Recipe) -> list[MemberSpec]:
    return [spec for spec in recipe.member_specs() if not why_not(spec)]


def test_all_shipped_recipes_are_looked_at() -> None:
    found = {path.stem: comparable(load_recipe(path)) for path in SHIPPED}
    assert len(found) == 7
    assert all(found.values()), "each has members that fuse"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.stem))
def test_rows_differ_from_the_member_in_one_thing_alone(path: Path) -> None:
    recipe = load_recipe(path)
    compared = tuple(comparable(recipe))
    found = variants(recipe, compared, 2)
    specs = {spec.name: spec for spec in baselines_recipe(recipe, found).member_specs()}
    assert len(specs) == len(found)
    for member in compared:
        rows = {v.row: v.member.name for v in found if v.of == member.name and v.member.seed == member.seed + 1}
        as_it_is = {row: replace(specs[name], name=member.name, seed=member.seed) for row, name in rows.items()}
        assert as_it_is.pop(DEEP) == member
        assert as_it_is.pop(PROBE) == replace(member, family="linear", **LINEAR)
        assert (LATE in as_it_is) == (member.attention == "plain")
        if LATE in as_it_is:
            assert as_it_is.pop(LATE) == replace(member, fusion="late")
        assert as_it_is == {alone(name): replace(member, modalities=(name,), contrast=0) for name in member.modalities}
        columns = [[v.column for v in found if v.of == member.name and v.row == row] for row in rows]
        assert all(of == columns[0] for of in columns), "rows are paired by these"
        assert columns[0] == [f"{member.name}, seed {member.seed + number}" for number in range(2)]


def test_a_contrasted_member_has_nothing_to_contrast_in_one_modality() -> None:
    recipe = make_recipe(members=[{"name": "tiny", "modalities": ["prosody", "text"], "seed": 5, "contrast": 4}])
    rows = {variant.row: variant.member for variant in variants(recipe, compared_members(recipe), 1)}
    assert {row: member.contrast or 0 for row, member in rows.items()} == {
        DEEP: 4,
        LATE: 4,
        alone("prosody"): 0,
        alone("text"): 0,
        PROBE: 0,
    }
    assert baselines_recipe(recipe, variants(recipe, compared_members(recipe), 1)).member_specs()


def test_other_settings_are_the_recipes_but_a_strength_that_nobody_could_choose() -> None:
    recipe = load_recipe(RECIPES / "default.toml")
    found = variants(recipe, compared_members(recipe), 1)
    changed = baselines_recipe(recipe, found)
    assert recipe.linear.l2 == (0.5,)
    assert changed.linear.l2 == STRENGTHS
    linear = recipe.linear.model_copy(update={"l2": (0.1, 1.0)})
    assert baselines_recipe(recipe.model_copy(update={"linear": linear}), found).linear.l2 == (0.1, 1.0)
    members = {"members": recipe.members, "fallbacks": recipe.fallbacks, "linear": recipe.linear}
    assert changed.model_copy(update=members) == recipe


def test_members_without_baselines_are_told_and_refused() -> None:
    recipe = load_recipe(RECIPES / "default.toml")
    assert {frozenset(spec.modalities) for spec in compared_members(recipe)} == {
        frozenset({"functionals", "text"}),
        frozenset({"prosody", "functionals"}),
    }, "one of each set of modalities"
    with pytest.raises(
        RecipeError, match="functionals reads functionals alone, so it is a single-modality transformer"
    ):
        compared_members(recipe, ("functionals-text", "functionals"))
    with pytest.raises(RecipeError, match="there are no members nobody: the recipe has"):
        compared_members(recipe, ("nobody",))
    assert [spec.name for spec in compared_members(recipe, ("functionals-text-2",))] == ["functionals-text-2"]
    second = load_recipe(RECIPES / "vga.toml")
    assert [spec.name for spec in compared_members(second)] == ["deepser"]
    with pytest.raises(RecipeError, match="full is of the second family"):
        compared_members(second, ("full",))
    lacking = {
        "linear": {"family": "linear"},
        "of the second family": {"family": "vga"},
        "fuses late": {"fusion": "late"},
    }
    for why, changed in lacking.items():
        member = {"name": "tiny", "modalities": ["prosody", "text"], "seed": 5} | changed
        with pytest.raises(RecipeError, match=f"deeply: tiny (is )?{why}"):
            compared_members(make_recipe(members=[member]))
    with pytest.raises(RecipeError, match="one or more seeds, got 0"):
        variants(recipe, compared_members(recipe), 0)


def test_shared_modules_begin_alike_and_the_probe_at_nothing() -> None:
    recipe = load_recipe(RECIPES / "vga.toml")
    found = variants(recipe, compared_members(recipe, ("deepser",)), 1)
    changed = baselines_recipe(recipe, found)
    begun = {
        variant.row: fresh_member(row_jobs(changed)[variant.member.name], changed.encoder_specs()).state_dict()
        for variant in found
    }
    for row in ROWS[1:-1]:
        shared = begun[row].keys() & begun[DEEP].keys()
        others = {name for name in shared if not torch.equal(begun[row][name], begun[DEEP][name])}
        assert others <= {"join.weight", "join.bias"}, "it reads as many vectors as there are modalities"
        assert any(name.startswith("encs.") for name in shared), row
        assert any(name.startswith("fusions.") for name in shared) == (row != LATE)
    heads = [name for name in begun[PROBE] if name.startswith(("classifier", "regressor"))]
    assert len(heads) == 4
    assert not any(begun[PROBE][name].any() for name in heads), "the problem's W_0 is 0"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("baselines")
    write_corpora(folder / "data")
    write_tiny_text_encoder(folder / "text")
    return Run(tiny_recipe(folder / "text"), folder / "data", folder / "cache", folder / "out")


def compare(run: Run) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    calls: list[tuple[str, int, int]] = []
    told = lambda *call: calls.append(call)  # noqa: E731  # a Progress in one line
    found = ablate_baselines(run.recipe, run.data, run.cache, run.out, 1, told, seeds=SEEDS)
    assert found == run.out / "baselines.html"
    results: dict[str, Any] = json.loads((run.out / "baselines.json").read_text())
    return results, calls


@pytest.fixture(scope="module")
def results(run: Run) -> dict[str, Any]:
    found, calls = compare(run)
    assert ("members, stages 1 and 2", len(ROWS) * SEEDS, len(ROWS) * SEEDS) in calls
    assert [call for call in calls if call[0] == "comparisons"][-1] == ("comparisons", 3, 3)
    return found


def test_every_member_is_held_against_its_baselines_on_every_set(results: dict[str, Any]) -> None:
    both = ["whisper", "text"]
    assert results["members"] == {
        "words": {DEEP: both, LATE: both, alone("whisper"): both[:1], alone("text"): both[1:], PROBE: both}
    }
    assert results["left_out"] == {
        "voice": "reads functionals alone, so it is a single-modality transformer itself",
    }
    assert set(results["sets"]) == SETS
    for found in results["sets"].values():
        rows = found["members"]["words"]
        assert list(rows) == ROWS
        for name, row in rows.items():
            assert list(row["by_column"]) == ["words, seed 2", "words, seed 3"]
            assert row["macro_f1"]["value"] == pytest.approx(np.mean(list(row["by_column"].values())))
            assert row["spread"] == pytest.approx(np.std(list(row["by_column"].values()), ddof=1))
            assert all(0.0 <= row[f]["low"] <= row[f]["high"] <= 1.0 for f in ("macro_f1", "uar"))
            assert ("gain" in row) == ("uar_gain" in row) == ("ahead" in row) == (name != DEEP)
            if name != DEEP:
                for figure, gain in (("macro_f1", "gain"), ("uar", "uar_gain")):
                    assert row[gain]["value"] == pytest.approx(rows[DEEP][figure]["value"] - row[figure]["value"])
                    assert row[gain]["low"] <= row[gain]["high"]
                assert 0 <= row["ahead"] <= SEEDS


def test_trained_rows_are_what_they_are_called(run: Run, results: dict[str, Any]) -> None:
    folder = run.out / "ablations" / "baselines" / "members"
    stages = dict.fromkeys(ROWS, "stage2") | {PROBE: "stage1"}
    weights = {
        row: load_file(folder / f"words-{row.replace(' ', '-')}-2.{stage}.safetensors") for row, stage in stages.items()
    }
    starts = {row: {name.split(".")[0] for name in found} for row, found in weights.items()}
    assert starts[DEEP] == starts[alone("text")] == {"stacks", "encs", "fusions", "join", "classifier", "regressor"}
    assert starts[LATE] == {"stacks", "encs", "joins", "classifiers", "regressors"}
    assert starts[PROBE] == {"stacks", "classifier", "regressor"}
    read = {row: {name.split(".")[1] for name in found if name.startswith("stacks")} for row, found in weights.items()}
    assert read == {row: set(modalities) for row, modalities in results["members"]["words"].items()}
    notes = json.loads((folder / "words-linear-probe-2.stage1.json").read_text())
    assert [row["l2"] for row in notes["rows"]] == list(STRENGTHS) == results["l2"]
    assert not (run.out / "members").exists(), "the recipe's own members are not needed"


def test_what_is_there_is_not_trained_again(run: Run, results: dict[str, Any]) -> None:
    stored = list((run.out / "ablations" / "baselines" / "members").glob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in stored}
    assert len(before) == SEEDS * (2 * len(ROWS) - 1), "a probe has one stage"
    again, _ = compare(run)
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in stored} == before


def test_both_forms_tell_every_row_and_mark_what_flatters(run: Run, results: dict[str, Any]) -> None:
    shown, text = (run.out / "baselines.html").read_text(), (run.out / "BASELINES.md").read_text()
    assert "<script" not in shown
    assert "http" not in shown
    taught = text[text.index("## ravdess") : text.index("## Notes")]
    for row in ROWS:
        flatters = row != alone("whisper")  # ravdess' labels have taught the text encoder
        assert (f"| {row} † |" in taught) == flatters
        assert f"| {row} |" in text.replace(taught, "")
        assert shown.count(f'<th scope="row">{row} †</th>') == int(flatters)
    assert taught.count("† Reads an encoder that was trained on the labels of this corpus (text)") == 1
    for form in (shown, text):
        assert (
            form.count("By UAR, deep fusion in words") == form.count("By macro-F1, deep fusion in words") == len(SETS)
        )
        assert "Left out: voice reads functionals alone, so it is a single-modality transformer itself." in form
        assert "of the strengths 0.05, 0.5, 5 of its L2 the development speakers choose" in form


def test_a_gain_is_that_of_deep_fusion_over_the_row() -> None:
    truth = np.arange(400) % 4
    truth[:8] = -1  # clips without a truth count in no figure
    rng = np.random.default_rng(0)

    def wrong(share: float) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.where(rng.random(400) < share, (truth + 1) % 4, truth).astype(np.int64)

    guesses = {
        DEEP: {"a, seed 1": wrong(0.3), "a, seed 2": wrong(0.3)},
        LATE: {"a, seed 1": wrong(0.05), "a, seed 2": wrong(0.05)},
        alone("text"): {"a, seed 1": wrong(0.6), "a, seed 2": wrong(0.6)},
    }
    guesses[PROBE] = dict(guesses[DEEP])
    rows = baselines_table(reference_with(truth), guesses, seeds=2)
    assert rows[LATE]["gain"]["high"] < -0.1
    assert rows[LATE]["uar_gain"]["high"] < -0.1
    assert rows[alone("text")]["gain"]["low"] > 0.1
    assert rows[PROBE]["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert [rows[name]["ahead"] for name in (LATE, alone("text"), PROBE)] == [0, 2, 0]
    assert verdict("a", rows, "UAR", "uar_gain") == (
        "By UAR, deep fusion in a does not beat them all: "
        "better than text alone; worse than late fusion; not told apart from linear probe."
    )
    beaten = {row: rows[row] for row in (DEEP, alone("text"))}
    assert verdict("a", beaten, "UAR", "uar_gain") == (
        "By UAR, deep fusion in a beats all of its baselines: better than text alone."
    )


def test_names_are_escaped_and_a_member_without_late_fusion_is_told() -> None:
    truth = np.arange(64) % 4
    rows = baselines_table(reference_with(truth), {DEEP: {"a": truth}, PROBE: {"a": truth}}, seeds=1)
    assert rows[DEEP]["spread"] is None
    shown = page(
        {
            "name": "medusa-rt <tiny>",
            "members": {"a & b": {DEEP: ["whisper", "text"], PROBE: ["whisper", "text"]}},
            "left_out": {},
            "seeds": 1,
            "l2": [0.5],
            "sets": {"here": {"clips": 64, "speakers": 8, "reference": "acted emotion", "members": {"a & b": rows}}},
        }
    )
    assert "medusa-rt &lt;tiny&gt;" in shown
    assert "By UAR, deep fusion in a &amp; b does not beat them all: not told apart from linear probe." in shown
    assert "a &amp; b has guided attention in its fusion, so it has no late fusion." in shown
    assert "†" not in shown


def test_the_command_makes_the_table_with_its_seeds(
    run: Run, results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["ablate", "--config", str(RECIPES / "default.toml"), "--data", str(tmp_path), "--out", str(tmp_path)]
    asked = [*arguments, "--table", "baselines", "--members", "functionals"]
    answer = CliRunner(env={"COLUMNS": "200"}).invoke(app, asked)
    assert answer.exit_code == 2
    assert "functionals reads functionals alone, so it is a single-modality transformer itself" in answer.stderr
    assert not list(tmp_path.iterdir()), "refused before anything is made"
    monkeypatch.setattr("train.commands.load_recipe", lambda path: run.recipe)
    arguments[3:] = ["--data", str(run.data), "--out", str(run.out), "--cache", str(run.cache), "--seeds", str(SEEDS)]
    arguments[2:3] = [str(RECIPES / "default.toml")]
    answer = CliRunner(env={"COLUMNS": "400"}).invoke(app, [*arguments, "--table", "baselines", "--workers", "1"])
    assert answer.exit_code == 0, answer.stderr
    assert f"comparisons: {run.out / 'baselines.html'}" in answer.stderr
    assert json.loads((run.out / "baselines.json").read_text()) == results


def test_the_documentation_says_which_strengths_a_probe_is_chosen_from() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    first, second, last = (f"{strength:g}" for strength in STRENGTHS)
    assert f"the best of {first}, {second} and {last} |" in text
