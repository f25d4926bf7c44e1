//! The kernels' text, what a launch hands over, and how work is divided.

use std::fmt::Write;

/// Most rows of tokens.
pub(super) const MOST_ROWS: usize = 16;
/// Rows of weights of a workgroup of `thin`, and keys of a stage of `one`.
pub(super) const TILE: usize = 16;
/// Columns that four lanes read at once.
const RUN: usize = 32;
/// Most parts that the keys of a row have.
const MOST_PARTS: usize = 128;
/// Bytes of shared memory of a workgroup of `one`: two of them find room on a multiprocessor.
const ROOM: usize = 96 << 10;

/// What a linear layer's output becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Rotated queries and keys, and values; keys and values go into the cache.
    Turned,
    /// Added to the residual stream.
    Added,
    /// What a gate lets through.
    Gated,
    /// Logits.
    Plain,
}

/// How the columns of a linear layer are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Columns {
    /// Warps of a workgroup, each with a part of the columns.
    pub warps: usize,
    /// Runs of 32 columns of a warp.
    pub steps: usize,
    /// Runs that are under way.
    pub deep: usize,
}

impl Columns {
    /// For so many columns, where they are whole runs: as many warps as have much under way. Measured on an H100.
    pub fn of(columns: usize) -> Option<Self> {
        if columns == 0 || !columns.is_multiple_of(RUN) {
            return None;
        }
        let (runs, most) = (columns / RUN, if columns <= 4096 { 8 } else { 16 });
        let with = |warps: usize| {
            let steps = runs / warps;
            let deep = (1..=4).rev().find(|deep| steps.is_multiple_of(*deep)).unwrap_or(1);
            Self { warps, steps, deep }
        };
        let fits = (1..=most).filter(|warps| runs.is_multiple_of(*warps)).map(with);
        fits.max_by_key(|x| ((x.warps * x.deep).min(2 * most), x.warps))
    }
}

/// A kernel, with what is known when it is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// A linear layer; tokens in eights.
    Thin { kind: Kind, eights: usize, columns: Columns },
    /// Attention of one query per row, with so many channels and query heads per key head.
    One { d: usize, group: usize },
}

impl Form {
    pub fn entry(self) -> (&'static str, usize) {
        match self {
            Self::Thin { .. } => ("thin", 0),
            Self::One { .. } => ("one", ROOM),
        }
    }

    pub fn threads(self) -> u32 {
        let warps = match self {
            Self::Thin { columns, .. } => columns.warps,
            Self::One { d, .. } => warps_of(d).0,
        };
        32 * warps as u32
    }

    /// CUDA C++ without includes.
    pub fn source(self) -> String {
        let defines = match self {
            Self::Thin { kind, eights, columns } => vec![
                ("TURNED", Kind::Turned as usize),
                ("ADDED", Kind::Added as usize),
                ("GATED", Kind::Gated as usize),
                ("PLAIN", Kind::Plain as usize),
                ("KIND", kind as usize),
                ("ROWS", eights),
                ("WARPS", columns.warps),
                ("STEPS", columns.steps),
                ("DEEP", columns.deep),
                ("CALL_BYTES", size_of::<ThinCall>()),
            ],
            Self::One { d, group } => vec![
                ("D", d),
                ("GROUP", group),
                ("WARPS", warps_of(d).0),
                ("STAGES", warps_of(d).1),
                ("TALL", TILE),
                ("MOST_ROWS", MOST_ROWS),
                ("CALL_BYTES", size_of::<OneCall>()),
            ],
        };
        let mut text = String::new();
        for (name, value) in defines {
            // Writing to a string does not fail.
            let _ = writeln!(text, "#define {name} {value}");
        }
        text += include_str!("base.cuh");
        text += match self {
            Self::Thin { .. } => include_str!("thin.cu"),
            Self::One { .. } => include_str!("one.cu"),
        };
        text
    }
}

/// Warps and stages of attention with heads of `d` channels: three stages of keys and values, or as many as fit.
pub(super) fn warps_of(d: usize) -> (usize, usize) {
    let stages = 3;
    let of_warp = stages * 2 * TILE * d * 2;
    ((ROOM / of_warp).min(8), stages)
}

/// Parts of the keys of a row, for so many rows times key heads and places on the card: where the longest way through
/// is shortest. A part takes as long as a dozen stages before it begins and after it ends.
pub(super) fn parts(lines: usize, keys: usize, places: usize) -> usize {
    let stages = keys.div_ceil(TILE);
    let most = (stages / 8).clamp(1, MOST_PARTS);
    let took = |parts: usize| (lines * parts).div_ceil(places) * (stages.div_ceil(parts) + 12);
    (1..=most).min_by_key(|parts| took(*parts)).unwrap_or(1)
}

