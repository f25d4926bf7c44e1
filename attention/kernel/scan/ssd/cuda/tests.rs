//! What can be said of the kernels without a card.

use super::source::{Call, entries, source};

/// Bytes of shared memory that a workgroup of an H100 may have.
const SHARED: usize = 227 << 10;

#[test]
fn the_kernels_fit() {
    assert!(entries().iter().all(|(_, shared)| *shared <= SHARED));
    assert!(size_of::<Call>() <= 4 << 10);
    assert_ne!(source(false), source(true));
}

/// No number may leave its register.
#[cfg(feature = "cuda-nvrtc")]
#[test]
fn every_kernel_compiles_without_spills() {
    use crate::cuda::cubin;
    if let Err(reason) = cubin::version() {
        return println!("skipped: {reason}");
    }
    for skip in [false, true] {
        let options = ["--gpu-architecture=sm_90", "--ptxas-options=-v"];
        let (cubin, said) =
            cubin::compile(&source(skip), &options).unwrap_or_else(|e| panic!("{e}"));
        assert!(cubin.starts_with(b"\x7fELF"));
        let told = said.matches("bytes spill stores").count();
        assert_eq!(told, entries().len(), "{said}");
        assert_eq!(said.matches(" 0 bytes spill stores").count(), told, "{said}");
    }
}

#[cfg(feature = "flex")]
mod emulated {
    use super::super::source::{ADDRESSES, BACKWARD, Call, FORWARD, Q, entries, text};
    use crate::cuda::emulated::{Launch, Memory, Program};
    use crate::scan::tests::{Pass, compare, host, leaf};
    use crate::{Implementation, SsdDiscrete, ssd_discrete};
    use burn::tensor::{DType, Tensor};

    /// Rows, tokens, heads, groups, channels, numbers of state, workgroups that share a group's heads.
    type Sizes = [usize; 7];

    fn check(sizes: Sizes, strength: f32, skip: bool) {
        let [rows, len, heads, groups, p, n, parts] = sizes;
        let (kind, of_tokens) = (DType::F64, [rows, len, heads]);
        let x = leaf([rows, len, heads, p], 1, 1.0, kind);
        let weight = leaf(of_tokens, 2, 1.0, kind);
        let log = leaf(of_tokens, 3, strength, kind).inner().abs().neg();
        let log = Tensor::<3>::from_inner(log).require_grad();
        let (b, c) = (
            leaf([rows, len, groups, n], 4, 1.0, kind),
            leaf([rows, len, groups, n], 5, 1.0, kind),
        );
        let d = leaf([heads * p], 6, 1.0, kind);
        let h0 = leaf([rows, heads, p, n], 7, 1.0, kind);
        let dy = leaf([rows, len, heads, p], 8, 1.0, kind);
        let dh = leaf([rows, heads, p, n], 9, 1.0, kind);
        let (y, h) = ssd_discrete(SsdDiscrete {
            x: x.clone(),
            weight: weight.clone(),
            log_decay: log.clone(),
            b: b.clone(),
            c: c.clone(),
            d: skip.then(|| d.clone()),
            h0: Some(h0.clone()),
            steps: None,
            chunk: 16,
            keep_state: true,
            implementation: Implementation::Reference,
        })
        .unwrap();
        let h = h.unwrap();
        let loss =
            (y.clone() * dy.clone().detach()).sum() + (h.clone() * dh.clone().detach()).sum();
        let grads = loss.backward();
        // `[S, H, P, N] -> [S, N, E]`
        let turned = |x: Tensor<4>| {
            let x = x.inner().reshape([rows, heads * p, n]).swap_dims(1, 2);
            host(Tensor::<3>::from_inner(x))
        };
        let of = |x: &Tensor<4>| Tensor::<4>::from_inner(x.grad(&grads).unwrap());
        let of_token = |x: &Tensor<3>| host(Tensor::<3>::from_inner(x.grad(&grads).unwrap()));
        let of_d = d.grad(&grads).map(|x| host(Tensor::<1>::from_inner(x)));
        let want: Pass = vec![
            ("y", host(y)),
            ("h", turned(h)),
            ("dx", host(of(&x))),
            ("dweight", of_token(&weight)),
            ("dlog", of_token(&log)),
            ("db", host(of(&b))),
            ("dc", host(of(&c))),
            ("dd", of_d.unwrap_or_default()),
            ("dh0", turned(of(&h0))),
        ];

        let names = entries().map(|(name, _)| name);
        let name = format!("ssd-{rows}-{len}-{p}");
        let Some(program) = Program::new(&name, &text(skip, ""), &names, ADDRESSES) else {
            return println!("skipped: there is no C++ compiler");
        };
        let mut memory = Memory::default();
        let (chunks, width) = (len.div_ceil(Q), heads * p);
        let states = rows * chunks * n * width;
        let shared = rows * len * groups * n;
        let call = Call {
            x: memory.floats(&host(x)),
            weight: memory.floats(&host(weight)),
            log: memory.floats(&host(log)),
            b: memory.floats(&host(b)),
            c: memory.floats(&host(c)),
            d: memory.floats(&host(d)),
            h: memory.floats(&turned(h0)),
            dy: memory.floats(&host(dy)),
            dh: memory.floats(&turned(dh)),
            scores: memory.empty(rows * chunks * groups * Q * Q),
            states: memory.empty(states),
            carries: memory.empty(states),
            whole: memory.empty(rows * chunks * heads),
            y: memory.empty(rows * len * width),
            behind: memory.empty(rows * n * width),
            dx: memory.empty(rows * len * width),
            dweight: memory.empty(rows * len * heads),
            dlog: memory.empty(rows * len * heads),
            db: memory.empty(parts * shared),
            dc: memory.empty(parts * shared),
            dd: memory.empty(rows * chunks * width),
            dh0: memory.empty(rows * n * width),
            sum_b: memory.empty(shared),
            sum_c: memory.empty(shared),
            sum_d: memory.empty(width),
            rows: rows as i32,
            len: len as i32,
            heads: heads as i32,
            groups: groups as i32,
            n: n as i32,
            p: p as i32,
            chunks: chunks as i32,
            parts: parts as i32,
        };
        let launches: Vec<Launch> = FORWARD
            .into_iter()
            .chain(BACKWARD)
            .map(|kernel| Launch::new(kernel as usize, call.grid(kernel), 256, &call))
            .collect();
        program.run(&mut memory, &launches);
        let of_d = if skip { memory.read(call.sum_d) } else { Vec::new() };
        let got: Pass = vec![
            ("y", memory.read(call.y)),
            ("h", memory.read(call.behind)),
            ("dx", memory.read(call.dx)),
            ("dweight", memory.read(call.dweight)),
            ("dlog", memory.read(call.dlog)),
            ("db", memory.read(call.sum_b)),
            ("dc", memory.read(call.sum_c)),
            ("dd", of_d),
            ("dh0", memory.read(call.dh0)),
        ];
        compare(&format!("{sizes:?}, decays of {strength}"), &got, &want);
    }

    /// Chunks that are cut off, narrow heads and few states, heads that are shared out, strong decays.
    #[test]
    fn kernels_equal_the_reference_where_they_are_emulated() {
        check([2, 70, 4, 2, 40, 70, 2], 0.3, true);
        check([1, 5, 3, 1, 3, 2, 1], 1.0, false);
        check([1, 130, 3, 3, 17, 20, 1], 20.0, true);
        check([1, 65, 1, 1, 64, 128, 1], 0.01, true);
    }
}
