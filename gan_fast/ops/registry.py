"""How an operator is put together and registered with PyTorch.

An :class:`Operator` has a schema, implementations by backend, one function that gives the outputs' shapes and strides
(the fake kernel), and one pair of functions for its derivative. That pair serves two callers: ``torch.library``
(eager mode, torch.compile, direct ``torch.ops.gan_fast.*`` calls) and, under the transforms of ``torch.func``, a
``torch.autograd.Function`` with a vmap rule, because operators registered from Python do not pass through those
transforms. Backward functions call operators through :meth:`Operator.__call__`, so derivatives of any order take the
right one; a convolution that was called before has a shorter way (:mod:`gan_fast.ops.lane`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gan_fast import backends, choice_table
from gan_fast.choice_table import Choice

LIBRARY = torch.library.Library("gan_fast", "DEF")

#: Operators by name, filled as their modules are imported.
OPERATORS: dict[str, Operator] = {}


_autocast_available = functools.cache(torch.amp.is_autocast_available)


def autocast_enabled(device: str) -> bool:
    """Whether autocast is on for this type of device; False for those that know no autocast (meta)."""
    return _autocast_available(device) and torch.is_autocast_enabled(device)


#: Gets the operator, all arguments of the call but the last, and the choice that was made.
Recorder = Callable[["Operator", list[Any], Choice], None]

_recorder: Recorder | None = None


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Within the ``with`` block ``recorder`` gets every operator that runs, in any thread, all its arguments but the
    last, and the choice; the arguments hold the call's own tensors, which it must not keep."""
    global _recorder
    before = _recorder
    _recorder = recorder
    try:
        yield
    finally:
        _recorder = before


#: Checks and choices that an operator remembers.
_MANY = 4096
#: What an operator called without PyTorch's dispatcher may be given; what the second kind holds is no tensor.
PLAIN = frozenset({Tensor, torch.nn.Parameter})
_HASHABLE = frozenset({type(None), bool, int, float, str, tuple})
_VALUES = _HASHABLE | {list}


def _signature(arguments: Sequence[Any]) -> list[Any]:
    """All that checks and choices go by, hashable: of the tensors shape, strides, dtype, device, and whether PyTorch
    negates them when they are read."""
    return [
        value if (kind := type(value)) in _HASHABLE
        else tuple(value) if kind is list
        else (value.shape, value.stride(), value.dtype, value.device, value.is_neg())
        for value in arguments
    ]  # fmt: skip


_plans: dict[Callable[..., Any], Callable[..., Callable[..., Any]]] = {}


def planned(plan: Callable[..., Callable[..., Any]]) -> Callable[..., Any]:
    """An implementation out of its plan: a function of the implementation's arguments that works out what all calls
    like this one share and returns what serves them, given the same arguments. Alike are calls whose tensors agree in
    shape, strides, dtype and device, whose other arguments are equal, and whose circumstances are
    (:func:`gan_fast.backends.circumstances`); :class:`Operator` then keeps the plan, and so may a
    :class:`gan_fast.ops.lane.Lane`, for which biases are alike whose shape, dtype and device are.

    A plan serves only as many lines of Python as must run in every call: where the layer before has swept the caches,
    each costs some ten times what a warm loop says.
    """

    @functools.wraps(plan)
    def implementation(*arguments: Any) -> Any:
        return plan(*arguments)(*arguments)

    _plans[implementation] = plan
    return implementation


def plan_of(implementation: Callable[..., Any]) -> Callable[..., Callable[..., Any]] | None:
    """The plan that :func:`planned` made this implementation of; None for all others."""
    return _plans.get(implementation)


def prepared(implementation: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """What serves calls like this one: the plan's function, or the implementation where it has no plan."""
    plan = plan_of(implementation)
    return implementation if plan is None else plan(*arguments)


class Served(NamedTuple):
    """What all calls of an operator with one signature share: the choice, whether PyTorch negates a tensor among the
    arguments when it reads it, and the implementation with its plan for such calls."""

    choice: Choice
    negated: bool
    implementation: Callable[..., Any]
    run: Callable[..., Any]


def nobody_looks_on() -> bool:
    """Whether nothing is active that has to see the operators which a program calls: a tracer, a mode (fake tensors,
    counters, selective checkpoints), a profiler, forward-mode derivatives.

    Then an operator need not pass through PyTorch's dispatcher, which for one registered from Python costs several
    times what autograd asks for.
    """
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch.autograd._profiler_enabled()
        and forward_ad._current_level < 0
    )


