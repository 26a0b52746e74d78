"""Texts of other lengths than the training's, through `Model.sample`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.posterior import CategoricalPosterior
from undiffuse.models.model import Model
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.sampling.first_hitting import FirstHitting
from undiffuse.spec import DataSpec

LETTERS = tuple("abcdefgh _")
TEXTS = DataSpec(kind="tokens", shape=(6,), vocabulary=LETTERS)


class Alphabet(Denoiser):
    """The law of texts that count through the alphabet from a random letter: any known token decides all others."""

    def __init__(self, kind: str = "absorbing") -> None:
        super().__init__()
        self.process = CategoricalProcess(kind, len(LETTERS))  # type: ignore[arg-type]
        self.time_dependent = False
        self.windows: list[Tensor] = []

    def posterior(self, x: Tensor, t: object, cond: object) -> CategoricalPosterior:
        self.windows.append(x)
        count, known = len(LETTERS), x < len(LETTERS)
        first = (x - torch.arange(x.shape[1])) % count
        where = known.float().argmax(1)
        start = first.gather(1, where[:, None])
        told = torch.nn.functional.one_hot((start + torch.arange(x.shape[1])) % count, count).double().log()
        return CategoricalPosterior(torch.where(known.any(1)[:, None, None], told, 0.0))


def counts_up(x: Tensor) -> bool:
    return bool(((x[:, 1:] - x[:, :-1]) % len(LETTERS) == 1).all())


@pytest.mark.parametrize("length, stride", [(20, None), (21, 2), (7, 6), (40, 4)])
def test_long_texts_go_on_where_each_window_ended(length, stride):
    denoiser = Alphabet()
    model = Model(denoiser, TEXTS)
    result = model.sample_result(5, length=length, stride=stride)
    assert result.x.shape == (5, length) and counts_up(result.x)
    fresh = [int((x == len(LETTERS)).sum(1).max()) for x in denoiser.windows]
    assert max(fresh[6:]) <= (stride or 3) and result.nfe == length == len(fresh)
    alone = model.sample(1, length=length, stride=stride, first=3)
    assert torch.equal(alone[0], result.x[3])


def test_windows_have_noise_of_their_own():
    """Independent tokens: windows drawn with the same noise would repeat each other."""

    class Free(Alphabet):
        def posterior(self, x: Tensor, t: object, cond: object) -> CategoricalPosterior:
            return CategoricalPosterior(self.process.subs(torch.zeros(*x.shape, len(LETTERS)), x))

    x = Model(Free(), TEXTS).sample(400, length=18, stride=6, batch_size=400)
    same = (x[:, :6] == x[:, 6:12]).double().mean()
    assert abs(float(same) - 0.1) < 4 * (0.09 / 2400) ** 0.5  # four standard errors of a share of 0.1


def test_short_texts_prefixes():
    model = Model(Alphabet(), TEXTS)
    assert model.sample(2, length=3).shape == (2, 3)
    assert model.text(model.sample(2, prefix="cd")) == ["cdefgh"] * 2
    assert model.text(model.sample(1, prefix="ab", length=9)) == ["abcdefgh "]


def test_the_error_of_a_bound_does_not_depend_on_how_rows_are_batched():
    tokens = (torch.arange(5)[:, None] + torch.arange(6)) % len(LETTERS)
    model = Model(Alphabet(), TEXTS)
    whole, parts = (tuple(model.elbo(tokens, draws=1, batch_size=size)) for size in (5, 4))  # the last has one row
    assert parts == pytest.approx(whole) and parts[1] > 0


def test_what_makes_no_text_is_refused():
    model = Model(Alphabet(), TEXTS)
    for asked, message in (
        ({"length": 0}, "at least 1"),
        ({"length": 20, "stride": 7}, "outside 1 to 6"),
        ({"stride": 2}, "more than 6 tokens"),
        ({"prefix": "abcdefg"}, "at most 6"),
        ({"length": 20, "trajectory": True}, "trajectory"),
        ({"prefix": "ab", "start": torch.full((1, 6), 10)}, "prefix and start"),
        ({"steps": 3, "solver": FirstHitting()}, "built with steps=None"),
        ({"steps": 3, "solver_options": {"steps": 2}}, "built with steps=2"),
    ):
        with pytest.raises(ValueError, match=message):
            model.sample_result(1, **asked)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="masked model"):
        Model(Alphabet("uniform"), TEXTS).sample(1, length=20, solver="ancestral")
    on_grid = DataSpec(kind="tokens", shape=(6,), vocabulary=LETTERS, grid=(2, 3))
    with pytest.raises(ValueError, match="tokens on a grid"):
        Model(Alphabet(), on_grid).sample(1, length=20)
