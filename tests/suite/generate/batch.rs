//! Several rows at once are what each is alone.

use super::{greedy, models};
use crate::tiny::{self, ids, ratio};
use longburn::Error;
use longburn::kernel::TokenMeta;
use longburn::models::generate::{Finish, Generator};
use longburn::models::{Decoder, GenerateConfig, generate, generate_batch, generate_from};
use std::ops::ControlFlow;

/// Of logits, as between a cache and none.
const CACHED: f64 = 1e-5;

/// Prompts of different lengths and contents, the longest in the middle.
fn prompts() -> Vec<Vec<u32>> {
    let all = ids(64);
    [&all[3..10], &all[20..21], &all[10..47], &all[1..14]].map(<[u32]>::to_vec).to_vec()
}

fn go_on(_: usize, _: u32) -> longburn::Result<ControlFlow<()>> {
    Ok(ControlFlow::Continue(()))
}

fn alone(model: &Decoder, prompt: &[u32], config: &GenerateConfig) -> Vec<u32> {
    generate(model, prompt, config, |_| {}).unwrap().ids
}

#[test]
fn rows_equal_their_own_runs() {
    for model in models() {
        for config in [greedy(9), greedy(9).with_prefill_chunk(Some(5))] {
            let mut heard = vec![Vec::new(); 4];
            let rows = generate_batch(&model, &prompts(), &config, |row, id| {
                heard[row].push(id);
                go_on(row, id)
            });
            for ((row, prompt), heard) in rows.unwrap().iter().zip(prompts()).zip(heard) {
                assert_eq!(row.ids, alone(&model, &prompt, &config));
                assert_eq!((&row.ids, row.prompt_tokens), (&heard, prompt.len()));
                assert_eq!((row.finish, row.new_tokens), (Finish::Length, 9));
            }
        }
    }
}

#[test]
fn rows_equal_their_own_runs_where_frequencies_follow_the_length() {
    for model in tiny::following_length() {
        for config in [greedy(9), greedy(9).with_prefill_chunk(Some(5))] {
            let rows = generate_batch(&model, &prompts(), &config, go_on).unwrap();
            for (row, prompt) in rows.iter().zip(prompts()) {
                assert_eq!(row.ids, alone(&model, &prompt, &config));
                assert_eq!(row.prompt_tokens, prompt.len());
            }
        }
    }
}

#[test]
fn draws_do_not_depend_on_how_a_list_of_prompts_is_divided() {
    let model = tiny::model(&tiny::llama(false), &burn::tensor::Device::flex());
    let prompts = vec![ids(5); 5];
    let config = greedy(9).with_temperature(1.0);
    let whole = generate_batch(&model, &prompts, &config, go_on).unwrap();
    let first = generate_from(&model, 0, &prompts[..2], &config, go_on).unwrap();
    let rest = generate_from(&model, 2, &prompts[2..], &config, go_on).unwrap();
    for (one, other) in whole.iter().zip(first.iter().chain(&rest)) {
        assert_eq!(one.ids, other.ids);
    }
    assert!(whole.iter().any(|row| row.ids != whole[0].ids), "every row draws for itself");
}

#[test]
fn logits_of_rows_equal_their_own() {
    for model in models().into_iter().chain(tiny::following_length()) {
        let prompts = prompts();
        let lengths: Vec<usize> = prompts.iter().map(Vec::len).collect();
        let width = 37;
        let padded: Vec<u32> = prompts
            .iter()
            .flat_map(|p| std::iter::repeat_n(60, width - p.len()).chain(p.iter().copied()))
            .collect();
        let mut together = Generator::new(&model);
        let tokens = TokenMeta::left_padded(&lengths, width).unwrap();
        let mut rows = together.feed_rows(&padded, &tokens).unwrap();
        let mut apart: Vec<_> = prompts.iter().map(|_| Generator::new(&model)).collect();
        let mut expected: Vec<_> =
            apart.iter_mut().zip(&prompts).map(|(one, p)| one.feed(p).unwrap()).collect();
        for step in 0..4 {
            for (row, expected) in rows.iter().zip(&expected) {
                let apart = ratio(row, expected);
                assert!(apart < CACHED, "{apart} in step {step}");
            }
            let next = [7, 8, 9, 10 + step as u32];
            let pos = lengths.iter().map(|n| (n + step) as i32).collect();
            let tokens = TokenMeta::new(4, 1, pos, vec![0; 4]).unwrap();
            rows = together.feed_rows(&next, &tokens).unwrap();
            expected =
                apart.iter_mut().zip(next).map(|(one, id)| one.feed(&[id]).unwrap()).collect();
        }
    }
}

