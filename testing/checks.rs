//! The checks themselves.

use super::numeric::{host, normal, ratio, tensor};
use super::{CheckOptions, Outcome};
use crate::attention::{Compute, MixContext, Phase, SequenceMixer, State};
use crate::models::keymap::{ParamInfo, map_params, params, read_params};
use crate::positional::{Positions, Rope};
use crate::{Error, Result};
use burn::tensor::{DType, Device, Tensor};
use longburn_kernels::TokenMeta;
use std::ops::Range;

/// Steps of finite differences, relative to inputs and weights of about one. Under a short one a small
/// gradient drowns in rounding, under a long one a large gradient bends; a wrong gradient is wrong
/// under both.
const STEPS: [f64; 2] = [2e-3, 2e-2];
/// Relative error allowed for them in f32.
const DIFFERENCE: f64 = 2e-2;
/// Relative error of values and gradients allowed in bf16. One rounding is wrong by 2⁻⁸ / √6 = 1.6e-3 in the
/// mean square, a mixer rounds some ten times in a row forward and as often again backward, and gradients
/// of scores are differences of nearly equal numbers: 2.5e-2 was measured on the norm of queries.
const BF16: [f64; 2] = [1e-2, 4e-2];
/// Less than one rounding: the input alone is rounded once.
const ROUNDED: f64 = 1e-4;

pub(super) struct Runner<'a, M> {
    options: &'a CheckOptions,
    mixer: M,
    rope: Option<Rope>,
}

/// Output `[B, T, D]` and gradient of the input, on the host.
struct Pass {
    y: Vec<f32>,
    dx: Vec<f32>,
}

type Verdict = std::result::Result<f64, Outcome>;

impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        match error {
            Error::Unsupported { .. } => Outcome::Refused(error.to_string()),
            _ => Outcome::Failed(error.to_string()),
        }
    }
}

fn settle(verdict: Verdict) -> Outcome {
    verdict.map_or_else(|outcome| outcome, Outcome::Passed)
}

fn fail<T>(text: String) -> std::result::Result<T, Outcome> {
    Err(Outcome::Failed(text))
}

impl<'a, M: SequenceMixer> Runner<'a, M> {
    pub(super) fn new(
        options: &'a CheckOptions,
        build: &impl Fn(&Device) -> Result<M>,
    ) -> Result<Self> {
        let rope = options.rope.as_ref().map(|r| r.init()).transpose()?;
        Ok(Self { options, mixer: build(&options.device.clone().autodiff())?, rope })
    }

    fn device(&self) -> Device {
        self.options.device.clone().autodiff()
    }

    fn call(
        &self,
        mixer: &M,
        x: Tensor<3>,
        tokens: &TokenMeta,
        phase: Phase,
        keep_state: bool,
        state: Option<State>,
    ) -> Result<(Tensor<3>, Option<State>)> {
        let table = self.rope.as_ref().map(|r| r.table(&Positions::of(tokens), &x.device()));
        let ctx = MixContext {
            rope: table.as_ref(),
            phase,
            keep_state,
            compute: if x.dtype() == DType::BF16 { Compute::Bf16 } else { Compute::F32 },
            ..MixContext::infer(tokens)
        };
        let out = mixer.forward(x, &ctx, state)?;
        Ok((out.y, out.state))
    }

    /// Values and input gradient of Σ y·w, with w the same for every token of the same content.
    fn pass(&self, x: &[f32], w: &[f32], tokens: &TokenMeta, phase: Phase) -> Result<Pass> {
        let shape = [tokens.batch(), tokens.len(), self.options.hidden];
        let x = tensor(x.to_vec(), shape, &self.device()).require_grad();
        let (y, _) = self.call(&self.mixer, x.clone(), tokens, phase, false, None)?;
        let loss = (y.clone() * tensor(w.to_vec(), shape, &self.device())).sum();
        let dx = match loss.is_tracked() {
            true => x.grad(&loss.backward()).map(host).unwrap_or_default(),
            false => Vec::new(),
        };
        Ok(Pass { y: host(y), dx })
    }

    fn input(&self, tokens: usize, stream: u64) -> Vec<f32> {
        normal(tokens * self.options.hidden, stream)
    }

