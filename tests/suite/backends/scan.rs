//! The selective scan on each device, against the reference: on the CPU in f64 where there is one,
//! otherwise on the device itself.

use super::{FORWARD, GRADIENTS, host};
use burn::tensor::{DType, Device, Tensor, TensorData};
use longburn::kernel::scan::selective_implementation_for;
use longburn::kernel::{Implementation, SelectiveScan, Step, Steps, TokenMeta, selective_scan};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::ratio;

/// Sizes, and which of the options are on.
#[derive(Clone, Copy, Debug)]
struct Case {
    batch: usize,
    len: usize,
    channels: usize,
    n: usize,
    groups: usize,
    /// D, z, bias and softplus.
    full: bool,
    h0: bool,
    keep_state: bool,
    documents: bool,
}

const CASE: Case = Case {
    batch: 2,
    len: 65,
    channels: 6,
    n: 4,
    groups: 1,
    full: true,
    h0: true,
    keep_state: true,
    documents: false,
};

/// Where and how a case runs.
struct Place<'a> {
    device: &'a Device,
    dtype: DType,
    implementation: Implementation,
    /// What padding holds.
    padding: f32,
}

/// The device that has the reference, and in which precision it computes there.
fn reference(device: &Device) -> (Device, DType) {
    #[cfg(feature = "flex")]
    let place = (device.clone(), (Device::flex(), DType::F64)).1;
    #[cfg(not(feature = "flex"))]
    let place = (device.clone(), DType::F32);
    place
}

