#!/usr/bin/env python3
"""How many kernels one training step would launch on a GPU, counted on the CPU: the article's networks.

    TRITON_INTERPRET=1 python tools/launch_count.py [--model keras_mnist] [--batch 8]

The operators run on backend "triton", which notes its launches and computes nothing; of PyTorch's own operations each
that is neither a view nor an allocation counts as one. That is an estimate for those (a foreach operation can be more).
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import gan_fast
from gan_fast.ops import OPERATORS, _triton

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="keras_mnist")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=28, help="side of the images")
    options = parser.parse_args()
    generator, discriminator = gan_fast.models.build(options.model)
    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)  # as a training on a GPU keeps its weights
    trainer = gan_fast.Trainer(generator, discriminator, batch_size=options.batch, device="cpu", seed=0)
    real = torch.rand(options.batch, 1, options.size, options.size) * 2 - 1
    ours: collections.Counter[str] = collections.Counter()

    def note(launch: _triton.Launch) -> None:  # keeps no tensor: a gradient with another owner would be copied
        ours[launch.kernel.__name__] += 1

    with gan_fast.use_backend("triton"), _triton.recording(note), Count() as count:
        trainer.train_step(real)  # the first also makes the optimisers' state
        ours.clear()
        count.launches.clear()
        trainer.train_step(real)
    for title, counter in (("gan_fast", ours), ("PyTorch", count.launches)):
        print(f"{title}: {sum(counter.values())}")
        for name, number in counter.most_common():
            print(f"  {number:3d} {name}")
    print(f"launches of one step of {options.model}: {sum(ours.values()) + sum(count.launches.values())}")


if __name__ == "__main__":
    main()
