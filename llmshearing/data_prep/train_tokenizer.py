"""``python data_prep/train_tokenizer.py CORPUS OUT --vocab-size 4096``: a LLaMA-like tokenizer for a small model.

Trains a sentencepiece BPE model (byte fallback, digits apart, whitespace kept; unk 0, bos 1, eos 2) on an even sample
of every domain, and writes a Hugging Face folder that ``AutoTokenizer`` loads, with the sentencepiece model beside it.
The same corpus gives the same files.
"""

from __future__ import annotations

import argparse
import io
import itertools
import logging
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

from llmshearing.data_prep.corpus import find_corpus
from llmshearing.data_prep.readers import BadLine, Document, read_documents
from llmshearing.errors import InputError, cli
from llmshearing.fileio import new_folder

log = logging.getLogger("data_prep.train_tokenizer")

SPACE = "▁"
LARGEST = {"--vocab-size": 2**31 - 1, "--bytes-per-domain": 2**62}
SPECIAL = ("<unk>", "<s>", "</s>")


def sample_lines(corpus: Path, *, bytes_per_domain: int) -> Iterator[str]:
    """Random lines of each domain's documents, the same ones on every call, about ``bytes_per_domain`` in all.

    Lines of a file that hold no readable document are left out; that is logged.
    """
    for domain, files in find_corpus(corpus).items():
        share = bytes_per_domain / max(sum(Path(file.path).stat().st_size for file in files), 1)
        generator = random.Random(0)
        bad = 0
        for item in itertools.chain.from_iterable(read_documents(file.path) for file in files):
            if isinstance(item, Document):
                yield from (line for line in item.text.split("\n") if generator.random() < share and line.strip())
            bad += isinstance(item, BadLine)
        if bad:
            log.warning("Domain '%s' has %d unreadable lines; the tokenizer is trained without them.", domain, bad)


def train_sentencepiece(lines: Iterator[str], *, vocab_size: int) -> bytes:
    """A serialized sentencepiece BPE model with LLaMA's settings.

    Raises:
        InputError: the text is too little, or the vocabulary too small for the bytes and characters.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9995,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 20,  # longer lines would be left out
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise InputError(f"No tokenizer of {vocab_size} tokens can be trained on this corpus: {error}") from error
    return model.getvalue()


def to_huggingface(model: bytes) -> PreTrainedTokenizerFast:
    """The same tokenizer for ``tokenizers``; gives the ids of the sentencepiece model for any text.

    A BPE model applies the merge whose piece has the highest score. Splitting words off before is exact, since
    sentencepiece trained no piece with a space behind another character, and is many times faster on long documents.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = {processor.id_to_piece(index): index for index in range(processor.get_piece_size())}
    merges = []
    for piece, index in sorted(vocabulary.items(), key=lambda item: -processor.get_score(item[1])):
        if not (processor.is_byte(index) or processor.is_control(index) or processor.is_unknown(index)):
            halves = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
            known = [pair for pair in halves if pair[0] in vocabulary and pair[1] in vocabulary]
            merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    backend = Tokenizer(BPE(vocabulary, merges, unk_token=SPECIAL[0], fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+"), "isolated")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    bos = (SPECIAL[1], vocabulary[SPECIAL[1]])
    backend.post_processor = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        model_input_names=["input_ids", "attention_mask"],  # LLaMA takes no token_type_ids
        clean_up_tokenization_spaces=False,
    )


def train(corpus: Path, out: Path, *, vocab_size: int, bytes_per_domain: int, overwrite: bool = False) -> None:
    """Train a tokenizer on ``corpus`` and write the folder ``out``.

    Args:
        corpus: folder with one folder of documents per domain.
        out: folder to write.
        vocab_size: number of tokens.
        bytes_per_domain: text taken from each domain.
        overwrite: replace an existing ``out``.

    Raises:
        InputError: the corpus cannot be read or is too small, a number is out of range, or ``out`` exists or lies in
            the corpus.
    """
    for option, value in {"--vocab-size": vocab_size, "--bytes-per-domain": bytes_per_domain}.items():
        if not 1 <= value <= LARGEST[option]:
            raise InputError(f"{option} {value} is out of range: from 1 to {LARGEST[option]}.")
    if corpus.resolve().is_relative_to(out.resolve()) or out.resolve().is_relative_to(corpus.resolve()):
        raise InputError(f"OUT '{out}' and CORPUS '{corpus}' lie in one another. Choose another OUT.")
    if overwrite and out.exists() and not (out / "tokenizer_config.json").is_file() and not _is_empty_folder(out):
        raise InputError(f"'{out}' is not a tokenizer's folder and is not replaced. Choose another OUT.")
    with new_folder(out, overwrite=overwrite) as folder:
        model = train_sentencepiece(sample_lines(corpus, bytes_per_domain=bytes_per_domain), vocab_size=vocab_size)
        to_huggingface(model).save_pretrained(folder)
        (folder / "tokenizer.model").write_bytes(model)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, metavar="CORPUS", help="folder with one folder of documents per domain")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--vocab-size", type=int, default=4096, help="number of tokens (default: 4096)")
    parser.add_argument("--bytes-per-domain", type=int, default=2_000_000, help="text used (default: 2,000,000)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing OUT")
    args = parser.parse_args(arguments)
    train(
        args.corpus,
        args.out,
        vocab_size=args.vocab_size,
        bytes_per_domain=args.bytes_per_domain,
        overwrite=args.overwrite,
    )
    sys.stdout.write(f"{args.out}: {args.vocab_size} tokens\n")


if __name__ == "__main__":
    main()
