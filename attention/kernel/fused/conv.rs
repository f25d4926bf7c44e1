//! Causal depthwise convolution followed by silu, as state-space layers have it, over documents and
//! across calls.

use super::expect;
use crate::scan::{Step, Steps};
use burn::tensor::{Int, Tensor, TensorData, activation::silu};

/// `silu(b + Σ_j w_j x_{t−K+1+j})` per channel, over the inputs of the token's own document: those
/// before the first token of the call are in `tail`. Padding is skipped, and gives zeros.
///
/// # Shapes
/// x `[B, T, C]`, weight `[C, K]` (the newest input last), bias `[C]`, tail `[B, K, C]` (zeros where
/// none is given) -> `[B, T, C]`
///
/// # Panics
/// When shapes do not fit each other or the steps, and for a weight without inputs.
pub fn causal_conv_silu(
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
    tail: Option<Tensor<3>>,
    steps: &Steps,
) -> Tensor<3> {
    let ([batch, len, channels], [of_weight, k]) = (x.dims(), weight.dims());
    expect(of_weight == channels && k > 0, "causal_conv_silu", || {
        format!("x is {:?}, the weight {:?}", x.dims(), weight.dims())
    });
    let of_bias = bias.as_ref().map_or(channels, |bias| bias.dims()[0]);
    expect(of_bias == channels, "causal_conv_silu", || {
        format!("the bias has {of_bias} channels, x {channels}")
    });
    check_past("causal_conv_silu", &x, &tail, steps, k);
    if x.shape().num_elements() == 0 {
        return x;
    }
    let options = (&x.device(), x.dtype());
    #[cfg(any(feature = "flex", feature = "cube"))]
    if has_op(&x, &weight, &bias, &tail) {
        use burn::backend::Dispatch;
        let bias = bias.unwrap_or_else(|| Tensor::zeros([channels], options));
        let tail = tail.unwrap_or_else(|| Tensor::zeros([batch, k, channels], options));
        let y = <Dispatch as op::ConvOps>::conv_op(
            x.into_dispatch(),
            weight.transpose().into_dispatch(),
            bias.into_dispatch(),
            tail.into_dispatch(),
            steps.clone(),
        );
        return Tensor::from_dispatch(y);
    }
    let taps = steps.taps(k);
    let known = Known::new(x, tail, k);
    let mut y = Tensor::zeros([batch, len, channels], options);
    for j in 0..k {
        let input = match steps.is_plain() {
            true => known.0.clone().narrow(1, j + 2, len),
            false => known.select(taps.iter().copied().skip(j).step_by(k)),
        };
        y = y + input * weight.clone().narrow(1, j, 1).reshape([1, 1, channels]);
    }
    let y = match bias {
        Some(bias) => y + bias.unsqueeze(),
        None => y,
    };
    let y = silu(y);
    match steps.has_padding() {
        true => y.clone() * steps.but(Step::Skip, &y.device()).cast(y.dtype()),
        false => y,
    }
}

#[cfg(any(feature = "flex", feature = "cube"))]
fn has_op(
    x: &Tensor<3>,
    weight: &Tensor<2>,
    bias: &Option<Tensor<1>>,
    tail: &Option<Tensor<3>>,
) -> bool {
    let (bias, tail) = (bias.as_ref(), tail.as_ref());
    #[cfg(feature = "flex")]
    {
        use super::on_cpu;
        let past = bias.is_none_or(on_cpu) && tail.is_none_or(on_cpu);
        if past && on_cpu(x) && on_cpu(weight) {
            return true;
        }
    }
    #[cfg(feature = "cube")]
    {
        use crate::card::floats_on_card;
        let alike = weight.dtype() == x.dtype()
            && bias.is_none_or(|bias| bias.dtype() == x.dtype() && floats_on_card(bias))
            && tail.is_none_or(|tail| tail.dtype() == x.dtype() && floats_on_card(tail));
        if alike && floats_on_card(x) && floats_on_card(weight) {
            return true;
        }
    }
    false
}

fn check_past(op: &str, x: &Tensor<3>, tail: &Option<Tensor<3>>, steps: &Steps, k: usize) {
    let [batch, len, channels] = x.dims();
    let of_tail = tail.as_ref().map_or([batch, k, channels], |tail| tail.dims());
    expect(of_tail == [batch, k, channels], op, || {
        format!("the tail is {of_tail:?}, not [{batch}, {k}, {channels}]")
    });
    expect((steps.batch(), steps.len()) == (batch, len), op, || {
        format!("steps are of {} x {} tokens, x {batch} x {len}", steps.batch(), steps.len())
    });
}

/// The last K inputs of every row behind `x`, of the document that the row is in: the next call's
/// `tail`. Zeros stand for what a document does not have.
///
/// # Shapes
/// x `[B, T, C]`, tail `[B, K, C]` -> `[B, K, C]`
///
/// # Panics
/// When shapes do not fit each other or the steps.
pub fn conv_tail(x: Tensor<3>, tail: Option<Tensor<3>>, steps: &Steps, k: usize) -> Tensor<3> {
    check_past("conv_tail", &x, &tail, steps, k);
    let [batch, len, channels] = x.dims();
    if batch * k * channels == 0 {
        return Tensor::zeros([batch, k, channels], (&x.device(), x.dtype()));
    }
    if steps.is_plain() && len >= k {
        return x.narrow(1, len - k, k);
    }
    Known::new(x, tail, k).select(steps.tail(k).into_iter())
}

/// A row of zeros, the tail, and the inputs: `[B, 1 + K + T, C]`.
struct Known(Tensor<3>);

impl Known {
    fn new(x: Tensor<3>, tail: Option<Tensor<3>>, k: usize) -> Self {
        let [batch, _, channels] = x.dims();
        let zeros = |n: usize| Tensor::zeros([batch, n, channels], (&x.device(), x.dtype()));
        let tail = tail.unwrap_or_else(|| zeros(k));
        Self(Tensor::cat(vec![zeros(1), tail, x], 1))
    }

    /// The same number of inputs for every row, as [`Steps::taps`] names them.
    fn select(&self, of_rows: impl ExactSizeIterator<Item = i32>) -> Tensor<3> {
        let [batch, known, channels] = self.0.dims();
        let each = of_rows.len() / batch;
        let place = |(i, tap): (usize, i32)| (i / each * known) as i32 + tap + 1;
        let index: Vec<i32> = of_rows.enumerate().map(place).collect();
        let index = TensorData::new(index, [batch * each]);
        let index = Tensor::<1, Int>::from_data(index, &self.0.device());
        let rows = self.0.clone().reshape([batch * known, channels]).select(0, index);
        rows.reshape([batch, each, channels])
    }
}

#[cfg(any(feature = "flex", feature = "cube"))]
pub(super) mod op {
    use crate::scan::Steps;
    use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::{Autodiff, Backend, backend_extension, tensor::FloatTensor};

    #[backend_extension(
        Autodiff,
        Flex: cfg(feature = "flex"),
        Cube: cfg(feature = "cube")
    )]
    pub trait ConvOps: Backend {
        /// `weight` is `[K, C]` here.
        fn conv_op(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            tail: FloatTensor<Self>,
            steps: Steps,
        ) -> FloatTensor<Self>;

        /// (dx, dweight, dbias, dtail)
        fn conv_gradients(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            tail: FloatTensor<Self>,
            dy: FloatTensor<Self>,
            steps: Steps,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
    }

    impl<B: Backend + ConvOps, C: CheckpointStrategy> ConvOps for Autodiff<B, C> {
        fn conv_op(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            tail: FloatTensor<Self>,
            steps: Steps,
        ) -> FloatTensor<Self> {
            #[derive(Debug)]
            struct Conv;
            impl<B: Backend + ConvOps> Backward<B, 4> for Conv {
                type State = ([FloatTensor<B>; 4], Steps);
                fn backward(
                    self,
                    ops: Ops<Self::State, 4>,
                    grads: &mut Gradients,
                    _: &mut Checkpointer,
                ) {
                    let dy = grads.consume::<B>(&ops.node);
                    let ([x, weight, bias, tail], steps) = ops.state;
                    let (dx, dw, db, dt) = B::conv_gradients(x, weight, bias, tail, dy, steps);
                    register!(B, grads, ops.parents, [dx, dw, db, dt]);
                }
            }
            let all = [x, weight, bias, tail];
            let inner = all.each_ref().map(|x| x.primitive().clone());
            let [xp, wp, bp, tp] = inner.clone();
            let y = B::conv_op(xp, wp, bp, tp, steps.clone());
            match Conv.prepare::<C>(all.map(|x| x.node())).compute_bound().stateful() {
                OpsKind::Tracked(prep) => prep.finish((inner, steps), y),
                OpsKind::UnTracked(prep) => prep.finish(y),
            }
        }

        fn conv_gradients(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            tail: FloatTensor<Self>,
            dy: FloatTensor<Self>,
            steps: Steps,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            use burn::backend::AutodiffBackend;
            let p = |t: FloatTensor<Self>| t.primitive().clone();
            let lift = Self::from_inner;
            let (dx, dw, db, dt) =
                B::conv_gradients(p(x), p(weight), p(bias), p(tail), p(dy), steps);
            (lift(dx), lift(dw), lift(db), lift(dt))
        }
    }
}

