"""`swap`: put the object of one picture in the place of another's, part by part, and let the model mend the seams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from undiffuse.events import Listener, silent
from undiffuse.models.model import Model
from undiffuse.noise import KeyedNoise
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid
from undiffuse.sampling.constraints import Replacement
from undiffuse.tasks.match.frame import Frame, read_mask, scale
from undiffuse.tasks.match.matcher import Matcher
from undiffuse.tasks.match.options import MatchOptions
from undiffuse.tasks.match.results import DenseMatch
from undiffuse.tasks.match.run import make_matcher, match_dense
from undiffuse.tasks.match.sources import read_size

_START = 0.5  # the paper's range of SDEdit is 0.4 to 0.6
_STEPS = 50  # of a whole walk


@dataclass(frozen=True, kw_only=True)
class Swap:
    """A picture whose object was replaced. Pictures are float32 (C, H, W) in [-1, 1], of the source's size.

    Args:
        picture: The result.
        pasted: The same before it was refined.
        dense: Where every pixel of the source's object lies in the target.
        start: Time from which the model refined it; 0: not at all.
        nfe: Network evaluations of that.
        settings: How pixels were matched.
    """

    picture: Tensor
    pasted: Tensor
    dense: DenseMatch
    start: float
    nfe: int
    settings: dict[str, Any] = field(default_factory=dict)


def swap(
    model: Model | None,
    src: Any,
    dst: Any,
    src_mask: Any,
    dst_mask: Any,
    *,
    start: float | None = None,
    steps: int = _STEPS,
    solver: str | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float | None = None,
    matcher: Matcher | None = None,
    listener: Listener = silent,
    **options: Any,
) -> Swap:
    """Fill the object of one picture with the corresponding pixels of another's.

    Every pixel in `src_mask` takes the colour at its place by `match_dense`, from cells of the one mask to cells of the
    other. Then
    the composite is noised to the time `start` and denoised again; what lies outside the mask is held at the noise
    level of the rest (`Replacement`) and is the source's in the end, bit for bit.

    Args:
        model: A model of images, for the features and for refining; None: features without one, and no refining.
        src: Source; see `match`.
        dst: Target.
        src_mask: The object in the source: a file (white), or bool (H, W).
        dst_mask: The object in the target.
        start: Time in [0, 1) from which to refine; 0 pastes plainly; None: 0.5 with a model, else 0.
        steps: Steps of a whole walk, of which the share `start` is taken.
        solver: Rule that steps; None: the model's own.
        cond: Condition for refining and for diffusion features, e.g. {"prompt": "a photo of a cat"}.
        guidance: Scale of classifier-free guidance.
        matcher: Brings the features, in place of options.
        listener: Hears about progress.
        options: Those of `match`, for the features.

    Raises:
        ValueError: As for `match`; a start out of range, or refining by a model of tokens or without one.

    Source: Zhang et al. 2023, arXiv:2305.15347, section 5; Meng et al. 2022, "SDEdit", arXiv:2108.01073.
    """
    start = (0.0 if model is None else _START) if start is None else float(start)
    _check(model, start, steps)
    if matcher is None and cond and "diffusion" in MatchOptions(**options).sources:
        options |= {"cond": cond}
    matcher = make_matcher(matcher or model, options)
    a, b = matcher.describe(src, "the source"), matcher.describe(dst, "the target")
    inside = read_mask(src_mask, a.picture.size, "the source's mask")
    dense = match_dense(matcher, a, b, src_mask=inside, dst_mask=dst_mask, listener=listener)
    channels = max(a.picture.pixels.shape[0], b.picture.pixels.shape[0])
    own, other = a.picture.channels(channels), b.picture.channels(channels)
    pasted = torch.where(inside, _sampled(other, dense.positions), own)
    found, nfe = pasted, 0
    if start > 0:
        assert model is not None
        walk = {"steps": steps, "solver": solver, "cond": dict(cond) if cond else None, "guidance": guidance}
        refined, nfe = _refined(matcher, model, pasted, inside, a.frame, start, walk | {"listener": listener})
        shown = refined if channels == refined.shape[0] else refined.expand(channels, -1, -1)
        found = torch.where(inside, shown, own)
    return Swap(picture=found, pasted=pasted, dense=dense, start=start, nfe=nfe, settings=dense.settings)


def _check(model: Model | None, start: float, steps: int) -> None:
    if not 0 <= start < 1 or steps < 1:
        raise ValueError(f"start={start:g}, steps={steps}; expected within [0, 1) and at least 1.")
    if start > 0 and model is None:
        raise ValueError(f"start={start:g} refines by a model; give one, or start=0 for a plain paste.")
    if start > 0 and model is not None and not isinstance(model.process, GaussianProcess):
        raise ValueError("refining noises pixels or latents and this model works on tokens; use start=0.")


def _sampled(pixels: Tensor, positions: Tensor) -> Tensor:
    """Return the colours (C, H, W) of pixels (C, h, w) at positions (H, W, 2), bilinear between their centres."""
    height, width = pixels.shape[1:]
    places = (positions + 0.5) * torch.tensor([2.0 / width, 2.0 / height], dtype=positions.dtype) - 1
    found = F.grid_sample(
        pixels[None].to(positions.dtype), places[None], mode="bilinear", padding_mode="border", align_corners=False
    )
    return found[0].float()


@torch.no_grad()
def _refined(
    matcher: Matcher,
    model: Model,
    pasted: Tensor,
    inside: Tensor,
    frame: Frame,
    start: float,
    walk: dict[str, Any],
) -> tuple[Tensor, int]:
    """Return the composite (C, H, W), noised to `start` and denoised at the size that the model sees."""
    size, process = read_size(model, matcher.options.size), model.process
    assert isinstance(process, GaussianProcess)
    shown = pasted if pasted.shape[0] == model.spec.channels else pasted.mean(0, keepdim=True)
    shown = shown.expand(model.spec.channels, -1, -1)
    pixels = frame.canvas(shown, size)[None].to(model.device)
    x0 = pixels if model.codec is None else model.codec.encode(pixels)
    held = frame.canvas(2.0 * inside[None] - 1, size)[None].to(x0.device)
    free = F.adaptive_max_pool2d(held, tuple(x0.shape[2:])) > -1 + 1e-6  # every state that the object touches
    noise = KeyedNoise(matcher.options.seed, [0], x0.device)
    noised = process.corrupt(x0, start, noise.normal("init", 0, tuple(x0.shape[1:]), x0.dtype))
    count = max(1, round(walk.pop("steps") * start))
    own_size = tuple(size) == tuple(model.spec.shape[1:])
    result = model.sample_result(
        1,
        seed=matcher.options.seed,
        grid=make_grid(process.schedule, count, "t", start=start),
        constraints=[Replacement(process, x0, ~free)],
        start=noised,
        size=None if own_size else size,
        **walk,
    )
    found = result.x if model.codec is None else model.codec.decode(result.x)
    return scale(frame.crop(found[0].float().cpu().clamp(-1, 1)), inside.shape), result.nfe
