//! Sums of squares: a launch per tensor, whose workgroups each write a part, and one for all parts.

use crate::card::OnCard;
use crate::card::launch::{UNITS, addresses, buffer, element, empty, lanes, plain};
use crate::card::team::{across, team_sums};
use burn::backend::Cube;
use burn::tensor::{DType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Workgroups of a tensor, which keep a card busy.
const GROUPS: usize = 512;
/// Runs that a thread takes, as long as there are more than so many workgroups.
const PER_UNIT: usize = 8;

/// All on a card, none empty.
pub fn sums_of_squares(tensors: Vec<Tensor<1>>) -> Tensor<1> {
    let tensors: Vec<CubeTensor> =
        tensors.into_iter().map(|x| plain::<Cube>(primitive!(Cube, x.inner()))).collect();
    let groups = |x: &CubeTensor| {
        let runs = x.meta.num_elements() / lanes_of(x);
        runs.div_ceil(UNITS * PER_UNIT).clamp(1, GROUPS)
    };
    let mut starts = vec![0u32];
    for x in &tensors {
        starts.push(starts[starts.len() - 1] + groups(x) as u32);
    }
    let (first, count) = (&tensors[0], tensors.len());
    let parts = empty(&[starts[count] as usize], DType::F32, first);
    let sums = empty(&[count], DType::F32, first);
    let on_card = first.client.create_from_slice(u32::as_bytes(&starts));
    // Safe: workgroups stay within their tensor, and write the parts that are theirs.
    unsafe {
        for (x, start) in tensors.iter().zip(&starts) {
            squares::launch_unchecked(
                &x.client,
                CubeCount::Static(groups(x) as u32, 1, 1),
                CubeDim::new_1d(UNITS as u32),
                addresses(&[x]),
                lanes_of(x),
                buffer(x),
                buffer(&parts),
                *start as usize,
                x.meta.num_elements() / lanes_of(x),
                groups(x) * UNITS,
                element(x),
            );
        }
        add_parts::launch_unchecked(
            &first.client,
            CubeCount::Static(count as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            addresses(&[&parts]),
            buffer(&parts),
            BufferArg::from_raw_parts(on_card, count + 1),
            buffer(&sums),
        );
    }
    Tensor::from_primitive::<Cube>(Cube::lift(sums))
}

fn lanes_of(x: &CubeTensor) -> usize {
    lanes(&[x], &[x.meta.num_elements()])
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn squares<F: Float, N: Size>(
    x: &[Vector<F, N>],
    parts: &mut [f32],
    start: usize,
    runs: usize,
    units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut sum = Vector::<f32, N>::new(0.0);
    // A buffer may be longer than its tensor.
    let turns = runs.div_ceil(units);
    for turn in 0..turns {
        let at = turn * units + ABSOLUTE_POS;
        if at < runs {
            let x = Vector::<f32, N>::cast_from(x[at]);
            sum += x * x;
        }
    }
    let mut sums = Array::<f32>::new(1usize);
    sums[0] = across(sum);
    team_sums(&mut sums, 1usize, UNITS);
    if UNIT_POS == 0 {
        parts[start + CUBE_POS] = sums[0];
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add_parts(parts: &[f32], starts: &[u32], out: &mut [f32]) {
    let first = starts[CUBE_POS] as usize;
    let end = starts[CUBE_POS + 1] as usize;
    let mut sum = 0.0f32;
    let turns = (end - first).div_ceil(UNITS);
    for turn in 0..turns {
        let at = first + turn * UNITS + UNIT_POS as usize;
        if at < end {
            sum += parts[at];
        }
    }
    let mut sums = Array::<f32>::new(1usize);
    sums[0] = sum;
    team_sums(&mut sums, 1usize, UNITS);
    if UNIT_POS == 0 {
        out[CUBE_POS] = sums[0];
    }
}
