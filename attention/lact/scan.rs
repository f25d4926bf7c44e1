//! The fast-weight branch over a call: tokens brought into the order of their chunks, every chunk
//! read and then learned from, answers brought back into the order of the tokens.

use super::fast::{FastWeights, Learner};
use super::memory::Memory;
use super::plan::{After, Plan};
use crate::attention::rows::{by_head, by_token, gather};
use crate::{Error, Result};
use burn::tensor::Tensor;
use longburn_kernels::TokenMeta;

/// Tokens of a call as the branch takes them, one row for each.
pub(super) struct Inputs {
    /// `[B·T, H·d]`
    pub q: Tensor<2>,
    /// `[B·T, H·d]`
    pub k: Tensor<2>,
    /// `[B·T, H·d]`
    pub v: Tensor<2>,
    /// `[B·T, H·R]`
    pub rates: Tensor<2>,
}

/// Answers `[B·T, H·d]`, zero where padding asks, and what the next call needs, where `keep`.
pub(super) fn scan(
    tokens: &TokenMeta,
    chunk: usize,
    initial: &FastWeights,
    learner: &Learner,
    inputs: Inputs,
    memory: Option<Memory>,
    keep: bool,
) -> (Tensor<2>, Option<Memory>) {
    let plan = Plan::new(tokens, chunk, memory.as_ref().map(Memory::carry));
    let [_, heads] = initial.dims();
    let Inputs { q, k, v, rates } = inputs;
    let sizes = plan.waves.iter().flat_map(|w| [w.fresh, w.own * w.width]);
    let sizes: Vec<usize> = sizes.filter(|n| *n > 0).collect();
    let mut queries = split(gather(q, &plan.queries), &sizes).into_iter();
    let mut learned = learned(&plan, chunk, &memory, [&k, &v, &rates]);

    let held = memory.as_ref().map(|m| &m.weights);
    let (mut answers, mut ended) = (Vec::new(), Vec::new());
    // Of the documents that have left their first chunk behind.
    let mut weights: Option<FastWeights> = None;
    for wave in &plan.waves {
        let mut read = |weights: &FastWeights, n: usize| {
            if let Some(x) = queries.next() {
                answers.push(by_token(weights.apply(by_head(x, n, heads))));
            }
        };
        if wave.fresh > 0 {
            read(initial, 1);
        }
        if wave.own * wave.width > 0 {
            match (&weights, held) {
                (Some(weights), _) => read(weights, wave.own),
                (None, Some(held)) => read(&rows_of(held, &plan.carried), wave.own),
                (None, None) => {}
            }
        }
        let current = match weights.take() {
            None => begin(initial, held, &plan.first),
            Some(weights) => {
                if keep && wave.updates < wave.own {
                    ended.push(weights.clone().from(wave.updates));
                }
                (wave.updates > 0).then(|| weights.first(wave.updates))
            }
        };
        let chunk = learned.each_mut().map(|parts| parts.next());
        if let (Some(current), [Some(k), Some(v), Some(rates)]) = (current, chunk) {
            let of = |x| by_head(x, wave.updates, heads);
            weights = Some(learner.update(current, of(k), of(v), of(rates)));
        }
    }

    let y = match (answers.is_empty(), plan.answers.contains(&plan.queries.len())) {
        (true, _) => k.zeros_like(),
        (_, padded) => {
            if padded {
                answers.push(k.clone().narrow(0, 0, 1).zeros_like());
            }
            gather(Tensor::cat(answers, 0), &plan.answers)
        }
    };
    let next = keep.then(|| remember(&plan, tokens, initial, memory, ended, [k, v, rates]));
    (y, next)
}

/// The branch over whole sequences of one document each: every chunk is read with what the chunks
/// before it have taught.
///
/// # Shapes
/// q, k, v `[B, H, T, d]`, rates `[B, H, T, 3]` (4 with momentum), `initial` `[1, H, ..]` ->
/// `[B, H, T, d]`
///
/// # Errors
/// A chunk of 0 tokens, or weights of more than one network.
pub fn read_and_learn(
    initial: &FastWeights,
    learner: &Learner,
    [q, k, v]: [Tensor<4>; 3],
    rates: Tensor<4>,
    chunk: usize,
) -> Result<Tensor<4>> {
    let ([b, _, t, _], [n, heads]) = (q.dims(), initial.dims());
    if chunk == 0 || n != 1 {
        let reason = format!("chunks of {chunk} tokens with initial weights of {n} networks");
        return Err(Error::shape("LaCT", reason));
    }
    let [q, k, v, rates] = [q, k, v, rates].map(by_token);
    let inputs = Inputs { q, k, v, rates };
    let tokens = TokenMeta::contiguous(b, t, 0);
    let (y, _) = scan(&tokens, chunk, initial, learner, inputs, None, false);
    Ok(by_head(y, b, heads))
}

