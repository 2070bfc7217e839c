"""gan_fast::conv_transpose from 1 to 4 channels on the kernel ``_cuda.conv_transpose`` (csrc/cuda/conv_transpose*)."""

from gan_fast.ops.cuda_conv import make_cuda

conv_transpose = make_cuda("conv_transpose")
