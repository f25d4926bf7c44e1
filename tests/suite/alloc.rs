//! What a piece of code allocates, unmixed with the tests that run beside it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, AtomicPtr, AtomicUsize, Ordering::Relaxed};

/// What [`measure`] saw, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Most held at one time, beyond what was held at the start.
    pub peak: usize,
    /// Largest single allocation.
    pub largest: usize,
}

/// Run `work` on threads of its own, as many as the machine has cores, and count what they
/// allocate. Work that hands itself to threads outside that pool is not seen.
pub fn measure<R: Send>(work: impl FnOnce() -> R + Send) -> Usage {
    let counters = Arc::new(Counters::default());
    let of_thread = counters.clone();
    let pool = rayon::ThreadPoolBuilder::new()
        .start_handler(move |_| COUNTERS.set(Arc::as_ptr(&of_thread)))
        .exit_handler(|_| COUNTERS.set(ptr::null()))
        .build()
        .expect("threads");
    drop(pool.install(work));
    // Joins the threads, none of which can look at the counters then.
    drop(pool);
    Usage {
        peak: counters.peak.load(Relaxed).max(0) as usize,
        largest: counters.largest.load(Relaxed),
    }
}

/// What all threads of this process allocate meanwhile: for a process in which nothing else runs.
pub fn measure_process<R>(work: impl FnOnce() -> R) -> Usage {
    let counters: &'static Counters = Box::leak(Box::default());
    PROCESS.store(ptr::from_ref(counters).cast_mut(), Relaxed);
    drop(work());
    PROCESS.store(ptr::null_mut(), Relaxed);
    Usage {
        peak: counters.peak.load(Relaxed).max(0) as usize,
        largest: counters.largest.load(Relaxed),
    }
}

/// Counters of [`measure_process`], which live on.
static PROCESS: AtomicPtr<Counters> = AtomicPtr::new(ptr::null_mut());

#[derive(Default)]
struct Counters {
    held: AtomicIsize,
    peak: AtomicIsize,
    largest: AtomicUsize,
}

impl Counters {
    fn add(&self, bytes: usize) {
        let held = self.held.fetch_add(bytes as isize, Relaxed) + bytes as isize;
        self.peak.fetch_max(held, Relaxed);
        self.largest.fetch_max(bytes, Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.held.fetch_sub(bytes as isize, Relaxed);
    }
}

thread_local! {
    /// Of the measurement that this thread works for. Needs no allocation and no destructor,
    /// so that the allocator may look at any time.
    static COUNTERS: Cell<*const Counters> = const { Cell::new(ptr::null()) };
}

fn count(what: impl FnOnce(&Counters)) {
    let of_thread = COUNTERS.get();
    let counters = if of_thread.is_null() { PROCESS.load(Relaxed) } else { of_thread };
    // SAFETY: the thread's are set while it belongs to a pool of `measure`, which outlives it;
    // those of the process are leaked.
    if let Some(counters) = unsafe { counters.as_ref() } {
        what(counters);
    }
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|c| c.add(layout.size()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(|c| c.add(layout.size()));
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(|c| {
            c.remove(layout.size());
            c.add(size);
        });
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        count(|c| c.remove(layout.size()));
        unsafe { System.dealloc(old, layout) }
    }
}

#[test]
fn allocations_are_counted_on_all_threads_of_the_work_and_on_no_others() {
    use rayon::prelude::*;
    let beside = std::thread::spawn(|| vec![1u8; 1 << 24]);
    let usage = measure(|| {
        let kept = vec![1u8; 3 << 20];
        drop(vec![1u8; 2 << 20]);
        let in_parallel: usize = (0..4).into_par_iter().map(|_| vec![1u8; 1 << 20].len()).sum();
        kept.len() + in_parallel
    });
    beside.join().unwrap();
    assert_eq!(usage.largest, 3 << 20);
    let mebibytes = usage.peak as f64 / (1u64 << 20) as f64;
    // 3 + 2 in turn, or 3 + 1 per thread.
    let most = 3.0 + f64::max(2.0, rayon::current_num_threads() as f64);
    assert!((5.0..most + 0.5).contains(&mebibytes), "{usage:?}");
}
