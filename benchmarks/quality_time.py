"""How much sooner does the fast path get there? Fréchet distance against training time, one network by four programs.

    python benchmarks/quality_time.py [--epochs 1] [--seeds 0 1 2]

Eager PyTorch in float32 (the loop of tutorials, NCHW and channels_last) and the Trainer in float32 and bfloat16 train
the same network from the same weights on the same batches and latents; nothing but the steps is timed. The programs
take turns, a stretch of training each, so that a machine that slows down slows all of them; after a stretch 10,000
samples are judged in the features of the kept classifier (benchmarks/classifiers). The result file holds every point;
printed is the time to each distance on the way, and its ratio to eager NCHW's.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import machine
import quality
import torch
from torch import Tensor, nn

import gan_fast
from gan_fast import data, metrics
from gan_fast.suite import peers

BASELINE = "eager fp32, NCHW"
PROGRAMS = (BASELINE, "eager fp32, channels_last", "gan_fast.Trainer fp32", "gan_fast.Trainer bf16")


def program(
    name: str, pair: tuple[nn.Module, nn.Module], batch: int
) -> tuple[nn.Module, Callable[[Tensor, Tensor], Any]]:
    """The generator that is trained, and a step of training it."""
    generator, discriminator = copy.deepcopy(pair)
    if name.startswith("eager"):
        memory_format = torch.channels_last if name.endswith("channels_last") else torch.contiguous_format
        step = peers.Textbook(generator, discriminator, memory_format=memory_format).step
        return generator, step
    trainer = gan_fast.Trainer(
        generator, discriminator, batch_size=batch, precision=name.rpartition(" ")[2], outdir=None, progress=False
    )
    return trainer.generator, trainer.train_step


def train(arguments: argparse.Namespace, seed: int) -> dict[str, list[dict[str, float]]]:
    """The curves of one seed: seconds of training and distance, by program."""
    torch.manual_seed(seed)
    pair = gan_fast.models.build(arguments.model, accelerate=False)
    running = {name: program(name, pair, arguments.batch_size) for name in PROGRAMS}
    feeds = {
        name: data.feed(arguments.data, arguments.batch_size, seed, data_dir=arguments.data_dir) for name in running
    }
    latents = {name: torch.Generator().manual_seed(seed) for name in running}
    seconds = dict.fromkeys(running, 0.0)
    curves: dict[str, list[dict[str, float]]] = {name: [] for name in running}
    steps = arguments.epochs * feeds[BASELINE].steps_per_epoch
    marks = [round(steps * (i + 1) / arguments.points) for i in range(arguments.points)]
    done = 0
    for mark in marks:
        for name, (generator, step) in running.items():
            for _ in range(mark - done):
                real = feeds[name].next()
                z = torch.randn(arguments.batch_size, *generator.latent_shape, generator=latents[name])
                start = time.perf_counter()
                step(real, z)
                seconds[name] += time.perf_counter() - start
            scores = metrics.evaluate(generator, arguments.data, n=arguments.n, seed=0, data_dir=arguments.data_dir)
            distance = scores["frechet_distance"]
            curves[name].append({"step": mark, "seconds": seconds[name], "frechet_distance": distance})
            print(f"seed {seed}, step {mark}, {name}: {seconds[name]:.1f} s, distance {distance:.1f}", flush=True)
        done = mark
    return curves


def time_to(curve: list[dict[str, float]], distance: float) -> float | None:
    """Seconds of training until the curve, straight between its points, is at this distance for the first time."""
    before = None
    for point in curve:
        if point["frechet_distance"] <= distance:
            if before is None:
                return point["seconds"]
            part = (before["frechet_distance"] - distance) / (before["frechet_distance"] - point["frechet_distance"])
            return before["seconds"] + part * (point["seconds"] - before["seconds"])
        before = point
    return None


def times(runs: list[dict[str, list[dict[str, float]]]]) -> list[tuple[float, dict[str, list[float]]]]:
    """For each distance that every curve has passed: each program's seconds to it, by seed."""
    curves = [curve for run in runs for curve in run.values()]
    start = min(curve[0]["frechet_distance"] for curve in curves)
    lowest = max(min(point["frechet_distance"] for point in curve) for curve in curves)
    distances = [d for d in (500, 450, 400, 350, 300, 250, 200, 175, 150, 125, 110, 100) if lowest <= d < start]
    found = []
    for distance in distances or [lowest]:
        taken = {name: [time_to(run[name], distance) or 0.0 for run in runs] for name in PROGRAMS}
        found.append((float(distance), taken))
    return found


def summary(runs: list[dict[str, list[dict[str, float]]]]) -> str:
    """The times as text: means over the seeds, and the ratio of eager NCHW's mean."""
    lines = []
    for distance, taken in times(runs):
        base = statistics.mean(taken[BASELINE])
        for name, seconds in taken.items():
            mean = statistics.mean(seconds)
            lines.append(f"distance {distance:.0f}: {name:28s} {mean:7.1f} s   {base / mean:.2f}x")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dcgan28")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--points", type=int, default=6, help="of each curve")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    quality.use_kept_classifiers()
    settings = {key: value for key, value in vars(arguments).items() if key != "data_dir"}
    path = machine.result_file()
    path = path.with_name(f"{path.stem}-quality-time.json")
    runs = []
    for seed in arguments.seeds:
        runs.append(train(arguments, seed))
        content = {
            "machine": machine.describe(),
            "settings": settings,
            "classifier": quality.kept_classifier(),
            "runs": runs,
        }
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(summary(runs))


if __name__ == "__main__":
    main()
