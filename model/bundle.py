"""A bundle: the folder that `export` writes and the daemon loads, every file of it named and hashed.

    manifest.json      what it is: ensemble, calibration, metrics, data and licence, tolerances, hashes
    ensemble.onnx      members, meta-classifier and calibration in one graph: what the daemon runs
    members/*.onnx     each member by itself      meta.onnx       the souped meta-classifier
    encoders/*.onnx    encoders that we convert   tokenizers/     their tokenizers
    MODEL_CARD.md      SHA256SUMS
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from model.sources import sha256_of
from model.spec import EnsembleSpec, SpecError

FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
ENSEMBLE_GRAPH: Final = "ensemble.onnx"
TEXT_GRAPH: Final = "encoders/text.onnx"
TEXT_TOKENIZER: Final = "tokenizers/text.json"
_ID_DIGITS: Final = 12


class BundleError(ValueError):
    """A bundle that must not be served; the message says which file, what was found, and what would be right."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        name: of the recipe it was trained from.
        ensemble: encoders, members and label space.
        temperature: folded into the graph; stated for the record.
        abstain_below: confidence under which a posterior counts as abstained.
        metrics: results on speakers that no stage saw.
        training: data, licence, contamination.
        opset: of every graph.
        tolerances: limits of the parity check.
        parity: its figures.
        files: relative path -> SHA-256 of every file except the manifest and SHA256SUMS.
    """

    name: str
    ensemble: EnsembleSpec
    temperature: float
    abstain_below: float
    metrics: dict[str, Any]
    training: dict[str, Any]
    opset: int
    tolerances: dict[str, float]
    parity: dict[str, float]
    files: dict[str, str]

    @property
    def bundle_id(self) -> str:
        """Name and the beginning of a hash over all files' hashes: equal ids mean equal content."""
        lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(self.files.items()))
        return f"{self.name}-{hashlib.sha256(lines.encode()).hexdigest()[:_ID_DIGITS]}"

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {"format_version": FORMAT_VERSION, "bundle_id": self.bundle_id, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            BundleError: if the format is another one, a field is missing, or the id does not fit the hashes.
        """
        version = data.get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(
                f"the bundle has format version {version!r}, this program reads {FORMAT_VERSION}: "
                "export it again with this version (medusa-export bundle)"
            )
        try:
            fields = {name: data[name] for name in cls.__dataclass_fields__ if name != "ensemble"}
            manifest = cls(ensemble=EnsembleSpec.from_dict(data["ensemble"]), **fields)
        except (KeyError, TypeError, SpecError) as error:
            raise BundleError(f"the manifest is incomplete: {error}") from error
        if data["bundle_id"] != manifest.bundle_id:
            raise BundleError(f"the manifest says it is {data['bundle_id']}, but its hashes make it {manifest.bundle_id}")
        return manifest


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Path of one of its files.

        Raises:
            BundleError: if the manifest does not list it.
        """
        if name not in self.manifest.files:
            raise BundleError(f"the bundle {self.manifest.bundle_id} has no {name}")
        return self.path / name


def hash_files(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file in `folder` except the manifest and SHA256SUMS."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: sha256_of(path) for name, path in names.items() if name not in (MANIFEST, SUMS)}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json`, and `SHA256SUMS` in the format of sha256sum."""
    (folder / MANIFEST).write_text(json.dumps(manifest.to_dict(), indent=1) + "\n", encoding="utf-8")
    sums = manifest.files | {MANIFEST: sha256_of(folder / MANIFEST)}
    (folder / SUMS).write_text("".join(f"{d}  {p}\n" for p, d in sorted(sums.items())), encoding="utf-8")


def read_bundle(folder: Path) -> Bundle:
    """Reads and verifies a bundle: its manifest, and every byte of every file.

    Raises:
        BundleError: naming the first thing that is wrong.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: {MANIFEST} is missing")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path} holds a {type(data).__name__}, not an object")
    manifest = Manifest.from_dict(data)
    found = hash_files(folder)
    for name, digest in manifest.files.items():
        if name not in found:
            raise BundleError(f"the bundle lacks {name}: copy it again from where it was exported")
        if found[name] != digest:
            raise BundleError(
                f"{name} is damaged: its SHA-256 is {found[name]}, the manifest says {digest}: copy the bundle again"
            )
    extra = sorted(set(found) - set(manifest.files))
    if extra:
        raise BundleError(f"the bundle holds files that its manifest does not list: {', '.join(extra)}: remove them")
    return Bundle(folder, manifest)