/// Two rows that begin and end in all ways: documents, one of a single token, padding before,
/// between and behind.
fn broken(len: usize) -> Steps {
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

type Pass = Vec<(&'static str, Vec<f32>)>;

fn run(case: Case, place: &Place<'_>) -> Pass {
    let Case { batch, len, channels, n, groups, .. } = case;
    let steps = if case.documents { broken(len) } else { Steps::plain(batch, len) };
    let numbers = |count: usize, stream: u64, scale: f32| -> Vec<f32> {
        let mut rng = Streams::new(17).rng(Purpose::Synthetic, stream, 0, 0);
        (0..count).map(|_| rng.unit() as f32 * 2.0 * scale - scale).collect()
    };
    let tensor = |data: Vec<f32>, shape: &[usize]| TensorData::new(data, shape.to_vec());
    let whole = |shape: &[usize], stream, scale| {
        tensor(numbers(shape.iter().product(), stream, scale), shape)
    };
    // One row of numbers per token.
    let tokens = |shape: &[usize], stream, scale| {
        let width = shape[2..].iter().product();
        let mut data = numbers(batch * len * width, stream, scale);
        for (i, token) in data.chunks_mut(width).enumerate() {
            if steps.row(i / len)[i % len] == Step::Skip {
                token.fill(place.padding);
            }
        }
        tensor(data, shape)
    };
    macro_rules! leaf {
        ($data:expr) => {
            Tensor::from_inner(Tensor::from_data($data, (place.device, place.dtype))).require_grad()
        };
    }
    let (rows, of_group) = ([batch, len, channels], [batch, len, groups, n]);
    let u: Tensor<3> = leaf!(tokens(&rows, 1, 1.0));
    // What softplus is not asked for is a step already, which is above 0: below it states grow without
    // end, and what rounding does with them.
    let mut delta = tokens(&rows, 2, if case.full { 2.0 } else { 0.5 });
    if !case.full {
        delta.as_mut_slice::<f32>().unwrap().iter_mut().for_each(|x| *x = x.abs());
    }
    let delta: Tensor<3> = leaf!(delta);
    // Between −0.2 and −4, as a layer has it.
    let a: Tensor<2> = leaf!(whole(&[channels, n], 3, 1.5));
    let b: Tensor<4> = leaf!(tokens(&of_group, 4, 1.0));
    let c: Tensor<4> = leaf!(tokens(&of_group, 5, 1.0));
    let d: Tensor<1> = leaf!(whole(&[channels], 6, 1.0));
    let z: Tensor<3> = leaf!(tokens(&rows, 7, 3.0));
    let bias: Tensor<1> = leaf!(whole(&[channels], 8, 1.0));
    let h0: Tensor<3> = leaf!(whole(&[batch, channels, n], 9, 1.0));
    let (y, h) = selective_scan(SelectiveScan {
        d: case.full.then(|| d.clone()),
        z: case.full.then(|| z.clone()),
        delta_bias: case.full.then(|| bias.clone()),
        softplus: case.full,
        h0: case.h0.then(|| h0.clone()),
        steps: case.documents.then(|| steps.clone()),
        keep_state: case.keep_state,
        implementation: place.implementation,
        ..SelectiveScan::new(u.clone(), delta.clone(), a.clone().exp().neg(), b.clone(), c.clone())
    })
    .unwrap();
    let weights: Tensor<3> = leaf!(tokens(&rows, 10, 1.0));
    let mut loss = (y.clone() * weights.detach()).sum();
    if let Some(h) = &h {
        let weights: Tensor<3> = leaf!(whole(&[batch, channels, n], 11, 1.0));
        loss = loss + (h.clone() * weights.detach()).sum();
    }
    let grads = loss.backward();
    macro_rules! grad {
        ($x:expr) => {
            $x.grad(&grads).map(host).unwrap_or_default()
        };
    }
    vec![
        ("y", host(y)),
        ("h", h.map(host).unwrap_or_default()),
        ("du", grad!(u)),
        ("ddelta", grad!(delta)),
        ("da", grad!(a)),
        ("db", grad!(b)),
        ("dc", grad!(c)),
        ("dd", grad!(d)),
        ("dz", grad!(z)),
        ("dbias", grad!(bias)),
        ("dh0", grad!(h0)),
    ]
}

fn check(case: Case, device: &Device, padding: f32) {
    let auto = Implementation::Auto;
    let got = run(case, &Place { device, dtype: DType::F32, implementation: auto, padding });
    let (device, dtype) = reference(device);
    let implementation = Implementation::Reference;
    let want = run(case, &Place { device: &device, dtype, implementation, padding: 0.0 });
    for ((name, got), (_, want)) in got.iter().zip(&want) {
        let r = ratio(got, want);
        let allowed = if name.starts_with('d') { GRADIENTS } else { FORWARD };
        assert!(r <= allowed, "{case:?}: {name} differs by {r:.1e}");
    }
}

/// One span and several, one chunk of spans and several, cut off or not.
pub fn scans_of_every_length_equal_the_reference(device: &Device) {
    for len in [1, 16, 63, 64, 65, 257] {
        for h0 in [false, true] {
            check(Case { len, h0, ..CASE }, device, 0.0);
        }
    }
}

pub fn scans_with_every_option_equal_the_reference(device: &Device) {
    for full in [false, true] {
        for keep_state in [false, true] {
            check(Case { full, keep_state, len: 100, ..CASE }, device, 0.0);
        }
    }
}

/// Several blocks of channels, blocks that are cut off, groups of one channel, more states than a thread
/// has side by side.
pub fn scans_of_every_width_equal_the_reference(device: &Device) {
    for (channels, n, groups) in [
        (1, 1, 1),
        (17, 3, 1),
        (64, 8, 2),
        (130, 16, 1),
        (80, 2, 4),
        (5, 3, 5),
        (65, 37, 1),
        (6, 32, 2),
    ] {
        check(Case { channels, n, groups, len: 40, documents: true, ..CASE }, device, 0.0);
    }
}

/// Padding may hold anything, and documents begin within chunks, at their ends and beyond.
pub fn scans_of_documents_equal_the_reference(device: &Device) {
    for len in [1, 7, 64, 129, 257] {
        for full in [false, true] {
            check(Case { full, len, documents: true, ..CASE }, device, f32::NAN);
        }
    }
}

/// What one document holds does not reach another, not even what is no number.
pub fn scans_do_not_reach_other_documents(device: &Device) {
    let (len, channels, n) = (300, 3, 2);
    let bounds = [0, 90, 210, 300];
    let tokens = TokenMeta::packed(&[vec![90, 120, 90]], len).unwrap();
    let steps = Steps::of(&tokens, None).unwrap().0;
    let go = |poisoned: Option<usize>| {
        let rows = |stream: u64, width: usize| {
            let mut rng = Streams::new(5).rng(Purpose::Synthetic, stream, 0, 0);
            let mut data: Vec<f32> = (0..len * width).map(|_| rng.normal() as f32).collect();
            if let Some(i) = poisoned {
                data[bounds[i] * width..bounds[i + 1] * width].fill(f32::NAN);
            }
            let data = TensorData::new(data, [1, len, width]);
            Tensor::<3>::from_inner(Tensor::from_data(data, device)).require_grad()
        };
        let narrow = |stream| {
            let x = rows(stream, n).inner().reshape([1, len, 1, n]);
            Tensor::<4>::from_inner(x).require_grad()
        };
        let a = Tensor::<2>::from_inner(Tensor::full([channels, n], -0.5, device));
        let (u, delta, b, c) = (rows(1, channels), rows(2, channels), narrow(3), narrow(4));
        let (y, _) = selective_scan(SelectiveScan {
            softplus: true,
            steps: Some(steps.clone()),
            ..SelectiveScan::new(u.clone(), delta.clone(), a, b.clone(), c.clone())
        })
        .unwrap();
        let weights = rows(5, channels).detach();
        let grads = (y.clone() * weights).sum().backward();
        vec![
            ("y", host(y)),
            ("du", host(u.grad(&grads).unwrap())),
            ("ddelta", host(delta.grad(&grads).unwrap())),
            ("db", host(b.grad(&grads).unwrap())),
            ("dc", host(c.grad(&grads).unwrap())),
        ]
    };
    let want = go(None);
    for poisoned in 0..3 {
        let got = go(Some(poisoned));
        for document in (0..3).filter(|i| *i != poisoned) {
            for ((what, got), (_, want)) in got.iter().zip(&want) {
                let width = got.len() / len;
                let range = bounds[document] * width..bounds[document + 1] * width;
                let same = got[range.clone()] == want[range.clone()];
                assert!(same, "{what} of document {document} changes with document {poisoned}");
            }
        }
    }
}

/// Two runs give the same bits, and two halves with the state between them are the whole.
pub fn scans_repeat_and_carry_on(device: &Device) {
    let case = Case { len: 130, channels: 70, documents: true, ..CASE };
    let go = || {
        let implementation = Implementation::Auto;
        run(case, &Place { device, dtype: DType::F32, implementation, padding: 0.0 })
    };
    assert_eq!(go(), go());

    let (len, channels, n) = (150, 20, 8);
    let go = |range: std::ops::Range<usize>, h0: Option<Tensor<3>>| {
        let rows = |stream, width| {
            let mut rng = Streams::new(6).rng(Purpose::Synthetic, stream, 0, 0);
            let data: Vec<f32> = (0..2 * len * width).map(|_| rng.normal() as f32).collect();
            let x = Tensor::<3>::from_data(TensorData::new(data, [2, len, width]), device);
            x.narrow(1, range.start, range.len())
        };
        let narrow = |stream| rows(stream, n).reshape([2, range.len(), 1, n]);
        let a = Tensor::full([channels, n], -0.3, device);
        let scan = SelectiveScan {
            softplus: true,
            h0,
            keep_state: true,
            ..SelectiveScan::new(rows(1, channels), rows(2, channels), a, narrow(3), narrow(4))
        };
        let (y, h) = selective_scan(scan).unwrap();
        (y, h.unwrap())
    };
    let (whole, last) = go(0..len, None);
    let (first, state) = go(0..83, None);
    let (second, end) = go(83..len, Some(state));
    let r = ratio(&host(Tensor::cat(vec![first, second], 1)), &host(whole));
    assert!(r <= FORWARD, "y differs by {r:.1e}");
    let r = ratio(&host(end), &host(last));
    assert!(r <= FORWARD, "the state differs by {r:.1e}");
}

/// The kernels of the device run, not the form that runs anywhere.
pub fn scans_run_their_own_code(device: &Device) {
    let x = Tensor::<3>::zeros([1, 1, 1], device);
    let chosen = selective_implementation_for(Implementation::Auto, &x).unwrap();
    let (own, other) = if format!("{device:?}").to_lowercase().contains("flex") {
        (Implementation::Flex, Implementation::Cube)
    } else {
        (Implementation::Cube, Implementation::Flex)
    };
    assert_eq!(chosen, own);
    assert!(selective_implementation_for(other, &x).is_err());
}
