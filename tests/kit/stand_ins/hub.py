"""A stand-in for the Hugging Face hub: what its clients ask for to download and to commit, from memory."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


class StandInHub:
    """A context manager; `repos` has the files of each repository by name, `commits` the messages of each."""

    def __enter__(self):
        self.repos, self.commits, self.asked = {}, {}, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self, "GET")

            def do_HEAD(self):
                hub.answer(self, "HEAD")

            def do_POST(self):
                hub.answer(self, "POST")

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def put(self, repo, folder):
        """Put the files of a folder into a repository."""
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        self.repos[repo] = {str(path.relative_to(folder)): path.read_bytes() for path in files}

    def sha(self, repo):
        """The commit of a repository's only branch."""
        told = json.dumps({name: hashlib.sha1(data).hexdigest() for name, data in self.repos[repo].items()})
        return hashlib.sha1(told.encode()).hexdigest()

    def answer(self, request, method):
        path = [unquote(part) for part in urlparse(request.path).path.strip("/").split("/")]
        self.asked.append((method, "/".join(path)))
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if path == [""]:
            return _reply(request, {})
        if path[:2] == ["api", "repos"]:
            told = json.loads(body)
            name = "/".join(filter(None, (told.get("organization"), told["name"])))
            self.repos.setdefault(name, {})
            return _reply(request, {"url": f"{self.endpoint}/{name}"})
        if path[:2] == ["api", "validate-yaml"]:
            return _reply(request, {"errors": [], "warnings": []})
        if path[:2] == ["api", "models"]:
            verb, *rest = path[4:] or ["revision", "main"]
            return self._api(request, "/".join(path[2:4]), verb, rest, body)
        return self._file(request, method, "/".join(path[:2]), path[3], "/".join(path[4:]))

    def _api(self, request, repo, verb, rest, body):
        if repo not in self.repos:
            return _refuse(request, 404, "RepoNotFound")
        if rest[0] not in ("main", self.sha(repo)):
            return _refuse(request, 404, "RevisionNotFound")
        files = self.repos[repo]
        if verb == "revision":
            return _reply(
                request, {"id": repo, "sha": self.sha(repo), "siblings": [{"rfilename": n} for n in files]}
            )
        if verb == "tree":
            return _reply(request, [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ])  # fmt: skip
        if verb == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            told = [{"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for p in asked]
            return _reply(request, {"files": told})
        lines = [json.loads(line) for line in body.splitlines()]
        self.commits.setdefault(repo, []).append(lines[0]["value"]["summary"])
        for line in lines[1:]:
            files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        sha = self.sha(repo)
        return _reply(request, {
            "success": True, "commitOid": sha, "hookOutput": "",
            "commitUrl": f"{self.endpoint}/{repo}/commit/{sha}",
        })  # fmt: skip

    def _file(self, request, method, repo, revision, name):
        if repo not in self.repos:
            return _refuse(request, 404, "RepoNotFound")
        if revision not in ("main", self.sha(repo)):
            return _refuse(request, 404, "RevisionNotFound")
        if name not in self.repos[repo]:
            return _refuse(request, 404, "EntryNotFound", commit=self.sha(repo))
        data = self.repos[repo][name]
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.sha(repo)}
        return _reply(request, data, headers, empty=method == "HEAD")


def _refuse(request, status, code, commit=None):
    headers = {"X-Error-Code": code, "X-Error-Message": code}
    if commit is not None:
        headers["X-Repo-Commit"] = commit
    _reply(request, {"error": code}, headers, status=status)


def _reply(request, value, headers=None, *, status=200, empty=False):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    request.send_response(status)
    for name, held in {**(headers or {}), "Content-Length": str(len(data))}.items():
        request.send_header(name, held)
    request.end_headers()
    if not empty and request.command != "HEAD":
        request.wfile.write(data)
