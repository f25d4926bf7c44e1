//! What can be said of the kernels without a card.

use super::cut::{self, Row, SHORTEST};
use super::source::{Call, Form, LONGEST, SPAN};

fn forms() -> Vec<Form> {
    let of = |plain, options, tracked, keep_state| Form {
        plain,
        softplus: options,
        skip: options,
        gate: options,
        tracked,
        keep_state,
    };
    let mut all = Vec::new();
    for plain in [false, true] {
        for options in [false, true] {
            all.push(of(plain, options, true, false));
        }
    }
    all.extend([of(true, true, false, true), of(false, false, true, true)]);
    all
}

/// Forms differ in their text, which is what their cubins are kept by.
#[test]
fn forms_have_texts_of_their_own() {
    let mut texts: Vec<String> = forms().into_iter().map(Form::source).collect();
    texts.sort();
    texts.dedup();
    assert_eq!(texts.len(), forms().len());
    assert!(size_of::<Call>() <= 4 << 10);
}

/// No number of a loop may leave its register; some that the gradients need once per span do.
#[cfg(feature = "cuda-nvrtc")]
#[test]
fn every_form_compiles_without_spills() {
    use crate::cuda::cubin;
    if let Err(reason) = cubin::version() {
        return println!("skipped: {reason}");
    }
    for form in forms() {
        let options = ["--gpu-architecture=sm_90", "--ptxas-options=-v"];
        let (cubin, said) =
            cubin::compile(&form.source(), &options).unwrap_or_else(|e| panic!("{form:?}: {e}"));
        assert!(cubin.starts_with(b"\x7fELF"));
        let stores = said.split(" bytes spill stores").map(|before| {
            before.rsplit([' ', ',']).next().and_then(|bytes| bytes.parse::<usize>().ok())
        });
        let stores: Vec<usize> = stores.flatten().collect();
        assert_eq!(stores.len(), form.entries().len(), "{form:?}: {said}");
        assert!(stores.iter().sum::<usize>() <= 8, "{form:?}: {said}");
    }
}

/// Rows are cut where they are too few for a card, and not where they fill it.
#[test]
fn rows_are_cut_where_they_are_too_few() {
    let whole = |len| Row { len, whole: true };
    let both = |row, groups| [cut::forward(row, groups, 132), cut::backward(row, groups, 132)];
    assert_eq!(both(whole(4096), 12), [96, 192]);
    assert_eq!(both(whole(2048), 264), [2048, 2048]);
    assert_eq!(both(whole(100), 528), [100, 100]);
    // Twenty-four workgroups more than the card has at a time would take as long again.
    assert_eq!(cut::backward(whole(2048), 288, 132), 256);
    for groups in [1, 7, 48, 132, 192, 264, 300, 5000] {
        for len in [1, 16, 100, 2048, 1 << 20] {
            for chunk in both(Row { len, whole: false }, groups) {
                assert!((SHORTEST..=LONGEST).contains(&chunk) && chunk % SPAN == 0, "{chunk}");
            }
        }
    }
}

#[cfg(feature = "flex")]
mod emulated {
    use super::super::source::{ADDRESSES, BACKWARD, Call, FORWARD, Form, SPAN, STATES, WIDE};
    use crate::cuda::emulated::{Launch, Memory, Program};
    use crate::scan::tests::{Pass, broken, compare, crowded_steps, host, leaf};
    use crate::{Implementation, SelectiveScan, Step, Steps, selective_scan};
    use burn::tensor::{DType, Tensor};

    /// Rows, tokens, channels, states, groups, and tokens of a chunk forward and backward.
    type Sizes = [usize; 7];

    const SKIPPED: f64 = f64::NAN;

    /// The tensors of a case in f64, as [`selective_scan`] takes them.
    struct Case {
        sizes: Sizes,
        form: Form,
        steps: Steps,
        rows: [Tensor<3>; 4],
        of_group: [Tensor<4>; 2],
        a: Tensor<2>,
        d: Tensor<1>,
        /// h0, and the weights of the state.
        states: [Tensor<3>; 2],
    }

    impl Case {
        fn new(sizes: Sizes, form: Form) -> Self {
            let [batch, len, channels, n, groups, ..] = sizes;
            let (rows, kind) = ([batch, len, channels], DType::F64);
            let delta = leaf(rows, 2, if form.softplus { 2.0 } else { 0.5 }, kind);
            let delta = if form.softplus { delta } else { delta.inner().abs() };
            let a = leaf([channels, n], 3, 1.5, kind).inner().exp().neg();
            let of_group = |seed| leaf([batch, len, groups, n], seed, 1.0, kind);
            let of_state = |seed| leaf([batch, channels, n], seed, 1.0, kind);
            Self {
                sizes,
                form,
                steps: match batch {
                    _ if form.plain => Steps::plain(batch, len),
                    4 => crowded_steps(len),
                    _ => broken(len),
                },
                rows: [
                    leaf(rows, 1, 1.0, kind),
                    Tensor::from_inner(delta).require_grad(),
                    leaf(rows, 7, 3.0, kind),
                    leaf(rows, 10, 1.0, kind),
                ],
                of_group: [of_group(4), of_group(5)],
                a: Tensor::from_inner(a).require_grad(),
                d: leaf([channels], 6, 1.0, kind),
                states: [of_state(9), of_state(11)],
            }
        }

