//! Products of tensors on a card: by cuBLASLt where it does them, else by Burn.

use super::layout::{ALIGNED, Beside, Call, Gemm, Numbers, View, aligned, distance};
use super::library::{self, Library};
use super::op::{products, turned, widened};
use super::plan::{At, Plan};
use crate::card::OnCard;
use crate::stream::submit;
use burn::backend::{Cube, TensorMetadata, tensor::FloatTensor};
use burn::tensor::{DType, Shape, Tensor};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use std::sync::Arc;

/// Alignment of a bias that epilogues read in whole runs, bytes.
const OF_BIAS: u64 = 16;

/// The library for tensors like `x`, or why there is none.
pub(super) fn library_for<const D: usize>(x: &Tensor<D>) -> Result<Arc<Library>, String> {
    if numbers(x.dtype()).is_none() {
        return Err(format!(
            "cuBLASLt is asked for products in f32, bf16 and f16, not in {:?}",
            x.dtype()
        ));
    }
    let Ok(x) = x.clone().inner().try_into_primitive::<Cube>() else {
        return Err("cuBLASLt is for NVIDIA cards".into());
    };
    let device = x.device();
    if device.client().name() != "cuda" {
        return Err("cuBLASLt is for NVIDIA cards by CUDA".into());
    }
    library::of(device.to_id().index_id.into())
}

fn numbers(dtype: DType) -> Option<Numbers> {
    match dtype {
        DType::F32 => Some(Numbers::F32),
        DType::BF16 => Some(Numbers::Bf16),
        DType::F16 => Some(Numbers::F16),
        _ => None,
    }
}

/// `a·b` of matrices in the last two dimensions, the same number of both.
pub(super) fn product(a: FloatTensor<Cube>, b: FloatTensor<Cube>) -> FloatTensor<Cube> {
    let (a, b) = (Factor::new(a), Factor::new(b));
    match run(&a, &b, With::Nothing, Out::New(a.x.dtype)) {
        Ok((c, _)) => Cube::lift(c),
        Err(_) => products::<Cube>(a.lift(), b.lift()),
    }
}

/// The same in f32, whatever the factors are in: sums are not rounded to 16 bits.
pub(super) fn wide_product(a: FloatTensor<Cube>, b: FloatTensor<Cube>) -> FloatTensor<Cube> {
    let (a, b) = (Factor::new(a), Factor::new(b));
    match run(&a, &b, With::Nothing, Out::New(DType::F32)) {
        Ok((c, _)) => Cube::lift(c),
        Err(_) => widened::<Cube>(products::<Cube>(a.lift(), b.lift())),
    }
}

/// Adds the same to `sum`, in f32 and without gaps; whether it was done.
pub(super) fn add_wide_product(
    a: FloatTensor<Cube>,
    b: FloatTensor<Cube>,
    sum: &CubeTensor,
) -> bool {
    run(&Factor::new(a), &Factor::new(b), With::Nothing, Out::Added(sum)).is_ok()
}

/// `x·Wᵀ`
pub(super) fn linear(x: FloatTensor<Cube>, weight: FloatTensor<Cube>) -> FloatTensor<Cube> {
    let (x, weight) = (Factor::new(x), Factor::new(weight).turned());
    match run(&x, &weight, With::Nothing, Out::New(x.x.dtype)) {
        Ok((y, _)) => Cube::lift(y),
        Err(_) => products::<Cube>(x.lift(), weight.lift()),
    }
}

/// `x·Wᵀ + b`; none where the two do not go together.
pub(super) fn linear_bias(
    x: FloatTensor<Cube>,
    weight: FloatTensor<Cube>,
    bias: FloatTensor<Cube>,
) -> Option<FloatTensor<Cube>> {
    let (x, weight) = (Factor::new(x), Factor::new(weight).turned());
    let bias = into_contiguous(Cube::lower(bias));
    run(&x, &weight, With::Bias(&bias), Out::New(x.x.dtype)).ok().map(|(y, _)| Cube::lift(y))
}

