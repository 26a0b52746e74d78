"""What must hold for every linear operator: adjoint, singular values, pseudo-inverse, prox and norm."""

from __future__ import annotations

import math

import pytest
import torch

from tests.operators.cases import ROWS, every_operator, items, normals
from undiffuse import operators as ops
from undiffuse.operators.base import LinearOperator, SVDOperator
from undiffuse.operators.catalogue import OPERATORS

LINEAR = {name: op for name, op in every_operator().items() if isinstance(op, LinearOperator)}
SVD = {name: op for name, op in LINEAR.items() if isinstance(op, SVDOperator)}
SOLVE = {"iterations": 300, "tol": 1e-13}


def close(a: torch.Tensor, b: torch.Tensor, tol: float, name: str) -> None:
    torch.testing.assert_close(a, b, atol=tol, rtol=tol, msg=lambda text: f"{name}: {text}")


def dense(op: LinearOperator) -> torch.Tensor:
    """Return the matrices of an operator, (rows, m, n): one for each row of the batch where they differ."""
    count = math.prod(op.in_shape)
    units = torch.eye(count, dtype=torch.float64).view(count, *op.in_shape)
    if op.rows is None:
        return op(units).flatten(1).mT[None]
    return torch.stack([op(unit.expand(op.rows, *op.in_shape)).flatten(1) for unit in units], -1)


def test_every_name_of_the_catalogue_is_among_the_cases():
    named = {name.split(",")[0] for name in every_operator()}
    missing = [name for name in OPERATORS if not any(case == name or case.startswith(name + ":") for case in named)]
    assert missing == []


def test_adjoints_are_adjoint():
    for name, op in LINEAR.items():
        x, y = items(op), normals(ROWS, *op.out_shape, seed=1)
        one, other = (op(x) * y).sum(), (x * op.adjoint(y)).sum()
        assert abs(float(one - other)) <= 1e-10 * float(y.norm() * op(x).norm() + 1), name
        close(op.gram(x), op.adjoint(op(x)), 1e-12, name)


def test_adjoints_and_operators_can_be_differentiated():
    for name, op in LINEAR.items():
        x = items(op).requires_grad_()
        y = normals(ROWS, *op.out_shape, seed=1).requires_grad_()
        (slope,) = torch.autograd.grad((op(x) * y.detach()).sum(), x)
        close(slope, op.adjoint(y.detach()), 1e-10, name)
        (slope,) = torch.autograd.grad((op.adjoint(y) * x.detach()).sum(), y)
        close(slope, op(x.detach()), 1e-10, name)


def test_singular_values_and_vectors():
    for name, op in SVD.items():
        x, y = items(op), normals(ROWS, *op.out_shape, seed=1)
        s, z = op.singulars(x), op.Vt(x)
        assert z[0].numel() == math.prod(op.in_shape), name  # a coefficient for each number, zeros included
        assert bool((s >= 0).all()) and torch.broadcast_shapes(s.shape, z.shape) == z.shape, name
        close(op.V(z), x, 1e-12, name)  # V is orthogonal ...
        close(z.square().sum(), x.square().sum(), 1e-12, name)  # ... both ways, for V^T V = 1 follows for square V
        close(op.U(s * z), op(x), 1e-12, name)
        close(op.V(s * op.Ut(y)), op.adjoint(y), 1e-12, name)
        kept = (s > 0).expand_as(z)
        close(op.Ut(op.U(z)), torch.where(kept, z, 0.0), 1e-12, name)  # U is orthonormal where s > 0, else ignored
        assert bool((op.Ut(y).masked_select(~kept) == 0).all()), name


def test_sums_of_squared_singular_values_are_squared_norms():
    for name, op in SVD.items():
        matrix = dense(op)
        s = op.singulars().expand(op.rows or 1, *op.Vt(items(op))[0].shape)
        close(s.square().sum(), matrix.square().sum(), 1e-12, name)


