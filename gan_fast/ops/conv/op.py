"""Registration of gan_fast::conv: schema, backends, fake kernel, derivative."""

from gan_fast.ops import convolution as shared
from gan_fast.ops import first_use
from gan_fast.ops.conv import cpu, gemm, reference
from gan_fast.ops.registry import Operator

conv = Operator(
    "conv",
    shared.SCHEMA,
    implementations={
        "reference": reference.conv,
        "cpu": cpu.conv,
        "gemm": gemm.conv,
        "triton": first_use.checked("conv", "triton"),
        "cuda": first_use.checked("conv", "cuda"),
    },
    check=shared.make_check("conv", transposed=False),
    outputs=shared.make_outputs(transposed=False),
    facts=shared.make_facts(transposed=False),
    setup_context=shared.setup_context,
    backward=shared.make_backward(transposed=False),
    vmap=shared.make_vmap("conv"),
)
