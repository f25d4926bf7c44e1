//! Mixed precision (Micikevicius et al., 1710.03740) in bf16: what a pass computes in, whatever its
//! weights are.
//!
//! The dtype is the activations'. In bf16 the residual stream, the inputs and outputs of linear layers,
//! q, k and v are in bf16, and every linear layer rounds its f32 weight to what it is given; norms,
//! rotations, activation functions, softmax and losses compute in f32 and round their result once.
//! Rounding a weight has a gradient, so that gradients, and with them the optimizer, stay f32.
//!
//! The residual stream is bf16, as in models that `transformers` loads in bf16 and under fully sharded
//! training, and not f32 as under PyTorch's autocast: what lies between products is then half as many
//! bytes forward, backward and in memory, for a rounding error of at most 2⁻⁸ per addition.

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// What matrix products and attention compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// The dtype of the weights, f32.
    #[default]
    F32,
    /// bf16, with weights, gradients and optimizer in f32.
    Bf16,
}

impl Compute {
    /// The names that recipes use.
    const NAMES: [&str; 2] = ["f32", "bf16"];

    /// The name that recipes use.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Dtype of activations where weights are in f32.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Whether a device computes in it; WGPU has no products in bf16.
    pub fn runs_on(self, device: &Device) -> bool {
        self == Self::F32 || device.supports_dtype(self.dtype())
    }

    /// `x` as a pass goes on with it; `F32` leaves what is wider as it is.
    ///
    /// # Shapes
    /// Any
    pub fn of<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::F32 => wide(x),
            Self::Bf16 => x.cast(DType::BF16),
        }
    }
}

/// `x` for what computes in f32 alone: widened from 16 bits, else as it is.
pub(crate) fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::BF16 | DType::F16 => x.cast(DType::F32),
        _ => x,
    }
}

impl<'de> Deserialize<'de> for Compute {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            "f16" => Err(D::Error::custom(
                "training in f16 would need the loss scaled so that gradients do not vanish, which is not \
                 done here; use \"bf16\", whose range is that of f32",
            )),
            other => Err(D::Error::unknown_variant(other, &Self::NAMES)),
        }
    }
}
