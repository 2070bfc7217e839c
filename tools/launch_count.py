#!/usr/bin/env python3
"""How many kernels one training step would launch on a GPU, counted on the CPU: the article's networks.

    TRITON_INTERPRET=1 python tools/launch_count.py [--model keras_mnist] [--batch 8] [--update simultaneous]

The operators run on backend "triton", which notes its launches and computes nothing; of PyTorch's own operations each
that is neither a view nor an allocation counts as one. That is an estimate for those (a foreach operation can be more).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import sys
import unittest.mock
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gan_fast
from gan_fast.ops import OPERATORS, _triton
from gan_fast.training import inputs

#: Operations that neither compute nor are views: allocations, and marks for the profiler.
_NO_KERNEL = ("empty", "new_empty", "detach", "is_same_size", "_unsafe_view", "_record_function")


class Count(TorchDispatchMode):
    """Counts PyTorch's operations that compute, inside our operators too; the kernels' launches are the caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "gan_fast":
            with self:  # what the operator does by PyTorch counts: copies into the kernels' layout
                return OPERATORS[func._schema.name.partition("::")[2]]._run(*args, **(kwargs or {}))
        returns = func._schema.returns
        views = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        name = func._schema.name.partition("::")[2]
        if not views and not name.startswith(_NO_KERNEL):
            self.launches[name] += 1
        return func(*args, **(kwargs or {}))


def count(
    model: str = "keras_mnist", batch: int = 8, update: str = "alternating"
) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """The second step's launches by name: (our kernels', PyTorch's operations)."""
    generator, discriminator = gan_fast.models.build(model)
    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)  # as a training on a GPU keeps its weights
    trainer = gan_fast.Trainer(generator, discriminator, batch_size=batch, device="cpu", seed=0, update=update)
    real = torch.rand(batch, *generator.sample_shape) * 2 - 1
    ours: collections.Counter[str] = collections.Counter()

    def note(launch: _triton.Launch) -> None:  # keeps no tensor: a gradient with another owner would be copied
        ours[launch.kernel.__name__] += 1

    with contextlib.ExitStack() as stack:
        # On a GPU the values of the images are looked at in the first batches, then in one of many.
        stack.enter_context(unittest.mock.patch.object(inputs, "check_values", lambda real: None))
        stack.enter_context(gan_fast.use_backend("triton"))
        stack.enter_context(_triton.recording(note))
        operations = stack.enter_context(Count())
        trainer.train_step(real)  # the first also makes the optimisers' state
        ours.clear()
        operations.launches.clear()
        trainer.train_step(real)
    return ours, operations.launches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="keras_mnist", choices=gan_fast.models.names())
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--update", default="alternating", choices=("alternating", "simultaneous"))
    options = parser.parse_args()
    ours, operations = count(options.model, options.batch, options.update)
    for title, counter in (("gan_fast", ours), ("PyTorch", operations)):
        print(f"{title}: {sum(counter.values())}")
        for name, number in counter.most_common():
            print(f"  {number:3d} {name}")
    print(f"launches of one step of {options.model}: {sum(ours.values()) + sum(operations.values())}")


if __name__ == "__main__":
    main()
