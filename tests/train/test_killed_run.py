"""Whole runs that are killed at random moments, whatever they are at: each ends in what an undisturbed run makes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.train.tiny_run import Run
from train.config import plain_recipe

ROOT = Path(__file__).parents[2]
KILLS = 10
PARTS = ("members", "meta", "checkpoint", "predictions", "report.json")


def killed_or_ended(program: list[str], behind: int, wait_s: float) -> list[str]:
    """What a run has said before it was killed, with all its workers, so many sayings and seconds in; or all, if it ended."""
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        said = [line for line, _ in zip(process.stdout, range(behind), strict=False)]
        if len(said) == behind:
            time.sleep(wait_s)
            os.killpg(process.pid, signal.SIGKILL)
        said += process.stdout.readlines()
    assert process.returncode in (0, -signal.SIGKILL), f"it ended by itself: {process.returncode}"
    return said if process.returncode else []


def files_of(out: Path) -> Iterator[tuple[Path, bytes]]:
    for part in PARTS:
        found = out / part
        for path in sorted(found.rglob("*")) if found.is_dir() else [found]:
            if path.is_file():
                yield path.relative_to(out), path.read_bytes()


@pytest.mark.timeout(900)
def test_runs_killed_at_ten_random_moments_end_in_the_same_bytes(run: Run, tmp_path: Path) -> None:
    """Within features, one member or two at once, meta-classifiers, evaluation; a run that ends makes way for a fresh one."""
    (tmp_path / "recipe.json").write_text(json.dumps(plain_recipe(run.recipe)), encoding="utf-8")
    seed = time.time_ns()
    draw, expected = random.Random(seed), dict(files_of(run.out))
    killed: list[str] = []
    for number in count():
        folder = tmp_path / str(number)
        given = [str(path) for path in (tmp_path / "recipe.json", run.data, folder / "cache", folder / "out")]
        program = [sys.executable, "-m", "tests.train.run_program", *given]

        def killed_by(behind: int, workers: str, program: list[str] = program) -> list[str]:
            return killed_or_ended([*program, workers], behind, draw.uniform(0.0, 0.5))

        while len(killed) < KILLS and (said := killed_by(draw.randint(1, 12), draw.choice("12"))):
            killed.append(said[-1])
        if len(killed) == KILLS:
            assert not killed_by(1_000_000, "1")
        found = dict(files_of(folder / "out"))
        assert found.keys() == expected.keys()
        for path, written in found.items():
            assert written == expected[path], f"{path} differs after kills behind {killed}, seed {seed}"
        if len(killed) == KILLS:
            break
