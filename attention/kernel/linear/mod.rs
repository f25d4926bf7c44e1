//! Linear layers: `y = x·Wᵀ + b` as one node of the graph, with weights as checkpoints store them.
//!
//! On the CPU products in f32 come out of packed panels (`flex`). On NVIDIA cards those in f32, bf16 and f16
//! are cuBLASLt's, on CubeCL's stream, with sums in f32 and no rounding to TF32; a bias is added, and its
//! gradient summed, by the product's own kernel (`layout` says how the library is told a product in rows,
//! `library` finds it, `plan` asks it, `pass` launches). What it lacks or refuses is left to Burn's products,
//! which all else has, too; [`products_on`] and [`left_to_burn`] tell.

#[cfg(feature = "flex")]
mod flex;
#[cfg(any(test, feature = "cuda"))]
mod layout;
#[cfg(feature = "cuda")]
mod library;
#[cfg(any(feature = "flex", feature = "cuda"))]
mod op;
#[cfg(feature = "cuda")]
mod pass;
#[cfg(feature = "cuda")]
mod plan;
#[cfg(test)]
mod tests;

use crate::fused::expect;
#[cfg(any(feature = "flex", feature = "cuda"))]
use crate::precision::is_narrow;
#[cfg(any(feature = "flex", feature = "cuda"))]
use burn::backend::Dispatch;
use burn::tensor::{DType, Device, Tensor};
#[cfg(any(feature = "flex", feature = "cuda"))]
use op::LinearOps;

/// A linear layer without a bias.
///
/// For x in 16 bits the weight may be in f32: it is rounded for the products, and its gradient is in f32,
/// where a product of our own is there, that of its sums.
///
/// # Shapes
/// x `[M, K]`, weight `[N, K]` -> `[M, N]`, like x
///
/// # Panics
/// When the widths K differ.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    let ([m, k], [n, of_weight]) = (x.dims(), weight.dims());
    expect(k == of_weight, "linear", || format!("x is [{m}, {k}], the weight [{n}, {of_weight}]"));
    if m * k * n == 0 {
        return Tensor::zeros([m, n], (&x.device(), x.dtype()));
    }
    if x.dtype() != weight.dtype() {
        #[cfg(any(feature = "flex", feature = "cuda"))]
        if is_narrow(x.dtype()) && weight.dtype() == DType::F32 && has_narrow_op(&x, &weight) {
            let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
            return Tensor::from_dispatch(<Dispatch as LinearOps>::narrow_linear_op(x, weight));
        }
        let weight = weight.cast(x.dtype());
        return linear(x, weight);
    }
    #[cfg(any(feature = "flex", feature = "cuda"))]
    if has_op(&x, &weight) {
        let y = <Dispatch as LinearOps>::linear_op(x.into_dispatch(), weight.into_dispatch());
        return Tensor::from_dispatch(y);
    }
    x.matmul(weight.transpose())
}

/// A linear layer with a bias.
///
/// # Shapes
/// x `[M, K]`, weight `[N, K]`, bias `[N]` -> `[M, N]`
///
/// # Panics
/// When the widths K differ, or the numbers N.
pub fn linear_bias(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    let ([m, k], [n, of_weight], [of_bias]) = (x.dims(), weight.dims(), bias.dims());
    expect(k == of_weight && n == of_bias, "linear_bias", || {
        format!("x is [{m}, {k}], the weight [{n}, {of_weight}], the bias [{of_bias}]")
    });
    if m * n == 0 {
        return Tensor::zeros([m, n], (&x.device(), x.dtype()));
    }
    #[cfg(any(feature = "flex", feature = "cuda"))]
    {
        let alike = bias.dtype() == x.dtype() && bias.device().inner() == x.device().inner();
        if alike && k > 0 && has_op(&x, &weight) {
            let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
            let y = <Dispatch as LinearOps>::linear_bias_op(x, weight, bias.into_dispatch());
            return Tensor::from_dispatch(y);
        }
    }
    linear(x, weight) + bias.unsqueeze()
}

/// `a·b` by the code of [`linear`], without a graph: the products of its backward pass.
///
/// # Shapes
/// a `[M, K]`, b `[K, N]` -> `[M, N]`
///
/// # Panics
/// When the widths K differ.
pub fn matmul_detached(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let ([m, k], [of_b, n]) = (a.dims(), b.dims());
    expect(k == of_b, "matmul_detached", || format!("a is [{m}, {k}], b [{of_b}, {n}]"));
    if m * k * n == 0 {
        return Tensor::zeros([m, n], (&a.device(), a.dtype()));
    }
    #[cfg(any(feature = "flex", feature = "cuda"))]
    if has_op(&a, &b) {
        let c = <Dispatch as LinearOps>::product_op(a.into_dispatch(), b.into_dispatch());
        return Tensor::from_dispatch(c);
    }
    a.detach().matmul(b.detach())
}

/// `a·b` without a graph, for forms out of tensor operations: they have the card's library, too.
pub(crate) fn product_on_card(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cuda")]
    if a.dims()[1] == b.dims()[0] && on_card(&a, &b) {
        let c = <Dispatch as LinearOps>::product_op(a.into_dispatch(), b.into_dispatch());
        return Tensor::from_dispatch(c);
    }
    a.matmul(b)
}

