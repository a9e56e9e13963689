"""A trained ensemble on disk: what `train` writes and `export` reads. Safetensors and JSON, no pickle.

ensemble.json      name, EnsembleSpec, calibration, metrics, training data
members/*.safetensors, meta.safetensors
adaptation.safetensors      reference of the channel adaptation, where there is one
fallbacks.safetensors       meta-classifiers of smaller ensembles, where there are some
MODEL_CARD.md
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.adaptation import Adaptation
from model.network.member import Member, build_member
from model.network.metaclassifier import Ensemble, MetaClassifier
from model.sources import sha256_of
from model.spec import EnsembleSpec, Fallback, Lineage, SpecError, check_fallbacks

_REFERENCE: Final = "adaptation.safetensors"
_FALLBACKS: Final = "fallbacks.safetensors"


@dataclass(frozen=True, slots=True)
class TrainedFallback:
    """A smaller ensemble: which members, its calibration, and its own souped meta-classifier over them."""

    spec: Fallback
    meta: MetaClassifier


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A trained ensemble.

    Attributes:
        name: of the recipe.
        spec: encoders, members, label space.
        members: networks in the order of `spec.members`.
        meta: the souped meta-classifier.
        temperature: divides the meta-classifier's logits.
        abstain_below: confidence under which a posterior counts as abstained.
        metrics: results on speakers that no stage saw.
        training: data, licence, contamination.
        model_card: Markdown.
        adaptation: to the channel; None where functionals are read as they are.
        lineage: the steps that made it out of another ensemble, the first one first.
        fallbacks: smaller ensembles, in the order in which they are turned to.
        prior_log_ratio: class -> log of the prior that was found on held-out speakers over the one that training taught, of the
            trained classes; empty where it is not known.
    """

    name: str
    spec: EnsembleSpec
    members: tuple[Member, ...]
    meta: MetaClassifier
    temperature: float
    abstain_below: float
    metrics: dict[str, Any]
    training: dict[str, Any]
    model_card: str
    adaptation: Adaptation | None = None
    lineage: tuple[Lineage, ...] = ()
    fallbacks: tuple[TrainedFallback, ...] = ()
    prior_log_ratio: dict[str, float] = field(default_factory=dict)

    def ensemble(self) -> Ensemble:
        """The whole as one network, in evaluation mode."""
        return Ensemble(self.spec, self.members, self.meta, self.temperature).eval()

    def fallback(self, number: int) -> "Checkpoint":
        """The ensemble that is left with a fallback, which counts from 1; its metrics and card are those of the whole."""
        chosen = self.fallbacks[number - 1]
        return replace(
            self,
            spec=self.spec.reduced(chosen.spec.members),
            members=tuple(member for member in self.members if member.spec.name in chosen.spec.members),
            meta=chosen.meta,
            temperature=chosen.spec.temperature,
            abstain_below=chosen.spec.abstain_below,
            fallbacks=(),
            prior_log_ratio={},  # was fitted to the whole
        )


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes the ensemble into `folder`."""
    (folder / "members").mkdir(parents=True, exist_ok=True)
    for member in checkpoint.members:
        save_file(member.state_dict(), folder / "members" / f"{member.spec.name}.safetensors")
    save_file(checkpoint.meta.state_dict(), folder / "meta.safetensors")
    (folder / "MODEL_CARD.md").write_text(checkpoint.model_card, encoding="utf-8")
    if checkpoint.adaptation is not None:
        save_numpy({"reference": checkpoint.adaptation.reference}, folder / _REFERENCE)
    (folder / _FALLBACKS).unlink(missing_ok=True)
    if checkpoint.fallbacks:
        save_file(_numbered(checkpoint.fallbacks), folder / _FALLBACKS)
    description = {
        "name": checkpoint.name,
        "spec": checkpoint.spec.to_dict(),
        "temperature": checkpoint.temperature,
        "abstain_below": checkpoint.abstain_below,
        "metrics": checkpoint.metrics,
        "training": checkpoint.training,
        "adaptation_strength": checkpoint.adaptation.strength if checkpoint.adaptation else None,
        "lineage": [asdict(step) for step in checkpoint.lineage],
        "fallbacks": [asdict(fallback.spec) for fallback in checkpoint.fallbacks],
        "prior_log_ratio": checkpoint.prior_log_ratio,
    }
    (folder / "ensemble.json").write_text(json.dumps(description, indent=1), encoding="utf-8")


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads what `save_checkpoint` wrote.

    Raises:
        SpecError: if the folder holds no complete ensemble.
    """
    try:
        description = json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))
        spec = EnsembleSpec.from_dict(description["spec"])
        encoders = {encoder.name: encoder for encoder in spec.encoders}
        members = tuple(build_member(member, encoders) for member in spec.members)
        for member in members:
            path = folder / "members" / f"{member.spec.name}.safetensors"
            _fill(member, load_file(path), path)
        meta, path = MetaClassifier(len(members)), folder / "meta.safetensors"
        _fill(meta, load_file(path), path)
        return Checkpoint(
            name=description["name"],
            spec=spec,
            members=tuple(member.eval() for member in members),
            meta=meta.eval(),
            temperature=float(description["temperature"]),
            abstain_below=float(description["abstain_below"]),
            metrics=description["metrics"],
            training=description["training"],
            model_card=(folder / "MODEL_CARD.md").read_text(encoding="utf-8"),
            adaptation=_adaptation(folder, description.get("adaptation_strength")),
            lineage=tuple(Lineage(**step) for step in description.get("lineage", ())),
            fallbacks=_read_fallbacks(folder, spec, description.get("fallbacks", ())),
            prior_log_ratio={name: float(value) for name, value in description.get("prior_log_ratio", {}).items()},
        )
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise SpecError(f"{folder} holds no complete trained ensemble: {error}") from error


