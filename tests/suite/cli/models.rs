//! Verbs that read a model.

use super::Bench;
use longburn::kernel::{BlockStride, GroupSize, Groups, Mask, MaskSpec, TokenMeta};
use longburn::models::weights::{WeightFiles, read_safetensors};
use longburn::models::{Blocks, ForwardOptions, GenerateConfig, generate, ids_tensor};
use longburn::training::eval::Perplexity;

#[test]
fn inspect_says_what_a_checkpoint_is() {
    let bench = Bench::new();
    let facts = bench.json(&["inspect", "model"]);
    assert_eq!(facts["model"]["architecture"], "llama");
    let files = WeightFiles::open(&bench.path("model")).unwrap();
    let count: usize =
        files.names().map(|name| files.shape(name).unwrap().iter().product::<usize>()).sum();
    assert_eq!(facts["model"]["parameters"], count);
    assert_eq!(facts["positions"]["max_context"], 32);
    assert_eq!(facts["weights"]["complete"], true);
    assert_eq!(facts["weights"]["dtypes"]["F32"], files.names().count());
    assert_eq!(facts["tokenizer"]["fits"], true);

    let text = bench.run(&["inspect", "model"]);
    assert!(text.contains("tied head              yes"), "{text}");
}

#[test]
fn inspect_lists_what_is_missing() {
    let bench = Bench::new();
    let path = bench.path("model/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let layers = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    let rows = layers.replace("\"vocab_size\": 304", "\"vocab_size\": 200");
    std::fs::write(&path, rows).unwrap();
    let facts = bench.json(&["inspect", "model"]);
    assert_eq!(facts["weights"]["complete"], false);
    let missing = facts["weights"]["missing"].as_array().unwrap();
    assert_eq!(missing.len(), 9);
    assert!(missing.contains(&"model.layers.2.mlp.up_proj.weight".into()));
    assert_eq!(facts["weights"]["wrong_shape"].as_array().unwrap().len(), 1);
    assert_eq!(facts["tokenizer"]["fits"], false);
}

#[test]
fn a_text_ends_with_the_ids_that_the_checkpoint_names() {
    let bench = Bench::new();
    let generate = |more: &[&str]| {
        let common = ["generate", "model", "--prompt", "The", "--max-new-tokens", "12"];
        bench.json(&[&common, more].concat())
    };
    let free = generate(&["--ignore-eos"]);
    let end = free["ids"][5].as_u64().unwrap();
    let path = bench.path("model/config.json");
    let config = std::fs::read_to_string(&path).unwrap();
    let changed = config.replace("\"eos_token_id\": 0", &format!("\"eos_token_id\": {end}"));
    assert_ne!(changed, config);
    std::fs::write(&path, changed).unwrap();
    let stopped = generate(&[]);
    assert_eq!(stopped["stopped"], true);
    let ids = stopped["ids"].as_array().unwrap();
    assert_eq!(ids.last().unwrap().as_u64(), Some(end));
    assert_eq!(ids[..], free["ids"].as_array().unwrap()[..ids.len()]);
    assert_eq!(generate(&["--ignore-eos"])["ids"], free["ids"]);
}

#[test]
fn logits_are_those_of_each_row_alone() {
    let bench = Bench::new();
    bench.write("ids.json", "[[1, 2, 3, 4, 5], [7], [3, 1]]");
    let facts = bench.json(&["logits", "model", "--ids", "ids.json", "--out", "out.safetensors"]);
    assert_eq!((facts["rows"].as_u64(), facts["tokens"].as_u64()), (Some(3), Some(8)));
    let (tensors, _) = read_safetensors(&bench.path("out.safetensors")).unwrap();
    assert_eq!(tensors.len(), 3);
    let device = burn::tensor::Device::flex();
    for (name, row) in
        [("logits.0", &[1, 2, 3, 4, 5][..]), ("logits.1", &[7]), ("logits.2", &[3, 1])]
    {
        let tokens = TokenMeta::contiguous(1, row.len(), 0);
        let ids = ids_tensor(row, 1, &device);
        let options = ForwardOptions::infer();
        let last = bench.decoder.forward_ids(ids, &tokens, &options, vec![]).unwrap().last;
        let expected: Vec<f32> = bench.decoder.logits(last).into_data().try_to_vec().unwrap();
        assert_eq!(tensors[name].shape, [row.len(), 304]);
        assert_eq!(tensors[name].to_f32().unwrap(), expected);
    }
}

