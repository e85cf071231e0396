"""A Hugging Face Hub in one file for tests: the part of the protocol that pushing and loading use.

    with HubServer(token="hf_test") as hub:
        subprocess.run([...], env=os.environ | hub.environment(tmp_path))

Clients read their settings when they are imported, so they run in processes of their own. Repositories
live in memory; Xet is not spoken.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

DATE = "2026-01-01T00:00:00.000Z"
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.parquet", "*.pt", "*.zip", "*.png", "*.jpg")


@dataclass(frozen=True)
class File:
    """A stored file: its content and whether it is kept by git-LFS."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's name of the blob; for LFS that of the pointer."""
        data = self.content
        if self.lfs:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n"
            data = pointer.encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repository:
    """A repository: its commits, of which the last is `main`, each a table of files."""

    private: bool
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, File]) -> str:
        entries = sorted((path, file.oid) for path, file in files.items())
        sha = hashlib.sha1(repr((len(self.commits), entries)).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    @property
    def head(self) -> str:
        return list(self.commits)[-1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def answer(self, status: int, body: object = b"", headers: dict[str, str] | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content))} | (headers or {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        data = self.body() if self.command in ("POST", "PUT", "DELETE") else b""
        method = "GET" if self.command == "HEAD" else self.command
        self.authorized = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        for wanted, pattern, action in ROUTES:
            match = re.fullmatch(pattern, url.path)
            if wanted == method and match and action.__name__ in self.hub.failing:
                return self.fail(self.hub.failing[action.__name__], "Refused", "refused by the test")
            if wanted == method and match:
                if method == "POST" and action not in (Handler.lfs_batch, Handler.validate) and not self.authorized:
                    return self.fail(401, "Unauthorized", "Invalid username or password.")
                return action(self, data, **{name: unquote(value or "") for name, value in match.groupdict().items()})
        return self.fail(404, "NotFound", f"no route for {self.command} {url.path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def find(self, kind: str, repo: str, revision: str = "main") -> tuple[Repository, str, dict[str, File]] | None:
        repository = self.hub.repositories.get(f"{kind or 'models'}/{repo}")
        if repository is None or (repository.private and not self.authorized):
            self.fail(404, "RepoNotFound", "Repository not found")
            return None
        sha = (
            repository.head if revision in ("", "main", "refs/heads/main") else repository.tags.get(revision, revision)
        )
        if sha not in repository.commits:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, sha, repository.commits[sha]

    def whoami(self, data: bytes) -> None:
        if not self.authorized:
            return self.fail(401, "Unauthorized", "Invalid credentials in Authorization header")
        access = {"accessToken": {"role": "write", "displayName": "test"}, "type": "access_token"}
        return self.answer(200, {"type": "user", "name": "user", "fullname": "user", "orgs": [], "auth": access})

    def validate(self, data: bytes) -> None:
        """The rules of the hub for the header of a model's card that are documented."""
        text = json.loads(data)["content"]
        header = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        card = (yaml.safe_load(header[1]) if header else None) or {}
        errors = []
        if not isinstance(card.get("tags", []), list):
            errors.append('"tags" must be an array')
        if card.get("pipeline_tag", "image-classification") not in PIPELINE_TAGS:
            errors.append(f'"pipeline_tag" must be one of {PIPELINE_TAGS}')
        for model in card.get("model-index", []):
            if not isinstance(model.get("name"), str) or not model.get("results"):
                errors.append('"model-index[].name" and "results" are required')
            for result in model.get("results", []):
                if not result.get("task", {}).get("type") or not {"name", "type"} <= set(result.get("dataset", {})):
                    errors.append('"task.type", "dataset.name" and "dataset.type" are required')
                metrics = result.get("metrics", [])
                if not all(isinstance(m.get("type"), str) and isinstance(m.get("value"), float) for m in metrics):
                    errors.append('"metrics[].type" and a numeric "value" are required')
        self.answer(400 if errors else 200, {"errors": [{"message": text} for text in errors], "warnings": []})

    def delete(self, data: bytes) -> None:
        wish = json.loads(data)
        repo = f"{wish.get('type') or 'model'}s/{wish.get('organization') or 'user'}/{wish['name']}"
        if self.hub.repositories.pop(repo, None) is None:
            return self.fail(404, "RepoNotFound", "Repository not found")
        return self.answer(200, {})

    def refs(self, data: bytes, kind: str, repo: str) -> None:
        if (found := self.find(kind, repo)) is None:
            return
        tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in found[0].tags.items()]
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": found[0].head}
        self.answer(200, {"branches": [branch], "tags": tags, "converts": []})

    def tag(self, data: bytes, kind: str, repo: str, revision: str) -> None:
        if (found := self.find(kind, repo, revision)) is None:
            return
        found[0].tags[json.loads(data)["tag"]] = found[1]
        self.answer(200, {})

    def create(self, data: bytes) -> None:
        wish = json.loads(data)
        kind, repo = f"{wish.get('type') or 'model'}s", f"{wish.get('organization') or 'user'}/{wish['name']}"
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo}"
        if f"{kind}/{repo}" in self.hub.repositories:
            return self.answer(409, {"error": "You already created this repo", "url": url, "name": repo})
        private = bool(wish.get("private")) or wish.get("visibility") == "private"
        repository = self.hub.repositories[f"{kind}/{repo}"] = Repository(private)
        repository.commit({".gitattributes": File(b"*.parquet filter=lfs diff=lfs merge=lfs -text\n", False)})
        return self.answer(200, {"url": url, "name": repo, "id": repo})

    def info(self, data: bytes, kind: str, repo: str, revision: str = "main") -> None:
        if (found := self.find(kind, repo, revision)) is None:
            return
        repository, sha, files = found
        card = {}
        if "README.md" in files:
            header = re.match(r"---\s*\n(.*?)\n---", files["README.md"].content.decode(), re.DOTALL)
            card = (yaml.safe_load(header[1]) if header else None) or {}
        siblings = [{"rfilename": path, "size": len(file.content), "blobId": file.oid} for path, file in files.items()]
        answer = {"_id": sha[:24], "id": repo, "author": repo.split("/")[0], "sha": sha, "private": repository.private}
        answer |= {
            "lastModified": DATE,
            "createdAt": DATE,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
        }
        self.answer(200, answer | {"tags": card.get("tags") or [], "cardData": card, "siblings": siblings})

    def tree(self, data: bytes, kind: str, repo: str, revision: str, path: str) -> None:
        if (found := self.find(kind, repo, revision)) is None:
            return
        prefix = path.strip("/") + "/" if path.strip("/") else ""
        inside = {name: file for name, file in found[2].items() if name.startswith(prefix)}
        if prefix and not inside:
            return self.fail(404, "EntryNotFound", f"{path} does not exist on {revision}")
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        folders: dict[str, None] = {}
        entries = []
        for name, file in sorted(inside.items()):
            parts = name[len(prefix) :].split("/")
            folders |= dict.fromkeys(prefix + "/".join(parts[:depth]) for depth in range(1, len(parts)))
            if recursive or len(parts) == 1:
                entry = {"type": "file", "path": name, "size": len(file.content), "oid": file.oid}
                lfs = {"lfs": {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}} if file.lfs else {}
                entries.append(entry | lfs)
        names = [name for name in folders if recursive or "/" not in name[len(prefix) :]]
        oid = hashlib.sha1(b"").hexdigest()
        return self.answer(200, [{"type": "directory", "path": n, "size": 0, "oid": oid} for n in names] + entries)

    def resolve(self, data: bytes, kind: str, repo: str, revision: str, path: str) -> None:
        if (found := self.find(kind, repo, revision)) is None:
            return
        if path not in found[2]:
            return self.fail(404, "EntryNotFound", "Entry not found")
        file = found[2][path]
        etag = f'"{file.sha256 if file.lfs else file.oid}"'
        headers = {"X-Repo-Commit": found[1], "ETag": etag, "Content-Type": "application/octet-stream"}
        headers |= {"Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(len(file.content))}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or self.command == "HEAD":
            return self.answer(200, file.content, headers)
        total = len(file.content)
        start = int(wanted[1]) if wanted[1] else max(0, total - int(wanted[2]))
        end = min(int(wanted[2]), total - 1) if wanted[1] and wanted[2] else total - 1
        headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        return self.answer(206, file.content[start : end + 1], headers)

    def preupload(self, data: bytes, kind: str, repo: str, revision: str) -> None:
        if self.find(kind, repo, revision) is None:
            return
        files = []
        for wish in json.loads(data)["files"]:
            lfs = any(fnmatch.fnmatch(wish["path"].rsplit("/", 1)[-1], pattern) for pattern in LFS_PATTERNS)
            files.append({"path": wish["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False})
        self.answer(200, {"files": files})

    def commit(self, data: bytes, kind: str, repo: str, revision: str) -> None:
        if (found := self.find(kind, repo, revision)) is None:
            return
        repository, _, files = found
        files = dict(files)
        for line in filter(None, data.split(b"\n")):
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                files[value["path"]] = File(self.hub.blobs[value["oid"]], True)
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif item["key"] != "header":
                return self.fail(400, "BadRequest", f"unknown commit operation {item['key']}")
        sha = repository.commit(files)
        url = f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo}/commit/{sha}"
        return self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def lfs_batch(self, data: bytes, kind: str, repo: str) -> None:
        objects = []
        for wish in json.loads(data)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{wish['oid']}", "header": {}}}
            objects.append({"oid": wish["oid"], "size": wish["size"], "authenticated": True, "actions": upload})
        headers = {"Content-Type": "application/vnd.git-lfs+json"}
        self.answer(200, {"transfer": "basic", "objects": objects}, headers)

    def lfs_put(self, data: bytes, oid: str) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            return self.fail(400, "BadRequest", "sha256 mismatch")
        self.hub.blobs[oid] = data
        return self.answer(200)


PIPELINE_TAGS = ("image-classification", "zero-shot-image-classification", "video-classification")
KIND, REPO, REVISION = r"(?P<kind>models|datasets)", r"(?P<repo>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", r"/api/repos/create", Handler.create),
    ("DELETE", r"/api/repos/delete", Handler.delete),
    ("GET", rf"/api/{KIND}/{REPO}/refs", Handler.refs),
    ("POST", rf"/api/{KIND}/{REPO}/tag/{REVISION}", Handler.tag),
    ("GET", rf"/api/{KIND}/{REPO}", Handler.info),
    ("GET", rf"/api/{KIND}/{REPO}/revision/{REVISION}", Handler.info),
    ("GET", rf"/api/{KIND}/{REPO}/tree/{REVISION}(?P<path>/.*)?", Handler.tree),
    ("POST", rf"/api/{KIND}/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"/api/{KIND}/{REPO}/commit/{REVISION}", Handler.commit),
    ("POST", rf"/(?:(?P<kind>datasets)/)?{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_put),
    ("GET", rf"/(?:(?P<kind>datasets)/)?{REPO}/resolve/{REVISION}/(?P<path>.+)", Handler.resolve),
]


class HubServer:
    """Context manager: a hub on a free port of this machine, owned by `user`, whose token is `token`."""

    def __init__(self, token: str = "hf_test") -> None:
        self.token = token
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.failing: dict[str, int] = {}  # name of a `Handler` method to the status it answers with
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def environment(self, home: object) -> dict[str, str]:
        """Variables that make a new process use this hub, with `home` as its cache."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
