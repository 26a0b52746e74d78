"""What is sent to other processes comes out as it went in; several processes themselves are tested end to end."""

from __future__ import annotations

import json

import torch

from undiffuse.models.conditions import Fitted
from undiffuse.models.parallel import _plain, _received


def test_fitted_conditions_stay_fitted() -> None:
    """Standardised numbers must not be standardised again on the other side."""
    cond = Fitted(label=torch.tensor([1, 0]), age=torch.tensor([[0.1], [-2.5]]))
    request = json.loads(json.dumps({"n": 2, "cond": _plain("cond", cond)}))
    received = _received(request)["cond"]
    assert isinstance(received, Fitted)
    assert all(torch.equal(received[name], part) and received[name].dtype == part.dtype for name, part in cond.items())


def test_plain_conditions_stay_plain() -> None:
    request = {"n": 2, "cond": {"label": "cat", "age": [[3.0], [4.0]]}}
    assert _received(request) == request
