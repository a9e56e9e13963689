"""The recipe file: everything that decides a training run, validated at once."""

import tomllib
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from model.spec import (
    LINEAR,
    Attention,
    EncoderKind,
    EncoderSpec,
    Family,
    Fusion,
    Gates,
    MemberSpec,
    SpecError,
    check_fallbacks,
)
from train.augment_config import AugmentConfig
from train.corpora import check_options
from train.corpora.options import CorpusOptions
from train.errors import RecipeError
from train.losses import ATTRIBUTE_WEIGHT, CLASS_WEIGHT_EXPONENT, CROSS_ENTROPY_WEIGHT, Terms
from train.micl import TEMPERATURE, WEIGHT, Contrast, Positives

RECIPE_FILE: Final = "recipe.json"
"""What a run's members were trained by, for those that begin with them."""
STARTED: Final = "started"
"""Set in the context of a recipe whose members begin with trained weights: it may train nothing."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """Which corpus, and how speakers are divided."""

    corpus: str
    options: CorpusOptions = CorpusOptions()
    """How the corpus is read."""
    evaluate: tuple[str, ...] = ()
    """Corpora that only evaluate."""
    evaluate_options: dict[str, CorpusOptions] = Field(default_factory=dict)
    """How they are read, by name."""
    licence: str
    intended_votes: float = Field(ge=0)
    """How many annotators the actor's own intention counts for in the soft target."""
    split: Literal["speakers", "folds", "published", "session"] = "speakers"
    """Speakers drawn at random; `folds` parts of speakers, of which `test_fold` tests and the next one selects; the corpus' own
    parts; or one session out: `test_session` tests and the next one selects."""
    dev_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    test_fraction: float = Field(default=0.2, gt=0, lt=0.5)
    split_seed: int = 0
    published_dev: tuple[str, ...] = ("dev",)
    """Parts that select; none draws `dev_fraction` of the training speakers."""
    published_test: tuple[str, ...] = ("test",)
    allow_overlap: bool = False
    """Accept speakers on two sides of a published split: the report names them."""
    test_session: str = ""
    folds: int = Field(default=5, ge=3)
    test_fold: int | None = Field(default=None, ge=0)
    degraded_copies: int = Field(default=0, ge=0)
    """Copies of every clip as another room, microphone or line would have recorded it (`train.augment`)."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if strangers := sorted(set(self.evaluate_options) - set(self.evaluate)):
            raise ValueError(f"evaluate_options names {strangers}, which `evaluate` does not list")
        if (self.split == "session") != bool(self.test_session):
            raise ValueError(f'test_session belongs to split = "session", got {self.split!r} and {self.test_session!r}')
        if (self.split == "folds") != (self.test_fold is not None) or (self.test_fold or 0) >= self.folds:
            got = f"{self.split!r}, {self.test_fold} and {self.folds} folds"
            raise ValueError(f'test_fold belongs to split = "folds" and is below `folds`, got {got}')
        try:
            for name in (self.corpus, *self.evaluate):
                check_options(name, self.options if name == self.corpus else self.options_of(name))
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return self

    def options_of(self, name: str) -> CorpusOptions:
        """How a corpus of `evaluate` is read."""
        return self.evaluate_options.get(name, CorpusOptions())


class TextConfig(_Section):
    """Where words that carry emotion come from, and how clips are paired with them."""

    corpus: Literal["goemotions"] = "goemotions"
    sentences_per_class: int = Field(gt=0)
    own: float = Field(ge=0, le=1)
    none: float = Field(ge=0, le=1)
    neutral: float = Field(ge=0, le=1)
    congruent: float = Field(ge=0, le=1)
    any: float = Field(ge=0, le=1)
    words_weight: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _probabilities(self) -> Self:
        total = self.own + self.none + self.neutral + self.congruent + self.any
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"own, none, neutral, congruent and any are probabilities that sum to 1, got {total:g}")
        return self


class EncoderConfig(_Section):
    """One frozen encoder."""

    kind: EncoderKind
    dim: int
    stack: int
    states: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()
    compute_type: str = "float32"
    revision: str = ""
    layer_rule: str = ""
    padding: str = ""
    licence: str = Field(default="", exclude=True)
    """Licence of the weights, for the model card. It decides no feature and no weight, so no dump and no key holds it."""
    supervised_on: tuple[str, ...] = Field(default=(), exclude=True)
    """Corpora whose labels the encoder has been trained on, by our names: figures on them are marked. In no dump either."""


class MemberConfig(_Section):
    """One member; sizes that are not given come from `[member_defaults]`."""

    name: str
    modalities: tuple[str, ...]
    seed: int
    dim: int | None = None
    heads: int | None = None
    layers: int | None = None
    feed_forward: int | None = None
    dropout: float | None = None
    input_dropout: float | None = None
    fusion: Fusion | None = None
    family: Family | None = None
    attention: Attention | None = None
    gates: Gates | None = None
    contrast: int | None = None


class MemberDefaults(_Section):
    """Sizes shared by the members that have any."""

    dim: int
    heads: int
    layers: int
    feed_forward: int
    dropout: float
    input_dropout: float = 0.0
    fusion: Fusion = "deep"
    family: Family = "deepser"
    attention: Attention = "plain"
    gates: Gates = "none"
    contrast: int = 0


class VgaObjective(_Section):
    """The loss of members of the family "vga"."""

    cross_entropy_weight: float = Field(default=1.0, gt=0)
    attribute_weight: float = Field(default=0.3, ge=0)
    focal_gamma: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class ContrastConfig(_Section):
    """The contrastive loss of members that have a `contrast` (`train.micl`)."""

    weight: float = Field(default=WEIGHT, ge=0)
    temperature: float = Field(default=TEMPERATURE, gt=0)
    positives: Positives = "pair"
    """"pair": an utterance's own other modality; "class": those of all utterances of its class."""
    hardness: float = Field(default=0.0, ge=0)
    """How much more near negatives count; 0 has all count alike."""

    @property
    def settings(self) -> Contrast:
        """As the loss takes them."""
        return Contrast(**self.model_dump())


