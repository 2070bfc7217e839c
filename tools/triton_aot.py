#!/usr/bin/env python3
"""Compile every Triton kernel in every configuration for GPUs that are not here, and read what the binaries hold.

    python tools/triton_aot.py --out FILE.json [--only TEXT] [--arch 90] [--jobs 2]

The calls are the operators' own, on tensors without data: shapes of the article's layers, each with the tiles of
gan_fast/ops/triton_tiles.py. Needs triton; no GPU. tools/gpu_proof.py runs it and compares with the golden files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

ARCHITECTURES = (80, 90, 100)
MATRIX_INSTRUCTIONS = ("mma.sync", "wgmma.mma_async", "tcgen05.mma")
_POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "float64": "*fp64"}


class Call(NamedTuple):
    """One call of an operator to be compiled: its name, data type, and the tile that it is forced to take, if any."""

    name: str
    dtype: str
    tile: int | None


class Operation(NamedTuple):
    """A call with shapes in place of tensors, and the table that its tiles come from (None: it has none)."""

    operator: str
    arguments: tuple[Any, ...]
    tiles: str | None


def _operations() -> dict[str, Operation]:
    """Every kernel, at the shapes of the article's layers and their gradients."""
    up = ([2, 2], [1, 1], [1, 1], 1)  # Keras' padding="same" of a 5x5 kernel at stride 2
    down = ([2, 2], [0, 0], [1, 1], 1)
    same = ([1, 1], [3, 3], [1, 1], 1)
    x14, x28, one = (64, 128, 14, 14), (64, 128, 28, 28), (64, 1, 28, 28)
    k5 = (128, 128, 5, 5)
    no, leaky, tanh = ("none", 0.01), ("leaky_relu", 0.2), ("tanh", 0.01)
    statistics = ("float64", 128)
    return {
        "conv_transpose k5s2 bias leaky": Operation(
            "conv_transpose", (x14, k5, (128,), *up, [28, 28], *leaky, None, *no), "TILES"),
        "conv k5s2 prologue": Operation("conv", (x28, k5, None, *up, [14, 14], *no, x28, *leaky), "TILES"),
        "conv k3s2 from 1": Operation(
            "conv", (one, (128, 1, 3, 3), (128,), *down, [14, 14], *leaky, None, *no), "FLAT_TILES"),
        "conv_transpose k7 from 1 prologue": Operation(
            "conv_transpose", (one, (1, 128, 7, 7), None, *same, [28, 28], *no, one, *tanh), "FLAT_TILES"),
        "weight_grad k5s2 transposed prologue": Operation(
            "conv_weight_grad", (x14, x28, [5, 5], *up, True, True, x28, *leaky, True), "TILES"),
        "weight_grad from 1": Operation(
            "conv_weight_grad", (one, x14, [3, 3], *down, False, True, x14, *leaky, False), "FLAT_TILES"),
        "weight_grad k7 to 1": Operation(
            "conv_weight_grad", (x28, one, [7, 7], *same, False, True, one, *tanh, True), "FLAT_TILES"),
        "bias_act": Operation("bias_act", (x28, (128,), *leaky), None),
        "act_grad": Operation("act_grad", (x28, x28, *tanh), None),
        "bce constant": Operation("bce_with_logits", ((64, 1), None, 1.0, None, None, "mean"), None),
        "bce constant, one program": Operation(
            "bce_with_logits", ((4096, 1), None, 1.0, None, None, "mean"), None),
        "bce target": Operation("bce_with_logits", (one, one, 0.0, one, one, "mean"), None),
        "batch_norm_act": Operation("batch_norm_act", (x28, (128,), (128,), None, None, 1e-5, *leaky), None),
        "batch_norm_act_backward": Operation(
            "batch_norm_act_backward", (x28, x28, (128,), (128,), statistics, statistics, True, 1e-5, *leaky), None),
    }  # fmt: skip


def calls() -> Iterator[Call]:
    """Everything that is compiled."""
    from gan_fast.ops import triton_tiles

    for name, operation in _operations().items():
        if operation.tiles is None:
            for dtype in ("bfloat16", "float32"):
                yield Call(name, dtype, None)
            continue
        table = getattr(triton_tiles, operation.tiles)
        for dtype, kind in (("bfloat16", "half"), ("float16", "half"), ("float32", "tf32"), ("float32", "ieee")):
            # float16 differs from bfloat16 in one letter of the instruction: its largest tile is enough.
            for index in range(len(table[kind]) if dtype != "float16" else 1):
                yield Call(name, kind if dtype == "float32" else dtype, index)


