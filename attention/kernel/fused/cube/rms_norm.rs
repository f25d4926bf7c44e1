//! Root-mean-square normalisation: a few threads per row, several rows per workgroup.
//!
//! The second look at a row finds it in the cache of the processor, and the backward pass takes the mean
//! square again from the row that it needs anyway. A thread meets the same channels in all of its rows and
//! keeps their sums, so that the gradient of the weight costs a row per workgroup.

use super::parts::add_parts;
use crate::card::OnCard;
use crate::card::launch::{
    UNITS, addresses, buffer, element, empty, empty_like, lanes, plain, threads,
};
use crate::card::team::{across, team_sums};
use crate::fused::rms_norm::op::NormOps;
use burn::backend::{Cube, tensor::FloatTensor};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Runs of a row that a thread has, as long as a workgroup has threads.
const PER_UNIT: usize = 4;
/// Workgroups that keep a card busy with rows; the weight's gradient has as many parts at most.
const GROUPS: usize = 256;

/// How rows are given to threads.
struct Rows {
    rows: usize,
    lanes: usize,
    /// Runs of a row.
    width: usize,
    /// Threads of a row.
    team: usize,
}

impl Rows {
    fn new(x: &CubeTensor, weight: &CubeTensor, others: &[&CubeTensor]) -> Self {
        let channels = weight.meta.num_elements();
        let lanes = lanes(&[&[x, weight], others].concat(), &[channels]);
        let width = channels / lanes;
        let team = width.div_ceil(PER_UNIT).next_power_of_two().min(UNITS);
        Self { rows: x.meta.num_elements() / channels, lanes, width, team }
    }

    /// Workgroups that have all rows side by side.
    fn groups(&self) -> usize {
        self.rows.div_ceil(UNITS / self.team)
    }
}

impl NormOps for Cube {
    fn rms_norm_op(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        let (x, weight) = (plain::<Self>(x), plain::<Self>(weight));
        let y = empty_like(&x);
        let rows = Rows::new(&x, &weight, &[]);
        let (cubes, dim) = threads(&x.client, rows.groups() * UNITS);
        // Safe: threads stay within their rows, and rows within the tensors.
        unsafe {
            forward::launch_unchecked(
                &x.client,
                cubes,
                dim,
                addresses(&[&x, &weight]),
                rows.lanes,
                buffer(&x),
                buffer(&weight),
                buffer(&y),
                rows.rows,
                eps as f32,
                rows.width,
                rows.team,
                [element(&x), element(&weight)],
            );
        }
        Self::lift(y)
    }

