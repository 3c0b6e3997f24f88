"""The norm kernels against the machine's limit: `pytest test_norms --benchmark-only`, or `tox -e bench`.

For exploring one installation. Two saved runs of it do not decide whether one torch is slower than another:
that is what `torch-conformance bench OLD NEW` is for (docs/benchmarks.md).
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import time

import pytest
import torch

from torch_conformance.bench import kernels
from torch_conformance.bench.kernels import Kernel
from torch_conformance.devices import default_devices

pytest.importorskip("pytest_benchmark")

DIRECTIONS = ("forward-train", "forward-eval", "forward-backward")
SLICE = 4 << 20  # bytes; longer copies are interrupted too often to show what the memory can do
DRAM = 256 << 20  # bytes of a copy; each array is several times any common last-level cache


# -- what is run ------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    places = []
    for device in metafunc.config.getoption("device", None) or default_devices():
        places += [(device, n) for n in thread_counts(device)]
    if "kernel" in metafunc.fixturenames:
        chosen = CASES[metafunc.function.__name__]
        cases = [case(kernel, *place) for place in places for kernel in chosen(place[0])]
        metafunc.parametrize("kernel, device, threads", cases)
    elif "operation" in metafunc.fixturenames:
        cases = [limit_case(name, *place) for place in places for name in ("copy", "triad")]
        metafunc.parametrize("operation, device, threads", cases)


def thread_counts(device: str) -> list[int]:
    """1 and all on the CPU; an accelerator is fed by one."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({1, available}) if device == "cpu" else [1]


def every_kernel(device: str) -> list[Kernel]:
    dtypes = ("float32", "bfloat16") + (() if device == "cpu" else ("float16",))
    contiguous = [Kernel(*choice) for choice in itertools.product(kernels.NORMS, kernels.SIZES, dtypes, DIRECTIONS)]
    images = itertools.product(("batch_norm", "group_norm"), ("l",), ("float32",), DIRECTIONS, ("channels_last",))
    return contiguous + [Kernel(*choice) for choice in images]


def with_formula(device: str) -> list[Kernel]:
    return [Kernel(norm, size, "float32", way) for norm in kernels.NORMS for size in "ml" for way in DIRECTIONS[1:]]


def with_compiler(device: str) -> list[Kernel]:
    return [Kernel(norm, "m", "float32", way) for norm in kernels.NORMS for way in DIRECTIONS[1:]]


CASES = {"test_kernel": every_kernel, "test_formula": with_formula, "test_compiled": with_compiler}


def case(kernel: Kernel, device: str, threads: int):
    """Everything that computes the same thing in the same place is one group, so that pytest-benchmark compares it."""
    group = f"{kernel.name} {device} x{threads}"
    return pytest.param(kernel, device, threads, id=group.replace(" ", "-"), marks=marks(group, device))


def limit_case(operation: str, device: str, threads: int):
    return pytest.param(operation, device, threads, id=f"{operation}-{device}-x{threads}", marks=marks("limit", device))


def marks(group: str, device: str):
    return pytest.mark.benchmark(
        group=group, timer=clock(device), min_rounds=5, min_time=0.0005, max_time=0.1, disable_gc=True, warmup=False
    )


@functools.cache
def clock(device: str):
    """Seconds, after all work queued on the device is done; on CUDA read from events, so the launch is not counted."""
    kind = torch.device(device).type
    if kind == "cpu":
        return time.perf_counter
    module = getattr(torch, kind)
    if kind != "cuda":

        def synchronised() -> float:
            module.synchronize()
            return time.perf_counter()

        return synchronised
    last, elapsed = [], [0.0]

    def events() -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        event.synchronize()
        elapsed[0] += last[0].elapsed_time(event) / 1000 if last else 0.0  # summed here: one float32 would run dry
        last[:] = [event]
        return elapsed[0]

    return events


# -- the benchmarks ---------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.getfixturevalue("threads"))
    yield
    torch.set_num_threads(before)


def test_limit(benchmark, operation, device, threads, table):
    """What the memory can do: STREAM's copy and triad on arrays that no cache holds."""
    slices = getattr(kernels, f"{operation}_slices")(DRAM, SLICE, device)
    benchmark.pedantic(lambda: [part() for part in slices], rounds=5, warmup_rounds=1)
    rate = memory_rate(operation, DRAM, device, threads)
    benchmark.extra_info.update(bytes=DRAM, gigabytes_per_second=rate)
    table.limit(f"{operation} of {DRAM >> 20} MiB on {device}, {threads} thread{'s' * (threads > 1)}", rate)


