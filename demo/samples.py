"""``python -m demo.samples MODEL ... --out FILE``: the same prompts continued by several models, to be read.

What is drawn, and from how many tokens, is the same for all models, so that they differ by what they know.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from llmshearing.fileio import write_json

PROMPTS = (
    "The city of Sofia is",
    "In the morning she opened the door and",
    "The Parliament has decided that",
    "And the king said unto them,",
)
NEW_TOKENS = 40
TOP_K, TEMPERATURE = 20, 0.7


def continue_prompts(model_name: str) -> dict[str, str]:
    """What a model writes, with the prompt in front, by stock ``transformers``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_name)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    texts = {}
    for number, prompt in enumerate(PROMPTS):
        torch.manual_seed(number)
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            top_k=TOP_K,
            temperature=TEMPERATURE,
            pad_token_id=tokenizer.eos_token_id,
        )
        texts[prompt] = " ".join(tokenizer.decode(output[0], skip_special_tokens=True).split())
    return texts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.samples", description=__doc__.split("\n\n")[0])
    parser.add_argument("models", metavar="MODEL", nargs="+", help="Hugging Face folders or hub ids")
    parser.add_argument("--out", required=True, help="JSON to write: by model and prompt, the text")
    args = parser.parse_args(arguments)
    write_json(args.out, {model: continue_prompts(model) for model in args.models})


if __name__ == "__main__":
    main()
