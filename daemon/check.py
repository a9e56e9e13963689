"""What `medusa-daemon check` finds out: everything that `serve` would refuse is refused here, with the same words."""

from daemon.config import EMBEDDED, Config
from daemon.embedded import check_embedded
from daemon.engine import decoder_precision, load_models, pick_device
from daemon.listening import authority, free
from daemon.sinks.journal import check_directory
from daemon.sinks.redis import without_password
from model.spec import EncoderSpec


def checked(config: Config) -> dict[str, str]:
    """What would be served, by name.

    Raises:
        ConfigError: if the configuration cannot work on this machine.
    """
    address = authority(config.host, config.port)
    listening = address if free(config) else f"{address} (in use at this moment)"
    check_directory(config.streams.spool_dir)
    if config.redis == EMBEDDED:
        check_embedded(config.streams.embedded_dir)
    device = pick_device(config.models.device)
    models = load_models(config.bundle, config.engine_settings())
    manifest = models.bundle.manifest
    ensemble = manifest.ensemble
    return {
        "bundle": models.bundle.id,
        "members": ", ".join(member.name for member in ensemble.members),
        "classes": ", ".join(ensemble.trained_classes),
        "attributes": ", ".join(ensemble.trained_attributes) or "none trained",
        "licence": str(manifest.training["licence"]),
        "device": device,
        "precision": ", ".join(f"{encoder.name} {_precision(encoder, device)}" for encoder in ensemble.encoders),
        "listen": listening,
        "redis": without_password(config.redis),
        "spool": str(config.streams.spool_dir.absolute()),
    }


def _precision(encoder: EncoderSpec, device: str) -> str:
    """The arithmetic of an encoder as it runs; our own graphs compute in float32."""
    if encoder.kind == "whisper-ctranslate2":
        return decoder_precision(encoder, device)
    if encoder.kind == "whisper-onnx":
        return f"float32 (its words {decoder_precision(encoder, device)})"
    return encoder.compute_type
