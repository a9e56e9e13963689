"""One stream as a state machine: audio in, utterances and notices out. Sans-IO: no clock, no tasks, no sockets.

    samples of a channel -> windows -> speech probabilities -> Segmenter -> SpeechStarted / Ahead / SpeechResumed / Utterance

A transport feeds decoded 16 kHz audio; whoever drives the session runs the speech detector (that is compute, so it is
handed in as a callable) and sends on what comes out. Taking samples costs next to nothing (`push`); they are judged
(`judge`) as soon as something could come of it, and not before (`due`): a window that cannot end, begin or show anything
yet waits for those that can, and several windows share a run of the detector. What comes out, and when, is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from daemon.messages import Utterance
from model.audio import POST_PAD, VAD_WINDOW, Samples
from model.segmenter import Cut, Endpointing, Segmenter, Started

SpeechProbabilities = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Consecutive windows `float32 [N, 512]` of one channel to probabilities `float32 [N]`; carries its own state."""


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Somebody began to speak on `channel` at sample `start`."""

    channel: int
    start: int


@dataclass(frozen=True, slots=True)
class Ahead:
    """What the final utterance will be if the pause that just began ends it.

    An utterance's audio ends `POST_PAD` after its last speech window, so it is complete long before its endpoint: work on
    it now is work on the very audio. If speech resumes, no final utterance is equal to this one.

    Attributes:
        utterance: as it will be.
        certain: where the stream stands once that is certain, in samples.
    """

    utterance: Utterance
    certain: int


@dataclass(frozen=True, slots=True)
class SpeechResumed:
    """The pause of an `Ahead` ended nothing: utterance `index` of `channel` goes on."""

    channel: int
    index: int


Output = SpeechStarted | Ahead | SpeechResumed | Utterance


@dataclass(frozen=True, slots=True)
class Previews:
    """What a stream gives before an utterance is complete, in samples.

    Attributes:
        interim: speech between interim cuts of a running utterance; 0 for none.
        ahead: silence after which the utterance is given as it would be (`Ahead`), at least `POST_PAD`; 0 for never.

    Raises:
        ValueError: if `ahead` is shorter than the audio that is kept.
    """

    interim: int = 0
    ahead: int = 0

    def __post_init__(self) -> None:
        if self.ahead and self.ahead < POST_PAD:
            raise ValueError(f"ahead is 0 or at least {POST_PAD} samples, the silence that is kept, got {self.ahead}")


class ChannelStream:
    """Buffer, detector and segmenter of one channel.

    Args:
        channel: its number.
        detector: speech probabilities of this channel.
        endpointing: when speech begins and ends.
        previews: what is given before an utterance is complete.
    """

    def __init__(
        self, channel: int, detector: SpeechProbabilities, endpointing: Endpointing, previews: Previews
    ) -> None:
        self._channel = channel
        self._detect = detector
        self._segmenter = Segmenter(endpointing)
        self._interim = previews.interim
        self._ahead_windows = -(-previews.ahead // VAD_WINDOW)
        self._buffer = np.zeros(0, np.float32)
        self._buffer_start = 0
        self._pushed: list[Samples] = []
        """What came behind the buffer."""
        self._received = 0
        self._stepped = 0
        self._index = 0
        self._interims = 0
        self._next_interim = 0
        self._given_ahead = False
        """The open utterance, as it will be if this pause ends it."""

    @property
    def received(self) -> int:
        """Samples received so far."""
        return self._received

    @property
    def needed_from(self) -> int:
        """The first sample that a later output can still refer to."""
        return min(self._segmenter.needed_from, self._stepped)

    @property
    def due(self) -> bool:
        """Whether something can come of what was pushed."""
        return self.windows >= self._soonest()

    @property
    def windows(self) -> int:
        """Whole windows that are not judged yet."""
        return (self._received - self._stepped) // VAD_WINDOW

    def _soonest(self) -> int:
        """Windows after which the next output can come at the earliest."""
        segmenter = self._segmenter
        soonest = segmenter.soonest
        if segmenter.speaking:
            pause = (self._stepped - segmenter.speech_end) // VAD_WINDOW
            if self._given_ahead:
                return 1  # speech may resume: work ahead then ends
            if pause < self._ahead_windows:
                soonest = min(soonest, self._ahead_windows - pause)
            if self._interim:
                soonest = min(soonest, -(-(self._next_interim - self._stepped) // VAD_WINDOW))
        return max(1, soonest)

    def push(self, samples: Samples) -> None:
        """Takes the next samples, `float32 [T]`."""
        self._pushed.append(samples)
        self._received += len(samples)

    def judge(self) -> list[Output]:
        """What the samples taken so far complete."""
        self._buffer = np.concatenate([self._buffer, *self._pushed])
        self._pushed.clear()
        outputs = self._step(ready) if (ready := self.windows) else []
        self._release()
        return outputs

    def finish(self) -> list[Output]:
        """Ends the open utterance at the last whole window; the samples of an unfinished one belong to what follows."""
        outputs = self.judge() + self._cut(self._segmenter.finish())
        self._release()
        return outputs

    def close(self) -> list[Output]:
        """Ends the stream: the last, partly filled window is completed with silence and judged like any other."""
        self.push(np.zeros(-(self.received - self._stepped) % VAD_WINDOW, np.float32))
        return self.finish()

    def _step(self, count: int) -> list[Output]:
        first = self._stepped - self._buffer_start
        windows = self._buffer[first : first + count * VAD_WINDOW].reshape(count, VAD_WINDOW)
        outputs: list[Output] = []
        for probability in self._detect(windows):
            self._stepped += VAD_WINDOW
            outputs += self._cut(self._segmenter.step(float(probability)))
            outputs += self._interim_cut()
            outputs += self._ahead()
        return outputs

    def _ahead(self) -> list[Output]:
        """The utterance as it would end, once in every pause that lasts long enough, and that speech resumed in one."""
        segmenter = self._segmenter
        pause = self._stepped - segmenter.speech_end
        if not self._ahead_windows or not segmenter.speaking:
            return []
        if self._given_ahead and not pause:
            self._given_ahead = False
            return [SpeechResumed(self._channel, self._index)]
        if pause != self._ahead_windows * VAD_WINDOW:
            return []
        self._given_ahead = True
        utterance = self._utterance(segmenter.start, segmenter.speech_end + POST_PAD, self._stepped, interim=0)
        return [Ahead(utterance, segmenter.ends_at)]

    def _cut(self, marks: Sequence[Started | Cut]) -> list[Output]:
        outputs: list[Output] = []
        for mark in marks:
            if isinstance(mark, Started):
                outputs.append(SpeechStarted(self._channel, mark.start))
                self._interims, self._next_interim = 0, mark.start + self._interim
            else:
                outputs.append(self._utterance(mark.start, mark.end, mark.decided, interim=0))
                self._index += 1
                self._given_ahead = False
                self._interims, self._next_interim = 0, mark.end + self._interim
        return outputs

    def _interim_cut(self) -> list[Output]:
        """An interim utterance whenever speech has gone on for another `interim` samples."""
        if not self._interim or not self._segmenter.speaking or self._segmenter.speech_end < self._next_interim:
            return []
        self._interims += 1
        self._next_interim = self._segmenter.speech_end + self._interim
        start, end = self._segmenter.start, min(self._stepped, self._segmenter.speech_end + POST_PAD)
        return [self._utterance(start, end, self._stepped, self._interims)]

    def _utterance(self, start: int, end: int, decided: int, interim: int) -> Utterance:
        audio = self._buffer[start - self._buffer_start : end - self._buffer_start].copy()
        return Utterance(self._channel, self._index, start, end, audio, interim, decided)

    def _release(self) -> None:
        drop = self.needed_from - self._buffer_start
        if drop > 0:
            self._buffer = self._buffer[drop:].copy()
            self._buffer_start += drop


class UnheardChannel:
    """A channel that is not analysed: its samples are counted, so that the stream's totals are true, and dropped."""

    def __init__(self) -> None:
        self.received = 0

    @property
    def needed_from(self) -> int:
        """Nothing refers to its samples."""
        return self.received

    @property
    def due(self) -> bool:
        """Nothing comes of them."""
        return False

    @property
    def windows(self) -> int:
        """None is judged."""
        return 0

    def push(self, samples: Samples) -> None:
        """Counts the next samples, `float32 [T]`."""
        self.received += len(samples)

    def finish(self) -> list[Output]:
        """There is nothing to end."""
        return []

    judge = close = finish


