//! Sums and maxima over the threads of a workgroup, or of equal parts of it, by shared memory: the same on
//! every card, and the same bits in every run.

use super::launch::UNITS;
use cubecl::prelude::*;

/// Threads whose numbers one thread looks at.
const NEAR: usize = 16;

#[cube]
pub(crate) fn across<N: Size>(x: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..x.vector_size() {
        sum += x.extract(i);
    }
    sum
}

/// Replaces numbers by their sums over the threads of a team, in the same order for all of them. All
/// threads of the workgroup take part.
#[cube]
pub(crate) fn team_sums(
    values: &mut Array<f32>,
    #[comptime] count: usize,
    #[comptime] team: usize,
) {
    let near = comptime!(team.min(NEAR));
    let unit = UNIT_POS as usize;
    let mut table = Shared::<[f32]>::new_slice(comptime!(count * UNITS));
    let mut sums = Shared::<[f32]>::new_slice(comptime!(count * UNITS / NEAR));
    // What the last call wrote has been read.
    sync_cube();
    #[unroll]
    for k in 0..count {
        table[k * UNITS + unit] = values[k];
    }
    sync_cube();
    #[unroll]
    for k in 0..count {
        let first = k * UNITS + unit / near * near;
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..near {
            sum += table[first + i];
        }
        values[k] = sum;
        if unit == unit / NEAR * NEAR {
            sums[k * (UNITS / NEAR) + unit / NEAR] = sum;
        }
    }
    if comptime!(team > NEAR) {
        sync_cube();
        #[unroll]
        for k in 0..count {
            let first = k * (UNITS / NEAR) + unit / team * (team / NEAR);
            let mut sum = 0.0f32;
            #[unroll]
            for i in 0..comptime!(team / NEAR) {
                sum += sums[first + i];
            }
            values[k] = sum;
        }
    }
}

/// The largest number that any thread of the workgroup has; what is no number is passed over.
#[cube]
pub(crate) fn largest(value: f32) -> f32 {
    let unit = UNIT_POS as usize;
    let mut table = Shared::<[f32]>::new_slice(UNITS);
    let mut tops = Shared::<[f32]>::new_slice(UNITS / NEAR);
    table[unit] = value;
    sync_cube();
    let mut near = table[unit / NEAR * NEAR];
    #[unroll]
    for i in 1..NEAR {
        near = near.max(table[unit / NEAR * NEAR + i]);
    }
    if unit == unit / NEAR * NEAR {
        tops[unit / NEAR] = near;
    }
    sync_cube();
    let mut top = tops[0];
    #[unroll]
    for i in 1..UNITS / NEAR {
        top = top.max(tops[i]);
    }
    top
}
