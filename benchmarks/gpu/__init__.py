"""The parts of benchmarks/gpu_suite.py, one role in each file.

journal     what was found, kept line by line, so that a killed run goes on where it stopped; the gate for speeds
tasks       a piece of work, and how a worker goes through a list of them inside its time
supervise   workers as processes of their own: one that dies, hangs or breaks its device costs one task
plan        every task of the suite, with its importance and its phase
device      tensors, precisions and clocks on the device
ceilings    what the device can do at all: copies, matrix products, launches
verdicts    how near to float64 is near enough, and whether our kernels ran
cuda_module the CUDA C++ module: its checks and its figures
kernels     checks of every kernel against float64: cases, tiles with 4 and 8 warps, repeated runs
layers      one layer, one pass: PyTorch's call, ours, the check of ours, the times of both
graph_checks  the Trainer's step as one CUDA graph against single operations
steps       one training step by PyTorch's programs and by ours
trace       kernels and device time of one step, with a profiler's trace
build       what is built in place before anything runs
report      the table
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The package from the clone, without an installation; the lists of shapes and cases from where every check has them.
for _folder in (ROOT / "tests", ROOT / "benchmarks", ROOT):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))
