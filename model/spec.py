"""What a member, an encoder and an ensemble are made of: plain descriptions that recipes, checkpoints and bundles share."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Self, get_args

from model.labels import ATTRIBUTES, class_mask

EncoderKind = Literal[
    "whisper-ctranslate2", "whisper-onnx", "speech-transformer", "prosody", "functionals", "text-transformer"
]
WHISPER_KINDS: Final = ("whisper-ctranslate2", "whisper-onnx")
"""Both read CTranslate2's weights and decode with them; "whisper-onnx" encodes with the bundle's own graph, which gives
hidden states that CTranslate2 keeps to itself."""
Fusion = Literal["deep", "late"]
Family = Literal["deepser", "vga", "linear"]
Attention = Literal["plain", "vad-guided"]
Gates = Literal["none", "free", "shares"]
LINEAR: Final[dict[str, Any]] = {
    **dict.fromkeys(("dim", "heads", "layers", "feed_forward", "dropout", "input_dropout"), 0),
    **{"fusion": "deep", "attention": "plain", "gates": "none", "contrast": 0},
}
"""What a linear member has for what the other families are sized and switched by."""
INTERACTION: Final = "interaction"
"""The share that no modality has alone, beside the modalities' names."""


class SpecError(ValueError):
    """A description that cannot be built; the message says which field and what would be right."""


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """One frozen encoder: where its weights are and what is taken from it.

    Attributes:
        name: the modality's name, as members list it ("whisper", "prosody", "functionals", "text").
        kind: how it is run.
        dim: width of one frame.
        stack: consecutive frames that a member reads as one (a member's step is `stack` times the encoder's).
        sources: where the weights are, tried in order: "package:NAME/PATH", "path:DIR", "hub:ID", "bundle:FILE".
        sha256: hash of the weights; "" for an encoder without weights.
        revision: name and version of the weights.
        layer_rule: which hidden states are taken, in words.
        states: numbers of the hidden states that a "whisper-onnx" encoder puts side by side; the last is the encoder's own.
        padding: how inputs of different length are brought to one, in words.
        compute_type: the arithmetic, as its runtime names it.
        standardised: a speech transformer that reads utterances of mean 0 and variance 1 (`model.features.standardise`), as
            its checkpoint's preprocessor_config.json says; recorded when it is exported.
        equal_lengths: a speech transformer that would hear padding, and takes a batch of one length only; recorded when it
            is exported.
    """

    name: str
    kind: EncoderKind
    dim: int
    stack: int
    sources: tuple[str, ...] = ()
    sha256: str = ""
    revision: str = ""
    layer_rule: str = ""
    padding: str = ""
    compute_type: str = "float32"
    states: tuple[int, ...] = ()
    standardised: bool = False
    equal_lengths: bool = False

    def __post_init__(self) -> None:
        if self.dim < 1 or self.stack < 1:
            raise SpecError(f"encoder {self.name!r}: dim and stack are at least 1, got {self.dim} and {self.stack}")
        if (self.kind == "whisper-onnx") != bool(self.states):
            raise SpecError(
                f"encoder {self.name!r}: a whisper-onnx encoder, and no other, lists its states: {self.states}"
            )
        if self.states and self.dim % len(self.states):
            raise SpecError(f"encoder {self.name!r}: dim is a multiple of {len(self.states)} states, got {self.dim}")
        if (self.standardised or self.equal_lengths) and self.kind != "speech-transformer":
            raise SpecError(
                f"encoder {self.name!r}: only a speech-transformer is `standardised` or of `equal_lengths`, not a {self.kind}"
            )


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """One member.

    Attributes:
        name: unique within an ensemble.
        modalities: names of the encoders it reads, in the order their frames are concatenated.
        dim: model width D.
        heads: attention heads; divides `dim`.
        layers: Transformer layers per ENC, and fusion ENCs or layers of cross-attention.
        feed_forward: width of a layer's feed-forward network.
        dropout: probability, used in training only.
        seed: seed of its initial weights and of its batches.
        input_dropout: probability that an utterance is read without one of a modality's features; training only.
        fusion: "deep", or "late": the mean of one network's logits per modality, what deep fusion is compared with.
        family: "deepser" joins modalities in time and lets them attend to themselves, "vga" lets each attend to the others,
            "linear" has heads on the modalities' means over time and nothing else: its sizes and dropouts are 0.
        attention: "plain", or "vad-guided": a step attends to steps that lie near it in a learned space of three axes. It is
            the attention of fusion ENCs in a "deepser" member, and between modalities in a "vga" one.
        gates: how a "vga" member fuses: "none" joins the modalities' vectors, "free" weighs each feature of each, "shares"
            weighs whole vectors by shares that sum to 1 and are reported.
        contrast: width of the projections by which a contrastive loss compares modalities; training only, 0 has none.
    """

    name: str
    modalities: tuple[str, ...]
    dim: int
    heads: int
    layers: int
    feed_forward: int
    dropout: float
    seed: int
    input_dropout: float = 0.0
    fusion: Fusion = "deep"
    family: Family = "deepser"
    attention: Attention = "plain"
    gates: Gates = "none"
    contrast: int = 0

    def __post_init__(self) -> None:
        chosen = {"fusion": Fusion, "family": Family, "attention": Attention, "gates": Gates}
        for name, kind in chosen.items():
            if (got := getattr(self, name)) not in get_args(kind):
                raise SpecError(f"member {self.name!r}: {name} is one of {', '.join(get_args(kind))}, got {got!r}")
        self._check_family()
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise SpecError(f"member {self.name!r}: needs one or more different modalities, got {self.modalities}")
        if self.family != "linear":
            self._check_sizes()
        for name, share in (("dropout", self.dropout), ("input_dropout", self.input_dropout)):
            if not 0.0 <= share < 1.0:
                raise SpecError(f"member {self.name!r}: {name} lies in [0, 1), got {share}")

    def _check_sizes(self) -> None:
        if self.heads < 1 or self.dim % self.heads:
            raise SpecError(f"member {self.name!r}: heads must divide dim, got {self.heads} and {self.dim}")
        if self.layers < 1:
            raise SpecError(f"member {self.name!r}: needs at least one layer, got {self.layers}")

    def _check_family(self) -> None:
        several = len(self.modalities) > 1
        if self.family == "linear":
            plain = {name: getattr(self, name) for name in LINEAR}
            if changed := {name: value for name, value in plain.items() if value != LINEAR[name]}:
                given = ", ".join(f"{name} = {value!r}" for name, value in changed.items())
                raise SpecError(f"member {self.name!r}: a linear member has heads and nothing that these set: {given}")
        if self.family == "vga" and (self.fusion == "late" or not several):
            raise SpecError(
                f"member {self.name!r}: family 'vga' fuses two or more modalities, and deeply, "
                f"got {self.modalities} and fusion {self.fusion!r}"
            )
        if self.family == "deepser" and self.gates != "none":
            raise SpecError(f"member {self.name!r}: gates belong to family 'vga', got {self.gates!r} in a 'deepser'")
        if self.fusion == "late" and self.attention != "plain":
            raise SpecError(f"member {self.name!r}: with late fusion there is no fusion ENC to guide")
        if self.contrast < 0 or (self.contrast and not several):
            raise SpecError(
                f"member {self.name!r}: contrast is the width of projections of two or more modalities, 0 for none, "
                f"got {self.contrast} and {self.modalities}"
            )


