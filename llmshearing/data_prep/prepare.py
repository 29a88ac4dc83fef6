"""``python data_prep/prepare.py INPUT OUT --tokenizer T --seq-len S --eval-sequences E``: a corpus ready for training.

1. ``readers``: the files of ``INPUT/<domain>/`` (.jsonl[.gz|.zst], .parquet, .txt) give documents;
2. ``tokenize_file``: worker processes tokenize them, file by file, into ``OUT/.partial``, with a hash of each text;
3. ``holdout``: the documents of smallest hash are each domain's eval documents, until they fill E sequences;
4. ``pack``: those go into ``eval``, by their hashes, and the rest into ``train``, packed to S tokens, as MDS folders;
5. ``OUT/{train,eval}/<domain>/`` and ``OUT/manifest.json`` appear, ``OUT/.partial`` goes.

The output is the same, byte for byte, for any number of workers and after any number of interruptions: run the same
command again to go on. ``OUT/manifest.json`` is written last: a folder that has one is complete.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llmshearing.data_prep.holdout import hold_out
from llmshearing.data_prep.output import Domains, complete_manifest, discard_packed, publish, work_folder
from llmshearing.data_prep.pack import PackSettings, pack_domain
from llmshearing.data_prep.readers import SourceFile, check_beginning, find_corpus
from llmshearing.data_prep.tokenize_file import TokenizedFile, finished_part, part_path
from llmshearing.data_prep.tokenizer import TOKEN_TYPES, Encoder, Tokenizer, load_tokenizer
from llmshearing.data_prep.workers import tokenize_files
from llmshearing.errors import InputError, cli, naming
from llmshearing.following import say_next

log = logging.getLogger("data_prep.prepare")

FORMAT = 2
LARGEST = 2**31 - 1


def prepare(
    corpus: Path,
    out: Path,
    *,
    tokenizer: Tokenizer,
    seq_len: int,
    eval_sequences: int,
    num_workers: int = 1,
    bos: bool | None = None,
    eos: bool | None = None,
    token_type: str | None = None,
    text_key: str | None = None,
    max_bad_share: float = 0.01,
) -> dict[str, Any]:
    """Tokenize, hold out, pack and write a corpus; goes on where an interrupted run stopped.

    Args:
        corpus: folder with one folder of documents per domain.
        out: folder to write; a complete one made with the same settings from the same input is left as it is.
        tokenizer: see :func:`data_prep.tokenizer.load_tokenizer`.
        seq_len: tokens per sequence.
        eval_sequences: sequences held out per domain.
        num_workers: worker processes that tokenize, each one input file at a time.
        bos: begin each document with BOS; None: where the tokenizer has one.
        eos: end each document with EOS; None: where the tokenizer has one.
        token_type: ``uint16`` or ``uint32``; None: the smaller one that holds the vocabulary.
        text_key: key or column of the text; None: the first usual one that is there.
        max_bad_share: share of a domain's lines that may be unreadable.

    Returns:
        the manifest, as written to ``out/manifest.json``.

    Raises:
        InputError: bad input, or ``out`` holds something else.
    """
    least = {"--seq-len": (seq_len, 2), "--eval-sequences": (eval_sequences, 1), "--workers": (num_workers, 1)}
    for option, (value, minimum) in least.items():
        if not minimum <= value <= LARGEST:
            raise InputError(f"{option} {value} is out of range: from {minimum} to {LARGEST}.")
    if not 0 <= max_bad_share <= 1:  # nan is neither
        raise InputError(f"--max-bad-share {max_bad_share} is no share: from 0 to 1, 0.01 for one line in a hundred.")
    if text_key == "":
        raise InputError("--text-key '' is empty. Name the key, or leave it out for the usual ones.")
    if out.resolve().is_relative_to(corpus.resolve()):
        raise InputError(f"OUT '{out}' lies in INPUT '{corpus}' and would become a domain of it. Choose another OUT.")
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
    settings = {
        "format": FORMAT,
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256},
        **asdict(packing),
        "text_key": text_key,
        "input": {name: _size(files) for name, files in domains.items()},
    }
    if manifest := complete_manifest(out, settings, domains):
        log.info("%s is complete already.", out)
        return manifest
    with work_folder(out, settings) as work:
        _tokenize(domains, tokenizer.encoder, num_workers, work=work, token_type=packing.token_type, text_key=text_key)
        parts = {name: _parts(files, work) for name, files in domains.items()}
        unused = {name: _check_bad_lines(name, list(parts[name].values()), max_bad_share) for name in domains}
        num_tokens = sum(part.tokens for members in parts.values() for part in members.values())
        with naming(out):
            counts = _pack(domains, num_tokens, work=work, settings=packing)
        manifest = {**settings, "domains": {name: {**unused[name], **counts[name]} for name in domains}}
        bad_line_files = (part_path(work, file, ".bad.jsonl") for files in domains.values() for file in files)
        files_read = {
            name: {file: {key: getattr(part, key) for key in ("bytes", "mtime_ns", "sha256")} for file, part in members}
            for name, members in ((name, parts[name].items()) for name in domains)
        }
        publish(out, work, bad_lines=bad_line_files, files=files_read, manifest=manifest)
    return manifest


def _special_token(name: str, wanted: bool | None, token: int | None, tokenizer: str) -> int | None:
    if wanted and token is None:
        raise InputError(f"The tokenizer '{tokenizer}' has no {name.upper()} token. Use --no-{name}.")
    return None if wanted is False else token


def _size(files: Sequence[SourceFile]) -> dict[str, int]:
    return {"files": len(files), "bytes": sum(file.path.stat().st_size for file in files)}


def _tokenize(
    domains: Domains, encoder: Encoder, num_workers: int, *, work: Path, token_type: str, text_key: str | None
) -> None:
    files = [file for members in domains.values() for file in members]
    sizes = {file: file.path.stat().st_size for file in files}
    missing = [file for file in files if finished_part(work, file) is None]
    if len(missing) < len(files):
        log.info("%d of %d files were tokenized by an earlier run.", len(files) - len(missing), len(files))
    if missing:
        discard_packed(work)
    missing.sort(key=lambda file: -sizes[file])  # a large file begun last would leave the other workers idle
    updates = tokenize_files(
        missing, encoder, num_workers=num_workers, work=work, token_type=token_type, text_key=text_key
    )
    total = sum(sizes[file] for file in missing)
    with tqdm(total=total, desc="tokenizing", unit="B", unit_scale=True, mininterval=1) as bar:
        for tokens, finished in updates:
            speed = tokens / max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{tokens:,} tokens, {speed:,.0f} tokens/s", refresh=False)
            bar.update(sum(sizes[file] for file, _ in finished))


def _parts(files: Sequence[SourceFile], work: Path) -> dict[str, TokenizedFile]:
    parts = {}
    for file in files:
        part = finished_part(work, file)
        if part is None:
            raise InputError(f"'{file.path}' changed while it was read. Run the command again.")
        parts[file.name] = part
    return parts


def _check_bad_lines(domain: str, parts: Sequence[TokenizedFile], max_share: float) -> dict[str, int]:
    """The numbers of unreadable lines and of empty documents of a domain.

    Raises:
        InputError: unreadable are more than ``max_share`` of its lines.
    """
    bad = sum(part.bad_lines for part in parts)
    empty = sum(part.empty_documents for part in parts)
    if bad:
        share = bad / (bad + empty + sum(part.documents for part in parts))
        first = next(part.first_bad_line for part in parts if part.bad_lines)
        message = f"Domain '{domain}' has {bad} unreadable lines ({share:.2%}), the first at {first}."
        if share > max_share:
            raise InputError(f"{message} That is above --max-bad-share {max_share}: repair them or raise it.")
        log.warning("%s See bad_lines.jsonl.", message)
    if empty:
        log.warning("Domain '%s' has %d empty documents; they are left out.", domain, empty)
    return {"bad_lines": bad, "empty_documents": empty}


def _pack(domains: Domains, num_tokens: int, *, work: Path, settings: PackSettings) -> dict[str, dict[str, Any]]:
    needed = settings.eval_sequences * settings.seq_len
    chosen = {
        name: hold_out(name, files, work=work, num_tokens=needed, extra=settings.extra)
        for name, files in domains.items()
    }
    held_out = frozenset().union(*(documents.hashes for documents in chosen.values()))
    with tqdm(total=num_tokens, desc="packing", unit=" tokens", unit_scale=True, mininterval=1) as bar:
        return {
            name: pack_domain(
                name,
                files,
                work=work,
                settings=settings,
                eval_documents=chosen[name],
                held_out=held_out,
                on_tokens=bar.update,
            )
            for name, files in domains.items()
        }


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
    parser.add_argument("input", type=Path, metavar="INPUT", help="folder with one folder of documents per domain")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--tokenizer", required=True, help="Hugging Face folder or hub id, or sentencepiece *.model")
    parser.add_argument("--seq-len", type=int, required=True, help="tokens per sequence")
    parser.add_argument("--eval-sequences", type=int, required=True, help="sequences held out per domain")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--bos", action=flag, help="begin documents with BOS (default: if the tokenizer has one)")
    parser.add_argument("--eos", action=flag, help="end documents with EOS (default: if the tokenizer has one)")
    parser.add_argument("--token-type", choices=TOKEN_TYPES, help="default: the smaller one that fits the vocabulary")
    parser.add_argument("--text-key", help="key or column of the text (default: text, content, raw_content, ...)")
    parser.add_argument("--max-bad-share", type=float, default=0.01, help="unreadable lines allowed (default: 0.01)")
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
