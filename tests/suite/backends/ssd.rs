//! SSD on each device: whole rows and rows of several documents against the reference there.

use super::{FORWARD, GRADIENTS, host};
use burn::tensor::{Device, Tensor, TensorData};
use longburn::kernel::fused::left_to_burn;
use longburn::kernel::{Implementation, Ssd, Step, Steps, TokenMeta, ssd};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::ratio;

const ROWS: usize = 2;
const LEN: usize = 75;
/// Documents of one token and of several chunks; what is left of a row is padding.
const LENGTHS: [&[usize]; ROWS] = [&[30, 1, 1, 5, 20, 11], &[3, 40, 2, 30]];

/// Sizes of a pass.
#[derive(Clone, Copy, Debug)]
struct Case {
    len: usize,
    heads: usize,
    p: usize,
    groups: usize,
    n: usize,
    chunk: usize,
    /// Whether rows are those of [`LENGTHS`].
    documents: bool,
}

const CASE: Case = Case { len: LEN, heads: 4, p: 5, groups: 2, n: 3, chunk: 8, documents: true };

/// Results, and how many tokens or rows each is of.
type Pass = Vec<(&'static str, usize, Vec<f32>)>;

fn steps() -> Steps {
    let tokens = TokenMeta::packed(&LENGTHS.map(<[usize]>::to_vec), LEN).unwrap();
    Steps::of(&tokens, None).unwrap().0
}

/// Where tokens hold `value` for which `bad` is true.
fn run(
    case: Case,
    device: &Device,
    implementation: Implementation,
    (bad, value): (&dyn Fn(usize) -> bool, f32),
) -> Pass {
    let Case { len, heads, p, groups, n, chunk, documents } = case;
    let tensor = |shape: [usize; 4], stream: u64, whole: bool| {
        let mut rng = Streams::new(23).rng(Purpose::Synthetic, stream, 0, 0);
        let mut data: Vec<f32> = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
        if !whole {
            for (i, token) in data.chunks_mut(shape[2] * shape[3]).enumerate() {
                if bad(i) {
                    token.fill(value);
                }
            }
        }
        let data = TensorData::new(data, shape);
        Tensor::<4>::from_inner(Tensor::from_data(data, device)).require_grad()
    };
    let tokens = |width: [usize; 2], stream| tensor([ROWS, len, width[0], width[1]], stream, false);
    let (x, dt) = (tokens([heads, p], 1), tokens([heads, 1], 2));
    let (b, c) = (tokens([groups, n], 3), tokens([groups, n], 4));
    let a = tensor([1, 1, 1, heads], 5, true);
    let d = tensor([1, 1, 1, heads], 6, true);
    let h0 = tensor([ROWS, heads, p, n], 7, true);
    let flat = |x: &Tensor<4>| x.clone().reshape([heads]);
    let (y, h) = ssd(Ssd {
        d: Some(flat(&d)),
        softplus: true,
        h0: Some(h0.clone()),
        steps: documents.then(steps),
        chunk,
        keep_state: true,
        implementation,
        ..Ssd::new(x.clone(), dt.clone().squeeze_dim(3), flat(&a).exp().neg(), b.clone(), c.clone())
    })
    .unwrap();
    let h = h.unwrap();
    let of_h = tensor([ROWS, heads, p, n], 9, true).detach();
    let loss = (y.clone() * tokens([heads, p], 8).detach()).sum() + (h.clone() * of_h).sum();
    let grads = loss.backward();
    let of = |x: &Tensor<4>| host(x.grad(&grads).unwrap());
    let all = ROWS * len;
    vec![
        ("y", all, host(y)),
        ("h", ROWS, host(h)),
        ("dx", all, of(&x)),
        ("ddt", all, of(&dt)),
        ("db", all, of(&b)),
        ("dc", all, of(&c)),
        ("da", 1, of(&a)),
        ("dd", 1, of(&d)),
        ("dh0", ROWS, of(&h0)),
    ]
}

/// Padding may hold anything.
pub fn ssd_of_documents_equals_the_reference(device: &Device) {
    let padding = |i: usize| steps().row(i / LEN)[i % LEN] == Step::Skip;
    let got = run(CASE, device, Implementation::Auto, (&padding, f32::NAN));
    let want = run(CASE, device, Implementation::Reference, (&padding, 0.0));
    compare(CASE, &got, &want);
}

fn compare(case: Case, got: &Pass, want: &Pass) {
    for ((name, _, got), (_, _, want)) in got.iter().zip(want) {
        let r = ratio(got, want);
        let allowed = if name.starts_with('d') { GRADIENTS } else { FORWARD };
        assert!(r <= allowed, "{case:?}: {name} differs by {r:.1e}");
    }
}

/// Rows of one document: part of a chunk, chunks of odd sizes with a rest, more chunks than go into one run of
/// tensor operations, with heads too wide for kernels of their own, and the sizes of a layer.
pub fn ssd_of_whole_rows_equals_the_reference(device: &Device) {
    let whole = Case { documents: false, ..CASE };
    let cases = [
        Case { len: 1, ..whole },
        Case { chunk: 100, ..whole },
        whole,
        Case { len: 140, chunk: 1, groups: 1, p: 65, ..whole },
        Case { len: 200, heads: 3, p: 64, groups: 1, n: 128, chunk: 64, ..whole },
        Case { len: 256, heads: 4, p: 64, groups: 2, n: 64, chunk: 128, ..whole },
    ];
    let go = |case, implementation| run(case, device, implementation, (&|_| false, 0.0));
    for case in cases {
        compare(case, &go(case, Implementation::Auto), &go(case, Implementation::Reference));
    }
    for line in left_to_burn() {
        println!("left to Burn: {line}");
    }
    for case in cases {
        let (once, again) = (go(case, Implementation::Auto), go(case, Implementation::Auto));
        assert_eq!(once, again, "{case:?}: two runs differ");
    }
}

/// What one document holds does not reach another, not even what is no number.
pub fn ssd_does_not_reach_other_documents(device: &Device) {
    let want = run(CASE, device, Implementation::Auto, (&|_| false, 0.0));
    for (row, lengths) in LENGTHS.iter().enumerate() {
        let mut end = row * LEN;
        for length in *lengths {
            let tokens = end..end + length;
            end = tokens.end;
            let bad = |i: usize| tokens.contains(&i);
            let got = run(CASE, device, Implementation::Auto, (&bad, f32::NAN));
            for ((name, count, got), (_, _, want)) in got.iter().zip(&want) {
                let width = got.len() / count;
                let others = (0..*count).filter(|i| match *count {
                    1 => false,
                    ROWS => *i != row,
                    _ => !bad(*i),
                });
                for i in others.map(|i| i * width) {
                    let same = got[i..i + width] == want[i..i + width];
                    assert!(same, "{name} changes at {i} with {tokens:?}");
                }
            }
        }
    }
}
