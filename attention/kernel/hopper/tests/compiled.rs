//! Every kind of kernel through NVRTC: no number may leave its register, and products may not wait for
//! each other.

use super::super::OPTIONS;
use super::super::rules::Rules;
use super::super::source::{Kernel, Numbers, Variant};
use super::{HEADS, variant};
use crate::cuda::cubin;

/// What masks look at, from nothing to all that goes together.
fn rules() -> Vec<Rules> {
    let of = |all: &[Rules]| all.iter().fold(Rules::default(), |sum, rule| sum.and(*rule, true));
    let (causal, window, sinks) = (Rules::CAUSAL, Rules::WINDOW, Rules::SINKS);
    let (labels, positions) = (Rules::LABELS, Rules::POSITIONS);
    let (stride, list) = (Rules::STRIDE, Rules::LIST);
    vec![
        of(&[]),
        causal,
        of(&[causal, window, sinks]),
        of(&[causal, labels]),
        of(&[causal, window, sinks, labels]),
        of(&[causal, labels, Rules::ANCHOR, positions]),
        of(&[causal, stride]),
        of(&[causal, list]),
        of(&[causal, stride, Rules::BLOCKS]),
        of(&[causal, list, Rules::BLOCKS]),
        of(&[causal, list, Rules::BLOCKS, Rules::SMALL]),
        of(&[causal, list, Rules::BLOCKS, Rules::SMALL, Rules::APART]),
        of(&[causal, window, sinks, labels, positions, list, Rules::BLOCKS, Rules::APART]),
        of(&[causal, stride, list, Rules::BLOCKS, Rules::SMALL]),
        of(&[causal, window, sinks, labels, positions, list, Rules::BLOCKS, Rules::SMALL]),
        of(&[causal, labels, Rules::ANCHOR, positions, list, Rules::BLOCKS]),
        of(&[causal, labels, stride, list, Rules::BLOCKS]),
        of(&[causal, window, sinks, labels, positions, list]),
        of(&[causal, stride, sinks, labels, positions, list]),
    ]
}

fn variants() -> Vec<Variant> {
    let mut all = Vec::new();
    for head in HEADS {
        for (kernel, alone) in [
            (Kernel::Forward, false),
            (Kernel::Keys, false),
            (Kernel::Keys, true),
            (Kernel::Queries, true),
        ] {
            if kernel == Kernel::Keys && !alone && Variant::always_alone(head) {
                continue;
            }
            let plain = Variant { alone, ..variant(kernel, head) };
            for of_mask in rules() {
                let rules = [of_mask, Rules::default(), Rules::default()];
                all.push(Variant { rules, ..plain });
            }
            let rules = [rules()[2], rules()[3], rules()[1]];
            for branches in 2..=Variant::most_branches(head) {
                all.push(Variant { rules, branches, ..plain });
            }
            all.push(Variant { numbers: Numbers::F16, ..plain });
        }
        for numbers in [Numbers::Bf16, Numbers::F16] {
            all.push(Variant { numbers, ..variant(Kernel::Combine, head) });
            if !Variant::always_alone(head) {
                all.push(Variant { numbers, ..variant(Kernel::Around, head) });
            }
        }
    }
    all
}

#[test]
fn every_kernel_compiles_without_spills() {
    if let Err(reason) = cubin::version() {
        return println!("skipped: {reason}");
    }
    let options = [OPTIONS[0], "--ptxas-options=-v"];
    let variants = variants();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for part in variants.chunks(variants.len().div_ceil(threads)) {
            scope.spawn(move || part.iter().for_each(|variant| check(variant, &options)));
        }
    });
}

fn check(variant: &Variant, options: &[&str]) {
    let (cubin, said) =
        cubin::compile(&variant.source(), options).unwrap_or_else(|e| panic!("{variant:?}: {e}"));
    assert!(cubin.starts_with(b"\x7fELF"));
    let told = said.matches("bytes spill stores").count();
    assert!(told > 0, "{variant:?}: the compiler does not tell of spills: {said}");
    let without = said.matches(" 0 bytes spill stores").count();
    assert_eq!(without, told, "{variant:?}: {said}");
    assert!(!said.contains("serialized"), "{variant:?}: {said}");
}
