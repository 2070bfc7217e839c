"""`torch.nn.Sequential` that fuses activations into the layers before them and keeps channels_last between layers
whose needs it knows.

A `Sequential` is the one place where a layer's consumer is known. Its children stay what they are: called one by
one, sliced or hooked they do what they always did. Only the run through the container differs:

1. An activation right after one of `gan_fast.nn`'s convolutions, linear layers or batch normalisations is computed by
   that layer's kernel, and its own module is passed over; not if either has a hook that would see the difference.
2. A nearest `torch.nn.Upsample` right before such a convolution is left to it in the same way: the two can be one
   transposed convolution (see `gan_fast.functional.upsample_conv2d`).
3. Images stay in channels_last, the kernels' own format, from the first convolution up to a layer that might care.
   Such a layer, and the caller, get the format that plain PyTorch would have given them: an NCHW network's output can
   be viewed as (N, -1).
4. Images that a `torch.nn.Flatten` makes the rows of a linear layer with fewer features than rows are flattened as
   they lie, and the weights put in that order instead: D's last layer then costs no copy of its images and of their
   gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_fast import backends, functional, nn

__all__ = ["Sequential", "against_collapse", "fused_activation", "is_upsampling"]

_CONVOLUTIONS: tuple[type[torch.nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.KerasConv2d,
    nn.KerasConvTranspose2d,
)
_TELLING = (nn.Conv2d, nn.ConvTranspose2d)
_FORWARDS = {layer.forward for layer in _CONVOLUTIONS}
_NORM_FORWARD = nn.BatchNorm2d.forward  # of all batch normalisations; results and format as _FORMAT_FREE
_LINEAR_FORWARD = nn.Linear.forward
_FUSING = {*_FORWARDS, _NORM_FORWARD, _LINEAR_FORWARD}

#: Layers whose result, element for element, and output format follow from the input in either memory format.
#: Dropout is not
#: among them: its mask is drawn in memory order.
_FORMAT_FREE: frozenset[type[torch.nn.Module]] = frozenset(
    {
        torch.nn.BatchNorm2d,
        torch.nn.ELU,
        torch.nn.GELU,
        torch.nn.Identity,
        torch.nn.LeakyReLU,
        torch.nn.ReLU,
        torch.nn.Sigmoid,
        torch.nn.SiLU,
        torch.nn.Tanh,
    }
)

_ACTIVATIONS: dict[type[torch.nn.Module], str] = {
    torch.nn.ReLU: "relu",
    torch.nn.LeakyReLU: "leaky_relu",
    torch.nn.Tanh: "tanh",
    torch.nn.Sigmoid: "sigmoid",
}

_UPSAMPLINGS = (torch.nn.Upsample, torch.nn.UpsamplingNearest2d)
_AFTER_UPSAMPLING = (nn.Conv1d, nn.Conv2d)

_HOOKS_BEFORE = ("_forward_pre_hooks",)
_HOOKS_AROUND = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


def fused_activation(layer: torch.nn.Module, follower: torch.nn.Module | None) -> tuple[str, float] | None:
    """Name and negative slope of the activation that `layer` may compute in place of the module `follower` after
    it, or None.

    None too if `layer` is no convolution, linear layer or batch normalisation of `gan_fast.nn`, has an activation
    already, or a hook would see the difference.
    """
    if follower is None or type(follower) not in _ACTIVATIONS or type(layer).forward not in _FUSING:
        return None
    if layer.activation is not None:
        return None
    if _watched(layer) or _hooked(follower) or _replaced(layer) or _replaced(follower):
        return None
    slope = float(getattr(follower, "negative_slope", 0.01))
    if isinstance(follower, torch.nn.LeakyReLU) and slope <= 0:
        return None  # the derivative could not be told from the output's sign
    return _ACTIVATIONS[type(follower)], slope


def is_upsampling(layer: torch.nn.Module) -> bool:
    """Whether `layer` is one of PyTorch's nearest upsamplings."""
    return type(layer) in _UPSAMPLINGS and layer.mode == "nearest"


def against_collapse(upsampling: torch.nn.Module, layer: torch.nn.Module | None) -> str | None:
    """Why the nearest `upsampling` cannot be left to the module `layer` after it; None if it can.

    What fits is one problem for `gan_fast.functional.upsample_conv2d`, which may still compute one after the other.
    """
    if not isinstance(layer, _AFTER_UPSAMPLING) or type(layer).forward is not nn.Conv2d.forward:
        return "it is not directly followed by a Conv1d or Conv2d of gan_fast.nn"
    given: Any = upsampling.scale_factor
    factors = given if isinstance(given, tuple) else (given,)
    if any(factor is None or factor % 1 for factor in factors):
        return f"its factor is not whole (size={upsampling.size}, scale_factor={given})"
    if layer.padding_mode != "zeros" or max(*layer.stride, *layer.dilation, layer.groups) > 1:
        return "the convolution after it has a stride, a dilation, groups or a padding_mode"
    if _hooked(upsampling) or _replaced(upsampling) or _watched(layer) or _replaced(layer):
        return "a hook, or a forward of its own, would see the difference"
    return None


