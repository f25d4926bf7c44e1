//! f32 ops of their own against the same formulas in f64, outputs and all gradients.

use super::{AdamWStep, GatedNorm, adamw, linear, linear_bias, matmul_detached};
use super::{causal_conv_silu, conv_tail, gated_rms_norm, rms_norm, rotate_half, swiglu};
use crate::{Steps, TokenMeta};
use burn::tensor::{DType, Device, Tensor, TensorData};

fn leaf<const D: usize>(shape: [usize; D], seed: u64, dtype: DType) -> Tensor<D> {
    let value = |i: u64| {
        let x =
            (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (x >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    let n = shape.iter().product::<usize>() as u64;
    let data = TensorData::new((0..n).map(value).collect::<Vec<f32>>(), shape);
    let x = Tensor::<D>::from_data(data, &Device::default());
    Tensor::from_inner(x.cast(dtype)).require_grad()
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.inner().cast(DType::F64).into_data().iter::<f64>().collect()
}

/// Output of `run` and gradients of all leaves, in both precisions: every RMS ratio is small.
fn check(name: &str, run: impl Fn(DType) -> Vec<Vec<f64>>) {
    let (want, got) = (run(DType::F64), run(DType::F32));
    for (i, (want, got)) in want.iter().zip(&got).enumerate() {
        let square = |x: f64| x * x;
        let diff: f64 = want.iter().zip(got).map(|(a, b)| square(a - b)).sum();
        let r = (diff / want.iter().map(|x| square(*x)).sum::<f64>()).sqrt();
        assert!(r <= 1e-6, "{name}: tensor {i} differs by {r:e}");
    }
}

#[test]
fn rms_norm_equals_the_formula() {
    for shape in [[1, 1, 3], [2, 63, 17], [3, 1000, 64]] {
        check("rms_norm", |dtype| {
            let (x, w) = (leaf(shape, 1, dtype), leaf([shape[2]], 2, dtype));
            let y = rms_norm(x.clone(), w.clone(), 1e-5);
            let grads = (y.clone() * leaf(shape, 3, dtype).detach()).sum().backward();
            vec![host(y), host(x.grad(&grads).unwrap()), host(w.grad(&grads).unwrap())]
        });
    }
}

#[test]
fn rotation_equals_the_formula() {
    // Rows of their own angles, heads as a view, channels that pass through.
    for (b, rows, h, t, d, half) in [(1, 1, 1, 1, 4, 2), (2, 1, 3, 63, 8, 4), (2, 2, 5, 700, 24, 8)]
    {
        check("rotate", |dtype| {
            let x = leaf([b, t, h, d], 1, dtype);
            let angle = |seed| leaf([rows, 1, t, half], seed, DType::F32).detach();
            let (cos, sin) = (angle(2), angle(3));
            let y = rotate_half(x.clone().swap_dims(1, 2), cos, sin);
            let grads = (y.clone() * leaf([b, h, t, d], 4, dtype).detach()).sum().backward();
            vec![host(y), host(x.grad(&grads).unwrap())]
        });
    }
}

#[test]
fn swiglu_equals_the_formula() {
    for shape in [[1, 1], [63, 5], [300, 400]] {
        check("swiglu", |dtype| {
            let (g, u) = (leaf(shape, 1, dtype).mul_scalar(8.0), leaf(shape, 2, dtype));
            let (g, u) = (g.detach().require_grad(), u);
            let y = swiglu(g.clone(), u.clone());
            let grads = (y.clone() * leaf(shape, 3, dtype).detach()).sum().backward();
            vec![host(y), host(g.grad(&grads).unwrap()), host(u.grad(&grads).unwrap())]
        });
    }
}

/// What comes of numbers in bf16 is what f64 makes of them, rounded once, output and gradients; tables and
/// weights are in f32.
#[test]
fn numbers_of_16_bits_are_rounded_once() {
    let rounded_once = |name: &str, run: &dyn Fn(DType, DType) -> Vec<Vec<f64>>| {
        let (want, got) = (run(DType::F64, DType::F64), run(DType::BF16, DType::F32));
        for (i, (want, got)) in want.iter().zip(&got).enumerate() {
            for (want, got) in want.iter().zip(got) {
                // Half of the last of 8 binary places; sums of f32 may cancel.
                let most = want.abs() / 256.0 * 1.001 + 1e-5;
                assert!((got - want).abs() <= most, "{name}, tensor {i}: {got} for {want}");
            }
        }
    };
    // The same numbers in all dtypes.
    fn exact<const D: usize>(shape: [usize; D], seed: u64, dtype: DType) -> Tensor<D> {
        Tensor::from_inner(leaf(shape, seed, DType::BF16).inner().cast(dtype)).require_grad()
    }
    let wide = |x: Tensor<3>| x.cast(DType::F64);
    rounded_once("rms_norm", &|x, w| {
        let (x, w) = (exact([2, 9, 32], 1, x), leaf([32], 2, DType::F32).inner().cast(w));
        let w = Tensor::from_inner(w).require_grad();
        let y = rms_norm(x.clone(), w.clone(), 1e-5);
        let dy = exact([2, 9, 32], 3, x.dtype()).detach();
        let grads = (y.clone() * dy).sum().backward();
        assert_eq!(w.grad(&grads).unwrap().dtype(), w.dtype());
        vec![host(wide(y)), host(wide(x.grad(&grads).unwrap()))]
    });
    rounded_once("swiglu", &|dtype, _| {
        let (g, u) = (exact([3, 7, 5], 1, dtype), exact([3, 7, 5], 2, dtype));
        let y = swiglu(g.clone(), u.clone());
        let grads = (y.clone() * exact([3, 7, 5], 3, dtype).detach()).sum().backward();
        let grads = [g, u].map(|x| host(wide(x.grad(&grads).unwrap())));
        let [dg, du] = grads;
        vec![host(wide(y)), dg, du]
    });
    rounded_once("rotate", &|dtype, _| {
        let x = exact([2, 3, 11, 10], 1, dtype);
        let angle = |seed| leaf([1, 1, 11, 4], seed, DType::F32).detach();
        let y = rotate_half(x.clone(), angle(2), angle(3));
        let grads = (y.clone() * exact([2, 3, 11, 10], 4, dtype).detach()).sum().backward();
        vec![host(y), host(x.grad(&grads).unwrap())]
    });
}

#[test]
fn linear_equals_the_formula() {
    // One row, few rows, blocks that are cut off, and enough for several threads.
    for (m, k, n) in [(1, 1, 1), (3, 17, 5), (1, 300, 700), (130, 70, 33), (257, 300, 129)] {
        for frozen in [false, true] {
            check("linear", |dtype| {
                let (x, w) = (leaf([m, k], 1, dtype), leaf([n, k], 2, dtype));
                let w = if frozen { Tensor::from_inner(w.inner()) } else { w };
                let y = linear(x.clone(), w.clone());
                let grads = (y.clone() * leaf([m, n], 3, dtype).detach()).sum().backward();
                assert_eq!(w.grad(&grads).is_none(), frozen);
                let dw = w.grad(&grads).map_or(vec![1.0], host);
                vec![host(y), host(x.grad(&grads).unwrap()), dw]
            });
        }
        // The input of the first layer has no gradient; views of all kinds are taken.
        check("views", |dtype| {
            let (x, w) = (leaf([k, m], 4, dtype).inner(), leaf([n, 2 * k], 5, dtype));
            let x = Tensor::<2>::from_inner(x);
            let y = linear(x.clone().transpose(), w.clone().narrow(1, k, k));
            let grads = (y.clone() * leaf([m, n], 6, dtype).detach()).sum().backward();
            let c = matmul_detached(x.clone(), y.clone());
            vec![host(y), host(w.grad(&grads).unwrap()), host(c)]
        });
    }
}

#[test]
fn linear_with_a_bias_equals_the_formula() {
    for (m, k, n) in [(1, 1, 1), (3, 17, 5), (257, 300, 129)] {
        // Every subset that has a gradient, by bits.
        for tracked in 1..8 {
            check("linear_bias", |dtype| {
                let part = |bit: usize, x: Tensor<2>| match tracked >> bit & 1 {
                    1 => x,
                    _ => Tensor::from_inner(x.inner()),
                };
                let x = part(0, leaf([m, k], 1, dtype));
                let w = part(1, leaf([n, k], 2, dtype));
                let b = part(2, leaf([1, n], 3, dtype));
                let y = linear_bias(x.clone(), w.clone(), b.clone().reshape([n]));
                let grads = (y.clone() * leaf([m, n], 4, dtype).detach()).sum().backward();
                let mut all = vec![host(y)];
                for (bit, leaf) in [x, w, b].iter().enumerate() {
                    let grad = leaf.grad(&grads);
                    assert_eq!(grad.is_some(), tracked >> bit & 1 == 1);
                    all.extend(grad.map(host));
                }
                all
            });
        }
    }
}

#[test]
fn adamw_equals_the_formula() {
    // The last is long enough for several threads.
    for shape in [[1, 1], [3, 21], [300, 257]] {
        check("adamw", |dtype| {
            let value = |seed| leaf(shape, seed, dtype).inner();
            let (mut w, mut moments) = (value(1), [value(9).zeros_like(), value(9).zeros_like()]);
            for time in 1..=4 {
                let step = AdamWStep {
                    lr: 0.01 * time as f32,
                    beta1: 0.8,
                    beta2: 0.9,
                    eps: 1e-2,
                    weight_decay: 0.3,
                    time,
                };
                (w, moments) = adamw(w, value(1 + time as u64), moments, &step);
            }
            let [m, v] = moments;
            vec![host(w), host(m), host(v)]
        });
    }
}

#[test]
fn convolution_equals_the_formula() {
    // One token, fewer than taps, channels in blocks that are cut off, documents and padding.
    for (len, channels, k, documents) in [
        (1, 3, 4, false),
        (2, 5, 4, false),
        (70, 130, 4, false),
        (64, 7, 1, true),
        (65, 20, 3, true),
    ] {
        let steps = match documents {
            false => Steps::plain(2, len),
            true => {
                let row = |first: i32| {
                    (0..len)
                        .map(move |t| if t < 2 || t % 11 == 5 { -1 } else { t as i32 / 9 * first })
                };
                let segments: Vec<i32> = row(1).chain(row(0)).collect();
                let tokens = TokenMeta::new(2, len, vec![0; 2 * len], segments).unwrap();
                Steps::of(&tokens, Some(&[0, 0])).unwrap().0
            }
        };
        check("convolution", |dtype| {
            let (x, w) = (leaf([2, len, channels], 1, dtype), leaf([channels, k], 2, dtype));
            let (b, tail) = (leaf([channels], 3, dtype), leaf([2, k, channels], 4, dtype));
            let y =
                causal_conv_silu(x.clone(), w.clone(), Some(b.clone()), Some(tail.clone()), &steps);
            let end = conv_tail(x.clone(), Some(tail.clone()), &steps, k);
            let loss = (y.clone() * leaf([2, len, channels], 5, dtype).detach()).sum()
                + (end.clone() * leaf([2, k, channels], 6, dtype).detach()).sum()
                // A tail of one input is never read.
                + tail.clone().sum();
            let grads = loss.backward();
            vec![
                host(y),
                host(end),
                host(x.grad(&grads).unwrap()),
                host(w.grad(&grads).unwrap()),
                host(b.grad(&grads).unwrap()),
                host(tail.grad(&grads).unwrap()),
            ]
        });
    }
}

/// Against sums token by token, so that both forms above are not wrong in the same way.
#[test]
fn convolution_sees_its_own_document_only() {
    let tokens = TokenMeta::new(1, 6, vec![0; 6], vec![-1, 0, 0, -1, 0, 1]).unwrap();
    let steps = Steps::of(&tokens, Some(&[0])).unwrap().0;
    let value = |data: Vec<f32>, shape: [usize; 3]| {
        Tensor::<3>::from_data(TensorData::new(data, shape), &Device::default())
    };
    let x = value((1..=6).map(|x| x as f32).collect(), [1, 6, 1]);
    let tail = value(vec![100.0, 200.0, 300.0], [1, 3, 1]);
    let w = leaf([1, 3], 1, DType::F32).inner().mul_scalar(0.0)
        + Tensor::from_floats([[0.01f32, 0.1, 1.0]], &Device::default());
    let y = host(causal_conv_silu(x.clone(), w, None, Some(tail.clone()), &steps));
    let sums = [2.0 + 30.0 + 2.0, 3.0 + 0.2 + 3.0, 5.0 + 0.3 + 0.02, 6.0];
    let want = sums.map(|x: f64| x / (1.0 + (-x).exp()));
    let got = [y[1], y[2], y[4], y[5]];
    assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-4), "{got:?} {want:?}");
    assert_eq!((y[0], y[3]), (0.0, 0.0));
    assert_eq!(host(conv_tail(x, Some(tail), &steps, 3)), [0.0, 0.0, 6.0]);
}

#[test]
fn gated_norm_equals_the_formula() {
    for (groups, before_gate) in [(1, false), (1, true), (3, false), (4, true)] {
        check("gated_rms_norm", |dtype| {
            let (x, z) = (leaf([2, 7, 12], 1, dtype), leaf([2, 7, 12], 2, dtype));
            let (w, b) = (leaf([12], 3, dtype), leaf([12], 4, dtype));
            let options = GatedNorm { groups, before_gate, eps: 1e-5 };
            let y = gated_rms_norm(x.clone(), z.clone(), w.clone(), Some(b.clone()), options);
            let grads = (y.clone() * leaf([2, 7, 12], 5, dtype).detach()).sum().backward();
            let of = |x: &Tensor<1>| host(x.grad(&grads).unwrap());
            let rows = |x: &Tensor<3>| host(x.grad(&grads).unwrap());
            vec![host(y), rows(&x), rows(&z), of(&w), of(&b)]
        });
    }
}

/// What `run` says when it panics.
fn refusal<T>(run: impl FnOnce() -> T) -> String {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).err();
    let said = caught.expect("a refusal").downcast::<String>().expect("a text");
    *said
}

