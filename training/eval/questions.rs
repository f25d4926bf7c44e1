//! Tasks of recall: is the most likely successor of a question its answer?

use crate::Result;
use crate::datasets::synthetic::{Question, QuestionBatch};
use crate::models::{Blocks, ForwardOptions, ids_tensor};
use burn::tensor::{Int, Tensor, TensorData};
use std::ops::Range;

/// Whether the model answers each question, in their order: of the ids that can be answers, the right
/// one is the most likely. Answers of earlier questions are given, as in training.
///
/// # Errors
/// What a mixer refuses.
pub fn answered<M: Blocks>(
    model: &M,
    batch: &QuestionBatch,
    answers: Range<u32>,
) -> Result<Vec<bool>> {
    let QuestionBatch { batch, questions } = batch;
    let device = model.head().device();
    let ids = ids_tensor(&batch.ids, batch.batch(), &device);
    let hidden = model.forward_ids(ids, &batch.tokens, &ForwardOptions::infer(), vec![])?.last;
    let [b, t, d] = hidden.dims();
    let places: Vec<i32> = questions.iter().map(|(row, q)| (row * t + q.at) as i32).collect();
    let n = places.len();
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [n]), &device);
    let asked = hidden.reshape([b * t, d]).select(0, places).reshape([1, n, d]);
    let logits: Vec<f32> = model.logits(asked).into_data().iter::<f32>().collect();
    let vocabulary = logits.len() / n.max(1);
    let is_right = |(i, (_, question)): (usize, &(usize, Question))| {
        let (start, end) = (answers.start as usize, answers.end as usize);
        let of = &logits[i * vocabulary + start..i * vocabulary + end];
        let best = of.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.is_some_and(|(value, _)| start + value == question.answer as usize)
    };
    Ok(questions.iter().enumerate().map(is_right).collect())
}
