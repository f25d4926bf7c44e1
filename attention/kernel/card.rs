//! Tensors of graphics cards as kernels in CubeCL take them, with and without Burn's fusion.

pub(crate) mod launch;
pub(crate) mod team;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Cube};
use burn::tensor::{DType, Tensor};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};

/// A backend whose tensors lie in buffers of CubeCL.
pub(crate) trait OnCard: Backend {
    /// What a kernel reads; operations that were put off are run first.
    fn lower(x: FloatTensor<Self>) -> CubeTensor;

    /// The same of whole numbers.
    fn lower_int(x: IntTensor<Self>) -> CubeTensor;

    /// What a kernel wrote.
    fn lift(x: CubeTensor) -> FloatTensor<Self>;
}

impl OnCard for CubeBackend {
    fn lower(x: FloatTensor<Self>) -> CubeTensor {
        x
    }

    fn lower_int(x: IntTensor<Self>) -> CubeTensor {
        x
    }

    fn lift(x: CubeTensor) -> FloatTensor<Self> {
        x
    }
}

/// Whether kernels of ours run for this tensor, which read f32, bf16 and f16.
pub(crate) fn floats_on_card<const D: usize>(x: &Tensor<D>) -> bool {
    let float = x.dtype() == DType::F32 || crate::precision::is_narrow(x.dtype());
    float && x.clone().inner().try_into_primitive::<Cube>().is_ok()
}

#[cfg(feature = "fusion")]
mod fused {
    use super::{CubeTensor, FloatTensor, IntTensor, OnCard};
    use burn::backend::TensorMetadata;
    use burn_fusion::custom::{OperationIr, OperationOutput, StreamId};
    use burn_fusion::{Fusion, FusionBackend, NoOp, get_client};
    use burn_ir::InitOperationIr;

    impl<B: FusionBackend + OnCard> OnCard for Fusion<B> {
        fn lower(x: FloatTensor<Self>) -> CubeTensor {
            let client = x.client.clone();
            B::lower(client.resolve_tensor_float::<B>(x))
        }

        fn lower_int(x: IntTensor<Self>) -> CubeTensor {
            let client = x.client.clone();
            B::lower_int(client.resolve_tensor_int::<B>(x))
        }

        fn lift(x: CubeTensor) -> FloatTensor<Self> {
            let x = B::lift(x);
            let (client, shape, dtype) = (get_client::<B>(&x.device()), x.shape(), x.dtype());
            let handle = B::float_tensor_handle(x);
            let made =
                InitOperationIr::create(shape, dtype, || client.register_tensor_handle(handle));
            client.register(StreamId::current(), OperationIr::Init(made), NoOp::<B>::new()).output()
        }
    }
}
