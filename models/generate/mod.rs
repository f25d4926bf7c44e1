//! Text generation: prefill, then one token at a time against the state of every layer, for one
//! sequence or for several of different lengths at once.

mod config;
mod generator;
mod sampler;
mod stop;
mod token;

pub use config::GenerateConfig;
pub use generator::Generator;
pub use sampler::Sampler;
pub use stop::StopStrings;

use super::Blocks;
use crate::{Error, Result};
use longburn_kernels::TokenMeta;
use serde::Serialize;
use std::ops::ControlFlow;
use std::time::Instant;

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// It has as many tokens as were asked for.
    Length,
    /// A stop id, the last of its ids.
    StopId,
    /// Whoever receives the tokens had enough: at a stop string, say.
    Caller,
}

/// What was generated, and how fast.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Generated {
    /// New ids, without the prompt.
    pub ids: Vec<u32>,
    /// Why there are no more.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Length of `ids`.
    pub new_tokens: usize,
    /// Time to the first logits, of the whole batch, s.
    pub seconds_prefill: f64,
    /// Time from there to the last id, s.
    pub seconds_decode: f64,
    /// Ids after the first (which prefill pays for) per second of decoding; 0 where there is none.
    pub tokens_per_second: f64,
}

/// Continue `prompt`; every new id goes to `on_token` as soon as it is chosen.
///
/// # Errors
/// Those of [`generate_batch`].
pub fn generate<M: Blocks>(
    model: &M,
    prompt: &[u32],
    config: &GenerateConfig,
    mut on_token: impl FnMut(u32),
) -> Result<Generated> {
    let on_token = |_, id| {
        on_token(id);
        Ok(ControlFlow::Continue(()))
    };
    let mut rows = generate_batch(model, &[prompt], config, on_token)?;
    rows.pop().ok_or_else(|| Error::shape("generate", "one prompt gave no row"))
}

/// Continue several prompts at once; each row is what it would be alone, up to rounding.
///
/// Prompts are padded on the left, which nobody sees. Every new id goes to `on_token` with its row
/// as soon as it is chosen; a row ends at a stop id, at the limit, or when `on_token` breaks. Draws
/// of row `r` come from the `r`-th stream of the seed, those of [`generate`] from the first.
///
/// # Errors
/// [`Error::Config`] for settings out of range, [`Error::Data`] for an empty prompt, what
/// `on_token` returns, and what [`Generator::feed_rows`] and [`Sampler::pick`] return. A mixer
/// that refuses padding refuses prompts of different lengths.
pub fn generate_batch<M: Blocks>(
    model: &M,
    prompts: &[impl AsRef<[u32]>],
    config: &GenerateConfig,
    on_token: impl FnMut(usize, u32) -> Result<ControlFlow<()>>,
) -> Result<Vec<Generated>> {
    generate_from(model, 0, prompts, config, on_token)
}

/// [`generate_batch`] for prompts that are the `first`-th and following of a longer list: their
/// draws do not depend on how the list is divided.
///
/// # Errors
/// Those of [`generate_batch`].
pub fn generate_from<M: Blocks>(
    model: &M,
    first: usize,
    prompts: &[impl AsRef<[u32]>],
    config: &GenerateConfig,
    mut on_token: impl FnMut(usize, u32) -> Result<ControlFlow<()>>,
) -> Result<Vec<Generated>> {
    let sampler = Sampler::new(config)?;
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.as_ref().len()).collect();
    if let Some(row) = lengths.iter().position(|length| *length == 0) {
        let which = if lengths.len() == 1 { String::new() } else { format!(" {row}") };
        return Err(Error::Data(format!(
            "prompt{which} is empty; generation needs at least one token"
        )));
    }
    if prompts.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows: Vec<Sequence> = prompts.iter().map(|ids| Sequence::new(ids.as_ref())).collect();
    let mut generator = Generator::new(model).with_compute(config.compute);
    let start = Instant::now();
    let mut logits = prefill(&mut generator, &rows, config.prefill_chunk)?;
    let seconds_prefill = start.elapsed().as_secs_f64();

    let start = Instant::now();
    for step in 0..config.max_new_tokens {
        if step > 0 {
            logits = decode(&mut generator, &rows)?;
        }
        for (r, row) in rows.iter_mut().enumerate().filter(|(_, row)| row.finish.is_none()) {
            let id = sampler.pick(&logits[r], &row.ids, step as u64, (first + r) as u32)?;
            row.ids.push(id);
            let heard = on_token(r, id)?;
            if config.stop.contains(&id) {
                row.finish = Some(Finish::StopId);
            } else if heard.is_break() {
                row.finish = Some(Finish::Caller);
            }
            row.seconds = start.elapsed().as_secs_f64();
        }
        if rows.iter().all(|row| row.finish.is_some()) {
            break;
        }
    }
    Ok(rows.into_iter().map(|row| row.finished(seconds_prefill)).collect())
}