def test_pseudo_inverses_satisfy_penrose():
    solved = {"pansharpen:2", "mri:radial,coils=3,spokes=4", "blur:gaussian,1,5 | downsample:2"}  # well-conditioned
    for name, op in (SVD | {name: LINEAR[name] for name in solved}).items():
        if isinstance(op, SVDOperator):
            op.cutoff = 0.0
        x, y = items(op), normals(ROWS, *op.out_shape, seed=1)
        inverse = (lambda y, op=op: op.pinv(y, **SOLVE)) if op.rows is None or isinstance(op, SVDOperator) else op.pinv
        onto, other = inverse(y), inverse(op(x))
        close(op(other), op(x), 1e-7, f"{name}: A A+ A = A")
        close(inverse(op(onto)), onto, 1e-6, f"{name}: A+ A A+ = A+")
        second = normals(ROWS, *op.out_shape, seed=2)
        close((op(onto) * second).sum(), (y * op(inverse(second))).sum(), 1e-7, f"{name}: A A+ is symmetric")
        third = items(op, seed=3)
        close((other * third).sum(), (x * inverse(op(third))).sum(), 1e-7, f"{name}: A+ A is symmetric")


def test_cut_off_pseudo_inverses_leave_out_small_singular_values():
    blur = ops.gaussian_blur((1, 16, 16), sigma=2.0, size=13)
    assert blur.cutoff == 3e-2
    y = normals(1, 1, 16, 16)
    z = blur.Vt(blur.pinv(y))
    small = blur.singulars() <= 3e-2 * blur.singulars().max()
    assert bool(small.any()) and float(z[small.expand_as(z)].abs().max()) < 1e-12
    back = blur.pinv(blur(blur.pinv(y)))
    close(back, blur.pinv(y), 1e-10, "A+ A A+ = A+ of the truncated operator")


def test_average_downsampling_is_inverted_by_repeating():
    op = ops.Downsample((2, 6, 9), 3)
    y = normals(1, 2, 2, 3)
    close(op.pinv(y), y.repeat_interleave(3, -1).repeat_interleave(3, -2), 1e-13, "replicate")
    close(op.pinv(y), 9 * op.adjoint(y), 1e-13, "r^2 A^T")
    close(op(op.adjoint(y)), y / 9, 1e-14, "A A^T = I / r^2")


@pytest.mark.parametrize("rho", [0.3, torch.tensor([0.1, 1.0, 7.0], dtype=torch.float64)])
def test_prox_solves_its_normal_equations(rho: float | torch.Tensor):
    weight = rho.view(-1, 1) if isinstance(rho, torch.Tensor) else rho
    for name, op in LINEAR.items():
        x, y = items(op), normals(ROWS, *op.out_shape, seed=1)
        found = op.prox(x, y, rho, **SOLVE)
        if isinstance(rho, torch.Tensor) and op.is_svd:
            close(op.prox(x, y, rho.view(-1, *[1] * len(op.in_shape))), found, 1e-12, name)
        left = op.gram(found).flatten(1) + weight * found.flatten(1)
        close(left, op.adjoint(y).flatten(1) + weight * x.flatten(1), 1e-8, name)


def test_prox_goes_from_the_point_to_the_solution():
    op = ops.kernel_blur((1, 6, 5), kernel=torch.tensor([[0.1, 0.7, 0.2]]))
    x, y = normals(1, 1, 6, 5), normals(1, 1, 6, 5, seed=1)
    close(op.prox(x, y, 1e9), x, 1e-8, "rho -> infinity")
    close(op(op.prox(x, y, 1e-12)), y, 1e-8, "rho -> 0")


def test_a_prox_with_a_weight_per_number_solves_its_equations():
    op = ops.gaussian_blur((1, 6, 5), sigma=1.0, size=3)
    x, y = normals(2, 1, 6, 5), normals(2, 1, 6, 5, seed=1)
    rho = 0.5 + normals(1, 1, 6, 5, seed=2).abs()
    found = op.prox(x, y, rho, **SOLVE)
    close(op.gram(found) + rho * found, op.adjoint(y) + rho * x, 1e-9, "map of weights")


