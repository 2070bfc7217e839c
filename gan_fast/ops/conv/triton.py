"""gan_fast::conv on the Triton kernels of :mod:`gan_fast.ops.triton_conv`."""

from gan_fast.ops.triton_conv import make_triton

conv = make_triton("conv")
