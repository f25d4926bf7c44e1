//! Models whose rotary frequencies follow the length: a row is what it is alone, whatever lies
//! beside it.

use super::close;
use crate::tiny;
use longburn::models::Decoder;
use longburn::training::eval::{Continuation, LoglikelihoodEval, PasskeyEval, PasskeyItem};

/// Texts below, at and beyond the 8 tokens up to which the frequencies stay.
fn texts() -> Vec<Vec<u32>> {
    let all = tiny::ids(64);
    [&all[..3], &all[5..11], &all[7..15], &all[10..30], &all[20..61]].map(<[u32]>::to_vec).into()
}

/// `n` tokens that the model alone finds most likely behind `prompt`, in a pass over all of them.
fn most_likely(model: &Decoder, prompt: &[u32], n: usize) -> Vec<u32> {
    let mut ids = [prompt, &vec![0; n]].concat();
    for at in prompt.len()..ids.len() {
        // The last token predicts nothing; those that are not known yet are not seen.
        let logits = tiny::logits(model, &ids[..ids.len() - 1]);
        let row = &logits[(at - 1) * 61..at * 61];
        ids[at] = (0..61).max_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize])).unwrap();
    }
    ids.split_off(prompt.len())
}

#[test]
fn pass_keys_of_rows_that_differ_in_length_are_those_of_the_row_alone() {
    for model in tiny::following_length() {
        let item = |prompt: Vec<u32>| {
            let answer = most_likely(&model, &prompt, 5);
            PasskeyItem::new(prompt, answer, 0.5)
        };
        let items: Vec<PasskeyItem> = texts().into_iter().map(item).collect();
        let eval = PasskeyEval::new().with_batch_size(items.len());
        assert_eq!(eval.eval(&model, &items).unwrap().exact, [true; 5]);
    }
}

#[test]
fn scores_of_rows_that_differ_in_length_are_those_of_the_row_alone() {
    let pair = |text: Vec<u32>| {
        let (context, continuation) = text.split_at(text.len() / 2);
        Continuation { context: context.into(), continuation: continuation.into() }
    };
    let pairs: Vec<Continuation> = texts().into_iter().map(pair).collect();
    for model in tiny::following_length() {
        let eval = LoglikelihoodEval::new(64);
        let together = eval.with_batch_size(pairs.len()).eval(&model, &pairs).unwrap();
        for (pair, together) in pairs.iter().zip(together) {
            let alone = eval.eval(&model, std::slice::from_ref(pair)).unwrap()[0];
            close(together.sum, alone.sum, 1e-4 * alone.sum.abs());
            assert_eq!((together.greedy, together.tokens), (alone.greedy, alone.tokens));
        }
    }
}
