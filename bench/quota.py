"""Processes that get no more of the processors than a small machine has: control groups of Linux, by root."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

_PERIOD_US: Final = 20_000
"""Short, so that a process that has used its share waits for milliseconds, not for a tenth of a second."""
_V1: Final = Path("/sys/fs/cgroup/cpu")
_V2: Final = Path("/sys/fs/cgroup")


class QuotaError(RuntimeError):
    """Processor time cannot be limited here."""


@contextmanager
def limited(pids: Sequence[int], cores: float) -> Iterator[None]:
    """Gives each process so many cores at most, until the block ends; each has its own share.

    Args:
        pids: of the processes, with all their threads.
        cores: for each, for instance 0.4.

    Raises:
        QuotaError: if this process may not do that.
        ValueError: if `cores` is not above 0.
    """
    if not cores > 0:
        raise ValueError(f"a process gets more than 0 cores, got {cores}")
    with ExitStack() as stack:
        for pid in pids:
            stack.enter_context(_group(pid, cores))
        yield


@contextmanager
def _group(pid: int, cores: float) -> Iterator[None]:
    former = _group_of(pid)
    group, quota = former / f"medusa-bench-{pid}", round(cores * _PERIOD_US)
    settings = (
        {"cpu.cfs_period_us": f"{_PERIOD_US}", "cpu.cfs_quota_us": f"{quota}"}
        if _V1.is_dir()
        else {"cpu.max": f"{quota} {_PERIOD_US}"}
    )
    try:
        group.mkdir()
    except OSError as error:
        raise QuotaError(f"no control group can be made in {former}, which takes root: {error}") from error
    try:
        _write(group, {**settings, "cgroup.procs": f"{pid}"})
        yield
    finally:
        for held in (group / "cgroup.procs").read_text().split():
            (former / "cgroup.procs").write_text(held)
        group.rmdir()


def _group_of(pid: int) -> Path:
    """Where a process is now: its own group is made below, so that what limits it already goes on doing so."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError as error:
        raise QuotaError(f"there is no process {pid}, or it has no control groups: {error}") from error
    paths = {kinds: path for _, kinds, path in (line.split(":", 2) for line in lines)}
    if _V1.is_dir():
        kinds = next(kinds for kinds in paths if "cpu" in kinds.split(","))
        return _V1 / paths[kinds].lstrip("/")
    return _V2 / paths[""].lstrip("/")


def _write(group: Path, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        try:
            (group / name).write_text(value)
        except OSError as error:
            raise QuotaError(f"{group / name} does not take {value!r}: {error}") from error
