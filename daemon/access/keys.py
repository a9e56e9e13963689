"""API keys: random, so that their SHA-256 is all that a server has to know of them."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from daemon.access.principal import Principal
from daemon.errors import ConfigError

PREFIX: Final = "mrt_"
"""What scanners for leaked secrets can look for."""
LEAST_CHARACTERS: Final = 32
"""Of keys that somebody else made: a short one could be guessed from its hash."""
_RANDOM_BYTES: Final = 32
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


def new_key() -> str:
    """A fresh key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest(key: str) -> str:
    """What the configuration keeps of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_digest(text: str) -> bool:
    """Whether a text can be a key's SHA-256."""
    return _SHA256.fullmatch(text) is not None


def read_key(path: Path) -> str:
    """The digest of the key that a file holds, as orchestrators mount secrets.

    Raises:
        ConfigError: if it cannot be read, or holds no key.
    """
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the key file {path}: {error}") from error
    if len(key) < LEAST_CHARACTERS or len(key.split()) != 1:
        raise ConfigError(
            f"the key file {path} holds {len(key)} characters; a key is one word of at least {LEAST_CHARACTERS}, "
            "as `medusa-daemon key NAME` makes it"
        )
    return digest(key)


class KeyRing:
    """All keys.

    Args:
        keys: digest -> whose it is.
    """

    def __init__(self, keys: Mapping[str, Principal]) -> None:
        self._keys = {bytes.fromhex(text): principal for text, principal in keys.items()}
        self._names = {principal.name: principal for principal in keys.values()}

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, key: str) -> Principal | None:
        """Whose key it is. Every key is compared, each in constant time, so that the time tells nothing."""
        given = bytes.fromhex(digest(key))
        found = None
        for known, principal in self._keys.items():
            if hmac.compare_digest(known, given):
                found = principal
        return found

    def named(self, name: str) -> Principal | None:
        """Who has that name, None if nobody has it any more."""
        return self._names.get(name)
