//! Linear layers against sums in f64 on the host, on every device and, on NVIDIA cards, in all dtypes that
//! cuBLASLt has.

use super::{host, random};
use burn::tensor::{DType, Device, Tensor};
use longburn::kernel::fused::{
    Products, left_to_burn, linear, linear_bias, matmul_detached, products_on,
};
use longburn::testing::ratio;

/// Inputs are the same; what differs is the order of sums in f32 and one rounding to the dtype.
fn allowed(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 4e-3,
        DType::F16 => 5e-4,
        _ => super::FORWARD,
    }
}

/// Rows, columns of x, columns of y: one of each, odd ones, those of whole tiles, a split inner dimension,
/// and the widths of a small Llama.
const SIZES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [1, 64, 48],
    [3, 17, 5],
    [63, 100, 1],
    [100, 1, 63],
    [257, 129, 65],
    [128, 256, 128],
    [1024, 64, 64],
    [64, 4099, 24],
    [320, 256, 344],
];

/// The dtypes that the device's own products have; f32 where there are none.
fn dtypes(device: &Device) -> Vec<DType> {
    match products_on(device, DType::F32) {
        Products::CublasLt { .. } => vec![DType::F32, DType::BF16, DType::F16],
        _ => vec![DType::F32],
    }
}

/// Whether sums are those of f32. Burn's own products on NVIDIA cards may round factors to TF32.
fn exact(device: &Device) -> bool {
    let said = products_on(device, DType::F32);
    println!("{said}");
    match said {
        Products::Burn { reason } => {
            assert!(reason.contains("cuBLASLt"), "{reason}");
            let by_cuda = !reason.contains("NVIDIA cards");
            if by_cuda {
                println!("skipped: {reason}");
            }
            !by_cuda
        }
        _ => true,
    }
}

/// Where matrices lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    Plain,
    /// x and dy are views of longer columns, the weight of wider rows.
    Views,
    /// All begin at an odd element of wider rows.
    Odd,
    /// One row for all of x.
    Broadcast,
}

/// A matrix whose elements are those of `random`, lying otherwise.
fn lying(shape: [usize; 2], stream: u64, dtype: DType, lie: Lie, device: &Device) -> Tensor<2> {
    let plain = |shape| random::<2>(shape, stream, device).cast(dtype);
    let [rows, columns] = shape;
    match lie {
        Lie::Plain => plain(shape),
        Lie::Views if stream == 2 => plain([rows, columns + 8]).narrow(1, 8, columns),
        Lie::Views => plain([columns, rows + 3]).narrow(1, 2, rows).transpose(),
        Lie::Odd => plain([rows + 1, columns + 2]).narrow(0, 1, rows).narrow(1, 1, columns),
        Lie::Broadcast if stream == 1 => plain([1, columns]).expand(shape),
        Lie::Broadcast => plain(shape),
    }
}

/// Σ over the inner dimension in f64: `a(i, l)·b(l, j)`.
fn sums(
    [m, n, k]: [usize; 3],
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
) -> Vec<f32> {
    let element = |i, j| -> f64 { (0..k).map(|l| f64::from(a(i, l)) * f64::from(b(l, j))).sum() };
    (0..m * n).map(|place| element(place / n, place % n) as f32).collect()
}

/// What results are written over.
fn poison([m, k, n]: [usize; 3], dtype: DType, device: &Device) {
    for shape in [[m, n], [m, k], [n, k], [1, n], [1024, 8192]] {
        drop(Tensor::<2>::full(shape, f32::NAN, (device, dtype)));
    }
}

/// What is wrong.
type Wrong = Vec<String>;

fn compare(wrong: &mut Wrong, name: String, got: &[f32], want: &[f32], allowed: f64) {
    if !got.iter().all(|x| x.is_finite()) {
        return wrong.push(format!("{name}: not all are numbers"));
    }
    let r = ratio(got, want);
    if r.is_nan() || r > allowed {
        wrong.push(format!("{name} differs by {r:.1e}"));
    }
}

