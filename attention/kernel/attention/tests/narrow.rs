//! Inputs in 16 bits.

use super::*;

#[test]
fn half_precision_stays_close() {
    for implementation in implementations() {
        let case = square(
            "bf16",
            (1, 4, 2),
            100,
            16,
            MaskSpec::causal(),
            TokenMeta::contiguous(1, 100, 0),
        );
        let want = run(&case, Implementation::Reference, DType::F64);
        let got = run(&case, implementation, DType::BF16);
        assert!(ratio(got.out, want.out) < 1e-2);
        for (got, want) in got.grads.into_iter().zip(want.grads) {
            assert!(ratio(got, want) < 2e-2);
        }
    }
}

/// Inputs in 16 bits; scores and lse have those of f32.
#[test]
fn lse_is_as_exact_as_f32_where_inputs_are_not() {
    let mask = Mask::causal(1, 70, 2);
    let of = |implementation, dtype| {
        let x = |shape, seed| random(shape, seed).cast(DType::BF16).cast(dtype);
        let (q, k) = (x([1, 2, 70, 160], 2), x([1, 1, 70, 160], 3));
        let branch = Branch { q, k, mask: mask.clone() };
        let options = AttentionOptions::default().with_implementation(implementation);
        masked_attention(&[branch], x([1, 1, 70, 64], 1), &options).unwrap().lse
    };
    for implementation in implementations() {
        let want = of(Implementation::Reference, DType::F64);
        let r = ratio(of(implementation, DType::BF16), want);
        assert!(r < 1e-5, "{implementation:?}: {r:e}");
    }
}
