"""Which method for which problem: what each needs, and the choice of `method="auto"` with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from undiffuse.data.pairs import SOURCE
from undiffuse.denoisers.base import Denoiser
from undiffuse.operators.base import Operator
from undiffuse.operators.diagonal import Mask
from undiffuse.tasks.restore.constraints import poorly_conditioned
from undiffuse.tasks.restore.daps import draws_exactly
from undiffuse.tasks.restore.latent import Decoded
from undiffuse.tasks.restore.registry import RESTORERS, restorer_class
from undiffuse.tasks.restore.restorer import NEEDS

_LITTLE_NOISE = 0.1  # model units: up to here a projection that reproduces it costs little
_PASS, _GRADIENT = 1, 3  # cost of an evaluation, and of one that is differentiated once, in forward passes


@dataclass(frozen=True)
class Choice:
    """A method and why.

    Args:
        method: Its name.
        why: For people.
        steps: Steps that keep within the budget; None: the method's own default.
    """

    method: str
    why: str
    steps: int | None = None


def offers(operator: Operator) -> set[str]:
    """Return which of `NEEDS` an operator on states meets."""
    met = {
        "linear": operator.linear,
        "svd": operator.is_svd,
        "pinv": operator.has_pinv,
        "mask": isinstance(operator, Mask),
        "slices": len(operator.in_shape) == 4 and operator.in_shape[0] > 1,
        "differentiable": operator.differentiable,
        "kernel": hasattr(operator, "with_kernel"),
        "codec": isinstance(operator, Decoded),
        "linear-pixels": isinstance(operator, Decoded) and operator.pixels.linear,
    }
    return {name for name, has in met.items() if has}


def working_methods(operator: Operator) -> list[str]:
    """Return the names of the methods that can solve problems with this operator, whatever the model."""
    has = offers(operator)
    needs = {name: set(restorer_class(name).needs) for name in RESTORERS}
    return [name for name, needed in needs.items() if needed and needed <= has]


def check_needs(name: str, needs: tuple[str, ...], operator: Operator) -> None:
    """Refuse a method that needs what the operator lacks.

    Raises:
        ValueError: The message says what is missing, and which methods work.
    """
    missing = [need for need in needs if need not in offers(operator)]
    if not missing:
        return
    lacks = " and ".join(NEEDS[need] for need in missing)
    latent = " (of a latent model, so pixels are seen through its decoder)" if isinstance(operator, Decoded) else ""
    works = ", ".join(working_methods(operator)) or "none"
    raise ValueError(
        f"{name} needs {lacks}, and {operator.describe()}{latent} is not that; methods that work: {works}."
    )


def choose(denoiser: Denoiser, operator: Operator, noise_std: float, gaussian: bool, budget: int | None) -> Choice:
    """Return the method for a problem.

    Args:
        denoiser: The prior.
        operator: On states.
        noise_std: Model units.
        gaussian: Whether the noise is.
        budget: Forward passes per sample that may be spent; a differentiated evaluation counts as three. None: any.

    Raises:
        ValueError: No method fits.
    """
    if denoiser.spec is not None and SOURCE in denoiser.spec.conditions:
        return Choice("supervised", "the model was trained to restore a given picture", budget)
    if isinstance(operator, Decoded):
        return _for_latents(operator, budget)
    if not operator.linear:
        return _for_nonlinear(operator, gaussian, budget)
    if draws_exactly(denoiser):
        return Choice("daps-moments", "the prior is analytic, so its posterior covariance is exact; 20 levels suffice")
    return _for_linear(operator, noise_std, budget)


def _for_linear(operator: Any, noise_std: float, budget: int | None) -> Choice:
    full = _PASS + 2 * 6  # one pass and six products of MMPS
    if budget is None or budget >= 50 * full:
        steps = None if budget is None else min(100, budget // full)
        return Choice("mmps", "the operator is linear: the best calibrated of the methods for networks", steps)
    if budget >= 20 * _GRADIENT and operator.has_pinv:
        return Choice("pigdm", f"{budget} passes are too few for mmps; one product per step", budget // _GRADIENT)
    if noise_std <= _LITTLE_NOISE and not poorly_conditioned(operator):
        return Choice("dds", f"{budget} passes leave no room for gradients, and y has little noise", max(budget, 1))
    return Choice("diffpir", f"{budget} passes leave no room for gradients, and y is noisy", max(budget, 1))


def _for_nonlinear(operator: Operator, gaussian: bool, budget: int | None) -> Choice:
    if operator.differentiable:
        steps = None if budget is None else max(budget // _GRADIENT, 1)
        law = "" if gaussian else ", with the noise's own likelihood"
        return Choice("dps", f"the operator is not linear but can be differentiated{law}", steps)
    if operator.has_pinv:
        steps = None if budget is None else max(budget // _GRADIENT, 1)
        return Choice("pigdm", "the operator cannot be differentiated, but has an approximate inverse", steps)
    raise ValueError(
        f"{operator.label()} is not linear, cannot be differentiated and has no approximate inverse, so no method can "
        "use it; give a smooth version of it."
    )


def _for_latents(operator: Operator, budget: int | None) -> Choice:
    if operator.differentiable:
        steps = None if budget is None else max(budget // _GRADIENT, 1)
        return Choice("dps", "the prior is latent: its gradient goes through the decoder", steps)
    raise ValueError(f"{operator.label()} cannot be differentiated, which a latent prior needs; use a model of pixels.")