fn check(size: [usize; 3], dtype: DType, lie: Lie, biased: bool, device: &Device) -> Wrong {
    let mut wrong = Wrong::new();
    let allowed = allowed(dtype);
    let [m, k, n] = size;
    let name = |what: &str| format!("{what} of {size:?} in {dtype:?}, {lie:?}, bias {biased}");
    let leaf =
        |shape, stream| Tensor::from_inner(lying(shape, stream, dtype, lie, device)).require_grad();
    let (x, w) = (leaf([m, k], 1), leaf([n, k], 2));
    let bias = Tensor::<1>::from_inner(random([n], 3, device).cast(dtype)).require_grad();
    let dy = lying([m, n], 4, dtype, lie, device);
    let (of_x, of_w, of_dy) = (host(x.clone()), host(w.clone()), host(dy.clone()));
    let of_bias = host(bias.clone());

    poison(size, dtype, device);
    let y = match biased {
        true => linear_bias(x.clone(), w.clone(), bias.clone()),
        false => linear(x.clone(), w.clone()),
    };
    let grads = (y.clone() * Tensor::from_inner(dy.clone())).sum().backward();

    let mut want = sums([m, n, k], |i, l| of_x[i * k + l], |l, j| of_w[j * k + l]);
    if biased {
        want.iter_mut().enumerate().for_each(|(place, y)| *y += of_bias[place % n]);
    }
    compare(&mut wrong, name("y"), &host(y), &want, allowed);
    let want = sums([m, k, n], |i, j| of_dy[i * n + j], |j, l| of_w[j * k + l]);
    compare(&mut wrong, name("dx"), &host(x.grad(&grads).unwrap()), &want, allowed);
    let want = sums([n, k, m], |j, i| of_dy[i * n + j], |i, l| of_x[i * k + l]);
    compare(&mut wrong, name("dw"), &host(w.grad(&grads).unwrap()), &want, allowed);
    if biased {
        let want = sums([1, n, m], |_, _| 1.0, |i, j| of_dy[i * n + j]);
        compare(&mut wrong, name("db"), &host(bias.grad(&grads).unwrap()), &want, allowed);
    }
    // The gradients' products as they are called by hand, with dy as it lies.
    poison(size, dtype, device);
    let (x, w) = (x.inner(), w.inner());
    let want = sums([m, k, n], |i, j| of_dy[i * n + j], |j, l| of_w[j * k + l]);
    compare(&mut wrong, name("dy·W"), &host(matmul_detached(dy.clone(), w)), &want, allowed);
    let want = sums([n, k, m], |j, i| of_dy[i * n + j], |i, l| of_x[i * k + l]);
    let got = host(matmul_detached(dy.transpose(), x));
    compare(&mut wrong, name("dyᵀ·x"), &got, &want, allowed);
    wrong
}

