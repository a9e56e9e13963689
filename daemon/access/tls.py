"""The certificate: TLS 1.2 or newer, read again when its files change; connections that are open keep what they have."""

import asyncio
import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from daemon.errors import ConfigError

_EVERY_S: Final = 5.0
_SOON_DAYS: Final = 14

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files: the certificate with its chain, and its key."""

    cert: Path
    key: Path

    def load_into(self, context: ssl.SSLContext) -> None:
        """Makes new connections of a context use them.

        Raises:
            ConfigError: if they are no certificate and its key.
        """
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"cannot use the certificate {self.cert} with the key {self.key}: {error}; they must be PEM files, "
                "of the same key pair, without a password"
            ) from error

    def ends(self) -> datetime:
        """When the certificate ends.

        Raises:
            ConfigError: if there is none in the file.
        """
        try:
            return x509.load_pem_x509_certificate(self.cert.read_bytes()).not_valid_after_utc
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read the certificate {self.cert}: {error}") from error

    def stamp(self) -> object:
        """What changes when a file does; None while one is not there."""
        try:
            return [(found.st_mtime_ns, found.st_size, found.st_ino) for found in (self.cert.stat(), self.key.stat())]
        except OSError:
            return None


def tls_context(files: CertificateFiles) -> ssl.SSLContext:
    """A server's context.

    Raises:
        ConfigError: if the files cannot be used, or the certificate has ended.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    files.load_into(context)
    if (ended := files.ends()) < datetime.now(UTC):
        raise ConfigError(f"the certificate {files.cert} ended on {ended:%Y-%m-%d}: nobody would trust it")
    return context


async def keep_fresh(context: ssl.SSLContext, files: CertificateFiles, every_s: float = _EVERY_S) -> None:
    """Reads the files again when they change, for as long as it runs; what cannot be used is told, and the old stays."""
    stamp = files.stamp()
    while True:
        await asyncio.sleep(every_s)
        found = files.stamp()
        if found == stamp or found is None:
            continue
        stamp = found
        try:
            await asyncio.to_thread(files.load_into, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            files.load_into(context)
        except ConfigError as error:
            _log.error("the certificate read before stays in use: %s", error)
        else:
            _log.info("the certificate was read again; it ends on %s", files.ends().date())


def described(files: CertificateFiles) -> str:
    """Where the certificate is and when it ends.

    Raises:
        ConfigError: if it cannot be used.
    """
    tls_context(files)
    ends = files.ends()
    days = (ends - datetime.now(UTC)).days
    return f"{files.cert}, ends on {ends:%Y-%m-%d}, in {days} days" + (": renew it" if days < _SOON_DAYS else "")


def _no_password() -> str:
    """Else OpenSSL would ask at the terminal, and wait."""
    return ""
