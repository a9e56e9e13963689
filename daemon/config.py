"""Configuration: a TOML file, then `MEDUSA_*` environment variables, then flags; later ones win. All mistakes at once."""

import base64
import json
import os
import tomllib
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from daemon.access.settings import AccessConfig, TlsConfig
from daemon.batcher import BatchSettings
from daemon.calls.alerts import AlertRule
from daemon.calls.webhook import WebhookSettings, check_url
from daemon.embedded import embedded_url
from daemon.engine import EngineSettings, default_threads
from daemon.errors import ConfigError
from daemon.fleet.settings import FleetSettings
from daemon.policy import Policy, Transcripts
from daemon.sinks.redis import StreamSettings, connect, without_password
from daemon.transports.whip.rules import IceServer, WhipRules
from model.audio import POST_PAD, SAMPLES_PER_MS
from model.labels import CLASSES
from model.providers import ConvSearch, FixedShape, GpuSettings
from model.segmenter import Endpointing
from model.signature import read_public_key

DEFAULT_BUNDLE: Final = Path(__file__).parent / "bundles" / "default"
EMBEDDED: Final = "embedded"
_FALLBACKS_BEFORE_REFUSAL: Final = 4
"""Members drop out at this part of the wait at which streams are refused: so the refusal comes last, whatever it is."""
_PREFIX: Final = "MEDUSA_"
_DELIMITER: Final = "__"
_ICE_URL: Final = r"^(stuns?:[^?:@\s]+(:\d{1,5})?|turns?:[^?:@\s]+(:\d{1,5})?(\?transport=(udp|tcp))?)$"
_ORIGIN: Final = r"^(\*|https?://[^/\s]+)$"
_SHOWN_ACCESS: Final = {
    *("keys", "jwt", "roles", "token_ttl_s", "session_ttl_s", "allowed_origins", "failures_per_minute"),
    *("max_streams", "max_starts_per_minute", "max_stream_s", "max_day_s"),
    *("algorithms", "jwks_file", "audience", "issuer", "roles_claim", "leeway_s"),
}
"""What may be shown where it stands below a name that may be shown; of a whole table nothing is."""
_SHOWN_ALERTS: Final = {"rules", "webhook_timeout_s", "webhook_attempts", "webhook_queue"}
"""The URL is not among them: many services put what must not be known into it."""

