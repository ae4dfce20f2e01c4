"""A hub on 127.0.0.1 for the real huggingface_hub client: repositories from folders, revisions, gates, broken lines.

What it answers follows the client that is installed: ``/api/models/REPO/revision/REV``, ``/api/models/REPO/tree/REV``,
``/api/datasets/...``, and ``/REPO/resolve/REV/FILE`` with ETag, X-Repo-Commit and Range.
"""

import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LARGE_BYTES = 4096
"""Files from this size on are LFS files: their ETag is their SHA-256."""
TOKEN = "hf_canaryCanaryCanaryCanaryCanary"


@dataclass
class Repository:
    """A repository of models or data sets."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gate: str | None = None
    """None; ``token``: whoever is logged in; ``terms``: nobody, as the terms were not accepted."""

    def commit_of(self, revision: str) -> str | None:
        return self.names.get(revision, revision if revision in self.commits else None)


class Hub:
    """The repositories, what was asked of them, and what is to go wrong."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: Counter[str] = Counter()
        self.ranges: list[tuple[str, str]] = []
        self.authorised: set[str] = set()
        self.broken: dict[str, list[int]] = {}
        """By file name: after how many bytes the line breaks, for each of the next requests."""
        self.wrong: dict[str, bytes] = {}
        """By file name: what is sent instead, of the same size."""
        self.stalled: set[str] = set()
        """Names of files of which a first part is sent, and then nothing."""
        self.has_stalled = threading.Event()
        self.endpoint = ""

    def push(self, kind: str, name: str, folder: Path, branch: str = "main") -> str:
        """Add a commit with the files of ``folder`` to a repository of ``models`` or ``datasets``; return its hash."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        repository = self.repositories.setdefault((kind, name), Repository())
        about = repr(sorted((path, hashlib.sha1(content).hexdigest()) for path, content in files.items()))
        commit = hashlib.sha1(f"{name}{about}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.names[branch] = commit
        return commit

    def repository(self, kind: str, name: str) -> Repository:
        return self.repositories[kind, name]


@contextmanager
def hub() -> Iterator[Hub]:
    """Serve an empty hub."""
    content = Hub()

    class Handler(_Handler):
        hub = content

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    content.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield content
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that were killed."""


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(with_body=True, body=body)

    def _answer(self, with_body: bool, body: bytes = b"") -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests[f"{self.command} {path}"] += 1
        if authorization := self.headers.get("Authorization"):
            self.hub.authorised.add(authorization)
        try:
            if found := re.fullmatch(
                r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?", path
            ):
                self._api(*found.groups(), body)
            elif found := re.fullmatch(r"/(datasets/)?(.+)/resolve/([^/]+)/(.+)", path):
                self._file("datasets" if found[1] else "models", *found.groups()[1:], with_body)
            else:
                raise _Refused(404, "", f"no such page {path}")
        except _Refused as refused:
            self._send_json({"error": str(refused)}, refused.status, refused.code, str(refused), with_body)

    def _find(self, kind: str, name: str, revision: str) -> tuple[Repository, str]:
        repository = self.hub.repositories.get((kind, name))
        if repository is None:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        commit = repository.commit_of(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    def _api(
        self, kind: str, name: str, what: str | None, revision: str | None, below: str | None, body: bytes
    ) -> None:
        repository, commit = self._find(kind, name, revision or "main")
        files = repository.commits[commit]
        if what == "tree":
            below = (below or "").strip("/")
            if below and not any(path.startswith(f"{below}/") for path in files):
                raise _Refused(404, "EntryNotFound", f"{below} does not exist")
            inside = {
                path: path.removeprefix(f"{below}/") for path in files if not below or path.startswith(f"{below}/")
            }
            deep = "recursive=true" in self.path.lower()
            folders = {
                path[: -len(rest) + rest.index("/")] for path, rest in inside.items() if "/" in rest and not deep
            }
            entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
            entries += [self._entry(path, files[path]) for path in sorted(inside) if deep or "/" not in inside[path]]
            self._send_json(entries)
        elif what == "paths-info":
            asked = urllib.parse.parse_qs(body.decode()) if not body.startswith(b"{") else json.loads(body)
            self._send_json([self._entry(path, files[path]) for path in asked.get("paths", []) if path in files])
        else:
            about = {"id": name, "sha": commit, "private": False, "gated": "manual" if repository.gate else False}
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._send_json({**about, "tags": [], "siblings": siblings, "downloads": 0, "likes": 0})

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git}
        if len(content) >= LARGE_BYTES:
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        return entry

    def _file(self, kind: str, name: str, revision: str, path: str, with_body: bool) -> None:
        repository, commit = self._find(kind, name, revision)
        if repository.gate == "token" and not self.headers.get("Authorization"):
            raise _Refused(401, "GatedRepo", f"Access to {name} is restricted. Please log in.")
        if repository.gate == "terms":
            raise _Refused(403, "GatedRepo", f"Access to {name} is restricted; you are not in the authorized list.")
        content = repository.commits[commit].get(path)
        if content is None:
            raise _Refused(404, "EntryNotFound", f"Entry not found: {path}")
        entry = self._entry(path, content)
        content = self.hub.wrong.get(path, content)
        status, start = 200, 0
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            status, start = 206, int(found[1])
            if with_body:
                self.hub.ranges.append((path, self.headers["Range"]))
        rest = content[start:]
        self.send_response(status)
        self.send_header("ETag", f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not with_body:
            return
        if path in self.hub.stalled:
            self.wfile.write(rest[:1000])
            self.wfile.flush()
            self.hub.has_stalled.set()
            while path in self.hub.stalled:
                time.sleep(0.05)
            return
        if breaks := self.hub.broken.get(path):
            self.wfile.write(rest[: breaks.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(rest)

    def _send_json(
        self, content: Any, status: int = 200, code: str = "", message: str = "", with_body: bool = True
    ) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
        self.end_headers()
        if with_body:
            self.wfile.write(body)
