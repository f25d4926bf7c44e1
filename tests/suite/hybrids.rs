//! Layers with different mixers: schedules, what is said of bad ones, and adapting models of which
//! some layers have no q, k, v and o.

use crate::tiny::{self, ids, logits, ratio};
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use longburn::attention::{
    AttnProjections, DenseConfig, HasProjections, Layers, LongLoraConfig, MixContext, MixOutput,
    MixerConfig, MixerSchedule, SequenceMixer, State,
};
use longburn::kernel::TokenMeta;
use longburn::models::keymap::params;
use longburn::models::lora::{self, LoraConfig, Target};
use longburn::models::{
    Blocks, Decoder, ForwardOptions, ModelConfig, SaveOptions, ids_tensor, peft,
};
use longburn::training::Recipe;
use longburn::{Error, Result};
use std::ops::Range;

fn sparse() -> MixerConfig {
    MixerConfig::LongLora(LongLoraConfig::new().with_group_size(4).with_ragged(true))
}

/// Layers that a text names, of so many.
fn named(text: &str, layers: usize) -> Result<Vec<usize>> {
    let schedule =
        MixerSchedule::new(MixerConfig::Dense).with_layers(Layers::parse(text), sparse());
    let mixers = schedule.resolve(&vec![MixerConfig::Dense; layers])?;
    Ok((0..layers).filter(|layer| mixers[*layer] == sparse()).collect())
}

#[test]
fn words_and_ranges_name_layers() {
    for (text, layers, expected) in [
        ("middle third", 32, (10..21).collect::<Vec<_>>()),
        ("first third", 32, (0..10).collect()),
        ("last third", 32, (21..32).collect()),
        ("middle third", 3, vec![1]),
        ("middle third", 2, vec![0]),
        ("first half", 5, vec![0, 1]),
        ("last half", 5, vec![2, 3, 4]),
        ("even", 5, vec![0, 2, 4]),
        ("odd", 5, vec![1, 3]),
        ("6, 1-3,0", 8, vec![0, 1, 2, 3, 6]),
    ] {
        assert_eq!(named(text, layers).unwrap(), expected, "{text} of {layers}");
    }
    // The three thirds are all layers, each once.
    for layers in 3..40 {
        let thirds =
            ["first third", "middle third", "last third"].map(|t| named(t, layers).unwrap());
        assert_eq!(thirds.concat(), (0..layers).collect::<Vec<_>>(), "{layers}");
    }
}

#[test]
fn a_schedule_comes_back_from_the_mixers_that_it_leads_to() {
    let range = |r: Range<usize>, mixer: MixerConfig| vec![mixer; r.len()];
    let mixers =
        [range(0..3, sparse()), range(3..4, MixerConfig::Dense), range(4..6, sparse())].concat();
    let schedule = MixerSchedule::of(&mixers);
    assert_eq!(schedule.to_string(), "longlora in 0-2, 4-5; dense in 3");
    let text = serde_json::to_string(&schedule).unwrap();
    let again: MixerSchedule = serde_json::from_str(&text).unwrap();
    assert_eq!(again.resolve(&range(0..6, MixerConfig::Dense)).unwrap(), mixers);
    assert_eq!(MixerSchedule::of(&range(0..2, sparse())), MixerSchedule::new(sparse()));
    let places: Vec<String> = (0..6).map(|layer| schedule.place(layer, 6).unwrap()).collect();
    let entries = [0, 0, 0, 1, 0, 0].map(|entry| format!("mixer[{entry}]"));
    assert_eq!(places, entries);
}

/// A recipe for a new model of four layers with these lines for its mixers.
fn recipe(mixers: &str) -> Result<Recipe> {
    let text = format!(
        "[model.new]\nvocab_size = 300\nhidden_size = 16\nlayers = 4\nheads = 2\n{mixers}\n\
         [data]\ntrain = \"t\"\n[train]\nsteps = 1\nlength = 8\nlr = 1e-3\n[output]\ndir = \"o\"\n"
    );
    Recipe::parse(&text, "run.toml")
}

#[test]
fn recipes_list_mixers_by_layers() {
    let text = "[[mixer]]\nname = \"longlora\"\ngroup_size = 4\nlayers = [0, 3]\n\
                [[mixer]]\nname = \"dense\"";
    let recipe = recipe(text).unwrap();
    let config = recipe.model_config().unwrap();
    let names: Vec<_> = recipe.mixers(&config).unwrap().iter().map(|mixer| mixer.name()).collect();
    assert_eq!(names, ["longlora", "dense", "dense", "longlora"]);
    // What is sparse in training only is nothing that a checkpoint remembers.
    assert!(config.has_own_mixers());
}

