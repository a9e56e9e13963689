"""What the recogniser heard."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Transcript:
    """The words of one utterance.

    Attributes:
        text: the words, "" where nothing was heard.
        language: ISO 639-1 code.
        log_probability: mean log-probability per token, at most 0.
        no_speech: probability that the audio holds no speech.
        trusted: false if even the decode over the full 30 s window looks wrong.
    """

    text: str
    language: str
    log_probability: float
    no_speech: float
    trusted: bool
