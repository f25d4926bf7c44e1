//! Small layers with an op of their own against their formulas in f64 on the host, outputs and all
//! gradients, in every dtype that the device computes in.

use super::{host, random};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use longburn::kernel::fused::{
    AdamWMany, AdamWStep, adamw_scaled, embed, rms_norm, rotate_half, sums_of_squares, swiglu,
};
use longburn::kernel::linear_cross_entropy;
use longburn::testing::ratio;

/// f32, and those of 16 bits that the device computes in; on the CPU ops of their own are in f32.
pub(super) fn dtypes(device: &Device) -> Vec<DType> {
    if format!("{device:?}").to_lowercase().contains("flex") {
        return vec![DType::F32];
    }
    let all = [DType::F32, DType::BF16, DType::F16];
    all.into_iter().filter(|dtype| *dtype == DType::F32 || device.supports_dtype(*dtype)).collect()
}

/// What comes of numbers in 16 bits is rounded once, and sums are those of f32.
pub(super) fn compare(name: &str, dtype: DType, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name} in {dtype:?}");
    let places = match dtype {
        DType::BF16 => 256.0,
        DType::F16 => 2048.0,
        _ => {
            let want: Vec<f32> = want.iter().map(|x| *x as f32).collect();
            let r = ratio(got, &want);
            assert!(r <= super::FORWARD, "{name} differs by {r:.1e}");
            return;
        }
    };
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (f64::from(*got) - want).abs();
        let most = want.abs() / places * 1.001 + 1e-5;
        assert!(off <= most, "{name} in {dtype:?}: {got} for {want} at {i}");
    }
}

/// What results are written over.
pub(super) fn poison(device: &Device, dtype: DType, lengths: &[usize]) {
    let made: Vec<_> = lengths
        .iter()
        .flat_map(|len| [*len, *len, *len])
        .map(|len| Tensor::<1>::full([len], f32::NAN, (device, dtype)))
        .collect();
    device.sync().unwrap();
    drop(made);
}

/// The numbers of `random`, lying plainly or as a part of wider rows that begins at an odd place.
fn lying(
    [rows, width]: [usize; 2],
    stream: u64,
    dtype: DType,
    odd: bool,
    device: &Device,
) -> Tensor<2> {
    if !odd {
        return random([rows, width], stream, device).cast(dtype);
    }
    let wide = random::<2>([rows + 1, width + 3], stream, device).cast(dtype);
    wide.narrow(0, 1, rows).narrow(1, 1, width)
}

pub(super) fn leaf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(x).require_grad()
}

pub(super) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

pub(super) fn grad<const D: usize>(x: &Tensor<D>, grads: &burn::tensor::Gradients) -> Vec<f32> {
    let grad = x.grad(grads).expect("a gradient");
    assert_eq!(grad.dtype(), x.dtype());
    host(grad)
}

pub fn gated_activations_equal_the_formula(device: &Device) {
    for dtype in dtypes(device) {
        for shape in [[1, 1], [3, 5], [7, 6], [63, 40], [130, 344]] {
            for odd in [false, true] {
                let [g, u, dy] = [1, 2, 3].map(|n| lying(shape, n, dtype, odd, device));
                let (g, u) = (leaf(g * 4.0), leaf(u));
                let (of_g, of_u) = (wide(&host(g.clone())), wide(&host(u.clone())));
                let of_dy = wide(&host(dy.clone()));
                poison(device, dtype, &[shape[0] * shape[1]]);
                let y = swiglu(g.clone(), u.clone());
                assert_eq!(y.dtype(), dtype);
                let grads = (y.clone() * Tensor::from_inner(dy)).sum().backward();
                let name = |what: &str| format!("{what} of {shape:?}, odd {odd}");
                let (mut want, mut dg, mut du) = (vec![], vec![], vec![]);
                for ((g, u), dy) in of_g.iter().zip(&of_u).zip(&of_dy) {
                    let s = 1.0 / (1.0 + (-g).exp());
                    want.push(g * s * u);
                    dg.push(dy * u * s * (1.0 + g * (1.0 - s)));
                    du.push(dy * g * s);
                }
                compare(&name("y"), dtype, &host(y), &want);
                compare(&name("dgate"), dtype, &grad(&g, &grads), &dg);
                compare(&name("dup"), dtype, &grad(&u, &grads), &du);
            }
        }
    }
}

