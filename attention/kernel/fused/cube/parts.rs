//! Sums over workgroups that each have written a row.

use crate::card::launch::{UNITS, addresses, buffer, element};
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;

/// Columns of a workgroup: as many as memory hands out together.
const COLUMNS: usize = 8;

/// The sum over the first dimension of `parts`, which are in f32, into `out`.
pub(super) fn add_parts(parts: &CubeTensor, out: &CubeTensor) {
    let columns = out.meta.num_elements();
    // Safe: the parts have as many columns as `out`.
    unsafe {
        add::launch_unchecked(
            &parts.client,
            CubeCount::Static(columns.div_ceil(COLUMNS) as u32, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            addresses(&[parts]),
            buffer(parts),
            buffer(out),
            parts.meta.num_elements() / columns,
            element(out),
        );
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
fn add<W: Float>(parts: &[f32], out: &mut [W], rows: usize, #[define(W)] _dtype: ElemType) {
    let unit = UNIT_POS as usize;
    let width = out.len();
    let column = CUBE_POS * COLUMNS + unit % COLUMNS;
    let within = min(column, width - 1);
    let mut table = Shared::<[f32]>::new_slice(UNITS);
    let mut sum = 0.0f32;
    let turns = rows.div_ceil(UNITS / COLUMNS);
    for turn in 0..turns {
        let row = turn * (UNITS / COLUMNS) + unit / COLUMNS;
        if row < rows {
            sum += parts[row * width + within];
        }
    }
    table[unit] = sum;
    sync_cube();
    if unit < COLUMNS && column < width {
        let mut all = 0.0f32;
        for i in 0..UNITS / COLUMNS {
            all += table[i * COLUMNS + unit];
        }
        out[column] = W::cast_from(all);
    }
}
