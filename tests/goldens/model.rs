//! A checkpoint in Hugging Face form: logits, hidden states, loss, gradients of all parameters,
//! and a greedy decode.

use crate::Failure;
use crate::golden::Golden;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use longburn::attention::{MixerConfig, State};
use longburn::kernel::{TokenMeta, linear_cross_entropy};
use longburn::models::keymap::params;
use longburn::models::weights::HostTensor;
use longburn::models::{Blocks, Decoder, ForwardOptions, Hidden, Place, ids_tensor, stored};
use longburn::positional::Positions;

pub fn check(golden: &Golden) -> Result<(), Failure> {
    let model = Decoder::load(&golden.folder("model_dir"), &MixerConfig::Dense, &Device::flex())?;
    let model = model.train();
    let keys = model.config().architecture.keys();
    let batch = Batch::read(golden)?;
    let options = ForwardOptions::train().with_hidden(true);
    let out = match model.config().rope.kind.follows_length() {
        true => with_one_length(&model, &batch, &options)?,
        false => model.forward_ids(batch.ids(), &batch.tokens, &options, vec![])?,
    };

    let logits = model.logits(out.last.clone());
    golden.compare("out.logits", &batch.without_padding(logits))?;
    for (i, hidden) in out.hidden.into_iter().enumerate() {
        golden.compare(&format!("out.hidden.{i}"), &batch.without_padding(hidden))?;
    }

    let loss = batch.loss(out.last, model.head())?;
    golden.compare("out.loss", &values(loss.clone()))?;
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    let mut named = Vec::new();
    for param in params(&model) {
        let name = keys.to_hf(&param.path).ok_or(param.path)?;
        let grad = match param.shape.len() {
            1 => grads.get::<1>(param.id).map(values),
            _ => grads.get::<2>(param.id).map(values),
        };
        let grad = grad.ok_or_else(|| format!("{name} has no gradient"))?;
        named.push(HostTensor::new(name, param.shape, grad)?);
    }
    for HostTensor { name, data, .. } in stored::join(named, model.config().num_attention_heads) {
        golden.compare(&format!("grad.{name}"), &data)?;
    }
    match golden.has("greedy.new_ids") {
        true => greedy(golden, &model.valid()),
        false => Ok(()),
    }
}

/// The pass as the official library makes it: the longest row sets the frequencies of all.
fn with_one_length(
    model: &Decoder,
    batch: &Batch,
    options: &ForwardOptions,
) -> Result<Hidden, Failure> {
    let positions = Positions::of(&batch.tokens);
    let rope = model.rope().table_at(&positions, positions.length(), &Device::flex());
    let place = Place { tokens: batch.tokens.clone(), rope };
    let mut x = model.embed(batch.ids());
    let mut hidden = vec![x.clone()];
    for block in 0..model.num_blocks() {
        x = model.block(block, x, &place, options, None)?.y;
        hidden.push(x.clone());
    }
    // The last one is after the final norm.
    let last = model.finish(x);
    *hidden.last_mut().ok_or("no blocks")? = last.clone();
    Ok(Hidden { last, states: vec![], aux: None, taps: vec![], hidden })
}

/// Rows of ids, some padded on the left, with labels.
pub struct Batch {
    rows: usize,
    ids: Vec<u32>,
    /// Already moved by one: what each token has to predict, −100 for nothing.
    targets: Vec<i64>,
    pub tokens: TokenMeta,
}

