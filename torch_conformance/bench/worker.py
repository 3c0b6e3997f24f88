"""One side of a paired timing: builds kernels and times short blocks of calls when it is told to.

Started by path, in any interpreter that has torch: ``python worker.py [--device cpu] [--threads 1]``. It
speaks JSON lines: first a line about itself, then one reply to each request read from standard input.

    {"do": "probe", "seconds": 0.01}         spin, and say what share of a CPU was had          -> {"share": 0.98}
    {"do": "build", "kernel": NAME}          build a kernel at a random address                 -> {"built": true}
    {"do": "rough"}                          time one call roughly                              -> {"ns": 5210.0}
    {"do": "block", "calls": 95}             warm up, then time samples of that many calls      -> {"ns": 5105.2}
    {"do": "quit"}

`ns` is nanoseconds a call. A kernel that this torch lacks is answered by {"unsupported": "why"}, any other
failure by {"error": "why"}. "copy:BYTES" and "triad:BYTES" are kernels too. `"slowdown": 0.05` in a block
plants a busy loop of that share of each sample: the means by which the method's power is measured.

Where things lie in memory is left to chance on purpose, and often: a kernel is built several times at random
addresses, and each sample is taken at another depth of the stack. Both move times by 5 to 30 % without any
change in torch; the best of several draws is stable, one draw is not.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

SAMPLES = 2
FAR = 1 << 25  # bytes between two places of a kernel, at most: elsewhere in every cache
DEPTHS = 16
WARM_NS = 200_000
ROUGH_NS = 300_000


def load_kernels() -> Any:
    """The module beside this file, without its folder on the path, where it could shadow other imports."""
    spec = importlib.util.spec_from_file_location("kernels", Path(__file__).with_name("kernels.py"))
    assert spec is not None
    assert spec.loader is not None
    sys.modules["kernels"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """`time(call, calls)` gives nanoseconds: by the wall clock, waiting for a device, or by CUDA's events."""

    def __init__(self, device: str) -> None:
        import torch

        kind = device.partition(":")[0]
        self.wait: Callable[[], Any] = getattr(getattr(torch, kind, None), "synchronize", lambda: None)
        self.time = self._events if kind == "cuda" else self._wall

    def _wall(self, call: Callable[[], Any], calls: int) -> float:
        self.wait()
        start = time.perf_counter_ns()
        for _ in repeat(None, calls):
            call()
        self.wait()
        return time.perf_counter_ns() - start

    def _events(self, call: Callable[[], Any], calls: int) -> float:
        import torch

        start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self.wait()
        start.record()
        for _ in repeat(None, calls):
            call()
        end.record()
        self.wait()
        return float(start.elapsed_time(end)) * 1e6


class Worker:
    """Answers the requests; one kernel is held at a time."""

    def __init__(self, device: str) -> None:
        self.kernels = load_kernels()
        self.device = device
        self.clock = Clock(device)
        self.call: Callable[[], Any] = lambda: None
        self.padding: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            reply: dict[str, Any] = getattr(self, "do_" + request.pop("do"))(**request)
            return reply
        except self.kernels.Unsupported as missing:
            return {"unsupported": str(missing)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}

    def do_probe(self, seconds: float) -> dict[str, Any]:
        start, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            pass
        return {"share": (time.process_time() - cpu) / (time.perf_counter() - start)}

    def do_build(self, kernel: str, seed: int = 0) -> dict[str, Any]:
        import torch

        self.call = lambda: None  # the last kernel's memory is free before the next
        self.padding = None
        self.padding = torch.empty(random.randrange(FAR), dtype=torch.uint8)  # untouched, it costs nothing
        self.call = self._build(kernel, seed)
        return {"built": True}

    def _build(self, kernel: str, seed: int) -> Any:
        limit, _, size = kernel.partition(":")
        if size:
            return getattr(self.kernels, "build_" + limit)(int(size), self.device)
        return self.kernels.build(self.kernels.Kernel.parse(kernel), self.device, seed)

    def do_rough(self) -> dict[str, Any]:
        times: list[float] = []
        while len(times) < 3 or (sum(times) < ROUGH_NS and len(times) < 20):
            times.append(self.clock.time(self.call, 1))
        return {"ns": min(times)}

    def do_block(self, calls: int, slowdown: float = 0.0) -> dict[str, Any]:
        """The best of the samples that were not interrupted (of all, when all were)."""
        until = time.perf_counter_ns() + WARM_NS
        while time.perf_counter_ns() < until:
            self.clock.time(self.call, 1)
        samples = []
        for _ in range(SAMPLES):
            before = preemptions()
            ns = at_depth(random.randrange(DEPTHS), self.clock.time, self.call, calls)
            ns += spin(slowdown * ns)
            samples.append((preemptions() > before, ns / calls))
        return {"ns": min(ns for interrupted, ns in samples if interrupted == min(samples)[0])}


def at_depth(depth: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls it from further down the stack of C, which a plain Python call would leave where it is."""
    return partial(at_depth, depth - 1, function, *arguments)() if depth else function(*arguments)


def spin(nanoseconds: float) -> float:
    """Keeps the CPU busy for so long; returns the nanoseconds it took."""
    start = now = time.perf_counter_ns()
    while now - start < nanoseconds:
        now = time.perf_counter_ns()
    return now - start


def preemptions() -> int:
    """How often the scheduler has taken this process off its CPU; 0 where it cannot be asked."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def describe(device: str) -> dict[str, Any]:
    """What is said of this side in reports: version, build, interpreter, CPU capability."""
    import torch

    build = next((f"{name} {v}" for name in ("cuda", "hip", "xpu") if (v := getattr(torch.version, name, None))), "cpu")
    capability = getattr(getattr(torch.backends, "cpu", None), "get_cpu_capability", lambda: "unknown")()
    return {
        "torch": torch.__version__,
        "git": torch.version.git_version,
        "build": build,
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "device": device,
        "threads": torch.get_num_threads(),
        "cpu_capability": capability,
    }


def keep_bytecode(folder: str) -> None:
    """Where torch was installed without bytecode and none may be written beside it, it is kept in `folder`.

    Otherwise every worker would compile torch's sources again.
    """
    torch = importlib.util.find_spec("torch")
    if sys.dont_write_bytecode and torch and not (torch.cached and os.path.exists(torch.cached)):
        sys.pycache_prefix, sys.dont_write_bytecode = folder, False


def main() -> None:
    parser = argparse.ArgumentParser(description="one side of a paired timing; see the module's docstring")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpus", help="comma separated; where to stay while importing")
    parser.add_argument("--bytecode", metavar="DIR", help="where bytecode may be kept that torch comes without")
    options = parser.parse_args()
    if options.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in options.cpus.split(",")})
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]
    if options.bytecode:
        keep_bytecode(options.bytecode)
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not end up among the replies
    gc.disable()  # before the import, a tenth of which it would take

    import torch

    torch.set_num_threads(options.threads)
    worker = Worker(options.device)
    worker.do_build("layer_norm/s/float32/backward")  # the first backward pass imports more of torch
    print(json.dumps(describe(options.device)), file=replies)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "quit":
            return
        print(json.dumps(worker.answer(request)), file=replies)


if __name__ == "__main__":
    main()
