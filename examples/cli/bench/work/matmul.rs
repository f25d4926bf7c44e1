//! Products of matrices, as layers compute them.

use super::{Work, calls, lazy};
use crate::bench::inputs;
use crate::bench::job::{Layout, MatmulJob};
use burn::tensor::Device;
use longburn::kernel::fused::{linear, matmul_detached};

pub fn ours(job: &MatmulJob, device: &Device) -> Box<dyn Work> {
    let MatmulJob { batch, m, k, n, layout, dtype } = *job;
    let (a_shape, b_shape) = match layout {
        Layout::Nn => ([batch, m, k], [batch, k, n]),
        Layout::Nt => ([batch, m, k], [batch, n, k]),
        Layout::Tn => ([batch, k, m], [batch, k, n]),
    };
    let tensor = |shape, salt| inputs::tensor::<3>(shape, salt, 1.0, device).cast(dtype.dtype());
    let (a, b) = (tensor(a_shape, 1), tensor(b_shape, 2));
    if batch > 1 {
        return calls(device, move || {
            let (a, b) = match layout {
                Layout::Nn => (a.clone(), b.clone()),
                Layout::Nt => (a.clone(), b.clone().transpose()),
                Layout::Tn => (a.clone().transpose(), b.clone()),
            };
            Ok(vec![lazy("product", a.matmul(b))])
        });
    }
    // As a layer calls it: forward, towards its input, and towards its weights.
    let (a, b) = (a.squeeze_dim::<2>(0), b.squeeze_dim::<2>(0));
    calls(device, move || {
        let (a, b) = (a.clone(), b.clone());
        let product = match layout {
            Layout::Nt => linear(a, b),
            Layout::Nn => matmul_detached(a, b),
            Layout::Tn => matmul_detached(a.transpose(), b),
        };
        Ok(vec![lazy("product", product)])
    })
}