class ObjectiveConfig(_Section):
    """What stages are trained towards. The defaults are each family's source's; other values are to be compared with."""

    targets: Literal["soft", "one-hot"] = "soft"
    """The annotators' votes, or 1 for their dominant class; clips without one keep their votes either way."""
    cross_entropy_weight: float = Field(default=CROSS_ENTROPY_WEIGHT, gt=0)
    attribute_weight: float = Field(default=ATTRIBUTE_WEIGHT, ge=0)
    """Weight of arousal, valence and dominance in the loss; 0 learns classes alone."""
    focal_gamma: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Exponent of the focal loss: a class counts (1 - p)^gamma times; 0 is cross-entropy."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the targets that the compared classes get in equal parts."""
    class_weight: float = Field(default=CLASS_WEIGHT_EXPONENT, ge=0)
    """Exponent of stage 1's class weights (N / (|C| f_c)); 0 weighs all alike. Fits and stage 2 balance classes themselves."""
    vga: VgaObjective = VgaObjective()
    """In the place of both weights, `focal_gamma` and `label_smoothing`, for members of that family."""
    contrast: ContrastConfig = ContrastConfig()

    def terms(self, family: Family) -> Terms:
        """What a family's loss is made of."""
        of = self.vga if family == "vga" else self
        return Terms(of.cross_entropy_weight, of.attribute_weight, of.focal_gamma, of.label_smoothing)


class StageConfig(_Section):
    """Stages 1 and 2."""

    epochs: int = Field(ge=0)
    """0 leaves stage 2 out."""
    batch_size: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup: float = Field(default=0.1, gt=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0)
    mixup: float = Field(default=0.3, ge=0, le=1)
    """Probability that a batch is mixed."""
    mixup_alpha: float = Field(default=0.2, gt=0)
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients make one optimizer step; several processes share them out."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic in a training step; weights, loss and selection stay in float32."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better score after which the stage ends; every stage counts anew."""


class LinearConfig(_Section):
    """How members of the family "linear" are fitted (`train.linear`)."""

    l2: tuple[float, ...] = Field(default=(0.5,), min_length=1)
    """Strengths of the pull on the weights. Of several, the held-out speakers choose; without them, the first stands."""
    draws: int = Field(default=3, ge=1)
    """How often the training set is drawn, each clip as a random copy with a random text: all draws are fitted at once."""
    held: float = Field(default=1000.0, ge=0)
    """Clips that the source's weights count for where a member is transferred: of fewer, the pull is as much stronger."""

    @model_validator(mode="after")
    def _pulling(self) -> Self:
        if min(self.l2) <= 0 or len(set(self.l2)) != len(self.l2):
            raise ValueError(f"l2 has different strengths above 0, got {self.l2}")
        return self


