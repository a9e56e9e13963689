"""Whether a request may pass: one decision for HTTP and WebSocket, in one order; sans-IO.

0. its path: one that the table of needs and the routes could read differently is refused
1. its page: cross-site WebSockets and posts are refused, with credentials or without
2. its host: where nobody needs a key, a page that gave its own name our address (DNS rebinding) is refused
3. its URL: a credential in it is refused, and never looked at
4. its address: who failed too often of late waits
5. its credential, and the roles that come with it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal
from urllib.parse import urlsplit

from daemon.access import credentials
from daemon.access.attempts import Attempts
from daemon.access.credentials import Shown
from daemon.access.keys import PREFIX, KeyRing
from daemon.access.minting import Mint
from daemon.access.policy import SIGNED, Need, Special, is_guarded, is_whip, need
from daemon.access.principal import ANYONE, AccessError, Principal
from daemon.access.tokens import MOST_BYTES, TokenVerifier
from daemon.transports.whip.cross_origin import Origins

_WHERE: Final = (
    "it belongs into the header Authorization: Bearer, a pair of WebSocket subprotocols (bearer, TOKEN), or the native "
    "protocol's start message"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as far as it decides.

    Attributes:
        kind: of the request.
        method: of HTTP.
        path: decoded.
        query: as it came.
        headers: names in lower case.
        subprotocols: that a WebSocket offers.
        address: of the client.
    """

    kind: Literal["http", "websocket"]
    method: str
    path: str
    query: bytes
    headers: Mapping[str, str]
    subprotocols: Sequence[str]
    address: str


@dataclass(frozen=True, slots=True)
class GateRules:
    """What the configuration says.

    Attributes:
        required: whether anybody needs a credential.
        signed_doors: paths whose signature secret is configured.
        hosts: names, beside those of this machine's loopback, under which we may be asked without credentials; None for all.
    """

    required: bool
    signed_doors: frozenset[str]
    hosts: frozenset[str] | None


