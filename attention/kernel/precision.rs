//! What ops compute in, whatever their inputs are in.

use burn::tensor::DType;

/// f64 where the input is, else f32.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Whether numbers of this kind are widened to be computed with.
pub(crate) fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}