        fn reference(&self) -> Pass {
            let [u, delta, z, weights] = self.rows.clone();
            let [b, c] = self.of_group.clone();
            let [h0, of_state] = self.states.clone();
            let (a, d, form) = (self.a.clone(), self.d.clone(), self.form);
            let (y, h) = selective_scan(SelectiveScan {
                d: form.skip.then(|| d.clone()),
                z: form.gate.then(|| z.clone()),
                softplus: form.softplus,
                h0: Some(h0.clone()),
                steps: Some(self.steps.clone()),
                keep_state: true,
                implementation: Implementation::Reference,
                ..SelectiveScan::new(u.clone(), delta.clone(), a.clone(), b.clone(), c.clone())
            })
            .unwrap();
            let h = h.unwrap();
            let mut loss = (y.clone() * weights.detach()).sum();
            if form.keep_state {
                loss = loss + (h.clone() * of_state.detach()).sum();
            }
            let grads = loss.backward();
            let turned = |x: Tensor<3>| host(Tensor::from_inner(x.inner().swap_dims(1, 2)));
            let of_d = d.grad(&grads).map(|x| host(Tensor::from_inner(x)));
            let of = |x: &Tensor<3>| x.grad(&grads).map(|x| host(Tensor::from_inner(x)));
            let of_group = |x: &Tensor<4>| host(Tensor::from_inner(x.grad(&grads).unwrap()));
            let of_a = Tensor::<2>::from_inner(a.grad(&grads).unwrap().transpose());
            vec![
                ("y", host(y)),
                ("h", if form.keep_state { turned(h) } else { Vec::new() }),
                ("du", of(&u).unwrap()),
                ("ddelta", of(&delta).unwrap()),
                ("dz", of(&z).unwrap_or_default()),
                ("da", host(of_a)),
                ("db", of_group(&b)),
                ("dc", of_group(&c)),
                ("dd", of_d.unwrap_or_default()),
                ("dh0", turned(Tensor::from_inner(h0.grad(&grads).unwrap()))),
            ]
        }

