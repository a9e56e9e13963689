"""The `[augment]` section of a recipe: what a degraded copy of a clip may have gone through, and what may be misheard.

Every switch has its off position; the defaults are those of version 1 of `train.augment`. A recipe that leaves a switch
alone draws the same random numbers as before the switch existed, so its cached copies stay valid.
"""

import hashlib
import json
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

DEGRADATION: Final = 1
"""Version of the rules of `train.augment`: part of the name of what is cached."""
NoiseColour = Literal["violet", "blue", "white", "pink", "brown"]


def _ordered(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"a range goes from the lesser to the greater, got {span[0]:g} to {span[1]:g}")
    return span


Share = Annotated[float, Field(ge=0, le=1)]
Span = Annotated[tuple[float, float], AfterValidator(_ordered)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WordErrorsConfig(_Section):
    """What a recogniser may have heard in the place of a clip's own words; drawn anew for every clip and epoch."""

    errors: Share = 0.0
    """Probability that a clip is read with one of its transcript's misheard variants."""
    empty: Share = 0.0
    """Probability that it is read without words."""
    variants: int = Field(default=4, ge=1)
    """Misheard variants of every transcript. They are fixed, so their features are extracted once."""
    deletion: Share = 0.1
    """Probability that a variant lacks a word."""
    substitution: Share = 0.15
    """Probability that it has another word of the corpus in its place."""

    @model_validator(mode="after")
    def _probabilities(self) -> Self:
        for first, second in (("errors", "empty"), ("deletion", "substitution")):
            if (total := getattr(self, first) + getattr(self, second)) > 1.0:
                raise ValueError(f"{first} and {second} exclude each other, so they sum to at most 1, got {total:g}")
        return self

    @property
    def is_on(self) -> bool:
        """Whether anything is ever misheard."""
        return self.errors > 0 or self.empty > 0


class AugmentConfig(_Section):
    """What a degraded copy may have gone through, in this order; a share is the probability, 0 is off."""

    colour_db: float = Field(default=8.0, ge=0)
    """Microphone: standard deviation of a random frequency response, at points an octave apart."""
    echo: Share = 0.4
    """A room of up to 0.7 s, its echo mostly below the direct sound."""
    room: Share = 0.0
    """A room with early reflections and strong reverberation (`train.room`)."""
    room_rt60_s: Annotated[Span, AfterValidator(lambda span: _within(span, 0.05, 3.0, "a reverberation time in s"))] = (
        0.2,
        1.0,
    )
    """Range of the time in which that room's sound falls by 60 dB."""
    noise: Share = 0.7
    """Stationary noise."""
    noise_colours: tuple[NoiseColour, ...] = ()
    """Colours that are drawn from; none: any slope between white and brown."""
    snr_db: Span = (5.0, 35.0)
    """Range of speech over noise."""
    clipping: Share = 0.0
    """A microphone or line that is driven over its limit."""
    overdrive_db: Annotated[Span, AfterValidator(lambda span: _within(span, 0.0, 60.0, "an overdrive in dB"))] = (3, 15)
    """Range of the peak above that limit."""
    telephone: Share = 0.35
    """A telephone's band, 300 to 3400 Hz, and mu-law after all else."""
    opus: Share = 0.0
    """Opus for voice, encoded and decoded (`train.opus`)."""
    opus_kbit_s: Annotated[Span, AfterValidator(lambda span: _within(span, 6.0, 128.0, "a bit rate in kbit/s"))] = (
        8,
        24,
    )
    """Range of its bit rate."""
    level_db: Annotated[Span, AfterValidator(lambda span: _within(span, -90.0, 0.0, "a peak in dB of full scale"))] = (
        -30,
        0,
    )
    """Gain: range of the peak after all."""
    words: WordErrorsConfig = WordErrorsConfig()

    @property
    def copies_name(self) -> str:
        """Name of copies made by these rules, for the cache: the version, and a hash of what departs from the defaults."""
        changed = self.model_dump(mode="json", exclude={"words"}, exclude_defaults=True)
        if not changed:
            return str(DEGRADATION)
        return f"{DEGRADATION}-{hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:10]}"

    @property
    def content_name(self) -> str:
        """Name of all that these rules change in what is trained on: the copies and the words."""
        if not self.words.is_on:
            return self.copies_name
        return f"{self.copies_name}, words {self.words.model_dump_json()}"


def _within(span: tuple[float, float], low: float, high: float, what: str) -> tuple[float, float]:
    if not low <= span[0] <= span[1] <= high:
        raise ValueError(f"{what} lies between {low:g} and {high:g}, got {span[0]:g} to {span[1]:g}")
    return span
