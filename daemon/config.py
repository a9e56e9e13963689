"""Configuration: a TOML file, then `MEDUSA_*` environment variables, then flags; later ones win. All mistakes at once."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from daemon.access.settings import AccessConfig, TlsConfig
from daemon.batcher import BatchSettings
from daemon.config_sections import (
    AlertsConfig,
    EndpointingConfig,
    FleetConfig,
    LimitsConfig,
    ModelsConfig,
    PolicyConfig,
    StreamsConfig,
    TelephonyConfig,
    WebrtcConfig,
)
from daemon.config_sources import DELIMITER, PREFIX, from_environment, merged, mistake_told, no_json
from daemon.embedded import embedded_url
from daemon.engine import EngineSettings
from daemon.errors import ConfigError
from daemon.fleet.settings import FleetSettings
from daemon.policy import Policy
from daemon.sinks.redis import StreamSettings, connect
from daemon.transports.whip.rules import WhipRules
from model.audio import POST_PAD, SAMPLES_PER_MS
from model.segmenter import Endpointing

DEFAULT_BUNDLE: Final = Path(__file__).parent / "bundles" / "default"
EMBEDDED: Final = "embedded"
_FALLBACKS_BEFORE_REFUSAL: Final = 4
"""Members drop out at this part of the wait at which streams are refused: so the refusal comes last, whatever it is."""
Role = Literal["all", "gateway", "worker"]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]


class Config(BaseSettings):
    """Everything that `medusa-daemon serve` can be told."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter=DELIMITER, extra="forbid", frozen=True)

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8765, ge=0, le=65535)
    redis: str = EMBEDDED
    bundle: Path = DEFAULT_BUNDLE
    role: Role = "all"
    """What of the work this process does: all of it, or the streams, or the models."""
    interim_ms: int = Field(default=1000, ge=0)
    """Default distance of interim results; 0 sends none. A client may ask for another."""
    ahead_silence_ms: int = Field(default=160, ge=0)
    """Silence after which an utterance is scored ahead, behind all that is wanted sooner; 0 never does."""
    drain_timeout_s: float = Field(default=20.0, gt=0)
    log_level: LogLevel = "INFO"
    endpointing: EndpointingConfig = EndpointingConfig()
    limits: LimitsConfig = LimitsConfig()
    streams: StreamsConfig = StreamsConfig()
    models: ModelsConfig = ModelsConfig()
    fleet: FleetConfig = FleetConfig()
    telephony: TelephonyConfig = TelephonyConfig()
    alerts: AlertsConfig = AlertsConfig()
    webrtc: WebrtcConfig = WebrtcConfig()
    access: AccessConfig = AccessConfig()
    tls: TlsConfig = TlsConfig()
    policy: PolicyConfig = PolicyConfig()
    insecure: bool = False
    """The operator's word that who can reach us may, or that TLS ends at a proxy in front."""

    @field_validator("ahead_silence_ms")
    @classmethod
    def _of_complete_audio(cls, ahead_ms: int) -> int:
        least = POST_PAD // SAMPLES_PER_MS
        if 0 < ahead_ms < least:
            raise ValueError(f"0 for never, or at least {least}, the silence that an utterance keeps")
        return ahead_ms

    @field_validator("redis")
    @classmethod
    def _a_redis(cls, url: str) -> str:
        """What the sink would refuse is a mistake of the configuration like any other, told with the others."""
        if url != EMBEDDED:
            try:
                connect(url, reply_timeout_s=1.0)
            except ConfigError as error:
                raise ValueError(f'{error}; or "{EMBEDDED}" for a server of our own') from error
        return url

    @field_validator("policy")
    @classmethod
    def _no_rule_waits_in_vain(cls, policy: PolicyConfig, others: ValidationInfo) -> PolicyConfig:
        alerts: AlertsConfig | None = others.data.get("alerts")
        roles = {rule.role for rule in alerts.rules if rule.role} if alerts else set()
        if policy.analyze and (unheard := sorted(roles - set(policy.analyze))):
            raise ValueError(
                f"analyze leaves out {', '.join(unheard)}, whom alerts.rules wait for: leave those rules out, or name the role"
            )
        return policy

    @field_validator("models")
    @classmethod
    def _shadows_what_it_serves(cls, models: ModelsConfig, others: ValidationInfo) -> ModelsConfig:
        role = others.data.get("role")
        if models.shadow is not None and role in ("gateway", "worker"):
            raise ValueError(
                f"shadow is for a process that has streams and models, and a {role} has not both: "
                "run one with role = all beside the fleet, and give it some of the calls"
            )
        return models

    @field_validator("role")
    @classmethod
    def _with_a_redis_of_all(cls, role: Role, others: ValidationInfo) -> Role:
        if role != "all" and others.data.get("redis") == EMBEDDED:
            raise ValueError(
                "gateways and workers meet in a Redis server that all of them reach: name it with --redis URL"
            )
        return role

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

    def whip_rules(self) -> WhipRules:
        """As the door takes them: pages that may use everything may use it too."""
        rules = self.webrtc.rules()
        return replace(rules, allowed_origins=(*rules.allowed_origins, *self.access.allowed_origins))

    def fleet_settings(self) -> FleetSettings:
        """As gateways and workers take them."""
        return FleetSettings(**self.fleet.model_dump())

    def work_of(self, bundle_id: str) -> str:
        """What gateways and workers share: a worker that lets more words out than a gateway allows is never given its work."""
        transcripts = self.policy.transcripts
        return bundle_id if transcripts == "full" else f"{bundle_id}:{transcripts}"

    def redis_url(self) -> str:
        """Where a reader finds the events that `serve` publishes under this configuration.

        Raises:
            ConfigError: if that is known only once the embedded server runs.
        """
        if self.redis != EMBEDDED:
            return self.redis
        if self.streams.embedded_port == 0:
            raise ConfigError(
                "streams.embedded_port is 0, so the embedded server takes a free port: name the URL that `serve` printed, "
                "for instance --redis redis://127.0.0.1:40123/0"
            )
        return embedded_url(self.streams.embedded_port)

    def engine_settings(self) -> EngineSettings:
        """As the engine takes them."""
        m = self.models
        batch = BatchSettings(m.max_batch_size, m.max_queue_delay_ms / 1000, m.max_queue_size, m.workers)
        return EngineSettings(
            device=m.device,
            ensemble_device=m.ensemble_device,
            gpu=m.gpu(),
            threads=m.threads,
            batch=batch,
            whisper_sources=m.whisper_sources,
            trusted_keys=m.trusted_keys,
            transcripts=self.policy.transcripts,
            fallback_wait_s=self.limits.max_wait_ms / 1000 / _FALLBACKS_BEFORE_REFUSAL,
        )

    def call_policy(self) -> Policy:
        """As streams take it."""
        return Policy(self.policy.analyze, self.policy.transcripts)

    def stream_settings(self) -> StreamSettings:
        """As everybody who publishes takes them."""
        s = self.streams
        return StreamSettings(maxlen=s.maxlen, call_ttl_s=min(s.call_ttl_s, self.policy.retain_s or s.call_ttl_s))


def load_config(path: Path | None, flags: dict[str, Any]) -> Config:
    """Reads the configuration; flags that are None were not given.

    Raises:
        ConfigError: naming every mistake, its value, and what is allowed.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        from_file = tomllib.loads(path.read_text(encoding="utf-8")) if path else {}
        environment = from_environment(Config)
        return Config(**merged(merged(from_file, environment), given))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        lines = [mistake_told(mistake, environment, given) for mistake in error.errors()]
        count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"the configuration has {count}:\n" + "\n".join(lines)) from error
    except SettingsError as error:
        names = ", ".join(no_json(Config))
        raise ConfigError(f"the environment: {error}, from {names}: it must be JSON: {error.__cause__}") from error
