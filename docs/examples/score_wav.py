"""Scores a WAV file with a bundle, numpy and onnxruntime, and nothing of medusa-rt: to read, and to port to another language.

    python score_wav.py BUNDLE speech.wav
    python score_wav.py BUNDLE speech.wav --text "I cannot believe this"

The file is one utterance: 16 kHz, 16 bit PCM, at most 20 s; channels are averaged. The words are not recognised here: with
--text they are read too (this needs the `tokenizers` package, because the bundle keeps its tokenizer in that package's format),
without it the ensemble is told that there are none, as in the daemon's interim results.

Shapes: T = samples at 16 kHz, F = frames, d = width of a frame.
"""

import argparse
import hashlib
import json
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[Any]
RATE = 16_000
HOP = 160  # samples between two frames of mel and prosody; Whisper's encoder halves that rate
SHORTEST, LONGEST = 400 * RATE // 1000, 20 * RATE
CLASSES = ("angry", "sad", "happy", "surprise", "fear", "disgust", "contempt", "neutral")


def read_wav(path: Path) -> Array:
    """Samples `float32 [T]` in +-1."""
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getsampwidth()) != (RATE, 2):
            sys.exit(
                f"{path} has {file.getframerate()} Hz and {8 * file.getsampwidth()} bit, 16000 Hz and 16 bit are read"
            )
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
    audio = (pcm / np.float32(32768)).mean(axis=1, dtype=np.float32)
    if not 0 < len(audio) <= LONGEST:
        sys.exit(f"{path} lasts {len(audio) / RATE:g} s, an utterance of up to {LONGEST / RATE:g} s is scored")
    return np.pad(audio, (0, max(0, SHORTEST - len(audio))))


def check_sums(bundle: Path) -> None:
    """Stops at the first file that is not what SHA256SUMS says."""
    for line in (bundle / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        expected, name = line.split("  ", 1)
        if hashlib.sha256((bundle / name).read_bytes()).hexdigest() != expected:
            sys.exit(f"{bundle / name} is damaged: its SHA-256 is not that in SHA256SUMS")


def mel_filters(bands: int) -> Array:
    """Triangles on Slaney's mel scale, each of area 1: `[bands, 201]`."""
    mels = np.linspace(0, 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4), bands + 2)
    hz = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))[:, None]
    bins = np.fft.rfftfreq(400, 1 / RATE)
    rising, falling = (bins - hz[:-2]) / (hz[1:-1] - hz[:-2]), (hz[2:] - bins) / (hz[2:] - hz[1:-1])
    triangles: Array = np.maximum(0, np.minimum(rising, falling)) * 2 / (hz[2:] - hz[:-2])
    return triangles


