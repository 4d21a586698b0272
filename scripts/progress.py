"""A progress bar over the runs of a sequence, with a time estimate from what they have measured so far.

    python scripts/progress.py --base_dir experiments/demo --slots 2 --runs baseline/seed0 baseline/seed1

Ends when every run is done, or with its parent. The estimate divides the seconds that are left, each running run's
by its own speed and each waiting run's as long as the mean of those begun, by the number of slots. Runs of a kind
that has not begun may take longer or shorter; the estimate says so with a `~`.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from graft.runtime.runs import look


def remaining(seen: list[tuple[float, float | None]], slots: int) -> float | None:
    """Seconds until the last run ends; None before any speed is known."""
    known = [seconds for _, seconds in seen if seconds is not None]
    if not known:
        return None
    mean = sum(known) / len(known)
    return sum((1 - fraction) * (seconds or mean) for fraction, seconds in seen) / slots


def main() -> None:
    """Look every second, draw, end with the last run or the parent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_dir", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=1, help="runs at a time")
    parser.add_argument("--runs", nargs="+", required=True)
    options = parser.parse_args()
    parent = os.getppid()
    terminal = sys.stderr.isatty()
    bar = tqdm(total=len(options.runs), bar_format="{percentage:3.0f}% |{bar:30}| {desc}", mininterval=0,
               disable=None)
    told = 0.0
    while os.getppid() == parent:
        seen = [look(options.base_dir / run) for run in options.runs]
        left = remaining(seen, options.slots)
        active = [run for run, (fraction, _) in zip(options.runs, seen) if 0 < fraction < 1]
        text = (f"{sum(f for f, _ in seen):.1f} of {len(seen)} runs; " +
                ("time left not known yet" if left is None else f"~{left / 60:.1f} min left") +
                (f"; {', '.join(active)}" if active else ""))
        bar.n = sum(fraction for fraction, _ in seen)
        bar.set_description_str(text)
        if not terminal and time.time() - told > 30:
            print(text, flush=True)
            told = time.time()
        if all(fraction == 1 for fraction, _ in seen):
            break
        time.sleep(1)
    bar.close()


if __name__ == "__main__":
    main()
