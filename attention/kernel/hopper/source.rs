//! The kernels' text: what a variant is, and the lines before the files that make them it.

use super::launch::Call;
use super::rules::{ROUND, Rules};
use super::wgmma::{Left, product};
use std::fmt::Write;

/// Branches that any kernel has.
pub(super) const MOST_BRANCHES: usize = 3;

/// Bytes of shared memory that a workgroup may have.
pub(super) const SHARED: usize = 227 << 10;
/// Bytes that a tile's address is rounded up by, and barriers.
const BESIDES: usize = 1024 + 256;
/// Keys of a small tile.
const HALF: usize = ROUND / 2;
/// Queries, or keys, of a warpgroup that computes.
pub(super) const OF_GROUP: usize = 64;
/// Channels up to which a warpgroup has registers for both dk and dv.
const NARROW: usize = 128;

/// Tiles that a pass by queries has in shared memory at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stages {
    /// Of queries, of every branch, or with those of dout.
    queries: usize,
    /// Pieces of keys, and of values.
    keys: usize,
    values: usize,
}

impl Stages {
    /// Of shared memory, and what lies besides.
    fn bytes(self, kernel: Kernel, head: usize, branches: usize, tile: (usize, usize)) -> usize {
        let of_token = 2 * head;
        let of_queries = if kernel == Kernel::Queries { 2 } else { branches };
        let pieces = (self.keys + self.values) * tile.1;
        (self.queries * of_queries * tile.0 + pieces) * of_token + BESIDES
    }
}

/// From what is fastest to what takes least.
const FORWARD: [Stages; 4] = [
    Stages { queries: 2, keys: 2, values: 3 },
    Stages { queries: 1, keys: 2, values: 3 },
    Stages { queries: 1, keys: 2, values: 2 },
    Stages { queries: 1, keys: 2, values: 1 },
];
/// More of them, where tiles of keys are small.
const SMALL: Stages = Stages { queries: 2, keys: 3, values: 3 };
const QUERIES: [Stages; 3] = [
    Stages { queries: 2, keys: 3, values: 3 },
    Stages { queries: 1, keys: 3, values: 2 },
    Stages { queries: 1, keys: 2, values: 1 },
];

/// Which file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    Forward,
    /// dk and dv, and dq unless it has a pass of its own.
    Keys,
    /// dq.
    Queries,
    /// What comes before and after the backward pass.
    Around,
    /// What comes of parts of the keys, put together.
    Combine,
}

/// The numbers that go in and come out; everything between is in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Numbers {
    Bf16,
    F16,
}

impl Numbers {
    /// As instructions name it.
    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Variant {
    pub kernel: Kernel,
    /// Channels of a tile, 64, 128, 192 or 256; heads may have fewer.
    pub head: usize,
    pub numbers: Numbers,
    pub branches: usize,
    /// Of each branch.
    pub rules: [Rules; MOST_BRANCHES],
    /// Whether dq has a pass of its own: two runs give the same bits.
    pub alone: bool,
}

impl Variant {
    /// Queries and keys of a tile of a backward pass by keys.
    pub fn tile_by_keys(head: usize) -> (usize, usize) {
        if head <= NARROW { (8192 / head, 128) } else { (64, 64) }
    }

    /// Whether dq always has a pass of its own: the one by keys has no registers for it.
    pub fn always_alone(head: usize) -> bool {
        head > NARROW
    }

    /// Threads that share a query before the backward pass.
    pub fn lanes(head: usize) -> usize {
        if head == 64 { 8 } else { 16 }
    }

    /// Branches that there is shared memory for.
    pub fn most_branches(head: usize) -> usize {
        let tile = (ROUND, if head <= NARROW { ROUND } else { HALF });
        let fits = |branches: &usize| {
            let bytes = |stages: &Stages| stages.bytes(Kernel::Forward, head, *branches, tile);
            FORWARD.iter().any(|stages| bytes(stages) <= SHARED)
        };
        (1..=MOST_BRANCHES).rev().find(fits).unwrap_or_default()
    }

