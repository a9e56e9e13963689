"""The sections `access` and `tls` of the configuration."""

import re
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from daemon.access.keys import is_digest, read_key
from daemon.access.principal import Limits, Principal, Role
from daemon.access.tokens import Algorithm, TokenRules, VerificationKey, public_key
from daemon.errors import ConfigError

KEY_NAME: Final = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")
_ORIGIN: Final = r"^https?://[^/\s]+$"
_LEAST_SECRET_BYTES: Final = 32
"""Of HMAC-SHA256 (RFC 7518, 3.2)."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Limited(_Section):
    """Limits of one principal; None is no limit."""

    max_streams: int | None = Field(default=None, gt=0)
    max_starts_per_minute: int | None = Field(default=None, gt=0)
    max_stream_s: float | None = Field(default=None, gt=0)
    max_day_s: float | None = Field(default=None, gt=0)

    def limits(self) -> Limits:
        """As accounts take them."""
        return Limits(self.max_streams, self.max_starts_per_minute, self.max_stream_s, self.max_day_s)


class AccessKeyConfig(_Limited):
    """An API key: what it may do, and how it is recognised."""

    sha256: str | None = None
    """Of the key, in hexadecimal, as `medusa-daemon key` prints it."""
    key_file: Path | None = None
    """Or a file that holds the key itself."""
    roles: tuple[Role, ...] = Field(min_length=1)

    @field_validator("sha256")
    @classmethod
    def _a_digest(cls, text: str | None) -> str | None:
        if text is not None and not is_digest(text):
            raise ValueError("64 hexadecimal digits, the SHA-256 of the key, as `medusa-daemon key NAME` prints it")
        return text

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.sha256 is None) == (self.key_file is None):
            raise ValueError("either sha256 or key_file, not both")
        return self

    def digest(self) -> str:
        """SHA-256 of the key.

        Raises:
            ConfigError: if its file holds none.
        """
        if self.key_file is not None:
            return read_key(self.key_file)
        assert self.sha256 is not None
        return self.sha256.lower()


class JwtConfig(_Limited):
    """JSON Web Tokens of an identity provider."""

    algorithms: tuple[Algorithm, ...] = ()
    secret: SecretStr | None = None
    """Of HS256."""
    public_keys: tuple[Path, ...] = ()
    """PEM files, of RS256 and ES256."""
    jwks_file: Path | None = None
    audience: str | None = Field(default=None, min_length=1)
    issuer: str | None = Field(default=None, min_length=1)
    roles_claim: str = Field(default="roles", min_length=1)
    leeway_s: float = Field(default=5.0, ge=0, le=300)

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value().encode()) < _LEAST_SECRET_BYTES:
            raise ValueError(f"a secret of at least {_LEAST_SECRET_BYTES} bytes: a shorter one can be guessed")
        return secret

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        asymmetric = bool(self.public_keys or self.jwks_file)
        if not self.algorithms:
            if asymmetric or self.secret is not None:
                raise ValueError("algorithms is missing: name those of HS256, RS256 and ES256 that tokens may have")
            return self
        if self.audience is None:
            raise ValueError("audience is missing: a token that was made for another service must not be good here")
        if ("HS256" in self.algorithms) != (self.secret is not None):
            raise ValueError("HS256 and secret belong together")
        if ("RS256" in self.algorithms or "ES256" in self.algorithms) != asymmetric:
            raise ValueError("RS256 or ES256 and public_keys or jwks_file belong together")
        return self

    def rules(self) -> TokenRules | None:
        """As the verifier takes them, None where no tokens are taken.

        Raises:
            ConfigError: if a key cannot be used.
        """
        if not self.algorithms or self.audience is None:
            return None
        keys = [public_key(path) for path in self.public_keys]
        for path, key in zip(self.public_keys, keys, strict=True):
            if key.algorithm not in self.algorithms:
                raise ConfigError(f"{path} is a key for {key.algorithm}, which access.jwt.algorithms does not name")
        if self.secret is not None:
            keys.append(VerificationKey("HS256", self.secret.get_secret_value().encode()))
        return TokenRules(
            algorithms=self.algorithms,
            keys=tuple(keys),
            jwks_file=self.jwks_file,
            audience=self.audience,
            issuer=self.issuer,
            roles_claim=self.roles_claim,
            leeway_s=self.leeway_s,
            limits=self.limits(),
        )


class AccessConfig(_Section):
    """Who may use the daemon; see docs/security.md."""

    keys: dict[Annotated[str, Field(pattern=KEY_NAME)], AccessKeyConfig] = {}
    jwt: JwtConfig = JwtConfig()
    token_secret: SecretStr | None = None
    """Signs what we mint; None for one of this process alone."""
    token_ttl_s: int = Field(default=60, gt=0, le=3600)
    session_ttl_s: int = Field(default=28_800, gt=0, le=604_800)
    allowed_origins: tuple[Annotated[str, Field(pattern=_ORIGIN)], ...] = ()
    """Of pages that are not ours."""
    failures_per_minute: int = Field(default=20, gt=0)
    """Wrong credentials that one address may show."""

    @field_validator("token_secret")
    @classmethod
    def _long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value().encode()) < _LEAST_SECRET_BYTES:
            raise ValueError(f"a secret of at least {_LEAST_SECRET_BYTES} bytes: a shorter one can be guessed")
        return secret

    @property
    def required(self) -> bool:
        """Whether anybody needs a key or token."""
        return bool(self.keys or self.jwt.algorithms)

    def principals(self) -> dict[str, Principal]:
        """Whose each key is, by its digest.

        Raises:
            ConfigError: if a key file cannot be used, or a key has two names.
        """
        found: dict[str, Principal] = {}
        for name, key in self.keys.items():
            text = key.digest()
            if text in found:
                raise ConfigError(f"access.keys.{name} is the same key as access.keys.{found[text].name}: make another")
            found[text] = Principal(name, frozenset(key.roles), key.limits())
        return found


class TlsConfig(_Section):
    """Certificate and key, PEM files; they are read again when they change."""

    cert: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together")
        return self
