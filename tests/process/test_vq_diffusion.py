"""Mask-and-replace with the released schedule of VQ-Diffusion, against brute force and against diffusers' scheduler."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undiffuse.models.description import process_from_json, process_to_json
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.keep import VQDiffusionKeep
from undiffuse.process.options import CategoricalOptions

K, T = 5, 100
RELEASED = CategoricalProcess("mask-replace", K, VQDiffusionKeep())


def log_probs(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).log_softmax(-1)


def test_the_table_is_that_of_the_released_code_and_its_steps_multiply_to_it() -> None:
    index = torch.arange(T, dtype=torch.float64)
    t = (index + 1) / T
    keep = 0.99999 + index / (T - 1) * (0.000009 - 0.99999)
    masked = 0.000009 + index / (T - 1) * (0.99999 - 0.000009)
    torch.testing.assert_close(RELEASED.keep.keep(t), keep, rtol=0, atol=1e-15)
    torch.testing.assert_close(torch.as_tensor(RELEASED.masked(t)), masked, rtol=0, atol=1e-15)
    product = torch.eye(K + 1, dtype=torch.float64)
    for i in range(T):
        product = product @ RELEASED.transition_matrix((i + 1) / T, i / T)
        expected = RELEASED.transition_matrix((i + 1) / T, 0.0)
        torch.testing.assert_close(product[:K], expected[:K], rtol=0, atol=1e-12)
        torch.testing.assert_close(expected.sum(-1), torch.ones(K + 1, dtype=torch.float64), rtol=0, atol=1e-14)
        assert bool((product >= 0).all())
    # The released tables leave 1e-6 to be replaced at every level, whatever the paper says.
    torch.testing.assert_close(1 - keep - masked, torch.full((T,), 1e-6, dtype=torch.float64), rtol=1e-8, atol=0)


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.61), (0.505, 0.203), (0.3, 0.004), (0.007, 0.003), (0.4, 0.0)])
def test_kernels_and_posterior_between_any_times_are_bayes_rule(t: float, s: float) -> None:
    first, step, both = (RELEASED.transition_matrix(*pair) for pair in ((s, 0.0), (t, s), (t, 0.0)))
    torch.testing.assert_close((first @ step)[:K], both[:K], rtol=0, atol=1e-12)
    x_t, probs = torch.arange(K + 1)[None], log_probs(1, K + 1, K).exp()
    joint = first[:K, None, :] * step.T[None] / both[:K, :, None]  # [j, x_t, x_s]
    expected = torch.einsum("xj,jxs->xs", probs[0], joint)
    # What is replaced, 1e-6, is a difference of numbers near 1, so it has 10 of their 16 digits, here and there.
    torch.testing.assert_close(RELEASED.reverse(x_t, probs, t, s)[0], expected, rtol=0, atol=1e-9)


def test_at_the_end_every_token_is_drawn_from_the_network_s_answer() -> None:
    for process in (RELEASED, CategoricalProcess("mask-replace", K)):
        x_t, probs = torch.arange(K + 1)[None], log_probs(1, K + 1, K).exp()
        law = process.reverse(x_t, probs, 0.37, 0.0)[0]
        torch.testing.assert_close(law[:, :K], probs[0], rtol=0, atol=1e-14)
        assert float(law[:, K].abs().max()) == 0


@pytest.mark.parametrize("process", [RELEASED, CategoricalProcess("mask-replace", K)])
@pytest.mark.parametrize("stride", [1, 4, 10])
def test_a_stride_opens_the_right_share_of_the_masks(process: CategoricalProcess, stride: int) -> None:
    """Whatever the posterior, a mask at t is still one at s with probability c_s / c_t: no stride opens too few."""
    x_t, probs = torch.full((1, 3), K), log_probs(1, 3, K).exp()
    for i in range(T, stride - 1, -stride):
        t, s = i / T, (i - stride) / T
        left = process.reverse(x_t, probs, t, s)[..., K]
        expected = float(process.masked(s)) / float(process.masked(t))
        torch.testing.assert_close(left, torch.full_like(left, expected), rtol=0, atol=1e-12)


def test_every_step_agrees_with_the_scheduler_of_diffusers() -> None:
    """Its probabilities are float32 sums of logarithms down to -69: 1e-5 at every index, for all states."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.VQDiffusionScheduler(num_vec_classes=K + 1, num_train_timesteps=T)
    x_t = torch.arange(K + 1).repeat(1, 4)
    logits = 3 * log_probs(1, x_t.shape[1], K)
    answer = logits.log_softmax(-1)
    for i in range(1, T):
        theirs = scheduler.q_posterior(answer.float().mT, x_t, torch.tensor(i)).exp().mT
        ours = RELEASED.reverse(x_t, answer.exp(), (i + 1) / T, i / T)
        torch.testing.assert_close(theirs.double(), ours, rtol=0, atol=1e-5)
    for i in range(T):
        t = (i + 1) / T
        assert float(scheduler.log_cumprod_at[i].exp()) == pytest.approx(
            float(RELEASED.keep.keep(torch.tensor(t).double())), abs=1e-6
        )
        assert float(scheduler.log_cumprod_ct[i].exp()) == pytest.approx(float(RELEASED.masked(t)), abs=1e-6)


def test_the_prior_is_all_masks_but_a_millionth_and_the_paper_s_is_nine_tenths() -> None:
    uniform = (torch.arange(2_000_000, dtype=torch.float64)[None] + 0.5) / 2_000_000
    assert int((RELEASED.prior(uniform) < K).sum()) == 2
    share = float((CategoricalProcess("mask-replace", K).prior(uniform) == K).double().mean())
    assert share == pytest.approx(0.9, abs=1e-6)


def test_the_released_schedule_without_replacement_or_masks_is_the_other_two_kinds() -> None:
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    keep = VQDiffusionKeep()
    absorbing, uniform = (CategoricalProcess(kind, K, keep) for kind in ("absorbing", "uniform"))
    torch.testing.assert_close(torch.as_tensor(absorbing.masked(t)), keep.drop(t), rtol=0, atol=0)
    assert torch.equal(torch.as_tensor(uniform.masked(t)), torch.zeros_like(t))


def test_it_is_saved_and_read() -> None:
    process = CategoricalProcess("mask-replace", K, VQDiffusionKeep(levels=50))
    assert process_from_json(process_to_json(process)) == process


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "at least 2"),
        ({"keep_start": 0.1, "keep_end": 0.2}, "must fall"),
        ({"mask_start": 0.9, "mask_end": 0.2}, "masks rise"),
        ({"keep_end": 0.1}, "more than all tokens"),
    ],
)
def test_tables_that_are_no_process_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQDiffusionKeep(**options)


def test_a_share_beside_masks_of_their_own_is_refused() -> None:
    with pytest.raises(ValueError, match="masks of its own"):
        CategoricalProcess("mask-replace", K, VQDiffusionKeep(), 0.5)
    with pytest.raises(ValueError, match="masks of its own"):
        CategoricalOptions(corruption="mask-replace", keep="vq-diffusion", mask_share=0.5)
    with pytest.raises(ValueError, match="belongs to corruption=mask-replace"):
        CategoricalOptions(corruption="uniform", mask_share=0.5)
