//! One step of AdamW (1711.05101).

use super::expect;
use burn::tensor::Tensor;

/// Numbers of one step.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the mean square.
    pub eps: f32,
    /// Share of the weight taken off per unit of learning rate.
    pub weight_decay: f32,
    /// Steps that the moments have seen, this one included: at least 1.
    pub time: usize,
}

impl AdamWStep {
    /// What the moments are divided by, because they began at zero.
    pub(super) fn corrections(&self) -> (f32, f32) {
        let correction = |beta: f32| {
            (1.0 - f64::from(beta).powi(self.time.min(i32::MAX as usize) as i32)) as f32
        };
        (correction(self.beta1), correction(self.beta2))
    }
}

/// New weight and new moments `[m, v]`; the old moments are zero before the first step.
///
/// # Shapes
/// all of one shape
///
/// # Panics
/// When shapes differ, or at a time of 0, when nothing could be divided by the moments' share.
pub fn adamw<const N: usize>(
    weight: Tensor<N>,
    grad: Tensor<N>,
    moments: [Tensor<N>; 2],
    step: &AdamWStep,
) -> (Tensor<N>, [Tensor<N>; 2]) {
    adamw_scaled(weight, grad, moments, step, 1.0)
}

/// [`adamw`] by `scale` times the gradient, in the same pass.
///
/// # Shapes
/// As [`adamw`]
///
/// # Panics
/// As [`adamw`].
pub fn adamw_scaled<const N: usize>(
    weight: Tensor<N>,
    grad: Tensor<N>,
    moments: [Tensor<N>; 2],
    step: &AdamWStep,
    scale: f32,
) -> (Tensor<N>, [Tensor<N>; 2]) {
    check(&weight, &grad, &moments, step);
    let [m, v] = moments;
    #[cfg(feature = "flex")]
    if [&weight, &grad, &m, &v].into_iter().all(super::on_cpu) {
        return flex::adamw(weight, grad, [m, v], step, scale);
    }
    #[cfg(feature = "cube")]
    if weight.shape().num_elements() > 0
        && [&grad, &m, &v].into_iter().all(|x| x.dtype() == weight.dtype())
        && [&weight, &grad, &m, &v].into_iter().all(crate::card::floats_on_card)
    {
        let (weight, grad) = (weight.inner(), grad.inner());
        return super::cube::adamw(weight, grad, [m.inner(), v.inner()], step, scale);
    }
    let grad = if scale == 1.0 { grad } else { grad.mul_scalar(scale) };
    let (c1, c2) = step.corrections();
    let m = m.mul_scalar(step.beta1) + grad.clone().mul_scalar(1.0 - step.beta1);
    let v = v.mul_scalar(step.beta2) + grad.square().mul_scalar(1.0 - step.beta2);
    let root = v.clone().div_scalar(c2).sqrt().add_scalar(step.eps);
    let delta = m.clone().div_scalar(c1) / root;
    let kept = weight.mul_scalar(1.0 - step.lr * step.weight_decay);
    (kept - delta.mul_scalar(step.lr), [m, v])
}

pub(super) fn check<const N: usize>(
    weight: &Tensor<N>,
    grad: &Tensor<N>,
    [m, v]: &[Tensor<N>; 2],
    step: &AdamWStep,
) {
    let shapes = [weight, grad, m, v].map(|x| x.dims());
    expect(shapes.iter().all(|shape| *shape == shapes[0]), "adamw", || {
        let [weight, grad, m, v] = shapes;
        format!("weight {weight:?}, gradient {grad:?} and moments {m:?} and {v:?} differ")
    });
    expect(step.time > 0, "adamw", || "time is 0; the first step's is 1".into());
}

#[cfg(feature = "flex")]
mod flex {
    use super::AdamWStep;
    use crate::fused::PARALLEL_FROM;
    use crate::simd::vectorized;
    use crate::threads;
    use burn::tensor::Tensor;

    /// In place, in one pass, where the storage belongs to these tensors alone.
    pub fn adamw<const N: usize>(
        weight: Tensor<N>,
        grad: Tensor<N>,
        [m, v]: [Tensor<N>; 2],
        step: &AdamWStep,
        scale: f32,
    ) -> (Tensor<N>, [Tensor<N>; 2]) {
        let device = weight.device();
        let [mut w, mut m, mut v] = [weight, m, v].map(Tensor::into_data);
        let grad = grad.into_data();
        if let (Ok(w), Ok(g), Ok(m), Ok(v)) =
            (w.as_mut_slice(), grad.as_slice(), m.as_mut_slice(), v.as_mut_slice())
        {
            update(w, g, m, v, (step, scale));
        }
        let back = |data| Tensor::from_data(data, &device);
        (back(w), [back(m), back(v)])
    }

    /// A step, and what the gradient is multiplied by.
    type By<'a> = (&'a AdamWStep, f32);

    fn update(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], by: By<'_>) {
        if w.len() < PARALLEL_FROM {
            return part(w, g, m, v, by);
        }
        const LEN: usize = PARALLEL_FROM / 2;
        let parts =
            w.chunks_mut(LEN).zip(g.chunks(LEN)).zip(m.chunks_mut(LEN).zip(v.chunks_mut(LEN)));
        let parts = parts.collect();
        threads::each_of(parts, |((w, g), (m, v))| part(w, g, m, v, by));
    }

    fn part(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], (step, scale): By<'_>) {
        let AdamWStep { lr, beta1, beta2, eps, weight_decay, .. } = *step;
        let (c1, c2) = step.corrections();
        let keep = 1.0 - lr * weight_decay;
        vectorized(
            #[inline(always)]
            || {
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                    let g = g * scale;
                    *m = *m * beta1 + g * (1.0 - beta1);
                    *v = *v * beta2 + g * g * (1.0 - beta2);
                    *w = *w * keep - *m / c1 / ((*v / c2).sqrt() + eps) * lr;
                }
            },
        )
    }
}
