#!/usr/bin/env python3
"""Proof of the GPU kernels without a GPU: `make gpu-proof`.

    python3 tools/gpu_proof.py [--write] [--triton 3.6.0] [--skip-tests | --skip-compile]

For each Triton of tools/gpu_proof_constraints.txt, in an environment of its own under build/gpu-proof: the tests
tests/test_triton_*.py in its interpreter, against float64; then every kernel in every configuration compiled for three
architectures (tools/triton_aot.py), held to rules (no spills, shared memory, matrix instructions without padded work,
16-byte copies) and compared with tests/golden/triton-VERSION.json. Then the CUDA module (tools/cuda_proof.py), where
there is an nvcc. --write rewrites the golden files, nothing else does.
The last lines are the summary. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cuda_proof

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "tools" / "gpu_proof_constraints.txt"
#: What reads differently in another build of the same compiler, and says nothing about the kernel's work.
LOOSE = ("registers",)
SHARED_LIMIT = {80: 166912, 90: 232448, 100: 232448}
#: Open: (version of Triton, label) -> bytes that it spills, at the edge of a register budget; the GPU machines' version
#: (3.6.0) spills nothing. More than this, or anywhere else, is an error, and the summary counts them.
KNOWN_SPILLS = {
    ("3.9.0", "sm_90 conv k5s2 prologue ieee gather_conv 32x32x16 w4 s3"): 24,
    ("3.9.0", "sm_100 conv k5s2 prologue ieee gather_conv 64x64x16 w8 s3"): 24,
    ("3.9.0", "sm_100 conv_transpose k5s2 bias leaky bfloat16 gather_conv 128x128x32 w8 s4"): 8,
    ("3.9.0", "sm_100 weight_grad k5s2 transposed prologue bfloat16 partial_sums 128x64x32 w8 s4"): 8,
}
MATRIX_UNIT = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def pins() -> tuple[list[str], list[str]]:
    """(versions of Triton, the other pins)."""
    lines = [line.split("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines()]
    tritons = [line.partition("==")[2] for line in lines if line.startswith("triton==")]
    return tritons, [line for line in lines if line and not line.startswith("triton==")]


def environment(version: str) -> Path:
    """The Python of the environment for a version of Triton, made if it is not there."""
    folder = ROOT / "build" / "gpu-proof" / f"triton-{version}"
    python = folder / "bin" / "python"
    own = {line.split("==")[0]: line for line in pins()[1]}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = {line.split("==")[0]: line.strip() for line in lines if "==" in line}
    # The last three are what the Trainer, whose step's launches are counted, asks for beyond them.
    names = ("torch", "numpy", "pytest", "hypothesis", "setuptools", "pillow", "safetensors", "tqdm")
    wanted = [{**tested, **own}[name] for name in names]
    stamp = folder / "installed.txt"
    needed = "\n".join([*wanted, f"triton=={version}"])
    if stamp.exists() and stamp.read_text() == needed:
        return python
    print(f"making the environment with Triton {version}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
    index = os.environ.get("TORCH_INDEX")
    if index:
        subprocess.run([*pip, "--index-url", index, wanted[0]], check=True)
    # torch for CUDA asks for a Triton of its own; the one under test comes after it, whatever that says.
    subprocess.run([*pip, *wanted], check=True)
    subprocess.run([*pip, "--no-deps", f"triton=={version}"], check=True)
    stamp.write_text(needed)
    return python


def interpret(python: Path, record: Path) -> tuple[bool, str]:
    """The tests in the interpreter, in two processes: (passed, pytest's closing lines)."""
    tests = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/test_triton_*.py"))
    running = []
    for i, test in enumerate(tests):
        variables = {
            **os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
            "GAN_FAST_PROOF": str(record.with_suffix(f".{i}.json")),
        }  # fmt: skip
        Path(variables["GAN_FAST_PROOF"]).unlink(missing_ok=True)
        command = [python, "-m", "pytest", "-q", "-o", "addopts=--strict-markers", "-W", "ignore"]
        process = subprocess.Popen(
            [*command, "-p", "no:cacheprovider", test],
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
    outputs = [process.communicate()[0] for process in running]
    passed = all(process.returncode == 0 for process in running)
    if not passed:
        print("\n".join(outputs))
    merged: dict[str, Any] = {}
    for i in range(len(tests)):
        part = record.with_suffix(f".{i}.json")
        if part.exists():
            for kernel, entry in json.loads(part.read_text()).items():
                old = merged.setdefault(kernel, {"checks": 0, "worst": 0.0})
                old["checks"] += entry["checks"]
                old["worst"] = max(old["worst"], entry["worst"])
    record.write_text(json.dumps(merged))
    closings = [re.sub(r"^=+ | =+$", "", output.strip().splitlines()[-1]) for output in outputs if output.strip()]
    return passed, "; ".join(closings)


def broken_rules(version: str, results: dict[str, dict[str, Any]]) -> list[str]:
    """What no kernel may do, whatever the golden file says."""
    wrong = []
    for label, found in results.items():
        arch = int(re.match(r"sm_(\d+)", label).group(1))  # type: ignore[union-attr]  # every label starts with it
        if found["spilled_bytes"] > KNOWN_SPILLS.get((version, label), 0):
            wrong.append(f"{label}: spills {found['spilled_bytes']} bytes")
        if found["shared"] > SHARED_LIMIT[arch]:
            wrong.append(f"{label}: {found['shared']} bytes of shared memory, the device has {SHARED_LIMIT[arch]}")
        # flat_conv unrolls its steps, and the compiler drops halves that its taps do not reach.
        if "flat_conv" not in label and found.get("products_per_block", 1.0) != 1.0:
            wrong.append(f"{label}: {found['products_per_block']} times the products of its block: padded work")
        multiplies = any(kernel in label for kernel in ("gather_conv", "flat_conv", "partial_sums"))
        if multiplies and " ieee " not in label and list(found["mma"]) != [MATRIX_UNIT[arch]]:
            wrong.append(f"{label}: multiplies by {found['mma']}, expected {MATRIX_UNIT[arch]}")
        if "gather_conv" in label and not found["copies_of_16_bytes"]:
            wrong.append(f"{label}: no copies of 16 bytes")
    return wrong


def differences(results: dict[str, dict[str, Any]], golden: Path) -> list[str]:
    """Where the binaries differ from the golden file."""
    if not golden.exists():
        return [f"{golden.relative_to(ROOT)} is missing: --write makes it"]
    kept = json.loads(golden.read_text(encoding="utf-8"))
    wrong = [f"no longer compiled: {label}" for label in kept.keys() - results.keys()]
    for label, found in results.items():
        before = kept.get(label)
        if before is None:
            wrong.append(f"not in the golden file: {label}")
            continue
        for name in found.keys() | before.keys():
            if name not in LOOSE and found.get(name) != before.get(name):
                wrong.append(f"{label}: {name} was {before.get(name)}, is {found.get(name)}")
    return sorted(wrong)


def prove(version: str, options: argparse.Namespace) -> tuple[bool, list[str]]:
    """Everything for one version of Triton: (whether all is well, lines of the summary)."""
    python = environment(version)
    lines, good = [], True
    record = ROOT / "build" / "gpu-proof" / f"record-{version}.json"
    if not options.skip_tests:
        start = time.monotonic()
        good, closing = interpret(python, record)
        lines.append(f"Triton {version}, interpreter: {closing} ({time.monotonic() - start:.0f} s)")
        for kernel, entry in sorted(json.loads(record.read_text()).items()):
            lines.append(f"  {kernel}: {entry['checks']} checks, largest error {entry['worst']:.2f} of PyTorch's")
    if not options.skip_compile:
        out = ROOT / "build" / "gpu-proof" / f"compiled-{version}.json"
        variables = {**os.environ, "TRITON_CACHE_DIR": str(ROOT / "build" / "gpu-proof" / f"cache-{version}")}
        variables.pop("TRITON_INTERPRET", None)
        start = time.monotonic()
        compiled = subprocess.run([python, ROOT / "tools" / "triton_aot.py", "--out", out], cwd=ROOT, env=variables)
        if compiled.returncode != 0:
            return False, [*lines, f"Triton {version}: compilation failed"]
        results = json.loads(out.read_text())
        golden = ROOT / "tests" / "golden" / f"triton-{version}.json"
        if options.write:
            golden.write_text(out.read_text(encoding="utf-8"), encoding="utf-8")
        wrong = broken_rules(version, results) + differences(results, golden)
        good = good and not wrong
        lines += [f"  WRONG {line}" for line in wrong]
        spills = sum(found["spilled_bytes"] > 0 for found in results.values())
        units = {kind: sum(kind in found["mma"] for found in results.values()) for kind in MATRIX_UNIT.values()}
        lines.append(
            f"Triton {version}, compiled: {len(results)} kernels x configurations x architectures, {spills} spill, "
            f"{len(wrong)} differ ({time.monotonic() - start:.0f} s); matrix units: "
            + ", ".join(f"{kind} {number}" for kind, number in units.items())
        )
    return good, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the golden files with what is found")
    parser.add_argument("--triton", action="append", choices=pins()[0], help="only this version")
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--skip-compile", action="store_true")
    options = parser.parse_args()
    start = time.monotonic()
    summary, good = [], True
    for version in options.triton or pins()[0]:
        well, lines = prove(version, options)
        good = good and well
        summary += lines
    if not options.skip_compile:
        well, lines = cuda_proof.prove(options.write)
        good = good and well
        summary += lines
    print("\n".join(["", *summary]))
    print(f"gpu-proof: {'passed' if good else 'FAILED'} in {time.monotonic() - start:.0f} s (no GPU was used)")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