def runs_plainly() -> bool:
    """Whether a pass may do without operators: nothing records, traces or transforms what it does."""
    return nothing_intercepts() and nobody_looks_on()


def nothing_intercepts() -> bool:
    """The part of :func:`runs_plainly` that :func:`nobody_looks_on` does not ask."""
    return _recorder is None and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


class Operator:
    """One operator of the namespace ``gan_fast``; the last argument of every schema is ``str backend="auto"``.

    Args:
        name: the operator's name.
        schema: arguments and returns as torch.library takes them, e.g. ``"(Tensor x, str backend='auto') -> Tensor"``.
        implementations: backend name -> function of all arguments but the last. "reference" is required.
        check: function of the tensors and parameters, as ``implementations``: raises ValueError for what does not fit.
        outputs: same arguments: empty outputs of the right shapes, dtypes and strides (the fake kernel).
        facts: function of all arguments but the last: keyword arguments for :func:`gan_fast.backends.choose`.
        setup_context: (ctx, inputs, output), saves what backward needs.
        backward: (ctx, *output gradients, each may be None) -> one gradient or None for each input.
        vmap: (info, in_dims, *args) -> (outputs, out_dims), the batching rule; without one torch.func.vmap raises.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        implementations: Mapping[str, Callable[..., Any]],
        check: Callable[..., None],
        outputs: Callable[..., Any],
        facts: Callable[..., dict[str, Any]],
        setup_context: Callable[..., None],
        backward: Callable[..., Sequence[Tensor | None]],
        vmap: Callable[..., tuple[Any, Any]] | None,
    ) -> None:
        self.name = name
        self.implementations = implementations
        self.facts = facts
        self._check = check
        self._outputs = outputs
        LIBRARY.define(name + schema)
        qualified = f"gan_fast::{name}"
        # One kernel for every device: which backend runs is this package's choice, not the dispatcher's.
        LIBRARY.impl(name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(qualified, self._run_fake, lib=LIBRARY)

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            # An output nobody differentiates arrives as None instead of a tensor of zeros: no kernel runs for it.
            ctx.set_materialize_grads(False)
            setup_context(ctx, inputs, output)

        torch.library.register_autograd(qualified, backward, setup_context=setup, lib=LIBRARY)
        self._overload = getattr(torch.ops.gan_fast, name).default
        self._defaults = tuple(
            argument.default_value if argument.has_default_value() else None
            for argument in self._overload._schema.arguments
        )
        self._function = _functorch_function(self, setup, backward, vmap)
        self._eager = _eager_function(self, setup, backward)
        self._choices: dict[tuple[Any, ...], Served] = {}  # by signature
        choice_table.on_change(self._choices.clear)
        OPERATORS[name] = self

    def __call__(self, *args: Any) -> Any:
        """The differentiable operator, on ordinary tensors and on those inside torch.func's transforms."""
        if torch._C._are_functorch_transforms_active():
            return self._function.apply(*args)
        if torch.compiler.is_compiling() or not nobody_looks_on():
            return self._overload(*args)
        differentiated = False
        for value in args:
            kind = type(value)
            if kind in PLAIN:
                differentiated = differentiated or value.requires_grad
            elif kind not in _VALUES:  # a subclass of Tensor, which the dispatcher knows what to do with
                return self._overload(*args)
        if len(args) < len(self._defaults):
            args += self._defaults[len(args) :]
        if differentiated and torch.is_grad_enabled():
            return self._eager(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return self._run(*args)

    def _run(self, *args: Any) -> Any:
        """The kernel that the dispatcher calls, below autograd: checks, chooses a backend, runs it."""
        *arguments, backend = args + self._defaults[len(args) :]  # the dispatcher drops trailing defaults
        if forward_ad._current_level >= 0:  # autograd has dropped the tangents by now: 0 would be the wrong answer
            raise NotImplementedError(f"gan_fast::{self.name} has no forward-mode derivative")
        choice, negated, implementation, run = self.served(arguments, backend)
        if negated:  # kernels read memory, which has the other sign
            arguments = [value.resolve_neg() if isinstance(value, Tensor) else value for value in arguments]
        if _recorder is not None:
            _recorder(self, arguments, choice)
        present = self.present(choice)
        if present is not implementation:  # somebody put in another
            run = present
        device = arguments[0].device.type
        if autocast_enabled(device):
            # Casting is functional's business; in here autocast would give PyTorch's operations another dtype than
            # ours.
            with torch.autocast(device, enabled=False):
                return run(*arguments)
        return run(*arguments)

    def served(self, arguments: list[Any], backend: str) -> Served:
        """How calls like this one are served; raises for those that do not fit. ``arguments``: all but the backend."""
        key = (backend, *backends.circumstances(arguments[0].is_cuda), *_signature(arguments))
        known = self._choices.get(key)
        if known is None:
            known = self._choose(arguments, backend)
            if len(self._choices) >= _MANY:
                self._choices.clear()
            self._choices[key] = known
        return known

    def present(self, choice: Choice) -> Callable[..., Any]:
        """The implementation of that choice now."""
        return self.implementations["reference" if choice.backend == "torch" else choice.backend]

    def _choose(self, arguments: list[Any], backend: str) -> Served:
        self._check(*arguments)
        choice = backends.choose(self.name, backend=backend, **self.facts(*arguments))
        negated = any(isinstance(value, Tensor) and value.is_neg() for value in arguments)
        implementation = self.present(choice)
        # The sign resolved, strides may be others.
        run = implementation if negated else prepared(implementation, *arguments)
        return Served(choice, negated, implementation, run)

    def _run_fake(self, *args: Any) -> Any:
        *arguments, _ = args + self._defaults[len(args) :]
        self._check(*arguments)
        return self._outputs(*arguments)


def asked_for(ctx: Any, index: int, tensor: int) -> bool:
    """Whether the backward pass that runs wants the gradient of argument ``index``, which is the ``tensor``-th of those
    that are tensors.

    ``ctx.needs_input_grad`` only knows which arguments have one. ``torch.autograd.grad`` may ask for a few of these, as
    a gradient penalty asks for the images' alone; PyTorch's own operations then compute no others.
    """
    if not ctx.needs_input_grad[index]:
        return False
    if not isinstance(ctx, torch._C._FunctionBase):  # inside a transform of torch.func
        return True
    try:
        return bool(torch._C._will_engine_execute_node(ctx.next_functions[tensor][0]))
    except RuntimeError:  # a leaf that is asked for by itself
        return True


def _functorch_function(
    operator: Operator,
    setup: Callable[..., None],
    backward_function: Callable[..., Any],
    vmap_function: Callable[..., tuple[Any, Any]] | None,
) -> type[torch.autograd.Function]:
    """The autograd.Function that carries ``operator`` through torch.func.grad, vjp and vmap.

    It has no jvp: forward-mode differentiation raises rather than answering 0.
    """

    class TransformedOperator(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return operator(*args)  # one transform further in; in the end the plain operator

        setup_context = staticmethod(setup)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return backward_function(ctx, *grads)

    body = {} if vmap_function is None else {"vmap": staticmethod(vmap_function)}
    return type(f"Transformed_{operator.name}", (TransformedOperator,), body)


def _eager_function(
    operator: Operator, setup: Callable[..., None], backward_function: Callable[..., Any]
) -> Callable[..., Any]:
    """``apply`` of the autograd.Function that carries ``operator`` through autograd without the dispatcher."""

    class EagerOperator(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            # As under the dispatcher: what an implementation makes is no view to autograd, so that an activation may
            # overwrite it.
            with torch._C._AutoDispatchBelowAutograd():
                output = operator._run(*args)
            setup(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            return backward_function(ctx, *grads)

    # Past Function's own `apply`, which looks after the transforms of torch.func, once more.
    made: Any = type(operator.name, (EagerOperator,), {})
    apply: Callable[..., Any] = super(torch.autograd.Function, made).apply
    return apply
