"""Peak memory of a training step, program by program, each in processes of its own.

    python benchmarks/step_memory.py                       # article and dcgan28, batch 128; writes a result file
    python benchmarks/step_memory.py --network dcgan64 --batch 32 --no-file

"peak" is the most resident memory (VmHWM) that the process had in any of its steps. "step" is what of it came on top of
what was resident before the first one, with the libraries, the networks and the data in place: the part that a
program answers for. Optimisers make their moments in the first step. glibc's and the kernels' pools keep freed blocks;
what they keep is resident, and counted. A figure is the median over the processes: which blocks glibc's pool can put
together again depends on their addresses, so that eager PyTorch's own peak varies by a tenth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
import torch

from gan_fast.suite import steps

NETWORKS = ("article", "dcgan28")
STEPS = 8  # the second one meets what the first one kept; some steps later nothing changes
MIB = 1 << 20
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """VmRSS (now) or VmHWM (the most so far), in bytes."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def run_here(network: str, batch: int, name: str) -> dict[str, int]:
    """Run one program in this process and look at its memory."""
    real, z = steps.inputs(network, batch)
    step = steps.recipes(steps.networks(network), real, z, bf16=True)[name]()
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the matrix library's own buffers
    before = resident("VmRSS")
    CLEAR.write_text("5", encoding="ascii")  # forget the peak that imports had
    for _ in range(STEPS):
        step()
    peak = resident("VmHWM")
    return {"peak": peak, "step": peak - before}


def run_apart(network: str, batch: int, name: str, runs: int) -> dict[str, Any]:
    """The same in fresh processes: the medians, and each one's peak."""
    command = [sys.executable, __file__, "--inner", name, "--network", network, "--batch", str(batch)]
    found: list[dict[str, int]] = []
    for _ in range(runs):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(done.returncode)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {key: statistics.median(one[key] for one in found) for key in ("peak", "step")}
    return {**medians, "peaks": [one["peak"] for one in found]}


def table(network: str, results: dict[str, dict[str, Any]]) -> str:
    """The figures as text; the ratio is to the leanest program of plain PyTorch in fp32."""
    plain = [result for name, result in results.items() if not name.startswith("gan_fast") and "bf16" not in name]
    peak, step = (min(result[key] for result in plain) for key in ("peak", "step"))
    lines = [f"{network:34s} {'peak MiB':>9s} {'x eager':>8s} {'step MiB':>9s} {'x eager':>8s} {'peaks':>9s}"]
    for name, result in results.items():
        lines.append(
            f"{name:34s} {result['peak'] / MIB:9.0f} {result['peak'] / peak:8.2f} "
            f"{result['step'] / MIB:9.0f} {result['step'] / step:8.2f} "
            f"{min(result['peaks']) / MIB:4.0f}-{max(result['peaks']) / MIB:.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--network", choices=steps.NETWORKS, action="append", help=f"may be repeated ({', '.join(NETWORKS)})"
    )
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--program", action="append", help="only this one; may be repeated")
    parser.add_argument("--runs", type=int, default=3, help="processes per program")
    parser.add_argument("--no-file", action="store_true", help="print only")
    parser.add_argument("--inner", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    networks = arguments.network or NETWORKS
    if arguments.inner:
        print(json.dumps(run_here(networks[0], arguments.batch, arguments.inner)))
        return
    results: dict[str, Any] = {}
    for network in networks:
        names = steps.recipes(steps.networks(network), *steps.inputs(network, arguments.batch), bf16=True)
        chosen = [name for name in names if name in (arguments.program or names)]
        results[network] = {name: run_apart(network, arguments.batch, name, arguments.runs) for name in chosen}
        print(table(network, results[network]), flush=True)
    if not arguments.no_file:
        path = machine.result_file()
        path = path.with_name(f"{path.stem}-step-memory-b{arguments.batch}.json")
        content = {
            "machine": machine.describe(),
            "batch": arguments.batch,
            "steps": STEPS,
            "runs": arguments.runs,
            "results": results,
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(path.relative_to(machine.ROOT))


if __name__ == "__main__":
    main()
