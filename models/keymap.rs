//! Hugging Face names ↔ module paths, both ways.

use super::Architecture;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

/// Maps the names of one architecture's checkpoints to module paths and back.
pub trait KeyMap {
    /// Module path (enum variants left out) -> Hugging Face name; `None` for what a checkpoint
    /// does not store (adapters).
    fn to_hf(&self, path: &str) -> Option<String>;

    /// Hugging Face name -> module path; `None` for a name that no module path has.
    fn to_path(&self, name: &str) -> Option<String>;
}

/// Names of Llama, Mistral and Qwen: the module's own, under `model.`, with the projections
/// directly under `self_attn`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LlamaKeys;

/// Before the projections that all attention mixers share.
pub(super) const PROJ: &str = ".self_attn.proj.";
const ATTN: &str = ".self_attn.";
/// Names under `self_attn.` that live in the shared projections.
const SHARED: [&str; 6] = ["q_proj.", "k_proj.", "v_proj.", "o_proj.", "q_norm.", "k_norm."];

impl KeyMap for LlamaKeys {
    fn to_hf(&self, path: &str) -> Option<String> {
        if path.contains(".lora.") || super::gates::is_gate(path) {
            return None;
        }
        if path == "embed_tokens" {
            return Some("model.embed_tokens.weight".into());
        }
        if path.starts_with("lm_head.") {
            return Some(path.into());
        }
        Some(format!("model.{}", path.replacen(PROJ, ATTN, 1)))
    }

    fn to_path(&self, name: &str) -> Option<String> {
        if name == "model.embed_tokens.weight" {
            return Some("embed_tokens".into());
        }
        if name.starts_with("lm_head.") {
            return Some(name.into());
        }
        let path = name.strip_prefix("model.")?;
        match path.split_once(ATTN) {
            Some((layer, rest)) if SHARED.iter().any(|s| rest.starts_with(s)) => {
                Some(format!("{layer}{PROJ}{rest}"))
            }
            _ => Some(path.into()),
        }
    }
}

/// Names of GPT-NeoX. The three parts of its fused projection have a name each, see
/// [`stored`](super::stored).
#[derive(Clone, Copy, Debug, Default)]
pub struct NeoXKeys;

/// Beginnings of module paths and of names, the more special ones first.
const NEOX: [(&str, &str); 6] = [
    ("self_attn.proj.q_proj.", "attention.query_key_value.q."),
    ("self_attn.proj.k_proj.", "attention.query_key_value.k."),
    ("self_attn.proj.v_proj.", "attention.query_key_value.v."),
    ("self_attn.proj.o_proj.", "attention.dense."),
    ("mlp.up_proj.", "mlp.dense_h_to_4h."),
    ("mlp.down_proj.", "mlp.dense_4h_to_h."),
];
/// The same outside of the blocks.
const NEOX_ENDS: [(&str, &str); 3] = [
    ("embed_tokens", "gpt_neox.embed_in.weight"),
    ("norm.", "gpt_neox.final_layer_norm."),
    ("lm_head.", "embed_out."),
];

impl KeyMap for NeoXKeys {
    fn to_hf(&self, path: &str) -> Option<String> {
        if path.contains(".lora.") || super::gates::is_gate(path) {
            return None;
        }
        if let Some((layer, rest)) = in_block(path, "layers.") {
            let renamed = NEOX
                .iter()
                .find_map(|(ours, theirs)| Some(format!("{theirs}{}", rest.strip_prefix(ours)?)));
            let rest = renamed.unwrap_or_else(|| rest.replacen("self_attn.", "attention.", 1));
            return Some(format!("gpt_neox.{layer}{rest}"));
        }
        NEOX_ENDS
            .iter()
            .find_map(|(ours, theirs)| Some(format!("{theirs}{}", path.strip_prefix(ours)?)))
    }