/// (dyᵀ·x, sums of dy's columns); none where the two do not go together.
pub(super) fn parameter_gradients(
    dy: FloatTensor<Cube>,
    x: FloatTensor<Cube>,
) -> Option<(FloatTensor<Cube>, FloatTensor<Cube>)> {
    let (dy, x) = (Factor::new(dy).turned(), Factor::new(x));
    let (dw, db) = run(&dy, &x, With::RowSums, Out::New(x.x.dtype)).ok()?;
    Some((Cube::lift(dw), Cube::lift(db?)))
}

/// Matrices as they lie on the card, in the last two dimensions, or their transposes.
struct Factor {
    x: CubeTensor,
    turned: bool,
}

impl Factor {
    /// Copied where neither rows nor columns are runs of neighbours, and where matrices are not equally far
    /// apart.
    fn new(x: FloatTensor<Cube>) -> Self {
        let x = Self { x: Cube::lower(x), turned: false };
        let lies_well = !x.x.meta.is_tiled() && x.view().factor().is_some();
        if lies_well && x.apart().is_some() {
            return x;
        }
        Self { x: into_contiguous(x.x), turned: false }
    }

    fn turned(self) -> Self {
        Self { turned: !self.turned, ..self }
    }

    fn view(&self) -> View {
        let (shape, strides) = (self.x.meta.shape(), self.x.meta.strides());
        let (row, column) = (shape.len() - 2, shape.len() - 1);
        let view = View {
            rows: shape[row],
            columns: shape[column],
            strides: [strides[row], strides[column]],
        };
        if self.turned { view.turned() } else { view }
    }

    /// What numbers the matrices, as many lengths as there are such dimensions.
    fn many(&self) -> &[usize] {
        let shape = self.x.meta.shape();
        &shape[..shape.len() - 2]
    }

    /// From one matrix to the next.
    fn apart(&self) -> Option<usize> {
        distance(self.many(), &self.x.meta.strides()[..self.many().len()])
    }

    /// As Burn multiplies it.
    fn lift(self) -> FloatTensor<Cube> {
        let x = Cube::lift(self.x);
        if self.turned { turned::<Cube>(x) } else { x }
    }
}

/// Bytes from the beginning of its buffer.
fn begins(x: &CubeTensor) -> u64 {
    x.handle.offset_start.unwrap_or_default()
}

enum With<'a> {
    Nothing,
    Bias(&'a CubeTensor),
    RowSums,
}

/// Where C goes.
enum Out<'a> {
    New(DType),
    /// It is added to what is there.
    Added(&'a CubeTensor),
}

