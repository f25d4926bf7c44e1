//! Mixers that are not attention alone: their weights, and their trace.

use super::layout::{Layer, Layout, Training, Weights};
use super::tape::{Tape, Trace, Value};
use super::{PlanConfig, fast_weights, gate, state_space};
use crate::attention::{LongLoraForm, MixerConfig};
use crate::models::lora::{Role, Target};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::rc::Rc;

/// The mixer of a block.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub weights: Weights,
    /// Whether its output carries a gradient whatever its input does.
    pub answers: bool,
    /// For an input without a gradient and for one with.
    traces: [Trace; 2],
}

/// What a mixer makes of its input: its output, and a loss term beside it.
type Mix<'a> = &'a dyn Fn(&Tape, Value) -> (Value, Option<Value>);

/// Sizes of a micro-batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub batch: u64,
    pub len: u64,
    pub hidden: u64,
    /// Threads of the CPU.
    pub threads: usize,
}

impl Sizes {
    pub fn tokens(self) -> u64 {
        self.batch * self.len
    }
}

/// The weights of a mixer by their names: linear layers, and all others.
#[derive(Debug, Default)]
pub(super) struct Parts {
    layers: BTreeMap<&'static str, Layer>,
    others: BTreeMap<&'static str, Weights>,
}

impl Parts {
    /// Of a mixer with weights instead of q, k, v and o.
    pub(super) fn new(mixer: &MixerConfig, hidden: usize, training: &Training<'_>) -> Self {
        let all = mixer.own_weights(hidden);
        let has = |name: &str| all.iter().any(|(known, _)| *known == name);
        let mut parts = Self::default();
        for (name, shape) in &all {
            let floats = shape.iter().product();
            match (name.strip_suffix(".weight"), &shape[..]) {
                (Some(layer), &[to, from]) => {
                    let bias = has(&format!("{layer}.bias"));
                    let adapts = |t: &Target| t.hf_name() == layer && t.is_in(mixer);
                    let target = Target::ALL.into_iter().find(adapts);
                    parts.layers.insert(layer, training.layer(target, (from, to), bias));
                }
                _ => {
                    let of_layer = name
                        .strip_suffix(".bias")
                        .is_some_and(|layer| has(&format!("{layer}.weight")) && layer != "conv1d");
                    if !of_layer {
                        let path = format!("layers.0.self_attn.{name}");
                        let weights = match Role::of(&path) {
                            Some(role) => training.of_role(role, floats),
                            None => training.matrix(floats),
                        };
                        parts.others.insert(name, weights);
                    }
                }
            }
        }
        parts
    }

    /// A linear layer that the mixer has.
    pub fn layer(&self, name: &str) -> &Layer {
        &self.layers[name]
    }

    /// One that it may have.
    pub fn maybe(&self, name: &str) -> Option<&Layer> {
        self.layers.get(name)
    }

    /// Other weights; none of them where the mixer does not have them.
    pub fn weights(&self, name: &str) -> Weights {
        self.others.get(name).copied().unwrap_or_default()
    }

    fn sum(&self) -> Weights {
        let layers = self.layers.values().map(Layer::weights);
        layers.chain(self.others.values().copied()).fold(Weights::default(), Weights::and)
    }
}

/// The kernel's attention of rotated queries and keys: keeps all three, its output and a number per
/// query and head, `lse`. In its backward pass it takes `scratch`.
pub(super) fn attend(tape: &Tape, [q, k, v]: [&Value; 3], lse: &Value, scratch: u64) -> Value {
    let out = tape.op(&[q, k, v], q.floats, &[q, k, v, lse], (0, scratch));
    tape.keep_output(&out);
    out
}

impl Own {
    /// Of all blocks, none for those that `block` accounts for.
    ///
    /// # Errors
    /// For LongLoRA's rolled form, and settings that the layer would refuse.
    pub(super) fn of_layers(
        plan: &PlanConfig,
        training: &Training<'_>,
        layout: &Layout,
        mixers: &[MixerConfig],
    ) -> Result<Vec<Option<Rc<Self>>>> {
        let mut all: Vec<Option<Rc<Self>>> = Vec::with_capacity(mixers.len());
        for (i, mixer) in mixers.iter().enumerate() {
            all.push(match all.last().filter(|_| mixers[i - 1] == *mixer) {
                Some(same) => same.clone(),
                None => Self::new(plan, training, layout, mixer)?.map(Rc::new),
            });
        }
        Ok(all)
    }

