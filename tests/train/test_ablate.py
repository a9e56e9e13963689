"""All comparisons on a corpus of a dozen made-up speakers."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from model.labels import CLASSES
from tests.model.tiny import write_tiny_text_encoder
from tests.train.synthetic import RECIPES
from tests.train.tiny_run import Progress, Run, tiny_recipe, write_corpora
from train.ablate import ablate
from train.ablation_tables import FULL, MAJORITY, SINGLE, SOFT, SOUP, ensembles_table, members_table
from train.ablations import ABLATIONS
from train.cli import app
from train.reference import ACTED, Reference

FIGURES = ("macro_f1", "change", "relative_change")
WAYS = [MAJORITY, SOFT, SINGLE, SOUP]
SETS = {f"{name} (unseen speakers)" for name in ("cremad", "cremad, degraded", "ravdess")}


def compare(run: Run) -> tuple[dict[str, Any], Progress]:
    calls: Progress = []
    page = ablate(run.recipe, run.data, run.cache, run.out, 1, lambda *call: calls.append(call))
    assert page == run.out / "ablation.html"
    results: dict[str, Any] = json.loads((run.out / "ablation.json").read_text())
    return results, calls


def weights(out: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns for path in out.rglob("members/*.safetensors") if "checkpoint" not in path.parts
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("ablate")
    write_corpora(folder / "data")
    write_tiny_text_encoder(folder / "text")
    return Run(tiny_recipe(folder / "text"), folder / "data", folder / "cache", folder / "out")


@pytest.fixture(scope="module")
def results(run: Run) -> dict[str, Any]:
    found, calls = compare(run)
    # Two members on all speakers and without either fold; both one-hot and without mixup; one can fuse late.
    assert ("members, stages 1 and 2", 11, 11) in calls
    return found


def test_both_tables_are_there_for_every_set_of_clips(results: dict[str, Any]) -> None:
    results = copy.deepcopy(results)
    assert results["members"] == ["words", "voice"], "the member that can fuse comes first"
    assert set(results["sets"]) == SETS
    for found in results["sets"].values():
        assert list(found["members"]) == [FULL, *(ablation.name for ablation in ABLATIONS)]
        assert found["members"].pop("no multitask") == {"paper": -0.022, "by_member": {}, **dict.fromkeys(FIGURES)}
        assert list(found["members"]["late fusion"]["by_member"]) == ["words"]
        assert found["members"]["no mixup"]["paper"] == -0.029
        assert [size["members"] for size in found["ensembles"]][0] == ["voice", "words"]
        assert [len(size["members"]) for size in found["ensembles"]] == [2, 1]
        assert all(list(size["systems"]) == WAYS for size in found["ensembles"])
        assert found["ensembles"][0]["systems"][SOUP]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        for row in found["members"].values():
            assert row["macro_f1"]["value"] == pytest.approx(np.mean(list(row["by_member"].values())))
            assert 0.0 <= row["macro_f1"]["low"] <= row["macro_f1"]["high"] <= 1.0


def test_what_could_not_be_compared_is_told(results: dict[str, Any]) -> None:
    assert set(results["left_out"]["no multitask"]) == {"voice", "words"}
    assert "nothing to fuse" in results["left_out"]["late fusion"]["voice"]
    assert results["left_out"]["one-hot targets"] == {}
    assert results["without_dominant_class"] == 0, "where the acted emotion counts as 27 raters there is no tie"
    assert results["training_clips"] > 0


def test_the_page_and_the_markdown_say_the_same(run: Run, results: dict[str, Any]) -> None:
    page, text = (run.out / "ablation.html").read_text(), (run.out / "ABLATION.md").read_text()
    assert "<script" not in page
    assert "http" not in page
    for found in (page, text):
        for words in (
            *SETS,
            *WAYS,
            FULL,
            "late fusion",
            "-8.2%",
            "-6.3%",
            "-2.2%",
            "no multitask: not compared for words, voice, because",
        ):
            assert words in found, words
    taught = text[text.index("## ravdess") : text.index("## Notes")]
    of_set = results["sets"]["ravdess (unseen speakers)"]
    assert of_set["contaminated_members"] == {"words": ["text"]}
    assert "contaminated_by" not in of_set, "elsewhere a list of encoders, and never by member"
    assert f"| {FULL} † |" in taught
    assert "| late fusion † |" in taught
    assert "| way | all 2 † | best 1" in taught
    assert taught.count("† Reads an encoder that was trained on the labels of this corpus (text)") == 1
    assert "†" not in text.replace(taught, "")
    assert '<th scope="col">words †</th><th scope="col">voice</th>' in page
    assert page.count(f'<th scope="row">{FULL} †</th>') == 2, "of all members, and of each"
    shown = results["sets"]["cremad (unseen speakers)"]["members"][FULL]["macro_f1"]
    assert f"{shown['value']:.3f}" in page
    assert f"| {FULL} | {shown['value']:.3f} [{shown['low']:.3f}, {shown['high']:.3f}] |" in text


def test_members_are_shared_with_the_run_in_the_same_folder(run: Run, results: dict[str, Any]) -> None:
    before = weights(run.out)
    run.again(run.out)
    assert weights(run.out) == before
    again, _ = compare(run)
    assert weights(run.out) == before
    assert again == results


def test_members_differ_by_what_was_taken_away(run: Run, results: dict[str, Any]) -> None:
    full = load_file(run.out / "members" / "words.stage2.safetensors")
    late = load_file(run.out / "ablations" / "late-fusion" / "members" / "words.stage2.safetensors")
    assert any(name.startswith("fusions.") for name in full)
    assert not any(name.startswith("fusions.") for name in late)
    for folder in ("one-hot-targets", "no-mixup"):
        other = load_file(run.out / "ablations" / folder / "members" / "words.stage2.safetensors")
        assert not torch.equal(full["classifier.weight"], other["classifier.weight"])
    assert not (run.out / "ablations" / "no-stage-2").exists(), "stage 1 of the full recipe is all it needs"
    assert not (run.out / "ablations" / "no-multitask").exists(), "nobody rated attributes"


def test_a_member_that_is_not_there_is_refused(tmp_path: Path) -> None:
    arguments = ["ablate", "--config", str(RECIPES / "default.toml"), "--data", str(tmp_path), "--out", str(tmp_path)]
    answer = CliRunner().invoke(app, [*arguments, "--members", "functionals, wavlm"])
    assert answer.exit_code == 2
    assert "there are no members wavlm" in answer.stderr


def reference_with(truth: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Reference:
    count = len(truth)
    return Reference(
        ids=tuple(map(str, range(count))),
        speakers=tuple(f"speaker-{row % 8}" for row in range(count)),
        genders=("",) * count,
        truth=truth,
        kind=ACTED,
        votes=None,
        attributes=np.full((count, 3), np.nan),
    )


def test_a_loss_is_shown_as_one_and_against_the_same_members() -> None:
    rng, truth = np.random.default_rng(0), np.arange(400) % 4
    truth[:8] = -1  # clips without a truth count in no figure
    wrong = np.where(rng.random(400) < 0.3, (truth + 1) % len(CLASSES), truth)
    full = {"good": truth.copy(), "poor": np.zeros(400, np.int64)}
    rows = members_table(reference_with(truth), full, {"late fusion": {"good": wrong}})
    late = rows["late fusion"]
    assert late["change"]["high"] < 0
    assert late["change"]["value"] == pytest.approx(late["by_member"]["good"] - 1.0)
    assert late["relative_change"]["value"] == pytest.approx(late["by_member"]["good"] - 1.0), (
        "of 1.0, not of the mean of both"
    )
    assert late["relative_change"]["high"] < 0


def test_a_share_of_nothing_is_none() -> None:
    truth = np.zeros(16, np.int64)
    never = {"member": np.ones(16, np.int64)}
    rows = members_table(reference_with(truth), never, {"no mixup": {"member": truth}})
    assert rows["no mixup"]["relative_change"] is None
    assert rows["no mixup"]["change"]["value"] == 1.0


def test_ways_are_held_against_the_soup_of_all() -> None:
    truth = np.arange(200) % 4
    half = np.where(np.arange(200) % 8 < 4, truth, (truth + 1) % 4)
    ways = dict.fromkeys(WAYS, half) | {SOUP: truth}
    table = ensembles_table(reference_with(truth), {("a", "b"): ways, ("a",): dict.fromkeys(WAYS, half)})
    assert [size["members"] for size in table] == [["a", "b"], ["a"]]
    assert table[0]["systems"][SOUP]["change"]["value"] == 0.0
    assert table[1]["systems"][SOUP]["change"]["high"] < 0
