"""What the three convolution operators share.

conv, conv_transpose and conv_weight_grad are one bilinear form B(input, weight) seen from three sides; the derivative
of each is the other two. ``transposed`` tells the first two apart everywhere below. Written out, with g' = g *
act'(y), the gradient that has passed the activation (fused into the kernels as their *prologue*):

    conv:            y = act(B(x, w) + b)     dx = conv_transpose(g', w)    dw, db = conv_weight_grad(x, g')
    conv_transpose:  y = act(B'(x, w) + b)    dx = conv(g', w)              dw, db = conv_weight_grad(x, g', transposed)
    conv_weight_grad: gw = W(x, g)            dx = conv_transpose(g, ggw)   dg = conv(x, ggw) + ggb
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_fast import backends
from gan_fast.ops import _kernels, activation, convolution_choice, geometry, layout, registry
from gan_fast.ops.geometry import Geometry
from gan_fast.ops.registry import OPERATORS, asked_for, planned

#: Arguments of conv and conv_transpose, in order; the indices are used by the vmap rule.
SCHEMA = (
    "(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] pad_begin, int[] dilation, int groups, "
    'int[] out_size, str activation="none", float negative_slope=0.01, Tensor? prologue_y=None, '
    'str prologue_activation="none", float prologue_slope=0.01, str backend="auto") -> Tensor'
)


def as_geometry(
    stride: Sequence[int], pad_begin: Sequence[int], dilation: Sequence[int], groups: int, out_size: Sequence[int]
) -> Geometry:
    """The geometry arguments of an operator as one value."""
    return Geometry(tuple(stride), tuple(pad_begin), tuple(dilation), groups, tuple(out_size))


# ------------------------------------------------------------------------------------------ checks, shapes, facts


def check_prologue(op: str, x: Tensor, y: Tensor | None, name: str, slope: float) -> None:
    """ValueError unless (y, name, slope) can be the prologue of tensor x."""
    activation.check_fusable(name, slope, "prologue_activation")
    if (y is None) != (name == "none"):
        raise ValueError(f"{op}: prologue_y and prologue_activation go together, got {name!r} and y={y is not None}")
    if y is not None and y.shape != x.shape:
        raise ValueError(f"{op}: prologue_y must have shape {tuple(x.shape)}, got {tuple(y.shape)}")


def check_same(op: str, **tensors: Tensor | None) -> None:
    """ValueError unless all tensors share dtype and device."""
    (first_name, first), *others = ((k, t) for k, t in tensors.items() if t is not None)
    for name, t in others:
        if t.dtype != first.dtype or t.device != first.device:
            raise ValueError(
                f"{op}: {name} must have the dtype and device of {first_name} ({first.dtype}, {first.device}), "
                f"got {t.dtype}, {t.device}"
            )


_verify = lru_cache(maxsize=4096)(geometry.check)


def verify(
    op: str,
    transposed: bool,
    input: Sequence[int],
    weight: Sequence[int],
    bias: Sequence[int] | None,
    g: Geometry,
) -> None:
    """:func:`geometry.check`, once for each set of shapes: an operator is called with the same few again and again."""
    try:
        _verify(op, transposed, input, weight, bias, g)
    except TypeError:  # symbolic sizes of a compiler cannot be looked up
        geometry.check(op, transposed, input, weight, bias, g)


def make_check(op: str, transposed: bool) -> Any:
    """The check of conv or conv_transpose."""

    def check(
        input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad_begin: Sequence[int],
        dilation: Sequence[int], groups: int, out_size: Sequence[int], act: str, slope: float,
        prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float,
    ) -> None:  # fmt: skip
        g = as_geometry(stride, pad_begin, dilation, groups, out_size)
        verify(op, transposed, input.shape, weight.shape, None if bias is None else bias.shape, g)
        activation.check_fusable(act, slope)
        check_prologue(op, input, prologue_y, prologue_activation, prologue_slope)
        check_same(op, input=input, weight=weight, bias=bias, prologue_y=prologue_y)

    return check


def make_outputs(transposed: bool) -> Any:
    """The fake kernel of conv or conv_transpose."""

    def outputs(
        input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad_begin: Sequence[int],
        dilation: Sequence[int], groups: int, out_size: Sequence[int], *_: object,
    ) -> Tensor:  # fmt: skip
        shape = (input.shape[0], geometry.out_channels(weight.shape, groups, transposed), *out_size)
        return torch.empty(
            shape, dtype=input.dtype, device=input.device, memory_format=layout.output_format(input, weight)
        )

    return outputs


def make_facts(transposed: bool) -> Any:
    """What the choice of a backend may ask about a call of conv or conv_transpose."""

    def facts(
        input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad_begin: Sequence[int],
        dilation: Sequence[int], groups: int, out_size: Sequence[int], act: str, slope: float,
        prologue_y: Tensor | None, *_: object,
    ) -> dict[str, Any]:  # fmt: skip
        g = as_geometry(stride, pad_begin, dilation, groups, out_size)
        found = tensor_facts(input, weight.shape, g, transposed, act != "none" or prologue_y is not None)
        return {**found, "weight_last": layout.is_channels_last(weight)}

    return facts


_facts = lru_cache(maxsize=4096)(geometry.facts)


def tensor_facts(input: Tensor, weight: Sequence[int], g: Geometry, transposed: bool, fused: bool) -> dict[str, Any]:
    """:func:`geometry.facts` of a call, with device, dtype, rank, and whether an activation is fused into it."""
    return {
        "device": input.device.type,
        "dtype": input.dtype,
        "rank": input.dim() - 2,
        "fused": fused,
        **_facts(transposed, input.shape, tuple(weight), g, layout.is_channels_last(input)),
    }


# --------------------------------------------------------------------------------------------------------- kernels


kernel_code = lru_cache(maxsize=4096)(geometry.kernel_code)


def make_cpu(op: str) -> Any:
    """conv or conv_transpose on the compiled kernel of the same name."""

    def plan(
        input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad_begin: Sequence[int],
        dilation: Sequence[int], groups: int, out_size: Sequence[int], act: str, slope: float,
        prologue_y: Tensor | None, prologue_activation: str, prologue_slope: float,
    ) -> Callable[..., Tensor]:  # fmt: skip
        g = as_geometry(stride, pad_begin, dilation, groups, out_size)
        rank, dtype, dtype_code = input.dim() - 2, input.dtype, _kernels.DTYPE_CODES[input.dtype]
        memory_format = layout.output_format(input, weight)
        shape = (input.shape[0], geometry.out_channels(weight.shape, groups, op == "conv_transpose"), *out_size)
        kernel, threads = getattr(_kernels.module(), op), torch.get_num_threads()
        code = kernel_code(input.shape, shape, weight.shape[2:], g)
        form = (activation.CODES[act], slope)
        prologue = (activation.CODES[prologue_activation], prologue_slope)
        weight_last = layout.is_channels_last(weight)
        dense = weight.is_contiguous(memory_format=layout.named(weight_last))
        # These are read and returned as they are.
        ready = layout.is_for_kernel(input) and (prologue_y is None or layout.is_for_kernel(prologue_y))
        finished = layout.is_finished(shape, memory_format)
        empty = 0 in shape

        def run(input: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
            py = rest[7]
            x, py = (input, py) if ready else (layout.to_kernel(input), None if py is None else layout.to_kernel(py))
            w = weight if dense else layout.dense_weight(weight)[0]
            b = None if bias is None else bias.contiguous()
            out = layout.empty_for_kernel(shape, dtype)
            if not empty:
                kernel(
                    dtype_code, code, x.data_ptr(), w.data_ptr(), weight_last, _kernels.pointer(b),
                    out.data_ptr(), *form, _kernels.pointer(py), *prologue, threads,
                )  # fmt: skip
            return out if finished else layout.from_kernel(out, rank, memory_format)

        return run

    return planned(plan)


# ---------------------------------------------------------------------------------------------------- derivatives


def call_operator(name: str, *arguments: Any) -> Any:
    """An operator by its name."""
    return OPERATORS[name](*arguments)


def through_activation(
    g: Tensor, y: Tensor | None, act: str, slope: float, backend: str, call: Callable[..., Any] = call_operator
) -> Tensor:
    """g * act'(y), or g where there is no activation."""
    result: Tensor = g if y is None or act == "none" else call("act_grad", g, y, act, slope, backend)
    return result


