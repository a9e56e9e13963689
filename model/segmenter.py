"""Cuts a stream of speech probabilities into utterances: endpointing. Sans-IO, one instance per channel.

Serving cuts streams with it and training cuts clips with it, so that the members hear what they were trained on.

Every VAD window (512 samples) is one step. The states and what moves between them:

    state      window           counter           next       output
    ---------  ---------------  ----------------  ---------  ------------------------------------------
    SILENCE    p >= onset       run < min_speech  SILENCE    -
    SILENCE    p >= onset       run = min_speech  SPEECH     Started(start of the run - pre_pad)
    SPEECH     p >= offset                        SPEECH     - (or Cut(forced) at max_utterance)
    SPEECH     p <  offset                        TRAILING   -
    TRAILING   p >= onset                         SPEECH     -
    TRAILING   p <  onset       run < endpoint    TRAILING   -
    TRAILING   p <  onset       run = endpoint    SILENCE    Cut(end of last speech window + post_pad)
    TRAILING                    at max_utterance  SILENCE    Cut(the same, forced)

Speech that goes on past `max_utterance` is cut behind the quietest window of its last three seconds, and goes on as the
next utterance; where it just pauses, the pause ends it. Windows lie on the stream's own grid, so the way that audio is
chunked cannot move a boundary.
"""

import enum
from dataclasses import dataclass
from typing import Final

from model.audio import (
    MAX_UTTERANCE,
    POST_PAD,
    PRE_PAD,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_MS,
    VAD_WINDOW,
)

_FORCED_SEARCH: Final = 3 * SAMPLE_RATE_HZ
"""Where a forced cut looks for the quietest window."""

_LONGEST_MIN_SPEECH_MS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Endpointing:
    """When speech begins and ends. Durations in ms.

    Attributes:
        onset: speech probability from which a window is speech.
        offset: probability under which speech pauses; lower than `onset`, so that a wavering voice is not cut.
        min_speech_ms: speech that starts an utterance; shorter noises (a click, a cough) do not.
        endpoint_silence_ms: silence that ends an utterance. Half a second: pauses inside a sentence rarely last longer,
            and a listener's reply rarely comes sooner.
    """

    onset: float = 0.5
    offset: float = 0.35
    min_speech_ms: int = 96
    endpoint_silence_ms: int = 500

    def __post_init__(self) -> None:
        if not 0.0 < self.offset <= self.onset < 1.0:
            raise ValueError(f"0 < offset <= onset < 1 must hold, got offset {self.offset} and onset {self.onset}")
        if self.endpoint_silence_ms * SAMPLES_PER_MS < POST_PAD:
            least = POST_PAD // SAMPLES_PER_MS
            raise ValueError(
                f"endpoint_silence_ms is at least {least} (the audio kept), got {self.endpoint_silence_ms}"
            )
        if not 1 <= self.min_speech_ms <= _LONGEST_MIN_SPEECH_MS:
            raise ValueError(f"min_speech_ms lies in 1..{_LONGEST_MIN_SPEECH_MS}, got {self.min_speech_ms}")


@dataclass(frozen=True, slots=True)
class Started:
    """Speech began; `start` is the utterance's first sample."""

    start: int


@dataclass(frozen=True, slots=True)
class Cut:
    """An utterance is complete: samples `start` to `end`, decided when the stream stood at `decided`."""

    start: int
    end: int
    decided: int
    forced: bool


class _State(enum.Enum):
    SILENCE = enum.auto()
    SPEECH = enum.auto()
    TRAILING = enum.auto()