/// k, v and rates of every wave's chunks.
fn learned(
    plan: &Plan,
    chunk: usize,
    memory: &Option<Memory>,
    new: [&Tensor<2>; 3],
) -> [std::vec::IntoIter<Tensor<2>>; 3] {
    let sizes = plan.waves.iter().map(|w| w.updates * chunk);
    let sizes: Vec<usize> = sizes.filter(|n| *n > 0).collect();
    let [k, v, rates] = new;
    let [old_k, old_v, old_rates] = buffers(memory);
    [(k, old_k), (v, old_v), (rates, old_rates)].map(|(new, old)| {
        if plan.keys.is_empty() {
            return Vec::new().into_iter();
        }
        split(gather(behind(new.clone(), old), &plan.keys), &sizes).into_iter()
    })
}

/// k, v and rates of the chunks that are not full yet.
fn buffers(memory: &Option<Memory>) -> [Option<Tensor<4>>; 3] {
    match memory {
        Some(m) => [Some(m.k.clone()), Some(m.v.clone()), Some(m.rates.clone())],
        None => [None, None, None],
    }
}

/// New tokens and, behind them, the buffers.
fn behind(new: Tensor<2>, old: Option<Tensor<4>>) -> Tensor<2> {
    match old {
        Some(old) => Tensor::cat(vec![new, by_token(old)], 0),
        None => new,
    }
}

/// Weights of the documents that are about to be updated for the first time in this call.
fn begin(
    initial: &FastWeights,
    held: Option<&FastWeights>,
    first: &[usize],
) -> Option<FastWeights> {
    match held {
        _ if first.is_empty() => None,
        Some(held) if first.iter().all(|i| *i > 0) => {
            Some(rows_of(held, &first.iter().map(|i| i - 1).collect::<Vec<_>>()))
        }
        Some(held) => {
            let all = FastWeights::cat(vec![initial.clone(), held.clone()]);
            Some(rows_of(&all, first))
        }
        None => Some(initial.clone().each(|t| {
            let [_, h, a, b] = t.dims();
            t.expand([first.len(), h, a, b])
        })),
    }
}

/// The memory of every row behind this call.
fn remember(
    plan: &Plan,
    tokens: &TokenMeta,
    initial: &FastWeights,
    memory: Option<Memory>,
    ended: Vec<FastWeights>,
    [k, v, rates]: [Tensor<2>; 3],
) -> Memory {
    let [batch, len] = [tokens.batch(), tokens.len()];
    let [_, heads] = initial.dims();
    let sources: Vec<usize> = plan.after.iter().map(|a| a.weights).collect();
    let weights = match &memory {
        Some(m) if sources.iter().enumerate().all(|(row, i)| *i == 1 + row) => m.weights.clone(),
        memory => {
            let mut parts = vec![initial.clone()];
            parts.extend(memory.as_ref().map(|m| m.weights.clone()));
            parts.extend(ended);
            rows_of(&FastWeights::cat(parts), &sources)
        }
    };

    let room = plan.after.iter().map(|a| a.pending.len()).max().unwrap_or(0).max(1);
    // The usual step of decoding: every row has as many tokens in its buffer, and more are added.
    let kept = memory.as_ref().map_or(0, Memory::room);
    let appends = kept > 0
        && plan.after.iter().enumerate().all(|(row, after)| {
            let old = batch * len + row * kept;
            after.pending.iter().copied().eq((old..old + kept).chain(row * len..(row + 1) * len))
        });
    let filled = |after: &After| {
        let filling = after.pending.first().copied().unwrap_or(0);
        let mut places = after.pending.clone();
        places.resize(room, filling);
        places
    };
    let places: Vec<usize> = plan.after.iter().flat_map(filled).collect();
    let buffer = |new: Tensor<2>, old: Option<Tensor<4>>| match old {
        Some(old) if appends => Tensor::cat(vec![old, by_head(new, batch, heads)], 2),
        old => by_head(gather(behind(new, old), &places), batch, heads),
    };
    let [old_k, old_v, old_rates] = buffers(&memory);
    Memory {
        weights,
        k: buffer(k, old_k),
        v: buffer(v, old_v),
        rates: buffer(rates, old_rates),
        pending: plan.after.iter().map(|a| a.pending.len()).collect(),
        segment: plan.after.iter().map(|a| a.segment).collect(),
    }
}

/// Networks `places` of `weights`.
fn rows_of(weights: &FastWeights, places: &[usize]) -> FastWeights {
    weights.clone().each(|t| gather(t, places))
}

/// x cut into parts of so many rows. By halves: the gradient of a cut is as long as what was cut,
/// so that cutting parts one by one off the whole would take time quadratic in its length.
fn split(x: Tensor<2>, sizes: &[usize]) -> Vec<Tensor<2>> {
    if sizes.len() <= 1 {
        return vec![x; sizes.len()];
    }
    let (left, right) = sizes.split_at(sizes.len() / 2);
    let (n, m) = (left.iter().sum(), right.iter().sum());
    let mut parts = split(x.clone().narrow(0, 0, n), left);
    parts.extend(split(x.narrow(0, n, m), right));
    parts
}
