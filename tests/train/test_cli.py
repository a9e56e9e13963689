import importlib.metadata
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.train.results import make_results
from tests.train.synthetic import RECIPES, write_votes
from train.cli import app

RECIPE = str(RECIPES / "default.toml")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize(
    "command", [command.callback.__name__ for command in app.registered_commands if command.callback]
)
def test_help_shows_an_example(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Example: medusa-train {command} " in result.output


@pytest.mark.parametrize("command", ["features", "run"])
def test_a_wrong_recipe_path_is_named(command: str, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")] if command == "run" else []
    result = invoke(command, "--config", tmp_path / "none.toml", "--data", tmp_path, *out)
    assert result.exit_code == 2
    assert "none.toml" in result.stderr
    assert "does not exist" in result.stderr


def test_a_wrong_data_path_is_named(tmp_path: Path) -> None:
    for command in ("features", "run"):
        arguments = [command, "--config", RECIPE, "--data", tmp_path / "nowhere", "--cache", tmp_path / "cache"]
        result = invoke(*arguments, *(["--out", str(tmp_path / "out")] if command == "run" else []))
        assert result.exit_code == 2, result.output
        assert str(tmp_path / "nowhere" / "cremad" / "votes.csv") in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_an_empty_corpus_is_named(tmp_path: Path) -> None:
    write_votes(tmp_path / "cremad", {})
    result = invoke("features", "--config", RECIPE, "--data", tmp_path, "--cache", tmp_path / "cache")
    assert result.exit_code == 2
    assert "holds no CREMA-D clip with votes" in result.stderr


def test_mistakes_of_a_recipe_are_shown_as_they_are(tmp_path: Path) -> None:
    """Square brackets are text here, and not Rich's markup."""
    text = Path(RECIPE).read_text(encoding="utf-8")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text.replace('modalities = ["functionals"]', 'modalities = ["[/b]"]'), encoding="utf-8")
    result = invoke("features", "--config", recipe, "--data", tmp_path)
    assert result.exit_code == 2, result.output
    assert "member 'functionals' reads ['[/b]']: [encoders] has ['functionals'," in result.stderr


def test_a_clip_that_is_no_audio_is_named(tmp_path: Path) -> None:
    write_votes(tmp_path / "cremad", {"1001_DFA_ANG_XX": (1, 0, 0, 0, 0, 0)})
    clip = tmp_path / "cremad" / "1001_DFA_ANG_XX.wav"
    clip.write_bytes(b"not a recording")
    result = invoke("features", "--config", RECIPE, "--data", tmp_path, "--cache", tmp_path / "cache")
    assert result.exit_code == 2, result.output
    assert str(clip) in result.stderr


def test_a_dry_run_trains_nothing_and_needs_no_data(tmp_path: Path) -> None:
    result = invoke("run", "--config", RECIPES / "medusa.toml", "--data", tmp_path, "--dry-run")
    assert result.exit_code == 0, result.output
    for line in (
        "wavlm-whisper-hubert",
        "14 members",
        "315,453,120",
        "msp-podcast: not here",
        "estimated from operations",
    ):
        assert line in result.stdout, line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["--data", "--out"])
def test_a_run_needs_data_and_a_place(missing: str, tmp_path: Path) -> None:
    given = {"--data": tmp_path, "--out": tmp_path / "out"}
    del given[missing]
    result = invoke("run", "--config", RECIPE, *(word for pair in given.items() for word in pair))
    assert result.exit_code == 2
    assert missing in result.stderr
    assert "needed, unless with --dry-run" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--part", "2"), "a part is written 2/4"),
        (("--part", "5/4"), "a part is one of 1/4 to 4/4, got 5/4"),
        (("--device", "tpu"), "got 'tpu'"),
    ],
)
def test_parts_and_devices_that_are_none_are_named(options: tuple[str, str], message: str, tmp_path: Path) -> None:
    write_votes(tmp_path / "cremad", {"1001_DFA_ANG_XX": (1, 0, 0, 0, 0, 0)})
    (tmp_path / "cremad" / "1001_DFA_ANG_XX.wav").write_bytes(b"never read")
    (tmp_path / "ravdess").mkdir()
    result = invoke("features", "--config", RECIPE, "--data", tmp_path, "--cache", tmp_path / "cache", *options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_report_needs_a_finished_run(tmp_path: Path) -> None:
    result = invoke("report", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert f"{tmp_path / 'run' / 'report.json'} does not exist" in result.stderr
    assert "medusa-train run --out" in result.stderr


def test_a_report_lists_the_systems(tmp_path: Path) -> None:
    """Square brackets and angles in names are text; the page and the card are made again."""
    stored = make_results()
    stored["evaluations"] = {f"{name} [unseen]": evaluation for name, evaluation in stored["evaluations"].items()}
    (tmp_path / "report.json").write_text(json.dumps(stored), encoding="utf-8")
    result = invoke("report", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    for name, evaluation in stored["evaluations"].items():
        assert name in result.stdout
        for system, score in evaluation["systems"].items():
            uar = score["uar"]
            assert f"{system:32} UAR {uar['value']:.3f} [{uar['low']:.3f}, {uar['high']:.3f}]" in result.stdout
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "MODEL_CARD.md").is_file()


def test_a_report_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"evaluations": {}}', encoding="utf-8")
    result = invoke("report", "--out", tmp_path)
    assert result.exit_code == 2
    assert "has the format None" in result.stderr


def test_the_version_is_the_distribution_s() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.strip() == f"medusa-train {importlib.metadata.version('medusa-rt')}"


def test_a_command_for_every_stage() -> None:
    names = {command.callback.__name__ for command in app.registered_commands if command.callback}
    stages = {"convert", "features", "members", "meta", "run", "evaluate", "ablate", "compare", "report"}
    assert names == stages | {"crossvalidate", "finetune", "fewshot", "adapt", "robustness"}
