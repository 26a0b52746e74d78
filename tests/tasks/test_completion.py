"""Completion of texts, rows, ids and pictures: laws, what stays as it was, and what is refused."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import undiffuse as ud
from tests.networks.helpers import randomise
from undiffuse.codecs.options import PCAOptions, VQOptions
from undiffuse.codecs.pca import fit_pca
from undiffuse.codecs.vq import VQCodec
from undiffuse.denoisers.categorical import CategoricalDenoiser, guide_logits
from undiffuse.denoisers.causal import CausalDenoiser
from undiffuse.denoisers.joint import JointDenoiser
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.errors import PlanError, UndiffuseError
from undiffuse.models import Model, load
from undiffuse.networks.build import build_network
from undiffuse.networks.options import TransformerOptions, UNetOptions
from undiffuse.papers.token_chains import conditional, small_joint, token_chain
from undiffuse.process.categorical import CategoricalKind, CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.keep import RootCosineKeep
from undiffuse.process.registry import make_schedule
from undiffuse.spec import DataSpec
from undiffuse.tasks.known_tokens import binary_mask, token_mask

LETTERS = DataSpec(kind="tokens", shape=(3,), vocabulary=("a", "b", "c"))
PICTURES = DataSpec(kind="image", shape=(1, 8, 8), range=(0.0, 255.0), classes=("x", "y"))
ROW = DataSpec(kind="tokens", shape=(2,), vocabulary=("red", "blue", "1", "2.5", "9"), columns={"colour": 2, "size": 3})
DRAWN = 20_000


def letters(kind: CategoricalKind = "absorbing") -> Model:
    return Model(JointDenoiser(small_joint(), CategoricalProcess(kind, 3), spec=LETTERS), LETTERS)


def network(spec: DataSpec, process: CategoricalProcess, unet: bool = True) -> CategoricalDenoiser:
    options = UNetOptions(channels=8, multipliers=(1, 2), blocks=1, heads=2)
    backbone = build_network(
        options if unet else TransformerOptions(width=16, depth=1, heads=2), spec, states=process.states
    )
    return CategoricalDenoiser(randomise(backbone), process, spec=spec, time_dependent=unet)


def pictures(kind: CategoricalKind = "uniform") -> Model:
    """4 x 4 tokens of 2 x 2 pixels each, networks of random weights."""
    codec = randomise(VQCodec(PICTURES, VQOptions(codes=6, channels=3, halvings=1, width=4)), scale=0.5)
    codec.eval().seal()
    return Model(network(codec.latent, CategoricalProcess(kind, 6, RootCosineKeep())), PICTURES, codec=codec)


def frequencies(ids: Tensor) -> Tensor:
    """Shares of pairs of letters, (3, 3)."""
    return torch.bincount(3 * ids[:, 0] + ids[:, 1], minlength=9).double().view(3, 3) / len(ids)


def shares(ids: Tensor) -> Tensor:
    """Shares of letters, (3,)."""
    return torch.bincount(ids, minlength=3).double() / len(ids)


def assert_close(found: Tensor, law: Tensor) -> None:
    """Within 5 standard errors: a false alarm in 2e5 runs of 9 cells."""
    assert bool(((found - law).abs() < 5 * (law * (1 - law) / DRAWN).sqrt()).all())


def test_gaps_of_a_text_are_drawn_from_the_conditional_of_a_masked_model():
    done = ud.inpaint(letters(), "_b_", samples=DRAWN, batch_size=DRAWN)
    assert (done.method, done.nfe) == ("clamp", 2) and "exact" in done.why
    assert done.samples.shape == (DRAWN, 1, 3) and bool((done.samples[..., 1] == 1).all())
    assert_close(frequencies(done.samples[:, 0, ::2]), conditional(small_joint(), {1: 1}))


def test_other_noise_goes_by_replacement_with_the_law_of_its_chain():
    model = letters("uniform")
    done = ud.inpaint(model, "_b_", samples=DRAWN, batch_size=DRAWN, steps=4, resample=3)
    assert (done.method, done.nfe) == ("replacement", 3 * 3 + 1) and "uniform" in done.why
    assert bool((done.samples[..., 1] == 1).all())
    assert_close(frequencies(done.samples[:, 0, ::2]), token_chain(model.denoiser, 3, 4, {1: 1}).law(3))


def test_a_completion_does_not_depend_on_how_many_there_are_or_on_batches():
    whole = ud.inpaint(letters("mask-replace"), "a__", samples=7, seed=5).samples
    assert torch.equal(ud.inpaint(letters("mask-replace"), "a__", samples=3, seed=5).samples, whole[:3])
    assert torch.equal(ud.inpaint(letters("mask-replace"), "a__", samples=7, seed=5, batch_size=2).samples, whole)
    assert not torch.equal(ud.inpaint(letters("mask-replace"), "a__", samples=7, seed=6).samples, whole)


def test_what_stands_behind_a_short_text_is_not_drawn_where_there_are_masks():
    """One call for one gap, of the marginal of the beginning; other noise draws the whole item and cuts it."""
    model = letters()
    short = ud.inpaint(model, "a_", samples=DRAWN, batch_size=DRAWN)
    assert short.nfe == 1 and short.tokens.shape == (DRAWN, 1, 2) and bool((short.samples[..., 0] == 0).all())
    assert_close(shares(short.samples[:, 0, 1]), conditional(small_joint(), {0: 0}).sum(1))
    replaced = ud.inpaint(letters("uniform"), ["a_", "_b"], samples=4, steps=2)
    assert replaced.samples.shape == (4, 2, 2) and replaced.tokens.shape == (4, 2, 3)
    assert bool((replaced.samples[:, 0, 0] == 0).all()) and bool((replaced.samples[:, 1, 1] == 1).all())


def test_short_texts_are_the_beginning_of_whole_ones_for_networks_too():
    """A network sees the short text with masks behind it, at the time that goes with so many; guidance as well."""
    process = CategoricalProcess("absorbing", 3)
    spec = replace(LETTERS, classes=("x", "y"))
    options = TransformerOptions(width=16, depth=1, heads=2, time_dependent=True)
    backbone = randomise(build_network(options, spec, states=4))
    denoiser = CategoricalDenoiser(backbone, process, spec=spec, time_dependent=True)
    model = Model(denoiser, spec)
    cond = {"label": "y"}
    drawn = ud.inpaint(model, "a_", samples=DRAWN, cond=cond, guidance=2.0, batch_size=DRAWN).samples[:, 0, 1]
    x, t = torch.tensor([[0, 3, 3]]), torch.tensor([2 / 3], dtype=torch.float64)
    answers = [denoiser(x, t, denoiser.embed(given, 1)).logits[0, 1] for given in ({"label": torch.tensor([1])}, None)]
    law = guide_logits(*answers, 2.0).double().softmax(-1)
    assert_close(shares(drawn), law)


def test_ids_and_texts_are_completed_alike():
    model = letters()
    ids, mask = torch.tensor([[0, 9, 9], [9, 1, 9]]), torch.tensor([[1, 0, 0], [0, 1, 0]])
    by_text = ud.inpaint(model, ["a__", "_b_"], samples=4)
    assert torch.equal(ud.inpaint(model, ids, mask, samples=4).samples, by_text.tokens)
    all_known = ud.inpaint(model, "abc", samples=2)
    assert model.text(all_known.samples[:, 0]) == ["abc", "abc"]


def test_completions_are_ordered_by_their_likelihood():
    """Of an exact masked denoiser the bound is log p itself, by the chain rule in every order."""
    model = letters()
    done = ud.inpaint(model, "a__", samples=6, rank=True)
    assert done.log_prob is not None and done.log_prob_error is not None
    exact = small_joint()[tuple(done.samples[:, 0].unbind(-1))].log()
    assert bool(((done.log_prob[:, 0] - exact).abs() <= 5 * done.log_prob_error[:, 0] + 1e-6).all())
    assert bool((done.log_prob[:, 0].diff() <= 0).all())
    plain = ud.inpaint(model, "a__", samples=6)
    assert sorted(done.samples[:, 0].tolist()) == sorted(plain.samples[:, 0].tolist())


def test_the_order_of_short_texts_is_that_of_what_is_shown():
    """The bound of the text alone, whose tail nobody sees: exactly log p of the marginal, for every completion."""
    done = ud.inpaint(letters(), "a_", samples=6, rank=True)
    assert done.log_prob is not None and done.log_prob_error is not None
    exact = small_joint().sum(2)[tuple(done.samples[:, 0].unbind(-1))].log()
    assert bool(((done.log_prob[:, 0] - exact).abs() <= 5 * done.log_prob_error[:, 0] + 1e-6).all())
    shown = set(map(tuple, done.samples[:, 0].tolist()))
    assert len(shown) == len({round(value, 9) for value in done.log_prob[:, 0].tolist()}) > 1  # tails would differ


def test_columns_of_a_row_are_given_by_name():
    process = CategoricalProcess("absorbing", 5, blocks=(2, 3))
    model = Model(network(ROW, process, unet=False), ROW)
    done = ud.inpaint(model, {"colour": "blue"}, samples=8)
    assert bool((done.samples[:, 0, 0] == 1).all()) and bool((done.samples[:, 0, 1] >= 2).all())
    assert bool((ud.inpaint(model, {"size": 2.4}, samples=2).samples[:, 0, 1] == 3).all())  # the bin of 2.5
    with pytest.raises(ValueError, match=r"column 'color' is unknown.*Did you mean 'colour'"):
        ud.inpaint(model, {"color": "red"})
    with pytest.raises(ValueError, match="column 'colour' has no value 'green'; its values are red, blue"):
        ud.inpaint(model, {"colour": "green"})
    with pytest.raises(ValueError, match="rows of a table"):
        ud.inpaint(model, "re_")


def half(side: int = 8) -> Tensor:
    """The upper half of a picture is known."""
    mask = torch.zeros(side, side)
    mask[: side // 2] = 1
    return mask


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_known_pixels_come_back_bit_for_bit_and_known_tokens_stay(kind):
    model = pictures(kind)
    x = 255 * torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    done = ud.inpaint(model, x, half(), samples=3, cond={"label": ["x", "y"]}, steps=3)
    assert done.samples.shape == (3, 2, 1, 8, 8) and done.known.sum(1).tolist() == [4, 4]  # of 8, less a margin of 4
    assert torch.equal(done.samples[..., :4, :], x[..., :4, :].expand(3, -1, -1, -1, -1))
    filled = x.clone()
    filled[..., 4:, :] = x[..., :4, :].mean((1, 2, 3), keepdim=True)
    encoded = model.encode(filled)
    assert bool((done.tokens == encoded)[:, done.known].all())
    loose = ud.inpaint(model, x, half(), cond={"label": ["x", "y"]}, steps=3, paste=False, dilate=0)
    assert loose.known.sum(1).tolist() == [8, 8]
    torch.testing.assert_close(loose.samples[0], model.decode(loose.tokens[0]))
    assert not torch.equal(loose.samples[0, ..., :4, :], x[..., :4, :])
    labelled = ud.inpaint(model, x[:1], half(), samples=3, cond={"label": "x"}, steps=3)
    assert torch.equal(labelled.tokens[:, 0], done.tokens[:, 0])


def test_a_token_is_known_where_all_its_pixels_are_and_a_margin_around():
    known = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    known[0, 0, 2, 5] = False  # in token (1, 2) of 4 x 4
    expected = torch.ones(4, 4, dtype=torch.bool)
    expected[1, 2] = False
    assert torch.equal(token_mask(known, (4, 4)).view(4, 4), expected)
    expected[0:3, 1:4] = False
    assert torch.equal(token_mask(known, (4, 4), 1).view(4, 4), expected)
    brute = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) > 0.2
    for item, row, column in np.ndindex(3, 4, 4):
        patch = brute[item, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert bool(token_mask(brute, (4, 4)).view(3, 4, 4)[item, row, column]) is bool(patch.all())


def test_masks_of_other_values_are_cut_with_a_warning():
    with pytest.warns(UserWarning, match=r"1 of 3 values .* from 0\.5 on"):
        assert binary_mask(torch.tensor([0.0, 0.6, 1.0])).tolist() == [False, True, True]
    with pytest.warns(UserWarning, match=r"from 127\.5 on"):
        assert binary_mask(torch.tensor([0, 100, 255])).tolist() == [False, False, True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert binary_mask(torch.tensor([0, 255])).tolist() == [False, True]
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="below 0 or that are no numbers"):
            binary_mask(torch.tensor([bad, 1.0]))
    with pytest.warns(UserWarning):
        result = ud.inpaint(pictures(), torch.zeros(1, 8, 8), 0.2 + 0.7 * half(), steps=2)
    assert "64 of 64 values" in result.warnings[0]


def continuous(codec: bool = False) -> Model:
    spec = DataSpec(kind="image", shape=(1, 8, 8), range=(0.0, 255.0))
    made = fit_pca(PCAOptions(), spec, torch.randn(64, 1, 8, 8)) if codec else None
    inner = spec if made is None else made.latent
    options = UNetOptions(channels=8, multipliers=(1,), blocks=1, heads=2)
    return Model(
        NetworkDenoiser(build_network(options, inner), GaussianProcess(make_schedule("vp")), "v"), spec, codec=made
    )


IMAGE = torch.zeros(1, 8, 8)


@pytest.mark.parametrize(
    ("model", "given", "options", "message"),
    [
        (continuous, (IMAGE, half()), {}, "undiffuse restore MODEL IMAGE --mask M.png"),
        (lambda: continuous(codec=True), (IMAGE, half()), {}, "through a codec without a codebook"),
        (
            pictures,
            (IMAGE, half(6)),
            {},
            r"the mask has shape \(6, 6\); expected the picture's height and width, 8 x 8",
        ),
        (pictures, (torch.zeros(1, 9, 8), half()), {}, r"this model completes pictures of \(1, 8, 8\)"),
        (pictures, (IMAGE, torch.zeros(8, 8)), {}, "no pixel is known; to make pictures from nothing use sample"),
        (pictures, (IMAGE, half()), {"dilate": 4}, "no token is known: a token stands for 2 x 2 pixels"),
        (pictures, (IMAGE, half()), {"dilate": -1}, "dilate=-1 must be 0 or more"),
        (pictures, (IMAGE,), {}, "the mask is missing"),
        (
            pictures,
            (IMAGE, half()),
            {"method": "clamp"},
            "exact for absorbing processes alone, and this model's is uniform",
        ),
        (pictures, (IMAGE, half()), {"resample": 0}, "resample=0 must be at least 1"),
        (pictures, (IMAGE, half()), {"solver": "first-hitting"}, "cannot take steps again"),
        (pictures, (IMAGE, half()), {"method": "repaint"}, "choose one of auto, clamp, replacement"),
        (pictures, ("a_b",), {}, "the model makes image data"),
        (letters, ("a__",), {"resample": 8}, "resample=8 belongs to method=replacement"),
        (letters, ("___",), {}, "nothing is known"),
        (letters, ("a__b",), {}, "the text is 4 tokens long"),
        (letters, ("ax_",), {}, "outside of the model's vocabulary"),
        (letters, ("a_.",), {"placeholder": ".."}, "must be one character"),
        (letters, (["a_", "a__"],), {}, "different lengths"),
        (letters, ("a__", torch.ones(3)), {}, "leave the mask out"),
        (letters, ("a__",), {"dilate": 1}, "dilate=1 is for pictures"),
        (letters, ("a__",), {"samples": 0}, "samples=0"),
        (letters, ("a__",), {"start": 1}, "start is what inpaint sets itself"),
        (letters, (torch.tensor([0, 1]), torch.ones(2)), {}, r"expected int64 \(B, 3\)"),
        (letters, (torch.tensor([0, 1, 2]), torch.ones(2)), {}, r"the mask has shape \(2,\)"),
        (letters, (torch.tensor([0, 1, 7]), torch.ones(3)), {}, "ids outside 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(model, given, options, message):
    with pytest.raises((ValueError, UndiffuseError), match=message):
        ud.inpaint(model(), *given, **options)


def test_a_causal_network_does_not_fill_gaps():
    process = CategoricalProcess("absorbing", 3)
    options = TransformerOptions(width=16, depth=1, heads=2, causal=True)
    model = Model(CausalDenoiser(build_network(options, LETTERS, states=4), process, spec=LETTERS), LETTERS)
    with pytest.raises(PlanError, match="does not fill gaps"):
        ud.inpaint(model, "_b_")


def test_it_works_on_a_model_from_disk(tmp_path):
    model = pictures("absorbing")
    again = load(model.save(tmp_path))
    x = 255 * torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ud.inpaint(again, x, half(), seed=3).samples, ud.inpaint(model, x, half(), seed=3).samples)
