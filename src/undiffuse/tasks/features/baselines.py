"""What features of a model must beat: the raw items, and the same network before training."""

from __future__ import annotations

from torch import Tensor

from undiffuse.errors import UndiffuseError
from undiffuse.events import Listener, silent
from undiffuse.models.description import denoiser_from_json, denoiser_to_json
from undiffuse.models.model import Model


class RawItems:
    """The items themselves as features, in model units."""

    def __call__(self, x: Tensor, *, index: Tensor | None = None, listener: Listener = silent) -> Tensor:
        """Return items flattened, (n, F) float32."""
        return x.flatten(1).float()

    def maps(self, x: Tensor, *, index: Tensor | None = None, listener: Listener = silent) -> dict[str, Tensor]:
        """Return the items as the one map "raw"; vectors as (n, D, 1)."""
        return {"raw": (x if x.ndim > 2 else x[:, :, None]).float()}


def untrained(model: Model) -> Model:
    """Return a model with the network of another one as it was before training.

    Raises:
        UndiffuseError: The network was built by hand or comes from diffusers, so that nothing says how to build it.
    """
    try:
        fresh = denoiser_from_json(denoiser_to_json(model.module), model.state_spec)
    except (AttributeError, TypeError, ValueError) as error:
        raise UndiffuseError(f"this model's network cannot be built anew ({error}); leave the baseline out.") from error
    return Model(fresh.eval(), model.spec, codec=model.codec)