def log_mel(audio: Array, bands: int) -> Array:
    """Whisper's input, `float32 [bands, T / 160]`."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(audio, 200, mode="reflect"), 400)[::HOP][:-1]
    power = np.abs(np.fft.rfft(windows * np.hanning(401)[:-1])) ** 2
    log = np.log10(np.maximum(mel_filters(bands) @ power.T, 1e-10))
    scaled: Array = (np.maximum(log, log.max() - 8) + 4) / 4
    return scaled.astype(np.float32)


def whisper_frames(session: onnxruntime.InferenceSession, audio: Array) -> Array:
    """Hidden states side by side, `float32 [ceil(T / 320), d]`.

    The encoder has no mask and hears its padding, so the padded length depends on the utterance's own length alone.
    """
    padded = len(audio) + 3 * RATE
    step = RATE if padded <= 8 * RATE else 4 * RATE
    padded = min(-(-padded // step) * step, 30 * RATE)
    bands = session.get_inputs()[0].shape[1]
    mels = log_mel(np.pad(audio, (0, padded - len(audio))), bands)
    states: Array = session.run(["states"], {"mels": mels[None]})[0][0]
    return states[: -(-len(audio) // (2 * HOP))].reshape(-1, states.shape[1] * states.shape[2])


def prosody_frames(audio: Array) -> Array:
    """Pitch (octaves around 160 Hz), voicing, loudness and its slope, `float32 [ceil(T / 160), 4]`."""
    count, width = -(-len(audio) // HOP), 640
    before = (width - HOP) // 2
    padded = np.pad(audio, (before, max(0, (count - 1) * HOP + width - before - len(audio))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[: count * HOP : HOP]
    pitch, voicing = pitch_of(windows)
    power = (windows**2).mean(axis=1)
    loudness = 0.5 * np.log(power / max(power.mean(), 1e-12) + 1e-5)
    return np.stack([pitch, voicing, loudness, np.gradient(loudness)], axis=1).astype(np.float32)


def pitch_of(windows: Array) -> tuple[Array, Array]:
    """Octaves (0 where unvoiced) and voicing in 0..1: the highest peak of the normalised autocorrelation, 65..500 Hz."""
    hann = np.hanning(windows.shape[1]).astype(np.float32)
    correlation = autocorrelation((windows - windows.mean(axis=1, keepdims=True)) * hann)
    own = autocorrelation(hann[None])
    normal = correlation / np.maximum(correlation[:, :1], 1e-12) / (own / own[:, :1])
    shortest, longest = RATE // 500, RATE // 65
    around = normal[:, shortest - 1 : longest + 2]
    peaks = around[:, 1:-1]
    rising = (peaks >= around[:, :-2]) & (peaks >= around[:, 2:])
    cost = 0.02 * np.log2(np.arange(shortest, longest + 1) / shortest)  # a period fits twice into two periods
    best = np.where(rising, peaks - cost, -1).argmax(axis=1)
    rows = np.arange(len(peaks))
    voicing = np.where(rising[rows, best], np.clip(peaks[rows, best], 0, 1), 0)
    return np.where(voicing >= 0.5, np.log2(RATE / (shortest + best) / 160), 0), voicing


def autocorrelation(windows: Array) -> Array:
    """Of each row, up to half its length."""
    width = windows.shape[1]
    return np.fft.irfft(np.abs(np.fft.rfft(windows, 2 * width)) ** 2)[:, : width // 2].astype(np.float32)


def functionals(whisper: Array, prosody: Array) -> Array:
    """Mean and deviation of Whisper's frames, pitch and voicing: whole, first half, second half; `float32 [3, d]`."""
    middle, scale = -(-len(whisper) // 2), len(prosody) / len(whisper)
    rows = [np.concatenate([f(x, axis=0) for x in (whisper, prosody[:, :2]) for f in (np.mean, np.std)])]
    for begin, end in ((0, middle), (len(whisper) // 2, len(whisper))):
        first = int(begin * scale)
        spoken = prosody[first : max(first + 1, int(end * scale)), :2]
        rows.append(np.concatenate([f(x, axis=0) for x in (whisper[begin:end], spoken) for f in (np.mean, np.std)]))
    return np.stack(rows).astype(np.float32)


def text_frames(bundle: Path, encoder: dict[str, Any], text: str) -> Array:
    """Hidden states of the words without special tokens, `float32 [F, d]`; F = 0 without text."""
    if not text.strip():
        return np.zeros((0, encoder["dim"]), np.float32)
    from tokenizers import Tokenizer  # only here: without --text the example needs numpy and onnxruntime alone

    tokenizer = Tokenizer.from_file(str(bundle / "tokenizers" / f"{encoder['name']}.json"))
    tokenizer.enable_truncation(128)
    tokenizer.no_padding()
    tokens = tokenizer.encode(text)
    ids = np.array([tokens.ids], np.int64)
    session = onnxruntime.InferenceSession(bundle / "encoders" / f"{encoder['name']}.onnx")
    (hidden,) = session.run(["hidden"], {"ids": ids, "mask": np.ones_like(ids, bool)})
    words: Array = hidden[0, np.array(tokens.special_tokens_mask) == 0]
    return words


def features(bundle: Path, encoders: list[dict[str, Any]], audio: Array, text: str) -> dict[str, Array]:
    """Frames of every encoder by its name, in the order of the manifest: functionals come after what they summarise."""
    found = {}
    for encoder in encoders:
        name, kind = encoder["name"], encoder["kind"]
        if kind == "whisper-onnx":
            session = onnxruntime.InferenceSession(bundle / "encoders" / f"{name}.onnx")
            found[name] = whisper_frames(session, audio)
        elif kind == "prosody":
            found[name] = prosody_frames(audio)
        elif kind == "functionals":
            found[name] = functionals(found["whisper"], found["prosody"])
        elif kind == "text-transformer":
            found[name] = text_frames(bundle, encoder, text)
        else:
            sys.exit(f"this example has no encoder of kind {kind!r}")
    return found


def score(bundle: Path, audio: Array, text: str) -> dict[str, float]:
    """Probability of each class."""
    encoders = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["ensemble"]["encoders"]
    frames = features(bundle, encoders, audio, text)
    session = onnxruntime.InferenceSession(bundle / "ensemble.onnx")
    read = {tensor.name for tensor in session.get_inputs()}
    feed: dict[str, Array] = {}
    for encoder in (encoder for encoder in encoders if encoder["name"] in read):
        rows, stack = frames[encoder["name"]], encoder["stack"]
        length = -(-max(1, len(rows)) // stack) * stack  # members read `stack` frames as one step
        feed[encoder["name"]] = np.pad(rows, ((0, length - len(rows)), (0, 0)))[None]
        feed[f"{encoder['name']}_mask"] = (np.arange(length) < len(rows))[None]
    probabilities = session.run(["probabilities"], feed)[0][0].astype(np.float64)
    return dict(zip(CLASSES, probabilities / probabilities.sum(), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("wav", type=Path)
    parser.add_argument("--text", default="", help="what is said in it")
    given = parser.parse_args()
    check_sums(given.bundle)
    for label, probability in score(given.bundle, read_wav(given.wav), given.text).items():
        sys.stdout.write(f"{label:9} {probability:.6f} {'#' * round(40 * probability)}\n")