    pub(super) fn lengths(&self) -> Outcome {
        settle((|| {
            for &t in &self.options.lengths {
                for phase in [Phase::Train, Phase::Infer] {
                    let x = self.input(2 * t, 1);
                    let pass = self.pass(&x, &x, &TokenMeta::contiguous(2, t, 0), phase)?;
                    if pass.y.len() != x.len() || !pass.y.iter().all(|y| y.is_finite()) {
                        return fail(format!("T = {t}, {phase:?}: wrong shape or not finite"));
                    }
                }
            }
            Ok(0.0)
        })())
    }

    pub(super) fn determinism(&self) -> Outcome {
        settle((|| {
            let (x, tokens) = (self.input(2 * 65, 2), TokenMeta::contiguous(2, 65, 0));
            for phase in [Phase::Train, Phase::Infer] {
                let (a, b) =
                    (self.pass(&x, &x, &tokens, phase)?, self.pass(&x, &x, &tokens, phase)?);
                if a.y != b.y || a.dx != b.dx {
                    return fail(format!("{phase:?}: two runs differ"));
                }
            }
            Ok(0.0)
        })())
    }

    pub(super) fn causality(&self) -> Outcome {
        if !self.options.causal {
            return Outcome::Skipped("the mixer sees both ways");
        }
        settle((|| {
            let (t, d) = (70, self.options.hidden);
            let tokens = TokenMeta::contiguous(1, t, 0);
            let x = self.input(t, 3);
            for phase in [Phase::Train, Phase::Infer] {
                let base = self.pass(&x, &x, &tokens, phase)?;
                for changed in [t - 1, t / 2] {
                    let mut other = x.clone();
                    other[changed * d..].iter_mut().for_each(|v| *v = 1.0 - *v);
                    let pass = self.pass(&other, &x, &tokens, phase)?;
                    if pass.y[..changed * d] != base.y[..changed * d] {
                        return fail(format!(
                            "{phase:?}: token {changed} changes what is before it"
                        ));
                    }
                    if pass.y[changed * d..] == base.y[changed * d..] {
                        return fail(format!("{phase:?}: token {changed} changes nothing at all"));
                    }
                }
            }
            Ok(0.0)
        })())
    }

    /// Directional derivatives, along the gradient itself and along a random direction.
    pub(super) fn gradients(&self) -> Outcome {
        settle((|| {
            let (b, t, d) = (2, 19, self.options.hidden);
            let tokens = TokenMeta::contiguous(b, t, 0);
            let (x, w) = (self.input(b * t, 4), self.input(b * t, 5));
            let device = self.device();
            let leaf = tensor(x.clone(), [b, t, d], &device).require_grad();
            let (y, _) =
                self.call(&self.mixer, leaf.clone(), &tokens, Phase::Train, false, None)?;
            let grads = (y * tensor(w.clone(), [b, t, d], &device)).sum().backward();
            let Some(dx) = leaf.grad(&grads).map(host) else {
                return fail("the input gets no gradient".into());
            };
            let value = |mixer: &M, x: &[f32]| -> Result<f64> {
                let x = tensor(x.to_vec(), [b, t, d], &device);
                let (y, _) = self.call(mixer, x, &tokens, Phase::Train, false, None)?;
                Ok(host(y).iter().zip(&w).map(|(y, w)| *y as f64 * *w as f64).sum())
            };
            let mut worst = self.directional("input", &dx, &|step| {
                let moved: Vec<f32> = x.iter().zip(step).map(|(x, s)| x + s).collect();
                value(&self.mixer, &moved)
            })?;
            let collected = burn::optim::GradientsParams::from_grads(grads, &self.mixer);
            let all = grads_by_path(&self.mixer, &collected)?;
            for info in params(&self.mixer).iter().filter(|p| p.trainable) {
                let Some((_, grad)) = all.iter().find(|(path, _)| *path == info.path) else {
                    return fail(format!("parameter {} gets no gradient", info.path));
                };
                let old = read_params(&self.mixer, |path| path == info.path);
                let Some((_, _, old)) = old.first() else { continue };
                let shifted = |step: &[f32]| {
                    let new: Vec<f32> = old.iter().zip(step).map(|(o, s)| o + s).collect();
                    let set = |path: &str| (path == info.path).then(|| new.clone());
                    value(&map_params(self.mixer.clone(), set, |_| None), &x)
                };
                worst = worst.max(self.directional(&info.path, grad, &shifted)?);
            }
            Ok(worst)
        })())
    }

