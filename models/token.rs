//! Decoders as the kernels of [`TokenPass`](longburn_kernels::TokenPass) read them.

use super::{Block, Blocks, Decoder, ModelConfig};
use crate::attention::{Linear, SequenceMixer};
use burn::tensor::Tensor;
use longburn_kernels::{TokenLayer, TokenModel, TokenPass};

impl<M: SequenceMixer> Decoder<M> {
    /// What appends tokens one by one where that is not layer by layer, one line for `--explain`; of a
    /// [rounded](Decoder::rounded) model.
    pub fn explain_tokens(&self) -> Option<String> {
        TokenPass::new(&self.token_model()?)?;
        let rows = TokenPass::ROWS;
        Some(format!("tokens one by one, up to {rows} rows: CUDA C++, five launches a layer"))
    }
}

/// The weights of a decoder of the Llama kind whose layers are causal attention over everything before, all channels of
/// whose heads turn. `turned` of them do.
pub(super) fn model<M: SequenceMixer>(model: &Decoder<M>, turned: usize) -> Option<TokenModel> {
    let config = model.config();
    let shape = config.attention()?;
    let plain = model.norm.bias.is_none() && !config.parallel_residual;
    if !plain || turned != shape.head_dim {
        return None;
    }
    let layer = |block: &Block<M>| layer(block, config);
    Some(TokenModel {
        layers: model.layers.iter().map(layer).collect::<Option<_>>()?,
        norm: model.norm.weight.val(),
        head: match &model.lm_head {
            Some(head) => alone(head)?,
            None => model.embed_tokens.val(),
        },
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        eps: config.rms_norm_eps,
    })
}

fn layer<M: SequenceMixer>(block: &Block<M>, config: &ModelConfig) -> Option<TokenLayer> {
    let (proj, mlp) = (block.self_attn.plain_attention()?, block.mlp.as_ref()?);
    let plain =
        proj.q_norm.is_none() && proj.k_norm.is_none() && block.input_layernorm.bias.is_none();
    if !plain || !config.activation.is_gated() {
        return None;
    }
    let post_norm = block.post_attention_layernorm.as_ref().filter(|norm| norm.bias.is_none())?;
    let qkv = [&proj.q_proj, &proj.k_proj, &proj.v_proj];
    let [q, k, v] = qkv.map(without_update);
    Some(TokenLayer {
        input_norm: block.input_layernorm.weight.val(),
        qkv: [q?, k?, v?],
        biases: qkv.map(|linear| linear.bias.as_ref().map(|bias| bias.val())),
        o: alone(&proj.o_proj)?,
        post_norm: post_norm.weight.val(),
        gate: alone(mlp.gate_proj.as_ref()?)?,
        up: alone(&mlp.up_proj)?,
        down: alone(&mlp.down_proj)?,
    })
}

/// The weights of a layer that has no low-rank update.
fn without_update(linear: &Linear) -> Option<Tensor<2>> {
    linear.lora.is_none().then(|| linear.weight.val())
}

/// The same of one without a bias.
fn alone(linear: &Linear) -> Option<Tensor<2>> {
    without_update(linear).filter(|_| linear.bias.is_none())
}
