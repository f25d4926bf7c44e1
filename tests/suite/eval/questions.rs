//! Answers of a model to tasks of recall, against the logits of whole rows.

use super::decoder;
use crate::tiny;
use longburn::datasets::synthetic::{CopyingConfig, QuestionBatch, QuestionTask};
use longburn::training::eval::answered;

#[test]
fn an_answer_is_right_where_no_other_one_is_more_likely() {
    let config = CopyingConfig { length: 21, items: 6, values: 18, filler: 4 };
    let (task, model) = (config.init().unwrap(), decoder(2));
    let (mut right, mut all) = (0, 0);
    for n in 0..40 {
        let rows = task.rows(0, n, 3);
        let said = answered(&model, &QuestionBatch::stack(&rows).unwrap(), task.answers()).unwrap();
        let mut expected = Vec::new();
        for row in &rows {
            let logits = tiny::logits(&model, &row.ids);
            for question in &row.questions {
                let logit = |id: u32| logits[question.at * 23 + id as usize];
                let best = task.answers().max_by(|a, b| logit(*a).total_cmp(&logit(*b))).unwrap();
                expected.push(best == question.answer);
            }
        }
        assert_eq!(said, expected);
        all += said.len();
        right += said.into_iter().filter(|is_right| *is_right).count();
    }
    // A model that knows nothing guesses: one in 18.
    assert!(all == 720 && (10..90).contains(&right), "{right} of {all}");
}
