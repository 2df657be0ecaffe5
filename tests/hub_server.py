"""A stand-in of a hub: the part of its HTTP interface that huggingface_hub uses for a repository of a model."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"


class HubServer(ThreadingHTTPServer):
    """Repositories in memory: name -> commits (id, path -> content), the newest last. `private`: names that a token is needed for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.objects: dict[str, bytes] = {}  # Large files by sha256, before and after they are committed
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes]) -> str:
        """Add a commit that holds exactly these files and return its id."""
        commits = self.repositories.setdefault(name, [])
        commits.append((hashlib.sha1(f"{name}{len(commits)}".encode()).hexdigest(), files))
        return commits[-1][0]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD  # noqa: N815

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = b"".join(iter(self.read_chunk, b""))
        with self.server.lock:
            self.server.requests.append(f"{self.command} {path}")
            for pattern, method in ROUTES:
                if found := re.fullmatch(pattern, f"{self.command} {path}"):
                    return method(self, *found.groups())
        return self.send(404, {"error": f"the stand-in has no {self.command} {path}"})

    def read_chunk(self) -> bytes:
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def send(self, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def find(self, name: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        """Return a commit and its files, or send the error of the hub."""
        commits = self.server.repositories.get(name, [])
        if not commits or (name in self.server.private and not self.allowed()):
            self.send(401 if not self.allowed() else 404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        found = commits[-1] if revision == "main" else next((commit for commit in commits if commit[0] == revision), None)
        if found is None:
            self.send(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return found

    def create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self.allowed():
            return self.send(401, {"error": "Invalid username or password."}, X_Error_Message="Invalid credentials in Authorization header")
        known = name in self.server.repositories
        if not known:
            self.server.commit(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
            self.server.private |= {name} if asked.get("visibility") == "private" else set()
        return self.send(409 if known else 200, {"url": f"{self.server.url}/{name}", "name": name})

    def check_yaml(self) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def info(self, name: str, revision: str = "main") -> None:
        if found := self.find(name, revision):
            self.send(200, {"id": name, "sha": found[0], "siblings": [{"rfilename": path} for path in found[1]], "tags": []})

    def tree(self, name: str, revision: str) -> None:
        if found := self.find(name, revision):
            self.send(200, [self.describe(path, content) for path, content in found[1].items()])

    def describe(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry | ({"lfs": large} if path.endswith(".safetensors") else {})

    def preupload(self, name: str, revision: str) -> None:
        if found := self.find(name, revision):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": git_oid(found[1][one["path"]]) if one["path"] in found[1] else None,
                }
                for one in json.loads(self.body)["files"]
            ]
            self.send(200, {"files": files})

    def batch(self, name: str) -> None:
        wanted = json.loads(self.body)["objects"]
        for one in wanted:
            if one["oid"] not in self.server.objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/objects/{one['oid']}"}}
        self.send(200, {"transfer": "basic", "objects": wanted})

    def put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid, self.path
        self.server.objects[oid] = self.body
        self.send(200, {})

    def commit(self, name: str, revision: str) -> None:
        found = self.find(name, revision)
        if found is None or not self.allowed():
            return None if found is None else self.send(403, {"error": "no write access"})
        files = dict(found[1])
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                assert key == "header", line
        made = self.server.commit(name, files)
        return self.send(200, {"commitUrl": f"{self.server.url}/{name}/commit/{made}", "commitOid": made})

    def resolve(self, name: str, revision: str, path: str) -> None:
        if found := self.find(name, revision):
            if path not in found[1]:
                return self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=found[0])
            content = found[1][path]
            large = path.endswith(".safetensors")
            etag = hashlib.sha256(content).hexdigest() if large else git_oid(content)
            return self.send(200, content, ETag=f'"{etag}"', X_Repo_Commit=found[0])
        return None


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.check_yaml),
    (rf"GET /api/models/{NAME}", Handler.info),
    (rf"GET /api/models/{NAME}/revision/([\w.-]+)", Handler.info),
    (rf"GET /api/models/{NAME}/tree/([\w.-]+)", Handler.tree),
    (rf"POST /api/models/{NAME}/preupload/([\w.-]+)", Handler.preupload),
    (rf"POST /api/models/{NAME}/commit/([\w.-]+)", Handler.commit),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /objects/(\w+)", Handler.put),
    (rf"(?:HEAD|GET) /{NAME}/resolve/(\w+)/(.+)", Handler.resolve),
]


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run the stand-in in a thread for the length of a block."""
    server = HubServer()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
