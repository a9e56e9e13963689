"""Configuration: a TOML file, then `MEDUSA_*` environment variables, then flags; later ones win. All mistakes at once."""

import os
import tomllib
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from daemon.batcher import BatchSettings
from daemon.engine import EngineSettings, default_threads
from daemon.errors import ConfigError
from daemon.segmenter import Endpointing

DEFAULT_BUNDLE: Final = Path(__file__).parent / "bundles" / "default"
EMBEDDED: Final = "embedded"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointingConfig(_Section):
    """When speech begins and ends; see `daemon.segmenter.Endpointing`."""

    onset: float = 0.5
    offset: float = 0.35
    min_speech_ms: int = 96
    endpoint_silence_ms: int = 500

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        Endpointing(**self.model_dump())
        return self


class LimitsConfig(_Section):
    """What one client may take."""

    max_streams: int = Field(default=100, gt=0)
    max_message_bytes: int = Field(default=1 << 20, gt=0)
    idle_timeout_s: float = Field(default=60.0, gt=0)
    """A stream without audio or keep_alive for this long is closed."""
    outbox: int = Field(default=256, gt=0)
    """Messages that wait for a slow reader before its connection is closed."""


class StreamsConfig(_Section):
    """Redis Streams."""

    maxlen: int = Field(default=100_000, gt=0)
    call_ttl_s: int = Field(default=86_400, gt=0)
    spool_dir: Path = Path(".medusa/spool")
    spool_memory: int = Field(default=10_000, gt=0)
    spool_disk: int = Field(default=1_000_000, gt=0)
    embedded_port: int = Field(default=6390, ge=0, le=65535)
    """Port of the embedded server; 0 takes a free one."""
    embedded_dir: Path | None = None
    """Where the embedded server keeps its data; None keeps none."""


class ModelsConfig(_Section):
    """How models run."""

    device: str = "auto"
    threads: int = Field(default_factory=default_threads, gt=0)
    whisper_sources: tuple[str, ...] = ()
    max_batch_size: int = Field(default=16, gt=0)
    max_queue_delay_ms: float = Field(default=4.0, ge=0)
    max_queue_size: int = Field(default=64, gt=0)
    workers: int = Field(default=1, gt=0)


class Config(BaseSettings):
    """Everything that `medusa-daemon serve` can be told."""

    model_config = SettingsConfigDict(env_prefix="MEDUSA_", env_nested_delimiter="__", extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)
    redis: str = EMBEDDED
    bundle: Path = DEFAULT_BUNDLE
    interim_ms: int = Field(default=1000, ge=0)
    """Default distance of interim results; 0 sends none. A client may ask for another."""
    drain_timeout_s: float = Field(default=20.0, gt=0)
    log_level: str = "INFO"
    endpointing: EndpointingConfig = EndpointingConfig()
    limits: LimitsConfig = LimitsConfig()
    streams: StreamsConfig = StreamsConfig()
    models: ModelsConfig = ModelsConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment goes before what `load_config` read from the file; flags are merged in there."""
        return (init_settings, env_settings)

    def endpointing_rules(self) -> Endpointing:
        """As the segmenter takes them."""
        return Endpointing(**self.endpointing.model_dump())

    def engine_settings(self) -> EngineSettings:
        """As the engine takes them."""
        m = self.models
        batch = BatchSettings(m.max_batch_size, m.max_queue_delay_ms / 1000, m.max_queue_size, m.workers)
        return EngineSettings(m.device, m.threads, batch, m.whisper_sources)


def load_config(path: Path | None, flags: dict[str, Any]) -> Config:
    """Reads the configuration; flags that are None were not given.

    Raises:
        ConfigError: naming every mistake, its value, and what is allowed.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        from_file = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
        environment = _environment()
        return Config(**_merge(_merge(from_file, environment), given))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r:.80})" for e in error.errors()]
        raise ConfigError(f"the configuration has {error.error_count()} mistakes:\n" + "\n".join(lines)) from error
    except SettingsError as error:
        raise ConfigError(f"the environment: {error} (JSON expected): {error.__cause__}") from error


def _environment() -> dict[str, Any]:
    """What `MEDUSA_*` says, unchecked: its mistakes are told together with the others, names that mean nothing too."""
    prefix, delimiter = "MEDUSA_", "__"
    names = [name.removeprefix(prefix).lower() for name in os.environ if name.startswith(prefix)]
    unknown = {name: "set in the environment" for name in names if name.split(delimiter)[0] not in Config.model_fields}
    return EnvSettingsSource(Config)() | unknown


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged
