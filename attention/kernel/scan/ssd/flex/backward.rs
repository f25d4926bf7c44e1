//! Gradients: states once more from the first chunk on, then chunks from the last to the first.

use super::head::{Head, NUMBERS, vectors};
use super::shared::{Part, Parts, Places, Scores, finish};
use super::tile::{
    Lines, Tile, add, add_products, lower, multiply, scale, scaled, stride, times, upper,
};
use super::{CHUNK, Call, Chunk, Job};
use crate::panels::{At, Limits, widest};
use crate::product::dot;
use crate::scan::rows::{Columns, Rows};
use crate::scan::ssd::{Plan, autodiff::SsdTensors};
use burn::backend::Flex;
use burn::tensor::TensorData;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};

/// Where jobs write: rows `[B, T]`, `[B, N]` for the first state, and `[B]` for D.
struct Gradients<'a> {
    x: Columns<'a>,
    weight: Columns<'a>,
    log_decay: Columns<'a>,
    d: Columns<'a>,
    h0: Columns<'a>,
    parts: Places,
}

/// Gradients of all inputs; see [`SsdTensors`].
pub(in crate::scan::ssd) fn gradients(
    x: SsdTensors<Flex>,
    dout: FlexTensor,
    plan: &Plan,
) -> SsdTensors<Flex> {
    let call = Call::new(x, plan);
    let Call { batch, len, channels, n, .. } = call;
    let dout = Rows::new(dout);
    let zeros = |size: usize| vec![0.0f32; size];
    let (mut dx, mut dh0) = (call.room(batch * len), call.room(batch * n));
    let (mut dweight, mut dlog) =
        (zeros(batch * len * plan.heads), zeros(batch * len * plan.heads));
    let mut dd = zeros(batch * channels);
    let mut parts = Parts::new(&call);
    let to = Gradients {
        x: Columns::room(&mut dx, channels),
        weight: Columns::new(&mut dweight, plan.heads),
        log_decay: Columns::new(&mut dlog, plan.heads),
        d: Columns::new(&mut dd, channels),
        h0: Columns::room(&mut dh0, channels),
        parts: parts.places(),
    };
    let (scores, jobs) = (Scores::new(&call), call.jobs());
    let own = || Own::new(&call);
    call.each(jobs.len(), own, |own, job| {
        let (call, job, scores, dout, to) = (&call, (job, &jobs[job]), &scores, &dout, &to);
        widest(Block { own, call, job, scores, dout, to });
    });
    let (db, dc) = finish(&call, to.parts);
    let dd: Vec<f32> = match plan.skip {
        true => (0..channels).map(|e| dd.iter().skip(e).step_by(channels).sum()).collect(),
        false => zeros(1),
    };
    // Safe: jobs have written all rows but those of padding, where there is any.
    let (dx, dh0) = unsafe { (dx.written(), dh0.written()) };
    let (of_d, width) = (dd.len(), plan.groups * n);
    let tensor =
        |data: Vec<f32>, shape: [usize; 3]| FlexTensor::from_data(TensorData::new(data, shape));
    SsdTensors {
        x: tensor(dx, [batch, len, channels]),
        weight: tensor(dweight, [batch, len, plan.heads]),
        log_decay: tensor(dlog, [batch, len, plan.heads]),
        b: tensor(db, [batch, len, width]),
        c: tensor(dc, [batch, len, width]),
        d: FlexTensor::from_data(TensorData::new(dd, [of_d])),
        h0: tensor(dh0, [batch, n, channels]),
    }
}

/// Numbers of the matrices that a thread has beside states, for memory plans.
pub(super) fn tiles([q, p, n]: [usize; 3]) -> usize {
    3 * Tile::len(q, q) + 3 * Tile::len(q, p) + 2 * Tile::len(p, q) + 2 * Tile::len(n, q)
}

/// What a thread computes in.
struct Own {
    head: Head,
    /// x times weight and decay to the chunk's end, `[Q, P]`
    late: Tile,
    dy: Tile,
    /// Gradient of x times weight.
    dinput: Tile,
    /// `[P, Q]`
    x_turned: Tile,
    dy_turned: Tile,
    /// `[N, Q]`
    c_turned: Tile,
    read: Tile,
    /// `[Q, Q]`
    dmixed: Tile,
    passed: Vec<f32>,
    ends: Vec<f32>,
    dlog: Vec<f32>,
    /// Before each chunk, of each head of a job, `[N, P]`; not set where a document begins.
    states: Vec<f32>,
    /// Gradient of the state behind the chunks that are left, of each head.
    carries: Vec<f32>,
}

