//! What a launch hands over, laid out as base.cuh and mask.cuh have it.

use super::rules::ROUND;
use super::source::MOST_BRANCHES;

/// A tensor map, as the driver makes it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Map(pub [u64; 16]);

/// A mask of a branch: addresses, and where in `numbers` what begins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Side {
    pub numbers: u64,
    pub starts: u64,
    pub tiles: u64,
    pub heads: i32,
    pub q_label: i32,
    pub k_label: i32,
    pub q_pos: i32,
    pub k_pos: i32,
    pub q_far: i32,
    pub k_block: i32,
    pub k_column: i32,
    pub k_listed: i32,
    pub bits: i32,
    pub classes: i32,
    pub q_start: i32,
    pub k_start: i32,
    pub window: i32,
    pub sinks: i32,
    pub list_queries: i32,
    pub list_rows: i32,
    pub list_words: i32,
    pub batch: i32,
    pub all_heads: i32,
    pub queries: i32,
    pub keys: i32,
    pub tall: i32,
    pub wide: i32,
}

/// Distances of rows, heads and tokens, in elements.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Steps {
    pub row: i64,
    pub head: i64,
    pub token: i64,
}

/// The argument of every kernel; what a kernel does not read stays 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Call {
    pub q: Map,
    pub k: Map,
    pub v: Map,
    pub dout: Map,
    pub o: Map,
    pub to: Map,
    pub sides: [Side; MOST_BRANCHES],
    pub order: u64,
    pub out: u64,
    pub lse: u64,
    pub lse2: u64,
    pub dots: u64,
    pub sums: u64,
    pub whole: u64,
    pub whole_lse: u64,
    pub dout_rows: u64,
    pub dq: u64,
    pub dk: u64,
    pub dv: u64,
    pub of_out: Steps,
    pub of_dout: Steps,
    pub of_dk: Steps,
    pub of_dv: Steps,
    pub d: i32,
    pub e: i32,
    pub batch: i32,
    pub heads: i32,
    pub kv: i32,
    pub queries: i32,
    pub keys: i32,
    pub tall: i32,
    pub turns: i32,
    pub parts: i32,
    pub scale: f32,
    pub scale_log2: f32,
}

impl Call {
    /// Sizes and scale alone.
    ///
    /// # Shapes
    /// q `[.., H, T, D]`, v `[B, K, S, E]`
    pub fn new(
        [_, heads, queries, d]: [usize; 4],
        [batch, kv, keys, e]: [usize; 4],
        scale: f32,
    ) -> Self {
        let small = |x: usize| x as i32;
        Self {
            d: small(d),
            e: small(e),
            batch: small(batch),
            heads: small(heads),
            kv: small(kv),
            queries: small(queries),
            keys: small(keys),
            tall: small(queries.next_multiple_of(ROUND)),
            parts: 1,
            scale,
            scale_log2: scale * std::f32::consts::LOG2_E,
            ..Self::default()
        }
    }
}
