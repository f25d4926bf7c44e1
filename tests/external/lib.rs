//! A mixer of a third party: a gated, causal moving average with a learned decay per channel.

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData, activation::sigmoid};
use longburn::attention::*;
use longburn::{Error, Result};

/// `y_t = a·y_{t−1} + σ(k_t)·v_t` within each document; the output is `o(σ(q_t)·y_t)`.
#[derive(Module, Debug)]
pub struct MovingAverage {
    proj: AttnProjections,
    /// a = σ(decay), `[D]`
    decay: Param<Tensor<1>>,
}

impl MovingAverage {
    /// Decays from 0.5 to nearly 1, so that channels remember different lengths.
    pub fn new(proj: AttnProjections) -> Result<Self> {
        let (_, width) = proj.v_proj.features();
        if proj.heads() != proj.kv_heads() {
            return Err(Error::shape("MovingAverage", "query and key heads differ in number"));
        }
        let logits: Vec<f32> = (0..width).map(|i| 5.0 * i as f32 / width as f32).collect();
        let device = proj.v_proj.weight.device();
        let decay = Tensor::from_data(TensorData::new(logits, [width]), &device);
        Ok(Self { proj, decay: Param::from_tensor(decay) })
    }
}

impl HasProjections for MovingAverage {
    fn projections(&self) -> Option<&AttnProjections> {
        Some(&self.proj)
    }

    fn projections_mut(&mut self) -> Option<&mut AttnProjections> {
        Some(&mut self.proj)
    }
}

impl SequenceMixer for MovingAverage {
    fn forward(&self, x: Tensor<3>, ctx: &MixContext, state: Option<State>) -> Result<MixOutput> {
        if state.is_some() || ctx.keep_state {
            let remedy = "run whole sequences".into();
            return Err(Error::Unsupported {
                what: "a moving average with a state".into(),
                remedy,
            });
        }
        let gate = |linear: &Linear| sigmoid(linear.forward(x.clone()));
        let mut y = gate(&self.proj.k_proj) * self.proj.v_proj.forward(x.clone());
        let ([b, t, d], device) = (y.dims(), y.device());
        let (mut reach, mut factor) = (1, sigmoid(self.decay.val()).reshape([1, 1, d]));
        // After each round, y holds the terms of twice as many tokens.
        while reach < t {
            // Positions count within a document: what lies further back belongs to another.
            let same = ctx.tokens.pos().iter().map(|p| f32::from(*p as usize >= reach));
            let same = TensorData::new(same.collect::<Vec<_>>(), [b, t, 1]);
            let past = y.clone().narrow(1, 0, t - reach);
            let past = Tensor::cat(vec![Tensor::zeros([b, reach, d], &device), past], 1);
            y = y + past * Tensor::from_data(same, &device) * factor.clone();
            (reach, factor) = (2 * reach, factor.clone() * factor);
        }
        Ok(MixOutput::new(self.proj.o_proj.forward(gate(&self.proj.q_proj) * y)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longburn::models::{Decoder, ModelConfig};
    use longburn::testing::{CheckOptions, check_mixer};
    use longburn::training::{Recipe, RunOptions, report::Progress, run_recipe_with};

    #[test]
    fn it_conforms_and_trains_from_a_recipe() {
        let report = check_mixer(&CheckOptions::new(8), |device| {
            let config = ModelConfig::llama(9, 8, 1, 2);
            let model = Decoder::with_mixer(&config, 1, device, |_, p| MovingAverage::new(p))?;
            Ok(model.layers[0].self_attn.clone())
        });
        let report = report.unwrap();
        assert!(report.passed(), "{report}");

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text.txt"), "the cat sat on the mat. ".repeat(200))
            .unwrap();
        let text = include_str!("run.toml").replace("DIR", &dir.path().to_string_lossy());
        let recipe = Recipe::parse(&text, "run.toml").unwrap();
        let options = RunOptions::new(burn::tensor::Device::default());
        let run =
            run_recipe_with(&recipe, &options, &Progress::quiet(), |_, p| MovingAverage::new(p));
        let run = run.unwrap();
        assert!(run.last_loss < 0.5 * run.first_loss, "{} {}", run.first_loss, run.last_loss);
    }
}
