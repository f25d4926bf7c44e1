//! The rotary fields of `config.json`: where each shape has what, and how they are written.

use longburn::models::ModelConfig;
use longburn::positional::{LongRope, RopeConfig, RopeKind, Yarn};
use longburn::{Error, Result};
use serde_json::{Value, json};

const MAX: usize = 512;
const ORIGINAL: &str = "original_max_position_embeddings";

/// A model of a family with heads of 8 channels and 512 positions, and `changes` made.
fn read_as(family: &str, changes: Value) -> Result<ModelConfig> {
    let mut config = json!({
        "model_type": family, "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
        "max_position_embeddings": MAX,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    ModelConfig::from_json_str(&config.to_string(), "config.json")
}

fn read(changes: Value) -> Result<ModelConfig> {
    read_as("llama", changes)
}

fn refused(changes: Value) -> (String, String) {
    match read(changes.clone()) {
        Err(Error::Config { field, value, .. }) => (field, value),
        other => panic!("{changes}: expected a refusal of a field, got {other:?}"),
    }
}

/// A description with the original length inside, or not.
fn with_length(mut description: Value, length: Option<usize>) -> Value {
    if let Some(length) = length {
        description[ORIGINAL] = json!(length);
    }
    description
}

/// A file with the description in one of the shapes, and the original length at the top, or not.
fn shaped(shape: &str, description: Value, top: Option<usize>) -> Value {
    let description = match shape {
        "nested" => json!({"full_attention": description}),
        _ => description,
    };
    let key = if shape == "older" { "rope_scaling" } else { "rope_parameters" };
    let mut file = json!({});
    file[key] = description;
    with_length(file, top)
}

/// L and s of a description.
fn facts(
    shape: &str,
    description: &Value,
    inner: Option<usize>,
    top: Option<usize>,
) -> (usize, f64) {
    let file = shaped(shape, with_length(description.clone(), inner), top);
    let kind = read(file).unwrap().rope.kind;
    (kind.original_length().unwrap(), kind.factor())
}

#[test]
fn original_length_has_its_place_in_each_shape() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0});
    let llama3 = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0});
    let ones = [1.0; 4];
    let longrope = json!({"rope_type": "longrope", "factor": 4.0, "short_factor": ones,
        "long_factor": ones});

    // Inside only; yarn then takes the model's length, llama3 has to have one.
    assert_eq!(facts("older", &yarn, Some(64), Some(32)), (64, 4.0));
    assert_eq!(facts("older", &yarn, None, Some(32)), (MAX, 4.0));
    assert_eq!(facts("older", &llama3, Some(64), Some(32)), (64, 4.0));
    let (field, value) = refused(shaped("older", llama3.clone(), Some(32)));
    assert_eq!((field, value), (format!("rope_scaling.{ORIGINAL}"), "missing".into()));
    // At the top only, where it decides the factor too.
    assert_eq!(facts("older", &longrope, Some(64), Some(32)), (32, 16.0));
    assert_eq!(facts("older", &longrope, Some(64), None), (MAX, 4.0));

    for kind in [&yarn, &llama3, &longrope] {
        assert_eq!(facts("flat", kind, Some(64), Some(32)), (32, 4.0), "{kind}");
        assert_eq!(facts("flat", kind, Some(64), None), (64, 4.0), "{kind}");
        assert_eq!(facts("flat", kind, None, None), (MAX, 4.0), "{kind}");
        assert_eq!(facts("nested", kind, Some(64), Some(32)), (64, 4.0), "{kind}");
        assert_eq!(facts("nested", kind, None, Some(32)), (MAX, 4.0), "{kind}");
    }
}

#[test]
fn a_missing_factor_is_made_of_the_lengths_where_the_shape_does_so() {
    let ones = [1.0; 4];
    let longrope = json!({"rope_type": "longrope", "short_factor": ones, "long_factor": ones});
    assert_eq!(facts("flat", &longrope, Some(64), None), (64, 8.0));
    assert_eq!(facts("nested", &longrope, Some(64), Some(32)), (64, 8.0));
    assert_eq!(facts("older", &longrope, None, Some(64)), (64, 8.0));
    let (field, _) = refused(shaped("older", longrope, None));
    assert_eq!(field, "rope_scaling.factor");

    let null = json!({"rope_type": "yarn", "factor": null});
    assert_eq!(facts("flat", &null, Some(64), None), (64, 8.0));
    assert_eq!(facts("nested", &null, Some(128), None), (128, 4.0));
    assert_eq!(refused(shaped("older", null, None)).0, "rope_scaling.factor");
    let absent = json!({"rope_type": "yarn"});
    assert_eq!(refused(shaped("flat", absent, None)).0, "rope_parameters.factor");
}

