"""Where a stage runs: its device, and the processes that share one member. None of it decides what the stage learns."""

import ctypes
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.errors import RecipeError
from train.resume import ResumePoint

Row = dict[str, float]
CPU: Final = torch.device("cpu")
DEVICES: Final = ("auto", "cpu", "cuda")
"""What a recipe or a command may ask for."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
"""Numbers of mallopt(3)."""
_LONGEST_WAIT: Final = timedelta(days=30)
"""All wait while the first extracts features and trains meta-classifiers; a process that dies is torchrun's to see."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train one member together, as torchrun numbers them; usually this one alone.

    All draw the same batches in the same order and hold the same weights. A step's batches are shared out, and the
    gradients of its parts added, so that a step is the same step with any number of processes.

    Attributes:
        rank: number of this process.
        world: how many there are.
        on_machine: number of this process among those of its machine.
    """

    rank: int = 0
    world: int = 1
    on_machine: int = 0

    def add_gradients(self, module: nn.Module) -> None:
        """Gives every process the sum of all processes' gradients."""
        if self.world == 1:
            return
        parameters = list(module.parameters())
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        start = 0
        for parameter in parameters:
            parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()

    def add(self, value: float) -> float:
        """The sum of all processes' values."""
        if self.world == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)

    def wait(self) -> None:
        """Returns once every process is here."""
        if self.world > 1:
            dist.barrier()


def world_size() -> int:
    """How many processes torchrun has started; 1 where it was not used."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_ranks() -> Ranks:
    """The processes that torchrun has started beside this one; this one alone where none was."""
    if world_size() == 1:
        return Ranks()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_LONGEST_WAIT)
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))


def leave_ranks() -> None:
    """Ends what `join_ranks` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def device_of(wanted: str, worker: int = 0) -> torch.device:
    """The device of the worker with this number, for encoders and for stages.

    Args:
        wanted: "cpu", "cuda", or "auto": a GPU where torch sees one, and else the CPU.
        worker: of several that work side by side.

    Raises:
        RecipeError: if there is no such device here; a GPU that was asked for is never replaced by the CPU.
    """
    if wanted not in DEVICES:
        raise RecipeError(f"the device is one of {', '.join(DEVICES)}, got {wanted!r}")
    count = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
    if wanted == "cuda" and not count:
        raise RecipeError(
            'the device "cuda" was asked for, and torch sees no CUDA device here: "auto" or "cpu" would run'
        )
    return gpu_of(worker, count) if count else CPU


def gpu_of(worker: int, count: int) -> torch.device:
    """Workers take the GPUs in turn: several share one where there are more workers than GPUs."""
    return torch.device("cuda", worker % count)


def keep_freed_memory() -> None:
    """Has this process keep the memory that it frees, where the C library is glibc; elsewhere nothing changes.

    A step's tensors are larger than what glibc keeps by itself: each was given back to the kernel and cleared again at
    the next step, and a small member waited longer for that than for its arithmetic.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _ignore(row: Row) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Execution:
    """How one stage is run.

    Attributes:
        device: where the member and its batches are.
        compile: pass the forward of training through torch.compile.
        resume: where the stage leaves a point to continue from; None leaves none.
        on_epoch: called with each epoch's row.
        ranks: the processes that train this member together.
    """

    device: torch.device = CPU
    compile: bool = False
    resume: ResumePoint | None = None
    on_epoch: Callable[[Row], None] = _ignore
    ranks: Ranks = field(default_factory=Ranks)


def moved(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors on `device`."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}
