"""``python -m benchmarks.peers.foreign PEER JOB OUT``: one tool's cut of a model, in the peers' environment.

JOB is a JSON file with ``model`` (a Hugging Face folder), ``rows`` (an ``.npy`` file of token ids to look at) and
``target`` (sizes by config name). OUT gets ``model``, a Hugging Face folder as near to the target as the tool comes,
and ``cut.json``. Nothing of llmshearing is here; settings are those of each tool's own example or documentation.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.measure import measured

AT_ONCE = 8  # sequences
Job = dict[str, Any]


def torch_pruning(job: Job, out: Path) -> dict[str, Any]:
    """Heads, neurons and hidden dimensions by Taylor scores: weight times gradient, summed over a dependent group."""
    import torch_pruning as tp

    model, rows = _model(job), _rows(job)
    config, target = model.config, job["target"]
    model.config.use_cache = False  # the graph is traced through the outputs, which must be tensors
    heads: dict[torch.nn.Module, int] = {}
    ratios: dict[torch.nn.Module, float] = {}
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        heads[attention.q_proj] = config.num_attention_heads
        heads |= dict.fromkeys((attention.k_proj, attention.v_proj), config.num_key_value_heads)
        ratio = _ratio(config.intermediate_size, target["intermediate_size"])
        ratios |= dict.fromkeys((mlp.gate_proj, mlp.up_proj), ratio)
    removed = config.num_attention_heads - target["num_attention_heads"]
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=rows[:1],
        output_transform=lambda output: output.logits,
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=_ratio(config.hidden_size, target["hidden_size"]),
        pruning_ratio_dict=ratios,
        ignored_layers=[model.lm_head],
        num_heads=heads,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=max(0.0, (removed - 0.5) / config.num_attention_heads),  # it rounds up
    )
    for ids in rows.split(AT_ONCE):
        model(input_ids=ids, labels=ids).loss.backward()
    for group in pruner.step(interactive=True):
        group.prune()
    config.hidden_size = model.lm_head.in_features
    config.intermediate_size = model.model.layers[0].mlp.gate_proj.out_features
    config.num_attention_heads = model.model.layers[0].self_attn.q_proj.out_features // config.head_dim
    config.num_key_value_heads = model.model.layers[0].self_attn.k_proj.out_features // config.head_dim
    config.use_cache = True
    model.save_pretrained(out)
    return {}


def optipfair(job: Job, out: Path) -> dict[str, Any]:
    """Neurons by weights and activations (its 'MAW' with data), layers by the angle between their input and output."""
    from optipfair import analyze_layer_importance, prune_model

    model, rows, target = _model(job), _rows(job), job["target"]
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows.split(AT_ONCE)]
    layers, neurons = model.config.num_hidden_layers, model.config.intermediate_size
    importance = analyze_layer_importance(model, batches, layers_path="model.layers", show_progress=False)
    dropped = sorted(sorted(importance, key=lambda layer: importance[layer])[: layers - target["num_hidden_layers"]])
    if target["intermediate_size"] < neurons:
        share = 100 * (neurons - target["intermediate_size"] + 0.5) / neurons  # it rounds down
        model = prune_model(
            model,
            pruning_type="MLP_GLU",
            neuron_selection_method="MAW",
            pruning_percentage=share,
            dataloader=batches,
            show_progress=False,
        )
    if dropped:
        model = prune_model(
            model,
            pruning_type="DEPTH",
            layer_selection_method="custom",
            layer_indices=dropped,
            pruning_percentage=None,
            show_progress=False,
        )
    model.save_pretrained(out)
    return {"layers dropped": dropped, "layer importance": {str(key): float(importance[key]) for key in importance}}


def fmchisel(job: Job, out: Path) -> dict[str, Any]:
    """OSSCAR: neurons and key-value groups, and least squares for the matrices that read them."""
    from datasets import Dataset
    from fmchisel.pruning.osscar.base import OSSCARModifier
    from fmchisel.pruning.osscar.utils.helpers import cleanup_after_prune, pack
    from llmcompressor.core import State

    model, rows, target = _model(job), _rows(job), job["target"]
    neurons = model.config.intermediate_size - target["intermediate_size"]
    groups = model.config.num_key_value_heads - target["num_key_value_heads"]
    columns = {"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()}
    state = State(model=model)
    state.data.calib = torch.utils.data.DataLoader(
        Dataset.from_dict(columns).with_format("torch"),
        batch_size=AT_ONCE,
    )
    modifier = OSSCARModifier(num_drop_mlp_neuron=neurons, num_drop_attn_group=groups, ignore=["re:.*lm_head"])
    modifier.on_initialize(state)
    modifier.on_finalize(state)
    model.save_pretrained(out)
    pack(str(out), neurons, groups, original_model_path=job["model"])
    cleanup_after_prune(str(out))
    shutil.rmtree(f"{out}-uncompressed", ignore_errors=True)
    return {"neurons dropped in each layer": neurons, "key-value groups dropped in each layer": groups}


PEERS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {
    "torch-pruning": torch_pruning,
    "optipfair": optipfair,
    "fmchisel": fmchisel,
}
MODULES = {"torch-pruning": "torch_pruning", "optipfair": "optipfair", "fmchisel": "fmchisel.pruning.osscar.base"}


def _model(job: Job) -> Any:
    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()


def _rows(job: Job) -> torch.Tensor:
    return torch.from_numpy(np.load(job["rows"])).long()


def _ratio(size: int, wanted: int) -> float:
    """What to prune for exactly ``wanted`` to stay, where what stays is rounded down."""
    return max(0.0, 1 - (wanted + 0.5) / size)


def main() -> None:
    """The command line; see the module."""
    name, place, out = sys.argv[1:]
    job = json.loads(Path(place).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    import_module(MODULES[name])  # so that what imports take is not counted as the cut's
    measured(lambda: PEERS[name](job, Path(out) / "model"), Path(out) / "cut.json")


if __name__ == "__main__":
    main()
