//! What a graphics card calls itself.

use burn::tensor::Device;

/// The name of a card, for reports; none on other devices, or where nobody tells it.
///
/// ```
/// # use burn::tensor::Device;
/// # #[cfg(feature = "flex")]
/// assert_eq!(longburn_kernels::card_name(&Device::flex()), None);
/// ```
pub fn card_name(device: &Device) -> Option<String> {
    #[cfg(feature = "cube")]
    let name = on_card(device);
    #[cfg(not(feature = "cube"))]
    let name = (device, None).1;
    name
}

#[cfg(feature = "cube")]
fn on_card(device: &Device) -> Option<String> {
    use burn::backend::{Cube, TensorMetadata};
    use burn::tensor::Tensor;

    let x = Tensor::<1>::zeros([1], &device.clone().inner());
    let device = x.try_into_primitive::<Cube>().ok()?.device();
    let client = device.client();
    #[cfg(feature = "cuda")]
    if client.name() == "cuda" {
        use cudarc::driver::result;
        let index = device.to_id().index_id.into();
        return result::device::get(index).and_then(result::device::get_name).ok();
    }
    Some(client.properties().identity.fingerprint.clone()).filter(|name| !name.is_empty())
}

/// The number of an NVIDIA card under CUDA.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_number(device: &Device) -> Option<i32> {
    use burn::backend::{Cube, TensorMetadata};
    use burn::tensor::Tensor;

    let x = Tensor::<1>::zeros([1], &device.clone().inner());
    let device = x.try_into_primitive::<Cube>().ok()?.device();
    (device.client().name() == "cuda").then(|| device.to_id().index_id.into())
}
