"""`medusa-train convert`: a published emotion2vec checkpoint as a folder that recipes name.

Checkpoints are pickles that hold settings beside the tensors, as objects of packages that are not here and could do anything
when they are read. Here tensors are read, and of all else an empty object is made.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Final

import torch
from torch import Tensor

from model.network.emotion2vec import Layout
from model.network.emotion2vec_folder import write_folder
from model.sources import resolve
from train.errors import RecipeError

_HARMLESS: Final = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
"""What a file may call while it is read: how torch writes tensors and what it keeps them in."""
_PREFIX: Final = "d2v_model."
"""Before every name in checkpoints that were trained further."""
_ARCHIVE: Final = b"PK\x03\x04"
"""How a file begins that torch reads as an archive."""
_PROGRAM: Final = "constants.pkl"
"""By this record `torch.load` knows a TorchScript program, which it runs, past any unpickler."""
_OF_TRAINING: Final = ("_ema", "proj.", "modality_encoders.AUDIO.decoder.")
"""Beginnings of names of what only training needs: the teacher, the head over classes, the decoder of masked frames."""


class _Nothing:
    """In the place of an object that is not read: takes whatever made it, and keeps none of it."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> "_Nothing":
        return self

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def append(self, value: object) -> None:
        """For objects that are written as lists."""

    def extend(self, values: object) -> None:
        """For objects that are written as lists."""


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _HARMLESS.get((module, name), _Nothing)


def _load(file: IO[bytes], **settings: Any) -> Any:
    return _TensorUnpickler(file, **settings).load()


_TENSORS_ONLY: Final = SimpleNamespace(__name__="tensors_only", Unpickler=_TensorUnpickler, load=_load)
"""In the place of `pickle`, for `torch.load`."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a published checkpoint by name, without what only training needs; nothing of the file is run.

    Raises:
        RecipeError: if the file holds no weights, or a program.
    """
    try:
        _refuse_program(path)
        held = torch.load(path, map_location="cpu", pickle_module=_TENSORS_ONLY, weights_only=False)
    except RecipeError:
        raise
    except Exception as error:  # a file of any bytes: unpickling them fails with every kind of error
        raise RecipeError(f"{path} is no checkpoint of torch: {error}") from error
    weights = held.get("model", held) if isinstance(held, Mapping) else held
    if not isinstance(weights, Mapping):
        raise RecipeError(f"{path} is no checkpoint of emotion2vec: it holds no weights by name")
    plain = {str(name).removeprefix(_PREFIX): values for name, values in weights.items() if isinstance(values, Tensor)}
    return {name: values.detach() for name, values in plain.items() if not name.startswith(_OF_TRAINING)}


def _refuse_program(path: Path) -> None:
    with path.open("rb") as file:
        is_archive = file.read(len(_ARCHIVE)) == _ARCHIVE
    if is_archive and _PROGRAM in torch._C.PyTorchFileReader(str(path)).get_all_records():
        raise RecipeError(f"{path} is no checkpoint of emotion2vec: it is a TorchScript program, which is not run")


def convert(source: str, out: Path) -> Layout:
    """Writes a published checkpoint as a folder for `sources = ["path:..."]` of a speech transformer.

    Args:
        source: "path:FILE", "path:FOLDER" or "hub:ID": a checkpoint, or a folder with one file that ends in .pt.
        out: the folder; must not exist.

    Returns:
        The checkpoint's sizes.

    Raises:
        SourceError: if the source is not there.
        RecipeError: if it is no emotion2vec, naming the tensors that are missing or unexpected; nothing is written then.
    """
    if out.exists():
        raise RecipeError(f"{out} exists already: remove it or name another folder")
    path = resolve((source,))
    if path.is_dir():
        files = sorted(path.glob("*.pt"))
        if len(files) != 1:
            found = ", ".join(file.name for file in files) or "none"
            raise RecipeError(f"{path} has one checkpoint, a file that ends in .pt, got {found}: name the file")
        (path,) = files
    try:
        return write_folder(read_weights(path), out)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error