class Sequential(torch.nn.Sequential):
    """A drop-in `torch.nn.Sequential`; same arguments, children and state_dict keys. See the module's text."""

    def forward(self, input: Any) -> Any:
        """Run the children in order; any input that `torch.nn.Sequential` takes."""
        output, channels_last = self._run(input, _is_channels_last(input), input)
        return _in_format(output, channels_last)

    def _run(self, value: Any, channels_last: bool, given: Any) -> tuple[Any, bool]:
        """Run the children; `channels_last` tells what format plain PyTorch would have here, for the input and for
        the result; `given` is the caller's own input, of which no view may be kept that PyTorch would not keep."""
        watched = torch.nn.modules.module._has_any_global_hook()  # profilers count modules with such hooks
        keep = _keeps_channels_last()
        children = list(self._modules.values())
        fused = False
        options: dict[str, Any] = {}  # what the next convolution computes beside its own
        for index, child in enumerate(children):
            if fused:
                fused = False
                continue
            kind = type(child)
            plain = _replaced(child)
            follower = children[index + 1] if index + 1 < len(children) else None
            joins = not watched and is_upsampling(child) and _takes(follower, value)
            if joins and against_collapse(child, follower) is None:
                options["scale_factor"] = child.scale_factor
            elif keep and not watched and value is not given and _flattens_for(follower, child, value):
                options["image"] = tuple(value.shape[1:])
                value, channels_last = value.permute(0, 2, 3, 1).flatten(1), False
            elif (
                isinstance(child, Sequential)
                and kind is Sequential
                and keep
                and not (watched or plain or _hooked(child))
            ):
                value, channels_last = child._run(value, channels_last, given)
            elif kind.forward in _FUSING and not (plain or _watched(child)):
                activation = None if watched else fused_activation(child, follower)
                if keep and _is_image(value) and kind.forward in _FORWARDS:
                    # PyTorch's rule: the result is channels_last if the input or the weight is.
                    channels_last = channels_last or _is_channels_last(child._parameters.get("weight"))
                    if options or (not _is_channels_last(value) and _wants_channels_last(child, value, activation)):
                        # Not `contiguous`: where both formats are contiguous the strides still have to say
                        # channels_last.
                        value = functional.as_channels_last(value)
                elif keep and kind.forward is _LINEAR_FORWARD:
                    value, channels_last = _in_format(value, channels_last), False  # its result lies row by row
                if activation is not None:
                    options["then"] = activation
                value = child(value, **options)
                options = {}
                fused = activation is not None
                if fused and keep and channels_last and _is_image(value) and value.is_contiguous():
                    # One channel or one pixel: PyTorch's elementwise functions answer in plain strides.
                    channels_last = False
            elif kind in _FORMAT_FREE and not (plain or _hooked(child)):
                value = child(value)
            else:
                value = child(_in_format(value, channels_last) if keep else value)
                channels_last = _is_channels_last(value)
        return value, channels_last if keep else _is_channels_last(value)

    def _get_name(self) -> str:
        return "Sequential"


def _hooked(module: torch.nn.Module) -> bool:
    return any(getattr(module, hooks) for hooks in _HOOKS_BEFORE + _HOOKS_AROUND)


def _watched(layer: torch.nn.Module) -> bool:
    """Whether a hook looks at what goes in or comes out. Those of weight_norm and spectral_norm look at the weight."""
    before = layer._forward_pre_hooks.values()
    foreign = any(not type(hook).__module__.startswith("torch.nn.utils.") for hook in before)
    return foreign or any(getattr(layer, hooks) for hooks in _HOOKS_AROUND)


def _replaced(module: torch.nn.Module) -> bool:
    """Whether the instance has a forward of its own, or is compiled by itself (``module.compile()``)."""
    return "forward" in module.__dict__ or module._compiled_call_impl is not None


def _keeps_channels_last() -> bool:
    """Whether this call's images should be kept in channels_last: where the compiled kernels may run, in eager mode.

    A compiler plans formats by itself, and functorch's transforms and the tracer do not know them.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    return backends.requested() in ("auto", "cpu", "gemm") and backends.extension() is not None


def _is_image(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.dim() != 4 or value.device.type != "cpu":
        return False
    return value.dtype in (torch.float32, torch.bfloat16)


def _wants_channels_last(layer: Any, value: Tensor, activation: tuple[str, float] | None) -> bool:
    """Whether `layer` gains by a copy of `value` in channels_last; of the kinds that cannot tell, it is taken to."""
    return type(layer) not in _TELLING or layer._wants_channels_last(value, activation)


def _takes(layer: Any, value: Any) -> bool:
    """Whether `value` is a batch for the convolution `layer`; a single sample would be a batch to the upsampling."""
    return isinstance(value, Tensor) and value.dim() == len(getattr(layer, "kernel_size", ())) + 2


def _flattens_for(layer: Any, flatten: Any, value: Any) -> bool:
    """Whether `flatten` makes images, which lie in channels_last, the rows of the linear `layer`, and its weights are
    the smaller of the two."""
    if layer is None or type(flatten) is not torch.nn.Flatten or not _is_image(value):
        return False
    if type(layer).forward is not _LINEAR_FORWARD:
        return False
    count, channels, height, width = value.shape
    if flatten.start_dim != 1 or flatten.end_dim not in (-1, 3) or layer.in_features != channels * height * width:
        return False
    if layer.out_features >= count or value.is_contiguous() or not _is_channels_last(value):
        return False
    return not (_hooked(flatten) or _replaced(flatten) or _watched(layer) or _replaced(layer))


def _is_channels_last(value: Any) -> bool:
    """Whether the strides say channels_last, as PyTorch judges it: of one channel or one pixel, too."""
    if not isinstance(value, Tensor) or value.dim() != 4:
        return False
    _, channels, height, width = value.shape
    return channels * height * width > 1 and value.stride()[1:] == (1, width * channels, channels)


def _in_format(value: Any, channels_last: bool) -> Any:
    """`value` with the strides that plain PyTorch would have given it; a copy only where the order of the elements
    differs."""
    if channels_last or not _is_channels_last(value):
        return value
    plain = value.contiguous()
    # One channel, or one pixel: `contiguous` did nothing, but a layer that goes by the strides would go on in
    # channels_last.
    return plain.flatten().view(plain.shape) if _is_channels_last(plain) else plain
