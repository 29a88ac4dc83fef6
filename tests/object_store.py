"""A real S3 interface on loopback, which can be told to be slow, to fail, and to cut off what it sends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.request import Request, urlopen

import pytest

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


@dataclass
class Fault:
    """What happens to the next ``times`` requests of ``method`` whose path holds ``path``.

    ``status``: answered with it, at once; ``cut``: the answer's body ends after so many bytes, where more were
    announced; ``delay``: seconds before the answer.
    """

    times: int = 1
    method: str = "GET"
    path: str = ""
    status: int | None = None
    cut: int | None = None
    delay: float = 0.0


@dataclass
class Store:
    """A running server: its ``endpoint``, the requests that came (method and path), and the faults to come."""

    endpoint: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def fail(self, **fault: Any) -> Fault:
        """Add a :class:`Fault`."""
        self.faults.append(Fault(**fault))
        return self.faults[-1]

    def _next_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and fault.path in path:
                fault.times -= 1
                return fault
        return None

    def around(self, application: Application) -> Application:
        """The application, with the faults."""

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
            self.requests.append((method, path))
            fault = self._next_fault(method, path)
            if fault is None:
                return application(environ, start_response)
            time.sleep(fault.delay)
            if fault.status is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response(f"{fault.status} Injected", [("Content-Length", "0"), ("Connection", "close")])
                return []
            body = application(environ, start_response)
            return body if fault.cut is None else [b"".join(body)[: fault.cut]]

        return answer


@contextmanager
def serving() -> Iterator[Store]:
    """Serve an empty store with one bucket, ``bucket``, until the block ends."""
    moto = pytest.importorskip("moto.server", reason="no moto: pip install 'llmshearing[dev]'")
    from werkzeug.serving import make_server

    store = Store()
    application = moto.DomainDispatcherApplication(moto.create_backend_app)
    server = make_server("127.0.0.1", 0, store.around(application), threaded=True)
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=store.endpoint,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        urlopen(Request(f"{store.endpoint}/moto-api/reset", method="POST")).close()  # a process has one memory of all
        client.create_bucket(Bucket="bucket")
        store.requests.clear()
        yield store
        client.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def environment(store: Store) -> dict[str, str]:
    """What lets a process find the store."""
    return {
        "S3_ENDPOINT_URL": store.endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
