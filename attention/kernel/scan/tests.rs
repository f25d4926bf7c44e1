//! Every implementation against the reference in f64: outputs, states and all gradients.

mod selective;
mod ssd;

use super::{Step, Steps};
use crate::TokenMeta;
use burn::tensor::{DType, Device, Tensor, TensorData};
use std::ops::Range;

/// Numbers of about the size of `scale`, the same in both precisions.
pub(in crate::scan) fn leaf<const D: usize>(
    shape: [usize; D],
    seed: u64,
    scale: f32,
    dtype: DType,
) -> Tensor<D> {
    let value = |i: u64| {
        let x =
            (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
        let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        ((x >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    let n = shape.iter().product::<usize>() as u64;
    let data = TensorData::new((0..n).map(value).collect::<Vec<f32>>(), shape);
    let x = Tensor::<D>::from_data(data, (&Device::default(), DType::F32));
    Tensor::from_inner(x.cast(dtype)).require_grad()
}

pub(in crate::scan) fn host<const D: usize>(x: Tensor<D>) -> Vec<f64> {
    x.inner().cast(DType::F64).into_data().iter::<f64>().collect()
}

/// RMS(a − b) / RMS(b)
pub(in crate::scan) fn ratio(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |x: f64| x * x;
    let diff: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    match b.iter().map(|b| square(*b)).sum::<f64>() {
        0.0 => diff.sqrt(),
        size => (diff / size).sqrt(),
    }
}

/// Named results of a pass: outputs within 2e-6, gradients within 1e-5.
pub(in crate::scan) type Pass = Vec<(&'static str, Vec<f64>)>;

pub(in crate::scan) fn compare(case: &str, got: &Pass, want: &Pass) {
    for ((name, got), (_, want)) in got.iter().zip(want) {
        let allowed = if name.starts_with('d') { 1e-5 } else { 2e-6 };
        let r = ratio(got, want);
        assert!(r <= allowed, "{case}: {name} differs by {r:.1e}");
    }
}

/// Two rows that begin and end in all ways: documents, one of a single token, padding before,
/// between and behind.
pub(in crate::scan) fn broken(len: usize) -> Steps {
    let segment = |i: usize| match i * 8 / len {
        0 => -1,
        1 | 2 => 0,
        3 => 1,
        4 => -1,
        5 | 6 => 2,
        _ => 3,
    };
    let mut segments: Vec<i32> = (0..len).map(segment).collect();
    segments.extend((0..len).map(|i| if i + 5 < len { 0 } else { -1 }));
    if len > 2 {
        segments[len / 2] = 1;
    }
    let tokens = TokenMeta::new(2, len, vec![0; 2 * len], segments).unwrap();
    // A past, so that the first document of a row may be another one than its state is of.
    Steps::of(&tokens, Some(&[-1, 0])).unwrap().0
}

/// Rows of many documents of all lengths, and padding within and between them; one of padding alone.
/// The last row's first document is not the one that its state is of.
fn crowded(len: usize) -> TokenMeta {
    const LENGTHS: [usize; 10] = [9, 1, 1, 7, 2, 19, 1, 3, 1, 12];
    let mut segments = Vec::new();
    for row in 0..4 {
        let lengths = LENGTHS.iter().cycle().skip(3 * row);
        let documents =
            lengths.enumerate().flat_map(|(i, n)| std::iter::repeat_n(i as i32 + 1, *n));
        let of_token = |(t, document)| if row == 1 || (t + row) % 11 == 5 { -1 } else { document };
        segments.extend(documents.take(len).enumerate().map(of_token));
    }
    TokenMeta::new(4, len, vec![0; 4 * len], segments).unwrap()
}

pub(in crate::scan) fn crowded_steps(len: usize) -> Steps {
    Steps::of(&crowded(len), Some(&[-1, -1, 1, 0])).unwrap().0
}

/// Documents of a row that [`stays_in_its_document`] looks at, with padding behind.
const LENGTHS: [usize; 4] = [40, 1, 70, 30];
const LEN: usize = 150;

/// Tokens and what they hold instead of numbers.
type Poison = (Range<usize>, f32);

/// A row of tokens, those of `poison` as it says.
fn poisoned<const D: usize>(shape: [usize; D], seed: u64, (tokens, value): &Poison) -> Tensor<D> {
    let x = leaf(shape, seed, 1.0, DType::F32).inner();
    let range: [Range<usize>; D] =
        std::array::from_fn(|dim| if dim == 1 { tokens.clone() } else { 0..shape[dim] });
    Tensor::from_inner(x.slice_fill(range, *value)).require_grad()
}

fn packed_steps() -> Steps {
    Steps::of(&TokenMeta::packed(&[LENGTHS.to_vec()], LEN).unwrap(), None).unwrap().0
}

/// Results of a scan where one document, or padding, holds no numbers have the bits that they have
/// otherwise, but for that document's. What padding holds does not reach the parameters, either.
fn stays_in_its_document(case: &str, go: impl Fn(&Poison) -> Pass) {
    let want = go(&(0..0, 0.0));
    let ends = LENGTHS.iter().scan(0, |end, len| {
        *end += len;
        Some(*end)
    });
    let bounds: Vec<usize> = [0].into_iter().chain(ends).chain([LEN]).collect();
    let padding = LENGTHS.len();
    for value in [f32::NAN, f32::INFINITY] {
        for (i, tokens) in bounds.windows(2).map(|ends| ends[0]..ends[1]).enumerate() {
            for ((name, got), (_, want)) in go(&(tokens.clone(), value)).iter().zip(&want) {
                let bits = |x: &[f64]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let same = match *name {
                    "h" if i + 1 == padding => continue,
                    "dh0" if i == 0 => continue,
                    "da" | "dd" | "dbias" if i < padding => continue,
                    "h" | "dh0" | "da" | "dd" | "dbias" => bits(got) == bits(want),
                    _ => {
                        let (from, to) =
                            (got.len() / LEN * tokens.start, got.len() / LEN * tokens.end);
                        bits(&got[..from]) == bits(&want[..from])
                            && bits(&got[to..]) == bits(&want[to..])
                    }
                };
                assert!(same, "{case}: {name} of others changes with {value} in {tokens:?}");
            }
        }
    }
}

#[test]
fn steps_follow_documents() {
    use Step::{First, Next, Skip};
    let tokens = TokenMeta::new(1, 6, vec![0; 6], vec![-1, 2, 2, -1, 2, 5]).unwrap();
    let (steps, last) = Steps::of(&tokens, None).unwrap();
    assert_eq!(steps.row(0), [Skip, Next, Next, Skip, Next, First]);
    assert_eq!((last, steps.is_plain(), steps.has_padding()), (vec![5], false, true));
    assert_eq!(Steps::of(&tokens, Some(&[1])).unwrap().0.row(0)[1], First);
    assert_eq!(Steps::of(&tokens, Some(&[2])).unwrap().0.row(0)[1], Next);
    let text = Steps::of(&tokens, Some(&[3])).unwrap_err().to_string();
    assert!(text.contains("row 0, token 1: document 2 comes after document 3"), "{text}");
    assert!(Steps::of(&tokens, Some(&[0, 0])).is_err());
    assert!(Steps::plain(2, 3).is_plain());

    // Three inputs back, the tail's own being 0, 1 and 2.
    let taps = steps.taps(3);
    assert_eq!(taps[..3], [-1, -1, -1]);
    assert_eq!(taps[3..6], [1, 2, 4]);
    assert_eq!(taps[12..15], [4, 5, 7]);
    assert_eq!(taps[15..], [-1, -1, 8]);
    assert_eq!(steps.tail(3), [-1, -1, 8]);
    assert_eq!(Steps::plain(1, 2).tail(3), [2, 3, 4]);
}
