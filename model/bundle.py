"""The bundle: the folder that `export` writes and the daemon loads, checked to the last bit before anything is run.

    manifest.json      what the bundle holds: see `Manifest`
    SHA256SUMS         hashes of every file, the manifest included (`sha256sum --check SHA256SUMS`)
    ensemble.onnx      members, meta-classifier and calibration in one graph: what is served
    members/NAME.onnx, meta.onnx                    the same in parts
    encoders/NAME.onnx, tokenizers/NAME.json        encoders that travel with the bundle
    MODEL_CARD.md

Shapes: B = batch, F = frames, T = tokens, M = members; `null` in the manifest is a length that varies.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from model.labels import ATTRIBUTES, CLASSES
from model.sources import sha256_of
from model.spec import EncoderSpec, EnsembleSpec

FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
ENSEMBLE: Final = "ensemble.onnx"

Shape = tuple[int | None, ...]
Tensors = dict[str, Shape]

FIXED: Final = -1
"""In an expected shape: one size, whichever."""

TEXT_INPUTS: Final[Tensors] = {"ids": (None, None), "mask": (None, None)}
"""Inputs of a text encoder's graph, `int64 [B, T]` and `bool [B, T]`; its output is `TEXT_OUTPUT`."""
TEXT_OUTPUT: Final = "hidden"
"""Output of a text encoder's graph, `float32 [B, T, d]`."""
WHISPER_INPUT: Final = "mels"
"""Input of a Whisper encoder's graph, `float32 [B, M, 2 F]`: M mel bands."""
WHISPER_OUTPUT: Final = "states"
"""Output of a Whisper encoder's graph, `float32 [B, F, S, D]`: S hidden states, the encoder's last one last."""


def graph_file(encoder: EncoderSpec) -> str:
    """Where the bundle keeps the graph of an encoder that travels with it."""
    return f"encoders/{encoder.name}.onnx"


class BundleError(RuntimeError):
    """The folder is no bundle that may be served; the message says what is wrong and what would be right."""


def tokenizer_file(encoder: str) -> str:
    """Where the bundle keeps the tokenizer of a text encoder."""
    return f"tokenizers/{encoder}.json"


def inputs_of(spec: EnsembleSpec) -> tuple[EncoderSpec, ...]:
    """The encoders that some member reads, in the ensemble's order: the inputs of the ensemble's graph."""
    read = {name for member in spec.members for name in member.modalities}
    return tuple(encoder for encoder in spec.encoders if encoder.name in read)


def mask_of(modality: str) -> str:
    """Name of the input that holds a modality's mask, `bool [B, F]`."""
    return f"{modality}_mask"


def ensemble_inputs(spec: EnsembleSpec) -> Tensors:
    """Inputs of the ensemble's graph: frames `float32 [B, F, d]` and mask `bool [B, F]` of every encoder."""
    tensors: Tensors = {}
    for encoder in inputs_of(spec):
        tensors[encoder.name] = (None, None, encoder.dim)
        tensors[mask_of(encoder.name)] = (None, None)
    return tensors