/// What a job does.
struct Block<'a> {
    own: &'a mut Own,
    call: &'a Call<'a>,
    job: (usize, &'a Job),
    scores: &'a Scores,
    dout: &'a Rows,
    to: &'a Gradients<'a>,
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.own.block(simd, self.call, self.job, self.scores, self.dout, self.to);
    }
}

impl Own {
    fn new(call: &Call<'_>) -> Self {
        let (q, p, n) = (call.chunk, call.p, call.n);
        let heads = super::each(call.plan.heads / call.plan.groups);
        let chunks = call.chunks.iter().map(Vec::len).max().unwrap_or(0);
        let (of_tokens, turned) = (|| Tile::new(q, p), || Tile::new(p, q));
        let (of_states, each) = (|| Tile::new(n, q), || vec![0.0; call.wide]);
        Self {
            head: Head::new(call),
            late: of_tokens(),
            dy: of_tokens(),
            dinput: of_tokens(),
            x_turned: turned(),
            dy_turned: turned(),
            c_turned: of_states(),
            read: of_states(),
            dmixed: Tile::new(q, q),
            passed: each(),
            ends: each(),
            dlog: each(),
            states: vec![0.0; heads * chunks * Tile::len(n, p)],
            carries: vec![0.0; heads * Tile::len(n, p)],
        }
    }

    #[inline(always)]
    fn block<S: Simd>(
        &mut self,
        simd: S,
        call: &Call<'_>,
        (number, job): (usize, &Job),
        scores: &Scores,
        dout: &Rows,
        to: &Gradients<'_>,
    ) {
        let (n, p, heads) = (call.n, call.p, job.members.len());
        let chunks = &call.chunks[job.row];
        let of_state = Tile::len(n, p);
        for (m, head) in job.members.clone().enumerate() {
            self.states_of(simd, call, job, (m, head));
            let carry = &mut self.carries[m * of_state..][..of_state];
            for (i, carry) in carry.chunks_mut(stride(p)).enumerate() {
                match call.plan.keep_state {
                    true => {
                        carry[..p].copy_from_slice(&dout.at(job.row, call.len + i)[head * p..][..p])
                    }
                    false => carry.fill(0.0),
                }
            }
        }
        for (i, chunk) in chunks.iter().enumerate().rev() {
            // Safe: every chunk of a job comes once.
            let mut part = unsafe { to.parts.cleared(number, &chunk.tokens) };
            let scores = scores.of(job, &chunk.tokens);
            let before = i.checked_sub(1).map(|i| &chunks[i]);
            call.group(&call.c, job, &chunk.tokens).turn_into(self.c_turned.out());
            for (m, head) in job.members.clone().enumerate() {
                if let Some((head, tokens)) = call.next(job, head, &chunk.tokens, before) {
                    call.head(&call.x, job, head, tokens).ahead();
                    call.head(dout, job, head, tokens).ahead();
                }
                let place = (m, i * heads + m);
                self.head(simd, call, job, (head, place), chunk, (scores, dout), &mut part, to);
            }
        }
        for (head, carry) in job.members.clone().zip(self.carries.chunks(of_state)) {
            for (i, carry) in carry.chunks(stride(p)).enumerate() {
                // Safe: jobs have rows and heads of their own.
                unsafe { to.h0.write(job.row * n + i, head * p, &carry[..p]) };
            }
        }
    }

