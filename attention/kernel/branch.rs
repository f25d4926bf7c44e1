//! What goes into and comes out of attention.

use crate::{Error, Mask};
use burn::tensor::{DType, Tensor};

/// One set of query-key pairs: queries and keys as they are rotated for it, and the mask that
/// says which pairs belong to it. A pair may belong to one branch only.
#[derive(Clone, Debug)]
pub struct Branch {
    /// `[B, H, T, D]`
    pub q: Tensor<4>,
    /// `[B, K, S, D]`, K divides H
    pub k: Tensor<4>,
    /// Which pairs count.
    pub mask: Mask,
}

/// Which code computes attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Implementation {
    /// The fastest that the device has.
    #[default]
    Auto,
    /// Dense and obvious, [T, S] scores: for tests.
    Reference,
    /// Tiles out of tensor operations, any device.
    Tiled,
    /// Tiles through slices and a matrix-product library, CPU only.
    Flex,
    /// CubeCL kernels, graphics cards only, for the ops that have them.
    Cube,
    /// Attention in CUDA C++ for cards of compute capability 9 (H100, H200), in bf16 and f16, where the
    /// feature `cuda-nvrtc` is on.
    Hopper,
}

impl Implementation {
    /// The one that runs for tensors like `x` of an op whose CPU code is in f32.
    pub(crate) fn in_f32<const D: usize>(
        self,
        op: &'static str,
        x: &Tensor<D>,
    ) -> Result<Self, Error> {
        let on_cpu = crate::attention::is_flex(&x.device()) && x.dtype() == DType::F32;
        match self {
            Self::Auto if on_cpu => Ok(Self::Flex),
            Self::Auto => Ok(Self::Tiled),
            Self::Flex if !on_cpu => Err(Error::Unsupported {
                op,
                reason: format!(
                    "`Flex` runs on the CPU in f32, not on {:?} in {:?}",
                    x.device(),
                    x.dtype()
                ),
            }),
            Self::Cube => Err(Error::Unsupported {
                op,
                reason: "no CubeCL kernels of it run here".to_string(),
            }),
            Self::Hopper => Err(Error::Unsupported {
                op,
                reason: "`Hopper` is for attention alone".to_string(),
            }),
            other => Ok(other),
        }
    }
}

/// Settings of an attention call.
#[derive(Clone, Debug, Default)]
pub struct AttentionOptions {
    /// Factor on the scores; 1/sqrt(D) where none is given.
    pub scale: Option<f64>,
    /// Which code runs.
    pub implementation: Implementation,
    /// Whether gradients have the same bits in every run, which only `Hopper` gives up for speed where it
    /// may.
    pub deterministic: bool,
}

impl AttentionOptions {
    /// Set the factor on the scores.
    pub fn with_scale(mut self, scale: f64) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Choose the code.
    pub fn with_implementation(mut self, implementation: Implementation) -> Self {
        self.implementation = implementation;
        self
    }

    /// Choose whether gradients have the same bits in every run.
    pub fn with_deterministic(mut self, deterministic: bool) -> Self {
        self.deterministic = deterministic;
        self
    }
}

/// Result of attention.
#[derive(Clone, Debug)]
pub struct AttentionOutput {
    /// `[B, H, T, E]`; zeros for a query that sees nothing.
    pub out: Tensor<4>,
    /// `[B, H, T]`, f32: log of the sum of exponentials of the scores, detached; −inf for a query
    /// that sees nothing.
    pub lse: Tensor<3>,
}

/// Gradients of attention, one entry per branch for queries and keys.
#[derive(Clone, Debug)]
pub struct AttentionGrads {
    /// `[B, H, T, D]` each
    pub dq: Vec<Tensor<4>>,
    /// `[B, K, S, D]` each
    pub dk: Vec<Tensor<4>>,
    /// `[B, K, S, E]`
    pub dv: Tensor<4>,
}
