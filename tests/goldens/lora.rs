//! A PEFT folder on a checkpoint: logits before, with and after merging, loss, gradients of all
//! that trains, and the merged weights.

use crate::Failure;
use crate::golden::Golden;
use crate::model::{Batch, values};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use longburn::attention::MixerConfig;
use longburn::models::keymap::{KeyMap, LlamaKeys, params};
use longburn::models::{Blocks, Decoder, ForwardOptions, Hidden, lora, peft};

pub fn check(golden: &Golden) -> Result<(), Failure> {
    let batch = Batch::read(golden)?;
    let base = Decoder::load(&golden.folder("base_dir"), &MixerConfig::Dense, &Device::flex())?;
    let pass = |model: &Decoder| -> Result<Hidden, Failure> {
        Ok(model.forward_ids(batch.ids(), &batch.tokens, &ForwardOptions::train(), vec![])?)
    };
    let logits = |model: &Decoder, name: &str| -> Result<(), Failure> {
        golden.compare(name, &batch.without_padding(model.logits(pass(model)?.last)))
    };
    logits(&base, "out.logits_base")?;

    let model = peft::load_adapter(base, &golden.folder("adapter_dir"))?.train();
    logits(&model, "out.logits_adapter")?;
    let loss = batch.loss(pass(&model)?.last, model.head())?;
    golden.compare("out.loss", &values(loss.clone()))?;
    let grads = GradientsParams::from_grads(loss.backward(), &model);
    for param in params(&model).into_iter().filter(|p| p.trainable) {
        let grad = match param.shape.len() {
            1 => grads.get::<1>(param.id).map(values),
            _ => grads.get::<2>(param.id).map(values),
        };
        let grad = grad.ok_or_else(|| format!("{} has no gradient", param.path))?;
        golden.compare(&format!("grad.{}", wrapped_name(&param.path)?), &grad)?;
    }

    let merged = lora::merge(model.valid());
    logits(&merged, "out.logits_merged")?;
    for tensor in merged.hf_tensors() {
        let name = format!("merged.{}", tensor.name);
        if golden.has(&name) {
            golden.compare(&name, &tensor.data)?;
        }
    }
    Ok(())
}

/// The name that a parameter has inside PEFT's wrapper.
fn wrapped_name(path: &str) -> Result<String, Failure> {
    let (path, part) = match path.split_once(".lora.") {
        Some((linear, "a")) => (format!("{linear}.weight"), "lora_A"),
        Some((linear, _)) => (format!("{linear}.weight"), "lora_B"),
        None => (path.to_string(), "modules_to_save"),
    };
    let name = LlamaKeys.to_hf(&path).ok_or_else(|| format!("{path} is in no checkpoint"))?;
    let module = name.strip_suffix(".weight").ok_or_else(|| format!("{name} is no weight"))?;
    Ok(format!("{module}.{part}.weight"))
}
