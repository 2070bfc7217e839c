"""Registration of gan_fast::conv_transpose: schema, backends, fake kernel, derivative."""

from gan_fast.ops import convolution as shared
from gan_fast.ops import first_use
from gan_fast.ops.conv_transpose import cpu, gemm, reference
from gan_fast.ops.registry import Operator

conv_transpose = Operator(
    "conv_transpose",
    shared.SCHEMA,
    implementations={
        "reference": reference.conv_transpose,
        "cpu": cpu.conv_transpose,
        "gemm": gemm.conv_transpose,
        "triton": first_use.checked("conv_transpose", "triton"),
        "cuda": first_use.checked("conv_transpose", "cuda"),
    },
    check=shared.make_check("conv_transpose", transposed=True),
    outputs=shared.make_outputs(transposed=True),
    facts=shared.make_facts(transposed=True),
    setup_context=shared.setup_context,
    backward=shared.make_backward(transposed=True),
    vmap=shared.make_vmap("conv_transpose"),
)