    /// The states before all chunks of a head.
    #[inline(always)]
    fn states_of<S: Simd>(
        &mut self,
        simd: S,
        call: &Call<'_>,
        job: &Job,
        (m, head): (usize, usize),
    ) {
        let (n, p, heads) = (call.n, call.p, job.members.len());
        let of_state = Tile::len(n, p);
        let chunks = &call.chunks[job.row];
        if let Some(Chunk { fresh: false, .. }) = chunks.first() {
            call.first_state(job, head, &mut self.states[m * of_state..][..of_state]);
        }
        for (i, chunk) in chunks.iter().enumerate().filter(|(_, chunk)| chunk.goes_on) {
            let (q, tokens) = (chunk.tokens.len(), &chunk.tokens);
            let of = &mut self.head;
            of.read(call, job, head, tokens);
            if let Some(next) = chunks.get(i + 1) {
                call.head(&call.x, job, head, &next.tokens).ahead();
            }
            let x = call.head(&call.x, job, head, tokens);
            x.scaled_into(simd, &of.leaving[..q], &mut self.late);
            let (before, behind) = self.states.split_at_mut((i + 1) * heads * of_state);
            let before = &before[(i * heads + m) * of_state..][..of_state];
            let behind = &mut behind[m * of_state..][..of_state];
            if !chunk.fresh {
                let rows = before.chunks_exact(stride(p));
                for (to, from) in behind.chunks_exact_mut(stride(p)).zip(rows) {
                    scaled(simd, &mut to[..p], &from[..p], of.all);
                }
            }
            let (b, late) = (call.group(&call.b, job, tokens).at().turned(), self.late.right());
            let out = (behind, stride(p));
            // Safe: B is readable at this size.
            unsafe { times((n, p, q), b, late, out, !chunk.fresh, Limits::None) };
        }
    }

    /// A head in a chunk: the `m`-th of its job, its state the one with the number `state`.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn head<S: Simd>(
        &mut self,
        simd: S,
        call: &Call<'_>,
        job: &Job,
        (head, (m, state)): (usize, (usize, usize)),
        chunk: &Chunk,
        (scores, dout): (&[f32], &Rows),
        part: &mut Part<'_>,
        to: &Gradients<'_>,
    ) {
        let (tokens, q, n, p) = (&chunk.tokens, chunk.tokens.len(), call.n, call.p);
        let of_state = Tile::len(n, p);
        let carry = &mut self.carries[m * of_state..][..of_state];
        let (b, x) = (call.group(&call.b, job, tokens), call.head(&call.x, job, head, tokens));
        let of_y = call.head(dout, job, head, tokens);
        let of = &mut self.head;
        of.read(call, job, head, tokens);
        of.pair(simd, scores, q);
        of_y.copy_into(&mut self.dy);
        x.turn_into(self.x_turned.out());

        // The input's gradient through the state behind the chunk, and through the chunk's outputs.
        let dinput = &mut self.dinput;
        // Safe: B is readable at this size.
        unsafe {
            let carry = (&*carry, stride(p));
            times((q, p, n), b.at(), carry, dinput.out(), false, Limits::None);
        }
        for (t, dinput) in dinput.rows_mut((q, p)).enumerate() {
            scale(simd, dinput, of.left[t]);
            self.passed[t] = dot(simd, dinput, x.row(t)) * of.weight[t];
        }
        let (low, high) = (lower(q), upper(q));
        // Safe: matrices of this size.
        unsafe {
            let (mixed, depth) = (of.mixed.at().turned(), Limits::Depth(&high, 0));
            times((q, p, q), mixed, self.dy.right(), dinput.out(), true, depth);

            let (x_turned, columns) = (self.x_turned.right(), Limits::Columns(&low, 0));
            times((q, q, p), self.dy.at(), x_turned, self.dmixed.out(), false, columns);
        }
        pairs(simd, of, &self.dmixed, q, part.dscores, &mut self.dlog);

        // Through the state behind the chunk, and the one before it.
        for x in self.x_turned.rows_mut((p, call.wide)) {
            multiply(simd, x, &of.leaving);
        }
        let carry_at = At { first: carry.as_ptr(), rows: stride(p), columns: 1 };
        // Safe: the state's gradient has this size.
        unsafe {
            let late = self.x_turned.right();
            times((n, q, p), carry_at, late, (&mut *part.db, q), true, Limits::None);
        }
        let mut whole = 0.0;
        self.ends.fill(0.0);
        if chunk.fresh {
            carry.fill(0.0);
        } else {
            let h = &self.states[state * of_state..][..of_state];
            of_y.turn_into(self.dy_turned.out());
            let h_at = At { first: h.as_ptr(), rows: stride(p), columns: 1 };
            // Safe: the state has this size.
            unsafe {
                let dy = self.dy_turned.right();
                times((n, q, p), h_at, dy, self.read.out(), false, Limits::None);
            }
            for (i, dc) in part.dc.chunks_exact_mut(q).enumerate() {
                let read = self.read.row_mut(i);
                multiply(simd, read, &of.entered);
                add_products(simd, &mut self.ends, read, self.c_turned.row(i));
                add(simd, dc, &read[..q]);
            }
            let rows = h.chunks_exact(stride(p));
            for (carry, h) in carry.chunks_exact_mut(stride(p)).zip(rows) {
                whole += dot(simd, &carry[..p], &h[..p]);
                scale(simd, &mut carry[..p], of.all);
            }
            whole *= of.all;
            for (dy, entered) in self.dy.rows_mut((q, p)).zip(&of.entered) {
                scale(simd, dy, *entered);
            }
            // Safe: C is readable at this size.
            unsafe {
                let early = self.dy.right();
                let c = self.c_turned.at();
                times((n, p, q), c, early, (carry, stride(p)), true, Limits::None);
            }
        }

        let (mut before, mut behind) = (whole, 0.0);
        let dlog = &mut self.dlog[..q];
        for (dlog, passed) in dlog.iter_mut().zip(&self.passed) {
            *dlog += before;
            before += passed;
        }
        for (dlog, end) in dlog.iter_mut().zip(&self.ends).rev() {
            behind += end;
            *dlog += behind;
        }
        let row = job.row * call.len + tokens.start;
        self.write(simd, call, head, row, (x, of_y), to);
    }

    /// Gradients of what belongs to a token and a head.
    #[inline(always)]
    fn write<S: Simd>(
        &mut self,
        simd: S,
        call: &Call<'_>,
        head: usize,
        row: usize,
        (x, dy): (Lines<'_>, Lines<'_>),
        to: &Gradients<'_>,
    ) {
        let (q, p) = (x.tokens(), call.p);
        // Safe, all of them: jobs have rows and heads of their own.
        let dd = unsafe { to.d.slice(row / call.len, head * p, p) };
        let d = call.skip(head);
        for (t, dinput) in self.dinput.rows_mut((q, p)).enumerate() {
            let weight = self.head.weight[t];
            let (x, dy) = (x.row(t), dy.row(t));
            let (of_log, of_weight) = unsafe {
                (to.log_decay.slice(row + t, head, 1), to.weight.slice(row + t, head, 1))
            };
            (of_log[0], of_weight[0]) = (self.dlog[t], dot(simd, dinput, x));
            scale(simd, dinput, weight);
            if let Some(d) = d {
                add_products(simd, dinput, dy, d);
                add_products(simd, dd, dy, x);
            }
            unsafe { to.x.write(row + t, head * p, dinput) };
        }
    }
}