#[test]
fn settings_of_yarn_are_read() {
    let yarn = |file: Value| match read(file).unwrap().rope.kind {
        RopeKind::Yarn(yarn) => yarn,
        other => panic!("{other:?}"),
    };
    let all = json!({"rope_type": "yarn", "factor": 4.0, "beta_fast": 16, "beta_slow": 2,
        "attention_factor": 0.9, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": false,
        "original_max_position_embeddings": 64});
    let expected = Yarn {
        beta_fast: 16.0,
        beta_slow: 2.0,
        attention_factor: Some(0.9),
        mscale: Some(1.0),
        mscale_all_dim: Some(0.5),
        truncate: false,
        ..Yarn::new(4.0, 64)
    };
    assert_eq!(yarn(shaped("older", all.clone(), None)), expected);
    assert_eq!(yarn(shaped("flat", all.clone(), None)), expected);
    // In the nested shape `truncate` is read from the object around, as transformers does.
    let mut nested = shaped("nested", all, None);
    assert!(yarn(nested.clone()).truncate);
    nested["rope_parameters"]["truncate"] = json!(false);
    assert_eq!(yarn(nested), expected);

    let zeros = json!({"type": "yarn", "factor": 2, "beta_fast": 0, "beta_slow": null});
    assert_eq!(yarn(shaped("older", zeros, None)), Yarn::new(2.0, MAX));
}

