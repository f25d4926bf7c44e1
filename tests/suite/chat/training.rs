//! Training on conversations. The instruction tuning of a real checkpoint is behind `slow` and
//! needs `LONGBURN_REALDATA`.

use super::{TURNS, talk, template};
use burn::tensor::Device;
use longburn::attention::MixerConfig;
use longburn::datasets::{Conversation, Pack, PackConfig, Tokenizer, encode_conversations};
use longburn::kernel::TokenMeta;
use longburn::models::{Blocks, Decoder, ForwardOptions, ModelConfig, ids_tensor};
use longburn::streams::Streams;
use longburn::training::{NextToken, Objective};

/// −log p of each token behind those before it, for one conversation alone.
fn losses(model: &Decoder, ids: &[u32]) -> Vec<f64> {
    let tokens = TokenMeta::contiguous(1, ids.len(), 0);
    let input = ids_tensor(ids, 1, &Device::flex());
    let hidden = model.forward_ids(input, &tokens, &ForwardOptions::infer(), vec![]).unwrap();
    let logits: Vec<f32> = model.logits(hidden.last).into_data().iter::<f32>().collect();
    let rows = logits.chunks(logits.len() / ids.len());
    rows.zip(&ids[1..])
        .map(|(row, next)| {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            sum.ln() - f64::from(row[*next as usize])
        })
        .collect()
}

#[test]
fn the_loss_of_a_packed_row_equals_that_of_the_assistants_tokens_alone() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer: Tokenizer = crate::data::sentencepiece(folder.path());
    let config = ModelConfig::llama(tokenizer.vocab_size(), 16, 2, 2).with_max_positions(256);
    let model = Decoder::new(&config, &MixerConfig::Dense, 3, &Device::flex()).unwrap();
    let list: Vec<Conversation> = [("a b", "c"), ("ab", "a ab c"), ("c c", "b")]
        .iter()
        .map(|(q, a)| Conversation {
            id: (*q).into(),
            messages: talk(&[("user", q), ("assistant", a)]),
        })
        .collect();
    let (all, _) = encode_conversations(&list, &template(TURNS), &tokenizer, 256).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for tokens in &all {
        for (loss, learned) in losses(&model, &tokens.document.ids).iter().zip(&tokens.targets[1..])
        {
            if *learned {
                sum += loss;
                count += 1;
            }
        }
    }
    let (documents, targets): (Vec<_>, Vec<_>) =
        all.into_iter().map(|tokens| (tokens.document, tokens.targets)).unzip();
    let config = PackConfig::new(256).with_pack(Pack::Truncate).with_segments(true);
    let source = config.with_epochs(Some(1)).init(documents, 1, Streams::new(0)).unwrap();
    let mut source = source.with_targets(targets).unwrap();
    let batch = source.next_batch().unwrap().unwrap();
    assert_eq!(source.next_batch().unwrap(), None, "all conversations lie in one row");
    let parts = NextToken.loss(&model, &batch, &ForwardOptions::infer()).unwrap();
    assert_eq!(parts.weight, f64::from(count));
    let got = f64::from(parts.sum.into_scalar::<f32>());
    assert!((got / sum - 1.0).abs() < 1e-5, "{got} for {sum}");
}

/// Instruction tuning of stories260k on questions and answers of GSM8K.
#[cfg(feature = "slow")]
#[test]
fn a_real_checkpoint_learns_to_answer() {
    use longburn::training::report::Progress;
    use longburn::training::{Recipe, RunOptions, run_recipe};
    use std::io::Write;

    let Some(root) = std::env::var_os("LONGBURN_REALDATA").map(std::path::PathBuf::from) else {
        let _ = writeln!(std::io::stderr(), "skipped: LONGBURN_REALDATA is not set");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        r#"
            [model]
            path = {:?}
            [data]
            kind = "chat"
            train = {:?}
            split = 50
            [data.chat]
            question = "question"
            answer = "answer"
            template = """{{{{ bos_token }}}}{{% for m in messages %}}{{% if m.role == 'user' %}}\
                          Question: {{{{ m.content }}}} {{% else %}}Answer: {{{{ m.content }}}}\
                          {{{{ eos_token }}}}{{% endif %}}{{% endfor %}}\
                          {{% if add_generation_prompt %}}Answer:{{% endif %}}"""
            [train]
            steps = 60
            length = 512
            batch = 4
            lr = 1e-3
            schedule = {{ name = "cosine", warmup = {{ steps = 6 }} }}
            clip = 1.0
            [eval]
            documents = 20
            [output]
            dir = {:?}
        "#,
        root.join("stories260k-hf"),
        root.join("eval/gsm8k_train_2000.jsonl"),
        dir.path().join("run"),
    );
    let recipe = Recipe::parse(&text, "run.toml").unwrap();
    let options = RunOptions::new(Device::flex());
    let summary = run_recipe(&recipe, &options, &Progress::quiet()).unwrap();
    let (before, after) = (summary.before.unwrap(), summary.after.unwrap());
    let _ = writeln!(
        std::io::stderr(),
        "loss of the answers {:.3} to {:.3}, held-out perplexity {:.2} to {:.2}, {}",
        summary.first_loss,
        summary.last_loss,
        before.ppl,
        after.ppl,
        summary.data,
    );
    assert!(summary.last_loss < 0.75 * summary.first_loss);
    assert!(after.ppl < 0.75 * before.ppl);
}