#[test]
fn bad_lists_of_mixers_are_told_by_index() {
    let one = |layers: &str| {
        format!("[[mixer]]\nname = \"dense\"\n[[mixer]]\nname = \"longlora\"\nlayers = {layers}")
    };
    let dense = |layers: &str| format!("[[mixer]]\nname = \"dense\"\nlayers = {layers}\n");
    // Lines are counted from the one of [model.new]; the list begins in the sixth.
    for (mixers, said) in [
        (
            one("[0, 4]"),
            "line 10: `mixer[1].layers` is [0, 4]; expected layers below 4, which 4 is not",
        ),
        (
            one("[1, 1]"),
            "line 10: `mixer[1].layers` is [1, 1]; expected every layer once, 1 stands twice",
        ),
        (one("[]"), "line 10: `mixer[1].layers` is []; expected at least one of the 4 layers"),
        (
            one("\"2-9\""),
            "line 10: `mixer[1].layers` is \"2-9\"; expected layers below 4, which 9 is not",
        ),
        (
            one("\"3-1\""),
            "line 10: `mixer[1].layers` is \"3-1\"; expected numbers, ranges such as 4-7",
        ),
        (one("\"outer\""), "line 10: `mixer[1].layers` is \"outer\"; expected numbers, ranges"),
        (one("\"0-18446744073709551615\""), "line 10: `mixer[1].layers`"),
        (one("true"), "line 10: mixer[1]: invalid `layers`, expected a list of numbers"),
        (one("\"0\"\nzzz = 1"), "line 11: mixer[1]: unknown field `zzz`"),
        (one("\"0\"\ngroup_size = \"x\""), "line 8: mixer[1]: invalid type: string"),
        (one("\"0\"\ngroup_size = 3"), "line 11: `mixer[1].group_size` is 3"),
        (
            dense("[0, 1]") + &dense("[1, 2, 3]"),
            "line 11: `mixer[1].layers` is [1, 2, 3]; expected layers of no other entry; mixer[0] \
             has layer 1",
        ),
        (dense("[0, 2]"), "expected a mixer for the layers 1, 3"),
        (
            "[[mixer]]\nname = \"dense\"\n[[mixer]]\nname = \"longlora\"".into(),
            "`mixer[1].layers` is missing; expected layers; mixer[0] has the rest already",
        ),
        (
            dense("\"0-3\"") + "[[mixer]]\nname = \"longlora\"",
            "`mixer[1].layers` is missing; expected layers; the other entries have all 4",
        ),
        (
            dense("[0]") + "[[mixer]]\nname = \"mamba1\"\nexpand = 9223372036854775807",
            "line 11: `mixer[1].expand` is 18446744073709551615; expected from 1 to",
        ),
        (
            dense("[0]") + "[[mixer]]\nname = \"mamba2\"\nn_groups = 0",
            "line 11: `mixer[1].n_groups` is 0; expected from 1 to",
        ),
        ("[[mixer]]\nlayers = [0]".into(), "mixer[0]: missing field `name`"),
        (
            dense("[0]") + "[[mixer]]\nname = \"dense\"\nwindow = 4",
            "line 11: mixer[1]: unknown field `window`",
        ),
        (
            "[mixer]\nname = \"anchor\"\nengine = \"shared\"".into(),
            "line 8: unknown field `engine`",
        ),
        ("[mixer]\nname = \"dense\"\nwindow = 4".into(), "line 8: unknown field `window`"),
        ("[[mixer]]\nname = \"conv\"".into(), "line 6: mixer[0]: unknown variant `conv`"),
    ] {
        let error = recipe(&mixers).unwrap_err().to_string();
        assert!(error.contains(said), "{mixers}\n{error}\n{said}");
    }
    let error = serde_json::from_str::<MixerSchedule>("[]").unwrap_err().to_string();
    assert!(error.contains("at least one mixer"), "{error}");
}

/// Outputs in training, in which LongLoRA is sparse.
fn in_training(model: &Decoder, len: usize) -> Vec<f32> {
    let tokens = TokenMeta::contiguous(1, len, 0);
    let input = ids_tensor(&ids(len), 1, &Device::flex());
    let out = model.forward_ids(input, &tokens, &ForwardOptions::train(), vec![]).unwrap();
    out.last.into_data().iter::<f32>().collect()
}

