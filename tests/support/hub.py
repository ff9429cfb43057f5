"""A stand-in for the hub: it takes uploads as the real one does, and keeps them in memory."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """What was uploaded.

    Attributes:
        address: Its address.
        files: The content of each file by `owner/name/path`.
        created: The requests for new repositories.
        refuses: The status that every upload gets, if it is set.
    """

    def __init__(self) -> None:
        self.files, self.created = dict[str, bytes](), list[dict[str, Any]]()
        self.refuses = 0
        self.address = ""

    def answer(self, path: str, body: bytes, token: str | None) -> tuple[int, dict[str, Any]]:
        """The status and the answer of a request."""
        if token != "Bearer hf_known":
            return 401, {"error": "Invalid credentials in Authorization header"}
        if self.refuses:
            return self.refuses, {"error": "You don't have the rights to create a model under this namespace"}
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.address}/{self.created[-1]['organization']}/{self.created[-1]['name']}"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        repository = path.removeprefix("/api/models/").partition("/preupload/")[0].partition("/commit/")[0]
        if "/preupload/" in path:
            asked = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            return 200, {"files": [{**each, "shouldIgnore": False, "oid": None} for each in asked]}
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.files[f"{repository}/{line['value']['path']}"] = base64.b64decode(line["value"]["content"])
        return 200, {"commitUrl": f"{self.address}/{repository}/commit/1", "commitOid": "1", "success": True}


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub on this machine, for the block."""
    made = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, said = made.answer(self.path, body, self.headers.get("Authorization"))
            text = json.dumps(said).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text))}.items():
                self.send_header(name, value)
            if status >= 400:
                self.send_header("X-Error-Message", str(said["error"]))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