/// One row and many, one channel and many, several rows of a workgroup and several workgroups of a row's
/// threads, more rows than there are workgroups.
const ROWS: [[usize; 2]; 12] = [
    [1, 1],
    [1, 3],
    [5, 8],
    [257, 1],
    [300, 17],
    [33, 64],
    [70, 130],
    [65, 768],
    [4200, 260],
    [3, 2056],
    [2, 8200],
    [1, 16400],
];

pub fn norms_equal_the_formula(device: &Device) {
    for dtype in dtypes(device) {
        for (shape, odd) in ROWS.into_iter().flat_map(|shape| [(shape, false), (shape, true)]) {
            // Weights in f32 beside activations of 16 bits are usual.
            for of_weight in [DType::F32, dtype] {
                let small = shape[0] * shape[1] < 10_000;
                if (odd || of_weight != dtype) && !small {
                    continue;
                }
                norm_equals_the_formula(shape, [dtype, of_weight], odd, device);
            }
        }
    }
}

fn norm_equals_the_formula(
    shape: [usize; 2],
    [dtype, of_weight]: [DType; 2],
    odd: bool,
    device: &Device,
) {
    let ([rows, width], eps) = (shape, 0.3);
    let x = leaf(lying(shape, 1, dtype, odd, device));
    let w = leaf(lying([1, width], 2, of_weight, odd, device).reshape([width]));
    let dy = lying(shape, 3, dtype, odd, device);
    let (of_x, of_w) = (wide(&host(x.clone())), wide(&host(w.clone())));
    let of_dy = wide(&host(dy.clone()));
    poison(device, dtype, &[rows * width, width, 512 * width]);
    let y = rms_norm(x.clone(), w.clone(), eps);
    assert_eq!(y.dtype(), dtype);
    let grads = (y.clone() * Tensor::from_inner(dy)).sum().backward();

    let (mut want, mut dx, mut dw) = (vec![], vec![], vec![0.0; width]);
    for (x, dy) in of_x.chunks(width).zip(of_dy.chunks(width)) {
        let r = (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + eps).sqrt().recip();
        let dot: f64 = x.iter().zip(dy).zip(&of_w).map(|((x, g), w)| x * g * w).sum();
        for (i, (x, g)) in x.iter().zip(dy).enumerate() {
            want.push(x * r * of_w[i]);
            dx.push(r * g * of_w[i] - r * r * r * dot / width as f64 * x);
            dw[i] += x * r * g;
        }
    }
    let name = |what: &str| format!("{what} of {shape:?} by weights in {of_weight:?}, odd {odd}");
    compare(&name("y"), dtype, &host(y), &want);
    compare(&name("dx"), dtype, &grad(&x, &grads), &dx);
    compare(&name("dw"), of_weight, &grad(&w, &grads), &dw);
}

/// A row of what is no number stays alone, but for the gradient of the weight.
pub fn norms_do_not_reach_other_rows(device: &Device) {
    let shape = [40, 24];
    let go = |bad: bool| {
        let x = random::<2>(shape, 1, device);
        let x = match bad {
            true => x.slice_assign([17..18, 5..6], Tensor::full([1, 1], f32::NAN, device)),
            false => x,
        };
        let (x, w) = (leaf(x), leaf(random([24], 2, device)));
        let y = rms_norm(x.clone(), w, 1e-5);
        let grads = (y.clone() * Tensor::from_inner(random(shape, 3, device))).sum().backward();
        [host(y), grad(&x, &grads)]
    };
    for (bad, good) in go(true).iter().zip(&go(false)) {
        for (row, (bad, good)) in bad.chunks(24).zip(good.chunks(24)).enumerate() {
            match row {
                17 => assert!(bad.iter().all(|x| x.is_nan())),
                _ => assert_eq!(bad, good, "row {row}"),
            }
        }
    }
}

