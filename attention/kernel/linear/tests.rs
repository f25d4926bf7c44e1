//! What cuBLASLt is told, read as its documentation has it, against sums over the matrices as they lie.

use super::layout::{ALIGNED, Batch, Factor, Gemm, Numbers, View, aligned, alignment, distance};

/// Element (i, j) of a factor as it is multiplied, where the library would read it.
fn read(x: &[f32], of: Factor, i: usize, j: usize) -> f32 {
    let (row, column) = if of.turned { (j, i) } else { (i, j) };
    assert!(row < of.rows && column < of.columns && of.ld >= of.rows, "{of:?}: ({i}, {j})");
    x[row + column * of.ld]
}

/// All of them by columns, `count·m·n`: CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET of each matrix.
fn libraries(gemm: &Gemm, left: &[f32], right: &[f32]) -> Vec<f32> {
    let Batch { count, left: of_left, right: of_right } = gemm.batch;
    (0..count).flat_map(|i| library(gemm, &left[i * of_left..], &right[i * of_right..])).collect()
}

/// D by columns, `m·n`.
fn library(gemm: &Gemm, left: &[f32], right: &[f32]) -> Vec<f32> {
    let mut d = vec![f32::NAN; gemm.m * gemm.n];
    for j in 0..gemm.n {
        for i in 0..gemm.m {
            let sum =
                (0..gemm.k).map(|l| read(left, gemm.left, i, l) * read(right, gemm.right, l, j));
            d[i + j * gemm.m] = sum.sum();
        }
    }
    d
}

/// CUBLASLT_EPILOGUE_BIAS: a number per row of D.
fn with_bias(gemm: &Gemm, d: &mut [f32], bias: &[f32]) {
    for (place, x) in d.iter_mut().enumerate() {
        *x += bias[place % gemm.m];
    }
}

/// CUBLASLT_EPILOGUE_BGRADB: the right factor summed over the inner dimension, a number per column of D.
fn right_sums(gemm: &Gemm, right: &[f32]) -> Vec<f32> {
    (0..gemm.n).map(|j| (0..gemm.k).map(|l| read(right, gemm.right, l, j)).sum()).collect()
}

/// Small integers, whose sums are exact.
fn numbers(count: usize, salt: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + salt * 104_729) % 13) as f32 - 6.0).collect()
}

fn at(x: &[f32], of: View, i: usize, j: usize) -> f32 {
    x[i * of.strides[0] + j * of.strides[1]]
}

/// Ways in which a matrix of that size can lie.
fn ways(rows: usize, columns: usize) -> Vec<View> {
    let of = |row, column| View { rows, columns, strides: [row, column] };
    vec![
        of(columns, 1),
        of(1, rows),
        // A part of wider rows, and of longer columns.
        of(columns + 5, 1),
        of(1, rows + 3),
    ]
}

/// The length that a view reaches over.
fn reach(of: View) -> usize {
    (of.rows - 1) * of.strides[0] + (of.columns - 1) * of.strides[1] + 1
}

const SIZES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (3, 17, 5), (1, 30, 7), (13, 1, 5), (5, 3, 1), (1, 9, 1), (1, 1, 8), (7, 9, 11)];

#[test]
fn products_equal_sums_however_matrices_lie() {
    for (m, k, n) in SIZES {
        for a in ways(m, k) {
            for b in ways(k, n) {
                let (of_a, of_b) = (numbers(reach(a), 1), numbers(reach(b), 2));
                let gemm = Gemm::new(a, b).expect("rows or columns are neighbours");
                let got = library(&gemm, &of_b, &of_a);
                for (place, got) in got.iter().enumerate() {
                    let (i, j) = (place / n, place % n);
                    let want: f32 = (0..k).map(|l| at(&of_a, a, i, l) * at(&of_b, b, l, j)).sum();
                    assert_eq!(*got, want, "{a:?} by {b:?} at ({i}, {j}): {gemm:?}");
                }
            }
        }
    }
}

