//! What can be said of the kernels without a card.

use super::source::{Call, EACH, ENTRIES, MANY, source};
use crate::cuda::emulated::{Launch, Memory, Program};
use crate::fused::AdamWStep;

/// Bytes of the argument of a kernel.
const ARGUMENT: usize = 4 << 10;

/// The smallest, ends of runs and of workgroups, several workgroups.
const LENGTHS: [usize; 6] = [1, 3, 4, EACH, EACH + 5, 3 * EACH - 1];

fn numbers(len: usize, seed: u64) -> Vec<f64> {
    let value = |i: u64| {
        let x =
            (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
        f64::from((x >> 40) as f32 / (1u64 << 22) as f32 - 2.0)
    };
    (0..len as u64).map(value).collect()
}

fn close(name: &str, got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-5 * (1.0 + want.abs()), "{name}[{i}]: {got}, not {want}");
    }
}

fn program(name: &str) -> Option<Program> {
    let names = ENTRIES.map(|(name, _)| name);
    let program = Program::new(name, &source(), &names, MANY * super::source::ADDRESSES);
    if program.is_none() {
        println!("skipped: there is no C++ compiler");
    }
    program
}

#[test]
fn a_call_fits_an_argument_and_says_when_it_is_full() {
    assert!(size_of::<Call>() <= ARGUMENT);
    let mut call = Call::default();
    for _ in 0..MANY {
        assert!(call.takes(1));
        call.push(EACH + 1);
    }
    assert!(!call.takes(1));
    assert_eq!(call.groups() as usize, 2 * MANY);
    assert!(!Call::default().takes(EACH << 31));
}

/// Weights in place, moments elsewhere and the other way round, one where no whole run lies; every tensor has
/// numbers of its own. And no step after all, which leaves what there was.
#[test]
fn steps_equal_the_formula_where_they_are_emulated() {
    for scale in [Some(0.75), None] {
        steps(scale);
    }
}

fn steps(scale: Option<f32>) {
    let Some(program) = program("steps") else { return };
    let (mut memory, mut call) = (Memory::default(), Call::default());
    let mut want = Vec::new();
    for (i, len) in LENGTHS.into_iter().enumerate() {
        let n = i as f32;
        let step = AdamWStep {
            lr: 0.01 + 0.01 * n,
            beta1: 0.5 + 0.05 * n,
            beta2: 0.7 + 0.04 * n,
            eps: 1e-3 * (n + 1.0),
            weight_decay: 0.1 * n,
            time: i + 1,
        };
        let of = |seed: u64| numbers(len, 10 * i as u64 + seed);
        let (w, mut g, m) = (of(1), of(2), of(3));
        let v: Vec<f64> = of(4).into_iter().map(f64::abs).collect();
        let mut old = [&w, &g, &m, &v].map(|x| memory.floats(x));
        if i == LENGTHS.len() - 1 {
            old[1] = memory.floats(&[&[f64::NAN], &g[..]].concat()) + 4;
        }
        if scale.is_none() {
            old[1] = memory.empty(len);
        }
        let mut new = [old[0], old[2], old[3]];
        for (place, to) in new.iter_mut().enumerate() {
            if (place == 0) == (i % 2 == 0) {
                *to = memory.empty(len);
            }
        }
        for (of, address) in old.into_iter().chain(new).enumerate() {
            call.of[of][i] = address;
        }
        call.push_step(len, &step);
        let numbers = [step.lr, step.beta1, step.beta2, step.eps, step.weight_decay];
        let [lr, beta1, beta2, eps, decay] = numbers.map(f64::from);
        let (c1, c2) = (1.0 - beta1.powi(i as i32 + 1), 1.0 - beta2.powi(i as i32 + 1));
        let mut by_formula = [w, m, v];
        g.truncate(if scale.is_some() { len } else { 0 });
        for (t, g) in g.into_iter().enumerate() {
            let [w, m, v] = by_formula.each_mut().map(|x| &mut x[t]);
            let g = f64::from(scale.unwrap_or_default()) * g;
            *m = beta1 * *m + (1.0 - beta1) * g;
            *v = beta2 * *v + (1.0 - beta2) * g * g;
            *w -= lr * decay * *w + lr * (*m / c1) / ((*v / c2).sqrt() + eps);
        }
        want.push((new, by_formula));
    }
    call.scale(scale);
    program.run(&mut memory, &[Launch::new(0, (call.groups(), 1, 1), 256, &call)]);
    for (i, (at, want)) in want.into_iter().enumerate() {
        for (which, (at, want)) in at.into_iter().zip(want).enumerate() {
            close(&format!("{} of tensor {i}", ["w", "m", "v"][which]), &memory.read(at), &want);
        }
    }
}

#[test]
fn sums_of_squares_equal_sums_where_they_are_emulated() {
    let Some(program) = program("squares") else { return };
    let (mut memory, mut call) = (Memory::default(), Call::default());
    let mut want = Vec::new();
    for (i, len) in LENGTHS.into_iter().enumerate() {
        let x = numbers(len, i as u64);
        call.of[0][i] = memory.floats(&x);
        call.push(len);
        want.push(x.iter().map(|x| x * x).sum());
    }
    call.of[1][0] = memory.empty(call.groups() as usize);
    call.of[2][0] = memory.empty(LENGTHS.len());
    let of = |entry, groups| Launch::new(entry, (groups, 1, 1), 256, &call);
    program.run(&mut memory, &[of(1, call.groups()), of(2, LENGTHS.len() as u32)]);
    close("sums", &memory.read(call.of[2][0]), &want);
}
