use super::leaf;
use crate::{Implementation, SelectiveScan, Ssd, selective_scan, ssd};
use burn::tensor::DType;
use std::time::Instant;

#[test]
#[ignore]
fn timing() {
    for implementation in [Implementation::Flex, Implementation::Tiled] {
        let (len, e, n) = (4096, 256, 16);
        for tracked in [false, true] {
            let mut best = f64::MAX;
            for _ in 0..3 {
                let t = |x: burn::tensor::Tensor<3>| if tracked { x } else { x.inner() };
                let u = t(leaf([1, len, e], 1, 1.0, DType::F32));
                let delta = t(leaf([1, len, e], 2, 1.0, DType::F32));
                let b = t(leaf([1, len, n], 4, 1.0, DType::F32)).unsqueeze_dim(2);
                let c = t(leaf([1, len, n], 5, 1.0, DType::F32)).unsqueeze_dim(2);
                let z = t(leaf([1, len, e], 6, 1.0, DType::F32));
                let a = leaf([e, n], 3, 1.0, DType::F32).exp().neg();
                let a = if tracked { a } else { a.inner() };
                let start = Instant::now();
                let y = selective_scan(SelectiveScan {
                    softplus: true,
                    z: Some(z),
                    implementation,
                    ..SelectiveScan::new(u, delta, a, b, c)
                })
                .unwrap()
                .0;
                if tracked {
                    drop(y.sum().backward());
                } else {
                    drop(y.into_data());
                }
                best = best.min(start.elapsed().as_secs_f64());
            }
            println!("selective {implementation:?} backward {tracked}: {:.1} ms", best * 1e3);
        }
        for (h, p, n) in [(8, 64, 64), (24, 64, 128)] {
            for tracked in [false, true] {
                let mut best = f64::MAX;
                for _ in 0..3 {
                    let t = |x: burn::tensor::Tensor<4>| if tracked { x } else { x.inner() };
                    let x = t(leaf([1, len, h, p], 1, 1.0, DType::F32));
                    let b = t(leaf([1, len, 1, n], 4, 1.0, DType::F32));
                    let c = t(leaf([1, len, 1, n], 5, 1.0, DType::F32));
                    let dt = leaf([1, len, h], 2, 1.0, DType::F32);
                    let dt = if tracked { dt } else { dt.inner() };
                    let a = leaf([h], 3, 1.0, DType::F32).exp().neg();
                    let a = if tracked { a } else { a.inner() };
                    let start = Instant::now();
                    let y = ssd(Ssd { softplus: true, implementation, ..Ssd::new(x, dt, a, b, c) })
                        .unwrap()
                        .0;
                    if tracked {
                        drop(y.sum().backward());
                    } else {
                        drop(y.into_data());
                    }
                    best = best.min(start.elapsed().as_secs_f64());
                }
                println!(
                    "ssd {h} {p} {n} {implementation:?} backward {tracked}: {:.1} ms",
                    best * 1e3
                );
            }
        }
    }
}
