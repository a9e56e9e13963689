"""The bundle: the folder that `export` writes and the daemon loads, checked to the last bit before anything is run.

    manifest.json      what the bundle holds: see `Manifest`
    SHA256SUMS         hashes of every file, the manifest included (`sha256sum --check SHA256SUMS`)
    SHA256SUMS.sig     ed25519 signature of SHA256SUMS, where the bundle is signed: see `model.signature`
    ensemble.onnx      members, meta-classifier and calibration in one graph: what is served
    fallback-N.onnx    the same of fewer members, for when there is not time for all: see `Fallback`
    members/NAME.onnx, meta.onnx                    the same in parts
    encoders/NAME.onnx, tokenizers/NAME.json        encoders that travel with the bundle
    adaptation.npy     mean functionals of the training data, where the members hear utterances against their channel
    MODEL_CARD.md

docs/bundle.md explains every file and field, docs/bundle.schema.json is the manifest's JSON Schema.

Shapes: B = batch, F = frames, T = tokens, M = members; `null` in the manifest is a length that varies.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, NoReturn, Self

import numpy as np

from model.adaptation import Adaptation
from model.labels import ATTRIBUTES, CLASSES
from model.plain import mistakes
from model.sources import sha256_of
from model.spec import EncoderSpec, EnsembleSpec, Fallback, Lineage, check_fallbacks

FORMAT_VERSION: Final = 2
MANIFEST: Final = "manifest.json"
SUMS: Final = "SHA256SUMS"
SIGNATURE: Final = "SHA256SUMS.sig"
ENSEMBLE: Final = "ensemble.onnx"
LATER_FIELDS: Final = frozenset({"fallbacks", "kernels", "lineage", "prior_log_ratio"})
"""Fields of a manifest that bundles of this format version may lack, because older programs did not write them."""
ADAPTATION: Final = "adaptation.npy"
"""Mean functionals of the training data, `float32 [S, d]`."""

Shape = tuple[int | None, ...]
Tensors = dict[str, Shape]

FIXED: Final = -1
"""In an expected shape: one size, whichever."""

TEXT_INPUTS: Final[Tensors] = {"ids": (None, None), "mask": (None, None)}
"""Inputs of a text encoder's graph, `int64 [B, T]` and `bool [B, T]`; its output is `TEXT_OUTPUT`."""
TEXT_OUTPUT: Final = "hidden"
"""Output of a text encoder's graph, `float32 [B, T, d]`."""
SPEECH_AUDIO: Final = "audio"
"""Input of a speech encoder's graph, `float32 [B, T]`: samples, zeros behind each utterance."""
SPEECH_AUDIO_MASK: Final = "audio_mask"
"""Input of a speech encoder's graph, `bool [B, T]`; one that takes utterances of one length only has none."""
SPEECH_OUTPUT: Final = "hidden"
"""Output of a speech encoder's graph, `float32 [B, F, d]`."""
SPEECH_OUTPUT_MASK: Final = "hidden_mask"
"""Output of a speech encoder's graph, `bool [B, F]`: frames that hear their utterance alone."""
MODALITY_SHARE: Final = "modality_share"
"""Output of the ensemble's graph, `float32 [B, S]`: shares of the fused vector, in the order of `EnsembleSpec.shared_by`."""
WHISPER_INPUT: Final = "mels"
"""Input of a Whisper encoder's graph, `float32 [B, M, 2 F]`: M mel bands."""
WHISPER_OUTPUT: Final = "states"
"""Output of a Whisper encoder's graph, `float32 [B, F, S, D]`: S hidden states, the encoder's last one last."""


def graph_file(encoder: EncoderSpec) -> str:
    """Where the bundle keeps the graph of an encoder that travels with it."""
    return f"encoders/{encoder.name}.onnx"


