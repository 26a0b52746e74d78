"""What is decoded as data must be data: grids that stop at noisy states are for those who ask for states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from undiffuse.models.model import Model


def refuse_states(model: Model, grid: Any) -> None:
    """Refuse falling times that end above both 0 and the smallest time of the model; all else is judged elsewhere.

    Args:
        model: Any model.
        grid: As `Model.sample` takes it.

    Raises:
        ValueError: They end at noisy states.
    """
    if grid is None or isinstance(grid, str):
        return
    try:
        times = torch.as_tensor(grid)
    except (TypeError, ValueError, RuntimeError):
        return
    if times.ndim == 0 or len(times) < 2 or not times.numel() or bool((times.diff(dim=0) > 0).any()):
        return
    last = float(times[-1].max())
    smallest = getattr(getattr(model.process, "schedule", None), "t_min", 0.0)
    rounding = 1 + 2 * torch.finfo(times.dtype).eps if times.is_floating_point() else 1.0
    if last > max(smallest, getattr(model.module, "end", 0.0)) * rounding + 1e-9:
        raise ValueError(
            f"the grid ends at t={last:g}, where samples are still noisy; let it end at 0, such as 1,0.6,0.2,0 "
            f"(Model.sample_result in Python gives the states themselves)."
        )
