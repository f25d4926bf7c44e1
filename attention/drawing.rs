//! Initial weights out of random streams.

use super::{Linear, MixerSite};
use crate::streams::{Draw, Purpose, Streams, WORDS_OF_NORMAL, WORDS_OF_UNIT};
use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Numbers that a thread draws in a row.
const DRAWN: usize = 1 << 14;

/// Normal numbers from the initialisation stream `index`; zeros for a standard deviation of 0.
pub(crate) fn normal<const D: usize>(
    shape: [usize; D],
    std: f64,
    streams: &Streams,
    index: u32,
    device: &Device,
) -> Tensor<D> {
    if std == 0.0 {
        return Tensor::zeros(shape, device);
    }
    let value = |rng: &mut ChaCha8Rng| (rng.normal() * std) as f32;
    filled(shape, streams, (0, index), device, (WORDS_OF_NORMAL, value))
}

/// Part `part` of stream `index`, number by number, each of which takes so many words. A billion of them would take
/// one thread half a minute.
fn filled<const D: usize>(
    shape: [usize; D],
    streams: &Streams,
    (part, index): (u32, u32),
    device: &Device,
    (words, value): (u128, impl Fn(&mut ChaCha8Rng) -> f32 + Sync),
) -> Tensor<D> {
    let rng = streams.rng(Purpose::Init, 0, part, index);
    let mut data = vec![0.0; shape.iter().product()];
    data.par_chunks_mut(DRAWN).enumerate().for_each(|(i, some)| {
        let mut rng = rng.clone();
        rng.set_word_pos((i * DRAWN) as u128 * words);
        some.fill_with(|| value(&mut rng));
    });
    Tensor::from_data(TensorData::new(data, shape), device)
}

/// Draws the weights of a layer that has more than the projections of attention.
pub(crate) struct Drawing<'a> {
    pub streams: &'a Streams,
    /// The first of the layer's streams.
    pub first: u32,
    pub device: &'a Device,
    /// What is about to be read takes no time to draw: matrices are then zero.
    pub drawn: bool,
}

impl<'a> Drawing<'a> {
    /// For a layer of a model.
    pub(crate) fn of(site: &MixerSite<'a>) -> Self {
        let &MixerSite { streams, device, drawn, .. } = site;
        Self { streams, first: site.own_streams(), device, drawn }
    }

    /// `value` of numbers that are uniform in [0, 1), from the layer's stream `index`.
    pub(crate) fn each<const D: usize>(
        &self,
        shape: [usize; D],
        index: u32,
        value: impl Fn(f64) -> f32 + Sync,
    ) -> Tensor<D> {
        let (stream, value) = ((0, self.first + index), |rng: &mut ChaCha8Rng| value(rng.unit()));
        filled(shape, self.streams, stream, self.device, (WORDS_OF_UNIT, value))
    }

    /// Uniform in ± `bound`, from the layer's stream `index`.
    pub(crate) fn uniform<const D: usize>(
        &self,
        shape: [usize; D],
        bound: f64,
        index: u32,
    ) -> Tensor<D> {
        self.each(shape, index, |unit| ((2.0 * unit - 1.0) * bound) as f32)
    }

    /// Normal numbers of this standard deviation, from part `part` of the layer's first stream.
    pub(crate) fn normal<const D: usize>(
        &self,
        shape: [usize; D],
        std: f64,
        part: u32,
    ) -> Tensor<D> {
        if !self.drawn {
            return Tensor::zeros(shape, self.device);
        }
        let value = |rng: &mut ChaCha8Rng| (rng.normal() * std) as f32;
        filled(shape, self.streams, (part, self.first), self.device, (WORDS_OF_NORMAL, value))
    }

    /// A linear layer as PyTorch draws it, uniform in ± `factor`/√in; biases zero.
    pub(crate) fn uniform_linear(
        &self,
        (from, to): (usize, usize),
        bias: bool,
        factor: f64,
        index: u32,
    ) -> Linear {
        let weight = match self.drawn {
            true => self.uniform([to, from], factor / (from as f64).sqrt(), index),
            false => Tensor::zeros([to, from], self.device),
        };
        self.linear(weight, bias)
    }

    /// A linear layer with normal weights; biases zero.
    pub(crate) fn normal_linear(
        &self,
        (from, to): (usize, usize),
        bias: bool,
        std: f64,
        part: u32,
    ) -> Linear {
        self.linear(self.normal([to, from], std, part), bias)
    }

    fn linear(&self, weight: Tensor<2>, bias: bool) -> Linear {
        let bias = bias.then(|| Tensor::zeros([weight.dims()[0]], self.device));
        Linear {
            weight: Param::from_tensor(weight),
            bias: bias.map(Param::from_tensor),
            lora: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is drawn side by side is what one thread draws.
    #[test]
    fn numbers_are_those_of_the_stream_in_order() {
        let (streams, device, len) = (Streams::new(3), Device::default(), 2 * DRAWN + 5);
        let drawing = Drawing { streams: &streams, first: 4, device: &device, drawn: true };
        let host = |x: Tensor<1>| x.into_data().iter::<f32>().collect::<Vec<_>>();
        let mut rng = streams.rng(Purpose::Init, 0, 0, 6);
        let want: Vec<f32> = (0..len).map(|_| rng.unit() as f32).collect();
        assert_eq!(host(drawing.each([len], 2, |unit| unit as f32)), want);
        let mut rng = streams.rng(Purpose::Init, 0, 9, 4);
        let want: Vec<f32> = (0..len).map(|_| (rng.normal() * 0.5) as f32).collect();
        assert_eq!(host(drawing.normal([len], 0.5, 9)), want);
    }
}
