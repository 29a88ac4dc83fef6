"""The ids of words, kept: most of a text is words that came before.

A word is found in a dictionary in a tenth of the time that its encoding takes. The cache is exact by what
:mod:`data_prep.word_split` knows of a tokenizer, and that is tried on some texts before it is relied on.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from llmshearing.data_prep.word_split import SPACE, WholeTextsError, Words

log = logging.getLogger("data_prep.word_cache")

Encode = Callable[[Sequence[str]], list[list[int]]]

#: Bytes of memory that a cache may take, in each worker; words of ordinary text take about 300.
CACHE_BYTES = 1 << 26
#: Characters of the longest word that is kept; longer ones seldom come again.
LONGEST_WORD = 64
#: Characters of a text that are cut into words at a time: all words of a book would take more memory than its ids.
SLICE = 1 << 16
# A place where every tokenizer that is cut into words may be cut.
_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")
_ENTRY = 100  # bytes of a dictionary's entry, at most
_ID = sys.getsizeof(1 << 16)

# What tokenizers treat differently: spaces at the ends and in runs, before digits, marks and newlines; the sign for a
# space; other whitespace; control characters; special tokens in a text; bytes; characters that normalizers compose.
_PROBES = (
    "",
    " ",
    "  ",
    "a",
    " a",
    "   a  b   ",
    f"{SPACE}a {SPACE}b{SPACE}",
    "It's 12  34, 5.6e-7 \t9\n\n  if (x_1 == 'y'):\n\treturn --x;  // ²³\r\n \n",
    "<s> a</s><unk> <0x0A><|endoftext|>",
    "e\u0301 n \u0303 \ufb01 \u212b \uac00\u1100\u1161 \u00a0\u2003\u3000x\u200b \ufeff",
    "\x00\x01 \x1c \x7f\x85 \U0001f469\u200d\U0001f467 \U0010ffff 人人生而自由 Привет, мир",
)


class WordCache:
    """Encodes texts word by word.

    Args:
        words: how texts are cut.
        encode_words: ids of each of several words as they stand in a text, nothing put in front.
        encode_texts: ids of whole texts, for those that are not to be cut.
    """

    def __init__(self, words: Words, encode_words: Encode, encode_texts: Encode) -> None:
        self._words, self._encode_words, self._encode_texts = words, encode_words, encode_texts
        # Words move from the older half to the newer one when they are met; the older one goes when that is full.
        self._known: dict[str, tuple[int, ...]] = {}
        self._older: dict[str, tuple[int, ...]] = {}
        self._bytes = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> list[int]:
        words = self._words
        if any(token in text for token in words.whole):
            return self._encode_texts([text])[0]
        if words.marked and SPACE in text:
            text = text.replace(SPACE, " ")
        if text and (words.prefix == "always" or (words.prefix == "missing" and text[0] != " ")):
            text = f" {text}"
        ids: list[int] = []
        for part in _slices(text):
            ids += self._ids(words.pattern.findall(part))
        return ids

    def _ids(self, words: list[str]) -> list[int]:
        known = self._known
        try:
            return list(itertools.chain.from_iterable(map(known.__getitem__, words)))
        except KeyError:
            unseen = set(words).difference(known)
            self._learn(unseen)
            ids = list(itertools.chain.from_iterable(map(known.__getitem__, words)))
            self._forget(unseen)
            return ids

    def _learn(self, words: set[str]) -> None:
        found = {word: self._older[word] for word in words if word in self._older}
        new = list(words.difference(found))
        marked = [word.replace(" ", SPACE) for word in new] if self._words.marked else new
        found.update(zip(new, map(tuple, self._encode_words(marked)), strict=True))
        self._known.update(found)

    def _forget(self, words: set[str]) -> None:
        """Of the words just learned, those that are too long; and the older half, where the newer one is full."""
        for word in words:
            if len(word) > LONGEST_WORD:
                del self._known[word]
            else:
                ids = self._known[word]
                self._bytes += sys.getsizeof(word) + sys.getsizeof(ids) + len(ids) * _ID + _ENTRY
        if self._bytes > CACHE_BYTES // 2:
            self._older, self._known, self._bytes = self._known, {}, 0


def _slices(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > SLICE and (space := _BETWEEN_WORDS.search(text, start + SLICE)):
        yield text[start : space.start()]
        start = space.start()
    yield text[start:]


def word_cache(
    find: Callable[[], Words], encode_words: Callable[[Words], Encode], encode_texts: Encode
) -> WordCache | None:
    """The cache for a tokenizer, or ``None`` where texts have to be encoded whole; which one it is goes to the log.

    Args:
        find: how its texts are cut.
        encode_words: makes what encodes words cut so.
        encode_texts: ids of whole texts.
    """
    try:
        words = find()
        cache = WordCache(words, encode_words(words), encode_texts)
        probes = [*_PROBES, "".join(_PROBES), *words.whole]
        if cache.encode(probes) != encode_texts(probes):
            raise WholeTextsError("its words have other ids alone")
    except WholeTextsError as reason:
        log.info("Texts are tokenized whole: of this tokenizer it cannot be shown that words can be; %s.", reason)
        return None
    log.info("Texts are tokenized word by word, the ids of words kept in up to %d MB a worker.", CACHE_BYTES // 10**6)
    return cache
