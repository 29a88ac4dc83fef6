"""``python -m llmshearing.answers MODEL ... --prompts FILE --out ANSWERS``: answers side by side, for a judge.

FILE has a prompt a line, {"prompt": "..."} or {"messages": [...]} of which the last is a user's. ANSWERS has a line
for each, with ``messages`` and ``answers``, a text of every model in an order drawn for that line: a judge, a person or
a model, that prefers the first prefers no model by it. Whose they are is in ANSWERS with ``.key.jsonl`` at its end,
line by line: ``models``, and whether each ``ended`` by itself and not at --max-new-tokens.

Models answer by their own chat templates. With --temperature 0 the likeliest token is taken.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from llmshearing.arguments import number, whole
from llmshearing.errors import InputError, cli
from llmshearing.fileio import check_file_can_be_written, refuse_address, write_text
from llmshearing.reference_loss.evaluate import causal_config, load_model
from llmshearing.tokenizer import model_tokenizer
from llmshearing.tune.chats import Chat, read_prompts
from llmshearing.tune.template import render, token_ids

log = logging.getLogger(__name__)


def answers(
    models: Sequence[str],
    prompts: Sequence[Chat],
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    batch_size: int = 1,
    seed: int = 0,
    dtype: str | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Let models answer, one in memory at a time.

    Runs on the GPU if there is one.

    Args:
        models: Hugging Face folders or hub ids, each with a chat template.
        prompts: from :func:`~llmshearing.tune.chats.read_prompts`.
        max_new_tokens: an answer is cut off there.
        temperature: of sampling from the whole distribution; 0 takes the likeliest token.
        batch_size: prompts at once; what is padded before them may change roundings.
        seed: of the order of answers, and of sampling.
        dtype: of weights and activations; bfloat16 on a GPU and float32 on a CPU unless given.

    Returns:
        The lines for the judge and those of the key, by prompt.

    Raises:
        InputError: a model cannot be read, has no chat template, or fewer positions than a prompt and an answer take.
    """
    _check(models, max_new_tokens, temperature, batch_size, seed)
    by_model = []
    # All that can be wrong is found before the first model answers.
    encoded = [_encode(name, prompts, max_new_tokens) for name in models]
    for name, (tokenizer, ids) in zip(models, encoded, strict=True):
        model = load_model(name, causal_config(name), dtype=dtype)
        settings = _generation(model, name, tokenizer, max_new_tokens, temperature)
        set_seed(seed)
        by_model.append(_answer_all(model, tokenizer, ids, settings, batch_size, name))
        del model
    order = random.Random(seed)
    lines, key = [], []
    for index, prompt in enumerate(prompts):
        shown = order.sample(range(len(models)), len(models))
        lines.append({"messages": list(prompt.messages), "answers": [by_model[model][index][0] for model in shown]})
        ended = [by_model[model][index][1] for model in shown]
        key.append({"models": [models[model] for model in shown], "ended": ended})
    return lines, key


def _check(models: Sequence[str], max_new_tokens: int, temperature: float, batch_size: int, seed: int) -> None:
    whole("--max-new-tokens", max_new_tokens, "an answer has a token at least", least=1)
    whole("--batch-size", batch_size, "a batch has a prompt at least", least=1)
    whole("--seed", seed, "it must be a whole number of at least 0", least=0)
    number("--temperature", temperature, "it must be at least 0", within=lambda value: value >= 0)
    if len(set(models)) != len(models):
        raise InputError(f"A model is named twice among {', '.join(models)}. Name each once.")