def checkpoint_id(folder: Path) -> str:
    """Name and hash of what a checkpoint's folder holds; the model card is told from it and does not count.

    Raises:
        SpecError: if the folder holds no trained ensemble.
    """
    try:
        name = json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))["name"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{folder} holds no complete trained ensemble: {error}") from error
    paths = sorted((folder / "ensemble.json", *folder.rglob("*.safetensors")))
    lines = "".join(f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths)
    return f"{name}-{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


def _adaptation(folder: Path, strength: float | None) -> Adaptation | None:
    return None if strength is None else Adaptation(load_numpy(folder / _REFERENCE)["reference"], float(strength))


def _numbered(fallbacks: tuple[TrainedFallback, ...]) -> dict[str, Tensor]:
    return {
        f"{number}.{name}": values
        for number, fallback in enumerate(fallbacks, 1)
        for name, values in fallback.meta.state_dict().items()
    }


def _read_fallbacks(
    folder: Path, spec: EnsembleSpec, described: Sequence[dict[str, Any]]
) -> tuple[TrainedFallback, ...]:
    if not described:
        return ()
    fallbacks = [Fallback(**{**each, "members": tuple(each["members"])}) for each in described]
    check_fallbacks([member.name for member in spec.members], [fallback.members for fallback in fallbacks])
    tensors, found = load_file(folder / _FALLBACKS), []
    for number, fallback in enumerate(fallbacks, 1):
        meta, prefix = MetaClassifier(len(fallback.members)), f"{number}."
        mine = {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}
        _fill(meta, mine, folder / _FALLBACKS)
        found.append(TrainedFallback(fallback, meta.eval()))
    return tuple(found)


def _fill(network: nn.Module, found: Mapping[str, Tensor], path: Path) -> None:
    shapes = {name: values.shape for name, values in found.items()}
    expected = {name: values.shape for name, values in network.state_dict().items()}
    if wrong := sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name)):
        raise ValueError(
            f"{path} holds another network: {len(wrong)} tensors differ in name or shape, first {wrong[0]}"
        )
    network.load_state_dict(found)