@dataclass(frozen=True, slots=True)
class EnsembleSpec:
    """Encoders, members and the label space that they were trained on."""

    encoders: tuple[EncoderSpec, ...]
    members: tuple[MemberSpec, ...]
    trained_classes: tuple[str, ...]
    trained_attributes: tuple[str, ...]

    def __post_init__(self) -> None:
        known = [encoder.name for encoder in self.encoders]
        if len(set(known)) != len(known):
            raise SpecError(f"encoder names must differ, got {known}")
        names = [member.name for member in self.members]
        if not names or len(set(names)) != len(names):
            raise SpecError(f"an ensemble has one or more members with different names, got {names}")
        for member in self.members:
            missing = [name for name in member.modalities if name not in known]
            if missing:
                raise SpecError(f"member {member.name!r} reads {missing}, but the encoders are {known}")
        class_mask(self.trained_classes)
        unknown = [name for name in self.trained_attributes if name not in ATTRIBUTES]
        if unknown:
            raise SpecError(f"unknown attributes {unknown}: the attributes are {', '.join(ATTRIBUTES)}")

    @property
    def shared_by(self) -> tuple[str, ...]:
        """What shares of the fused vector are told for, in the order of the ensemble's output `modality_share`.

        The encoders that members with shares read, then `INTERACTION`; empty where no member has shares.
        """
        read = {name for member in self.members if member.gates == "shares" for name in member.modalities}
        names = tuple(encoder.name for encoder in self.encoders if encoder.name in read)
        return (*names, INTERACTION) if names else ()

    @property
    def whisper(self) -> EncoderSpec | None:
        """The encoder that gives the words as well as frames, None where there is none."""
        return next((encoder for encoder in self.encoders if encoder.kind in WHISPER_KINDS), None)

    def encoder(self, name: str) -> EncoderSpec:
        """The encoder of a modality.

        Raises:
            KeyError: if the ensemble has none of that name.
        """
        for encoder in self.encoders:
            if encoder.name == name:
                return encoder
        raise KeyError(name)

    def reduced(self, names: Sequence[str]) -> Self:
        """The same with some of its members, in their order; encoders that none of them reads stay listed.

        Raises:
            SpecError: if a name is none of its members', or none is given.
        """
        members = tuple(member for member in self.members if member.name in names)
        if not names or len(members) != len(set(names)):
            known = ", ".join(member.name for member in self.members)
            raise SpecError(f"a smaller ensemble has some of the members {known}, got {', '.join(names) or 'none'}")
        return replace(self, members=members)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Reads what `to_dict` wrote.

        Raises:
            SpecError: if a field is missing, unknown or wrong.
        """
        try:
            return cls(
                encoders=tuple(_encoder(encoder) for encoder in data["encoders"]),
                members=tuple(MemberSpec(**{**m, "modalities": tuple(m["modalities"])}) for m in data["members"]),
                trained_classes=tuple(data["trained_classes"]),
                trained_attributes=tuple(data["trained_attributes"]),
            )
        except (KeyError, TypeError) as error:
            raise SpecError(f"not an ensemble description: {error}") from error


@dataclass(frozen=True, slots=True)
class Lineage:
    """One step that made an ensemble out of another.

    Attributes:
        source: id of the run or bundle that it began with.
        command: what was done, as it would be typed ("medusa-train finetune").
        corpus: where the clips of this step are from.
        clips: how many the step has learned from.
        speakers: how many speakers they are of.
        labelled: false where the step has read no label of them.
    """

    source: str
    command: str
    corpus: str
    clips: int
    speakers: int
    labelled: bool = True

    def __str__(self) -> str:
        labels = "" if self.labelled else ", without their labels"
        learned = f"{self.clips} clips of {self.speakers} speakers of {self.corpus}"
        return f"From {self.source} by {self.command}, on {learned}{labels}."


@dataclass(frozen=True, slots=True)
class Fallback:
    """A smaller ensemble, for when there is not time for the whole one: with a meta-classifier and a calibration of its own.

    Attributes:
        members: names of its members, in the ensemble's order.
        temperature: divides the logits of its meta-classifier.
        abstain_below: confidence under which a posterior of it counts as abstained.
    """

    members: tuple[str, ...]
    temperature: float
    abstain_below: float

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 <= self.abstain_below <= 1:
            got = f"{self.temperature} and {self.abstain_below}"
            raise SpecError(f"a fallback's temperature is above 0 and its abstain_below in 0..1, got {got}")


def check_fallbacks(members: Sequence[str], fallbacks: Sequence[Sequence[str]]) -> None:
    """Accepts a declared order in which members drop out: each fallback has fewer members than the one before.

    Args:
        members: names of the ensemble's members.
        fallbacks: names of each fallback's members, the fallback that is used first in front.

    Raises:
        SpecError: if one has none, all, or others than the one before it, or has them in another order.
    """
    before = tuple(members)
    for number, names in enumerate(fallbacks, 1):
        fitting = tuple(name for name in before if name in names)
        if not names or len(names) >= len(before) or tuple(names) != fitting:
            raise SpecError(
                f"fallback {number} has some, but not all, of the members {', '.join(before)}, in that order: "
                f"got {', '.join(names) or 'none'}"
            )
        before = fitting


def _encoder(data: dict[str, Any]) -> EncoderSpec:
    return EncoderSpec(**{**data, **{name: tuple(data.get(name, ())) for name in ("sources", "states")}})