def launches(call: Call) -> list[Any]:
    """What a call launches."""
    import torch

    from gan_fast.ops import OPERATORS, _triton, triton_tiles

    float32 = call.dtype in ("ieee", "tf32", "float32")
    dtype = torch.float32 if float32 else getattr(torch, call.dtype)
    torch.backends.cudnn.allow_tf32 = call.dtype == "tf32"
    operation = _operations()[call.name]

    def tensor(argument: Any) -> Any:
        if not isinstance(argument, tuple):
            return argument
        if argument[0] == "float64":
            return torch.empty(argument[1:], dtype=torch.float64, device="meta")
        last = torch.channels_last if len(argument) == 4 else torch.contiguous_format
        return torch.empty(argument, dtype=dtype, device="meta", memory_format=last)

    found: list[Any] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(_triton.recording(found.append))
        if call.tile is not None:
            table = getattr(triton_tiles, str(operation.tiles))
            stack.enter_context(_triton.tile(table[call.dtype if float32 else "half"][call.tile]))
        OPERATORS[operation.operator].implementations["triton"](*map(tensor, operation.arguments))
    return found


def compile_launch(launch: Any, arch: int) -> Any:
    """triton.compile of a launch for an architecture."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, dict(launch.constants), {}
    for index, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments.get(name)
        if isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[str(value.dtype).removeprefix("torch.")]
            attributes[(index,)] = [["tt.divisibility", 16]]  # PyTorch's allocator gives no less
        elif name in launch.constants or value is None:
            signature[name] = "constexpr"
            constants.setdefault(name, None)
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def read(compiled: Any, launch: Any) -> dict[str, Any]:
    """What the binary holds: registers, spills, shared memory, matrix instructions, wide loads."""
    import triton

    ptx: str = compiled.asm["ptx"]
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([program, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
    found: dict[str, Any] = {
        "registers": int(registers),
        "spilled_bytes": int(stack),
        "shared": int(compiled.metadata.shared),
        "warps": launch.warps,
        "mma": {kind: n for kind in MATRIX_INSTRUCTIONS if (n := len(re.findall(re.escape(kind) + r"\b", ptx)))},
        "copies_of_16_bytes": len(re.findall(r"cp\.async\.cg\.shared\.global", ptx)),
        "loads_of_16_bytes": len(re.findall(r"ld\.global[.\w:]*\.v4\.b32", ptx)),
    }
    block = [launch.constants.get(name) for name in ("BM", "BN", "BK")]
    if None in block:
        block = [launch.constants.get(name) for name in ("BA", "BB", "BK")]
    shapes = re.findall(r"(wgmma\.mma_async|mma\.sync)[.\w]*?\.m(\d+)n(\d+)k(\d+)", ptx)
    if shapes and None not in block:
        done = 0
        for kind, m, n, k in shapes:
            groups = launch.warps // 4 if kind.startswith("wgmma") else launch.warps
            done += int(m) * int(n) * int(k) * groups
        # Products of one pass through the inner loop: 1 where the code has one copy of it and nothing is padded.
        found["products_per_block"] = done / (block[0] * block[1] * block[2])
    return found


def work(task: tuple[Call, int]) -> dict[str, dict[str, Any]]:
    """Compile one call for one architecture: label -> what was read."""
    call, arch = task
    results = {}
    for launch in launches(call):
        tile = "x".join(str(launch.constants[n]) for n in ("BM", "BA", "BN", "BB", "BK") if n in launch.constants)
        label = f"sm_{arch} {call.name} {call.dtype} {launch.kernel.__name__} {tile} w{launch.warps} s{launch.stages}"
        results[label] = read(compile_launch(launch, arch), launch)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="the JSON file to write")
    parser.add_argument("--only", default="", help="only calls whose name or type contains this text")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHITECTURES, help="only this architecture")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    tasks = [
        (call, arch)
        for call in calls()
        for arch in options.arch or ARCHITECTURES
        if options.only in f"{call.name} {call.dtype}"
    ]
    results: dict[str, Any] = {}
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for found in pool.imap_unordered(work, tasks):
            results.update(found)
    Path(options.out).write_text(json.dumps(dict(sorted(results.items())), indent=0) + "\n", encoding="utf-8")
    print(f"{len(results)} kernels x configurations compiled in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
