"""What holds for every test: the same random numbers each time, and nothing of the caller's environment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from gan_fast import backends

# Examples are a function of the test alone, so that a red run is red again; no clock decides about slow machines.
settings.register_profile("gan_fast", derandomize=True, deadline=None, database=None, print_blob=True)
settings.load_profile("gan_fast")


@pytest.fixture(autouse=True)
def same_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed seed, and the automatic choice by the shipped rules, whatever the environment says."""
    monkeypatch.delenv("GAN_FAST_BACKEND", raising=False)
    backends.read_environment()
    monkeypatch.setenv("GAN_FAST_TABLE", "shipped")
    torch.manual_seed(0)


@pytest.fixture
def settings_may_change() -> Iterator[None]:
    """torch.testing's internals, which other tests load, forbid to set torch.backends' switches in their process."""
    allowed = getattr(torch.backends, "__allow_nonbracketed_mutation")
    with allowed():
        yield
