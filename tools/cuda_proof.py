#!/usr/bin/env python3
"""What nvcc makes of csrc/cuda, without a GPU: `make gpu-proof` runs this too.

    python3 tools/cuda_proof.py [--write]

Compiles every source for every target of setup.py with its flags, warnings being errors, and reads the binaries: no
register may be spilled, every product must be the matrix unit's with no instruction more than the block of the result
needs, and loads must be of 16 bytes where the text asks for that. What was read is compared with
tests/golden/cuda-VERSION.json, for the nvcc of that version; --write rewrites that file, nothing else does. Needs nvcc,
and a cuobjdump: CUDA's own, or that of a Triton. Standard library only.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"
PRODUCTS = ("bfloat16", "float16", "tf32", "ieee")
MATRIX = {"bfloat16": "HMMA.16816.F32.BF16", "float16": "HMMA.16816.F32", "tf32": "HMMA.1688.F32.TF32"}
#: A kernel's name -> what its constants are called in a label, in their order.
CONSTANTS: dict[str, tuple[str, ...]] = {
    "add_parts_kernel": ("product",),
    "bce_kernel": ("product",),
    "conv_kernel": ("product", "tiles", "aligned"),
    "grad_kernel": ("product",),
    "transpose_kernel": ("product", "tiles", "aligned"),
}
#: Matrix instructions of a pass through a kernel's inner loop, for each of its tiles of 8 columns, or in all: each does
#: 16 rows and 8 words; a warp has 32 rows and 16 words (conv_kernel), or 16, 8 and four tiles (grad_kernel).
INSTRUCTIONS = {"conv_kernel": 4, "transpose_kernel": 1, "grad_kernel": 4}


def of_setup(name: str) -> Any:
    """A constant of setup.py, which cannot be imported without building."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    found = re.search(rf"^{name} = (.+)$", text, re.MULTILINE)
    assert found is not None, f"setup.py defines no {name}"
    return ast.literal_eval(found[1])


def nvcc_version(nvcc: str) -> str:
    """Its release, such as 13.0."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return "".join(re.findall(r"release ([0-9.]+),", text)[:1])


def find_cuobjdump() -> str | None:
    """CUDA's own, or the newest one that a Triton of `make gpu-proof` brought."""
    found = shutil.which("cuobjdump")
    inside = "lib/python*/site-packages/triton/backends/nvidia/bin/cuobjdump"
    others = sorted((ROOT / "build" / "gpu-proof").glob(f"triton-*/{inside}"))
    others += sorted(Path(sys.prefix).glob(inside))
    return found or (str(others[-1]) if others else None)


def label_of(symbol: str) -> tuple[str, dict[str, str]]:
    """A kernel's name and constants from its symbol."""
    kernel = next(name for name in CONSTANTS if name in symbol)
    values = re.findall(r"L(?:NS\w*?ProductE|i|b)(\d+)E", symbol[symbol.index(kernel) :])
    constants = dict(zip(CONSTANTS[kernel], values, strict=False))
    constants["product"] = PRODUCTS[int(constants["product"])]
    return kernel, constants


def read(cuobjdump: str, cubin: Path) -> dict[str, dict[str, Any]]:
    """Symbol -> what its code holds."""

    def dump(option: str) -> str:
        return subprocess.run([cuobjdump, option, cubin], capture_output=True, text=True, check=True).stdout

    usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", dump("-res-usage"))
    found: dict[str, dict[str, Any]] = {}
    texts = re.split(r"Function : (\S+)\n", dump("-sass"))[1:]
    codes = dict(zip(texts[::2], texts[1::2], strict=True))
    for symbol, registers, stack, shared in usage:
        counts = Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z][\w.]*)", codes[symbol], re.MULTILINE))
        local = sum(n for name, n in counts.items() if name.startswith(("LDL", "STL")))
        found[symbol] = {
            "registers": int(registers),
            "stack_bytes": int(stack),
            "local_accesses": local,
            "static_shared": int(shared),
            "matrix": {name: n for name, n in sorted(counts.items()) if name.startswith(("HMMA", "IMMA", "QMMA"))},
            "loads_of_16_bytes": sum(n for name, n in counts.items() if name.startswith("LDG.E.128")),
            "stores_of_16_bytes": sum(n for name, n in counts.items() if name.startswith("STG.E.128")),
        }
    return found