    /// Warpgroups that compute. Three where there are registers for that many: the softmax of narrow heads takes as
    /// long as their products, and a third fills the time that two leave (measured on an H100, 16384 tokens of 32
    /// heads: 2.27 instead of 2.45 ms): masks that look at much need more.
    fn computing(&self) -> usize {
        let few = [Rules::CAUSAL, Rules::WINDOW, Rules::SINKS, Rules::LABELS];
        let others = few.iter().fold(self.rules[0], |rules, rule| rules.without(*rule));
        let narrow = self.kernel == Kernel::Forward && self.head == 64 && self.branches == 1;
        if narrow && others == Rules::default() { 3 } else { 2 }
    }

    /// Whether warpgroups go through keys each on its own, since often only one of them sees any.
    fn apart(&self) -> bool {
        let any = self.rules[..self.branches].iter().any(|rules| rules.has(Rules::APART));
        match self.kernel {
            Kernel::Forward => any,
            // There are no registers for it beside wider ones.
            Kernel::Queries => any && self.head <= 192,
            _ => false,
        }
    }

    /// Of a workgroup that computes tiles: one warpgroup loads them.
    pub fn threads(&self) -> u32 {
        128 * (1 + self.computing() as u32)
    }

    /// Queries and keys of a tile of a pass by queries: half as many keys where blocks of masks have no more, since a
    /// tile is computed whole.
    pub fn tile_by_queries(&self) -> (usize, usize) {
        let small = self.rules[..self.branches].iter().all(|rules| rules.has(Rules::SMALL));
        (self.computing() * OF_GROUP, if small { HALF } else { ROUND })
    }

    /// Keys of a tile that a pass by queries has at a time.
    pub fn piece(&self) -> usize {
        let whole = self.kernel == Kernel::Forward && self.head <= NARROW;
        if whole { self.tile_by_queries().1 } else { HALF }
    }

    /// Of a pass by queries.
    fn stages(&self) -> Stages {
        let all = match self.kernel {
            Kernel::Queries => QUERIES.to_vec(),
            _ if self.tile_by_queries().1 == HALF => [&[SMALL][..], &FORWARD].concat(),
            _ => FORWARD.to_vec(),
        };
        let bytes = |x: &Stages| self.bytes(*x);
        // What takes least, even where it is too much: `most_branches` tells.
        let least = all[all.len() - 1];
        all.into_iter().find(|stages| bytes(stages) <= SHARED).unwrap_or(least)
    }

    fn bytes(&self, stages: Stages) -> usize {
        let tile = (self.tile_by_queries().0, self.piece());
        stages.bytes(self.kernel, self.head, self.branches, tile)
    }

    /// Tiles of queries, and of dout, that a pass by keys has at a time.
    fn stages_by_keys(&self) -> usize {
        if self.head == 192 { 3 } else { 2 }
    }

    /// CUDA C++ without includes.
    pub fn source(&self) -> String {
        let products = self.products().into_iter();
        let products = products.map(|(name, n, left)| product(name, n, left, self.numbers.name()));
        self.text(include_str!("instructions.cuh"), &products.collect::<String>())
    }

