"""The language benchmark at tiny sizes: it runs, what it compares is the same loss, and it reports what it promises."""

import json
import subprocess
import sys

import pytest

from small import ROOT, environment

SIZES = {"reps": 2, "hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "ff": 64, "vocabulary": 2000, "shots": 2,
         "k": 16, "length": 0.1}


@pytest.mark.slow
def test_it_runs_and_compares_equal_losses():
    words = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
    done = subprocess.run([sys.executable, "scripts/bench/bench_language.py", *words], env=environment(), cwd=ROOT,
                          text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loss_difference"] < 1e-5 and found["gradient_difference"] < 1e-4
    assert found["cache_bytes_per_token"] == 16 * (2 + 4) + 8  # fp16 and int32 for each logit; two fp32 for all of them
    assert found["hidden_bytes_per_token"] == 2 * 32 and found["loop_loss_difference"] < 1e-4
    for name in ("online_speedup", "cached_speedup", "online_speedup_predicting", "cached_speedup_predicting",
                 "hidden_cost", "on_policy_cost", "loop_efficiency", "memory_ratio", "cached_memory_ratio",
                 "step_memory_ratio"):
        assert found[name] > 0, name
