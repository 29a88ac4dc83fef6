"""One pruning run of test_sharded, on every rank: ``composer -n 2 -m tests.convert.distributed_run OUT``.

Rank 0 starts from ``OUT/source``; the others get ``OUT/config``, where there are no weights. Saves a checkpoint in both
forms, ``OUT/checkpoints/ep0-ba2`` (sharded) and ``OUT/full/ep0-ba2-rank0.pt``, and the weights training began with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from composer import Trainer
from composer.optim import DecoupledAdamW
from composer.utils import dist, get_device
from composer.utils.parallelism import FSDP2Config
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from llmshearing import ComposerLlama, TargetedPruning
from tests.training import TARGET, dataset


def main(folder: str) -> None:
    """Train two batches."""
    torch.set_flush_denormal(True)
    out = Path(folder)
    dist.initialize_dist(get_device("cpu"))
    data = dataset()
    model = ComposerLlama(
        pretrained=str(out / ("source" if dist.get_global_rank() == 0 else "config")),
        init_device="mixed",
        tokenizer=AutoTokenizer.from_pretrained(out / "source"),
    )
    devices = {parameter.device.type for parameter in model.parameters()}
    assert devices == ({"cpu"} if dist.get_global_rank() == 0 else {"meta"})
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(data, batch_size=4, sampler=dist.get_sampler(data, shuffle=False)),  # type: ignore[arg-type]
        optimizers=DecoupledAdamW(model.parameters(), lr=1e-2),
        algorithms=[TargetedPruning(TARGET, warmup="1ba")],
        parallelism_config={"fsdp": FSDP2Config(state_dict_type="sharded")},
        max_duration="2ba",
        save_folder=str(out / "checkpoints"),
        save_interval="2ba",
        device="cpu",
        progress_bar=False,
        seed=7,
    )
    begin = get_model_state_dict(trainer.state.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_global_rank() == 0:
        torch.save(begin, out / "begin.pt")
    trainer.fit()
    trainer.state.fsdp_config.state_dict_type = "full"
    trainer.save_checkpoint(str(out / "full" / "ep0-ba2-rank{rank}.pt"))
    trainer.close()


if __name__ == "__main__":
    main(sys.argv[1])