        /// What the kernels make of it, where there is a compiler; padding holds no numbers.
        fn emulated(&self) -> Option<Pass> {
            let [batch, len, channels, n, groups, forward, backward] = self.sizes;
            let form = self.form;
            let entries = form.entries();
            let names: Vec<&str> = entries.iter().map(|(name, _)| *name).collect();
            let name = format!("selective-{}-{}", form.plain as u8, form.gate as u8);
            let program = Program::new(&name, &form.text(""), &names, ADDRESSES)?;
            let mut memory = Memory::default();
            let skipped = |x: Vec<f64>| -> Vec<f64> {
                let width = x.len() / (batch * len);
                let steps = (0..batch).flat_map(|row| self.steps.row(row).iter());
                let is = steps.flat_map(|step| std::iter::repeat_n(*step == Step::Skip, width));
                x.into_iter().zip(is).map(|(x, is)| if is { SKIPPED } else { x }).collect()
            };
            let turned =
                |x: &Tensor<3>| host(Tensor::from_inner(x.clone().inner().swap_dims(1, 2)));
            let [u, delta, z, weights] = self.rows.clone().map(|x| skipped(host(x)));
            let [b, c] = self.of_group.clone().map(|x| skipped(host(x)));
            let of_state = turned(&self.states[1]);
            let (of_rows, of_states) = (len * channels, n * channels);
            let mut dout = Vec::new();
            for row in 0..batch {
                dout.extend(&weights[row * of_rows..(row + 1) * of_rows]);
                if form.keep_state {
                    dout.extend(&of_state[row * of_states..(row + 1) * of_states]);
                }
            }
            let codes = |step: &Step| match step {
                Step::Next => 0u8,
                Step::First => 1,
                Step::Skip => 2,
            };
            let steps = (0..batch).flat_map(|row| self.steps.row(row).iter().map(codes)).collect();
            let shape = [batch, len, channels];
            let small = |chunk| Call::new(shape, n, groups, chunk, form);
            let (calls, spans) = ([small(forward), small(backward)], len.div_ceil(SPAN));
            let chunks = len.div_ceil(forward.min(backward));
            let rows = calls[0].rows as usize;
            let blocks = calls[0].blocks as usize;
            let (first, dout) = (memory.floats(&turned(&self.states[0])), memory.floats(&dout));
            let all = Call {
                u: memory.floats(&u),
                delta: memory.floats(&delta),
                z: memory.floats(&z),
                a: memory
                    .floats(&host(Tensor::<2>::from_inner(self.a.clone().inner().transpose()))),
                d: memory.floats(&host(self.d.clone())),
                b: memory.floats(&b),
                c: memory.floats(&c),
                first,
                dout,
                steps: memory.add(steps),
                states: memory.empty(batch * spans * of_states),
                carry: memory.empty(batch * chunks * of_states),
                totals: memory.empty(batch * chunks * channels),
                cuts: memory.empty(batch * chunks),
                out: memory.empty(batch * rows * channels),
                du: memory.empty(batch * of_rows),
                ddelta: memory.empty(batch * of_rows),
                dz: memory.empty(batch * of_rows),
                dh0: memory.empty(batch * of_states),
                da: memory.empty(batch * chunks * of_states),
                dd: memory.empty(batch * chunks * channels),
                shared: memory.empty(blocks * batch * groups * len * 2 * STATES),
                sum_a: memory.empty(of_states),
                sum_d: memory.empty(channels),
                sum_b: memory.empty(batch * len * groups * n),
                sum_c: memory.empty(batch * len * groups * n),
                ..Call::default()
            };
            let mut launches = Vec::new();
            for (pass, sizes) in [&FORWARD[..], &BACKWARD[..]].iter().zip(calls) {
                let Call { batch, len, channels, states_n, groups, blocks, .. } = sizes;
                let Call { chunk, chunks, slots, per_chunk, rows, .. } = sizes;
                let back = chunk as usize == backward && pass.len() == BACKWARD.len();
                let call = Call {
                    first: if back { dout + 4 * of_rows as u64 } else { first },
                    of_row: if back { rows * channels } else { states_n * channels } as i64,
                    batch,
                    len,
                    channels,
                    states_n,
                    groups,
                    blocks,
                    chunk,
                    chunks,
                    slots,
                    per_chunk,
                    rows,
                    ..all
                };
                for kernel in *pass {
                    let (grid, _) = call.grid(*kernel);
                    launches.push(Launch::new(*kernel as usize, grid, WIDE as u32, &call));
                }
            }
            program.run(&mut memory, &launches);
            let out = memory.read(all.out);
            let cut = |from: usize, to: usize| -> Vec<f64> {
                let width = rows * channels;
                (0..batch)
                    .flat_map(|row| out[row * width + from..row * width + to].to_vec())
                    .collect()
            };
            let of = |is: bool, address| if is { memory.read(address) } else { Vec::new() };
            Some(vec![
                ("y", cut(0, of_rows)),
                ("h", cut(of_rows, rows * channels)),
                ("du", memory.read(all.du)),
                ("ddelta", memory.read(all.ddelta)),
                ("dz", of(form.gate, all.dz)),
                ("da", memory.read(all.sum_a)),
                ("db", memory.read(all.sum_b)),
                ("dc", memory.read(all.sum_c)),
                ("dd", of(form.skip, all.sum_d)),
                ("dh0", memory.read(all.dh0)),
            ])
        }
    }

    fn check(sizes: Sizes, form: Form) {
        let case = Case::new(sizes, form);
        match case.emulated() {
            Some(got) => compare(&format!("{sizes:?} {form:?}"), &got, &case.reference()),
            None => println!("skipped: there is no C++ compiler"),
        }
    }

    /// Whole rows and such in chunks that are cut off, documents and padding, groups, blocks of channels that are cut
    /// off, channels by fours and others.
    #[test]
    fn kernels_equal_the_reference_where_they_are_emulated() {
        let of = |plain, options, keep_state| Form {
            plain,
            softplus: options,
            skip: options,
            gate: options,
            tracked: true,
            keep_state,
        };
        check([2, 71, 6, 4, 1, 32, 48], of(true, true, true));
        check([2, 65, 10, 3, 5, 32, 32], of(false, true, false));
        check([2, 40, 130, 16, 1, 16, 16], of(false, false, true));
        check([1, 1, 1, 1, 1, 1, 1], of(true, false, false));
        check([2, 71, 132, 5, 1, 71, 71], of(false, true, true));
        // Documents that begin anywhere among the tokens that are computed together.
        check([4, 75, 4, 3, 1, 32, 48], of(false, true, true));
        check([4, 75, 3, 2, 1, 75, 75], of(false, false, false));
        check([1, 130, 24, 16, 2, 130, 64], of(true, true, false));
    }
}
