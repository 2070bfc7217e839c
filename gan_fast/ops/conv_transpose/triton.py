"""gan_fast::conv_transpose on the Triton kernels of :mod:`gan_fast.ops.triton_conv`."""

from gan_fast.ops.triton_conv import make_triton

conv_transpose = make_triton("conv_transpose")
