"""What a run has cost: wall seconds of every stage, kept beside the results and not among them.

Results of the same recipe are equal to the byte; seconds never are. Stages of several members run side by side, so the
sum of their seconds is more than the time that passed. A run that is continued adds to what its folder has cost.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FILE: Final = "cost.json"
FEATURES: Final = "features"
STAGE_1: Final = "stage1"
STAGE_2: Final = "stage2"
META: Final = "meta-classifiers, soup, calibration"
EVALUATION: Final = "evaluation"

Seconds = dict[str, dict[str, float]]
"""Stage -> job -> wall seconds; a stage that is no member's has one job, ""."""


class Cost:
    """The seconds of one run's folder; every addition is written down at once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._seconds = read_cost(folder)

    def add(self, stage: str, job: str, seconds: float) -> None:
        """Adds seconds to a stage of a job."""
        jobs = self._seconds.setdefault(stage, {})
        jobs[job] = round(jobs.get(job, 0.0) + seconds, 3)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".part")
        partial.write_text(json.dumps(self._seconds, indent=1), encoding="utf-8")
        partial.replace(self._path)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds that the block takes, if it ends well."""
        start = time.perf_counter()
        yield
        self.add(stage, "", time.perf_counter() - start)


def read_cost(folder: Path) -> Seconds:
    """The seconds that are noted in a run's folder; none where no note is."""
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
