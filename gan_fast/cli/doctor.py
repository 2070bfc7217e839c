"""``gan-fast doctor``: what is installed and built here, who serves what, whether every kernel computes right.

Works with and without the compiled module. Exit status 1 if a self-test fails, else 0. ``--json``: the same as data.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from gan_fast.machine import cpu_model

OPENMP_LIBRARY = re.compile(r"\blib(gomp|iomp5|omp5?)(-\w+)?\.(so|dylib|dll)[.\d]*$")

# Whose layers are listed with the backend that serves them, with batches as they are trained.
TYPICAL_NETWORKS = (("keras_mnist", 128), ("dcgan28", 128), ("dcgan64", 64))
TYPICAL_SIZES = (("bias_act", 128 * 128 * 14 * 14), ("bce_with_logits", 128), ("bce_with_logits", 16 * 64 * 64))


def add_parser(subparsers: Any) -> None:
    """Add the ``doctor`` subcommand to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="what is built here, which backend serves what, and a self-test of every kernel",
        description="Prints versions, CPU and build, the backends and their choice for typical shapes, and checks "
        "every kernel's numbers against float64. Exit status 1 if a check fails.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if a self-test failed, else 0."""
    report = collect()
    print(json.dumps(report, indent=2) if args.json else render(report))
    return 0 if report["self_test"]["failed"] == 0 else 1


