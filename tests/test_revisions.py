"""Revisions exported from git, in scratch repositories."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from suites.core.cases import UsageError
from suites.core.revisions import WORKING_TREE, default_base, stage


def git(folder: Path, *arguments: str) -> str:
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".cpp" if "csrc" in name else ".py").write_text(text)


def checkout(folder: Path) -> Path:
    """Two commits on main: `first` and the one after it, whose operator is another."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q", "-b", "main")
    (folder / "pyproject.toml").write_text("")
    (folder / ".gitignore").write_text("*.log\n__pycache__/\n")
    write(folder, ops____init="", ops__core__shared="a", ops__op="one", ops__other="other", csrc__op__kernel="k")
    (folder / "ops" / "__init__.py").write_text("")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    git(folder, "tag", "first")
    write(folder, ops__op="two")
    git(folder, "commit", "-qam", "second")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return checkout(tmp_path / "repository")


def test_a_commit_is_exported_as_it_was(root: Path, tmp_path: Path) -> None:
    first, second = (stage(root, name, tmp_path / "staged") for name in ("first", "HEAD"))
    assert (first.tree / "ops" / "op.py").read_text() == "one"
    assert (second.tree / "ops" / "op.py").read_text() == "two"
    assert (first.tree / "csrc" / "op" / "kernel.cpp").read_text() == "k"
    assert first.commit == git(root, "rev-parse", "first")
    assert first.label == f"first ({first.commit[:10]})"


def test_the_working_tree_counts_with_all_that_git_does_not_ignore(root: Path, tmp_path: Path) -> None:
    write(root, ops__op="three", ops__fresh="new")
    (root / "ops" / "noise.log").write_text("ignored")
    git(root, "rm", "-q", "--cached", "ops/other.py")  # staged, which says nothing of the file itself
    before = git(root, "status", "--porcelain"), git(root, "count-objects")
    here = stage(root, WORKING_TREE, tmp_path / "staged")
    assert (here.tree / "ops" / "op.py").read_text() == "three"
    assert (here.tree / "ops" / "fresh.py").exists()
    assert (here.tree / "ops" / "other.py").exists()
    assert not (here.tree / "ops" / "noise.log").exists()
    assert (here.commit, here.label) == ("", "working tree")
    assert (git(root, "status", "--porcelain"), git(root, "count-objects")) == before


def test_equal_operators_are_one_folder(root: Path, tmp_path: Path) -> None:
    (root / "README").write_text("not measured")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "third")
    trees = {stage(root, name, tmp_path / "staged").tree for name in ("HEAD", "HEAD~1", WORKING_TREE)}
    assert len(trees) == 1
    assert stage(root, "first", tmp_path / "staged").tree not in trees
    assert len(list((tmp_path / "staged").iterdir())) == 2


def test_a_checkout_within_a_larger_repository(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "bench"
    checkout(inner)
    outer = tmp_path / "outer"
    (inner / ".git").rename(outer / ".git")
    git(outer, "add", "-A")
    git(outer, "commit", "-qm", "moved below bench/")
    here = stage(inner, "HEAD", tmp_path / "staged")
    assert (here.tree / "ops" / "op.py").read_text() == "two"
    assert stage(inner, WORKING_TREE, tmp_path / "staged").tree == here.tree


def test_what_decides_a_program(root: Path, tmp_path: Path) -> None:
    first, second = (stage(root, name, tmp_path / "staged") for name in ("first", "HEAD"))

    def program(revision, op: str, library: str = "") -> dict[str, str]:  # type: ignore[no-untyped-def]
        return revision.program(str(revision.tree / "ops" / f"{op}.py"), library)

    assert program(first, "other") == program(second, "other")
    assert program(first, "op") != program(second, "op")
    write(root, csrc__op__kernel="faster")
    here = stage(root, WORKING_TREE, tmp_path / "staged")
    assert program(here, "other") == program(second, "other")
    assert program(here, "other", "op") != program(second, "other", "op")
    write(root, csrc__user__kernel='#include "op/kernel.cpp"')  # of another folder
    using = stage(root, WORKING_TREE, tmp_path / "staged")
    write(root, csrc__op__kernel="faster still")
    assert program(using, "other", "user") != program(stage(root, WORKING_TREE, tmp_path / "staged"), "other", "user")
    write(root, csrc__second__kernel="one")  # of two folders
    both = stage(root, WORKING_TREE, tmp_path / "staged")
    write(root, csrc__second__kernel="two")
    assert program(both, "other", "op,second") != program(
        stage(root, WORKING_TREE, tmp_path / "staged"), "other", "op,second"
    )
    write(root, ops__core__shared="b")
    assert program(stage(root, WORKING_TREE, tmp_path / "staged"), "other") != program(second, "other")


def test_the_default_base_is_where_the_branch_left_main(root: Path) -> None:
    left = git(root, "rev-parse", "HEAD")
    git(root, "checkout", "-qb", "topic")
    write(root, ops__op="topic")
    git(root, "commit", "-qam", "on the branch")
    git(root, "checkout", "-q", "main")
    write(root, ops__other="meanwhile")
    git(root, "commit", "-qam", "on main")
    git(root, "checkout", "-q", "topic")
    assert default_base(root) == left


@pytest.mark.parametrize("name", ["nothing", "--help", "", "HEAD:ops"])
def test_an_unknown_revision_is_named(root: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"revision: {name!r} is not a commit"):
        stage(root, name, tmp_path / "staged")


def test_a_revision_without_operators_is_refused(root: Path, tmp_path: Path) -> None:
    git(root, "rm", "-qr", "csrc")
    git(root, "commit", "-qm", "no sources")
    with pytest.raises(UsageError, match="has no ops, csrc"):
        stage(root, "HEAD", tmp_path / "staged")


def test_outside_git_there_are_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a git checkout"):
        stage(tmp_path, "HEAD", tmp_path / "staged")