def test_kernel(benchmark, kernel, device, threads, table):
    """torch's own kernel."""
    run(benchmark, table, "kernel", kernel, device, threads, lambda: kernels.build(kernel, device))


def test_formula(benchmark, kernel, device, threads, table):
    """What a user writes who does not know the kernel."""
    run(benchmark, table, "formula", kernel, device, threads, lambda: kernels.build_formula(kernel, device))


def test_compiled(benchmark, kernel, device, threads, table):
    """The same, through torch.compile."""
    if device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler, and there is neither g++ nor clang++")
    build = functools.partial(kernels.build_formula, kernel, device, compiled=True)
    run(benchmark, table, "compiled", kernel, device, threads, build)


def run(benchmark, table, what, kernel, device, threads, build) -> None:
    try:
        call = build()
    except kernels.Unsupported as missing:
        pytest.skip(str(missing))
    benchmark(call)
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds, moved = benchmark.stats.stats.min, kernels.minimal_bytes(kernel)
    copy, triad = (memory_rate(name, rounded(moved), device, threads) for name in ("copy", "triad"))
    rate = moved / seconds / 1e9
    benchmark.extra_info.update(
        norm=kernel.norm, size=kernel.size, shape=list(kernel.shape), dtype=kernel.dtype, layout=kernel.layout,
        direction=kernel.direction, device=device, threads=threads, what=what, bytes=moved, gigabytes_per_second=rate,
        copy_gigabytes_per_second=copy, triad_gigabytes_per_second=triad,
        fraction_of_copy=rate / copy, fraction_of_triad=rate / triad,
    )  # fmt: skip
    if (ratio := table.add(what, kernel, device, threads, seconds, rate, rate / copy)) is not None:
        benchmark.extra_info["times_of_kernel"] = ratio


# -- the limit --------------------------------------------------------------------------------------------------


def rounded(total: int) -> int:
    """To the next eighth of a power of two, so that near sizes share one measurement."""
    step = 1 << max(0, total.bit_length() - 4)
    return -(-total // step) * step


@functools.cache
def memory_rate(operation: str, total: int, device: str, threads: int) -> float:
    """GB/s (bytes read plus bytes written, as STREAM counts) of an operation that touches `total` bytes.

    It is timed in slices, and the tenth part of the slices that is fastest says what the memory gives when
    nobody interferes.
    """
    slices = getattr(kernels, f"{operation}_slices")(total, SLICE if device == "cpu" else total, device)
    now, per_slice = clock(device), total / len(slices)
    calls = max(1, int(200_000 / per_slice))  # a small slice is run several times, or the clock would be measured
    for call in slices:
        call()
    times: list[float] = []
    until = time.perf_counter() + 0.05
    while len(times) < 20 or time.perf_counter() < until:
        for call in slices:
            start = now()
            for _ in range(calls):
                call()
            times.append((now() - start) / calls)
    return per_slice / sorted(times)[len(times) // 10] / 1e9


# -- the table --------------------------------------------------------------------------------------------------


class Table:
    """Collects the figures and prints them at the end of the run: one line a kernel, its alternatives as ratios."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Kernel, str, int], dict[str, float]] = {}
        self.limits: dict[str, float] = {}

    def limit(self, name: str, rate: float) -> None:
        self.limits[name] = rate

    def add(self, what, kernel, device, threads, seconds, rate, fraction) -> float | None:
        """Notes a result; the ratio to torch's own kernel, when that one is known."""
        row = self.rows.setdefault((kernel, device, threads), {})
        row[what] = seconds
        if what == "kernel":
            row.update(rate=rate, fraction=fraction)
            return None
        return seconds / row["kernel"] if "kernel" in row else None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.rows and not self.limits:
            return
        write = terminalreporter.write_line
        terminalreporter.section("norm kernels against the limit")
        for name, rate in self.limits.items():
            write(f"{name}: {rate:.1f} GB/s")
        write(f"{'kernel':<56}{'µs':>10}{'GB/s':>8}{'of copy':>9}{'formula':>9}{'compiled':>10}")
        for (kernel, device, threads), row in self.rows.items():
            if "kernel" not in row:
                continue
            ratios = "".join(
                f"{row[what] / row['kernel']:>{width - 2}.2f} ×" if what in row else " " * width
                for what, width in (("formula", 9), ("compiled", 10))
            )
            name = f"{kernel.name} {device} ×{threads}"
            write(f"{name:<56}{row['kernel'] * 1e6:>10.1f}{row['rate']:>8.1f}{row['fraction']:>9.0%}{ratios}".rstrip())


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    found = Table()
    request.config.pluginmanager.register(found, "norm-kernel-table")
    return found
