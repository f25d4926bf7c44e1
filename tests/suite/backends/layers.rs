//! Small layers with an op of their own against their formulas in f64 on the host, outputs and all
//! gradients, in every dtype that the device computes in.

use super::{host, random};
use burn::tensor::{DType, Device, Tensor};
use longburn::kernel::fused::{AdamWStep, adamw, rms_norm, rotate_half, swiglu};
use longburn::testing::ratio;

/// f32, and those of 16 bits that the device computes in.
fn dtypes(device: &Device) -> Vec<DType> {
    let all = [DType::F32, DType::BF16, DType::F16];
    all.into_iter().filter(|dtype| *dtype == DType::F32 || device.supports_dtype(*dtype)).collect()
}

/// What comes of numbers in 16 bits is rounded once, and sums are those of f32.
fn compare(name: &str, dtype: DType, got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name} in {dtype:?}");
    let places = match dtype {
        DType::BF16 => 256.0,
        DType::F16 => 2048.0,
        _ => {
            let want: Vec<f32> = want.iter().map(|x| *x as f32).collect();
            let r = ratio(got, &want);
            assert!(r <= 2e-6, "{name} differs by {r:.1e}");
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
fn poison(device: &Device, dtype: DType, lengths: &[usize]) {
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

fn leaf<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(x).require_grad()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn grad<const D: usize>(x: &Tensor<D>, grads: &burn::tensor::Gradients) -> Vec<f32> {
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
                if odd && shape[0] * shape[1] > 100_000 || of_weight != dtype && shape[1] > 3000 {
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
    let ([rows, width], eps) = (shape, 1e-2);
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

pub fn norms_repeat(device: &Device) {
    let go = || {
        let (x, w) = (leaf(random([700, 96], 1, device)), leaf(random([96], 2, device)));
        let y = rms_norm(x.clone(), w.clone(), 1e-5);
        let grads = y.sum().backward();
        [grad(&x, &grads), grad(&w, &grads)]
    };
    let first = go();
    assert!((0..3).all(|_| go() == first));
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
            (w, moments) = adamw(w, g, moments, &step);
            let numbers = [step.lr, step.beta1, step.beta2, step.eps, step.weight_decay];
            let [lr, beta1, beta2, eps, decay] = numbers.map(f64::from);
            let (c1, c2) = (1.0 - beta1.powi(time as i32), 1.0 - beta2.powi(time as i32));
            for ([w, m, v], g) in want.iter_mut().zip(of_g) {
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
