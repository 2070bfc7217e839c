"""Kill -9 a training again and again, resume it each time, and compare the end with that of an undisturbed run.

    python tools/kill_test.py --kills 20 --seed 0

Half of the kills come from outside at a random moment; the other half come from inside the writing of checkpoints,
statistics and
pictures: in the middle of a file, at a random byte, or right before or after a rename or a deletion. Exit status 1 if a
resume fails or the end is not equal bit for bit: both networks, both optimisers, all random states, the place in the
data, stats.jsonl.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gan_fast.training import Trainer, files
from gan_fast.training.run_folder import load_checkpoint
from gan_fast.training.statistics import StatsFile

SHAPE = (1, 8, 8)
CLOCK = ("img_s", "seconds")
NAME = "killed"


def train(outdir: str, steps: int, plan: tuple[int, float] | None) -> None:
    """Train to the same end, from the start or from the last good checkpoint; ``plan`` says at which write to die."""
    sys.modules["matplotlib.figure"] = None  # type: ignore[assignment]  # drawing curves takes longer than this training
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    generator = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Tanh(), nn.Unflatten(1, SHAPE))
    discriminator = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 1)
    )
    trainer = Trainer(
        generator, discriminator, batch_size=8, outdir=outdir, name=NAME, device="cpu", progress=False,
        log_every=2, save_every=3, sample_every=7, keep_last=3,
    )  # fmt: skip
    data = torch.rand(44, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    if plan is not None:
        die_while_writing(*plan)
    trainer.fit(data, steps=steps, resume="auto")


def die_while_writing(event: int, fraction: float) -> None:
    """From now on count what is done to the file system, and kill this process in the middle of one of them.

    Args:
        event: which one, counted from 0.
        fraction: how much of a file is written first; for a rename or deletion, below 0.5 means before it.
    """
    left = event

    def due() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            kill = due()
            if kill and fraction < 0.5:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **more)
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    def write_file(path: Path, data: bytes) -> None:
        if due():
            with open(path, "wb") as file:
                file.write(data[: int(len(data) * fraction)])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        whole_file(path, data)

    whole_file = files.write_file
    files.write_file = write_file
    files.os = _Around(os, {"rename": around(os.rename), "replace": around(os.replace)})  # type: ignore[assignment]  # stand-ins
    files.shutil = _Around(shutil, {"rmtree": around(shutil.rmtree)})  # type: ignore[assignment]  # for the modules
    StatsFile.append = around(StatsFile.append)  # type: ignore[method-assign]  # on purpose


class _Around:
    """A module with some functions exchanged."""

    def __init__(self, module: Any, exchanged: dict[str, Any]) -> None:
        self._module = module
        self.__dict__.update(exchanged)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def end_of(outdir: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last checkpoint's whole contents and the lines of stats.jsonl, without clocks."""
    found, run = load_checkpoint(outdir / f"00000-{NAME}")
    assert run is not None
    state = {key: value for key, value in found.state.items() if key != "seconds"}
    rows = [{key: value for key, value in row.items() if key not in CLOCK} for row in run.stats.rows()]
    return {"generator": found.generator, "discriminator": found.discriminator, **state}, rows


def same(one: Any, other: Any) -> bool:
    """Nested dictionaries, sequences and tensors are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


class Killer:
    """Runs trainings in processes of their own and kills them.

    Args:
        steps: length of a training.
        chance: decides when to kill.
        say: gets one line for each event.
    """

    def __init__(self, steps: int, chance: random.Random, say: Callable[[str], None]) -> None:
        self.steps = steps
        self.chance = chance
        self.say = say
        # Forked from a server that has loaded PyTorch, a training starts in a moment; each is a process of its own.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["torch._dynamo", "gan_fast.training"])
        self.kills = 0
        self.seconds = float("inf")  # the shortest whole training so far: the range of the random moments

    def run(self, outdir: Path, plan: tuple[int, float] | None = None, patience: float | None = None) -> int:
        """One training process; returns its exit status, -9 if it was killed."""
        process = self.context.Process(target=train, args=(str(outdir), self.steps, plan))
        started = time.perf_counter()
        process.start()
        process.join(patience)
        if process.exitcode is None:
            process.kill()
            process.join()
        assert process.exitcode is not None
        if process.exitcode == 0:
            self.seconds = min(self.seconds, time.perf_counter() - started)
        return process.exitcode

    def kill_once(self, outdir: Path, inside_a_write: bool) -> bool:
        """Start or resume the training and kill it; False if it came to its end before."""
        if inside_a_write:
            plan, patience = (self.chance.randrange(self.steps), self.chance.random()), None
            moment = f"write {plan[0]}, {plan[1]:.0%} done"
        else:
            plan, patience = None, self.chance.uniform(0, self.seconds)
            moment = f"after {patience:.2f} s"
        status = self.run(outdir, plan, patience)
        if status == 0:
            self.say(f"  came to its end before its kill ({moment})")
            return False
        if status != -signal.SIGKILL:
            raise RuntimeError(f"the training ended with status {status} instead of being killed ({moment})")
        self.kills += 1
        self.say(f"  kill {self.kills}: {moment}; {standing(outdir)}")
        return True


def standing(outdir: Path) -> str:
    """What the next resume will find."""
    checkpoints = outdir / f"00000-{NAME}" / "checkpoints"
    there = sorted(place.name for place in checkpoints.iterdir()) if checkpoints.is_dir() else []
    return f"left {', '.join(there) or 'no checkpoint'}"


def kill_and_compare(kills: int, steps: int, seed: int, only_writes: bool, say: Callable[[str], None]) -> bool:
    """Kill ``kills`` times in all, at most four times a training; returns whether every end equals the undisturbed
    one."""
    killer = Killer(steps, random.Random(seed), say)
    good = True
    with tempfile.TemporaryDirectory(prefix="gan_fast_kill_") as folder:
        whole = Path(folder) / "undisturbed"
        if (status := killer.run(whole)) != 0:
            raise RuntimeError(f"the undisturbed training failed with status {status}")
        expected = end_of(whole)
        trainings = 0
        while killer.kills < kills:
            outdir = Path(folder) / str(trainings)
            trainings += 1
            say(f"training {trainings}")
            for number in range(4):
                if killer.kills >= kills or not killer.kill_once(outdir, only_writes or number % 2 == 1):
                    break
            if (status := killer.run(outdir)) != 0:
                say(f"  FAILED: the resume ended with status {status}")
                return False
            equal = same(end_of(outdir), expected)
            good = good and equal
            say(f"  resumed to step {steps}: {'bit-equal to' if equal else 'DIFFERS from'} the undisturbed run")
    say(f"{killer.kills} kills in {trainings} trainings: {'all resumed and bit-equal' if good else 'NOT all equal'}")
    return good


def main() -> int:
    """Read the arguments, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many in all (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="length of each training (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--only-writes", action="store_true", help="kill inside writes only, at fixed moments")
    args = parser.parse_args()
    good = kill_and_compare(args.kills, args.steps, args.seed, args.only_writes, lambda line: print(line, flush=True))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
