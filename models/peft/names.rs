//! Names of a family's modules as PEFT has them: those of its checkpoints without `.weight`.

use crate::models::keymap::KeyMap;
use crate::models::lora::{Role, Target};
use crate::models::stored;

/// What PEFT puts before the names of the model that it wraps.
const PREFIX: &str = "base_model.model.";
/// Ends of module paths and what PEFT calls the two factors.
const FACTORS: [(&str, &str); 2] = [(".lora.a", "lora_A"), (".lora.b", "lora_B")];

/// The names of one family.
#[derive(Clone, Copy)]
pub(super) struct Names(pub &'static dyn KeyMap);

impl Names {
    /// A block's projection, and which third of it the target is where it holds q, k and v.
    pub fn projection(self, layer: usize, target: Target) -> (String, Option<usize>) {
        let (name, part) = stored::place(&self.own(layer, target, "weight"));
        (without_leaf(&name).0.into(), part)
    }

    /// Name of one of the two factors of a target's update, before q, k and v are joined.
    pub fn factor(self, layer: usize, target: Target, factor: &str) -> String {
        format!("{PREFIX}{}", self.own(layer, target, &format!("{factor}.weight")))
    }

    fn own(self, layer: usize, target: Target, leaf: &str) -> String {
        let part = match target {
            Target::Q | Target::K | Target::V | Target::O => "self_attn.proj",
            Target::In | Target::X | Target::Dt | Target::Out => "self_attn",
            Target::Gate | Target::Up | Target::Down => "mlp",
        };
        let path = format!("layers.{layer}.{part}.{}.weight", target.hf_name());
        let name = self.0.to_hf(&path).unwrap_or(path);
        format!("{}.{leaf}", without_leaf(&name).0)
    }

    /// Name of the parameter at `path` in the model that PEFT wraps. It is that of checkpoints but
    /// for GPT-NeoX's head, which `transformers` 5 calls as in all families.
    fn name(self, path: &str) -> Option<String> {
        match path {
            "lm_head.weight" => Some(path.into()),
            _ => self.0.to_hf(path),
        }
    }

    /// The embedding.
    pub fn embedding(self) -> String {
        self.module("embed_tokens")
    }

    /// The head, where it has weights of its own.
    pub fn head(self) -> String {
        self.module("lm_head.weight")
    }

    /// The same as `transformers` 4 has it.
    pub fn older_head(self) -> String {
        let name = self.0.to_hf("lm_head.weight").unwrap_or_default();
        without_leaf(&name).0.into()
    }

    fn module(self, path: &str) -> String {
        let name = self.name(path).unwrap_or_default();
        without_leaf(&name).0.into()
    }

    /// Name of the module that a parameter belongs to, where `modules_to_save` can hold it.
    pub fn saveable(self, path: &str) -> Option<String> {
        match Role::of(path)? {
            Role::Embedding | Role::Norm | Role::QkNorm | Role::Head => {
                self.name(path).map(|name| without_leaf(&name).0.into())
            }
            Role::Bias | Role::StateSpace => None,
        }
    }

    /// Name in the file of what is stored for the parameter at `path`, before q, k and v are
    /// joined.
    pub fn key(self, path: &str) -> Option<String> {
        for (end, factor) in FACTORS {
            if let Some(linear) = path.strip_suffix(end) {
                let weight = self.0.to_hf(&format!("{linear}.weight"))?;
                return Some(format!("{PREFIX}{}.{factor}.weight", without_leaf(&weight).0));
            }
        }
        self.saveable(path)?;
        self.name(path).map(|name| format!("{PREFIX}{name}"))
    }
}

/// Name in the file of a module's weight.
pub(super) fn weight_of(module: &str) -> String {
    format!("{PREFIX}{module}.weight")
}

/// A name without and with nothing but its last part.
pub(super) fn without_leaf(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or((name, ""))
}