def _encode(name: str, prompts: Sequence[Chat], new: int) -> tuple[PreTrainedTokenizerBase, list[list[int]]]:
    """A model's tokenizer, and what it makes of the prompts."""
    config = causal_config(name).get_text_config()
    tokenizer = model_tokenizer(name)
    if tokenizer.chat_template is None:
        raise InputError(f"'{name}' has no chat template. Tune it with llmshearing.tune, or add a chat_template.jinja.")
    positions = getattr(config, "max_position_embeddings", None)
    found = []
    for prompt in prompts:
        ids = token_ids(tokenizer, render(tokenizer, prompt.messages, ask=True))
        if positions is not None and len(ids) + new > positions:
            raise InputError(
                f"The prompt in line {prompt.line} has {len(ids)} tokens; with {new} new ones it exceeds the "
                f"{positions} positions of '{name}'. Lower --max-new-tokens, or take the prompt out."
            )
        if max(ids) >= config.vocab_size:
            raise InputError(f"The tokenizer of '{name}' gives token {max(ids)} of {config.vocab_size}. Use its own.")
        found.append(ids)
    return tokenizer, found


def _generation(
    model: PreTrainedModel, name: str, tokenizer: PreTrainedTokenizerBase, new: int, temperature: float
) -> GenerationConfig:
    """Settings that are the same for all models but for the tokens that end an answer."""
    own = model.generation_config
    ends = own.eos_token_id if own is not None else None
    if ends is None:
        log.warning("'%s' has no eos_token_id in its generation config: no answer of it ends by itself.", name)
    pad = tokenizer.pad_token_id
    if not isinstance(pad, int) or pad >= model.config.get_text_config().vocab_size:
        pad = ends[0] if isinstance(ends, list) else ends
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    return GenerationConfig(max_new_tokens=new, eos_token_id=ends, pad_token_id=0 if pad is None else pad, **sampling)


@torch.inference_mode()
def _answer_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    settings: GenerationConfig,
    batch_size: int,
    name: str,
) -> list[tuple[str, bool]]:
    """Of each prompt the answer, and whether it ended by itself."""
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    # Of like lengths at once, so that little is padded.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found: dict[int, tuple[str, bool]] = {}
    with tqdm(total=len(prompts), unit="answer", desc=Path(name).name) as progress:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids, attention = _padded([prompts[row] for row in rows], int(settings.pad_token_id or 0))
            made: Any = model.generate(  # type: ignore[operator]
                input_ids=ids.to(model.device),
                attention_mask=attention.to(model.device),
                generation_config=settings,
                use_model_defaults=False,  # else what a model's own config says beyond settings would count
            )
            for row, tokens in zip(rows, made[:, ids.shape[1] :].tolist(), strict=True):
                stop = next((place for place, token in enumerate(tokens) if token in ends), None)
                text = tokenizer.decode(tokens[:stop], skip_special_tokens=True)
                found[row] = (text.strip(), stop is not None)
            progress.update(len(rows))
    return [found[row] for row in range(len(prompts))]


def _padded(prompts: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids with padding before them, and a mask that is 0 there, both (batch, longest prompt)."""
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


@cli
def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m llmshearing.answers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", metavar="MODEL", nargs="+", help="Hugging Face folders or hub ids")
    parser.add_argument("--prompts", metavar="FILE", required=True, help="prompts, JSON lines")
    parser.add_argument("--out", metavar="ANSWERS", required=True, help="file to write; replaced where it exists")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=512, help="default: 512")
    parser.add_argument("--temperature", metavar="X", type=float, default=0.0, help="default: 0")
    parser.add_argument("--batch-size", metavar="N", type=int, default=1, help="prompts at once (default: 1)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of order and sampling (default: 0)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on a GPU, else float32")
    arguments = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    refuse_address(arguments["out"], "answers are written", "Give a path, and copy them there afterwards.")
    out = Path(arguments.pop("out"))
    key_path = out.with_name(f"{out.name.removesuffix('.jsonl')}.key.jsonl")
    for path in (out, key_path):
        check_file_can_be_written(path)
    lines, key = answers(arguments.pop("models"), read_prompts(arguments.pop("prompts")), **arguments)
    for path, rows in ((key_path, key), (out, lines)):
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
