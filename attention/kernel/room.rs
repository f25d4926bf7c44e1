//! Memory for results that jobs write part by part: nobody clears it beforehand, which would take
//! one thread longer than all threads take to fill it.

use crate::threads;
use std::mem::{ManuallyDrop, MaybeUninit};

/// Elements that nobody has written yet.
pub(crate) struct Room(Vec<MaybeUninit<f32>>);

impl Room {
    pub fn new(len: usize) -> Self {
        let mut data = Vec::with_capacity(len);
        ask_for_large_pages(&mut data, len);
        // Safe: such elements may hold anything.
        unsafe { data.set_len(len) };
        Self(data)
    }

    /// Neighbouring parts of `len` elements, the last one perhaps shorter.
    pub fn parts(&mut self, len: usize) -> std::slice::ChunksMut<'_, MaybeUninit<f32>> {
        self.0.chunks_mut(len.max(1))
    }

    pub fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }

    /// # Safety
    /// Every element must have been written.
    pub unsafe fn written(self) -> Vec<f32> {
        let mut data = ManuallyDrop::new(self.0);
        let (first, len, capacity) = (data.as_mut_ptr(), data.len(), data.capacity());
        // Safe: the same memory, whose elements the caller vouches for.
        unsafe { Vec::from_raw_parts(first.cast(), len, capacity) }
    }
}

/// `len` elements in parts of `part`, each written by `write` with its number; on all threads where
/// they are `worth` it.
///
/// # Safety
/// `write` must write all of every part.
pub(crate) unsafe fn filled(
    len: usize,
    part: usize,
    worth: bool,
    write: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) -> Vec<f32> {
    let mut room = Room::new(len);
    if worth {
        let parts = room.parts(part).enumerate().collect();
        threads::each_of(parts, |(n, part)| write(n, part));
    } else {
        room.parts(part).enumerate().for_each(|(n, part)| write(n, part));
    }
    // Safe: the parts are all of it.
    unsafe { room.written() }
}

/// Asks the system to back what is large with large pages, of which there are fewer to clear and to
/// look up.
fn ask_for_large_pages(data: &mut Vec<MaybeUninit<f32>>, len: usize) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let bytes = len * size_of::<f32>();
        let before = data.as_mut_ptr().addr().wrapping_neg() % PAGE;
        let whole = bytes.saturating_sub(before) / PAGE * PAGE;
        if whole > 0 {
            let first = data.as_mut_ptr().wrapping_byte_add(before);
            // Safe: advice about memory that is ours; what it is worth does not matter.
            unsafe { libc::madvise(first.cast(), whole, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (data, len);
}

/// A part of a [`Room`], cleared by the job that needs it.
#[inline(always)]
pub(crate) fn zeroed(part: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    part.fill(MaybeUninit::new(0.0));
    // Safe: just written.
    unsafe { &mut *(std::ptr::from_mut(part) as *mut [f32]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_a_vector() {
        let mut room = Room::new(10);
        for (n, part) in room.parts(4).enumerate() {
            zeroed(part).iter_mut().for_each(|x| *x += n as f32);
        }
        // Safe: the parts are all of it.
        assert_eq!(unsafe { room.written() }, [0., 0., 0., 0., 1., 1., 1., 1., 2., 2.]);
        assert_eq!(Room::new(0).parts(0).count(), 0);
    }
}