def fallback_file(number: int) -> str:
    """Where the bundle keeps the graph of a fallback; they count from 1, the one that is used first."""
    return f"fallback-{number}.onnx"


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
    """Outputs of the ensemble's graph, `float32`; shares of modalities only where members have them."""
    shares: Tensors = {MODALITY_SHARE: (None, len(spec.shared_by))} if spec.shared_by else {}
    return {
        "probabilities": (None, len(CLASSES)),
        "attributes": (None, len(ATTRIBUTES)),
        "member_probabilities": (None, len(spec.members), len(CLASSES)),
        "uncertainty": (None,),
        **shares,
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
        costs: component -> its floating-point operations, milliseconds, parameters and bytes, as far as they were counted.
        precisions: component -> the precision that its weights are stored and computed in ("fp32", "fp16", "int8", ...).
        kernels: component -> how its attention is written: "fused" in ONNX Runtime's own operator, "composed" in ONNX's.
            Bundles from before this field have none, and are composed.
        adaptation_strength: utterances that the reference in `adaptation.npy` counts for when functionals are adapted to their
            channel (`model.adaptation`); None where they are read as they are.
        fallbacks: smaller ensembles for when there is not time for all members, in the order in which they are turned to.
        lineage: the steps that made it out of another ensemble, the first one first; none where it was trained from scratch.
            Bundles from before this field have none.
        prior_log_ratio: class -> log of the prior that was found on held-out speakers over the one that training taught; not
            applied. Bundles from before this field have none.
        bundle_id: name and hash over the hashes of all files but the manifest.
        files: path -> SHA-256 of every file but the manifest, the sums and their signature.
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
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    precisions: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, str] = field(default_factory=dict)
    adaptation_strength: float | None = None
    fallbacks: tuple[Fallback, ...] = ()
    lineage: tuple[Lineage, ...] = ()
    prior_log_ratio: dict[str, float] = field(default_factory=dict)
    bundle_id: str = ""
    files: dict[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `dataclasses.asdict` wrote.

        Raises:
            ValueError: if a field is missing, unknown or wrong.
        """
        if missing := sorted({item.name for item in fields(cls)} - set(data) - LATER_FIELDS):
            raise ValueError(f"fields missing: {missing}")
        if wrong := list(mistakes(data, cls)):
            raise ValueError("; ".join(wrong))
        if not data["temperature"] > 0 or not 0 <= data["abstain_below"] <= 1:
            got = f"{data['temperature']} and {data['abstain_below']}"
            raise ValueError(f"temperature is above 0 and abstain_below in 0..1, got {got}")
        _check_prior(data.get("prior_log_ratio", {}))
        tensors = {side: {name: tuple(s) for name, s in data[side].items()} for side in ("inputs", "outputs")}
        spec = EnsembleSpec.from_dict(data["ensemble"])
        if tensors != {"inputs": ensemble_inputs(spec), "outputs": ensemble_outputs(spec)}:
            raise ValueError(f"inputs and outputs do not fit the ensemble, got {tensors}")
        if (strength := data["adaptation_strength"]) is not None and not strength > 0:
            raise ValueError(f"adaptation_strength is above 0, or null, got {strength}")
        _check_parity(data["parity"], data["tolerances"])
        lineage = tuple(Lineage(**step) for step in data.get("lineage", ()))
        fallbacks = tuple(Fallback(**{**f, "members": tuple(f["members"])}) for f in data.get("fallbacks", ()))
        check_fallbacks([member.name for member in spec.members], [fallback.members for fallback in fallbacks])
        return cls(**{**data, **tensors, "ensemble": spec, "fallbacks": fallbacks, "lineage": lineage})


def _check_prior(log_ratio: Mapping[str, float]) -> None:
    if unknown := sorted(set(log_ratio) - set(CLASSES)):
        raise ValueError(f"prior_log_ratio is of the classes {', '.join(CLASSES)}, got {', '.join(unknown)}")


def _check_parity(parity: Mapping[str, float], tolerances: Mapping[str, float]) -> None:
    if parity.keys() != tolerances.keys():
        raise ValueError(f"parity and tolerances name the same figures, got {sorted(parity)} and {sorted(tolerances)}")
    for name, figure in parity.items():
        if not figure <= tolerances[name]:
            raise ValueError(f"parity says {figure} for {name!r}, but at most {tolerances[name]} is accepted")


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

    def adaptation(self) -> Adaptation | None:
        """How functionals are adapted to their channel; None where they are read as they are.

        Raises:
            BundleError: if its reference cannot be used.
        """
        strength = self.manifest.adaptation_strength
        if strength is None:
            return None
        try:
            return Adaptation(np.load(self.path / ADAPTATION, allow_pickle=False), strength)
        except (ValueError, OSError, EOFError) as error:
            raise BundleError(f"{self.path / ADAPTATION} holds no reference of functionals: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Hashes every file of `folder` and writes the manifest and the sums; returns the manifest with id and hashes.

    A signature that is there does not fit any more and goes.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)
    files = {name: sha256_of(folder / name) for name in _listing(folder) if name not in (MANIFEST, SUMS)}
    sealed = replace(manifest, files=files, bundle_id=_bundle_id(manifest.name, files))
    text = json.dumps(asdict(sealed), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    (folder / SUMS).write_text(_sums(folder, files), encoding="utf-8")
    return sealed


def read_bundle(path: Path) -> Bundle:
    """Reads a bundle and checks every file in it; who made it is another question (`model.signature`).

    Raises:
        BundleError: if it is damaged, incomplete, holds a file that is not its own, or has another format.
    """
    manifest = _read_manifest(path)
    found, listed = set(_listing(path)) - {SIGNATURE}, {*manifest.files, MANIFEST, SUMS}
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
    if absent := sorted(_served(manifest) - set(manifest.files)):
        raise BundleError(f"{path} lacks {', '.join(absent)}, which its ensemble runs: export the bundle again")
    return Bundle(path, manifest)


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}")
    try:
        data = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is not well-formed JSON: {error}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise BundleError(
            f"{file} has format version {version!r}, this program reads {FORMAT_VERSION}: {_way(version)}"
        )
    try:
        return Manifest.from_dict(data)
    except ValueError as error:
        raise BundleError(f"{file} is no manifest: {error}") from error


def _way(version: object) -> str:
    """What to do with a bundle of another format version."""
    again = "export the checkpoint again with this medusa-rt (medusa-export bundle CHECKPOINT OUT)"
    if isinstance(version, int) and version > FORMAT_VERSION:
        return f"upgrade medusa-rt to the one that wrote the bundle, or {again}"
    return f"{again}, or use the medusa-rt that wrote the bundle"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _served(manifest: Manifest) -> set[str]:
    """The files that a runtime opens: the ensemble's graph, and what travels with it."""
    spec, served = manifest.ensemble, {ENSEMBLE}
    served.update(fallback_file(number) for number in range(1, len(manifest.fallbacks) + 1))
    if manifest.adaptation_strength is not None:
        served.add(ADAPTATION)
    for encoder in spec.encoders:
        served.update(source.removeprefix("bundle:") for source in encoder.sources if source.startswith("bundle:"))
        if encoder.kind == "whisper-onnx":
            served.add(graph_file(encoder))
        if encoder.kind == "text-transformer" and encoder in inputs_of(spec):
            served.add(tokenizer_file(encoder.name))
    return served


def _listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _bundle_id(name: str, files: Mapping[str, str]) -> str:
    digest = hashlib.sha256("".join(f"{files[path]}  {path}\n" for path in sorted(files)).encode())
    return f"{name}-{digest.hexdigest()[:12]}"


def _sums(folder: Path, files: Mapping[str, str]) -> str:
    """The text of SHA256SUMS, in the format of `sha256sum`."""
    complete = {**files, MANIFEST: sha256_of(folder / MANIFEST)}
    return "".join(f"{complete[path]}  {path}\n" for path in sorted(complete))
