"""The cluster's token, and TLS where both sides show a certificate. Takes files, opens no sockets."""

from __future__ import annotations

import secrets
import ssl
import stat
from pathlib import Path
from typing import Final

from penstock.errors import ConfigError

__all__ = ["client_tls", "new_token", "read_token", "server_tls"]

TOKEN_NBYTES: Final = 16
"""The least that a token may have."""
_TOKEN_LIMIT: Final = 4096


def new_token() -> bytes:
    """Return a token of 32 random bytes, as 64 hexadecimal digits that can be kept in a file."""
    return secrets.token_hex(32).encode()


def read_token(path: str | Path) -> bytes:
    """Return the token in a file, without white space at its ends.

    Raises:
        ConfigError: the file is missing, may be read by others than its owner, or has fewer than 16 bytes.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            token = file.read(_TOKEN_LIMIT + 1).strip()
    except OSError as error:
        raise ConfigError(f"token file {path}: cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise ConfigError(f"token file {path}: others may read it (mode {mode:03o}); run: chmod 600 {path}")
    if not TOKEN_NBYTES <= len(token) <= _TOKEN_LIMIT:
        raise ConfigError(
            f"token file {path}: has {len(token)} bytes; expected {TOKEN_NBYTES} to {_TOKEN_LIMIT}, "
            "as of: openssl rand -hex 32"
        )
    return token


def server_tls(cert: str | Path, key: str | Path, ca: str | Path) -> ssl.SSLContext:
    """Return what a listener needs: PEM files of its certificate, its key, and the authority that signs all peers.

    Raises:
        ConfigError: a file is missing, or is not what it should be.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, cert, key, ca)


def client_tls(
    cert: str | Path, key: str | Path, ca: str | Path, *, check_hostname: bool = True
) -> ssl.SSLContext:
    """Return what ``connect`` needs, from PEM files as for ``server_tls``.

    Without ``check_hostname`` any certificate of the authority will do, wherever it is: for an authority that
    signs the members of one cluster and nothing else.

    Raises:
        ConfigError: a file is missing, or is not what it should be.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, cert, key, ca)
    context.check_hostname = check_hostname
    return context


def _context(protocol: int, cert: str | Path, key: str | Path, ca: str | Path) -> ssl.SSLContext:
    for what, path in (("certificate", cert), ("key", key), ("authority", ca)):
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise ConfigError(f"TLS {what} {path}: cannot be read: {error.strerror}") from error
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(cafile=str(ca))
    except ssl.SSLError as error:
        raise ConfigError(f"TLS authority {ca}: no certificates in PEM form ({error.reason})") from error
    try:
        # A password would be asked for on the terminal, where a server may have none.
        context.load_cert_chain(str(cert), str(key), password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConfigError(f"TLS certificate {cert} and key {key}: cannot be used ({reason})") from error
    return context
