use super::{message, sentencepiece, tokenizer};
use longburn::Error;
use longburn::datasets::synthetic::{
    PasskeyConfig, PasskeyPromptConfig, PasskeyTemplate, insert_statements, stratified_depth,
};
use longburn::streams::{Purpose, Streams};
use proptest::prelude::*;
use std::fs;

#[test]
fn passkey_rows_state_and_ask_for_the_key() {
    let config = PasskeyConfig::new().with_words(5).with_key_words(3);
    let passkey = config.init(tokenizer()).unwrap();
    assert!((passkey.chance() - 1.0 / 125.0).abs() < 1e-12);
    let text = "fn garden() { 1 }\n".repeat(80);
    let document = tokenizer().encode(&text, false).unwrap();
    let rng = |micro| Streams::new(0).rng(Purpose::Synthetic, 0, micro, 0);
    let decode = |ids: &[u32]| tokenizer().decode(ids, false).unwrap();

    let row = passkey.training_row(&document, 200, 3, &mut rng(0)).unwrap();
    assert_eq!(row.len(), 200);
    let shown = decode(&row);
    let key = decode(&row[197..]);
    assert_eq!(shown.matches(&format!("\n// The pass key is{key}.\n")).count(), 3);
    assert!(shown.ends_with(&format!("\n// The pass key is{key}")));
    assert_eq!(row, passkey.training_row(&document, 200, 3, &mut rng(0)).unwrap());
    assert_ne!(row, passkey.training_row(&document, 200, 3, &mut rng(1)).unwrap());

    let room = passkey.document_len(120, 1).unwrap();
    for (depth, place) in [(0.0, 0), (0.5, (room as f64 / 2.0).round() as usize), (1.0, room)] {
        let (prompt, answer) = passkey.evaluation_row(&document, 120, depth, &mut rng(2)).unwrap();
        assert_eq!((prompt.len(), answer.len()), (117, 3));
        assert_eq!(prompt[..place], document[..place]);
        let statement = format!("\n// The pass key is{}.\n", decode(&answer));
        assert!(decode(&prompt[place..]).starts_with(&statement));
        assert_eq!(decode(&prompt).matches(&statement).count(), 1);
        assert!(decode(&prompt).ends_with("\n// The pass key is"));
    }
    for depth in [-0.1, 1.1, f64::NAN] {
        let row = passkey.evaluation_row(&document, 120, depth, &mut rng(0));
        assert!(message(row).contains("depth"));
    }
    assert!(message(passkey.training_row(&document, 20, 3, &mut rng(0))).contains("of 20"));
    assert!(
        message(passkey.training_row(&document[..9], 200, 3, &mut rng(0))).contains("9 tokens")
    );
    assert!(PasskeyConfig::new().with_words(0).init(tokenizer()).is_err());
}

#[test]
fn passkey_prompts_have_length_and_depth() {
    let task = PasskeyPromptConfig::new().init().unwrap();
    let mut rng = Streams::new(0).rng(Purpose::Synthetic, 0, 0, 0);
    let folder = tempfile::tempdir().unwrap();
    let pieces = sentencepiece(folder.path());
    for (tokenizer, unit) in [(tokenizer(), 100), (&pieces, 120)] {
        for (len, depth) in [(600, 0.0), (1500, 0.37), (1500, 1.0)] {
            let sample = task.sample(tokenizer, len, depth, &mut rng).unwrap();
            let tokens = sample.ids.len() + sample.answer_ids.len();
            assert!(tokens <= len && tokens + unit > len, "{tokens} of {len}");
            assert_eq!(sample.answer.len(), 5);
            assert_eq!(sample.prompt.matches(&sample.answer).count(), 2);
            let place = sample.prompt.find(&sample.answer).unwrap() as f64;
            let share = place / sample.prompt.len() as f64;
            assert!((share - depth).abs() < 0.3 && (sample.depth - depth).abs() < 0.1);
            assert_eq!(tokenizer.decode(&sample.ids, true).unwrap(), sample.prompt);
            let whole = [&sample.ids[..], &sample.answer_ids].concat();
            let expected = format!("{} {}", sample.prompt, sample.answer);
            assert_eq!(tokenizer.decode(&whole, true).unwrap(), expected);
        }
    }
    assert!(message(task.sample(tokenizer(), 40, 0.5, &mut rng)).contains("of 40"));
    assert!(message(task.sample(tokenizer(), 600, 2.0, &mut rng)).contains("depth"));

    let file = folder.path().join("template.toml");
    let template =
        "task = \"\"\nfiller = \"Tick.\"\ninformation = \"It is {key}\"\nquestion = \"It is\"\n";
    fs::write(&file, template).unwrap();
    let own = PasskeyTemplate::from_file(&file).unwrap();
    let own = PasskeyPromptConfig::new().with_template(own).with_digits(2).init().unwrap();
    let sample = own.sample(tokenizer(), 60, 0.0, &mut rng).unwrap();
    assert!(sample.prompt.starts_with(&format!("It is {}\nTick. Tick.", sample.answer)));
    fs::write(&file, template.replace("{key}", "here")).unwrap();
    assert!(message(PasskeyTemplate::from_file(&file)).contains("information"));
    fs::write(&file, format!("{template}more = 1\n")).unwrap();
    assert!(matches!(PasskeyTemplate::from_file(&file), Err(Error::Parse { span: Some(_), .. })));
}

proptest! {
    #[test]
    fn statements_stand_at_their_places(
        n in 0_usize..20,
        places in prop::collection::vec(0_usize..20, 0..5),
    ) {
        let ids: Vec<u32> = (0..n as u32).collect();
        let row = insert_statements(&ids, &[100, 101], &places);
        prop_assert_eq!(row.is_ok(), places.iter().all(|p| *p <= n));
        if let Ok(row) = row {
            let kept: Vec<u32> = row.iter().copied().filter(|id| *id < 100).collect();
            prop_assert_eq!(kept, ids);
            let mut found: Vec<usize> = (0..row.len())
                .filter(|i| row[*i] == 100)
                .map(|i| row[..i].iter().filter(|id| **id < 100).count())
                .collect();
            found.sort();
            let mut places = places;
            places.sort();
            prop_assert_eq!(found, places);
        }
    }
}

#[test]
fn depths_are_stratified() {
    let mut rng = Streams::new(0).rng(Purpose::Synthetic, 0, 0, 0);
    for bucket in 0..4 {
        let depth = stratified_depth(bucket, 4, &mut rng).unwrap();
        assert_eq!((depth * 4.0) as usize, bucket);
    }
    assert!(stratified_depth(4, 4, &mut rng).is_err());
}
