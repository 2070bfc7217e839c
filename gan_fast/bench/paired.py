"""How many times as fast one program is as another, from turns that both took.

What a shared machine does meets the programs of one turn alike, so each turn gives a ratio of its own, and the figure
is the median of these. What lasts longer than a turn (another user of the memory, where this visit's tensors lie)
meets all turns of a visit, so how sure the figure is comes from how far the visits' own medians lie apart.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import statistics
from collections.abc import Sequence

__all__ = ["FEWEST_VISITS", "Ratio", "ratio", "value"]

#: With fewer visits the single turns have to tell how sure the figure is.
FEWEST_VISITS = 3
#: Of the bootstrap: its own error is then a twentieth.
DRAWS = 200
#: Half of an interval in logarithms from which on nothing is known.
LARGEST_DOUBT = 10.0

#: Seconds of one program's turns, by visits.
Visits = Sequence[Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """`value` times as fast.

    Attributes:
        value: median over the pairs.
        interval: of 95 %, for the value.
        quartiles: of the single pairs; None where there are only two medians.
        pairs: turns that both took; 0 where there are only two medians.
    """

    value: float
    interval: tuple[float, float]
    quartiles: tuple[float, float] | None = None
    pairs: int = 0

    @property
    def uncertainty(self) -> float:
        """Half of the interval, relative to the value."""
        return (self.interval[1] - self.interval[0]) / (2 * self.value)


def ratio(theirs: Visits, ours: Visits) -> Ratio:
    """How many times as fast `ours` is.

    Args:
        theirs, ours: as :attr:`gan_fast.bench.interleaved.Turns.times` has them; of a program with fewer turns or
            visits, the first ones.

    Raises:
        ValueError: the two have no turn in common.
    """
    visits = _pairs(theirs, ours)
    pairs = [value for visit in visits for value in visit]
    middle = statistics.median(pairs)
    lower, _, upper = statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else (middle,) * 3
    half = _doubt(visits if len(visits) >= FEWEST_VISITS else [[value] for value in pairs])
    interval = (math.exp(middle - half), math.exp(middle + half) if half < LARGEST_DOUBT else math.inf)
    return Ratio(math.exp(middle), interval, (math.exp(lower), math.exp(upper)), len(pairs))


def value(theirs: Visits, ours: Visits) -> float:
    """The ratio's value alone, which is sooner known."""
    return math.exp(statistics.median(itertools.chain.from_iterable(_pairs(theirs, ours))))


def _pairs(theirs: Visits, ours: Visits) -> list[list[float]]:
    """Logarithms of the turns' ratios, by visits."""
    visits = [
        [math.log(slow / fast) for slow, fast in zip(*pair, strict=False)]
        for pair in zip(theirs, ours, strict=False)
    ]  # fmt: skip
    visits = [visit for visit in visits if visit]
    if not visits:
        raise ValueError(f"got turns {theirs} and {ours}, expected some that both took")
    return visits


def _doubt(groups: Sequence[Sequence[float]]) -> float:
    """Half of the 95 % interval of the median over all groups' values: how much it varies when the groups are drawn
    anew (bootstrap), by Student's factor for so many groups. One wild group moves a median little, and this too."""
    count = len(groups)
    if count < 2:
        return math.inf
    draw = random.Random(0)
    medians = sorted(
        statistics.median(itertools.chain.from_iterable(draw.choices(groups, k=count))) for _ in range(DRAWS)
    )
    sigma = (medians[round(0.84 * DRAWS)] - medians[round(0.16 * DRAWS)]) / 2  # one wild group makes no tail of these
    return _student(count - 1) * sigma * math.sqrt(count / (count - 1))  # what is drawn from itself varies too little


def _student(freedom: int) -> float:
    """What a normal sample's mean lies from the truth at most, in 95 % of cases, in its own standard errors: Student's
    distribution by its expansion about the normal one, 3 % low at 2 degrees of freedom and closer beyond."""
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