/// Every row counts from its own first token, whatever stands before it: attention would not
/// notice a shift of a whole row, limits of length and frequencies that follow it would.
#[test]
fn padded_rows_count_from_their_first_token() {
    let tokens = TokenMeta::left_padded(&[2, 4, 0], 4).unwrap();
    let seen: Vec<i32> = (tokens.pos().iter().zip(tokens.segment()))
        .map(|(pos, segment)| if *segment < 0 { -1 } else { *pos })
        .collect();
    assert_eq!(seen, [-1, -1, 0, 1, 0, 1, 2, 3, -1, -1, -1, -1]);
}

#[test]
fn rows_end_when_they_end() {
    let model = &models()[1];
    let free: Vec<Vec<u32>> = prompts().iter().map(|p| alone(model, p, &greedy(12))).collect();
    // An id that ends some row early and not all of them at once.
    let stop = free[0][2];
    let config = greedy(12).with_stop(&[stop]);
    let mut count = 0;
    let rows = generate_batch(model, &prompts(), &config, |row, _| {
        // The last row has enough of four tokens.
        count += usize::from(row == 3);
        Ok(if row == 3 && count == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    });
    let mut lengths = Vec::new();
    for (r, (row, free)) in rows.unwrap().iter().zip(&free).enumerate() {
        let (len, finish) = match free.iter().position(|id| *id == stop) {
            Some(at) if r < 3 || at < 4 => (at + 1, Finish::StopId),
            _ if r == 3 => (4, Finish::Caller),
            _ => (12, Finish::Length),
        };
        assert_eq!((&row.ids[..], row.finish), (&free[..len], finish), "row {r}");
        lengths.push(len);
    }
    assert!(lengths.iter().any(|n| *n != lengths[0]), "all rows ended together: {lengths:?}");
}

#[test]
fn draws_of_a_row_are_its_own() {
    let model = &models()[0];
    let config = greedy(16).with_temperature(2.0).with_seed(3);
    let same = vec![ids(5), ids(5), ids(5)];
    let rows = generate_batch(model, &same, &config, go_on).unwrap();
    assert_eq!(rows[0].ids, alone(model, &ids(5), &config));
    assert_ne!(rows[0].ids, rows[1].ids);
    assert_ne!(rows[1].ids, rows[2].ids);
}

#[test]
fn a_penalty_counts_the_row_and_not_its_padding() {
    let model = &models()[0];
    let config = greedy(12).with_repetition_penalty(1.8);
    let rows = generate_batch(model, &prompts(), &config, go_on).unwrap();
    let mut changed = 0;
    for (row, prompt) in rows.iter().zip(prompts()) {
        assert_eq!(row.ids, alone(model, &prompt, &config));
        changed += usize::from(row.ids != alone(model, &prompt, &greedy(12)));
    }
    assert!(changed > 0, "the penalty changed nothing");
}

#[test]
fn bad_batches_are_refused() {
    let model = &models()[0];
    let none: [Vec<u32>; 0] = [];
    assert!(generate_batch(model, &none, &greedy(3), go_on).unwrap().is_empty());
    let error = generate_batch(model, &[vec![1], vec![]], &greedy(3), go_on).unwrap_err();
    assert!(error.to_string().contains("prompt 1 is empty"), "{error}");
    let error = generate_batch(model, &[vec![1], vec![2, 99]], &greedy(3), go_on).unwrap_err();
    assert!(error.to_string().contains("id 99 at position 1"), "{error}");
    // What the listener says stops everything.
    let broken = |_, _| Err(Error::Data("enough".into()));
    let error = generate_batch(model, &[vec![1]], &greedy(3), broken).unwrap_err();
    assert_eq!(error.to_string(), "data: enough");
    let mut generator = Generator::new(model);
    let tokens = TokenMeta::contiguous(2, 2, 0);
    assert!(matches!(generator.feed_rows(&[1, 2, 3], &tokens), Err(Error::Shape { .. })));
}
