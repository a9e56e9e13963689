"""Processes that get no more of the processors than a small machine has: control groups of Linux, by root."""

from collections.abc import Iterator, Sequence
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
    """
    with ExitStack() as stack:
        for pid in pids:
            stack.enter_context(_group(pid, cores))
        yield


@contextmanager
def _group(pid: int, cores: float) -> Iterator[None]:
    root = _V1 if _V1.is_dir() else _V2
    group, quota = root / f"medusa-bench-{pid}", round(cores * _PERIOD_US)
    settings = (
        {"cpu.cfs_period_us": f"{_PERIOD_US}", "cpu.cfs_quota_us": f"{quota}"}
        if root == _V1
        else {"cpu.max": f"{quota} {_PERIOD_US}"}
    )
    try:
        group.mkdir()
    except OSError as error:
        raise QuotaError(f"no control group can be made in {root}, which takes root: {error}") from error
    try:
        for name, value in settings.items():
            (group / name).write_text(value)
        (group / "cgroup.procs").write_text(f"{pid}")
        yield
    except OSError as error:
        raise QuotaError(f"{root} does not limit processor time here: {error}") from error
    finally:
        _give_back(root, group)


def _give_back(root: Path, group: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        (root / "cgroup.procs").write_text(pid)
    group.rmdir()
