"""The kernels of bfloat16 as the compiler made them: no inner loop stores, or loads more than its operands."""

from __future__ import annotations

import collections
import platform
import re
import shutil
import subprocess

import pytest
from native import kernels

#: Products of the register block, 14 x 2, and what it has to load for them: 14 words and 2 vectors.
PRODUCTS, LOADS = 28, 16


def loops(listing: str) -> list[list[str]]:
    """The instructions of every innermost loop: from a backward jump's target to the jump."""
    found: list[list[str]] = []
    addresses: list[int] = []
    instructions: list[str] = []
    for line in listing.splitlines():
        parts = line.split("\t")
        if len(parts) < 2:
            continue
        addresses.append(int(parts[0].strip().rstrip(":"), 16))
        instructions.append(parts[1].strip())
    places = {address: place for place, address in enumerate(addresses)}
    start_of_last = -1
    for place, instruction in enumerate(instructions):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", instruction)
        target = places.get(int(jump[1], 16), place) if jump else place
        if target < place and target > start_of_last:
            found.append(instructions[target : place + 1])
            start_of_last = target
    return found


def listing() -> str:
    module = kernels()
    assert module.__file__ is not None
    command = ["objdump", "-d", "--no-show-raw-insn", module.__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def counted(loop: list[str], word: str) -> int:
    return sum(word in line for line in loop)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_inner_loops_keep_their_sums_in_registers() -> None:
    # What few output channels are multiplied with has no broadcast.
    products = [loop for loop in loops(listing()) if counted(loop, "vdpbf16ps") == PRODUCTS]
    blocks = [loop for loop in products if counted(loop, "vpbroadcastd") > 0]
    # Runs of 14, 7 and 2 pixels of the gather engines, and 14 rows of the weight gradient.
    assert len(blocks) >= 4, f"{len(blocks)} loops of {PRODUCTS} products of pairs"
    for block in blocks:
        # The next tile's lines are asked for beside the operands.
        fetched = [line for line in block if line.startswith("prefetch")]
        in_memory = [line for line in block if "(" in line and not line.startswith("lea") and line not in fetched]
        assert len(in_memory) <= LOADS and len(fetched) <= 1, "\n".join(block)
        stores = [line for line in in_memory if re.search(r",\s*[^,]*\([^()]*\)$", line)]
        assert not stores and not any("rsp" in line for line in in_memory), "\n".join(block)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86")
@pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed")
def test_matrix_registers_are_loaded_once_a_product() -> None:
    text = listing()
    if "tdpbf16ps" not in text:
        pytest.skip("built by a compiler that does not know AMX")
    blocks = [loop for loop in loops(text) if counted(loop, "tdpbf16ps")]
    found = collections.Counter((counted(loop, "tdpbf16ps"), counted(loop, "tileloadd")) for loop in blocks)
    # Two runs x 32 lanes; four runs x 16 lanes; the weight gradient's one left operand for 1 to 6 right ones.
    wanted = collections.Counter([(4, 4), (4, 5), *((n, n + 1) for n in range(1, 7))])
    # The same of floats, six products of three parts: a right operand's are loaded once, in weight gradients the
    # left one's too.
    wanted += collections.Counter([(24, 18), (24, 27), *((6 * n, 3 * n + 3) for n in range(1, 5))])
    assert wanted <= found, f"(products, loads) of loops: {found}, expected {wanted} among them"
    assert not any(counted(loop, "tilestored") for loop in blocks)
