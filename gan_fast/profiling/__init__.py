"""Where a training step spends its time: by phase, by layer and by operator, against what the machine could do.

    with gan_fast.Profile(generator=G, discriminator=D) as profile:
        for real in loader:
            ...                    # your own step, or trainer.fit(...)
    print(profile.report)          # or profile.report.as_dict()

`gan-fast profile` is the same from the command line. Networks need not be accelerated; of those that are not, the
report says what `gan_fast.accelerate` would change.
"""

from __future__ import annotations

from .recorder import EnoughSteps, Profile
from .report import LayerRow, OperatorRow, PhaseRow, Report, Stretch

__all__ = ["EnoughSteps", "LayerRow", "OperatorRow", "PhaseRow", "Profile", "Report", "Stretch"]
