"""Frozen-encoder features of every clip, extracted once and kept (`train.cache`).

A clip is read and cut once for all encoders, a shard at a time. What is cached is not computed again, so a run that was
killed continues with the shard that it lost; several processes may fill one cache with different clips.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from model.audio import Samples
from model.features import functionals, prosody_frames
from model.recording import read_mono
from model.sources import sha256_of
from model.spec import EncoderSpec
from train.augment import DEFAULT, degrade
from train.augment_config import AugmentConfig
from train.cache import Cache, encoder_key, let_go, pinned
from train.cutting import cut_clip
from train.dataset import FUNCTIONALS, READ_BY_FUNCTIONALS
from train.encoding import TextPasses, half, load_speech, speech_pass
from train.execution import CPU
from train.manifest import Clip
from train.transcribing import load_whisper, whisper_pass
from train.transcripts import Confidence, TranscriptCache

HalfFrames = npt.NDArray[np.float16]
Features = dict[str, HalfFrames]
Progress = Callable[[str, int, int], None]
"""(what, done, total)."""

CLEAN: Final = 0
"""The number of the copy that is the recording itself."""
_SHARD: Final = 512


@dataclass(frozen=True, slots=True)
class Extracted:
    """Features of a set of clips.

    Attributes:
        frames: modality -> clip id -> frames, which are mapped files.
        transcripts: clip id -> words; empty where none were wanted.
        confidence: clip id -> how sure the recogniser was of them (`train.transcripts.CONFIDENCE`); empty where they are.
    """

    frames: dict[str, Features]
    transcripts: dict[str, str]
    confidence: dict[str, Confidence]


@dataclass(frozen=True, slots=True)
class Extraction:
    """How features are extracted.

    Attributes:
        encoders: by modality.
        cache: folder of the feature cache.
        progress: told what is done.
        device: where encoders run.
        augment: what a degraded copy goes through.
    """

    encoders: Mapping[str, EncoderSpec]
    cache: Path
    progress: Progress
    device: torch.device = CPU
    augment: AugmentConfig = DEFAULT

    def frames(
        self, clips: Sequence[Clip], copy: int = CLEAN, clean: Mapping[str, Features] | None = None
    ) -> dict[str, Features]:
        """Features of clips by modality and id; arguments as for `extracted`."""
        return self.extracted(clips, copy, clean).frames

    def extracted(
        self, clips: Sequence[Clip], copy: int = CLEAN, clean: Mapping[str, Features] | None = None
    ) -> Extracted:
        """Features of clips in every modality, with what was transcribed.

        Args:
            clips: the clips.
            copy: number of a degraded copy, or `CLEAN`.
            clean: of the same clips, whose words a degraded copy is given; without them its own are transcribed.
        """
        extracted = extract_speech(clips, self, copy, transcribe=clean is None)
        frames = dict(extracted.frames)
        for name, encoder in self.encoders.items():
            if encoder.kind == "text-transformer":
                frames[name] = clean[name] if clean else self.words(extracted.transcripts, name)
        return replace(extracted, frames={name: frames[name] for name in self.encoders})

    def words(self, texts: Mapping[str, str], modality: str) -> Features:
        """Frames of texts by their key."""
        return extract_text(texts, self.encoders[modality], self.cache, self.progress, self.device)


def extract_speech(clips: Sequence[Clip], how: Extraction, copy: int = CLEAN, *, transcribe: bool = True) -> Extracted:
    """Features of clips, for every encoder that reads audio, and the transcripts of the Whisper encoder.

    Args:
        clips: the clips.
        how: encoders, cache, device.
        copy: `CLEAN` for the recordings as they are, else the number of a degraded copy (`train.augment`).
        transcribe: whether words are wanted; in a copy for training, what is said is known.

    Raises:
        RecipeError: if an encoder is not what the recipe says.
        SourceError: if no source has an encoder's weights.
    """
    encoders, cache = how.encoders, how.cache
    whisper_spec, prosody_spec = pinned(encoders["whisper"]), encoders.get("prosody")
    speech = [pinned(encoder) for encoder in encoders.values() if encoder.kind == "speech-transformer"]
    suffix = "" if copy == CLEAN else f"-degraded-{how.augment.copies_name}-{copy}"
    whisper_cache = Cache(cache / (encoder_key(whisper_spec) + suffix))
    text_cache = TranscriptCache(cache, whisper_spec, suffix) if transcribe else None
    prosody_cache = Cache(cache / (encoder_key(prosody_spec) + suffix)) if prosody_spec else None
    speech_caches = {encoder.name: Cache(cache / (encoder_key(encoder) + suffix)) for encoder in speech}
    names = {clip.id: sha256_of(clip.audio) for clip in clips}
    caches = [kept for kept in (whisper_cache, text_cache, prosody_cache, *speech_caches.values()) if kept is not None]
    missing = {name for kept in caches for name in kept.missing(names.values())}
    todo = [clip for clip in clips if names[clip.id] in missing]
    heard = [kept for kept in (whisper_cache, text_cache) if kept is not None and kept.missing(names.values())]
    whisper = load_whisper(whisper_spec, how.device) if heard else None
    networks = {
        encoder.name: load_speech(encoder, how.device)
        for encoder in speech
        if speech_caches[encoder.name].missing(names.values())
    }
    what = "speech features" if copy == CLEAN else f"speech features, degraded copy {copy}"
    for start in range(0, len(todo), _SHARD):
        part = todo[start : start + _SHARD]
        cut = _cut(part, names, copy, how.augment)
        if prosody_cache and prosody_cache.missing(cut):
            prosody_cache.add({name: prosody_frames(samples).astype(np.float16) for name, samples in cut.items()})
        if whisper_cache.missing(cut) or (text_cache and text_cache.missing(cut)):
            assert whisper is not None
            frames, transcripts = whisper_pass(whisper, cut, transcribe=text_cache is not None)
            whisper_cache.add(frames)
            if text_cache:
                text_cache.add(transcripts)
        for encoder in speech:
            kept = speech_caches[encoder.name]
            if lacking := kept.missing(cut):
                kept.add(speech_pass(networks[encoder.name], {name: cut[name] for name in lacking}, encoder))
        how.progress(what, start + len(part), len(todo))
    result = {"whisper": _by_id(whisper_cache, names)}
    if prosody_cache:
        result["prosody"] = _by_id(prosody_cache, names)
    if FUNCTIONALS in encoders:
        assert prosody_spec is not None  # a recipe with functionals has both
        read = hashlib.sha256(f"{encoder_key(whisper_spec)} {encoder_key(prosody_spec)}".encode()).hexdigest()[:12]
        kept = Cache(cache / f"{encoder_key(encoders[FUNCTIONALS])}-of-{read}{suffix}")
        _fill_functionals(kept, names, result, how.progress)
        result[FUNCTIONALS] = _by_id(kept, names)
    result |= {name: _by_id(kept, names) for name, kept in speech_caches.items()}
    if text_cache is None:
        return Extracted(result, {}, {})
    return Extracted(result, text_cache.words(names), text_cache.confidence(names))


def _fill_functionals(
    kept: Cache, names: Mapping[str, str], frames: Mapping[str, Features], progress: Progress
) -> None:
    """Functionals of clips whose frames are there; `names` are those of their audio by clip id."""
    clip_of = {name: clip for clip, name in names.items()}
    todo = kept.missing(names.values())
    for start in range(0, len(todo), _SHARD):
        part = todo[start : start + _SHARD]
        found = {}
        for name in part:
            read = [frames[modality][clip_of[name]] for modality in READ_BY_FUNCTIONALS]
            found[name] = functionals(*(rows.astype(np.float32) for rows in read)).astype(np.float16)
            let_go(read)
        kept.add(found)
        progress("functionals", start + len(part), len(todo))


def read_transcripts(clips: Sequence[Clip], whisper: EncoderSpec, cache: Path) -> dict[str, str]:
    """Transcripts by clip id, of clips that `extract_speech` has been through."""
    return TranscriptCache(cache, pinned(whisper)).words({clip.id: sha256_of(clip.audio) for clip in clips})


def _cut(clips: Sequence[Clip], names: Mapping[str, str], copy: int, augment: AugmentConfig) -> dict[str, Samples]:
    """The utterances of clips by the name of their audio; decoding and speech detection leave Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        utterances = pool.map(lambda clip: cut_clip(_recording(clip, names[clip.id], copy, augment)), clips)
        return {names[clip.id]: samples for clip, samples in zip(clips, utterances, strict=True)}