def prologue_grads(
    grad: Tensor | None, g: Tensor, y: Tensor | None, act: str, slope: float, backend: str, want_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients with respect to (g, y) of g * act'(y), given the gradient with respect to that product."""
    if grad is None or y is None or act == "none":
        return grad, None
    factor = activation.slope_wrt_output(y, act) if want_y else None
    return through_activation(grad, y, act, slope, backend), None if factor is None else grad * g * factor


class Form(NamedTuple):
    """A call of conv or conv_transpose, beside its tensors."""

    geometry: Geometry
    act: str
    slope: float
    prologue_act: str
    prologue_slope: float
    has_bias: bool
    backend: str


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Saves conv's or conv_transpose's tensors: the output only if an activation needs it."""
    (input, weight, bias, stride, pad_begin, dilation, groups, out_size, act, slope,
     prologue_y, prologue_activation, prologue_slope, backend) = inputs  # fmt: skip
    ctx.save_for_backward(input, weight, output if act != "none" else None, prologue_y)
    geometry = as_geometry(stride, pad_begin, dilation, groups, out_size)
    ctx.form = Form(geometry, act, slope, prologue_activation, prologue_slope, bias is not None, backend)


def left_to_torch(
    transposed: bool, input: Tensor, weight: Tensor, grad: Tensor, form: Form
) -> convolution_choice.Left | None:
    """:func:`gan_fast.ops.convolution_choice.left_to_torch` of a backward pass, None where it has to be operators.
    PyTorch's own is no backend: another implementation of "reference" has no say in it."""
    if form.backend != "auto" or torch.is_grad_enabled() or not registry.runs_plainly():
        return None
    return convolution_choice.left_to_torch(
        transposed, tuple(input.shape), tuple(weight.shape), form.geometry,
        convolution_choice.Formats(*(layout.is_channels_last(t) for t in (input, grad, weight))), form.act != "none",
        input.device.type, input.dtype, backends.circumstances(input.is_cuda),
    )  # fmt: skip


#: Gradients with respect to input, weight, bias and prologue_y.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def gradients(
    ctx: Any,
    saved: Sequence[Tensor | None],
    form: Form,
    transposed: bool,
    grad: Tensor,
    call: Callable[..., Any] = call_operator,
    left: Callable[..., convolution_choice.Left | None] = left_to_torch,
) -> Gradients:
    """The derivative of conv or conv_transpose: by operators that are differentiable again, and where nobody asks for
    that, by PyTorch's own backward pass what is left to it.

    Args:
        ctx: of the backward pass.
        saved: input, weight, output (if the activation needs it) and prologue_y.
        form: of the call.
        transposed: conv_transpose rather than conv.
        grad: with respect to the output.
        call: as :func:`call_operator`.
        left: as :func:`left_to_torch`.
    """
    input, weight, y, prologue_y = saved
    assert input is not None and weight is not None
    g, act, slope, prologue_act, prologue_slope, has_bias, backend = form
    need_input, need_weight = (asked_for(ctx, index, index) for index in (0, 1))
    need_bias = has_bias and asked_for(ctx, 2, 2)
    need_prologue_y = prologue_y is not None and asked_for(ctx, 10, 3 if has_bias else 2)
    if layout.output_format(input, weight) == torch.channels_last:
        # PyTorch's rule for the input's gradient; and both kernels below would convert it, each for itself.
        grad = layout.as_channels_last(grad)
    of_input = of_weight = of_bias = of_prologue_y = None
    theirs = None if prologue_y is not None else left(transposed, input, weight, grad, form)
    if theirs is not None and ((need_input and theirs.input) or (need_weight and theirs.weight)):
        inner = through_activation(grad, y, act, slope, backend, call)
        their_bias = need_bias and need_weight and theirs.weight
        # A transposed one's takes oneDNN longer than the weight's in bfloat16: 0.75 ms, 0.35 with the sum apart.
        wanted = (need_input and theirs.input, need_weight and theirs.weight, their_bias and not transposed)
        bias_sizes = [grad.shape[1]] if wanted[2] else None
        of_input, of_weight, of_bias = torch.ops.aten.convolution_backward(
            inner, input, weight, bias_sizes, *theirs.parameters, wanted
        )
        if their_bias and transposed:
            of_bias = inner.sum([0, *range(2, inner.dim())])
        need_input, need_weight = need_input and not wanted[0], need_weight and not wanted[1]
        need_bias = need_bias and not their_bias
    size, kernel = tuple(input.shape[2:]), tuple(weight.shape[2:])
    sides = (g.stride, g.pad_begin, g.dilation, g.groups)
    if need_input or need_prologue_y:
        sibling = "conv" if transposed else "conv_transpose"
        inner = call(sibling, grad, weight, None, *sides, size, "none", 0.01, y, act, slope, backend)
        of_input, of_prologue_y = prologue_grads(
            inner, input, prologue_y, prologue_act, prologue_slope, backend, want_y=need_prologue_y
        )
    if not need_weight:
        if need_bias:
            of_bias = through_activation(grad, y, act, slope, backend, call).sum([0, *range(2, grad.dim())])
        return of_input, of_weight, of_bias, of_prologue_y
    as_weight = layout.is_channels_last(weight)  # a gradient in another format would be copied by autograd
    if prologue_y is not None and y is None and not need_bias:
        # W(x', g) = W'(g, x') with the roles swapped: the prologue on x fuses, nothing is materialised.
        of_weight, _ = call(
            "conv_weight_grad", grad, input, kernel, *sides, not transposed, False, prologue_y, prologue_act,
            prologue_slope, as_weight, backend,
        )  # fmt: skip
    else:
        x = through_activation(input, prologue_y, prologue_act, prologue_slope, backend, call)
        of_weight, bias_grad = call(
            "conv_weight_grad", x, grad, kernel, *sides, transposed, need_bias, y, act, slope, as_weight, backend
        )
        of_bias = bias_grad if need_bias else of_bias
    return of_input, of_weight, of_bias, of_prologue_y


