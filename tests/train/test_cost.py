from pathlib import Path

import pytest

from train.cost import EVALUATION, FEATURES, STAGE_1, Cost, read_cost


def test_seconds_add_up_over_runs_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert read_cost(folder) == {}
    Cost(folder).add(STAGE_1, "voice", 2.0)
    again = Cost(folder)
    again.add(STAGE_1, "voice", 0.5)
    again.add(STAGE_1, "words", 1.0)
    again.add(FEATURES, "", 4.0)
    assert read_cost(folder) == {STAGE_1: {"voice": 2.5, "words": 1.0}, FEATURES: {"": 4.0}}
    assert [path.name for path in folder.iterdir()] == ["cost.json"]


def test_a_block_that_fails_is_no_cost_and_leaves_no_folder(tmp_path: Path) -> None:
    cost = Cost(tmp_path / "run")
    with pytest.raises(OSError, match="disk"), cost.timed(FEATURES):
        raise OSError("disk")
    assert not (tmp_path / "run").exists()
    with cost.timed(EVALUATION):
        pass
    assert list(read_cost(tmp_path / "run")) == [EVALUATION]
    assert read_cost(tmp_path / "run")[EVALUATION][""] >= 0.0
