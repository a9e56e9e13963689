"""The second family part by part, on a corpus of a dozen made-up speakers."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from model.network.member import Member, build_member
from model.spec import MemberSpec
from tests.model.tiny import write_tiny_text_encoder
from tests.train.synthetic import RECIPES, make_recipe
from tests.train.test_ablate import SETS, reference_with
from tests.train.tiny_run import Run, tiny_recipe, write_corpora
from train.ablate_parts import ablate_parts, parts_table
from train.cli import app
from train.config import load_recipe
from train.errors import RecipeError
from train.family_parts import BASELINE, PARTS, compared_members, variants
from train.first_weights import draw_by_name
from train.parts_report import page, verdict
from train.seeded_rows import SEEDS as SEEDS_UNASKED
from train.seeded_rows import row_jobs, rows_recipe
from train.stages.members import ALL_SPEAKERS, Job, fresh_member, last_key

ROWS = [part.name for part in PARTS]
SHIPPED = sorted(RECIPES.rglob("*.toml"))
SEEDS = 2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_rows_differ_in_their_part_alone_for_any_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    compared = compared_members(recipe)
    found = variants(compared, 3)
    specs = rows_recipe(recipe, found).member_specs()
    assert [spec.family for spec in specs] == ["vga"] * 15
    assert len({spec.name for spec in specs}) == 15
    by_part: dict[str, list[MemberSpec]] = {}
    for variant, spec in zip(found, specs, strict=True):
        by_part.setdefault(variant.row, []).append(spec)
    half = compared[0].dim // 2
    has = {part: {(spec.attention, spec.gates, spec.contrast) for spec in row} for part, row in by_part.items()}
    assert has == {
        "cross-attention": {("plain", "none", 0)},
        "with VGA": {("vad-guided", "none", 0)},
        "with EAAF": {("plain", "shares", 0)},
        "with MICL": {("plain", "none", half)},
        "full": {("vad-guided", "shares", half)},
    }
    for row in by_part.values():
        assert [spec.seed for spec in row] == [compared[0].seed + number for number in range(3)]
        for spec in row:
            for size in ("modalities", "dim", "heads", "layers", "feed_forward", "dropout", "input_dropout"):
                assert getattr(spec, size) == getattr(compared[0], size), size
    columns = [[variant.column for variant in found if variant.row == part] for part in ROWS]
    assert all(of == columns[0] for of in columns), "rows are paired by these"


def test_members_that_cannot_fuse_are_refused() -> None:
    recipe = load_recipe(RECIPES / "default.toml")
    alone = next(member.name for member in recipe.members if len(member.modalities) == 1)
    with pytest.raises(
        RecipeError, match=f"fuses two or more modalities, and {alone} reads one or is linear: members of several are"
    ):
        compared_members(recipe, (alone,))
    with pytest.raises(RecipeError, match="there are no members nobody: the recipe has"):
        compared_members(recipe, ("nobody",))
    single = make_recipe(members=[{"name": "tiny", "modalities": ["prosody"], "seed": 5}])
    with pytest.raises(RecipeError, match="none of tiny reads several"):
        compared_members(single)
    with pytest.raises(RecipeError, match="one or more seeds, got 0"):
        variants(compared_members(recipe), 0)


Shapes = dict[str, torch.Size]


def begun(seeds: int = 1) -> dict[str, list[Member]]:
    """Row -> its member of every seed, as training begins with it."""
    recipe = load_recipe(RECIPES / "vga.toml")
    found = variants(compared_members(recipe), seeds)
    changed = rows_recipe(recipe, found)
    jobs = row_jobs(changed)
    rows: dict[str, list[Member]] = {}
    for variant in found:
        rows.setdefault(variant.row, []).append(fresh_member(jobs[variant.member.name], changed.encoder_specs()))
    return rows


def modules_of(member: Member) -> dict[str, tuple[Shapes, dict[str, Tensor]]]:
    """Modules that hold weights themselves: name -> shapes of these, and these."""
    own = {name: dict(module.named_parameters(recurse=False)) for name, module in member.named_modules()}
    return {name: ({n: w.shape for n, w in ws.items()}, {**ws}) for name, ws in own.items() if ws}


@pytest.mark.parametrize(("first", "second"), list(combinations(ROWS, 2)))
def test_modules_that_two_rows_share_begin_with_the_same_weights(first: str, second: str) -> None:
    rows = begun()
    mine, theirs = modules_of(rows[first][0]), modules_of(rows[second][0])
    shared = [name for name in mine.keys() & theirs.keys() if mine[name][0] == theirs[name][0]]
    for name in shared:
        for weight, values in mine[name][1].items():
            assert torch.equal(values, theirs[name][1][weight]), f"{name}.{weight}"
    parts = ("gates.", "views.", "join")
    others = {name for name in mine.keys() ^ theirs.keys() if not name.startswith(parts) and ".guide" not in name}
    assert not others, "rows differ in their parts alone"
    for name in ("classifier", "regressor", "encs.", "crossings."):
        assert any(found.startswith(name) for found in shared), name
    gated = [part.gates != "none" for part in PARTS if part.name in (first, second)]
    assert ("join" in shared) == (gated[0] == gated[1]), "the layer behind gates reads one vector, else one a modality"


def test_seeds_and_modules_begin_with_weights_of_their_own() -> None:
    rows = begun(seeds=2)
    for members in rows.values():
        one, other = (modules_of(member) for member in members)
        for name, (shapes, weights) in one.items():
            if len(shapes.get("weight", ())) == 2:
                assert not torch.equal(weights["weight"], other[name][1]["weight"]), name
        drawn = [weights["weight"] for _, weights in one.values() if len(weights["weight"].shape) == 2]
        assert not any(torch.equal(a, b) for a, b in combinations(drawn, 2) if a.shape == b.shape)


def test_first_weights_by_name_have_a_key_of_their_own_and_leave_the_others_theirs() -> None:
    recipe = load_recipe(RECIPES / "vga.toml")
    spec = compared_members(recipe)[0]
    plain, by_name = Job(spec, ALL_SPEAKERS), Job(spec, ALL_SPEAKERS, drawn_by_name=True)
    assert last_key(plain, recipe, "data") != last_key(by_name, recipe, "data"), (
        "else old rows would be taken for new ones"
    )
    torch.manual_seed(spec.seed)
    as_ever = build_member(spec, recipe.encoder_specs()).state_dict()
    assert all(
        torch.equal(values, as_ever[name])
        for name, values in fresh_member(plain, recipe.encoder_specs()).state_dict().items()
    )
    torch.manual_seed(1)
    expected = torch.rand(3)
    member = build_member(spec, recipe.encoder_specs())
    torch.manual_seed(1)
    draw_by_name(member, 7)
    assert torch.equal(torch.rand(3), expected), "whoever draws next draws what they would have drawn"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("parts")
    write_corpora(folder / "data")
    write_tiny_text_encoder(folder / "text")
    return Run(tiny_recipe(folder / "text"), folder / "data", folder / "cache", folder / "out")


def compare(run: Run, out: Path) -> tuple[dict[str, Any], list[tuple[str, int, int]]]:
    calls: list[tuple[str, int, int]] = []
    found = ablate_parts(run.recipe, run.data, run.cache, out, 1, lambda *call: calls.append(call), seeds=SEEDS)
    assert found == out / "parts.html"
    results: dict[str, Any] = json.loads((out / "parts.json").read_text())
    return results, calls


@pytest.fixture(scope="module")
def results(run: Run) -> dict[str, Any]:
    found, calls = compare(run, run.out)
    assert ("members, stages 1 and 2", len(ROWS) * SEEDS, len(ROWS) * SEEDS) in calls
    return found


def test_every_row_has_every_seed_on_every_set(results: dict[str, Any]) -> None:
    assert results["members"] == {"words": ["whisper", "text"]}, "the one that reads several modalities"
    assert results["rated"] is False
    assert set(results["sets"]) == SETS
    for found in results["sets"].values():
        assert list(found["rows"]) == ROWS
        for name, row in found["rows"].items():
            assert list(row["by_column"]) == ["words, seed 2", "words, seed 3"]
            assert row["macro_f1"]["value"] == pytest.approx(np.mean(list(row["by_column"].values())))
            assert row["spread"] == pytest.approx(np.std(list(row["by_column"].values()), ddof=1))
            for figure in ("macro_f1", "uar"):
                assert 0.0 <= row[figure]["low"] <= row[figure]["high"] <= 1.0
            assert ("change" in row) == (name != BASELINE)
            if name != BASELINE:
                base = found["rows"][BASELINE]
                assert row["change"]["value"] == pytest.approx(row["macro_f1"]["value"] - base["macro_f1"]["value"])
                assert 0 <= row["better_in"] <= SEEDS


def test_members_of_rows_have_their_part_alone(run: Run, results: dict[str, Any]) -> None:
    folder = run.out / "ablations" / "parts" / "members"
    names = {row: f"words-{row.replace(' ', '-')}-2" for row in ROWS}
    weights = {row: load_file(folder / f"{name}.stage2.safetensors") for row, name in names.items()}
    base = weights[BASELINE].keys()
    assert weights["full"].keys() >= weights["with VGA"].keys() | weights["with MICL"].keys()
    for row in ROWS[1:]:
        assert weights[row].keys() != base, row
    assert any(name.startswith("views.") for name in weights["with MICL"])
    assert not (run.out / "members").exists(), "the recipe's own members are not needed"


def test_what_is_there_is_not_trained_again(run: Run, results: dict[str, Any]) -> None:
    stored = list((run.out / "ablations" / "parts" / "members").glob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in stored}
    again, _ = compare(run, run.out)
    assert again == results
    assert {path: path.stat().st_mtime_ns for path in stored} == before


def test_a_corpus_that_an_encoder_was_taught_is_marked_in_every_row(run: Run, results: dict[str, Any]) -> None:
    shown, text = (run.out / "parts.html").read_text(), (run.out / "PARTS.md").read_text()
    assert "<script" not in shown
    assert "http" not in shown
    taught = text[text.index("## ravdess") : text.index("## Notes")]
    for row in ROWS:
        assert f"| {row} † |" in taught
        assert f"| {row} |" in text.replace(taught, "")
        assert shown.count(f'<th scope="row">{row} †</th>') == 1
    assert taught.count("† Reads an encoder that was trained on the labels of this corpus (text)") == 1
    assert "no such term in any row" in text


def test_the_command_takes_the_table_and_refuses_another(run: Run, results: dict[str, Any], tmp_path: Path) -> None:
    arguments = ["ablate", "--config", str(RECIPES / "default.toml"), "--data", str(tmp_path), "--out", str(tmp_path)]
    answer = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--table", "parts", "--members", "functionals"])
    assert answer.exit_code == 2
    assert "fuses two or more modalities, and functionals reads one" in answer.stderr
    answer = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*arguments, "--table", "three"])
    assert answer.exit_code == 2
    assert "one of recipe, parts, baselines, got 'three'" in answer.stderr


@pytest.mark.parametrize("table", [[], ["--table", "recipe"]])
def test_seeds_are_refused_where_no_row_would_have_them(table: list[str], tmp_path: Path) -> None:
    """Even as many as the other table has unasked."""
    arguments = ["ablate", "--config", str(RECIPES / "default.toml"), "--data", str(tmp_path), "--out", str(tmp_path)]
    for seeds in (SEEDS_UNASKED, 5):
        answer = CliRunner(env={"COLUMNS": "400"}).invoke(app, [*arguments, *table, "--seeds", str(seeds)])
        assert answer.exit_code == 2
        assert "--seeds" in answer.stderr
        assert (
            f"rows of the table 'recipe' have the seeds that the recipe gives its members, and {seeds}" in answer.stderr
        )
        assert "leave it out, or ask for --table parts or baselines" in answer.stderr
    assert not list(tmp_path.iterdir()), "refused before anything is made"


def test_the_documentation_says_how_many_seeds_there_are_unasked() -> None:
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert f"Each row has every seed, {SEEDS_UNASKED} of them unless `--seeds` says otherwise." in text


def test_a_gain_is_one_over_the_baseline_of_the_same_seeds() -> None:
    truth = np.arange(400) % 4
    truth[:8] = -1  # clips without a truth count in no figure
    rng = np.random.default_rng(0)

    def wrong(share: float) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.where(rng.random(400) < share, (truth + 1) % 4, truth).astype(np.int64)

    guesses = {
        BASELINE: {"a": wrong(0.3), "b": wrong(0.3)},
        "with VGA": {"a": wrong(0.05), "b": wrong(0.05)},
        "with EAAF": {"a": wrong(0.6), "b": wrong(0.6)},
    }
    guesses["with MICL"] = dict(guesses[BASELINE])
    found = parts_table(reference_with(truth), guesses, seeds=2)
    assert (found["clips"], found["speakers"]) == (392, 8)
    rows = found["rows"]
    assert rows["with VGA"]["change"]["low"] > 0.1
    assert rows["with EAAF"]["change"]["high"] < -0.1
    assert rows["with VGA"]["uar_change"]["low"] > 0.1
    assert [rows[name]["better_in"] for name in ("with VGA", "with EAAF", "with MICL")] == [2, 0, 0]
    assert rows["with MICL"]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert verdict(found) == (
        f"Against {BASELINE}, by macro-F1: better: with VGA; worse: with EAAF; not distinguishable: with MICL."
    )


def test_the_spread_is_that_of_seeds_and_not_of_members() -> None:
    truth = np.arange(64) % 4
    low = np.where(np.arange(64) < 48, (truth + 1) % 4, truth)
    columns = {"a, seed 1": truth, "a, seed 2": truth, "b, seed 1": low, "b, seed 2": low}
    row = parts_table(reference_with(truth), {BASELINE: columns}, seeds=2)["rows"][BASELINE]
    assert row["spread"] == 0.0
    assert np.std(list(row["by_column"].values()), ddof=1) > 0.1
    alone = parts_table(reference_with(truth), {BASELINE: {"b, seed 1": truth, "b, seed 2": low}}, seeds=2)
    by_column = alone["rows"][BASELINE]["by_column"]
    assert alone["rows"][BASELINE]["spread"] == pytest.approx(np.std(list(by_column.values()), ddof=1))


def test_one_seed_has_no_spread() -> None:
    truth = np.arange(64) % 4
    found = parts_table(reference_with(truth), {BASELINE: {"a": truth}, "full": {"a": truth}}, seeds=1)
    assert found["rows"][BASELINE]["spread"] is None
    results = {
        "name": "medusa-rt <tiny>",
        "members": {"a": ["whisper", "text"]},
        "seeds": 1,
        "rated": True,
        "sets": {"here & there": found | {"contaminated_by": []}},
    }
    shown = page(results)
    assert "medusa-rt &lt;tiny&gt;" in shown
    assert "here &amp; there" in shown
    assert "†" not in shown