#[test]
fn dynamic_takes_the_model_s_length() {
    let dynamic = json!({"rope_type": "dynamic", "factor": 2.0});
    for shape in ["older", "flat", "nested"] {
        assert_eq!(facts(shape, &dynamic, Some(64), Some(32)), (MAX, 2.0), "{shape}");
    }
    // Nothing else could be written.
    let config = read(shaped("flat", dynamic, None)).unwrap().with_max_positions(1024);
    match config.validate() {
        Err(Error::Config { field, expected, .. }) => {
            assert_eq!(field, "max_position_embeddings");
            assert!(expected.contains("512"), "{expected}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn layer_types_must_agree() {
    let (a, b) = (json!({"rope_theta": 1e4}), json!({"rope_theta": 1e6}));
    let both = |a: &Value, b: &Value| {
        read(json!({"rope_parameters": {"full_attention": a, "sliding_attention": b}}))
    };
    assert_eq!(both(&a, &a).unwrap().rope, RopeConfig::new(1e4, 8));
    assert_eq!(both(&b, &b).unwrap().rope, RopeConfig::new(1e6, 8));
    for result in [both(&a, &b), both(&a, &Value::Null)] {
        match result {
            Err(Error::Unsupported { what, .. }) => assert!(what.contains("rope_parameters")),
            other => panic!("{other:?}"),
        }
    }
    // A base outside serves those that have none.
    let outside =
        json!({"rope_theta": 5e5, "rope_parameters": {"full_attention": {"type": "default"}}});
    assert_eq!(read(outside).unwrap().rope.theta, 5e5);
}

#[test]
fn rotated_share_is_neox_s_alone() {
    let dim = |changes| read_as("gpt_neox", changes).unwrap().rope.dim;
    assert_eq!(dim(json!({})), 2);
    assert_eq!(dim(json!({"rotary_pct": 0.5})), 4);
    assert_eq!(dim(json!({"rotary_pct": 1})), 8);
    assert_eq!(dim(json!({"rope_parameters": {"partial_rotary_factor": 0.75}})), 6);
    let both = json!({"rotary_pct": 1.0, "rope_parameters": {"partial_rotary_factor": 0.5}});
    assert_eq!(dim(both), 4);
    let theta = json!({"rotary_emb_base": 5e5, "rope_theta": 7.0});
    assert_eq!(read_as("gpt_neox", theta).unwrap().rope.theta, 5e5);
    for share in [json!(0.4), json!(0.0), json!(-0.5), json!(1.25), json!("half")] {
        match read_as("gpt_neox", json!({"rotary_pct": share})) {
            Err(Error::Config { field, .. }) => assert_eq!(field, "rotary_pct"),
            other => panic!("{share}: {other:?}"),
        }
    }
    let part = json!({"rope_parameters": {"partial_rotary_factor": 0.5}});
    assert_eq!(refused(part).0, "rope_parameters.partial_rotary_factor");

    let proportional = json!({"rope_type": "proportional", "partial_rotary_factor": 0.5});
    let rope = read(shaped("flat", proportional, None)).unwrap().rope;
    let kind = RopeKind::Proportional { factor: 1.0, partial_rotary_factor: 0.5 };
    assert_eq!(rope, RopeConfig::new(1e4, 8).with_kind(kind));
}

#[test]
fn f5_wrong_scalings() {
    let flat = |description| shaped("flat", description, None);
    let cases = [
        (flat(json!({"rope_type": "dynamic"})), "rope_parameters.factor"),
        (flat(json!({"rope_type": "dynamic", "factor": 0.5})), "factor"),
        (flat(json!({"rope_type": "yarn", "factor": 0.5})), "factor"),
        (
            flat(json!({"rope_type": "yarn", "factor": 4, "beta_fast": 1, "beta_slow": 2})),
            "beta_fast",
        ),
        (
            flat(json!({"rope_type": "yarn", "factor": 4, "truncate": 1})),
            "rope_parameters.truncate",
        ),
        (flat(json!({"rope_type": "longrope", "factor": 4})), "rope_parameters.short_factor"),
        (
            flat(json!({"rope_type": "longrope", "factor": 4, "short_factor": [1, 1, 1, 1],
                "long_factor": "1"})),
            "rope_parameters.long_factor",
        ),
        (
            flat(json!({"rope_type": "longrope", "factor": 4, "short_factor": [1, 1, 1, 1],
                "long_factor": [1, 1]})),
            "long_factor",
        ),
        (
            flat(json!({"rope_type": "llama3", "factor": 4, "low_freq_factor": 1})),
            "rope_parameters.high_freq_factor",
        ),
        (
            flat(json!({"rope_type": "llama3", "factor": 4, "low_freq_factor": 4,
                "high_freq_factor": 1})),
            "high_freq_factor",
        ),
        (
            flat(json!({"rope_type": "proportional", "partial_rotary_factor": 1.5})),
            "partial_rotary_factor",
        ),
        (
            shaped("nested", json!({"rope_type": "yarn"}), None),
            "rope_parameters.full_attention.factor",
        ),
        (with_length(flat(json!({"rope_type": "yarn", "factor": 2})), Some(0)), ORIGINAL),
    ];
    for (file, field) in cases {
        assert_eq!(refused(file.clone()).0, field, "{file}");
    }
    let by_parts = RopeKind::ByParts {
        factor: 4.0,
        beta_slow: 1.0,
        beta_fast: 32.0,
        original_max_position_embeddings: 64,
    };
    let config = read(json!({})).unwrap();
    let rope = config.rope.clone().with_kind(by_parts);
    assert!(config.with_rope(rope).validate().unwrap_err().to_string().contains("by_parts"));
}

/// Every scaling, written into a file of each shape, is read back the same; dynamic has its length
/// in `max_position_embeddings`.
#[test]
fn scalings_are_written_in_the_shape_of_the_file() {
    let (short, long) = (vec![1.0, 1.5, 2.0, 2.5], vec![1.0, 2.0, 4.0, 8.0]);
    let longrope = LongRope {
        factor: 4.0,
        original_max_position_embeddings: 128,
        short_factor: short,
        long_factor: long,
        attention_factor: None,
    };
    let kinds = [
        RopeKind::Default,
        RopeKind::Linear { factor: 3.0 },
        RopeKind::Dynamic { factor: 2.0, original_max_position_embeddings: MAX },
        RopeKind::Yarn(Yarn::new(4.0, 128)),
        RopeKind::Yarn(Yarn {
            attention_factor: Some(1.0),
            mscale: Some(1.0),
            mscale_all_dim: Some(0.5),
            truncate: false,
            ..Yarn::new(2.0, 100)
        }),
        RopeKind::LongRope(longrope.clone()),
        RopeKind::Llama3 {
            factor: 4.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 128,
        },
        RopeKind::Proportional { factor: 2.0, partial_rotary_factor: 0.5 },
    ];
    let files = [
        json!({"rope_theta": 1e4, "rope_scaling": null}),
        json!({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 9.0}}),
        json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
        json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
        json!({"rope_parameters": {"rope_theta": 1e4}, "original_max_position_embeddings": 7}),
    ];
    for file in &files {
        for kind in &kinds {
            let before = read(file.clone()).unwrap();
            let config = before.clone().with_rope(RopeConfig::new(3e4, 8).with_kind(kind.clone()));
            let written = config.to_json_of_same_weights();
            let again = ModelConfig::from_json_str(&written.to_string(), "config.json").unwrap();
            assert_eq!(again.rope, config.rope, "{file} -> {written}");
            assert!(written.get("torch_dtype").is_none() && written.get("dtype").is_none());
            let newer = file.get("rope_parameters").is_some();
            assert_eq!(written.get("rope_parameters").is_some(), newer, "{written}");
        }
    }

    // Where the two lengths say another factor, the older shape would go by them.
    let odd = RopeKind::LongRope(LongRope { factor: 3.0, ..longrope });
    let config = read(files[0].clone()).unwrap();
    let config = config.with_rope(RopeConfig::new(1e4, 8).with_kind(odd));
    let written = config.to_json_of_same_weights();
    let again = ModelConfig::from_json_str(&written.to_string(), "config.json").unwrap();
    let tables = |c: &ModelConfig| {
        let rope = c.rope.init().unwrap();
        (rope.inv_freq(100), rope.inv_freq(500), rope.attention_factor())
    };
    assert_eq!(tables(&again), tables(&config));
}

#[test]
fn context_is_counted_once() {
    let reach = |max: usize, description: Value| {
        let mut file = shaped("flat", description, None);
        file["max_position_embeddings"] = json!(max);
        read(file).unwrap().max_context()
    };
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, ORIGINAL: 64});
    assert_eq!(reach(64, yarn.clone()), 256);
    assert_eq!(reach(256, yarn), 256);
    assert_eq!(reach(64, json!({"rope_type": "linear", "factor": 4.0})), 256);
    assert_eq!(reach(64, json!({"rope_type": "dynamic", "factor": 4.0})), 256);
    let llama3 = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, ORIGINAL: 64});
    assert_eq!(reach(512, llama3), 512);
}
