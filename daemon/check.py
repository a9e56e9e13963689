"""What `medusa-daemon check` finds out: everything that `serve` would refuse is refused here, with the same words."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import ctranslate2
import numpy as np

from daemon.access import assembled, tls
from daemon.asr import AsrItem, Task
from daemon.audit.writer import AUDIT_KEY
from daemon.calls.alerts import AlertRules
from daemon.config import EMBEDDED, Config
from daemon.config_sections import AlertRuleConfig, AlertsConfig, PolicyConfig
from daemon.embedded import check_embedded
from daemon.emotion import EmotionItem
from daemon.engine import Models, decoder_precision, execution_of, load_models, pick_device
from daemon.listening import authority, free
from daemon.policy import Transcripts
from daemon.sinks.journal import check_directory
from daemon.sinks.redis import without_password
from daemon.tracing.assembled import check_traces
from model.audio import SAMPLE_RATE_HZ
from model.bundle import ENSEMBLE, SIGNATURE, Bundle
from model.labels import CLASSES
from model.providers import Execution
from model.signature import name_of, read_public_key, signed_by
from model.sources import WEIGHTS, SourceError, resolve
from model.spec import WHISPER_KINDS, EncoderSpec

_PROGRAM_BYTES: Final = 110_000_000
"""The daemon before it has loaded a model."""
_UNFOLDED: Final = 2
"""Weights that a graph stores in 16 bits are 32 bits wide in memory."""
_SAMPLE_S: Final = 4
"""Length of the utterance whose time is taken: what telephone calls are cut into."""
_ENSEMBLE: Final = "ensemble"
_ENCODER: Final = "encoder "
"""What components are called in `costs` and `precisions`: this and the encoder's name."""
_ARITHMETIC: Final = {"fp32": "float32", "fp16-weights": "float32", "fp16": "float16", "bf16": "bfloat16"}
_TRANSCRIPTS: Final[dict[Transcripts, str]] = {
    "full": "in full, wherever results go",
    "redacted": "without figures and e-mail addresses; names stay",
    "off": "none",
}
_MEMINFO: Final = Path("/proc/meminfo")
_UNITS: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def checked(config: Config) -> dict[str, str]:
    """What would be served, by name; several lines where there are several of a kind.

    Raises:
        ConfigError: if the configuration cannot work on this machine.
    """
    address = authority(config.host, config.port)
    listening = address if free(config) else f"{address} (in use at this moment)"
    access, certificate = assembled.described(config), assembled.certificate_of(config)
    encryption = "none" if certificate is None else tls.described(certificate)
    check_directory(config.streams.spool_dir)
    if config.redis == EMBEDDED:
        check_embedded(config.streams.embedded_dir)
    settings = config.engine_settings()
    device = pick_device(settings.device)
    models = load_models(config.bundle, settings)
    bundle = models.bundle
    manifest, ensemble = bundle.manifest, bundle.spec
    seconds, needed, available = _seconds(models), _needed_bytes(bundle, config), _available_bytes()
    untrained = [name for name in CLASSES if name not in ensemble.trained_classes]
    AlertRules((rule.rule() for rule in config.alerts.rules), ensemble.trained_classes)
    shadow = None if config.models.shadow is None else load_models(config.models.shadow, settings)
    if shadow is not None:
        needed += _needed_bytes(shadow.bundle, config) - _PROGRAM_BYTES
    return {
        "bundle": f"{bundle.id}, format {manifest.format_version}, opset {manifest.opset}",
        "folder": str(bundle.path),
        "signature": _signature(bundle, config.models.trusted_keys),
        "licence": str(manifest.training.get("licence", "not said")),
        "classes": ", ".join(ensemble.trained_classes)
        + (f" (never trained: {', '.join(untrained)})" if untrained else ""),
        "attributes": ", ".join(ensemble.trained_attributes) or "none trained",
        "members": "\n".join(f"{member.name}: {' + '.join(member.modalities)}" for member in ensemble.members),
        "encoders": "\n".join(_encoder(encoder, bundle, config) for encoder in ensemble.encoders),
        "size": _size(bundle),
        "operations": _operations(bundle),
        "device": devices(
            device, execution_of(settings).with_kernels(manifest.kernels), ctranslate2.get_cuda_device_count()
        ),
        "precision": _precisions(bundle, device),
        "memory": f"at least {_short(needed)}B for the program and its weights"
        + (f"; {_short(available)}B are free here" if available is not None else ""),
        "time": f"{seconds:.2f} s for an utterance of {_SAMPLE_S} s, without its words",
        "shadow": "none" if shadow is None else f"{shadow.bundle.id} in {shadow.bundle.path}, in memory too",
        "verdict": verdict(seconds, needed, available),
        "listen": listening,
        "access": access,
        "tls": encryption,
        "analysed": ", ".join(config.policy.analyze) or "every role: policy.analyze names none",
        "transcripts": _TRANSCRIPTS[config.policy.transcripts],
        "retention": _retention(config),
        "audit": _audit(config.policy),
        "alerts": _alerts(config.alerts),
        "traces": "as OTEL_* says" if check_traces() else "none: OTEL_* asks for none",
        "redis": without_password(config.redis),
        "spool": str(config.streams.spool_dir.absolute()),
    }


