//! The causal convolution of state-space layers against its formula in f64, token by token.

use super::layers::{compare, dtypes, grad, leaf, poison, wide};
use super::{host, random};
use burn::tensor::{DType, Device, Tensor};
use longburn::kernel::fused::causal_conv_silu;
use longburn::kernel::{Step, Steps, TokenMeta};

/// An input of a token: one of the tail, or of the row.
#[derive(Clone, Copy)]
enum Input {
    Tail(usize),
    Row(usize),
}

/// Documents of one token and of several, padding before, between and behind.
fn broken(len: usize) -> Steps {
    let segment = |i: usize| match i * 8 / len {
        0 => -1,
        1 | 2 => 0,
        3 => 1,
        4 => -1,
        _ => 2,
    };
    let mut segments: Vec<i32> = (0..len).map(segment).collect();
    segments.extend((0..len).map(|i| if i + 3 < len { 0 } else { -1 }));
    let tokens = TokenMeta::new(2, len, vec![0; 2 * len], segments).unwrap();
    Steps::of(&tokens, Some(&[-1, 0])).unwrap().0
}

/// The last K inputs of every token of a row, oldest first; none for padding.
fn inputs(steps: &[Step], k: usize) -> Vec<Option<Vec<Option<Input>>>> {
    let mut past: Vec<_> = (0..k).map(|i| Some(Input::Tail(i))).collect();
    let of = |(t, step): (usize, &Step)| {
        match step {
            Step::Skip => return None,
            Step::First => past.fill(None),
            Step::Next => {}
        }
        past.remove(0);
        past.push(Some(Input::Row(t)));
        Some(past.clone())
    };
    steps.iter().enumerate().map(of).collect()
}

pub fn convolutions_equal_the_formula(device: &Device) {
    for dtype in dtypes(device) {
        for (len, channels, k) in [(1, 1, 1), (3, 5, 4), (40, 6, 4), (75, 24, 2), (33, 8, 9)] {
            for (documents, past, biased) in
                [(false, false, true), (false, true, false), (true, true, true)]
            {
                check([len, channels, k], dtype, (documents, past, biased), device);
            }
        }
    }
}

fn check(
    [len, channels, k]: [usize; 3],
    dtype: DType,
    (documents, past, biased): (bool, bool, bool),
    device: &Device,
) {
    let batch = 2;
    let steps = if documents { broken(len) } else { Steps::plain(batch, len) };
    let skips = |i: usize| steps.row(i / len)[i % len] == Step::Skip;
    // Padding may hold anything.
    let tokens = |stream| {
        let x = random::<2>([batch * len, channels], stream, device);
        let filled = (0..batch * len).filter(|i| skips(*i)).fold(x, |x, i| {
            x.slice_assign([i..i + 1, 0..channels], Tensor::full([1, channels], f32::NAN, device))
        });
        filled.reshape([batch, len, channels]).cast(dtype)
    };
    let of = |shape: [usize; 2], stream| random::<2>(shape, stream, device).cast(dtype);
    let (x, dy) = (leaf(tokens(1)), tokens(5));
    let w = leaf(of([channels, k], 2));
    let bias = leaf(of([1, channels], 3).reshape([channels]));
    let tail = leaf(of([batch * k, channels], 4).reshape([batch, k, channels]));
    let [of_x, of_w] = [wide(&host(x.clone())), wide(&host(w.clone()))];
    let (mut of_bias, mut of_tail) = (wide(&host(bias.clone())), wide(&host(tail.clone())));
    let of_dy = wide(&host(dy.clone()));
    if !biased {
        of_bias.fill(0.0);
    }
    if !past {
        of_tail.fill(0.0);
    }
    poison(device, dtype, &[batch * len * channels, (k + 1) * channels]);
    let y = causal_conv_silu(
        x.clone(),
        w.clone(),
        biased.then(|| bias.clone()),
        past.then(|| tail.clone()),
        &steps,
    );
    assert_eq!(y.dtype(), dtype);
    // What padding gets is no number, and zero must come of it.
    let grads = if documents {
        let weights = Tensor::from_inner(dy);
        let zero = Tensor::zeros_like(&y);
        let counts = weights.clone().is_nan();
        (y.clone() * weights.mask_where(counts, zero)).sum().backward()
    } else {
        (y.clone() * Tensor::from_inner(dy)).sum().backward()
    };

    let mut want = vec![0.0f64; of_x.len()];
    let (mut dx, mut dw) = (vec![0.0f64; of_x.len()], vec![0.0f64; of_w.len()]);
    let (mut db, mut dtail) = (vec![0.0f64; channels], vec![0.0f64; of_tail.len()]);
    for row in 0..batch {
        for (t, taps) in inputs(steps.row(row), k).into_iter().enumerate() {
            let Some(taps) = taps else { continue };
            for c in 0..channels {
                let place = |input| match input {
                    Input::Tail(i) => (row * k + i) * channels + c,
                    Input::Row(i) => (row * len + i) * channels + c,
                };
                let value = |input| match input {
                    Input::Tail(_) => of_tail[place(input)],
                    Input::Row(_) => of_x[place(input)],
                };
                let known = || taps.iter().enumerate().filter_map(|(j, x)| x.map(|x| (j, x)));
                let sum =
                    of_bias[c] + known().map(|(j, x)| of_w[c * k + j] * value(x)).sum::<f64>();
                let s = 1.0 / (1.0 + (-sum).exp());
                let at = (row * len + t) * channels + c;
                want[at] = sum * s;
                let ds = of_dy[at] * s * (1.0 + sum * (1.0 - s));
                db[c] += ds;
                for (j, x) in known() {
                    dw[c * k + j] += ds * value(x);
                    let to = if let Input::Tail(_) = x { &mut dtail } else { &mut dx };
                    to[place(x)] += ds * of_w[c * k + j];
                }
            }
        }
    }
    let name = |what: &str| {
        format!("{what} of {len} x {channels}, {k} inputs, documents {documents}, past {past}")
    };
    compare(&name("y"), dtype, &host(y), &want);
    compare(&name("dx"), dtype, &grad(&x, &grads), &dx);
    compare(&name("dw"), dtype, &grad(&w, &grads), &dw);
    if biased {
        compare(&name("db"), dtype, &grad(&bias, &grads), &db);
    }
    if past {
        compare(&name("dtail"), dtype, &grad(&tail, &grads), &dtail);
    }
}
