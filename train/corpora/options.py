"""What a recipe may say about how a corpus is read."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.labels import CLASSES


class CorpusOptions(BaseModel):
    """Options of one corpus; a reader refuses the ones it has no use for.

    Attributes:
        folder: folder below the data folder; the corpus' name if not given.
        labels: label table below the corpus' folder ("msp-podcast", "table").
        label_set: how many classes, for corpora that are used with several (`LABEL_SETS`).
        scale: lowest and highest rating of arousal, valence and dominance in the table ("table").
        label_map: own label -> canonical class, "" to drop it; beside the labels that are known ("table").
        language: of all rows that tell none ("table").
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = ""
    labels: str = ""
    label_set: int | None = None
    scale: tuple[float, float] | None = None
    label_map: dict[str, str] = Field(default_factory=dict)
    language: str = ""

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale is lowest and highest rating, such as [1, 5], got {list(self.scale)}")
        wrong = {label: name for label, name in self.label_map.items() if name not in {*CLASSES, ""}}
        if wrong:
            raise ValueError(f'label_map maps to one of {", ".join(CLASSES)}, or to "" to drop: got {wrong}')
        return self

    @property
    def given(self) -> set[str]:
        """Names of the options that say something, `folder` apart."""
        fields = type(self).model_fields.items()
        return {
            name for name, field in fields if getattr(self, name) != field.get_default(call_default_factory=True)
        } - {"folder"}
