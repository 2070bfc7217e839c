"""gan_fast::conv to 1 to 4 channels on the CUDA kernel ``_cuda.conv`` (csrc/cuda/conv*)."""

from gan_fast.ops.cuda_conv import make_cuda

conv = make_cuda("conv")