    /// Output, and gradients of the input and of all parameters, of Σ y·w computed in `compute`.
    fn gradients_in(&self, compute: Compute) -> Result<Vec<(String, Vec<f32>)>> {
        let (b, t, d) = (2, 65, self.options.hidden);
        let tokens = TokenMeta::contiguous(b, t, 0);
        let device = self.device();
        let leaf = tensor(self.input(b * t, 50), [b, t, d], &device).require_grad();
        let x = compute.of(leaf.clone());
        let (y, _) = self.call(&self.mixer, x, &tokens, Phase::Train, false, None)?;
        if y.dtype() != compute.dtype() {
            let reason = format!("output in {:?} of input in {}", y.dtype(), compute.name());
            return Err(Error::shape("the mixer", reason));
        }
        let y = y.cast(DType::F32);
        let loss = (y.clone() * tensor(self.input(b * t, 51), [b, t, d], &device)).sum();
        let grads = loss.backward();
        let mut all = vec![("output".to_string(), host(y))];
        all.extend(leaf.grad(&grads).map(|dx| ("input".to_string(), host(dx))));
        let collected = burn::optim::GradientsParams::from_grads(grads, &self.mixer);
        all.extend(grads_by_path(&self.mixer, &collected)?);
        Ok(all)
    }

    pub(super) fn bf16(&self) -> Outcome {
        if !self.mixer.computes_in(Compute::Bf16) {
            return Outcome::Skipped("the mixer computes in f32 only");
        }
        if !Compute::Bf16.runs_on(&self.device()) {
            return Outcome::Skipped("the device does not compute in bf16");
        }
        settle((|| {
            let [wide, narrow] = [Compute::F32, Compute::Bf16].map(|c| self.gradients_in(c));
            let (wide, narrow) = (wide?, narrow?);
            if wide.len() != narrow.len() {
                return fail(format!("{} gradients, {} in bf16", wide.len(), narrow.len()));
            }
            let (mut worst, mut at, mut share) = (0.0f64, "", 0.0);
            for (i, ((name, wanted), (_, got))) in wide.iter().zip(&narrow).enumerate() {
                let r = ratio(got, wanted);
                // A gradient that is nothing but rounding errors has no relative error.
                let size = wanted.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                if i == 0 && r < ROUNDED {
                    return fail(format!(
                        "{name} differs by {r:.1e} only: it is not computed in bf16"
                    ));
                }
                let of_most = r / (self.options.bf16_tolerance * BF16[usize::from(i > 0)]);
                if size > 1e-6 && of_most > share {
                    (worst, at, share) = (r, name, of_most);
                }
            }
            if share > 1.0 {
                let most = worst / share;
                return fail(format!("{at} in bf16 differs by {worst:.1e}, more than {most:.0e}"));
            }
            Ok(worst)
        })())
    }

    fn directional(
        &self,
        name: &str,
        grad: &[f32],
        value: &dyn Fn(&[f32]) -> Result<f64>,
    ) -> Verdict {
        let norm = |v: &[f32]| v.iter().map(|v| *v as f64 * *v as f64).sum::<f64>().sqrt();
        let size = norm(grad);
        let mut worst = 0.0f64;
        for direction in [grad.to_vec(), normal(grad.len(), 6)] {
            let length = norm(&direction);
            if length == 0.0 {
                continue;
            }
            let dot =
                |a: &[f32]| a.iter().zip(grad).map(|(a, g)| *a as f64 * *g as f64).sum::<f64>();
            let want = dot(&direction) / length;
            let mut found = (f64::INFINITY, f64::NAN);
            for step in STEPS {
                // Every coordinate moves by about the step, whatever the number of coordinates.
                let reach = step * (grad.len() as f64).sqrt().max(1.0);
                let step: Vec<f32> =
                    direction.iter().map(|v| (*v as f64 / length * reach) as f32).collect();
                let back: Vec<f32> = step.iter().map(|s| -s).collect();
                let got = (value(&step)? - value(&back)?) / (2.0 * reach);
                let error = (got - want).abs() / want.abs().max(0.1 * size).max(1e-3);
                if error < found.0 {
                    found = (error, got);
                }
                if error <= DIFFERENCE {
                    break;
                }
            }
            let (error, got) = found;
            if error > DIFFERENCE {
                return fail(format!(
                    "d/d {name}: {want:.5e} by autodiff, {got:.5e} by differences"
                ));
            }
            worst = worst.max(error);
        }
        Ok(worst)
    }

