"""The build: cached by content, safe among processes, clear when it fails. Mostly with a small op of the test's own."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ops.core import build as building
from ops.core.build import ALL_ARCHES, BuildError, build, cuda_arches, find_nvcc

ROOT = Path(__file__).resolve().parents[1]
SOURCE = '#include "toy/number.h"\nextern "C" __attribute__((visibility("default"))) int number() { return NUMBER; }\n'

Lines = list[str]


@pytest.fixture
def csrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A csrc with one op, `toy`, that the build takes for the project's."""
    sources = tmp_path / "with space" / "csrc"
    (sources / "toy").mkdir(parents=True)
    (sources / "toy" / "toy.cpp").write_text(SOURCE)
    (sources / "toy" / "number.h").write_text("#define NUMBER 1\n")
    monkeypatch.setattr(building, "_csrc", lambda: sources)
    monkeypatch.delenv("CXXFLAGS", raising=False)
    monkeypatch.delenv("DDF_CUDA_ARCHES", raising=False)
    return sources


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def compile_toy(csrc: Path, cache: Path) -> Callable[[], tuple[Path, Lines]]:
    """Builds `toy` and returns the library with the lines of progress, of which a cached build has none."""

    def compile() -> tuple[Path, Lines]:
        lines: Lines = []
        return build("toy", arches=(), cache=cache, progress=lines.append).path, lines

    return compile


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


def number(library: Path) -> int:
    return int(ctypes.CDLL(str(library)).number())


# ------------------------------------------------------------------------------------------------------------ the cache


def test_builds_once_and_shows_its_steps(compile_toy: Callable[[], tuple[Path, Lines]]) -> None:
    library, lines = compile_toy()
    assert number(library) == 1
    assert lines == ["[1/2] toy.cpp", "[2/2] linking"]
    assert compile_toy() == (library, [])
    facts = json.loads((library.parent / "build.json").read_text())
    assert facts["op"] == "toy"
    assert all(facts["compilers"].values())


