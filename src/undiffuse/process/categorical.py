r"""The categorical process: how tokens turn into masks or into other tokens, and the exact way back.

K classes of data, and one more state, the mask with id K, in two of the three kinds. With a_t = keep(t) and
c_t the probability of a mask, at any time

    q(x_t | x_0) = a_t [x_t = x_0] + c_t [x_t = mask] + (1 - a_t - c_t) / K [x_t != mask],

where c_t is 1 - a_t for "absorbing", 0 for "uniform", and for "mask-replace" `mask_share` (1 - a_t), or what a schedule
with masks of its own says. A mask stays a mask going up in t. One closed form, O(K) per token, serves all three.

In a table each position is a column with values of its own: `blocks` gives their numbers K_l, column l has the K_l ids
that follow those of the columns before it, and 1 / K above becomes 1 / K_l on these.

Sources: Austin et al. 2021 (D3PM), arXiv:2107.03006; Gu et al. 2022 (VQ-Diffusion), arXiv:2111.14822;
    Sahoo et al. 2024 (MDLM, SUBS), arXiv:2406.07524.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from undiffuse.process.keep import KeepSchedule, LinearKeep
from undiffuse.process.times import Time, align

CategoricalKind = Literal["absorbing", "uniform", "mask-replace"]
Level = float | Tensor
Formula = Callable[["CategoricalProcess", Tensor, Tensor], tuple[Tensor, ...]]

MASK_SHARE = 0.9  # of VQ-Diffusion: 0.9 of the lost tokens are masked, 0.1 drawn again
_TINY = torch.finfo(torch.float64).tiny
PRIOR_TOLERANCE = 1e-3  # error per token, in total variation, of a prior that ignores what is kept at t = 1


class Kernel(NamedTuple):
    """The forward kernel of one class from an earlier to a later time; the three sum to 1."""

    stay: Level  # untouched
    replace: Level  # drawn again among the K classes
    mask: Level  # masked


@dataclass(frozen=True)
class CategoricalProcess:
    """Corruption and exact reversal of tokens int64 (B, ...), by kind.

    Args:
        kind: "absorbing" (masks only), "uniform" (random classes only) or "mask-replace" (both).
        classes: Number of data classes K. Ids are 0..K-1; the mask is K.
        keep: Keep schedule.
        mask_share: Share of lost tokens that become masks, for "mask-replace"; None for 0.9, or for what the schedule
            says where it has masks of its own.
        blocks: Number of classes of each position of (B, L), which add up to K; empty: all K at every position.

    Raises:
        ValueError: An unknown kind, fewer than 1 class, a share outside of (0, 1) or beside a schedule with masks of
            its own, blocks that do not add up, a schedule that does not fall from 1, masks that become fewer, or a
            schedule that keeps too much at t = 1 for a prior without masks alone.
    """

    kind: CategoricalKind
    classes: int
    keep: KeepSchedule = field(default_factory=LinearKeep)
    mask_share: float | None = None
    blocks: tuple[int, ...] = ()
    _cache: dict[tuple[str, float, float], tuple[float, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.kind not in get_args(CategoricalKind):
            raise ValueError(f"kind={self.kind!r} is unknown; choose one of {', '.join(get_args(CategoricalKind))}.")
        if self.classes < 1:
            raise ValueError(f"classes={self.classes} but there must be at least 1 data class.")
        if self.kind == "mask-replace" and not 0 < self.share < 1:
            raise ValueError(
                f"mask_share={self.mask_share} is outside of (0, 1); use kind='absorbing' for 1 and 'uniform' for 0."
            )
        if self.keep.has_masks and self.mask_share is not None:
            raise ValueError(
                f"mask_share={self.mask_share} but keep={self.keep.name!r} has masks of its own; leave one out."
            )
        if self.blocks and (sum(self.blocks) != self.classes or min(self.blocks) < 1):
            raise ValueError(f"blocks={self.blocks} must be positive and add up to classes={self.classes}.")
        self._check_schedule()

    @property
    def share(self) -> float:
        """Share of lost tokens that become masks: 1, 0 or `mask_share`."""
        share = MASK_SHARE if self.mask_share is None else self.mask_share
        return {"absorbing": 1.0, "uniform": 0.0}.get(self.kind, share)

    @property
    def states(self) -> int:
        """Number of states of a noisy token: K, or K + 1 with a mask."""
        return self.classes + (self.kind != "uniform")

    @property
    def mask_id(self) -> int | None:
        """Id of the mask, K; None for the uniform kind."""
        return None if self.kind == "uniform" else self.classes

    def is_mask(self, x: Tensor) -> Tensor:
        """Return where `x` (B, ...) holds the mask: bool, nowhere for the uniform kind."""
        return x == self.classes if self.mask_id is not None else torch.zeros_like(x, dtype=torch.bool)

    # -- forward ----------------------------------------------------------------------------------

    def corrupt(self, x0: Tensor, t: Time, uniform: Tensor) -> Tensor:
        """Return x_t drawn from q(x_t | x_0), with one float64 uniform per token. Shapes (B, ...)."""
        return self.renoise(x0, 0.0, t, uniform)

    def renoise(self, x: Tensor, t: Time, s: Time, uniform: Tensor) -> Tensor:
        """Return x_s drawn from the forward kernel q(x_s | x_t), for s >= t. x itself where s = t."""
        self.check_tokens(x)
        stay, replace, _ = self._kernel(t, s, x)
        rest = uniform - stay  # at 0 or above: touched
        drawn = self._draw_noise(rest, replace)
        return torch.where((rest >= 0) & ~self.is_mask(x), drawn, x)

    def prior(self, uniform: Tensor) -> Tensor:
        """Return x_1 from float64 uniforms (B, ...): masks, random classes, or both.

        All masks are an exact start for "absorbing" whatever keep(1) is, since p(x_0 | all masks) = p(x_0).
        """
        lost, masked = cast(tuple[float, ...], self._evaluate(_lost_and_masked, 0.0, 1.0))
        return self._draw_noise(uniform, 1.0 - masked / lost)

    def masked(self, t: Time) -> Level:
        """Return the probability that a token is masked at `t`: a Python float for a float time, else float64."""
        return self._evaluate(_lost_and_masked, 0.0, t)[1]

    def marginal(self, x0_probs: Tensor, t: Time) -> Tensor:
        """Return q(x_t | x_0) averaged over x_0 ~ `x0_probs` (B, ..., K): probabilities (B, ..., states)."""
        keep, replace, mask = self._marginal(t, x0_probs)
        total = x0_probs.sum(-1, keepdim=True)
        return self._append(keep * x0_probs + replace * self._law(x0_probs) * total, mask * total)

    def likelihood(self, x_t: Tensor, t: Time) -> Tensor:
        """Return q(x_t | x_0 = j) for all classes j, up to a factor per token: float64 (B, ..., K).

        Times enter only where it depends on them: a mask says nothing about its class (all 1), and with "absorbing"
        an open token says all (one-hot), also at t = 1 where it can only have been given.
        """
        self.check_tokens(x_t)
        own = self._one_hot(x_t, self.classes)
        if self.kind == "absorbing":
            seen = own
        else:
            keep, replace, _ = self._marginal(t, own)
            seen = keep * own + replace * self._law(own)
        return torch.where(self.is_mask(x_t)[..., None], 1.0, seen)

    # -- reverse ----------------------------------------------------------------------------------

    def reverse(self, x_t: Tensor, probs: Tensor, t: Time, s: Time) -> Tensor:
        r"""Return p(x_s | x_t) = sum_j q(x_s | x_t, x_0 = j) p(x_0 = j | x_t) for s <= t.

        Bayes' rule gives q(x_t | x_s) (a_s w + (1 - a_s) noise(x_s) sum w) with w_j = p_j / q(x_t | x_0 = j). A token
        that the posterior calls impossible stays, and so does every token where s = t.

        Args:
            x_t: Tokens (B, ...).
            probs: Posterior over the K classes of x_0 (B, ..., K).
            t: Time of `x_t`.
            s: Time to go to, at most t.

        Returns:
            Probabilities (B, ..., states) in the dtype of `probs`.
        """
        seen = self.likelihood(x_t, t).to(probs.dtype)
        weight = torch.where(seen > 0, probs / torch.where(seen > 0, seen, 1.0), 0.0)
        keep, replace, mask = self._marginal(s, probs)
        total = weight.sum(-1, keepdim=True)
        before = self._append(keep * weight + replace * self._law(probs) * total, mask * total)
        joint = before * self._reached_from(x_t, t, s, probs.dtype)
        mass = joint.sum(-1, keepdim=True)
        return torch.where(mass > 0, joint / torch.where(mass > 0, mass, 1.0), self._one_hot(x_t).to(probs.dtype))

    def open_rate(self, t: Time, s: Time) -> Level:
        """Return the probability that a mask opens between t and s <= t, (a_s - a_t) / (1 - a_t), for "absorbing".

        A Python float for float times, else float64 in the shape of the times.

        Raises:
            ValueError: The process is of another kind, whose tokens may also change class.
        """
        if self.kind != "absorbing":
            raise ValueError(f"a process of kind {self.kind!r} has no opening rate; use reverse().")
        return self._evaluate(_opening, s, t)[0]

    def transition_matrix(self, t: float, s: float, position: int = 0) -> Tensor:
        """Return the forward matrix Q[i, j] = q(x_t = j | x_s = i) for s <= t: float64 (states, states).

        With blocks it is that of one `position`, and rows of ids that the position does not have mean nothing.
        """
        stay, replace, mask = cast(tuple[float, ...], self._evaluate(_kernel_levels, s, t))
        law = torch.as_tensor(self._law(torch.zeros(0, dtype=torch.float64)), dtype=torch.float64)
        among = replace * (law[position] if self.blocks else law).expand(self.classes, self.classes)
        matrix = torch.zeros(self.states, self.states, dtype=torch.float64)
        matrix[: self.classes, : self.classes] = among + stay * torch.eye(self.classes, dtype=torch.float64)
        if self.mask_id is not None:
            matrix[: self.classes, self.mask_id] = mask
            matrix[self.mask_id, self.mask_id] = 1.0
        return matrix

    # -- networks ---------------------------------------------------------------------------------

    def subs(self, logits: Tensor, x_t: Tensor) -> Tensor:
        """Apply what an absorbing process knows: no mask in x_0, and an open token is itself (MDLM's SUBS).

        Args:
            logits: (B, ..., K), or (B, ..., K + 1) whose last column, the mask, is cut off.
            x_t: Tokens (B, ...).

        Returns:
            Logits (B, ..., K); at open tokens 0 for their class and -inf for the others, with no gradient.

        Raises:
            ValueError: The process is of another kind, or the logits have another width.
        """
        if self.kind != "absorbing":
            raise ValueError(f"carry-over holds for kind 'absorbing' only; this process is {self.kind!r}.")
        if logits.shape[-1] not in (self.classes, self.states):
            raise ValueError(f"logits have {logits.shape[-1]} columns; expected {self.classes} or {self.states}.")
        logits = logits[..., : self.classes]
        known = torch.zeros_like(logits).masked_fill(self._one_hot(x_t, self.classes) == 0, -math.inf)
        return torch.where(self.is_mask(x_t)[..., None], self.within_blocks(logits), known)

    def within_blocks(self, logits: Tensor) -> Tensor:
        """Rule out the ids that a position does not have: logits (B, L, K), -inf there."""
        if not self.blocks:
            return logits
        return logits.masked_fill(torch.as_tensor(self._law(logits)) == 0, -math.inf)

    def check_tokens(self, x: Tensor) -> None:
        """Refuse what is no tensor of token ids.

        Ids are compared on the CPU only: on an accelerator that would wait for its queue at every step.

        Raises:
            TypeError: Not int64.
            ValueError: No tokens, or an id outside of 0..states-1.
        """
        if x.dtype != torch.int64:
            raise TypeError(f"tokens are {x.dtype}; expected int64 ids.")
        if x.numel() == 0:
            raise ValueError(f"tokens have shape {tuple(x.shape)}: there is nothing to work on.")
        if x.device.type == "cpu":
            low, high = (int(v) for v in x.aminmax())
            if low < 0 or high >= self.states:
                raise ValueError(
                    f"token ids run from {low} to {high}; this process has states 0 to {self.states - 1} "
                    f"({self.classes} classes{'' if self.mask_id is None else ' and a mask'})."
                )

    def check_data(self, x0: Tensor) -> None:
        """Refuse what is no clean data: as `check_tokens`, and the mask, which stands for no class.

        Raises:
            TypeError: Not int64.
            ValueError: No tokens, or an id outside of 0..K-1.
        """
        self.check_tokens(x0)
        if x0.device.type == "cpu" and bool(self.is_mask(x0).any()):
            raise ValueError(
                f"clean tokens hold the id {self.classes}, which is the mask; data are ids 0 to {self.classes - 1}."
            )

    # -- helpers ----------------------------------------------------------------------------------

    def _draw_noise(self, rest: Tensor, replace: Level) -> Tensor:
        """Map uniforms in [0, replace) to classes in equal parts and those above to the mask."""
        if self.kind == "absorbing":
            return torch.full_like(rest, self.classes, dtype=torch.int64)
        width = replace.clamp(min=_TINY) if isinstance(replace, Tensor) else max(replace, _TINY)  # 0 where s = t
        count, first = self._ids(rest.device)
        drawn = first + (rest / width * count).long().clamp(torch.zeros_like(count), count - 1)
        return drawn if self.mask_id is None else torch.where(rest < replace, drawn, self.mask_id)

    def _reached_from(self, x_t: Tensor, t: Time, s: Time, dtype: torch.dtype) -> Tensor:
        """Return q(x_t | x_s = j) for all states j (B, ..., states)."""
        own = self._one_hot(x_t, self.classes).to(dtype)
        stay, replace, mask = self._kernel(s, t, own)
        masked = self.is_mask(x_t)[..., None]
        chance = self._ids(own.device)[0].to(dtype).reciprocal()[..., None]  # to be drawn at its position
        from_class = torch.where(masked, mask, stay * own + replace * chance)
        return self._append(from_class, masked.to(dtype))

    def _ids(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the number of ids and the first id of each position, int64 (L,); (1,) where all have the same."""
        count = torch.tensor(self.blocks or (self.classes,), device=device)
        return count, count.cumsum(0) - count

    def _law(self, like: Tensor) -> float | Tensor:
        """Return the law of a token that is drawn again: 1 / K, or with blocks (L, K) in the dtype of `like`."""
        if not self.blocks:
            return 1.0 / self.classes
        count, first = (part[:, None] for part in self._ids(like.device))
        ids = torch.arange(self.classes, device=like.device)
        return ((ids >= first) & (ids < first + count)).to(like.dtype) / count

    def _append(self, classes: Tensor, mask: Tensor) -> Tensor:
        """Put the column of the mask (..., 1) behind the classes (..., K), where there is one."""
        return classes if self.mask_id is None else torch.cat((classes, mask), dim=-1)

    def _one_hot(self, x: Tensor, width: int | None = None) -> Tensor:
        """Return float64 (..., width), all 0 where the id is beyond `width` (the mask among the classes)."""
        ids = torch.arange(width or self.states, device=x.device)
        return (x[..., None] == ids).double()

    def _marginal(self, t: Time, like: Tensor) -> Kernel:
        return self._kernel(0.0, t, like)

    def _kernel(self, early: Time, late: Time, like: Tensor) -> Kernel:
        """Return the forward kernel early -> late, ready to broadcast from the left over `like`."""
        dtype = like.dtype if like.is_floating_point() else torch.float64
        return Kernel(*(_fit(level, like, dtype) for level in self._evaluate(_kernel_levels, early, late)))

    def _evaluate(self, formula: Formula, early: Time, late: Time) -> tuple[Level, ...]:
        """Evaluate a formula of two times: cached Python floats for float times, else float64 tensors."""
        if isinstance(early, Tensor) or isinstance(late, Tensor):
            return formula(self, torch.as_tensor(early).double(), torch.as_tensor(late).double())
        if early > late:
            raise ValueError(f"noise grows with time: cannot go forward from {early} to {late}; exchange the times.")
        key = (formula.__name__, early, late)
        if key not in self._cache:
            times = torch.tensor([early, late], dtype=torch.float64)
            self._cache[key] = tuple(float(level) for level in formula(self, times[0], times[1]))
        return self._cache[key]

    def _check_schedule(self) -> None:
        keep = self.keep.keep(torch.linspace(0, 1, 65, dtype=torch.float64))
        if keep[0] != 1 or not bool((keep.diff() <= 0).all()) or keep[-1] < 0:
            raise ValueError(f"{self.keep} is no keep schedule; it must start at 1 and fall to 0 or a little above.")
        masked = self.keep.masked(torch.linspace(0, 1, 65, dtype=torch.float64), self.share)
        if masked[0] != 0 or not bool((masked.diff() >= 0).all()) or bool((keep + masked > 1 + 1e-12).any()):
            raise ValueError(f"the masks of {self.keep} must rise from 0 to at most what is lost: masks stay masks.")
        if self.kind != "absorbing" and keep[-1] > PRIOR_TOLERANCE:
            raise ValueError(
                f"{self.keep} still keeps {float(keep[-1]):.2g} of the tokens at t = 1, so kind {self.kind!r} has no "
                f"prior to start from; use keep='linear' (or kind='absorbing', which starts from masks)."
            )


def _kernel_levels(process: CategoricalProcess, early: Tensor, late: Tensor) -> tuple[Tensor, ...]:
    """Stay, replace, mask. Written in what is lost between the times, so that equal times are the identity."""
    keep, before = process.keep.keep(early), process.keep.masked(early, process.share)
    lost = process.keep.drop(late) - process.keep.drop(early)
    moved = (lost > 0) & (keep > 0)
    kept, unmasked = torch.where(moved, keep, 1.0), torch.where(moved, 1.0 - before, 1.0)
    lost = torch.where(moved, lost, 0.0)
    masked = torch.where(moved, process.keep.masked(late, process.share) - before, 0.0)
    stay = torch.where(moved, process.keep.keep(late) / kept, 1.0)
    # 1 - stay - mask on one denominator: exactly 0 for masks alone; rounding must not leave less than 0
    replaced = ((lost * unmasked - masked * kept) / (kept * unmasked)).clamp(min=0.0)
    return stay, replaced, masked / unmasked


def _lost_and_masked(process: CategoricalProcess, early: Tensor, late: Tensor) -> tuple[Tensor, ...]:
    """What is lost by `late`, and what of it is masked."""
    return process.keep.drop(late), process.keep.masked(late, process.share)


def _opening(process: CategoricalProcess, early: Tensor, late: Tensor) -> tuple[Tensor, ...]:
    """The share of the masks at `late` that are open at `early`: (a_early - a_late) / (1 - a_late)."""
    drop = process.keep.drop(late)
    return (torch.where(drop > 0, (drop - process.keep.drop(early)) / torch.where(drop > 0, drop, 1.0), 0.0),)


def _fit(level: Level, like: Tensor, dtype: torch.dtype) -> Level:
    return align(level.to(like.device, dtype), like) if isinstance(level, Tensor) else level
