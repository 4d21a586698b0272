"""Compute a language teacher's largest logits (or hidden states) at every answer token once, for all runs.

    accelerate launch --config_file configs/accelerate/1gpu.yaml scripts/cache_teacher.py \\
        --base_config configs/base/gsm8k_qwen1b7.yaml --config configs/distill/fewshot.yaml

Takes the configuration of the training run; the run then says `teacher.serve=cache`. Worked examples depend on the
few-shot seed and the item alone, so every epoch, training seed and weight of the term reads the same cache, and
smaller `teacher.k` the first columns of it. With `teacher.keep=hidden` it holds the last hidden state of each token,
from which a LoRA student's own head makes all logits. Interrupt it at will: the same command goes on, with any number
of processes, and it mends a cache that was damaged (the digests of all arrays are looked at). One job at a time. The
folder is teacher.path, or found by content in $GRAFT_CACHE or cache/.
"""

import argparse
from dataclasses import replace

from graft.config import load
from graft.config.command_line import files_and_overrides
from graft.config.options import Config
from graft.errors import UserError, exit_cleanly


def configuration() -> Config:
    """The run's configuration from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False, usage="%(prog)s --base_config FILE --config FILE... "
                                     "[key=value ...]")
    parser.add_argument("--base_config", required=True)
    parser.add_argument("--config", nargs="+", action="extend", default=[], help="deltas, the teacher's among them")
    parser.add_argument("--seed", type=int, help="of the run, where its configuration is made from it; default: 0")
    options, rest = parser.parse_known_args()
    cfg = load(*files_and_overrides(options, rest), **({} if options.seed is None else {"seed": options.seed}))
    if cfg.teacher.name != "context_lm":
        raise UserError(f"teacher.name: expected context_lm, got {cfg.teacher.name}")
    return cfg


def main() -> None:
    """Compute what is missing of the cache."""
    cfg = configuration()  # before torch is imported
    import torch

    from graft.config import parts
    from graft.runtime.place import accelerator
    from graft.teachers import _targets, _topk_cache, context_lm

    args = cfg.teacher.args
    process = accelerator()
    task = _targets.task_for(cfg, parts.build("tasks", cfg.task))
    context = context_lm.context_of(task, args)
    if args["model"]:
        lm = context_lm.frozen_lm(task, args["model"], args["revision"], args["dtype"])
    else:
        whole = replace(cfg.student, args={**cfg.student.args, "lora": False, "checkpointing": False})
        lm = parts.build("students", whole, task)
    teacher = context_lm.freeze(context_lm.ContextLM(task, context, lm.to(process.device), args["k"],
                                                     args["batch_tokens"], keep=args["keep"]))
    wanted = _topk_cache.about(task, context, lm.base, args["precision"], args["cache_dtype"], args["keep"])
    folder = _topk_cache.folder_for(wanted, args["path"])
    published = {term.args["position"] == "published" for term in cfg.objective if term.name == "topk" and term.used}
    positions = ["rows"] * (published != {True}) + ["next"] * (True in published)
    for split in task.splits.values():
        split.to(process.device)
    count = _topk_cache.build(
        folder, wanted, teacher.columns, positions, teacher, task, device=process.device, rank=process.process_index,
        world=process.num_processes, wait=process.wait_for_everyone,
        autocast=lambda: torch.autocast(process.device.type, torch.bfloat16, enabled=args["precision"] == "bf16"))
    if process.is_main_process:
        manifest = _topk_cache.read_manifest(folder)
        other = (f", {args['k']} logits would be {len(positions) * (args['k'] * (2 + 4) + 8)} in fp16"
                 if args["keep"] == "hidden" else "")
        print(f"{folder}: {manifest['tokens']:,} answer tokens, {manifest['bytes'] / 2**20:.1f} MiB "
              f"({manifest['bytes_per_token']:.0f} bytes each{other}); {count} items computed by this process; "
              f"{teacher.short} items had to drop worked examples to fit teacher.max_length")


if __name__ == "__main__":
    exit_cleanly(main)
