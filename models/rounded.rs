//! Models whose weights are kept as passes read them, for inference.

use super::Decoder;
use crate::attention::{Compute, SequenceMixer};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;

impl<M: SequenceMixer> Decoder<M> {
    /// The model for inference alone, with the weights of embedding and linear layers in the dtype that passes
    /// compute in: these give the same numbers, read half as many bytes per token and hold half as many. Norms,
    /// biases and layers whose mixer does not compute in it stay as they are.
    ///
    /// ```
    /// use burn::tensor::{DType, Device};
    /// use longburn::attention::{Compute, MixerConfig};
    /// use longburn::models::{Blocks, Decoder, ModelConfig};
    /// let config = ModelConfig::llama(64, 32, 2, 4);
    /// let model = Decoder::new(&config, &MixerConfig::Dense, 0, &Device::default())?;
    /// let model = model.rounded(Compute::Bf16);
    /// assert_eq!((model.head().dtype(), model.norm.weight.val().dtype()), (DType::BF16, DType::F32));
    /// # Ok::<(), longburn::Error>(())
    /// ```
    pub fn rounded(mut self, compute: Compute) -> Self {
        if compute == Compute::F32 {
            return self;
        }
        let mut linear = Linears { compute, inside: Vec::new() };
        self.embed_tokens = linear.rounded(self.embed_tokens);
        self.lm_head = self.lm_head.map(|head| head.map(&mut linear));
        for block in &mut self.layers {
            if block.self_attn.computes_in(compute) {
                block.self_attn = block.self_attn.clone().map(&mut linear);
            }
            block.mlp = block.mlp.take().map(|mlp| mlp.map(&mut linear));
        }
        self
    }
}

/// Rounds the matrices of linear layers, low-rank updates included.
struct Linears {
    compute: Compute,
    /// Of each module that the walk is in.
    inside: Vec<Within>,
}

/// What a walk is in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Other,
    Linear,
    Wide,
}

/// Linear layers that mixers give f32 whatever they compute in: sizes of steps, rates of learning.
const WIDE: [&str; 5] = ["x_proj", "dt_proj", "lr_proj", "momentum_proj", "ttt_scale_proj"];

impl Linears {
    fn rounded<const D: usize>(&self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|x| self.compute.of(x.detach()).set_require_grad(false))
    }
}

impl ModuleMapper for Linears {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match D == 2 && self.inside.last() == Some(&Within::Linear) {
            true => self.rounded(param),
            false => param,
        }
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        let within = self.inside.last().copied();
        let inside = match within {
            // Of a layer that is given f32, and of all in it.
            Some(Within::Wide) => Within::Wide,
            _ if WIDE.contains(&name) => Within::Wide,
            _ if container == "Struct:Linear" => Within::Linear,
            other => other.unwrap_or(Within::Other),
        };
        self.inside.push(inside);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.inside.pop();
    }
}