/// x `[M, K]`, weight `[N, K]`, as a layer has them.
#[test]
fn a_layer_and_its_gradients_equal_the_formula() {
    for (m, k, n) in SIZES {
        let rows = |rows, columns| View { rows, columns, strides: [columns, 1] };
        let (x, w, dy) = (rows(m, k), rows(n, k), rows(m, n));
        let (of_x, of_w) = (numbers(m * k, 1), numbers(n * k, 2));
        let (of_dy, bias) = (numbers(m * n, 3), numbers(n, 4));

        let forward = Gemm::new(x, w.turned()).unwrap();
        let mut y = library(&forward, &of_w, &of_x);
        with_bias(&forward, &mut y, &bias);
        for i in 0..m {
            for j in 0..n {
                let sum: f32 = (0..k).map(|l| of_x[i * k + l] * of_w[j * k + l]).sum();
                assert_eq!(y[i * n + j], sum + bias[j], "y {m} {k} {n}");
            }
        }

        let dx = library(&Gemm::new(dy, w).unwrap(), &of_w, &of_dy);
        for i in 0..m {
            for l in 0..k {
                let sum: f32 = (0..n).map(|j| of_dy[i * n + j] * of_w[j * k + l]).sum();
                assert_eq!(dx[i * k + l], sum, "dx {m} {k} {n}");
            }
        }

        let to_weight = Gemm::new(dy.turned(), x).unwrap();
        let dw = library(&to_weight, &of_x, &of_dy);
        let db = right_sums(&to_weight, &of_dy);
        for j in 0..n {
            for l in 0..k {
                let sum: f32 = (0..m).map(|i| of_dy[i * n + j] * of_x[i * k + l]).sum();
                assert_eq!(dw[j * k + l], sum, "dw {m} {k} {n}");
            }
            let sum: f32 = (0..m).map(|i| of_dy[i * n + j]).sum();
            assert_eq!(db[j], sum, "db {m} {k} {n}");
        }
    }
}

#[test]
fn what_cannot_be_read_where_it_lies_is_refused() {
    let good = View { rows: 4, columns: 3, strides: [3, 1] };
    let of = |strides| View { rows: 4, columns: 3, strides };
    // Broadcast, overlapping, gaps in both directions.
    for strides in [[0, 1], [1, 0], [0, 0], [2, 1], [1, 3], [6, 2]] {
        assert!(of(strides).factor().is_none(), "{strides:?}");
        assert!(Gemm::new(of(strides), good.turned()).is_none());
    }
    // The stride of a dimension of 1 says nothing.
    let row = View { rows: 1, columns: 3, strides: [0, 1] };
    assert_eq!(row.factor(), Some(Factor { rows: 3, columns: 1, ld: 3, turned: false }));
    let column = View { rows: 3, columns: 1, strides: [4, 7] };
    assert_eq!(column.factor(), Some(Factor { rows: 1, columns: 3, ld: 4, turned: false }));
    assert!(Gemm::new(good, good).is_none(), "inner sizes differ");
    let none = View { rows: 0, columns: 3, strides: [3, 1] };
    assert!(Gemm::new(none, good.turned()).is_none());
    let far = View { rows: 2, columns: 3, strides: [1 << 31, 1] };
    assert!(Gemm::new(far, good.turned()).is_none());
}

#[test]
fn addresses_have_alignments() {
    for (address, want) in [(0, ALIGNED), (512, 256), (256, 256), (128, 128), (6, 2), (7, 1)] {
        assert_eq!(alignment(address), want, "{address}");
    }
    // Many are aligned as the least of them.
    let rows = |rows, columns| View { rows, columns, strides: [columns, 1] };
    let one = Gemm::new(rows(8, 6), rows(6, 4)).unwrap();
    assert_eq!(aligned(&one, [Numbers::F32; 2], [512, 8, 256]), [256, 8, 256]);
    let many = one.times(3, [48, 0]).unwrap();
    assert_eq!(aligned(&many, [Numbers::F32; 2], [512, 512, 256]), [256, 64, 128]);
    assert_eq!(aligned(&many, [Numbers::Bf16; 2], [6, 512, 256]), [2, 32, 64]);
    let mixed = [Numbers::Bf16, Numbers::F32];
    assert_eq!(aligned(&many, mixed, [6, 512, 256]), [2, 32, 128]);
}

