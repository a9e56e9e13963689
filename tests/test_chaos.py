"""Trouble at random moments, briefly; `bench/chaos.py` makes it for as long as one likes, and says what is counted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHIN_S = 150.0


@pytest.mark.skipif(not (ROOT / "bench").is_dir(), reason="the benchmarks are not part of this copy")
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_is_lost_repeated_or_changed(workers: int) -> None:
    """Cuts, stalls and kills under two calls; the program ends with 0 only if every utterance is there, once, and right."""
    options = ["--calls", "2", "--seconds", "1", "--speed", "4", "--seed", "5", "--workers", str(workers)]
    ran = subprocess.run(
        [sys.executable, "-m", "bench.chaos", *options], cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    troubles, found = ran.stdout.strip().splitlines()[-2:]
    assert int(troubles.split()[0]) >= 2, troubles
    utterances = re.search(r"(\d+) utterances", found)
    assert utterances is not None
    assert int(utterances[1]) >= 20, found
