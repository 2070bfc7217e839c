"""torch.nn's convolutions, linear layer, batch normalisations and BCEWithLogitsLoss on gan_fast's operators; Keras'
convolutions.

Every class is a subclass of the PyTorch class of the same name: same arguments, attributes, initialisation,
state_dict keys and results, plus the keyword-only arguments ``activation`` (None, "relu", "leaky_relu", "tanh",
"sigmoid"; fused into the layer where a kernel of ours runs) and ``negative_slope``. ``gan_fast.accelerate``
turns an existing PyTorch module into one of these by its ``__class__``; the class-level defaults of the two
attributes serve modules made that way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gan_fast import functional
from gan_fast.ops import activation as activations
from gan_fast.ops import dispatch, geometry

__all__ = [
    "BCEWithLogitsLoss",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "KerasConv2d",
    "KerasConvTranspose2d",
    "Linear",
]


# ``forward(..., then=(name, negative_slope))``: the activation of the layer after this one, computed here for this
# call instead of the layer's own (which should be None). ``gan_fast.sequential`` calls layers so; and, for 1-D and 2-D
# convolutions, ``forward(..., scale_factor=...)``: the nearest upsampling of the layer before this one.
Then = tuple[str, float] | None


class _Unscripted:
    """torch.jit.script asks every module for this method; without it the error would be about our source text."""

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError(
            f"torch.jit.script cannot compile gan_fast.nn.{type(self).__name__}. Call gan_fast.restore(model) first, "
            "which gives swapped layers their torch.nn classes back; or use torch.jit.trace or torch.compile, which "
            "take the model as it is"
        )


class _Activated(_Unscripted):
    """The two attributes that our layers add to PyTorch's, and their part of the repr."""

    activation: str | None = None
    negative_slope: float = 0.01

    def __init__(self, *args: Any, activation: str | None = None, negative_slope: float = 0.01, **kwargs: Any) -> None:
        activations.check(activation)
        super().__init__(*args, **kwargs)
        self.activation = activation
        self.negative_slope = negative_slope

    def extra_repr(self) -> str:
        text: str = super().extra_repr()  # type: ignore[misc]  # torch.nn.Module's, the next class in line
        if self.activation is not None:
            text += f", activation={self.activation!r}"
            if self.activation == "leaky_relu":
                text += f", negative_slope={self.negative_slope}"
        return text

    def _fused(self, then: Then) -> dict[str, Any]:
        name, slope = (self.activation, self.negative_slope) if then is None else then
        return {"activation": name, "negative_slope": slope}


class _Conv(_Activated):
    """``forward`` of the three convolutions."""

    _function: Any
    _after_upsampling: Any = None

    def forward(self, input: Tensor, *, then: Then = None, scale_factor: tuple[int, ...] | None = None) -> Tensor:
        """The layer's result; ``then`` stands for the activation layer that follows, ``scale_factor`` for the nearest
        upsampling before."""
        module: Any = self
        if scale_factor is not None:
            return type(self)._after_upsampling(
                input, module.weight, module.bias, scale_factor, module.stride, module.padding, module.dilation,
                module.groups, **self._fused(then),
            )  # fmt: skip
        return self._conv_forward(input, module.weight, module.bias, then)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None, then: Then = None) -> Tensor:
        module: Any = self
        fused = self._fused(then)
        if module.padding_mode != "zeros":  # padded by copying; PyTorch serves it
            out = super()._conv_forward(input, weight, bias)  # type: ignore[misc]  # torch.nn's, the next class in line
            return activations.apply(out, activations.check(fused["activation"]), fused["negative_slope"])
        return type(self)._function(
            input, weight, bias, module.stride, module.padding, module.dilation, module.groups, **fused
        )


class Conv1d(_Conv, torch.nn.Conv1d):
    """torch.nn.Conv1d with a fused activation. (N, C, L) -> (N, OC, L')."""

    _function = staticmethod(functional.conv1d)
    _after_upsampling = staticmethod(functional.upsample_conv1d)


class Conv2d(_Conv, torch.nn.Conv2d):
    """torch.nn.Conv2d with a fused activation. (N, C, H, W) -> (N, OC, H', W')."""

    _function = staticmethod(functional.conv2d)
    _after_upsampling = staticmethod(functional.upsample_conv2d)

    def _wants_channels_last(self, input: Tensor, then: Then) -> bool:
        """Whether images in another format are worth a copy in channels_last; see `gan_fast.sequential`."""
        form = (self.stride, self.padding, self.dilation, self.groups)
        return dispatch.wants_channels_last(2, input, self.weight, form, *self._fused(then).values())


class Conv3d(_Conv, torch.nn.Conv3d):
    """torch.nn.Conv3d followed by the activation; PyTorch serves it."""

    _function = staticmethod(functional.conv3d)


class _ConvTranspose(_Activated):
    """``forward`` of the three transposed convolutions."""

    _function: Any

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None, *, then: Then = None) -> Tensor:
        """The layer's result; ``output_size`` chooses among the sizes that stride > 1 leaves open, as in PyTorch.

        ``then`` stands for the activation layer that follows.
        """
        module: Any = self
        output_padding = module._output_padding(
            input,
            None if output_size is None else list(output_size),
            module.stride,
            module.padding,
            module.kernel_size,
            len(module.kernel_size),
            module.dilation,
        )
        return type(self)._function(
            input, module.weight, module.bias, module.stride, module.padding, output_padding, module.groups,
            module.dilation, **self._fused(then),
        )  # fmt: skip


