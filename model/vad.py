"""Speech probabilities from Silero VAD (the file that faster-whisper carries), one small state per stream.

The network's rows are TIME of one stream: its recurrent state runs from row to row. So several windows of one stream
share a call, and several streams do not. The ONNX session is shared; a stream holds its own `SpeechDetector`.

Source: Silero VAD v6, https://github.com/snakers4/silero-vad (MIT).
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from model.audio import VAD_WINDOW, Samples

_CONTEXT = 64
"""Samples of the window before that the network sees again."""
_STATE = (1, 1, 128)


@cache
def silero_session() -> onnxruntime.InferenceSession:
    """The process-wide ONNX session of the detector (thread-safe; holds no stream's state)."""
    spec = find_spec("faster_whisper")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("speech detection needs the package faster-whisper, which carries Silero VAD")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    path = Path(spec.origin).parent / "assets" / "silero_vad_v6.onnx"
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class SpeechDetector:
    """Streaming speech probability of one audio stream.

    Any split of the audio into calls gives the same probabilities, because the state is carried over.
    """

    def __init__(self, session: onnxruntime.InferenceSession | None = None) -> None:
        self._session = session or silero_session()
        self._h = np.zeros(_STATE, np.float32)
        self._c = np.zeros(_STATE, np.float32)
        self._context = np.zeros(_CONTEXT, np.float32)

    def __call__(self, windows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Speech probabilities `float32 [N]` of consecutive windows `float32 [N, 512]`.

        Raises:
            ValueError: if the windows are not 512 samples wide.
        """
        if windows.ndim != 2 or windows.shape[1] != VAD_WINDOW:
            raise ValueError(f"speech windows are [N, {VAD_WINDOW}], got {list(windows.shape)}")
        if len(windows) == 0:
            return np.zeros(0, np.float32)
        tails = np.concatenate([self._context[None], windows[:-1, -_CONTEXT:]])
        rows = np.concatenate([tails, windows], axis=1)
        output, self._h, self._c = self._session.run(None, {"input": rows, "h": self._h, "c": self._c})
        self._context = windows[-1, -_CONTEXT:].copy()
        return np.asarray(output, np.float32).reshape(-1)


def speech_probabilities(audio: Samples) -> npt.NDArray[np.float32]:
    """Speech probability of every whole or partly filled window of a recording, `float32 [ceil(T / 512)]`."""
    padded = np.pad(audio, (0, -len(audio) % VAD_WINDOW))
    return SpeechDetector()(padded.reshape(-1, VAD_WINDOW))