def devices(words: str, execution: Execution, gpus: int) -> str:
    """Where everything runs, and whether any of it needs CUDA.

    Args:
        words: the device on which Whisper's words are decoded.
        execution: where graphs run.
        gpus: how many GPUs there are.
    """
    cpu_alone = {words, execution.device, execution.ensemble} == {"cpu"}
    return (
        f"words on {words}, encoders on {execution.device}, ensemble on {execution.ensemble}; {gpus or 'no'} GPU here, "
        + ("and CUDA is not needed" if cpu_alone else "and CUDA is used")
    )


def _retention(config: Config) -> str:
    """How long anybody finds what was said."""
    of_calls, policy = config.stream_settings(), config.policy
    common = (
        f"until {of_calls.maxlen} newer ones came: policy.retain_s is not set"
        if policy.retain_s is None
        else f"{policy.retain_s} s"
    )
    return (
        f"audio: none is kept\nevents of a call: {of_calls.call_ttl_s} s after the last\nevents of all calls: {common}"
    )


def _audit(policy: PolicyConfig) -> str:
    if not policy.audit:
        return "off: nobody sees who read or deleted what"
    return f"in {AUDIT_KEY}: {policy.audit_retain_s} s, at most {policy.audit_maxlen} entries"


def _alerts(alerts: AlertsConfig) -> str:
    """The rules; where they are sent may hold a secret, so that they are is all that is said."""
    if not alerts.rules:
        return "none: alerts.rules is empty"
    where = "Redis, the client and the dashboard" + (", and alerts.webhook_url" if alerts.webhook_url else "")
    return "\n".join([*map(_alert, alerts.rules), f"told to {where}"])


def _alert(rule: AlertRuleConfig) -> str:
    streak = f"{rule.utterances} utterances" if rule.for_s is None else f"{rule.for_s:g} s of speech"
    emotions = " + ".join(rule.emotions)
    return f"{rule.name}: {rule.role or 'any role'}, {emotions} at least {rule.above:g} for {streak}"


def _signature(bundle: Bundle, trusted: Iterable[str]) -> str:
    key = signed_by(bundle.path, [read_public_key(text) for text in trusted])
    if key is not None:
        return f"of the trusted key {name_of(key)}"
    if (bundle.path / SIGNATURE).is_file():
        return "there, but not checked: models.trusted_keys is empty"
    return "none; any bundle is taken: models.trusted_keys is empty"


def _encoder(encoder: EncoderSpec, bundle: Bundle, config: Config) -> str:
    """Where an encoder comes from on this machine; its hash was checked when it was loaded."""
    found = _found(encoder, bundle, config)
    where = "computed, no weights" if found is None else f"found {found[0]}"
    return f"{encoder.name}: {encoder.kind}, {encoder.dim} wide, {where}"


def _found(encoder: EncoderSpec, bundle: Bundle, config: Config) -> tuple[str, Path] | None:
    """The source of an encoder's weights that is there, and its file or folder; None where it has none."""
    named = config.models.whisper_sources if encoder.kind in WHISPER_KINDS else ()
    for source in named or encoder.sources:
        try:
            return source, resolve([source], bundle.path)
        except SourceError:
            continue
    return None