class Gate:
    """Decides.

    Args:
        rules: of the configuration.
        ring: API keys.
        verifier: of JSON Web Tokens, None where none are taken.
        mint: of our own tokens.
        attempts: failures of late.
        origins: pages that may use us, WHIP apart.
    """

    def __init__(
        self,
        rules: GateRules,
        ring: KeyRing,
        verifier: TokenVerifier | None,
        mint: Mint,
        attempts: Attempts,
        origins: Origins,
    ) -> None:
        self.rules = rules
        self.mint = mint
        self.origins = origins
        self.attempts = attempts
        self._ring = ring
        self._verifier = verifier

    def admit(self, asked: Asked) -> Principal:
        """Who asks, if they may.

        Raises:
            AccessError: if they may not.
        """
        wanted = need(asked.kind, asked.method, asked.path)
        _check_path(asked.path)
        if is_guarded(asked.kind, asked.method, asked.path):
            self._check_page(asked)
            _check_url(asked.query)
        if wanted is Special.OPEN or not self.rules.required:
            return ANYONE
        if wanted is Special.SIGNED_DOOR:
            return self._signed(asked)
        shown = self._shown(asked)
        if shown is None:
            raise AccessError(401, "no_credential", f"this needs a key or a token: {_WHERE}")
        return self.allowed(self.identified(shown, asked.address), wanted)

    def identified(self, shown: Shown, address: str) -> Principal:
        """Whose credential that is.

        Args:
            shown: what the client shows.
            address: of the client, whose failures are counted.

        Raises:
            AccessError: if it is nobody's, or the address failed too often.
        """
        self._check_attempts(address)
        try:
            return self._principal(shown)
        except AccessError as error:
            # What a browser sends by itself, or what was good a minute ago, is nobody's guess.
            if error.code == "bad_credential" and not shown.by_cookie:
                self.attempts.failed(address)
            raise

    def allowed(self, principal: Principal, wanted: Need) -> Principal:
        """The same, if they have the role.

        Raises:
            AccessError: if they have not.
        """
        if isinstance(wanted, str) and wanted not in principal.roles:
            roles = ", ".join(sorted(principal.roles)) or "none"
            raise AccessError(403, "no_role", f"this needs the role {wanted}; the credential has {roles}")
        return principal

    def visitor(self, asked: Asked) -> Principal | None:
        """Who asks, None where they show nothing good; a page wants to know before it asks for a key."""
        if not self.rules.required:
            return ANYONE
        shown = self._shown(asked)
        try:
            return None if shown is None else self.identified(shown, asked.address)
        except AccessError:
            return None

    def _principal(self, shown: Shown) -> Principal:
        if len(shown.text) > MOST_BYTES:
            raise AccessError(401, "bad_credential", f"the key or token is longer than {MOST_BYTES} bytes")
        kind = None if shown.text.startswith(PREFIX) else self.mint.kind_of(shown.text)
        if (kind == "session") != shown.by_cookie:
            raise AccessError(401, "bad_credential", "the session has ended, or is no session: sign in again")
        if kind is not None:
            return self._minted(shown.text, kind)
        if (principal := self._ring.find(shown.text)) is not None:
            return principal
        if self._verifier is None or shown.text.count(".") != 2:
            raise AccessError(401, "bad_credential", "the key or token is not known here")
        return self._verifier.principal(shown.text)

    def _minted(self, text: str, kind: Literal["token", "session"]) -> Principal:
        claims = self.mint.read(text, kind)
        owner = self._ring.named(claims.name)
        if owner is None and claims.name.startswith("jwt:") and self._verifier is not None:
            owner = Principal(claims.name, claims.roles, self._verifier.limits, "jwt")
        if owner is None:
            raise AccessError(401, "bad_credential", "the key that the token was made with is gone")
        return Principal(owner.name, owner.roles & claims.roles, owner.limits, kind, claims.expires_at)

    def _shown(self, asked: Asked) -> Shown | None:
        """What the client shows; a cookie counts only where it is our own page that asks."""
        found = credentials.shown(asked.headers, asked.subprotocols)
        if found is None or not found.by_cookie:
            return found
        origin, site = asked.headers.get("origin"), asked.headers.get("sec-fetch-site", "same-origin")
        own = origin is None or not Origins(()).refuses(asked.headers)
        return found if own and site in ("same-origin", "none") else None

    def _signed(self, asked: Asked) -> Principal:
        self._check_attempts(asked.address)
        if asked.path not in self.rules.signed_doors:
            raise AccessError(
                403,
                "door_closed",
                f"{asked.path} is closed: a key is needed everywhere, and {SIGNED[asked.path]} is not configured",
            )
        return Principal(f"door:{asked.path}", frozenset({"ingest"}), kind="door")

    def _check_attempts(self, address: str) -> None:
        if wait_s := self.attempts.wait_s(address):
            message = f"too many wrong credentials came from this address: come back in {wait_s} s"
            raise AccessError(429, "too_many_failures", message, wait_s)

    def _check_page(self, asked: Asked) -> None:
        # The door of WHIP looks at its own.
        if not is_whip(asked.kind, asked.path) and self.origins.refuses(asked.headers):
            origin = asked.headers["origin"]
            raise AccessError(
                403, "bad_origin", f"pages of {origin!r:.200} may not use this: see access.allowed_origins"
            )
        hosts = self.rules.hosts
        if hosts is None or asked.path in SIGNED or asked.path == "/metrics":
            return
        name = _host_name(asked.headers.get("host", ""))
        if not (_is_loopback(name) or name in hosts):
            raise AccessError(
                403,
                "bad_host",
                f"nobody needs a key here, so only this machine may ask, and {name!r:.100} is not its name: configure "
                "access keys, or name the page's address in access.allowed_origins",
            )


def _check_path(path: str) -> None:
    """Routes are regular expressions, in which `$` also matches in front of a line's end: `/whip%0A` would be `/whip`."""
    if any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in path):
        raise AccessError(400, "bad_path", "the path holds control characters, as no path here does")


def _check_url(query: bytes) -> None:
    if (name := credentials.in_url(query)) is not None:
        raise AccessError(
            400, "token_in_url", f"the URL holds a credential ({name!r:.40}), and URLs are kept in logs: {_WHERE}"
        )


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
