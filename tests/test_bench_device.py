"""The benchmark of devices, as far as a CPU goes: every part runs, and says what it is for."""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from bench import device
from bench.device import matrix_peak, operations, spoken, times_of
from daemon.config import DEFAULT_BUNDLE
from model.bundle import read_bundle
from model.providers import GpuSettings

ROOT: Final = Path(__file__).parents[1]
TINY: Final = ["--device", "cpu", "--batches", "1", "3", "--rounds", "2", "--threads", "1"]


def test_every_part_but_the_calls_runs_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main([*TINY, "--utterances", "2", "--seconds", "0.5", "--parts", "parity", "sweep", "ensemble"]) == 0
    said = capsys.readouterr().out
    worst = re.search(r"parity: largest difference (\S+), at most 0.0001 is accepted; 2 of 2 keep .*: passed", said)
    assert worst is not None, said
    assert float(worst[1]) < 1e-5, "on a CPU both sum in one order"
    assert re.findall(r"  batch +(\d+): +[\d.]+ utterances/s, p50 .* ms; graphs p50 .* MiB", said) == ["1", "3"]
    assert "of the product" not in said, "operations are counted for another length"
    assert re.findall(r"ensemble: batch +(\d+): on the device [\d.]+ ms, on the CPU [\d.]+ ms", said) == ["1", "3"]


def test_a_difference_above_its_limit_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main([*TINY, "--utterances", "1", "--limit", "-1", "--parts", "parity"]) == 1
    assert "at most -1 is accepted; 1 of 1 keep their top class: FAILED" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert device.main(["--device", "cuda", "--parts", "parity"]) == 2
    assert "CTranslate2 sees no GPU" in capsys.readouterr().err


def test_operations_are_those_of_what_is_served() -> None:
    manifest = read_bundle(DEFAULT_BUNDLE).manifest
    costs = manifest.costs
    served = [costs[name]["flops"] for name in costs if name.startswith("encoder ") or name == "ensemble"]
    assert operations(manifest) == sum(served) > max(served)
    members = [costs[name]["flops"] for name in costs if name.startswith("member ")]
    assert operations(manifest) < sum(served) + sum(members), "the members' are in the ensemble's"


def test_a_matrix_product_has_a_speed() -> None:
    assert 1e8 < matrix_peak("cpu", GpuSettings(), half=False, threads=1) < 1e13


def test_times_leave_the_first_calls_out() -> None:
    calls: list[int] = []
    assert len(times_of(lambda: calls.append(1), 3)) == 3
    assert len(calls) == 5


def test_utterances_are_of_one_length_and_differ() -> None:
    found = spoken(3, 2.0)
    assert [len(samples) for samples in found] == [32_000] * 3
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_the_script_ends_at_once_without_a_gpu(tmp_path: Path) -> None:
    """With no program but the shell's own in reach: on a machine with a GPU there is no nvidia-smi either then."""
    done = subprocess.run(
        [ROOT / "bench" / "gpu.sh"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert "no nvidia-smi, so no GPU here: run it on a machine with an NVIDIA GPU" in done.stderr
    assert not done.stdout


def test_the_script_names_options_that_there_are() -> None:
    script = (ROOT / "bench" / "gpu.sh").read_text(encoding="utf-8")
    assert os.access(ROOT / "bench" / "gpu.sh", os.X_OK)
    runs = re.findall(r"^ *measure (.*)$", script, re.MULTILINE)
    assert len(runs) == 4
    for run in runs:
        parts = re.search(r"--parts ((?:\w+ ?)+)", run)
        assert parts is not None
        assert set(parts[1].split()) <= set(device.PARTS)
    assert {part for run in runs for part in re.findall(r"\w+", run)} >= set(device.PARTS)
