"""A point between two epochs from which a stage continues as if nothing had happened, to the bit on a CPU."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from train.history import History

State = dict[str, Tensor]


@dataclass(slots=True)
class Standing:
    """Where a stage stands between two epochs: everything that decides what follows.

    Beside it, the state of torch's generators, which are the process' own.
    """

    member: nn.Module
    optimizer: torch.optim.Optimizer
    rng: np.random.Generator
    best: State
    history: History


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The file of one stage's latest point; it is gone once the stage is done.

    Tensors and notes are in ONE file, which takes its place in one step: a kill leaves the old point or the new one.

    Attributes:
        path: of the file.
        key: names everything that decides the stage's weights; the point of another stage is not continued.
        every: epochs between two points.
    """

    path: Path
    key: str
    every: int = 1

    def is_due(self, epochs: int) -> bool:
        """Whether a point belongs behind this many epochs."""
        return epochs % self.every == 0

    def save(self, standing: Standing) -> None:
        """Replaces the latest point by this one."""
        tensors = {f"member.{name}": values for name, values in standing.member.state_dict().items()}
        tensors |= {f"best.{name}": values for name, values in standing.best.items()}
        for index, moments in standing.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": values for name, values in moments.items()}
        tensors["random.torch"] = torch.get_rng_state()
        device = module_device(standing.member)
        if device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(device)
        notes = {
            "key": self.key,
            "numpy": standing.rng.bit_generator.state,
            "history": asdict(standing.history),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, self._partial, metadata={"notes": json.dumps(notes)})
        self._partial.replace(self.path)

    def restore(self, standing: Standing) -> None:
        """Puts `standing` where the latest point of this stage was, if there is one."""
        if not self.path.is_file():
            return
        with safe_open(self.path, "pt") as file:
            notes: dict[str, Any] = json.loads(file.metadata()["notes"])
            if notes["key"] != self.key:
                return
            # The file's own memory is not aligned as torch's is, and sums may then be taken in another order.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        standing.member.load_state_dict(_part(tensors, "member"))
        standing.best = {
            name: values.to(module_device(standing.member)) for name, values in _part(tensors, "best").items()
        }
        moments: dict[int, State] = {}
        for name, values in _part(tensors, "optimizer").items():
            index, _, kind = name.partition(".")
            moments.setdefault(int(index), {})[kind] = values
        groups = standing.optimizer.state_dict()["param_groups"]
        standing.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        standing.rng.bit_generator.state = notes["numpy"]
        standing.history = History(**notes["history"])
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors and module_device(standing.member).type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], module_device(standing.member))

    def remove(self) -> None:
        """Deletes the point: its stage is done."""
        for path in (self.path, self._partial):
            path.unlink(missing_ok=True)

    @property
    def _partial(self) -> Path:
        return self.path.with_suffix(".part")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> State:
    return {name.removeprefix(f"{prefix}."): v for name, v in tensors.items() if name.startswith(f"{prefix}.")}


def module_device(module: nn.Module) -> torch.device:
    """Where a network is."""
    return next(module.parameters()).device