class Session:
    """All channels of one stream. One call at a time: whoever runs it in threads waits for one before the next.

    Args:
        detectors: one per channel; None for a channel that is not analysed.
        endpointing: when speech begins and ends.
        previews: what is given before an utterance is complete; nothing if not said.
    """

    def __init__(
        self,
        detectors: Sequence[SpeechProbabilities | None],
        endpointing: Endpointing,
        previews: Previews | None = None,
    ) -> None:
        self._channels = [
            UnheardChannel()
            if detector is None
            else ChannelStream(channel, detector, endpointing, previews or Previews())
            for channel, detector in enumerate(detectors)
        ]

    @property
    def received(self) -> int:
        """Samples received on the longest channel."""
        return max(channel.received for channel in self._channels)

    @property
    def needed_from(self) -> int:
        """The first sample that a later output of any channel can still refer to."""
        return min(channel.needed_from for channel in self._channels)

    @property
    def due(self) -> bool:
        """Whether something can come of what was pushed: time to judge it."""
        return any(channel.due for channel in self._channels)

    @property
    def windows(self) -> int:
        """Whole windows of all channels that are not judged yet."""
        return sum(channel.windows for channel in self._channels)

    def push(self, channels: Sequence[Samples]) -> None:
        """Takes the next samples of every channel; next to no work.

        Raises:
            ValueError: if the number of channels is not the session's.
        """
        if len(channels) != len(self._channels):
            raise ValueError(f"this session has {len(self._channels)} channels, got {len(channels)}")
        for stream, samples in zip(self._channels, channels, strict=True):
            stream.push(samples)

    def judge(self) -> list[Output]:
        """What the samples taken so far complete; compute."""
        return [output for stream in self._channels for output in stream.judge()]

    def finish(self) -> list[Output]:
        """Ends every open utterance; the stream goes on. Compute, as is `close`."""
        return [output for stream in self._channels for output in stream.finish()]

    def close(self) -> list[Output]:
        """Ends the stream."""
        return [output for stream in self._channels for output in stream.close()]
