"""Token files, TLS files, addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from penstock.errors import ConfigError
from penstock.transport import (
    client_tls,
    format_address,
    is_loopback,
    new_token,
    parse_address,
    read_token,
    server_tls,
)


def write(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_new_token_can_be_written_and_read(tmp_path: Path) -> None:
    token = new_token()
    assert read_token(write(tmp_path / "token", b" " + token + b"\n")) == token
    assert len(token) == 64 and new_token() != token


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_token_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path / "token", new_token(), mode)
    with pytest.raises(ConfigError, match=rf"others may read it \(mode {mode:o}\); run: chmod 600 {path}"):
        read_token(path)


@pytest.mark.parametrize(("content", "nbytes"), [(b"", 0), (b"x" * 15 + b"\n\n", 15), (b"x" * 5000, 4097)])
def test_a_token_too_short_or_absurdly_long_is_refused(tmp_path: Path, content: bytes, nbytes: int) -> None:
    with pytest.raises(ConfigError, match=f"has {nbytes} bytes; expected 16 to 4096"):
        read_token(write(tmp_path / "token", content))


def test_a_missing_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: cannot be read: No such file"):
        read_token(tmp_path / "nowhere")


@pytest.mark.parametrize("make", [server_tls, client_tls])
def test_tls_files_that_are_missing_or_wrong_are_named(
    make: Any, tmp_path: Path, authority: Any, other_authority: Any
) -> None:
    cert, key = authority.sign("member")
    _, other_key = other_authority.sign("stranger")
    nonsense = write(tmp_path / "nonsense", b"hello")
    make(cert, key, authority.ca)
    with pytest.raises(ConfigError, match=r"TLS key .*nowhere: cannot be read"):
        make(cert, tmp_path / "nowhere", authority.ca)
    with pytest.raises(ConfigError, match=r"TLS authority .*nonsense: no certificates"):
        make(cert, key, nonsense)
    with pytest.raises(ConfigError, match=r"TLS certificate .*nonsense and key .*: cannot be used"):
        make(nonsense, key, authority.ca)
    with pytest.raises(ConfigError, match=r"cannot be used .*MISMATCH"):
        make(cert, other_key, authority.ca)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:9000", "127.0.0.1", 9000),
        ("[::1]:0", "::1", 0),
        ("node-7.example.org:65535", "node-7.example.org", 65535),
    ],
)
def test_addresses(address: str, host: str, port: int) -> None:
    assert parse_address(address) == (host, port)
    assert format_address(host, port) == address


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "expected host:port"),
        ("localhost", "expected host:port"),
        (":9000", "expected host:port"),
        ("http://host:80", "in brackets|expected host:port"),
        ("a b:80", "expected host:port"),
        ("::1:9000", "brackets"),
        ("[::1]", "in brackets|expected host:port|port"),
        ("[host]:9000", "no IPv6 address"),
        ("host:", "from 0 to 65535, got ''"),
        ("host:-1", "from 0 to 65535, got '-1'"),
        ("host:65536", "from 0 to 65535, got '65536'"),
        ("host:٣", "from 0 to 65535"),
    ],
)
def test_bad_addresses_say_why(address: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        parse_address(address)
    assert repr(address) in str(caught.value)


def test_loopback() -> None:
    assert is_loopback("127.0.0.1") and is_loopback("127.8.0.1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.0.2.1")
    with pytest.raises(ConfigError, match=r"'no-such-host.invalid': unknown"):
        is_loopback("no-such-host.invalid")