def test_norms_are_largest_singular_values():
    for name, op in LINEAR.items():
        assert op.norm() == pytest.approx(float(torch.linalg.matrix_norm(dense(op), ord=2).max()), rel=1e-5), name


def test_bicubic_reduction_is_torchs_in_the_interior():
    op = ops.Downsample((1, 64, 48), 4, "bicubic")
    x = normals(1, 1, 64, 48)
    theirs = torch.nn.functional.interpolate(x, scale_factor=1 / 4, mode="bicubic", antialias=True, align_corners=False)
    close(op(x)[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], 1e-12, "interior")
    one_way = ops.Downsample((1, 64, 1), 1).singulars()  # a column of one pixel is kept as it is
    assert float(one_way.max()) == 1.0
    s = torch.linalg.svdvals(op._tensors["rows_matrix"])
    assert float(s.min()) > 0.35 and float(s.max()) <= 0.5 + 1e-12


@pytest.mark.parametrize(
    ("boundary", "mode"),
    [("reflect", "reflect"), ("replicate", "replicate"), ("circular", "circular"), ("zero", "constant")],
)
def test_blurs_are_padded_convolutions(boundary: str, mode: str):
    x, kernel = normals(2, 3, 9, 8), normals(3, 5, seed=1)
    padded = torch.nn.functional.pad(x, (2, 2, 1, 1), mode=mode).view(6, 1, 11, 12)
    expected = torch.nn.functional.conv2d(padded, kernel.flip(0, 1)[None, None]).view_as(x)
    close(ops.kernel_blur((3, 9, 8), kernel=kernel, boundary=boundary)(x), expected, 1e-12, boundary)
    line = ops.gaussian_blur((3, 9, 8), sigma=1.0, size=5, boundary=boundary)
    product = ops.kernel_blur(
        (3, 9, 8), kernel=ops.gaussian_blur((1, 9, 9), sigma=1.0, size=5).kernel, boundary=boundary
    )
    close(line(x), product(x), 1e-12, boundary)


@pytest.mark.parametrize("size", [(3, 5), (4, 2)])
def test_a_blur_is_linear_in_its_kernel_too(size: tuple[int, int]):
    x, kernels = normals(2, 3, 6, 5), normals(2, 1, *size, seed=1)
    blur = ops.kernel_blur((3, 6, 5), kernel=normals(*size))
    by_kernel = blur.of(x)
    close(by_kernel(kernels), blur.with_kernel(kernels[:, 0])(x), 1e-12, "k * x")
    y = normals(2, 3, 6, 5, seed=2)
    left, right = (by_kernel(kernels) * y).sum(), (kernels * by_kernel.adjoint(y)).sum()
    close(left, right, 1e-12, "adjoint")


def test_unknown_kernels_get_gradients_and_stay_kernels():
    kernel = (normals(3, 3).abs() / normals(3, 3).abs().sum()).requires_grad_()
    x = normals(1, 1, 6, 5)
    blur = ops.Blur((1, 6, 5), torch.ones(1, 1)).with_kernel(kernel)
    blur(x).square().sum().backward()
    shift = torch.zeros(3, 3, dtype=torch.float64)
    shift[1, 2] = 1e-6
    moved = (blur.with_kernel(kernel.detach() + shift)(x).square().sum() - blur(x).square().sum()) / 1e-6
    assert float(kernel.grad[1, 2]) == pytest.approx(float(moved.detach()), rel=1e-3)
    point = ops.project_simplex(kernel.detach() - 0.4)
    assert float(point.min()) >= 0 and float(point.sum()) == pytest.approx(1.0, abs=1e-12)
    close(ops.project_simplex(point), point, 1e-15, "idempotent")
    nearer = (point - (kernel.detach() - 0.4)).norm()
    others = torch.distributions.Dirichlet(torch.ones(9).double()).sample((500,)).view(-1, 3, 3)
    assert bool(((others - (kernel.detach() - 0.4)).flatten(1).norm(dim=1) >= nearer).all())