def _recording(clip: Clip, name: str, copy: int, augment: AugmentConfig) -> Samples:
    samples = read_mono(clip.audio)
    if copy == CLEAN:
        return samples
    return degrade(samples, np.random.default_rng([copy, int(name[:15], 16)]), augment)


def _by_id(cache: Cache, names: Mapping[str, str]) -> Features:
    arrays = cache.read(list(names.values()))
    return {clip: arrays[name].astype(np.float16, copy=False) for clip, name in names.items()}


def extract_text(
    texts: Mapping[str, str], encoder: EncoderSpec, cache_folder: Path, progress: Progress, device: torch.device = CPU
) -> Features:
    """Frames of texts by their key: equal texts are encoded once.

    Raises:
        RecipeError: as `extract_speech`.
        SourceError: if no source has the encoder's weights.
    """
    encoder = pinned(encoder)
    cache = Cache(cache_folder / encoder_key(encoder))
    names = {key: hashlib.sha256(text.encode()).hexdigest() for key, text in texts.items()}
    by_name = {names[key]: text for key, text in texts.items()}
    todo = sorted(cache.missing(names.values()), key=lambda name: len(by_name[name]))
    if todo:
        network = TextPasses(encoder, device)
        for start in range(0, len(todo), _SHARD):
            part = todo[start : start + _SHARD]
            frames = network([by_name[name] for name in part])
            cache.add({name: half(rows, encoder) for name, rows in zip(part, frames, strict=True)})
            progress(f"{encoder.name} features", start + len(part), len(todo))
    return _by_id(cache, names)
