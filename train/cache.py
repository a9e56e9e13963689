"""The feature cache: arrays by name in safetensors shards, one folder per encoder.

A cached array is named by what it was computed from: the audio file's hash, the encoder with the hash of its weights,
and the cutting rules. Change any of them and it is computed again; otherwise a second run only reads. Shards are written
whole or not at all, so a run that is killed loses one shard's work.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from model import audio
from model.sources import WEIGHTS, resolve_encoder, sha256_of
from model.spec import EncoderSpec
from train import cutting


class Cache:
    """Arrays by name in safetensors shards under one folder per encoder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._where: dict[str, Path] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            with safe_open(shard, framework="numpy") as file:
                self._where |= dict.fromkeys(file.keys(), shard)

    def missing(self, names: Iterable[str]) -> list[str]:
        """The names that are not cached yet, in order."""
        return [name for name in dict.fromkeys(names) if name not in self._where]

    def add(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Writes one shard, whole or not at all."""
        digest = hashlib.sha256("".join(sorted(arrays)).encode()).hexdigest()[:16]
        path = self._folder / f"{digest}.safetensors"
        partial = path.with_suffix(".part")
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)
        os.replace(partial, path)
        self._where |= dict.fromkeys(arrays, path)

    def read(self, names: Sequence[str]) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays of `names`."""
        by_shard: dict[Path, list[str]] = {}
        for name in dict.fromkeys(names):
            by_shard.setdefault(self._where[name], []).append(name)
        found: dict[str, npt.NDArray[np.generic]] = {}
        for shard, wanted in by_shard.items():
            with safe_open(shard, framework="numpy") as file:
                found |= {name: file.get_tensor(name) for name in wanted}
        return found


def pinned(encoder: EncoderSpec) -> EncoderSpec:
    """The encoder with the hash of the weights that its sources give now.

    Raises:
        SourceError: if no source has its weights, or not those of its hash.
    """
    if encoder.kind not in WEIGHTS:
        return encoder
    return replace(encoder, sha256=sha256_of(resolve_encoder(encoder) / WEIGHTS[encoder.kind]))


def encoder_key(encoder: EncoderSpec) -> str:
    """Name of a pinned encoder's cache folder: a hash of all that decides its features.

    Not of `stack`, which is the member's matter, nor of where the weights of that hash were found.
    """
    description: dict[str, Any] = {**asdict(encoder), "stack": 0}
    if encoder.sha256:
        del description["sources"]
    if encoder.kind != "text-transformer":
        description["rules"] = _cutting_rules()
    return f"{encoder.name}-{hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]}"


def _cutting_rules() -> dict[str, Any]:
    names = ("PRE_PAD", "POST_PAD", "BUCKET_MARGIN", "MIN_UTTERANCE", "MAX_UTTERANCE", "BUCKET_STEPS")
    return {name: getattr(audio, name) for name in names} | {"endpointing": asdict(cutting.RULES)}
