"""Which noise goes with which item: minibatch optimal transport.

Noise and data of a batch are paired anew so that the sum of |x_0 - eps|^2 is smallest, by exact assignment. Both
marginals stay what they are, and the paths between the pairs are straighter, so that few steps follow them. But eps is
then not independent of x_0: the mean gives the velocity, not the score.

Noise that is assigned over all classes would depend on the class, and sampling draws it without; so where items have
labels, noise is assigned among the items of each label.

Source: Tong et al. 2024, "Improving and generalizing flow-based generative models with minibatch optimal transport",
arXiv:2302.00482; Pooladian et al. 2023, "Multisample flow matching", arXiv:2304.14772.
"""

from __future__ import annotations

import torch
from torch import Tensor


def optimal_pairs(x0: Tensor, eps: Tensor, batch_size: int, labels: Tensor | None = None) -> Tensor:
    """Return the row of `eps` that goes with each row of `x0`, int64 (N,): a permutation of each batch.

    Args:
        x0: Data (N, *), a whole number of batches.
        eps: Noise of the same shape.
        batch_size: Rows that are paired among each other.
        labels: Classes (N,); rows are paired within a class. None: all of a batch.

    Source: Crouse 2016, "On implementing 2D rectangular assignment algorithms", as in scipy.
    """
    data, noise = (part.detach().flatten(1).double().cpu() for part in (x0, eps))
    classes = torch.zeros(len(x0), dtype=torch.int64) if labels is None else labels.cpu()
    chosen = torch.arange(len(x0))
    for batch in chosen.clone().split(batch_size):
        for label in classes[batch].unique():
            rows = batch[classes[batch] == label]
            chosen[rows] = rows[_assign(data[rows], noise[rows])]
    return chosen.to(x0.device)


def _assign(data: Tensor, noise: Tensor) -> Tensor:
    """Return the assignment with the least sum of squared distances, int64 (n,)."""
    from scipy.optimize import linear_sum_assignment

    cost = -2 * data @ noise.T  # |x_0|^2 and |eps|^2 add up to the same for every assignment
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
