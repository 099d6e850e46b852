"""``penstock dash``: what it refuses, in one line, before it serves anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from penstock.cli.dash import dash
from penstock.errors import ConfigError, TransportError
from penstock.transport import new_token
from tests.log.helpers import free_port


def refused(*arguments: object) -> str:
    found = CliRunner().invoke(dash, [str(one) for one in arguments]).exception
    assert isinstance(found, ConfigError | TransportError), found
    return str(found)


def test_what_cannot_be(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    assert refused(folder, "--host", "0.0.0.0").startswith("--host 0.0.0.0 can be reached by others")
    assert refused(folder, "--page-tls-cert", "a.pem") == "--page-tls-cert and --page-tls-key belong together"
    assert "allowed: http://host:port" in refused(folder, "--serve", "localhost:8080")
    assert refused(tmp_path / "nowhere").endswith(
        "nowhere: no such folder; name the output of a run, or host:port of a coordinator"
    )
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in refused(file)


def test_a_coordinator_that_is_not_there_or_is_not_ours(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert refused(address) == f"{address}: a coordinator needs --token-file, with the cluster's token"
    token = tmp_path / "token"
    token.write_bytes(new_token() + b"\n")
    token.chmod(0o600)
    assert "nobody listens there" in refused(address, "--token-file", token)


@pytest.mark.parametrize("name", ["run:1", "a/b:7077"])
def test_a_folder_may_look_like_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    found = CliRunner().invoke(dash, [name, "--save", "page.html"])
    assert found.output == "page in page.html\n" and (tmp_path / "page.html").stat().st_size > 10_000