def ensemble_outputs(spec: EnsembleSpec) -> Tensors:
    """Outputs of the ensemble's graph, `float32`."""
    return {
        "probabilities": (None, len(CLASSES)),
        "attributes": (None, len(ATTRIBUTES)),
        "member_probabilities": (None, len(spec.members), len(CLASSES)),
    }


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        name: of the recipe.
        ensemble: encoders (with the sources and hashes of their weights), members, label space.
        temperature: divides the meta-classifier's logits (inside the graph already).
        abstain_below: confidence under which a posterior counts as abstained.
        metrics: results on speakers that no stage saw.
        training: data, licence, contamination.
        opset: ONNX operator set of the graphs.
        tolerances: largest parity figures that were accepted.
        parity: parity figures that were measured.
        inputs: inputs of the ensemble's graph.
        outputs: outputs of the ensemble's graph.
        bundle_id: name and hash over the hashes of all files but the manifest.
        files: path -> SHA-256 of every file but the manifest and the sums.
        format_version: of the bundle's layout.
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
    inputs: Tensors
    outputs: Tensors
    bundle_id: str = ""
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` wrote.

        Raises:
            ValueError: if a field is missing, unknown or wrong.
        """
        expected = {item.name for item in fields(cls)}
        if set(data) != expected:
            missing, unknown = sorted(expected - set(data)), sorted(set(data) - expected)
            raise ValueError(f"fields missing: {missing}, fields unknown: {unknown}")
        for name, kind in _KINDS.items():
            if not isinstance(data[name], kind) or isinstance(data[name], bool):
                raise ValueError(f"{name} has the wrong type, got {str(data[name])[:80]!r}")
        if not data["temperature"] > 0 or not 0 <= data["abstain_below"] <= 1:
            got = f"{data['temperature']} and {data['abstain_below']}"
            raise ValueError(f"temperature is above 0 and abstain_below in 0..1, got {got}")
        try:
            tensors = {side: {name: tuple(s) for name, s in data[side].items()} for side in ("inputs", "outputs")}
        except TypeError as error:
            raise ValueError(f"a shape is a list of numbers and nulls: {error}") from error
        spec = EnsembleSpec.from_dict(data["ensemble"])
        if tensors != {"inputs": ensemble_inputs(spec), "outputs": ensemble_outputs(spec)}:
            raise ValueError(f"inputs and outputs do not fit the ensemble, got {tensors}")
        return cls(**{**data, **tensors, "ensemble": spec})


_KINDS: Final[dict[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("name", "bundle_id"), str),
    **dict.fromkeys(("temperature", "abstain_below"), (int, float)),
    **dict.fromkeys(("ensemble", "metrics", "training", "tolerances", "parity", "files", "inputs", "outputs"), dict),
    "opset": int,
}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every file was checked.

    Attributes:
        path: its folder.
        manifest: what it holds.
    """

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """The bundle's name and hash."""
        return self.manifest.bundle_id

    @property
    def spec(self) -> EnsembleSpec:
        """Encoders, members, label space."""
        return self.manifest.ensemble


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hashes every file of `folder` and writes the manifest and the sums; returns the manifest with id and hashes."""
    files = {name: sha256_of(folder / name) for name in _listing(folder) if name not in (MANIFEST, SUMS)}
    sealed = replace(manifest, files=files, bundle_id=_bundle_id(manifest.name, files))
    text = json.dumps(asdict(sealed), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    (folder / SUMS).write_text(_sums(folder, files), encoding="utf-8")
    return sealed


def read_bundle(path: Path) -> Bundle:
    """Reads a bundle and checks every file in it.

    Raises:
        BundleError: if it is damaged, incomplete, holds a file that is not its own, or has another format.
    """
    manifest = _read_manifest(path)
    found, listed = set(_listing(path)), {*manifest.files, MANIFEST, SUMS}
    if missing := sorted(listed - found):
        raise BundleError(f"{path} lacks {', '.join(missing)}: copy or export the bundle again")
    if unknown := sorted(found - listed):
        raise BundleError(f"{path} holds files that its manifest does not list: remove {', '.join(unknown)}")
    for name, expected in manifest.files.items():
        digest = sha256_of(path / name)
        if digest != expected:
            size = (path / name).stat().st_size
            raise BundleError(
                f"{path / name} is damaged ({size} bytes, SHA-256 {digest}; the manifest says {expected}): "
                "copy or export the bundle again"
            )
    if manifest.bundle_id != _bundle_id(manifest.name, manifest.files):
        right = _bundle_id(manifest.name, manifest.files)
        raise BundleError(f"{path} calls itself {manifest.bundle_id!r}, but its files are those of {right!r}")
    if (path / SUMS).read_bytes() != _sums(path, manifest.files).encode():
        raise BundleError(f"{path / MANIFEST} and {path / SUMS} do not agree: one was changed after the export")
    return Bundle(path, manifest)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not well-formed JSON: {error}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{file} has format version {version!r}, this program reads {FORMAT_VERSION}: "
            "export the checkpoint again with this medusa-rt, or use the medusa-rt that wrote the bundle"
        )
    try:
        return Manifest.from_dict(data)
    except ValueError as error:
        raise BundleError(f"{file} is no manifest: {error}") from error


def _listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _bundle_id(name: str, files: Mapping[str, str]) -> str:
    digest = hashlib.sha256("".join(f"{files[path]}  {path}\n" for path in sorted(files)).encode())
    return f"{name}-{digest.hexdigest()[:12]}"


def _sums(folder: Path, files: Mapping[str, str]) -> str:
    """The text of SHA256SUMS, in the format of `sha256sum`."""
    complete = {**files, MANIFEST: sha256_of(folder / MANIFEST)}
    return "".join(f"{complete[path]}  {path}\n" for path in sorted(complete))
