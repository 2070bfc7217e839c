"""Does the fast path train as well? The same network on MNIST by eager PyTorch and by `gan-fast train`, judged alike.

    python benchmarks/quality.py eager                  # one result file for each seed
    python benchmarks/quality.py gan_fast
    python benchmarks/quality.py compare                # the bound that eager sets, both means, their difference

Eager is Textbook of gan_fast.suite.peers on plain layers in channels_last, its faster format: the loop of tutorials.
Both sides draw batches in the same order, judge 10,000 samples in the features of the same classifier
(benchmarks/classifiers: trained anew on another machine it would give other features, and distances that cannot be
compared), and run for the same number of epochs; weights and latents come from the seed, but not in the same order, so
only the distributions over seeds can be compared. Twice in each epoch the samples are judged too: the run's curve of
distance against steps.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import safetensors
import torch

import gan_fast
from gan_fast import data, metrics
from gan_fast.suite import peers

#: What eager's seeds allow: their mean plus this many standard deviations is the bound for the fast path's mean.
DEVIATIONS = 3.0
#: What `gan-fast eval` would otherwise train and cache by itself, kept in the repository.
CLASSIFIERS = machine.ROOT / "benchmarks" / "classifiers"


def train_eager(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run of the textbook loop; its scores and images per second."""
    torch.manual_seed(seed)
    generator, discriminator = gan_fast.models.build(arguments.model, accelerate=False)
    program = peers.Textbook(generator, discriminator, memory_format=torch.channels_last)
    feed = data.feed(arguments.data, arguments.batch_size, seed, data_dir=arguments.data_dir)
    latents = torch.Generator().manual_seed(seed)
    steps = arguments.epochs * feed.steps_per_epoch
    every = feed.steps_per_epoch // 2
    seconds, curve, scores = 0.0, [], {}
    for step in range(1, steps + 1):
        start = time.perf_counter()
        program.step(feed.next(), torch.randn(arguments.batch_size, *generator.latent_shape, generator=latents))
        seconds += time.perf_counter() - start
        if step % every == 0 or step == steps:
            scores = metrics.evaluate(generator, arguments.data, n=arguments.n, seed=0, data_dir=arguments.data_dir)
            curve.append(point(step, scores))
    return {**scores, "seed": seed, "seconds": seconds, "img_s": steps * arguments.batch_size / seconds, "curve": curve}


def point(step: int, scores: dict[str, Any]) -> dict[str, Any]:
    """One point of a curve."""
    return {"step": step, **{name: scores[name] for name in ("frechet_distance", "class_entropy", "confidence")}}


