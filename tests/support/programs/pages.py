"""A small web site of another origin: it serves an empty page and the browser client."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from tests.support.programs.servers import CHECKOUT

CLIENT = CHECKOUT / "realtime" / "static" / "realtime" / "realtime.js"


class OtherSite:
    """A server on a free port of 127.0.0.1 alias `localhost`. It stops at the end of its block."""

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    def origin(self, host: str) -> str:
        return f"http://{host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/realtime.js":
            self._answer("text/javascript", CLIENT.read_bytes())
        else:
            self._answer("text/html", b"<!doctype html><title>Another site</title><p>Hello.</p>")

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
