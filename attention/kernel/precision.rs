//! What ops compute in, whatever their inputs are in.

use burn::tensor::DType;

/// f64 where the input is, else f32.
pub(crate) fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}
