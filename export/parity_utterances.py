"""Whole bundles: made utterances through encoders, features and ensemble, in graphs and in networks.

The voice is a pulse train with a moving pitch through three resonances, in syllables: nobody's, but encoders of speech take
it for speech. Recordings can stand in its place (`docs/export.md` has both).

Shapes: N = utterances, F = frames, d = encoder width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
from faster_whisper.feature_extractor import FeatureExtractor

from export.errors import ExportError
from export.parity_encoders import graph_session
from export.parity_graphs import Array, Item, feed, random_frames, torch_run
from export.references import TEXTS, Reference, SpeechReference, TextReference, WhisperReference, reference_of
from model.audio import MIN_UTTERANCE, SAMPLE_RATE_HZ, WHISPER_HOP, Samples, bucket_length, frame_count, pad_to
from model.bundle import ENSEMBLE, graph_file, inputs_of
from model.features import Frames, functionals, prosody_frames
from model.network.checkpoint import Checkpoint
from model.onnx_encoders import with_graphs

_LONGEST_S: Final = 5.0
_BATCH: Final = 7
_WORDS: Final = tuple(" ".join(TEXTS[:-1]).split())
_MOST_WORDS: Final = 16
_FORMANTS_HZ: Final = ((250.0, 900.0), (800.0, 2400.0), (2000.0, 3200.0))
"""Ranges that a syllable's first three resonances are drawn from."""
_SYLLABLE_S: Final = 0.22


@dataclass(frozen=True, slots=True)
class Utterance:
    """What is said, and how: `float32 [T], 16 kHz mono, +-1`."""

    audio: Samples
    text: str


def example_utterances(count: int) -> list[Utterance]:
    """Made utterances of 0.4 to 5 s, the same ones every time; the first has no words."""
    generator = np.random.default_rng(0)
    made = []
    for index in range(count):
        length = int(generator.integers(MIN_UTTERANCE, int(_LONGEST_S * SAMPLE_RATE_HZ)))
        words = int(generator.integers(1, _MOST_WORDS)) if index else 0
        made.append(Utterance(_voice(generator, length), " ".join(generator.choice(_WORDS, words))))
    return made


