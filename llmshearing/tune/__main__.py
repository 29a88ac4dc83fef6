"""``python -m llmshearing.tune MODEL CHATS --out FOLDER``: teach a model to answer, by trl and peft.

CHATS has a conversation a line, as {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]} or as
ShareGPT writes them. The loss is on answers only. FOLDER is a plain Hugging Face model that answers with its chat
template and ends by itself. Needs the extra: pip install 'llmshearing[tune]'.

Defaults are what the scripts of Sheared LLaMA give its 1.3B model, but for LoRA's; its data is what --rounds 1
--sample 10000 takes of ShareGPT.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from llmshearing.errors import cli
from llmshearing.following import say_next
from llmshearing.tune.libraries import check_installed


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m llmshearing.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="Hugging Face folder or hub id, such as what shear wrote")
    parser.add_argument("chats", metavar="CHATS", help="conversations, JSON lines")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="folder to create")
    parser.add_argument("--overwrite", action="store_true", help="replace the model that is there")
    parser.add_argument(
        "--chat-template",
        metavar="NAME|FILE",
        help="sheared-llama (the paper's prompt), chatml, or a file (default: the model's)",
    )
    parser.add_argument("--rounds", metavar="N", type=int, help="first rounds of a conversation (default: all)")
    parser.add_argument("--sample", metavar="N", type=int, help="conversations, drawn at random (default: all)")
    parser.add_argument("--max-length", metavar="N", type=int, help="longer ones are left out (default: 512)")
    parser.add_argument("--epochs", metavar="X", type=float, default=2.0, help="passes over them (default: 2)")
    parser.add_argument("--batch-size", metavar="N", type=int, default=128, help="per step (default: 128)")
    parser.add_argument("--micro-batch-size", metavar="N", type=int, default=8, help="in memory (default: 8)")
    parser.add_argument("--learning-rate", metavar="X", type=float, help="default: 5e-5, and 2e-4 with --lora")
    parser.add_argument("--warmup", metavar="X", type=float, default=0.03, help="share of the steps (default: 0.03)")
    parser.add_argument(
        "--lora", metavar="RANK", type=int, nargs="?", const=16, help="train an adapter, merged in the end (rank: 16)"
    )
    parser.add_argument("--keep-adapter", action="store_true", help="with --lora: write it too, to FOLDER/adapter")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations, for memory")
    parser.add_argument("--save-interval", metavar="N", type=int, default=50, help="steps (default: 50)")
    parser.add_argument("--seed", metavar="N", type=int, default=42, help="default: 42")
    arguments = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_installed()
    from llmshearing.tune.settings import Settings
    from llmshearing.tune.train import tune  # transformers takes seconds; --help does without

    model, chats, out, overwrite = (arguments.pop(name) for name in ("model", "chats", "out", "overwrite"))
    tune(model, chats, out, Settings(**arguments), overwrite=overwrite)
    say_next("python -m llmshearing.answers MODEL {out} --prompts PROMPTS --out ANSWERS", out=out)


if __name__ == "__main__":
    main()
