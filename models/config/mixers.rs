//! The mixers of the layers: what a checkpoint remembers of them, and how a schedule changes it.
//!
//! `config.json` has them in an object of our own, `longburn`, only where they are not the
//! family's. A checkpoint whose layers have other weights than the family's gets a `model_type` of
//! its own, too, so that no program fills in what it misses with random numbers.

use super::fields::Fields;
use super::{Architecture, ModelConfig};
use crate::attention::{AttnShape, MixerConfig, MixerSchedule};
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Our object in `config.json`.
pub(super) const LONGBURN: &str = "longburn";
/// Before the family's name where layers have other weights than the family's.
const PREFIX: &str = "longburn_";

impl ModelConfig {
    /// Sizes of the attention layers; none in a family without.
    pub fn attention(&self) -> Option<AttnShape> {
        self.architecture.has_attention().then(|| AttnShape {
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            qkv_bias: self.qkv_bias,
            o_bias: self.o_bias,
            qk_norm: self.qk_norm.then_some(self.rms_norm_eps),
        })
    }

    /// This model with the mixers of `schedule`, and these mixers themselves. The configuration
    /// has what is left of them in inference, which is what a checkpoint remembers.
    ///
    /// # Errors
    /// As [`MixerSchedule::resolve`].
    pub fn with_mixers(&self, schedule: &MixerSchedule) -> Result<(Self, Vec<MixerConfig>)> {
        let mixers = schedule.resolve(&self.mixers)?;
        let kept = mixers.iter().map(MixerConfig::in_inference).collect();
        Ok((Self { mixers: kept, ..self.clone() }, mixers))
    }

    /// Layers whose mixer has other weights than in `before`.
    pub fn new_mixers(&self, before: &Self) -> BTreeSet<usize> {
        let pairs = before.mixers.iter().zip(&self.mixers).enumerate();
        let other = pairs.filter(|(_, (old, new))| !new.shares_weights_with(old));
        other.map(|(layer, _)| layer).collect()
    }

    /// Whether every layer has the family's own mixer.
    pub fn has_own_mixers(&self) -> bool {
        // In a family without attention there can be no other.
        !self.architecture.has_attention()
            || self.mixers.iter().all(|mixer| *mixer == MixerConfig::Dense)
    }

    /// Whether every layer has weights of the family's own form, so that other programs can read
    /// them, whatever they make of it.
    pub fn has_own_weights(&self) -> bool {
        !self.architecture.has_attention()
            || self.mixers.iter().all(MixerConfig::has_projections_only)
    }

    pub(super) fn check_mixers(&self, file: &str) -> Result<()> {
        if self.mixers.len() == self.num_hidden_layers {
            for (layer, mixer) in self.mixers.iter().enumerate() {
                if mixer.seer().is_some() {
                    let expected = "a mixer without a gate, which is loaded beside a checkpoint";
                    return Err(Error::config(file, format!("mixers[{layer}]"), "seer", expected));
                }
                mixer.check_sizes(self.hidden_size).map_err(|e| match e {
                    Error::Config { field, value, expected, .. } => {
                        Error::config(file, format!("mixers[{layer}].{field}"), value, expected)
                    }
                    other => other,
                })?;
            }
            return Ok(());
        }
        let value = format!("given for {} layers", self.mixers.len());
        let expected = format!("one mixer per layer ({})", self.num_hidden_layers);
        Err(Error::config(file, "mixers", value, expected))
    }

    /// Write what differs from the family's.
    pub(super) fn put_mixers(&self, map: &mut Map<String, Value>) {
        let prefix = if self.has_own_weights() { "" } else { PREFIX };
        let model_type = format!("{prefix}{}", self.architecture.model_type());
        map.insert("model_type".into(), json!(model_type));
        if self.has_own_mixers() {
            map.remove(LONGBURN);
        } else {
            map.insert(LONGBURN.into(), json!({ "mixer": MixerSchedule::of(&self.mixers) }));
        }
    }
}

/// The family that `model_type` names.
pub(super) fn family(model_type: &str) -> Option<Architecture> {
    let name = model_type.strip_prefix(PREFIX).unwrap_or(model_type);
    Architecture::ALL.into_iter().find(|a| a.model_type() == name)
}

/// Our object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Own {
    #[serde(default)]
    mixer: MixerSchedule,
}

/// The mixers of `layers` layers.
pub(super) fn read(f: &Fields, layers: usize) -> Result<Vec<MixerConfig>> {
    let own = vec![MixerConfig::Dense; layers];
    let Some(value) = f.get(LONGBURN) else { return Ok(own) };
    let read: Own = serde_json::from_value(value.clone()).map_err(|e| {
        f.error(LONGBURN, format!("an object as this version of Longburn writes it: {e}"))
    })?;
    read.mixer.resolve(&own).map_err(|error| match error {
        Error::Config { field, value, expected, .. } => {
            Error::config(f.file, format!("{LONGBURN}.{field}"), value, expected)
        }
        other => other,
    })
}
