"""A stage that is killed anywhere ends in the same weights, to the bit."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.network.deepser import DeepSER
from tests.train.kill_program import recipe_of, train
from tests.train.synthetic import ENCODERS, TRAINED, make_examples, make_member, make_training_set, optimizer_steps
from train.config import StageConfig
from train.execution import Execution
from train.loop import StageData, train_stage
from train.resume import ResumePoint
from train.stages.members import ALL_SPEAKERS, Job, train_member

ROOT = Path(__file__).parents[2]
LABELS = (*TRAINED, None) * 12
FILES = {f"tiny.stage{number}.{kind}" for number in (1, 2) for kind in ("json", "safetensors")}


class Killed(BaseException):
    """Stands for a kill where a test must choose its moment."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def assert_same(found: Path, expected: Path) -> None:
    assert {path.name for path in found.iterdir()} == FILES
    for name in FILES:
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def test_a_process_killed_at_random_moments_ends_in_the_same_weights(whole: Path, tmp_path: Path) -> None:
    """SIGKILL, four times: within an epoch, between epochs and between stages, wherever it falls."""
    draw, kills = random.Random(time.time_ns()), 0
    while True:
        program = [sys.executable, "-m", "tests.train.kill_program", str(tmp_path)]
        with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if kills < 4:
                for _ in range(draw.randint(1, 2)):
                    process.stdout.readline()
                time.sleep(draw.uniform(0.0, 0.03))
                process.kill()
            process.stdout.read()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert kills >= 2, "the program ended before it could be killed"
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("every", [1, 4])
def test_a_kill_behind_any_epoch_changes_no_bit(whole: Path, tmp_path: Path, every: int) -> None:
    """Each of the twelve epochs is the last one of a process; what lies behind the latest point is trained again."""
    data, recipe = make_training_set(make_examples(LABELS)), recipe_of(every)
    last: list[tuple[str, float]] = [(f"stage{number}", epoch) for number in (1, 2) for epoch in range(6)]

    def kill_behind(target: tuple[str, float]) -> Callable[[str, dict[str, float]], None]:
        def note(stage: str, row: dict[str, float]) -> None:
            if (stage, row["epoch"]) == target:
                raise Killed

        return note

    job = Job(recipe.member_specs()[0], ALL_SPEAKERS)
    for target in last:
        torch.manual_seed(123)  # a new process has another state
        with pytest.raises(Killed):
            train_member(job, recipe, data, tmp_path, kill_behind(target))
    member = train_member(job, recipe, data, tmp_path)
    assert_same(tmp_path, whole)
    expected = load_file(whole / "tiny.stage2.safetensors")
    assert all(torch.equal(values, expected[name]) for name, values in member.state_dict().items())


def stage(
    point: ResumePoint | None, epochs: int, dies_behind: int | None = None, seed: int = 3
) -> tuple[DeepSER, list[float], int]:
    """One stage with dropout, mixup and selection: the member, its scores, the optimizer steps of this process."""
    examples, dev = make_examples(LABELS), make_examples(TRAINED * 5, seed=9)
    member = make_member(dropout=0.3)
    data = StageData(lambda rng: examples.subset(rng.permutation(len(examples))[:40]), dev, torch.ones(8), TRAINED)
    config = StageConfig(epochs=epochs, batch_size=8, learning_rate=3e-3, mixup=0.5)

    def note(row: dict[str, float]) -> None:
        if row["epoch"] == dies_behind:
            raise Killed

    with optimizer_steps() as steps:
        try:
            history = train_stage(member, ENCODERS, data, config, seed, Execution(resume=point, on_epoch=note))
        except Killed:
            return member, [], len(steps)
    return member, [row["dev_macro_f1"] for row in history.rows], len(steps)


def weights(member: DeepSER) -> torch.Tensor:
    return torch.cat([values.flatten() for values in member.state_dict().values()])


def test_only_epochs_behind_the_latest_point_are_trained_again(tmp_path: Path) -> None:
    point = ResumePoint(tmp_path / "a.epoch.safetensors", "key", every=2)
    assert stage(point, 6, dies_behind=4)[2] == 5 * 5
    member, _, steps = stage(point, 6)
    assert steps == 2 * 5  # the point is behind the fourth epoch
    assert torch.equal(weights(member), weights(stage(None, 6)[0]))


def test_a_stage_whose_every_epoch_is_done_trains_nothing(tmp_path: Path) -> None:
    point = ResumePoint(tmp_path / "a.epoch.safetensors", "key")
    stage(point, 4, dies_behind=3)
    member, scores, steps = stage(point, 4)
    assert steps == 0
    assert len(scores) == 4
    assert torch.equal(weights(member), weights(stage(None, 4)[0]))


def test_the_point_of_another_recipe_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "a.epoch.safetensors"
    stage(ResumePoint(path, "one"), 4, dies_behind=2, seed=8)
    member, _, steps = stage(ResumePoint(path, "other"), 4)
    assert steps == 4 * 5
    assert torch.equal(weights(member), weights(stage(None, 4)[0]))


def test_a_kill_while_a_point_is_written_leaves_the_one_before(tmp_path: Path) -> None:
    """Half a file under the name that a point has before it is whole."""
    point = ResumePoint(tmp_path / "a.epoch.safetensors", "key")
    stage(point, 5, dies_behind=2)
    (tmp_path / "a.epoch.part").write_bytes(point.path.read_bytes()[:1000])
    member, _, steps = stage(point, 5)
    assert steps == 2 * 5
    assert torch.equal(weights(member), weights(stage(None, 5)[0]))
    point.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_point_is_no_pickle_and_has_its_notes_in_plain_words(tmp_path: Path) -> None:
    point = ResumePoint(tmp_path / "a.epoch.safetensors", "key")
    stage(point, 3, dies_behind=1)
    tensors, raw = load_file(point.path), point.path.read_bytes()
    assert {name.split(".")[0] for name in tensors} == {"member", "best", "optimizer", "random"}
    size = int.from_bytes(raw[:8], "little")
    notes = json.loads(json.loads(raw[8 : 8 + size])["__metadata__"]["notes"])
    assert notes["key"] == "key"
    assert [row["epoch"] for row in notes["history"]["rows"]] == [0, 1]
    assert notes["history"]["steps"] == 10
    np.random.default_rng(0).bit_generator.state = notes["numpy"]