def train_fast(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One run of the command line; its scores and images per second."""
    command = [sys.executable, "-m", "gan_fast"]
    images = data.load(arguments.data, data_dir=arguments.data_dir)
    every = len(images) // arguments.batch_size // 2
    where = ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    with tempfile.TemporaryDirectory() as folder:
        outdir = Path(arguments.outdir or folder)
        name = f"quality-seed{seed}"
        start = time.perf_counter()
        subprocess.run(
            [*command, "train", "--data", arguments.data, "--model", arguments.model, "--epochs", str(arguments.epochs),
             "--batch-size", str(arguments.batch_size), "--seed", str(seed), "--outdir", str(outdir),
             "--name", name, "--precision", arguments.precision, "--save-every", str(every), *where],
            check=True,
        )  # fmt: skip
        wall = time.perf_counter() - start
        run = sorted(outdir.glob(f"*-{name}"))[-1]
        report = Path(folder) / "scores.json"
        curve = []
        for checkpoint in sorted((run / "checkpoints").glob("step_*")):
            judge = [*command, "eval", str(checkpoint), "--data", arguments.data, "--n", str(arguments.n)]
            subprocess.run([*judge, "--json", str(report), *where], check=True)
            scores = json.loads(report.read_text(encoding="utf-8"))
            curve.append(point(int(checkpoint.name.removeprefix("step_")), scores))
        scores.pop("run", None)  # a path of this machine
        last = json.loads((run / "stats.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    img_s = last["step"] * arguments.batch_size / wall
    return {**scores, "seed": seed, "seconds": wall, "img_s": img_s, "curve": curve}


def use_kept_classifiers() -> None:
    """Make the kept classifiers those of this process's cache folder, and of its children's."""
    cache = machine.ROOT / "runs" / "quality-cache"
    shutil.copytree(CLASSIFIERS, cache / "classifiers", dirs_exist_ok=True)
    os.environ["GAN_FAST_CACHE"] = str(cache)


def load(program: str, classifier: str) -> list[dict[str, Any]]:
    """The stored runs of one program that this classifier judged, by seed; of all machines, since quality is no matter
    of speed."""
    files = (machine.ROOT / "benchmarks" / "results").glob(f"*/quality-{program}-seed*.json")
    runs = [json.loads(file.read_text(encoding="utf-8"))["run"] for file in files]
    judged = [run for run in runs if run["classifier_sha256"] == classifier]
    if len(judged) < len(runs):
        others = sorted(run["seed"] for run in runs if run not in judged)
        print(f"{program}: seeds {others} were judged by other classifiers and do not count")
    if len(judged) < 2:
        raise SystemExit(f"{len(judged)} stored runs of {program} that count: a comparison needs at least 2")
    return sorted(judged, key=lambda run: run["seed"])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Fréchet distances of the stored runs by program, in the order of their seeds."""

    distances: dict[str, list[float]]

    def mean(self, program: str) -> float:
        """Over the seeds."""
        return statistics.mean(self.distances[program])

    @property
    def bound(self) -> float:
        """What eager's runs allow gan_fast's mean to be."""
        return self.mean("eager") + DEVIATIONS * statistics.stdev(self.distances["eager"])

    @property
    def difference(self) -> float:
        """Of gan_fast's mean from eager's."""
        return self.mean("gan_fast") - self.mean("eager")

    @property
    def errors(self) -> float:
        """The difference in pooled standard errors."""
        return self.difference / math.sqrt(sum(statistics.variance(d) / len(d) for d in self.distances.values()))


def comparison(classifier: str) -> Comparison:
    """Of the stored runs that this classifier judged."""
    return Comparison(
        {name: [run["frechet_distance"] for run in load(name, classifier)] for name in ("eager", "gan_fast")}
    )


def kept_classifier() -> str:
    """sha256 of the parameters in `CLASSIFIERS`, as results carry it."""
    (file,) = CLASSIFIERS.glob("*.safetensors")
    with safetensors.safe_open(file, "pt") as opened:
        return opened.metadata()["sha256"]


def compare(classifier: str) -> str:
    """The comparison as text."""
    lines = [f"classifier {classifier}"]
    found = comparison(classifier)
    for program, distances in found.distances.items():
        figures = ", ".join(f"{distance:.2f}" for distance in distances)
        lines.append(f"{program}: {figures}; mean {found.mean(program):.2f}")
    lines.append(f"bound set by eager: {found.bound:.2f}")
    lines.append(f"difference of the means: {found.difference:+.2f} = {found.errors:+.2f} pooled standard errors")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=["eager", "gan_fast", "compare"])
    parser.add_argument("--model", default="dcgan28")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"], help="of gan_fast's runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--outdir", help="keep gan_fast's run folders here")
    arguments = parser.parse_args()
    use_kept_classifiers()
    if arguments.program == "compare":
        print(compare(kept_classifier()))
        return
    train = train_eager if arguments.program == "eager" else train_fast
    settings = {key: value for key, value in vars(arguments).items() if key not in ("data_dir", "outdir", "seeds")}
    for seed in arguments.seeds:
        run = train(arguments, seed)
        shown = ("seconds", "img_s", "frechet_distance", "class_entropy", "confidence")
        print(f"{arguments.program} seed {seed}: { ({key: round(run[key], 3) for key in shown}) }", flush=True)
        program = arguments.program if arguments.precision == "fp32" else f"{arguments.program}-{arguments.precision}"
        path = machine.result_file().parent / f"quality-{program}-seed{seed}.json"
        content = {"machine": machine.describe(), "settings": settings, "run": run}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
