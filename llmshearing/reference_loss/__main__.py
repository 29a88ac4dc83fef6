"""Command line: ``python -m llmshearing.reference_loss {eval,fit}``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from llmshearing.errors import cli
from llmshearing.fileio import check_file_can_be_written
from llmshearing.following import say_next
from llmshearing.reference_loss.fit import predict, read_losses
from llmshearing.reference_loss.results import give
from llmshearing.storage import is_remote


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m llmshearing.reference_loss", description="Per-domain reference losses in nats per token."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    measure = commands.add_parser("eval", help="measure a model on the prepared eval split")
    measure.add_argument("model", metavar="MODEL", help="Hugging Face folder or hub id")
    measure.add_argument("data", metavar="DATA", help="folder that data_prep/prepare.py wrote, or its eval folder, "
                         "or the URL of a copy of it")  # fmt: skip
    measure.add_argument("--cache", metavar="FOLDER", help="where to put what is fetched from a URL")
    measure.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU, "
                         "float32 on a CPU; the cross-entropy is always taken in float32")  # fmt: skip
    measure.add_argument("--device-map", choices=("auto",), help="spread a model that is larger than a device over all "
                         "GPUs, host memory and disk, in this order (accelerate)")  # fmt: skip
    measure.add_argument("--max-memory", metavar="DEVICE=SIZE", nargs="+", help="that its weights may take of a GPU or "
                         "the host, such as 0=70GB cpu=400GB (default: what is free)")  # fmt: skip
    measure.add_argument("--offload", metavar="FOLDER", help="for weights of *.bin files that are left for the disk")
    measure.add_argument("--batch-size", type=int, default=8, help="sequences per forward pass (default: 8)")

    law = commands.add_parser("fit", help="predict the losses of a smaller model from those of larger ones")
    law.add_argument("losses", metavar="LOSSES.json", nargs="+", help="files that `eval` wrote, or one file with "
                     '{"models": [{"model": ..., "num_parameters": ..., "losses": {domain: nats}}, ...]}')  # fmt: skip
    law.add_argument("--num-parameters", type=int, required=True, help="true parameter count of the model to predict, "
                     "e.g. 2701560320")  # fmt: skip

    for command in (measure, law):
        command.add_argument("--out", metavar="F", help="write the JSON here (a path, s3:// or gs://), not to stdout; "
                             "a killed eval goes on at the next domain")  # fmt: skip
    return parser.parse_args(argv)


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; the result goes to stdout or to ``--out``, or to stdout where that fails at the end."""
    args = _parse(argv)
    if args.out is not None and not is_remote(args.out):
        check_file_can_be_written(args.out)
    if args.command == "fit":
        give(args.out, predict(read_losses(args.losses), num_parameters=args.num_parameters))
        return
    # torch and transformers take seconds to import
    from llmshearing.ranks import joined, rank
    from llmshearing.reference_loss.evaluate import evaluate
    from llmshearing.reference_loss.placement import placement

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    laid_out = placement(args.device_map, args.max_memory, args.offload)
    with joined():
        result = evaluate(
            args.model,
            args.data,
            batch_size=args.batch_size,
            dtype=args.dtype,
            cache=args.cache,
            placement=laid_out,
            out=args.out,
        )
        if rank() > 0:
            return
    give(args.out, result)
    rest = "--parameters N --tokens N --run runs/mine --out my"
    say_next(f"python -m llmshearing.new_recipe {{model}} --data {{data}} {rest}", model=args.model, data=args.data)


if __name__ == "__main__":
    main()
