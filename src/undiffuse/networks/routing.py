"""Token routing: in training a random share of the tokens skips the middle blocks, which makes a step cheaper.

Skipped tokens wait, as they were before the first of these blocks, and take their places again behind the last. So all
tokens reach the output, the loss is unchanged, and evaluation runs every token through every block.

Source: Krause et al. 2025, "TREAD: Token Routing for Efficient Architecture-agnostic Diffusion Training",
    section 3, arXiv:2501.04765.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from undiffuse.networks.attention import Rotary
from undiffuse.networks.dropout import Drawing


@dataclass(frozen=True)
class Route:
    """Which tokens of each row stay: `kept` holds their places in rising order, int64 (B, K)."""

    kept: Tensor

    def narrow(self, tokens: Tensor) -> Tensor:
        """Take the tokens that stay: (B, L, D) -> (B, K, D)."""
        return tokens.gather(1, self._places(tokens))

    def widen(self, tokens: Tensor, before: Tensor) -> Tensor:
        """Put tokens (B, K, D) back into their places among those from before, (B, L, D)."""
        return before.scatter(1, self._places(before), tokens.to(before.dtype))

    def narrow_rotary(self, rotary: Rotary) -> Rotary:
        """Take the turns of the tokens that stay, (B, 1, K, head_dim / 2) each."""
        return Rotary(rotary.cos[self.kept][:, None], rotary.sin[self.kept][:, None])

    def _places(self, tokens: Tensor) -> Tensor:
        return self.kept[..., None].expand(-1, -1, tokens.shape[-1])


class TokenRouting(Drawing):
    """Chooses the tokens that skip blocks; `rate` is their share. Every row chooses for itself."""

    def forward(self, rows: int, tokens: int, repeats: int, device: torch.device) -> Route | None:
        """Return a route for `rows` of `tokens`, each repeated `repeats` times in a row (frames of a clip share one).

        None where nothing is routed: in evaluation, or where the share is less than one token. At least one stays.

        Raises:
            RuntimeError: Training, and nobody has set a generator.
        """
        kept = max(1, tokens - round(self.rate * tokens))
        if not self.draws or kept == tokens:
            return None
        order = torch.rand(rows, tokens, generator=self.require_generator(device), device=device)
        places = order.topk(kept, dim=1).indices.sort(dim=1).values
        return Route(places.repeat_interleave(repeats, dim=0))
