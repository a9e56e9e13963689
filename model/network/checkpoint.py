"""A trained ensemble on disk: what `train` writes and `export` reads. Safetensors and JSON, no pickle.

ensemble.json      name, EnsembleSpec, calibration, metrics, training data
members/*.safetensors, meta.safetensors
adaptation.safetensors      reference of the channel adaptation, where there is one
MODEL_CARD.md
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file
from torch import nn

from model.adaptation import Adaptation
from model.network.member import Member, build_member
from model.network.metaclassifier import Ensemble, MetaClassifier
from model.spec import EnsembleSpec, SpecError

_REFERENCE: Final = "adaptation.safetensors"


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

    def ensemble(self) -> Ensemble:
        """The whole as one network, in evaluation mode."""
        return Ensemble(self.spec, self.members, self.meta, self.temperature).eval()


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes the ensemble into `folder`."""
    (folder / "members").mkdir(parents=True, exist_ok=True)
    for member in checkpoint.members:
        save_file(member.state_dict(), folder / "members" / f"{member.spec.name}.safetensors")
    save_file(checkpoint.meta.state_dict(), folder / "meta.safetensors")
    (folder / "MODEL_CARD.md").write_text(checkpoint.model_card, encoding="utf-8")
    if checkpoint.adaptation is not None:
        save_numpy({"reference": checkpoint.adaptation.reference}, folder / _REFERENCE)
    description = {
        "name": checkpoint.name,
        "spec": checkpoint.spec.to_dict(),
        "temperature": checkpoint.temperature,
        "abstain_below": checkpoint.abstain_below,
        "metrics": checkpoint.metrics,
        "training": checkpoint.training,
        "adaptation_strength": checkpoint.adaptation.strength if checkpoint.adaptation else None,
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
            _fill(member, folder / "members" / f"{member.spec.name}.safetensors")
        meta = MetaClassifier(len(members))
        _fill(meta, folder / "meta.safetensors")
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
        )
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise SpecError(f"{folder} holds no complete trained ensemble: {error}") from error


def _adaptation(folder: Path, strength: float | None) -> Adaptation | None:
    return None if strength is None else Adaptation(load_numpy(folder / _REFERENCE)["reference"], float(strength))


def _fill(network: nn.Module, path: Path) -> None:
    found = load_file(path)
    shapes = {name: values.shape for name, values in found.items()}
    expected = {name: values.shape for name, values in network.state_dict().items()}
    if wrong := sorted(name for name in shapes | expected if shapes.get(name) != expected.get(name)):
        raise ValueError(
            f"{path} holds another network: {len(wrong)} tensors differ in name or shape, first {wrong[0]}"
        )
    network.load_state_dict(found)
