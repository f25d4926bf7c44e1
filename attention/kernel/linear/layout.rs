//! A product of matrices in rows, as a library that counts by columns is told it.
//!
//! Read by columns, a matrix in rows is its own transpose. `C = A·B` is `Cᵀ = Bᵀ·Aᵀ`: the library's left factor
//! is B, its right one A, and what it writes by columns is C in rows. Nothing is copied: a factor that is a
//! transposed view is told to be the other way round.
#![cfg_attr(not(feature = "cuda"), allow(dead_code))]

/// Largest size and distance that the library's products have.
const MOST: usize = i32::MAX as usize;

/// A matrix as it lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub rows: usize,
    pub columns: usize,
    /// From row to row and from column to column, in elements.
    pub strides: [usize; 2],
}

impl View {
    /// Its transpose.
    pub fn turned(self) -> Self {
        let [row, column] = self.strides;
        Self { rows: self.columns, columns: self.rows, strides: [column, row] }
    }

    /// The transpose of this as a factor; none where neither rows nor columns are runs of neighbours
    /// that do not overlap.
    pub fn factor(self) -> Option<Factor> {
        let View { rows, columns, strides: [row, column] } = self;
        // Rows of neighbours are the columns of the transpose.
        if let Some(ld) = apart((columns, column), (rows, row)) {
            return Some(Factor { rows: columns, columns: rows, ld, turned: false });
        }
        let ld = apart((rows, row), (columns, column))?;
        Some(Factor { rows, columns, ld, turned: true })
    }
}

/// How far runs of neighbours are apart: `inner` and `outer` are length and stride within a run and from
/// run to run.
fn apart(inner: (usize, usize), outer: (usize, usize)) -> Option<usize> {
    if inner.0 > 1 && inner.1 != 1 {
        return None;
    }
    // The stride of a dimension of 1 says nothing.
    let ld = if outer.0 == 1 { inner.0 } else { outer.1 };
    (ld >= inner.0 && ld <= MOST).then_some(ld)
}

/// A factor by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Factor {
    /// As it is stored.
    pub rows: usize,
    pub columns: usize,
    /// From column to column, in elements.
    pub ld: usize,
    /// Whether its transpose is multiplied.
    pub turned: bool,
}

/// Products of one size at once: how many, and how far their factors are apart, in elements. Results are
/// side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Batch {
    pub count: usize,
    /// 0 where all have the same factor.
    pub left: usize,
    pub right: usize,
}

impl Batch {
    /// A product alone.
    pub const ONE: Self = Self { count: 1, left: 0, right: 0 };
}

/// From one matrix to the next, where dimensions of these lengths and strides number the matrices; none
/// where it is not the same distance throughout.
pub(super) fn distance(lengths: &[usize], strides: &[usize]) -> Option<usize> {
    // From the innermost; the stride of a dimension of 1 says nothing.
    let mut dims = lengths.iter().zip(strides).rev().filter(|(length, _)| **length != 1);
    let Some((length, first)) = dims.next() else {
        return Some(0);
    };
    let mut reach = first.checked_mul(*length)?;
    for (length, stride) in dims {
        if *stride != reach {
            return None;
        }
        reach = reach.checked_mul(*length)?;
    }
    Some(*first)
}

/// `D = left·right`, all by columns, D without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Gemm {
    /// Rows of D, which are columns of C.
    pub m: usize,
    /// Columns of D, which are rows of C.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    pub left: Factor,
    pub right: Factor,
    pub batch: Batch,
}

impl Gemm {
    /// `C = A·B` in rows; none where the library cannot read a factor where it lies, and where sizes do
    /// not fit, are 0 or too large.
    pub fn new(a: View, b: View) -> Option<Self> {
        let (m, n, k) = (b.columns, a.rows, a.columns);
        let fits = |size: usize| size > 0 && size <= MOST;
        if b.rows != k || !(fits(m) && fits(n) && fits(k)) {
            return None;
        }
        let (left, right) = (b.factor()?, a.factor()?);
        Some(Self { m, n, k, left, right, batch: Batch::ONE })
    }

    /// `count` of them, A and B each so far from the next in elements; none where the library does not
    /// count so far.
    pub fn times(self, count: usize, [a, b]: [usize; 2]) -> Option<Self> {
        let fits = count > 0 && count <= MOST && a <= MOST && b <= MOST;
        // One alone is the same product wherever others would be.
        let [left, right] = if count == 1 { [0, 0] } else { [b, a] };
        fits.then_some(Self { batch: Batch { count, left, right }, ..self })
    }
}

/// What a product takes or gives beside its matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Beside {
    Nothing,
    /// A number for each column of C, a row of D, is added.
    Bias,
    /// Sums of A's rows, which are the columns of the right factor, are written.
    RowSums,
}

/// The numbers of a matrix; sums are in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Numbers {
    F32,
    Bf16,
    F16,
}

/// Best alignment that a kernel asks for, bytes.
pub(super) const ALIGNED: u32 = 256;

/// The largest power of two that divides an address, up to [`ALIGNED`].
pub(super) fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(ALIGNED.trailing_zeros())
}

impl Numbers {
    /// Bytes of one.
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }
}

/// What all left and right factors and results of these addresses are aligned by, bytes.
pub(super) fn aligned(gemm: &Gemm, [numbers, out]: [Numbers; 2], addresses: [u64; 3]) -> [u32; 3] {
    let Batch { count, left, right } = gemm.batch;
    let apart = [left, right, if count == 1 { 0 } else { gemm.m * gemm.n }];
    let bytes = [numbers, numbers, out].map(Numbers::bytes);
    std::array::from_fn(|i| alignment(addresses[i] | (apart[i] as u64 * bytes[i])))
}

/// All that decides which kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub gemm: Gemm,
    /// Of both factors.
    pub numbers: Numbers,
    /// Of D.
    pub out: Numbers,
    pub beside: Beside,
    /// Of the left and the right factor and of D, bytes.
    pub aligned: [u32; 3],
}

impl std::fmt::Display for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Gemm { m, n, k, left, right, batch } = self.gemm;
        if batch.count > 1 {
            write!(f, "{} times ", batch.count)?;
        }
        let order = |of: Factor| if of.turned { "turned " } else { "" };
        write!(f, "[{n}, {k}] x [{k}, {m}] in {:?}", self.numbers)?;
        if self.out != self.numbers {
            write!(f, " to {:?}", self.out)?;
        }
        let beside = match self.beside {
            Beside::Nothing => "",
            Beside::Bias => ", with a bias",
            Beside::RowSums => ", with the bias's gradient",
        };
        let (a, b) = (order(right), order(left));
        let of = self.aligned;
        write!(f, "{beside} (rows of {a}{}, {b}{}; aligned {of:?})", right.ld, left.ld)
    }
}
