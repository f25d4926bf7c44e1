//! `config.json` of a Hugging Face checkpoint: read as it is, written back in the shape it had.
//!
//! A field that is absent means what `transformers` takes it for, per architecture; only the
//! five sizes that make a model (vocabulary, width, inner width, layers, heads) must be there.

mod build;
mod check;
mod extend;
mod fields;
mod mamba;
mod mixers;
mod read;
mod rope;
mod shapes;
mod write;

pub use extend::{ExtendMethod, Extension};

use super::Activation;
use crate::attention::MixerConfig;
use crate::positional::RopeConfig;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Largest `config.json` that is read, bytes.
const MAX_FILE: u64 = 1 << 20;

/// The decoder families that this version knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3.x.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3, dense: norms on q and k, head width of its own.
    Qwen3,
    /// GPT-NeoX and Pythia: LayerNorm, GELU without a gate, biases, rotation of a part of each
    /// head, feed-forward layer beside attention.
    GptNeoX,
    /// Mamba: state-space layers, nothing else.
    Mamba,
    /// Mamba-2, the same.
    Mamba2,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::GptNeoX,
        Self::Mamba,
        Self::Mamba2,
    ];

    /// The name in the field `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::GptNeoX => "gpt_neox",
            Self::Mamba => "mamba",
            Self::Mamba2 => "mamba2",
        }
    }

    /// What the names of its Python classes begin with.
    pub fn class_prefix(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
            Self::GptNeoX => "GPTNeoX",
            Self::Mamba => "Mamba",
            Self::Mamba2 => "Mamba2",
        }
    }

    /// Whether its blocks are attention with positions, and a feed-forward layer.
    pub fn has_attention(self) -> bool {
        !matches!(self, Self::Mamba | Self::Mamba2)
    }

    /// Whether its attention may have a sliding window.
    pub(crate) fn has_windows(self) -> bool {
        matches!(self, Self::Mistral | Self::Qwen2 | Self::Qwen3)
    }

    /// Whether its norms have a bias beside the weight (LayerNorm).
    pub fn norms_have_bias(self) -> bool {
        self == Self::GptNeoX
    }
}

/// A decoder's configuration, as far as it changes what is computed.
///
/// ```
/// use longburn::models::ModelConfig;
/// let config = ModelConfig::llama(512, 64, 2, 4).with_kv_heads(2).with_max_positions(256);
/// config.validate()?;
/// assert_eq!(config.head_dim, 16);
/// # Ok::<(), longburn::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Inner width of the feed-forward layer; 0 in a family without.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads; 0, as the two below, in a family without attention.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// ε of the norms.
    pub rms_norm_eps: f64,
    /// Longest sequence the checkpoint is meant for, tokens; 2³⁰ where there is no such limit.
    pub max_position_embeddings: usize,
    /// Rotary encoding; of no use in a family without attention.
    pub rope: RopeConfig,
    /// Bias on the q, k and v projections.
    pub qkv_bias: bool,
    /// Bias on the output projection of attention.
    pub o_bias: bool,
    /// Bias on the feed-forward projections.
    pub mlp_bias: bool,
    /// Of the feed-forward layer.
    pub activation: Activation,
    /// Attention and the feed-forward layer read the same residual stream, each through its own
    /// norm (GPT-NeoX); else the feed-forward layer reads what attention has added to.
    pub parallel_residual: bool,
    /// RMS norms of width `head_dim` on q and k, before rotation.
    pub qk_norm: bool,
    /// The head is the embedding.
    pub tie_word_embeddings: bool,
    /// Per layer, how many keys a query sees, itself included; `None` is all.
    pub windows: Vec<Option<usize>>,
    /// Per layer, the mixer that it has in inference; [`MixerConfig::Dense`] is the family's.
    pub mixers: Vec<MixerConfig>,
    /// Id that begins a text.
    pub bos_token_id: Option<u32>,
    /// Ids that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Id that fills up rows.
    pub pad_token_id: Option<u32>,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// The file as read, so that saving keeps fields unknown here.
    raw: Map<String, Value>,
}

impl ModelConfig {
    /// Read a `config.json`.
    ///
    /// # Errors
    /// The file cannot be read, is larger than 1 MiB, is not JSON, or describes a model that
    /// cannot be built; the error names field, value and what is expected.
    pub fn from_file(path: &Path) -> Result<Self> {
        let remedy = "name the folder of a checkpoint in Hugging Face form, which holds one";
        let text = super::weights::read_needed(path, MAX_FILE, remedy)?;
        Self::from_json_str(&text, &path.display().to_string())
    }

    /// Read the text of a `config.json`; `file_name` is for error messages.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn from_json_str(text: &str, file_name: &str) -> Result<Self> {
        let parsed = serde_json::from_str(text).or_else(|e| {
            serde_json::from_str(&mamba::without_bare_infinities(text)).map_err(|_| e)
        });
        let value: Value = parsed.map_err(|e| parse_error(&e, text, file_name, REMEDY))?;
        let Value::Object(raw) = value else {
            return Err(Error::Parse {
                file: file_name.into(),
                message: format!("the top level is not a JSON object (remedy: {REMEDY})"),
                text: None,
                span: None,
            });
        };
        let config = read::config(raw, file_name)?;
        config.check(file_name)?;
        Ok(config)
    }

    /// Whether a model can be built from this and written for `transformers`.
    ///
    /// # Errors
    /// [`Error::Config`] with field, value and what is expected.
    pub fn validate(&self) -> Result<()> {
        self.check("model configuration")
    }

    /// The file this was read from, field by field.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }
}

/// What helps against a file that is no JSON object.
const REMEDY: &str = "get the file again from where the checkpoint is from";

/// Texts above this size are not carried along in an error.
const SHOWN_TEXT: usize = 1 << 16;

fn parse_error(error: &serde_json::Error, text: &str, file: &str, remedy: &str) -> Error {
    let before: usize =
        text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let at = (before + error.column().saturating_sub(1)).min(text.len());
    let shown = text.len() <= SHOWN_TEXT;
    Error::Parse {
        file: file.into(),
        message: format!("{error} (remedy: {remedy})"),
        text: shown.then(|| text.into()),
        span: shown.then_some(at..at),
    }
}
