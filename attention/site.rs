//! The place in a model that a mixer is built for.

use super::{AttnProjections, AttnShape};
use crate::streams::Streams;
use crate::{Error, Result};
use burn::tensor::Device;

/// First of the random streams that mixers with weights of their own draw from; far behind those
/// of the blocks.
const OWN_STREAMS: u32 = 1 << 24;
/// Such streams per layer.
const STREAMS_PER_LAYER: u32 = 64;

/// What a layer of a model gives the mixer that is built for it.
#[derive(Clone, Copy, Debug)]
pub struct MixerSite<'a> {
    /// Number of the layer, from 0.
    pub layer: usize,
    /// Layers of the model.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// ε of the model's norms.
    pub eps: f64,
    /// Sizes of attention; none in a family without.
    pub attention: Option<&'a AttnShape>,
    /// The checkpoint's own sliding window, tokens.
    pub window: Option<usize>,
    /// Where initial weights come from.
    pub streams: &'a Streams,
    /// Stream of the first of the four projections.
    pub first: u32,
    /// Whether weights are drawn; those that are about to be read are zero, which takes a fraction
    /// of the time.
    pub drawn: bool,
    /// Where the weights lie.
    pub device: &'a Device,
}

impl<'a> MixerSite<'a> {
    /// Sizes of attention, for a mixer `what` that needs heads.
    ///
    /// # Errors
    /// [`Error::Unsupported`] in a family without attention.
    pub fn heads(&self, what: &str) -> Result<&'a AttnShape> {
        self.attention.ok_or_else(|| Error::Unsupported {
            what: format!("{what} in layer {} of a family without heads", self.layer),
            remedy: "take the checkpoint's own mixer, or a family with attention".into(),
        })
    }

    /// New q, k, v and o.
    ///
    /// # Errors
    /// [`Error::Unsupported`] in a family without attention.
    pub fn projections(&self) -> Result<AttnProjections> {
        let shape = self.heads("attention")?;
        let std = (self.std(self.hidden), self.out_std(shape.heads * shape.head_dim));
        Ok(shape.init(std, self.streams, self.first, self.device))
    }

    /// Standard deviation of weights that read `width` channels: 0.6/√width.
    pub fn std(&self, width: usize) -> f64 {
        self.scaled(0.6 / (width as f64).sqrt())
    }

    /// Standard deviation of weights that write into the residual stream: 1/√(2·width·layers).
    pub fn out_std(&self, width: usize) -> f64 {
        self.scaled(1.0 / (2.0 * (width * self.layers) as f64).sqrt())
    }

    fn scaled(&self, std: f64) -> f64 {
        if self.drawn { std } else { 0.0 }
    }

    /// First of the 64 streams of this layer for a mixer with weights of its own.
    pub fn own_streams(&self) -> u32 {
        OWN_STREAMS + STREAMS_PER_LAYER * self.layer as u32
    }
}