/// C and, where they were asked for, the sums of A's rows.
///
/// # Errors
/// Why the library does not do it. Nothing has been queued then.
fn run(
    a: &Factor,
    b: &Factor,
    with: With<'_>,
    out: Out<'_>,
) -> Result<(CubeTensor, Option<CubeTensor>), String> {
    let dtype = a.x.dtype;
    let of_factors = numbers(dtype).filter(|_| b.x.dtype == dtype);
    let of_factors = of_factors.ok_or("factors of several kinds of numbers")?;
    let (out, sum) = match out {
        Out::New(dtype) => (dtype, None),
        Out::Added(sum) => (sum.dtype, Some(sum)),
    };
    let of_out = numbers(out).ok_or("a result that is no product's")?;
    let many = a.many();
    let product = Gemm::new(a.view(), b.view()).filter(|_| b.many() == many);
    let gemm = product
        .zip(a.apart().zip(b.apart()))
        .and_then(|(one, (of_a, of_b))| one.times(many.iter().product(), [of_a, of_b]))
        .ok_or("sizes that do not fit")?;
    let shape = [many, &[gemm.n, gemm.m]].concat();
    let fits = |sum: &CubeTensor| {
        sum.meta.shape()[..] == shape[..] && sum.is_contiguous() && begins(sum) == 0
    };
    if sum.is_some_and(|sum| !fits(sum)) {
        return Err("a sum that does not fit, or lies at an odd place".into());
    }
    if let With::Bias(bias) = &with {
        let fits = bias.dtype == dtype && bias.meta.shape().num_elements() == gemm.m;
        if !fits || !begins(bias).is_multiple_of(OF_BIAS) {
            return Err("a bias that does not fit, or lies at an odd place".into());
        }
    }
    let beside = match with {
        With::Nothing => Beside::Nothing,
        With::Bias(_) => Beside::Bias,
        With::RowSums => Beside::RowSums,
    };
    let device = a.x.device.clone();
    let library = library::of(device.to_id().index_id.into())?;
    // As far as it is known before buffers have addresses: they begin at multiples of 512 bytes.
    let aligned = aligned(&gemm, [of_factors, of_out], [begins(&b.x), begins(&a.x), 0]);
    let call = Call { gemm, numbers: of_factors, out: of_out, beside, aligned };
    let plan = library.plan(&call)?;

    let empty = |shape: &[usize], dtype| {
        let client = a.x.client.clone();
        empty_device_contiguous_dtype(client, device.clone(), Shape::from(shape.to_vec()), dtype)
    };
    let c = sum.map_or_else(|| empty(&shape, out), CubeTensor::clone);
    let add = sum.is_some();
    let sums = (beside == Beside::RowSums).then(|| empty(&[gemm.n], out));
    let room = plan.workspace();
    // With what its address is rounded up by.
    let workspace = (room > 0).then(|| empty(&[(room + ALIGNED as usize).div_ceil(4)], DType::F32));

    let mut reads = vec![b.x.handle.clone(), a.x.handle.clone()];
    if let With::Bias(bias) = with {
        reads.push(bias.handle.clone());
    }
    let mut writes = vec![c.handle.clone()];
    writes.extend(sums.iter().chain(&workspace).map(|x| x.handle.clone()));
    submit(&device, reads, writes, move |stream, addresses| {
        let at = At::new(addresses, beside)?;
        let launched = plan_for(&library, call, plan, &at).and_then(|plan| {
            // Safe: CubeCL's thread has the device's context, and all buffers the sizes of the call.
            unsafe { plan.launch(library.handle(), stream, &at, add) }
        });
        // Whoever asks for such a product again gets Burn's.
        launched.inspect_err(|reason| library.refuse(&call, reason.clone()))
    });
    Ok((c, sums))
}

impl At {
    /// Of reads and writes in the order of [`run`].
    fn new(addresses: &[u64], beside: Beside) -> Result<Self, String> {
        let (matrices, workspace) = match (beside, addresses) {
            (Beside::Nothing, [left, right, out, rest @ ..]) => ([*left, *right, *out, 0], rest),
            (Beside::Bias, [left, right, bias, out, rest @ ..]) => {
                ([*left, *right, *out, *bias], rest)
            }
            (Beside::RowSums, [left, right, out, sums, rest @ ..]) => {
                ([*left, *right, *out, *sums], rest)
            }
            _ => return Err(format!("{} buffers for a product", addresses.len())),
        };
        let [left, right, out, beside] = matrices;
        let workspace = workspace.first().map_or(0, |x| x.next_multiple_of(u64::from(ALIGNED)));
        Ok(Self { left, right, out, beside, workspace })
    }
}

/// The plan for what buffers' addresses turned out to be.
fn plan_for(
    library: &Library,
    call: Call,
    expected: Arc<Plan>,
    at: &At,
) -> Result<Arc<Plan>, String> {
    let aligned = aligned(&call.gemm, [call.numbers, call.out], [at.left, at.right, at.out]);
    if aligned == call.aligned {
        return Ok(expected);
    }
    let plan = library.plan(&Call { aligned, ..call })?;
    match plan.workspace() <= expected.workspace() {
        true => Ok(plan),
        false => Err(format!("buffers aligned by {aligned:?}, not by {:?}", call.aligned)),
    }
}
