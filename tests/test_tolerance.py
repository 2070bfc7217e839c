"""The tests' own bound: what it lets pass, and what it does not."""

from __future__ import annotations

import pytest
import torch
from tolerance import Errors, assert_as_good


def test_sums_that_cancel_are_judged_by_their_terms() -> None:
    """A bias' gradient of 75 terms near 0.6, where PyTorch happens to lose next to nothing."""
    truth, lucky = torch.tensor([1.04, -0.3], dtype=torch.float64), Errors(1.6e-7, 1.6e-7)
    rounded = (truth + 9e-7).float()
    with pytest.raises(AssertionError, match="largest error 9"):
        assert_as_good(rounded, truth, lucky, "without the terms")
    assert_as_good(rounded, truth, lucky, "with them", terms=45.0)
    for wrong in (1e-5, 0.6):
        with pytest.raises(AssertionError, match="largest error"):
            assert_as_good((truth + wrong).float(), truth, lucky, "more than rounding", terms=45.0)
    with pytest.raises(AssertionError, match="largest error"):
        assert_as_good(rounded, truth, lucky, "terms that do not cancel", terms=2.0)
