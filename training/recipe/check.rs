//! What must hold between the fields of a recipe, as far as it can be told without the files.

use super::sections::{DataKind, Family, NewModel, Recipe, Rows};
use crate::attention::seer::GateKind;
use crate::attention::{LongLoraConfig, Mamba1Config, Mamba2Config, MixerConfig, MixerSchedule};
use crate::datasets::{AnchorEngine, Pack};
use crate::models::ModelConfig;
use crate::training::checkpoint::KEEP;
use crate::{Error, Result};

/// Longest rows and positions, tokens: far above any model, far below what overflows.
const LONGEST: usize = 1 << 28;
/// Most rows of a micro-batch, and most of those in a step.
const MOST_ROWS: usize = 1 << 20;
/// Most threads.
const MOST_WORKERS: usize = 1024;

impl Recipe {
    pub(super) fn check(&self) -> Result<()> {
        let model = &self.model;
        match (&model.path, &model.new) {
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => {
                return Err(self.bad("model", "without a model", "`path` or `[model.new]`"));
            }
            (Some(_), Some(_)) => {
                return Err(self.bad("model.new", "set beside `path`", "one of the two"));
            }
        }
        if model.new.is_some() {
            if self.extend.is_some() {
                let expected = "no section with [model.new] (set model.new.max_positions)";
                return Err(self.bad("extend", "set", expected));
            }
            let config = self.new_config()?;
            config.validate().map_err(|e| self.new_field(e))?;
            let mixers = self.mixers(&config)?;
            if let Some(layer) = mixers.iter().position(|mixer| !self.in_family(mixer)) {
                let place = self.mixer.place(layer, mixers.len())?;
                let expected = "the mixer of model.new.family, or another family";
                return Err(self.bad(&format!("{place}.name"), mixers[layer].name(), expected));
            }
            self.check_length(&config)?;
        }
        self.check_train()?;
        self.check_data()?;
        if let Some(lora) = &self.lora {
            if model.new.is_some() {
                return Err(self.bad("lora", "set", "a checkpoint (model.path) to adapt"));
            }
            lora.validate().map_err(|e| self.within("lora", e))?;
        }
        for (place, mixer) in self.mixer.named() {
            if let MixerConfig::LongLora(mixer) = mixer {
                self.check_groups(&place, mixer)?;
            }
        }
        self.check_gates()?;
        if let Some(protocol) = self.eval.as_ref().and_then(|eval| eval.protocol) {
            protocol.check().map_err(|e| self.within("eval.protocol", e))?;
        }
        if self.checkpoints.keep < KEEP {
            let (keep, expected) = (self.checkpoints.keep, format!("at least {KEEP}"));
            return Err(self.bad("checkpoints.keep", keep, expected));
        }
        if self.checkpoints.evaluate && self.eval.is_none() {
            return Err(self.bad("checkpoints.evaluate", true, "false without [eval]"));
        }
        if self.output.merge && self.lora.is_none() {
            return Err(self.bad("output.merge", true, "false without [lora]"));
        }
        if self.output.max_shard_bytes == Some(0) {
            return Err(self.bad("output.max_shard_bytes", 0, "at least 1"));
        }
        Ok(())
    }

    /// Gates learn alone, from a checkpoint, and are saved in one file with their settings.
    fn check_gates(&self) -> Result<()> {
        let Some(first) = self.mixer.seer() else { return Ok(()) };
        for (place, mixer) in self.mixer.named() {
            let Some(seer) = mixer.seer() else { continue };
            seer.validate().map_err(|e| self.within(&place, e))?;
            if seer != first {
                let expected = "the settings of the other gates, with which they share a file";
                return Err(self.bad(&place, "a gate of other settings", expected));
            }
        }
        if self.lora.is_some() {
            return Err(self.bad("lora", "set", "none with a mixer of which the gate learns"));
        }
        if self.model.new.is_some() {
            let expected = "a checkpoint (model.path) whose attention the gate learns";
            return Err(self.bad("model.new", "set", expected));
        }
        Ok(())
    }

    fn check_train(&self) -> Result<()> {
        let train = &self.train;
        if train.steps == 0 {
            return Err(self.bad("train.steps", 0, "at least 1"));
        }
        for (field, value, least, most) in [
            ("train.length", train.length, 2, LONGEST),
            ("train.batch", train.batch, 1, MOST_ROWS),
            ("train.micro_batches", train.micro_batches as usize, 1, MOST_ROWS),
            ("train.workers", train.workers as usize, 1, MOST_WORKERS),
            ("extend.to", self.extend.as_ref().map_or(1, |extend| extend.to), 1, LONGEST),
        ] {
            if !(least..=most).contains(&value) {
                return Err(self.bad(field, value, format!("from {least} to {most}")));
            }
        }
        if let Some(extend) = &self.extend {
            let checked = extend.method.check(extend.factors.as_deref());
            checked.map_err(|e| self.within("extend", e))?;
        }
        train.config(self.seed).validate().map_err(|e| self.within("train", e))?;
        match &self.extend {
            Some(extend) if extend.to < train.length => {
                let expected = format!("at least train.length = {}", train.length);
                Err(self.bad("extend.to", extend.to, expected))
            }
            _ => Ok(()),
        }
    }

