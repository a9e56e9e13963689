"""`fewshot --turns` on a corpus: everybody is tested on once, by members that learned from others."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.train.transfer.conftest import LABELS, SPEAKERS, TARGET, World, silent
from train.cli import app
from train.transfer.fewshot import Plan, fewshot
from train.transfer.fewshot_report import FINETUNED
from train.transfer.source import UNTOUCHED
from train.transfer.target import load_target

FOLDS = 4
SHARED = len(LABELS) - 1
TAKES = 2


def dividing(folder: Path, division: str) -> Path:
    path = folder / "target.toml"
    path.write_text(TARGET.replace("dev_fraction = 0.25\ntest_fraction = 0.25\n", division), encoding="utf-8")
    return path


def curve(world: World, config: Path, out: Path, *more: str) -> Result:
    options = ["--run", world.run, "--config", config, "--data", world.data, "--out", out, "--cache", world.cache]
    return CliRunner().invoke(app, ["fewshot", *map(str, options), "--members", "voice", *more])


def test_everybody_is_tested_on_once(world: World, tmp_path: Path) -> None:
    config = dividing(tmp_path, f'split = "folds"\nfolds = {FOLDS}\ntest_fold = 2\n')
    found = curve(world, config, tmp_path / "all", "--budgets", "0.5,1", "--draws", "1", "--turns")
    assert found.exit_code == 0, found.output
    results = json.loads((tmp_path / "all" / "fewshot.json").read_text())
    assert (results["speakers"], results["clips"]) == (len(SPEAKERS), len(SPEAKERS) * SHARED * TAKES)
    half, everything = results["budgets"]
    others = len(SPEAKERS) - len(SPEAKERS) // FOLDS
    assert half["speakers"] == [others // 2] * FOLDS
    assert everything["speakers"] == [others] * FOLDS
    assert [turn["name"] for turn in results["turns"]] == [f"fold {number}" for number in range(FOLDS)]
    assert [turn["speakers"] for turn in results["turns"]] == [len(SPEAKERS) // FOLDS] * FOLDS
    assert sum(turn["clips"] for turn in results["turns"]) == results["clips"]
    source, target = world.source("voice"), load_target(config, world.source("voice").recipe)
    fewshot(source, target, Plan((0.5, 1.0), 1), world.data, world.cache, tmp_path / "one", silent)
    one = json.loads((tmp_path / "one" / "fewshot.json").read_text())
    turn = results["turns"][2]
    assert one["turns"] == []
    assert turn[UNTOUCHED] == pytest.approx(one[UNTOUCHED]["uar"]["value"])
    assert turn[FINETUNED] == pytest.approx([row["systems"][FINETUNED]["uar"]["value"] for row in one["budgets"]])
    members = Path("members") / "50-percent-of-speakers-draw-0" / "finetuned"
    for path in (tmp_path / "one" / members).glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "all" / "2-fold-2" / members / path.name).read_bytes()


def test_turns_of_a_corpus_that_is_divided_once_are_refused(world: World, tmp_path: Path) -> None:
    found = curve(world, dividing(tmp_path, ""), tmp_path / "out", "--turns")
    assert found.exit_code == 2
    assert '[data] split = "speakers" divides table once' in found.stderr
    assert not (tmp_path / "out").exists()