def compile_for(nvcc: str, cuobjdump: str, source: Path, target: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Label -> what the binary holds; nothing for PTX, which only has to compile. RuntimeError with nvcc's output."""
    virtual = target.replace("sm_", "compute_")
    out = folder / f"{source.stem}-{target}"
    kind = ["-ptx", f"-arch={virtual}"] if target == virtual else ["-cubin", f"-gencode=arch={virtual},code={target}"]
    command = [nvcc, *of_setup("CUDA_FLAGS"), "-Xptxas", "-warn-spills", *kind, f"-I{ROOT / 'csrc'}", source, "-o", out]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{source.name} for {target}: {(done.stdout + done.stderr).strip()[-2000:]}")
    if target == virtual:
        return {}
    results = {}
    for symbol, holds in read(cuobjdump, out).items():
        kernel, constants = label_of(symbol)
        results[" ".join([target, kernel, *constants.values()])] = {
            **holds,
            "constants": {"kernel": kernel, **constants},
        }
    return results


def broken_rules(results: dict[str, dict[str, Any]]) -> list[str]:
    """What no kernel may do, whatever the golden file says."""
    wrong = []
    for label, found in results.items():
        constants = found["constants"]
        if found["stack_bytes"] or found["local_accesses"]:
            wrong.append(f"{label}: spills ({found['stack_bytes']} bytes, {found['local_accesses']} accesses)")
        unit, times = MATRIX.get(constants["product"]), INSTRUCTIONS.get(constants["kernel"])
        wanted = {} if unit is None or times is None else {unit: times * int(constants.get("tiles", 1))}
        if found["matrix"] != wanted:
            wrong.append(f"{label}: multiplies by {found['matrix']}, expected {wanted}")
        wide = "loads_of_16_bytes" if constants["kernel"] == "conv_kernel" else "stores_of_16_bytes"
        if constants.get("aligned") == "1" and not found[wide]:
            wrong.append(f"{label}: no {wide.replace('_', ' ')}")
    return wrong


def differences(results: dict[str, dict[str, Any]], golden: Path) -> list[str]:
    """Where the binaries differ from the golden file."""
    kept = json.loads(golden.read_text(encoding="utf-8"))
    wrong = [f"no longer compiled: {label}" for label in sorted(kept.keys() - results.keys())]
    for label, found in results.items():
        if label not in kept:
            wrong.append(f"not in the golden file: {label}")
        elif found != kept[label]:
            names = [name for name in found if found[name] != kept[label].get(name)]
            wrong += [f"{label}: {name} was {kept[label].get(name)}, is {found[name]}" for name in names]
    return wrong


def prove(write: bool) -> tuple[bool, list[str]]:
    """Everything: (whether all is well, lines of a summary)."""
    nvcc, start = shutil.which("nvcc"), time.monotonic()
    if nvcc is None:
        return True, ["CUDA module: no nvcc here, so it was not compiled"]
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        return False, ["CUDA module: no cuobjdump to read the binaries with: CUDA has one, and every Triton"]
    targets = of_setup("CUDA_TARGETS")
    sources = sorted(SOURCES.glob("*.cu"))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        made = [pool.submit(compile_for, nvcc, cuobjdump, s, t, Path(folder)) for s in sources for t in targets]
        try:
            for future in made:
                results.update(future.result())
        except RuntimeError as error:
            pool.shutdown(cancel_futures=True)
            return False, [f"CUDA module: does not compile: {error}"]
    version = nvcc_version(nvcc)
    golden = ROOT / "tests" / "golden" / f"cuda-{version}.json"
    if write:
        golden.write_text(json.dumps(dict(sorted(results.items())), indent=0) + "\n", encoding="utf-8")
    wrong = broken_rules(results)
    against = golden.name
    if golden.exists():
        wrong += differences(results, golden)
    else:
        against = f"no golden file (there is none for nvcc {version}; --write makes it)"
    lines = [f"  WRONG {line}" for line in wrong]
    units = Counter(unit for found in results.values() for unit in found["matrix"])
    most = max(found["registers"] for found in results.values())
    spills = sum(found["stack_bytes"] > 0 for found in results.values())
    lines.append(
        f"CUDA module, nvcc {version}: {len(sources)} sources for {', '.join(targets)}: {len(results)} kernels, "
        f"{spills} spill, at most {most} registers, {len(wrong)} wrong against {against} "
        f"({time.monotonic() - start:.0f} s); matrix units: {', '.join(f'{u} {n}' for u, n in sorted(units.items()))}"
    )
    return not wrong, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the golden file with what is found")
    good, lines = prove(parser.parse_args().write)
    print("\n".join(lines))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