/// `a·b` of matrices in the last two dimensions, the same number of both, as [`product_on_card`].
///
/// # Shapes
/// a `[.., M, K]`, b `[.., K, N]` -> `[.., M, N]`
pub(crate) fn products_on_card<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "cuda")]
    if a.dims()[..D - 2] == b.dims()[..D - 2]
        && a.dims()[D - 1] == b.dims()[D - 2]
        && on_card(&a, &b)
    {
        let c = <Dispatch as LinearOps>::products_op(a.into_dispatch(), b.into_dispatch());
        return Tensor::from_dispatch(c);
    }
    a.matmul(b)
}

/// `a·b` of factors in 16 bits, in f32: on NVIDIA cards the sums as they are.
///
/// # Shapes
/// a `[M, K]`, b `[K, N]` -> `[M, N]`, f32
pub(crate) fn wide_product_on_card(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "cuda")]
    if a.dims()[1] == b.dims()[0] && is_narrow(a.dtype()) && on_card(&a, &b) {
        let c = <Dispatch as LinearOps>::wide_product_op(a.into_dispatch(), b.into_dispatch());
        return Tensor::from_dispatch(c);
    }
    product_on_card(a, b).cast(DType::F32)
}

/// Adds `a·b` of factors in 16 bits to `sum`, where NVIDIA's library does; whether it was done.
///
/// # Shapes
/// a `[M, K]`, b `[K, N]`, sum `[M, N]`, f32
#[cfg(feature = "cube")]
#[cfg_attr(not(feature = "cuda"), expect(unused_variables))]
pub(crate) fn add_product_on_card(
    a: &Tensor<2>,
    b: &Tensor<2>,
    sum: &burn_cubecl::tensor::CubeTensor,
) -> bool {
    #[cfg(feature = "cuda")]
    if a.dims()[1] == b.dims()[0] && is_narrow(a.dtype()) && on_card(a, b) {
        use burn::backend::Cube;
        let (a, b) = (a.clone(), b.clone());
        return pass::add_wide_product(primitive!(Cube, a), primitive!(Cube, b), sum);
    }
    false
}

#[cfg(any(feature = "flex", feature = "cuda"))]
fn has_narrow_op(x: &Tensor<2>, weight: &Tensor<2>) -> bool {
    let on_cpu = |x: &Tensor<2>| crate::attention::is_flex(&x.device());
    let same = x.device().inner() == weight.device().inner();
    (cfg!(feature = "flex") && on_cpu(x) && on_cpu(weight)) || (same && on_card(x, x))
}

#[cfg(any(feature = "flex", feature = "cuda"))]
fn has_op(a: &Tensor<2>, b: &Tensor<2>) -> bool {
    #[cfg(feature = "flex")]
    if on_cpu(a) && on_cpu(b) {
        return true;
    }
    on_card(a, b)
}

#[cfg(feature = "flex")]
fn on_cpu(x: &Tensor<2>) -> bool {
    x.dtype() == DType::F32 && crate::attention::is_flex(&x.device())
}

#[cfg(all(feature = "flex", not(feature = "cuda")))]
fn on_card(_: &Tensor<2>, _: &Tensor<2>) -> bool {
    false
}

#[cfg(feature = "cuda")]
fn on_card<const D: usize>(a: &Tensor<D>, b: &Tensor<D>) -> bool {
    let empty = |x: &Tensor<D>| x.dims().contains(&0);
    let alike = a.dtype() == b.dtype() && a.device().inner() == b.device().inner();
    alike && !empty(a) && !empty(b) && pass::library_for(a).is_ok()
}

/// Whose code multiplies the matrices of linear layers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Products {
    /// Packed panels on the CPU.
    Flex,
    /// NVIDIA's library; what it refuses, Burn does.
    CublasLt {
        /// Its version.
        version: String,
    },
    /// Burn's own.
    Burn {
        /// Why no other.
        reason: String,
    },
}

impl std::fmt::Display for Products {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flex => f.write_str("`Flex`"),
            Self::CublasLt { version } => write!(f, "cuBLASLt {version}"),
            Self::Burn { reason } => write!(f, "Burn's products ({reason})"),
        }
    }
}

/// Whose code [`linear`] runs on a device.
pub fn products_on(device: &Device, dtype: DType) -> Products {
    if crate::attention::is_flex(device) {
        return match dtype {
            DType::F32 => Products::Flex,
            _ => Products::Burn { reason: format!("`Flex` computes in F32, not in {dtype:?}") },
        };
    }
    #[cfg(feature = "cuda")]
    let found = {
        let x = Tensor::<2>::zeros([1, 1], (device, dtype));
        pass::library_for(&x).map(|library| library.version())
    };
    #[cfg(not(feature = "cuda"))]
    let found = Err("cuBLASLt is for NVIDIA cards".to_string());
    match found {
        Ok(version) => Products::CublasLt { version },
        Err(reason) => Products::Burn { reason },
    }
}

/// The products that cuBLASLt has refused so far on any device, each with its reason: Burn does these.
pub fn left_to_burn() -> Vec<String> {
    #[cfg(feature = "cuda")]
    let refused = library::refused();
    #[cfg(not(feature = "cuda"))]
    let refused = Vec::new();
    refused
}
