//! Item 10: what cannot work is refused, by name.

use super::*;
use longburn::Error;
use longburn::models::{Decoder, ModelConfig, gates};

fn refusal(config: SeerConfig) -> String {
    let error = config.init(projections(&Device::flex(), 2), None).unwrap_err();
    assert!(matches!(error, Error::Config { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn settings_out_of_range_are_named() {
    let with = |select| SeerConfig::new().with_select(Some(select));
    for (config, field, value) in [
        (SeerConfig::new().with_block(0), "block", "0"),
        (SeerConfig::new().with_gate_dim(Some(7)), "gate_dim", "7"),
        (SeerConfig::new().with_gate_dim(Some(0)), "gate_dim", "0"),
        (SeerConfig::new().with_pools(&[], &[Pool::Avg]), "q_pool", "[]"),
        (SeerConfig::new().with_pools(&[Pool::Avg], &[Pool::Max; 2]), "k_pool", "max"),
        (with(Select::Threshold(1.0)), "select", "threshold 1"),
        (with(Select::Threshold(-0.1)), "select", "threshold -0.1"),
        (with(Select::Threshold(f64::NAN)), "select", "NaN"),
        (with(Select::NzRatio(0.0)), "select", "nz_ratio 0"),
        (with(Select::NzRatio(1.5)), "select", "nz_ratio 1.5"),
        (with(Select::Budget(0)), "select", "budget 0"),
        (SeerConfig::decode().with_select(Some(Select::NzRatio(0.5))), "select", "NzRatio"),
        (SeerConfig { loss_scale: 0.0, ..SeerConfig::new() }, "loss_scale", "0"),
        (SeerConfig { skip: Some(1.0), ..SeerConfig::new() }, "skip", "1"),
    ] {
        let text = refusal(config);
        assert!(text.contains(&format!("`{field}`")) && text.contains(value), "{text}");
    }
    for (config, field) in [
        (SeerConfig::new().with_block(1 << 40), "block"),
        (SeerConfig::new().with_gate_dim(Some(1 << 40)), "gate_dim"),
    ] {
        let error = MixerConfig::Seer(config).check_sizes(HIDDEN).unwrap_err().to_string();
        assert!(error.contains(&format!("`{field}`")), "{error}");
    }
    let odd = SeerConfig::decode().with_head_pool(HeadPool::Qavg).with_gate_dim(Some(4));
    let mixer = odd.init(projections(&Device::flex(), 2), None).unwrap();
    let error = mixer.with_gate(&Streams::new(0), 0).unwrap_err().to_string();
    assert!(error.contains("gate_dim") && error.contains("6"), "{error}");
}

/// Without weights of the gate nothing is chosen at random.
#[test]
fn missing_gates_are_told() {
    let device = Device::flex().autodiff();
    let tokens = TokenMeta::contiguous(1, 20, 0);
    let x = normal([1, 20, HIDDEN], 1);
    for (config, phase) in [(everything(), Phase::Infer), (SeerConfig::new(), Phase::Train)] {
        let mixer = config.init(projections(&device, 2), None).unwrap();
        let error = forward(&mixer, x.clone(), &tokens, phase, None).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
        assert!(error.to_string().contains("gate"), "{error}");
    }
    // Dense inference needs none.
    let mixer = SeerConfig::new().init(projections(&device, 2), None).unwrap();
    forward(&mixer, x, &tokens, Phase::Infer, None).unwrap();

    let config = ModelConfig::llama(61, 24, 2, 4);
    let dense = Decoder::new(&config, &MixerConfig::Dense, 1, &Device::flex()).unwrap();
    assert!(gates::prepare(dense.clone(), 0).unwrap_err().to_string().contains("seer"));
    let dir = tempfile::tempdir().unwrap();
    assert!(gates::save(&dense, &SeerConfig::new(), dir.path()).is_err());
    let seer = dense.swap_mixer(MixerConfig::Seer(everything())).unwrap();
    let error = gates::load(seer, dir.path()).unwrap_err().to_string();
    assert!(error.contains(gates::GATE_FILE), "{error}");
}

/// Caches that a gate cannot follow, and states of other mixers.
#[test]
fn caches_that_cannot_be_followed_are_refused() {
    let device = Device::flex().autodiff();
    let budget = SeerConfig::decode().with_block(8).with_select(Some(Select::Budget(16)));
    let mixer = seer(&budget, &device, 2).unwrap();
    let x = normal([1, 20, HIDDEN], 1);
    for tokens in [
        TokenMeta::packed(&[vec![12, 8]], 20).unwrap(),
        TokenMeta::contiguous(1, 20, 3),
        TokenMeta::new(1, 20, (0..20).collect(), [vec![0; 9], vec![-1], vec![0; 10]].concat())
            .unwrap(),
    ] {
        let error = forward(&mixer, x.clone(), &tokens, Phase::Infer, Some(None)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    }
    let tokens = TokenMeta::contiguous(1, 20, 0);
    let state = forward(&mixer, x.clone(), &tokens, Phase::Infer, Some(None)).unwrap().state;
    assert_eq!(state.as_ref().unwrap().len(), 20);
    let dense = DenseConfig::new().init(projections(&device, 2));
    let next = TokenMeta::contiguous(1, 20, 20);
    let error = forward(&dense, x.clone(), &next, Phase::Infer, Some(state.clone())).unwrap_err();
    assert!(error.to_string().contains("compressed keys"), "{error}");
    let plain = forward(&dense, x.clone(), &tokens, Phase::Infer, Some(None)).unwrap().state;
    assert!(forward(&mixer, x.clone(), &next, Phase::Infer, Some(plain)).is_err());

    // A state without its graph is the same state.
    let state = state.unwrap();
    let again = state.from_tensors(state.tensors().into_iter().map(Tensor::detach).collect());
    let again = again.unwrap();
    assert_eq!((again.len(), again.bytes()), (state.len(), state.bytes()));
    // Other tensors are those that it has then.
    let doubled: Vec<_> = state.tensors().into_iter().map(|x| x.mul_scalar(2.0)).collect();
    let other = state.from_tensors(doubled.clone()).unwrap();
    for (got, want) in other.tensors().into_iter().zip(doubled) {
        assert_eq!(host(got), host(want));
    }
    assert!(state.from_tensors(Vec::new()).is_err());
    forward(&mixer, x.clone(), &next, Phase::Infer, Some(Some(again))).unwrap();
    assert!(forward(&mixer, x, &next, Phase::Train, Some(None)).is_err());
}

/// A document in pieces has no blocks.
#[test]
fn documents_in_pieces_are_refused() {
    let segment = [vec![0; 5], vec![1; 5], vec![0; 5]].concat();
    let tokens = TokenMeta::new(1, 15, (0..15).collect(), segment).unwrap();
    assert!(matches!(BlockLayout::of(&tokens, 4), Err(Error::Unsupported { .. })));
}
