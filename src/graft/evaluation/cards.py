"""The README of an exported model, made from the run's own JSON and the results.json of its study."""

from pathlib import Path
from typing import Any

import jinja2
import yaml

from graft.config.options import Config
from graft.errors import UserError
from graft.reporting import reading, tables

USE = {
    "timm": 'import timm\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))",
    "onnx": 'import onnxruntime\nsession = onnxruntime.InferenceSession("FOLDER/model.onnx")\n'
            'logits, = session.run(["logits"], {"images": images})  # float32 (N, C, H, W) in [0, 1]; it normalises',
    "hf": "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
          'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
          'model = AutoModelForCausalLM.from_pretrained("FOLDER")  # of an adapter: its base, with peft installed'}
LIBRARIES = {"timm": "timm", "onnx": "onnx", "hf": "transformers", "merged": "transformers"}


def write(folder: Path, run_dir: Path, kind: str, about: dict[str, Any]) -> None:
    """README.md in an exported folder; `about` is what `exporting.export` returned."""
    config: Config = about["config"]
    base = origin(config)
    study = run_dir.resolve().parent.parent
    results, baseline = _results(study / "results.json", run_dir, about["sha256"])
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined)  # Markdown, not HTML
    text = environment.from_string(Path(__file__).with_name("card.md.j2").read_text()).render(
        **about, kind=kind, run=run_dir, study=study.name, condition=run_dir.resolve().parent.name, base=base,
        licence=licence(base), library=LIBRARIES[kind], use=USE.get(kind, USE["hf"]), results=results,
        baseline=baseline, recipe=yaml.safe_dump(config.to_dict(), sort_keys=True, allow_unicode=True))
    (folder / "README.md").write_text(text, encoding="utf-8")


def origin(config: Config) -> str:
    """The weights a student started from; empty for random ones."""
    args = config.student.args
    if config.reads_text:
        return str(args["model"]) + (f" at {args['revision']}" if args.get("revision") else "")
    return str(args.get("checkpoint") or (f"timm {args.get('arch')}" if args.get("pretrained") else ""))


def licence(base: str) -> str:
    """The licence that the README of a local base states; empty where none does."""
    card = Path(base) / "README.md"
    if not base or not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8", errors="replace").split("---")
    head = lines[1].splitlines() if len(lines) > 2 else []
    return next((line.partition(":")[2].strip() for line in head if line.startswith("license:")), "")


def _results(path: Path, run_dir: Path, sha256: str) -> tuple[list[dict[str, Any]], str]:
    """The scores of this very checkpoint, by split, with their intervals."""
    try:
        content = reading.read_results(path) if path.is_file() else None
    except UserError:
        content = None
    own = (content or {"conditions": {}})["conditions"].get(run_dir.resolve().parent.name)
    rows = []
    for run in own["runs"] if own else []:
        if run["checkpoint_sha256"] != sha256:
            continue
        accuracy, summary = run["metrics"]["accuracy"], own["summary"][run["split"]]["accuracy"]
        versus = own["vs_baseline"].get(run["split"], {}).get("accuracy")
        rows.append({"split": run["split"], "seeds": summary["seeds"],
                     "own": f"{100 * accuracy['value']:.2f} {tables.ends(*accuracy['ci95'])}",
                     "mean": f"{100 * summary['mean']:.2f}" + ("" if summary["ci95"][0] is None else
                                                               f" {tables.ends(*summary['ci95'])}"),
                     "versus": f"{100 * versus['difference']:+.2f} {tables.ends(*versus['ci95'], '+')}"
                               if versus and versus["ci95"][0] is not None else ""})
    return rows, (content or {}).get("baseline", "")
