"""Measuring: programs that take turns in one process, and what a figure is worth on a machine that others use too."""

from gan_fast.bench.interleaved import Calibration, matrix_product, measure

__all__ = ["Calibration", "matrix_product", "measure"]
