//! Devices by name.

use burn::tensor::{Device, Tensor};
use longburn::{Error, Result};
use std::fmt;
use std::str::FromStr;

/// `flex`, `wgpu[:n]` or `cuda[:n]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceName {
    Flex,
    Wgpu(Option<usize>),
    Cuda(Option<usize>),
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (kind, index) = match name.split_once(':') {
            Some((kind, index)) => {
                let index = index.parse().map_err(|_| format!("`{index}` is no card's number"))?;
                (kind, Some(index))
            }
            None => (name, None),
        };
        match (kind, index) {
            ("flex", None) => Ok(Self::Flex),
            ("wgpu", index) => Ok(Self::Wgpu(index)),
            ("cuda", index) => Ok(Self::Cuda(index)),
            _ => Err("expected flex, wgpu, wgpu:N, cuda or cuda:N".into()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flex => f.write_str("flex"),
            Self::Wgpu(None) => f.write_str("wgpu"),
            Self::Cuda(None) => f.write_str("cuda"),
            Self::Wgpu(Some(index)) => write!(f, "wgpu:{index}"),
            Self::Cuda(Some(index)) => write!(f, "cuda:{index}"),
        }
    }
}

impl DeviceName {
    /// The device, found to work.
    ///
    /// # Errors
    /// When this program was built without it, or the machine does not have it.
    pub fn open(self) -> Result<Device> {
        let device = self.named()?;
        if self != Self::Flex {
            // Burn reports a card that is not there by a panic in the first operation.
            quietly(|| Tensor::<1>::zeros([1], &device).into_data())
                .map_err(|cause| self.unusable(&*cause))?;
        }
        Ok(device)
    }

    fn named(self) -> Result<Device> {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(index) => Ok(Device::wgpu(match index {
                Some(index) => burn::tensor::DeviceKind::DiscreteGpu(index),
                None => burn::tensor::DeviceKind::DefaultDevice,
            })),
            #[cfg(feature = "cuda")]
            Self::Cuda(index) => Ok(Device::cuda(index.unwrap_or(0))),
            #[allow(unreachable_patterns)]
            _ => Err(self.not_built()),
        }
    }

    #[allow(dead_code)]
    fn not_built(self) -> Error {
        let name = self.to_string();
        let feature = name.split(':').next().unwrap_or_default();
        Error::Unsupported {
            what: format!("device {self}: this program was built without it"),
            remedy: format!("build with `cargo build --features {feature}`, or choose flex"),
        }
    }

    fn unusable(self, cause: &(dyn std::any::Any + Send)) -> Error {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or(cause.downcast_ref::<&str>().copied()).unwrap_or("unknown cause");
        Error::Unsupported {
            what: format!("device {self} cannot be used: {text}"),
            remedy: "check the card and its driver, or choose another --device".into(),
        }
    }
}

/// What `work` returns, or what it panicked with, unseen on standard error.
pub fn quietly<R>(work: impl FnOnce() -> R) -> std::thread::Result<R> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    std::panic::set_hook(hook);
    done
}