#[cfg(feature = "flex")]
mod flex {
    use super::op::ConvOps;
    use crate::fused::PARALLEL_FROM;
    use crate::scan::Steps;
    use crate::scan::rows::{Columns, Rows};
    use crate::simd::{sigmoid, vectorized};
    use crate::threads;
    use burn::backend::Flex;
    use burn::tensor::TensorData;
    use burn_flex::FlexTensor;
    /// Channels of a job.
    const BLOCK: usize = 128;
    /// Tokens whose share of a weight's gradient is added up by itself.
    const SPAN: usize = 64;

    /// A call's tensors.
    struct Call {
        x: Rows,
        tail: Rows,
        /// `[K, C]`
        weight: FlexTensor,
        bias: FlexTensor,
        k: usize,
        /// See [`Steps::taps`].
        taps: Vec<i32>,
    }

    /// Some channels of a row.
    #[derive(Clone, Copy)]
    struct Job {
        row: usize,
        first: usize,
        width: usize,
    }

    impl Call {
        fn new([x, weight, bias, tail]: [FlexTensor; 4], steps: &Steps) -> Self {
            let k = weight.layout().shape()[0];
            Self {
                x: Rows::new(x),
                tail: Rows::new(tail),
                weight: weight.to_contiguous(),
                bias: bias.to_contiguous(),
                k,
                taps: steps.taps(k),
            }
        }

        fn run<R: Send>(&self, work: impl Fn(Job) -> R + Sync) -> Vec<R> {
            let channels = self.x.width;
            let of_row = channels.div_ceil(BLOCK);
            let job = |i: usize| {
                let first = i % of_row * BLOCK;
                work(Job { row: i / of_row, first, width: BLOCK.min(channels - first) })
            };
            let jobs = self.x.batch * of_row;
            match self.x.batch * self.x.tokens * channels {
                ..PARALLEL_FROM => (0..jobs).map(job).collect(),
                _ => threads::map(jobs, job),
            }
        }

        /// The taps of a token, none where it is padding.
        fn taps(&self, job: Job, t: usize) -> Option<&[i32]> {
            let taps = &self.taps[(job.row * self.x.tokens + t) * self.k..][..self.k];
            (taps[self.k - 1] >= 0).then_some(taps)
        }

        #[inline(always)]
        fn input(&self, job: Job, tap: i32) -> &[f32] {
            let tap = tap as usize;
            let row = match tap < self.k {
                true => self.tail.at(job.row, tap),
                false => self.x.at(job.row, tap - self.k),
            };
            &row[job.first..][..job.width]
        }

        #[inline(always)]
        fn weight(&self, job: Job, j: usize) -> &[f32] {
            &self.weight.storage::<f32>()[j * self.x.width + job.first..][..job.width]
        }

