"""What the settings of Composer's and torch's components may be, which check few of them, or late.

Our own components check their arguments themselves.
"""

from __future__ import annotations

from collections.abc import Mapping as Settings
from typing import Any

from llmshearing.errors import unknown_name
from llmshearing.schema import Boolean, Choice, Either, Kind, Mapping, Number, Numbers, Text, Time, unfit

_LR = Number(0, 1e6, whole=False)
_SHARE = Number(0, 1e6, whole=False)
_COUNT = Number(1, 10**9)
_ADAM: dict[str, Kind] = {
    "lr": _LR,
    "betas": Numbers(2, 0, 1),
    "eps": Number(0, 1, whole=False),
    "weight_decay": Number(0, 1e6, whole=False),
    "amsgrad": Boolean(),
}
_SCHEDULE: dict[str, Kind] = {
    "t_warmup": Time("ba", "sp", "tok", "dur", zero=True),
    "t_max": Time("ba", "sp", "tok", "dur"),
    "scale_warmup": Boolean(),
}
_TIME_UNIT = Choice("hours", "minutes", "seconds", "days")

_COMPONENTS: dict[str, dict[str, Kind]] = {
    "optimizer.decoupled_adamw": _ADAM,
    "optimizer.adamw": {
        **_ADAM,
        **dict.fromkeys(("maximize", "foreach", "capturable", "differentiable", "fused"), Boolean()),
    },
    "scheduler.cosine_with_warmup": {**_SCHEDULE, "alpha_f": _SHARE},
    "scheduler.linear_decay_with_warmup": {**_SCHEDULE, "alpha_i": _SHARE, "alpha_f": _SHARE},
    "scheduler.constant_with_warmup": {**_SCHEDULE, "alpha": _SHARE},
    "algorithms.gradient_clipping": {
        "clipping_type": Choice("norm", "value", "adaptive"),
        "clipping_threshold": Number(1e-12, 1e12, whole=False),
    },
    "callbacks.early_stopper": {
        "monitor": Text("a metric's name"),
        "dataloader_label": Text("train, or a domain's name"),
        "comp": Choice("less", "lt", "greater", "gt"),
        "min_delta": Number(0, whole=False),
        "patience": Either(_COUNT, Time("ba", "sp", "tok")),
    },
    "callbacks.lr_monitor": {},
    "callbacks.memory_monitor": {
        "memory_keys": Mapping("{reserved_bytes.all.current: reserved}"),
        "dist_aggregate_batch_interval": _COUNT,
    },
    "callbacks.nan_monitor": {},
    "callbacks.optimizer_monitor": {"log_optimizer_metrics": Boolean(), "batch_log_interval": _COUNT},
    "callbacks.runtime_estimator": {"skip_batches": Number(0, 10**9), "time_unit": _TIME_UNIT},
    "callbacks.speed_monitor": {
        "window_size": _COUNT,
        "gpu_flops_available": Number(1, whole=False),
        "time_unit": _TIME_UNIT,
    },
}


def check_arguments(component: str, above: str, settings: Settings[str, Any]) -> None:
    """Check what a recipe gives to a component that is not ours.

    Args:
        component: ``section.name``.
        above: what its arguments stand below in a recipe.
        settings: its arguments; ``None`` where that is the default.

    Raises:
        InputError: an unknown argument, or a value that it cannot have.
    """
    known = _COMPONENTS.get(component)
    if known is None:
        return
    for key, value in settings.items():
        if key not in known:
            raise unknown_name(f"key in {component}", key, known)
        if value is not None and not known[key].fits(value):
            raise unfit(f"{above}.{key}", value, known[key])
