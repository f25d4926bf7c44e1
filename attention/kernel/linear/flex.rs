//! Products on the CPU, out of packed panels.

use crate::panels::At;
use crate::product::product_of;
use burn::tensor::TensorData;
use burn_flex::FlexTensor;

/// `a·b` in f32.
pub(super) fn product(a: FlexTensor, b: FlexTensor) -> FlexTensor {
    let (a, b) = (plain(a), plain(b));
    let [m, k] = dims(&a);
    let [_, n] = dims(&b);
    let (a, b) = (at(&a), at(&b));
    // Safe: sizes and strides are those of the tensors.
    let c = unsafe { product_of((m, n, k), a, b) };
    FlexTensor::from_data(TensorData::new(c, [m, n]))
}

/// Rows or columns that are adjacent.
fn plain(x: FlexTensor) -> FlexTensor {
    let s = x.layout().strides();
    if s.iter().all(|s| *s >= 0) && s.contains(&1) { x } else { x.to_contiguous() }
}

fn dims(x: &FlexTensor) -> [usize; 2] {
    [x.layout().shape()[0], x.layout().shape()[1]]
}

fn at(x: &FlexTensor) -> At {
    let (layout, s) = (x.layout(), x.layout().strides());
    let first = x.storage::<f32>()[layout.start_offset()..].as_ptr();
    At { first, rows: s[0] as usize, columns: s[1] as usize }
}
