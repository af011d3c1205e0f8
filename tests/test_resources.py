"""The suite `resources`: the baseline of this compiler is up to date, planted faults are regressions, and what is read
from a cubin is what NVIDIA's own tools read."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Runner
from test_csrc import NVCC, needs_nvcc

from ops.core import build
from reports import Metric, Record, Run
from reports.core import baselines
from reports.core.records import RunError, load_run
from reports.core.verdicts import CHANGED, MISSING, NOT_COMPARABLE, SAME, Comparison
from suites import resources
from suites.core import compiled, emulated, emulation, gpus, hot_list
from suites.core.emulation.operator_kernels import Kernels
from suites.core.sass import KINDS, OPERATIONS, Code, read_cubin

BASELINES = ROOT / "reports" / "baselines"
PLANES = hot_list.HotKernel("planes", ("float", "5"))
ENTRY, ARCH = PLANES.name, "90"


# ------------------------------------------------------------------------------------------------------- the suite


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the whole suite."""
    if NVCC is None:
        pytest.skip("no nvcc")
    path = tmp_path_factory.mktemp("runs") / "run"
    command = [sys.executable, str(ROOT / "runner.py"), "--suite", "resources", "--output", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return load_run(path)


@pytest.mark.slow
def test_every_hot_kernel_has_a_record_and_none_spills(taken: Run) -> None:
    """But on sm_75, whose asynchronous copies are plain ones that hold registers."""
    assert len(taken.records) == len(hot_list.hot_kernels()) * len(build.ALL_ARCHES)
    assert {record.status for record in taken.records} == {"ok"}
    spilling = {r.axes["arch"] for r in taken.records if value(r, "spill_stores") or value(r, "spill_loads")}
    assert spilling <= {"75"}
    assert all(0 < value(record, "occupancy") <= 1 for record in taken.records)


@pytest.mark.slow
def test_the_baseline_of_this_compiler_is_up_to_date(taken: Run, tmp_path: Path) -> None:
    """If it is not: `make baselines`, and commit what has changed."""
    version = compiled.nvcc_version()
    committed = baselines.path_of(BASELINES, "resources", version)
    if not committed.is_file():
        pytest.skip(f"no baseline for nvcc {version}")
    comparison = baselines.against(BASELINES, taken)
    assert not [v for v in comparison.verdicts if v.verdict != SAME]
    (written,) = baselines.update(tmp_path, taken)
    assert written.read_bytes() == committed.read_bytes()


@needs_nvcc
def test_twice_the_same_to_the_byte(runner: Runner, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        axes = ("--axis", f"arch={ARCH}", "--axis", "entry=rows_float32_3_1,planes_float32_3")
        done = runner("--suite", "resources", *axes, "--output", f"{folder}/run")
        assert done.returncode == 0, done.stdout + done.stderr
    files = ("records.jsonl", "tables/resources.csv", "tables/resources.md")
    assert all((tmp_path / "one/run" / f).read_bytes() == (tmp_path / "two/run" / f).read_bytes() for f in files)
    done = runner("compare", str(BASELINES), "one/run", "--metric", "registers,spill_stores")
    assert done.returncode == 0
    assert "4 same" in done.stdout
    done = runner("compare", "fresh", "one/run", "--update")
    assert done.returncode == 0
    assert len((tmp_path / "fresh/resources" / f"nvcc-{compiled.nvcc_version()}.jsonl").read_text().splitlines()) == 2


def value(record: Record, metric: str) -> float:
    found = record.metric(metric)
    assert found is not None
    assert found.value is not None
    return found.value


# ------------------------------------------------------------------------------------------------------------- gate


def run_of(metrics: list[Metric], version: str = "13.0.88", path: str = "run", **axes: str) -> Run:
    """One kernel on one architecture."""
    axes = {"entry": ENTRY, "arch": ARCH, **axes}
    case = f"resources:ddf_op/native@cpu:arch={axes['arch']}:entry={axes['entry']}"
    record = Record(path, case, 1, "resources", "ddf_op", "native", "cpu", axes, "ok", metrics=metrics)
    record.settings = {"nvcc": version}
    return Run(Path(path), {"device": {"name": "any"}}, [record])


def held(tmp_path: Path, before: list[Metric], after: list[Metric]) -> Comparison:
    """What `compare` says of a run, the other one being the baseline."""
    baselines.update(tmp_path / "baselines", run_of(before))
    return baselines.against(tmp_path / "baselines", run_of(after))


def worse(comparison: Comparison) -> set[str]:
    return {v.metric for v in comparison.verdicts if v.worse}


@pytest.mark.parametrize(
    ("metric", "before", "after", "code", "strict"),
    [
        (Metric("spill_stores", "B", 0, better="less"), 0, 4, 1, 1),
        (Metric("spill_stores", "B", 0, better="less"), 4, 0, 0, 3),
        (Metric("stack", "B", 0, better="less"), 0, 8, 1, 1),
        (Metric("accesses_128", "1", 0, better="more"), 9, 8, 1, 1),
        (Metric("emulated_bytes", "B", 0, better="less"), 640, 672, 1, 1),
        (Metric("registers", "1", 0), 64, 72, 0, 3),
        (Metric("registers", "1", 0), 64, 64, 0, 0),
        (Metric("predicted_time", "s", 0), 1e-3, 2e-3, 2, 2),
    ],
)
def test_directions(tmp_path: Path, metric: Metric, before: float, after: float, code: int, strict: int) -> None:
    """More spills, stack and bytes and fewer wide accesses are regressions; anything else is to be acknowledged."""
    metrics = [[Metric(metric.name, metric.unit, number, better=metric.better)] for number in (before, after)]
    if code == 2:  # not exact, and in no baseline
        with pytest.raises(RunError, match="nothing to compare"):
            held(tmp_path, *metrics)
        return
    comparison = held(tmp_path, *metrics)
    assert comparison.exit_code() == code
    assert comparison.exit_code(strict=True) == strict
    assert any("--update" in note for note in comparison.notes) == (before != after)


def test_an_unknown_compiler_compares_nothing_and_says_so(tmp_path: Path) -> None:
    metrics = [Metric("registers", "1", 64)]
    baselines.update(tmp_path, run_of(metrics))
    comparison = baselines.against(tmp_path, run_of(metrics, version="99.1"))
    assert not comparison.verdicts
    assert "no baseline for nvcc 99.1 (known: 13.0.88)" in comparison.notes[0]
    assert (comparison.exit_code(), comparison.exit_code(strict=True)) == (0, 3)


def test_runs_of_two_compilers_are_not_compared_and_of_two_machines_are() -> None:
    from reports.core.compare import compare

    metrics = [Metric("registers", "1", 64)]
    here, there = run_of(metrics), run_of(metrics)
    there.environment["device"] = {"name": "another"}
    assert [v.verdict for v in compare(here, there).verdicts] == [SAME]
    (verdict,) = compare(here, run_of(metrics, version="99.1")).verdicts
    assert (verdict.verdict, verdict.reason) == (NOT_COMPARABLE, "nvcc 13.0.88 in BASE, 99.1 in NEW")


def test_kernels_that_come_and_go(tmp_path: Path) -> None:
    metrics = [Metric("registers", "1", 64)]
    baselines.update(tmp_path, run_of(metrics))
    comparison = baselines.against(tmp_path, run_of(metrics, entry="rows_float32_3_1"))
    assert {(v.verdict, v.case.rpartition("=")[2]) for v in comparison.verdicts} == {
        (MISSING, ENTRY),
        (CHANGED, "rows_float32_3_1"),
    }
    part = run_of(metrics, arch="75")
    part.environment["selection"] = {"axes": {"arch": ["75"]}}
    assert [v.verdict for v in baselines.against(tmp_path, part).verdicts] == [CHANGED]  # the other was not asked for
    baselines.update(tmp_path, part)
    assert len(baselines.path_of(tmp_path, "resources", "13.0.88").read_text().splitlines()) == 2


def test_what_has_no_baseline(runner: Runner, tmp_path: Path) -> None:
    plain = run_of([Metric("macs", "MAC", 64)])
    plain.records[0].settings = {}
    with pytest.raises(RunError, match="no case of it has a baseline"):
        baselines.against(tmp_path, plain)
    file = baselines.path_of(tmp_path / "baselines", "resources", "13.0.88")
    file.parent.mkdir(parents=True)
    file.write_text('{"case": 1}\n')
    with pytest.raises(RunError, match="corrupt"):
        baselines.against(tmp_path / "baselines", run_of([Metric("registers", "1", 64)]))


# ---------------------------------------------------------------------------------------------------- planted faults


def planted(tmp_path: Path, old: str = "", new: str = "") -> Path:
    """A copy of csrc in which planes_kernel has a fault."""
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc" / "ddf", csrc / "ddf")
    header = csrc / "ddf" / "cuda" / "planes.cuh"
    assert old in header.read_text()
    header.write_text(header.read_text().replace(old, new))
    return csrc


def code_of(csrc: Path, cache: Path) -> list[Metric]:
    """What the compiler says of planes_kernel<float, 5>."""
    listed = csrc / "hot.cu"
    lines = re.findall(r"^#define HOT_PLANES.*\n.*$", hot_list.SOURCE.read_text(), re.MULTILINE)
    text = f'#include "ddf/cuda/planes.cuh"\nnamespace ddf {{\n{lines[0]}\nHOT_PLANES(float, 5)\n}}\n'
    listed.write_text(text)
    (one,) = compiled.compile_sources([listed], [ARCH], csrc=csrc, cache=cache)
    properties, code = compiled.by_kernel(one, hot_list.hot_kernels(listed))[ENTRY]
    return [*resources.by_ptxas(properties), *resources.by_code(ENTRY, code)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[Metric]:
    """Of the kernel as it is."""
    folder = tmp_path_factory.mktemp("sound")
    return code_of(planted(folder), folder)


@needs_nvcc
def test_a_planted_register_spill_is_a_regression(tmp_path: Path, sound: list[Metric]) -> None:
    csrc = planted(tmp_path, "planes_threads(kSize), 1)", "planes_threads(kSize), 4)")
    comparison = held(tmp_path, sound, code_of(csrc, tmp_path))
    assert {"spill_stores", "spill_loads", "stack"} <= worse(comparison)
    assert comparison.exit_code() == 1


@needs_nvcc
def test_a_planted_load_in_parts_is_a_regression(tmp_path: Path, sound: list[Metric]) -> None:
    wide = "= load<4>(taps + j);"
    assert not worse(held(tmp_path / "same", sound, sound))
    parts = ", ".join(f"static_cast<const volatile A*>(taps)[j + {part}]" for part in range(4))
    csrc = planted(tmp_path, wide, f"{{{parts}}};")
    assert worse(held(tmp_path, sound, code_of(csrc, tmp_path))) == {"accesses_128"}


class Planes(Kernels):
    """planes.cu alone, for float32 and k = 5."""

    def __init__(self, csrc: Path, cache: Path) -> None:
        source = csrc / "ddf" / "cuda" / "planes.cu"
        one = "return run<float, 5>(p, gpu, stream, bands, cluster);"
        text, replaced = re.subn(r"return by_instance\(.*?\}\);", one, source.read_text(), flags=re.DOTALL)
        assert replaced == 1
        source.write_text(text)
        self.path = emulation.compile_kernels([source, source.with_name("cut.cu")], "checked", csrc, cache)
        self.library = ctypes.CDLL(str(self.path))

    def call(self, entry: str, params: Any, kernel: str | None = None) -> None:
        gpu = (ctypes.c_int * 3)(int(ARCH), 2, 99 << 10)
        launch = self.library._ZN3ddf13launch_planesERKNS_6ParamsERKNS_3GpuEPvbb
        assert launch(ctypes.byref(params), gpu, None, False, False) == 0


@pytest.mark.slow
@pytest.mark.skipif(emulation.missing() is not None, reason=str(emulation.missing()))
def test_a_planted_temporary_is_a_regression(tmp_path: Path) -> None:
    """Sums that go to global memory and come back."""
    store = "store<Hint::streaming>(out + (first + i) * p.out.stride[1], value);"
    there = "volatile T* there = out + (first + i) * p.out.stride[1];"
    temporary = f"{there} *there = sum; value[0] = *there; {store}"
    properties = compiled.Properties(48, 1, 0, 0, 0, 0)
    told = []
    for name, new in (("sound", store), ("fault", temporary)):
        (tmp_path / name).mkdir()
        kernels = Planes(planted(tmp_path / name, store, new), ROOT / ".build")
        told.append(resources.by_emulation(ARCH, properties, emulated.emulate(PLANES, ARCH, kernels)))
    assert worse(held(tmp_path, *told)) == {"emulated_bytes"}


# ---------------------------------------------------------------------------------------------- what is read is right


@pytest.mark.parametrize("arch", build.ALL_ARCHES)
def test_limits_and_devices_are_known(arch: str) -> None:
    assert arch in gpus.LIMITS
    assert any(device.arch == arch for device in gpus.DEVICES)


@needs_nvcc
def test_occupancy_is_that_of_cudas_own_calculator(tmp_path: Path) -> None:
    """cuda_occupancy.h, over a grid of launches."""
    program = tmp_path / "occupancy.cpp"
    program.write_text(r"""
#include <cuda_occupancy.h>
#include <cstdio>
int main() {
  int major, minor, threads_sm, shared, block, reserved, threads, registers, bytes;
  while (std::scanf("%d%d%d%d%d%d%d%d%d", &major, &minor, &threads_sm, &shared, &block, &reserved, &threads, &registers,
                    &bytes) == 9) {
    cudaOccDeviceProp p;
    p.computeMajor = major, p.computeMinor = minor, p.maxThreadsPerBlock = 1024, p.warpSize = 32, p.numSms = 1;
    p.maxThreadsPerMultiprocessor = threads_sm, p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.sharedMemPerBlock = 49152, p.sharedMemPerMultiprocessor = shared, p.sharedMemPerBlockOptin = block;
    p.reservedSharedMemPerBlock = reserved;
    cudaOccFuncAttributes a;
    a.maxThreadsPerBlock = 1024, a.numRegs = registers, a.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    a.maxDynamicSharedSizeBytes = block, a.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    const int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &p, &a, &state, threads, bytes);
    std::printf("%d\n", error ? -error : result.activeBlocksPerMultiprocessor);
  }
}
""")
    headers = [f"-isystem{Path(str(NVCC)).resolve().parents[1] / 'include'}", *emulation._cuda_headers()]
    subprocess.run(["g++", *headers, "-w", str(program), "-o", str(tmp_path / "occupancy")], check=True)
    grid = [
        (arch, limits, threads, registers, shared)
        for arch, limits in gpus.LIMITS.items()
        for threads in (32, 96, 256, 1024)
        for registers in (16, 40, 72, 128, 255)
        for shared in (0, 1000, 30000, 48 * 1024, 99 * 1024, 200 * 1024)
    ]
    lines = [
        f"{arch[:-1]} {arch[-1]} {32 * limits.warps} {limits.shared} {limits.block_shared} {limits.reserved} "
        f"{threads} {registers} {shared}"
        for arch, limits, threads, registers, shared in grid
    ]
    said = subprocess.run([tmp_path / "occupancy"], input="\n".join(lines), capture_output=True, text=True, check=True)
    ours = [limits.blocks(threads, registers, shared) for _, limits, threads, registers, shared in grid]
    assert ours == list(map(int, said.stdout.split()))
    assert 0 in ours


def instruction(operation: int, arch: int = 90, width: int = 0, distance: int = 0) -> bytes:
    """One instruction of a kernel that was never compiled; the distance of a branch is in instructions."""
    low, high = operation, width << 9
    if distance:
        field = distance * 16 // 4
        low |= (field & 0xFF) << 16 if arch >= 90 else 0
        field = field >> 8 if arch >= 90 else field
        low |= (field & 0x3FFFFFFF) << 34
        high |= field >> 30 & 0x3FFFF
    return (low & (1 << 64) - 1).to_bytes(8, "little") + (high & (1 << 64) - 1).to_bytes(8, "little")


@pytest.mark.parametrize("arch", [80, 90])
def test_the_loop_is_the_one_with_the_multiply_adds(arch: int) -> None:
    fma, other, branch = OPERATIONS["FFMA"], 0x010, OPERATIONS["BRA"]
    parts = [
        *(other, other),
        *(other, other, branch),  # a loop without any
        *(other, fma, fma, other, branch),  # within the loop that goes back to the fourth
        *(other, branch, other),
    ]
    back = {4: -3, 9: -5, 11: -9}
    data = b"".join(instruction(op, arch, distance=back.get(place, 0)) for place, op in enumerate(parts))
    code = Code(arch, data)
    assert code.targets == {4: 2, 9: 5, 11: 3}
    assert code.loop == slice(5, 10)
    assert (len(code.inside_loop()), code.inside_loop().multiply_adds, code.count("fp")) == (5, 2, 2)


def test_widths() -> None:
    loads = [instruction(OPERATIONS["LDG"], width=field) for field in (0, 2, 4, 5, 6)]
    assert Code(90, b"".join(loads)).widths.tolist() == [1, 2, 4, 8, 16]
    copies = b"".join(instruction(OPERATIONS["LDGSTS"], width=field) for field in (1, 2, 4))
    assert Code(100, copies).widths.tolist() == [4, 8, 16]


NVDISASM = shutil.which("nvdisasm")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.skipif(NVDISASM is None, reason="no nvdisasm (pip install nvidia-cuda-nvdisasm)")
@pytest.mark.parametrize("arch", build.ALL_ARCHES)
def test_code_is_read_as_nvdisasm_reads_it(arch: str) -> None:
    """Operations, widths and branches of every hot kernel."""
    (one,) = compiled.compile_sources([hot_list.SOURCE], [arch])
    said = subprocess.run(
        [str(NVDISASM), "-c", one.folder / "kernels.cubin"], capture_output=True, text=True, check=True
    )
    words: dict[str, list[tuple[str, str]]] = defaultdict(list)
    labels: dict[str, int] = {}
    kernel = ""
    for line in said.stdout.splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\S+?),", line):
            kernel = section[1]
        elif label := re.match(r"(\.L_\S+):", line):
            labels[label[1]] = len(words[kernel])
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)(.*?);", line):
            words[kernel].append((found[1], found[2]))
    kinds = Counter({name: kind for kind in KINDS for name in KINDS[kind]})
    sizes = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    for name, code in read_cubin(one.cubin, int(arch)).items():
        ours = words[name]
        assert len(ours) == len(code)
        for place, ((word, rest), operation, width) in enumerate(zip(ours, code.operations, code.widths, strict=True)):
            plain, *parts = word.split(".")
            assert (OPERATIONS.get(plain) == operation) or plain not in OPERATIONS, (word, hex(operation))
            assert plain in OPERATIONS or operation not in OPERATIONS.values(), (word, hex(operation))
            if width:
                assert width == next((sizes[part] for part in parts if part in sizes), 4), word
                assert kinds[plain] in ("global", "shared", "local", "async")
            if plain == "BRA":
                target = re.search(r"`\((\.L_\S+?)\)", rest)
                assert target is not None
                assert code.targets[place] == labels[target[1]]


def test_ptxas_is_understood() -> None:
    text = """ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
ptxas info    : Function properties for _Z1kv
    24 bytes stack frame, 16 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 24 bytes cumulative stack size, 128 bytes smem, 400 bytes cmem[0]
"""
    assert compiled.parse_ptxas(text) == {"_Z1kv": compiled.Properties(32, 1, 24, 16, 12, 128)}
    with pytest.raises(compiled.BuildError, match="ptxas does not say"):
        compiled.parse_ptxas(text.replace("registers", "things"))


def test_the_hot_list_is_read(tmp_path: Path) -> None:
    file = tmp_path / "list.cu"
    file.write_text(
        "#define HOT_ROWS(T, k, stride) ...\nHOT_ROWS(__half, 3, 2)\n// HOT_ROWS(float, 3, 1)\nHOT_PLANES(float, 5)\n"
    )
    rows, planes = hot_list.hot_kernels(file)
    assert (rows.name, rows.dtype, rows.numbers) == ("rows_float16_3_2", "float16", (3, 2))
    assert (planes.name, planes.numbers) == ("planes_float32_5", (5,))
    assert planes.is_called("planes_kernel<float, 5, false>")
    assert planes.is_called("planes_kernel<float, 5>")
    assert not planes.is_called("planes_kernel<float, 57, false>")
    assert not planes.is_called("planes_kernel<double, 5, false>")


def test_predicted_times_follow_what_binds() -> None:
    device = next(d for d in gpus.DEVICES if d.arch == "90")
    cycles = device.multiprocessors * device.clock
    work = gpus.Work(bytes=device.bandwidth, operations=0, instructions=0, shared_bytes=0)
    parts = gpus.predict(work, device)
    assert (gpus.binding(parts), parts["memory"]) == ("memory", 1.0)
    assert gpus.total(parts) == pytest.approx(1 + gpus.LAUNCH)
    for part, work in {
        "fp": gpus.Work(0, 128 * cycles, 0, 0),
        "issue": gpus.Work(0, 0, 128 * cycles, 0),
        "shared": gpus.Work(0, 0, 0, 128 * cycles),
    }.items():
        parts = gpus.predict(work, device)
        assert gpus.binding(parts) == part
        assert parts[part] == pytest.approx(1.0)
    assert gpus.binding(gpus.predict(gpus.Work(1, 1, 1, 1), device)) == "launch"
    assert gpus.device_named("NVIDIA A100-SXM4-80GB") == gpus.DEVICES[2]
    assert gpus.device_named("NVIDIA Unheard-of 9000") is None
    assert work.times(2).shared_bytes == 256 * cycles
