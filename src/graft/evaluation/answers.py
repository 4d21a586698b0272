"""Scoring language models on questions: answers are generated, kept as they come, judged item by item.

A score is a JSON file with its rows beside it, `eval/<split>-<step>.{json,parquet}`; while it is made, what has been
generated lies in `eval/<split>-<step>.<digest>.<rank>.jsonl`, and a crash loses nothing of it.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from graft import keyed
from graft.errors import UserError
from graft.evaluation import kept
from graft.evaluation.generation import Source
from graft.reporting import results, traits
from graft.runtime import checkpoint
from graft.runtime.files import parsed
from graft.runtime.provenance import code_sha
from graft.tasks._text import Ragged, TextTask

PART = {"j": int, "text": str, "tokens": int, "ended": bool}  # a line of what is kept while answers are made


def items(size: int, limit: int) -> list[int]:
    """Positions of the items to score: all, or a random `limit` of them, the same ones for everybody."""
    return sorted(keyed.permutation(keyed.key("limit"), size)[:limit or size].tolist())


def weights_of(folder: Path) -> dict[str, str]:
    """Which weights a checkpoint holds and their digest, as its manifest says."""
    try:
        manifest = parsed((folder / "manifest.json").read_text())
        file = checkpoint.student_file(manifest)
        return {"weights": Path(file).stem, "checkpoint_sha256": manifest[file]["sha256"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder}/manifest.json: missing or unreadable") from None


def prompts_sha256(prompts: Ragged) -> str:
    """Digest of the very token ids that are asked: each prompt a line, its ids in decimal with spaces between them."""
    found = hashlib.sha256()
    for j in range(len(prompts.lengths)):
        found.update((" ".join(map(str, prompts[j].tolist())) + "\n").encode())
    return found.hexdigest()


def asked(task: TextTask, split: str, prompts: Ragged, source: Source) -> dict[str, Any]:
    """What decides the answers besides the weights and the engine."""
    stop = source.stop
    return {"n": len(prompts.lengths), "data_fingerprint": task.fingerprints[split],
            "template_sha256": task.prompt.template_sha256, "tokenizer_sha256": task.prompt.tokenizer_sha256,
            "prompts_sha256": prompts_sha256(prompts), "precision": source.dtype,
            "max_new_tokens": stop.max_new_tokens, "stop": {"ids": list(stop.ids), "texts": list(stop.texts)}}


def scored(path: Path, wanted: dict[str, Any], engine: Any, task: TextTask, prompts: Ragged, index: Sequence[int],
           weights: Path | None, base_dir: Path, accelerator: Accelerator) -> dict[str, Any]:
    """The run's entry for one split, from what is kept at `path` where it is still true.

    `wanted` is what must be equal for that; it holds `split` and goes into the entry. `prompts[j]` asks item
    `index[j]`. Raises UserError if the checkpoint in `weights` is damaged.
    """
    rows_file = path.with_suffix(".parquet")
    wanted = {"schema_version": results.SCHEMA_VERSION, **wanted, "examples": str(rows_file.relative_to(base_dir)),
              "engine": engine.name, **asked(task, wanted["split"], prompts, engine.source)}

    def again(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
        judged = judge(task, wanted["split"], index, rows[["text", "tokens", "ended"]].to_dict("records"))
        return judged, metrics(judged)

    if entry := kept.score(path, wanted, index, again):
        return entry
    if weights is not None:
        checkpoint.verify(weights)  # on every process: all of them go on, or none does
    texts = _generate(path, wanted, engine, prompts, weights, accelerator)
    rows = judge(task, wanted["split"], index, [texts[j] for j in range(len(index))])
    entry = {**wanted, "metrics": metrics(rows), "code_sha": code_sha()}
    if accelerator.is_main_process:
        results.write_examples(rows_file, rows, wanted["data_fingerprint"])
        results.write_json(path, entry)
        for part in path.parent.glob(f"{path.stem}.*.jsonl"):
            part.unlink()
    return entry


def _generate(path: Path, wanted: dict[str, Any], engine: Any, prompts: Ragged, weights: Path | None,
              accelerator: Accelerator) -> dict[int, dict[str, Any]]:
    """`{j: {text, tokens, ended}}` of every prompt, on every process; only what is not kept is generated.

    Prompts are dealt by length, so that processes finish together; any number of them may continue the work of any
    other number.
    """
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = [digest, _read_parts(path, digest, len(prompts.lengths)) if accelerator.is_main_process else None]
    theirs, texts = broadcast_object_list(shared)
    assert theirs == digest, "the processes score different things"
    missing = sorted(set(range(len(prompts.lengths))) - texts.keys(), key=lambda j: (-int(prompts.lengths[j]), j))
    mine = missing[accelerator.process_index::accelerator.num_processes]
    made = {}
    with path.with_name(f"{path.stem}.{digest}.{accelerator.process_index}.jsonl").open("a") as file:
        file.write("\n")  # the last line of a killed process may be half a line
        for place, one in tqdm(engine.generate([prompts[j].tolist() for j in mine], weights), total=len(mine),
                               desc=f"{path.parent.parent.name} {path.stem}", mininterval=2.0,
                               disable=None if accelerator.is_main_process else True):
            made[mine[place]] = {"text": one.text, "tokens": len(one.ids), "ended": one.ended}
            file.write(json.dumps({"j": mine[place], **made[mine[place]]}) + "\n")
            file.flush()
    shares = gather_object([made]) if accelerator.num_processes > 1 else [made]
    for share in shares:
        texts |= share
    assert texts.keys() == set(range(len(prompts.lengths)))
    return texts


def _read_parts(path: Path, digest: str, count: int) -> dict[int, dict[str, Any]]:
    """What processes kept that did not come to their end; a line that is not what one of them writes is left out."""
    found = {}
    for part in path.parent.glob(f"{path.stem}.{digest}.*.jsonl"):
        for line in part.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                row = parsed(line)
                kinds = {key: type(value) for key, value in row.items()} if isinstance(row, dict) else {}
                if kinds == PART and row["j"] in range(count):
                    found[row.pop("j")] = row
    return found


def judge(task: TextTask, split: str, index: Sequence[int], texts: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row an item (`results.TEXT_COLUMNS`): `prediction` by the strict rule, `prediction_flexible` by the other.

    No prediction ("") is wrong. The item's traits are columns besides. `tokens` were generated, the one that ended the
    answer apart.
    """
    lines = []
    for i, given in zip(index, texts, strict=True):
        item, (strict, flexible) = task.splits[split].items[i], task.extract(given["text"])
        lines.append({"index": i, "id": item.id, "gold": item.gold, "prediction": strict,
                      "correct": strict == item.gold != "", "prediction_flexible": flexible,
                      "correct_flexible": flexible == item.gold != "", **given,
                      **{f"{traits.COLUMN}{name}": value for name, value in item.traits}})
    columns = dict.fromkeys([*results.TEXT_COLUMNS, *(name for line in lines for name in line)])
    return pd.DataFrame(lines, columns=list(columns))


def metrics(rows: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Strict and flexible accuracy and the share of answers that ended by themselves, with counts and Wilson intervals;
    mean tokens generated."""
    columns = {"accuracy": "correct", "accuracy_flexible": "correct_flexible", "ended": "ended"}
    found = {name: results.share(rows[column]) for name, column in columns.items()}
    found["ended"]["n_ended"] = found["ended"].pop("n_correct")
    return {**found, "tokens": {"value": float(rows["tokens"].mean())}}


def best(entries: Sequence[dict[str, Any]]) -> int:
    """The step with the highest strict accuracy, the earliest of equal ones."""
    return max(entries, key=lambda entry: (entry["metrics"]["accuracy"]["value"], -entry["step"]))["step"]
