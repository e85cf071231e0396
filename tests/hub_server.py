"""A small local Hugging Face Hub for tests: what `huggingface_hub` and `datasets` ask for, standard library and PyYAML only.

Speaks the part of the Hub protocol that huggingface_hub 2.4 / transformers 5.23 / datasets 5.2 use for
create_repo, whoami, preupload, commit (ndjson), git-LFS batch + PUT upload, resolve (HEAD/GET), repo info, tree,
paths-info, refs, commits, tags/branches, delete.  Xet is not spoken: clients need HF_HUB_DISABLE_XET=1.

    python hub_server.py --port 8765 --root HUB_ROOT
    HF_ENDPOINT=http://127.0.0.1:8765 HF_TOKEN=hf_test HF_HUB_DISABLE_XET=1 HF_HOME=HOME_DIR python ...
or, in a test:  with HubServer(root) as url: ...
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

DATE = "2026-01-01T00:00:00.000Z"
LFS_PATTERNS = ["*.safetensors", "*.bin", "*.parquet", "*.arrow", "*.pt", "*.ckpt", "*.zip", "*.png", "*.jpg"]
LFS_MIN_SIZE = 10 * 1024 * 1024


def git_blob_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Store:
    """Content-addressed blobs and, per repository, a list of commits {sha, files: {path: (blob, size, lfs)}}."""

    def __init__(self, root: Path):
        self.blobs = root / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.index = root / "index.json"
        self.lock = threading.RLock()
        self.repos: dict[str, dict] = json.loads(self.index.read_text()) if self.index.exists() else {}

    def save(self) -> None:
        self.index.write_text(json.dumps(self.repos))

    def put(self, data: bytes) -> str:
        sha = hashlib.sha256(data).hexdigest()
        path = self.blobs / sha
        if not path.exists():
            path.write_bytes(data)
        return sha

    def create(self, key: str, private: bool) -> bool:
        with self.lock:
            if key in self.repos:
                return False
            self.repos[key] = {"private": private, "commits": {}, "branches": {}, "tags": {}}
            attributes = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in LFS_PATTERNS).encode()
            blob = self.put(attributes)
            files = {
                ".gitattributes": {"blob": blob, "size": len(attributes), "oid": git_blob_oid(attributes), "lfs": False}
            }
            self.commit(key, "main", files, "initial commit")
            return True

    def commit(self, key: str, branch: str, files: dict, message: str) -> str:
        with self.lock:
            repo = self.repos[key]
            parent = repo["branches"].get(branch)
            if parent is not None and repo["commits"][parent]["files"] == files:
                return parent  # nothing changed: the Hub answers with the head, too
            payload = json.dumps([key, parent, sorted(files.items()), message, len(repo["commits"])])
            sha = hashlib.sha1(payload.encode()).hexdigest()
            repo["commits"][sha] = {"parent": parent, "files": files, "message": message}
            repo["branches"][branch] = sha
            self.save()
            return sha

    def resolve(self, key: str, revision: str) -> str | None:
        repo = self.repos[key]
        for name in (revision, revision.removeprefix("refs/heads/"), revision.removeprefix("refs/tags/")):
            sha = repo["branches"].get(name) or repo["tags"].get(name)
            if sha:
                return sha
        hits = [s for s in repo["commits"] if len(revision) >= 7 and s.startswith(revision)]
        return hits[0] if len(hits) == 1 else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store
    token: str | None = None
    user: str = "user"
    log: list[str]

    # ---------------------------------------------------------------- plumbing
    def log_message(self, *args) -> None:
        pass

    def reply(self, status: int, body: bytes | dict | list | str = b"", headers: dict | None = None) -> None:
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        elif isinstance(body, str):
            body = body.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fail(self, status: int, code: str, message: str, headers: dict | None = None) -> None:
        self.reply(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        path = url.path
        data = self.body() if self.command in ("POST", "PUT", "DELETE") else b""
        authorized = self.token is None or self.headers.get("Authorization") == f"Bearer {self.token}"
        try:
            for method, pattern, name in ROUTES:
                if method == self.command or (method == "GET" and self.command == "HEAD"):
                    if match := re.fullmatch(pattern, path):
                        self.log.append(f"{self.command} {name}")
                        if (
                            method in ("POST", "DELETE")
                            and "/lfs/" not in path
                            and name not in ("paths_info", "validate_yaml")
                            and not authorized
                        ):
                            return self.fail(401, "Unauthorized", "Invalid username or password.")
                        groups = {k: unquote(v) if v else v for k, v in match.groupdict().items()}
                        return getattr(self, "do_" + name)(data, **groups)
            self.log.append(f"{self.command} UNROUTED {path}")
            self.fail(404, "NotFound", f"no route for {self.command} {path}")
        except Exception as exc:  # a bug here must not look like a hung Hub
            self.log.append(f"{self.command} {path} -> {exc!r}")
            self.fail(500, "ServerError", repr(exc))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def repo(self, kind: str | None, repo: str) -> tuple[str, dict] | None:
        key = f"{(kind or 'models').rstrip('/')}/{repo}"
        if key not in self.store.repos:
            self.fail(404, "RepoNotFound", "Repository not found")
            return None
        return key, self.store.repos[key]

    def files(self, kind: str | None, repo: str, rev: str | None) -> tuple[str, str, dict] | None:
        found = self.repo(kind, repo)
        if found is None:
            return None
        sha = self.store.resolve(found[0], rev or "main")
        if sha is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {rev}")
            return None
        return found[0], sha, found[1]["commits"][sha]["files"]

    # ---------------------------------------------------------------- account and repositories
    def do_whoami(self, data) -> None:
        if self.token is not None and self.headers.get("Authorization") != f"Bearer {self.token}":
            return self.fail(401, "Unauthorized", "Invalid credentials in Authorization header")
        self.reply(
            200,
            {
                "type": "user",
                "name": self.user,
                "fullname": self.user,
                "orgs": [],
                "auth": {"type": "access_token", "accessToken": {"role": "write", "displayName": "test"}},
            },
        )

    def do_create(self, data) -> None:
        body = json.loads(data)
        repo = f"{body.get('organization') or self.user}/{body['name']}"
        kind = f"{body.get('type') or 'model'}s"
        base = f"http://{self.headers['Host']}"
        url = f"{base}/{repo}" if kind == "models" else f"{base}/{kind}/{repo}"
        if not self.store.create(f"{kind}/{repo}", body.get("visibility") == "private" or bool(body.get("private"))):
            return self.reply(409, {"error": "You already created this repo", "url": url, "name": repo})
        self.reply(200, {"url": url, "name": repo, "id": repo})

    def do_delete_repo(self, data) -> None:
        body = json.loads(data)
        key = f"{body.get('type') or 'model'}s/{body.get('organization') or self.user}/{body['name']}"
        if self.store.repos.pop(key, None) is None:
            return self.fail(404, "RepoNotFound", "Repository not found")
        self.store.save()
        self.reply(200, {})

    def do_info(self, data, kind, repo, rev=None) -> None:
        found = self.files(kind, repo, rev)
        if found is None:
            return
        key, sha, files = found
        card: dict = {}
        if "README.md" in files:
            text = (self.store.blobs / files["README.md"]["blob"]).read_text()
            if match := re.match(r"---\s*\n(.*?)\n---", text, re.S):
                card = yaml.safe_load(match[1]) or {}
        siblings = [
            {"rfilename": p, **({"size": f["size"], "blobId": f["oid"]} if self.query.get("blobs") else {})}
            for p, f in sorted(files.items())
        ]
        tags = card.get("tags") or []
        self.reply(
            200,
            {
                "_id": sha[:24],
                "id": repo,
                "modelId": repo,
                "author": repo.split("/")[0],
                "sha": sha,
                "lastModified": DATE,
                "createdAt": DATE,
                "private": self.store.repos[key]["private"],
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": tags,
                "cardData": card,
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "siblings": siblings,
                "usedStorage": sum(f["size"] for f in files.values()),
            },
        )

    # ---------------------------------------------------------------- reading
    def entry(self, path: str, file: dict) -> dict:
        out = {"type": "file", "path": path, "size": file["size"], "oid": file["oid"]}
        if file["lfs"]:
            out["lfs"] = {"oid": file["blob"], "size": file["size"], "pointerSize": 134}
        if str(self.query.get("expand", "")).lower() in ("1", "true"):
            out["lastCommit"] = {"id": "0" * 40, "title": "", "date": DATE}
        return out

    def folder(self, path: str) -> dict:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}

    def do_tree(self, data, kind, repo, rev, path=None) -> None:
        found = self.files(kind, repo, rev)
        if found is None:
            return
        files, prefix = found[2], (path.strip("/") + "/") if path and path.strip("/") else ""
        inside = {p: f for p, f in files.items() if p.startswith(prefix)}
        if prefix and not inside:
            return self.fail(404, "EntryNotFound", f"{path} does not exist on {rev}")
        recursive = str(self.query.get("recursive", "")).lower() in ("1", "true")
        out, folders = [], set()
        for p, f in sorted(inside.items()):
            parts = p[len(prefix) :].split("/")
            for i in range(1, len(parts) if recursive else min(2, len(parts))):
                folders.add(prefix + "/".join(parts[:i]))
            if recursive or len(parts) == 1:
                out.append(self.entry(p, f))
        self.reply(200, [self.folder(d) for d in sorted(folders)] + out)

    def do_paths_info(self, data, kind, repo, rev) -> None:
        found = self.files(kind, repo, rev)
        if found is None:
            return
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(data)["paths"]
        else:
            paths = parse_qs(data.decode()).get("paths", [])
        files, out = found[2], []
        for p in paths:
            if p in files:
                out.append(self.entry(p, files[p]))
            elif any(q.startswith(p.rstrip("/") + "/") for q in files):
                out.append(self.folder(p))
        self.reply(200, out)

    def do_refs(self, data, kind, repo) -> None:
        found = self.repo(kind, repo)
        if found is None:
            return
        ref = lambda folder, items: [
            {"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": s} for n, s in items.items()
        ]  # noqa: E731
        self.reply(
            200,
            {
                "branches": ref("heads", found[1]["branches"]),
                "tags": ref("tags", found[1]["tags"]),
                "converts": [],
                "pullRequests": [],
            },
        )

    def do_commits(self, data, kind, repo, rev) -> None:
        found = self.files(kind, repo, rev)
        if found is None:
            return
        commits, sha, out = self.store.repos[found[0]]["commits"], found[1], []
        while sha:
            out.append(
                {
                    "id": sha,
                    "title": commits[sha]["message"],
                    "message": "",
                    "date": DATE,
                    "authors": [{"user": self.user}],
                }
            )
            sha = commits[sha]["parent"]
        self.reply(200, out)

    def do_resolve(self, data, repo, rev, path, kind=None) -> None:
        found = self.files(kind, repo, rev)
        if found is None:
            return
        _, sha, files = found
        if path not in files:
            return self.fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": sha})
        file = files[path]
        etag = f'"{file["blob"] if file["lfs"] else file["oid"]}"'
        headers = {
            "X-Repo-Commit": sha,
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if file["lfs"]:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(file["size"])}
        if self.command == "HEAD":
            return self.reply(200, b"", headers | {"Content-Length": str(file["size"])})
        blob = (self.store.blobs / file["blob"]).read_bytes()
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "")):
            if match[1]:
                start, end = int(match[1]), int(match[2] or len(blob) - 1)
            else:
                start, end = max(0, len(blob) - int(match[2])), len(blob) - 1
            end = min(end, len(blob) - 1)
            if start >= len(blob):
                return self.reply(416, b"", {"Content-Range": f"bytes */{len(blob)}"})
            return self.reply(
                206, blob[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(blob)}"}
            )
        self.reply(200, blob, headers)

    # ---------------------------------------------------------------- writing
    def do_preupload(self, data, kind, repo, rev) -> None:
        found = self.files(kind, repo, rev)
        if found is None:
            return
        out = []
        for f in json.loads(data)["files"]:
            lfs = f["size"] >= LFS_MIN_SIZE or any(fnmatch.fnmatch(Path(f["path"]).name, p) for p in LFS_PATTERNS)
            old = found[2].get(f["path"])
            out.append(
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    **({"oid": old["blob"] if old["lfs"] else old["oid"]} if old else {}),
                }
            )
        self.reply(200, {"files": out})

    def do_commit(self, data, kind, repo, rev) -> None:
        found = self.files(kind, repo, rev)
        if found is None:
            return
        key, head, files = found
        files, message = dict(files), ""
        for line in filter(None, data.split(b"\n")):
            item = json.loads(line)
            op, value = item["key"], item["value"]
            if op == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    return self.fail(
                        412, "PreconditionFailed", "A commit has happened since. Please refresh and try again."
                    )
            elif op == "file":
                blob = base64.b64decode(value["content"])
                files[value["path"]] = {
                    "blob": self.store.put(blob),
                    "size": len(blob),
                    "oid": git_blob_oid(blob),
                    "lfs": False,
                }
            elif op == "lfsFile":
                stored = self.store.blobs / value["oid"]
                if not stored.exists():
                    return self.fail(400, "BadRequest", f"LFS pointer {value['oid']} points to a missing object")
                size = stored.stat().st_size
                pointer = (
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {size}\n".encode()
                )
                files[value["path"]] = {"blob": value["oid"], "size": size, "oid": git_blob_oid(pointer), "lfs": True}
            elif op == "deletedFile":
                files.pop(value["path"], None)
            elif op == "deletedFolder":
                files = {p: f for p, f in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
            else:
                return self.fail(400, "BadRequest", f"unknown commit operation {op}")
        sha = self.store.commit(key, rev, files, message)
        base = f"http://{self.headers['Host']}"
        prefix = "" if kind == "models" else f"{kind}/"
        self.reply(
            200,
            {"success": True, "commitOid": sha, "commitUrl": f"{base}/{prefix}{repo}/commit/{sha}", "hookOutput": ""},
        )

    def do_lfs_batch(self, data, repo, kind=None) -> None:
        if self.repo(kind, repo) is None:
            return
        base, out = f"http://{self.headers['Host']}", []
        for obj in json.loads(data)["objects"]:
            entry = {"oid": obj["oid"], "size": obj["size"], "authenticated": True}
            if not (self.store.blobs / obj["oid"]).exists():
                entry["actions"] = {"upload": {"href": f"{base}/lfs/{obj['oid']}", "header": {}}}
            out.append(entry)
        self.reply(200, {"transfer": "basic", "objects": out}, {"Content-Type": "application/vnd.git-lfs+json"})

    def do_lfs_put(self, data, oid) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            return self.fail(400, "BadRequest", "sha256 mismatch")
        self.store.put(data)
        self.reply(200)

    def do_set_ref(self, data, kind, repo, what, name) -> None:
        found = self.repo(kind, repo)
        if found is None:
            return
        table = found[1]["tags" if what == "tag" else "branches"]
        if self.command == "DELETE":
            table.pop(name, None)
        else:
            body = json.loads(data or b"{}")
            new, start = (body["tag"], name) if what == "tag" else (name, body.get("startingPoint") or "main")
            if new in table:
                return self.fail(409, "Conflict", "Reference already exists")
            sha = self.store.resolve(found[0], start)
            if sha is None:
                return self.fail(404, "RevisionNotFound", f"Invalid rev id: {start}")
            table[new] = sha
        self.store.save()
        self.reply(200, {})

    def do_settings(self, data, kind, repo) -> None:
        self.reply(200, json.loads(data or b"{}"))

    def do_validate_yaml(self, data) -> None:
        self.reply(200, {"errors": [], "warnings": []})


KIND = r"(?P<kind>models|datasets|spaces)"
REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete_repo"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", rf"/api/{KIND}/{REPO}", "info"),
    ("GET", rf"/api/{KIND}/{REPO}/revision/(?P<rev>.+)", "info"),
    ("GET", rf"/api/{KIND}/{REPO}/tree/(?P<rev>[^/]+)(?P<path>/.*)?", "tree"),
    ("POST", rf"/api/{KIND}/{REPO}/paths-info/(?P<rev>[^/]+)", "paths_info"),
    ("GET", rf"/api/{KIND}/{REPO}/refs", "refs"),
    ("GET", rf"/api/{KIND}/{REPO}/commits/(?P<rev>[^/]+)", "commits"),
    ("POST", rf"/api/{KIND}/{REPO}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"/api/{KIND}/{REPO}/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", rf"/api/{KIND}/{REPO}/(?P<what>tag|branch)/(?P<name>[^/]+)", "set_ref"),
    ("DELETE", rf"/api/{KIND}/{REPO}/(?P<what>tag|branch)/(?P<name>[^/]+)", "set_ref"),
    ("PUT", rf"/api/{KIND}/{REPO}/settings", "settings"),
    ("POST", rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("GET", rf"/(?:(?P<kind>datasets|spaces)/)?{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", rf"/api/resolve-cache/(?P<kind>models|datasets|spaces)/{REPO}/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
]


class HubServer:
    """Context manager: serves `root` on a free port of 127.0.0.1; `.log` lists the endpoints that were hit."""

    def __init__(self, root: str | Path, port: int = 0, token: str | None = None, user: str = "user"):
        self.log: list[str] = []
        handler = type("H", (Handler,), {"store": Store(Path(root)), "token": token, "user": user, "log": self.log})
        self.httpd = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        self.thread = threading.Thread(target=self.httpd.serve_forever, daemon=True)

    def __enter__(self) -> "HubServer":
        self.thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--root", default="HUB_ROOT")
    parser.add_argument("--token", default=None)
    args = parser.parse_args()
    server = HubServer(args.root, args.port, args.token)
    print(server.url, flush=True)
    server.httpd.serve_forever()
