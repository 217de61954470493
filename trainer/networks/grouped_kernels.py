"""Group batch-norm by Triton's kernels: three launches forward and three backward, whatever the groups.

Maps are read as rows of features (channels_last), group by group. A group's rows are shared out among
programs, whose means and squared deviations are merged in a fixed order (Chan, Golub, LeVeque 1979): no
atomics, so equal inputs give equal bits. All sums are of float32, or of float64 for such maps.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

ROWS, FEATURES = 64, 64  # of a tile
SHARES = 64  # at most so many programs share the rows of a group
COUNTS = ("rows", "per", "groups", "shares")  # else each number that is 1 or a multiple of 16 compiles anew


@triton.jit(do_not_specialize=COUNTS)
def _moments(x, means, squares, rows, per, features, shares, ROWS: tl.constexpr, FEATURES: tl.constexpr):
    """Mean and sum of squared deviations of one share of a group's rows: [groups, shares, features]."""
    group, share, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = block * FEATURES + tl.arange(0, FEATURES)
    first, last = share * per, tl.minimum(share * per + per, rows)
    mean = tl.zeros([FEATURES], dtype=means.dtype.element_ty)
    square = tl.zeros([FEATURES], dtype=means.dtype.element_ty)
    start = first
    while start < last:
        row = start + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & (column < features)[None, :]
        at = (group.to(tl.int64) * rows + row)[:, None] * features + column[None, :]
        tile = tl.load(x + at, mask=inside, other=0.0).to(mean.dtype)
        count = tl.minimum(last - start, ROWS).to(mean.dtype)
        of_tile = tl.sum(tile, axis=0) / count
        apart = tl.where(inside, tile - of_tile[None, :], 0.0)
        seen = (start - first).to(mean.dtype)
        delta = of_tile - mean
        mean += delta * (count / (seen + count))
        square += tl.sum(apart * apart, axis=0) + delta * delta * (seen * count / (seen + count))
        start += ROWS
    at = (group * shares + share) * features + column
    tl.store(means + at, mean, mask=column < features)
    tl.store(squares + at, square, mask=column < features)


@triton.jit(do_not_specialize=COUNTS)
def _merge(
    means,
    squares,
    mean_of,
    inverse_of,
    total,
    rows,
    per,
    features,
    groups,
    shares,
    eps,
    FEATURES: tl.constexpr,
):
    """Merges the shares of each group; sums the groups' means and unbiased variances: [2, features]."""
    column = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    inside = column < features
    all_means = tl.zeros([FEATURES], dtype=means.dtype.element_ty)
    all_variances = tl.zeros([FEATURES], dtype=means.dtype.element_ty)
    for group in range(groups):
        mean = tl.zeros([FEATURES], dtype=means.dtype.element_ty)
        square = tl.zeros([FEATURES], dtype=means.dtype.element_ty)
        for share in range(shares):
            at = (group * shares + share) * features + column
            count = (tl.minimum(share * per + per, rows) - share * per).to(mean.dtype)
            seen = (share * per).to(mean.dtype)
            delta = tl.load(means + at, mask=inside, other=0.0) - mean
            mean += delta * (count / (seen + count))
            square += tl.load(squares + at, mask=inside, other=0.0)
            square += delta * delta * (seen * count / (seen + count))
        tl.store(mean_of + group * features + column, mean, mask=inside)
        tl.store(inverse_of + group * features + column, 1.0 / tl.sqrt(square / rows + eps), mask=inside)
        all_means += mean
        all_variances += square / tl.maximum(rows - 1, 1)
    tl.store(total + column, all_means, mask=inside)
    tl.store(total + features + column, all_variances, mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def _apply(
    x, mean_of, inverse_of, weight, bias, y, rows, features, ROWS: tl.constexpr, FEATURES: tl.constexpr
):
    """(x - mean) / deviation · weight + bias, of one tile."""
    group, block = tl.program_id(0), tl.program_id(2)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = block * FEATURES + tl.arange(0, FEATURES)
    here = column < features
    inside = (row < rows)[:, None] & here[None, :]
    mean = tl.load(mean_of + group * features + column, mask=here, other=0.0)
    inverse = tl.load(inverse_of + group * features + column, mask=here, other=0.0)
    scale = inverse * tl.load(weight + column, mask=here, other=0.0)
    shift = tl.load(bias + column, mask=here, other=0.0)
    at = (group.to(tl.int64) * rows + row)[:, None] * features + column[None, :]
    tile = tl.load(x + at, mask=inside, other=0.0).to(mean.dtype)
    tl.store(
        y + at, ((tile - mean[None, :]) * scale[None, :] + shift[None, :]).to(y.dtype.element_ty), mask=inside
    )


@triton.jit(do_not_specialize=COUNTS)
def _products(
    x, dy, mean_of, inverse_of, of_weight, of_bias, rows, per, features, shares,
    ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """Of one share of a group's rows the sums of dy and of dy · (x - mean) / deviation."""
    group, share, block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = block * FEATURES + tl.arange(0, FEATURES)
    here = column < features
    mean = tl.load(mean_of + group * features + column, mask=here, other=0.0)
    inverse = tl.load(inverse_of + group * features + column, mask=here, other=0.0)
    sums = tl.zeros([FEATURES], dtype=mean.dtype)
    products = tl.zeros([FEATURES], dtype=mean.dtype)
    start, last = share * per, tl.minimum(share * per + per, rows)
    while start < last:
        row = start + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & here[None, :]
        at = (group.to(tl.int64) * rows + row)[:, None] * features + column[None, :]
        gradient = tl.load(dy + at, mask=inside, other=0.0).to(mean.dtype)
        tile = tl.load(x + at, mask=inside, other=0.0).to(mean.dtype)
        sums += tl.sum(gradient, axis=0)
        products += tl.sum(gradient * ((tile - mean[None, :]) * inverse[None, :]), axis=0)
        start += ROWS
    at = (group * shares + share) * features + column
    tl.store(of_weight + at, products, mask=here)
    tl.store(of_bias + at, sums, mask=here)


@triton.jit(do_not_specialize=COUNTS)
def _add(of_weight, of_bias, group_weight, group_bias, dweight, dbias, features, groups, shares,
         FEATURES: tl.constexpr):  # fmt: skip
    """Adds up the shares of each group, and the groups."""
    column = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    inside = column < features
    all_products = tl.zeros([FEATURES], dtype=of_weight.dtype.element_ty)
    all_sums = tl.zeros([FEATURES], dtype=of_weight.dtype.element_ty)
    for group in range(groups):
        products = tl.zeros([FEATURES], dtype=of_weight.dtype.element_ty)
        sums = tl.zeros([FEATURES], dtype=of_weight.dtype.element_ty)
        for share in range(shares):
            at = (group * shares + share) * features + column
            products += tl.load(of_weight + at, mask=inside, other=0.0)
            sums += tl.load(of_bias + at, mask=inside, other=0.0)
        tl.store(group_weight + group * features + column, products, mask=inside)
        tl.store(group_bias + group * features + column, sums, mask=inside)
        all_products += products
        all_sums += sums
    tl.store(dweight + column, all_products, mask=inside)
    tl.store(dbias + column, all_sums, mask=inside)


@triton.jit(do_not_specialize=COUNTS)
def _apply_backward(
    x, dy, mean_of, inverse_of, weight, group_weight, group_bias, dx, rows, features,
    ROWS: tl.constexpr, FEATURES: tl.constexpr,
):  # fmt: skip
    """The gradient of x, of one tile."""
    group, block = tl.program_id(0), tl.program_id(2)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = block * FEATURES + tl.arange(0, FEATURES)
    here = column < features
    inside = (row < rows)[:, None] & here[None, :]
    of_group = group * features + column
    mean = tl.load(mean_of + of_group, mask=here, other=0.0)
    inverse = tl.load(inverse_of + of_group, mask=here, other=0.0)
    scale = inverse * tl.load(weight + column, mask=here, other=0.0)
    products = tl.load(group_weight + of_group, mask=here, other=0.0) / rows
    sums = tl.load(group_bias + of_group, mask=here, other=0.0) / rows
    at = (group.to(tl.int64) * rows + row)[:, None] * features + column[None, :]
    gradient = tl.load(dy + at, mask=inside, other=0.0).to(mean.dtype)
    tile = tl.load(x + at, mask=inside, other=0.0).to(mean.dtype)
    normal = (tile - mean[None, :]) * inverse[None, :]
    result = (gradient - sums[None, :] - normal * products[None, :]) * scale[None, :]
    tl.store(dx + at, result.to(dx.dtype.element_ty), mask=inside)


# ---- as operations of torch ---------------------------------------------------------------------------


@library.custom_op("infomax::normalize_groups", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> output, total [2, features], mean and 1 / deviation [groups, features]; x as `normalize_groups`."""
    x = as_rows(x)
    rows, features, per, shares = _shape(x, groups)
    means, squares = weight.new_empty(2, groups, shares, features)
    mean, inverse, total = (weight.new_empty(n, features) for n in (groups, groups, 2))
    y = torch.empty_like(x)
    blocks = triton.cdiv(features, FEATURES)
    _moments[groups, shares, blocks](x, means, squares, rows, per, features, shares, ROWS, FEATURES)
    _merge[(blocks,)](
        means, squares, mean, inverse, total, rows, per, features, groups, shares, eps, FEATURES
    )
    tiles = groups, triton.cdiv(rows, ROWS), blocks
    _apply[tiles](x, mean, inverse, weight, bias, y, rows, features, ROWS, FEATURES)
    return y, total, mean, inverse


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, ...]:
    total, mean, inverse = (weight.new_empty(n, len(weight)) for n in (2, groups, groups))
    return torch.empty_like(as_rows(x)), total, mean, inverse


@library.custom_op("infomax::normalize_groups_backward", mutates_args=())
def _backward(
    x: Tensor, dy: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    x, dy, groups = as_rows(x), as_rows(dy), len(mean)
    rows, features, per, shares = _shape(x, groups)
    of_weight, of_bias = weight.new_empty(2, groups, shares, features)
    group_weight, group_bias = weight.new_empty(2, groups, features)
    dweight, dbias, dx = torch.empty_like(weight), torch.empty_like(weight), torch.empty_like(x)
    blocks = triton.cdiv(features, FEATURES)
    _products[groups, shares, blocks](
        x, dy, mean, inverse, of_weight, of_bias, rows, per, features, shares, ROWS, FEATURES
    )
    _add[(blocks,)](
        of_weight, of_bias, group_weight, group_bias, dweight, dbias, features, groups, shares, FEATURES
    )
    tiles = groups, triton.cdiv(rows, ROWS), blocks
    _apply_backward[tiles](
        x, dy, mean, inverse, weight, group_weight, group_bias, dx, rows, features, ROWS, FEATURES
    )
    return dx, dweight, dbias


@_backward.register_fake
def _(x: Tensor, dy: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, ...]:
    return torch.empty_like(as_rows(x)), torch.empty_like(weight), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, total, mean, inverse = output
    ctx.mark_non_differentiable(total, mean, inverse)
    ctx.save_for_backward(inputs[0], inputs[1], mean, inverse)


def _differentiate(ctx: Any, of_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, mean, inverse = ctx.saved_tensors
    return *_backward(x, of_output, weight, mean, inverse), None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def normalize(x: Tensor, weight: Tensor, bias: Tensor, size: int, eps: float) -> tuple[Tensor, Tensor]:
    """As `grouped_statistics.normalize_groups`, of whole parts."""
    output, total, _, _ = _forward(x, weight, bias, len(x) // size, eps)
    return output, total


def as_rows(x: Tensor) -> Tensor:
    """x [n, features, ...] whose features are neighbours in memory; a copy where they are not."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _shape(x: Tensor, groups: int) -> tuple[int, int, int, int]:
    """Rows of a group, features, rows of a share, shares of a group: all of them have rows."""
    features = x.shape[1]
    rows = x.numel() // (groups * features)
    per = triton.cdiv(triton.cdiv(rows, SHARES), ROWS) * ROWS
    return rows, features, per, triton.cdiv(rows, per)
