//! Small layers on cards, in CubeCL: a kernel forward and one backward, with numbers read 16 bytes at a
//! time where sizes and places allow.
//!
//! Numbers of 16 bits are widened as they are read, everything is computed and summed in f32, and what is
//! written is rounded once. Sums over rows come in parts, one per workgroup, which a second kernel adds in
//! their order, so that two runs give the same bits.
// A kernel has an argument per buffer, and no iterators.
#![allow(clippy::too_many_arguments, clippy::needless_range_loop)]

mod adamw;
mod conv;
mod embed;
mod parts;
mod rms_norm;
mod rotate;
mod squares;
mod swiglu;

pub(super) use adamw::adamw;
pub(super) use squares::sums_of_squares;

use cubecl::prelude::*;

#[cube]
fn sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    Vector::new(1.0) / (Vector::new(1.0) + (-x).exp())
}
