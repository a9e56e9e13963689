"""The gate that a configuration describes."""

import time
from typing import Final
from urllib.parse import urlsplit

from daemon.access.attempts import Attempts
from daemon.access.gate import Gate, GateRules
from daemon.access.keys import KeyRing
from daemon.access.minting import Mint
from daemon.access.tls import CertificateFiles
from daemon.access.tokens import TokenVerifier
from daemon.config import Config
from daemon.transports.whip.cross_origin import Origins

OPEN: Final = "none: whoever reaches this address may stream, read and delete calls"


def gate_of(config: Config) -> Gate:
    """A gate with everything that it asks.

    Raises:
        ConfigError: if a key file, a public key or a key set cannot be used.
    """
    access, telephony = config.access, config.telephony
    signed = {
        "/audiohook": bool(telephony.audiohook_keys),
        "/telnyx": telephony.telnyx_auth_token is not None,
        "/twilio": telephony.twilio_auth_token is not None,
    }
    urls = [*access.allowed_origins, *([telephony.public_url] if telephony.public_url else [])]
    hosts = frozenset(urlsplit(url).hostname or "" for url in urls)
    rules = access.jwt.rules()
    secret = access.token_secret
    return Gate(
        GateRules(
            required=access.required,
            signed_doors=frozenset(path for path, configured in signed.items() if configured),
            hosts=None if access.required or config.insecure else hosts,
        ),
        KeyRing(access.principals()),
        None if rules is None else TokenVerifier(rules),
        Mint(None if secret is None else secret.get_secret_value().encode(), time.time),
        Attempts(access.failures_per_minute, time.monotonic),
        Origins(access.allowed_origins),
    )


def certificate_of(config: Config) -> CertificateFiles | None:
    """The files of TLS, None where there is none."""
    tls = config.tls
    return None if tls.cert is None or tls.key is None else CertificateFiles(tls.cert, tls.key)


def described(config: Config) -> str:
    """Who may use the daemon; a line each.

    Raises:
        ConfigError: if a key file, a public key or a key set cannot be used.
    """
    gate_of(config)
    access = config.access
    lines = [f"key {name}: {', '.join(key.roles)}" for name, key in access.keys.items()]
    if access.jwt.algorithms:
        lines.append(f"tokens for {access.jwt.audience}: {', '.join(access.jwt.algorithms)}")
    return "\n".join(lines) if lines else OPEN
