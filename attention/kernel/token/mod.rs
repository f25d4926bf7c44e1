//! A token of every row through all layers of a decoder, behind a cache: on NVIDIA's Hopper cards, in five launches a
//! layer. A token asks for so little work that the card only has to keep reading weights and cache; with a launch for
//! every operation it mostly waits for the host.
//!
//! - `thin.cu`: a linear layer of few rows, with what is before it (the norm) and behind it (rotation and the cache,
//!   the residual stream, the gate). On an H100 it reads 1.8 to 2.7 TB/s, the more the larger a layer.
//! - `one.cu`: attention of one query per row, cut over keys where rows are few; 2.3 to 3.0 TB/s.
//!
//! Every launch fetches the first of its weights or keys while the one before it ends, and then waits for that.

#[cfg(feature = "cuda-nvrtc")]
mod pass;
#[cfg(any(test, feature = "cuda-nvrtc"))]
#[cfg_attr(not(feature = "cuda-nvrtc"), allow(dead_code))]
mod source;

use crate::Error;
use burn::tensor::Tensor;

/// A layer of a decoder of the Llama kind: `x + o(attention(norm(x)))`, then `x + down(silu(gate(y)) * up(y))` of
/// y = norm(x). D is the model's width, E the width of its heads together.
#[derive(Clone, Debug)]
pub struct TokenLayer {
    /// `[D]`
    pub input_norm: Tensor<1>,
    /// Queries `[E, D]`, keys and values `[K * head, D]`.
    pub qkv: [Tensor<2>; 3],
    /// Of queries, keys and values.
    pub biases: [Option<Tensor<1>>; 3],
    /// `[D, E]`
    pub o: Tensor<2>,
    /// `[D]`
    pub post_norm: Tensor<1>,
    /// `[I, D]`
    pub gate: Tensor<2>,
    /// `[I, D]`
    pub up: Tensor<2>,
    /// `[D, I]`
    pub down: Tensor<2>,
}

/// A decoder of such layers: matrices in bf16, norms and biases in f32.
#[derive(Clone, Debug)]
pub struct TokenModel {
    /// The layers.
    pub layers: Vec<TokenLayer>,
    /// Of the end, `[D]`.
    pub norm: Tensor<1>,
    /// `[V, D]`
    pub head: Tensor<2>,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Of the norms.
    pub eps: f64,
}

/// A token of every row, and what is before it.
#[derive(Debug)]
pub struct Tokens {
    /// Embeddings in bf16, `[B, D]`.
    pub x: Tensor<2>,
    /// Of the rotation, in f32, `[B, head / 2]`, or of one row where all are alike.
    pub cos: Tensor<2>,
    /// The same.
    pub sin: Tensor<2>,
    /// Keys and values of every layer, `[B, K, R, head]` in bf16, with room for more tokens than are there: R > `len`.
    /// What nobody else holds is written where it lies.
    pub caches: Vec<[Tensor<4>; 2]>,
    /// Tokens that are there.
    pub len: usize,
    /// The first of them that each row sees.
    pub starts: Vec<usize>,
}

/// The launches of such a model.
#[derive(Debug)]
pub struct TokenPass {
    #[cfg(feature = "cuda-nvrtc")]
    pass: pass::Pass,
}

/// Logits `[B, V]` in f32, and the caches with the new token in them.
pub type Logits = (Tensor<2>, Vec<[Tensor<4>; 2]>);

impl TokenPass {
    /// Most rows.
    pub const ROWS: usize = 16;

    /// Where there are kernels for the model: on Hopper cards, for heads of 64 and 128 channels of which at most eight
    /// share a key head, and widths that are multiples of 32.
    pub fn new(model: &TokenModel) -> Option<Self> {
        #[cfg(feature = "cuda-nvrtc")]
        return Some(Self { pass: pass::Pass::new(model)? });
        #[cfg(not(feature = "cuda-nvrtc"))]
        {
            let _ = model;
            None
        }
    }

    /// Appends a token to every row.
    ///
    /// # Errors
    /// [`Error::Shape`] where tensors are not as [`Tokens`] says, or there are more rows than [`Self::ROWS`].
    pub fn step(&mut self, tokens: Tokens) -> Result<Logits, Error> {
        #[cfg(feature = "cuda-nvrtc")]
        return self.pass.step(tokens);
        #[cfg(not(feature = "cuda-nvrtc"))]
        {
            let _ = tokens;
            let reason = "there are no kernels where no card is built for".into();
            Err(Error::Unsupported { op: "TokenPass", reason })
        }
    }
}