impl Batch {
    /// A file without a mask has no padding; one without labels wants its own ids.
    pub fn read(golden: &Golden) -> Result<Self, Failure> {
        let [rows, len] = golden.shape("in.input_ids")? else {
            return Err("in.input_ids is not [B, T]".into());
        };
        let ids = golden.ids("in.input_ids")?;
        let labels = match golden.has("in.labels") {
            true => golden.integers("in.labels")?,
            false => ids.iter().map(|id| i64::from(*id)).collect(),
        };
        let mask = match golden.has("in.attention_mask") {
            true => golden.integers("in.attention_mask")?,
            false => vec![1; ids.len()],
        };
        let (mut pos, mut segment, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for (mask, labels) in mask.chunks(*len).zip(labels.chunks(*len)) {
            let mut seen = 0;
            for m in mask {
                seen += *m as i32;
                pos.push((seen - 1).max(0));
                segment.push(*m as i32 - 1);
            }
            targets.extend(&labels[1..]);
            targets.push(-100);
        }
        Ok(Self { rows: *rows, ids, targets, tokens: TokenMeta::new(*rows, *len, pos, segment)? })
    }

    pub fn ids(&self) -> Tensor<2, burn::tensor::Int> {
        ids_tensor(&self.ids, self.rows, &Device::flex())
    }

    /// Mean cross-entropy over the labelled tokens.
    pub fn loss(&self, last_BTD: Tensor<3>, head_VD: Tensor<2>) -> Result<Tensor<1>, Failure> {
        let [b, t, d] = last_BTD.dims();
        let count = self.targets.iter().filter(|label| **label >= 0).count();
        let sum = linear_cross_entropy(last_BTD.reshape([b * t, d]), head_VD, &self.targets)?;
        Ok(sum.div_scalar(count as f64))
    }

    /// `[B, T, X]` with zeros where goldens have them: under padding.
    pub fn without_padding(&self, x_BTX: Tensor<3>) -> Vec<f32> {
        let width = x_BTX.dims()[2];
        let mut x = values(x_BTX);
        for (row, segment) in x.chunks_mut(width).zip(self.tokens.segment()) {
            if *segment < 0 {
                row.fill(0.0);
            }
        }
        x
    }
}

pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

/// Decode with a cache, token by token, and once more in a single pass over the result.
fn greedy(golden: &Golden, model: &Decoder) -> Result<(), Failure> {
    let cached = ForwardOptions::infer().with_state(true);
    let (new_ids, logits) = decode(golden, model, &cached)?;
    golden.compare_integers("greedy.new_ids", &new_ids)?;
    golden.compare("greedy.logits", &logits)?;
    // Where frequencies follow the length, a cache is meant to differ from going over the text.
    if golden.has("greedy_uncached.new_ids") {
        let (new_ids, logits) = decode(golden, model, &ForwardOptions::infer())?;
        golden.compare_integers("greedy_uncached.new_ids", &new_ids)?;
        return golden.compare_within("greedy.logits", "greedy_uncached.logits", &logits);
    }

    let [rows, count] = *golden.shape("greedy.new_ids")? else { unreachable!("read above") };
    let prompt = golden.ids("greedy.prompt_ids")?;
    let width = prompt.len() / rows;
    let mut whole = Vec::new();
    for (prompt, new) in prompt.chunks(width).zip(golden.ids("greedy.new_ids")?.chunks(count)) {
        whole.extend_from_slice(prompt);
        whole.extend_from_slice(&new[..count - 1]);
    }
    let tokens = TokenMeta::contiguous(rows, width + count - 1, 0);
    let ids = ids_tensor(&whole, rows, &Device::flex());
    let out = model.forward_ids(ids, &tokens, &ForwardOptions::infer(), vec![])?;
    golden.compare("greedy.logits", &values(model.logits(out.last.narrow(1, width - 1, count))))
}

/// The most likely ids after each prompt and the logits that chose them; without states in
/// `options`, every step goes over the whole text.
fn decode(
    golden: &Golden,
    model: &Decoder,
    options: &ForwardOptions,
) -> Result<(Vec<i64>, Vec<f32>), Failure> {
    let [rows, count] = *golden.shape("greedy.new_ids")? else {
        return Err("greedy.new_ids is not [B, N]".into());
    };
    let prompt = golden.ids("greedy.prompt_ids")?;
    let (mut new_ids, mut logits) = (Vec::new(), Vec::new());
    for prompt in prompt.chunks(prompt.len() / rows) {
        let (mut text, mut seen) = (prompt.to_vec(), 0);
        let mut states: Vec<State> = vec![];
        for _ in 0..count {
            let input = &text[seen..];
            let tokens = TokenMeta::contiguous(1, input.len(), seen);
            let ids = ids_tensor(input, 1, &Device::flex());
            let out = model.forward_ids(ids, &tokens, options, states)?;
            let last = values(model.logits(out.last.narrow(1, input.len() - 1, 1)));
            let best = argmax(&last);
            if options.keep_state {
                seen = text.len();
            }
            text.push(best as u32);
            new_ids.push(best as i64);
            logits.extend(last);
            states = out.states;
        }
    }
    Ok((new_ids, logits))
}

fn argmax(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0)
}