Role = Literal["all", "gateway", "worker"]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EndpointingConfig(_Section):
    """When speech begins and ends; see `model.segmenter.Endpointing`."""

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
    max_wait_ms: float = Field(default=2000.0, gt=0)
    """New streams are refused while results of those that are here wait longer than this for the engine."""
    max_message_bytes: int = Field(default=1 << 20, gt=0)
    idle_timeout_s: float = Field(default=60.0, gt=0)
    """A stream without audio or keep_alive for this long is closed."""
    resume_window_s: float = Field(default=30.0, ge=0)
    """How long a stream waits for a client that lost its connection and may resume; 0 never waits."""
    outbox: int = Field(default=256, gt=0)
    """Messages that wait for a slow reader before its connection is closed."""
    max_header_bytes: int = Field(default=16_384, ge=1024)
    request_timeout_s: float = Field(default=10.0, gt=0)
    """From the connection to the end of its request's head."""


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
    ensemble_device: str = "auto"
    """Of members and meta-classifier; "auto" is the encoders'."""
    gpu_memory_mb: int = Field(default=0, ge=0)
    """Most memory of the arena of one graph on a GPU; 0 has no limit."""
    conv_search: ConvSearch = "HEURISTIC"
    """How cuDNN chooses a convolution."""
    engine_cache: Path = Path(".medusa/engines")
    """Where TensorRT keeps what it builds."""
    cuda_graphs: tuple[str, ...] = ()
    """Shapes of batches whose encoder passes are recorded and replayed."""
    threads: int = Field(default_factory=default_threads, gt=0)
    whisper_sources: tuple[str, ...] = ()
    trusted_keys: tuple[str, ...] = ()
    """Public keys, of which one must have signed the bundle; none takes any bundle."""
    max_batch_size: int = Field(default=16, gt=0)
    max_queue_delay_ms: float = Field(default=4.0, ge=0)
    max_queue_size: int = Field(default=64, gt=0)
    workers: int = Field(default=2, gt=0)
    shadow: Path | None = None
    """A second bundle, whose results are compared with those of the first and shown to no client."""

    @field_validator("cuda_graphs")
    @classmethod
    def _are_shapes(cls, shapes: tuple[str, ...]) -> tuple[str, ...]:
        if len({FixedShape.parse(shape) for shape in shapes}) < len(shapes):
            raise ValueError("each shape once")
        return shapes

    def gpu(self) -> GpuSettings:
        """As graphs take them."""
        shapes = tuple(map(FixedShape.parse, self.cuda_graphs))
        return GpuSettings(self.gpu_memory_mb, self.conv_search, self.engine_cache, shapes)

    @field_validator("trusted_keys")
    @classmethod
    def _are_keys(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            read_public_key(key)
        return keys


class FleetConfig(_Section):
    """How gateways and workers share the work; see `daemon.fleet.settings` and docs/scale-out.md."""

    capacity: int = Field(default=16, gt=0)
    visibility_s: float = Field(default=10.0, ge=1)
    attempts: int = Field(default=3, gt=0)
    score_timeout_s: float = Field(default=60.0, gt=0)
    expiry_s: int = Field(default=3_600, ge=60)


class TelephonyConfig(_Section):
    """Who may send calls through the doors of carriers and contact centres; see docs/doors.md."""

    public_url: str | None = None
    """Where a carrier reaches us, if a proxy stands between: what it signed is that URL."""
    twilio_auth_token: SecretStr | None = None
    telnyx_auth_token: SecretStr | None = None
    audiohook_keys: dict[str, SecretStr] = {}
    """API key -> client secret, base64."""

    @field_validator("public_url")
    @classmethod
    def _an_address(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if (
                parts.scheme not in ("ws", "wss", "http", "https")
                or not parts.hostname
                or parts.query
                or parts.fragment
            ):
                raise ValueError("an address like wss://voice.example.com, where need be with a path in front of ours")
        return url

    @field_validator("audiohook_keys")
    @classmethod
    def _are_base64(cls, keys: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for key, secret in keys.items():
            try:
                usable = bool(key) and len(base64.b64decode(secret.get_secret_value(), validate=True)) > 0
            except ValueError:
                usable = False
            if not usable:
                raise ValueError("an API key and its client secret, which is base64 and not empty")
        return keys


class AlertRuleConfig(_Section):
    """When to raise an alert; see `daemon.calls.alerts`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_. -]{1,64}$")
    role: str | None = Field(default=None, min_length=1)
    """Whom it looks at; everybody where none is named."""
    emotions: tuple[str, ...] = Field(min_length=1)
    above: float = Field(gt=0, lt=1)
    for_s: float | None = Field(default=None, gt=0)
    utterances: int | None = Field(default=None, gt=0)
    cooldown_s: float = Field(default=60.0, ge=0)

    @field_validator("emotions")
    @classmethod
    def _are_classes(cls, emotions: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in emotions if name not in CLASSES]
        if unknown or len(set(emotions)) < len(emotions):
            raise ValueError(f"different ones of {', '.join(CLASSES)}")
        return emotions

    @model_validator(mode="after")
    def _says_how_long(self) -> Self:
        if (self.for_s is None) == (self.utterances is None):
            raise ValueError("either for_s (seconds of speech) or utterances (how many in a row), not both")
        return self

    def rule(self) -> AlertRule:
        """As the evaluation takes it."""
        speech_ms = None if self.for_s is None else self.for_s * 1000.0
        return AlertRule(
            self.name, self.role, self.emotions, self.above, speech_ms, self.utterances, self.cooldown_s * 1000.0
        )


class AlertsConfig(_Section):
    """Alerts: their rules, and where they go beside Redis and the client."""

    rules: tuple[AlertRuleConfig, ...] = ()
    webhook_url: str | None = None
    """Gets every alert as an HTTP POST."""
    webhook_secret: SecretStr | None = None
    """Signs what is sent."""
    webhook_timeout_s: float = Field(default=5.0, gt=0)
    webhook_attempts: int = Field(default=6, gt=0)
    webhook_queue: int = Field(default=256, gt=0)

    @field_validator("rules")
    @classmethod
    def _have_names(cls, rules: tuple[AlertRuleConfig, ...]) -> tuple[AlertRuleConfig, ...]:
        names = [rule.name for rule in rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"every rule needs a name of its own, {', '.join(twice)} is there twice")
        return rules

    @field_validator("webhook_url")
    @classmethod
    def _a_url(cls, url: str | None) -> str | None:
        if url is not None:
            check_url(url)
        return url

    def webhook(self) -> WebhookSettings | None:
        """As the webhook takes them; None where there is none."""
        if self.webhook_url is None:
            return None
        secret = self.webhook_secret.get_secret_value() if self.webhook_secret else None
        return WebhookSettings(
            self.webhook_url, secret, self.webhook_timeout_s, self.webhook_attempts, self.webhook_queue
        )


class PolicyConfig(_Section):
    """Who is analysed, what is kept of it, and what is written down about who saw it; see docs/compliance.md."""

    analyze: tuple[Annotated[str, Field(pattern=r"^[^\s,][^,\x00-\x1f\x7f]{0,63}$")], ...] = ()
    """Roles; everybody where none is named."""
    transcripts: Transcripts = "full"
    retain_s: int | None = Field(default=None, ge=60)
    """How old events get, whatever `streams` says."""
    audit: bool = True
    audit_retain_s: int = Field(default=190 * 86_400, ge=60)
    audit_maxlen: int = Field(default=100_000, gt=0)


class IceServerConfig(_Section):
    """A STUN or TURN server."""

    urls: tuple[Annotated[str, Field(pattern=_ICE_URL)], ...] = Field(min_length=1)
    username: str | None = None
    credential: SecretStr | None = None

    @model_validator(mode="after")
    def _turn_needs_a_user(self) -> Self:
        relays = any(url.startswith("turn") for url in self.urls)
        if relays and (self.username is None or self.credential is None):
            raise ValueError("a turn: or turns: server needs username and credential")
        return self


class WebrtcConfig(_Section):
    """WHIP; see docs/webrtc.md."""

    ice_servers: tuple[IceServerConfig, ...] = ()
    """Where we learn our own addresses behind a NAT, and where clients do."""
    public_address: IPv4Address | None = None
    """What clients reach us by, where a NAT maps it to this machine port by port."""
    allowed_origins: tuple[Annotated[str, Field(pattern=_ORIGIN)], ...] = ()
    """Of pages that are not ours."""

    def rules(self) -> WhipRules:
        """As the door takes them."""
        servers = [
            IceServer(s.urls, s.username, None if s.credential is None else s.credential.get_secret_value())
            for s in self.ice_servers
        ]
        address = None if self.public_address is None else str(self.public_address)
        return WhipRules(tuple(servers), address, self.allowed_origins)


class Config(BaseSettings):
    """Everything that `medusa-daemon serve` can be told."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_nested_delimiter=_DELIMITER, extra="forbid", frozen=True)

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
        environment = _environment()
        return Config(**_merge(_merge(from_file, environment), given))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        lines = [_mistake(mistake, environment, given) for mistake in error.errors()]
        count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"the configuration has {count}:\n" + "\n".join(lines)) from error
    except SettingsError as error:
        names = ", ".join(_no_json())
        raise ConfigError(f"the environment: {error}, from {names}: it must be JSON: {error.__cause__}") from error


def _environment() -> dict[str, Any]:
    """What `MEDUSA_*` says, unchecked: its mistakes are told together with the others, names that mean nothing too."""
    names = [name[len(_PREFIX) :].lower() for name in os.environ if name.upper().startswith(_PREFIX)]
    known = Config.model_fields
    unknown = {name: "set in the environment" for name in names if name.split(_DELIMITER)[0] not in known}
    return EnvSettingsSource(Config)() | unknown


def _mistake(mistake: ErrorDetails, environment: dict[str, Any], given: dict[str, Any]) -> str:
    """One line: the key, what is wrong, the value, and the variable that said it."""
    loc = tuple(map(str, mistake["loc"]))
    value = mistake["input"]
    shown = (
        "a secret"
        if _secret(loc)
        else f"{without_password(value) if loc == ('redis',) and isinstance(value, str) else value!r:.80}"
    )
    from_environment = _holds(environment, loc) and not _holds(given, loc)
    source = f", from {', '.join(_variables(loc))}" if from_environment else ""
    return f"  {'.'.join(loc)}: {mistake['msg'].removeprefix('Value error, ')} (got {shown}{source})"


def _secret(loc: tuple[str, ...]) -> bool:
    """Whether what stands at `loc` may be a secret: a key that is misspelled holds one as well."""
    if loc[0] == "alerts":
        return len(loc) == 1 or loc[1] not in _SHOWN_ALERTS
    if loc[0] == "access":
        named = loc[3:] if loc[1:2] == ("keys",) else loc[2:] if loc[1:2] == ("jwt",) else loc[1:]
        return not named or named[0] not in _SHOWN_ACCESS
    if loc[0] == "webrtc":
        return len(loc) == 1 or loc[1] not in ("public_address", "allowed_origins")
    return loc[0] == "telephony" and loc != ("telephony", "public_url")


def _holds(values: Any, loc: tuple[str, ...]) -> bool:
    """Whether nested `values` have something at `loc`; positions inside a list count as the list."""
    for name in loc:
        if not isinstance(values, dict):
            break
        if name not in values:
            return False
        values = values[name]
    return True


def _variables(loc: tuple[str, ...]) -> list[str]:
    """The variables that are set for the key at `loc`: its own, else its section's, else those of the keys in it."""
    known = {name.upper(): name for name in os.environ}  # pydantic-settings takes small letters too
    for length in range(len(loc), 0, -1):
        name = _PREFIX + _DELIMITER.join(loc[:length]).upper()
        if name in known:
            return [known[name]]
    below = _PREFIX + _DELIMITER.join(loc).upper() + _DELIMITER
    return sorted(known[name] for name in known if name.startswith(below))


def _no_json() -> list[str]:
    """The variables of sections and lists whose value is no JSON."""
    return [name for name in sorted(os.environ) if _is_compound(name) and not _is_json(os.environ[name])]


def _is_compound(variable: str) -> bool:
    section, _, key = variable.upper().removeprefix(_PREFIX).lower().partition(_DELIMITER)
    field = Config.model_fields.get(section)
    default = field.default if field else None
    return isinstance(getattr(default, key, None) if key else default, BaseModel | tuple | dict)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merge(merged[name], value) if both else value
    return merged
