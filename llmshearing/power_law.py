"""``loss(x) = irreducible + coefficient * x ** -exponent``, fitted: in model sizes, or in samples trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

EXPONENT_RANGE = (1e-3, 2.0)  # at the lower end the law is a straight line in log x, at the upper end a step


@dataclass(frozen=True)
class PowerLaw:
    """``loss(x) = irreducible + coefficient * x ** -exponent``, in nats per token; ``rmse`` over what was fitted."""

    irreducible: float
    coefficient: float
    exponent: float
    rmse: float

    def __call__(self, x: float) -> float:
        return self.irreducible + self.coefficient * x**-self.exponent


def fit_power_law(
    x: ArrayLike | Sequence[float], losses: ArrayLike | Sequence[float], *, exponents: tuple[float, float] | None = None
) -> PowerLaw:
    """Least-squares fit of the law; through every point when there are three and the law can meet them.

    For a fixed exponent the law is linear in its other two parameters, so only the exponent is searched for
    (variable projection): on a grid first, then by golden section around the grid's best point.

    Args:
        x: positive, at least three distinct ones.
        losses: nats per token at each.
        exponents: least and largest one; :data:`EXPONENT_RANGE` unless given.
    """
    logs, y = np.log(np.asarray(x, dtype=np.float64)), np.asarray(losses, dtype=np.float64)
    centre = logs.mean()

    def project(exponent: float) -> tuple[float, float, float]:
        """Squared residuals, slope and intercept of the best ``intercept + slope * (x / exp(centre))**-exponent``."""
        basis = np.expm1(-exponent * (logs - centre))  # expm1: at small exponents the powers are all close to 1
        mean = basis.mean()
        slope = float((basis - mean) @ y / ((basis - mean) @ (basis - mean)))
        residual = y - y.mean() - slope * (basis - mean)
        return float(residual @ residual), slope, float(y.mean() - slope * (1 + mean))

    grid = np.geomspace(*(exponents or EXPONENT_RANGE), 400)
    best = int(np.argmin([project(exponent)[0] for exponent in grid]))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    golden = (5**0.5 - 1) / 2
    while high - low > 1e-14:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if project(left)[0] < project(right)[0]:
            high = right
        else:
            low = left
    exponent = (low + high) / 2
    squares, slope, intercept = project(exponent)
    return PowerLaw(intercept, slope * float(np.exp(exponent * centre)), exponent, (squares / len(y)) ** 0.5)