#[test]
fn generate_continues_ids_and_text() {
    let bench = Bench::new();
    let prompt = bench.tokenizer.encode("The river", true).unwrap();
    bench.write("ids.json", &format!("{prompt:?}"));
    let settings = GenerateConfig::new().with_max_new_tokens(12);
    let expected = generate(&bench.decoder, &prompt, &settings, |_| {}).unwrap().ids;
    let common = ["--max-new-tokens", "12", "--ignore-eos"];
    let by_ids = bench.json(&[&["generate", "model", "--ids", "ids.json"], &common[..]].concat());
    let by_text =
        bench.json(&[&["generate", "model", "--prompt", "The river"], &common[..]].concat());
    for result in [&by_ids, &by_text] {
        assert_eq!(result["ids"], serde_json::json!(expected));
        assert_eq!(result["prompt_tokens"], prompt.len());
        assert_eq!(result["new_tokens"], 12);
        assert!(result["tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    let mut whole = prompt;
    whole.extend(&expected);
    let text = bench.tokenizer.decode(&whole, true).unwrap();
    assert_eq!(format!("The river{}", by_ids["text"].as_str().unwrap()), text);

    let args = ["generate", "model", "--prompt", "The river", "--temperature", "2"];
    let drawn = |seed| bench.run(&[&args[..], &common, &["--seed", seed]].concat());
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
fn eval_measures_under_the_named_protocol() {
    let bench = Bench::new();
    let documents: Vec<Vec<u32>> = (0..4)
        .map(|i| std::fs::read_to_string(bench.path(&format!("texts/{i}.txt"))).unwrap())
        .map(|text| bench.tokenizer.encode(&text, true).unwrap())
        .collect();
    let strided = ["eval", "model", "--data", "texts", "--max-len", "16", "--stride", "8"];
    let result = bench.json(&strided);
    let expected = Perplexity::strided(16, 8).eval(&bench.decoder, &documents).unwrap();
    assert_eq!(result["perplexity"]["ppl"], expected.ppl);
    assert_eq!(result["perplexity"]["tokens"], expected.tokens);
    assert_eq!(result["data"]["kept"]["documents"], 4);

    let longlora = [&strided[..], &["--protocol", "longlora", "--documents", "3"]].concat();
    let expected = Perplexity::longlora(16, 8).eval(&bench.decoder, &documents[..3]).unwrap();
    assert_eq!(bench.json(&longlora)["perplexity"]["ppl"], expected.ppl);

    let text = bench.run(&[&strided[..], &["--by-position"]].concat());
    assert!(text.contains("strided, windows of 16, stride 8"), "{text}");
    assert!(text.contains("8 – 15"), "{text}");
}

#[test]
fn eval_asks_for_pass_keys() {
    let bench = Bench::new();
    let args = ["eval", "model", "--passkey", "300,350", "--passkey-samples", "2"];
    let result = bench.json(&args);
    let lengths = result["passkey"]["by_length"].as_array().unwrap();
    assert_eq!(lengths.len(), 2);
    assert_eq!((lengths[1]["length"].as_u64(), lengths[1]["total"].as_u64()), (Some(350), Some(2)));
}

#[test]
fn masks_are_drawn_and_counted() {
    let bench = Bench::new();
    let args = ["mask", "show", "--len", "32", "--group-ratio", "4", "--heads", "4"];
    let counted = bench.json(&[&args[..], &["--out", "mask.svg"]].concat());
    let groups = Groups { size: GroupSize::Ratio(4), shift: true, ragged: false };
    let tokens = TokenMeta::contiguous(1, 32, 0);
    let spec = MaskSpec::causal().with_groups(groups);
    let mask = Mask::new(spec, tokens.clone(), tokens, 4).unwrap();
    assert_eq!(counted["pairs"], mask.pairs());
    assert_eq!(counted["density"], mask.density());
    assert_eq!(counted["visited_tiles"], mask.blocks(16, 16).visited());
    let svg = std::fs::read_to_string(bench.path("mask.svg")).unwrap();
    assert!(svg.contains("heads 0 – 1") && svg.contains("heads 2 – 3"));

    let packed = bench.json(&["mask", "show", "--len", "8", "--segments", "3,5"]);
    assert_eq!(packed["pairs"], 2 * (3 * 4 / 2 + 5 * 6 / 2));

    let args = ["mask", "show", "--len", "100", "--heads", "4", "--kv-heads", "2"];
    let blocks = ["--stride", "3", "--block", "8", "--local-blocks", "2", "--out", "stride.svg"];
    let strided = bench.json(&[&args[..], &blocks].concat());
    let tokens = TokenMeta::contiguous(1, 100, 0);
    let spec = MaskSpec::causal().with_stride(BlockStride::new(8, 2, 3, 2));
    let mask = Mask::new(spec, tokens.clone(), tokens, 4).unwrap();
    assert_eq!(strided["pairs"], mask.pairs());
    let svg = std::fs::read_to_string(bench.path("stride.svg")).unwrap();
    assert!(svg.contains("heads 0 – 1") && svg.contains("heads 2 – 3"));
}

#[test]
fn explain_and_papers() {
    let bench = Bench::new();
    bench.write("ids.json", "[[1, 2]]");
    let args = ["logits", "model", "--ids", "ids.json", "--out", "x.safetensors", "--explain"];
    let out = super::longburn(bench.dir.path(), &args).assert().success();
    let text = String::from_utf8(out.get_output().stderr.clone()).unwrap();
    assert!(text.contains("layer 0: ") && text.contains("layer 1: "), "{text}");
    assert!(text.contains("linear layers: `Flex` in F32"), "{text}");
    let papers = bench.json(&["papers"]);
    assert!(papers["papers"].as_array().unwrap().iter().any(|p| p["name"] == "longlora"));
}
