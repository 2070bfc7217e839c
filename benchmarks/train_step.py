"""One training step of a GAN: gan_fast against the programs of peers.py, interleaved in one process.

    python benchmarks/train_step.py                        # article, batch 128, both allocators; writes a result file
    python benchmarks/train_step.py --network article_act --batch 64 --rounds 20 --allocator default

The allocator matters: glibc gives every large tensor back to the system and faults it in again on the next step,
which alone costs eager PyTorch about 1.3x. "tuned" is eager with that switched off (GLIBC_TUNABLES), the harder
comparison.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import machine
import peers
import torch

import gan_fast
from gan_fast import tuning
from gan_fast.bench import interleaved

TUNED = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=10000000000"
ALLOCATORS = ("default", "tuned")
BASELINE = "textbook NCHW"
#: Another mathematics: its G descends against D before the update, so that g_loss differs by what D learns in a step.
SIMULTANEOUS = "gan_fast.Trainer, simultaneous"
#: Networks of gan_fast.models.
MODELS = ("dcgan28", "dcgan64")
#: Shapes of an image and of a latent, where they are not the article's.
SHAPES = {"dcgan64": ((3, 64, 64), (100, 1, 1)), "pytorch_gan_dcgan": ((1, 32, 32), (100,))}
#: In a discriminator, these layers rule the frozen programs out.
OF_ONE_BATCH = (torch.nn.modules.batchnorm._BatchNorm, torch.nn.modules.dropout._DropoutNd)
#: Losses of the first step, program against BASELINE: the same mathematics in another order of sums.
LARGEST_DIFFERENCE = 1e-3


def programs(network: str, real: torch.Tensor, z: torch.Tensor, bf16: bool) -> dict[str, Any]:
    """name -> a function that does one step and returns (d_loss, g_loss); all start from the same weights."""
    return {name: make() for name, make in recipes(network, real, z, bf16).items()}


def recipes(network: str, real: torch.Tensor, z: torch.Tensor, bf16: bool) -> dict[str, Callable[[], Any]]:
    """name -> what makes the function of `programs`, networks and optimisers included."""
    torch.manual_seed(0)
    original = gan_fast.models.build(network, accelerate=False) if network in MODELS else peers.NETWORKS[network]()
    together = any(isinstance(layer, OF_ONE_BATCH) for layer in original[1].modules())
    steps = {name: step for name, step in peers.STEPS.items() if not together or name == "textbook"}

    def eager(step: Any, accelerate: bool = False, **settings: Any) -> Any:
        networks = copy.deepcopy(original)
        if accelerate:
            gan_fast.accelerate(*networks)
        made = step(*networks, **settings)
        return lambda: made.step(real, z)

    def ours(**settings: Any) -> Any:
        return trained(copy.deepcopy(original), real, z, **settings)

    layouts = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
    found: dict[str, Callable[[], Any]] = {}
    for step_name, step in steps.items():
        for layout, memory_format in layouts.items():
            found[f"{step_name} {layout}"] = functools.partial(eager, step, memory_format=memory_format)
    if bf16:
        step_name, step = list(steps.items())[-1]  # the best there is for this network
        low = {"memory_format": torch.channels_last, "autocast": torch.bfloat16}
        found[f"{step_name} channels_last bf16"] = functools.partial(eager, step, **low)
    found["gan_fast.accelerate, textbook"] = functools.partial(eager, peers.Textbook, accelerate=True)
    found["gan_fast.Trainer"] = ours
    if not together:
        found[SIMULTANEOUS] = functools.partial(ours, update="simultaneous")
    return found


def trained(networks: Any, real: torch.Tensor, z: torch.Tensor, **settings: Any) -> Callable[[], Any]:
    """A step of the Trainer, as `programs` has them."""
    trainer = gan_fast.Trainer(
        *networks, latent_dim=tuple(z.shape[1:]), batch_size=len(z), outdir=None, progress=False, **settings
    )

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        metrics = trainer.train_step(real, z)
        return metrics.d_loss, metrics.g_loss

    return step


def check(made: dict[str, Any]) -> dict[str, list[float]]:
    """First losses of every program; raises if one of them computes something else."""
    losses = {}
    for name, run in made.items():
        torch.manual_seed(2)  # the same masks of dropout for all
        losses[name] = [float(value) for value in run()]
    for name, values in losses.items():
        allowed = 20 * LARGEST_DIFFERENCE if "bf16" in name else LARGEST_DIFFERENCE
        compared = values[:1] if name == SIMULTANEOUS else values
        worst = max(abs(a - b) for a, b in zip(compared, losses[BASELINE], strict=False))
        if not worst <= allowed:
            raise SystemExit(
                f"{name}: the first step's losses {values} differ from {BASELINE}'s {losses[BASELINE]}; no times"
            )
    return losses


def inputs(network: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Real images and latents for a network."""
    torch.manual_seed(1)
    images, latent = SHAPES.get(network, ((1, 28, 28), (100,)))
    return torch.rand(batch, *images) * 2 - 1, torch.randn(batch, *latent)


def run_here(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure under the allocator that this process has."""
    real, z = inputs(arguments.network, arguments.batch)
    made = programs(arguments.network, real, z, arguments.bf16)
    losses = check(made)
    return {
        "first_losses": losses,
        "times": interleaved.measure(made, arguments.rounds, calibration=tuning.calibration()),
    }


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


def table(arguments: argparse.Namespace, results: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{arguments.network}, batch {arguments.batch}, {machine.describe()['cpu']}, {torch.get_num_threads()} threads"
    ]
    for allocator, result in results.items():
        times = result["times"]
        base = times[BASELINE]["seconds"]
        lines.append(
            f"\n{allocator + ' allocator':32s} {'ms':>8s} {'quartiles':>17s} {'img/s':>7s} {'x ' + BASELINE:>16s}"
        )
        for name, time in times.items():
            lower, upper = (1e3 * quartile for quartile in time["quartiles"])
            milliseconds = 1e3 * time["seconds"]
            lines.append(
                f"{name:32s} {milliseconds:8.1f} {lower:8.1f}-{upper:<8.1f} {arguments.batch / time['seconds']:7.0f} "
                f"{base / time['seconds']:16.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=[*sorted(peers.NETWORKS), *MODELS], default="article")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12, help="turns of each program that must count")
    parser.add_argument("--allocator", choices=[*ALLOCATORS, "both"], default="both")
    parser.add_argument("--bf16", action="store_true", help="add eager bf16 autocast")
    parser.add_argument("--no-file", action="store_true", help="print only")
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inner:
        print(json.dumps(run_here(arguments)))
        return
    allocators = ALLOCATORS if arguments.allocator == "both" else (arguments.allocator,)
    results = {allocator: run_apart(arguments, allocator) for allocator in allocators}
    print(table(arguments, results))
    if not arguments.no_file:
        path = machine.result_file().with_name(
            machine.result_file().stem + f"-train-step-{arguments.network}-b{arguments.batch}.json"
        )
        content = {
            "machine": machine.describe(),
            "network": arguments.network,
            "batch": arguments.batch,
            "results": results,
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"\n{path.relative_to(machine.ROOT)}")


if __name__ == "__main__":
    main()
