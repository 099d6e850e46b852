"""Addresses as people write them: ``host:port``, ``[::1]:9000``. Knows which of them stay on this machine."""

from __future__ import annotations

import ipaddress
import socket

from penstock.errors import ConfigError

__all__ = ["format_address", "is_loopback", "parse_address"]


def parse_address(address: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 host stands in brackets.

    Raises:
        ConfigError: there is no host or port, an IPv6 host without brackets, or the port is not 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ConfigError(f"address {address!r}: {host!r} in brackets is no IPv6 address") from error
    elif ":" in host:
        raise ConfigError(f"address {address!r}: write an IPv6 host in brackets, as in [::1]:9000")
    if not colon or not host or not host.isprintable() or "/" in host or " " in host:
        raise ConfigError(f"address {address!r}: expected host:port, as in 127.0.0.1:9000")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"address {address!r}: the port must be a number from 0 to 65535, got {port!r}")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """Return what ``parse_address`` takes."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Say whether all that the host's name stands for is this machine, reached by its loopback interface.

    Raises:
        ConfigError: the name is unknown.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host {host!r}: unknown ({getattr(error, 'strerror', None) or error})") from error
    return all(ipaddress.ip_address(str(each[4][0]).partition("%")[0]).is_loopback for each in found)
