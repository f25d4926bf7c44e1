//! Tensors as rows of numbers, and results that several threads write by columns.

use crate::room::Room;
use burn_flex::FlexTensor;
use std::marker::PhantomData;

/// An f32 tensor `[B, T, W]` read through its strides; the W numbers of a token are adjacent.
pub(crate) struct Rows {
    tensor: FlexTensor,
    pub batch: usize,
    pub tokens: usize,
    pub width: usize,
    first: usize,
    of_row: usize,
    of_token: usize,
}

impl Rows {
    pub fn new(tensor: FlexTensor) -> Self {
        let strides = tensor.layout().strides();
        let plain = strides[2] == 1 && strides.iter().all(|s| *s >= 0);
        let tensor = if plain { tensor } else { tensor.to_contiguous() };
        let (layout, s) = (tensor.layout(), tensor.layout().strides());
        let shape = layout.shape();
        Self {
            batch: shape[0],
            tokens: shape[1],
            width: shape[2],
            first: layout.start_offset(),
            of_row: s[0] as usize,
            of_token: s[1] as usize,
            tensor,
        }
    }

    /// Numbers from a token to the next.
    pub fn stride(&self) -> usize {
        self.of_token
    }

    /// The numbers of a token.
    #[inline(always)]
    pub fn at(&self, row: usize, token: usize) -> &[f32] {
        let first = self.first + row * self.of_row + token * self.of_token;
        &self.tensor.storage::<f32>()[first..first + self.width]
    }
}

/// Rows of one width that threads write together, each in columns of its own.
pub(crate) struct Columns<'a> {
    first: *mut f32,
    len: usize,
    width: usize,
    of: PhantomData<&'a mut [f32]>,
}

// Safe: `slice` is, by what its callers vouch for, called for places that do not overlap.
unsafe impl Send for Columns<'_> {}
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    pub fn new(data: &'a mut [f32], width: usize) -> Self {
        Self { first: data.as_mut_ptr(), len: data.len(), width, of: PhantomData }
    }

    /// Rows that nobody has written yet, for [`write`](Self::write).
    pub fn room(room: &'a mut Room, width: usize) -> Self {
        let len = room.parts(usize::MAX).map(|all| all.len()).sum();
        Self { first: room.as_mut_ptr(), len, width, of: PhantomData }
    }

    /// Columns of a row from `first` on.
    ///
    /// # Safety
    /// No other thread may hold the same place.
    #[inline(always)]
    pub unsafe fn write(&self, row: usize, first: usize, x: &[f32]) {
        let from = row * self.width + first;
        assert!(from + x.len() <= self.len, "columns within the rows");
        // Safe: within the data, and nobody else's.
        unsafe { self.first.add(from).copy_from_nonoverlapping(x.as_ptr(), x.len()) }
    }

    /// Columns `first .. first + count` of a row.
    ///
    /// # Safety
    /// No two threads may hold the same place.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn slice(&self, row: usize, first: usize, count: usize) -> &mut [f32] {
        let from = row * self.width + first;
        assert!(from + count <= self.len, "columns within the rows");
        // Safe: within the data, and nobody else's.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(from), count) }
    }
}
