"""``make demo``: train "dcgan28" on scikit-learn's handwritten digits, and measure the gain over plain PyTorch.

Needs no network and, on 2 cores, under four minutes with the set-up. Exit status 1 if the digits it makes are bad:
if a classifier trained on the real ones is less sure of them than `CONFIDENCE_BOUND`, or sees too few different ones.
"""

from __future__ import annotations

import argparse
import statistics
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_fast.cli._options import BATCH_SIZE
from gan_fast.cli.eval import render

if TYPE_CHECKING:
    from torch import Tensor, nn

# Means over the samples of what a classifier of the real digits says. Confidence: its largest class probability; blurs
# between digits lower it. Entropy of the classes it sees, in nats, at most ln 10 = 2.30: a generator of one shape
# only is classified with confidence 0.99 and entropy 0.0 (an untrained one is such). Both bounds have to be reached.
CONFIDENCE_BOUND = 0.80
ENTROPY_BOUND = 1.80

STEPS = 400
IMAGES = 64  # in a step
SAMPLES = 2000  # for the evaluation
ROUNDS = 9  # of the speed comparison; the first two warm up
WARM_UP = 2
LEARNING_RATE = 2e-4
BETAS = (0.5, 0.999)


def add_parser(subparsers: Any) -> None:
    """Add the ``demo`` subcommand; without a help text it stays out of the list of commands."""
    parser = subparsers.add_parser(
        "demo", description="Train a small GAN on handwritten digits and show what it makes."
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default {STEPS})")
    parser.add_argument(*BATCH_SIZE, type=int, default=IMAGES, help=f"images in a step (default {IMAGES})")
    parser.add_argument(
        "--seed", type=int, default=0, help="of networks, latents and the order of the data (default 0)"
    )
    parser.add_argument("--outdir", default="runs", help="where the run folder is made (default runs)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare the speed, train, evaluate, report; 1 if the samples are worse than the bound."""
    import torch

    import gan_fast

    started = time.perf_counter()
    print(f"gan_fast {gan_fast.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    compare_speed(args.batch_size, args.seed)

    trainer = make_trainer(args.seed, args.batch_size, outdir=args.outdir, name="demo")
    print(f"\ntraining dcgan28 on digits, {args.steps} steps of {args.batch_size} images", flush=True)
    begun = time.perf_counter()
    trainer.fit("digits", steps=args.steps)
    spent = time.perf_counter() - begun
    folder = Path(trainer.run_folder)
    print(
        f"trained in {spent:.1f} s, {args.steps * args.batch_size / spent:.0f} img/s with data, grids and checkpoints"
    )
    for line in last_losses(folder):
        print(f"  {line}")

    print(f"\nclassifying {SAMPLES} samples", flush=True)
    figures = gan_fast.metrics.evaluate(trainer, "digits", n=SAMPLES, seed=args.seed)
    print(textwrap.indent(render(figures), "  "))
    good = judge(figures["confidence"], figures["class_entropy"])

    print("\nlook at")
    for path in sorted(folder.rglob("*.png")):
        print(f"  {path}")
    print(f"demo: {time.perf_counter() - started:.1f} s", flush=True)
    return 0 if good else 1


def judge(confidence: float, entropy: float) -> bool:
    """Whether the samples are digits, and different ones; prints both figures beside their bounds."""
    good = True
    for name, value, bound in (("confidence", confidence, CONFIDENCE_BOUND), ("class entropy", entropy, ENTROPY_BOUND)):
        print(f"  {name} {value:.3f} {'reaches' if value >= bound else 'IS BELOW'} the bound {bound:.2f}")
        good = good and value >= bound  # NaN is not
    return good


def make_trainer(seed: int, batch_size: int, **settings: Any) -> Any:
    """A trainer of freshly initialised networks, the same for the same seed."""
    import torch

    import gan_fast

    torch.manual_seed(seed)
    generator, discriminator = gan_fast.models.build("dcgan28")
    return gan_fast.Trainer(
        generator,
        discriminator,
        loss="bce",
        batch_size=batch_size,
        lr=LEARNING_RATE,
        betas=BETAS,
        seed=seed,
        **settings,
    )


def compare_speed(batch_size: int, seed: int) -> float:
    """Time single steps of gan_fast's trainer and of plain PyTorch in turn, print both; returns the median of the
    rounds' ratios.

    Both train the same network from the same start on the same noise images. In turn, so that whatever else the machine
    does meets both alike; medians, because it then meets few rounds.
    """
    import torch

    import gan_fast
    from gan_fast.bench import paired

    trainer = make_trainer(seed, batch_size, outdir=None)
    torch.manual_seed(seed)
    plain = textbook_step(*gan_fast.models.build("dcgan28", accelerate=False))
    images = torch.rand(batch_size, 1, 28, 28, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    for number in range(ROUNDS):
        pair: list[tuple[str, Callable[[Tensor], Any]]] = [("ours", trainer.train_step), ("plain", plain)]
        for name, step in pair if number % 2 else reversed(pair):
            begun = time.perf_counter()
            step(images)
            seconds[name].append(time.perf_counter() - begun)
    turns = [seconds[name][WARM_UP:] for name in ("ours", "plain")]
    ours, theirs = (statistics.median(times) for times in turns)
    ratio = paired.ratio(turns[1:], turns[:1]).value
    print(f"one step of {batch_size} images, {ROUNDS - WARM_UP} interleaved rounds, medians:")
    print(f"  gan_fast.Trainer   {ours * 1e3:7.1f} ms  {batch_size / ours:7.0f} img/s")
    print(f"  plain PyTorch      {theirs * 1e3:7.1f} ms  {batch_size / theirs:7.0f} img/s")
    print(f"  speed against eager PyTorch: {ratio:.2f}x", flush=True)
    return ratio


def textbook_step(generator: nn.Module, discriminator: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The training step as GAN tutorials have it, in PyTorch alone: D on real and detached fakes, then G."""
    import torch
    import torch.nn.functional as F

    for_g = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=BETAS)
    for_d = torch.optim.Adam(discriminator.parameters(), lr=LEARNING_RATE, betas=BETAS)
    (latent_dim,) = generator.latent_shape  # type: ignore[misc]  # nn.Module says nothing about a model's own attributes

    def step(real: Tensor) -> tuple[Tensor, Tensor]:
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        fake = generator(torch.randn(len(real), latent_dim))
        for_d.zero_grad()
        d_loss = F.binary_cross_entropy_with_logits(discriminator(real), ones)
        d_loss = d_loss + F.binary_cross_entropy_with_logits(discriminator(fake.detach()), zeros)
        d_loss.backward()
        for_d.step()
        for_g.zero_grad()
        g_loss = F.binary_cross_entropy_with_logits(discriminator(fake), ones)
        g_loss.backward()
        for_g.step()
        return d_loss.detach(), g_loss.detach()

    return step


def last_losses(folder: Path) -> list[str]:
    """The first and the last line of the run's stats.jsonl."""
    stats = folder / "stats.jsonl"
    lines = stats.read_text(encoding="utf-8").splitlines() if stats.is_file() else []
    return [lines[0], lines[-1]] if len(lines) > 1 else lines