class MetaConfig(_Section):
    """Stage 3 and 4: the linear meta-classifier and the soup of several."""

    folds: int = Field(ge=2)
    epochs: int = Field(gt=0)
    batch_size: int = Field(default=128, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    seeds: tuple[int, ...] = Field(min_length=1)
    class_weight: float = Field(default=0.0, ge=0)
    """Exponent of the class weights N / (|C| f_c): 0 weighs all alike, 1 gives every class the same mass of soft targets."""
    draws: int = Field(default=1, ge=1)
    """How often the stacking set draws every clip, each time with a random copy and a random text."""
    soup: Literal["uniform", "greedy"] = "uniform"
    """All runs, or those that do not lower the score on the development speakers."""


class AdaptationConfig(_Section):
    """How functionals are adapted to the channel they were heard on (`model.adaptation`), and how members learn it."""

    strength: float = Field(gt=0)
    """Utterances that the training mean counts for."""
    draws: int = Field(default=4, ge=1)
    """How often every copy of the clips is dealt into calls: first one call a speaker, then more and one-sided ones."""


class AblationConfig(_Section):
    """What `medusa-train ablate` compares unless it is told otherwise. It trains no member of the recipe."""

    members: tuple[str, ...] = ()
    """Names of the members that things are taken away from; none for the first of different modalities."""


class ComputeConfig(_Section):
    """Where encoders and stages run. It changes the order of sums at most, so no stage is trained again for it."""

    device: Literal["cpu", "auto", "cuda"] = "cpu"
    """With "auto", a GPU where there is one. Worker i of several takes GPU i modulo their number."""
    compile: bool = False
    """Compile the members' forward pass with torch.compile."""
    resume_every: int = Field(default=1, ge=1)
    """Epochs between two resume points of a stage."""


class Recipe(_Section):
    """A whole training run."""

    name: str
    seed: int = 0
    notes: tuple[str, ...] = ()
    """Sentences for the limits of the model card: what is true of this data and of this recipe alone."""
    fallbacks: tuple[tuple[str, ...], ...] = ()
    """Members that are left when a server has not time for all, and then for those: each list shorter than the one before."""
    data: DataConfig
    text: TextConfig | None = None
    augment: AugmentConfig = AugmentConfig()
    adaptation: AdaptationConfig | None = None
    objective: ObjectiveConfig = ObjectiveConfig()
    encoders: dict[str, EncoderConfig]
    member_defaults: MemberDefaults
    members: tuple[MemberConfig, ...] = Field(min_length=1)
    stage1: StageConfig
    stage2: StageConfig
    linear: LinearConfig = LinearConfig()
    meta: MetaConfig
    compute: ComputeConfig = ComputeConfig()
    ablation: AblationConfig = Field(default=AblationConfig(), exclude=True)
    """In no dump and no key: naming other members makes no run another."""

    @model_validator(mode="after")
    def _buildable(self, info: ValidationInfo) -> Self:
        for member in self.members:
            unknown = set(member.modalities) - set(self.encoders)
            if unknown:
                raise ValueError(
                    f"member {member.name!r} reads {sorted(unknown)}: [encoders] has {sorted(self.encoders)}"
                )
        if self.stage1.epochs == 0 and not (info.context or {}).get(STARTED):
            raise ValueError("stage1.epochs is 0: only stage 2 can be left out")
        if "whisper" not in self.encoders:
            raise ValueError(f"[encoders] has {sorted(self.encoders)}: `whisper` is needed, it gives frames and words")
        if self.adaptation and "functionals" not in self.encoders:
            raise ValueError(f"[adaptation] adapts functionals, but [encoders] has only {sorted(self.encoders)}")
        names = [member.name for member in self.members]
        if len(set(names)) != len(names):
            raise ValueError(f"member names must differ, got {names}")
        if strangers := [name for name in self.ablation.members if name not in names]:
            raise ValueError(f"ablation.members has {strangers}: the recipe's members are {names}")
        check_fallbacks(names, self.fallbacks)
        self.member_specs()
        return self

    def encoder_specs(self) -> dict[str, EncoderSpec]:
        """Encoders by modality, in the recipe's order."""
        return {name: EncoderSpec(name=name, **encoder.model_dump()) for name, encoder in self.encoders.items()}

    def member_specs(self) -> tuple[MemberSpec, ...]:
        """Members with their sizes filled in."""
        return tuple(self._member_spec(member) for member in self.members)

    def _member_spec(self, member: MemberConfig) -> MemberSpec:
        """The defaults are no linear member's."""
        family = member.family or self.member_defaults.family
        missing = LINEAR if family == "linear" else self.member_defaults.model_dump()
        return MemberSpec(**{**missing, "family": family, **member.model_dump(exclude_none=True)})


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data for JSON, from which it is read again; what no key holds is in it too."""
    plain = recipe.model_dump(mode="json")
    for name, encoder in recipe.encoders.items():
        plain["encoders"][name] |= {"licence": encoder.licence, "supervised_on": list(encoder.supervised_on)}
    return plain


def read_recipe_data(path: Path) -> dict[str, Any]:
    """The sections of a recipe file, unchecked.

    Raises:
        RecipeError: if the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(f"{path} is not TOML: {error}") from error


def mistakes_of(path: Path, error: ValidationError) -> RecipeError:
    """All mistakes of a file, one line each."""
    lines = [
        f"  {'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']} (got {e['input']!r:.80})" for e in error.errors()
    ]
    return RecipeError(f"{path} has {error.error_count()} mistakes:\n" + "\n".join(lines))


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe file.

    Raises:
        RecipeError: naming every field that is wrong, its value, and what is allowed.
    """
    try:
        return Recipe.model_validate(read_recipe_data(path))
    except ValidationError as error:
        raise mistakes_of(path, error) from error
    except SpecError as error:
        raise RecipeError(f"{path}: {error}") from error
