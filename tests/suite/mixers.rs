//! Every mixer that comes with Longburn passes the conformance suite, and the suite can fail.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use longburn::Result;
use longburn::attention::*;
use longburn::positional::RopeConfig;
use longburn::streams::Streams;
use longburn::testing::{Check, CheckOptions, Outcome, check_mixer};

fn projections(device: &Device, heads: usize, kv_heads: usize) -> AttnProjections {
    let shape = AttnShape {
        hidden: 16,
        heads,
        kv_heads,
        head_dim: 6,
        qkv_bias: true,
        o_bias: true,
        qk_norm: Some(1e-5),
    };
    shape.init((0.3, 0.3), &Streams::new(7), 0, device)
}

fn options() -> CheckOptions {
    CheckOptions::new(16).with_rope(RopeConfig::new(10_000.0, 6))
}

#[test]
fn dense_conforms() {
    for (heads, kv_heads) in [(4, 4), (4, 2), (4, 1)] {
        let report = check_mixer(&options(), |d| {
            Ok(DenseConfig::new().init(projections(d, heads, kv_heads)))
        })
        .unwrap();
        assert!(report.passed(), "{report}");
        assert!(matches!(report.of(Check::Cache), Some(Outcome::Passed(_))), "{report}");
    }
}

#[test]
fn a_sliding_window_conforms() {
    let config = DenseConfig::new().with_window(Some(11));
    let report = check_mixer(&options(), |d| Ok(config.init(projections(d, 4, 2)))).unwrap();
    assert!(report.passed(), "{report}");
}

#[test]
fn longlora_conforms() {
    // Ragged groups of a fixed size, so that a document has the same groups packed and alone.
    let config = LongLoraConfig::new().with_group_size(8).with_ragged(true);
    for kv_heads in [4, 2, 1] {
        let report =
            check_mixer(&options(), |d| config.init(projections(d, 4, kv_heads), None)).unwrap();
        assert!(report.passed(), "{report}");
        assert!(matches!(report.of(Check::Segments), Some(Outcome::Passed(_))), "{report}");
    }
}

/// Wrong on purpose, in one way at a time.
#[derive(Module, Debug)]
struct Broken {
    inner: Dense,
    #[module(skip)]
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Leak,
    Detached,
    ForgetsState,
    IgnoresSegments,
    Future,
}

impl SequenceMixer for Broken {
    fn forward(
        &self,
        x: Tensor<3>,
        ctx: &MixContext<'_>,
        state: Option<State>,
    ) -> Result<MixOutput> {
        let state = if self.fault == Fault::ForgetsState { None } else { state };
        let [b, t, _] = x.dims();
        let flat = longburn::kernel::TokenMeta::contiguous(b, t, 0);
        let ctx = match self.fault {
            Fault::IgnoresSegments if ctx.tokens.has_segments() => {
                &MixContext { tokens: &flat, ..ctx.clone() }
            }
            _ => ctx,
        };
        let mut out = self.inner.forward(x.clone(), ctx, state)?;
        out.y = match self.fault {
            // Every token sees the mean over the row.
            Fault::Leak => out.y + x.mean_dim(1),
            Fault::Detached => out.y + x.detach(),
            Fault::Future if t > 1 => {
                let next =
                    Tensor::cat(vec![x.clone().narrow(1, 1, t - 1), x.narrow(1, t - 1, 1)], 1);
                out.y + next
            }
            _ => out.y,
        };
        Ok(out)
    }
}

#[test]
fn the_suite_notices_faults() {
    for (fault, check) in [
        (Fault::Leak, Check::Segments),
        (Fault::Leak, Check::Padding),
        (Fault::Detached, Check::Gradients),
        (Fault::ForgetsState, Check::Cache),
        (Fault::ForgetsState, Check::Chunks),
        (Fault::IgnoresSegments, Check::Segments),
        (Fault::Future, Check::Causality),
    ] {
        let options = options().with_lengths(vec![3]);
        let report = check_mixer(&options, |d| {
            Ok(Broken { inner: DenseConfig::new().init(projections(d, 4, 2)), fault })
        })
        .unwrap();
        assert!(
            matches!(report.of(check), Some(Outcome::Failed(_))),
            "{fault:?} was not noticed by {check:?}:\n{report}"
        );
    }
}