/// How heads lie in memory.
#[derive(Clone, Copy, Debug)]
enum Heads {
    /// `[B, H, T, D]`
    Plain,
    /// A view of `[B, T, H, D]`
    ByToken,
    /// The same within wider rows, as where q, k and v come of one product.
    Among,
    /// Channels far apart.
    Turned,
}

fn heads(
    [b, h, t, d]: [usize; 4],
    stream: u64,
    dtype: DType,
    lie: Heads,
    device: &Device,
) -> Tensor<4> {
    let of = |shape| random::<4>(shape, stream, device).cast(dtype);
    match lie {
        Heads::Plain => of([b, h, t, d]),
        Heads::ByToken => of([b, t, h, d]).swap_dims(1, 2),
        Heads::Among => of([b, t, 2 * h + 1, d]).narrow(2, 1, h).swap_dims(1, 2),
        Heads::Turned => of([b, h, d, t]).swap_dims(2, 3),
    }
}

/// Tables of all rows or of each, widths that pass through, those that runs do not divide.
pub fn rotations_equal_the_formula(device: &Device) {
    for dtype in dtypes(device) {
        for ([b, h, t, d], rows, half) in [
            ([1, 1, 1, 2], 1, 1),
            ([2, 3, 5, 6], 1, 2),
            ([2, 3, 63, 8], 2, 4),
            ([1, 4, 33, 64], 1, 32),
            ([2, 2, 20, 48], 2, 16),
            ([3, 1, 7, 25], 1, 12),
        ] {
            for lie in [Heads::Plain, Heads::ByToken, Heads::Among, Heads::Turned] {
                let shape = [b, h, t, d];
                let x = leaf(heads(shape, 1, dtype, lie, device));
                let dy = heads(shape, 4, dtype, lie, device);
                let table = |stream| random::<4>([rows, 1, t, half], stream, device);
                let (cos, sin) = (table(2), table(3));
                let (of_x, of_dy) = (wide(&host(x.clone())), wide(&host(dy.clone())));
                let (of_cos, of_sin) = (wide(&host(cos.clone())), wide(&host(sin.clone())));
                poison(device, dtype, &[b * h * t * d]);
                let y = rotate_half(x.clone(), cos, sin);
                assert_eq!((y.dtype(), y.dims()), (dtype, shape));
                let grads = (y.clone() * Tensor::from_inner(dy)).sum().backward();
                let turned = |x: &[f64], sign: f64| {
                    let mut y = x.to_vec();
                    for (line, row) in y.chunks_mut(d).enumerate() {
                        let (batch, token) = (line / (h * t), line % t);
                        let at = ((if rows == 1 { 0 } else { batch }) * t + token) * half;
                        for j in 0..half {
                            let (c, s) = (of_cos[at + j], sign * of_sin[at + j]);
                            let (x1, x2) = (row[j], row[half + j]);
                            (row[j], row[half + j]) = (x1 * c - x2 * s, x2 * c + x1 * s);
                        }
                    }
                    y
                };
                let name = |what: &str| format!("{what} of {shape:?}, {half} pairs, {lie:?}");
                compare(&name("y"), dtype, &host(y), &turned(&of_x, 1.0));
                compare(&name("dx"), dtype, &grad(&x, &grads), &turned(&of_dy, -1.0));
            }
        }
    }
}