    fn to_path(&self, name: &str) -> Option<String> {
        if let Some((layer, rest)) = in_block(name, "gpt_neox.layers.") {
            let layer = layer.strip_prefix("gpt_neox.")?;
            let renamed = NEOX
                .iter()
                .find_map(|(ours, theirs)| Some(format!("{ours}{}", rest.strip_prefix(theirs)?)));
            let rest = renamed.unwrap_or_else(|| rest.replacen("attention.", "self_attn.", 1));
            return Some(format!("{layer}{rest}"));
        }
        NEOX_ENDS
            .iter()
            .find_map(|(ours, theirs)| Some(format!("{ours}{}", name.strip_prefix(theirs)?)))
    }
}

/// Names of Mamba and Mamba-2.
#[derive(Clone, Copy, Debug, Default)]
pub struct MambaKeys;

/// Beginnings of module paths and of names, within a block and outside.
const MAMBA: [(&str, &str); 2] = [("input_layernorm.", "norm."), ("self_attn.", "mixer.")];
const MAMBA_ENDS: [(&str, &str); 3] = [
    ("embed_tokens", "backbone.embeddings.weight"),
    ("norm.", "backbone.norm_f."),
    ("lm_head.", "lm_head."),
];

impl KeyMap for MambaKeys {
    fn to_hf(&self, path: &str) -> Option<String> {
        if path.contains(".lora.") {
            return None;
        }
        let renamed = |pairs: &[(&str, &str)], rest: &str| {
            let with = |(ours, theirs): &(&str, &str)| {
                Some(format!("{theirs}{}", rest.strip_prefix(ours)?))
            };
            pairs.iter().find_map(with)
        };
        match in_block(path, "layers.") {
            Some((layer, rest)) => Some(format!("backbone.{layer}{}", renamed(&MAMBA, rest)?)),
            None => renamed(&MAMBA_ENDS, path),
        }
    }

    fn to_path(&self, name: &str) -> Option<String> {
        let renamed = |pairs: &[(&str, &str)], rest: &str| {
            let with = |(ours, theirs): &(&str, &str)| {
                Some(format!("{ours}{}", rest.strip_prefix(theirs)?))
            };
            pairs.iter().find_map(with)
        };
        match in_block(name, "backbone.layers.") {
            Some((layer, rest)) => {
                Some(format!("{}{}", layer.strip_prefix("backbone.")?, renamed(&MAMBA, rest)?))
            }
            None => renamed(&MAMBA_ENDS, name),
        }
    }
}

/// `layers.7.` and what follows.
fn in_block<'a>(name: &'a str, start: &str) -> Option<(&'a str, &'a str)> {
    let number = name.strip_prefix(start)?;
    let dot = number.find('.')?;
    Some(name.split_at(start.len() + dot + 1))
}

/// Number of the layer whose mixer the parameter at a module path belongs to.
pub(super) fn in_mixer(path: &str) -> Option<usize> {
    let (layer, rest) = path.strip_prefix("layers.")?.split_once('.')?;
    rest.starts_with("self_attn.").then(|| layer.parse().ok()).flatten()
}

impl Architecture {
    /// The names that its checkpoints use.
    pub fn keys(self) -> &'static dyn KeyMap {
        match self {
            Self::GptNeoX => &NeoXKeys,
            Self::Mamba | Self::Mamba2 => &MambaKeys,
            _ => &LlamaKeys,
        }
    }

    /// The name that `transformers` has for a tensor of a file, which may be by the authors.
    pub(super) fn present_name(self, name: &str) -> String {
        match self {
            Self::Mamba | Self::Mamba2 => {
                let name = name.strip_prefix("model.").unwrap_or(name);
                name.replacen("backbone.embedding.", "backbone.embeddings.", 1)
            }
            _ => name.into(),
        }
    }
}

/// A parameter as walks over a module see it.
#[derive(Clone, Debug)]
pub struct ParamInfo {
    /// Module path without enum variants, dots between.
    pub path: String,
    /// Burn's id of the parameter.
    pub id: ParamId,
    /// Shape.
    pub shape: Vec<usize>,
    /// Whether it is trained.
    pub trainable: bool,
}