    fn new(
        plan: &PlanConfig,
        training: &Training<'_>,
        layout: &Layout,
        mixer: &MixerConfig,
    ) -> Result<Option<Self>> {
        let hidden = plan.model.hidden_size;
        let [batch, len, width] = [plan.batch, plan.length, hidden].map(|size| size as u64);
        let sizes = Sizes { batch, len, hidden: width, threads: plan.threads };
        let own = |weights: Weights, answers, mix: Mix<'_>| {
            let trace = |tracked| Tape::trace(sizes.tokens() * sizes.hidden, tracked, mix);
            Ok(Some(Self { weights, answers, traces: [false, true].map(trace) }))
        };
        let parts = || Parts::new(mixer, hidden, training);
        match mixer {
            MixerConfig::LongLora(m) if m.form == LongLoraForm::Rolled => Err(Error::Unsupported {
                what: "a memory plan of LongLoRA's rolled form".into(),
                remedy: "use form = \"segment\"".into(),
            }),
            MixerConfig::Dense
            | MixerConfig::LongLora(_)
            | MixerConfig::LongGen(_)
            | MixerConfig::Anchor => Ok(None),
            MixerConfig::Mamba1(config) => {
                let parts = parts();
                let sum = parts.sum();
                own(sum, sum.trained > 0, &|tape, x| {
                    (state_space::mamba1(tape, x, sizes, config, &parts), None)
                })
            }
            MixerConfig::Mamba2(config) => {
                let parts = parts();
                let sum = parts.sum();
                own(sum, sum.trained > 0, &|tape, x| {
                    (state_space::mamba2(tape, x, sizes, config, &parts), None)
                })
            }
            MixerConfig::Lact(config) => {
                let parts = parts();
                let (sum, heads) = (parts.sum(), layout.heads);
                let widths = config.widths(hidden)?;
                let layer = fast_weights::Layer { config, parts: &parts, heads, widths, sizes };
                let traces = [false, true].map(|tracked| layer.trace(tracked));
                Ok(Some(Self { weights: sum, answers: sum.trained > 0, traces }))
            }
            MixerConfig::Seer(_) if layout.head_dim == 0 => Err(Error::Unsupported {
                what: "a gate beside attention in a family without heads".into(),
                remedy: "take the checkpoint's own mixer, or a family with attention".into(),
            }),
            MixerConfig::Seer(config) => {
                let layer = gate::Layer::new(config, layout, training, sizes);
                own(layer.weights(), false, &|tape, x| layer.mix(tape, x))
            }
        }
    }

    pub fn trace(&self, tracked: bool) -> &Trace {
        &self.traces[usize::from(tracked)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Mamba1Config, Mamba2Config, SeerConfig};
    use crate::models::ModelConfig;
    use crate::models::lora::LoraConfig;

    /// The first block's mixer, of a model of width 4 over two rows of three tokens.
    fn own(mixer: &MixerConfig, lora: Option<LoraConfig>, muon: bool) -> Own {
        let model = ModelConfig::llama(8, 4, 1, 2);
        let plan = PlanConfig::new(model, 3).with_batch(2).with_lora(lora).with_muon(muon);
        let layout = Layout::new(&plan, std::slice::from_ref(mixer)).unwrap();
        layout.mixers[0].as_deref().unwrap().clone()
    }

    fn adapted(target: Target) -> Option<LoraConfig> {
        Some(LoraConfig { rank: 3, targets: vec![target], ..LoraConfig::default() })
    }

    #[test]
    fn weights_are_counted_once() {
        let mamba = MixerConfig::Mamba1(Mamba1Config::new().with_d_state(5).with_dt_rank(2));
        let all = own(&mamba, None, false);
        // In, x, Δ with its bias, out; convolution, A, D; with inner width 8.
        let layers = 4 * 16 + 8 * 12 + 2 * 8 + 8 * 4;
        let others = 8 + 5 * 8 + 8 * 5 + 8;
        let weights = |own: &Own| {
            let Weights { all, trained, moments, largest } = own.weights;
            [all, trained, moments, largest]
        };
        let sum = layers + others;
        assert_eq!(weights(&all), [sum, sum, 2 * sum, 8 * 12]);
        // Muon has one number of each in linear layers.
        let muon = own(&mamba, None, true);
        assert_eq!(weights(&muon), [sum, sum, layers + 2 * others, 8 * 12]);
        let out = own(&mamba, adapted(Target::Out), false);
        assert_eq!(weights(&out), [sum + 3 * 12, 3 * 12, 2 * 3 * 12, 3 * 8]);
        let x = own(&mamba, adapted(Target::X), false);
        assert_eq!(weights(&x), [sum + 3 * 20, 3 * 20, 2 * 3 * 20, 3 * 12]);
    }

    /// An output answers where weights of the mixer do, whatever its input does.
    #[test]
    fn outputs_answer_where_weights_do() {
        let head = Mamba2Config::new().with_head_dim(4);
        for mixer in [MixerConfig::Mamba1(Mamba1Config::new()), MixerConfig::Mamba2(head)] {
            assert!(own(&mixer, None, false).answers);
            assert!(own(&mixer, adapted(Target::Out), false).answers);
            assert!(!own(&mixer, adapted(Target::Q), false).answers);
        }
        let gate = MixerConfig::Seer(SeerConfig::new().with_block(2));
        assert!(!own(&gate, None, false).answers);
    }

    /// With an input that carries none, the graph begins where weights train.
    #[test]
    fn traces_are_those_of_their_inputs() {
        let mamba = MixerConfig::Mamba1(Mamba1Config::new());
        let own = own(&mamba, adapted(Target::Out), false);
        let (y, low) = (6 * 8, 6 * 3);
        assert_eq!(own.trace(false).kept, y + low);
        assert!(own.trace(true).kept > y + low);
        assert_eq!(own.trace(false).learned, 3 * (8 + 4));
    }

    #[test]
    fn attention_keeps_what_it_reads_and_gives() {
        let trace = Tape::trace(10, true, |tape, q| {
            let [k, v, lse] = [6, 6, 2].map(|floats| tape.made(floats));
            (attend(tape, [&q, &k, &v], &lse, 7), None)
        });
        assert_eq!((trace.kept, trace.forward), (10 + 6 + 6 + 2 + 10, 34));
        // The gradient of q, and the working space.
        assert_eq!(trace.backward, (34 + 10 + 7, 0));
    }
}