pub fn products_equal_sums_in_f64(device: &Device) {
    if !exact(device) {
        return;
    }
    let mut wrong = Wrong::new();
    for dtype in dtypes(device) {
        for size in SIZES {
            for biased in [false, true] {
                wrong.extend(check(size, dtype, Lie::Plain, biased, device));
            }
        }
        for size in [[1, 64, 48], [3, 17, 5], [257, 129, 65], [128, 256, 128]] {
            for lie in [Lie::Views, Lie::Odd, Lie::Broadcast] {
                wrong.extend(check(size, dtype, lie, true, device));
            }
        }
    }
    for line in left_to_burn() {
        println!("left to Burn: {line}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A weight in f32 beside x in 16 bits is rounded, its gradient is not.
pub fn products_with_wide_weights(device: &Device) {
    if let Products::Burn { reason } = products_on(device, DType::F32) {
        println!("skipped: {reason}");
        return;
    }
    let mut wrong = Wrong::new();
    for dtype in [DType::BF16, DType::F16] {
        for size in SIZES {
            let [m, k, n] = size;
            let name = |what: &str| format!("{what} of {size:?} in {dtype:?}");
            let x = Tensor::from_inner(random::<2>([m, k], 1, device).cast(dtype)).require_grad();
            let w = Tensor::from_inner(random::<2>([n, k], 2, device)).require_grad();
            let dy = random::<2>([m, n], 4, device).cast(dtype);
            let (of_x, of_dy) = (host(x.clone()), host(dy.clone()));
            let of_w = host(w.clone().cast(dtype));
            poison(size, dtype, device);
            poison(size, DType::F32, device);
            let y = linear(x.clone(), w.clone());
            assert_eq!(y.dtype(), dtype);
            let grads = (y.clone() * Tensor::from_inner(dy)).sum().backward();
            let (dx, dw) = (x.grad(&grads).unwrap(), w.grad(&grads).unwrap());
            assert_eq!((dx.dtype(), dw.dtype()), (dtype, DType::F32));
            let want = sums([m, n, k], |i, l| of_x[i * k + l], |l, j| of_w[j * k + l]);
            compare(&mut wrong, name("y"), &host(y), &want, allowed(dtype));
            let want = sums([m, k, n], |i, j| of_dy[i * n + j], |j, l| of_w[j * k + l]);
            compare(&mut wrong, name("dx"), &host(dx), &want, allowed(dtype));
            let want = sums([n, k, m], |j, i| of_dy[i * n + j], |i, l| of_x[i * k + l]);
            compare(&mut wrong, name("dw"), &host(dw), &want, super::FORWARD);
        }
    }
    let left: Wrong = left_to_burn().into_iter().filter(|line| line.contains(" to F32")).collect();
    assert!(left.is_empty(), "left to Burn: {left:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is frozen has no gradient, and the others are the same.
pub fn products_of_frozen_parts(device: &Device) {
    if !exact(device) {
        return;
    }
    let ([m, k, n], mut wrong) = ([33, 40, 24], Wrong::new());
    for frozen in 0..7 {
        let part = |number: usize| {
            move |x: Tensor<2>| match frozen >> number & 1 {
                0 => Tensor::<2>::from_inner(x).require_grad(),
                _ => Tensor::<2>::from_inner(x),
            }
        };
        let x = part(0)(random([m, k], 1, device));
        let w = part(1)(random([n, k], 2, device));
        let b = part(2)(random([1, n], 3, device));
        let y = linear_bias(x.clone(), w.clone(), b.clone().reshape([n]));
        let dy = random::<2>([m, n], 4, device);
        let grads = (y * Tensor::from_inner(dy.clone())).sum().backward();
        let (of_x, of_w, of_dy) = (host(x.clone()), host(w.clone()), host(dy));
        let wanted = [
            sums([m, k, n], |i, j| of_dy[i * n + j], |j, l| of_w[j * k + l]),
            sums([n, k, m], |j, i| of_dy[i * n + j], |i, l| of_x[i * k + l]),
            sums([1, n, m], |_, _| 1.0, |i, j| of_dy[i * n + j]),
        ];
        for (number, (leaf, want)) in [x, w, b].iter().zip(&wanted).enumerate() {
            let grad = leaf.grad(&grads);
            assert_eq!(grad.is_some(), frozen >> number & 1 == 0, "{frozen:b}: {number}");
            if let Some(grad) = grad {
                let name = format!("frozen {frozen:03b}, {number}");
                compare(&mut wrong, name, &host(grad), want, allowed(DType::F32));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// On an NVIDIA card with the library, products of whole tiles are its own.
pub fn products_run_their_own_code(device: &Device) {
    let Products::CublasLt { version } = products_on(device, DType::BF16) else {
        println!("skipped: {}", products_on(device, DType::BF16));
        return;
    };
    assert!(version.split('.').count() == 3, "{version}");
    for dtype in dtypes(device) {
        let wrong = check([256, 512, 384], dtype, Lie::Plain, true, device);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
    let mut of_these = left_to_burn();
    of_these.retain(|line| {
        ["[256, 512] x", "[256, 384] x", "[384, 256] x"].iter().any(|size| line.starts_with(size))
    });
    // The sums beside a product may be lacking, and only they.
    assert!(of_these.iter().all(|line| line.contains("gradient")), "{of_these:?}");
    println!("cuBLASLt {version}; apart from each other: {of_these:?}");
}

/// Products keep their place among Burn's operations, on the streams of several threads.
pub fn products_keep_their_place(device: &Device) {
    if !exact(device) {
        return;
    }
    let chain = |wait: bool| {
        let w = random::<2>([192, 192], 1, device) * 0.03;
        let mut x = random::<2>([130, 192], 2, device);
        for i in 0..40 {
            let y = linear(x.clone() * (1.0 + i as f64 * 0.01), w.clone());
            if wait {
                device.sync().unwrap();
            }
            x = matmul_detached(y.clone() * 0.5, w.clone()) + y * 0.5 + x * 0.25;
            if wait {
                device.sync().unwrap();
            }
        }
        host(x)
    };
    let want = chain(true);
    assert!(want.iter().all(|x| x.is_finite()));
    let same = |got: Vec<f32>| {
        let r = ratio(&got, &want);
        assert!(r <= super::FORWARD, "differs by {r:.1e}");
    };
    for _ in 0..5 {
        same(chain(false));
    }
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..4).map(|_| scope.spawn(|| chain(false))).collect();
        others.into_iter().for_each(|other| same(other.join().unwrap()));
    });
}