/// Several steps; what somebody else holds stays as it is.
pub fn steps_of_adamw_equal_the_formula(device: &Device) {
    for (shape, odd) in [([1, 1], false), ([1, 7], false), ([30, 100], false), ([5, 12], true)] {
        let of = |stream| lying(shape, stream, DType::F32, odd, device);
        let mut w = of(1);
        let mut moments = [w.zeros_like(), w.zeros_like()];
        let mut want: Vec<[f64; 3]> =
            wide(&host(w.clone())).into_iter().map(|w| [w, 0.0, 0.0]).collect();
        for time in 1..=4 {
            let step =
                AdamWStep { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-3, weight_decay: 0.1, time };
            let g = of(time as u64 + 1);
            let held = (time % 2 == 0).then(|| (w.clone(), moments.clone(), g.clone()));
            let before = held.clone().map(|(w, [m, v], g)| [w, m, v, g].map(host));
            let of_g = wide(&host(g.clone()));
            (w, moments) = adamw_scaled(w, g, moments, &step, 0.25);
            let numbers = [step.lr, step.beta1, step.beta2, step.eps, step.weight_decay];
            let [lr, beta1, beta2, eps, decay] = numbers.map(f64::from);
            let (c1, c2) = (1.0 - beta1.powi(time as i32), 1.0 - beta2.powi(time as i32));
            for ([w, m, v], g) in want.iter_mut().zip(of_g) {
                let g = 0.25 * g;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *w -= lr * decay * *w + lr * (*m / c1) / ((*v / c2).sqrt() + eps);
            }
            let after = held.map(|(w, [m, v], g)| [w, m, v, g].map(host));
            assert_eq!(before, after, "{shape:?}: what was kept changed");
            for (i, got) in
                [w.clone(), moments[0].clone(), moments[1].clone()].into_iter().enumerate()
            {
                let want: Vec<f64> = want.iter().map(|x| x[i]).collect();
                compare(
                    &format!("{} of {shape:?} at {time}", ["w", "m", "v"][i]),
                    DType::F32,
                    &host(got),
                    &want,
                );
            }
        }
    }
}

/// More tensors than a launch takes, of all lengths, with numbers of their own; what somebody else holds stays as
/// it is. And no step after all. Where they cannot wait, the caller steps each by itself.
pub fn steps_of_many_equal_steps_of_each(device: &Device) {
    for scale in [Some(0.75), None] {
        many_steps(scale, device);
    }
}

fn many_steps(scale: Option<f32>, device: &Device) {
    let mut many = AdamWMany::new();
    let mut all = Vec::new();
    for i in 0..80 {
        let shape = [1 + i % 3, if i == 40 { 30_000 } else { 1 + 61 * i }];
        let of = |stream| lying(shape, 10 * i as u64 + stream, DType::F32, i % 7 == 3, device);
        let (w, g, m, v) = (of(1), of(2), of(3), of(4).abs());
        let (lr, eps) = (0.01 + 0.01 * i as f32, 1e-3);
        let step = AdamWStep { lr, beta1: 0.9, beta2: 0.95, eps, weight_decay: 0.1, time: 1 + i };
        if !AdamWMany::takes(&w, &g) {
            continue;
        }
        let want = match scale {
            Some(by) => adamw_scaled(w.clone(), g.clone(), [m.clone(), v.clone()], &step, by),
            None => (w.clone(), [m.clone(), v.clone()]),
        };
        let want = (host(want.0), want.1.map(host));
        let held = (i % 4 == 0).then(|| (w.clone(), m.clone()));
        let before = held.clone().map(|(w, m)| [w, m].map(host));
        let got = many.step(w, g, [m, v], &step);
        all.push((held, before, got, want));
    }
    match scale {
        Some(scale) => many.finish(scale),
        None => many.undo(),
    }
    for (i, (held, before, (w, [m, v]), (of_w, [of_m, of_v]))) in all.into_iter().enumerate() {
        let after = held.map(|(w, m)| [w, m].map(host));
        assert_eq!(before, after, "tensor {i}: what was kept changed");
        for (name, got, want) in [("w", w, of_w), ("m", m, of_m), ("v", v, of_v)] {
            let name = format!("{name} of tensor {i}");
            compare(&name, DType::F32, &host(got), &wide(&want));
        }
    }
}

/// Nothing comes of nothing.
pub fn empty_layers_are_empty(device: &Device) {
    let none = || leaf(Tensor::<2>::zeros([0, 8], device));
    assert_eq!(swiglu(none(), none()).dims(), [0, 8]);
    assert_eq!(rms_norm(none(), leaf(Tensor::ones([8], device)), 1e-5).dims(), [0, 8]);
    let flat = Tensor::<2>::zeros([3, 0], device);
    assert_eq!(rms_norm(leaf(flat), leaf(Tensor::ones([0], device)), 1e-5).dims(), [3, 0]);
    let heads = Tensor::<4>::zeros([1, 2, 0, 8], device);
    let table = || Tensor::<4>::ones([1, 1, 0, 4], device);
    assert_eq!(rotate_half(leaf(heads), table(), table()).dims(), [1, 2, 0, 8]);
}

