"""Frozen-encoder features of every clip, extracted once and kept (`train.cache`)."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model.audio import Samples, bucket_length
from model.features import prosody_frames
from model.network.encoders import load_text_encoder
from model.network.whisper_encoder import TorchHiddenStates, load_whisper_encoder
from model.recording import read_mono
from model.sources import resolve_encoder, sha256_of
from model.spec import EncoderSpec
from model.text import TextTokenizer, word_frames
from model.whisper import Whisper
from train.augment import DEGRADATION, degrade
from train.cache import Cache, encoder_key, pinned
from train.cutting import cut_clip
from train.manifest import Clip

HalfFrames = npt.NDArray[np.float16]
Features = dict[str, HalfFrames]
Progress = Callable[[str, int, int], None]
"""(what, done, total)."""

CLEAN: Final = 0
"""The number of the copy that is the recording itself."""
_SHARD: Final = 512
_BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class Extracted:
    """Features of a set of clips: modality -> clip id -> frames, and clip id -> transcript."""

    frames: dict[str, Features]
    transcripts: dict[str, str]


def extract_speech(
    clips: Sequence[Clip], encoders: Mapping[str, EncoderSpec], cache: Path, progress: Progress, copy: int = CLEAN
) -> Extracted:
    """Features of clips, for every encoder that reads audio, and the transcripts of the Whisper encoder.

    Args:
        clips: the clips.
        encoders: modality -> encoder.
        cache: folder of the feature cache.
        progress: told what is done.
        copy: `CLEAN` for the recordings as they are, else the number of a degraded copy (`train.augment`), which is not
            transcribed: what is said in it is known.
    """
    whisper_spec, prosody_spec = pinned(encoders["whisper"]), encoders.get("prosody")
    suffix = "" if copy == CLEAN else f"-degraded-{DEGRADATION}-{copy}"
    whisper_cache = Cache(cache / (encoder_key(whisper_spec) + suffix))
    text_cache = Cache(cache / f"{encoder_key(whisper_spec)}-trusted-words") if copy == CLEAN else None
    prosody_cache = Cache(cache / (encoder_key(prosody_spec) + suffix)) if prosody_spec else None
    names = {clip.id: sha256_of(clip.audio) for clip in clips}
    caches = [kept for kept in (whisper_cache, text_cache, prosody_cache) if kept is not None]
    missing = {name for kept in caches for name in kept.missing(names.values())}
    todo = [clip for clip in clips if names[clip.id] in missing]
    whisper = load_whisper(whisper_spec) if todo else None
    what = "speech features" if copy == CLEAN else f"speech features, degraded copy {copy}"
    for start in range(0, len(todo), _SHARD):
        part = todo[start : start + _SHARD]
        assert whisper is not None
        cut = {names[clip.id]: cut_clip(_recording(clip, names[clip.id], copy)) for clip in part}
        if prosody_cache and prosody_cache.missing(cut):
            prosody_cache.add({name: prosody_frames(samples).astype(np.float16) for name, samples in cut.items()})
        if whisper_cache.missing(cut) or (text_cache and text_cache.missing(cut)):
            frames, words = _whisper_pass(whisper, cut, transcribe=text_cache is not None)
            whisper_cache.add(frames)
            if text_cache:
                text_cache.add(words)
        progress(what, start + len(part), len(todo))
    result = {"whisper": _by_id(whisper_cache, names)}
    if prosody_cache:
        result["prosody"] = _by_id(prosody_cache, names)
    raw = text_cache.read(list(names.values())) if text_cache else {}
    transcripts = {
        clip: bytes(raw[name].astype(np.uint8)).decode().strip("\0") for clip, name in names.items() if name in raw
    }
    return Extracted(result, transcripts)


def load_whisper(encoder: EncoderSpec) -> Whisper:
    """Whisper on the CPU with the frames that the daemon computes.

    Raises:
        SourceError: if no source has its weights.
    """
    states = TorchHiddenStates(load_whisper_encoder(encoder)) if encoder.states else None
    return Whisper(resolve_encoder(encoder), compute_type=encoder.compute_type, encoder=states)


def _recording(clip: Clip, name: str, copy: int) -> Samples:
    samples = read_mono(clip.audio)
    if copy == CLEAN:
        return samples
    return degrade(samples, np.random.default_rng([copy, int(name[:15], 16)]))


def _by_id(cache: Cache, names: Mapping[str, str]) -> Features:
    arrays = cache.read(list(names.values()))
    return {clip: arrays[name].astype(np.float16, copy=False) for clip, name in names.items()}


def _whisper_pass(
    whisper: Whisper, cut: Mapping[str, Samples], *, transcribe: bool
) -> tuple[Features, dict[str, npt.NDArray[np.generic]]]:
    """Frames and, where asked for, UTF-8 transcripts of clips, in batches of one bucket."""
    buckets: dict[int, list[str]] = {}
    for name, samples in cut.items():
        buckets.setdefault(bucket_length(len(samples)), []).append(name)
    frames: Features = {}
    words: dict[str, npt.NDArray[np.generic]] = {}
    for members in buckets.values():
        for start in range(0, len(members), _BATCH):
            part = members[start : start + _BATCH]
            encoded = whisper.encode([cut[name] for name in part])
            frames |= {name: rows.astype(np.float16) for name, rows in zip(part, encoded.frames, strict=True)}
            transcripts = whisper.transcribe(encoded) if transcribe else []
            for name, transcript in zip(part, transcripts, strict=transcribe):
                believed = transcript.text if transcript.trusted else ""  # as the daemon does
                words[name] = np.frombuffer(believed.encode() or b"\0", np.uint8)
    return frames, words


def extract_text(texts: Mapping[str, str], encoder: EncoderSpec, cache_folder: Path, progress: Progress) -> Features:
    """Frames of texts by their key: equal texts are encoded once."""
    encoder = pinned(encoder)
    cache = Cache(cache_folder / encoder_key(encoder))
    names = {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}
    by_name = {names[key]: text for key, text in texts.items()}
    todo = sorted(cache.missing(names.values()), key=lambda name: len(by_name[name]))
    if todo:
        folder = resolve_encoder(encoder)
        tokenizer, network = TextTokenizer(folder / "tokenizer.json"), load_text_encoder(folder)
        for start in range(0, len(todo), _SHARD):
            part = todo[start : start + _SHARD]
            tokens = tokenizer.encode([by_name[name] for name in part])
            with torch.no_grad():
                hidden = network(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask)).numpy()
            cache.add({n: f.astype(np.float16) for n, f in zip(part, word_frames(hidden, tokens), strict=True)})
            progress("text features", start + len(part), len(todo))
    return _by_id(cache, names)
