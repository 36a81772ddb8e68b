"""Files over HTTP on 127.0.0.1, from a thread: for tests whose clients block.

Needs the standard library only, as `make test-sdk` uses it too.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """What is served: bodies, or a status without a body, by path."""

    answers: dict[str, bytes | int] = field(default_factory=dict)
    port: int = 0

    def url(self, path: str) -> str:
        """Return the address of a path, whether anything is there or not."""
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def file_server(answers: dict[str, bytes | int]) -> Iterator[FileServer]:
    """Serve while the block lasts."""
    files = FileServer(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = files.answers.get(self.path, 404)
            body = b"" if isinstance(found, int) else found
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        files.port = serving.server_address[1]
        thread = threading.Thread(target=serving.serve_forever, name="file server")
        thread.start()
        try:
            yield files
        finally:
            serving.shutdown()
            thread.join()
