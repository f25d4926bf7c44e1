//! What is minimised: a sum over targets, apart from how its gradients come about.

use crate::Result;
use crate::datasets::TokenBatch;
use crate::kernel::{TokenMeta, linear_cross_entropy};
use crate::models::{Blocks, ForwardOptions, ids_tensor};
use burn::tensor::Tensor;
use std::collections::BTreeMap;

/// The loss of one micro-batch, not yet divided by anything.
///
/// Micro-batches of a step are added up and divided once, by the weight of the whole step, so
/// that a token counts the same in whatever micro-batch it lies.
#[derive(Clone, Debug)]
pub struct LossParts {
    /// Sum over all targets, `[1]`.
    pub sum: Tensor<1>,
    /// Number of targets (or the sum of their weights).
    pub weight: f64,
    /// Further loss terms, means over the micro-batch; they count with its `weight`, `[1]`.
    pub aux: Option<Tensor<1>>,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Other values worth reporting; a step reports their weighted mean.
    pub metrics: BTreeMap<String, f64>,
}

impl LossParts {
    /// Without further terms and metrics.
    pub fn new(sum: Tensor<1>, weight: f64, tokens: u64) -> Self {
        Self { sum, weight, aux: None, tokens, metrics: BTreeMap::new() }
    }

    /// Add a further loss term.
    pub fn add_aux(&mut self, term: Option<Tensor<1>>) {
        self.aux = match (self.aux.take(), term) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
    }

    /// `sum + weight · aux`, of which gradients are taken.
    pub fn total(&self) -> Tensor<1> {
        match &self.aux {
            Some(aux) => self.sum.clone() + aux.clone().mul_scalar(self.weight),
            None => self.sum.clone(),
        }
    }

    /// The values without their graph.
    pub fn detached(self) -> Self {
        Self { sum: self.sum.inner(), aux: self.aux.map(Tensor::inner), ..self }
    }
}

/// A training objective for models `M`.
pub trait Objective<M>: Sync {
    /// What one micro-batch consists of.
    type Batch: Sync;

    /// Loss of one micro-batch, in one graph.
    ///
    /// # Errors
    /// When the batch does not fit the model, or what the model refuses.
    fn loss(&self, model: &M, batch: &Self::Batch, options: &ForwardOptions) -> Result<LossParts>;

    /// Where the batch came from, for messages.
    fn source(&self, batch: &Self::Batch) -> String;

    /// The same objective cut at the final hidden states, for strategies that run the blocks
    /// themselves; none where it cannot be cut there.
    fn split(&self) -> Option<&dyn SplitObjective<M, Batch = Self::Batch>> {
        None
    }
}

/// An objective that is a function of the final hidden states: input → blocks → loss.
pub trait SplitObjective<M> {
    /// What one micro-batch consists of.
    type Batch;

    /// Input of the first block, `[B, T, D]`. Strategies may ask for it more than once.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    fn embed(&self, model: &M, batch: &Self::Batch) -> Result<Tensor<3>>;

    /// Position and document of the tokens.
    fn tokens<'a>(&self, batch: &'a Self::Batch) -> &'a TokenMeta;

    /// Loss of the hidden states after the final norm, without the mixers' own terms.
    ///
    /// # Shapes
    /// hidden_BTD `[B, T, D]`
    ///
    /// # Errors
    /// When the batch does not fit the model.
    fn loss_from_hidden(
        &self,
        model: &M,
        hidden_BTD: Tensor<3>,
        batch: &Self::Batch,
    ) -> Result<LossParts>;

    /// The parts joined again: what [`Objective::loss`] of such an objective is.
    ///
    /// # Errors
    /// As the parts, and what the blocks refuse.
    fn joined(&self, model: &M, batch: &Self::Batch, options: &ForwardOptions) -> Result<LossParts>
    where
        M: Blocks,
        Self: Sized,
    {
        let x = self.embed(model, batch)?;
        let hidden = model.forward_embeds(x, self.tokens(batch), options, Vec::new())?;
        let mut parts = self.loss_from_hidden(model, hidden.last, batch)?;
        parts.add_aux(hidden.aux);
        Ok(parts)
    }
}

/// Cross-entropy of every next token, in nats.
#[derive(Clone, Copy, Debug, Default)]
pub struct NextToken;

impl<M: Blocks> Objective<M> for NextToken {
    type Batch = TokenBatch;

    fn loss(&self, model: &M, batch: &TokenBatch, options: &ForwardOptions) -> Result<LossParts> {
        self.joined(model, batch, options)
    }

    fn source(&self, batch: &TokenBatch) -> String {
        batch.source.clone()
    }

    fn split(&self) -> Option<&dyn SplitObjective<M, Batch = TokenBatch>> {
        Some(self)
    }
}

impl<M: Blocks> SplitObjective<M> for NextToken {
    type Batch = TokenBatch;

    fn embed(&self, model: &M, batch: &TokenBatch) -> Result<Tensor<3>> {
        let device = model.head().device();
        Ok(model.embed(ids_tensor(&batch.ids, batch.batch(), &device)))
    }

    fn tokens<'a>(&self, batch: &'a TokenBatch) -> &'a TokenMeta {
        &batch.tokens
    }

    fn loss_from_hidden(
        &self,
        model: &M,
        hidden_BTD: Tensor<3>,
        batch: &TokenBatch,
    ) -> Result<LossParts> {
        let [b, t, d] = hidden_BTD.dims();
        let sum =
            linear_cross_entropy(hidden_BTD.reshape([b * t, d]), model.head(), &batch.labels)?;
        Ok(LossParts::new(sum, batch.targets() as f64, batch.ids.len() as u64))
    }
}