/// In both precisions: the ops of the CPU, and the formulas of all other devices.
const BOTH: [DType; 2] = [DType::F32, DType::F64];

fn of<const D: usize>(shape: [usize; D], dtype: DType) -> Tensor<D> {
    leaf(shape, 1, dtype).detach()
}

#[test]
fn shapes_that_do_not_fit_are_refused_on_every_path() {
    for dtype in BOTH {
        let x = || of([2, 3, 8], dtype);
        for width in [0, 4, 7, 16] {
            let said = refusal(|| rms_norm(x(), of([width], dtype), 1e-5));
            assert!(
                said.starts_with("rms_norm: x is [2, 3, 8]") && said.contains("not "),
                "{said}"
            );
        }
        let heads = || of([2, 3, 5, 8], dtype);
        for (cos, sin) in [
            ([3, 1, 5, 4], [3, 1, 5, 4]),
            ([2, 3, 5, 4], [2, 3, 5, 4]),
            ([1, 1, 6, 4], [1, 1, 6, 4]),
            ([1, 1, 4, 4], [1, 1, 4, 4]),
            ([1, 1, 5, 5], [1, 1, 5, 5]),
            ([1, 1, 5, 4], [1, 1, 5, 3]),
            ([1, 1, 5, 4], [2, 1, 5, 4]),
        ] {
            let said = refusal(|| rotate_half(heads(), of(cos, dtype), of(sin, dtype)));
            assert!(said.starts_with("rotate_half: x is [2, 3, 5, 8]"), "{said}");
        }
        let said = refusal(|| swiglu(of([2, 6], dtype), of([2, 3], dtype)));
        assert_eq!(said, "swiglu: gate is [2, 6], up [2, 3]");
        // What tensor operations would repeat.
        refusal(|| swiglu(of([2, 6], dtype), of([1, 6], dtype)));
        let gated = |z, weight, bias: Option<usize>, groups| {
            let options = GatedNorm { groups, before_gate: false, eps: 1e-5 };
            let bias = bias.map(|n| of([n], dtype));
            gated_rms_norm(x(), of(z, dtype), of([weight], dtype), bias, options)
        };
        for said in [
            refusal(|| gated([2, 3, 4], 8, None, 1)),
            refusal(|| gated([2, 3, 8], 4, None, 2)),
            refusal(|| gated([2, 3, 8], 8, Some(4), 1)),
        ] {
            assert!(said.starts_with("gated_rms_norm: x is [2, 3, 8]"), "{said}");
        }
        for groups in [0, 3, 16] {
            let said = refusal(|| gated([2, 3, 8], 8, None, groups));
            assert_eq!(said, format!("gated_rms_norm: {groups} groups do not divide 8 channels"));
        }
        for said in [
            refusal(|| linear(of([2, 3], dtype), of([5, 4], dtype))),
            refusal(|| linear_bias(of([2, 3], dtype), of([5, 4], dtype), of([5], dtype))),
            refusal(|| linear_bias(of([2, 3], dtype), of([5, 3], dtype), of([1], dtype))),
            refusal(|| matmul_detached(of([2, 3], dtype), of([4, 5], dtype))),
            refusal(|| matmul_detached(of([0, 3], dtype), of([4, 5], dtype))),
        ] {
            assert!(said.starts_with("linear") || said.starts_with("matmul_detached: a"), "{said}");
        }
    }
}

