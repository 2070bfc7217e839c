"""Measuring: programs that take turns in one process, and what a figure is worth on a machine that others use too."""

from gan_fast.bench.interleaved import Calibration, Turns, matrix_product, measure
from gan_fast.bench.paired import Ratio, ratio

__all__ = ["Calibration", "Ratio", "Turns", "matrix_product", "measure", "ratio"]
