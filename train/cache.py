"""The feature cache: arrays by name in safetensors shards, one folder per encoder.

A cached array is named by what it was computed from: the audio file's hash, the encoder with the hash of its weights,
and the cutting rules. Change any of them and it is computed again; otherwise a second run only reads. Shards are written
whole or not at all, so a run that is killed loses one shard's work.

Arrays are read where they lie: shards are mapped into memory, and an array's bytes are fetched when they are looked at.
What a batch has copied is let go again, so a process holds a few batches of a corpus of any size; how much of it stays in
the page cache is the kernel's choice.
"""

import hashlib
import json
import mmap
import os
import resource
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from model import audio
from model.sources import WEIGHTS, resolve_encoder, sha256_of
from model.spec import EncoderSpec
from train import cutting

Array = npt.NDArray[np.generic]

_TYPES: Final = {"F16": np.float16, "F32": np.float32, "U8": np.uint8}
"""safetensors' names of the types that are cached: frames, the confidence of transcripts, and their bytes."""

_AROUND: Final = 1 << 21
"""Bytes of a file, aligned, that a kernel may map at once where a byte is looked at: Linux the whole of a large folio."""
_RECORDED: Final = ("standardised", "equal_lengths")
"""What an export notes of a checkpoint. The checkpoint decides it, and its hash stands in the key already."""


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

    def add(self, arrays: Mapping[str, Array]) -> None:
        """Writes one shard, whole or not at all."""
        digest = hashlib.sha256("".join(sorted(arrays)).encode()).hexdigest()[:16]
        path = self._folder / f"{digest}.safetensors"
        partial = path.with_suffix(".part")
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial)
        os.replace(partial, path)
        self._where |= dict.fromkeys(arrays, path)

    def read(self, names: Sequence[str]) -> dict[str, Array]:
        """The arrays of `names`, mapped and read-only: nothing is read before it is looked at (`let_go`)."""
        by_shard: dict[Path, list[str]] = {}
        for name in dict.fromkeys(names):
            by_shard.setdefault(self._where[name], []).append(name)
        return {name: array for shard, wanted in by_shard.items() for name, array in _mapped(shard, wanted).items()}


def _mapped(shard: Path, names: Sequence[str]) -> dict[str, Array]:
    """Arrays of one shard as views of its file.

    Source: the safetensors format: eight bytes of length, a JSON header of that length, the data.
    """
    _allow_one_more_file()
    with shard.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    (size,) = struct.unpack_from("<Q", mapped)
    start = 8 + size
    header = json.loads(mapped[8:start])
    found: dict[str, Array] = {}
    for name in names:
        there = header[name]
        offset = start + there["data_offsets"][0]
        found[name] = np.ndarray(there["shape"], _TYPES[there["dtype"]], mapped, offset)
    return found


def _allow_one_more_file() -> None:
    """A map keeps its file open, and a large corpus has thousands of shards: they shall not use up what others need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and (soft < hard or hard == resource.RLIM_INFINITY):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft + 1, hard))


def let_go(arrays: Iterable[npt.NDArray[Any]]) -> None:
    """Takes the pages of mapped arrays out of this process; whoever looks again finds the same values.

    Arrays that are no cache's stay as they are.
    """
    for array in arrays:
        mapped: object = array.base
        if isinstance(mapped, mmap.mmap) and array.nbytes:
            begin = array.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
            first, end = begin - begin % _AROUND, begin + array.nbytes
            mapped.madvise(mmap.MADV_DONTNEED, first, min(end - end % -_AROUND, len(mapped)) - first)


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
    for name in _RECORDED:
        del description[name]
    if encoder.sha256:
        del description["sources"]
    if encoder.kind != "text-transformer":
        description["rules"] = _cutting_rules()
    return f"{encoder.name}-{hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]}"


def _cutting_rules() -> dict[str, Any]:
    names = ("PRE_PAD", "POST_PAD", "BUCKET_MARGIN", "MIN_UTTERANCE", "MAX_UTTERANCE", "BUCKET_STEPS")
    return {name: getattr(audio, name) for name in names} | {"endpointing": asdict(cutting.RULES)}
