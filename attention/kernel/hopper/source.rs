//! The kernels' text: what a variant is, and the lines before the files that make them it.

use super::launch::Call;
use super::rules::Rules;
use super::wgmma::{Left, product};
use std::fmt::Write;

/// Branches that fit into shared memory.
pub(super) const MOST_BRANCHES: usize = 3;

/// Bytes that a tile's address is rounded up by, and barriers.
const BESIDES: usize = 1024 + 256;

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
    /// Channels of a tile, 64 or 128; heads may have fewer.
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
        (8192 / head, 128)
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
            define(&mut text, &format!("RULES_{i}"), rules.bits() as usize);
        }
        define(&mut text, "ALONE", self.alone as usize);
        define(&mut text, "IS_BF16", (self.numbers == Numbers::Bf16) as usize);
        define(&mut text, "KEYS_ARE_COLUMNS", (self.kernel != Kernel::Keys) as usize);
        define(&mut text, "CALL_BYTES", size_of::<Call>());
        let _ = writeln!(text, "#define TYPE \"{}\"", self.numbers.name());
        let (hide, walk) = (include_str!("hide.cuh"), include_str!("walk.cuh"));
        let kernel: &[&str] = match self.kernel {
            Kernel::Forward => &[hide, walk, include_str!("forward.cu")],
            Kernel::Keys => &[hide, include_str!("keys.cu")],
            Kernel::Queries => &[hide, walk, include_str!("queries.cu")],
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
                ("scores_product", 128, by_channels),
                ("values_product", self.head, Left::Registers),
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
        let tile = 128 * self.head * 2;
        match self.kernel {
            // Queries of one branch come ahead.
            Kernel::Forward => (self.branches.max(2) + 4) * tile + BESIDES,
            Kernel::Queries => 7 * tile + BESIDES,
            Kernel::Keys => {
                let (queries, keys) = Self::tile_by_keys(self.head);
                let of_queries = 2 * (2 * queries * self.head * 2 + 2 * queries * 4);
                let of_dq = if self.alone { 0 } else { 2 * keys * queries * 2 + 2 * 64 * 64 * 4 };
                2 * tile + of_queries + of_dq + BESIDES
            }
            Kernel::Around | Kernel::Combine => 0,
        }
    }
}
