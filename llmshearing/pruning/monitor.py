"""What stops a run whose masks diverge, and what it says of them when it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from llmshearing.architecture.shapes import ModelShape
from llmshearing.pruning.chooser import Chooser
from llmshearing.pruning.settings import Settings

log = logging.getLogger(__name__)

# Share of the way from source to target that a size may be off when the constraint has long been in force.
_DIVERGED = 0.95
_FAR = 0.05  # from the target at the end, as a share of a group's units


def check_health(step: int, metrics: Mapping[str, float], masks: Chooser, settings: Settings) -> None:
    """Look at what was logged after ``step``.

    Raises:
        RuntimeError: a value is not a number, or a size has not moved where it should have long arrived.
    """
    broken = [name for name, value in metrics.items() if value != value]
    problem = f"{', '.join(broken)} became NaN" if broken else None
    if problem is None and masks.settled(step):
        for name, group in masks.groups.items():
            target, source = group.num_kept * group.multiple, group.num_units * group.multiple
            expected = metrics[f"{name}/expected"]
            if abs(expected - target) > _DIVERGED * (source - target):
                problem = f"{name} is {expected:.1f} and as far from its target {target} as at the start"
                break
    if problem is not None:
        raise RuntimeError(
            f"Pruning diverged at batch {step}: {problem}. If the loss was finite, lower the masks' lr ({settings.lr}) "
            f"or lengthen the warmup ({settings.warmup}), and resume from a checkpoint before it."
        )


def report_end(step: int, masks: Chooser, target: ModelShape) -> None:
    """Log how near the sizes came to the target that the model now has, and units that are cut off by index alone."""
    distance = float(masks.statistics(step)["distance"])
    message = "Pruning ends at %s; expected sizes were within %.2f%% of the target."
    log.log(logging.WARNING if distance > _FAR else logging.INFO, message, target, 100 * distance)
    masks.log_ties()
