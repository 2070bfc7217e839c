"""One training step of a GAN: gan_fast against the programs of gan_fast.suite.peers, interleaved in one process.

    python benchmarks/train_step.py                        # article, batch 128, both allocators; writes a result file
    python benchmarks/train_step.py --network article_act --batch 64 --rounds 20 --allocator default

The allocator matters: glibc gives every large tensor back to the system and faults it in again on the next step,
which alone costs eager PyTorch about 1.3x. "tuned" is eager with that switched off (GLIBC_TUNABLES), the harder
comparison.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import machine
import torch

from gan_fast import tuning
from gan_fast.suite import results, steps

TUNED = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=10000000000"
ALLOCATORS = ("default", "tuned")


def run_here(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure under the allocator that this process has."""
    name = arguments.network
    real, z = steps.inputs(name, arguments.batch)
    others = [peer for peer in arguments.peers.split(",") if peer]
    recipes = steps.recipes(steps.networks(name), real, z, bf16=arguments.bf16, others=others)
    rows, losses = steps.measure(name, recipes, arguments.batch, arguments.rounds, tuning.calibration())
    for row in rows:
        if row.wrong or row.missing:
            raise SystemExit(f"{row.program}: {row.wrong or row.missing}; no times")
    fields = ("seconds", "quartiles", "rounds", "trusted", "peak")
    times: dict[str, dict[str, Any]] = {row.program: {key: getattr(row, key) for key in fields} for row in rows}
    for row in rows:
        times[row.program]["ratio"] = results.ratio(rows[0], row).value  # to BASELINE, which comes first
    return {"first_losses": losses, "times": times}


def run_apart(arguments: argparse.Namespace, allocator: str) -> dict[str, Any]:
    """Measure in a process of its own, since the allocator is chosen when a process starts."""
    environment = dict(os.environ)
    environment.pop("GLIBC_TUNABLES", None)
    if allocator == "tuned":
        environment["GLIBC_TUNABLES"] = TUNED
    command = [sys.executable, __file__, "--inner", *sys.argv[1:]]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def table(arguments: argparse.Namespace, found: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{arguments.network}, batch {arguments.batch}, {machine.describe()['cpu']}, {torch.get_num_threads()} threads"
    ]
    for allocator, result in found.items():
        times = result["times"]
        lines.append(
            f"\n{allocator + ' allocator':32s} {'ms':>8s} {'quartiles':>17s} {'img/s':>7s} {'x ' + steps.BASELINE:>16s}"
        )
        for name, time in times.items():
            lower, upper = (1e3 * quartile for quartile in time["quartiles"])
            milliseconds = 1e3 * time["seconds"]
            lines.append(
                f"{name:32s} {milliseconds:8.1f} {lower:8.1f}-{upper:<8.1f} {arguments.batch / time['seconds']:7.0f} "
                f"{time['ratio']:16.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=steps.NETWORKS, default="article")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12, help="turns of each program")
    parser.add_argument("--allocator", choices=[*ALLOCATORS, "both"], default="both")
    parser.add_argument("--bf16", action="store_true", help="add eager bf16 autocast")
    parser.add_argument("--peers", default="", help="add others: compile,jax,tensorflow")
    parser.add_argument("--no-file", action="store_true", help="print only")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        print(json.dumps(run_here(arguments)))
        return
    allocators = ALLOCATORS if arguments.allocator == "both" else (arguments.allocator,)
    found = {allocator: run_apart(arguments, allocator) for allocator in allocators}
    print(table(arguments, found))
    if not arguments.no_file:
        path = machine.result_file().with_name(
            machine.result_file().stem + f"-train-step-{arguments.network}-b{arguments.batch}.json"
        )
        content = {
            "machine": machine.describe(),
            "network": arguments.network,
            "batch": arguments.batch,
            "results": found,
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"\n{path.relative_to(machine.ROOT)}")


if __name__ == "__main__":
    main()
