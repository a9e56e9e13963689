"""The examples of docs/examples run without our packages, and compute what our packages compute."""

import json
import subprocess
import sys
import sysconfig
import wave
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from daemon.asr import AsrItem, Heard, Task
from daemon.config import DEFAULT_BUNDLE
from daemon.emotion import EmotionItem
from daemon.engine import EngineSettings, Models, load_models
from model.audio import SAMPLE_RATE_HZ, Samples
from model.labels import CLASSES
from model.posteriors import Posteriors
from model.recording import read_mono
from model.transcript import Transcript

ROOT: Final = Path(__file__).parents[1]
SCORE_WAV: Final = ROOT / "docs" / "examples" / "score_wav.py"
CLIP: Final = ROOT / "tests" / "assets" / "angry_words.flac"
TEXT: Final = "I am so angry, what are you doing?"
LIMIT: Final = 1e-4

ALONE: Final = """
import importlib.abc, json, runpy, sys

packages, script, allowed = sys.argv[1], sys.argv[2], set(json.loads(sys.argv[3]))

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is blocked")
        return None

sys.meta_path.insert(0, Blocker())
sys.path.append(packages)
sys.argv = sys.argv[2:3] + sys.argv[4:]
runpy.run_path(script, run_name="__main__")
"""
"""Runs a script as one whose environment has nothing but the standard library and the packages named."""


def alone(folder: Path, allowed: list[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The example in a Python that reads no site-packages of its own: not the path to our sources that lies there either."""
    packages = sysconfig.get_path("purelib")
    isolated = [sys.executable, "-I", "-S", "-c", ALONE, packages, str(SCORE_WAV), json.dumps(allowed)]
    return subprocess.run([*isolated, *map(str, arguments)], capture_output=True, text=True, cwd=folder, check=False)


def written(path: Path, audio: Samples, rate_hz: int = SAMPLE_RATE_HZ, channels: int = 1) -> Samples:
    """Writes a WAV of 16 bits; returns what it holds."""
    pcm = np.clip(np.round(audio * 32768), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.repeat(pcm, channels).tobytes())
    return pcm.astype(np.float32) / np.float32(32768)


@cache
def models() -> Models:
    return load_models(DEFAULT_BUNDLE, EngineSettings())


def expected(audio: Samples, text: str) -> Posteriors:
    """What the daemon's own models say of an utterance with these words."""
    (heard,) = models().asr([AsrItem(audio, None, Task.FEATURES)])
    words = Transcript(text, "en", 0.0, 0.0, trusted=True) if text else None
    (scored,) = models().emotion([EmotionItem(audio, Heard(heard.frames, words))])
    return scored.posteriors


def probabilities(output: str) -> list[float]:
    rows = [line.split() for line in output.splitlines()]
    assert [row[0] for row in rows] == list(CLASSES)
    return [float(row[1]) for row in rows]


@pytest.mark.parametrize("text", ["", TEXT])
@pytest.mark.parametrize("seconds", [0.2, 3.0, 9.5])
def test_score_wav_gives_what_the_daemon_gives(tmp_path: Path, seconds: float, text: str) -> None:
    """Of an utterance that is padded, one of a fine and one of a coarse bucket, with words and without."""
    clip = np.resize(read_mono(CLIP), round(seconds * SAMPLE_RATE_HZ))
    audio = written(tmp_path / "clip.wav", clip, channels=2 if text else 1)
    allowed = ["numpy", "onnxruntime", *(["tokenizers", "huggingface_hub"] if text else [])]
    result = alone(tmp_path, allowed, DEFAULT_BUNDLE, "clip.wav", *(["--text", text] if text else []))
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(probabilities(result.stdout), expected(audio, text).probabilities, rtol=0, atol=LIMIT)


def test_the_words_change_the_scores() -> None:
    """Else the comparison above would not see that they are read."""
    audio = read_mono(CLIP)
    difference = np.subtract(expected(audio, "").probabilities, expected(audio, TEXT).probabilities)
    assert np.abs(difference).max() > 100 * LIMIT


def test_nothing_of_ours_is_within_reach(tmp_path: Path) -> None:
    """Else the comparison above could be one of our code with itself."""
    written(tmp_path / "clip.wav", read_mono(CLIP))
    result = alone(tmp_path, ["numpy"], DEFAULT_BUNDLE, "clip.wav")
    assert "onnxruntime is blocked" in result.stderr
    code = "import model"
    isolated = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert "No module named 'model'" in isolated.stderr


@pytest.mark.parametrize(
    ("seconds", "rate_hz", "says"),
    [(1.0, 8000, "8000 Hz and 16 bit, 16000 Hz"), (21.0, 16_000, "lasts 21 s"), (0.0, 16_000, "lasts 0 s")],
)
def test_a_file_that_is_no_utterance_is_refused(tmp_path: Path, seconds: float, rate_hz: int, says: str) -> None:
    written(tmp_path / "clip.wav", np.zeros(round(seconds * rate_hz), np.float32), rate_hz)
    result = alone(tmp_path, ["numpy", "onnxruntime"], DEFAULT_BUNDLE, "clip.wav")
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    """The sums are checked before a graph is read."""
    written(tmp_path / "clip.wav", read_mono(CLIP))
    (tmp_path / "ensemble.onnx").write_bytes(b"")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  ensemble.onnx\n")
    result = alone(tmp_path, ["numpy", "onnxruntime"], tmp_path, "clip.wav")
    assert result.returncode == 1
    assert "ensemble.onnx is damaged" in result.stderr
