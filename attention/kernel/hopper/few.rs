//! Few queries against many keys, as a decoder asks with a cache: the queries of all heads that share a key
//! head are one tile, so that keys are read once, and the keys of a row are cut into parts, so that every
//! multiprocessor has some. What comes of the parts is put together by their lse.

use crate::Mask;
#[cfg(feature = "cuda-nvrtc")]
use crate::attention::{Plan, PlanInner};

/// Queries of a head that are few, and tiles of keys that are many.
const QUERIES: usize = 16;
const TILES: usize = 4;

/// The plan for queries `[B, K, H / K * T, D]` instead of `[B, H, T, D]`, where they are few and all heads see
/// the same.
#[cfg(feature = "cuda-nvrtc")]
pub(super) fn packed(
    plan: &Plan,
    [_, h, t, _]: [usize; 4],
    [_, kv, s, _]: [usize; 4],
) -> Option<Plan> {
    let [mask] = &plan.0.masks[..] else { return None };
    let group = h / kv;
    if t > QUERIES || group * t > super::rules::ROUND || s < TILES * super::rules::ROUND {
        return None;
    }
    let packed = mask.kept([0, 3, kv, 0], || mask_of(mask, group, kv));
    let masks = vec![packed.as_ref().clone()?];
    Some(Plan(std::sync::Arc::new(PlanInner { masks, ..*plan.0 })))
}

/// The same mask with the queries of `group` heads, one head after the other, as queries of one of `kv` heads.
pub(super) fn mask_of(mask: &Mask, group: usize, kv: usize) -> Option<Mask> {
    let alike = mask.classes().len() == 1 && mask.classes()[0].column.is_none();
    if !alike || mask.list().is_some() {
        return None;
    }
    let tokens: Vec<usize> = (0..group).flat_map(|_| 0..mask.queries().len()).collect();
    let rows = vec![tokens; mask.queries().batch()];
    let queries = mask.queries().gather(&rows).ok()?;
    // `Mask::new` would give `mask` itself where every head has keys of its own, and it would keep itself.
    Mask::build(mask.spec().clone(), queries, mask.keys().clone(), kv).ok()
}