/// A row while it grows.
struct Sequence {
    /// Prompt and new ids.
    ids: Vec<u32>,
    prompt: usize,
    finish: Option<Finish>,
    /// Of decoding, until the last id.
    seconds: f64,
}

impl Sequence {
    fn new(prompt: &[u32]) -> Self {
        Self { ids: prompt.to_vec(), prompt: prompt.len(), finish: None, seconds: 0.0 }
    }

    fn finished(mut self, seconds_prefill: f64) -> Generated {
        let ids = self.ids.split_off(self.prompt);
        let steps = ids.len().saturating_sub(1) as f64;
        Generated {
            finish: self.finish.unwrap_or(Finish::Length),
            prompt_tokens: self.prompt,
            new_tokens: ids.len(),
            seconds_prefill,
            seconds_decode: self.seconds,
            tokens_per_second: if steps > 0.0 { steps / self.seconds } else { 0.0 },
            ids,
        }
    }
}

/// Feed the prompts, side by side with their ends aligned; the logits behind each. Pieces are
/// counted from that end, so that a row is cut where it would be cut alone: where frequencies
/// follow the length, a piece has those of the length that is reached with it.
fn prefill<M: Blocks>(
    generator: &mut Generator<M>,
    rows: &[Sequence],
    chunk: Option<usize>,
) -> Result<Vec<Vec<f32>>> {
    let lengths: Vec<usize> = rows.iter().map(|row| row.prompt).collect();
    let width = lengths.iter().copied().max().unwrap_or(0);
    let tokens = TokenMeta::left_padded(&lengths, width)?;
    let piece = chunk.unwrap_or(width).clamp(1, width.max(1));
    let mut logits = Vec::new();
    for left in (0..width.div_ceil(piece)).rev() {
        let to = width - left * piece;
        let from = to.saturating_sub(piece);
        let column = |row: &Sequence, at: usize| {
            at.checked_sub(width - row.prompt).map_or(PADDING, |at| row.ids[at])
        };
        let ids: Vec<u32> =
            rows.iter().flat_map(|row| (from..to).map(|at| column(row, at))).collect();
        logits = generator.feed_rows(&ids, &tokens.slice(from..to)?)?;
    }
    Ok(logits)
}

/// Feed the last id of every row that still grows, and padding to the others.
fn decode<M: Blocks>(generator: &mut Generator<M>, rows: &[Sequence]) -> Result<Vec<Vec<f32>>> {
    let (mut ids, mut pos, mut segment) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let grows = row.finish.is_none();
        let last = row.ids.last().copied().filter(|_| grows);
        ids.push(last.unwrap_or(PADDING));
        pos.push(if grows { row.ids.len() as i32 - 1 } else { 0 });
        segment.push(if grows { 0 } else { -1 });
    }
    generator.feed_rows(&ids, &TokenMeta::new(rows.len(), 1, pos, segment)?)
}

/// Id of what nobody sees; every vocabulary has it.
const PADDING: u32 = 0;