    /// The rows of training must fit into the model's context.
    pub(super) fn check_length(&self, config: &ModelConfig) -> Result<()> {
        let (length, reach) = (self.train.length, config.max_context());
        if length <= reach {
            return Ok(());
        }
        let expected = match &self.model.new {
            Some(_) => format!("at most model.new.max_positions = {reach}"),
            None => format!("at most the model's context of {reach}, or `to` in [extend]"),
        };
        Err(self.bad("train.length", length, expected))
    }

    fn check_data(&self) -> Result<()> {
        self.check_chat()?;
        let data = &self.data;
        if data.held_out.is_some() && data.split.is_some() {
            return Err(self.bad("data.split", "set beside `held_out`", "one of the two"));
        }
        if let Some(split) = data.split.filter(|split| *split < 2) {
            return Err(self.bad("data.split", split, "at least 2"));
        }
        if self.eval.is_some() && data.held_out.is_none() && data.split.is_none() {
            let expected = "`held_out` or `split` in [data], or no [eval]";
            return Err(self.bad("eval", "set without held-out documents", expected));
        }
        if data.epochs == Some(0) {
            return Err(self.bad("data.epochs", 0, "at least 1"));
        }
        if data.line_cap == Some(0) {
            return Err(self.bad("data.line_cap", 0, "at least 1"));
        }
        for (i, mix) in data.mix.iter().enumerate() {
            if !(mix.weight.is_finite() && mix.weight > 0.0) {
                let field = format!("data.mix[{i}].weight");
                return Err(self.bad(&field, mix.weight, "a number above 0"));
            }
        }
        if data.cache.is_some() && self.model.path.is_none() && self.model.tokenizer.is_none() {
            let expected = "model.tokenizer (one learned in the run reads the text anyway)";
            return Err(self.bad("data.cache", "set without a tokenizer", expected));
        }
        for (field, set) in [
            ("data.mix", !data.mix.is_empty()),
            ("data.pack", data.pack.is_some_and(|pack| pack != Pack::Concat)),
            ("data.segments", data.segments),
            ("data.anchor", data.anchor.is_some()),
            ("data.epochs", data.epochs.is_some()),
        ] {
            if set && data.rows == Rows::Windows {
                return Err(self.bad(field, "set", "rows = \"packed\" with it"));
            }
        }
        if data.positions.is_some() && !data.segments() {
            let expected = "nothing without documents in rows (data.segments or data.anchor)";
            return Err(self.bad("data.positions", "set", expected));
        }
        self.check_anchor()?;
        let eval = self.eval.as_ref();
        for (field, value) in [
            ("eval.documents", eval.and_then(|e| e.documents)),
            ("eval.tokens", eval.and_then(|e| e.tokens)),
        ] {
            if value == Some(0) {
                return Err(self.bad(field, 0, "at least 1"));
            }
        }
        Ok(())
    }

    /// What is allowed, and hardly meant.
    pub(super) fn remarks(&self) -> Vec<String> {
        let named = self.mixer.named();
        let has = |which: fn(&MixerConfig) -> bool| named.iter().any(|(_, mixer)| which(mixer));
        let mut remarks = Vec::new();
        if self.data.anchor.is_none() && has(|mixer| *mixer == MixerConfig::Anchor) {
            remarks.push(
                "the mixer anchor without [data.anchor]: rows have no anchor, and all layers attend as \
                 with the mixer dense",
            );
        }
        let chooses = |mixer: &MixerConfig| {
            mixer.seer().is_some_and(|s| s.gate == GateKind::Decode && s.select.is_some())
        };
        if self.eval.is_some() && has(chooses) {
            remarks.push(
                "[eval] sees everything: gates with gate = \"decode\" choose for one token at a time, and \
                 rows are scored in one pass",
            );
        }
        remarks.into_iter().map(|remark| format!("{}: {remark}", self.file)).collect()
    }

    /// An anchor that the mixers see.
    fn check_anchor(&self) -> Result<()> {
        let Some(anchor) = &self.data.anchor else { return Ok(()) };
        if self.data.kind == DataKind::Chat {
            let expected = "nothing with conversations, which begin as their template says";
            return Err(self.bad("data.anchor", "set", expected));
        }
        if anchor.min_len == 0 {
            return Err(self.bad("data.anchor.min_len", 0, "at least 1"));
        }
        let named = self.mixer.named();
        let seen = named.iter().all(|(_, mixer)| **mixer == MixerConfig::Anchor);
        if anchor.engine == AnchorEngine::Shared && (named.is_empty() || !seen) {
            let expected = "\"per_document\", or mixer.name = \"anchor\"";
            return Err(self.bad("data.anchor.engine", "\"shared\"", expected));
        }
        Ok(())
    }