    /// Rows `[B, len]` of `parts`, each a (start, length) with the content stream of its own, and
    /// everything else zero; compared part by part with the part alone.
    fn compare_parts(
        &self,
        tokens: &TokenMeta,
        parts: &[(usize, Range<usize>, u64)],
        phase: Phase,
    ) -> Verdict {
        let (t, d) = (tokens.len(), self.options.hidden);
        let mut x = vec![0.3f32; tokens.batch() * t * d];
        let mut w = vec![0.0f32; x.len()];
        let place = |row: usize, r: &Range<usize>| (row * t + r.start) * d..(row * t + r.end) * d;
        for (row, range, stream) in parts {
            x[place(*row, range)].copy_from_slice(&self.input(range.len(), *stream));
            w[place(*row, range)].copy_from_slice(&self.input(range.len(), stream + 100));
        }
        let whole = self.pass(&x, &w, tokens, phase)?;
        let mut worst = 0.0f64;
        for (row, range, stream) in parts {
            let alone = self.pass(
                &self.input(range.len(), *stream),
                &self.input(range.len(), stream + 100),
                &TokenMeta::contiguous(1, range.len(), 0),
                phase,
            )?;
            let at = place(*row, range);
            for (what, a, b) in
                [("values", &whole.y, &alone.y), ("gradients", &whole.dx, &alone.dx)]
            {
                if a.is_empty() && b.is_empty() {
                    continue;
                }
                let r = ratio(&a[at.clone()], b);
                if r > self.options.tolerance {
                    return fail(format!(
                        "{phase:?}, row {row}, tokens {range:?}: {what} differ by {r:.1e}"
                    ));
                }
                worst = worst.max(r);
            }
        }
        Ok(worst)
    }

    pub(super) fn segments(&self) -> Outcome {
        settle((|| {
            let tokens =
                TokenMeta::packed(&[vec![21, 1, 40], vec![33, 30]], 64).map_err(Error::from)?;
            let parts =
                [(0, 0..21, 10), (0, 21..22, 11), (0, 22..62, 12), (1, 0..33, 13), (1, 33..63, 14)];
            let mut worst = 0.0f64;
            for phase in [Phase::Train, Phase::Infer] {
                worst = worst.max(self.compare_parts(&tokens, &parts, phase)?);
                let d = self.options.hidden;
                let x = self.input(2 * 64, 15);
                let mut other = x.clone();
                other[..21 * d].iter_mut().for_each(|v| *v = 1.0 - *v);
                let (a, b) =
                    (self.pass(&x, &x, &tokens, phase)?, self.pass(&other, &x, &tokens, phase)?);
                if a.y[21 * d..62 * d] != b.y[21 * d..62 * d] || a.y[64 * d..] != b.y[64 * d..] {
                    return fail(format!("{phase:?}: another document changes bits"));
                }
            }
            Ok(worst)
        })())
    }

    pub(super) fn padding(&self) -> Outcome {
        settle((|| {
            let lengths = [40, 1, 23];
            let mut worst = 0.0f64;
            for phase in [Phase::Train, Phase::Infer] {
                let left = TokenMeta::left_padded(&lengths, 40).map_err(Error::from)?;
                let parts = [(0, 0..40, 20), (1, 39..40, 21), (2, 17..40, 22)];
                worst = worst.max(self.compare_parts(&left, &parts, phase)?);
                let right = TokenMeta::right_padded(&lengths, 40).map_err(Error::from)?;
                let parts = [(0, 0..40, 20), (1, 0..1, 21), (2, 0..23, 22)];
                worst = worst.max(self.compare_parts(&right, &parts, phase)?);
            }
            Ok(worst)
        })())
    }