def _windows(milliseconds: int) -> int:
    return max(1, -(-milliseconds * SAMPLES_PER_MS // VAD_WINDOW))


class Segmenter:
    """The endpointing state machine of one channel."""

    def __init__(self, endpointing: Endpointing) -> None:
        self._rules = endpointing
        self._min_speech = _windows(endpointing.min_speech_ms)
        self._endpoint = _windows(endpointing.endpoint_silence_ms)
        self._state = _State.SILENCE
        self._position = 0
        self._run = 0
        self._start = 0
        self._earliest = 0
        self._speech_end = 0
        self._probabilities: list[float] = []

    @property
    def speaking(self) -> bool:
        """Whether an utterance is open."""
        return self._state is not _State.SILENCE

    @property
    def start(self) -> int:
        """First sample of the open utterance."""
        return self._start

    @property
    def speech_end(self) -> int:
        """End of the last speech window of the open utterance."""
        return self._speech_end

    @property
    def ends_at(self) -> int:
        """Where the stream will stand when the open utterance, which pauses, is cut, if nobody speaks any more."""
        longest = -(-(self._start + MAX_UTTERANCE) // VAD_WINDOW) * VAD_WINDOW
        return min(self._speech_end + self._endpoint * VAD_WINDOW, longest)

    @property
    def needed_from(self) -> int:
        """The earliest sample that a later output can still refer to: audio before it may be freed."""
        if self.speaking:
            return self._start
        return max(self._earliest, self._position - self._run * VAD_WINDOW - PRE_PAD)

    @property
    def soonest(self) -> int:
        """Windows after which the next output can come at the earliest: judged together, none of them is judged too late."""
        if not self.speaking:
            return self._min_speech - self._run
        # A pause may last longer than that, but speech that resumes in it is cut at once.
        left = -(-(self._start + MAX_UTTERANCE - POST_PAD - self._position) // VAD_WINDOW)
        return max(1, min(self._endpoint - self._run, left))

    def step(self, probability: float) -> list[Started | Cut]:
        """Takes the speech probability of the next window.

        Raises:
            ValueError: if it is not a probability: a failed detector is never taken for silence.
        """
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"a speech probability lies in 0..1, got {probability}")
        window_start = self._position
        self._position += VAD_WINDOW
        if self._state is _State.SILENCE:
            return self._step_silence(window_start, probability)
        self._probabilities.append(probability)
        outputs = self._step_speech(probability)
        length = self._position - self._start
        if self._state is _State.SPEECH and length >= MAX_UTTERANCE - POST_PAD:
            outputs.append(self._force())
        elif self._state is _State.TRAILING and length >= MAX_UTTERANCE:
            outputs.append(self._close(forced=True))
        return outputs

    def _step_silence(self, window_start: int, probability: float) -> list[Started | Cut]:
        if probability < self._rules.onset:
            self._run = 0
            return []
        self._run += 1
        if self._run < self._min_speech:
            return []
        run_start = window_start - (self._run - 1) * VAD_WINDOW
        self._start = max(self._earliest, run_start - PRE_PAD)
        self._state, self._run = _State.SPEECH, 0
        self._speech_end = self._position
        self._probabilities = [probability]
        return [Started(self._start)]

    def _step_speech(self, probability: float) -> list[Started | Cut]:
        threshold = self._rules.offset if self._state is _State.SPEECH else self._rules.onset
        if probability >= threshold:
            self._state, self._run = _State.SPEECH, 0
            self._speech_end = self._position
            return []
        self._state = _State.TRAILING
        self._run += 1
        return [self._close(forced=False)] if self._run >= self._endpoint else []

    def _force(self) -> Cut:
        """Cuts behind the quietest window of the last seconds; the rest, at least this window, opens the next utterance."""
        recent = self._probabilities[-(_FORCED_SEARCH // VAD_WINDOW) : -1]
        behind = len(recent) - min(range(len(recent)), key=lambda i: recent[i])
        end = self._position - behind * VAD_WINDOW
        cut = Cut(self._start, end, self._position, forced=True)
        self._start = self._earliest = end
        self._probabilities = self._probabilities[-behind:]
        return cut

    def _close(self, *, forced: bool) -> Cut:
        end = min(self._position, self._speech_end + POST_PAD)
        cut = Cut(self._start, end, self._position, forced)
        self._state, self._run = _State.SILENCE, 0
        self._earliest = end
        self._probabilities = []
        return cut

    def finish(self) -> list[Started | Cut]:
        """Ends the stream, or the utterance at a client's request: an open utterance is cut where its speech ended."""
        if not self.speaking:
            self._run = 0
            return []
        return [self._close(forced=True)]