#[test]
fn convolutions_refuse_what_does_not_fit() {
    for dtype in BOTH {
        let steps = Steps::plain(2, 3);
        let run = |weight, bias, tail, steps: &Steps| {
            let x = of([2, 3, 8], dtype);
            causal_conv_silu(x, of(weight, dtype), Some(of([bias], dtype)), tail, steps)
        };
        for said in [
            refusal(|| run([4, 4], 8, None, &steps)),
            refusal(|| run([8, 0], 8, None, &steps)),
            refusal(|| run([8, 4], 4, None, &steps)),
            refusal(|| run([8, 4], 8, Some(of([2, 3, 8], dtype)), &steps)),
            refusal(|| run([8, 4], 8, Some(of([1, 4, 8], dtype)), &steps)),
            refusal(|| run([8, 4], 8, None, &Steps::plain(2, 4))),
            refusal(|| run([8, 4], 8, None, &Steps::plain(1, 3))),
        ] {
            assert!(said.starts_with("causal_conv_silu: "), "{said}");
        }
        let tail = |tail: [usize; 3], steps| {
            refusal(|| conv_tail(of([2, 3, 8], dtype), Some(of(tail, dtype)), &steps, 4))
        };
        assert!(tail([2, 3, 8], Steps::plain(2, 3)).contains("[2, 3, 8], not [2, 4, 8]"));
        assert!(tail([2, 4, 8], Steps::plain(2, 2)).contains("2 x 2 tokens"));
    }
}