impl ParamInfo {
    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Path of the parameter being visited. The name of an enum's variant is left out: it says which
/// mixer is in place, and weights must load into any.
#[derive(Default)]
pub(crate) struct PathStack(Vec<(String, bool)>);

impl PathStack {
    pub(crate) fn enter(&mut self, name: &str, container: &str) {
        self.0.push((name.to_string(), container.starts_with("Enum:")));
    }

    pub(crate) fn exit(&mut self) {
        self.0.pop();
    }

    pub(crate) fn path(&self) -> String {
        let names = self.0.iter().filter(|(_, variant)| !variant);
        names.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".")
    }
}

/// Whether a parameter is set to be trained, also where autodiff is off at the moment.
fn trains<const D: usize>(param: &Param<Tensor<D>>) -> bool {
    // Off autodiff only Burn knows the setting; turning a (cheap) clone on brings it out.
    param.is_require_grad() || param.clone().train().is_require_grad()
}

/// All float parameters of a module, in the module's order.
pub fn params<M: Module>(module: &M) -> Vec<ParamInfo> {
    #[derive(Default)]
    struct Walk {
        stack: PathStack,
        found: Vec<ParamInfo>,
    }
    impl ModuleVisitor for Walk {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found.push(ParamInfo {
                path: self.stack.path(),
                id: param.id,
                shape: param.dims().to_vec(),
                trainable: trains(param),
            });
        }
        fn enter_module(&mut self, name: &str, container: &str) {
            self.stack.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.stack.exit();
        }
    }
    let mut walk = Walk::default();
    module.visit(&mut walk);
    walk.found
}

/// Host copies of parameters, f32, with their paths.
pub fn read_params<M: Module>(
    module: &M,
    wanted: impl Fn(&str) -> bool,
) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    struct Walk<F> {
        stack: PathStack,
        wanted: F,
        found: Vec<(String, Vec<usize>, Vec<f32>)>,
    }
    impl<F: Fn(&str) -> bool> ModuleVisitor for Walk<F> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.stack.path();
            if (self.wanted)(&path) {
                let data = param.val().inner().into_data().iter::<f32>().collect();
                self.found.push((path, param.dims().to_vec(), data));
            }
        }
        fn enter_module(&mut self, name: &str, container: &str) {
            self.stack.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.stack.exit();
        }
    }
    let mut walk = Walk { stack: PathStack::default(), wanted, found: Vec::new() };
    module.visit(&mut walk);
    walk.found
}

/// Replace the value of every parameter for which `value` returns data, and set whether it is
/// trained where `trainable` says so. Shapes must have been checked.
pub fn map_params<M: Module>(
    module: M,
    value: impl FnMut(&str) -> Option<Vec<f32>>,
    trainable: impl Fn(&str) -> Option<bool>,
) -> M {
    struct Walk<V, T> {
        stack: PathStack,
        value: V,
        trainable: T,
    }
    impl<V, T> ModuleMapper for Walk<V, T>
    where
        V: FnMut(&str) -> Option<Vec<f32>>,
        T: Fn(&str) -> Option<bool>,
    {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.stack.path();
            let trains = (self.trainable)(&path);
            let mut param = param;
            if let Some(data) = (self.value)(&path) {
                let keep = param.is_require_grad();
                param = param.map(|old| {
                    let data = burn::tensor::TensorData::new(data, old.shape());
                    Tensor::from_data(data, (&old.device(), old.dtype())).set_require_grad(keep)
                });
            }
            match trains {
                Some(trains) => param.set_require_grad(trains),
                None => param,
            }
        }
        fn enter_module(&mut self, name: &str, container: &str) {
            self.stack.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.stack.exit();
        }
    }
    let mut walk = Walk { stack: PathStack::default(), value, trainable };
    module.map(&mut walk)
}
