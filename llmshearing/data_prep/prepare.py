"""``python data_prep/prepare.py INPUT OUT --tokenizer T --seq-len S --eval-sequences E``: a corpus ready for training.

1. ``corpus``: the files of ``INPUT/<domain>/`` (.jsonl[.gz|.zst], .parquet, .txt), large ones in parts;
2. ``tokenize_file``: each part's documents are tokenized into ``OUT/.partial``, with a hash of each text;
3. ``holdout``: the documents of smallest hash are each domain's eval documents, until they fill E sequences;
4. ``count_part``: how many tokens each part gives to ``train``, without the texts that are held out;
5. ``pack``: each range of shards of ``train``, and ``eval``, packed to S tokens, as MDS folders;
6. ``OUT/{train,eval}/<domain>/`` and ``OUT/manifest.json`` appear, ``OUT/.partial`` goes.

Steps 2, 4 and 5 are tasks, which processes of this machine (--engine local) or of a Ray cluster (--engine ray) run.
INPUT and OUT may be addresses (s3://, gs://).

The output is the same, byte for byte, for any engine, any number of workers and after any number of interruptions: run
the same command again to go on. ``OUT/manifest.json`` is written last: a folder that has one is complete.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmshearing import storage
from llmshearing.data_prep.corpus import file_infos, find_corpus
from llmshearing.data_prep.engine import ENGINES, InProcess, open_engine
from llmshearing.data_prep.first_pass import check_bad_lines, tokenize_corpus
from llmshearing.data_prep.mds import SHARD_BYTES, ShardFormat
from llmshearing.data_prep.output import complete_manifest, publish, work_folder
from llmshearing.data_prep.pack import PackSettings
from llmshearing.data_prep.readers import check_beginning
from llmshearing.data_prep.second_pass import pack_corpus
from llmshearing.data_prep.tasks import Job
from llmshearing.data_prep.tokenizer import TOKEN_TYPES, Tokenizer, load_tokenizer
from llmshearing.errors import InputError, cli
from llmshearing.following import say_next

log = logging.getLogger("data_prep.prepare")

FORMAT = 2
LARGEST = 2**31 - 1


def prepare(
    corpus: Path | str,
    out: Path | str,
    *,
    tokenizer: Tokenizer,
    seq_len: int,
    eval_sequences: int,
    num_workers: int | None = 1,
    bos: bool | None = None,
    eos: bool | None = None,
    token_type: str | None = None,
    text_key: str | None = None,
    max_bad_share: float = 0.01,
    dedup: str | None = None,
    engine: str = "local",
    ray_address: str | None = None,
) -> dict[str, Any]:
    """Tokenize, hold out, pack and write a corpus; goes on where an interrupted run stopped.

    Args:
        corpus: folder with one folder of documents per domain; a path or an address, as ``out``.
        out: folder to write; a complete one made with the same settings from the same input is left as it is.
        tokenizer: see :func:`data_prep.tokenizer.load_tokenizer`.
        seq_len: tokens per sequence.
        eval_sequences: sequences held out per domain.
        num_workers: tasks at a time; None: as many as there are cores.
        bos: begin each document with BOS; None: where the tokenizer has one.
        eos: end each document with EOS; None: where the tokenizer has one.
        token_type: ``uint16`` or ``uint32``; None: the smaller one that holds the vocabulary.
        text_key: key or column of the text; None: the first usual one that is there.
        max_bad_share: share of a domain's lines that may be unreadable.
        dedup: ``exact`` leaves out of ``train`` what is an exact copy of an earlier document, of any domain.
        engine: ``local``, processes of this machine, or ``ray``.
        ray_address: of a running Ray cluster; see :func:`data_prep.engine.open_engine`.

    Returns:
        the manifest, as written to ``out/manifest.json``.

    Raises:
        InputError: bad input, or ``out`` holds something else.
    """
    least = {"--seq-len": (seq_len, 2), "--eval-sequences": (eval_sequences, 1), "--workers": (num_workers, 1)}
    for option, (value, minimum) in least.items():
        if value is not None and not minimum <= value <= LARGEST:
            raise InputError(f"{option} {value} is out of range: from {minimum} to {LARGEST}.")
    if not 0 <= max_bad_share <= 1:  # nan is neither
        raise InputError(f"--max-bad-share {max_bad_share} is no share: from 0 to 1, 0.01 for one line in a hundred.")
    if text_key == "":
        raise InputError("--text-key '' is empty. Name the key, or leave it out for the usual ones.")
    if engine not in ENGINES or dedup not in (None, "exact"):
        raise InputError(f"Engines are {', '.join(ENGINES)}, not {engine}; dedup is None or exact, not {dedup}.")
    corpus, out = (str(place) if storage.is_remote(place) else Path(place).absolute() for place in (corpus, out))
    _check_apart(corpus, out)
    packing = PackSettings(
        seq_len=seq_len,
        token_type=tokenizer.token_type(token_type),
        bos_id=_special_token("bos", bos, tokenizer.bos_id, tokenizer.name),
        eos_id=_special_token("eos", eos, tokenizer.eos_id, tokenizer.name),
        eval_sequences=eval_sequences,
    )
    if packing.extra == 0:
        log.warning("Documents follow one another with nothing between them: neither BOS nor EOS is put there.")
    domains = find_corpus(corpus)
    for files in domains.values():
        check_beginning(files[0], text_key=text_key)
    infos = file_infos(corpus, domains)
    settings = {
        "format": FORMAT,
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256},
        **asdict(packing),
        "text_key": text_key,
        **({"dedup": dedup} if dedup else {}),
        "input": {
            name: {"files": len(files), "bytes": sum(infos[file].bytes for file in files)}
            for name, files in domains.items()
        },
    }
    if manifest := complete_manifest(out, settings, domains):
        log.info("%s is complete already.", out)
        return manifest
    with work_folder(out, settings) as (work, run, check):
        shards = ShardFormat(seq_len, packing.token_type, SHARD_BYTES)
        job = Job(work, run, tokenizer.encoder, text_key, packing, shards)
        with open_engine(engine, job, num_workers=num_workers, ray_address=ray_address) as running:
            # One worker's tasks but for tokenizing, which goes wrong in ways of its own, need no other process.
            light = InProcess(job) if (engine, num_workers) == ("local", 1) else running
            tokenized = tokenize_corpus(
                corpus, domains, infos, job=job, engine=running, light_engine=light, check=check
            )
            unused = {name: check_bad_lines(name, parts, max_bad_share) for name, parts in tokenized.parts.items()}
            packed, counts = pack_corpus(tokenized.parts, dedup=dedup is not None, job=job, engine=light, check=check)
        manifest = {**settings, "domains": {name: {**unused[name], **counts[name]} for name in domains}}
        check()
        publish(out, work, packed, bad_lines=tokenized.bad_lines(work), files=tokenized.files, manifest=manifest)
    return manifest


def _check_apart(corpus: Path | str, out: Path | str) -> None:
    if isinstance(corpus, Path) and isinstance(out, Path):
        inside = out.resolve().is_relative_to(corpus.resolve())
    else:
        inside = f"{out}/".startswith(f"{str(corpus).rstrip('/')}/")
    if inside:
        raise InputError(f"OUT '{out}' lies in INPUT '{corpus}' and would become a domain of it. Choose another OUT.")


def _special_token(name: str, wanted: bool | None, token: int | None, tokenizer: str) -> int | None:
    if wanted and token is None:
        raise InputError(f"The tokenizer '{tokenizer}' has no {name.upper()} token. Use --no-{name}.")
    return None if wanted is False else token


def _table(manifest: dict[str, Any]) -> str:
    columns = ("documents", "tokens", "bad lines", "train seq.", "eval seq.", "dropped tokens")
    lines = [f"{'domain':<16}" + "".join(f"{column:>16}" for column in columns)]
    for name, domain in manifest["domains"].items():
        train, evaluation = domain["train"]["sequences"], domain["eval"]["sequences"]
        counts = (domain["documents"], domain["tokens"], domain["bad_lines"], train, evaluation)
        lines.append(f"{name:<16}" + "".join(f"{count:>16,}" for count in (*counts, domain["dropped_tail_tokens"])))
    return "\n".join(lines)


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="INPUT", help="folder or address with one folder of documents per domain")
    parser.add_argument("out", metavar="OUT", help="folder or address to write")
    parser.add_argument("--tokenizer", required=True, help="Hugging Face folder or hub id, or sentencepiece *.model")
    parser.add_argument("--seq-len", type=int, required=True, help="tokens per sequence")
    parser.add_argument("--eval-sequences", type=int, required=True, help="sequences held out per domain")
    parser.add_argument("--workers", type=int, help="tasks at a time (default: all cores)")
    parser.add_argument("--engine", choices=ENGINES, default="local", help="processes here (default), or Ray's")
    parser.add_argument(
        "--ray-address", help="Ray cluster (default: RAY_ADDRESS, the one of this machine, or a new one)"
    )
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--bos", action=flag, help="begin documents with BOS (default: if the tokenizer has one)")
    parser.add_argument("--eos", action=flag, help="end documents with EOS (default: if the tokenizer has one)")
    parser.add_argument("--token-type", choices=TOKEN_TYPES, help="default: the smaller one that fits the vocabulary")
    parser.add_argument("--text-key", help="key or column of the text (default: text, content, raw_content, ...)")
    parser.add_argument("--max-bad-share", type=float, default=0.01, help="unreadable lines allowed (default: 0.01)")
    parser.add_argument(
        "--dedup", choices=("exact",), help="leave exact copies out of train (default: only those of eval)"
    )
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        manifest = prepare(
            args.input,
            args.out,
            tokenizer=load_tokenizer(args.tokenizer),
            seq_len=args.seq_len,
            eval_sequences=args.eval_sequences,
            num_workers=args.workers,
            bos=args.bos,
            eos=args.eos,
            token_type=args.token_type,
            text_key=args.text_key,
            max_bad_share=args.max_bad_share,
            dedup=args.dedup,
            engine=args.engine,
            ray_address=args.ray_address,
        )
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: the same command goes on from here\n")
        sys.exit(130)
    sys.stdout.write(_table(manifest) + "\n")
    say_next(
        "python -m llmshearing.reference_loss eval {model} {data} --out {losses}",
        model=args.tokenizer,
        data=args.out,
        losses=f"{args.out}/reference_losses.json",
    )


if __name__ == "__main__":
    main()
