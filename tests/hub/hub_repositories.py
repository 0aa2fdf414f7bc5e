"""What the loopback Hub keeps: repositories of commits that never change, branches and tags, large files."""

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LARGE = (".safetensors", ".bin", ".pt", ".pkl")  # what the Hub's first .gitattributes sends to LFS
FIRST_FILES = {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}


class RefusedError(Exception):
    """An answer that is no success: its status, and the Hub's two headers that say why."""

    def __init__(self, status: int, message: str, code: str | None = None, **body: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    files: Mapping[str, bytes]


@dataclass
class Repository:
    name: str
    private: bool = False
    gated: str | bool = False  # told, not enforced
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", FIRST_FILES, message="initial commit")

    def commit(
        self, branch: str, files: Mapping[str, bytes], message: str = "", deleted: Sequence[str] = ()
    ) -> Commit:
        """Add a commit on top of a branch; nobody sees any of it before all of it is there."""
        parent = self.branches.get(branch)
        kept = self.commits[parent].files if parent else {}
        files = {path: data for path, data in kept.items() if path not in deleted} | dict(files)
        content = {path: hashlib.sha1(data).hexdigest() for path, data in sorted(files.items())}
        sha = hashlib.sha1(json.dumps([self.name, parent, message, content]).encode()).hexdigest()
        self.commits[sha] = Commit(sha, message, files)
        self.branches[branch] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]


@dataclass(frozen=True)
class User:
    name: str
    writes: tuple[str, ...]  # the namespaces


class Repositories:
    """All of a Hub's state; every method is called with the lock held."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}  # by their SHA-256
        self.users = {"writer": User("ann", ("ann", "org")), "reader": User("bob", ("bob",))}  # by token

    def user(self, authorization: str | None) -> User | None:
        if authorization is None:
            return None
        token = authorization.removeprefix("Bearer ")
        if token not in self.users:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.users[token]

    def readable(self, name: str, user: User | None) -> Repository:
        repository = self.repositories.get(name)
        member = user is not None and name.split("/")[0] in user.writes
        if repository is None or (repository.private and not member):
            # The Hub gives no code with a 401. Its client knows what that means by the address, and only
            # where that begins with https://.
            raise RefusedError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        return repository

    def writable(self, name: str, user: User | None) -> Repository:
        repository = self.readable(name, user)
        self.check_write(name.split("/")[0], user)
        return repository

    def check_write(self, namespace: str, user: User | None) -> User:
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        if namespace not in user.writes:
            raise RefusedError(403, f'You don\'t have the rights to write under the namespace "{namespace}"')
        return user

    def create(self, name: str, private: bool = False) -> Repository:
        if name in self.repositories:
            raise RefusedError(409, "You already created this model repo")
        self.repositories[name] = Repository(name, private)
        return self.repositories[name]

    def add_folder(self, name: str, folder: Path) -> Commit:
        """Put a repository there, as if someone had pushed the folder."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        with self.lock:
            return self.create(name).commit("main", files, message="a folder")


def is_large(path: str, size: int) -> bool:
    return path.endswith(LARGE) or size > 10_000_000


def content_id(path: str, data: bytes) -> str:
    """What the client compares with its own file, to leave out those that have not changed."""
    if is_large(path, len(data)):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