class ConvTranspose1d(_ConvTranspose, torch.nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d with a fused activation. (N, C, L) -> (N, OC, L')."""

    _function = staticmethod(functional.conv_transpose1d)


class ConvTranspose2d(_ConvTranspose, torch.nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d with a fused activation. (N, C, H, W) -> (N, OC, H', W')."""

    _function = staticmethod(functional.conv_transpose2d)

    def _wants_channels_last(self, input: Tensor, then: Then) -> bool:
        """As `Conv2d` has it."""
        form = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return dispatch.wants_channels_last(-2, input, self.weight, form, *self._fused(then).values())


class ConvTranspose3d(_ConvTranspose, torch.nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d followed by the activation; PyTorch serves it."""

    _function = staticmethod(functional.conv_transpose3d)


class KerasConv2d(Conv2d):
    """Keras' Conv2D(padding="same") on (N, C, H, W) and PyTorch's weight layout (OC, C / groups, KH, KW).

    The output is ceil(size / stride); of an odd total padding the end gets more: for kernel 3 and stride 2 an even
    size is padded by (0, 1), which no symmetric ``padding`` of PyTorch gives.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias,
            activation=activation, negative_slope=negative_slope, device=device, dtype=dtype,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + ", padding='same' as Keras"

    def forward(self, input: Tensor, *, then: Then = None) -> Tensor:  # type: ignore[override]  # no upsampling before
        """(N, C, H, W) -> (N, OC, ceil(H / stride), ceil(W / stride))."""
        begin, out = geometry.same_keras(input.shape[2:], self.kernel_size, self.stride, self.dilation)
        return functional.conv_geometry(
            input, self.weight, self.bias, stride=self.stride, pad_begin=begin, out_size=out, dilation=self.dilation,
            groups=self.groups, **self._fused(then),
        )  # fmt: skip


class KerasConvTranspose2d(ConvTranspose2d):
    """Keras' Conv2DTranspose(padding="same") on (N, C, H, W) and PyTorch's weight layout (C, OC / groups, KH, KW).

    The output is size * stride. For kernel 5 and stride 2 that is PyTorch's padding=1 with the last row and column
    cut, not padding=2, output_padding=1 (which is shifted by one pixel).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, 0, 0, groups, bias, dilation,
            activation=activation, negative_slope=negative_slope, device=device, dtype=dtype,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return super().extra_repr() + ", padding='same' as Keras"

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None, *, then: Then = None) -> Tensor:
        """(N, C, H, W) -> (N, OC, H * stride, W * stride); ``output_size`` is not part of Keras' layer."""
        if output_size is not None:
            raise ValueError(f"output_size: KerasConvTranspose2d always gives size * stride, got {output_size!r}")
        begin, out = geometry.same_keras_transpose(input.shape[2:], self.kernel_size, self.stride, self.dilation)
        return functional.conv_transpose_geometry(
            input, self.weight, self.bias, stride=self.stride, pad_begin=begin, out_size=out, dilation=self.dilation,
            groups=self.groups, **self._fused(then),
        )  # fmt: skip


class Linear(_Activated, torch.nn.Linear):
    """torch.nn.Linear with a fused activation. (..., C) -> (..., O)."""

    def forward(self, input: Tensor, *, then: Then = None, image: tuple[int, int, int] | None = None) -> Tensor:
        """The layer's result; ``then`` stands for the activation layer that follows, ``image`` for the (C, H, W) that
        every row of the input was flattened from as (H, W, C)."""
        weight = self.weight
        if image is not None:
            weight = weight.unflatten(1, image).permute(0, 2, 3, 1).flatten(1)
        return functional.linear(input, weight, self.bias, **self._fused(then))


class _BatchNorm(_Activated):
    """``forward`` of the batch normalisations."""

    def forward(self, input: Tensor, *, then: Then = None) -> Tensor:
        """The layer's result, input's shape; ``then`` stands for the activation layer that follows."""
        module: Any = self
        module._check_input_dim(input)
        momentum = module.momentum
        if module.training and module.track_running_stats and module.num_batches_tracked is not None:
            module.num_batches_tracked.add_(1)
            if momentum is None:  # the average over all batches so far
                momentum = 1.0 / float(module.num_batches_tracked)
        tracked = not module.training or module.track_running_stats
        return functional.batch_norm(
            input,
            module.running_mean if tracked else None,
            module.running_var if tracked else None,
            module.weight,
            module.bias,
            module.training or (module.running_mean is None and module.running_var is None),
            0.0 if momentum is None else momentum,
            module.eps,
            **self._fused(then),
        )


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """torch.nn.BatchNorm1d with a fused activation. (N, C) or (N, C, L), any sizes."""


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """torch.nn.BatchNorm2d with a fused activation. (N, C, H, W)."""


class BCEWithLogitsLoss(_Unscripted, torch.nn.BCEWithLogitsLoss):
    """torch.nn.BCEWithLogitsLoss; the target may also be a number, the same for all elements."""

    def forward(self, input: Tensor, target: Tensor | float) -> Tensor:
        """The loss of logits of any shape, reduced as the module was told."""
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )
