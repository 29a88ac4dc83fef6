"""The same training on 1, 2, 3 and 4 ranks, by real processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.data.launch import finish, global_batches, results, start
from tests.data.training import Recorder, make_trainer
from tests.forkserver import ForkServer

pytestmark = [pytest.mark.dist, pytest.mark.slow]


def test_ranks_and_restarts_do_not_matter(data: Path, eval_data: Path, tmp_path: Path, forked: ForkServer) -> None:
    expected = Recorder()
    alone = make_trainer(data, eval_data, expected)
    alone.fit()
    alone.close()
    both = {"train_data": data, "eval_data": eval_data}

    saves = {"save_folder": tmp_path / "saves", "save_interval": "1ba", "duration": "7ba"}
    two = results(start(2, tmp_path / "2", loader={"num_workers": 3}, **both, **saves, forked=forked), tmp_path / "2")
    assert global_batches(two) == expected.batches[:7]

    # From within a round on 2 ranks with 3 workers each, to 3 ranks with 1, to 4 with none.
    saves = {"save_folder": tmp_path / "saves3", "save_interval": "1ba", "duration": "9ba"}
    load = {"load_path": tmp_path / "saves" / "ep0-ba7-rank0.pt", "loader": {"num_workers": 1}}
    three = results(start(3, tmp_path / "3", **both, **saves, **load, forked=forked), tmp_path / "3")
    assert global_batches(three) == expected.batches[7:9]

    # The four share a cache of a remote, which holds half of it.
    limit = 10_000 + sum(path.stat().st_size for path in data.rglob("index.json"))
    remote = {"local": str(tmp_path / "cache"), "remote": str(data), "cache_limit": limit, "validate_hash": "xxh64"}
    load = {"load_path": tmp_path / "saves3" / "ep0-ba9-rank0.pt", "dataset": remote}
    four = results(start(4, tmp_path / "4", **both, **load, forked=forked), tmp_path / "4")
    assert global_batches(four) == expected.batches[9:]
    assert 0 < len(list((tmp_path / "cache").rglob("*.mds"))) < len(list(data.rglob("*.mds")))

    for rank in (*two, *three, *four):
        for proportions in rank["proportions"]:
            nearest = min(np.abs(np.subtract(proportions, known)).max() for known in expected.proportions)
            assert nearest < 1e-5
    for ranks in (two, three, four):
        assert all(rank["proportions"] == ranks[0]["proportions"] for rank in ranks)


def test_a_group_of_ranks_that_gets_the_same_samples_trains_as_one(
    make_data: Callable[..., Path], eval_data: Path, tmp_path: Path, forked: ForkServer
) -> None:
    """Samples and tokens count once, so rounds end where they do without groups. The domains have sub-streams."""
    data = make_data(code=8300, web=2100, books=200)
    expected = Recorder()
    alone = make_trainer(data, eval_data, expected, duration="6ba")
    assert alone.state.train_dataloader.dataset.rounds.at(0).lanes == 4
    alone.fit()
    alone.close()
    job = {"train_data": data, "eval_data": eval_data, "duration": "6ba", "dataset": {"replication": 2}}
    for rank in results(start(2, tmp_path / "2", **job, forked=forked), tmp_path / "2"):
        assert [[tuple(row) for row in batch] for batch in rank["batches"]] == expected.batches
        assert np.allclose(rank["proportions"], expected.proportions, atol=1e-5)


def test_the_losses_so_far_are_in_a_sharded_checkpoint(
    data: Path, eval_data: Path, tmp_path: Path, forked: ForkServer
) -> None:
    """Of ranks that shard the model: killed in the sixth round, gone on from the fifth as if nothing had been."""
    job = {"train_data": data, "eval_data": eval_data, "steer": {"update_type": "ado"}, "duration": "28ba"}
    job["fsdp"] = {"state_dict_type": "sharded"}
    saves = {"save_folder": tmp_path / "saves", "save_interval": "5ba"}
    crash = start(2, tmp_path / "killed", **job, **saves, recorder={"crash_at": 22}, forked=forked)
    assert "crashed on purpose" in finish(crash, tmp_path / "killed")
    whole = results(start(2, tmp_path / "whole", **job, forked=forked), tmp_path / "whole")
    resumed = start(2, tmp_path / "resumed", **job, load_path=tmp_path / "saves" / "ep0-ba20", forked=forked)
    ranks = results(resumed, tmp_path / "resumed")
    assert global_batches(ranks) == global_batches(whole)[20:]
    for rank, expected in zip(ranks, whole, strict=True):
        assert rank["proportions"] == expected["proportions"][5:]


def test_each_eval_sequence_counts_once_on_any_ranks(
    data: Path, eval_data: Path, tmp_path: Path, forked: ForkServer
) -> None:
    alone = make_trainer(data, eval_data, Recorder(), duration="4ba")
    alone.fit()
    alone.close()
    out = tmp_path / "3"
    seen = results(start(3, out, train_data=data, eval_data=eval_data, duration="4ba", forked=forked), out)
    for domain, sequences in {"code": 5, "web": 3, "books": 4}.items():  # one, none and two too few for 3 ranks
        parts = [rank["metrics"][domain] for rank in seen]
        assert sum(part["total_items"] for part in parts) == sequences * 7  # 8 tokens predict 7
        loss = sum(part["sum_loss"] for part in parts) / (sequences * 7)
        known = float(alone.state.eval_metrics[domain]["LanguageCrossEntropy"].compute())
        assert math.isclose(loss, known, rel_tol=1e-5)