    /// The whole sequence in pieces with a state, against one pass.
    fn pieces(&self, t: usize, sizes: &[usize]) -> Verdict {
        let d = self.options.hidden;
        let x = self.input(2 * t, 30);
        let all = tensor(x.clone(), [2, t, d], &self.device());
        let tokens = TokenMeta::left_padded(&[t, t - 7], t).map_err(Error::from)?;
        let (whole, _) = self.call(&self.mixer, all.clone(), &tokens, Phase::Infer, false, None)?;
        let (mut state, mut start, mut parts) = (None, 0, Vec::new());
        for size in sizes.iter().copied().cycle() {
            let size = size.min(t - start);
            let part = tokens.slice(start..start + size).map_err(Error::from)?;
            let piece = all.clone().narrow(1, start, size);
            let (y, next) = self.call(&self.mixer, piece, &part, Phase::Infer, true, state)?;
            if next.is_none() {
                return fail("asked for a state, got none".into());
            }
            parts.push(y);
            state = next;
            start += size;
            if start == t {
                break;
            }
        }
        // The padded start of row 1 is nobody's business.
        let seen = |y: Tensor<3>| {
            let y = host(y);
            [&y[..t * d], &y[(t + 7) * d..]].concat()
        };
        let r = ratio(&seen(Tensor::cat(parts, 1)), &seen(whole));
        if r > self.options.tolerance {
            return fail(format!("pieces of {sizes:?} differ from the whole by {r:.1e}"));
        }
        Ok(r)
    }

    pub(super) fn cache(&self) -> Outcome {
        settle(self.pieces(33, &[1]))
    }

    pub(super) fn chunks(&self) -> Outcome {
        settle(self.pieces(70, &[5, 1, 17, 30]))
    }

    pub(super) fn memory(&self) -> Outcome {
        let Some(peak_bytes) = self.options.peak_bytes else {
            return Outcome::Skipped("no way to measure memory was given");
        };
        // The runner itself may not cross threads; what a measurement needs can.
        let Self { options, mixer, rope } = self;
        let peak = |t: usize| -> Result<usize> {
            let (x, tokens) = (self.input(t, 40), TokenMeta::contiguous(1, t, 0));
            let (options, mixer, rope) =
                (CheckOptions::clone(options), mixer.clone(), rope.clone());
            let mut error = None;
            let failed = &mut error;
            let bytes = peak_bytes(&mut move || {
                let runner = Runner { options: &options, mixer: mixer.clone(), rope: rope.clone() };
                *failed = runner.pass(&x, &x, &tokens, Phase::Train).err();
            });
            error.map_or(Ok(bytes), Err)
        };
        settle((|| {
            // The first run pays for what is set up once, tables that grow with the graph among it.
            peak(2048)?;
            let (once, twice) = (peak(1024)?, peak(2048)?);
            let growth = twice as f64 / once as f64;
            if growth > 2.2 {
                return fail(format!(
                    "{once} bytes at T = 1024, {twice} at 2048: {growth:.2} times"
                ));
            }
            Ok(growth)
        })())
    }
}

/// Gradients of parameters, which are in f32 as these are.
fn grads_by_path<M: SequenceMixer>(
    mixer: &M,
    grads: &burn::optim::GradientsParams,
) -> Result<Vec<(String, Vec<f32>)>> {
    fn of<const D: usize>(
        info: &ParamInfo,
        grads: &burn::optim::GradientsParams,
    ) -> Result<Option<Vec<f32>>> {
        match grads.get::<D>(info.id) {
            Some(grad) if grad.dtype() != DType::F32 => {
                let reason = format!("the gradient of {} is {:?}", info.path, grad.dtype());
                Err(Error::shape("the mixer", reason))
            }
            grad => Ok(grad.map(host)),
        }
    }
    let of = |info: ParamInfo| {
        let data = match info.shape.len() {
            1 => of::<1>(&info, grads),
            2 => of::<2>(&info, grads),
            3 => of::<3>(&info, grads),
            4 => of::<4>(&info, grads),
            _ => Ok(None),
        };
        data.map(|data| data.map(|data| (info.path, data))).transpose()
    };
    params(mixer).into_iter().filter_map(of).collect()
}