/// One token, one id again and again, ids that meet in a workgroup and far apart, rows that none names.
pub fn embeddings_equal_the_formula(device: &Device) {
    for dtype in dtypes(device) {
        for (n, v, d) in [(1, 1, 1), (5, 3, 4), (33, 1, 5), (300, 40, 8), (700, 900, 17)] {
            let ids: Vec<i32> = (0..n).map(|i| (i * i + 7 * i / 3) % v).collect();
            let w = leaf(random::<2>([v as usize, d], 1, device).cast(dtype));
            let dy = random::<2>([n as usize, d], 2, device).cast(dtype);
            let (of_w, of_dy) = (host(w.clone()), wide(&host(dy.clone())));
            poison(device, dtype, &[v as usize * d, n as usize * d]);
            let index =
                Tensor::<1, Int>::from_data(TensorData::new(ids.clone(), [ids.len()]), device);
            let y = embed(w.clone(), index);
            assert_eq!(y.dtype(), dtype);
            let grads = (y.clone() * Tensor::from_inner(dy)).sum().backward();
            let (mut want, mut dw) = (vec![], vec![0.0; v as usize * d]);
            for (id, dy) in ids.iter().zip(of_dy.chunks(d)) {
                let at = *id as usize * d;
                want.extend_from_slice(&of_w[at..at + d]);
                dw[at..at + d].iter_mut().zip(dy).for_each(|(dw, dy)| *dw += dy);
            }
            assert_eq!(host(y), want, "{n} of {v} rows in {dtype:?}");
            compare(&format!("dw of {n} of [{v}, {d}]"), dtype, &grad(&w, &grads), &dw);
        }
    }
    let none = embed(leaf(Tensor::ones([3, 4], device)), Tensor::<1, Int>::zeros([0], device));
    assert_eq!(none.dims(), [0, 4]);
}

/// One number and many, in one workgroup's part and in several.
pub fn sums_of_squares_equal_sums(device: &Device) {
    for dtype in dtypes(device) {
        let lengths = [1, 3, 8, 1000, 4099, 70_000];
        let tensors = lengths.map(|len| random::<1>([len], len as u64, device).cast(dtype));
        let want = tensors.clone().map(|x| host(x).iter().map(|x| f64::from(*x).powi(2)).sum());
        poison(device, DType::F32, &[6, 40]);
        let got = sums_of_squares(tensors.to_vec());
        assert_eq!(got.dtype(), DType::F32);
        // Squares of 16 bits are those of f32, but where a device has no kernel.
        compare(&format!("squares of {dtype:?}"), DType::F32, &host(got), &want);
    }
    let bad = Tensor::<1>::full([5], f32::NAN, device);
    let got =
        host(sums_of_squares(vec![Tensor::ones([3], device), bad, Tensor::ones([2], device)]));
    assert!(got[0] == 3.0 && got[1].is_nan() && got[2] == 2.0, "{got:?}");
    let none = Tensor::<1>::zeros([0], device);
    assert_eq!(host(sums_of_squares(vec![none, Tensor::ones([4], device)])), [0.0, 4.0]);
}

/// Several chunks and one, tokens without a label, one token, widths that runs do not divide, weights in
/// f32 beside activations of 16 bits, parts that are frozen.
pub fn losses_equal_the_formula(device: &Device) {
    for dtype in dtypes(device) {
        for (n, d, v) in
            [(1, 1, 1), (1, 8, 5), (7, 4, 2), (37, 8, 90), (20, 16, 1030), (300, 2, 640)]
        {
            for (of_weight, frozen) in [(dtype, 0), (DType::F32, 0), (dtype, 1), (dtype, 2)] {
                loss_equals_the_formula([n, d, v], [dtype, of_weight], frozen, device);
            }
        }
    }
    // More tokens than a chunk has.
    loss_equals_the_formula([800, 2, 20_000], [DType::F32; 2], 0, device);
    for dtype in dtypes(device).into_iter().filter(|dtype| dtype.size() == 2) {
        loss_equals_the_formula([1700, 8, 20_000], [dtype; 2], 0, device);
    }
}

