import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.quota import QuotaError, limited


@pytest.fixture
def process() -> Iterator[int]:
    """Something that runs."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as running:
        yield running.pid
        running.kill()


def groups(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cgroup").read_text().splitlines()


def quota_of(pid: int) -> str:
    """Of the group that it is in, as both versions of control groups write it: microseconds of a period."""
    path = next(line.split(":", 2)[2] for line in groups(pid) if f"medusa-bench-{pid}" in line)
    for file in (Path(f"/sys/fs/cgroup/cpu{path}/cpu.cfs_quota_us"), Path(f"/sys/fs/cgroup{path}/cpu.max")):
        if file.exists():
            return file.read_text().split()[0]
    raise AssertionError(path)


def test_a_process_is_limited_while_the_block_lasts_and_then_back_where_it_was(process: int) -> None:
    before = groups(process)
    try:
        with limited([process], 0.1):
            assert quota_of(process) == "2000"  # of 20 ms
    except QuotaError as error:
        pytest.skip(str(error))
    assert groups(process) == before


def test_an_error_within_is_its_own(process: int) -> None:
    before = groups(process)
    try:
        with limited([process], 0.1):
            pass
    except QuotaError as error:
        pytest.skip(str(error))
    with pytest.raises(TimeoutError, match="no answer"), limited([process], 0.5):
        raise TimeoutError("no answer")
    assert groups(process) == before


def test_a_process_that_is_not_there_is_an_error() -> None:
    with pytest.raises(QuotaError, match="there is no process"), limited([2**22 + 1], 0.5):
        pass


def test_no_cores_are_none() -> None:
    with pytest.raises(ValueError, match="more than 0 cores, got 0"), limited([1], 0):
        pass
