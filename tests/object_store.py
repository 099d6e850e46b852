"""A server that speaks S3, as a process, for tests of what is kept on object stores."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.log.helpers import free_port, until

__all__ = ["bucket", "needs_a_store"]

_missing = [name for name in ("moto", "flask", "s3fs") if importlib.util.find_spec(name) is None]
needs_a_store = [
    pytest.mark.skipif(bool(_missing), reason=f"not installed: {', '.join(_missing)}"),
    # What the store's client warns of is its own business.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket; where it is, the environment says, as it does for users."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    # It says a line for each request, which nobody reads.
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], **quiet) as server:
        until(lambda: _listens(port))
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("bucket")
        try:
            yield "s3://bucket"
        finally:
            server.kill()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