def _size(bundle: Bundle) -> str:
    sizes = {name: (bundle.path / name).stat().st_size for name in bundle.manifest.files}
    kinds: dict[str, int] = {}
    for name, size in sizes.items():
        kind = name.partition("/")[0] if "/" in name else "other files"
        kinds[kind] = kinds.get(kind, 0) + size
    parts = ", ".join(f"{kind} {_short(size)}B" for kind, size in sorted(kinds.items(), key=lambda item: -item[1]))
    return f"{_short(sum(sizes.values()))}B in {len(sizes)} files ({parts})"


def _operations(bundle: Bundle) -> str:
    """Of what is served; the members' are in the ensemble's."""
    counted = {
        name: costs["flops"]
        for name, costs in bundle.manifest.costs.items()
        if "flops" in costs and (name == _ENSEMBLE or name.startswith(_ENCODER))
    }
    if not counted:
        return "not counted by this bundle"
    took = {name: bundle.manifest.costs[name].get("cpu_ms") for name in counted}
    parts = ", ".join(
        f"{name} {_short(flops)}FLOP" + (f" in {took[name]:.3g} ms" if took[name] is not None else "")
        for name, flops in counted.items()
    )
    where = "; milliseconds on one core of the machine that wrote it" if any(took.values()) else ""
    return f"{_short(sum(counted.values()))}FLOP for an utterance of {_SAMPLE_S} s ({parts}){where}"


def _precisions(bundle: Bundle, device: str) -> str:
    """The arithmetic of encoders and ensemble as they run."""
    stored = bundle.manifest.precisions
    parts = [
        f"{encoder.name} {_precision(encoder, stored.get(f'{_ENCODER}{encoder.name}'), device)}"
        for encoder in bundle.spec.encoders
    ]
    return ", ".join([*parts, f"ensemble {_arithmetic(stored.get(_ENSEMBLE, 'fp32'))}"])


def _precision(encoder: EncoderSpec, stored: str | None, device: str) -> str:
    if encoder.kind == "whisper-ctranslate2":
        return decoder_precision(encoder, device)
    if encoder.kind == "whisper-onnx":
        return f"{_arithmetic(stored or 'fp32')} (its words {decoder_precision(encoder, device)})"
    return _arithmetic(stored) if stored else encoder.compute_type


def _arithmetic(stored: str) -> str:
    return _ARITHMETIC.get(stored, stored)


def _needed_bytes(bundle: Bundle, config: Config) -> int:
    """Memory that program and weights take at least; batches of long utterances take more on top."""
    needed = _PROGRAM_BYTES + _UNFOLDED * sum((bundle.path / name).stat().st_size for name in _graphs(bundle))
    for encoder in bundle.spec.encoders:
        found = _found(encoder, bundle, config)
        if found is not None and encoder.kind in WHISPER_KINDS:
            needed += (found[1] / WEIGHTS[encoder.kind]).stat().st_size
    return needed


def _graphs(bundle: Bundle) -> list[str]:
    """Graphs that are served, and the weights beside them."""
    return [
        name
        for name in bundle.manifest.files
        if name == ENSEMBLE or name.startswith("encoders/") or name.endswith(".weights")
    ]


def _available_bytes() -> int | None:
    """Memory that a program can still get, None where the system does not say."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    named = dict(line.split(":", 1) for line in lines)
    return 1024 * int(named["MemAvailable"].split()[0]) if "MemAvailable" in named else None


def verdict(seconds: float, needed: int, available: int | None) -> str:
    """How well a machine can serve what was loaded on it and has run.

    Args:
        seconds: that an utterance of 4 s took.
        needed: bytes that program and weights take at least.
        available: bytes that are free, None where the system does not say.
    """
    if available is not None and available < needed:
        return f"this machine can serve it, but its memory is short: free {_short(needed - available)}B more"
    if seconds > _SAMPLE_S:
        return "this machine can score recordings with it, but is slower than one live stream: use a GPU or more cores"
    return "this machine can serve it"


def _seconds(models: Models) -> float:
    """Time of one utterance, encoders and ensemble, after the models have run once."""
    noise = np.random.default_rng(0).normal(0, 0.01, _SAMPLE_S * SAMPLE_RATE_HZ).astype(np.float32)
    begun = time.perf_counter()
    (heard,) = models.asr([AsrItem(noise, None, Task.FEATURES)])
    models.emotion([EmotionItem(noise, heard)])
    return time.perf_counter() - begun


def _short(number: float) -> str:
    """Three digits and the prefix of the unit that follows."""
    for factor, prefix in _UNITS:
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "
