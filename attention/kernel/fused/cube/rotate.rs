//! Rotation of heads where they lie, and back.

use crate::card::OnCard;
use crate::card::launch::{addresses, buffer, element, empty, lanes, plain, threads};
use crate::fused::rotate::op::RotateOps;
use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::Tensor;
use burn_cubecl::kernel::into_contiguous;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

impl RotateOps for Cube {
    /// Heads usually are a view of `[B, T, H, D]`, as a linear layer gives them. What is made of them lies
    /// the same way, and gradients always do, so that the layer takes them without a copy.
    fn rotate_op(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        back: bool,
    ) -> FloatTensor<Self> {
        let x = Self::lower(x);
        let x = if x.meta.strides()[3] == 1 { x } else { into_contiguous(x) };
        let (cos, sin) = (plain::<Self>(cos), plain::<Self>(sin));
        let [batch, heads, len, width]: [usize; 4] = x.meta.shape().dims();
        let [rows, _, _, half]: [usize; 4] = cos.meta.shape().dims();
        let strides = x.meta.strides();
        let by_token = back || strides[1] < strides[2];
        // The dimension that changes slowest but for the batch, then the one within it.
        let (outer, inner) = if by_token { (2, 1) } else { (1, 2) };
        let shape = x.meta.shape();
        let y = empty(&[batch, shape[outer], shape[inner], width], x.dtype, &x);
        let lanes = lanes(&[&x, &cos, &sin], &[half, width, strides[0], strides[1], strides[2]]);
        let runs = half / lanes + (width - 2 * half) / lanes;
        let (cubes, dim) = threads(&x.client, batch * heads * len * runs);
        // Safe: a thread per pair of runs, or run that passes through, of every row.
        unsafe {
            rotate::launch_unchecked(
                &x.client,
                cubes,
                dim,
                addresses(&[&x, &y, &cos]),
                lanes,
                buffer(&x),
                buffer(&cos),
                buffer(&sin),
                buffer(&y),
                SizesLaunch::new(
                    batch * heads * len,
                    shape[outer],
                    shape[inner],
                    strides[0] / lanes,
                    strides[outer] / lanes,
                    strides[inner] / lanes,
                    half / lanes,
                    width / lanes,
                    if rows == 1 { 0 } else { len },
                ),
                if back { -1.0 } else { 1.0 },
                by_token,
                element(&x),
            );
        }
        let y = Self::lift(y);
        if !by_token {
            return y;
        }
        primitive!(Cube, Tensor::<4>::from_primitive::<Cube>(y).swap_dims(1, 2))
    }
}

/// Sizes and strides, channels in runs.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
#[expand(derive(Clone, Copy))]
struct Sizes {
    rows: usize,
    outer: usize,
    inner: usize,
    of_batch: usize,
    of_outer: usize,
    of_inner: usize,
    half: usize,
    width: usize,
    /// Tokens of the tables from one row of the batch to the next.
    of_table: usize,
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn rotate<F: Float, N: Size>(
    x: &[Vector<F, N>],
    cos: &[Vector<f32, N>],
    sin: &[Vector<f32, N>],
    y: &mut [Vector<F, N>],
    sizes: Sizes,
    sign: f32,
    #[comptime] by_token: bool,
    #[define(F)] _dtype: ElemType,
) {
    let runs = sizes.width - sizes.half;
    let line = ABSOLUTE_POS / runs;
    if line >= sizes.rows {
        terminate!();
    }
    let run = ABSOLUTE_POS % runs;
    let inner = line % sizes.inner;
    let outer = line / sizes.inner % sizes.outer;
    let batch = line / sizes.inner / sizes.outer;
    let from = batch * sizes.of_batch + outer * sizes.of_outer + inner * sizes.of_inner;
    let to = line * sizes.width;
    if run < sizes.half {
        let token = if comptime!(by_token) { outer } else { inner };
        let at = (batch * sizes.of_table + token) * sizes.half + run;
        let (cos, sin) = (cos[at], sin[at] * Vector::new(sign));
        let x1 = Vector::<f32, N>::cast_from(x[from + run]);
        let x2 = Vector::<f32, N>::cast_from(x[from + sizes.half + run]);
        y[to + run] = Vector::cast_from(x1 * cos - x2 * sin);
        y[to + sizes.half + run] = Vector::cast_from(x2 * cos + x1 * sin);
    } else {
        y[to + sizes.half + run] = x[from + sizes.half + run];
    }
}
