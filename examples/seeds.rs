//! A run for each of several seeds.

use longburn::Result;
use std::panic::resume_unwind;
use std::thread::ScopedJoinHandle;

/// `work` for every seed, one after the other or all at the same time; what it returns, in their order.
///
/// # Errors
/// The first that it returns.
pub fn each_seed<T: Send>(
    seeds: &[u64],
    at_once: bool,
    work: impl Fn(u64) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    if !at_once {
        return seeds.iter().map(|seed| work(*seed)).collect();
    }
    let work = &work;
    std::thread::scope(|scope| {
        let all: Vec<_> = seeds.iter().map(|&seed| scope.spawn(move || work(seed))).collect();
        let ended = |one: ScopedJoinHandle<'_, Result<T>>| {
            one.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        all.into_iter().map(ended).collect()
    })
}

/// Figures of several seeds in one cell.
pub fn by_seed(figures: &[f64], decimals: usize) -> String {
    let each: Vec<String> = figures.iter().map(|figure| format!("{figure:.decimals$}")).collect();
    each.join(", ")
}
