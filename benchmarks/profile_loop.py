"""Does a profile tell the truth? The loop of PyTorch's DCGAN example under `gan_fast.Profile`, plain and accelerated,
with a clock of the loop's own beside it.

    python benchmarks/profile_loop.py                      # batch 16; writes a result file; status 1 if it does not
    python benchmarks/profile_loop.py --batch 4 --turns 3 --width 16 --no-file

The loop reads the time at the top of each turn, whatever the profile does. The phases of a step must add up to what the
turns took in which phases were timed, within 5 %; what the profile calls its overhead is printed beside what the loop's
own clock says of it: timed turns against unprofiled ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from typing import Any

import machine
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gan_fast
from gan_fast.profiling import EnoughSteps
from gan_fast.suite import peers

#: Phases may be this far from the loop's own clock.
ALLOWED = 0.05
WARMUP, COUNTED, DETAIL = 2, 1, 3


class Loop:
    """One turn: D on real images, then on fakes, a gradient each; its update; G against it; G's update."""

    def __init__(self, width: int, accelerate: bool) -> None:
        torch.manual_seed(0)
        self.generator, self.discriminator = peers.dcgan64(width=width)
        if accelerate:
            gan_fast.accelerate(self.generator, self.discriminator)
        adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
        self.d_optimiser = torch.optim.Adam(self.discriminator.parameters(), **adam)
        self.g_optimiser = torch.optim.Adam(self.generator.parameters(), **adam)
        self.criterion = nn.BCEWithLogitsLoss()

    def turn(self, real: Tensor) -> tuple[float, float]:
        """The losses of D and G, read from their tensors as the example does it in every turn."""
        self.discriminator.zero_grad()
        true, false = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        of_real = self.criterion(self.discriminator(real), true)
        of_real.backward()
        fake = self.generator(torch.randn(len(real), 100, 1, 1))
        of_fake = self.criterion(self.discriminator(fake.detach()), false)
        of_fake.backward()
        self.d_optimiser.step()
        self.generator.zero_grad()
        of_generator = self.criterion(self.discriminator(fake), true)
        of_generator.backward()
        self.g_optimiser.step()
        return (of_real + of_fake).item(), of_generator.item()


def profiled(batch: int, turns: int, width: int, accelerate: bool) -> dict[str, Any]:
    """Profile the loop for so many timed turns and as many others; what it says, and what the loop's clock says."""
    loop = Loop(width, accelerate)
    count = WARMUP + COUNTED + DETAIL + 2 * turns
    images = DataLoader(TensorDataset(torch.rand(batch * (count + 1), 3, 64, 64) * 2 - 1), batch_size=batch)
    tops = []
    with gan_fast.Profile(
        loop.generator, loop.discriminator, warmup=WARMUP, detail=DETAIL, stop_after=turns
    ) as profile:
        try:
            for (real,) in images:
                tops.append(time.perf_counter())
                loop.turn(real)
        except EnoughSteps:
            tops.append(time.perf_counter())
            raise
    seconds = [end - begin for begin, end in itertools.pairwise(tops)][WARMUP + COUNTED + DETAIL :]
    timed, bare = seconds[0::2], seconds[1::2]
    report = profile.report
    phases = sum(row.seconds for row in report.phases)
    return {
        "turns": len(timed),
        "wall": statistics.fmean(timed),
        "phases": phases,
        "apart": phases / statistics.fmean(timed) - 1,
        "overhead": report.overhead,
        "own": statistics.median(timed) / statistics.median(bare) - 1,
        "step": report.step,
        "spread": report.spread,
        "shares": {f"{row.phase}{f' for {row.update}' if row.update else ''}": row.share for row in report.phases},
        "verdict": report.verdict,
    }


def told(name: str, found: dict[str, Any]) -> str:
    """The figures as text."""
    costs = ", ".join(f"{what} {share:+.1%}" for what, share in found["overhead"].items())
    lines = [
        f"{name}: {found['turns']} turns of {1e3 * found['wall']:.1f} ms by the loop's clock, phases add up to "
        f"{1e3 * found['phases']:.1f} ms ({found['apart']:+.2%})",
        f"  overhead: {costs}; by the loop's clock {found['own']:+.1%}; unprofiled turns vary by {found['spread']:.1%}",
        *(f"  {share:6.1%} {phase}" for phase, share in found["shares"].items()),
        *(f"  {sentence}" for sentence in found["verdict"]),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=12, help="with phases timed, and as many without")
    parser.add_argument("--width", type=int, default=64, help="channels of the outer layers")
    parser.add_argument("--no-file", action="store_true", help="print only")
    arguments = parser.parse_args()
    found = {}
    for name, accelerate in (("plain", False), ("accelerated", True)):
        found[name] = profiled(arguments.batch, arguments.turns, arguments.width, accelerate)
        print(told(name, found[name]), flush=True)
    if not arguments.no_file:
        path = machine.result_file()
        path = path.with_name(f"{path.stem}-profile-dcgan64-b{arguments.batch}.json")
        content = {"machine": machine.describe(), "batch": arguments.batch, "width": arguments.width, "results": found}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(path.relative_to(machine.ROOT))
    sys.exit(any(abs(result["apart"]) > ALLOWED for result in found.values()))


if __name__ == "__main__":
    main()