    fn rms_norm_gradients(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        eps: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (x, weight, dy) = (plain::<Self>(x), plain::<Self>(weight), plain::<Self>(dy));
        let (dx, dw) = (empty_like(&x), empty_like(&weight));
        let rows = Rows::new(&x, &weight, &[&dy]);
        let turns = rows.groups().div_ceil(GROUPS);
        let groups = rows.groups().div_ceil(turns);
        let channels = weight.meta.num_elements();
        let parts = empty(&[groups, channels], DType::F32, &x);
        // Safe: as above; a workgroup writes one row of the parts.
        unsafe {
            gradients::launch_unchecked(
                &x.client,
                CubeCount::Static(groups as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                addresses(&[&x, &weight, &parts]),
                rows.lanes,
                buffer(&x),
                buffer(&weight),
                buffer(&dy),
                buffer(&dx),
                buffer(&parts),
                rows.rows,
                turns,
                eps as f32,
                rows.width,
                rows.team,
                [element(&x), element(&weight)],
            );
        }
        add_parts(&parts, &dw);
        (Self::lift(dx), Self::lift(dw))
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn forward<X: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    weight: &[Vector<W, N>],
    y: &mut [Vector<X, N>],
    rows: usize,
    eps: f32,
    #[comptime] width: usize,
    #[comptime] team: usize,
    #[define(X, W)] _dtypes: [ElemType; 2],
) {
    let unit = UNIT_POS as usize;
    let line = CUBE_POS * comptime!(UNITS / team) + unit / team;
    let own = line < rows;
    let start = select(own, line, rows - 1) * width;
    let place = unit % team;
    let mut squares = Vector::<f32, N>::new(0.0);
    for i in 0..comptime!(width.div_ceil(team)) {
        let at = i * team + place;
        if at < width {
            let x = Vector::<f32, N>::cast_from(x[start + at]);
            squares += x * x;
        }
    }
    let mut sums = Array::<f32>::new(1usize);
    sums[0] = across(squares);
    team_sums(&mut sums, 1usize, team);
    let r = inverse_rms::<N>(sums[0], width, eps);
    if own {
        for i in 0..comptime!(width.div_ceil(team)) {
            let at = i * team + place;
            if at < width {
                let x = Vector::<f32, N>::cast_from(x[start + at]);
                let w = Vector::<f32, N>::cast_from(weight[at]);
                y[start + at] = Vector::cast_from(x * Vector::new(r) * w);
            }
        }
    }
}

/// dx, and the share of a workgroup's rows in the weight's gradient.
#[cube(launch_unchecked, address_type = "dynamic")]
fn gradients<X: Float, W: Float, N: Size>(
    x: &[Vector<X, N>],
    weight: &[Vector<W, N>],
    dy: &[Vector<X, N>],
    dx: &mut [Vector<X, N>],
    parts: &mut [Vector<f32, N>],
    rows: usize,
    turns: usize,
    eps: f32,
    #[comptime] width: usize,
    #[comptime] team: usize,
    #[define(X, W)] _dtypes: [ElemType; 2],
) {
    let unit = UNIT_POS as usize;
    let place = unit % team;
    let per_unit = comptime!(width.div_ceil(team));
    let mut dw = Array::<Vector<f32, N>>::new(per_unit);
    #[unroll(per_unit <= 8)]
    for i in 0..per_unit {
        dw[i] = Vector::new(0.0);
    }
    for turn in 0..turns {
        let line = (CUBE_POS * turns + turn) * comptime!(UNITS / team) + unit / team;
        let own = line < rows;
        let start = select(own, line, rows - 1) * width;
        let mut squares = Vector::<f32, N>::new(0.0);
        let mut dots = Vector::<f32, N>::new(0.0);
        #[unroll(per_unit <= 8)]
        for i in 0..per_unit {
            let at = i * team + place;
            if at < width {
                let x = Vector::<f32, N>::cast_from(x[start + at]);
                let w = Vector::<f32, N>::cast_from(weight[at]);
                squares += x * x;
                dots += x * Vector::<f32, N>::cast_from(dy[start + at]) * w;
            }
        }
        let mut sums = Array::<f32>::new(2usize);
        sums[0] = across(squares);
        sums[1] = across(dots);
        team_sums(&mut sums, 2usize, team);
        let r = inverse_rms::<N>(sums[0], width, eps);
        let shrink = r * r * r * sums[1] / count::<N>(width);
        if own {
            #[unroll(per_unit <= 8)]
            for i in 0..per_unit {
                let at = i * team + place;
                if at < width {
                    let x = Vector::<f32, N>::cast_from(x[start + at]);
                    let w = Vector::<f32, N>::cast_from(weight[at]);
                    let g = Vector::<f32, N>::cast_from(dy[start + at]) * Vector::new(r);
                    dx[start + at] = Vector::cast_from(g * w - Vector::new(shrink) * x);
                    dw[i] += g * x;
                }
            }
        }
    }
    let mut table = Shared::<[Vector<f32, N>]>::new_slice(UNITS);
    #[unroll(per_unit <= 8)]
    for i in 0..per_unit {
        sync_cube();
        table[unit] = dw[i];
        sync_cube();
        let at = i * team + place;
        if unit < team && at < width {
            let mut sum = table[unit];
            for line in 1..comptime!(UNITS / team) {
                sum += table[line * team + unit];
            }
            parts[CUBE_POS * width + at] = sum;
        }
    }
}

/// Numbers of a row of so many runs.
#[cube]
fn count<N: Size>(#[comptime] width: usize) -> f32 {
    let lanes = N::value();
    comptime!((width * lanes) as f32).runtime()
}

#[cube]
fn inverse_rms<N: Size>(squares: f32, #[comptime] width: usize, eps: f32) -> f32 {
    1.0 / (squares / count::<N>(width) + eps).sqrt()
}