#[test]
fn a_layer_is_told_as_its_matrices_lie() {
    let rows = |rows, columns| View { rows, columns, strides: [columns, 1] };
    let (x, w, dy) = (rows(8, 3), rows(5, 3), rows(8, 5));
    let of = |a: View, b: View| {
        let Gemm { left, right, .. } = Gemm::new(a, b).unwrap();
        ((left.turned, left.ld), (right.turned, right.ld))
    };
    assert_eq!(of(x, w.turned()), ((true, 3), (false, 3)));
    assert_eq!(of(dy, w), ((false, 3), (false, 5)));
    assert_eq!(of(dy.turned(), x), ((false, 3), (true, 5)));
}

/// Matrices numbered by two dimensions, all of one factor that is the same for all, or each apart by more
/// than it takes.
#[test]
fn many_products_equal_sums() {
    for (m, k, n) in SIZES {
        for a in ways(m, k) {
            for (b, gap) in ways(k, n).into_iter().zip([0, 2, 0, 7]) {
                let of = [reach(a) + gap, reach(b) + gap];
                for apart in [of, [0, of[1]], [of[0], 0]] {
                    let (of_a, of_b) = (numbers(6 * of[0], 1), numbers(6 * of[1], 2));
                    let one = Gemm::new(a, b).expect("rows or columns are neighbours");
                    let gemm = one.times(6, apart).expect("they are near");
                    let got = libraries(&gemm, &of_b, &of_a);
                    assert_eq!(got.len(), 6 * m * n);
                    for (place, got) in got.iter().enumerate() {
                        let (many, i, j) = (place / (m * n), place / n % m, place % n);
                        let (a_of, b_of) = (&of_a[many * apart[0]..], &of_b[many * apart[1]..]);
                        let want: f32 = (0..k).map(|l| at(a_of, a, i, l) * at(b_of, b, l, j)).sum();
                        assert_eq!(*got, want, "{many}: {a:?} by {b:?} at ({i}, {j}): {gemm:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn matrices_are_numbered_by_equal_distances() {
    for (lengths, strides, want) in [
        (&[][..], &[][..], Some(0)),
        (&[5], &[12], Some(12)),
        (&[5], &[0], Some(0)),
        (&[2, 3], &[36, 12], Some(12)),
        (&[4, 2, 3], &[72, 36, 12], Some(12)),
        // The stride of a dimension of 1 says nothing.
        (&[1, 3], &[7, 12], Some(12)),
        (&[3, 1], &[12, 7], Some(12)),
        (&[2, 1, 3], &[36, 1, 12], Some(12)),
        (&[1, 1], &[3, 4], Some(0)),
        // All the same, but not part of them.
        (&[2, 3], &[0, 0], Some(0)),
        (&[2, 3], &[12, 0], None),
        (&[2, 3], &[0, 12], None),
        (&[2, 3], &[12, 24], None),
        (&[2, 3], &[40, 12], None),
    ] {
        assert_eq!(distance(lengths, strides), want, "{lengths:?} {strides:?}");
    }
    let rows = |rows, columns| View { rows, columns, strides: [columns, 1] };
    let one = Gemm::new(rows(2, 3), rows(3, 4)).unwrap();
    assert_eq!(one.times(1, [6, 12]), Some(one), "one is the same wherever others would be");
    assert_eq!(one.times(2, [6, 12]).unwrap().batch, Batch { count: 2, left: 12, right: 6 });
    assert!(one.times(0, [6, 12]).is_none());
    assert!(one.times(1 << 31, [6, 12]).is_none());
    assert!(one.times(2, [1 << 31, 12]).is_none());
}