        /// What goes into silu.
        #[inline(always)]
        fn sums<'a>(&self, job: Job, taps: &[i32], room: &'a mut [f32; BLOCK]) -> &'a mut [f32] {
            let sums = &mut room[..job.width];
            sums.copy_from_slice(&self.bias.storage::<f32>()[job.first..][..job.width]);
            for (j, &tap) in taps.iter().enumerate().filter(|(_, tap)| **tap >= 0) {
                let inputs = self.input(job, tap).iter().zip(self.weight(job, j));
                sums.iter_mut().zip(inputs).for_each(|(sum, (x, w))| *sum += x * w);
            }
            sums
        }
    }

    impl ConvOps for Flex {
        fn conv_op(
            x: FlexTensor,
            weight: FlexTensor,
            bias: FlexTensor,
            tail: FlexTensor,
            steps: Steps,
        ) -> FlexTensor {
            let call = Call::new([x, weight, bias, tail], &steps);
            let (batch, len, channels) = (call.x.batch, call.x.tokens, call.x.width);
            let mut y = vec![0.0f32; batch * len * channels];
            let out = Columns::new(&mut y, channels);
            call.run(|job| {
                vectorized(
                    #[inline(always)]
                    || {
                        let mut room = [0.0; BLOCK];
                        for t in 0..len {
                            let Some(taps) = call.taps(job, t) else { continue };
                            let sums = call.sums(job, taps, &mut room);
                            // Safe: jobs have rows and columns of their own.
                            let out = unsafe { out.slice(job.row * len + t, job.first, job.width) };
                            for (y, x) in out.iter_mut().zip(sums) {
                                *y = *x * sigmoid(*x);
                            }
                        }
                    },
                )
            });
            FlexTensor::from_data(TensorData::new(y, [batch, len, channels]))
        }

        fn conv_gradients(
            x: FlexTensor,
            weight: FlexTensor,
            bias: FlexTensor,
            tail: FlexTensor,
            dy: FlexTensor,
            steps: Steps,
        ) -> (FlexTensor, FlexTensor, FlexTensor, FlexTensor) {
            let call = Call::new([x, weight, bias, tail], &steps);
            let dy = Rows::new(dy);
            let (batch, len, channels, k) = (call.x.batch, call.x.tokens, call.x.width, call.k);
            let mut dx = vec![0.0f32; batch * len * channels];
            let mut dtail = vec![0.0f32; batch * k * channels];
            let (to_x, to_tail) =
                (Columns::new(&mut dx, channels), Columns::new(&mut dtail, channels));
            let parts = call.run(|job| {
                vectorized(
                    #[inline(always)]
                    || (job, block_gradients(&call, job, &dy, &to_x, &to_tail)),
                )
            });
            // K rows of weights, and the bias behind them.
            let mut sums = vec![0.0f32; (k + 1) * channels];
            for (job, part) in parts {
                for (to, from) in sums.chunks_mut(channels).zip(part.chunks(job.width)) {
                    to[job.first..].iter_mut().zip(from).for_each(|(to, x)| *to += x);
                }
            }
            let db = sums.split_off(k * channels);
            let tensor = |data: Vec<f32>, shape: &[usize]| {
                FlexTensor::from_data(TensorData::new(data, shape.to_vec()))
            };
            (
                tensor(dx, &[batch, len, channels]),
                tensor(sums, &[k, channels]),
                tensor(db, &[channels]),
                tensor(dtail, &[batch, k, channels]),
            )
        }
    }

    /// Gradients of a job's inputs into their place; of weights and bias as a result.
    #[inline(always)]
    fn block_gradients(
        call: &Call,
        job: Job,
        dy: &Rows,
        dx: &Columns<'_>,
        dtail: &Columns<'_>,
    ) -> Vec<f32> {
        let (len, k, width) = (call.x.tokens, call.k, job.width);
        let mut room = [0.0; BLOCK];
        let (mut all, mut span) = (vec![0.0f32; (k + 1) * width], vec![0.0f32; (k + 1) * width]);
        for t in 0..len {
            if let Some(taps) = call.taps(job, t) {
                let ds = call.sums(job, taps, &mut room);
                for (x, dy) in ds.iter_mut().zip(&dy.at(job.row, t)[job.first..]) {
                    let s = sigmoid(*x);
                    *x = dy * s * (1.0 + *x * (1.0 - s));
                }
                let ds = &*ds;
                for (j, &tap) in taps.iter().enumerate().filter(|(_, tap)| **tap >= 0) {
                    let (weight, input) = (call.weight(job, j), call.input(job, tap));
                    let dw = &mut span[j * width..][..width];
                    for ((dw, x), ds) in dw.iter_mut().zip(input).zip(ds) {
                        *dw += x * ds;
                    }
                    let tap = tap as usize;
                    // Safe: jobs have rows and columns of their own.
                    let to = unsafe {
                        match tap < k {
                            true => dtail.slice(job.row * k + tap, job.first, width),
                            false => dx.slice(job.row * len + tap - k, job.first, width),
                        }
                    };
                    for ((to, w), ds) in to.iter_mut().zip(weight).zip(ds) {
                        *to += w * ds;
                    }
                }
                span[k * width..].iter_mut().zip(ds).for_each(|(db, ds)| *db += ds);
            }
            if (t + 1) % SPAN == 0 || t + 1 == len {
                for (all, span) in all.iter_mut().zip(&mut span) {
                    *all += std::mem::take(span);
                }
            }
        }
        all
    }
}
