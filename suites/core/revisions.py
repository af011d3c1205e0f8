"""Two revisions of `ops/` and `csrc/` side by side: each as a folder of its own, from git.

A folder is named after the content it holds, so that a revision is exported and built once, and two revisions with the
same operators are the same folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ops.core.includes import files_of
from suites.core.cases import UsageError

#: What a revision is measured by; pyproject.toml marks a checkout, beside which its builds are kept.
PARTS = ("ops", "csrc", "pyproject.toml")
#: What the working tree is called, uncommitted changes and new files that git does not ignore included.
WORKING_TREE = "."
#: Branches that a change is meant for, the first that exists.
MAIN_BRANCHES = ("main", "master", "origin/HEAD", "origin/main", "origin/master")


@dataclass(frozen=True)
class Revision:
    """A revision, exported.

    Args:
        name: as asked for.
        commit: its hash; empty for the working tree.
        tree: the folder with its `ops` and `csrc`.
    """

    name: str
    commit: str
    tree: Path

    @property
    def label(self) -> str:
        """What to call it in a table."""
        if not self.commit:
            return "working tree"
        return self.commit[:10] if self.commit.startswith(self.name) else f"{self.name} ({self.commit[:10]})"

    @cached_property
    def contents(self) -> dict[str, str]:
        """Digests of its files by path, generated ones left out."""
        files = [path for part in PARTS for path in (self.tree / part).rglob("*") if path.is_file()]
        kept = [path for path in files if "__pycache__" not in path.parts]
        return {str(path.relative_to(self.tree)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}

    def program(self, file: str, library: str) -> dict[str, str]:
        """Digests of everything that decides what an impl does: its op file, what op files share, its library.

        Args:
            file: the op file, a path in `tree` or anywhere else.
            library: the folders of csrc that it is built from, by commas, if any.
        """
        path = Path(file)
        own = str(path.relative_to(self.tree)) if path.is_relative_to(self.tree) else ""
        shared = ("ops/__init__.py", "ops/core/")
        built = {
            str(path.relative_to(self.tree))
            for name in library.split(",")
            if name
            for path in files_of(self.tree / "csrc", name)
        }
        named = {own, *built}
        return {name: digest for name, digest in self.contents.items() if name in named or name.startswith(shared)}


def stage(root: Path, name: str, into: Path) -> Revision:
    """Exports a revision of the checkout `root` to a folder below `into`, if it is not there yet.

    Args:
        name: anything that git takes for a commit, or `WORKING_TREE`.

    Raises:
        UsageError: if there is no such revision, or it has no operators.
    """
    with tempfile.TemporaryDirectory() as scratch:
        git = Git(root, Path(scratch))
        commit = "" if name == WORKING_TREE else git.commit(name)
        source = git.subtree(commit or git.snapshot())
        parts = git("ls-tree", "--full-tree", source, "--", *PARTS)
        if parts.count("\n") + 1 < len(PARTS):
            raise UsageError(f"revision: {name!r} has no {', '.join(PARTS)} to measure")
        target = into / hashlib.sha256(parts.encode()).hexdigest()[:16]
        if not target.is_dir():
            _unpack(git.archive(source), target)
    return Revision(name, commit, target)


def default_base(root: Path) -> str:
    """Where the present branch left the main branch.

    Raises:
        UsageError: if there is no main branch.
    """
    with tempfile.TemporaryDirectory() as scratch:
        git = Git(root, Path(scratch))
        for branch in MAIN_BRANCHES:
            found = git.try_("merge-base", "HEAD", branch)
            if found:
                return found
    raise UsageError(f"revision: none of {', '.join(MAIN_BRANCHES)} is a branch here; name the base: ab REV")


class Git:
    """git in one checkout, with an index and an object store of its own, so that the checkout's stay as they are."""

    def __init__(self, root: Path, scratch: Path):
        self._root = root
        self._environment = {**os.environ, "LC_ALL": "C"}
        if shutil.which("git") is None:
            raise UsageError("revision: git is not on the PATH, and revisions are read with it")
        top = self.try_("rev-parse", "--show-toplevel")
        if not top:
            raise UsageError(f"revision: {root} is not a git checkout, so there are no revisions to compare")
        self._prefix = self("rev-parse", "--show-prefix").rstrip("/")
        objects = self("rev-parse", "--path-format=absolute", "--git-path", "objects")
        (scratch / "objects").mkdir()
        self._environment |= {
            "GIT_INDEX_FILE": str(scratch / "index"),
            "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": objects,
        }
        self._top = Path(top)

    def __call__(self, *arguments: str) -> str:
        done = self._run(arguments, self._root)
        if done.returncode:
            raise UsageError(f"revision: git {arguments[0]}: {_last_line(done.stderr)}")
        return done.stdout.decode(errors="replace").strip()

    def try_(self, *arguments: str) -> str:
        """The output, empty if git fails."""
        done = self._run(arguments, self._root)
        return "" if done.returncode else done.stdout.decode(errors="replace").strip()

    def commit(self, name: str) -> str:
        """The hash of the commit that `name` stands for."""
        found = "" if name.startswith("-") else self.try_("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if not found:
            raise UsageError(f"revision: {name!r} is not a commit that git knows here, nor {WORKING_TREE!r}")
        return found

    def snapshot(self) -> str:
        """A tree object of the working tree's operators as they are now."""
        self("read-tree", "HEAD")
        self("add", "-A", "--", *PARTS)
        return self("write-tree")

    def subtree(self, tree: str) -> str:
        """The part of a tree that is this checkout, where the repository holds other things beside it."""
        return f"{tree}:{self._prefix}" if self._prefix else tree

    def archive(self, source: str) -> bytes:
        """The operators of a tree, as a tar file."""
        # From the top: below it, git archives only what stands there.
        done = self._run(("archive", "--format=tar", source, "--", *PARTS), self._top)
        if done.returncode:
            raise UsageError(f"revision: git archive: {_last_line(done.stderr)}")
        return done.stdout

    def _run(self, arguments: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[bytes]:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, check=False, env=self._environment)


def _last_line(text: bytes) -> str:
    return (text.decode(errors="replace").strip().splitlines() or ["failed"])[-1]


def _unpack(archive: bytes, target: Path) -> None:
    """Unpacks beside `target`, which then takes that name: a folder that is there is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(partial, filter="data")
        try:
            partial.rename(target)
        except OSError:
            if not target.is_dir():  # another process was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
