"""Options of `medusa-export bundle` that are refused before anything is exported."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from export.cli import app
from tests.model.tiny import tiny_bundle


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--precision", "members=fp3"], "the precisions are fp32,"),
        (["--precision", "members=fp16", "--precision", "encoder.ears=fp16"], "encoder.ears: there are"),
        (["--triton", "."], ". exists already"),
        (["--sign", "nowhere.key"], "the key nowhere.key cannot be read"),
    ],
)
def test_an_option_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["bundle", str(tiny_bundle().checkpoint), "out", *options])
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
