"""The sections of the configuration: what each key may be, and how those who use it take it."""

import base64
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from daemon.calls.alerts import AlertRule
from daemon.calls.webhook import WebhookSettings, check_url
from daemon.engine import default_threads
from daemon.policy import Transcripts
from daemon.transports.whip.rules import IceServer, WhipRules
from model.labels import CLASSES
from model.providers import ConvSearch, FixedShape, GpuSettings
from model.segmenter import Endpointing
from model.signature import read_public_key

_ICE_URL: Final = r"^(stuns?:[^?:@\s]+(:\d{1,5})?|turns?:[^?:@\s]+(:\d{1,5})?(\?transport=(udp|tcp))?)$"
_ORIGIN: Final = r"^(\*|https?://[^/\s]+)$"


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
    """Those included whose clients lost their connections and may resume."""
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
