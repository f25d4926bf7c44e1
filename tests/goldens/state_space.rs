//! A Mamba or Mamba-2 checkpoint in Hugging Face form: logits, hidden states, loss, gradients of all
//! parameters, states, decoding, left padding.

use crate::Failure;
use crate::golden::Golden;
use crate::model::{Batch, values};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use longburn::attention::{MixerConfig, MixerSchedule, State};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::params;
use longburn::models::{Blocks, Decoder, ForwardOptions, ids_tensor};

pub fn check(golden: &Golden) -> Result<(), Failure> {
    let device = Device::flex();
    let model = Decoder::load(&golden.folder("model_dir"), MixerSchedule::Own, &device)?.train();
    whole(golden, &model)?;
    let model = model.valid();
    decoding(golden, &model)?;
    padding(golden, &model)
}

/// Files number the *outputs* of the blocks, and put the final norm behind them.
fn whole(golden: &Golden, model: &Decoder) -> Result<(), Failure> {
    let batch = Batch::read(golden)?;
    let place = model.place(&batch.tokens, &Device::flex());
    let mut x = model.embed(batch.ids());
    for block in 0..model.num_blocks() {
        x = model.block(block, x, &place, &ForwardOptions::train(), None)?.y;
        golden.compare(&format!("out.hidden_states.{block}"), &values(x.clone()))?;
    }
    let last = model.finish(x);
    let name = format!("out.hidden_states.{}", model.num_blocks());
    golden.compare(&name, &values(last.clone()))?;
    golden.compare("out.logits", &values(model.logits(last.clone())))?;

    let loss = batch.loss(last, model.head())?;
    golden.compare("out.loss", &values(loss.clone()))?;
    let grads = GradientsParams::from_grads(loss.backward(), model);
    let keys = model.config().architecture.keys();
    for param in params(model) {
        let name = keys.to_hf(&param.path).ok_or(param.path)?;
        let grad = match param.shape.len() {
            1 => grads.get::<1>(param.id).map(values),
            2 => grads.get::<2>(param.id).map(values),
            _ => grads.get::<3>(param.id).map(values),
        };
        let grad = grad.ok_or_else(|| format!("{name} has no gradient"))?;
        golden.compare(&format!("grad.{name}"), &grad)?;
    }
    Ok(())
}

/// The first tokens at once, the others one by one.
fn decoding(golden: &Golden, model: &Decoder) -> Result<(), Failure> {
    let [rows, len] = *golden.shape("in.input_ids")? else {
        return Err("in.input_ids is not [B, T]".into());
    };
    let ids = golden.ids("in.input_ids")?;
    let options = ForwardOptions::infer().with_state(true);
    let feed = |range: std::ops::Range<usize>, states: Vec<State>| {
        let part = ids.chunks(len).flat_map(|row| &row[range.clone()]).copied();
        let input = ids_tensor(&part.collect::<Vec<_>>(), rows, &Device::flex());
        let tokens = TokenMeta::contiguous(rows, range.len(), range.start);
        let out = model.forward_ids(input, &tokens, &options, states)?;
        Ok::<_, Failure>((model.logits(out.last), out.states))
    };
    let prefill = golden.number("prefill")?;
    let (logits, mut states) = feed(0..prefill, vec![])?;
    compare_states(golden, "prefill", &states, false)?;
    let mut parts = vec![logits];
    for at in prefill..len {
        let (logits, next) = feed(at..at + 1, states)?;
        parts.push(logits);
        states = next;
    }
    let logits = values(Tensor::cat(parts, 1));
    // The official library leaves the bounds of Δ out when it decodes.
    let bounded =
        matches!(&model.config().mixers[0], MixerConfig::Mamba2(c) if c.dt_limit.is_some());
    if bounded {
        golden.ignore("out.decode_logits");
        golden.compare("out.logits", &logits)?;
    } else {
        golden.compare("out.decode_logits", &logits)?;
    }
    compare_states(golden, "final", &states, bounded)
}

/// Files have the channels of the convolution's inputs before their order.
fn compare_states(
    golden: &Golden,
    when: &str,
    states: &[State],
    without_ssm: bool,
) -> Result<(), Failure> {
    for (layer, state) in states.iter().enumerate() {
        let State::Recurrent(state) = state else { return Err("no recurrent state".into()) };
        let conv = state.conv.clone().squeeze_dim::<3>(1).swap_dims(1, 2);
        golden.compare(&format!("out.{when}_conv_state.{layer}"), &values(conv))?;
        let name = format!("out.{when}_ssm_state.{layer}");
        match without_ssm {
            true => golden.ignore(&name),
            false => golden.compare(&name, &values(state.ssm.clone()))?,
        }
    }
    Ok(())
}

fn padding(golden: &Golden, model: &Decoder) -> Result<(), Failure> {
    let [rows, len] = *golden.shape("in.input_ids")? else {
        return Err("in.input_ids is not [B, T]".into());
    };
    let pad = golden.number("left_pad")?;
    let ids = golden.ids("in.input_ids")?;
    let padded: Vec<u32> = ids
        .chunks(len)
        .flat_map(|row| vec![0; pad].into_iter().chain(row.iter().copied()))
        .collect();
    let tokens = TokenMeta::left_padded(&vec![len; rows], pad + len)?;
    let input = ids_tensor(&padded, rows, &Device::flex());
    let out = model.forward_ids(input, &tokens, &ForwardOptions::infer(), vec![])?;
    let logits = values(model.logits(out.last.narrow(1, pad, len)));
    // There, biases of the projections enter the convolution from padded places.
    if golden.config()["use_bias"] == true {
        golden.ignore("out.left_padded_logits");
        return golden.compare("out.logits", &logits);
    }
    golden.compare("out.left_padded_logits", &logits)
}
