"""What the benchmarks' callers say: utterances of the demo call with silence between them."""

from collections.abc import Iterator

import numpy as np

from daemon.config import Config
from daemon.demo import OWN_CALL
from daemon.offline import cut
from model.audio import SAMPLE_RATE_HZ, Samples
from model.recording import read_recording

_TALK = 0.4


def utterances() -> list[Samples]:
    """What is said in the demo call, each `float32 [T]`."""
    return [utterance.audio for utterance in cut(read_recording(OWN_CALL), Config())]


def speaker(voices: list[Samples], seconds: float, seed: int) -> Samples:
    """One speaker, `float32 [1, T]`: utterances in random order, silences that leave 40 % speech."""
    rng = np.random.default_rng(seed)

    def parts() -> Iterator[Samples]:
        yield np.zeros(rng.integers(0, 5 * SAMPLE_RATE_HZ), np.float32)
        while True:
            speech = voices[rng.integers(len(voices))]
            yield speech
            pause = len(speech) * (1 / _TALK - 1) * rng.uniform(0.5, 1.5)
            yield np.zeros(int(pause), np.float32)

    wanted, joined = int(seconds * SAMPLE_RATE_HZ), np.zeros(0, np.float32)
    for part in parts():
        if len(joined) + len(part) > wanted:
            break  # nobody is cut off: the ends of all streams at once are no load that a day brings
        joined = np.concatenate([joined, part])
    return np.pad(joined, (0, wanted - len(joined)))[None]
