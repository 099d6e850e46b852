"""Roles that are started by hand: what is refused at once, and how a coordinator takes a signal."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli.main import cli
from penstock.errors import ConfigError

DEADLINE_S = 60


@pytest.fixture
def token(tmp_path: Path) -> str:
    """A token file."""
    cli.main(["cluster", "new-token", str(tmp_path / "token")], standalone_mode=False)
    return str(tmp_path / "token")


@pytest.mark.parametrize("address", ["0.0.0.0:9000", "[::]:9000"])
def test_a_server_at_all_addresses_must_say_by_which_it_is_reached(token: str, address: str) -> None:
    options = ["--join", "127.0.0.1:1", "--listen", address, "--token-file", token, "--allow-plaintext"]
    with pytest.raises(ConfigError, match="--advertise"):
        cli.main(["server", *options], standalone_mode=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_coordinator_takes_a_signal_as_a_request_to_stop(
    tmp_path: Path, token: str, clicks: Path, number: signal.Signals
) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f'[data]\ntrain = "{clicks}"\n[features]\nlabel = "clicked"\ntime = "time"\n'
        f'[output]\npath = "{tmp_path / "model"}"\n'
    )
    options = ["--listen", "127.0.0.1:0", "--token-file", token]
    command = [sys.executable, "-m", "penstock.cli.main", "coordinator", str(job), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening at 127.0.0.1:")
            process.send_signal(number)
            _, err = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == 130
    who = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert err.splitlines()[-1].startswith(f"penstock: stopped by {who}")