#[test]
fn each_layer_runs_its_own_mixer() {
    let config = ModelConfig::llama(61, 24, 3, 4).with_kv_heads(2).with_max_positions(64);
    let dense = tiny::model(&config, &Device::flex());
    let schedule =
        MixerSchedule::new(sparse()).with_layers(Layers::Numbers(vec![1]), MixerConfig::Dense);
    let mixed = dense.clone().swap_mixer(&schedule).unwrap();
    let lines = mixed.explain(&ForwardOptions::train(), &Device::flex());
    let shifted: Vec<bool> = lines.iter().map(|line| line.contains("shifted")).collect();
    assert_eq!(shifted, [true, false, true], "{lines:?}");
    let repeats = ForwardOptions::train().with_deterministic(true);
    let said = |options| {
        let lines = mixed.explain(options, &Device::flex());
        lines.iter().filter(|line| line.contains("the same bits in every run")).count()
    };
    assert_eq!((said(&repeats), said(&ForwardOptions::train())), (3, 0));
    let all = dense.clone().swap_mixer(sparse()).unwrap();
    let [mixed_out, all_out, dense_out] = [&mixed, &all, &dense].map(|m| in_training(m, 19));
    assert!(ratio(&mixed_out, &all_out) > 1e-3 && ratio(&mixed_out, &dense_out) > 1e-3);
    // The same mixers, one call per layer.
    let place = all.place(&TokenMeta::contiguous(1, 19, 0), &Device::flex());
    let mut x = all.embed(ids_tensor(&ids(19), 1, &Device::flex()));
    for (i, model) in [&all, &dense, &all].into_iter().enumerate() {
        x = model.block(i, x, &place, &ForwardOptions::train(), None).unwrap().y;
    }
    let by_hand: Vec<f32> = all.finish(x).into_data().iter::<f32>().collect();
    assert_eq!(mixed_out, by_hand);

    // In inference all are dense: what is saved is a plain Llama.
    let dir = tempfile::tempdir().unwrap();
    mixed.save(dir.path(), &SaveOptions::default()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    assert!(!text.contains("longburn"), "{text}");
    let back = Decoder::load(dir.path(), MixerSchedule::Own, &Device::flex()).unwrap();
    assert_eq!(logits(&back, &ids(9)), logits(&mixed, &ids(9)));
}

/// Attention, or a mean of all tokens so far with a weight per channel.
#[derive(Module, Debug)]
struct Partly {
    proj: Option<AttnProjections>,
    scale: Option<Param<Tensor<1>>>,
}

impl SequenceMixer for Partly {
    fn forward(
        &self,
        x: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        match (&self.proj, &self.scale) {
            (Some(proj), _) => DenseConfig::new().init(proj.clone()).forward(x, ctx, state),
            (None, Some(scale)) => {
                let count: Vec<f32> = (1..=x.dims()[1]).map(|n| n as f32).collect();
                let count = Tensor::<1>::from_data(&count[..], &x.device());
                let mean = x.cumsum(1) / count.reshape([1, -1, 1]);
                Ok(MixOutput::new(mean * scale.val().unsqueeze()))
            }
            _ => Err(Error::shape("Partly", "is empty")),
        }
    }
}

impl HasProjections for Partly {
    fn projections(&self) -> Option<&AttnProjections> {
        self.proj.as_ref()
    }

    fn projections_mut(&mut self) -> Option<&mut AttnProjections> {
        self.proj.as_mut()
    }
}

/// Attention in the layers for which `attends` holds.
fn partly(attends: fn(usize) -> bool) -> Decoder<Partly> {
    let config = tiny::llama(false);
    let model = Decoder::with_mixer(&config, 1, &Device::flex(), |layer, proj| {
        let scale = Param::from_tensor(Tensor::ones([24], &Device::flex()));
        Ok(match attends(layer) {
            true => Partly { proj: Some(proj), scale: None },
            false => Partly { proj: None, scale: Some(scale) },
        })
    });
    tiny::scattered(model.unwrap(), 2, |_| true)
}

#[test]
fn only_layers_with_a_projection_are_adapted() {
    let base = partly(|layer| layer == 1);
    let config = LoraConfig::new().with_rank(2).with_targets(&[Target::Q, Target::Up]);
    let adapted = lora::apply(base.clone(), &config).unwrap();
    let updated: Vec<String> =
        params(&adapted).into_iter().map(|p| p.path).filter(|p| p.ends_with(".lora.a")).collect();
    assert_eq!(updated.len(), 3, "{updated:?}");
    assert!(updated.iter().any(|path| path.starts_with("layers.1.self_attn.")), "{updated:?}");
    let adapted = tiny::scattered(adapted, 3, |path| path.contains(".lora."));

    let dir = tempfile::tempdir().unwrap();
    peft::save_adapter(&adapted, dir.path(), "base").unwrap();
    let back = peft::load_adapter(base.clone(), dir.path()).unwrap();
    let expected = logits(&adapted, &ids(9));
    assert_eq!(logits(&back, &ids(9)), expected);
    assert!(ratio(&logits(&base, &ids(9)), &expected) > 1e-2);
    assert!(ratio(&logits(&lora::merge(adapted), &ids(9)), &expected) < 1e-5);
}

#[test]
fn a_projection_that_no_layer_has_is_refused() {
    let base = partly(|_| false);
    match lora::apply(base.clone(), &LoraConfig::new()) {
        Err(Error::Config { field, value, expected, .. }) => {
            assert_eq!((&*field, &*value), ("targets", "q"));
            assert!(expected.contains("mixers have no such projection"), "{expected}");
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    let config = LoraConfig::new().with_targets(&[Target::Down]);
    assert!(lora::apply(base, &config).is_ok());
}
