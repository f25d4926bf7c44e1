//! How a scan is divided among threads: neighbouring channels or heads of one row and one group.

use crate::threads;
use std::ops::Range;

/// What one thread computes at a time.
#[derive(Clone)]
pub(crate) struct Job {
    pub row: usize,
    pub group: usize,
    /// Channels or heads, of all groups.
    pub members: Range<usize>,
}

impl Job {
    /// At most `each` members of one group at a time, row by row.
    pub fn all(rows: usize, groups: usize, of_group: usize, each: usize) -> Vec<Self> {
        let mut jobs = Vec::new();
        for row in 0..rows {
            for group in 0..groups {
                let end = (group + 1) * of_group;
                for first in (group * of_group..end).step_by(each) {
                    jobs.push(Self { row, group, members: first..(first + each).min(end) });
                }
            }
        }
        jobs
    }

    /// Results of `work`, in the order of the jobs, from all threads where they are `worth` it.
    pub fn run<R: Send>(jobs: &[Self], worth: bool, work: impl Fn(&Self) -> R + Sync) -> Vec<R> {
        if worth {
            threads::map(jobs.len(), |i| work(&jobs[i]))
        } else {
            jobs.iter().map(work).collect()
        }
    }
}
