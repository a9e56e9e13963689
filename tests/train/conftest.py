"""A finished run for all files that a process runs."""

import pytest

from tests.model.tiny import write_tiny_text_encoder
from tests.train.tiny_run import Run, tiny_recipe, write_corpora


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    write_corpora(folder / "data")
    write_tiny_text_encoder(folder / "text")
    finished = Run(tiny_recipe(folder / "text"), folder / "data", folder / "cache", folder / "out")
    calls = finished.again(finished.out)
    assert ("members, stages 1 and 2", 6, 6) in calls  # two members, on all speakers and without either fold
    return finished