fn loss_equals_the_formula(
    [n, d, v]: [usize; 3],
    [dtype, of_weight]: [DType; 2],
    frozen: usize,
    device: &Device,
) {
    let labels: Vec<i64> =
        (0..n).map(|i| if i % 5 == 2 { -100 } else { ((i * 7919) % v) as i64 }).collect();
    let make = |shape, stream, dtype, frozen: bool| {
        let x = Tensor::<2>::from_inner(random(shape, stream, device).cast(dtype));
        if frozen { x } else { x.require_grad() }
    };
    let x = make([n, d], 1, dtype, frozen == 1);
    let w = make([v, d], 2, of_weight, frozen == 2);
    // What the products are given.
    let (of_x, of_w) = (host(x.clone()), host(w.clone().inner().cast(dtype)));
    poison(device, dtype, &[n * v, n * d, v * d, n, 1]);
    let loss = linear_cross_entropy(x.clone(), w.clone(), &labels).unwrap();
    assert_eq!(loss.dtype(), DType::F32);
    let grads = loss.clone().mul_scalar(0.5).backward();

    let (mut want, mut dx, mut dw) = (0.0f64, vec![0.0f64; n * d], vec![0.0f64; v * d]);
    for (i, label) in labels.iter().enumerate().filter(|(_, label)| **label >= 0) {
        let dot = |w: &[f32]| -> f64 {
            of_x[i * d..][..d].iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        let logits: Vec<f64> = of_w.chunks(d).map(dot).collect();
        let top = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|x| (x - top).exp()).sum();
        want += sum.ln() + top - logits[*label as usize];
        for (j, logit) in logits.iter().enumerate() {
            let p = (logit - top).exp() / sum - f64::from(u8::from(j as i64 == *label));
            for k in 0..d {
                dx[i * d + k] += 0.5 * p * f64::from(of_w[j * d + k]);
                dw[j * d + k] += 0.5 * p * f64::from(of_x[i * d + k]);
            }
        }
    }
    let name = |what: &str| {
        format!("{what} of {n} x {d} x {v} in {dtype:?} by {of_weight:?}, frozen {frozen}")
    };
    // Logits and their gradients are rounded, and products of them summed.
    let allowed = match dtype {
        DType::BF16 => 2e-2,
        DType::F16 => 3e-3,
        _ => 1e-5,
    };
    let near = |what: &str, got: Vec<f32>, want: &[f64]| {
        let want: Vec<f32> = want.iter().map(|x| *x as f32).collect();
        let r = ratio(&got, &want);
        assert!(r <= allowed, "{} differs by {r:.1e}", name(what));
    };
    near("loss", host(loss), &[want]);
    assert_eq!((x.grad(&grads).is_none(), w.grad(&grads).is_none()), (frozen == 1, frozen == 2));
    if frozen != 1 && v > 1 {
        near("dx", grad(&x, &grads), &dx);
    }
    if frozen != 2 && v > 1 {
        near("dw", grad(&w, &grads), &dw);
    }
}

/// Tokens without a label may hold anything, and change nothing.
pub fn losses_pass_over_tokens_without_a_label(device: &Device) {
    let go = |value: f32| {
        let (n, d, v) = (9, 4, 33);
        let x = random::<2>([n, d], 1, device);
        let x = x.slice_assign([3..5, 0..d], Tensor::full([2, d], value, device));
        let labels: Vec<i64> =
            (0..9).map(|i| if i == 3 || i == 4 { -100 } else { 3 * i }).collect();
        let x = leaf(x);
        let w = Tensor::from_inner(random::<2>([v, d], 2, device));
        let loss = linear_cross_entropy(x.clone(), w, &labels).unwrap();
        let grads = loss.clone().backward();
        (host(loss), grad(&x, &grads))
    };
    let (loss, dx) = go(0.5);
    assert!(dx[12..20].iter().all(|x| *x == 0.0) && loss[0].is_finite());
    assert_eq!(go(f32::NAN), (loss, dx));
}
