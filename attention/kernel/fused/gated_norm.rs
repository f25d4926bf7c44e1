//! Root-mean-square normalisation with a gate, over groups of channels, as Mamba-2 ends (2405.21060).

use super::{expect, rms_norm, swiglu};
use burn::tensor::{Tensor, activation::silu};

/// How [`gated_rms_norm`] normalises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatedNorm {
    /// Runs of neighbouring channels that are normalised each by itself; divides the channels.
    pub groups: usize,
    /// Normalise, then multiply by the gate; else the other way round.
    pub before_gate: bool,
    /// Added to the mean square.
    pub eps: f64,
}

/// x, normalised and times `weight`, and silu(z), in the order that `options` has.
///
/// # Shapes
/// x and z `[B, T, D]`, weight and bias `[D]` -> `[B, T, D]`
///
/// # Panics
/// When shapes do not fit, and for groups that do not divide the channels.
pub fn gated_rms_norm(
    x: Tensor<3>,
    z: Tensor<3>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    options: GatedNorm,
) -> Tensor<3> {
    let [batch, len, d] = x.dims();
    let of_bias = bias.as_ref().map_or(d, |bias| bias.dims()[0]);
    let fits = z.dims() == x.dims() && weight.dims() == [d] && of_bias == d;
    expect(fits, "gated_rms_norm", || {
        let (x, z, [weight]) = (x.dims(), z.dims(), weight.dims());
        format!("x is {x:?}, z {z:?}; the weight has {weight} channels, the bias {of_bias}")
    });
    let groups = options.groups;
    expect(groups > 0 && d.is_multiple_of(groups), "gated_rms_norm", || {
        format!("{groups} groups do not divide {d} channels")
    });
    if x.shape().num_elements() == 0 {
        return x;
    }
    let x = if options.before_gate { x } else { swiglu(z.clone(), x) };
    let y = match groups {
        1 => rms_norm(x, weight, options.eps),
        groups => {
            let one = Tensor::ones([d / groups], (&x.device(), x.dtype()));
            let x = rms_norm(x.reshape([batch, len, groups, d / groups]), one, options.eps);
            x.reshape([batch, len, d]) * weight.unsqueeze()
        }
    };
    let y = match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    };
    if options.before_gate { y * silu(z) } else { y }
}
