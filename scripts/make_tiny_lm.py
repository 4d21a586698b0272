"""Makes a small causal language model with random weights, and a tokenizer for it, without any download.

    python scripts/make_tiny_lm.py --out cache/tiny --family llama --hidden 64 --layers 2

The folder loads like any other: configuration, tokenizer, chat template, model.safetensors.
"""

import argparse
from pathlib import Path

from graft.config import script_options
from graft.errors import exit_cleanly


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = script_options.parser(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--family", default="qwen3", help="such as llama; a name that is none lists them all")
    for name, default in {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 128, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--characters", default="", help="a character tokenizer of these; default: one of bytes")
    parser.add_argument("--vocabulary", type=int, default=0, help="rows of the embedding; 0: the tokenizer's tokens")
    parser.add_argument("--init_std", type=float, default=0.02)
    parser.add_argument("--plain", action="store_true", help="a base model: no chat template")
    parser.add_argument("--no_weights", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Make what the command line asks for."""
    options = arguments()  # before torch is imported
    from graft.students._tiny_lm import make

    print(make(**vars(options)))


if __name__ == "__main__":
    exit_cleanly(main)
