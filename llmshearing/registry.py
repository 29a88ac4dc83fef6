"""What the names in a recipe stand for. Classes are imported only when a recipe asks for them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from llmshearing.component_settings import check_arguments
from llmshearing.errors import InputError, below, one_line, unknown_name

# Names are LLM Foundry's where it has the same thing, so that one recipe runs under either trainer.
COMPONENTS: dict[str, dict[str, str]] = {
    "model": {"composer_llama": "llmshearing.models.llama:ComposerLlama"},
    "train_loader": {"dynamic_streaming": "llmshearing.data.loaders:build_dynamic_streaming_dataloader"},
    "eval_loader": {
        "one_domain": "llmshearing.data.evaluation:build_domain_dataloader",
        "per_domain": "llmshearing.data.evaluation:build_evaluators",
    },
    "optimizer": {
        "decoupled_adamw": "composer.optim:DecoupledAdamW",
        "adamw": "torch.optim:AdamW",
    },
    "scheduler": {
        "cosine_with_warmup": "composer.optim:CosineAnnealingWithWarmupScheduler",
        "linear_decay_with_warmup": "composer.optim:LinearWithWarmupScheduler",
        "constant_with_warmup": "composer.optim:ConstantWithWarmupScheduler",
    },
    "algorithms": {
        "targeted_pruning": "llmshearing.pruning.algorithm:TargetedPruning",
        "source_distillation": "llmshearing.distillation:SourceDistillation",
        "gradient_clipping": "composer.algorithms:GradientClipping",
    },
    "callbacks": {
        "dynamic_batch_loading": "llmshearing.data.callback:DynamicBatchLoading",
        "downstream_evaluation": "llmshearing.downstream.callback:DownstreamEvaluation",
        "early_stopper": "composer.callbacks:EarlyStopper",
        "lr_monitor": "composer.callbacks:LRMonitor",
        "memory_monitor": "composer.callbacks:MemoryMonitor",
        "nan_monitor": "composer.callbacks:NaNMonitor",
        "optimizer_monitor": "composer.callbacks:OptimizerMonitor",
        "runtime_estimator": "composer.callbacks:RuntimeEstimator",
        "speed_monitor": "composer.callbacks:SpeedMonitor",
    },
    "loggers": {
        "metrics_log": "llmshearing.metrics_log:MetricsLog",
        "mlflow": "composer.loggers:MLFlowLogger",
        "tensorboard": "composer.loggers:TensorboardLogger",
        "wandb": "composer.loggers:WandBLogger",
    },
}

LISTED = "one_domain"  # the eval_loader that a list is made of, as LLM Foundry wants it


def resolve(kind: str, name: str) -> Callable[..., Any]:
    """The class or function that ``name`` stands for.

    Raises:
        InputError: an unknown name; suggests the nearest one.
    """
    known = COMPONENTS[kind]
    if name not in known:
        raise unknown_name(f"name in {kind}", name, known)
    module, attribute = known[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def build(kind: str, name: str, settings: Mapping[str, Any] | None, **given: Any) -> Any:
    """Build a component from a recipe's settings.

    Args:
        kind: a key of :data:`COMPONENTS`.
        name: the component's name.
        settings: its arguments, as the recipe has them.
        **given: arguments that the trainer supplies; a recipe cannot set them.

    Raises:
        InputError: an unknown or missing argument, or a value that the component refuses.
    """
    make = resolve(kind, name)
    settings, where = dict(settings or {}), f"{kind}.{name}"
    parameters = inspect.signature(make).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in settings:
            if key not in parameters or key in given:
                raise unknown_name(f"key in {where}", key, set(parameters) - set(given))
    missing = [
        key
        for key, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and key not in {*settings, *given}
    ]
    if missing:
        raise InputError(f"{where} needs {', '.join(missing)}; add it to the recipe.")
    above = where if kind in ("algorithms", "callbacks", "loggers") else kind  # as a recipe has it
    for key, value in settings.items():
        if value is None and key in parameters and parameters[key].default is not None:
            raise InputError(f"{above}.{key} is empty; give it a value, or leave it out for its default.")
    check_arguments(where, above, settings)
    try:
        with below(above, parameters):
            return make(**given, **settings)
    except (InputError, OSError, AssertionError):  # the last is a mistake of ours
        raise
    except ImportError as error:
        raise InputError(f"{where} needs a package that is not installed: {one_line(error)}") from error
    except Exception as error:
        said = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise InputError(f"{where}: {one_line(error) or type(error).__name__}. It was given {said[:500]}.") from error
