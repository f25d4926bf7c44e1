//! What a run measures.

use super::data::HeldOut;
use super::sections::Recipe;
use crate::Result;
use crate::models::Blocks;
use crate::training::eval::{Perplexity, PerplexityReport, PositionBucket, Protocol};
use serde::{Deserialize, Serialize};

/// Perplexity of the held-out documents; of conversations, that of the assistant's tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// How the numbers came about.
    pub protocol: Protocol,
    /// Perplexity.
    pub ppl: f64,
    /// Its logarithm, nats per token.
    pub mean_nll: f64,
    /// Standard error of `mean_nll`.
    pub se: Option<f64>,
    /// Scored tokens.
    pub tokens: usize,
    /// Documents too short for a window.
    pub skipped_documents: usize,
    /// Loss by position in the window.
    pub by_position: Vec<PositionBucket>,
}

impl From<PerplexityReport> for Evaluation {
    fn from(report: PerplexityReport) -> Self {
        Self {
            protocol: report.protocol,
            ppl: report.ppl,
            mean_nll: report.mean_nll,
            se: report.se,
            tokens: report.tokens,
            skipped_documents: report.skipped_documents,
            // A conversation may have nothing to score near its beginning.
            by_position: report.by_position.into_iter().filter(|b| b.count > 0).collect(),
        }
    }
}

impl Recipe {
    /// Measure `model`; `None` for a recipe without `[eval]`.
    pub(super) fn evaluate(
        &self,
        model: &impl Blocks,
        held_out: &[HeldOut],
    ) -> Result<Option<Evaluation>> {
        let Some(eval) = &self.eval else { return Ok(None) };
        let length = self.train.length;
        let strided = Protocol::Strided { max_len: length, stride: length.div_ceil(2) };
        let documents: Vec<_> = held_out.iter().map(|d| &d.document.ids[..]).collect();
        let perplexity = Perplexity::new(eval.protocol.unwrap_or(strided));
        let perplexity = perplexity.with_compute(self.train.compute);
        let targets: Option<Vec<_>> = held_out.iter().map(|d| d.targets.clone()).collect();
        let report = match targets {
            Some(targets) => perplexity.eval_targets(model, &documents, &targets)?,
            None => perplexity.eval(model, &documents)?,
        };
        Ok(Some(report.into()))
    }
}