#[test]
fn updates_refuse_other_shapes_and_the_step_before_the_first() {
    for dtype in BOTH {
        let step = |time| AdamWStep {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
            time,
        };
        let run = |grad, m, v, time| {
            let moments = [of([m], dtype), of([v], dtype)];
            adamw(of([8], dtype), of([grad], dtype), moments, &step(time))
        };
        for said in
            [refusal(|| run(4, 8, 8, 1)), refusal(|| run(8, 4, 8, 1)), refusal(|| run(8, 8, 1, 1))]
        {
            assert!(said.starts_with("adamw: weight [8]"), "{said}");
        }
        assert!(refusal(|| run(8, 8, 8, 0)).contains("time is 0"));
        let (w, [m, v]) = run(8, 8, 8, 1);
        assert!([w, m, v].iter().all(|x| x.dims() == [8]));
        let empty = || of([0], dtype);
        assert_eq!(adamw(empty(), empty(), [empty(), empty()], &step(1)).0.dims(), [0]);
    }
}

#[test]
fn nothing_gives_nothing() {
    for dtype in BOTH {
        for shape in [[0, 3, 8], [2, 0, 8], [2, 3, 0]] {
            let [batch, len, d] = shape;
            let (x, one) = (|| of(shape, dtype), || of([d], dtype));
            assert_eq!(rms_norm(x(), one(), 1e-5).dims(), shape);
            assert_eq!(swiglu(x(), x()).dims(), shape);
            for before_gate in [false, true] {
                let options = GatedNorm { groups: 2, before_gate, eps: 1e-5 };
                let y = gated_rms_norm(x(), x(), one(), Some(one()), options);
                assert_eq!(y.dims(), shape);
            }
            let steps = Steps::plain(batch, len);
            let weight = of([d, 4], dtype);
            assert_eq!(causal_conv_silu(x(), weight, None, None, &steps).dims(), shape);
            assert_eq!(conv_tail(x(), None, &steps, 4).dims(), [batch, 4, d]);
            let table = || of([1, 1, len, d / 2], dtype);
            let heads = of([batch, 2, len, d], dtype);
            assert_eq!(rotate_half(heads, table(), table()).dims(), [batch, 2, len, d]);
        }
        for [m, k, n] in [[0, 3, 2], [3, 0, 2], [3, 2, 0], [0, 0, 0]] {
            let (x, w) = (|| of([m, k], dtype), || of([n, k], dtype));
            let all_zero = |y: Tensor<2>| {
                assert_eq!(y.dims(), [m, n]);
                host(y).iter().all(|y| *y == 0.0)
            };
            assert!(all_zero(linear(x(), w())));
            assert!(all_zero(matmul_detached(x(), w().transpose())));
            let y = linear_bias(x(), w(), of([n], dtype));
            assert_eq!(y.dims(), [m, n]);
            // No products, but the bias.
            assert_eq!(host(y), host(of([n], dtype)).repeat(m));
        }
    }
}

/// No channel is rotated where tables have none, and tables may be of another type.
#[test]
fn tables_may_be_narrow_and_of_any_type() {
    for dtype in BOTH {
        let x = of([2, 3, 5, 8], dtype);
        let none = || of([1, 1, 5, 0], dtype);
        assert_eq!(host(rotate_half(x.clone(), none(), none())), host(x.clone()));
        let table = |seed, dtype| leaf([1, 1, 5, 3], seed, DType::BF16).detach().cast(dtype);
        let of = |dtype| host(rotate_half(x.clone(), table(2, dtype), table(3, dtype)));
        assert_eq!(of(DType::BF16), of(DType::F32));
    }
}