    /// Groups must divide every document that attention sees.
    fn check_groups(&self, place: &str, mixer: &LongLoraConfig) -> Result<()> {
        let length = self.train.length;
        let (field, value) = match mixer.group_size {
            Some(size) => (format!("{place}.group_size"), size),
            None => (format!("{place}.group_ratio"), mixer.group_ratio),
        };
        if value == 0 {
            return Err(self.bad(&field, 0, "at least 1"));
        }
        let groups = mixer.groups();
        // What ragged groups would not mend lies in the group, the rest in the length.
        if let Err(e) = (crate::kernel::Groups { ragged: true, ..groups }).size_for(length) {
            return Err(self.bad(&field, value, reason(e)));
        }
        if let Err(e) = groups.size_for(length) {
            let expected = match mixer.group_size {
                None if length.is_multiple_of(value) => reason(e),
                _ => format!("a multiple of {field} = {value}"),
            };
            let expected = format!("{expected}, or {place}.ragged = true");
            return Err(self.bad("train.length", length, expected));
        }
        let data = &self.data;
        let whole_rows =
            data.rows == Rows::Windows || (data.pack() == Pack::Concat && data.epochs.is_none());
        if !mixer.ragged && (data.segments() || !whole_rows) {
            let expected = "true where documents of other lengths than train.length stand alone \
                            (data.kind, data.segments, data.pack or data.epochs)";
            return Err(self.bad(&format!("{place}.ragged"), false, expected));
        }
        Ok(())
    }

    /// The configuration that `[model.new]` stands for.
    pub(super) fn new_config(&self) -> Result<ModelConfig> {
        let Some(new) = &self.model.new else {
            return Err(self.bad("model.new", "missing", "the sizes of a new model"));
        };
        if new.layers == 0 {
            return Err(self.bad("model.new.layers", 0, "at least 1"));
        }
        if new.family != Family::Llama {
            return self.new_state_space(new);
        }
        let heads = match new.heads {
            Some(heads) if heads > 0 => heads,
            Some(_) => return Err(self.bad("model.new.heads", 0, "at least 1")),
            None => return Err(self.bad("model.new.heads", "missing", "the number of heads")),
        };
        let mut config = ModelConfig::llama(new.vocab_size, new.hidden_size, new.layers, heads);
        config.rope.theta = new.rope_theta;
        if let Some(width) = new.intermediate_size {
            config = config.with_intermediate(width);
        }
        Ok(config
            .with_kv_heads(new.kv_heads.unwrap_or(heads))
            .with_max_positions(new.max_positions.unwrap_or(self.train.length))
            .with_tied(new.tied))
    }

    fn new_state_space(&self, new: &NewModel) -> Result<ModelConfig> {
        for (field, value) in [
            ("heads", new.heads),
            ("kv_heads", new.kv_heads),
            ("intermediate_size", new.intermediate_size),
            ("max_positions", new.max_positions),
        ] {
            if let Some(value) = value {
                let expected = "nothing in a family of state-space layers";
                return Err(self.bad(&format!("model.new.{field}"), value, expected));
            }
        }
        let default = match new.family {
            Family::Mamba => MixerConfig::Mamba1(Mamba1Config::new()),
            _ => MixerConfig::Mamba2(Mamba2Config::new()),
        };
        let mixer = match &self.mixer {
            MixerSchedule::All(mixer) if self.in_family(mixer) => mixer.clone(),
            _ => default,
        };
        let (vocab, hidden) = (new.vocab_size, new.hidden_size);
        Ok(ModelConfig::state_space(vocab, hidden, new.layers, mixer).with_tied(new.tied))
    }

    /// Whether a new model of the recipe's family can have this mixer.
    fn in_family(&self, mixer: &MixerConfig) -> bool {
        match self.model.new.as_ref().map(|new| new.family) {
            Some(Family::Mamba) => matches!(mixer, MixerConfig::Mamba1(_)),
            Some(Family::Mamba2) => matches!(mixer, MixerConfig::Mamba2(_)),
            Some(Family::Llama) | None => true,
        }
    }

    /// A fault of the configuration under the name that the field has in `[model.new]`.
    fn new_field(&self, error: Error) -> Error {
        let Error::Config { field, value, expected, .. } = error else { return error };
        let name = match &*field {
            "num_hidden_layers" => "layers",
            "num_attention_heads" => "heads",
            "num_key_value_heads" => "kv_heads",
            "max_position_embeddings" => "max_positions",
            "head_dim" | "rope.dim" => "hidden_size",
            other => other,
        };
        self.bad(&format!("model.new.{name}"), value, expected)
    }
}

fn reason(error: crate::kernel::Error) -> String {
    match error {
        crate::kernel::Error::Mask { reason, .. } => reason,
        other => other.to_string(),
    }
}
