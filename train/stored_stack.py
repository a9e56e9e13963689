"""What stages 3 and 4 have left in a run's folder: tensors and their key in ONE file, which is whole or not there."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model.network.checkpoint import TrainedFallback
from model.network.member import Member
from model.network.metaclassifier import WIDTH, MetaClassifier
from model.spec import Fallback
from train.config import ObjectiveConfig, Recipe
from train.history import History, write_meta_histories
from train.stacking import Stacked

_FILE: Final = "stacked.safetensors"
_FORMAT: Final = 1
_GIVEN: Final = "given"
"""In the place of a key: no stage 3 makes it again."""


def stack_key(recipe: Recipe, member_keys: Sequence[str]) -> str:
    """Names everything that decides the result of stages 3 and 4: the members' weights, by their keys, and the draws."""
    parts = recipe.model_dump(mode="json", include={"seed", "meta", "text", "augment"})
    # The members' keys hold what is left out here.
    own = recipe.objective.model_dump(mode="json", exclude={"vga", "contrast", "class_weight"})
    later = {"cross_entropy_weight", "focal_gamma", "label_smoothing"}
    plain = ObjectiveConfig()  # these count where they are changed, so that older results keep their key
    parts["objective"] = {n: v for n, v in own.items() if n not in later or v != getattr(plain, n)}
    parts |= {"format": _FORMAT, "members": list(member_keys)}
    if recipe.fallbacks:
        parts["fallbacks"] = recipe.fallbacks
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def save_stacked(folder: Path, key: str, stacked: Stacked) -> None:
    """Replaces what is there."""
    tensors = {f"soup.{name}": values for name, values in stacked.soup.state_dict().items()}
    for number, run in enumerate(stacked.runs):
        tensors |= {f"run{number}.{name}": values for name, values in run.state_dict().items()}
    for number, fallback in enumerate(stacked.fallbacks):
        tensors |= {f"fallback{number}.{name}": values for name, values in fallback.meta.state_dict().items()}
    tensors["prior_ratio"] = torch.from_numpy(stacked.prior_ratio)
    notes = {
        "key": key,
        "runs": [{"rows": h.rows, "steps": h.steps, "best_epoch": h.best_epoch} for h in stacked.histories],
        "ingredients": stacked.ingredients,
        "temperature": stacked.temperature,
        "abstain_below": stacked.abstain_below,
        "trained_attributes": stacked.trained_attributes,
        "fallbacks": [asdict(fallback.spec) for fallback in stacked.fallbacks],
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = (folder / _FILE).with_suffix(".part")
    save_file(tensors, partial, metadata={"notes": json.dumps(notes)})
    partial.replace(folder / _FILE)


def save_given(folder: Path, stacked: Stacked) -> None:
    """An ensemble whose meta-classifier was not trained here, in the place of what is there: notes of its stage 3 too."""
    write_meta_histories(folder, {})
    save_stacked(folder, _GIVEN, stacked)


def load_stacked(folder: Path, key: str, members: tuple[Member, ...]) -> Stacked | None:
    """What was saved for the same key, on the same members; None where there is nothing, or of another recipe or data."""
    if not (folder / _FILE).is_file():
        return None
    with safe_open(folder / _FILE, "pt") as file:
        notes: dict[str, Any] = json.loads(file.metadata()["notes"])
        if notes["key"] != key:
            return None
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}

    def meta(name: str) -> MetaClassifier:
        mine = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        found = MetaClassifier(mine["linear.weight"].shape[1] // WIDTH)
        found.load_state_dict(mine)
        return found.eval()

    return Stacked(
        members=members,
        runs=tuple(meta(f"run{number}") for number in range(len(notes["runs"]))),
        histories=tuple(History(**run) for run in notes["runs"]),
        ingredients=tuple(notes["ingredients"]),
        soup=meta("soup"),
        temperature=notes["temperature"],
        abstain_below=notes["abstain_below"],
        prior_ratio=tensors["prior_ratio"].numpy(),
        trained_attributes=tuple(notes["trained_attributes"]),
        fallbacks=tuple(
            TrainedFallback(Fallback(**{**spec, "members": tuple(spec["members"])}), meta(f"fallback{number}"))
            for number, spec in enumerate(notes.get("fallbacks", ()))
        ),
    )
