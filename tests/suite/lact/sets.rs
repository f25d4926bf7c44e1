//! LaCT's form for sets.

use super::*;

/// The set form as its authors have it.
fn set_rule() -> UpdateRule {
    UpdateRule {
        orthogonal: Some(NewtonSchulz::LACT_SET),
        momentum: false,
        norm: WeightNorm::Post,
        detach_norms: true,
    }
}

#[test]
fn a_set_is_read_with_what_all_of_it_taught() {
    let (n, d, d_h, t) = (2, 6, 9, 12);
    let w = [(d_h, d, 1), (d, d_h, 2), (d_h, d, 3)].map(|(a, b, s)| normal([n, 1, a, b], s));
    let weights = FastWeights::new(w, &set_rule());
    let learner = Learner::new(set_rule(), &weights);
    let tokens = || [4, 5, 6].map(|s| normal([n, 1, t, d], s));
    let rates = || normal([n, 1, t, 3], 7).abs();
    let run = |tokens, rates, ops: &[SetOp]| {
        let (read, after) = run_ops(weights.clone(), &learner, tokens, rates, ops).unwrap();
        (read.map(host), after)
    };

    // Learn from the first eight, read all: the same by hand.
    let (read, after) = run(tokens(), rates(), &[SetOp::update(0..8), SetOp::apply(0..t)]);
    let [q, k, v] = tokens();
    let first = |x: &Tensor<4>| x.clone().narrow(2, 0, 8);
    let taught = learner.update(weights.clone(), first(&k), first(&v), first(&rates()));
    assert_eq!(read.unwrap(), host(taught.apply(q.clone())));

    // The order within the set is nobody's business.
    let turned = |x: Tensor<4>| {
        Tensor::cat(
            vec![x.clone().narrow(2, 5, 3), x.clone().narrow(2, 0, 5), x.narrow(2, 8, 4)],
            2,
        )
    };
    let (other, _) =
        run(tokens().map(turned), turned(rates()), &[SetOp::update(0..8), SetOp::apply(0..t)]);
    let (read, _) = run(tokens(), rates(), &[SetOp::update_and_apply(0..8), SetOp::apply(8..t)]);
    let read = Tensor::from_data(TensorData::new(read.unwrap(), [n, 1, t, d]), &device());
    let r = ratio(&other.unwrap(), &host(turned(read)));
    assert!(r < 1e-4, "{r:.1e}");

    // What was learned serves tokens that come later.
    let (later, _) = run_ops(after, &learner, tokens(), rates(), &[SetOp::apply(8..t)]).unwrap();
    let now = taught.apply(q.narrow(2, 8, t - 8));
    assert_eq!(host(later.unwrap()), host(now));
    for ops in [vec![SetOp::apply(3..3)], vec![SetOp::update(0..t + 1)]] {
        let error = run_ops(weights.clone(), &learner, tokens(), rates(), &ops).err().unwrap();
        assert!(error.to_string().contains("operation 0"), "{error}");
    }
}

/// Reading chunk by chunk before learning from it is the form for sequences.
#[test]
fn operations_in_the_order_of_a_sequence_equal_the_sequence_form() {
    let (t, d) = (3 * CHUNK + 2, HIDDEN / 2);
    for (name, config) in kinds() {
        let initial = layer(&config).initial();
        let learner = Learner::new(config.rule(), &initial);
        let tokens = || [1, 2, 3].map(|s| normal([1, 2, t, d], s));
        let rates = || normal([1, 2, t, 4], 4).abs();
        let mut ops = Vec::new();
        for start in (0..t).step_by(CHUNK) {
            let end = (start + CHUNK).min(t);
            ops.push(SetOp::apply(start..end));
            ops.extend((end < t).then(|| SetOp::update(start..end)));
        }
        let (read, _) = run_ops(initial.clone(), &learner, tokens(), rates(), &ops).unwrap();
        let want = read_and_learn(&initial, &learner, tokens(), rates(), CHUNK).unwrap();
        assert!(ratio(&host(read.unwrap()), &host(want)) <= 1e-6, "{name}");
    }
}
