"""Where weights come from: a list of sources, tried in order, and checked against a hash.

package:NAME/PATH     a file or folder inside an installed package (which is not imported)
path:PATH             a file or folder
hub:ID or hub:ID@REV  a snapshot of the Hugging Face hub; reached only where a configuration names it
bundle:PATH           a file inside the bundle itself
"""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from model.spec import WHISPER_KINDS, EncoderKind, EncoderSpec

WEIGHTS: Final[dict[EncoderKind, str]] = {
    **dict.fromkeys(WHISPER_KINDS, "model.bin"),
    "text-transformer": "model.safetensors",
    "speech-transformer": "",
}
"""The file whose hash an encoder's description holds, where its source is a folder; "" is the folder (`sha256_of`)."""
_CHECKPOINTS: Final = ("model.safetensors", "pytorch_model.bin")
"""Weights of `transformers`, the first that is there: several speech models were published without safetensors."""
_SETTINGS: Final = ("config.json", "preprocessor_config.json")
"""What decides, beside the weights, how a waveform becomes frames."""
_BLOCK: Final = 1 << 20


class SourceError(RuntimeError):
    """No source gave the weights; the message lists each source and why it failed."""


def resolve_encoder(encoder: EncoderSpec, bundle: Path | None = None) -> Path:
    """The file or folder of an encoder's weights, checked against its hash.

    Raises:
        SourceError: if no source has them.
    """
    path = resolve(encoder.sources, bundle, encoder.sha256, WEIGHTS.get(encoder.kind, ""))
    if encoder.kind == "speech-transformer" and path.is_dir():
        try:
            _model_files(path)
        except FileNotFoundError as error:
            raise SourceError(f"encoder {encoder.name!r}: {error}") from error
    return path


def resolve(sources: Sequence[str], bundle: Path | None = None, sha256: str = "", weights: str = "") -> Path:
    """The first source that exists and, where a hash is given, holds the weights of that hash.

    Args:
        sources: tried in this order.
        bundle: the folder that "bundle:" looks into.
        sha256: expected hash in hexadecimal; "" takes any weights.
        weights: the file inside a source's folder that is hashed ("model.bin"); a source that is a file is hashed itself.

    Raises:
        SourceError: if no source has them.
    """
    failures = []
    for source in sources:
        try:
            path = _resolve_one(source, bundle)
            _check_hash(path if path.is_file() else path / weights, sha256)
        except (OSError, ValueError, ImportError) as error:
            failures.append(f"  {source}: {error}")
        else:
            return path
    raise SourceError("no source has the weights:\n" + ("\n".join(failures) or "  the list of sources is empty"))


def _check_hash(weights: Path, sha256: str) -> None:
    if not sha256:
        return
    found = sha256_of(weights)
    if found != sha256:
        raise ValueError(f"{weights} has SHA-256 {found}, expected {sha256}")


def _resolve_one(source: str, bundle: Path | None) -> Path:
    scheme, _, rest = source.partition(":")
    if scheme == "package":
        path = _in_package(rest)
    elif scheme == "path":
        path = Path(rest).expanduser()
    elif scheme == "bundle":
        if bundle is None:
            raise ValueError("there is no bundle to look into")
        path = bundle / rest
    elif scheme == "hub":
        from huggingface_hub import snapshot_download  # reached only where a configuration names the hub

        repository, _, revision = rest.partition("@")
        return Path(snapshot_download(repository, revision=revision or None))
    else:
        raise ValueError("a source begins with package:, path:, hub: or bundle:")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    return path


def _in_package(rest: str) -> Path:
    name, _, inside = rest.partition("/")
    if not name.isidentifier():  # to find "a.b", importlib imports "a"
        raise ValueError(f"{name!r} is no top-level package")
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {name!r} is not installed")
    return Path(spec.submodule_search_locations[0]) / inside


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; of a model's folder, that of its settings' and weights' names and hashes.

    Raises:
        OSError: if there is no such file, or the folder holds no model of `transformers` for speech.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        for file in _model_files(path):
            digest.update(f"{file.name} {sha256_of(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _model_files(folder: Path) -> list[Path]:
    settings = [folder / name for name in _SETTINGS]
    weights = next((folder / name for name in _CHECKPOINTS if (folder / name).is_file()), None)
    missing = [path.name for path in settings if not path.is_file()]
    if weights is None:
        missing.append(" or ".join(_CHECKPOINTS))
    if weights is None or missing:
        raise FileNotFoundError(f"{folder} is no speech model of transformers: it lacks {', '.join(missing)}")
    return [*settings, weights]
