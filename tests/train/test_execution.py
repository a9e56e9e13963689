"""Devices, and one member by two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.ranks_program import program
from tests.train.synthetic import ENCODERS, TRAINED, make_examples, make_member
from train.config import StageConfig
from train.errors import RecipeError
from train.execution import CPU, Execution, Ranks, device_of, gpu_of, join_ranks
from train.loop import StageData, train_stage

ROOT = Path(__file__).parents[2]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


def test_workers_take_the_gpus_in_turn() -> None:
    assert [str(gpu_of(worker, 3)) for worker in range(5)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]


def test_the_cpu_is_the_cpu_for_every_worker() -> None:
    assert {device_of("cpu", worker) for worker in range(3)} == {CPU}


@NO_GPU
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert device_of("auto", 4) == CPU
    with pytest.raises(RecipeError, match='"cuda" was asked for, and torch sees no CUDA device'):
        device_of("cuda")


def test_a_device_that_was_asked_for_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, auto in ((0, "cpu"), (2, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpus=gpus: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert device_of("auto").type == auto
        assert device_of("cpu").type == "cpu"
    assert str(device_of("cuda", 3)) == "cuda:1"
    with pytest.raises(RecipeError, match="one of auto, cpu, cuda, got 'tpu'"):
        device_of("tpu")


def test_a_process_that_torchrun_has_not_started_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_ranks() == Ranks(0, 1)
    assert Ranks().add(2.5) == 2.5


def test_batches_that_cannot_be_shared_out_are_refused() -> None:
    config = StageConfig(epochs=1, batch_size=8, learning_rate=1e-3, accumulate=3)
    data = StageData(lambda rng: make_examples(TRAINED), None, torch.ones(8), TRAINED)
    with pytest.raises(RecipeError, match="accumulate is 3: 2 processes .* multiple of 2"):
        train_stage(make_member(), ENCODERS, data, config, 0, Execution(ranks=Ranks(0, 2)))


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    program(one, Ranks())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*launcher, "-m", "tests.train.ranks_program", str(two)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    for fold in (0, 1):
        fitted = [
            load_file(folder / "members" / f"flat-without-fold-{fold}.stage1.safetensors") for folder in (one, two)
        ]
        torch.testing.assert_close(*fitted, atol=1e-4, rtol=0)
    for kind, tolerance in (("gradient", 1e-6), ("weights", 1e-5)):
        expected = load_file(one / f"{kind}-0.safetensors")
        first, second = (load_file(two / f"{kind}-{rank}.safetensors") for rank in (0, 1))
        assert first.keys() == expected.keys()
        for name, values in expected.items():
            assert torch.equal(first[name], second[name]), name
            if kind == "weights" and name.endswith("qkv.bias"):
                continue  # a softmax does not see the biases of keys: their gradient is rounding, which Adam scales up
            torch.testing.assert_close(first[name], values, atol=tolerance, rtol=1e-5)