def test_a_changed_source_header_flag_or_compiler_is_another_build(
    compile_toy: Callable[[], tuple[Path, Lines]], csrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = compile_toy()
    libraries = {first}

    def built_anew() -> Path:
        library, lines = compile_toy()
        assert lines
        assert library not in libraries
        libraries.add(library)
        return library

    (csrc / "toy" / "number.h").write_text("#define NUMBER 2\n")
    assert number(built_anew()) == 2
    (csrc / "toy" / "toy.cpp").write_text(SOURCE + "// a comment\n")
    built_anew()
    monkeypatch.setenv("CXXFLAGS", "-DUNUSED=1")
    built_anew()
    real = shutil.which("g++") or shutil.which("c++")
    monkeypatch.setenv("CXX", str(script(tmp_path / "cxx", f'exec "{real}" "$@"')))
    built_anew()
    script(tmp_path / "cxx", f'exec "{real}" "$@" # another version')
    built_anew()
    monkeypatch.setattr(building.torch, "__version__", "2.99.0")
    built_anew()
    (csrc / "shared").mkdir()
    (csrc / "shared" / "by_header.h").write_text("#define SHARED 1\n")
    (csrc / "toy" / "number.h").write_text('#define NUMBER 2\n#include "shared/by_header.h"\n')
    built_anew()
    (csrc / "shared" / "by_header.h").write_text("#define SHARED 2\n")
    built_anew()
    (csrc / "toy" / "number.h").write_text("#define NUMBER 1\n")
    (csrc / "toy" / "toy.cpp").write_text(SOURCE)
    monkeypatch.undo()
    monkeypatch.setattr(building, "_csrc", lambda: csrc)
    monkeypatch.delenv("CXXFLAGS", raising=False)
    assert compile_toy() == (first, [])


def test_a_warm_start_runs_no_compiler(
    compile_toy: Callable[[], tuple[Path, Lines]], monkeypatch: pytest.MonkeyPatch
) -> None:
    library, _ = compile_toy()
    monkeypatch.setattr(building, "subprocess", None)
    assert compile_toy() == (library, [])


def test_files_for_instruction_sets_are_compiled_for_each(
    compile_toy: Callable[[], tuple[Path, Lines]], csrc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "INSTRUCTION_SETS", {building.platform.machine(): {"one": (), "two": ("-DTWO",)}})
    (csrc / "toy" / "toy_simd.cpp").write_text("extern const int KERNELS;\nconst int KERNELS = 1;\n")
    (csrc / "toy" / "toy.cpp").write_text(
        "extern const int kernels_one, kernels_two;\n"
        'extern "C" __attribute__((visibility("default"))) int number() { return kernels_one + kernels_two; }\n'
    )
    library, lines = compile_toy()
    assert number(library) == 2
    assert sum("toy_simd.cpp" in line for line in lines) == 2


def test_instruction_sets_can_be_chosen(
    compile_toy: Callable[[], tuple[Path, Lines]], csrc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are compiled once are told which there are; the baseline is there unasked."""
    sets = {"baseline": (), "one": (), "two": ()}
    monkeypatch.setattr(building, "INSTRUCTION_SETS", {building.platform.machine(): sets})
    (csrc / "toy" / "toy_simd.cpp").write_text("extern const int KERNELS;\nconst int KERNELS = 1;\n")
    (csrc / "toy" / "toy.cpp").write_text(
        "#if !defined(HAS_KERNELS_baseline) || defined(HAS_KERNELS_one)\n#error not what was asked for\n#endif\n"
        "extern const int kernels_baseline, kernels_two;\n"
        'extern "C" __attribute__((visibility("default"))) int number() { return kernels_baseline + kernels_two; }\n'
    )
    monkeypatch.setenv("DDF_INSTRUCTION_SETS", "two")
    assert number(compile_toy()[0]) == 2
    monkeypatch.setenv("DDF_INSTRUCTION_SETS", "two,three")
    with pytest.raises(
        BuildError, match="DDF_INSTRUCTION_SETS: expected a list of baseline, one, two, got 'two,three'"
    ):
        compile_toy()


def test_builds_share_objects_that_are_alike_in_both(
    compile_toy: Callable[[], tuple[Path, Lines]], csrc: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two instruction sets one is left out, which what is compiled once is told."""
    log = tmp_path / "log"
    monkeypatch.setenv("CXX", str(script(tmp_path / "cxx", f'echo "$@" >> {log}; exec {building.find_cxx()} "$@"')))
    monkeypatch.setattr(building, "INSTRUCTION_SETS", {building.platform.machine(): {"baseline": (), "two": ()}})
    (csrc / "toy" / "toy_simd.cpp").write_text("extern const int KERNELS;\nconst int KERNELS = 1;\n")

    def compiled() -> list[str]:
        log.write_text("")
        assert number(compile_toy()[0]) == 1
        return sorted(re.findall(r"-o (\S+)\.o$", log.read_text(), re.MULTILINE))

    assert compiled() == ["toy", "toy_simd.baseline", "toy_simd.two"]
    monkeypatch.setenv("DDF_INSTRUCTION_SETS", "baseline")
    assert compiled() == ["toy"]
    monkeypatch.setenv("CXXFLAGS", "-DANY")
    assert compiled() == ["toy", "toy_simd.baseline"]
    (csrc / "toy" / "toy_simd.cpp").write_text("extern const int KERNELS;\nconst int KERNELS = 2;\n")
    assert compiled() == ["toy", "toy_simd.baseline"]


# ---------------------------------------------------------------------------------------------------------- going wrong


def test_a_compiler_error_is_shown(compile_toy: Callable[[], tuple[Path, Lines]], csrc: Path, cache: Path) -> None:
    (csrc / "toy" / "toy.cpp").write_text("int number() { return nothing; }\n")
    with pytest.raises(BuildError, match=r"toy\.cpp:1:.*'nothing' was not declared|undeclared identifier"):
        compile_toy()
    assert [p.name for p in cache.iterdir() if p.is_dir()] == [building.OBJECTS]
    (csrc / "toy" / "toy.cpp").write_text(SOURCE)
    assert number(compile_toy()[0]) == 1


def test_a_missing_compiler_is_named(
    compile_toy: Callable[[], tuple[Path, Lines]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="no C\\+\\+ compiler: CXX=no-such-compiler"):
        compile_toy()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler: none of g\\+\\+"):
        compile_toy()


def test_a_broken_compiler_is_named(
    compile_toy: Callable[[], tuple[Path, Lines]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(script(tmp_path / "cxx", "echo cannot execute cc1plus >&2; exit 1")))
    with pytest.raises(BuildError, match="cxx does not run"):
        compile_toy()
    fails_later = 'case "$1" in --version) echo fine;; *) echo cannot execute cc1plus >&2; exit 1;; esac'
    monkeypatch.setenv("CXX", str(script(tmp_path / "cxx", fails_later)))
    with pytest.raises(BuildError, match="cannot execute cc1plus"):
        compile_toy()


def test_a_missing_cuda_compiler_is_named(csrc: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "find_nvcc", lambda: None)
    with pytest.raises(BuildError, match="no CUDA compiler: nvcc"):
        build("toy", arches=("90",), cache=cache)


def test_architectures_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, arches in (("all", ALL_ARCHES), ("none", ()), ("80,90", ("80", "90"))):
        monkeypatch.setenv("DDF_CUDA_ARCHES", asked)
        assert cuda_arches() == arches
    monkeypatch.setenv("DDF_CUDA_ARCHES", "newest")
    with pytest.raises(BuildError, match="DDF_CUDA_ARCHES: expected all, none or a list such as 80,90, got 'newest'"):
        cuda_arches()


def test_without_being_asked_it_builds_for_the_present_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    present = [(12, 0), (9, 0), (9, 0)]
    cuda = building.torch.cuda
    monkeypatch.delenv("DDF_CUDA_ARCHES", raising=False)
    monkeypatch.setattr(building.torch.version, "cuda", "13.0")
    monkeypatch.setattr(building, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: len(present))
    monkeypatch.setattr(cuda, "get_device_capability", lambda index: present[index])
    assert cuda_arches() == ("90", "120")
    monkeypatch.setattr(building, "find_nvcc", lambda: None)
    assert cuda_arches() == ()
    monkeypatch.setattr(building, "find_nvcc", lambda: Path("nvcc"))
    monkeypatch.setattr(cuda, "is_available", lambda: False)
    assert cuda_arches() == ()


# ------------------------------------------------------------------------------------------------------ among processes

BUILD_TOY = """
import sys
from pathlib import Path
from typing import Any
from ops.core import build as building
building._csrc = lambda: Path(sys.argv[1])
print(building.build("toy", arches=(), cache=Path(sys.argv[2])).path)
"""


def start_build(csrc: Path, cache: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD_TOY, str(csrc), str(cache)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def slow_compiler(path: Path) -> Path:
    """A compiler that says it began, and takes its time."""
    real = shutil.which("g++") or shutil.which("c++")
    began = path.with_suffix(".began")
    return script(
        path, f'case "$1" in --version) ;; *) echo $$ >> "{began}"; sleep ${{NAP:-1}};; esac\nexec "{real}" "$@"'
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def test_two_processes_build_once(csrc: Path, cache: Path, tmp_path: Path) -> None:
    compiler = slow_compiler(tmp_path / "cxx")
    processes = [start_build(csrc, cache, CXX=str(compiler)) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    compiled_and_linked = 2
    assert len((tmp_path / "cxx.began").read_text().splitlines()) == compiled_and_linked


def test_a_killed_build_does_not_block_the_next(csrc: Path, cache: Path, tmp_path: Path) -> None:
    compiler = slow_compiler(tmp_path / "cxx")
    process = start_build(csrc, cache, CXX=str(compiler), NAP="600")
    began = tmp_path / "cxx.began"
    wait_for(lambda: began.exists() and began.read_text().endswith("\n"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    try:
        after = start_build(csrc, cache, CXX=str(compiler), NAP="0")
        output, errors = after.communicate(timeout=60)
        assert after.returncode == 0, errors
        assert number(Path(output.strip())) == 1
        assert list(cache.glob("*.partial-*")) == []
    finally:
        os.killpg(
            os.getpgid(int(began.read_text().split()[0])), signal.SIGKILL
        )  # the compiler that outlived its builder


def test_an_interrupted_build_ends_its_compilers(csrc: Path, cache: Path, tmp_path: Path) -> None:
    compiler = slow_compiler(tmp_path / "cxx")
    process = start_build(csrc, cache, CXX=str(compiler), NAP="600")
    began = tmp_path / "cxx.began"
    wait_for(lambda: began.exists() and began.read_text().endswith("\n"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    pid = int(began.read_text().split()[0])
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert list(cache.glob("*.partial-*")) == []


# ---------------------------------------------------------------------------------------------------------- the package

USE_PACKAGE = """
import torch
from ddf_ops.core import native
from ddf_ops.ddf import ddf, DDFPack
import ddf_ops.core.build as building
library = native.load()
assert "site" in str(building._csrc()), building._csrc()
features, channel, spatial = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 3, 3), torch.randn(1, 9, 5, 6)
torch.testing.assert_close(native.apply(features, channel, spatial), ddf(features, channel, spatial))
DDFPack(8)(torch.randn(1, 8, 5, 6)).sum().backward()
print(library.path)
"""


@pytest.mark.slow
def test_the_installed_package_has_the_operator(tmp_path: Path) -> None:
    """`pip install` of a copy into an empty directory, which with torch is all that the next process sees."""
    checkout, site, home = tmp_path / "checkout", tmp_path / "site", tmp_path / "home"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in filter(lambda name: name.startswith(("ops/", "csrc/")) or "/" not in name, tracked):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(checkout)], check=True, capture_output=True)
    shutil.rmtree(checkout)
    assert not (site / "ops").exists()
    home.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site), "HOME": str(home), "XDG_CACHE_HOME": ""}
    environment["DDF_INSTRUCTION_SETS"] = "baseline"  # its kernels are tested elsewhere
    done = subprocess.run(
        [sys.executable, "-c", USE_PACKAGE], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(home / ".cache" / "ddf_ops")


def test_nvcc_is_found_where_cuda_home_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    nvcc = script(tmp_path / "bin" / "nvcc", "exit 0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_nvcc() == nvcc


def test_built_ahead_of_time(csrc: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(building, "_default_cache", lambda csrc: cache)
    monkeypatch.setenv("DDF_CUDA_ARCHES", "none")
    assert building.main(["toy"]) == 0
    assert capsys.readouterr().out.endswith("libtoy.so, CUDA architectures: none\n")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert building.main(["toy"]) == 1
    assert capsys.readouterr().err == "ddf: error: no C++ compiler: CXX=no-such-compiler is not a program\n"
