//! Muon against itself in f64, written down number by number.

use burn::optim::Optimizer;
use burn::tensor::{Device, Tensor, TensorData};
use longburn::streams::{Draw, Purpose, Streams};
use longburn::testing::ratio;
use longburn::training::{Muon, MuonScale};

/// `[rows][columns]`
type Matrix = Vec<Vec<f64>>;

fn normal(rows: usize, columns: usize, stream: u32) -> Matrix {
    let mut rng = Streams::new(3).rng(Purpose::Synthetic, 0, 0, stream);
    // Numbers that f32 has, so that both begin with the same ones.
    (0..rows).map(|_| (0..columns).map(|_| f64::from(rng.normal() as f32)).collect()).collect()
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let cell = |row: &Vec<f64>, j: usize| row.iter().zip(b).map(|(x, b)| x * b[j]).sum();
    a.iter().map(|row| (0..b[0].len()).map(|j| cell(row, j)).collect()).collect()
}

fn turned(a: &Matrix) -> Matrix {
    (0..a[0].len()).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

/// Sum of matrices, each times a number.
fn sum(terms: &[(f64, &Matrix)]) -> Matrix {
    let (rows, columns) = (terms[0].1.len(), terms[0].1[0].len());
    let cell = |i: usize, j: usize| terms.iter().map(|(by, m)| by * m[i][j]).sum();
    (0..rows).map(|i| (0..columns).map(|j| cell(i, j)).collect()).collect()
}

fn orthogonal(g: &Matrix) -> Matrix {
    let norm = g.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
    let mut x = sum(&[(1.0 / norm, g)]);
    for _ in 0..5 {
        let a = product(&x, &turned(&x));
        let b = sum(&[(-4.7750, &a), (2.0315, &product(&a, &a))]);
        x = sum(&[(3.4445, &x), (1.0, &product(&b, &x))]);
    }
    x
}

fn tensor(m: &Matrix) -> Tensor<2> {
    let data: Vec<f32> = m.iter().flatten().map(|x| *x as f32).collect();
    Tensor::from_data(TensorData::new(data, [m.len(), m[0].len()]), &Device::flex())
}

fn flat(m: &Matrix) -> Vec<f32> {
    m.iter().flatten().map(|x| *x as f32).collect()
}

#[test]
fn steps_equal_the_reference() {
    let plain = Muon { nesterov: false, ..Muon::default() };
    let rules = [
        Muon::default(),
        plain,
        Muon { scale: MuonScale::Original, lr_factor: 0.5, ..plain },
        Muon { momentum: 0.5, weight_decay: 0.2, ..Muon::default() },
        Muon { weight_decay: 0.2, lr_factor: 0.5, ..Muon::default() },
        Muon { momentum: 0.0, scale: MuonScale::Original, weight_decay: 0.1, ..plain },
    ];
    for (rows, columns) in [(4, 7), (7, 4), (5, 5)] {
        for rule in rules {
            let (lr, keep) = (0.1, f64::from(rule.momentum));
            let start = normal(rows, columns, 0);
            let (mut got, mut state) = (tensor(&start), None);
            let (mut want, mut mean) = (start.clone(), sum(&[(0.0, &start)]));
            for step in 1..5 {
                let grad = normal(rows, columns, step);
                (got, state) = rule.step(lr, got, tensor(&grad), state);

                mean = sum(&[(keep, &mean), (1.0 - keep, &grad)]);
                let ahead = match rule.nesterov {
                    true => sum(&[(keep, &mean), (1.0 - keep, &grad)]),
                    false => mean.clone(),
                };
                let scale = match rule.scale {
                    MuonScale::Original => (rows as f64 / columns as f64).max(1.0).sqrt(),
                    MuonScale::MatchAdamw => 0.2 * (rows.max(columns) as f64).sqrt(),
                };
                let lr = lr * rule.lr_factor;
                let decay = 1.0 - lr * f64::from(rule.weight_decay);
                want = sum(&[(decay, &want), (-lr * scale, &orthogonal(&ahead))]);
                let r =
                    ratio(&got.clone().into_data().iter::<f32>().collect::<Vec<_>>(), &flat(&want));
                assert!(r < 1e-5, "{rule:?}, {rows} x {columns}, step {step}: {r:.1e}");
            }
            let far = ratio(&flat(&want), &flat(&start));
            assert!(far > 1e-2, "{rule:?}: nothing moved, {far:.1e}");
        }
    }
}

#[test]
fn matrices_inside_the_blocks_are_told_by_path_and_rank() {
    for (path, rank, expected) in [
        ("layers.0.self_attn.q_proj.weight", 2, true),
        ("layers.3.self_attn.in_proj.weight", 2, true),
        ("layers.0.mlp.down_proj.weight", 2, true),
        // Of a convolution.
        ("layers.0.self_attn.conv1d.weight", 3, false),
        ("layers.0.input_layernorm.weight", 1, false),
        ("layers.0.self_attn.in_proj.bias", 1, false),
        ("layers.0.self_attn.A_log", 2, false),
        ("lm_head.weight", 2, false),
        ("embed_tokens", 2, false),
    ] {
        assert_eq!(Muon::updates(path, rank), expected, "{path}");
    }
}