    /// A kernel with other instructions and products.
    pub fn text(&self, instructions: &str, products: &str) -> String {
        let mut text = String::new();
        let define = |text: &mut String, name: &str, value: usize| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "#define {name} {value}");
        };
        define(&mut text, "HEAD", self.head);
        define(&mut text, "BRANCHES", self.branches);
        for (i, rules) in self.rules.iter().enumerate() {
            let of_tile = rules.without(Rules::APART);
            define(&mut text, &format!("RULES_{i}"), of_tile.bits() as usize);
        }
        define(&mut text, "ALONE", self.alone as usize);
        define(&mut text, "IS_BF16", (self.numbers == Numbers::Bf16) as usize);
        define(&mut text, "KEYS_ARE_COLUMNS", (self.kernel != Kernel::Keys) as usize);
        define(&mut text, "CALL_BYTES", size_of::<Call>());
        define(&mut text, "COMPUTING", self.computing());
        define(&mut text, "APART", self.apart() as usize);
        match self.kernel {
            Kernel::Forward | Kernel::Queries => {
                let stages = self.stages();
                define(&mut text, "TILE_KEYS", self.tile_by_queries().1);
                define(&mut text, "PIECE", self.piece());
                define(&mut text, "Q_STAGES", stages.queries);
                define(&mut text, "K_STAGES", stages.keys);
                define(&mut text, "V_STAGES", stages.values);
            }
            Kernel::Keys => {
                let (queries, keys) = Self::tile_by_keys(self.head);
                define(&mut text, "TILE_QUERIES", queries);
                define(&mut text, "TILE_KEYS", keys);
                define(&mut text, "STAGES", self.stages_by_keys());
            }
            Kernel::Around => define(&mut text, "LANES", Self::lanes(self.head)),
            Kernel::Combine => {}
        }
        let _ = writeln!(text, "#define TYPE \"{}\"", self.numbers.name());
        let (hide, walk) = (include_str!("hide.cuh"), include_str!("walk.cuh"));
        let lists = include_str!("lists.cuh");
        let kernel: &[&str] = match self.kernel {
            Kernel::Forward => &[walk, hide, include_str!("forward.cu")],
            Kernel::Keys if self.head <= NARROW => &[lists, hide, include_str!("keys.cu")],
            Kernel::Keys => &[lists, hide, include_str!("wide.cu")],
            Kernel::Queries => &[walk, hide, include_str!("queries.cu")],
            Kernel::Around => &[include_str!("around.cu")],
            Kernel::Combine => &[include_str!("combine.cu")],
        };
        text += instructions;
        text += include_str!("mask.cuh");
        text += include_str!("base.cuh");
        text += products;
        text + &kernel.concat()
    }

    pub fn products(&self) -> Vec<(&'static str, usize, Left)> {
        let by_channels = Left::Shared { turned: false };
        match self.kernel {
            Kernel::Forward => vec![
                ("scores_product", self.piece(), by_channels),
                ("values_product", self.head, Left::Registers),
            ],
            Kernel::Keys if self.head > NARROW => vec![
                ("scores_product", 64, by_channels),
                ("gradient_product", self.head, Left::Registers),
            ],
            Kernel::Keys => vec![
                ("scores_product", Self::tile_by_keys(self.head).0, by_channels),
                ("gradient_product", self.head, Left::Registers),
                ("query_product", 64, Left::Shared { turned: true }),
            ],
            Kernel::Queries => vec![
                ("scores_product", 64, by_channels),
                ("gradient_product", self.head, Left::Registers),
            ],
            Kernel::Around | Kernel::Combine => Vec::new(),
        }
    }

    /// Names of what is launched.
    pub fn entries(&self) -> &'static [&'static str] {
        match self.kernel {
            Kernel::Forward => &["forward"],
            Kernel::Keys => &["keys"],
            Kernel::Queries => &["queries"],
            Kernel::Around => &["before", "after"],
            Kernel::Combine => &["combine"],
        }
    }

    /// Bytes of shared memory of a workgroup.
    pub fn shared(&self) -> usize {
        match self.kernel {
            Kernel::Forward | Kernel::Queries => self.bytes(self.stages()),
            Kernel::Keys => {
                let (queries, keys) = Self::tile_by_keys(self.head);
                let of_keys = 2 * keys * self.head * 2;
                let of_queries =
                    self.stages_by_keys() * (2 * queries * self.head * 2 + 2 * queries * 4);
                let of_rest = if self.head > NARROW {
                    keys * queries * 4
                } else if self.alone {
                    0
                } else {
                    2 * keys * queries * 2 + 2 * 64 * 64 * 4
                };
                of_keys + of_queries + of_rest + BESIDES
            }
            Kernel::Around | Kernel::Combine => 0,
        }
    }
}