def bundle_posteriors(
    checkpoint: Checkpoint, folder: Path, utterances: Sequence[Utterance]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Posteriors `[N, 8]` of the networks, and of a bundle's graphs.

    Raises:
        SourceError: if the weights of an encoder are not to be had.
    """
    expected: dict[str, list[Frames]] = {}
    found: dict[str, list[Frames]] = {}
    for encoder in with_graphs(checkpoint.spec):
        reference = reference_of(encoder)  # one at a time: the large ones take gigabytes
        heard = Heard(reference, utterances)
        expected[encoder.name] = heard.network()
        found[encoder.name] = heard.graph(graph_session(folder / graph_file(encoder)))
    rows, session = Rows(checkpoint, utterances), graph_session(folder / ENSEMBLE)
    right = network_posteriors(checkpoint, rows.complete(expected))
    return right, graph_posteriors(checkpoint, session, rows.complete(found))


class Heard:
    """Utterances as one encoder reads them: audio, words or mel frames."""

    def __init__(self, reference: Reference[Any], utterances: Sequence[Utterance]) -> None:
        self._reference, self._utterances = reference, utterances
        self.items: list[Any] = _items(reference, utterances)

    def network(self) -> list[Frames]:
        """Frames of the network."""
        return self._trimmed(self._reference.expected(self.items))

    def graph(self, session: onnxruntime.InferenceSession) -> list[Frames]:
        """Frames of a graph, in batches of seven."""
        batches = (self.items[start : start + _BATCH] for start in range(0, len(self.items), _BATCH))
        return self._trimmed([frames for batch in batches for frames in self._reference.found(session, batch)])

    def _trimmed(self, frames: list[Frames]) -> list[Frames]:
        """Whisper's frames of the speech alone; other encoders' as they are."""
        if not isinstance(self._reference, WhisperReference):
            return frames
        lengths = [frame_count(len(utterance.audio), WHISPER_HOP) for utterance in self._utterances]
        return [rows[:length] for rows, length in zip(frames, lengths, strict=True)]


class Rows:
    """Frames of every modality of utterances, as `daemon.emotion` puts them together.

    Whisper frames of an ensemble whose Whisper has no graph are made up: nothing in the bundle computes them.
    """

    def __init__(self, checkpoint: Checkpoint, utterances: Sequence[Utterance]) -> None:
        self._checkpoint = checkpoint
        self._prosody = [prosody_frames(utterance.audio) for utterance in utterances]
        self._lengths = [frame_count(len(utterance.audio), WHISPER_HOP) for utterance in utterances]

    def complete(self, frames: Mapping[str, list[Frames]]) -> list[dict[str, Frames]]:
        """The rows of what encoders gave (encoder -> frames of each utterance), with what is computed beside it.

        Raises:
            ExportError: if the checkpoint was trained on other features than this program computes.
        """
        spec, encoded = self._checkpoint.spec, dict(frames)
        if spec.whisper is not None and spec.whisper.name not in encoded:
            encoded[spec.whisper.name] = random_frames(self._checkpoint, spec.whisper, self._lengths)
        for encoder in inputs_of(spec):
            if encoder.kind == "prosody":
                encoded[encoder.name] = self._prosody
            elif encoder.kind == "functionals":
                assert spec.whisper is not None
                pairs = zip(encoded[spec.whisper.name], self._prosody, strict=True)
                encoded[encoder.name] = [functionals(*pair) for pair in pairs]
            if (width := encoded[encoder.name][0].shape[1]) != encoder.dim:
                raise ExportError(
                    f"{encoder.name!r} has frames of {width} values in this program, the checkpoint was trained on "
                    f"{encoder.dim}: train it again, or export it with the medusa-rt that trained it"
                )
        return [{name: rows[at] for name, rows in encoded.items()} for at in range(len(self._prosody))]


def network_posteriors(checkpoint: Checkpoint, items: Sequence[Item]) -> Array:
    """Posteriors `[N, 8]` of the ensemble's networks."""
    network, encoders = checkpoint.ensemble(), inputs_of(checkpoint.spec)
    parts = [torch_run(network, encoders, items[at : at + _BATCH])[0] for at in range(0, len(items), _BATCH)]
    return np.concatenate(parts)


def graph_posteriors(checkpoint: Checkpoint, session: onnxruntime.InferenceSession, items: Sequence[Item]) -> Array:
    """Posteriors `[N, 8]` of the ensemble's graph."""
    encoders = inputs_of(checkpoint.spec)
    batches = (feed(encoders, items[start : start + _BATCH]) for start in range(0, len(items), _BATCH))
    return np.concatenate([session.run(["probabilities"], batch)[0] for batch in batches])


def _items(reference: Reference[Any], utterances: Sequence[Utterance]) -> list[Any]:
    if isinstance(reference, TextReference):
        return [utterance.text for utterance in utterances]
    if isinstance(reference, WhisperReference):
        return _mels(reference, utterances)
    assert isinstance(reference, SpeechReference)
    return [utterance.audio for utterance in utterances]


def _mels(reference: WhisperReference, utterances: Sequence[Utterance]) -> list[npt.NDArray[np.float32]]:
    """Mel frames of each utterance in its bucket, or as much of it as the encoder takes."""
    network = reference.network
    extract = FeatureExtractor(feature_size=network.bands)
    padded = (pad_to(utterance.audio, bucket_length(len(utterance.audio))) for utterance in utterances)
    return [extract(audio, padding=0)[:, : 2 * network.max_frames].astype(np.float32) for audio in padded]


def _voice(generator: np.random.Generator, length: int) -> Samples:
    """`float32 [length]`: pulses through resonances that change from syllable to syllable."""
    time_s = np.arange(length) / SAMPLE_RATE_HZ
    syllables = int(time_s[-1] / _SYLLABLE_S) + 2
    knots = np.arange(syllables) * _SYLLABLE_S
    pitch_hz = generator.uniform(90, 260) * 2 ** np.interp(time_s, knots, generator.uniform(-0.3, 0.3, syllables))
    phase = np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    formants = [np.interp(time_s, knots, generator.uniform(*bounds, syllables)) for bounds in _FORMANTS_HZ]
    wave = np.zeros(length)
    for harmonic in range(1, int(0.5 * SAMPLE_RATE_HZ / pitch_hz.max())):
        height = sum(1 / (1 + ((harmonic * pitch_hz - formant) / 90) ** 2) for formant in formants)
        wave += height * np.sin(2 * np.pi * harmonic * phase) / np.sqrt(harmonic)
    loudness = np.abs(np.sin(np.pi * time_s / _SYLLABLE_S)) ** generator.uniform(0.3, 1.0)
    noise = 10 ** generator.uniform(-4, -2) * generator.standard_normal(length)
    scale = 10 ** generator.uniform(-1.5, -0.3) / max(float(np.abs(wave).max()), 1e-6)
    return (scale * loudness * wave + noise).clip(-1, 1).astype(np.float32)