def make_backward(transposed: bool) -> Any:
    """The backward function of conv or conv_transpose."""

    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * 14
        if grad is not None:
            grads[0], grads[1], grads[2], grads[10] = gradients(ctx, ctx.saved_tensors, ctx.form, transposed, grad)
        return tuple(grads)

    return backward


def make_vmap(op: str) -> Any:
    """The batching rule of conv and conv_transpose: into the batch if only activations vary, else into the groups."""

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
        x, w, b = args[:3]
        groups, py = args[6], args[10]
        x_dim, w_dim, b_dim, y_dim = in_dims[0], in_dims[1], in_dims[2], in_dims[10]
        size = info.batch_size
        x = batch_first(x, x_dim, size)
        py = None if py is None else batch_first(py, y_dim, size)
        if w_dim is None and b_dim is None:
            out = OPERATORS[op](
                x.flatten(0, 1), w, b, *args[3:10], None if py is None else py.flatten(0, 1), *args[11:]
            )
            return out.unflatten(0, (size, -1)), 0
        out = OPERATORS[op](
            into_channels(x),
            batch_first(w, w_dim, size).flatten(0, 1),
            None if b is None else batch_first(b, b_dim, size).flatten(),
            *args[3:6],
            groups * size,
            *args[7:10],
            None if py is None else into_channels(py),
            *args[11:],
        )
        return out.unflatten(1, (size, -1)), 1

    return vmap


def batch_first(x: Tensor, dim: int | None, size: int) -> Tensor:
    """x with its vmapped axis in front; repeated (without a copy) where it has none."""
    return x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def into_channels(x: Tensor) -> Tensor:
    """(B, N, C, ...) -> (N, B * C, ...), the form in which groups keep the B problems apart."""
    return x.transpose(0, 1).flatten(1, 2)
