"""Posteriors are frozen pytrees; denoisers check times at their border; wrappers pass on what they do not change."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree

from tests.oracles.continuous import normals, process_of, spec_mixture
from undiffuse.denoisers.base import Denoiser, Wrapper
from undiffuse.denoisers.posterior import CategoricalPosterior, Posterior
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.process.times import Time


def test_posteriors_cannot_be_changed_but_replaced() -> None:
    post = Posterior(normals(2, 3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        post.mean = normals(2, 3)  # type: ignore[misc]
    other = post.replace(mean=normals(2, 3, seed=1), extras={"head": torch.ones(2)})
    assert not torch.equal(other.mean, post.mean)
    assert post.extras == {}


@pytest.mark.parametrize(
    "post",
    [
        Posterior(normals(2, 3)),
        Posterior(
            normals(2, 3), var=torch.ones(2, 3), raw=normals(2, 3), eps=normals(2, 3), extras={"a": torch.ones(2)}
        ),
        CategoricalPosterior(normals(2, 3, 4), {"b": torch.zeros(2)}),
    ],
)
def test_posteriors_are_pytrees_of_their_tensors(post: Any) -> None:
    doubled = _pytree.tree_map(lambda part: 2 * part, post)
    assert type(doubled) is type(post)
    for field in dataclasses.fields(post):
        before, after = getattr(post, field.name), getattr(doubled, field.name)
        if isinstance(before, Tensor):
            assert torch.equal(after, 2 * before)
        elif isinstance(before, dict):
            assert {k: v.tolist() for k, v in after.items()} == {k: (2 * v).tolist() for k, v in before.items()}
        else:
            assert after is None


def test_probabilities_are_float64_and_sum_to_one_also_with_impossible_classes() -> None:
    logits = normals(2, 3, 4).float()
    logits[0, 0, :3] = -torch.inf
    probs = CategoricalPosterior(logits).probs
    assert probs.dtype == torch.float64
    torch.testing.assert_close(probs.sum(-1), torch.ones(2, 3, dtype=torch.float64), rtol=1e-14, atol=0)
    assert probs[0, 0].tolist() == [0, 0, 0, 1]


class Times(Denoiser):
    """Notes what `posterior` receives."""

    def __init__(self) -> None:
        super().__init__()
        self.process = process_of("vp")
        self.seen: list[Time] = []

    def posterior(self, x: Tensor, t: Time, cond: Any) -> Posterior:
        self.seen.append(t)
        return Posterior(x)


def test_a_float_stays_a_float_and_tensors_gain_the_batch() -> None:
    denoiser, x = Times(), normals(3, 4)
    for t in (0.3, torch.tensor(0.3), torch.full((3,), 0.3), torch.full((1, 4), 0.3), torch.full((3, 4), 0.3)):
        denoiser(x, t)
    shapes = [t if isinstance(t, float) else tuple(t.shape) for t in denoiser.seen]
    assert shapes == [0.3, (3,), (3,), (3, 4), (3, 4)]


@pytest.mark.parametrize("t", [1.5, -0.1, torch.zeros(4), torch.zeros(3, 5), torch.zeros(2, 4)])
def test_times_that_do_not_fit_never_reach_the_posterior(t: Time) -> None:
    denoiser = Times()
    with pytest.raises(ValueError):
        denoiser(normals(3, 4), t)
    assert denoiser.seen == []


def test_unknown_conditions_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"takes no conditions.*'label'"):
        Times().embed({"label": torch.zeros(2)}, 2)
    with pytest.raises(ValueError, match="takes no conditions"):
        Times().embed(None, 2, drop={"label": torch.ones(2, dtype=torch.bool)})
    assert Times().embed(None, 2) is None
    assert Times().embed({}, 2) is None


def test_a_wrapper_passes_everything_on() -> None:
    labels = torch.tensor([0, 1, 1])
    inner = spec_mixture(process_of("vp"), labels)
    inner.time_dependent, inner.needs_grad = False, True
    wrapper, x = Wrapper(Wrapper(inner)), normals(3, 2)
    assert (wrapper.process, wrapper.spec) == (inner.process, inner.spec)
    assert (wrapper.time_dependent, wrapper.needs_grad) == (False, True)
    assert wrapper.calls(0.5) == inner.calls(0.5) == 1
    cond = wrapper.embed({"label": labels}, 3)
    assert torch.equal(wrapper(x, 0.5, cond).mean, inner(x, 0.5, inner.embed({"label": labels}, 3)).mean)


def test_reschedule_refuses_tokens_and_costs_what_it_wraps() -> None:
    from tests.oracles.masked import joint_denoiser, triple_joint

    with pytest.raises(TypeError, match="categorical"):
        Reschedule(joint_denoiser(triple_joint()), process_of("rf"))
    assert Reschedule(spec_mixture(process_of("vp")), process_of("rf")).calls(0.5) == 1


def test_rescheduled_twice_from_different_schedules_on_one_process() -> None:
    """Two wrappers on one target process must not share cached times."""
    target, x = process_of("rf"), normals(4, 2)
    expected = spec_mixture(target)(x, 0.37).mean
    for source in ("vp", "trig", "ve", "cosine"):
        found = Reschedule(spec_mixture(process_of(source)), target)(x, 0.37).mean
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    for sigma_max in (50.0, 80.0):
        found = Reschedule(spec_mixture(process_of("ve", sigma_max=sigma_max)), target)(x, 0.37).mean
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