/// The argument of `thin`; what a kind does not read stays 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ThinCall {
    pub w: [u64; 3],
    pub bias: [u64; 3],
    pub norm: u64,
    pub x: u64,
    pub y: u64,
    pub wide: u64,
    pub cache: [u64; 2],
    pub row: [i64; 2],
    pub head: [i64; 2],
    pub cos: u64,
    pub sin: u64,
    pub step: [i32; 3],
    pub of_row: i32,
    pub eps: f32,
    pub rows: i32,
    pub tiles: i32,
    pub first: i32,
    pub second: i32,
    pub d: i32,
}

/// The argument of `one`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OneCall {
    pub q: u64,
    pub out: u64,
    pub cache: [u64; 2],
    pub row: [i64; 2],
    pub head: [i64; 2],
    pub sums: u64,
    pub ends: u64,
    pub done: u64,
    pub keys: i32,
    pub kv: i32,
    pub parts: i32,
    pub scale_log2: f32,
    pub start: [i32; MOST_ROWS],
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms() -> Vec<Form> {
        let mut all = Vec::new();
        for (kind, columns) in [
            (Kind::Turned, 2048),
            (Kind::Added, 2048),
            (Kind::Added, 8192),
            (Kind::Gated, 4096),
            (Kind::Plain, 576),
        ] {
            let columns = Columns::of(columns).unwrap();
            all.extend([1, 2].map(|eights| Form::Thin { kind, eights, columns }));
        }
        all.extend([(64, 4), (128, 1), (128, 8)].map(|(d, group)| Form::One { d, group }));
        all
    }

    #[test]
    fn forms_have_texts_of_their_own() {
        let mut texts: Vec<String> = forms().into_iter().map(Form::source).collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), forms().len());
    }

    #[cfg(feature = "cuda-nvrtc")]
    #[test]
    fn every_form_compiles_without_spills() {
        use crate::cuda::cubin;
        if let Err(reason) = cubin::version() {
            return println!("skipped: {reason}");
        }
        for form in forms() {
            let options = ["--gpu-architecture=sm_90", "--ptxas-options=-v"];
            let (cubin, said) = cubin::compile(&form.source(), &options)
                .unwrap_or_else(|e| panic!("{form:?}: {e}"));
            assert!(cubin.starts_with(b"\x7fELF"));
            assert!(said.contains(" 0 bytes spill stores"), "{form:?}: {said}");
        }
    }

    #[test]
    fn columns_are_divided_whole() {
        for columns in [32, 64, 320, 576, 768, 1536, 2048, 2816, 4096, 5632, 8192, 8960, 11008] {
            let Columns { warps, steps, deep } = Columns::of(columns).unwrap();
            assert_eq!(warps * steps * RUN, columns);
            assert!(warps <= 16 && (1..=4).contains(&deep) && steps.is_multiple_of(deep));
        }
        assert_eq!(Columns::of(2048), Some(Columns { warps: 8, steps: 8, deep: 4 }));
        assert_eq!(Columns::of(8192), Some(Columns { warps: 16, steps: 16, deep: 4 }));
        // 11 runs in a row leave a warp with one under way.
        assert!(Columns::of(2816).is_some_and(|x| x.warps * x.deep >= 8));
        assert_eq!([0, 31, 100].map(Columns::of), [None; 3]);
    }

    #[test]
    fn keys_are_cut_where_rows_are_too_few() {
        assert_eq!(parts(8, 32_768, 264), 33);
        assert_eq!(parts(128, 32_768, 264), 2);
        assert_eq!([parts(8, 1, 264), parts(8, 127, 264), parts(8, 255, 264)], [1, 1, 2]);
        // No part is shorter than what it costs to begin one, and none is empty.
        for keys in [1, 17, 500, 5000, 1 << 20] {
            let cut = parts(8, keys, 264);
            assert!(cut == 1 || keys.div_ceil(TILE) / cut >= 8, "{keys} in {cut}");
        }
    }

    #[test]
    fn stages_fit_shared_memory() {
        for d in [64, 128] {
            let (warps, stages) = warps_of(d);
            assert!(warps >= 4 && warps * stages * 2 * TILE * d * 2 <= ROOM);
            // What parts leave, and what they are put together by.
            assert!(4 * 8 * (warps * (d + 2)).max(3 * MOST_PARTS + 1) <= ROOM);
        }
    }
}
