"""Reads a whole cache as a stage does: statistics, then every batch, several times; says how much memory it took.

python -m tests.train.resident_program FOLDER

Prints the bytes by which the greatest resident size rose behind the first batch, and the number of shards. The process
may hardly open a file more than it has when it begins.
"""

import os
import resource
import sys
from pathlib import Path

import numpy as np

from model.spec import EncoderSpec
from train.cache import Cache
from train.dataset import tensors
from train.stages.members import moments

BATCH = 16


def peak() -> int:
    """The greatest resident size of this process so far, in bytes; unlike ru_maxrss, without the process before exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def program(folder: Path) -> tuple[int, int]:
    """(bytes by which the peak rose, shards)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 8, hard))
    shards = sorted(folder.glob("*.safetensors"))
    cache = Cache(folder)
    names = sorted(cache._where)
    rows = [values.astype(np.float16, copy=False) for values in cache.read(names).values()]
    encoders = {"whisper": EncoderSpec("whisper", "whisper-ctranslate2", rows[0].shape[1], 1)}

    def look(start: int) -> None:
        tensors({"whisper": rows[start : start + BATCH]}, encoders)

    look(0)
    moments(rows[:BATCH])
    before = peak()
    moments(rows)
    for _ in range(2):
        for start in range(0, len(rows), BATCH):
            look(start)
    return peak() - before, len(shards)


if __name__ == "__main__":
    print(*program(Path(sys.argv[1])))  # noqa: T201  # what the test reads
