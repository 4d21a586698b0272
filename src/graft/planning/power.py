"""What a study can decide: the smallest difference that it is likely to find, alone and in its family. No torch."""

from graft.reporting import stats

SEEDS = (3, 5, 10)
# Of a study that is not run yet nobody knows these. The published studies are what is known of any: medians over their
# comparisons with the baseline (accuracy, test) in assets/*/results.json, of se_seed * sqrt(seeds) and of the sum of
# `discordant`, rounded; tests/test_planning.py computes them again.
SEED_SD = 0.03
DISCORDANCE = 0.3


def decides(n: int, discordance: float, seed_sd: float, comparisons: int = 1) -> dict[int, float]:
    """The smallest difference of accuracy (a fraction) that so many seeds and n test items find four times in five.

    With several `comparisons`, at Holm's strictest level: as if it were the only one of them that is there.
    """
    return {seeds: stats.detectable(n, discordance, seeds, seed_sd, comparisons=comparisons) for seeds in SEEDS}
