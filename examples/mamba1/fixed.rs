//! The layer without its selection: Δ, B and C are parameters, the same for every token.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use longburn::attention::{
    Conv1d, Linear, Mamba1, Mamba1Config, MixContext, MixOutput, SequenceMixer, State,
};
use longburn::kernel::fused::causal_conv_silu;
use longburn::kernel::{SelectiveScan, Steps, selective_scan};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::{Error, Result};

/// A time-invariant state-space layer in the place of a selective one.
#[derive(Module, Debug)]
pub struct Fixed {
    in_proj: Linear,
    conv1d: Conv1d,
    /// Δ before softplus, `[E]`
    delta: Param<Tensor<1>>,
    /// `[N]`
    b: Param<Tensor<1>>,
    /// `[N]`
    c: Param<Tensor<1>>,
    /// ln(−A), `[E, N]`
    a_log: Param<Tensor<2>>,
    /// `[E]`
    d: Param<Tensor<1>>,
    out_proj: Linear,
}

impl Fixed {
    /// # Errors
    /// As [`Mamba1Config::init`].
    pub fn new(
        config: &Mamba1Config,
        (hidden, layers): (usize, usize),
        (streams, first): (&Streams, u32),
        device: &Device,
    ) -> Result<Self> {
        let Mamba1 { in_proj, conv1d, dt_proj, A_log, D, out_proj, .. } =
            config.init(hidden, layers, streams, first, device)?;
        let Some(delta) = dt_proj.bias else {
            return Err(Error::shape("Fixed", "a layer whose Δ has no bias"));
        };
        let states = |part: u32| {
            let mut rng = streams.rng(Purpose::Init, 0, part, first);
            let data: Vec<f32> = (0..config.d_state).map(|_| rng.normal() as f32).collect();
            Param::from_tensor(Tensor::from_data(TensorData::new(data, [config.d_state]), device))
        };
        let (b, c) = (states(1), states(2));
        Ok(Self { in_proj, conv1d, delta, b, c, a_log: A_log, d: D, out_proj })
    }
}

impl SequenceMixer for Fixed {
    fn forward(
        &self,
        x: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let what = "a state of the layer without selection";
        ctx.refuse_state(state.as_ref(), what, "run whole sequences")?;
        let ([batch, len, _], [channels, n]) = (x.dims(), self.a_log.dims());
        let (steps, _) = Steps::of(ctx.tokens, None)?;
        let xz = self.in_proj.forward(x);
        let (u, z) = (xz.clone().narrow(2, 0, channels), xz.narrow(2, channels, channels));
        let weight = self.conv1d.weight.val().squeeze_dim(1);
        let u =
            causal_conv_silu(u, weight, self.conv1d.bias.as_ref().map(Param::val), None, &steps);
        let states =
            |of: &Param<Tensor<1>>| of.val().reshape([1, 1, 1, n]).expand([batch, len, 1, n]);
        let delta = self.delta.val().reshape([1, 1, channels]).expand([batch, len, channels]);
        let (y, _) = selective_scan(SelectiveScan {
            d: Some(self.d.val()),
            z: Some(z),
            softplus: true,
            steps: Some(steps),
            implementation: ctx.implementation,
            ..SelectiveScan::new(
                u,
                delta,
                self.a_log.val().exp().neg(),
                states(&self.b),
                states(&self.c),
            )
        })?;
        Ok(MixOutput::new(self.out_proj.forward(y)))
    }
}
