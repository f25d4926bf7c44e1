//! Layers against their slow, obvious twins: values, and gradients of the input and of every
//! parameter.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::{map_params, params, read_params};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::ratio;
use std::collections::HashMap;

/// Normal numbers, on a device with gradients.
pub fn normal<const D: usize>(shape: [usize; D], stream: u32) -> Tensor<D> {
    let mut rng = Streams::new(1).rng(Purpose::Synthetic, 0, 0, stream);
    let n = shape.iter().product();
    let data: Vec<f32> = (0..n).map(|_| rng.normal() as f32).collect();
    Tensor::from_data(TensorData::new(data, shape), &Device::flex().autodiff())
}

pub fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.inner().into_data().iter::<f32>().collect()
}

/// Parameters as training leaves them: none of them neutral.
pub fn moved<M: Module>(module: M) -> M {
    let moved: HashMap<String, Vec<f32>> = read_params(&module, |_| true)
        .into_iter()
        .enumerate()
        .map(|(i, (path, shape, values))| {
            let noise = host(normal([shape.iter().product()], 100 + i as u32));
            let moved = values.iter().zip(noise).map(|(v, n)| v + 0.1 * n).collect();
            (path, moved)
        })
        .collect();
    map_params(module, |path| moved.get(path).cloned(), |_| None).train()
}

/// Values, and gradients of the input and of every parameter.
pub fn everything<M: Module>(module: &M, x: &Tensor<3>, y: Tensor<3>) -> Vec<(String, Vec<f32>)> {
    let mut all = vec![("y".to_string(), host(y.clone()))];
    let mut grads = (y.clone() * normal(y.dims(), 9)).sum().backward();
    all.push(("x".into(), host(x.grad_remove(&mut grads).unwrap())));
    let grads = GradientsParams::from_grads(grads, module);
    for param in params(module) {
        let grad = match param.shape.len() {
            1 => grads.get::<1>(param.id).map(host),
            2 => grads.get::<2>(param.id).map(host),
            _ => grads.get::<3>(param.id).map(host),
        };
        // Where nothing depends on a parameter, some ways have no gradient and others zeros.
        let grad = grad.unwrap_or_else(|| vec![0.0; param.shape.iter().product()]);
        all.push((param.path, grad));
    }
    all
}

/// Rows of several documents and padding, and whole rows of awkward lengths for blocks of 8.
fn layouts() -> Vec<TokenMeta> {
    let mut all = vec![
        TokenMeta::packed(&[vec![21, 1, 8, 9], vec![16, 17]], 41).unwrap(),
        TokenMeta::left_padded(&[19, 3, 8], 19).unwrap(),
    ];
    all.extend([1, 7, 8, 9, 27].map(|t| TokenMeta::contiguous(2, t, 0)));
    all
}

/// That a layer and its twin agree on inputs of this width, with relative differences of values and
/// of gradients up to these.
pub fn assert_equal_twins<M: Module>(
    name: &str,
    module: &M,
    width: usize,
    (values, gradients): (f64, f64),
    layer: impl Fn(Tensor<3>, &TokenMeta) -> Tensor<3>,
    twin: impl Fn(Tensor<3>, &TokenMeta) -> Tensor<3>,
) {
    for tokens in layouts() {
        let (rows, len) = (tokens.batch(), tokens.len());
        let input = || normal([rows, len, width], 3).require_grad();
        let (x, other) = (input(), input());
        let got = everything(module, &x, layer(x.clone(), &tokens));
        let want = everything(module, &other, twin(other.clone(), &tokens));
        for ((path, got), (_, want)) in got.iter().zip(&want) {
            let largest = want.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            let r = if largest < 1e-6 && got.len() == want.len() {
                got.iter().fold(0.0f64, |m, g| m.max(f64::from(g.abs())))
            } else {
                ratio(got, want)
            };
            let allowed = if path == "y" { values } else { gradients };
            assert!(r <= allowed, "{name}, {rows} x {len}, {path}: {r:.1e}");
        }
    }
}
