from pathlib import Path

import av
import numpy as np
import pytest

from daemon.demo import OWN_CALL
from model.audio import SAMPLE_RATE_HZ
from model.recording import RecordingError, read_mono, read_recording


def write_wav(path: Path, rate_hz: int, channels: int, seconds: float) -> None:
    """A tone of 440 Hz on the left, silence on the right."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    tone = (8000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)
    rows = np.stack([tone, np.zeros_like(tone)][:channels], axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate_hz, layout="stereo" if channels == 2 else "mono")
        frame = av.AudioFrame.from_ndarray(rows.reshape(1, -1), format="s16", layout=stream.layout.name)
        frame.sample_rate = rate_hz
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_becomes_16_khz(tmp_path: Path, rate_hz: int, channels: int) -> None:
    write_wav(tmp_path / "tone.wav", rate_hz, channels, 1.0)
    audio = read_recording(tmp_path / "tone.wav")
    assert audio.shape[0] == channels
    assert audio.shape[1] == pytest.approx(SAMPLE_RATE_HZ, abs=32)
    spectrum = np.abs(np.fft.rfft(audio[0, 2000:14_000]))
    assert np.argmax(spectrum) * SAMPLE_RATE_HZ / 12_000 == pytest.approx(440, abs=2)
    assert np.abs(audio[1:]).sum() == 0.0


def test_mono_is_the_mean_of_the_channels(tmp_path: Path) -> None:
    write_wav(tmp_path / "tone.wav", SAMPLE_RATE_HZ, 2, 0.5)
    np.testing.assert_allclose(
        read_mono(tmp_path / "tone.wav"), read_recording(tmp_path / "tone.wav")[0] / 2, atol=1e-6
    )


def test_the_demo_call_has_two_parties() -> None:
    assert read_recording(OWN_CALL).shape[0] == 2


def test_what_is_no_recording_says_so(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no audio")
    for name in ("notes.txt", "missing.wav"):
        with pytest.raises(RecordingError, match=name):
            read_recording(tmp_path / name)