def collect() -> dict[str, Any]:
    """The whole report as plain data (what ``--json`` prints)."""
    import torch

    from gan_fast import backends

    module = backends.extension()
    report: dict[str, Any] = {
        "versions": _versions(),
        "cpu": {
            "model": cpu_model(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "level": module.isa() if module is not None else None,
            "levels": list(module.isa_levels()) if module is not None else [],
        },
        "threads": {
            "torch": torch.get_num_threads(),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        },
        "build": {
            "compiled_module": getattr(module, "__file__", None),
            "info": dict(module.build_info()) if module is not None else {},
            "import_error": backends.extension_error(),
            "build_error": build_error(),
        },
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith("GAN_FAST_")},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "backends": {name: {"available": ok, "reason": why} for name, (ok, why) in backends.available().items()},
        "choices": _choices(),
        "self_test": _self_test(),
    }
    report["openmp"] = openmp_runtimes()  # last: by now everything that brings one is loaded
    libraries = {"torch": str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")}
    if module is not None:
        libraries["gan_fast"] = str(module.__file__)
    report["openmp_of"] = {name: openmp_of(path) for name, path in libraries.items()}
    report["warnings"] = _warnings(report)
    return report


def _versions() -> dict[str, str | None]:
    import torch

    import gan_fast

    found: dict[str, str | None] = {
        "gan_fast": gan_fast.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
    }
    for name in ("numpy", "scikit-learn", "matplotlib", "triton"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def build_error() -> str | None:
    """The compiler's first error, which a build that failed leaves beside the package; None if there was none."""
    spec = importlib.util.find_spec("gan_fast")
    if spec is None or spec.origin is None:
        return None
    note = Path(spec.origin).parent / "_build_error.txt"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else None


def openmp_runtimes(maps: str | None = None) -> list[str]:
    """Paths of the OpenMP runtimes loaded in this process (Linux), from ``maps`` or the process's own memory map."""
    if maps is None:
        try:
            maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
    paths = {line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split(maxsplit=5)) == 6}
    return sorted(path for path in paths if OPENMP_LIBRARY.search(path))


class _SymbolInfo(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def openmp_of(library: str) -> str | None:
    """The OpenMP runtime that a loaded shared library calls: where its omp_get_max_threads lies. None if it has none,
    is not loaded, or the system cannot tell.

    Several runtimes in one process are the rule (scikit-learn's wheel brings a copy of its own); who calls which is
    what matters.
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(library, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).omp_get_max_threads
    except (OSError, AttributeError):
        return None
    info = _SymbolInfo()
    found = ctypes.CDLL(None).dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(info))
    return os.path.realpath(os.fsdecode(info.file)) if found and info.file else None


def _choices() -> list[dict[str, str]]:
    """Which backend the automatic choice takes for the layers of typical networks, in each pass, and why."""
    import torch

    from gan_fast import backends, explain, models

    found = []
    for name, batch in TYPICAL_NETWORKS:
        with torch.random.fork_rng(devices=[]):
            generator, discriminator = models.build(name)
        shapes: tuple[Any, ...] = (generator.latent_shape, generator.sample_shape)
        for part, network, shape in zip("GD", (generator, discriminator), shapes, strict=True):
            for row in explain(network, (batch, *shape)):
                passes = {"forward": row.forward, "input_grad": row.input_grad, "weight_grad": row.weight_grad}
                found.append(
                    {
                        "where": f"{name} {part}.{row.name} {row.layer}, batch {batch}",
                        **{which: choice.backend for which, choice in passes.items()},
                        "reason": _short(row.forward.reason),
                    }
                )
    for op, elements in TYPICAL_SIZES:
        try:
            backend, reason = backends.choose(op, elements=elements)
        except (RuntimeError, ValueError) as error:  # GAN_FAST_BACKEND names one that cannot run
            backend, reason = "none", str(error)
        found.append({"where": f"{op}, {elements} elements", "forward": backend, "reason": _short(reason)})
    return found


def _short(reason: str) -> str:
    """The reason without the details in parentheses at its end, which the report gives once, above the list."""
    return re.sub(r" \(.*\)$", "", reason)


def _self_test() -> dict[str, Any]:
    from gan_fast.cli import _selftest

    results = list(_selftest.run())
    return {
        "bound": _selftest.LARGEST_RATIO,
        "passed": sum(result.ok for result in results),
        "failed": sum(not result.ok for result in results),
        "results": [
            {"backend": r.backend, "level": r.level, "case": r.case, "ratio": _number(r.ratio), "problem": r.problem}
            for r in results
        ],
    }


def _number(value: float) -> float | None:
    """The value as JSON can hold it: no NaN, no infinity."""
    return round(value, 4) if math.isfinite(value) else None


def _warnings(report: dict[str, Any]) -> list[str]:
    found = []
    ours, theirs = report["openmp_of"].get("gan_fast"), report["openmp_of"]["torch"]
    if ours is not None and theirs is not None and ours != theirs:
        found.append(
            f"gan_fast's kernels use {ours} and torch uses {theirs}: two pools of threads compete for the cores; build "
            "gan_fast with the compiler family that torch was built with, or set OMP_NUM_THREADS=1"
        )
    if report["build"]["build_error"]:
        found.append(
            f"built without CPU kernels: {report['build']['build_error']} "
            "(install a C++ compiler and the Python headers, then install gan_fast again)"
        )
    return found


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    versions, cpu, build = report["versions"], report["cpu"], report["build"]
    lines = ["gan_fast doctor", "", "versions"]
    lines += [f"  {name:<13} {value or 'not installed'}" for name, value in versions.items()]
    lines += ["", "machine", f"  cpu           {cpu['model']} ({cpu['machine']}, {cpu['cores']} cores)"]
    threads = report["threads"]
    lines += [f"  threads       {threads['torch']} (OMP_NUM_THREADS={threads['OMP_NUM_THREADS'] or 'not set'})"]
    lines += [f"  cuda          {report['cuda'] or 'no device'}"]
    lines += [f"  OpenMP        {_whose(path, report['openmp_of'])}" for path in report["openmp"]]
    lines += [] if report["openmp"] else ["  OpenMP        none found"]
    lines += [f"  environment   {name}={value}" for name, value in report["environment"].items()]
    lines += ["", "compiled module"]
    if build["compiled_module"]:
        lines += [f"  file          {build['compiled_module']}", f"  level in use  {cpu['level']}"]
        lines += [f"  levels here   {', '.join(cpu['levels'])}"]
        lines += [f"  {name:<13} {value}" for name, value in build["info"].items()]
    else:
        lines += ["  not there: every operator runs on PyTorch", f"  import        {build['import_error']}"]
        lines += [f"  build         {build['build_error'] or 'left no error'}"]
    lines += ["", "backends"]
    for name, entry in report["backends"].items():
        lines.append(f"  {name:<13} {'yes' if entry['available'] else 'no '}  {entry['reason']}")
    lines += ["", "who serves what (fp32 on the CPU): forward, gradient of the input, gradient of the weight"]
    for choice in report["choices"]:
        served = " ".join(f"{choice.get(which, ''):<9}" for which in ("forward", "input_grad", "weight_grad"))
        lines.append(f"  {choice['where']:<54} {served} {choice['reason']}")
    test = report["self_test"]
    lines += ["", f"self-test: error against float64, as a multiple of PyTorch's own (bound {test['bound']:g})"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in test["results"]:
        groups.setdefault((result["backend"], result["level"]), []).append(result)
    for (backend, level), results in groups.items():
        failed = [result for result in results if result["problem"]]
        worst = max((result["ratio"] for result in results if result["ratio"] is not None), default=0.0)
        state = f"FAILED {len(failed)} of {len(results)}" if failed else f"ok, {len(results)} cases, worst {worst:.2f}"
        lines.append(f"  {f'{backend} {level}'.strip():<24} {state}")
        lines += [f"    {result['case']}: {result['problem']}" for result in failed]
    lines += ["", *(f"warning: {text}" for text in report["warnings"])]
    lines.append(f"self-test: {test['passed']} passed, {test['failed']} failed")
    return "\n".join(lines)


def _whose(runtime: str, used: dict[str, str | None]) -> str:
    """An OpenMP runtime's path and who calls it. That of another package is no trouble: its threads sleep outside that
    package's own work."""
    users = [name for name, path in used.items() if path == os.path.realpath(runtime)]
    return f"{runtime} ({' and '.join(users) or 'other packages'})"
