"""What the tests of batch normalisation share: calls of odd shapes, the truth, PyTorch's way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from cases import lay
from conv_checks import ACTIVATIONS
from hypothesis import strategies as st
from torch import Tensor

from gan_fast.ops import activation as activations

EPS, SLOPE = 1e-5, 0.3


@dataclass(frozen=True)
class NormCase:
    """One call: shape, how it lies in memory, activation, mode, and how far the mean is from 0 (in deviations)."""

    shape: tuple[int, ...]
    layout: str = "contiguous"
    activation: str = "none"
    training: bool = True
    affine: bool = True
    mean: float = 0.3
    std: float = 1.0

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """[input, weight, bias]: the same numbers for every dtype; without affine [input]."""
        generator = torch.Generator().manual_seed(sum(self.shape))

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).float()

        x = (draw(*self.shape) * self.std + self.mean).to(dtype)
        channels = self.shape[1]
        weight, bias = draw(channels).to(dtype), draw(channels).to(dtype)
        leaves = [lay(x, self.layout), weight, bias] if self.affine else [lay(x, self.layout)]
        return [t.detach().requires_grad_() for t in leaves]

    def running(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Running statistics to start from."""
        generator = torch.Generator().manual_seed(self.shape[1])
        mean, var = torch.rand((2, self.shape[1]), generator=generator) + 0.5
        return mean.to(dtype), var.to(dtype)

    def grad_output(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """A gradient of the output; where PyTorch could not tell on which side of 0 an output lies, it is 0."""
        generator = torch.Generator().manual_seed(7)
        g = torch.randn(self.shape, generator=generator, dtype=torch.float64).float().to(dtype)
        if self.activation not in ("relu", "leaky_relu"):
            return g
        plain = NormCase(self.shape, self.layout, "none", self.training, self.affine, self.mean, self.std)
        z = by_torch(plain, plain.tensors(torch.float64), torch.float64).detach()
        return torch.where(z.abs() < 1e-3 * max(1.0, abs(self.mean) / self.std / 10), 0, g)

    @property
    def options(self) -> dict[str, object]:
        """Keyword arguments of gan_fast.functional.batch_norm."""
        return {"activation": self.activation, "negative_slope": SLOPE}


def by_torch(case: NormCase, tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    """The case by PyTorch's own batch normalisation and activation."""
    x, weight, bias = (*tensors, None, None)[:3]
    out = F.batch_norm(x, *case.running(dtype), weight, bias, case.training, 0.1, EPS)
    return activations.apply(out, case.activation, SLOPE)


#: Channels around the vector widths, sizes of 1, a mean far from 0, more than one piece of rows and of channels.
CASES = [
    NormCase((3, 5)),
    NormCase((2, 1, 7), activation="tanh"),
    NormCase((4, 17, 9), "strided", "sigmoid"),
    NormCase((3, 8, 1, 1), "channels_last", "relu"),
    NormCase((1, 16, 3, 5), "channels_last", "leaky_relu"),
    NormCase((2, 3, 4, 5), activation="relu"),
    NormCase((2, 33, 5, 3), "channels_last", "tanh"),
    NormCase((5, 70, 3, 3), "strided", "leaky_relu", affine=False),
    NormCase((9, 12, 9, 9), "channels_last", mean=100.0, std=0.1),
    NormCase((6, 40, 8, 8), "channels_last", "leaky_relu", mean=-100.0, std=0.1),
    NormCase((64, 1300), activation="relu"),
    NormCase((40, 96, 14, 14), "channels_last", "leaky_relu"),
]
EVALUATION = [
    NormCase(case.shape, case.layout, case.activation, False, case.affine) for case in CASES if case.mean == 0.3
]


def name(case: NormCase) -> str:
    """For pytest's list."""
    mode = "training" if case.training else "evaluation"
    return f"{'x'.join(map(str, case.shape))}-{case.layout}-{case.activation}-mean{case.mean:g}-{mode}"


@st.composite
def random_cases(draw: st.DrawFn) -> NormCase:
    """Channels 1 to 70, any rank, batches of 1, single pixels where the batch is larger."""
    channels = draw(st.integers(1, 70))
    spatial = draw(st.lists(st.integers(1, 7), max_size=2))
    fewest = 2 if all(size == 1 for size in spatial) else 1
    return NormCase(
        (draw(st.integers(fewest, 6)), channels, *spatial),
        draw(st.sampled_from(("contiguous", "channels_last", "strided"))),
        draw(st.sampled_from(ACTIVATIONS)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from((0.3, 20.0))),
    )
