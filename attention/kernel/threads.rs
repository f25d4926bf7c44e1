//! Jobs on all threads, the calling one among them: a caller that only waited would be put to sleep
//! and woken, which takes as long as a small product.

use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread stays awake for the last jobs of others: a little longer than it takes to be woken.
const PATIENCE: Duration = Duration::from_micros(200);

/// Runs `work` for each number below `count`, in about this order.
pub(crate) fn each(count: usize, work: impl Fn(usize) + Sync) {
    each_with(count, || (), |(), i| work(i));
}

/// The same without the calling thread, which sleeps meanwhile: where jobs take milliseconds, one
/// thread more than there are cores costs more than it is to be woken.
pub(crate) fn each_in_pool(count: usize, work: impl Fn(usize) + Sync) {
    (0..count).into_par_iter().with_max_len(1).for_each(&work);
}

/// The same with something of its own for every thread that takes part.
pub(crate) fn each_with<T>(
    count: usize,
    own: impl Fn() -> T + Sync,
    work: impl Fn(&mut T, usize) + Sync,
) {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut i = next.fetch_add(1, Ordering::Relaxed);
        if i < count {
            let mut own = own();
            while i < count {
                work(&mut own, i);
                i = next.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let helpers = rayon::current_num_threads().min(count).saturating_sub(1);
    let ended = AtomicUsize::new(0);
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| {
                take();
                ended.fetch_add(1, Ordering::Release);
            });
        }
        take();
        // The others are about to end; the scope would have this thread sleep until they do.
        let begin = Instant::now();
        while ended.load(Ordering::Acquire) < helpers && begin.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
    });
}

/// Runs `work` for each of `jobs`, in about their order.
pub(crate) fn each_of<J: Send>(jobs: Vec<J>, work: impl Fn(J) + Sync) {
    each_of_with(jobs, || (), |(), job| work(job));
}

/// The same with something of its own for every thread that takes part.
pub(crate) fn each_of_with<J: Send, T>(
    jobs: Vec<J>,
    own: impl Fn() -> T + Sync,
    work: impl Fn(&mut T, J) + Sync,
) {
    let jobs: Vec<_> = jobs.into_iter().map(|job| Mutex::new(Some(job))).collect();
    each_with(jobs.len(), own, |own, i| {
        let job = jobs[i].lock().unwrap_or_else(PoisonError::into_inner).take();
        work(own, job.expect("every number comes once"));
    });
}

/// Results of `work` for each number below `count`, in order.
pub(crate) fn map<R: Send>(count: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let results: Vec<_> = (0..count).map(|_| Mutex::new(None)).collect();
    each(count, |i| {
        *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(work(i));
    });
    let result = |x: Mutex<Option<R>>| x.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().map(|x| result(x).expect("every number came once")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_runs_once() {
        for count in [0, 1, 2, 3, 100, 10_000] {
            let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            each(count, |i| _ = seen[i].fetch_add(1, Ordering::Relaxed));
            each_in_pool(count, |i| _ = seen[i].fetch_add(1, Ordering::Relaxed));
            assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 2), "{count}");
            assert_eq!(map(count, |i| 3 * i), (0..count).map(|i| 3 * i).collect::<Vec<_>>());
        }
    }

    /// Jobs of jobs, more of them than threads: nobody waits for a thread that waits for him.
    #[test]
    fn jobs_may_have_jobs_of_their_own() {
        let sum = AtomicUsize::new(0);
        let add = |i| _ = sum.fetch_add(i, Ordering::Relaxed);
        each(50, |i| each(50, |j| each(3, |k| add(i + j + k))));
        rayon::scope(|scope| scope.spawn(|_| each(50, add)));
        assert_eq!(sum.load(Ordering::Relaxed), 2 * 50 * 50 * 3 * 1225 / 50 + 50 * 50 * 3 + 1225);
    }

    #[test]
    fn jobs_are_handed_over_and_own_things_stay_with_their_thread() {
        let done = Mutex::new(vec![]);
        let jobs: Vec<String> = (0..40).map(|i| i.to_string()).collect();
        each_of_with(jobs.clone(), Vec::new, |mine: &mut Vec<usize>, job| {
            mine.push(job.len());
            done.lock().unwrap().push((job, mine.len()));
        });
        let mut done = done.into_inner().unwrap();
        let own = done.iter().filter(|(_, n)| *n == 1).count();
        assert!((1..=rayon::current_num_threads()).contains(&own), "{own} threads");
        done.sort();
        let mut jobs = jobs;
        jobs.sort();
        assert_eq!(done.into_iter().map(|(job, _)| job).collect::<Vec<_>>(), jobs);
    }
}