/// Pairs of tokens: the gradient of (C Bᵀ) ∘ L, which is `dmixed` times the weight of the earlier token,
/// goes to C Bᵀ and to decays.
///
/// A pair (i, j) passes the decays of j + 1 ..= i. Sums of pairs, never differences of sums, which would
/// lose what is small: `dlog` of a token is that of all rows from it on, in all columns before it.
#[inline(always)]
fn pairs<S: Simd>(
    simd: S,
    of: &Head,
    dmixed: &Tile,
    q: usize,
    dscores: &mut [f32],
    dlog: &mut [f32],
) {
    let zero = simd.splat_f32s(0.0);
    let mut columns = [0.0f32; CHUNK];
    let columns = S::as_mut_simd_f32s(&mut columns).0;
    let (numbers, weights) = (S::as_simd_u32s(&NUMBERS).0, S::as_simd_f32s(&of.weight).0);
    let dscores = dscores.chunks_exact_mut(dmixed.stride);
    for (i, dscores) in dscores.enumerate().take(q).rev() {
        let row = simd.splat_u32s(i as u32);
        let dmixed = &S::as_simd_f32s(dmixed.row(i)).0[..vectors::<S>(i)];
        let decay = S::as_simd_f32s(of.decay(i)).0;
        let mixed = S::as_simd_f32s(of.mixed.row(i)).0;
        let dscores = S::as_mut_simd_f32s(dscores).0;
        let mut sums = zero;
        let pairs = dmixed.iter().zip(weights).zip(mixed.iter().zip(decay));
        let to = columns.iter_mut().zip(dscores).zip(numbers);
        for (((dmixed, weight), (mixed, decay)), ((column, dscore), j)) in pairs.zip(to) {
            let d = simd.mul_f32s(*dmixed, *weight);
            *column = simd.mul_add_f32s(d, *mixed, *column);
            *dscore = simd.mul_add_f32s(d, *decay, *dscore);
            let earlier = simd.select_f32s(simd.less_than_u32s(*j, row), *column, zero);
            sums = simd.add_f32s(sums, earlier);
        }
        dlog[i] = simd.reduce_sum_f32s(sums);
    }
}
